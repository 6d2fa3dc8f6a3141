"""Plots of parts: where time goes, which share of the limit is reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vsa_rt.render.plots.canvas import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PAPER,
    SERIES,
    draw,
    label,
    legend,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def _two_lines(name: str, detail: str) -> str:
    return f"{label(name, 22)}\n{label(detail, 22)}" if detail else label(name, 22)


@dataclass(frozen=True)
class Stack:
    """One bar: its name in two lines, milliseconds of each stage, and what the whole took."""

    name: str
    detail: str
    parts: Sequence[tuple[str, float]]
    whole: float | None


def stages(stacks: Sequence[Stack]) -> bytes:
    """Stages behind one another, one bar per plan and batch; a tick marks the whole where stages may overlap."""

    def paint(figure: Figure) -> None:
        from matplotlib.lines import Line2D

        axes = figure.add_subplot()
        names = list(dict.fromkeys(stage for s in stacks for stage, _ in s.parts))
        left = [0.0] * len(stacks)
        for place, stage in enumerate(names):
            widths = [dict(s.parts).get(stage, 0.0) for s in stacks]
            axes.barh(
                range(len(stacks)),
                widths,
                0.62,
                left=left,
                color=SERIES[place % len(SERIES)],
                label=label(stage),
            )
            left = [a + b for a, b in zip(left, widths, strict=True)]
        wholes = [(s.whole, row) for row, s in enumerate(stacks) if s.whole is not None]
        if wholes:
            axes.plot(
                [w for w, _ in wholes],
                [row for _, row in wholes],
                linestyle="none",
                marker="|",
                markersize=24,
                markeredgewidth=2,
                color=INK,
            )
        _rows(axes, [_two_lines(s.name, s.detail) for s in stacks])
        axes.set_xlim(left=0)
        axes.set_xlabel("ms per image")
        tick = Line2D(
            [],
            [],
            linestyle="none",
            marker="|",
            markersize=10,
            markeredgewidth=2,
            color=INK,
            label="whole call",
        )
        legend(figure, axes, columns=3, extra=[tick] if wholes else [])

    return draw(1.5 + 0.48 * max(2, len(stacks)), paint)


@dataclass(frozen=True)
class Reached:
    """A part of the graph and the share of its limit that it reaches."""

    part: str
    share: float
    bound: str


def shares(rows: Sequence[Reached]) -> bytes:
    """How near each part comes to the least time that it can take; the colour says what limits it."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        colours = {"compute": BLUE, "memory": ORANGE}
        for bound, colour in colours.items():
            of = [(k, r) for k, r in enumerate(rows) if r.bound == bound]
            if of:
                axes.barh(
                    [k for k, _ in of],
                    [100 * r.share for _, r in of],
                    0.62,
                    color=colour,
                    label=f"limited by {bound}",
                )
        end = max(108.0, 108 * max(r.share for r in rows))
        for k, row in enumerate(rows):
            inside = 100 * row.share > 0.2 * end
            axes.annotate(
                f"{100 * row.share:.0f} %",
                (100 * row.share, k),
                xytext=(-4 if inside else 4, 0),
                textcoords="offset points",
                ha="right" if inside else "left",
                va="center",
                fontsize=9,
                color=PAPER if inside else INK,
            )
        _rows(axes, [label(r.part, 22) for r in rows])
        axes.set_xlim(0, end)
        axes.set_xticks([0, 25, 50, 75, 100])
        axes.axvline(100, color=INK, linewidth=1, linestyle=(0, (4, 2)))
        axes.set_xlabel("% of the measured limit")
        legend(figure, axes, columns=2)

    return draw(1.2 + 0.32 * max(3, len(rows)), paint)


@dataclass(frozen=True)
class Bar:
    """One bar, and the group that colours it."""

    name: str
    ms: float
    group: str = ""


def bars(rows: Sequence[Bar], total: float, groups: Sequence[str] = ()) -> bytes:
    """Milliseconds per call, and the share of all layers at the end of each bar.

    Args:
        rows: Longest first.
        total: Milliseconds of all layers.
        groups: All groups in the order of their colours; bars of no group are grey.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for group in [*groups, ""]:
            of = [(k, r) for k, r in enumerate(rows) if r.group == group]
            colour = SERIES[groups.index(group) % len(SERIES)] if group else GREY
            if of:
                axes.barh(
                    [k for k, _ in of],
                    [r.ms for _, r in of],
                    0.66,
                    color=colour,
                    label=label(group) if group else "no backbone",
                )
        for k, row in enumerate(rows):
            text = f"{100 * row.ms / total:.1f} %" if total else ""
            axes.annotate(
                text, (row.ms, k), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5
            )
        _rows(axes, [label(r.name, 24) for r in rows])
        axes.set_xlim(0, 1.2 * max((r.ms for r in rows), default=1.0) or 1.0)
        axes.set_xlabel("ms per call")
        if any(r.group and r.group != r.name for r in rows):
            legend(figure, axes, columns=3)

    return draw(0.9 + 0.27 * max(3, len(rows)), paint)
