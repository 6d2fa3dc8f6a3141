"""Latency of engines while a bundle is built: interleaved calls on photographs, few but enough to rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.bench import clock

#: Rounds of an interleaved measurement: at most, and at least however long they take.
ROUNDS, FEWEST_ROUNDS = 30, 3

Tensors = Mapping[str, NDArray[Any]]


def repeated(inputs: Tensors, batch: int) -> dict[str, NDArray[Any]]:
    """Rows of these inputs, as often as they are needed for a batch."""
    return {n: np.ascontiguousarray(np.resize(a, (batch, *a.shape[1:]))) for n, a in inputs.items()}


def interleaved(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, NDArray[np.float64]]:
    """Times of some calls, one of each after the other in every round.

    Args:
        calls: By name; each is run twice before.
        seconds: What all may take together, so far as ``FEWEST_ROUNDS`` allow.

    Returns:
        Name to milliseconds, one per round; the same place in each is the same round.
    """
    for call in calls.values():
        call()
    # Each sample follows an untimed call of its own.
    once = 2 * sum(clock.single(call) for call in calls.values())
    rounds = max(FEWEST_ROUNDS, min(ROUNDS, int(seconds / once)))
    return {
        name: np.asarray(samples, np.float64)
        for name, samples in clock.measure(calls, rounds, warm_up=0).items()
    }


def median(samples: NDArray[np.float64]) -> float:
    """Median in ms, to the microsecond."""
    return round(float(np.median(samples)), 3)


def times_as_fast(base: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """How many times as fast the other is: the median over the rounds' pairs."""
    return round(float(np.median(base / other)), 3)
