"""What samples can say: percentiles with bounds, intervals of medians and of their ratios, series described."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.bench.clock import Ratio, ratio
from vsa_rt.bench.records.timing import Percentile, Series
from vsa_rt.bench.steady import lag_one, ranks, steady_state

Array = NDArray[Any]

#: Of the bounds of percentiles.
CONFIDENCE = 0.95
#: Percentiles of every series.
SHARES = (0.5, 0.9, 0.99)
#: Resamples of a bootstrap interval: at 99 % ten lie beyond each end.
_RESAMPLES = 2000
#: Samples from which on a bootstrap interval is given: below, blocks are too few.
_FEWEST = 30
#: Resampled values held at a time, 32 MB.
_CHUNK = 1 << 22
#: Openings from which on their spread is estimated: with three, the t interval is five times as wide as with six.
LEAST_OPENINGS = 4
#: Floating point puts 0.99 * 300 a little off 297.
_EXACT = 1e-9


@dataclass(frozen=True)
class Difference:
    """By how much one candidate is slower than another, pair by pair.

    Attributes:
        median: Of the pairs' differences, in the samples' unit.
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


def difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.99) -> Difference:
    """By how much ``a`` exceeds ``b``, round by round: the counterpart of ``clock.ratio``.

    Args:
        a: Samples of the one.
        b: Samples of the other, as many, of the same rounds.
        confidence: Coverage of the interval (distribution-free, from order statistics).

    Raises:
        ValueError: The series are empty or differ in length.
    """
    pairs = [x - y for x, y in zip(a, b, strict=True)]
    if not pairs:
        raise ValueError("no samples to compare")
    low, high, covered = median_interval(pairs, confidence) or (min(pairs), max(pairs), None)
    return Difference(statistics.median(pairs), low, high, len(pairs), covered)


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


