"""An ONNX file of somebody else's as a graph of this project: uint8 images in, named taps out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vsa_rt.contracts import Resample, Task
from vsa_rt.errors import RecipeError, UsageError
from vsa_rt.export.purpose import METADATA, OPSET, GraphPurpose, purpose_of, strip_debris
from vsa_rt.manifest import InputRecord, TapRecord
from vsa_rt.recipe import Graph, GraphInput, Recipe

#: protobuf refuses larger messages; larger models keep their weights in other files.
_MAX_BYTES = 2**31
#: Version of the file format that opset 22 needs (ONNX versioning table).
IR_VERSION = 10
#: The output that the runtime reads.
SCORES = "scores"


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that a graph and its nodes' graphs hold."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def graph_from_bytes(data: bytes, where: str) -> onnx.ModelProto:
    """Parse and check an ONNX model of unknown origin.

    Raises:
        UsageError: Invalid, or with weights in other files.
    """
    try:
        model = onnx.load_from_string(data)
        # External data may name any file of this machine: it is refused unread.
        outside = next(
            (t.name for t in _tensors(model.graph) if t.data_location == TensorProto.EXTERNAL), None
        )
        if outside is None:
            onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's errors share no base
        text = str(error).strip().splitlines()
        raise UsageError(
            f"{where}: not a valid ONNX model: {text[0] if text else type(error).__name__}"
        ) from error
    if outside is not None:
        raise UsageError(f"{where}: tensor {outside!r} lies in another file; save the model in one file")
    return model


def read_graph(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file that holds its own weights.

    Raises:
        UsageError: Unreadable, too large, invalid, or with weights in other files.
    """
    try:
        if path.stat().st_size >= _MAX_BYTES:
            raise UsageError(f"{path}: larger than 2 GiB")
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    return graph_from_bytes(data, str(path))


def _shape(value: onnx.ValueInfoProto) -> list[int | None]:
    dims = value.type.tensor_type.shape.dim
    return [d.dim_value if d.HasField("dim_value") else None for d in dims]


def _graph_inputs(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    weights = {t.name for t in model.graph.initializer}
    return {i.name: i for i in model.graph.input if i.name not in weights}


def _upgrade(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in this project's opset."""
    current = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), OPSET)
    if current >= OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises RuntimeErrors and others
        raise UsageError(
            f"the graph has opset {current} and cannot be brought to {OPSET}: {error}"
        ) from error


def _normalised(
    entry: GraphInput, record: InputRecord
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes that make a float input ``(N, 3, H, W)`` of a uint8 image; the cast comes first (TensorRT)."""
    name = entry.name
    std = np.array(entry.std, np.float64).reshape(1, 3, 1, 1)
    mean = np.array(entry.mean, np.float64).reshape(1, 3, 1, 1)
    weights = [
        numpy_helper.from_array((1 / (255 * std)).astype(np.float32), f"{name}.scale"),
        numpy_helper.from_array((-mean / std).astype(np.float32), f"{name}.shift"),
    ]
    nodes = [
        helper.make_node("Cast", [record.name], [f"{name}.float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", [f"{name}.float"], [f"{name}.planar"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", [f"{name}.planar", f"{name}.scale"], [f"{name}.scaled"]),
        helper.make_node("Add", [f"{name}.scaled", f"{name}.shift"], [name]),
    ]
    return nodes, weights


def _wrap_inputs(model: onnx.ModelProto, graph: Graph) -> list[InputRecord]:
    """Put a uint8 image input and its normalisation before every input of the file."""
    present = _graph_inputs(model)
    entries = {e.name: e for e in graph.inputs}
    if entries.keys() != present.keys():
        raise RecipeError(f"key `graph.inputs`: names {sorted(entries)}; the file takes {sorted(present)}")
    records, nodes = [], []
    for name, value in present.items():
        spec = entries[name].resize
        shape = _shape(value)
        wanted = [3, spec.height, spec.width]
        if len(shape) != 4 or any(s not in (None, w) for s, w in zip(shape[1:], wanted, strict=True)):
            raise RecipeError(
                f"key `graph.inputs`: {name!r} has shape {shape}, the resize gives (N, {wanted})"
            )
        if value.type.tensor_type.elem_type != TensorProto.FLOAT:
            raise RecipeError(f"key `graph.inputs`: {name!r} is not float32")
        record = InputRecord(
            name=f"image.{name}", dtype="uint8", shape=[spec.height, spec.width, 3], resize=spec
        )
        some, weights = _normalised(entries[name], record)
        records.append(record)
        nodes += some
        model.graph.initializer.extend(weights)
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes + rest)
    del model.graph.input[:]
    model.graph.input.extend(
        helper.make_tensor_value_info(r.name, TensorProto.UINT8, ["batch", *r.shape]) for r in records
    )
    return records


def _wrap_outputs(model: onnx.ModelProto, recipe: Recipe, graph: Graph) -> None:
    """Make an output `scores`, adding the task's activation where the file gives logits."""
    outputs = {o.name: o for o in model.graph.output}
    if graph.logits not in outputs:
        raise RecipeError(
            f"key `graph.logits`: no output {graph.logits!r}; the file gives {', '.join(outputs)}"
        )
    width = (_shape(outputs[graph.logits])[1:] or [None])[0]
    if width != len(recipe.labels):
        raise RecipeError(
            f"key `labels`: {len(recipe.labels)} labels, output {graph.logits!r} has {width} numbers"
        )
    if graph.activated and graph.logits == SCORES:
        return
    if SCORES in outputs:
        raise RecipeError(f"key `graph.logits`: the file has another output {SCORES!r}; rename it")
    if graph.activated:
        node = helper.make_node("Identity", [graph.logits], [SCORES])
    elif recipe.task is Task.MULTI_LABEL:
        node = helper.make_node("Sigmoid", [graph.logits], [SCORES])
    else:
        node = helper.make_node("Softmax", [graph.logits], [SCORES], axis=1)
    model.graph.node.append(node)
    model.graph.output.append(helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["batch", width]))


