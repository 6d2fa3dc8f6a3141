"""The only place that times: candidates in turns, closed and open loops, stages. Raw samples are kept."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Call = Callable[[], object]

#: A sleep ends this much before the moment that is waited for; the rest is spun. Sleeps of 5 ms were seen to
#: overshoot by 3 % (p99 11 %).
_SPIN_NS = 1_000_000


@dataclass(frozen=True)
class Loop:
    """A closed loop: each call began when the one before it had ended.

    Attributes:
        samples_ms: Every call, in order; nothing is trimmed.
        seconds: From the first call's start to the last one's end.
    """

    samples_ms: list[float]
    seconds: float


@dataclass(frozen=True)
class Paced:
    """An open loop: frames arrived by the clock, whether or not the consumer was free.

    Attributes:
        samples_ms: Of each frame that was taken, from its scheduled arrival to its completion.
        taken: Their numbers; the others were dropped.
        dropped: Frames that a newer one replaced before the consumer was free.
        late_ms: Of each frame that was taken, how long after both its arrival and the completion before it its call
            began: what the harness itself adds.
        seconds: From the first frame's scheduled arrival to the last completion.
    """

    samples_ms: list[float]
    taken: list[int]
    dropped: int
    late_ms: list[float]
    seconds: float


class Stopwatch:
    """Running from its creation on; for stages within a call."""

    __slots__ = ("_last", "_start")

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter_ns()

    def lap(self) -> float:
        """Milliseconds since the lap before, or since the creation."""
        before, self._last = self._last, time.perf_counter_ns()
        return (self._last - before) / 1e6

    def total(self) -> float:
        """Milliseconds since the creation; laps go on as they were."""
        return (time.perf_counter_ns() - self._start) / 1e6


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


def spin(ms: float) -> None:
    """Keep this thread's core busy for a known time: a call whose latency is known before it is measured."""
    end = time.perf_counter_ns() + round(ms * 1e6)
    while time.perf_counter_ns() < end:
        pass


def loop(
    call: Callable[[int], object],
    seconds: float,
    at_least: int,
    at_most: int | None = None,
    limit_seconds: float | None = None,
) -> Loop:
    """Call again and again, each call when the one before it has ended, and keep every time.

    Args:
        call: Gets the running number, from 0, so that inputs can take turns; returns when its work is done.
        seconds: How long at least.
        at_least: Samples at least. The loop ends when both are reached.
        at_most: Samples at most; they end the loop earlier.
        limit_seconds: Ends the loop although ``at_least`` is not reached, which the caller must look at; four
            times ``seconds`` if not given. A call that has begun is waited for.

    Raises:
        ValueError: No sample is asked for, or the bounds contradict each other.
    """
    limit_seconds = 4 * seconds if limit_seconds is None else limit_seconds
    if at_least < 1 or (at_most is not None and at_most < at_least) or not 0 <= seconds <= limit_seconds:
        raise ValueError(
            f"at_least={at_least}, at_most={at_most}, seconds={seconds}, limit_seconds={limit_seconds}: expected "
            "1 <= at_least <= at_most and 0 <= seconds <= limit_seconds"
        )
    # Between two timed calls stand an append and a few comparisons of local integers, nothing else.
    now = time.perf_counter_ns
    taken: list[int] = []
    keep = taken.append
    most = math.inf if at_most is None else at_most
    index = 0
    start = end = now()
    enough, limit = start + round(seconds * 1e9), start + round(limit_seconds * 1e9)
    while index == 0 or (index < most and (end < enough or (index < at_least and end < limit))):
        begin = now()
        call(index)
        end = now()
        keep(end - begin)
        index += 1
    return Loop([value / 1e6 for value in taken], (end - start) / 1e9)


def _wait_until(moment: int) -> None:
    """Sleep while that is safe, then spin: sleeps overshoot."""
    now = time.perf_counter_ns
    while (left := moment - now()) > 2 * _SPIN_NS:
        time.sleep(0.9 * (left - _SPIN_NS) / 1e9)
    while now() < moment:
        pass


def paced(call: Callable[[int], object], period_ms: float, frames: int) -> Paced:
    """Frames arrive at a fixed rate; a free consumer takes the newest one or waits for the next, as at a camera.

    The queue holds one frame: one that arrives while the consumer is busy replaces the one that waits. A frame's
    latency counts from its scheduled arrival, so that waiting is seen (Tene, "How NOT to measure latency":
    coordinated omission).

    Args:
        call: Gets the frame's number, from 0; returns when its work is done.
        period_ms: Between two arrivals.
        frames: How many arrive. The last one is always taken.

    Raises:
        ValueError: The period or the number of frames is not positive.
    """
    period = round(period_ms * 1e6)
    if period < 1 or frames < 1:
        raise ValueError(f"period_ms={period_ms}, frames={frames}: expected positive numbers")
    now = time.perf_counter_ns
    samples: list[float] = []
    late: list[float] = []
    taken: list[int] = []
    start = end = now() + period
    newest = -1
    while newest < frames - 1:
        _wait_until(start + (newest + 1) * period)
        newest = min(frames - 1, (now() - start) // period)
        arrival = start + newest * period
        begin = now()
        call(newest)
        free, end = end, now()
        taken.append(newest)
        late.append((begin - max(arrival, free)) / 1e6)
        samples.append((end - arrival) / 1e6)
    return Paced(samples, taken, frames - len(taken), late, (end - start) / 1e9)
