"""The only place that times: calls of several candidates, interleaved in one run, raw samples kept."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Call = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """How many times slower one candidate is than another, pair by pair.

    Attributes:
        median: Of the pairs' ratios.
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


def measure(calls: Mapping[str, Call], rounds: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Time every candidate once per round, the order rotating so that none profits from its place.

    Each timed call follows an untimed one of the same candidate: worker threads of the candidate before may
    still be spinning, and its data fills the caches (docs/performance.md).

    Args:
        calls: Name to a call that returns when its work is done.
        rounds: Samples per candidate.
        warm_up: Unmeasured calls of each before the first round.

    Returns:
        Name to ``rounds`` samples in milliseconds, in order of measurement; nothing is trimmed.
    """
    names = list(calls)
    for name in names:
        for _ in range(warm_up):
            calls[name]()
    samples: dict[str, list[float]] = {name: [] for name in names}
    if not names:
        return samples
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            calls[name]()
            start = time.perf_counter_ns()
            calls[name]()
            samples[name].append((time.perf_counter_ns() - start) / 1e6)
    return samples


def median_ms(samples: Sequence[float]) -> float:
    """Median of a series."""
    return statistics.median(samples)


def _interval_ranks(count: int, confidence: float) -> tuple[int, int, float] | None:
    """Order statistics around the median: ranks (from 0) and their exact binomial coverage."""
    for outer in reversed(range(count // 2)):
        # P(outer < successes < count - outer) of a fair coin: the median lies between the two ranks.
        tail = sum(math.comb(count, k) for k in range(outer + 1)) / 2**count
        if 1 - 2 * tail >= confidence:
            return outer, count - 1 - outer, 1 - 2 * tail
    return None


def ratio(numerator: Sequence[float], denominator: Sequence[float], confidence: float = 0.95) -> Ratio:
    """Compare two series of one ``measure``, round by round.

    Args:
        numerator: Samples of the one.
        denominator: Samples of the other, as many.
        confidence: Coverage of the interval (distribution-free, from order statistics).

    Raises:
        ValueError: The series are empty or differ in length.
    """
    pairs = sorted(a / b for a, b in zip(numerator, denominator, strict=True))
    if not pairs:
        raise ValueError("no samples to compare")
    ranks = _interval_ranks(len(pairs), confidence)
    low, high, covered = ranks if ranks else (0, len(pairs) - 1, None)
    return Ratio(statistics.median(pairs), pairs[low], pairs[high], len(pairs), covered)


def throughput(call: Callable[[], int], seconds: float) -> float:
    """Items per second of a call that says how many it did, repeated for at least ``seconds``."""
    start, done = time.perf_counter_ns(), 0
    while (elapsed := (time.perf_counter_ns() - start) / 1e9) < seconds:
        done += call()
    return done / elapsed


def single(call: Call) -> float:
    """Seconds of one call: for whole processes, whose first run is the one that counts."""
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e9


def core_ms(call: Call) -> float:
    """Milliseconds that this thread spent on a core during one call: what sharing the core does not change."""
    start = time.thread_time_ns()
    call()
    return (time.thread_time_ns() - start) / 1e6
