"""Intervals: bounds of percentiles as tables have them, coverage as it is claimed, and nothing from too little."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.bench.intervals import (
    difference,
    median_interval,
    percentile,
    series,
    share_bounds,
)
from vsa_rt.bench.medians import median_ratio

Array = NDArray[Any]


def counted(count: int) -> list[float]:
    """1 to ``count``: an order statistic is its own rank."""
    return [float(i) for i in range(1, count + 1)]


def exact_rank(count: int, share: float, confidence: float) -> int:
    """The bound's rank by whole binomial sums, the slow way."""
    total = 0.0
    for k in range(count + 1):
        total += math.comb(count, k) * share**k * (1 - share) ** (count - k)
        if total >= confidence:
            return k + 1
    raise AssertionError("the sum does not reach the confidence")


# Percentiles


@pytest.mark.parametrize(
    ("share", "confidence", "needed"),
    [
        (0.5, 0.95, 5),
        (0.9, 0.9, 22),
        (0.9, 0.95, 29),
        (0.9, 0.99, 44),
        (0.95, 0.9, 45),
        (0.95, 0.95, 59),
        (0.95, 0.99, 90),
        (0.99, 0.9, 230),
        (0.99, 0.95, 299),
        (0.99, 0.99, 459),
    ],
)
def test_the_number_of_samples_needed_is_the_published_one(
    share: float, confidence: float, needed: int
) -> None:
    """Wilks 1941; Hahn and Meeker 1991: smallest sample whose largest value bounds that share."""
    enough = percentile(counted(needed), share, confidence)
    assert (enough.needed, enough.upper) == (needed, needed)
    short = percentile(counted(needed - 1), share, confidence)
    assert (short.needed, short.value, short.upper) == (needed, None, None)


@pytest.mark.parametrize(
    ("count", "rank"), [(59, 59), (93, 92), (124, 122), (153, 150), (181, 177), (208, 203)]
)
def test_ranks_of_the_bound_of_p95_are_the_published_ones(count: int, rank: int) -> None:
    """59, 93, 124, 153, 181, 208: the 95/95 sample sizes for the first to sixth largest (Wilks 1942)."""
    assert percentile(counted(count), 0.95).upper == rank
    previous = percentile(counted(count - 1), 0.95).upper
    assert previous is None if count == 59 else previous == rank


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("count", [5, 29, 100, 299, 700])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_bound_is_the_smallest_that_holds(share: float, count: int, confidence: float) -> None:
    found = percentile(counted(count), share, confidence)
    if count < found.needed:
        assert found.upper is None
    else:
        assert found.upper == exact_rank(count, share, confidence)


@pytest.mark.parametrize(
    ("count", "share", "rank"),
    [(300, 0.99, 297), (301, 0.99, 298), (10, 0.5, 5), (11, 0.5, 6), (100, 0.9, 90)],
)
def test_the_value_is_the_first_rank_that_reaches_the_share(count: int, share: float, rank: int) -> None:
    assert percentile(counted(count)[::-1], share).value == rank


@pytest.mark.parametrize("count", [299, 500])
def test_the_bound_of_p99_covers_as_it_says(count: int) -> None:
    """Of an exponential distribution, whose p99 is ln 100; three standard errors of 2,000 draws."""
    drawn = np.random.default_rng(count).exponential(size=(2000, count))
    uppers = np.array([percentile(row, 0.99).upper for row in drawn.tolist()])
    covered = float((uppers >= math.log(100)).mean())
    assert covered >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 2000)
    # Not more careful than the ranks force it to be: the next lower one would hold too rarely.
    low = np.sort(drawn, axis=1)[:, exact_rank(count, 0.99, 0.95) - 2]
    assert float((low >= math.log(100)).mean()) < 0.95


def test_a_hundred_thousand_samples_are_no_hardship() -> None:
    """The rank lies z standard deviations above the middle: normal approximation, to within two ranks."""
    found = percentile(counted(100_000), 0.99)
    assert found.upper == pytest.approx(99_000 + 1.645 * math.sqrt(990), abs=2)
    assert percentile(counted(100_000), 0.5).value == 50_000


