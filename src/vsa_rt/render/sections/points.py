"""Accuracy against latency: which plans are worth having."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING

from vsa_rt.render.blocks import Cell, Figure, Figures, Section, holds, table
from vsa_rt.render.numbers import NONE, decimals, fixed, rounded
from vsa_rt.render.plots import quality as plots

if TYPE_CHECKING:
    from vsa_rt.bench.records.contest import Point
    from vsa_rt.bench.report import Report


def _on_frontier(point: Point) -> bool:
    return point.quality is not None and not point.dominated_by and point.parity is not False


def _figure(what: str, title: str, points: list[tuple[int, Point]]) -> Figure:
    places, said = [], []
    for number, p in points:
        if p.quality is None:
            continue
        front, fails = _on_frontier(p), p.parity is False
        places.append(
            plots.Place(number, p.target, p.precision, p.ms_per_image, p.low, p.high, p.quality, front, fails)
        )
        rest = "" if front else ", fails parity" if fails else ", dominated"
        said.append(f"{p.plan}: {rounded(p.ms_per_image)} ms, {p.quality:.4f}{rest}")
    return Figure(
        title,
        f"{what} and median time per image. {'; '.join(said)}.",
        "Numbers are rows of the table. Filled: on the frontier; hollow: dominated; crossed: fails parity.",
        partial(plots.frontier, places, what),
    )


def _figures(points: list[Point]) -> Figures | None:
    """One plot per bundle, batch and kind of quality: what lies in another is no alternative at the same load."""
    groups: dict[tuple[str, int, str], list[tuple[int, Point]]] = defaultdict(list)
    for number, p in enumerate(points, 1):
        if p.quality is not None:
            groups[p.bundle, p.batch, p.quality_of].append((number, p))
    bundles = len({bundle for bundle, _, _ in groups})
    figures = []
    for (bundle, batch, what), members in groups.items():
        of = f"{bundle}, batch" if bundles > 1 else "Batch"
        figures.append(_figure(what, f"{of} {batch}", members))
    return Figures(figures) if figures else None


def _place(point: Point) -> Cell:
    if point.parity is False:
        return Cell("fails parity", "bad", f"dominated by {point.dominated_by}" if point.dominated_by else "")
    if point.dominated_by:
        return Cell("dominated", "quiet", f"by {point.dominated_by}")
    return Cell("frontier", "good") if point.quality is not None else Cell("unknown", "quiet")


def accuracy_and_latency(report: Report) -> Section | None:
    """Every plan and batch size, the frontier, and what is dominated by what."""
    points = report.points
    if not points:
        return None
    section = Section("frontier", "Accuracy against latency")
    section.lead = (
        "A plan is dominated if another of the same bundle is no worse in time per call, time per image and "
        "quality, and better in one of them. Times whose intervals overlap are not told apart."
    )
    ms = decimals([p.ms_per_image for p in points])
    rows = [
        (
            str(number),
            Cell(p.plan, note=p.bundle),
            p.target,
            p.precision,
            str(p.batch),
            Cell(fixed(p.ms_per_image, ms), note=f"{fixed(p.low, ms)} to {fixed(p.high, ms)}"),
            Cell(NONE, "quiet") if p.quality is None else Cell(fixed(p.quality, 4), note=p.quality_of),
            holds(p.parity),
            _place(p),
        )
        for number, p in enumerate(points, 1)
    ]
    columns = ("#>", "plan", "target", "precision", "batch>", "ms per image>", "quality>", "parity", "place")
    figures = _figures(points)
    if figures:
        section.blocks.append(figures)
    section.blocks.append(table(*columns, rows=rows, title="Plans and batch sizes"))
    return section
