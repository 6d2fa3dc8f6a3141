"""The quick loop and the camera: what their records say about calls of a known length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from vsa_rt.bench import clock
from vsa_rt.bench.records.timing import Run
from vsa_rt.bench.scenario import Subject, camera, quick
from vsa_rt.errors import UsageError


def subject(call: Callable[[int], object], **changed: Any) -> Subject:
    given: dict[str, Any] = {"plan": "fake", "feed": "tensors", "batch": 1, "call": call, "inputs": 4}
    return Subject(**{**given, **changed})


def survives_its_file(run: Run) -> bool:
    return msgspec.json.decode(msgspec.json.encode(run), type=Run) == run


def test_a_quick_run_times_every_query_and_rotates_the_inputs() -> None:
    seen: list[int] = []

    def call(index: int) -> None:
        seen.append(index)
        clock.spin(3)

    run = quick(subject(call, batch=8, feed="images"), seconds=0.3, at_least=9, limit_seconds=60.0)
    assert run.latency is not None
    count = len(run.latency.samples)
    assert seen == [i % 4 for i in range(count)]
    assert count >= 9
    assert all(sample >= 3 for sample in run.latency.samples)
    assert run.images == 8 * count
    assert run.seconds >= 0.3
    assert run.throughput == pytest.approx(run.images / run.seconds)
    assert (run.scenario, run.plan, run.feed, run.batch) == ("quick", "fake", "images", 8)
    assert (run.valid, run.reasons, run.dropped, run.loadgen, run.logs) == (True, [], None, {}, [])
    assert run.settings == {"seconds": 0.3, "at_least": 9, "limit_seconds": 60.0, "inputs": 4}
    assert survives_its_file(run)


def test_a_quick_run_that_is_cut_off_says_so_and_is_invalid() -> None:
    run = quick(subject(lambda _: clock.spin(20)), seconds=0.05, at_least=10_000)
    assert run.latency is not None
    count = len(run.latency.samples)
    assert 1 <= count <= 11  # no call begins after four times 50 ms, and none is shorter than 20
    assert not run.valid
    assert run.reasons == [f"{count} of 10000 queries done within the limit of 0.2 s; give it more time"]


def test_what_a_call_raises_comes_out_of_the_run() -> None:
    def call(index: int) -> None:
        if index == 3:
            raise ZeroDivisionError("planted")

    measures: list[Callable[[Subject], Run]] = [lambda s: quick(s, 0.05), lambda s: camera(s, 200, 0.05)]
    for measure in measures:
        with pytest.raises(ZeroDivisionError, match="planted"):
            measure(subject(call))


def test_a_camera_faster_than_the_call_drops_frames_and_counts_latency_from_their_arrival() -> None:
    """Two calls of 12 ms span more than three frames of 5 ms, whatever else the machine does."""
    seen: list[int] = []

    def call(index: int) -> None:
        seen.append(index)
        clock.spin(12)

    run = camera(subject(call), fps=200, seconds=0.3)
    assert run.latency is not None
    assert run.settings["frames"] == 60
    assert run.images == len(seen) == len(run.latency.samples)
    assert run.dropped == 60 - run.images
    assert run.dropped >= 30
    # A frame waits up to a period for the consumer: no call is shorter than its work, and some are seen waiting.
    assert all(sample >= 12 for sample in run.latency.samples)
    assert max(run.latency.samples) > 12.5
    assert not [reason for reason in run.reasons if "drop" in reason]
    assert survives_its_file(run)


def _paced(late: float, dropped: int) -> clock.Paced:
    return clock.Paced([5.0] * 40, list(range(40)), dropped, [0.01] * 38 + [late] * 2, 1.3)


def test_dropped_frames_are_a_finding_but_a_late_harness_makes_a_run_invalid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planted: two of forty calls that the harness began 7 ms late."""
    monkeypatch.setattr(clock, "paced", lambda *_: _paced(late=0.4, dropped=9))
    run = camera(subject(lambda _: None), fps=30)
    assert (run.valid, run.reasons, run.dropped) == (True, [], 9)
    monkeypatch.setattr(clock, "paced", lambda *_: _paced(late=7.0, dropped=0))
    run = camera(subject(lambda _: None), fps=30)
    assert not run.valid
    assert "7.0 ms late" in run.reasons[0]
    assert run.dropped == 0


def test_the_camera_passes_its_rate_and_rotates_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, int]] = []
    seen: list[int] = []

    def paced(call: Callable[[int], object], period_ms: float, frames: int) -> clock.Paced:
        asked.append((period_ms, frames))
        for frame in (0, 1, 3, 6):
            call(frame)
        return clock.Paced([5.0] * 4, [0, 1, 3, 6], 3, [0.0] * 4, 0.25)

    monkeypatch.setattr(clock, "paced", paced)
    run = camera(subject(seen.append), fps=25, seconds=2)
    assert asked == [(40.0, 50)]
    assert seen == [0, 1, 3, 2]
    assert (run.images, run.throughput) == (4, 16.0)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda s: camera(subject(lambda _: None, batch=8), 30), "expected batch 1"),
        (lambda s: camera(s, 0), "expected positive"),
        (lambda s: camera(s, 30, float("nan")), "expected positive"),
        (lambda s: quick(s, 0.0), "positive time"),
        (lambda s: quick(s, 1.0, at_least=0), "at least one query"),
        (lambda s: quick(s, 1.0, limit_seconds=0.5), "no shorter"),
        (lambda s: subject(lambda _: None, inputs=0), "at least one of both"),
    ],
)
def test_what_cannot_be_measured_is_refused(wrong: Callable[[Subject], object], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        wrong(subject(lambda _: None))
