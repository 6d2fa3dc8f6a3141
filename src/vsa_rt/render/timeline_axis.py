"""Where a time lies on a timeline, and which times stand under it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Steps between ticks in seconds that people count in; beyond them whole days.
_STEPS: tuple[float, ...] = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30),
    *(60 * n for n in (1, 2, 5, 10, 15, 30)),
    *(3600 * n for n in (1, 2, 3, 6, 12, 24)),
)
_DAY = 86400


def clock(seconds: float, step: float = 1.0) -> str:
    """A time as ``m:ss`` or ``h:mm:ss``.

    Args:
        seconds: The time.
        step: Where it is below one, as many decimals as it has.

    Returns:
        The text.
    """
    decimals = 0 if step >= 1 else max(1, math.ceil(-math.log10(step) - 1e-9))
    units = round(abs(seconds) * 10**decimals)
    whole, part = divmod(units, 10**decimals)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
    sign = "-" if seconds < 0 and units else ""
    return sign + text + (f".{part:0{decimals}d}" if decimals else "")


@dataclass(frozen=True)
class Axis:
    """Time from left to right.

    Attributes:
        begin: In seconds, at ``left``.
        end: In seconds, at ``right``; where it is the beginning, all lies in the middle.
        left: In pixels.
        right: In pixels.
    """

    begin: float
    end: float
    left: int
    right: int

    @property
    def span(self) -> float:
        """Seconds from left to right."""
        return self.end - self.begin

    def shares(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Places of times, from 0 at the left to 1 at the right; of a time outside, those of the nearest inside."""
        if self.span <= 0:
            return np.full(len(seconds), 0.5)
        return np.clip((seconds - self.begin) / self.span, 0, 1)

    def place(self, seconds: float) -> float:
        """The place of a time, in pixels."""
        share = float(self.shares(np.array([seconds]))[0])
        return self.left + share * (self.right - self.left)

    def ticks(self, most: int = 12) -> tuple[list[float], float]:
        """Times to write under the axis.

        Args:
            most: How many at most.

        Returns:
            Whole multiples of a step, and the step.
        """
        if self.span <= 0:
            return [self.begin], 1.0
        # One interval less than ticks: both ends may have one.
        rough = self.span / (most - 1)
        step = next((s for s in _STEPS if s >= rough), _DAY * math.ceil(rough / _DAY))
        first, last = math.ceil(self.begin / step - 1e-9), math.floor(self.end / step + 1e-9)
        return [n * step for n in range(first, last + 1)], step
