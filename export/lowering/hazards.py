"""Which nodes are not safe in half precision, by ranges measured over photographs and by the graph's constants.

Half (IEEE 754 binary16) ends at 65504, keeps its full precision down to 6.1e-5 and is 0 below 3e-8. Safe without a
rule of their own are sums inside one node, which GPUs accumulate in float32 (convolutions, products, pools, means),
Softmax, which subtracts its maximum first, and LayerNormalization, whose statistics are float32 by definition
(ONNX, ``stash_type``). ``half.HalfExecutor`` computes the same way and shows on photographs what remains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vsa_rt.export.skeleton import skeleton

Array = NDArray[Any]

#: Half's largest number, its smallest with full precision, and its relative rounding error (IEEE 754-2019, 3.6).
LARGEST, NORMAL, ROUNDING = 65504.0, 2.0**-14, 2.0**-11
#: How many times larger than on the photographs a tensor may become. They are a sample: over 256 photographs the
#: quickstart's tensors rose to 4.4 times what 16 of them had shown, and to 2.3 times what 64 had (worst tensor, worst
#: of 300 draws). The next power of two leaves room for what lower precision adds on the way.
HEADROOM = 8.0

#: An error that shows: eight times half's own. bfloat16, which is lowered to as well, rounds this coarsely.
_COARSE = 2.0**-8
#: Products with weights.
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
#: Nodes that add or scale parameters per channel inside: a parameter that vanishes adds nothing to what they sum.
_PARAMETERS = frozenset(
    {"BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"}
)
#: Nodes with a scale beside what they read.
_SCALED = frozenset({"DequantizeLinear", "QuantizeLinear"})
#: Bounds beyond half's range become infinite, which bounds nothing: what they were for.
_BOUNDS = frozenset({"Clip", "Max", "Min"})


def _label(node: onnx.NodeProto) -> str:
    """A node's name, or that of its first output where it has none."""
    return node.name or node.output[0]


class _Ranges:
    """What is known of a graph's tensors: constants, types, shapes and measured peaks."""

    def __init__(self, model: onnx.ModelProto, peaks: Mapping[str, float], limit: float) -> None:
        self.peaks, self.limit = peaks, limit
        self.headroom = LARGEST / limit
        self.weights = {t.name: t for t in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant":
                self.weights.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
        inferred = onnx.shape_inference.infer_shapes(skeleton(model)).graph
        values = (*inferred.value_info, *inferred.input, *inferred.output)
        self.types = {v.name: v.type.tensor_type.elem_type for v in values}
        self.shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    def constant(self, name: str) -> Array | None:
        """A constant's values in float64, ``None`` for an activation or for integers."""
        tensor = self.weights.get(name)
        if tensor is None or tensor.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE):
            return None
        return numpy_helper.to_array(tensor).astype(np.float64)

    def activations(self, names: Collection[str]) -> list[str]:
        """The names of floating activations, each once; a tensor of unknown type may be one."""
        floats = (TensorProto.UNDEFINED, TensorProto.FLOAT, TensorProto.DOUBLE)
        kinds = {n: self.types.get(n, TensorProto.UNDEFINED) for n in names if n and n not in self.weights}
        return [n for n, kind in kinds.items() if kind in floats]

    def grown(self, name: str) -> float:
        """How large a tensor may become; 0 where no range was measured, which is a reason of its own."""
        return self.peaks.get(name, 0.0) * self.headroom


# One operator's own hazards: a reason, or None.

_Judge = Callable[[_Ranges, onnx.NodeProto], "str | None"]


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _square(what: str, sums: float, smallest: float) -> str | None:
    """Judge a sum of squares by how large it may become and by how large its largest square was."""
    if sums > LARGEST:
        return f"{what} may reach {sums:.3g}; half ends at {LARGEST:.0f}"
    if 0 < smallest < NORMAL:
        return f"{what}: none was above {smallest:.3g}, and half loses precision below {NORMAL:.2g}"
    return None


