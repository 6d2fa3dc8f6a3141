"""Checkpoint to torch to ONNX, each step compared with the one before it; writes a bundle without engines."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from vsa_rt.bundle import new_folder, seal_folder
from vsa_rt.contracts import Precision, Resample, ScoresKind, Task, Views, scores_kind
from vsa_rt.errors import GateError, needs
from vsa_rt.golden import golden_to_bytes
from vsa_rt.manifest import (
    SCHEMA,
    CheckpointRecord,
    GateRecord,
    GraphRecord,
    InputRecord,
    Manifest,
    TapRecord,
)
from vsa_rt.pipeline.gate import Judged, Reference, comparison_of, judge, record_of, run_reference
from vsa_rt.pipeline.images import gate_photographs
from vsa_rt.pipeline.reference import HEAD
from vsa_rt.recipe import Recipe, regions_of, views_of_recipe
from vsa_rt.version import __version__

GRAPH = "graph.onnx"
GOLDEN = "golden.npz"
GOLDEN_IMAGES = 8
DEFAULT_BATCH = 8
#: Where each image brings dozens of regions with it: two of them are a hundred.
DEFAULT_BATCH_WITH_REGIONS = 2
#: Called with one sentence as each step begins.
Progress = Callable[[str], None]


def silent(_step: str) -> None:
    """Progress that goes nowhere."""


@dataclass(frozen=True)
class ExportOptions:
    """What export and build have in common.

    Attributes:
        data: Photographs for the gates; by default those that the export extra's packages ship.
        weights: Backbone name, or ``head``, to a file to use instead of the recipe's.
        random_seed: Seeded weights for everything that has no file.
        max_batch: Largest batch of one engine call; ``None`` for what an exported bundle says, else 8, or 2 where
            each image brings regions with it.
        progress: Told of every step.
    """

    data: Path | None = None
    weights: dict[str, Path] = field(default_factory=dict)
    random_seed: int | None = None
    max_batch: int | None = None
    progress: Progress = silent


def write_golden(folder: Path, judged: Judged, labels: list[str]) -> None:
    """Store the inputs and taps of the first photographs."""
    batch, taps = judged.batches[0]
    inputs = {name: array[:GOLDEN_IMAGES] for name, array in batch.reference.items()}
    (folder / GOLDEN).write_bytes(
        golden_to_bytes(inputs, {n: a[:GOLDEN_IMAGES] for n, a in taps.items()}, labels)
    )


def require(gate: GateRecord) -> GateRecord:
    """The gate, if it holds.

    Raises:
        GateError: It does not.
    """
    if not gate.passed:
        raise GateError(f"gate {gate.stage} against {gate.reference}: {'; '.join(gate.reasons)}")
    return gate


def new_manifest(
    *,
    recipe: Recipe | None,
    labels: list[str],
    task: Task,
    threshold: float,
    kind: ScoresKind,
    views: Views,
    resample: Resample,
    inputs: list[InputRecord],
    taps: list[TapRecord],
    max_batch: int,
    checkpoints: dict[str, CheckpointRecord],
    opset: int,
    gates: list[GateRecord],
) -> Manifest:
    """The manifest of a bundle that has a graph and no engines yet."""
    plan = {t.name: str(Precision.FP32) for t in taps if t.kind == "backbone"}
    return Manifest(
        schema=SCHEMA,
        vsa_rt=__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        recipe=recipe,
        labels=labels,
        task=task,
        threshold=threshold,
        scores_kind=kind,
        views=views,
        resample=resample,
        inputs=inputs,
        taps=taps,
        max_batch=max_batch,
        checkpoints=checkpoints,
        graphs=[GraphRecord(path=GRAPH, precision=str(Precision.FP32), opset=opset, plan=plan)],
        gates=gates,
        engines=[],
        plans=[],
        budget=None,
        calibration=None,
        rejected=[],
        chosen="",
        golden=GOLDEN,
        files={},
    )


def export_into(
    folder: Path, recipe: Recipe, recipe_folder: Path, options: ExportOptions
) -> tuple[Manifest, Reference, Judged]:
    """Export a recipe into an existing folder.

    Returns:
        The manifest (not sealed), the reference, and its outputs over the gate's photographs.

    Raises:
        GateError: The ONNX graph does not say what the torch model says.
    """
    with needs("export"):
        from vsa_rt.engines.executor import GraphExecutor
        from vsa_rt.export.ensemble import load_ensemble
        from vsa_rt.export.graph import graph_from_ensemble
        from vsa_rt.export.purpose import OPSET
    options.progress("loading checkpoints")
    ensemble = load_ensemble(recipe, recipe_folder, options.weights, options.random_seed)
    reference = Reference("torch", "", list(recipe.labels), ensemble.prepare, ensemble.run)
    inputs, taps = ensemble.module.inputs, ensemble.module.taps
    options.progress("running the PyTorch reference on photographs")
    judged = run_reference(reference, inputs, gate_photographs(options.data, recipe), recipe)
    options.progress("exporting one ONNX graph")
    graph = graph_from_ensemble(ensemble.module).SerializeToString()
    (folder / GRAPH).write_bytes(graph)
    (folder / HEAD).write_bytes(ensemble.head_file)
    write_golden(folder, judged, reference.labels)
    manifest = new_manifest(
        recipe=recipe,
        labels=list(recipe.labels),
        task=recipe.task,
        threshold=recipe.threshold,
        kind=scores_kind(recipe.task, recipe.head.kind),
        views=views_of_recipe(recipe),
        resample=recipe.resample,
        inputs=inputs,
        taps=taps,
        max_batch=options.max_batch or (DEFAULT_BATCH_WITH_REGIONS if regions_of(recipe) else DEFAULT_BATCH),
        checkpoints=ensemble.checkpoints,
        opset=OPSET,
        gates=[],
    )
    options.progress("gate: ONNX against PyTorch")
    comparison = comparison_of("onnx", reference, manifest, Precision.FP32)
    gate = judge(comparison, judged, GraphExecutor(graph).run, manifest.max_batch)
    return msgspec.structs.replace(manifest, gates=[require(record_of(gate, judged))]), reference, judged


def export(recipe: Recipe, recipe_folder: Path, out: Path, options: ExportOptions) -> Manifest:
    """Export a recipe to a bundle without engines.

    Args:
        recipe: What to export.
        recipe_folder: For the recipe's relative paths.
        out: The new directory; it appears whole or not at all.
        options: Weights, photographs, batch.

    Returns:
        The manifest as written.

    Raises:
        GateError: The graph does not say what the torch model says; nothing is written.
    """
    with new_folder(out) as work:
        manifest, _, _ = export_into(work, recipe, recipe_folder, options)
        return seal_folder(work, manifest)
