"""Whether the harness can be trusted: its own cost, its agreement with LoadGen, what it tells apart and what not.

Usage: ``python -m vsa_rt.bench.experiments.harness BUNDLE PHOTOGRAPHS [--only PART]... [--runs 20] [--json]``

- ``cost``: a call that spins for 5 ms; what the closed loop adds to it.
- ``loadgen``: single-stream runs of the bundle, timed by this harness and by LoadGen: p50 and p99 of both.
- ``slowdown``: contests of two openings of a bundle, one spinning for 5 % of the median longer in each call.
- ``identical``: contests of two openings of the same bundle.

A contest has the default length of ``vsa-rt bench``, its ten openings and its interval of 99 %.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from vsa_rt.bench import clock
from vsa_rt.bench.candidate import Candidate, Tensors
from vsa_rt.bench.contest import SECONDS, contest
from vsa_rt.bench.loadgen import LoadgenSettings, run_loadgen
from vsa_rt.bench.loadgen_log import agreement
from vsa_rt.bench.records.contest import Pairing
from vsa_rt.bench.scenario import Subject, quick
from vsa_rt.bench.workload import Workload, from_photographs
from vsa_rt.bundle import Bundle
from vsa_rt.doctor import usable_cores
from vsa_rt.runtime.fused import Runtime
from vsa_rt.runtime.load import load

#: As the pipeline takes where opening is cheap.
OPENINGS = 10
#: Of the call that is spun.
_CALL_MS = 5.0
_SLOWDOWN = 0.05


@dataclass(frozen=True)
class Row:
    """One figure: what, how much, and what was asked for."""

    what: str
    value: float
    unit: str
    asked: str
    note: str = ""


class _SpinningSlot:
    """A session's slot that computes nothing for a known time."""

    def __init__(self, outputs: Tensors) -> None:
        self._outputs = outputs

    def run(self, inputs: Tensors) -> Tensors:
        clock.spin(_CALL_MS)
        return self._outputs


def cost(inputs: Sequence[Tensors]) -> Iterator[Row]:
    """What the quick scenario, its sensors included, adds to a session of a known time."""
    slot = _SpinningSlot({"scores": np.zeros((1, 2), np.float32)})
    run = quick(Subject("spin", "tensors", 1, lambda turn: slot.run(inputs[turn]), len(inputs)), 5.0)
    if run.latency is None:
        raise SystemExit("the quick scenario gave no latency")
    samples = run.latency.samples
    calls = len(samples)
    within = clock.median_ms(samples) - _CALL_MS
    between = (1e3 * run.seconds - sum(samples)) / calls
    note = f"{calls} calls of {_CALL_MS:g} ms"
    yield Row("harness inside a call, median", 100 * within / _CALL_MS, "%", "under 1", note)
    yield Row("harness between calls, mean", 100 * between / _CALL_MS, "%", "under 1", note)


def against_loadgen(runtime: Runtime, workload: Workload, runs: int) -> Iterator[Row]:
    """Both clocks over the same single-stream queries."""
    rows = [
        {name: array[n : n + 1] for name, array in workload.rows.items()} for n in range(len(workload.names))
    ]
    worst = {0.5: 0.0, 0.99: 0.0}
    queries = 0
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(runs):
            run = run_loadgen(
                "single-stream",
                lambda numbers: runtime.infer(rows[numbers[0]]),
                "plan",
                "tensors",
                len(rows),
                LoadgenSettings(min_duration_s=5.0),
                Path(folder) / str(turn),
                relative_to=Path(folder),
            )
            queries += run.images
            for share, gap in agreement(run, tuple(worst)).items():
                worst[share] = max(worst[share], abs(gap))
    for share, gap in worst.items():
        note = f"the largest of {runs} runs, {queries} queries"
        yield Row(f"p{100 * share:g}: this clock against LoadGen's log", 100 * gap, "%", "within 2", note)