def _summed_squares(ranges: _Ranges, node: onnx.NodeProto) -> str | None:
    """ReduceSumSquare stores its squares and their sum, which is its output."""
    peak = ranges.peaks.get(node.input[0], 0.0)
    sums = ranges.peaks.get(node.output[0], 0.0) * ranges.headroom**2
    return _square(f"squares of {node.input[0]} and their sum", sums, peak**2)


def _l2(ranges: _Ranges, node: onnx.NodeProto) -> str | None:
    """ReduceL2 stores the sum of squares, the square of its output."""
    peak = ranges.peaks.get(node.input[0], 0.0)
    sums = ranges.grown(node.output[0]) ** 2
    return _square(f"squares of {node.input[0]} and their sum", sums, peak**2)


def _lp(ranges: _Ranges, node: onnx.NodeProto) -> str | None:
    """LpNormalization stores a sum of at most as many powers as its axis is long."""
    name, power = node.input[0], _attribute(node, "p", 2)
    shape, axis = ranges.shapes.get(name, []), _attribute(node, "axis", -1)
    length = shape[axis] if shape else 0
    if not length:
        return f"it sums powers of {name} over an axis of unknown length"
    peak = ranges.peaks.get(name, 0.0)
    return _square(f"powers of {name} and their sum", length * ranges.grown(name) ** power, peak**power)


def _lrn(ranges: _Ranges, node: onnx.NodeProto) -> str | None:
    """LRN stores a sum of squares over ``size`` channels; its bias makes up for squares that vanish."""
    sums = _attribute(node, "size", 1) * ranges.grown(node.input[0]) ** 2
    return _square(f"squares of {node.input[0]} and their sum", sums, 0.0)


def _mul(ranges: _Ranges, node: onnx.NodeProto) -> str | None:
    """A product of a tensor with itself grows with its square."""
    if node.input[0] != node.input[1]:
        return None
    peak = ranges.peaks.get(node.output[0], 0.0)
    return _square(f"squares of {node.input[0]}", peak * ranges.headroom**2, 0.0)


def _pow(ranges: _Ranges, node: onnx.NodeProto) -> str | None:
    exponents = ranges.constant(node.input[1])
    if exponents is None:
        return f"its exponent {node.input[1]} is no float constant"
    power = max(1.0, float(np.abs(exponents).max(initial=0.0)))
    reach = ranges.peaks.get(node.output[0], 0.0) * ranges.headroom**power
    if reach > LARGEST:
        return f"powers of {node.input[0]} may reach {reach:.3g}; half ends at {LARGEST:.0f}"
    return None


def _exponential(ranges: _Ranges, node: onnx.NodeProto) -> str | None:
    """An argument that many times larger is that power of the result."""
    peak = ranges.peaks.get(node.output[0], 0.0)
    if peak > 1 and math.log(peak) * ranges.headroom > math.log(LARGEST):
        return (
            f"exponentials of {node.input[0]} reached {peak:.3g}; arguments {ranges.headroom:g} times as large "
            f"leave half's range"
        )
    return None


def _log_sum_exp(ranges: _Ranges, node: onnx.NodeProto) -> str | None:
    reach = ranges.grown(node.input[0])
    if reach > math.log(LARGEST):
        return f"exponentials of {node.input[0]}, up to {reach:.3g}, leave half's range above {math.log(LARGEST):.3g}"
    return None


def _divides(place: int) -> _Judge:
    def judge(ranges: _Ranges, node: onnx.NodeProto) -> str | None:
        if node.input[place] in ranges.weights or not ranges.activations(node.input):
            return None
        return f"{node.input[place]} may come so near to 0 that half holds no such number; its minimum is not known"

    return judge


def _angle(ranges: _Ranges, node: onnx.NodeProto) -> str | None:
    error = ranges.peaks.get(node.input[0], 0.0) * ROUNDING
    return f"half rounds the angle {node.input[0]} by up to {error:.2g}" if error > _COARSE else None


