"""The scenarios of this harness: a quick closed loop, and a camera whose frames do not wait."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from vsa_rt.bench import clock
from vsa_rt.bench.intervals import series
from vsa_rt.bench.records.timing import Run, Scenario
from vsa_rt.bench.resources import Watched, watch
from vsa_rt.errors import UsageError

Settings = dict[str, float | int | str | bool | None]
#: Calls of a quick run at least: 59 independent samples bound p95 with 95 % confidence (0.95^59 < 0.05), so that p50
#: and p90, for which 5 and 29 are enough, stay bounded after a warm-up has been set aside.
AT_LEAST = 59
#: A camera that the harness woke later than this, at p99 of the frames, did not keep its own schedule.
LATE_MS = 1.0


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        plan: Its name in the report.
        feed: ``tensors``: ready for the engine; ``images``: decoded frames or encoded files, to labels.
        batch: Images per query.
        call: Runs one query on an input, given by its number below ``inputs``; returns when the query is done.
        inputs: Number of different inputs, which take turns.
    """

    plan: str
    feed: Literal["tensors", "images"]
    batch: int
    call: Callable[[int], object]
    inputs: int

    def __post_init__(self) -> None:
        if self.batch < 1 or self.inputs < 1:
            raise UsageError(
                f"{self.plan}: batch {self.batch} of {self.inputs} inputs; expected at least one of both"
            )

    def turn(self, index: int) -> object:
        """Run the query whose turn it is at a running number."""
        return self.call(index % self.inputs)


def quick(
    subject: Subject, seconds: float = 5.0, at_least: int = AT_LEAST, limit_seconds: float | None = None
) -> Run:
    """A closed loop: the next query starts when the one before it is done.

    Args:
        subject: What is measured.
        seconds: How long at least.
        at_least: Queries at least.
        limit_seconds: Ends the run although ``at_least`` is not reached, which makes it invalid; four times
            ``seconds`` if not given.

    Raises:
        UsageError: The bounds contradict each other.
    """
    limit = 4 * seconds if limit_seconds is None else limit_seconds
    if at_least < 1 or not 0 < seconds <= limit:
        raise UsageError(
            f"quick: {at_least} queries, {seconds} s, limit {limit} s; expected at least one query, a positive "
            "time and a limit that is no shorter"
        )
    with watch() as watched:
        found = clock.loop(subject.turn, seconds, at_least, limit_seconds=limit)
    reasons = []
    if (count := len(found.samples_ms)) < at_least:
        reasons.append(
            f"{count} of {at_least} queries done within the limit of {limit:g} s; give it more time"
        )
    settings: Settings = {"seconds": seconds, "at_least": at_least, "limit_seconds": limit}
    return _run("quick", subject, found, watched, settings, reasons)


def _run(
    scenario: Scenario,
    subject: Subject,
    found: clock.Loop | clock.Paced,
    watched: Watched,
    settings: Settings,
    reasons: list[str],
) -> Run:
    """The record of a loop of this harness."""
    images = len(found.samples_ms) * subject.batch
    return Run(
        scenario=scenario,
        plan=subject.plan,
        feed=subject.feed,
        batch=subject.batch,
        settings={**settings, "inputs": subject.inputs},
        latency=series(found.samples_ms),
        images=images,
        seconds=found.seconds,
        throughput=images / found.seconds,
        dropped=found.dropped if isinstance(found, clock.Paced) else None,
        valid=not reasons,
        reasons=reasons,
        loadgen={},
        logs=[],
        resources=watched.result(images=images),
    )


def _p99(values: Sequence[float]) -> float:
    """The smallest value that at least 99 % of the values do not exceed."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def camera(subject: Subject, fps: float, seconds: float = 5.0) -> Run:
    """An open loop: frames arrive at a fixed rate, and one that the consumer did not take in time is dropped.

    Latency counts from a frame's scheduled arrival. Dropped frames and long latencies are what the run found, and
    do not make it invalid. It is invalid if the harness did not keep its own schedule: if calls began more than
    ``LATE_MS`` after both the frame and the consumer were ready, at p99 of the frames that were taken. While the
    consumer is idle the harness spins for one to two milliseconds before each frame, which ``resources`` include.

    Args:
        subject: What is measured, of batch 1.
        fps: Frames per second.
        seconds: How long frames arrive.

    Raises:
        UsageError: A batch beyond 1, or no positive rate or time.
    """
    if subject.batch != 1:
        raise UsageError(
            f"camera: batch {subject.batch}; a camera gives one frame at a time: expected batch 1"
        )
    if not (0 < fps < math.inf and 0 < seconds < math.inf):
        raise UsageError(f"camera: {fps} frames per second for {seconds} s; expected positive numbers")
    frames = max(1, round(fps * seconds))
    with watch() as watched:
        found = clock.paced(subject.turn, 1e3 / fps, frames)
    reasons = []
    if (late := _p99(found.late_ms)) > LATE_MS:
        reasons.append(
            f"the harness began calls {late:.1f} ms late (p99; expected at most {LATE_MS:g} ms): free a core for it"
        )
    settings: Settings = {"fps": fps, "seconds": seconds, "frames": frames, "late_p99_ms": late}
    return _run("camera", subject, found, watched, settings, reasons)
