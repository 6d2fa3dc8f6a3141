"""A bare ONNX file into a bundle's folder. Its own FP32 graph is the reference: there is no torch model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vsa_rt.contracts import scores_kind
from vsa_rt.errors import needs
from vsa_rt.manifest import InputRecord, Manifest
from vsa_rt.pipeline.export import GRAPH, new_manifest, write_golden
from vsa_rt.pipeline.gate import Judged, Reference, Run, run_reference
from vsa_rt.pipeline.images import PreparedBatch, as_photographs, gate_photographs
from vsa_rt.pipeline.reference import pillow_prepare
from vsa_rt.recipe import Recipe
from vsa_rt.recipe_file import read_recipe

#: Ready tensors of a features-only bundle: drawn from a seeded normal, because nobody knows its preprocessing.
_READY_IMAGES = 4


def _ready_batch(inputs: list[InputRecord], run: Run) -> Judged:
    rng = np.random.default_rng(0)
    tensors = {}
    for record in inputs:
        shape = (_READY_IMAGES, *record.shape)
        pixels = record.dtype == "uint8"
        values = rng.integers(0, 256, shape) if pixels else rng.standard_normal(shape)
        tensors[record.name] = values.astype(record.dtype)
    batch = PreparedBatch(
        as_photographs([Path(f"tensor {i}") for i in range(_READY_IMAGES)]), tensors, tensors
    )
    return Judged([(batch, run(tensors))])


def adopt_into(
    folder: Path, path: Path, recipe_path: Path | None, max_batch: int, data: Path | None
) -> tuple[Manifest, Reference, Judged]:
    """Write an ONNX file's graph into a bundle's folder.

    Args:
        folder: Existing; gets the graph and the golden tensors.
        path: The file.
        recipe_path: Labels and preprocessing; ``None`` for a graph that carries its own, or features only.
        max_batch: Largest batch of one engine call.
        data: Photographs for the gates.

    Returns:
        The manifest (not sealed), the reference, and its outputs.
    """
    with needs("export"):
        from vsa_rt.engines.executor import GraphExecutor
        from vsa_rt.export.foreign import adopt_graph, read_graph
        from vsa_rt.export.purpose import OPSET
    recipe: Recipe | None = read_recipe(recipe_path) if recipe_path else None
    model, purpose = adopt_graph(read_graph(path), recipe)
    graph = model.SerializeToString()
    (folder / GRAPH).write_bytes(graph)
    specs = {i.name: i.resize for i in purpose.inputs if i.resize is not None}
    executor = GraphExecutor(graph)
    why = f"built from {path.name}, not from checkpoints"
    reference = Reference("onnx", why, purpose.labels, pillow_prepare(specs), executor.run)
    if all(i.resize is not None or i.rows for i in purpose.inputs):
        judged = run_reference(reference, purpose.inputs, gate_photographs(data))
    else:
        judged = _ready_batch(purpose.inputs, executor.run)
    write_golden(folder, judged, purpose.labels)
    manifest = new_manifest(
        recipe=recipe,
        labels=purpose.labels,
        task=purpose.task,
        threshold=purpose.threshold,
        kind=purpose.scores_kind or scores_kind(purpose.task),
        views=purpose.views,
        resample=purpose.resample,
        inputs=purpose.inputs,
        taps=purpose.taps,
        max_batch=max_batch,
        checkpoints={},
        opset=OPSET,
        gates=[],
    )
    return manifest, reference, judged