def _coordinates(place: int, unit: str) -> _Judge:
    def judge(ranges: _Ranges, node: onnx.NodeProto) -> str | None:
        return f"half rounds the coordinates {node.input[place]} by up to one part in 2048 {unit}"

    return judge


#: Operators that need more than their inputs and outputs in range: why, and how that is judged.
SENSITIVE: dict[str, tuple[str, _Judge]] = {
    "Cos": ("a rounded angle moves the result", _angle),
    "Cosh": ("it grows exponentially", _exponential),
    "Div": ("a divisor that half rounds to 0 makes inf or NaN", _divides(1)),
    "Exp": ("it grows exponentially", _exponential),
    "GridSample": ("it reads at rounded places", _coordinates(1, "of the width from the image's middle")),
    "LRN": ("it squares and sums inside", _lrn),
    "Log": ("the logarithm of what half rounds to 0 is -inf", _divides(0)),
    "LpNormalization": ("it raises to a power and sums inside, and divides by the root", _lp),
    "Mul": ("a tensor multiplied with itself is squared", _mul),
    "Pow": ("it grows with its exponent", _pow),
    "Reciprocal": ("a divisor that half rounds to 0 makes inf", _divides(0)),
    "ReduceL2": ("it squares and sums inside", _l2),
    "ReduceLogSumExp": ("it sums exponentials inside", _log_sum_exp),
    "ReduceSumSquare": ("it squares inside", _summed_squares),
    "RoiAlign": ("it reads at rounded places", _coordinates(1, "of their distance from the corner")),
    "Sin": ("a rounded angle moves the result", _angle),
    "Sinh": ("it grows exponentially", _exponential),
    "Tan": ("a rounded angle moves the result", _angle),
}


# Constants


