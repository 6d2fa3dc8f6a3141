"""Times: series, runs, stages, cold starts, and what the machine felt meanwhile."""

from __future__ import annotations

from typing import Literal

import msgspec

from vsa_rt.bench.records.record import Record

Scenario = Literal["quick", "camera", "single-stream", "multi-stream", "offline", "server"]
Stage = Literal["decode", "resize", "copy-in", "compute", "copy-out", "post"]


class Percentile(Record, frozen=True, kw_only=True):
    """A percentile that the sample can carry, or how many samples it would take.

    Attributes:
        share: Such as 0.99.
        value: The order statistic at that share; ``None`` where the sample cannot bound it.
        upper: One-sided upper bound of the true percentile; ``None`` likewise.
        confidence: Of the bound, such as 0.95.
        needed: Samples from which on it can be bounded.
    """

    share: float
    value: float | None
    upper: float | None
    confidence: float
    needed: int


class Series(Record, frozen=True, kw_only=True):
    """Times in the order of measurement; nothing is trimmed.

    Attributes:
        samples: Every one, in milliseconds, warm-up included.
        warm_up: How many of the first belong to the warm-up; what follows describes the others.
        steady: Whether a steady state was found; without one ``warm_up`` is 0.
        drift: Relative change of the median from the first third to the last third.
        autocorrelation: Of each sample with the next; ``None`` where it cannot be computed. The bounds of
            percentiles take samples for independent.
        mean: Of the steady samples, in milliseconds.
        least: Their smallest.
        most: Their largest.
        percentiles: p50, p90, p99.
    """

    samples: list[float]
    warm_up: int
    steady: bool
    drift: float | None
    autocorrelation: float | None
    mean: float
    least: float
    most: float
    percentiles: list[Percentile]


class Resources(Record, frozen=True, kw_only=True):
    """What the machine gave and felt during a run; ``None`` where it does not tell.

    Attributes:
        rss_mib: Resident memory of this process at its end, in MiB (baselines included; a plan's own is in
            ``ColdStart``).
        device_mib: Memory of the GPU in use, in MiB.
        cores: Processor time of this process per wall time.
        other_cores: That of everybody else, on the processors that this process may use.
        stolen: Share of the processors' time that the hypervisor kept.
        pressure: Share of the time in which something waited for a processor.
        joules: Energy, of the sensors named in ``sources``.
        joules_per_image: The same per image.
        megahertz: Least, median and most of the clocks seen.
        celsius: Highest temperature.
        throttled: Whether the processor or GPU said that it slowed down.
        sources: Where each number comes from, and why the others are ``None``: key to words.
    """

    rss_mib: float | None
    device_mib: float | None
    cores: float | None
    other_cores: float | None
    stolen: float | None
    pressure: float | None
    joules: float | None
    joules_per_image: float | None
    megahertz: list[float] | None
    celsius: float | None
    throttled: bool | None
    sources: dict[str, str]


class Plan(Record, frozen=True, kw_only=True):
    """One way to run a bundle.

    Attributes:
        name: As the other records call it.
        bundle: The bundle's name.
        target: ``backend:device``.
        precision: As written in the graph.
        achieved: Share of the convolutions that ran in it; ``None`` where the backend does not tell.
        threads: For the engine.
        why: How the engine came to be this one.
        notes: What did not run as it should, such as batches without a CUDA graph.
    """

    name: str
    bundle: str
    target: str
    precision: str
    achieved: float | None
    threads: int
    why: str
    notes: list[str] = msgspec.field(default_factory=list)


class Run(Record, frozen=True, kw_only=True):
    """One scenario with one plan.

    Attributes:
        scenario: ``quick`` is a closed loop of this harness, ``camera`` its open loop with frames that are
            dropped, the others are MLPerf LoadGen's.
        plan: Its name.
        feed: ``tensors``: ready for the engine; ``images``: decoded frames or encoded files, to labels.
        batch: Images per query.
        settings: What the scenario was asked for.
        latency: Per query, from the time that it was scheduled; ``None`` for offline.
        images: How many were done.
        seconds: In how long.
        throughput: Images per second.
        dropped: Frames that were not taken; ``None`` but for the camera.
        valid: Whether the scenario's own conditions hold.
        reasons: Why not.
        loadgen: LoadGen's own figures by its own names; empty for scenarios of this harness.
        logs: Its log files, below the report's folder.
        resources: During the run.
    """

    scenario: Scenario
    plan: str
    feed: Literal["tensors", "images"]
    batch: int
    settings: dict[str, float | int | str | bool | None]
    latency: Series | None
    images: int
    seconds: float
    throughput: float | None
    dropped: int | None
    valid: bool
    reasons: list[str]
    loadgen: dict[str, float]
    logs: list[str]
    resources: Resources


class StageTime(Record, frozen=True, kw_only=True):
    """One stage of a call; ``note`` says why there is no series, or what is in it."""

    stage: Stage
    series: Series | None
    note: str


class Split(Record, frozen=True, kw_only=True):
    """Where a call's time goes, from encoded image to label.

    Attributes:
        plan: Its name.
        batch: Images per call; every stage is per call.
        stages: In the order of the data.
        whole: The same work by the runtime itself, which may overlap stages.
        images: How many different images took turns.
    """

    plan: str
    batch: int
    stages: list[StageTime]
    whole: Series
    images: int


class ColdStart(Record, frozen=True, kw_only=True):
    """A fresh process up to its first answer; a list has one entry per process.

    Attributes:
        plan: Its name.
        process_ms: From nothing to Python's first line with ``vsa_rt`` imported.
        load_ms: ``vsa_rt.load``.
        first_ms: The first call, which compiles for its batch size where that is late.
        second_ms: The second.
        capture_ms: Capture of the CUDA graph; ``None`` where there is none.
        peak_rss_mib: Largest resident memory of the process.
    """

    plan: str
    process_ms: list[float]
    load_ms: list[float]
    first_ms: list[float]
    second_ms: list[float]
    capture_ms: list[float] | None
    peak_rss_mib: list[float]
