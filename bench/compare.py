"""Two reports of the same plans at different times: what became slower or less right, beyond doubt or not."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vsa_rt.bench.compare_decisions import decision_rows
from vsa_rt.bench.compare_match import Both, match
from vsa_rt.bench.compare_times import baseline_rows, clock_rows, machine_notes, timed_plans
from vsa_rt.bench.records.comparison import Comparison, Limits, Row
from vsa_rt.bench.report import Report
from vsa_rt.errors import UsageError

__all__ = ["Comparison", "Limits", "Row", "compare"]

#: Version of the comparison. Keys may be added within a version; none changes its meaning.
SCHEMA = 1


def _red(report: Report) -> str:
    return "; ".join(r.text for r in report.verdict.reasons if r.level == "red") or "it says no reason"


def _row_words(row: Row) -> str:
    """A regression as a sentence."""
    who = row.plan or f"{row.bundle}, ONNX graph"
    if row.quantity == "parity":
        return f"{who}: parity held before and fails: {row.note}"
    interval = f"[{_percent(row.low)}, {_percent(row.high)}]"
    if row.quantity == "latency":
        where = f"batch {row.batch}, {row.scenario}, {row.feed}, by {row.by}"
        values = [v - 1 if v is not None else None for v in (row.change, row.low, row.high, row.limit)]
        change, low, high, limit = (_percent(v) for v in values)
        return f"{who}, {where}: slower by {change} [{low}, {high}], allowed {limit}"
    what = row.name if row.quantity == "metric" else "flips"
    return f"{who}: {what} {_percent(row.change)} {interval}, allowed {_percent(row.limit)}"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f} %"


def _absent(both: Both, rows: list[Row]) -> Iterator[str]:
    """Reasons to refuse what cannot be compared."""
    if both.new.verdict.level == "red":
        yield f"the new report is red: {_red(both.new)}"
    compared = {r.plan for r in rows if r.quantity in ("latency", "throughput")}
    names, timed = [p.name for p in both.new.plans], timed_plans(both.old)
    for plan in both.old.plans:
        if plan.name not in names:
            why = both.new.skipped.get(plan.name, "")
            yield f"{plan.name}: not in the new report{': ' * bool(why)}{why}"
        elif plan.name not in compared and plan.name in timed:
            yield f"{plan.name}: both reports have it, and no measurement of it in common"
    if not compared:
        yield "nothing was timed in both reports"


def compare(old: Report, new: Report, limits: Limits | None = None) -> Comparison:
    """Hold a report against an earlier one. Intervals decide, not single figures.

    Times are medians of steady samples with the interval of ``intervals.median_ratio``. On another machine none
    decides. On the same one a plan's times per baseline's decide where both reports have the same baseline and its
    own library is of the same version: they leave out what slowed down the machine. Where such a row is
    inconclusive, or there is none, the wall clock decides; where it says ``within`` and the wall clock says
    ``regression``, nothing fails, and the first notes say so. Flips count against their Clopper-Pearson bounds,
    metrics by the interval of their difference from the reference's.

    Args:
        old: The earlier report.
        new: The one to judge.
        limits: What may change; by default 5 % slower, 1 % flips.

    Returns:
        It fails on a regression that gates, a red new report, a plan that vanished, and where nothing was timed in
        both. Rows that decide nothing do not fail; they are counted.

    Raises:
        UsageError: A limit is negative or no number.
    """
    limits = limits or Limits()
    for name in ("max_slowdown", "max_flips"):
        value = getattr(limits, name)
        if not 0 <= value < math.inf:
            raise UsageError(f"{name} is {value}; expected a share such as 0.05")
    both = match(old, new, limits)
    if old.verdict.level == "red":
        both.notes.append(f"the old report is red: {_red(old)}")
    rows = list(baseline_rows(both))
    covered = {(r.plan, r.batch) for r in rows if r.batch is not None and r.verdict != "inconclusive"}
    rows += clock_rows(both, covered)
    rows += decision_rows(both)
    reasons = [_row_words(r) for r in rows if r.gates and r.verdict == "regression"]
    reasons += _absent(both, rows)
    return Comparison(
        schema=SCHEMA,
        kind="compare",
        old=old.created,
        new=new.created,
        limits=limits,
        failed=bool(reasons),
        reasons=reasons,
        inconclusive=sum(r.gates and r.verdict == "inconclusive" for r in rows),
        rows=rows,
        notes=[*machine_notes(rows), *both.notes],
    )
