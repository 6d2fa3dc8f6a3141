"""What every plot shares: size, type, colours for light and dark, and SVG without a trace of when it was drawn."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vsa_rt.errors import needs
from vsa_rt.render.numbers import TIMES
from vsa_rt.render.text import plain

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Width of every plot in inches: with type of 9 to 10 points it can be read at the width of a phone.
WIDTH = 4.2
#: Name of a colour to what stands for it while drawing, and to what it is on light and on dark ground.
#: The series are Okabe and Ito's (2008, "Color universal design"), darkened and lightened for contrast.
_COLOURS = {
    "ink": ("#010101", "#24292f", "#e6edf3"),
    "quiet": ("#010102", "#59636e", "#9da7b1"),
    "grid": ("#010103", "#d8dee4", "#3b434b"),
    "paper": ("#01010a", "#ffffff", "#0d1117"),
    "blue": ("#010104", "#0072b2", "#56b4e9"),
    "orange": ("#010105", "#c05a00", "#f0a04b"),
    "green": ("#010106", "#00795a", "#2fd0a2"),
    "purple": ("#010107", "#9a4f86", "#e3a1cd"),
    "yellow": ("#010108", "#a08a00", "#e6d94a"),
    "grey": ("#010109", "#818b96", "#768390"),
}
INK, QUIET, GRID, PAPER = (_COLOURS[name][0] for name in ("ink", "quiet", "grid", "paper"))
#: Colours of series, in the order in which they are given out.
SERIES = [_COLOURS[name][0] for name in ("blue", "orange", "green", "purple", "yellow", "grey")]
BLUE, ORANGE, GREEN, PURPLE, YELLOW, GREY = SERIES
#: Line styles of series beyond the colours.
DASHES: list[Any] = ["-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5))]
_STYLE: dict[str, Any] = {
    "svg.hashsalt": "vsa-rt",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    # Names of strangers hold dollar signs, which would start a formula.
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.handlelength": 1.8,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "butt",
}


def draw(height: float, paint: Callable[[Figure], None]) -> bytes:
    """Draw one plot.

    Args:
        height: In inches.
        paint: Makes the axes and draws.

    Returns:
        An SVG document without date, whose colours follow the reader's choice of light or dark.

    Raises:
        EnvironmentUnusable: matplotlib is not installed.
    """
    with needs("bench"):
        from matplotlib import style
        from matplotlib.figure import Figure
    # "default" first: no matplotlibrc of this machine changes a report.
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        paint(figure)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _themed(stream.getvalue().decode("utf-8")).encode("utf-8")


def _themed(svg: str) -> str:
    """Colours become variables that light and dark set; what only says who drew it and when goes."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for name, (stand_in, _, _) in _COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    light = ";".join(f"--{name}:{colour}" for name, (_, colour, _) in _COLOURS.items())
    dark = ";".join(f"--{name}:{colour}" for name, (_, _, colour) in _COLOURS.items())
    rules = f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return svg.replace('<style type="text/css">', f'<style type="text/css">{rules}', 1)


def label(text: str, limit: int = 26) -> str:
    """A stranger's text for a plot: short, and ``□`` for what the font cannot draw."""
    with needs("bench"):
        from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(c if ord(c) in known else "□" for c in plain(text, limit))


def legend(figure: Figure, axes: Axes, columns: int = 1, extra: Sequence[Artist] = ()) -> None:
    """The legend below the plot, where it hides nothing; ``extra`` entries come last."""
    handles, labels = axes.get_legend_handles_labels()
    handles += extra
    labels += [str(artist.get_label()) for artist in extra]
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, borderaxespad=0.2)


def times(value: float, place: object = None) -> str:
    """A tick of a ratio's axis."""
    return f"{value:g}{TIMES}"


def plain_number(value: float, place: object = None) -> str:
    """A tick of a logarithmic axis, without powers."""
    return f"{value:g}"
