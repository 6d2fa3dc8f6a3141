"""Is it still right: taps, decisions and metrics against the reference."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vsa_rt.render.blocks import (
    Block,
    Cell,
    Figure,
    Figures,
    Heading,
    Items,
    Paragraph,
    Section,
    holds,
    table,
)
from vsa_rt.render.numbers import count, fixed, rounded, signed
from vsa_rt.render.plots import quality as plots

if TYPE_CHECKING:
    from vsa_rt.bench.parity import Parity
    from vsa_rt.bench.records.trust import ParityCheck, PlanParity
    from vsa_rt.bench.report import Report

#: Flips that are shown, widest margin first; ``report.json`` has all.
_FLIPS = 10
#: The ONNX graph's name among the plans.
GRAPH = "ONNX graph"


def _gap(value: float | None) -> Cell:
    return Cell("not a number", "bad") if value is None else Cell(rounded(value))


def _close(value: float | None, places: int) -> Cell:
    return Cell("not a number", "bad") if value is None else Cell(fixed(value, places))


def _taps(parity: Parity) -> Block:
    rows = [
        (
            t.tap,
            t.kind,
            _gap(t.max_abs),
            _gap(t.mean_abs),
            _gap(t.relative),
            _close(t.cosine, 6),
            _close(t.gain, 5),
            t.worst,
            Cell(t.reason, "bad") if t.reason else Cell("holds", "good"),
        )
        for t in parity.taps
    ]
    columns = ("tap", "kind", "max>", "mean>", "relative>", "cosine>", "gain>", "worst image", "verdict")
    return table(*columns, rows=rows, title="Tap by tap", folded=parity.passed)


def _verdicts(plans: list[PlanParity]) -> Block:
    rows = [
        (
            p.plan or GRAPH,
            holds(p.parity.passed),
            f"{p.parity.images:,}",
            str(len(p.parity.flips)),
            str(p.parity.ties),
            "" if p.parity.kl is None else rounded(p.parity.kl),
            "" if p.parity.kl_worst is None else Cell(rounded(p.parity.kl_worst), note=p.parity.kl_item),
            "" if p.parity.kl is None else str(p.parity.rank_changes),
            "" if p.parity.kendall_tau is None else fixed(p.parity.kendall_tau, 4),
            Cell(str(p.parity.undecided), "bad") if p.parity.undecided else "",
        )
        for p in plans
    ]
    columns = (
        "plan",
        "parity",
        "images>",
        "flips>",
        "ties>",
        "mean KL>",
        "largest KL>",
        "reordered>",
        "Kendall's tau>",
        "not numbers>",
    )
    return table(*columns, rows=rows, title="Verdicts and decisions")


def _flips(parity: Parity) -> Block:
    widest = sorted(parity.flips, key=lambda f: -f.margin)
    rows = [
        (
            f.item,
            f.reference,
            f.candidate,
            fixed(f.margin, 3),
            Cell("tie", "quiet") if f.tie else Cell("not a tie", "bad"),
        )
        for f in widest[:_FLIPS]
    ]
    some = f" ({_FLIPS} of {len(widest)})" if len(widest) > _FLIPS else ""
    columns = ("image", "reference says", "plan says", "margin>", "weight")
    return table(*columns, rows=rows, title=f"Flips, widest margin first{some}")


def _labels(plans: list[PlanParity]) -> list[Block]:
    found: list[Block] = []
    metrics = [
        (
            m.name,
            p.plan or GRAPH,
            f"{p.parity.labelled:,}" if p.parity.labelled else "",
            fixed(m.reference, 4),
            fixed(m.candidate, 4),
            Cell(signed(m.candidate - m.reference, 4), note=f"{signed(m.low, 4)} to {signed(m.high, 4)}"),
        )
        for p in plans
        for m in p.parity.metrics
    ]
    if metrics:
        metrics.sort(key=lambda row: [m.name for p in plans for m in p.parity.metrics].index(row[0]))
        columns = ("metric", "plan", "images>", "reference>", "plan's>", "difference, 95 % interval>")
        found.append(table(*columns, rows=metrics, title="Against true labels"))
    tests = [
        (p.plan or GRAPH, f"{test.reference_only}", f"{test.candidate_only}", fixed(test.p, 3))
        for p in plans
        if (test := p.parity.mcnemar) is not None
    ]
    if tests:
        sides = ("plan", "only the reference is right>", "only the plan is right>", "p>")
        found.append(table(*sides, rows=tests, title="McNemar's exact test, in images"))
    distances = [
        (p.plan or GRAPH, name, rounded(value)) for p in plans for name, value in p.parity.distances.items()
    ]
    if distances:
        found.append(
            table("plan", "distance", "mean>", rows=distances, title="Distances from the reference's scores")
        )
    return found


def _reliability(name: str, parity: Parity) -> Figure | None:
    if parity.reliability is None:
        return None
    sides = [
        [plots.Bin(b.count, b.confidence, b.accuracy) for b in bins]
        for bins in (parity.reliability.reference, parity.reliability.candidate)
    ]
    if not any(sides):
        return None
    said = "; ".join(f"at {b.confidence:.2f} {b.accuracy:.2f} of {b.count}" for b in sides[1])
    return Figure(
        f"Reliability of {name}",
        f"Share of right answers by confidence, of the plan: {said}.",
        "On the dashed line confidence and accuracy agree.",
        partial(plots.reliability, *sides),
    )


def _plan(entry: PlanParity) -> list[Block]:
    parity, name = entry.parity, entry.plan or GRAPH
    found: list[Block] = [Heading(f"{name}: {holds(parity.passed).text}")]
    if parity.reasons:
        found.append(Items("It fails, because", [Cell(reason, "bad") for reason in parity.reasons]))
    found.append(_taps(parity))
    if parity.flips:
        found.append(_flips(parity))
    return found


def _check(check: ParityCheck) -> list[Block]:
    words = [f"{check.bundle}: against {check.reference}, on {check.data}."]
    if check.why:
        words.append(f"Not against PyTorch: {check.why}.")
    if not check.decides:
        words.append("The head is random: its labels decide nothing, the taps alone are judged.")
    if check.stand_ins:
        words.append(f"{count(check.stand_ins, 'photograph')} with stand-ins for their ready tensors.")
    found: list[Block] = [Paragraph(" ".join(words))]
    if check.plans:
        found.append(_verdicts(check.plans))
    found += _labels(check.plans)
    figures = [f for p in check.plans if (f := _reliability(p.plan or GRAPH, p.parity)) is not None]
    if figures:
        found.append(Figures(figures))
    if check.refused:
        refused = [(folder, reason) for folder, reason in check.refused.items()]
        found.append(table("not checked", "why", rows=refused, title="Engines that were not checked"))
    if check.rejected:
        shown = [Cell(text) for text in check.rejected[:_FLIPS]]
        if len(check.rejected) > _FLIPS:
            shown.append(Cell(f"and {len(check.rejected) - _FLIPS} more", "quiet"))
        found.append(Items("Photographs that could not be read", shown))
    for entry in check.plans:
        found += _plan(entry)
    return found


def parity(report: Report) -> Section | None:
    """Every bundle's parity, plan by plan."""
    if not report.parity:
        return None
    section = Section("parity", "Parity with the reference")
    for check in report.parity:
        section.blocks += _check(check)
    return section