def _block(values: Array) -> int:
    """Length of the bootstrap's blocks.

    At least ``n ** (1/3)``, the order that Künsch (1989) finds best. Where samples resemble their neighbours, that
    times ``(sqrt(6) r / (1 - r * r)) ** (2/3)``: best for the mean of an AR(1) process with correlation ``r``
    (Carlstein 1986, his factor 2 being sqrt(6) for overlapping blocks: Lahiri 1999). Medians follow ranks rather
    than values, so ``r`` is that of the ranks. At most a quarter of the series.
    """
    count = len(values)
    r = min(0.99, max(0.0, lag_one(ranks(values)) or 0.0))
    stretch = math.pow(math.sqrt(6) * r / (1 - r * r), 2 / 3)
    return max(1, min(count // 4, math.ceil(math.pow(count, 1 / 3) * max(1.0, stretch))))


def _log_medians(values: Array, block: int, generator: np.random.Generator) -> Array:
    """Logarithms of the medians of ``_RESAMPLES`` series made of blocks of one."""
    count, blocks = len(values), -(-len(values) // block)
    rows = max(1, _CHUNK // (blocks * block))
    found = []
    for start in range(0, _RESAMPLES, rows):
        many = min(rows, _RESAMPLES - start)
        starts = generator.integers(0, count - block + 1, (many, blocks, 1))
        places = (starts + np.arange(block)).reshape(many, -1)[:, :count]
        found.append(np.log(np.median(values[places], axis=1)))
    return np.concatenate(found)


def _stretch(spreads: Sequence[float], blocks: Sequence[float], confidence: float) -> float:
    """How much wider than a normal interval one of few blocks has to be: a quantile of Student's t over the normal's.

    Overlapping blocks carry 1.5 times the degrees of freedom of as many separate ones (Meketon and Schmeiser 1984);
    Welch (1947) joins those of two series. The quantile is Abramowitz and Stegun's expansion 26.7.5.

    Args:
        spreads: Variances of both series' medians.
        blocks: How many blocks each series has.
        confidence: Two-sided.
    """
    total = sum(spreads)
    if total <= 0:
        return 1.0
    freedom = total**2 / sum(v**2 / (1.5 * (n - 1)) for v, n in zip(spreads, blocks, strict=True))
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    return 1 + (z**2 + 1) / (4 * freedom) + (5 * z**4 + 16 * z**2 + 3) / (96 * freedom**2)


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

    share = _where(lambda part: inside(part * math.pi / 2) < confidence)
    return math.sqrt(freedom) * math.tan(share * math.pi / 2)


def _openings(logs: Sequence[float], openings: int) -> list[float]:
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


def typical(samples: Sequence[float], openings: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """An interval of the median over several openings of the same engine; see ``ratio_over_openings``.

    Args:
        samples: Above 0, opening after opening.
        openings: How many.
        confidence: Of the interval.

    Returns:
        Lower and upper end; the extremes where the samples are too few.
    """
    low, high, _ = median_interval(samples, confidence) or (min(samples), max(samples), None)
    medians = _openings([math.log(value) for value in samples], openings)
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
) -> Ratio:
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
    medians = _openings([math.log(a / b) for a, b in zip(numerator, denominator, strict=True)], openings)
    if not medians:
        return found
    own = _openings([math.log(value) for value in denominator], openings) if once else []
    low, high = _over_openings(medians, confidence, own)
    return Ratio(found.median, min(found.low, low), max(found.high, high), found.pairs, found.confidence)


def median_ratio(
    new: Sequence[float],
    old: Sequence[float],
    confidence: float = 0.99,
    seed: int = 0,
    openings: tuple[int, int] = (1, 1),
) -> Ratio:
    """How many times slower the median of one series is than that of another, measured at another time.

    The interval is the percentile interval of a moving-block bootstrap of each series (Künsch 1989, "The jackknife
    and the bootstrap for general stationary observations"), in logarithms, widened for the number of blocks. Where
    a series has fewer than 30 samples, it is made of the ends of both medians' order-statistic intervals, each at
    half the risk (Bonferroni): wider, and for independent samples. Where both series hold several openings of an
    engine, the interval also covers what differs from opening to opening (Welch 1947, as in
    ``ratio_over_openings``). None covers what differs from one day to the next; short series that wander are
    covered less than they say.

    Args:
        new: Steady samples of the one, above 0, in the order of measurement.
        old: Of the other.
        confidence: Of the interval.
        seed: Of the resampling.
        openings: Of the one and of the other; with fewer than ``LEAST_OPENINGS`` they are not looked at.

    Returns:
        ``pairs`` is the number of samples of the shorter series. The confidence is ``None`` where that is too short
        for an interval of its median; then ``low`` and ``high`` are the extremes.

    Raises:
        ValueError: A series is empty or has a time that is not above 0.
    """
    a, b = np.asarray(new, np.float64), np.asarray(old, np.float64)
    pairs = min(len(a), len(b))
    if not pairs:
        raise ValueError("no samples to compare")
    if not min(a.min(), b.min()) > 0:
        raise ValueError(f"times of {min(a.min(), b.min())} have no ratio; expected times above 0")
    value = float(np.median(a) / np.median(b))
    if pairs < _FEWEST:
        ends = [median_interval(s, (1 + confidence) / 2) for s in (a.tolist(), b.tolist())]
        if ends[0] is None or ends[1] is None:
            return Ratio(value, float(a.min() / b.max()), float(a.max() / b.min()), pairs, None)
        return Ratio(value, ends[0][0] / ends[1][1], ends[0][1] / ends[1][0], pairs, confidence)
    generator = np.random.default_rng(seed)
    blocks = [_block(a), _block(b)]
    logs = [_log_medians(s, block, generator) for s, block in zip((a, b), blocks, strict=True)]
    ends = np.quantile(logs[0] - logs[1], [(1 - confidence) / 2, (1 + confidence) / 2]) - math.log(value)
    wider = _stretch([float(x.var()) for x in logs], [len(a) / blocks[0], len(b) / blocks[1]], confidence)
    low, high = (value * math.exp(wider * float(end)) for end in ends)
    parts = [_openings(np.log(x).tolist(), n) for x, n in zip((a, b), openings, strict=True)]
    if all(parts):
        beyond = _difference_over_openings(parts[0], parts[1], confidence)
        low, high = min(low, math.exp(beyond[0])), max(high, math.exp(beyond[1]))
    return Ratio(value, min(low, value), max(high, value), pairs, confidence)


def _difference_over_openings(
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


def _where(below: Callable[[float], bool]) -> float:
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
        low = _where(lambda share: at_most(share, count - 1) > confidence)
    if count < total:
        high = _where(lambda share: at_most(share, count) > 1 - confidence)
    return low, high
