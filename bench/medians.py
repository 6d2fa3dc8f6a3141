"""How two medians compare that were measured at different times: a block bootstrap."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.bench.intervals import Paired, median_interval
from vsa_rt.bench.openings import difference_over_openings, opening_medians
from vsa_rt.bench.steady import lag_one, ranks

Array = NDArray[Any]

#: Resamples of a bootstrap interval: at 99 % ten lie beyond each end.
_RESAMPLES = 2000
#: Samples from which on a bootstrap interval is given: below, blocks are too few.
_FEWEST = 30
#: Resampled values held at a time, 32 MB.
_CHUNK = 1 << 22


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


def median_ratio(
    new: Sequence[float],
    old: Sequence[float],
    confidence: float = 0.99,
    seed: int = 0,
    openings: tuple[int, int] = (1, 1),
) -> Paired:
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
            return Paired(value, float(a.min() / b.max()), float(a.max() / b.min()), pairs, None)
        return Paired(value, ends[0][0] / ends[1][1], ends[0][1] / ends[1][0], pairs, confidence)
    generator = np.random.default_rng(seed)
    blocks = [_block(a), _block(b)]
    logs = [_log_medians(s, block, generator) for s, block in zip((a, b), blocks, strict=True)]
    ends = np.quantile(logs[0] - logs[1], [(1 - confidence) / 2, (1 + confidence) / 2]) - math.log(value)
    wider = _stretch([float(x.var()) for x in logs], [len(a) / blocks[0], len(b) / blocks[1]], confidence)
    low, high = (value * math.exp(wider * float(end)) for end in ends)
    parts = [opening_medians(np.log(x).tolist(), n) for x, n in zip((a, b), openings, strict=True)]
    if all(parts):
        beyond = difference_over_openings(parts[0], parts[1], confidence)
        low, high = min(low, math.exp(beyond[0])), max(high, math.exp(beyond[1]))
    return Paired(value, min(low, value), max(high, value), pairs, confidence)
