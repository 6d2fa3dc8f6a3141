"""Where a series of latencies stops warming up, and whether it is steady from there on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: Samples under which nothing is said about a steady state.
LEAST = 20
#: Samples per batch of the truncation rule (MSER-5: White 1997; White, Cobb and Spratt 2000).
_BATCH = 5
#: Largest share that can be a warm-up. The rule looks at half; an end close to that is none, as in White (1997).
_LONGEST = 0.4
#: Level at which samples of the warm-up differ from the second half. The rule chose them because they differ, so
#: it is stricter than usual.
_WARM_UP_LEVEL = 0.001
#: A warm-up that changes the median by less is none: clocks and caches are not that constant.
_WARM_UP_CHANGE = 0.01
#: Level at which the last third differs from the first, and the change of its median that makes that matter.
_DRIFT_LEVEL = 0.01
_DRIFT_CHANGE = 0.05


@dataclass(frozen=True)
class Steady:
    """What was found.

    Attributes:
        warm_up: How many of the first samples belong to the warm-up, at most 40 %; 0 where none was found, or no
            steady state.
        steady: Whether what is left keeps its level. False also where the samples are too few to tell; then
            ``drift`` is ``None``.
        drift: Relative change of the median from the first third to the last third of what is left: 0.05 is 5 %
            slower. Without a steady state, of what was judged.
    """

    warm_up: int
    steady: bool
    drift: float | None


def ranks(values: Array) -> Array:
    """Ranks from 1, the mean rank for ties."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle: Array = np.cumsum(counts) - (counts - 1) / 2
    return middle[places.reshape(-1)]


def lag_one(values: Array) -> float | None:
    """Correlation of each value with the next; ``None`` for fewer than three values or none that differ."""
    centred = values - values.mean() if len(values) else values
    power = float((centred * centred).sum())
    if len(values) < 3 or power <= 0:
        return None
    return float((centred[:-1] * centred[1:]).sum()) / power


def _differ(first: Array, second: Array) -> float:
    """Two-sided level at which both differ: Mann-Whitney, normal approximation, ties (Conover 1999, section 5.1).

    Neighbouring latencies resemble each other, which the test does not know. Positive correlation counts as fewer
    samples: n (1 - r) / (1 + r), as for the mean of an AR(1) process, with r that of the ranks within each part.
    """
    n, m = len(first), len(second)
    order = ranks(np.concatenate([first, second]))
    spread = float(((order - (n + m + 1) / 2) ** 2).sum()) * n * m / ((n + m) * (n + m - 1))
    if spread <= 0:
        return 1.0
    alike = ((lag_one(order[:n]) or 0.0) * n + (lag_one(order[n:]) or 0.0) * m) / (n + m)
    r = min(0.99, max(0.0, alike))
    z = (float(order[:n].sum()) - n * (n + m + 1) / 2) / math.sqrt(spread * (1 + r) / (1 - r))
    return math.erfc(abs(z) / math.sqrt(2))


def _truncation(samples: Array) -> int:
    """Samples that the truncation rule cuts, up to half; where a series only drifts, about half.

    MSER-5 cuts where the standard error of the remaining batches' mean is least. Here a batch counts with the rank
    of its median instead of its mean: the means of heavy-tailed latencies follow the outliers.
    """
    batches = len(samples) // _BATCH
    medians = np.median(samples[: batches * _BATCH].reshape(batches, _BATCH), axis=1)
    order = ranks(medians)
    left = np.arange(batches, 0, -1)
    sums = np.cumsum(order[::-1])[::-1]
    squares = np.cumsum(order[::-1] ** 2)[::-1]
    error = (squares - sums**2 / left) / left**2
    return int(np.argmin(error[: batches // 2 + 1])) * _BATCH


def _change(before: Array, after: Array) -> float | None:
    """Relative change of the median; ``None`` where it was not above 0."""
    first = float(np.median(before))
    return float(np.median(after)) / first - 1 if first > 0 else None


def _thirds(samples: Array) -> tuple[Array, Array]:
    third = len(samples) // 3
    return samples[:third], samples[-third:]


def _warm_up(samples: Array) -> int:
    """Samples before the steady state; 0 where no end was found or the difference says nothing."""
    cut = _truncation(samples)
    if not 0 < cut <= _LONGEST * len(samples):
        return 0
    head, half = samples[:cut], samples[len(samples) // 2 :]
    change, drift = _change(head, half), _change(*_thirds(samples[cut:]))
    if change is None or drift is None or abs(change) <= _WARM_UP_CHANGE or abs(drift) > abs(change) / 2:
        return 0
    return cut if _differ(head, half) < _WARM_UP_LEVEL else 0


def steady_state(samples: Sequence[float]) -> Steady:
    """Find the end of the warm-up, and say whether the rest is steady.

    The end is that of MSER-5 (White 1997, "An effective truncation heuristic for bias reduction in simulation
    output") on the ranks of batch medians. It is taken only if what it cuts differs from the second half of the
    series (rank test at 0.1 %, and 1 % of the median) by more than twice what the rest itself drifts; a series that
    only drifts has no warm-up. The rest is not steady if its last third differs from its first (rank test at 1 %,
    and 5 % of the median). A single slow call is an outlier to these tests and stays, also the first one.

    Args:
        samples: Milliseconds, in the order of measurement.
    """
    values = np.asarray(samples, np.float64)
    if len(values) < LEAST:
        return Steady(warm_up=0, steady=False, drift=None)
    cut = _warm_up(values)
    first, last = _thirds(values[cut:])
    drift = _change(first, last)
    if drift is not None and abs(drift) > _DRIFT_CHANGE and _differ(first, last) < _DRIFT_LEVEL:
        return Steady(warm_up=0, steady=False, drift=drift)
    return Steady(warm_up=cut, steady=True, drift=drift)
