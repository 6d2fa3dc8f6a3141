"""What differs from one opening of the same engine to the next, and intervals that cover it."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

from vsa_rt.bench.intervals import CONFIDENCE, Paired, median_interval, ratio, where

#: Openings from which on their spread is estimated: with three, the t interval is five times as wide as with six.
LEAST_OPENINGS = 4


def student(confidence: float, freedom: int) -> float:
    """Two-sided quantile of Student's t, by bisection of Abramowitz and Stegun's finite sums 26.7.3 and 26.7.4.

    Args:
        confidence: Share between minus and plus the quantile.
        freedom: Degrees of freedom, at least 1.
    """

    def inside(angle: float) -> float:
        """``A(t | freedom)`` for ``angle = atan(t / sqrt(freedom))``."""
        even = freedom % 2 == 0
        term = 1.0 if even else math.cos(angle)
        total = term if freedom > 1 else 0.0
        for k in range(2 if even else 3, freedom - 1, 2):
            term *= (k - 1) / k * math.cos(angle) ** 2
            total += term
        return math.sin(angle) * total if even else 2 / math.pi * (angle + math.sin(angle) * total)

    share = where(lambda part: inside(part * math.pi / 2) < confidence)
    return math.sqrt(freedom) * math.tan(share * math.pi / 2)


def opening_medians(logs: Sequence[float], openings: int) -> list[float]:
    """The median of each opening's share of a series; empty where their spread cannot be estimated."""
    if openings < LEAST_OPENINGS or len(logs) < openings:
        return []
    ends = [len(logs) * k // openings for k in range(openings + 1)]
    return [statistics.median(logs[start:end]) for start, end in itertools.pairwise(ends)]


def _over_openings(
    medians: Sequence[float], confidence: float, single: Sequence[float] = ()
) -> tuple[float, float]:
    """A t interval of what the openings' medians, logarithms, scatter around.

    ``single``: medians of an engine whose openings scatter as those of something that was opened only once, whose
    one opening adds a whole variance of theirs.
    """
    middle, count = statistics.fmean(medians), len(medians)
    spread = math.sqrt(
        statistics.variance(medians) / count + (statistics.variance(single) if single else 0.0)
    )
    wide = student(confidence, count - 1) * spread
    return math.exp(middle - wide), math.exp(middle + wide)


def median_over_openings(
    samples: Sequence[float], openings: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """An interval of the median over several openings of the same engine; see ``ratio_over_openings``.

    Args:
        samples: Above 0, opening after opening.
        openings: How many.
        confidence: Of the interval.

    Returns:
        Lower and upper end; the extremes where the samples are too few.
    """
    low, high, _ = median_interval(samples, confidence) or (min(samples), max(samples), None)
    medians = opening_medians([math.log(value) for value in samples], openings)
    if medians:
        ends = _over_openings(medians, confidence)
        low, high = min(low, ends[0]), max(high, ends[1])
    return low, high


def ratio_over_openings(
    numerator: Sequence[float],
    denominator: Sequence[float],
    openings: int,
    confidence: float = 0.99,
    once: bool = False,
) -> Paired:
    """How many times slower one candidate is than another, over several openings of the same engines.

    An opening has a speed of its own, by where its memory happens to lie, so that pairs of one opening are not
    independent. Each opening's median is therefore one observation: a t interval of their logarithms covers what
    differs from opening to opening, the order-statistic interval of all pairs what differs from call to call, and
    the answer covers both.

    Args:
        numerator: Samples of the one, opening after opening, as many in each but for one.
        denominator: Of the other, round by round.
        openings: How many; with fewer than ``LEAST_OPENINGS`` nothing can be said about them, and the interval is
            that of the pairs alone.
        confidence: Of both intervals.
        once: Whether the one was opened only once, as baselines are: its opening is then taken to be as far from
            its own mean as those of the other are from theirs.

    Raises:
        ValueError: The series are empty or differ in length.
    """
    found = ratio(numerator, denominator, confidence)
    medians = opening_medians(
        [math.log(a / b) for a, b in zip(numerator, denominator, strict=True)], openings
    )
    if not medians:
        return found
    own = opening_medians([math.log(value) for value in denominator], openings) if once else []
    low, high = _over_openings(medians, confidence, own)
    return Paired(found.median, min(found.low, low), max(found.high, high), found.pairs, found.confidence)


def difference_over_openings(
    new: Sequence[float], old: Sequence[float], confidence: float
) -> tuple[float, float]:
    """Welch's interval of the difference of two means."""
    spreads = [statistics.variance(m) / len(m) for m in (new, old)]
    middle = statistics.fmean(new) - statistics.fmean(old)
    total = sum(spreads)
    if total <= 0:
        return middle, middle
    freedom = total**2 / sum(v**2 / (len(m) - 1) for v, m in zip(spreads, (new, old), strict=True))
    wide = student(confidence, max(1, int(freedom))) * math.sqrt(total)
    return middle - wide, middle + wide
