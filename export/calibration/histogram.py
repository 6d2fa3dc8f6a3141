"""What one activation tensor was like over any number of images, in the memory of one histogram."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Bins of a histogram; Migacz (see ``thresholds``) takes as many.
BINS = 2048
_BIN_BITS = 11
#: The range is [0, 2**exponent). Below the lowest exponent values are as good as zero, and scaling by powers of two
#: stays far from what float32 cannot hold; the highest is float32's own.
LOWEST_EXPONENT, HIGHEST_EXPONENT = -64, 128
#: Values that are binned at a time: 768 KiB of scratch, which a core's second cache holds.
_CHUNK = 1 << 16


def exponent_of(magnitude: float) -> int:
    """The least exponent whose range [0, 2**exponent) holds a magnitude, and at least ``LOWEST_EXPONENT``."""
    # frexp: magnitude = fraction * 2**exponent with a fraction in [0.5, 1), but 0 = 0 * 2**0
    return max(LOWEST_EXPONENT, math.frexp(magnitude)[1]) if magnitude else LOWEST_EXPONENT


class Range:
    """The lowest and highest of all values that were added.

    Attributes:
        lowest: Exact; infinity before the first value.
        highest: Exact; minus infinity before the first value.
        count: Values added.
    """

    def __init__(self) -> None:
        self.lowest, self.highest, self.count = math.inf, -math.inf, 0

    @property
    def magnitude(self) -> float:
        """The largest magnitude; 0 before the first value."""
        return max(-self.lowest, self.highest) if self.count else 0.0

    def add(self, values: NDArray[Any]) -> None:
        """Take values in.

        Args:
            values: Floats of any shape.

        Raises:
            ValueError: One is NaN or infinite, of which float32 decides. What was added before stays added, and some
                of these values may be, too.
        """
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            flat = np.ravel(values).astype(np.float32, copy=False)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            lowest, highest = float(part.min()), float(part.max())
            if not (math.isfinite(lowest) and math.isfinite(highest)):
                raise ValueError("a value is NaN or infinite")
            self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
            self.count += part.size
            self._take(part)

    def _take(self, part: NDArray[np.float32]) -> None:
        """What a subclass keeps of some values, all finite and within ``lowest`` and ``highest``."""


class Histogram(Range):
    """Counts of magnitudes in equal bins over [0, 2**exponent).

    A bin's border is a multiple of a power of two, so that each magnitude falls into its bin exactly. A larger value
    doubles the range as often as needed, and neighbouring bins are merged, exactly again: the counts do not depend on
    the order of the values or on how they were cut into batches.

    Attributes:
        counts: ``(2048,)`` int64.
        exponent: The least that holds every magnitude, and at least -64.
        zeros: How many values were exactly zero; they are in the first bin, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.exponent = LOWEST_EXPONENT
        self.zeros = 0

    @property
    def width(self) -> float:
        """Of one bin."""
        return math.ldexp(1.0, self.exponent - _BIN_BITS)

    def _take(self, part: NDArray[np.float32]) -> None:
        exponent = exponent_of(self.magnitude)
        self.counts, self.exponent = self._counts_up_to(exponent), exponent
        self.zeros += int(np.count_nonzero(part == 0))  # four times as fast as counting floats
        scaled = np.multiply(part, np.float32(1 / self.width))
        np.abs(scaled, out=scaled)
        self.counts += np.bincount(scaled.astype(np.intp), minlength=BINS)

    def _counts_up_to(self, exponent: int) -> NDArray[np.int64]:
        """The counts over [0, 2**exponent), which is not less than now."""
        if exponent == self.exponent:
            return self.counts
        merged = 1 << min(_BIN_BITS, exponent - self.exponent)
        wider = np.zeros(BINS, np.int64)
        wider[: BINS // merged] = self.counts.reshape(-1, merged).sum(axis=1)
        return wider

    def __add__(self, other: Histogram) -> Histogram:
        """The histogram of both ones' values."""
        both = Histogram()
        both.exponent = max(self.exponent, other.exponent)
        both.counts = self._counts_up_to(both.exponent) + other._counts_up_to(both.exponent)
        both.lowest, both.highest = min(self.lowest, other.lowest), max(self.highest, other.highest)
        both.count, both.zeros = self.count + other.count, self.zeros + other.zeros
        return both
