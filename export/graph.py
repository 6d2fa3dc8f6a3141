"""The ensemble as one ONNX graph, and what it says about itself in its metadata."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import onnx
import torch

from vsa_rt.contracts import Task
from vsa_rt.errors import UsageError
from vsa_rt.export.ensemble import Ensemble
from vsa_rt.manifest import InputRecord, TapRecord

#: From opset 22 on, Conv and the pools take bfloat16 (ONNX changelog), which the lowered graphs need.
OPSET = 22
METADATA = "vsa_rt"


class GraphPurpose(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a graph of this project carries in its metadata, so that the file alone can be built.

    Attributes:
        inputs: Names, shapes and resizes.
        taps: Names and widths.
        labels: In the order of the scores.
        task: What the scores mean.
    """

    inputs: list[InputRecord]
    taps: list[TapRecord]
    labels: list[str]
    task: Task


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
    example = tuple(torch.zeros((2, *i.shape), dtype=torch.uint8) for i in ensemble.inputs)
    with _quiet():
        program = torch.onnx.export(
            ensemble,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=[i.name for i in ensemble.inputs],
            output_names=[t.name for t in ensemble.taps],
            dynamic_shapes=({0: batch},) * len(example)
            if len(example) == 1
            else (tuple({0: batch} for _ in example),),
            optimize=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    model = program.model_proto
    strip_debris(model)
    purpose = GraphPurpose(
        inputs=ensemble.inputs, taps=ensemble.taps, labels=ensemble.recipe.labels, task=ensemble.recipe.task
    )
    onnx.helper.set_model_props(model, {METADATA: msgspec.json.encode(purpose).decode()})
    onnx.checker.check_model(model, full_check=True)
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


@dataclass(frozen=True)
class GraphSize:
    """How much a graph holds and does.

    Attributes:
        convolutions: Number of Conv nodes.
        parameters: Elements of its float initializers.
    """

    convolutions: int
    parameters: int


def graph_size(model: onnx.ModelProto) -> GraphSize:
    """Count convolutions and weights."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT16)
    return GraphSize(
        convolutions=sum(n.op_type == "Conv" for n in model.graph.node),
        parameters=sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type in floats),
    )
