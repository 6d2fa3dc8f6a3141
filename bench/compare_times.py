"""Times of two reports: by a baseline that both measured, and by the wall clock."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from msgspec.structs import replace

from vsa_rt.bench.clock import median_ms
from vsa_rt.bench.compare_match import Both
from vsa_rt.bench.medians import median_ratio
from vsa_rt.bench.records.comparison import Row, judge
from vsa_rt.bench.records.contest import Contest
from vsa_rt.bench.records.timing import Run
from vsa_rt.bench.report import Report

#: Of the intervals of times.
TIME_CONFIDENCE = 0.99
#: Settings without which two runs of a scenario put different loads on a plan.
_LOADS = {
    "camera": ("fps",),
    "server": ("target_qps", "streams", "max_batch"),
    "multi-stream": ("samples_per_query", "max_batch"),
    "offline": ("streams", "max_batch"),
}
#: Runs that measure what a contest measures: an engine call on ready tensors, one after the other.
_LIKE_A_CONTEST = {("quick", "tensors"), ("single-stream", "tensors"), ("contest", "tensors")}
#: Baselines, by patterns of their names, to the distributions whose version is the measure's. NumPy is none of them:
#: it holds their arrays and computes nothing of the call.
_MEASURED_BY = {
    "eager*": ("torch",),
    "channels-last": ("torch",),
    "compile": ("torch",),
    "onnxruntime*": ("onnxruntime", "onnxruntime-gpu"),
    "openvino-*": ("openvino",),
}


class _Key(NamedTuple):
    plan: str
    batch: int
    scenario: str
    feed: str
    load: str

    def words(self) -> str:
        load = f" ({self.load})" if self.load else ""
        return f"{self.plan}, batch {self.batch}, {self.scenario}{load}, {self.feed}"


@dataclass(frozen=True)
class _Times:
    """Steady samples of one key; ``figure`` where there is only a throughput, ``doubt`` if they say little.

    ``threads`` are a contest's; a run has its plan's.
    """

    samples: list[float]
    figure: float | None = None
    doubt: str = ""
    openings: int = 1
    threads: int | None = None


def _of_run(run: Run) -> _Times:
    if run.latency is None:
        return _Times([], run.throughput, "one figure without samples has no interval")
    doubt = "" if run.valid else f"not valid: {'; '.join(run.reasons)}"
    # Without a drift there were too few samples to look for a steady state, which the interval knows.
    if not run.latency.steady and run.latency.drift is not None:
        doubt = doubt or f"not steady: the median moved by {100 * run.latency.drift:+.1f} %"
    return _Times(run.latency.samples[run.latency.warm_up :], None, doubt)


def _contests(report: Report) -> dict[tuple[str, int], Contest]:
    """The first contest of each plan and batch size."""
    found: dict[tuple[str, int], Contest] = {}
    for contest in report.contests:
        for contestant in contest.contestants:
            if contestant.kind == "plan":
                found.setdefault((contestant.name, contest.batch), contest)
    return found


def _times(report: Report) -> dict[_Key, _Times]:
    """Everything that was timed, by what makes two measurements the same; the first where several are."""
    found: dict[_Key, _Times] = {}
    for run in report.runs:
        load = ", ".join(f"{k} {run.settings[k]}" for k in _LOADS.get(run.scenario, ()) if k in run.settings)
        found.setdefault(_Key(run.plan, run.batch, run.scenario, run.feed, load), _of_run(run))
    for (plan, batch), contest in _contests(report).items():
        samples = next(c.samples for c in contest.contestants if c.name == plan)
        times = _Times(samples, openings=contest.openings, threads=contest.threads)
        found[_Key(plan, batch, "contest", "tensors", "")] = times
    return found


def _time_row(both: Both, key: _Key, by: str, old: _Times, new: _Times, doubt: str, gates: bool) -> Row:
    """A row of two measurements of the same."""
    limit = 1 + both.limits.max_slowdown
    plan = both.plan(key.plan)[1]
    row = Row(
        quantity="latency",
        plan=key.plan,
        bundle=plan.bundle if plan else "",
        batch=key.batch,
        scenario=key.scenario,
        feed=key.feed,
        name=key.load,
        by=by,
        limit=limit,
        verdict="inconclusive",
        gates=gates,
        note=doubt,
    )
    if old.figure and new.figure:
        figures = {"old": old.figure, "new": new.figure, "change": old.figure / new.figure}
        return replace(row, quantity="throughput", **figures)
    if not old.samples or not new.samples or not min(*(min(t.samples) for t in (old, new))) > 0:
        return replace(row, note=doubt or "no times above 0 on both sides")
    found = median_ratio(new.samples, old.samples, TIME_CONFIDENCE, openings=(new.openings, old.openings))
    if found.confidence is None:
        doubt = doubt or f"too few samples for an interval: {len(old.samples)} and {len(new.samples)}"
    return replace(
        row,
        old=median_ms(old.samples),
        new=median_ms(new.samples),
        change=found.median,
        low=found.low,
        high=found.high,
        confidence=found.confidence,
        verdict="inconclusive" if doubt else judge(found.low, found.high, limit),
        note=doubt,
    )


def _to_baseline(contest: Contest, plan: str, baseline: str) -> _Times:
    """The plan's times per baseline's, round by round: what slows down the machine slows down both."""
    samples = {c.name: c.samples for c in contest.contestants}
    rounds = zip(samples[plan], samples[baseline], strict=True)
    return _Times([mine / other for mine, other in rounds if other > 0], openings=contest.openings)


def _baseline_doubt(both: Both, name: str, old: Contest, new: Contest) -> str:
    """Why a baseline is not the measure that it was; empty if it is.

    Machines differ in what they gain by an engine, so that a plan's times per baseline's are another number on
    another one, and so is a baseline of another version. Of a baseline that is not known here any library may be its
    own. A version that neither report tells counts as unchanged.
    """
    if both.machine:
        return f"different machines: {both.machine}"
    if new.threads != old.threads:
        return f"{old.threads} threads before, {new.threads} now"
    before, now = both.old.environment.libraries, both.new.environment.libraries
    own = next((o for pattern, o in _MEASURED_BY.items() if fnmatchcase(name, pattern)), None)
    changed = [
        f"{library}: {before.get(library, 'absent')} before, {now.get(library, 'absent')} now"
        for library in own or sorted(before.keys() | now.keys())
        if before.get(library) != now.get(library)
    ]
    if not changed:
        return ""
    measured = "is measured by" if own else "may be measured by any library, and others are"
    return f"{name} {measured} {'; '.join(changed)}"


def _width(row: Row) -> float:
    """Of a ratio's interval, as a factor; infinite where there is none."""
    if row.low is None or row.high is None or row.confidence is None:
        return math.inf
    return row.high / row.low


