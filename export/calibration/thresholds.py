"""From a histogram to the largest magnitude that symmetric int8 holds: larger values are clipped to it.

A threshold T stands for the scale T / 127. It is 0 for a tensor that was zero throughout, which has no scale.
Exact zeros are left out of every method: each scale holds them exactly, and after a ReLU they are half of all values,
sometimes nearly all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vsa_rt.errors import UsageError
from vsa_rt.export.calibration.histogram import Histogram

#: From a histogram to a threshold.
Threshold = Callable[[Histogram], float]
#: Magnitudes of symmetric int8: -127 to 127.
LEVELS = 127
#: Of the magnitudes, the share in percent that ``percentile`` keeps unless told otherwise.
PERCENTILE = 99.99
#: Levels of the distribution that ``entropy`` compares with (Migacz 2017).
_ENTROPY_LEVELS = 128
#: ``mse`` looks at this many thresholds per octave over eleven octaves, as bins have, then around the best one.
_PER_OCTAVE, _OCTAVES, _AROUND = 8, 11, 33


def _without_zeros(histogram: Histogram) -> NDArray[np.float64]:
    """Counts of magnitudes above 0, up to the last bin that has one."""
    counts = histogram.counts.astype(np.float64)
    counts[0] -= histogram.zeros
    return counts[: int(np.flatnonzero(counts).max(initial=-1)) + 1]


def minmax(histogram: Histogram) -> float:
    """The largest magnitude: nothing is clipped."""
    return histogram.magnitude


def percentile(histogram: Histogram, percent: float = PERCENTILE) -> float:
    """The magnitude that this share of the magnitudes does not exceed.

    Args:
        histogram: Of the tensor.
        percent: Above 0, up to 100.

    Returns:
        The percentile, interpolated within its bin.
    """
    counts = _without_zeros(histogram)
    if not counts.size:
        return 0.0
    below = np.cumsum(counts)
    wanted = percent / 100 * below[-1]
    place = min(int(np.searchsorted(below, wanted)), counts.size - 1)
    inside = 1 - (below[place] - wanted) / counts[place]
    return min((place + float(inside)) * histogram.width, histogram.magnitude)


def entropy(histogram: Histogram) -> float:
    """The threshold whose 128-level version of the clipped distribution says most like it.

    As in S. Migacz, "8-bit Inference with TensorRT", GTC 2017: for each i from 128 on, P is the first i bins with all
    beyond added to the last of them, Q the first i bins alone in 128 levels, each spread again over those of its bins
    that P does not leave empty; the i of the least KL(P || Q) gives the threshold (i + 0.5) bins. Where the talk does
    not say: levels are as equal as whole bins allow; the last bin counts as not empty once it has what was clipped, and
    a last level of nothing else counts as one value (with none, no gap before an outlier could be clipped at); exact
    zeros are left out; of equal divergences the widest counts; and no threshold exceeds the largest magnitude.
    """
    counts = _without_zeros(histogram)
    if counts.size <= _ENTROPY_LEVELS:
        return histogram.magnitude
    sizes = np.arange(_ENTROPY_LEVELS, counts.size + 1)
    divergence = _divergence(counts, sizes)
    best = sizes[::-1][np.argmin(divergence[::-1])]
    return min((float(best) + 0.5) * histogram.width, histogram.magnitude)


def _divergence(counts: NDArray[np.float64], sizes: NDArray[np.intp]) -> NDArray[np.float64]:
    """KL(P || Q) in nats for each number of bins kept; infinite where none of them has anything.

    Q is constant over a level, and all else are sums over the first bins, so that cumulative sums give all of it.
    """
    kept = _sums(counts)
    filled = _sums((counts > 0).astype(np.float64))
    clipped = counts.sum() - kept[sizes]
    last = counts[sizes - 1]
    own = _sums(_x_log_x(counts))[sizes - 1] + _x_log_x(last + clipped)
    # Level l begins at the first whole bin at or after l / 128 of the kept ones.
    borders = -(-np.arange(_ENTROPY_LEVELS + 1) * sizes[:, None] // _ENTROPY_LEVELS)
    mass = np.diff(kept[borders], axis=1)
    bins = np.diff(filled[borders], axis=1)
    bins[:, -1] += (last == 0) & (clipped > 0)
    meant = mass.copy()
    meant[:, -1] += clipped
    mass[:, -1] += (mass[:, -1] == 0) & (clipped > 0)
    height = np.where(meant > 0, mass, 1.0) / np.maximum(bins, 1.0)
    total = counts.sum()
    divergence = (own - (meant * np.log(height)).sum(axis=1)) / total - np.log(total / mass.sum(axis=1))
    return np.where(kept[sizes] > 0, divergence, np.inf)


def _sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of the first 0, 1, 2, … values."""
    return np.concatenate([[0.0], np.cumsum(values)])


def _x_log_x(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values * np.log(np.where(values > 0, values, 1.0))


def mse(histogram: Histogram) -> float:
    """The threshold of the least squared error, of rounding to 255 levels and of clipping together.

    Values are taken as evenly spread within their bin, and the error is integrated exactly. (The same sum as in
    R. Banner et al. 2019, "Post training 4-bit quantization of convolutional networks for rapid-deployment",
    section 3.1, over the histogram instead of a fitted Gaussian or Laplacian.)
    """
    counts = _without_zeros(histogram)
    top = histogram.magnitude
    if not counts.size:
        return top
    edges = np.arange(counts.size + 1, dtype=np.float64) * histogram.width
    octaves = np.arange(_OCTAVES * _PER_OCTAVE + 1) / _PER_OCTAVE
    coarse = top * np.exp2(-octaves)
    place = int(np.argmin(_squared_error(counts, edges, coarse)))
    ends = coarse[max(0, place - 1)], coarse[min(place + 1, coarse.size - 1)]
    fine = np.linspace(*ends, _AROUND)
    return float(fine[np.argmin(_squared_error(counts, edges, fine))])


def _squared_error(
    counts: NDArray[np.float64], edges: NDArray[np.float64], thresholds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The sum of squared errors for each threshold.

    Between two levels the error's square integrates to step**3 / 12, and from a level to a share r of the step beyond
    it, at most half of one, to step**3 * r**3 / 3; beyond the threshold T, to (x - T)**3 / 3.
    """
    limit = thresholds[:, None]
    step = limit / LEVELS
    steps = np.minimum(edges, limit) / step
    whole = np.rint(steps)
    integral = step**3 * (whole / 12 + (steps - whole) ** 3 / 3)
    integral += np.maximum(edges - limit, 0) ** 3 / 3
    errors: NDArray[np.float64] = np.diff(integral, axis=1) @ (counts / np.diff(edges))
    return errors


#: The calibrators by name.
THRESHOLDS: dict[str, Threshold] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def threshold_of(method: str) -> Threshold:
    """The calibrator that a text names.

    Args:
        method: A name in ``THRESHOLDS``, or ``percentile:99.9``.

    Raises:
        UsageError: There is none of that name, or the percentage is none.
    """
    name, colon, text = method.partition(":")
    if name not in THRESHOLDS or (colon and name != "percentile"):
        raise UsageError(
            f"calibration method {method!r}: unknown; there are {', '.join(THRESHOLDS)}, and percentile:99.9 for another "
            f"share than {PERCENTILE} %"
        )
    if not colon:
        return THRESHOLDS[name]
    try:
        percent = float(text)
    except ValueError:
        percent = math.nan
    if not 0 < percent <= 100:
        raise UsageError(f"calibration method {method!r}: expected a percentage above 0, up to 100")
    return partial(percentile, percent=percent)
