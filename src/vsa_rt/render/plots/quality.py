"""Plots of correctness: reliability, and accuracy against latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vsa_rt.render.plots.canvas import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    QUIET,
    SERIES,
    draw,
    label,
    legend,
)
from vsa_rt.render.plots.latency import logarithmic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Bin:
    """Images whose highest score lies in one range: how many, their mean score, the share that is right."""

    count: int
    confidence: float
    accuracy: float


def reliability(reference: Sequence[Bin], candidate: Sequence[Bin]) -> bytes:
    """How often answers are right that are given with a certain confidence; on the diagonal both agree."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=(0, (4, 2)), label="calibrated")
        sides = [("reference", reference, BLUE, "o", "-"), ("plan", candidate, ORANGE, "s", (0, (4, 1.5)))]
        for name, bins, colour, marker, dash in sides:
            filled = [b for b in bins if b.count]
            total = sum(b.count for b in filled) or 1
            where = [b.confidence for b in filled]
            axes.plot(
                where,
                [b.accuracy for b in filled],
                color=colour,
                marker=marker,
                markersize=5,
                markerfacecolor="none",
                linestyle=dash,
                label=name,
            )
            if name == "reference":
                axes.bar(
                    where,
                    [b.count / total for b in filled],
                    0.03,
                    color=GREY,
                    alpha=0.45,
                    label="share of images",
                )
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.04)
        axes.set_xlabel("confidence")
        axes.set_ylabel("share that is right")
        legend(figure, axes, columns=2)

    return draw(3.3, paint)


@dataclass(frozen=True)
class Place:
    """One plan and batch between latency and quality; ``number`` is its row in the table."""

    number: int
    target: str
    precision: str
    ms: float
    low: float
    high: float
    quality: float
    front: bool
    fails: bool


def frontier(places: Sequence[Place], quality: str) -> bytes:
    """Accuracy against time per image; filled marks are the frontier, which the line joins.

    Args:
        places: The points.
        quality: What the vertical axis shows.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        targets = list(dict.fromkeys(p.target for p in places))
        precisions = list(dict.fromkeys(p.precision for p in places))
        front = sorted((p for p in places if p.front), key=lambda p: (p.ms, p.quality))
        axes.step(
            [p.ms for p in front],
            [p.quality for p in front],
            where="post",
            color=QUIET,
            linewidth=1,
            zorder=1,
        )
        seen: set[tuple[str, str]] = set()
        for p in sorted(places, key=lambda p: not p.front):
            colour = SERIES[precisions.index(p.precision) % len(SERIES)]
            axes.errorbar(
                [p.ms],
                [p.quality],
                xerr=[[max(0.0, p.ms - p.low)], [max(0.0, p.high - p.ms)]],
                color=colour,
                marker="osD^vP"[targets.index(p.target) % 6],
                markersize=7,
                markerfacecolor=colour if p.front else "none",
                elinewidth=1.2,
                linestyle="none",
                label=""
                if (p.target, p.precision) in seen
                else label(f"{p.target} {p.precision}".strip(), 40),
                zorder=2,
            )
            seen.add((p.target, p.precision))
            if p.fails:
                axes.plot([p.ms], [p.quality], marker="x", markersize=11, color=INK, zorder=3)
        for p in places:
            axes.annotate(
                str(p.number),
                (p.ms, p.quality),
                xytext=(0, 7 if p.front else -16),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=INK,
            )
        slowest, fastest = max(p.high for p in places), min(p.low for p in places)
        wide = fastest > 0 and slowest / fastest > 10
        logarithmic(axes, wide)
        values = [p.quality for p in places]
        room = max(0.25 * (max(values) - min(values)), 0.005)
        axes.set_ylim(min(values) - room, max(values) + room)
        axes.margins(x=0.12)
        axes.set_xlabel("ms per image" + (", logarithmic" if wide else ""))
        axes.set_ylabel(label(quality))
        legend(figure, axes)

    return draw(3.0 + 0.19 * len({(p.target, p.precision) for p in places}), paint)