def baseline_rows(both: Both) -> Iterator[Row]:
    """A row per plan and batch size that both reports held against the same baseline.

    Of several the one that decides is taken whose row has the narrowest interval, among those that are the measure
    they were: same machine, same threads, same version of the baseline's own library. A noisy baseline would hide
    what a steady one shows, and the width does not know whether the plan got slower, so that the choice favours
    neither answer; the order on the command line has nothing to do with either. Where none is the measure it was,
    the narrowest of all is shown and decides nothing.
    """
    earlier = _contests(both.old)
    for (plan, batch), contest in _contests(both.new).items():
        other = earlier.get((plan, batch))
        if other is None:
            continue
        known = {(c.name, c.precision) for c in other.contestants if c.kind == "baseline"}
        names = [c.name for c in contest.contestants if (c.name, c.precision) in known]
        doubts = {name: _baseline_doubt(both, name, other, contest) for name in names}
        key = _Key(plan, batch, "contest", "tensors", "")
        rows = [
            _time_row(
                both,
                key,
                f"baseline {name}",
                _to_baseline(other, plan, name),
                _to_baseline(contest, plan, name),
                doubts[name],
                gates=True,
            )
            for name in [n for n in names if not doubts[n]] or names
        ]
        if rows:
            yield min(rows, key=_width)


def machine_notes(rows: Sequence[Row]) -> Iterator[str]:
    """A sentence per wall clock that shows a regression and does not gate, because a baseline shows none."""
    unchanged = {
        (r.plan, r.batch): r.by.removeprefix("baseline ")
        for r in rows
        if r.by.startswith("baseline ") and r.verdict == "within"
    }
    for row in rows:
        baseline = unchanged.get((row.plan, row.batch))
        worse = row.by == "wall clock" and row.verdict == "regression" and not row.gates
        if baseline and worse and row.change is not None:
            slower = f"{100 * (row.change - 1):.1f} %"
            where = _Key(row.plan, row.batch or 0, row.scenario, row.feed, row.name).words()
            yield (
                f"{where}: slower by {slower} by the wall clock, as slow as before against {baseline}: "
                f"the machine is slower, or both are"
            )


def _clock_doubt(both: Both, key: _Key, old: _Times, new: _Times) -> str:
    """Why wall clocks say nothing here; empty if they do."""
    if both.machine:
        return f"different machines: {both.machine}"
    before, now = both.plan(key.plan)
    if before and now and before.threads != now.threads:
        return f"{before.threads} threads before, {now.threads} now"
    if old.threads != new.threads:
        return f"{old.threads} threads before, {new.threads} now"
    if key.feed == "images" and both.old.inputs_sha256 != both.new.inputs_sha256:
        return "different images"
    return f"old: {old.doubt}" if old.doubt else f"new: {new.doubt}" if new.doubt else ""


def clock_rows(both: Both, covered: set[tuple[str, int]]) -> Iterator[Row]:
    """A row per run and contest in both; ``covered``: plans and batch sizes of which a baseline decides."""
    before, after = _times(both.old), _times(both.new)
    for key in (*before, *after):
        if key not in before or key not in after:
            both.notes.append(f"only in the {'old' if key in before else 'new'} report: {key.words()}")
    for key, new in after.items():
        if key in before:
            same = (key.scenario, key.feed) in _LIKE_A_CONTEST and (key.plan, key.batch) in covered
            doubt = _clock_doubt(both, key, before[key], new)
            yield _time_row(both, key, "wall clock", before[key], new, doubt, gates=not same)


def timed_plans(report: Report) -> set[str]:
    """Plans with a time or a throughput."""
    return {key.plan for key, times in _times(report).items() if times.samples or times.figure}
