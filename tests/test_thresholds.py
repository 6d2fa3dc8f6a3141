"""Thresholds of symmetric int8 from histograms: by hand, by brute force on samples, and against other code."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.errors import UsageError
from vsa_rt.export.calibration.histogram import BINS, Histogram
from vsa_rt.export.calibration.thresholds import THRESHOLDS, threshold_of

Samples = NDArray[np.float64]
#: Values of a distribution by a seeded generator and their number.
Draw = Callable[[np.random.Generator, int], Samples]
DISTRIBUTIONS: dict[str, Draw] = {
    "gaussian": lambda rng, count: rng.normal(size=count),
    "laplacian": lambda rng, count: rng.laplace(size=count),
    "half-normal": lambda rng, count: np.abs(rng.normal(size=count)),
    "relu": lambda rng, count: np.maximum(rng.normal(size=count), 0),
    "outlier": lambda rng, count: np.append(rng.normal(size=count - 1), 200.0),
}


def histogram(values: Any) -> Histogram:
    made = Histogram()
    made.add(np.asarray(values, np.float32))
    return made


def drawn(name: str, count: int = 400_000) -> Samples:
    return DISTRIBUTIONS[name](np.random.default_rng(5), count)


def squared_error(values: Samples, threshold: float) -> float:
    """What symmetric int8 really does to values."""
    scale = threshold / 127
    held = np.clip(np.rint(values / scale), -127, 127) * scale
    return float(np.mean((values - held) ** 2))


def test_minmax_is_the_largest_magnitude_of_either_sign() -> None:
    assert threshold_of("minmax")(histogram([-3.25, 1.0, 2.0])) == 3.25
    assert threshold_of("minmax")(histogram([-1.0, 7.5])) == 7.5


def test_a_percentile_of_evenly_spread_values_is_where_it_must_be() -> None:
    # The bins' middles in [0, 1): the share p of them lies below p.
    values = (np.arange(BINS) + 0.5) / BINS
    for percent in (10.0, 50.0, 99.0):
        found = threshold_of(f"percentile:{percent}")(histogram(values))
        assert found == pytest.approx(percent / 100, abs=1e-9)


def test_a_percentile_leaves_out_exact_zeros() -> None:
    values = (np.arange(BINS) + 0.5) / BINS
    sparse = np.concatenate([values, np.zeros(99 * BINS)])
    assert threshold_of("percentile:50")(histogram(sparse)) == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("percent", [99.0, 99.9, 99.99])
def test_a_percentile_is_numpys_within_a_bin(name: str, percent: float) -> None:
    values = drawn(name).astype(np.float32)
    made = histogram(values)
    exact = np.percentile(np.abs(values[values != 0]), percent)
    assert threshold_of(f"percentile:{percent}")(made) == pytest.approx(float(exact), abs=made.width)


def test_the_whole_is_the_hundredth_percentile() -> None:
    assert threshold_of("percentile:100")(histogram([0.5, 1.0, 3.0])) == 3.0


def test_without_a_number_the_percentile_is_9999() -> None:
    made = histogram(drawn("gaussian"))
    assert threshold_of("percentile")(made) == threshold_of("percentile:99.99")(made)


def test_mse_weighs_rounding_against_clipping_as_by_hand() -> None:
    # Spread evenly over [0, 1): the first bin to the last, 1/2048 wide. Clipping at T costs (1 - T)**3 / 3, rounding
    # T * (T / 127)**2 / 12; the derivative of the sum is -(1 - T)**2 + T**2 / (4 * 127**2), zero where
    # 1 - T = T / 254, at T = 254 / 255.
    values = (np.arange(BINS * 8) + 0.5) / (BINS * 8)
    assert threshold_of("mse")(histogram(values)) == pytest.approx(254 / 255, rel=2e-3)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_mse_is_what_brute_force_over_the_samples_finds(name: str) -> None:
    values = drawn(name)
    top = float(np.abs(values).max())
    best = min(squared_error(values, top * share) for share in np.linspace(0.005, 1, 400))
    found = threshold_of("mse")(histogram(values))
    assert squared_error(values, found) <= 1.01 * best


def test_mse_clips_where_an_outlier_would_cost_all_others_their_precision() -> None:
    # Kept, one value in four million costs each of the others a step of 20 / 127.
    values = np.concatenate([drawn("gaussian", 4_000_000), [20.0]])
    made = histogram(values)
    assert threshold_of("minmax")(made) == 20.0
    assert threshold_of("mse")(made) < 10


def divergence_by_the_talk(counts: list[float], levels: int, size: int) -> float:
    """KL(P || Q) in plain loops: Migacz 2017, with the readings that ``entropy`` names."""
    p = counts[:size]
    clipped = sum(counts[size:])
    borders = [math.ceil(level * size / levels) for level in range(levels + 1)]
    full = [*p[:-1], p[-1] + clipped]
    q = [0.0] * size
    for start, end in itertools.pairwise(borders):
        filled = sum(1 for i in range(start, end) if full[i] > 0)
        mass = sum(p[start:end])
        if end == size and clipped and not mass:
            mass = 1.0
        for i in range(start, end):
            if full[i] > 0:
                q[i] = mass / filled
    if not sum(p):
        return math.inf
    total, kept = sum(full), sum(q)
    return sum(a / total * math.log((a / total) / (b / kept)) for a, b in zip(full, q, strict=True) if a > 0)


def test_entropy_finds_the_least_divergence_of_the_talk() -> None:
    rng = np.random.default_rng(2)
    # Few values, so that bins are empty and levels uneven; a bin is 1 wide and no value lies on a border.
    values = np.floor(np.minimum(np.abs(rng.laplace(scale=90, size=900)), 2046)) + 0.5
    made = histogram(np.append(values, [2047.5, 0.0, 0.0]))
    assert made.width == 1
    counts = made.counts.astype(float).tolist()
    counts[0] -= 2
    sizes = range(128, BINS + 1)
    by_hand = [divergence_by_the_talk(counts, 128, size) for size in sizes]
    least = min(by_hand)
    wanted = max(s for s, d in zip(sizes, by_hand, strict=True) if d <= least + 1e-12)
    assert threshold_of("entropy")(made) == min(wanted + 0.5, 2047.5)


def test_entropy_does_not_look_at_exact_zeros() -> None:
    values = drawn("half-normal")
    with_zeros = np.concatenate([values, np.zeros(10 * values.size)])
    assert threshold_of("entropy")(histogram(values)) == threshold_of("entropy")(histogram(with_zeros))


def test_entropy_keeps_all_where_there_is_nothing_to_clip() -> None:
    assert threshold_of("entropy")(histogram((np.arange(BINS) + 0.5) / BINS)) == pytest.approx(1, abs=2e-3)


def test_entropy_clips_an_outlier() -> None:
    made = histogram(drawn("outlier"))
    assert threshold_of("entropy")(made) < 0.2 * threshold_of("minmax")(made)


@pytest.mark.parametrize("name", ["gaussian", "laplacian"])
def test_entropy_is_near_onnx_runtimes_at_equal_levels(name: str) -> None:
    """ORT's counts both signs at once, cuts shares of counts to whole numbers, leaves what does not divide to the
    last level, and smooths empty bins: the same idea, not the same number."""
    reason = "ONNX Runtime's calibration is what is compared with"
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate", reason=reason)
    values = drawn(name)
    top = float(np.abs(values).max())
    bins = 1023
    counts, edges = np.histogram(values, bins, range=(-top, top))
    theirs = calibrate.HistogramCollector("entropy", True, bins, 255, 99.99, "same").get_entropy_threshold(
        (counts, edges.astype(np.float32), np.float32(-top), np.float32(top)), 255
    )
    ours = threshold_of("entropy")(histogram(values))
    assert ours == pytest.approx(float(theirs[1]), rel=0.25)


@pytest.mark.parametrize("method", THRESHOLDS)
def test_a_tensor_of_zeros_has_no_threshold(method: str) -> None:
    assert threshold_of(method)(histogram(np.zeros(100))) == 0


@pytest.mark.parametrize("method", THRESHOLDS)
@pytest.mark.parametrize("value", [-2.0, 1.5, 3e-5, 1e30])
def test_a_constant_tensor_keeps_its_value(method: str, value: float) -> None:
    found = threshold_of(method)(histogram(np.full(100, value)))
    assert found == pytest.approx(abs(value), rel=1e-3)


@pytest.mark.parametrize("method", THRESHOLDS)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_no_threshold_exceeds_the_largest_magnitude_nor_depends_on_the_unit(method: str, name: str) -> None:
    values = drawn(name, 20_000)
    found = threshold_of(method)(histogram(values))
    assert 0 < found <= np.float32(np.abs(values).max())
    assert threshold_of(method)(histogram(values * 1024)) == pytest.approx(1024 * found, rel=1e-9)


@pytest.mark.parametrize("method", ["median", "minmax:3", "percentile99", "", "mse:"])
def test_an_unknown_method_is_refused_with_the_known_ones(method: str) -> None:
    with pytest.raises(UsageError, match="minmax, percentile, entropy, mse"):
        threshold_of(method)


@pytest.mark.parametrize("percent", ["0", "-1", "100.1", "nan", "inf", "", "many"])
def test_a_percentage_that_is_none_is_refused(percent: str) -> None:
    with pytest.raises(UsageError, match="percentage above 0, up to 100"):
        threshold_of(f"percentile:{percent}")
