"""What samples of one run can say: percentiles with bounds, medians, pairs and shares with intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.bench.records.timing import Percentile, Series
from vsa_rt.bench.steady import lag_one, steady_state

Array = NDArray[Any]

#: Of the bounds of percentiles.
CONFIDENCE = 0.95
#: Percentiles of every series.
SHARES = (0.5, 0.9, 0.99)
#: Floating point puts 0.99 * 300 a little off 297.
_EXACT = 1e-9


@dataclass(frozen=True)
class Paired:
    """What two candidates' samples say round by round: by how much, or how many times, one is slower.

    Attributes:
        median: Of the pairs' differences, in the samples' unit, or of their ratios.
        low: Lower end of the interval around the median.
        high: Upper end.
        pairs: Number of pairs.
        confidence: Coverage of ``low`` to ``high``, of what was asked or a little more; ``None`` where the pairs
            are too few for any interval (then ``low`` and ``high`` are the extremes).
    """

    median: float
    low: float
    high: float
    pairs: int
    confidence: float | None


def _at_most(count: int, share: float) -> Array:
    """``P(successes <= k)`` for k from 0 to ``count``, of a binomial distribution; ``0 < share < 1``.

    Every probability is a product of ratios that start at the mode, and all are divided by their sum: nothing
    overflows, and what underflows is too small to count.
    """
    mode = min(count, math.floor((count + 1) * share))
    odds = math.log(share) - math.log1p(-share)
    above, below = np.arange(mode + 1, count + 1), np.arange(mode, 0, -1)
    up = np.cumsum(np.log((count - above + 1) / above) + odds)
    down = np.cumsum(np.log(below / (count - below + 1)) - odds)
    each = np.exp(np.concatenate([down[::-1], [0.0], up]))
    each /= each.sum()
    at_most: Array = np.minimum(np.cumsum(each), 1.0)
    return at_most


def needed_for(share: float, confidence: float) -> int:
    """Samples from which on the largest is an upper bound of a percentile: ``1 - share ** n >= confidence``."""
    count = max(1, math.floor(math.log1p(-confidence) / math.log(share)))
    while 1 - share**count < confidence - _EXACT:
        count += 1
    return count


def percentile(samples: Sequence[float], share: float, confidence: float = CONFIDENCE) -> Percentile:
    """A percentile and its one-sided upper bound, free of any distribution.

    The value is the order statistic ``x_(k)`` with the smallest ``k`` such that ``k / n >= share`` (the inverse of
    the empirical distribution function). The bound is ``x_(u)`` with the smallest ``u`` such that
    ``P(Bin(n, share) <= u - 1) >= confidence`` (Hahn and Meeker 1991, "Statistical Intervals", section 5.2; David
    and Nagaraja 2003, "Order Statistics", section 7.1). It holds for independent samples; ties make it wider.

    Args:
        samples: At least one, in any order.
        share: Of the samples that lie below, strictly between 0 and 1: 0.99 for p99.
        confidence: Of the bound.

    Raises:
        ValueError: No samples, or a share or confidence that is none.
    """
    if not 0 < share < 1 or not 0 < confidence < 1:
        raise ValueError(f"share {share}, confidence {confidence}: both lie strictly between 0 and 1")
    if not len(samples):
        raise ValueError("no samples to take a percentile of")
    count, needed = len(samples), needed_for(share, confidence)
    value = upper = None
    if count >= needed:
        ordered = np.sort(np.asarray(samples, np.float64))
        value = float(ordered[max(1, math.ceil(count * share - _EXACT)) - 1])
        first = int(np.searchsorted(_at_most(count, share), confidence - _EXACT))
        upper = float(ordered[min(first, count - 1)])
    return Percentile(share=share, value=value, upper=upper, confidence=confidence, needed=needed)


def median_interval(samples: Sequence[float], confidence: float) -> tuple[float, float, float] | None:
    """The narrowest pair of opposite order statistics that covers the median, and its exact coverage.

    It is that of the sign test (David and Nagaraja 2003, section 7.1).

    Args:
        samples: In any order.
        confidence: That the coverage reaches.

    Returns:
        Lower end, upper end, coverage; ``None`` where the samples are too few.
    """
    count = len(samples)
    if count < 2:
        return None
    coverage = 1 - 2 * _at_most(count, 0.5)[: count // 2]
    enough = int((coverage >= confidence - _EXACT).sum())
    if not enough:
        return None
    ordered = np.sort(np.asarray(samples, np.float64))
    return float(ordered[enough - 1]), float(ordered[count - enough]), float(coverage[enough - 1])


def _paired(pairs: Sequence[float], confidence: float) -> Paired:
    if not pairs:
        raise ValueError("no samples to compare")
    low, high, covered = median_interval(pairs, confidence) or (min(pairs), max(pairs), None)
    return Paired(statistics.median(pairs), low, high, len(pairs), covered)


def difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.99) -> Paired:
    """By how much ``a`` exceeds ``b``, round by round.

    Args:
        a: Samples of the one.
        b: Samples of the other, as many, of the same rounds.
        confidence: Coverage of the interval (distribution-free, from order statistics).

    Raises:
        ValueError: The series are empty or differ in length.
    """
    return _paired([x - y for x, y in zip(a, b, strict=True)], confidence)


def ratio(numerator: Sequence[float], denominator: Sequence[float], confidence: float = 0.95) -> Paired:
    """How many times slower one is than the other, round by round.

    Args:
        numerator: Samples of the one.
        denominator: Samples of the other, as many, of the same rounds.
        confidence: Coverage of the interval (distribution-free, from order statistics).

    Raises:
        ValueError: The series are empty or differ in length.
    """
    return _paired([a / b for a, b in zip(numerator, denominator, strict=True)], confidence)


def series(samples: Sequence[float]) -> Series:
    """Describe times in the order of measurement.

    Args:
        samples: Milliseconds, at least one.

    Raises:
        ValueError: No samples.
    """
    if not len(samples):
        raise ValueError("no samples to describe")
    found = steady_state(samples)
    steady = np.asarray(samples[found.warm_up :], np.float64)
    return Series(
        samples=[float(s) for s in samples],
        warm_up=found.warm_up,
        steady=found.steady,
        drift=found.drift,
        autocorrelation=lag_one(steady),
        mean=float(steady.mean()),
        least=float(steady.min()),
        most=float(steady.max()),
        percentiles=[percentile(steady.tolist(), share) for share in SHARES],
    )


def where(below: Callable[[float], bool]) -> float:
    """The share up to which something holds, to the last bits."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) else (low, middle)
    return (low + high) / 2


def share_bounds(count: int, total: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """One-sided bounds of a share, each of which holds with the confidence (Clopper and Pearson 1934).

    Args:
        count: Of what is counted.
        total: Of all.
        confidence: Of each bound; together they hold with ``2 * confidence - 1``.

    Returns:
        Lower and upper bound.

    Raises:
        ValueError: More counted than there are, or nothing at all.
    """
    if not 0 <= count <= total or not total:
        raise ValueError(f"{count} of {total} is no share")

    def at_most(share: float, successes: int) -> float:
        return float(_at_most(total, share)[successes])

    low, high = 0.0, 1.0
    if count:
        low = where(lambda share: at_most(share, count - 1) > confidence)
    if count < total:
        high = where(lambda share: at_most(share, count) > 1 - confidence)
    return low, high
