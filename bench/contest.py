"""Contests: plans and baselines take turns on the same inputs in one run, and are compared pair by pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import msgspec

from vsa_rt.bench import clock
from vsa_rt.bench.candidate import Candidate, Tensors, check_agreement
from vsa_rt.bench.openings import LEAST_OPENINGS, ratio_over_openings
from vsa_rt.bench.records.contest import Contest, Contestant, Pairing
from vsa_rt.errors import GateError, UsageError

#: Of the intervals of ratios: with 20 comparisons of equals, one in five reports would call one of them different.
CONFIDENCE = 0.99
#: Rounds that a contest takes, whatever its budget. Seven are too few for an interval at 99 %.
LEAST_ROUNDS, MOST_ROUNDS = 15, 400
#: Seconds that a contest takes about, if nobody says otherwise.
SECONDS = 20.0
#: Fewer rounds than this give an opening no median of its own; where too few openings are left, there is one.
_ROUNDS_PER_OPENING = 5
#: Unmeasured calls of each candidate before the first round, as ``clock.measure`` has them.
_WARM_UP = 3


def rounds_for(seconds: float, ms_per_round: float) -> int:
    """Rounds that fit into a time, between 15 and 400.

    Args:
        seconds: The time.
        ms_per_round: What one round takes.
    """
    fit = math.inf if ms_per_round <= 0 else 1e3 * seconds / ms_per_round
    return int(min(MOST_ROUNDS, max(LEAST_ROUNDS, fit)))


def contest(
    plans: Sequence[Candidate],
    baselines: Sequence[Candidate],
    inputs: Sequence[Tensors],
    threads: int,
    *,
    seconds: float = SECONDS,
    rounds: int | None = None,
    openings: int = 1,
    confidence: float = CONFIDENCE,
    absent: Mapping[str, str] | None = None,
) -> Contest:
    """Let candidates take turns: every one once a round, the order rotating, the same inputs within a round.

    A baseline that computes something else than the first plan does not take part; ``absent`` then says why. The
    other plans do, whatever they compute: how they agree with the reference is the parity's to say.

    Args:
        plans: At least one. They and the baselines stay open.
        baselines: What they are held against.
        inputs: Batches of ready tensors of one size, which take turns from round to round.
        threads: Of each candidate, for the record.
        seconds: Time for the rounds; at least 15 are taken.
        rounds: Takes that many instead.
        openings: How often candidates that can be are opened anew within the rounds, the first time included.
        confidence: Of the ratios' intervals.
        absent: Baselines that cannot run here, for the record: name to reason.

    Raises:
        UsageError: No plan, no inputs, no rounds, or two candidates of one name.
    """
    _check(plans, baselines, inputs, rounds)
    if openings < 1:
        raise UsageError(f"contest: {openings} openings; expected at least one")
    missing = dict(absent or {})
    fit: list[Candidate] = []
    for baseline in baselines:
        try:
            check_agreement(plans[0], baseline, inputs[0])
            fit.append(baseline)
        except GateError as error:
            missing[baseline.name] = str(error)
        except Exception as error:  # noqa: BLE001 - of libraries without a base class; a baseline never takes the run
            missing[baseline.name] = f"cannot run: {type(error).__name__}: {error}"
    candidates = {c.name: c for c in (*plans, *fit)}
    rounds = rounds or rounds_for(seconds, _warm_up(candidates, inputs[0]))
    openings = min(openings, rounds // _ROUNDS_PER_OPENING)
    openings = openings if openings >= LEAST_OPENINGS else 1
    batch = _images(inputs[0])
    # The sensors need libraries that a contest can do without until it starts.
    from vsa_rt.bench.resources import watch

    with watch() as watched:
        samples = _take_turns(candidates, inputs, rounds, openings)
    return Contest(
        batch=batch,
        threads=threads,
        openings=openings,
        contestants=[
            Contestant(name=c.name, kind=c.kind, precision=c.precision, note=c.note, samples=samples[c.name])
            for c in candidates.values()
        ],
        pairings=_pairings(plans, fit, samples, openings, confidence),
        absent=missing,
        # Energy per image would be that of all candidates and of their openings together: nobody's.
        resources=msgspec.structs.replace(watched.result(images=1), joules_per_image=None),
    )


def _check(
    plans: Sequence[Candidate], baselines: Sequence[Candidate], inputs: Sequence[Tensors], rounds: int | None
) -> None:
    names = [c.name for c in (*plans, *baselines)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if not plans or not inputs or (rounds is not None and rounds < 1):
        raise UsageError(
            f"contest: {len(plans)} plans, {len(inputs)} batches, {rounds} rounds; expected at least one of each"
        )
    if twice is not None:
        raise UsageError(f"contest: two candidates are called {twice!r}; expected different names")
    sizes = sorted({_images(tensors) for tensors in inputs})
    if len(sizes) > 1:
        raise UsageError(f"contest: batches of {sizes} images; expected one size")


def _images(inputs: Tensors) -> int:
    return len(next(iter(inputs.values())))


def _warm_up(candidates: Mapping[str, Candidate], inputs: Tensors) -> float:
    """Call everybody a few times; milliseconds that a round will take."""
    spent = 0.0
    for candidate in candidates.values():
        for _ in range(_WARM_UP):
            last = clock.single(partial(candidate.call, inputs))
        spent += 2e3 * last
    return spent


def _take_turns(
    candidates: Mapping[str, Candidate], inputs: Sequence[Tensors], rounds: int, openings: int
) -> dict[str, list[float]]:
    """Samples in milliseconds by candidate, one per round."""
    names = list(candidates)
    samples: dict[str, list[float]] = {name: [] for name in names}
    anew = {rounds * k // openings for k in range(1, openings)}
    for turn in range(rounds):
        if turn in anew:
            _renew(candidates.values(), inputs[0])
        # A round is a measurement of its own, so that all get its inputs; the order rotates here, then.
        shift = turn % len(names)
        calls: dict[str, Callable[[], object]] = {
            name: partial(candidates[name].call, inputs[turn % len(inputs)])
            for name in names[shift:] + names[:shift]
        }
        for name, values in clock.measure(calls, rounds=1, warm_up=0).items():
            samples[name] += values
    return samples


def _renew(candidates: Iterable[Candidate], inputs: Tensors) -> None:
    """Open anew whoever can be, and call it until it is warm."""
    for candidate in candidates:
        if candidate.renew is not None:
            candidate.renew()
            for _ in range(_WARM_UP):
                candidate.call(inputs)


def _pairings(
    plans: Sequence[Candidate],
    baselines: Sequence[Candidate],
    samples: Mapping[str, Sequence[float]],
    openings: int,
    confidence: float,
) -> list[Pairing]:
    """Every baseline against every plan, and every further plan against the first."""
    pairs = [(baseline, plan) for plan in plans for baseline in baselines]
    pairs += [(plan, plans[0]) for plan in plans[1:]]
    return [_pairing(slower, faster, samples, openings, confidence) for slower, faster in pairs]


def _pairing(
    slower: Candidate,
    faster: Candidate,
    samples: Mapping[str, Sequence[float]],
    openings: int,
    confidence: float,
) -> Pairing:
    once = slower.renew is None
    found = ratio_over_openings(samples[slower.name], samples[faster.name], openings, confidence, once)
    return Pairing(
        slower=slower.name,
        faster=faster.name,
        ratio=found.median,
        low=found.low,
        high=found.high,
        pairs=found.pairs,
        confidence=found.confidence,
        different=found.confidence is not None and not found.low <= 1 <= found.high,
    )
