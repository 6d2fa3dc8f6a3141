"""The ensemble as one ONNX graph, and what it says about itself in its metadata."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Literal

import msgspec
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from vsa_rt.contracts import Resample, ScoresKind, Task, Views, scores_kind
from vsa_rt.errors import UsageError
from vsa_rt.export.ensemble import Ensemble
from vsa_rt.export.skeleton import skeleton
from vsa_rt.manifest import InputRecord, TapRecord
from vsa_rt.recipe import views_of_recipe

#: From opset 22 on, Conv and the pools take bfloat16 (ONNX changelog), which the lowered graphs need.
OPSET = 22
METADATA = "vsa_rt"
#: Names that inputs and taps have while torch exports them.
_INPUT, _TAP = "vsa_input_", "vsa_tap_"


class GraphPurpose(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a graph of this project carries in its metadata, so that the file alone can be built.

    Attributes:
        inputs: Names, shapes and resizes.
        taps: Names and widths.
        labels: In the order of the scores; empty for a graph that gives features only.
        task: What the scores mean.
        threshold: Multi-label: the score above which a label is given.
        resample: How the host resizes unless told otherwise.
        scores_kind: What kind of numbers the scores are; empty for what the task says.
        views: Through how many views the graph looks at an image.
    """

    inputs: list[InputRecord]
    taps: list[TapRecord]
    labels: list[str]
    task: Task
    threshold: float
    resample: Resample
    scores_kind: ScoresKind | Literal[""] = ""
    views: Views = Views()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter prints its steps and warns of its own internals; errors still come as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _rename(model: onnx.ModelProto, ensemble: Ensemble) -> None:
    """Give inputs and taps their names, and all else a prefix: the exporter's own names may be a backbone's."""
    final = {f"{_INPUT}{i}": record.name for i, record in enumerate(ensemble.inputs)}
    final |= {f"{_TAP}{i}": record.name for i, record in enumerate(ensemble.taps)}

    def named(name: str) -> str:
        return final.get(name, f"%{name}") if name else ""

    for node in model.graph.node:
        node.input[:] = [named(n) for n in node.input]
        node.output[:] = [named(n) for n in node.output]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.name = named(value.name)
    del model.graph.value_info[:]


#: What only moves weights about. The exporter leaves such nodes in the graph where their tensors are large.
_MOVES = frozenset({"Concat", "Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Identity"})


def _fold_moved_weights(model: onnx.ModelProto) -> None:
    """Compute nodes that only rearrange weights, so that a lowered graph holds the result in its own type."""
    known = {t.name: t for t in model.graph.initializer}
    outputs = {o.name for o in model.graph.output}
    kept = []
    for node in model.graph.node:
        inputs = [name for name in node.input if name]
        folds = node.op_type in _MOVES and inputs and all(name in known for name in inputs)
        if not folds or outputs.intersection(node.output):
            kept.append(node)
            continue
        feeds = {name: numpy_helper.to_array(known[name]) for name in inputs}
        values = ReferenceEvaluator(node).run(None, feeds)
        for name, value in zip(node.output, values, strict=True):
            known[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
    used = {name for node in kept for name in node.input}
    del model.graph.node[:]
    model.graph.node.extend(kept)
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensor for name, tensor in known.items() if name in used)


def graph_from_ensemble(ensemble: Ensemble) -> onnx.ModelProto:
    """Export an ensemble with a dynamic batch.

    Args:
        ensemble: In evaluation mode.

    Returns:
        One graph: uint8 inputs ``(N, H, W, 3)``, every tap an output ``(N, width)`` in float32, purpose in
        its metadata, and no names of this machine's files in it.
    """
    batch = torch.export.Dim("batch", min=1, max=4096)
    # Two images: an example batch of one would be taken for a constant.
    example = tuple(torch.zeros((2, *i.shape), dtype=getattr(torch, i.dtype)) for i in ensemble.inputs)
    with _quiet():
        program = torch.onnx.export(
            ensemble,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=[f"{_INPUT}{i}" for i in range(len(ensemble.inputs))],
            output_names=[f"{_TAP}{i}" for i in range(len(ensemble.taps))],
            dynamic_shapes=(tuple({0: batch} for _ in example),),
            optimize=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    model = program.model_proto
    # The program is a circle of references that holds the weights once more.
    del program
    gc.collect()
    _rename(model, ensemble)
    _fold_moved_weights(model)
    strip_debris(model)
    recipe = ensemble.recipe
    purpose = GraphPurpose(
        inputs=ensemble.inputs,
        taps=ensemble.taps,
        labels=recipe.labels,
        task=recipe.task,
        threshold=recipe.threshold,
        resample=recipe.resample,
        scores_kind=scores_kind(recipe.task, recipe.head.kind),
        views=views_of_recipe(recipe),
    )
    onnx.helper.set_model_props(model, {METADATA: msgspec.json.encode(purpose).decode()})
    onnx.checker.check_model(skeleton(model), full_check=True)
    return model


def strip_debris(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes: stack traces hold the paths of the machine that exported."""
    model.doc_string = ""
    model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for function in model.functions:
        del function.metadata_props[:]


def purpose_of(model: onnx.ModelProto) -> GraphPurpose | None:
    """What the graph says about itself; ``None`` for a graph that this project did not write.

    Raises:
        UsageError: It says something unreadable.
    """
    text = next((p.value for p in model.metadata_props if p.key == METADATA), None)
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=GraphPurpose)
    except msgspec.DecodeError as error:
        raise UsageError(f"the graph's metadata {METADATA!r} cannot be read: {error}") from error