def _channels(node: onnx.NodeProto, place: int, weights: Array) -> Array:
    """A product's weights as rows, one per output channel."""
    if node.op_type == "Conv":
        return weights.reshape(len(weights), -1)
    if node.op_type == "ConvTranspose":
        groups = _attribute(node, "group", 1)
        split = weights.reshape(groups, len(weights) // groups, *weights.shape[1:])
        return np.moveaxis(split, 2, 1).reshape(groups * weights.shape[1], -1)
    transposed = _attribute(node, "transB" if place else "transA", 0)
    rows = weights if bool(transposed) == bool(place) else weights.swapaxes(-1, -2)
    return rows.reshape(-1, rows.shape[-1])


def _weights(ranges: _Ranges, node: onnx.NodeProto, place: int, weights: Array) -> str | None:
    """Judge a product's weights: channels so small that half holds them without precision.

    Trained networks hold nearly dead channels by the dozen. One is a hazard where rounding its weights moves its
    output visibly and by more than half rounds the output's largest values.
    """
    rows = _channels(node, place, weights)
    errors = np.abs(rows.astype(np.float16).astype(np.float64) - rows).sum(axis=1)
    read, made = (ranges.peaks.get(name, 0.0) for name in (node.input[1 - place], node.output[0]))
    coarse = errors > np.abs(rows).sum(axis=1) * _COARSE
    lost = np.flatnonzero(coarse & (errors * read > made * ROUNDING))
    if not len(lost):
        return None
    first = np.abs(rows[lost[0]]).max()
    return (
        f"weights {node.input[place]}: the largest of channel {lost[0]} is {first:.2g}, and half loses precision "
        f"below {NORMAL:.2g} ({len(lost)} of {len(rows)} channels)"
    )


def _variance(node: onnx.NodeProto, values: Array) -> str | None:
    """Judge a BatchNormalization's variances: their roots, with epsilon, divide."""
    epsilon = _attribute(node, "epsilon", 1e-5)
    scale = np.sqrt((values.astype(np.float16).astype(np.float64) + epsilon) / (values + epsilon))
    wrong = float(np.abs(scale - 1).max(initial=0.0))
    if wrong > _COARSE:
        return f"variances {node.input[4]}, rounded to half, move the result by {wrong:.2g} of itself"
    return None


def _scale(node: onnx.NodeProto, place: int, values: Array) -> str | None:
    """Judge scales of quantisation: they multiply every value."""
    there = values[values != 0]
    errors = np.abs(there.astype(np.float16).astype(np.float64) / there - 1)
    if not (errors > _COARSE).any():
        return None
    return f"scale {node.input[place]} holds {there[errors.argmax()]:.3g}, which half moves by {errors.max():.2g} of itself"


def _vanishing(ranges: _Ranges, node: onnx.NodeProto, place: int, values: Array) -> str | None:
    """Judge constants that are 0 in half and were not."""
    if node.op_type in _SCALED:
        return _scale(node, place, values) if place == 1 else None
    if node.op_type in _PARAMETERS:
        return _variance(node, values) if node.op_type == "BatchNormalization" and place == 4 else None
    gone = (values != 0) & (values.astype(np.float16) == 0)
    if node.op_type in ("Add", "Sub") and not (gone | (values == 0)).all():
        return None  # one of many addends: the others are far above it
    if node.op_type == "Mul":
        reach = np.abs(values) * ranges.peaks.get(node.input[1 - place], 0.0)
        gone &= reach > ranges.peaks.get(node.output[0], 0.0) * ROUNDING
    if not gone.any():
        return None
    return f"constant {node.input[place]} holds {values[gone].flat[0]:.3g}, which is 0 in half"


def _constants(ranges: _Ranges, node: onnx.NodeProto) -> Iterator[str]:
    for place, name in enumerate(node.input):
        values = ranges.constant(name) if name else None
        if values is None or not values.size:
            continue
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        beyond = np.isfinite(values) & np.isinf(halves)
        if beyond.any() and node.op_type not in _BOUNDS:
            yield f"constant {name} holds {values[beyond].flat[0]:.3g}, which is infinite in half"
        elif node.op_type in _PRODUCTS:
            reason = _weights(ranges, node, place, values) if place < 2 and values.ndim > 1 else None
            if reason:
                yield reason
        else:
            with np.errstate(over="ignore"):
                reason = _vanishing(ranges, node, place, values)
            if reason:
                yield reason


# Activations


def _activations(ranges: _Ranges, node: onnx.NodeProto) -> Iterator[str]:
    for name in ranges.activations((*node.input, *node.output)):
        peak = ranges.peaks.get(name)
        if peak is None:
            yield f"no range was measured for {name}"
        elif not math.isfinite(peak):
            yield f"{name} was not finite on the photographs"
        elif peak > ranges.limit:
            yield (
                f"{name} reached {peak:.5g} on the photographs; half ends at {LARGEST:.0f}, "
                f"of which {ranges.limit:.5g} is let through"
            )
        elif 0 < peak < NORMAL:
            yield f"{name} never rose above {peak:.3g}, and half loses precision below {NORMAL:.2g}"


def hazards(
    graph: onnx.ModelProto,
    nodes: Collection[int],
    peaks: Mapping[str, float],
    limit: float = LARGEST / HEADROOM,
) -> dict[str, str]:
    """Nodes that must stay in float32, and why.

    Args:
        graph: In float32.
        nodes: Indices of the nodes that are to be lowered to half.
        peaks: Largest magnitude of every float activation over photographs. A node that reads or makes one without
            a peak stays in float32.
        limit: Largest measured magnitude that is let through; 65504 over it is the headroom for images that were
            not measured.

    Returns:
        By node name, that of its first output where it has none, the reasons in one line, in the graph's order. Empty where every node is safe.
    """
    ranges = _Ranges(graph, peaks, limit)
    found: dict[str, str] = {}
    for index in sorted(nodes):
        node = graph.graph.node[index]
        reasons = [*_activations(ranges, node), *_constants(ranges, node)]
        why, judge = SENSITIVE.get(node.op_type, ("", None))
        reason = judge(ranges, node) if judge else None
        if reason:
            reasons.append(f"{node.op_type}: {why}: {reason}")
        if reasons:
            name = _label(node)
            found[name] = "; ".join([*([found[name]] if name in found else []), *reasons])
    return found