def test_the_distribution_is_that_of_an_independent_library() -> None:
    stats = pytest.importorskip("scipy.stats")
    for count, share in ((299, 0.99), (5000, 0.9), (100_000, 0.99)):
        first = int(stats.binom.ppf(0.95, count, share))
        assert percentile(counted(count), share).upper == first + 1


def test_a_percentile_needs_samples_and_a_share() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 0.5)
    for share, confidence in ((0.0, 0.95), (1.0, 0.95), (0.5, 1.0), (99, 0.95)):
        with pytest.raises(ValueError, match="strictly between"):
            percentile([1.0], share, confidence)


# Medians


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_the_interval_of_a_median_is_that_of_whole_binomial_coefficients(confidence: float) -> None:
    for count in range(1, 150):
        found = median_interval(counted(count), confidence)
        covered = [
            1 - 2 * sum(math.comb(count, k) for k in range(outer + 1)) / 2**count
            for outer in range(count // 2)
        ]
        enough = [outer for outer, share in enumerate(covered) if share >= confidence]
        if not enough:
            assert found is None
        else:
            assert found is not None
            assert found[:2] == (enough[-1] + 1, count - enough[-1])
            assert found[2] == pytest.approx(covered[enough[-1]])


def test_the_interval_of_many_samples() -> None:
    """Ranks n/2 -+ z sqrt(n)/2, to within one."""
    found = median_interval(counted(100_000), 0.95)
    assert found is not None
    assert found[0] == pytest.approx(50_000 - 1.96 * math.sqrt(100_000) / 2, abs=2)
    assert found[0] + found[1] == 100_001
    assert 0.95 <= found[2] < 0.951


def test_a_difference_is_of_pairs_of_the_same_round() -> None:
    drift = np.linspace(0, 50, 41)
    found = difference((drift + 5 + 0.01 * np.arange(41)).tolist(), (drift + 3).tolist())
    assert found.median == pytest.approx(2.2)
    assert 2.0 < found.low < 2.2 < found.high < 2.4
    assert found.pairs == 41
    assert found.confidence is not None
    assert 0.99 <= found.confidence < 1


def test_too_few_differences_claim_no_confidence() -> None:
    found = difference([3.0, 5.0, 4.0], [1.0, 1.0, 1.0])
    assert (found.median, found.low, found.high, found.confidence) == (3.0, 2.0, 4.0, None)
    with pytest.raises(ValueError, match="no samples"):
        difference([], [])
    with pytest.raises(ValueError, match="longer"):
        difference([1.0], [1.0, 2.0])


# Series


def test_a_series_keeps_everything_and_describes_what_follows_the_warm_up() -> None:
    noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(500))
    samples = (noise * np.where(np.arange(500) < 50, 15.0, 5.0)).tolist()
    found = series(samples)
    rest = samples[found.warm_up :]
    assert found.samples == samples
    assert 50 <= found.warm_up <= 60
    assert found.steady
    assert found.mean == pytest.approx(sum(rest) / len(rest))
    assert (found.least, found.most) == (min(rest), max(rest))
    assert found.most < 6
    assert [p.share for p in found.percentiles] == [0.5, 0.9, 0.99]
    assert found.percentiles == [percentile(rest, p) for p in (0.5, 0.9, 0.99)]
    assert found.autocorrelation == pytest.approx(0, abs=0.15)


def test_a_short_series_has_no_percentiles_that_it_cannot_carry() -> None:
    found = series([5.0, 6.0, 7.0, 5.5, 6.5, 5.2])
    assert [p.value is None for p in found.percentiles] == [False, True, True]
    assert [p.needed for p in found.percentiles] == [5, 29, 299]
    assert (found.steady, found.drift) == (False, None)
    with pytest.raises(ValueError, match="no samples"):
        series([])


# Two series of different times


def wandering(seed: int, count: int, correlation: float) -> list[float]:
    """Log-normal times around 5 ms, AR(1)."""
    steps = np.random.default_rng(seed).standard_normal(count)
    for i in range(1, count):
        steps[i] = correlation * steps[i - 1] + math.sqrt(1 - correlation**2) * steps[i]
    return [float(v) for v in 5 * np.exp(0.05 * steps)]


