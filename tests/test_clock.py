"""The clock: candidates take turns, and intervals cover what they say."""

from __future__ import annotations

import itertools
import math
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from numpy.typing import NDArray

from vsa_rt.bench import clock
from vsa_rt.bench.intervals import ratio
from vsa_rt.bench.parity import TOLERANCES
from vsa_rt.contracts import Precision

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Reseal = Callable[..., None]
Array = NDArray[Any]
FP32, BF16 = TOLERANCES[Precision.FP32], TOLERANCES[Precision.BF16]


# The clock


def test_candidates_take_turns_and_the_order_rotates() -> None:
    log: list[str] = []
    calls = {name: (lambda name=name: log.append(name)) for name in "abc"}
    samples = clock.measure(calls, rounds=4, warm_up=2)
    assert "".join(log) == "aabbcc" + "aabbcc" + "bbccaa" + "ccaabb" + "aabbcc"
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4, "c": 4}
    assert all(value >= 0 for values in samples.values() for value in values)


@pytest.mark.parametrize(
    ("count", "low", "high", "coverage"),
    [(6, 1, 6, 0.96875), (10, 2, 9, 0.978515625), (20, 6, 15, 0.9586105346679688), (15, 4, 12, 0.96484375)],
)
def test_the_interval_of_a_ratio_is_of_order_statistics(
    count: int, low: int, high: int, coverage: float
) -> None:
    """Ranks (from 1) and exact coverages as tables of the sign test have them."""
    series = [float(i) for i in range(1, count + 1)]
    found = ratio(series, [1.0] * count)
    assert (found.low, found.high, found.pairs) == (low, high, count)
    assert found.confidence == pytest.approx(coverage)
    assert found.median == pytest.approx((count + 1) / 2)
    inside = sum(math.comb(count, k) for k in range(low, high)) / 2**count
    assert found.confidence == pytest.approx(inside)


@pytest.mark.parametrize("count", [7, 12, 31, 101])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_interval_is_the_narrowest_that_covers(count: int, confidence: float) -> None:
    found = ratio([float(i) for i in range(1, count + 1)], [1.0] * count, confidence)
    assert found.confidence is not None
    assert found.confidence >= confidence
    narrower = sum(math.comb(count, k) for k in range(int(found.low) + 1, int(found.high) - 1)) / 2**count
    assert narrower < confidence


def test_too_few_pairs_claim_no_confidence() -> None:
    found = ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert (found.low, found.high, found.confidence) == (1.0, 5.0, None)
    assert ratio([3.0], [2.0]).confidence is None


def test_a_ratio_is_of_pairs_of_the_same_round() -> None:
    assert ratio([2.0, 40.0, 6.0], [1.0, 20.0, 3.0]).median == 2.0
    with pytest.raises(ValueError, match="no samples"):
        ratio([], [])
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0], [])


# Loops. Virtual time: no load of the machine can make these fail.


class VirtualTime:
    """Stands in for the time module: a reading takes 1 us, and a sleep overshoots by 3 % (or as planted)."""

    def __init__(self, overshoot: float = 1.03) -> None:
        self.now = 0
        self.slept: list[float] = []
        self.overshoot = overshoot

    def perf_counter_ns(self) -> int:
        self.now += 1_000
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += round(seconds * self.overshoot * 1e9)

    def work(self, ms: float) -> None:
        self.now += round(ms * 1e6)


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    time = VirtualTime()
    monkeypatch.setattr(clock, "time", time)
    return time


def test_a_loop_passes_the_running_number_and_keeps_every_sample(virtual: VirtualTime) -> None:
    seen: list[int] = []

    def call(index: int) -> None:
        seen.append(index)
        virtual.work(100 if index == 3 else 5)

    found = clock.loop(call, seconds=0.2, at_least=5)
    assert seen == list(range(len(found.samples_ms)))
    assert found.samples_ms[3] == pytest.approx(100, abs=0.01)
    assert found.samples_ms[0] == pytest.approx(5, abs=0.01)
    assert sum(found.samples_ms) / 1e3 == pytest.approx(found.seconds, rel=0.01)
    assert 0.2 <= found.seconds < 0.206


def test_a_loop_ends_when_both_the_time_and_the_count_are_reached(virtual: VirtualTime) -> None:
    def call(_: int) -> None:
        virtual.work(5)

    assert len(clock.loop(call, 0.1, at_least=30).samples_ms) == 30
    assert len(clock.loop(call, 0.1, at_least=3).samples_ms) == 20
    assert len(clock.loop(call, 0.1, at_least=3, at_most=7).samples_ms) == 7
    assert len(clock.loop(call, 0.0, at_least=2, limit_seconds=1.0).samples_ms) == 2


