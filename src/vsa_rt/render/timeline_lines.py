"""Scores over time as lines: crisp, whatever the number of frames."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from vsa_rt.render.timeline_labels import Colour

#: Lines are drawn this many times larger and reduced: Pillow's have no soft edges.
_FINE = 3
#: Thickness of a line, and width of the columns that many frames are gathered in, in pixels.
_THICK, _COLUMN = 2, 3
#: A line whose contrast with white paper (WCAG 2.2) is below this gets a dark rim: of the palette yellow alone, at 1.3.
_PALE, _RIM = 1.5, (90, 90, 90)
#: Pixels around the part that a line may take: at its edges it is as thick as elsewhere.
_PAD = 6
#: Places, means, lowest and highest.
Columns = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def luminance(colour: Colour) -> float:
    """Relative luminance of an sRGB colour, from 0 to 1 (WCAG 2.2)."""
    share = np.array(colour) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def bounds(scores: NDArray[np.float64]) -> tuple[float, float]:
    """Lowest and highest value of the vertical axis.

    Args:
        scores: All that are drawn.

    Returns:
        0 and 1 where the scores come near 1; less than 1 where they stay small, such as shares of many labels.
    """
    low, high = min(0.0, float(scores.min())), float(scores.max())
    return low, next((top for top in (0.1, 0.2, 0.5, 1.0) if high <= top), high)


def gathered(shares: NDArray[np.float64], values: NDArray[np.float64], columns: int) -> Columns:
    """Many frames as few columns.

    Args:
        shares: Places of the frames ``(N,)`` from 0 to 1, rising.
        values: Their scores ``(N,)``.
        columns: How many there are; those without a frame are left out.

    Returns:
        Middle of each column from 0 to 1; mean, lowest and highest score in it.
    """
    cells = np.minimum((shares * columns).astype(np.int64), columns - 1)
    first = np.flatnonzero(np.concatenate([[True], cells[1:] != cells[:-1]]))
    counts = np.diff(np.concatenate([first, [len(cells)]]))
    return (
        (cells[first] + 0.5) / columns,
        np.add.reduceat(values, first) / counts,
        np.minimum.reduceat(values, first),
        np.maximum.reduceat(values, first),
    )


class Lines:
    """Draws lines of scores onto a part of a picture.

    Args:
        picture: RGB; it is drawn on.
        box: The part: left, top, right, bottom in pixels.
        low: Score at the bottom.
        high: Score at the top.
    """

    def __init__(self, picture: Image.Image, box: tuple[int, int, int, int], low: float, high: float) -> None:
        self._picture, self._box, self._low, self._high = picture, box, low, high

    @property
    def columns(self) -> int:
        """Frames beyond this number are gathered in columns of as many."""
        return (self._box[2] - self._box[0]) // _COLUMN

    def row(self, score: float) -> float:
        """Where a score lies, in pixels from the picture's top."""
        share = (score - self._low) / (self._high - self._low)
        return self._box[3] - share * (self._box[3] - self._box[1])

    def draw(
        self, shares: NDArray[np.float64], values: NDArray[np.float64], colour: Colour, shade: float
    ) -> None:
        """Draw one label's scores.

        Args:
            shares: Places of the frames ``(N,)`` from 0 to 1, rising.
            values: Their scores ``(N,)``.
            colour: The label's.
            shade: How much of the colour lies between the lowest and the highest score of a column, from 0 to 1, where
                there are more frames than columns. The line is then the columns' mean.
        """
        if len(shares) > self.columns:
            shares, values, lowest, highest = gathered(shares, values, self.columns)
            outline = self._points(shares, highest) + self._points(shares, lowest)[::-1]
            self._blend(self._mask(outline, 0), colour, shade)
        points = self._points(shares, values)
        if 1.05 / (luminance(colour) + 0.05) < _PALE:
            self._blend(self._mask(points, _THICK + 1.5), _RIM, 1.0)
        self._blend(self._mask(points, _THICK), colour, 1.0)

    def _points(self, shares: NDArray[np.float64], values: NDArray[np.float64]) -> list[tuple[float, float]]:
        """Points in the coordinates of the enlarged part."""
        left, top, right, bottom = self._box
        across = (shares * (right - left) + _PAD) * _FINE
        down = ((1 - (values - self._low) / (self._high - self._low)) * (bottom - top) + _PAD) * _FINE
        return list(zip(across.tolist(), down.tolist(), strict=True))

    def _mask(self, points: Sequence[tuple[float, float]], thick: float) -> Image.Image:
        """Where the line through the points goes; of thickness 0, the area inside them. A single point is a dot."""
        left, top, right, bottom = self._box
        mask = Image.new("L", ((right - left + 2 * _PAD) * _FINE, (bottom - top + 2 * _PAD) * _FINE))
        pen = ImageDraw.Draw(mask)
        width = math.ceil(thick * _FINE)
        if not thick:
            pen.polygon(points, 255)
        elif len(points) == 1:
            pen.circle(points[0], width, 255)
        else:
            pen.line(points, 255, width, joint="curve")
        return mask.reduce(_FINE)

    def _blend(self, mask: Image.Image, colour: Colour, strength: float) -> None:
        if strength < 1:
            mask = ImageChops.multiply(mask, Image.new("L", mask.size, round(255 * strength)))
        self._picture.paste(colour, (self._box[0] - _PAD, self._box[1] - _PAD), mask)
