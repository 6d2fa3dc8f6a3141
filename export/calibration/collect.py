"""Running the FP32 graph over photographs, and what each activation was like, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from vsa_rt.errors import DatasetError, UsageError
from vsa_rt.export.calibration.histogram import Histogram, Range
from vsa_rt.export.quantised import refuse_quantised
from vsa_rt.export.skeleton import skeleton

#: Runs one batch: inputs ``(N, …)`` by name to every output by name.
Run = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
#: Makes a graph ready to run. (The packages that compile and run engines are not this one's to import.)
Open = Callable[[bytes], Run]
#: Bytes of activations that one run may give. ONNX Runtime holds them once more while it copies them out.
BUDGET = 1 << 30
#: Taken for the size of a tensor if shape inference tells none of the graph's: a map of 256 channels, 256 x 256.
_UNKNOWN = 64 << 20


@dataclass(frozen=True)
class CalibrationBatch:
    """Some images as the graph takes them.

    Attributes:
        names: What to call each image in a message.
        inputs: Every input of the graph, an image a row.
    """

    names: Sequence[str]
    inputs: Mapping[str, NDArray[Any]]


def collect(
    graph: bytes,
    tensors: Sequence[str],
    batches: Iterable[CalibrationBatch],
    open_graph: Open,
    progress: Callable[[str], None],
    total: int | None = None,
    budget: int = BUDGET,
) -> dict[str, Histogram]:
    """A histogram of each activation over all images.

    Args:
        graph: The FP32 graph, its batch free.
        tensors: Names of float tensors that nodes give or the graph takes.
        batches: The images. Gone through once; if one image's tensors are larger than the budget, once for each part
            of them, so that it must then be something that can begin anew.
        open_graph: Makes a graph ready to run in fp32.
        progress: Told how far it is after each run.
        total: How many images there are, for ``progress``; ``None`` if nobody knows.
        budget: Bytes of activations that one run may give; a single image's one tensor may exceed it.

    Returns:
        In the order of ``tensors``.

    Raises:
        UsageError: The graph is quantised already, is no ONNX model, or has no such float tensor.
        DatasetError: No image came, or an activation is NaN or infinite: tensor and image are named.
    """
    made = {name: Histogram() for name in tensors}
    _measure(graph, made, batches, open_graph, progress, total, budget)
    return made


def collect_ranges(
    graph: bytes,
    tensors: Sequence[str],
    batches: Iterable[CalibrationBatch],
    open_graph: Open,
    progress: Callable[[str], None],
    total: int | None = None,
    budget: int = BUDGET,
) -> dict[str, Range]:
    """The lowest and highest value of each activation over all images; see ``collect``."""
    made = {name: Range() for name in tensors}
    _measure(graph, made, batches, open_graph, progress, total, budget)
    return made


def _parsed(graph: bytes) -> onnx.ModelProto:
    try:
        return onnx.load_from_string(graph)
    except Exception as error:  # protobuf's errors share no base with others
        raise UsageError(f"the graph to calibrate is not an ONNX model: {error}") from error


def _with_outputs(graph: bytes, tensors: Sequence[str]) -> bytes:
    """The graph with these tensors as its only outputs: what none of them needs is not computed then."""
    model = _parsed(graph)
    del model.graph.output[:]
    # Without a type: the runtime infers it, and knows more operators than ONNX itself.
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    made: bytes = model.SerializeToString()
    return made


def _image_bytes(model: onnx.ModelProto, tensors: Iterable[str]) -> dict[str, int]:
    """Bytes of each tensor for one image, as float32."""
    bare = skeleton(model)
    weights = {t.name for t in model.graph.initializer}
    for value in bare.graph.input:
        if value.name not in weights and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        inferred = bare.graph  # sizes are then unknown; the runtime says what is wrong, if anything is
    sizes: dict[str, int] = {}
    for value in (*inferred.value_info, *inferred.output):
        shape = value.type.tensor_type.shape
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in shape.dim):
            sizes[value.name] = 4 * int(np.prod([d.dim_value for d in shape.dim], dtype=np.int64))
    most = max(sizes.values(), default=_UNKNOWN)
    return {name: sizes.get(name, most) for name in tensors}


def _parts(sizes: Mapping[str, int], budget: int) -> list[list[str]]:
    """The tensors in runs of one image that stay within the budget, so far as a single tensor does."""
    parts: list[list[str]] = []
    used = 0
    for name, size in sizes.items():
        if not parts or used + size > budget:
            parts.append([])
            used = 0
        parts[-1].append(name)
        used += size
    return parts


def _measure(
    graph: bytes,
    kept: Mapping[str, Range],
    batches: Iterable[CalibrationBatch],
    open_graph: Open,
    progress: Callable[[str], None],
    total: int | None,
    budget: int,
) -> None:
    """Fill what is kept of each tensor."""
    model = _parsed(graph)
    refuse_quantised(model)
    given = _checked_inputs(model, kept)
    sizes = _image_bytes(model, [name for name in kept if name not in given])
    del model  # as large as the weights
    parts = _parts(sizes, budget) or [[]]
    rows = max(1, budget // max(1, sum(sizes.values())))
    if len(parts) > 1 and isinstance(batches, Iterator):
        raise ValueError("batches: the tensors need several passes, an iterator has one")
    for number, names in enumerate(parts):
        run = open_graph(_with_outputs(graph, names)) if names else _nothing
        which = f", part {number + 1} of {len(parts)}" if len(parts) > 1 else ""
        done = 0
        for batch in batches:
            for some in _cut(batch, rows):
                _take(kept, some, run(some.inputs))
                if number == 0:
                    _take(kept, some, {name: some.inputs[name] for name in given})
                done += len(some.names)
                of = "" if total is None else f" of {total}"
                progress(f"calibrating: {done}{of} photographs{which}")
        del run  # before the next part brings the weights once more
        if not done:
            raise DatasetError("there is no image to calibrate on")


def _nothing(_inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    return {}


def _checked_inputs(model: onnx.ModelProto, tensors: Iterable[str]) -> list[str]:
    """Those of the tensors that the graph takes.

    Raises:
        UsageError: No node gives one, and the graph does not take it.
    """
    weights = {t.name for t in model.graph.initializer}
    inputs = {i.name: i for i in model.graph.input if i.name not in weights}
    known = {name for node in model.graph.node for name in node.output if name}
    given = [name for name in tensors if name in inputs]
    absent = sorted(name for name in tensors if name not in known and name not in inputs)
    if absent:
        raise UsageError(
            f"tensor {absent[0]!r} ({len(absent)} such): no node of the graph gives it, so that it has no range to "
            "measure; name activations of this graph"
        )
    for name in given:
        _require_float(name, helper.tensor_dtype_to_np_dtype(inputs[name].type.tensor_type.elem_type))
    return given


def _require_float(name: str, dtype: np.dtype[Any]) -> None:
    if dtype not in (np.float32, np.float64, np.float16):
        raise UsageError(f"tensor {name!r} holds {dtype}, which has no range to measure; expected float32")


def _cut(batch: CalibrationBatch, rows: int) -> Iterator[CalibrationBatch]:
    """A batch in smaller ones."""
    for start in range(0, len(batch.names), rows):
        inputs = {name: np.ascontiguousarray(a[start : start + rows]) for name, a in batch.inputs.items()}
        yield CalibrationBatch(batch.names[start : start + rows], inputs)


def _take(kept: Mapping[str, Range], batch: CalibrationBatch, found: Mapping[str, NDArray[Any]]) -> None:
    """Add what one run gave. (Threads gain nothing: numpy counts bins under the interpreter's lock.)"""
    for name, values in found.items():
        _require_float(name, values.dtype)
        try:
            kept[name].add(values)
        except ValueError as error:
            raise DatasetError(_not_finite(name, values, batch.names)) from error


def _not_finite(tensor: str, values: NDArray[Any], names: Sequence[str]) -> str:
    """What to say of NaN or infinity: the first image that has it, if the tensor has a row for each."""
    finite = np.isfinite(values)
    what = "NaN" if np.isnan(values).any() else "infinite"
    if values.ndim and len(values) == len(names):
        row = int(np.argmin(finite.reshape(len(names), -1).all(axis=1)))
        where = f"for image {names[row]}"
    else:
        where = f"for one of the images {', '.join(names)}"
    return (
        f"activation {tensor!r} is {what} {where}: there is no range to quantise it to. Run the FP32 bundle on "
        "that image: if its scores are not finite either, weights or graph are broken; otherwise leave it out"
    )
