"""The plot of layer-wise probes: accuracy by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vsa_rt.render.plots.canvas import QUIET, SERIES, draw, label, legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Between the marks of two classifiers on one layer, in layers: their bars stand beside each other.
_BESIDE = 0.16
#: Names longer than this would take more of the plot than its lines.
_LONGEST = 18


@dataclass(frozen=True)
class Point:
    """Mean over the folds, and their sample standard deviation if there is one."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Line:
    """A classifier and its point at every layer."""

    name: str
    points: Sequence[Point]


def accuracy_by_layer(title: str, layers: Sequence[str], lines: Sequence[Line], majority: float) -> bytes:
    """Accuracy by layer, one line per classifier; bars are a standard deviation up and down.

    Args:
        title: Above the plot.
        layers: Names, in the order of the axis.
        lines: Each with as many points as there are layers.
        majority: Accuracy of always saying the most frequent label: a dashed line.
    """

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        deviates = any(point.std is not None for line in lines for point in line.points)
        for place, line in enumerate(lines):
            colour = SERIES[place % len(SERIES)]
            shift = _BESIDE * (place - (len(lines) - 1) / 2)
            where = [k + shift for k in range(len(layers))]
            axes.errorbar(
                where,
                [point.mean for point in line.points],
                yerr=[point.std or 0.0 for point in line.points] if deviates else None,
                color=colour,
                marker="os^D"[place % 4],
                markersize=4.5,
                markerfacecolor="none",
                elinewidth=1,
                capsize=2,
                label=label(line.name),
            )
        axes.axhline(majority, color=QUIET, linewidth=1.2, linestyle=(0, (4, 2)), label="majority")
        axes.set_xticks(range(len(layers)), [label(name, _LONGEST) for name in layers])
        axes.set_xlim(-0.5, len(layers) - 0.5)
        # Written across, more than a few names would run into each other.
        if sum(min(len(name), _LONGEST) for name in layers) > 36:
            axes.tick_params(axis="x", rotation=90)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("layer")
        axes.set_ylabel("accuracy ± std over folds" if deviates else "accuracy")
        axes.set_title(label(title, 44), fontsize=10)
        legend(figure, axes, columns=len(lines) + 1)

    return draw(3.6, paint)
