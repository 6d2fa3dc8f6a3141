"""How far a plan is from what the machine could do: its layers, its graph's work, and the machine's ceilings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from numpy.typing import NDArray

from vsa_rt.bench.cost import Graph, owners, read_graph
from vsa_rt.bench.gpu_devices import on_gpu
from vsa_rt.bench.layers import profile
from vsa_rt.bench.limits import datasheet_limits, limits, paper_floors
from vsa_rt.bench.records.limits import Ceiling, Limits, Profile
from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Target
from vsa_rt.engines.backend import OpenOptions
from vsa_rt.engines.select import open_profiler
from vsa_rt.errors import EnvironmentUnusable, UsageError
from vsa_rt.pipeline.measuring.plans import OpenedPlan

#: Milliseconds of calls with counters, roughly: 3 to 20 calls.
_PROFILE_MS = 10_000


@dataclass(frozen=True)
class Distance:
    """A plan's layers and its distance to the limit, for one batch size.

    Attributes:
        profile: ``None`` where the backend keeps no counters here.
        why: Why it keeps none.
        limits: Without floors where no ceiling of its precision was measured, with the reason.
    """

    profile: Profile | None
    why: str
    limits: Limits


def distance(
    bundle: Bundle,
    opened: OpenedPlan,
    inputs: Mapping[str, NDArray[Any]],
    ceilings: Sequence[Ceiling],
    call_ms: float,
    progress: Callable[[str], None],
) -> Distance:
    """Profile a plan's layers and hold its time against the ceilings, or against its GPU's datasheet.

    Args:
        bundle: The plan's.
        opened: The plan.
        inputs: One batch of ready tensors.
        ceilings: Of its target; none of a GPU, where nothing measures them.
        call_ms: Median of a call without counters.
        progress: Told of every step.

    Raises:
        EnvironmentUnusable: onnx is not installed, which counts the graph's work.
    """
    batch = len(next(iter(inputs.values())))
    graph = read_graph(bundle.read(opened.engine.graph), batch)
    parts = owners(graph, bundle.manifest.taps)
    options = OpenOptions(max_batch=batch, threads=opened.plan.threads, first=batch)
    layers: Profile | None = None
    why = ""
    progress(f"profiling the layers of {opened.plan.name}, batch {batch}")
    try:
        profiler = open_profiler(bundle, opened.engine, options)
    except EnvironmentUnusable as error:
        why = str(error)
    else:
        calls = max(3, min(20, int(_PROFILE_MS / call_ms))) if call_ms > 0 else 20
        layers = profile(profiler, graph, parts, dict(inputs), opened.plan.name, calls)
    fp32 = _fp32(bundle, opened, graph, batch)
    if on_gpu(Target.parse(opened.plan.target)):
        found = datasheet_limits(
            opened.plan,
            batch,
            fp32,
            owners(fp32, bundle.manifest.taps),
            opened.engine.machine,
            opened.engine.plan,
            call_ms,
            layers,
        )
    else:
        found = limits(opened.plan, batch, graph, parts, ceilings, call_ms, layers)
    return Distance(layers, why, _with_paper(found, fp32))


def _fp32(bundle: Bundle, opened: OpenedPlan, graph: Graph, batch: int) -> Graph:
    """The bundle's FP32 graph; floors on paper are counted from it."""
    path = bundle.manifest.graphs[0].path
    return graph if path == opened.engine.graph else read_graph(bundle.read(path), batch)


def _with_paper(found: Limits, fp32: Graph) -> Limits:
    """The limits with the floors on paper, or with the reason why there are none."""
    try:
        return msgspec.structs.replace(found, paper=paper_floors(fp32))
    except UsageError as error:
        return msgspec.structs.replace(found, note=f"{found.note}; no floors of GPUs on paper: {error}")
