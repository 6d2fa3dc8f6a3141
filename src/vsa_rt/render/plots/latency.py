"""Plots of times: how latencies are distributed, how pairs compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vsa_rt.render.numbers import TIMES
from vsa_rt.render.plots.canvas import (
    DASHES,
    GREY,
    INK,
    QUIET,
    SERIES,
    draw,
    label,
    plain_number,
    times,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Steps of one drawn distribution: more cannot be told apart at this size.
_STEPS = 500
#: A line starts another panel where its least time is this many times what the lines before it reach.
_APART = 1.5
#: Name and samples.
Line = tuple[str, Sequence[float]]
#: From this ratio between the ends on an axis is logarithmic.
_WIDE = 6.0


def logarithmic(axes: Axes, wide: bool) -> None:
    """A logarithmic horizontal axis with plain numbers, if it is wide."""
    if not wide:
        return
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(plain_number))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _panels(lines: Sequence[Line]) -> list[list[tuple[int, Line]]]:
    """Lines whose times overlap or nearly do share a panel; beside one twice as slow a line would be a wall."""
    panels: list[list[tuple[int, Line]]] = []
    reach = 0.0
    for place, line in sorted(enumerate(lines), key=lambda p: min(p[1][1])):
        ordered = sorted(line[1])
        if not panels or ordered[0] > _APART * reach:
            panels.append([])
        panels[-1].append((place, line))
        reach = max(reach, ordered[int(0.9 * (len(ordered) - 1))])
    return panels


def _steps(axes: Axes, place: int, line: Line) -> None:
    name, samples = line
    ordered = sorted(samples)
    count = len(ordered)
    drawn = min(count, _STEPS)
    ranks = [round(k * (count - 1) / max(1, drawn - 1)) for k in range(drawn)]
    axes.step(
        [ordered[ranks[0]], *(ordered[r] for r in ranks)],
        [0.0, *((r + 1) / count for r in ranks)],
        where="post",
        color=SERIES[place % len(SERIES)],
        linestyle=DASHES[place // len(SERIES) % len(DASHES)],
        label=label(name, 44),
    )


def ecdf(lines: Sequence[Line]) -> bytes:
    """Share of calls that were done within a time, one line per name; nothing is cut off.

    Args:
        lines: Names and samples in milliseconds, none empty.
    """
    panels = _panels(lines)

    def paint(figure: Figure) -> None:
        every = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axes, panel in zip(every, panels, strict=True):
            for place, line in panel:
                _steps(axes, place, line)
            smallest = min(min(samples) for _, (_, samples) in panel)
            largest = max(max(samples) for _, (_, samples) in panel)
            wide = smallest > 0 and largest / smallest > _WIDE
            logarithmic(axes, wide)
            for share in (0.5, 0.9, 0.99):
                axes.axhline(share, color=QUIET, linewidth=0.8, linestyle=(0, (1, 2)))
            axes.set_yticks([0, 0.5, 0.9, 0.99], ["0", "p50", "p90", "p99"])
            # Both lie close together: one label goes up, the other down.
            for tick, side in zip(axes.get_yticklabels()[2:], ("top", "bottom"), strict=True):
                tick.set_verticalalignment(side)
            axes.set_ylim(0, 1.03)
            axes.grid(axis="y", visible=False)
            if wide:
                axes.set_xlabel("ms per call, logarithmic")
        if not every[-1].get_xlabel():
            every[-1].set_xlabel("ms per call")
        entries = [axes.get_legend_handles_labels() for axes in every]
        handles = [h for found, _ in entries for h in found]
        names = [n for _, found in entries for n in found]
        figure.legend(handles, names, loc="outside lower center", borderaxespad=0.2)

    height = 2.3 if len(panels) == 1 else 1.45 * len(panels)
    return draw(0.45 + height + 0.19 * len(lines), paint)


@dataclass(frozen=True)
class Strip:
    """One pairing: its name in two lines, every pair's ratio, the median and its interval."""

    name: str
    detail: str
    ratios: Sequence[float]
    median: float
    low: float
    high: float


def pair_ratios(strips: Sequence[Strip]) -> bytes:
    """Every pair as a dot, the interval of the median as a bar, and a line where both sides are equally fast."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, strip in enumerate(strips):
            # Heights that are spread evenly without chance: multiples of the golden ratio.
            heights = [row - 0.26 + 0.52 * ((k * 0.618034) % 1) for k in range(len(strip.ratios))]
            axes.scatter(strip.ratios, heights, s=9, color=GREY, alpha=0.55, linewidths=0)
            axes.barh(
                [row],
                [strip.high - strip.low],
                0.66,
                left=[strip.low],
                facecolor="none",
                edgecolor=SERIES[0],
                linewidth=1.6,
                zorder=3,
            )
            axes.annotate(
                f"{strip.median:.2f}{TIMES}",
                (max(*strip.ratios, strip.high), row),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.margins(x=0.14)
        ends = [1.0, *(r for s in strips for r in (*s.ratios, s.low, s.high))]
        wide = min(ends) > 0 and max(ends) / min(ends) > 10
        logarithmic(axes, wide)
        if not wide:
            from matplotlib.ticker import FuncFormatter, MaxNLocator

            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(FuncFormatter(times))
        axes.axvline(1, color=INK, linewidth=1, linestyle=(0, (4, 2)))
        axes.set_yticks(range(len(strips)), [f"{label(s.name, 22)}\n{label(s.detail, 22)}" for s in strips])
        axes.set_ylim(len(strips) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("times as long" + (", logarithmic" if wide else ""))

    return draw(0.85 + 0.55 * max(2, len(strips)), paint)
