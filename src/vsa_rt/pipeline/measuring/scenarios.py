"""Running a plan through scenarios: what a query is made of, for tensors and for images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from vsa_rt.bench.loadgen import LoadgenScenario, LoadgenSettings, require_loadgen, run_loadgen
from vsa_rt.bench.records.timing import Run, Scenario
from vsa_rt.bench.scenario import Subject as Load
from vsa_rt.bench.scenario import camera, quick
from vsa_rt.bench.workload import Workload
from vsa_rt.errors import ItemError, UsageError
from vsa_rt.pipeline.measuring.plans import OpenedPlan
from vsa_rt.runtime.fused import Runtime

Feed = Literal["tensors", "images"]
#: Scenarios of MLPerf LoadGen, whose logs are kept.
LOADGEN: frozenset[Scenario] = frozenset({"single-stream", "multi-stream", "offline", "server"})


@dataclass(frozen=True)
class ScenarioOptions:
    """How plans are put under load.

    Attributes:
        scenarios: In the order in which they run.
        feed: ``tensors``, ready for the engine, or ``images``, encoded, to labels. A camera always gives decoded
            frames.
        seconds: How long each runs at least.
        fps: Frames per second of the camera.
        loadgen: Settings of LoadGen's scenarios.
        folder: The report's folder, for LoadGen's logs; ``None`` where none is kept.
    """

    scenarios: Sequence[Scenario] = ("quick",)
    feed: Feed = "tensors"
    seconds: float = 5.0
    fps: float = 30.0
    loadgen: LoadgenSettings = field(default_factory=LoadgenSettings)
    folder: Path | None = None


def _whole(runtime: Runtime, images: Sequence[Any]) -> None:
    """Images to labels, or to features where the bundle has none; an image that fails ends the measurement."""
    results = runtime(images) if runtime.labels else runtime.features(images).errors
    for result in results:
        if isinstance(result, ItemError):
            raise result


def _images(workload: Workload, scenario: Scenario) -> list[Any]:
    if not workload.images:
        raise UsageError(
            f"{scenario} on images: there are only the bundle's golden tensors; a bundle that takes images needs "
            "photographs: --data"
        )
    return workload.frame_sources if scenario == "camera" else workload.sources


def _by_number(plan: OpenedPlan, workload: Workload, feed: Feed) -> Callable[[Sequence[int]], object]:
    """One engine call on the images of these numbers, as LoadGen asks for them."""
    runtime = plan.runtime
    if feed == "images":
        sources = _images(workload, "quick")
        return lambda numbers: _whole(runtime, [sources[n] for n in numbers])
    singles = [
        {name: rows[n : n + 1] for name, rows in workload.rows.items()} for n in range(len(workload.names))
    ]

    def call(numbers: Sequence[int]) -> object:
        if len(numbers) == 1:
            return runtime.infer(singles[numbers[0]])
        return runtime.infer({name: rows[list(numbers)] for name, rows in workload.rows.items()})

    return call


def _load(plan: OpenedPlan, workload: Workload, batch: int, scenario: Scenario, feed: Feed) -> Load:
    """The queries of a loop of this harness, whose inputs take turns."""
    runtime, name = plan.runtime, plan.plan.name
    if feed == "tensors":
        batches = workload.tensors(batch)
        return Load(name, feed, batch, lambda turn: runtime.infer(batches[turn]), len(batches))
    images = _images(workload, scenario)

    def call(turn: int) -> None:
        _whole(runtime, [images[(turn * batch + row) % len(images)] for row in range(batch)])

    return Load(name, feed, batch, call, len(images))


def _loadgen(
    plan: OpenedPlan, workload: Workload, batch: int, scenario: LoadgenScenario, options: ScenarioOptions
) -> Run:
    folder = options.folder or Path()
    slug = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "_" for c in plan.plan.name)[-64:]
    # Server alone has a rate that somebody asked for; offline's is what the engine makes of it.
    settings = options.loadgen if scenario == "server" else replace(options.loadgen, target_qps=None)
    return run_loadgen(
        scenario,
        _by_number(plan, workload, options.feed),
        plan.plan.name,
        options.feed,
        len(workload.names),
        settings,
        folder / "loadgen" / f"{slug}-batch{batch}-{scenario}",
        relative_to=folder,
        batch=batch,
    )


def run_scenario(
    plan: OpenedPlan, workload: Workload, batch: int, scenario: Scenario, options: ScenarioOptions
) -> Run:
    """Put one plan under one load.

    Args:
        plan: Opened; nobody else may use it meanwhile.
        workload: Inputs of its bundle.
        batch: Images per query; the most that are taken together in server and offline.
        scenario: Which load.
        options: How.

    Raises:
        UsageError: The scenario needs photographs, and there are none.
        ItemError: An image cannot be processed.
        EnvironmentUnusable: LoadGen is not installed.
    """
    plan.runtime.prepare(batch)
    if scenario in LOADGEN:
        return _loadgen(plan, workload, batch, cast("LoadgenScenario", scenario), options)
    feed: Feed = "images" if scenario == "camera" else options.feed
    load = _load(plan, workload, batch, scenario, feed)
    if scenario == "camera":
        return camera(load, options.fps, options.seconds)
    return quick(load, options.seconds)


def batches_of(scenario: Scenario, batches: Sequence[int]) -> list[int]:
    """The batch sizes that a scenario is run with.

    A camera and a single stream give one image at a time; server and multi-stream take as many together as wait, up
    to the largest.
    """
    if scenario in ("camera", "single-stream"):
        return [1]
    return [max(batches)] if scenario in ("server", "multi-stream") else list(batches)


def check_scenarios(options: ScenarioOptions) -> None:
    """Refuse what could not be measured, before anything is.

    Raises:
        UsageError: A scenario lacks a folder for its logs or the rate of its queries.
        EnvironmentUnusable: LoadGen is not installed.
    """
    loadgen = [s for s in options.scenarios if s in LOADGEN]
    if loadgen and options.folder is None:
        raise UsageError(
            f"--scenario {loadgen[0]}: LoadGen's settings and logs are kept; name a folder with -o"
        )
    if "server" in loadgen and options.loadgen.target_qps is None:
        raise UsageError("--scenario server: name the queries per second that shall arrive with --qps")
    if loadgen:
        require_loadgen()


def check_feeds(options: ScenarioOptions, workloads: Iterable[Workload]) -> None:
    """Refuse scenarios on images where there are none.

    Raises:
        UsageError: A bundle is fed golden tensors alone.
    """
    wanted = [s for s in options.scenarios if s == "camera" or options.feed == "images"]
    for workload in workloads:
        for scenario in wanted:
            _images(workload, scenario)
