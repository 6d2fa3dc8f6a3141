"""Parity of a bundle against its reference: over a folder of photographs, or over its own golden tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vsa_rt.bench.parity import Comparison, Parity
from vsa_rt.budget import Budget
from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Precision, Resample, Target
from vsa_rt.dataset import Photograph, read_dataset
from vsa_rt.doctor import usable_cores
from vsa_rt.engines.backend import OpenOptions
from vsa_rt.engines.select import open_session
from vsa_rt.errors import BundleError, EnvironmentUnusable, ItemError, UsageError
from vsa_rt.golden import read_golden, read_labels
from vsa_rt.manifest import EngineRecord, Manifest
from vsa_rt.pipeline.export import Progress, silent
from vsa_rt.pipeline.gate import (
    Judged,
    Reference,
    Run,
    compare_batch,
    compare_sizes,
    comparison_of,
    decides,
    judge,
)
from vsa_rt.pipeline.images import PhotographFeed, PreparedBatch, as_photographs, batch_of
from vsa_rt.pipeline.reference import find_reference


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes:
        reference: ``torch``, ``onnx`` or ``golden``.
        why: Why the reference is not torch; empty if it is.
        parities: One per stage: the graph, then every engine that can run here.
        refused: Engine folder to the reason why it was not checked.
        rejected: Photographs that could not be read.
        random_weights: Whether any of the bundle's weights are random.
        decides: Whether the labels mean something: they do not with a random head.
        stand_ins: Photographs without files of their ready tensors, which got stand-ins.
    """

    reference: str
    why: str
    parities: list[Parity]
    refused: dict[str, str]
    rejected: list[ItemError]
    random_weights: bool
    decides: bool
    stand_ins: int = 0

    @property
    def passed(self) -> bool:
        """Whether something was checked and everything held."""
        return bool(self.parities) and all(p.passed for p in self.parities)


@dataclass(frozen=True)
class CheckOptions:
    """What to check.

    Attributes:
        target: Only engines of this target.
        precision: Only engines of this precision.
        resample: How the host resizes.
        weights: Where checkpoints moved.
        progress: Told of every step.
        folders: Only these engines, by their folders; all by default.
        threads: Of each engine; all cores by default.
    """

    target: Target | None = None
    precision: Precision | None = None
    resample: Resample | None = None
    weights: dict[str, Path] | None = None
    progress: Progress = silent
    folders: Sequence[str] | None = None
    threads: int | None = None


@dataclass(frozen=True)
class _Stage:
    name: str
    precision: Precision
    run: Run
    close: Callable[[], None] = lambda: None
    plan: Mapping[str, Precision] = field(default_factory=dict)

    def comparison(
        self, reference: Reference, manifest: Manifest, resample: Resample = Resample.EXACT
    ) -> Comparison:
        """A fresh comparison, under the bundle's budget where the stage is lowered."""
        lowered = self.precision is not Precision.FP32
        budget = (manifest.budget or Budget()) if lowered else None
        return comparison_of(self.name, reference, manifest, self.precision, resample, budget, self.plan)


def _wanted(engine: EngineRecord, options: CheckOptions) -> bool:
    return (
        (options.target is None or engine.target == str(options.target))
        and (options.precision is None or engine.precision == options.precision)
        and (options.folders is None or engine.folder in options.folders)
    )


def _stages(bundle: Bundle, options: CheckOptions) -> tuple[list[_Stage], dict[str, str]]:
    """Every engine that fits and can be opened here."""
    stages: list[_Stage] = []
    refused: dict[str, str] = {}
    open_options = OpenOptions(max_batch=bundle.manifest.max_batch, threads=options.threads or usable_cores())
    engines = [e for e in bundle.manifest.engines if _wanted(e, options)]
    if bundle.manifest.engines and not engines:
        there = ", ".join(f"{e.target} {e.precision}" for e in bundle.manifest.engines)
        raise UsageError(f"{bundle.root}: no engine for that request; it holds {there}")
    for engine in engines:
        try:
            session = open_session(bundle, engine, open_options)
        except EnvironmentUnusable as error:
            refused[engine.folder] = str(error)
            continue
        name = f"{engine.target} {engine.precision}"
        plan = {tap: Precision(p) for tap, p in engine.plan.items()}
        stages.append(_Stage(name, Precision(engine.precision), session.slots[0].run, session.close, plan))
    if engines and not stages:
        reasons = "; ".join(f"{k}: {v}" for k, v in refused.items())
        raise EnvironmentUnusable(f"{bundle.root}: no engine can run here ({reasons})")
    return stages, refused


@contextmanager
def _opened(bundle: Bundle, options: CheckOptions) -> Iterator[tuple[list[_Stage], dict[str, str]]]:
    """The stages of ``_stages``, closed at the end."""
    stages, refused = _stages(bundle, options)
    try:
        yield stages, refused
    finally:
        for stage in stages:
            stage.close()


