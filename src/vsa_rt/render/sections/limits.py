"""Distance to the limit: what the machine can do, the least time that the graph can take, the share reached."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vsa_rt.render.blocks import Block, Cell, Figure, Figures, Paragraph, Section, Tone, table
from vsa_rt.render.numbers import NONE, decimals, fixed, percent, rounded
from vsa_rt.render.plots import bars as plots

if TYPE_CHECKING:
    from vsa_rt.bench.records.limits import Ceiling, Floor, Limits
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
    return f"{limits.plan}, batch {limits.batch}"


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
                    f"Share of the measured limit that each part reaches: {said}.",
                    "",
                    partial(plots.shares, rows),
                )
            )
    return Figures(figures) if figures else None


def distance(report: Report) -> Section | None:
    """Ceilings, floors and shares."""
    if not report.ceilings and not report.limits:
        return None
    section = Section("limit", "Distance to the limit")
    if report.limits:
        section.lead = (
            "The least time is the larger of multiply-adds over the fastest kernel seen here and bytes over "
            "the fastest copy; 100 % would be that time."
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
    return section