class _Side:
    """A bundle as one side of a contest, as slow as wanted."""

    def __init__(self, bundle: Bundle, threads: int, name: str, extra_ms: float = 0.0) -> None:
        self._bundle, self._threads, self._name, self._extra = bundle, threads, name, extra_ms
        self._runtime = load(bundle, threads=threads)

    def _call(self, inputs: Tensors) -> Tensors:
        outputs = self._runtime.infer(inputs)
        if self._extra:
            clock.spin(self._extra)
        return outputs

    def _renew(self) -> None:
        self.close()
        self._runtime = load(self._bundle, threads=self._threads)

    def close(self) -> None:
        self._runtime.close()

    @property
    def candidate(self) -> Candidate:
        return Candidate(self._name, "plan", "", "", self._call, renew=self._renew)


def _pairing(bundle: Bundle, inputs: Sequence[Tensors], threads: int, extra_ms: float = 0.0) -> Pairing:
    sides = [_Side(bundle, threads, "first"), _Side(bundle, threads, "second", extra_ms)]
    try:
        plans = [side.candidate for side in sides]
        return contest(plans, [], inputs, threads, seconds=SECONDS, openings=OPENINGS).pairings[0]
    finally:
        for side in sides:
            side.close()


def _verdicts(
    what: str, runs: int, asked: str, pair: Callable[[], Pairing], counts: Callable[[Pairing], bool]
) -> Iterator[Row]:
    found = []
    for turn in range(runs):
        pairing = pair()
        found.append(counts(pairing))
        note = f"[{pairing.low:.4f}, {pairing.high:.4f}], {pairing.pairs} pairs"
        yield Row(f"{what}, run {turn + 1}", pairing.ratio, "x", "", note)
    yield Row(f"{what}: called different", sum(found), f"of {runs}", asked)


def slowdown(bundle: Bundle, inputs: Sequence[Tensors], threads: int, runs: int) -> Iterator[Row]:
    """A bundle against itself with 5 % more time in each call, of the time that a contest measures."""
    side = _Side(bundle, threads, "alone")
    try:
        found = contest([side.candidate], [], inputs, threads, rounds=100, openings=OPENINGS)
    finally:
        side.close()
    extra = _SLOWDOWN * clock.median_ms(found.contestants[0].samples)
    yield from _verdicts(
        "5 % slower",
        runs,
        f"at least {round(0.95 * runs)}",
        lambda: _pairing(bundle, inputs, threads, extra),
        lambda p: p.different and p.low > 1,
    )


def identical(bundle: Bundle, inputs: Sequence[Tensors], threads: int, runs: int) -> Iterator[Row]:
    """A bundle against itself."""
    yield from _verdicts(
        "identical",
        runs,
        f"at most {round(0.05 * runs)}",
        lambda: _pairing(bundle, inputs, threads),
        lambda p: p.different,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--only", choices=["cost", "loadgen", "slowdown", "identical"], action="append")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    bundle, threads = Bundle.open(chosen.bundle), usable_cores()
    paths = sorted(p for p in chosen.photographs.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    workload = from_photographs(bundle.manifest, paths, chosen.photographs.name)
    inputs = workload.tensors(chosen.batch)
    rows = []
    with load(bundle, threads=threads) as runtime:
        parts: dict[str, Callable[[], Iterator[Row]]] = {
            "cost": lambda: cost(inputs),
            "loadgen": lambda: against_loadgen(runtime, workload, 4),
            "slowdown": lambda: slowdown(bundle, inputs, threads, chosen.runs),
            "identical": lambda: identical(bundle, inputs, threads, chosen.runs),
        }
        for name, part in parts.items():
            for row in part() if not chosen.only or name in chosen.only else ():
                rows.append(row)
                if not chosen.json:
                    asked = f"asked {row.asked}" if row.asked else ""
                    print(f"{row.what:<44} {row.value:9.4f} {row.unit:<6} {asked:<18} {row.note}", flush=True)
    if chosen.json:
        print(json.dumps({"machine": platform.processor(), "rows": [asdict(r) for r in rows]}, indent=2))


if __name__ == "__main__":
    main()
