"""INT8 as explicit Q/DQ: symmetric, one scale per tensor of activations, one per output channel of weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vsa_rt.contracts import Precision
from vsa_rt.errors import UsageError
from vsa_rt.export.lowering.casts import FLOATS, drop_unused
from vsa_rt.export.lowering.names import Fresh, names_in_subgraphs

#: What is quantised: products with constant weights. TensorRT and OpenVINO both fuse what follows them.
QUANTISED = frozenset({"Conv", "Gemm", "MatMul"})
#: Levels on each side of zero. -128 is left out, so that zero stays in the middle (TensorRT asks for that).
LEVELS = 127
#: No scale is smaller, by the type that holds it: the smallest half that is no zero is 6e-8, and a scale of a few such
#: steps is a coarse one. bfloat16 has float32's range.
_LEAST_SCALE = {Precision.FP32: 1e-30, Precision.BF16: 1e-30, Precision.FP16: 1e-6}


def quantisable(model: onnx.ModelProto, nodes: Collection[str]) -> Iterator[onnx.NodeProto]:
    """Those of the nodes that can be quantised: products of an activation with constant weights.

    Args:
        model: The FP32 graph, its nodes with names of their own.
        nodes: Names to choose from.
    """
    constants = {t.name: t for t in model.graph.initializer}
    inner = names_in_subgraphs(model.graph)
    for node in model.graph.node:
        if node.name not in nodes or node.op_type not in QUANTISED or inner.intersection(node.output):
            continue
        weights = constants.get(node.input[1])
        if weights is not None and len(weights.dims) >= 2 and node.input[0] not in constants:
            yield node


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _output_axis(node: onnx.NodeProto, rank: int) -> int:
    """The axis of the weights that counts output channels."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if _attribute(node, "transB", 0) else 1
    return rank - 1


def scale_of(largest: NDArray[np.float32], around: Precision) -> NDArray[np.float32]:
    """The scale at which the largest magnitude is the last level, as the type around can hold it, rounded up.

    Args:
        largest: Magnitudes, of any shape.
        around: Type of the scale in the graph.

    Returns:
        float32, exactly representable in the type.
    """
    exact = np.maximum(np.asarray(largest, np.float32) / LEVELS, np.float32(_LEAST_SCALE[around]))
    if around is Precision.FP32:
        return exact
    dtype, _ = FLOATS[around]
    near = exact.astype(dtype)
    above = np.nextafter(near, np.asarray(np.inf, dtype)) if around is Precision.FP16 else _next_bfloat(near)
    return np.where(near.astype(np.float32) < exact, above, near).astype(np.float32)


def _next_bfloat(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """The next larger positive bfloat16: its bits count upwards."""
    return (values.view(np.uint16) + np.uint16(1)).view(values.dtype)


class _Quantiser:
    """Rewrites one graph: chosen products read dequantised activations and weights, additions what they can share."""

    def __init__(
        self,
        model: onnx.ModelProto,
        products: Mapping[str, str],
        additions: Collection[str],
        ranges: Mapping[str, float],
        around: Precision,
    ) -> None:
        self.model, self.products, self.additions = model, products, additions
        self.ranges, self.around = ranges, around
        self.shared = set(products.values())
        self.producer = {o: n.name for n in model.graph.node for o in n.output}
        self.constants = {t.name: t for t in model.graph.initializer}
        self.fresh = Fresh(model.graph)
        self.nodes: list[onnx.NodeProto] = []
        self.activations: dict[str, str] = {}
        self.weights: dict[tuple[str, int], str] = {}

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        name = self.fresh(name)
        self.model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        output = self.fresh(name)
        self.nodes.append(helper.make_node(op, inputs, [output], self.fresh(f"{name}_node"), **attributes))
        return output

    def _activation(self, name: str) -> str:
        """The tensor after a round trip through int8; one for all that read it, so that engines see one scale."""
        if name not in self.activations:
            scale = self._constant(f"{name}_scale", scale_of(np.array(self.ranges[name]), self.around))
            zero = self._constant(f"{name}_zero", np.array(0, np.int8))
            levels = self._node("QuantizeLinear", [name, scale, zero], f"{name}_int8")
            self.activations[name] = self._node(
                "DequantizeLinear", [levels, scale, zero], f"{name}_dequantised"
            )
        return self.activations[name]

    def _weight(self, name: str, axis: int) -> str:
        """Weights stored as int8, with a scale for every output channel."""
        if (name, axis) not in self.weights:
            values = numpy_helper.to_array(self.constants[name]).astype(np.float32)
            others = tuple(a for a in range(values.ndim) if a != axis)
            scale = scale_of(np.abs(values).max(others), self.around)
            shape = [-1 if a == axis else 1 for a in range(values.ndim)]
            levels = np.clip(np.rint(values / scale.reshape(shape)), -LEVELS, LEVELS).astype(np.int8)
            inputs = [
                self._constant(f"{name}_int8", levels),
                self._constant(f"{name}_scale", scale),
                self._constant(f"{name}_zero", np.zeros(scale.shape, np.int8)),
            ]
            self.weights[name, axis] = self._node(
                "DequantizeLinear", inputs, f"{name}_dequantised", axis=axis
            )
        return self.weights[name, axis]

    def _skip(self, node: onnx.NodeProto) -> int | None:
        """Which input of an addition is a shortcut around a product, and quantised for another product anyway.

        The product's own result stays in float, so that engines add inside the product and read the shortcut as int8.
        """
        for place, name in enumerate(node.input):
            other = node.input[1 - place]
            if name in self.shared and self.producer.get(other) in self.products:
                return place
        return None

    def rewrite(self) -> set[str]:
        before = {n.name for n in self.model.graph.node}
        for node in self.model.graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            if node.name in self.products:
                rank = len(self.constants[node.input[1]].dims)
                copy.input[0] = self._activation(node.input[0])
                copy.input[1] = self._weight(node.input[1], _output_axis(node, rank))
            elif node.name in self.additions and (place := self._skip(node)) is not None:
                copy.input[place] = self._activation(node.input[place])
            self.nodes.append(copy)
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)
        drop_unused(self.model, keep=names_in_subgraphs(self.model.graph))
        return {n.name for n in self.nodes} - before


def quantise(
    model: onnx.ModelProto, nodes: Collection[str], ranges: Mapping[str, float], around: Precision
) -> set[str]:
    """Quantise products to symmetric int8; biases and everything between products stay as they are.

    One activation is quantised once, at the product that reads it: what lies before (activation function, pooling,
    the addition of a shortcut) can then be fused into the product that made it.

    Args:
        model: Changed in place; its nodes have names of their own.
        nodes: Names of the nodes that may be touched.
        ranges: For the activation that each product reads, the magnitude that becomes the last level.
        around: Type that the scales must be representable in.

    Returns:
        Names of the nodes that were added; empty where there was nothing to quantise.

    Raises:
        UsageError: A range is missing.
    """
    # A range of zero says that the photographs never woke this activation: there is nothing to scale by.
    products = {n.name: n.input[0] for n in quantisable(model, nodes) if ranges.get(n.input[0], 1.0) > 0}
    missing = sorted(set(products.values()) - ranges.keys())
    if missing:
        raise UsageError(
            f"no range of activation {missing[0]!r} ({len(missing)} in all); calibrate with --calib DIR"
        )
    additions = {n.name for n in model.graph.node if n.op_type == "Add" and n.name in nodes}
    return _Quantiser(model, products, additions, ranges, around).rewrite() if products else set()