def test_a_loop_stops_at_its_limit_although_calls_are_missing(virtual: VirtualTime) -> None:
    def call(_: int) -> None:
        virtual.work(50)

    assert len(clock.loop(call, 0.1, at_least=1000).samples_ms) == 8  # four times the seconds
    assert len(clock.loop(call, 0.1, at_least=1000, limit_seconds=0.1).samples_ms) == 2
    assert len(clock.loop(call, 0.0, at_least=1000).samples_ms) == 1


@pytest.mark.parametrize(
    "bounds",
    [
        {"seconds": 1.0, "at_least": 0},
        {"seconds": 1.0, "at_least": 5, "at_most": 4},
        {"seconds": -1.0, "at_least": 1},
        {"seconds": 1.0, "at_least": 1, "limit_seconds": 0.5},
    ],
)
def test_a_loop_refuses_bounds_that_contradict_each_other(bounds: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected 1 <= at_least"):
        clock.loop(lambda _: None, **bounds)


def test_the_loop_itself_takes_less_than_a_hundredth_of_a_call_of_five_milliseconds() -> None:
    """On the real clock; the fastest of 2000 iterations, so that a busy machine cannot fail it."""
    starts: list[int] = []
    stopwatch = clock.Stopwatch()
    clock.loop(
        lambda _: starts.append(round(1e6 * stopwatch.total())), 0.0, at_least=2000, limit_seconds=60.0
    )
    assert min(b - a for a, b in itertools.pairwise(starts)) < 0.01 * 5e6


def test_spinning_lasts_as_long_as_asked(virtual: VirtualTime) -> None:
    before = virtual.now
    clock.spin(2.5)
    assert 2_500_000 <= virtual.now - before <= 2_503_000


def test_laps_are_counted_from_the_one_before(virtual: VirtualTime) -> None:
    stopwatch = clock.Stopwatch()
    laps = []
    for ms in (1, 20, 3):
        virtual.work(ms)
        laps.append(stopwatch.lap())
    assert laps == pytest.approx([1, 20, 3], abs=0.01)
    assert stopwatch.total() == pytest.approx(24, abs=0.01)


def test_a_consumer_faster_than_the_frames_takes_every_one_on_time(virtual: VirtualTime) -> None:
    found = clock.paced(lambda _: virtual.work(5), period_ms=33.0, frames=20)
    assert (found.taken, found.dropped) == (list(range(20)), 0)
    assert found.samples_ms == pytest.approx([5.0] * 20, abs=0.02)
    assert max(found.late_ms) < 0.02  # although every sleep overshoots
    assert virtual.slept
    assert found.seconds == pytest.approx(19 * 0.033 + 0.005, abs=1e-4)


def test_a_consumer_slower_than_the_frames_takes_the_newest_and_drops_the_others(
    virtual: VirtualTime,
) -> None:
    """25 ms per call, a frame every 10 ms: free at 25, 50, 75, ... for frames 2, 5, 7, ..."""
    found = clock.paced(lambda _: virtual.work(25), period_ms=10.0, frames=11)
    assert found.taken == [0, 2, 5, 7, 10]
    assert found.dropped == 6
    # From the scheduled arrival: 25, then 50 - 20, 75 - 50, 100 - 70, 125 - 100.
    assert found.samples_ms == pytest.approx([25, 30, 25, 30, 25], abs=0.05)
    assert max(found.late_ms) < 0.05


def test_one_slow_call_delays_the_frame_behind_it_and_the_wait_is_seen(virtual: VirtualTime) -> None:
    found = clock.paced(lambda n: virtual.work(14 if n == 2 else 2), period_ms=10.0, frames=5)
    assert found.taken == [0, 1, 2, 3, 4]
    assert found.samples_ms == pytest.approx([2, 2, 14, 6, 2], abs=0.05)


def test_a_machine_that_wakes_the_harness_late_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planted: sleeps of twice the length."""
    time = VirtualTime(overshoot=2.0)
    monkeypatch.setattr(clock, "time", time)
    found = clock.paced(lambda _: time.work(1), period_ms=40.0, frames=10)
    assert max(found.late_ms) > 10
    assert all(late <= sample for late, sample in zip(found.late_ms, found.samples_ms, strict=True))


@pytest.mark.parametrize(("period", "frames"), [(0.0, 5), (-1.0, 5), (10.0, 0)])
def test_frames_need_a_period_and_a_number(period: float, frames: int) -> None:
    with pytest.raises(ValueError, match="expected positive"):
        clock.paced(lambda _: None, period, frames)
