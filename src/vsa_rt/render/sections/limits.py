"""Distance to the limit: what the machine can do, the least time that the graph can take, the share reached."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vsa_rt.render.blocks import Block, Cell, Figure, Figures, Heading, Paragraph, Section, Tone, table
from vsa_rt.render.numbers import NONE, decimals, fixed, percent, rounded
from vsa_rt.render.plots import bars as plots

if TYPE_CHECKING:
    from vsa_rt.bench.records.limits import Ceiling, Floor, Limits, PaperFloor
    from vsa_rt.bench.report import Report


def _ceilings(ceilings: list[Ceiling]) -> Block:
    rows = [
        (
            c.kind,
            c.precision,
            Cell(rounded(c.value, 4) if c.value is not None else "cannot run", "" if c.value else "quiet"),
            c.unit,
            c.library,
            str(c.threads),
            c.note,
        )
        for c in ceilings
    ]
    columns = ("work", "precision", "most seen>", "unit", "library", "threads>", "shape, or why not")
    return table(*columns, rows=rows, title="What this machine was seen to do")


def _floors(limits: Limits, folded: bool) -> Block:
    places = decimals([t for f in limits.floors for t in (f.floor_ms, f.measured_ms)], 2)
    rows = []
    for f in limits.floors:
        tone: Tone = "strong" if f.part == "whole" else ""
        rows.append(
            (
                Cell(f.part, tone),
                fixed(f.macs / 1e6, 0),
                fixed(f.nbytes / 1e6, 1),
                f"{f.bound}, {f.precision}",
                fixed(f.floor_ms, places),
                Cell(NONE, "quiet") if f.measured_ms is None else fixed(f.measured_ms, places),
                Cell(percent(f.share, 0), tone or ("quiet" if f.share is None else "")),
            )
        )
    columns = ("part", "MMAC>", "MB>", "limited by", "least ms>", "took ms>", "share>")
    return table(*columns, rows=rows, title=_title(limits), folded=folded)


def _title(limits: Limits) -> str:
    paper = ", on paper" if limits.against == "datasheet" else ""
    return f"{limits.plan}, batch {limits.batch}{paper}"


#: What stands above floors that nothing measured.
ON_PAPER = "On paper, from datasheets; unproven on a GPU"
_HOW = (
    "What the same network would take at least on these GPUs with every node in that precision: multiply-adds at the "
    "published dense throughput, weights once and what exceeds the cache at the published bandwidth, kernel by kernel. "
    "Copies, launches and the host come on top. Published engines take a multiple of such a floor: docs/gpu_budget.md "
    "has how many times as long. Under * all weights fit the cache, where they may stay from one call to the next: then "
    "only the time of the multiply-adds is a floor."
)


def _paper_cell(found: PaperFloor, places: int) -> Cell:
    star = "*" if found.cached else ""
    return Cell(f"{fixed(found.floor_ms, places)}{star}", note=found.bound)


def paper_rows(limits: Limits) -> list[tuple[str, dict[str, PaperFloor]]]:
    """Device to its floors by precision, in the record's order."""
    rows: dict[str, dict[str, PaperFloor]] = {}
    for found in limits.paper:
        rows.setdefault(found.device, {})[found.precision] = found
    return list(rows.items())


def network(report: Report, limits: Limits) -> str:
    """Whose network and what batch floors on paper are of: they do not depend on the plan."""
    bundle = next((p.bundle for p in report.plans if p.name == limits.plan), limits.plan)
    return f"{bundle}, batch {limits.batch}"


def _paper(report: Report, limits: Limits) -> Block:
    places = decimals([f.floor_ms for f in limits.paper], 2)
    beside = decimals([f.copy_ms for f in limits.paper], 2)
    precisions = list(dict.fromkeys(f.precision for f in limits.paper))
    rows = []
    for device, found in paper_rows(limits):
        any_one = next(iter(found.values()))
        cells = [_paper_cell(found[p], places) if p in found else Cell(NONE, "quiet") for p in precisions]
        launch = NONE if any_one.launch_us is None else fixed(any_one.launch_us / 1e3, beside)
        row: list[Cell | str] = [device, *cells, str(any_one.kernels), fixed(any_one.copy_ms, beside), launch]
        rows.append(row)
    least = [f"least ms, {p.upper()}>" for p in precisions]
    columns = ("GPU", *least, "kernels>", "copies ms>", "graph launch ms>")
    return table(*columns, rows=rows, title=f"{network(report, limits)}: GPUs on paper", folded=True)


#: What the limit is called, by where its ceilings come from.
_LIMIT = {"measured": "measured", "datasheet": "datasheet's"}


def _reached(floors: list[Floor]) -> list[plots.Reached]:
    return [plots.Reached(f.part, f.share, f.bound) for f in floors if f.share is not None]


def _figures(found: list[Limits]) -> Figures | None:
    figures = []
    for limits in found:
        rows = _reached(limits.floors)
        if rows:
            said = "; ".join(f"{r.part} {100 * r.share:.0f} % ({r.bound})" for r in rows)
            figures.append(
                Figure(
                    _title(limits),
                    f"Share of the {_LIMIT[limits.against]} limit that each part reaches: {said}.",
                    "",
                    partial(plots.shares, rows),
                )
            )
    return Figures(figures) if figures else None


#: What 100 % is, by where the ceilings come from.
_LEADS = {
    "measured": "The least time is the larger of multiply-adds over the fastest kernel seen here and bytes over "
    "the fastest copy; 100 % would be that time.",
    "datasheet": "On a GPU the least time is on paper, by its datasheet: nothing measures a GPU's ceilings.",
}


def distance(report: Report) -> Section | None:
    """Ceilings, floors and shares."""
    if not report.ceilings and not report.limits:
        return None
    section = Section("limit", "Distance to the limit")
    if report.limits:
        section.lead = " ".join(
            _LEADS[source] for source in _LEADS if source in {r.against for r in report.limits}
        )
        figures = _figures(report.limits)
        if figures:
            section.blocks.append(figures)
        section.blocks += [_floors(limits, len(report.limits) > 2) for limits in report.limits]
        section.blocks += [
            Paragraph(note, "quiet") for note in dict.fromkeys(r.note for r in report.limits) if note
        ]
    if report.ceilings:
        section.blocks.append(_ceilings(report.ceilings))
    on_paper = [limits for limits in report.limits if limits.paper]
    if on_paper:
        tables = [_paper(report, limits) for limits in on_paper]
        section.blocks += [Heading(ON_PAPER), *tables, Paragraph(_HOW, "quiet")]
    return section