@pytest.mark.parametrize(
    ("count", "correlation", "least"), [(20, 0.0, 0.99), (200, 0.0, 0.99), (200, 0.5, 0.96)]
)
def test_the_interval_of_a_ratio_of_medians_covers(count: int, correlation: float, least: float) -> None:
    """The true ratio is 1.07; three standard errors of 200 draws. Single samples in place of blocks cover 0.88 of the
    correlated ones."""
    hits = 0
    for seed in range(200):
        new = [1.07 * v for v in wandering(2 * seed, count, correlation)]
        found = median_ratio(new, wandering(2 * seed + 1, count, correlation))
        assert found.low <= found.median <= found.high
        hits += found.low <= 1.07 <= found.high
    assert hits / 200 >= least - 3 * math.sqrt(least * (1 - least) / 200)


def test_the_interval_is_narrow_enough_to_be_of_use() -> None:
    """Of 500 samples of 5 % noise: 1.253 sigma / sqrt(n) for each median, times 2 z sqrt(2), is 2 %."""
    found = median_ratio(wandering(0, 500, 0), wandering(1, 500, 0))
    assert 0.01 < found.high - found.low < 0.03
    wider = median_ratio(wandering(0, 500, 0.8), wandering(1, 500, 0.8))
    assert wider.high - wider.low > 1.5 * (found.high - found.low)


def test_the_resampling_is_the_same_every_time() -> None:
    new, old = wandering(0, 100, 0.3), wandering(1, 100, 0.3)
    assert median_ratio(new, old) == median_ratio(new, old)
    assert median_ratio(new, old, seed=1) != median_ratio(new, old)
    assert median_ratio(new, old).median == pytest.approx(np.median(new) / np.median(old))


def test_series_of_different_lengths_are_compared() -> None:
    found = median_ratio(wandering(0, 300, 0), wandering(1, 70, 0))
    assert (found.pairs, found.confidence) == (70, 0.99)


def test_equal_times_have_an_interval_of_no_width() -> None:
    found = median_ratio([6.0] * 50, [5.0] * 50)
    assert [found.low, found.median, found.high] == pytest.approx([1.2, 1.2, 1.2])


def test_few_samples_use_order_statistics_and_fewer_claim_nothing() -> None:
    """At 99 % each median gets 99.5 %, for which nine samples are needed: 1 - 2 / 2^9."""
    found = median_ratio([2 * v for v in counted(9)], counted(9))
    assert (found.low, found.high, found.confidence) == (2 / 9, 18, 0.99)
    assert median_ratio(counted(8), counted(8)).confidence is None
    short = median_ratio([6.0, 7.0], counted(40))
    assert (short.low, short.high, short.confidence) == (6 / 40, 7, None)


def test_nothing_and_zero_have_no_ratio() -> None:
    with pytest.raises(ValueError, match="no samples"):
        median_ratio([], [1.0])
    with pytest.raises(ValueError, match="above 0"):
        median_ratio([0.0] * 9, [1.0] * 9)


# Shares


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(0, 10, 0.0, 0.2589), (1, 10, 0.0051, 0.3942), (5, 10, 0.2224, 0.7776), (10, 10, 0.7411, 1.0)],
)
def test_bounds_of_a_share_are_the_published_ones(count: int, total: int, low: float, high: float) -> None:
    """One-sided 95 %, as in tables of the two-sided 90 % interval (Clopper and Pearson 1934)."""
    assert list(share_bounds(count, total)) == pytest.approx([low, high], abs=5e-5)


def test_no_event_among_many_is_bounded_by_the_rule_of_three() -> None:
    low, high = share_bounds(0, 1000)
    assert low == 0
    assert high == pytest.approx(1 - 0.05 ** (1 / 1000), rel=1e-9)


def test_bounds_of_a_share_are_those_of_an_independent_library() -> None:
    stats = pytest.importorskip("scipy.stats")
    for count, total in ((7, 704), (20, 704), (500, 50_000)):
        low, high = share_bounds(count, total)
        assert low == pytest.approx(stats.beta.ppf(0.05, count, total - count + 1))
        assert high == pytest.approx(stats.beta.ppf(0.95, count + 1, total - count))


@pytest.mark.parametrize(("count", "total"), [(2, 1), (-1, 5), (0, 0)])
def test_no_share_has_no_bounds(count: int, total: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        share_bounds(count, total)
