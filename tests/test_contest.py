"""Contests: everybody gets the same, in turns, and a difference is one only if the pairs say so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import vsa_rt
from vsa_rt.bench import clock, resources
from vsa_rt.bench.baselines import Sources, make_baselines
from vsa_rt.bench.candidate import Candidate, Tensors
from vsa_rt.bench.contest import LEAST_ROUNDS, MOST_ROUNDS, contest, rounds_for
from vsa_rt.bench.records.contest import Contest, Pairing
from vsa_rt.bench.workload import from_golden
from vsa_rt.bundle import Bundle
from vsa_rt.errors import UsageError


class VirtualTime:
    """A clock that only moves when a candidate says so: what is measured on it no other process disturbs."""

    def __init__(self) -> None:
        self.ns = 0

    def perf_counter_ns(self) -> int:
        return self.ns


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    made = VirtualTime()
    monkeypatch.setattr(clock, "time", made)
    return made


Log = list[tuple[str, int]]


def busy(
    virtual: VirtualTime,
    name: str,
    ms: Sequence[float],
    log: Log | None = None,
    kind: Any = "plan",
    score: float = 0.5,
) -> Candidate:
    """A candidate whose calls take the given times, round and round."""
    calls = iter(range(1 << 20))

    def call(inputs: Tensors) -> Tensors:
        virtual.ns += round(1e6 * ms[next(calls) // 2 % len(ms)])
        if log is not None:
            log.append((name, int(inputs["x"][0, 0])))
        return {"scores": np.full((len(inputs["x"]), 1), score, np.float32)}

    return Candidate(name, kind, "fp32", f"takes {ms}", call)


def batches(count: int, batch: int = 2) -> list[Tensors]:
    return [{"x": np.full((batch, 1), i, np.float32)} for i in range(count)]


def pairing(found: Contest, slower: str, faster: str) -> Pairing:
    return next(p for p in found.pairings if (p.slower, p.faster) == (slower, faster))


def test_two_and_three_milliseconds_are_a_ratio_of_one_and_a_half(virtual: VirtualTime) -> None:
    plan = busy(virtual, "plan", [2.0])
    found = contest([plan], [busy(virtual, "slow", [3.0], kind="baseline")], batches(4), 2, rounds=15)
    pair = pairing(found, "slow", "plan")
    assert (pair.ratio, pair.low, pair.high) == (1.5, 1.5, 1.5)
    assert pair.different
    assert pair.pairs == 15
    assert pair.confidence is not None
    assert pair.confidence >= 0.99
    assert [(c.name, c.kind, set(c.samples)) for c in found.contestants] == [
        ("plan", "plan", {2.0}),
        ("slow", "baseline", {3.0}),
    ]
    assert (found.batch, found.threads, found.absent) == (2, 2, {})


def test_equal_candidates_with_noise_are_not_different(virtual: VirtualTime) -> None:
    noise = [2.0, 2.3, 1.9, 2.1, 2.0, 2.6, 2.0]
    found = contest(
        [busy(virtual, "a", noise), busy(virtual, "b", [*noise[3:], *noise[:3]])],
        [],
        batches(4),
        1,
        rounds=49,
    )
    pair = pairing(found, "b", "a")
    assert pair.low <= 1 <= pair.high
    assert not pair.different


def test_five_percent_show_through_the_same_noise(virtual: VirtualTime) -> None:
    noise = [2.0, 2.01, 1.99, 2.02, 2.0, 2.03, 1.98]
    slower = [1.05 * ms for ms in [*noise[3:], *noise[:3]]]
    found = contest([busy(virtual, "a", noise), busy(virtual, "b", slower)], [], batches(4), 1, rounds=49)
    assert pairing(found, "b", "a").different
    assert pairing(found, "b", "a").ratio == pytest.approx(1.05, abs=0.02)


def test_too_few_pairs_are_never_a_difference(virtual: VirtualTime) -> None:
    found = contest([busy(virtual, "a", [1.0]), busy(virtual, "b", [9.0])], [], batches(1), 1, rounds=5)
    pair = pairing(found, "b", "a")
    assert (pair.ratio, pair.confidence, pair.different) == (9.0, None, False)


def test_in_a_round_all_get_the_same_inputs_and_the_order_rotates(virtual: VirtualTime) -> None:
    log: Log = []
    names = ["p", "q", "b"]
    made = [busy(virtual, name, [1.0], log, "baseline" if name == "b" else "plan") for name in names]
    contest(made[:2], made[2:], batches(4), 1, rounds=8)
    rounds = log[-8 * 6 :]
    for turn in range(8):
        part = rounds[6 * turn : 6 * turn + 6]
        order = names[turn % 3 :] + names[: turn % 3]
        # Each timed call follows an untimed one of the same candidate.
        assert part == [(name, turn % 4) for name in order for _ in range(2)]


def test_every_baseline_meets_every_plan_and_further_plans_meet_the_first(virtual: VirtualTime) -> None:
    plans = [busy(virtual, name, [1.0]) for name in ("p1", "p2", "p3")]
    others = [busy(virtual, name, [2.0], kind="baseline") for name in ("b1", "b2")]
    found = contest(plans, others, batches(2), 1, rounds=9)
    assert {(p.slower, p.faster) for p in found.pairings} == {
        *((b, p) for b in ("b1", "b2") for p in ("p1", "p2", "p3")),
        ("p2", "p1"),
        ("p3", "p1"),
    }
    assert len(found.pairings) == 8


def test_a_faster_baseline_has_a_ratio_under_one(virtual: VirtualTime) -> None:
    found = contest(
        [busy(virtual, "plan", [4.0])],
        [busy(virtual, "quick", [2.0], kind="baseline")],
        batches(2),
        1,
        rounds=9,
    )
    assert pairing(found, "quick", "plan").ratio == 0.5
    assert pairing(found, "quick", "plan").different


def test_a_baseline_that_computes_something_else_is_left_out_and_named(virtual: VirtualTime) -> None:
    wrong = busy(virtual, "wrong", [1.0], kind="baseline", score=0.9)
    right = busy(virtual, "right", [1.0], kind="baseline")
    found = contest(
        [busy(virtual, "plan", [1.0])],
        [wrong, right],
        batches(2),
        1,
        rounds=9,
        absent={"compile": "no compiler"},
    )
    assert [c.name for c in found.contestants] == ["plan", "right"]
    assert found.absent["compile"] == "no compiler"
    assert "does not compute the same as plan: scores: differs by 0.4" in found.absent["wrong"]
    assert all("wrong" not in (p.slower, p.faster) for p in found.pairings)


def test_a_plan_that_computes_something_else_takes_part(virtual: VirtualTime) -> None:
    """Parity judges plans; a report without the times of one that fails would hide it."""
    plans = [busy(virtual, "a", [1.0]), busy(virtual, "b", [1.0], score=0.9)]
    assert len(contest(plans, [], batches(1), 1, rounds=9).contestants) == 2


@pytest.mark.parametrize(
    ("seconds", "ms", "rounds"),
    [
        (1.0, 20.0, 50),
        (0.0, 20.0, LEAST_ROUNDS),
        (1.0, 1e5, LEAST_ROUNDS),
        (1e3, 1.0, MOST_ROUNDS),
        (1.0, 0.0, MOST_ROUNDS),
    ],
)
def test_rounds_follow_the_time_within_bounds(seconds: float, ms: float, rounds: int) -> None:
    assert rounds_for(seconds, ms) == rounds


def test_a_time_decides_the_rounds(virtual: VirtualTime) -> None:
    """2 and 3 ms, each once untimed: 10 ms a round."""
    plans = [busy(virtual, "a", [2.0]), busy(virtual, "b", [3.0])]
    assert len(contest(plans, [], batches(1), 1, seconds=0.5).contestants[0].samples) == 50


def test_the_machine_is_watched_and_nobody_gets_everybodys_energy(
    virtual: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real: Callable[[], Any] = resources.watch

    @contextlib.contextmanager
    def watch() -> Iterator[Any]:
        class Spy:
            def result(self, images: int) -> Any:
                seen.append(images)
                felt = watched.result(images=images)
                return msgspec.structs.replace(felt, joules=8.0, joules_per_image=2.0)

        with real() as watched:
            yield Spy()

    monkeypatch.setattr(resources, "watch", watch)
    plans = [busy(virtual, "a", [2.0]), busy(virtual, "b", [3.0])]
    found = contest(plans, [], batches(1, batch=4), 1, rounds=9)
    assert len(seen) == 1
    assert (found.resources.joules, found.resources.joules_per_image) == (8.0, None)


@pytest.mark.parametrize(
    ("plans", "inputs", "rounds", "words"),
    [
        ([], 1, 9, "0 plans"),
        (["a"], 0, 9, "0 batches"),
        (["a"], 1, 0, "0 rounds"),
        (["a", "a"], 1, 9, "two candidates are called 'a'"),
    ],
)
def test_what_is_no_contest_is_refused(
    virtual: VirtualTime, plans: list[str], inputs: int, rounds: int, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        contest([busy(virtual, p, [1.0]) for p in plans], [], batches(inputs), 1, rounds=rounds)


def test_batches_of_different_sizes_are_refused(virtual: VirtualTime) -> None:
    with pytest.raises(UsageError, match=r"\[1, 2\] images"):
        contest([busy(virtual, "a", [1.0])], [], [*batches(1, 1), *batches(1, 2)], 1, rounds=9)


def test_a_bundle_against_its_baselines_is_a_record(tiny_bundle: Path, tiny_weights: dict[str, Path]) -> None:
    from vsa_rt.pipeline.reference import load_torch

    bundle = Bundle.open(tiny_bundle)
    inputs = from_golden(bundle).tensors(2)
    sources = Sources(lambda: load_torch(bundle, tiny_weights), bundle, 1)
    baselines, absent = make_baselines(["eager", "onnxruntime-separate"], sources, inputs[0])
    with vsa_rt.load(bundle, threads=1) as runtime:
        precision = runtime.choice.engine.precision
        plan = Candidate("plan", "plan", precision, runtime.choice.why, runtime.infer)
        found = contest([plan], baselines, inputs, 1, rounds=9, absent=absent)
    assert [c.name for c in found.contestants] == ["plan", "eager", "onnxruntime-separate"]
    assert {len(c.samples) for c in found.contestants} == {9}
    assert all(ms > 0 for c in found.contestants for ms in c.samples)
    assert found.resources.cores is None or found.resources.cores > 0
    assert msgspec.json.decode(msgspec.json.encode(found), type=Contest) == found


def reopened(virtual: VirtualTime, name: str, places: Sequence[float], noise: Sequence[float]) -> Candidate:
    """An engine that takes as many milliseconds as its opening happens to give it, and some noise."""
    calls, opening = iter(range(1 << 20)), iter(range(1, 1 << 20))
    place = [places[0]]

    def call(inputs: Tensors) -> Tensors:
        virtual.ns += round(1e6 * place[0] * noise[next(calls) // 2 % len(noise)])
        return {"scores": np.full((len(inputs["x"]), 1), 0.5, np.float32)}

    def renew() -> None:
        place[0] = places[next(opening) % len(places)]

    return Candidate(name, "plan", "fp32", "", call, renew=renew)


def test_what_an_opening_is_by_chance_is_no_difference(virtual: VirtualTime) -> None:
    """The first opening of one is slower by 2 %; over six openings, that is not what the engine is."""
    noise = [0.999, 1.0, 1.001]
    lucky = [1.02, 0.99, 1.01, 0.98, 1.005, 0.995]
    once = contest(
        [reopened(virtual, "a", [1.0], noise), reopened(virtual, "b", lucky, noise)],
        [],
        batches(2),
        1,
        rounds=60,
    )
    often = contest(
        [reopened(virtual, "a", [1.0], noise), reopened(virtual, "b", lucky, noise)],
        [],
        batches(2),
        1,
        rounds=60,
        openings=6,
    )
    assert (once.openings, pairing(once, "b", "a").different) == (1, True)
    assert (often.openings, pairing(often, "b", "a").different) == (6, False)


def test_each_opening_has_its_share_of_the_rounds_after_a_warm_up(virtual: VirtualTime) -> None:
    log: list[str] = []

    def call(inputs: Tensors) -> Tensors:
        virtual.ns += 1_000_000
        log.append("call")
        return {"scores": np.zeros((len(inputs["x"]), 1), np.float32)}

    plan = Candidate("a", "plan", "fp32", "", call, renew=lambda: log.append("open"))
    contest([plan], [], batches(1), 1, rounds=20, openings=4)
    blocks = "".join("o" if word == "open" else "c" for word in log).split("o")
    # Every round has an untimed call before the timed one; a new opening has three more before its first round.
    assert [len(b) for b in blocks][1:] == [3 + 2 * 5] * 3


def test_no_opening_at_all_is_refused(virtual: VirtualTime) -> None:
    with pytest.raises(UsageError, match="0 openings"):
        contest([busy(virtual, "a", [1.0])], [], batches(1), 1, rounds=5, openings=0)


def test_a_baseline_that_raises_is_left_out_and_the_others_are_measured(virtual: VirtualTime) -> None:
    def broken(inputs: Tensors) -> Tensors:
        raise RuntimeError("out of memory")

    bad = Candidate("bad", "baseline", "fp32", "", broken)
    found = contest(
        [busy(virtual, "a", [2.0])],
        [bad, busy(virtual, "b", [3.0], kind="baseline")],
        batches(1),
        1,
        rounds=15,
    )
    assert found.absent == {"bad": "cannot run: RuntimeError: out of memory"}
    assert [c.name for c in found.contestants] == ["a", "b"]


def test_a_baseline_of_one_opening_is_told_from_a_plan_only_beyond_what_openings_differ(
    virtual: VirtualTime,
) -> None:
    """The plan's openings scatter by 1 %: that the baseline's only one is 1.5 % off says nothing, 10 % do."""
    places, noise = [1.0, 1.01, 0.99, 1.005, 0.995, 1.0], [0.999, 1.0, 1.001]
    for ms, different in ((1.015, False), (1.1, True)):
        plan = reopened(virtual, "plan", places, noise)
        found = contest(
            [plan], [busy(virtual, "b", [ms], kind="baseline")], batches(1), 1, rounds=60, openings=6
        )
        assert pairing(found, "b", "plan").different is different
