"""What a graph of this project says about itself, and the form that it is kept in. Nothing here needs PyTorch."""

from __future__ import annotations

from typing import Literal

import msgspec
import onnx

from vsa_rt.contracts import Resample, ScoresKind, Task, Views
from vsa_rt.errors import UsageError
from vsa_rt.manifest import InputRecord, TapRecord

#: From opset 22 on, Conv and the pools take bfloat16 (ONNX changelog), which the lowered graphs need.
OPSET = 22
METADATA = "vsa_rt"


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
