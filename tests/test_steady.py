"""The steady state: warm-ups are found, drifts and steps are told, and noise is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.bench.steady import LEAST, lag_one, ranks, steady_state

Array = NDArray[Any]


def noise(seed: int, count: int, sigma: float = 0.03) -> Array:
    """Log-normal latencies around 5 ms."""
    drawn: Array = 5 * np.exp(sigma * np.random.default_rng(seed).standard_normal(count))
    return drawn


def outliers(seed: int, count: int) -> Array:
    """The same with one in a hundred ten times as long."""
    rare = np.random.default_rng([seed, 1]).random(count) < 0.01
    return noise(seed, count) * np.where(rare, 10, 1)


def alike(seed: int, count: int) -> Array:
    """The same with neighbours that resemble each other: AR(1) with 0.5."""
    steps = np.random.default_rng(seed).standard_normal(count)
    for i in range(1, count):
        steps[i] = 0.5 * steps[i - 1] + 0.75**0.5 * steps[i]
    drawn: Array = 5 * np.exp(0.03 * steps)
    return drawn


@pytest.mark.parametrize("count", [20, 100, 500, 2000])
@pytest.mark.parametrize("make", [noise, outliers])
def test_noise_is_steady_and_loses_nothing_in_97_of_100_series(
    make: Callable[[int, int], Array], count: int
) -> None:
    found = [steady_state(make(seed, count).tolist()) for seed in range(200)]
    assert sum(f.warm_up > 0 or not f.steady for f in found) <= 6


@pytest.mark.parametrize(("count", "allowed"), [(20, 10), (100, 6), (500, 6), (2000, 6)])
def test_neighbours_that_are_alike_are_no_drift(count: int, allowed: int) -> None:
    """Thirds of six samples say too little about how much alike they are: 7 of 200 were seen."""
    found = [steady_state(alike(seed, count).tolist()) for seed in range(200)]
    assert sum(f.warm_up > 0 or not f.steady for f in found) <= allowed


def test_heavy_tails_are_steady_and_nothing_is_trimmed() -> None:
    found = steady_state(outliers(3, 500).tolist())
    assert (found.warm_up, found.steady) == (0, True)
    assert found.drift == pytest.approx(0, abs=0.01)


def test_equal_times_are_steady() -> None:
    found = steady_state([5.0] * 100)
    assert (found.warm_up, found.steady, found.drift) == (0, True, 0.0)


@pytest.mark.parametrize("start", [3.0, 1.5, 0.5])
def test_the_end_of_a_decay_is_found(start: float) -> None:
    """Slow or, with a clock that is boosted at first, fast: after 50 samples an eighth of it is left."""
    decay = 1 + (start - 1) * np.exp(-np.arange(500) / 24)
    found = [steady_state((noise(seed, 500, 0.02) * decay).tolist()) for seed in range(20)]
    assert all(f.steady and 30 <= f.warm_up <= 150 for f in found)


def test_a_warm_up_with_an_edge_is_found_to_a_few_samples() -> None:
    slow = np.where(np.arange(500) < 50, 1.5, 1.0)
    found = [steady_state((noise(seed, 500) * slow).tolist()) for seed in range(20)]
    assert all(f.steady and 45 <= f.warm_up <= 70 for f in found)


def test_a_single_slow_first_call_stays() -> None:
    samples = noise(0, 200)
    samples[0] *= 50
    assert steady_state(samples.tolist()).warm_up == 0


def test_a_linear_drift_is_not_steady() -> None:
    """20 % over the series: two thirds of it, over the middle of the first third, lie between the outer thirds."""
    drift = 1 + 0.2 * np.arange(500) / 500
    for seed in range(20):
        found = steady_state((noise(seed, 500) * drift).tolist())
        assert (found.warm_up, found.steady) == (0, False)
        assert found.drift == pytest.approx(0.2 * 2 / 3 / (1 + 0.2 / 6), abs=0.02)


@pytest.mark.parametrize("share", [0.5, 0.6, 0.7])
def test_throttling_on_the_way_is_not_steady(share: float) -> None:
    step = np.where(np.arange(500) < share * 500, 1.0, 1.2)
    for seed in range(20):
        found = steady_state((noise(seed, 500) * step).tolist())
        assert (found.warm_up, found.steady) == (0, False)
        assert found.drift is not None
        assert found.drift > 0.15


def test_getting_faster_is_not_steady_either() -> None:
    found = steady_state((noise(0, 500) * (1 - 0.2 * np.arange(500) / 500)).tolist())
    assert not found.steady
    assert found.drift is not None
    assert found.drift < -0.1


def test_a_small_drift_is_told_and_passes() -> None:
    found = steady_state((noise(0, 1000, 0.01) * (1 + 0.03 * np.arange(1000) / 1000)).tolist())
    assert found.steady
    assert found.drift == pytest.approx(0.02, abs=0.004)


def test_a_series_that_only_drifts_has_no_warm_up() -> None:
    """Its first part differs from its second half, and so do the parts of what would be left."""
    drift = 1 + 0.06 * np.arange(1000) / 1000
    found = [steady_state((noise(seed, 1000) * drift).tolist()) for seed in range(50)]
    assert sum(f.warm_up > 0 for f in found) <= 5


@pytest.mark.parametrize("seed", range(5))
def test_never_more_than_two_fifths_are_cut(seed: int) -> None:
    long = np.where(np.arange(500) < 320, 2.0, 1.0)
    assert steady_state((noise(seed, 500) * long).tolist()).warm_up == 0
    short = np.where(np.arange(500) < 180, 2.0, 1.0)
    assert 180 <= steady_state((noise(seed, 500) * short).tolist()).warm_up <= 200


@pytest.mark.parametrize("count", [0, 1, LEAST - 1])
def test_too_few_samples_say_nothing(count: int) -> None:
    found = steady_state([5.0] * count)
    assert (found.warm_up, found.steady, found.drift) == (0, False, None)


def test_ranks_are_means_for_ties() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_the_correlation_of_neighbours() -> None:
    """Deviations -1.5, -0.5, 0.5, 1.5: products 0.75 - 0.25 + 0.75 over squares 5."""
    assert lag_one(np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(0.25)
    assert lag_one(np.array([1.0, -1.0] * 50)) == pytest.approx(-0.99)
    assert lag_one(alike(0, 5000)) == pytest.approx(0.5, abs=0.04)
    assert lag_one(np.array([1.0, 2.0])) is None
    assert lag_one(np.ones(9)) is None