def _taps(model: onnx.ModelProto, logits: str, scores: str) -> list[TapRecord]:
    """Every output; what is neither scores nor logits counts as a backbone's features."""
    taps = []
    for value in model.graph.output:
        shape = _shape(value)
        if value.type.tensor_type.elem_type != TensorProto.FLOAT or len(shape) != 2 or shape[1] is None:
            raise UsageError(
                f"output {value.name!r} has shape {shape}; expected float32 (N, D) with a fixed D"
            )
        kind: Literal["backbone", "logits", "scores"] = "backbone"
        if value.name == scores:
            kind = "scores"
        elif value.name == logits:
            kind = "logits"
        taps.append(TapRecord(name=value.name, width=shape[1], kind=kind))
    return taps


def _ready_inputs(model: onnx.ModelProto) -> list[InputRecord]:
    """Inputs of a features-only bundle: taken as they are, with a free batch."""
    records = []
    for value in _graph_inputs(model).values():
        shape = _shape(value)
        fixed = [n for n in shape[1:] if n is not None]
        if len(fixed) != len(shape) - 1 or not math.prod(fixed):
            raise UsageError(f"input {value.name!r} has shape {shape}; all but the batch must be fixed")
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
        records.append(InputRecord(name=value.name, dtype=dtype, shape=fixed))
    return records


def _free_batch(model: onnx.ModelProto) -> None:
    for value in (*_graph_inputs(model).values(), *model.graph.output):
        if not value.type.tensor_type.shape.dim:
            raise UsageError(f"tensor {value.name!r} has no batch axis")
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def adopt_graph(model: onnx.ModelProto, recipe: Recipe | None) -> tuple[onnx.ModelProto, GraphPurpose]:
    """Make an ONNX file one of this project's graphs.

    Args:
        model: A checked model that holds its own weights.
        recipe: With the key ``graph``; ``None`` for a features-only graph, or one that this project wrote.

    Returns:
        The graph, and what it takes and gives.

    Raises:
        RecipeError: The recipe does not fit the file.
        UsageError: The file's inputs or outputs are of a kind that bundles do not have.
    """
    own = purpose_of(model)
    if own is not None and recipe is None:
        return model, own
    model = _upgrade(model)
    # Older files list their weights among the inputs, which newer versions of the format do not need.
    weights = {t.name for t in model.graph.initializer}
    kept = [i for i in model.graph.input if i.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, IR_VERSION)
    try:
        _free_batch(model)
        purpose = _purpose(model, recipe)
        strip_debris(model)
        helper.set_model_props(model, {METADATA: msgspec.json.encode(purpose).decode()})
        del model.graph.value_info[:]
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UsageError(
            f"the ONNX file cannot be adopted with a free batch: {str(error).strip()}"
        ) from error
    return model, purpose


def _purpose(model: onnx.ModelProto, recipe: Recipe | None) -> GraphPurpose:
    """Wrap the graph as the recipe says, and note what it then takes and gives."""
    if recipe is None:
        return GraphPurpose(
            inputs=_ready_inputs(model),
            taps=_taps(model, "", ""),
            labels=[],
            task=Task.SINGLE_LABEL,
            threshold=0.5,
            resample=Resample.EXACT,
        )
    if recipe.graph is None:
        raise RecipeError(
            f"recipe {recipe.name!r}: key `graph` is missing: what the ONNX file takes and gives"
        )
    inputs = _wrap_inputs(model, recipe.graph)
    _wrap_outputs(model, recipe, recipe.graph)
    return GraphPurpose(
        inputs=inputs,
        taps=_taps(model, recipe.graph.logits, SCORES),
        labels=recipe.labels,
        task=recipe.task,
        threshold=recipe.threshold,
        resample=recipe.resample,
    )