def _graph_stage(bundle: Bundle, reference: Reference) -> list[_Stage]:
    """The ONNX graph, where ONNX Runtime is there and the graph is not the reference itself."""
    if reference.name == "onnx":
        return []
    from vsa_rt.engines.executor import GraphExecutor
    from vsa_rt.engines.onnxruntime import OnnxRuntime

    if not OnnxRuntime().probe("cpu").usable:
        return []
    executor = GraphExecutor(bundle.read(bundle.manifest.graphs[0].path))
    return [_Stage("onnx", Precision.FP32, executor.run)]


def _random(bundle: Bundle) -> bool:
    return any(c.random_seed is not None for c in bundle.manifest.checkpoints.values())


def check_golden(bundle: Bundle, options: CheckOptions) -> Check:
    """Compare the engines with the golden tensors: needs neither torch nor photographs.

    Raises:
        BundleError: The bundle is damaged or has no golden tensors.
    """
    bundle.verify()
    golden = read_golden(bundle.read(bundle.manifest.golden))
    inputs = {k.removeprefix("input."): v for k, v in golden.items() if k.startswith("input.")}
    taps = {k.removeprefix("tap."): v for k, v in golden.items() if k.startswith("tap.")}
    manifest = bundle.manifest
    if not manifest.engines:
        raise BundleError(f"{bundle.root}: exported but not built: vsa-rt build {bundle.root} -o BUNDLE")
    wanted = [{r.name: r.shape for r in manifest.inputs}, {t.name: [t.width] for t in manifest.taps}]
    if [{k: list(v.shape[1:]) for k, v in found.items()} for found in (inputs, taps)] != wanted:
        raise BundleError(
            f"{bundle.root}: the golden tensors are not those of this graph; rebuild the bundle"
        )
    names = [Path(f"golden {i}") for i in range(len(next(iter(inputs.values()))))]
    judged = Judged([(PreparedBatch(as_photographs(names), inputs, inputs), taps)])
    golden_reference = Reference("golden", "", read_labels(golden), lambda picture: {}, lambda batch: {})
    with _opened(bundle, options) as (stages, refused):
        parities = [
            judge(
                s.comparison(golden_reference, bundle.manifest),
                judged,
                s.run,
                bundle.manifest.max_batch,
            )
            for s in stages
        ]
    return Check(
        "golden",
        "no --data given: the bundle's own golden tensors",
        parities,
        refused,
        [],
        _random(bundle),
        decides(manifest),
    )


def check(bundle: Bundle, data: Path, options: CheckOptions) -> Check:
    """Compare graph and engines with the reference over a folder of photographs.

    Args:
        bundle: What to check.
        data: A folder as ``read_dataset`` takes it; with labels, metrics are compared too.
        options: Which engines, and where weights are.

    Raises:
        BundleError: The bundle is damaged or takes no images.
        DatasetError: No photograph can be read.
    """
    _require_images(bundle)
    bundle.verify()
    dataset = read_dataset(data)
    options.progress("loading the reference")
    reference = find_reference(bundle, options.weights)
    found = check_photographs(bundle, dataset.photographs, reference, options)
    return dataclasses.replace(found, rejected=dataset.rejected + found.rejected)


def _require_images(bundle: Bundle) -> None:
    if any(i.resize is None and not i.rows for i in bundle.manifest.inputs):
        raise UsageError(
            f"{bundle.root}: takes ready tensors only; check it without --data, on its golden tensors"
        )


def check_photographs(
    bundle: Bundle, photographs: Sequence[Photograph], reference: Reference, options: CheckOptions
) -> Check:
    """Compare graph and engines with a reference over photographs.

    Args:
        bundle: What to check; its files are taken for verified.
        photographs: With labels, metrics are compared too.
        reference: What to hold them against.
        options: Which engines.

    Raises:
        DatasetError: No photograph can be read.
        UsageError: The bundle takes ready tensors that do not come with images.
    """
    _require_images(bundle)
    manifest = bundle.manifest
    resample = options.resample or manifest.resample
    feed = PhotographFeed(manifest.inputs, reference.prepare, resample, batch_of(manifest.recipe))
    with _opened(bundle, options) as (engines, refused):
        stages = [*_graph_stage(bundle, reference), *engines]
        comparisons = [s.comparison(reference, manifest, resample) for s in stages]
        seen = 0
        for batch in feed.batches(photographs):
            taps = reference.run(batch.reference)
            for stage, comparison in zip(stages, comparisons, strict=True):
                if not seen:
                    compare_sizes(comparison, batch, taps, stage.run, manifest.max_batch)
                compare_batch(comparison, batch, taps, stage.run, manifest.max_batch)
            seen += len(batch.photographs)
            options.progress(f"compared {seen} of {len(photographs)} photographs")
    return Check(
        reference.name,
        reference.why,
        [c.result() for c in comparisons],
        refused,
        feed.rejected,
        _random(bundle),
        decides(manifest),
        feed.stand_ins,
    )
