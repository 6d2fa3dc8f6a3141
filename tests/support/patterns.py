"""Small ONNX graphs of every op pattern that lowered graphs hold, each in every precision, made by hand.

They do not come from ``vsa_rt.export``: what a compiler says about them is about the pattern, not about the exporter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

#: The last two: what is not quantised is half or bfloat16, scales included.
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int8 in fp16", "int8 in bf16")
#: What the arithmetic between the casts is typed as.
_TYPES: dict[str, tuple[int, Any]] = {
    "fp32": (TensorProto.FLOAT, np.float32),
    "fp16": (TensorProto.FLOAT16, np.float16),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}
#: As vsa_rt.export.graph writes them.
_OPSET, _IR_VERSION = 22, 10
_SIDE, _CHANNELS = 16, 8


class Net:
    """A graph that grows node by node. Every method gives the name of the tensor that it made."""

    def __init__(self, precision: str = "fp32") -> None:
        self.quantise = precision.startswith("int8")
        self.type, self.dtype = _TYPES[precision.rpartition(" ")[2] if precision != "int8" else "fp32"]
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._dequantised: set[str] = set()
        self._rng = np.random.default_rng(0)

    def op(self, kind: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any) -> str:
        """A node; gives its first output."""
        name = name or f"{kind}_{len(self._nodes)}"
        # A GRU's states come first, its last state second.
        made = [f"{name}_out", *(f"{name}_out{i}" for i in range(1, outputs))]
        self._nodes.append(helper.make_node(kind, list(inputs), made, name, **attributes))
        return made[0]

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """A constant tensor, such as axes or a shape."""
        name = f"constant_{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def values(self, values: Any) -> str:
        """A constant in the type that the net computes in."""
        return self.constant(np.asarray(values, np.float32).astype(self.dtype), self.dtype)

    def random(self, *shape: int) -> NDArray[np.float32]:
        """Seeded weights."""
        spread = 1 / math.sqrt(math.prod(shape[1:]))
        return (spread * self._rng.standard_normal(shape)).astype(np.float32)

    def weight(self, *shape: int, axis: int = 0) -> str:
        """A weight; in int8 stored as such, with a scale per channel and no zero point but 0."""
        values = self.random(*shape)
        if not self.quantise:
            return self.values(values)
        others = tuple(i for i in range(values.ndim) if i != axis)
        scales = np.maximum(np.abs(values).max(others, keepdims=True) / 127, 1e-8).astype(np.float32)
        stored = self.constant(np.clip(np.rint(values / scales), -127, 127), np.int8)
        zeros = self.constant(np.zeros(values.shape[axis]), np.int8)
        return self.op("DequantizeLinear", stored, self.values(scales.ravel()), zeros, axis=axis)

    def quantised(self, x: str, scale: float = 0.05) -> str:
        """In int8 an activation through Q/DQ, once, one scale, symmetric; else the activation itself."""
        if not self.quantise or x in self._dequantised:
            return x
        ends = (self.values(scale), self.constant(0, np.int8))
        made = self.op("DequantizeLinear", self.op("QuantizeLinear", x, *ends), *ends)
        self._dequantised.add(made)
        return made

    def given(self, *shape: int, dtype: int = TensorProto.FLOAT, name: str = "") -> str:
        """An input ``(N, …)`` as it is."""
        name = name or f"input_{len(self._inputs)}"
        self._inputs.append(helper.make_tensor_value_info(name, dtype, ["batch", *shape]))
        return name

    def rows(self, *shape: int) -> str:
        """An input ``(N, …)`` of float32, cast to what the net computes in, quantised."""
        x = self.given(*shape)
        return self.quantised(self.op("Cast", x, to=self.type) if self.type != TensorProto.FLOAT else x)

    def image(self) -> str:
        """Normalised pixels ``(N, 3, H, W)`` of a uint8 input ``(N, H, W, 3)``: Cast first, then layout."""
        pixels = self.op("Cast", self.given(_SIDE, _SIDE, 3, dtype=TensorProto.UINT8), to=TensorProto.FLOAT)
        maps = self.op("Transpose", pixels, perm=[0, 3, 1, 2])
        scale = self.constant(np.full((1, 3, 1, 1), 1 / 127.5), np.float32)
        shift = self.constant(np.full((1, 3, 1, 1), -1), np.float32)
        x = self.op("Add", self.op("Mul", maps, scale), shift)
        return self.op("Cast", x, to=self.type) if self.type != TensorProto.FLOAT else x

    def conv(self, x: str, channels: int = _CHANNELS, of: int = 3, size: int = 3, groups: int = 1) -> str:
        """A convolution with the bias that a folded BatchNorm leaves, from ``of`` channels, sides kept."""
        weight = self.weight(channels, of // groups, size, size)
        # A bias is never quantised.
        bias = self.values(self.random(channels))
        pads = [size // 2] * 4
        return self.op(
            "Conv", self.quantised(x), weight, bias, pads=pads, kernel_shape=[size] * 2, group=groups
        )

    def maps(self) -> str:
        """The first convolution's ``(N, C, H, W)``, with ReLU, quantised."""
        return self.quantised(self.op("Relu", self.conv(self.image())))

    def swish(self, x: str) -> str:
        """x times its sigmoid, as EfficientNet has it."""
        return self.op("Mul", x, self.op("Sigmoid", x))

    def gemm(self, x: str, of: int, to: int, name: str = "") -> str:
        """A dense layer as the exporter writes it."""
        weight, bias = self.weight(to, of), self.values(self.random(to))
        return self.op("Gemm", self.quantised(x), weight, bias, name=name, transB=1)

    def bytes(self, result: str) -> bytes:
        """The checked model; its output ``y`` is float32."""
        self._nodes.append(helper.make_node("Cast", [result], ["y"], "to_y", to=TensorProto.FLOAT))
        graph = helper.make_graph(self._nodes, "pattern", self._inputs, [], self._weights)
        opsets = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
        model.graph.output.extend(v for v in inferred if v.name == "y")
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


def _pixels(net: Net) -> str:
    return net.image()


def _relu(net: Net) -> str:
    return net.op("Relu", net.conv(net.image()))


def _relu6(net: Net) -> str:
    return net.op("Clip", net.conv(net.image()), net.values(0), net.values(6))


def _swish(net: Net) -> str:
    return net.conv(net.swish(net.conv(net.image())), of=_CHANNELS)


def _depthwise(net: Net) -> str:
    spread = net.op("Relu", net.conv(net.maps(), of=_CHANNELS, groups=_CHANNELS))
    return net.conv(spread, of=_CHANNELS, size=1)


def _squeeze_and_excitation(net: Net) -> str:
    x = net.maps()
    mean = net.op("ReduceMean", x, net.constant([2, 3]), keepdims=1)
    squeezed = net.swish(net.conv(mean, channels=4, of=_CHANNELS, size=1))
    return net.op("Mul", x, net.op("Sigmoid", net.conv(squeezed, of=4, size=1)))


def _residual(net: Net) -> str:
    x = net.maps()
    inner = net.conv(net.op("Relu", net.conv(x, of=_CHANNELS)), of=_CHANNELS)
    return net.op("Relu", net.op("Add", net.quantised(inner), x))


def _pre_activation(net: Net) -> str:
    x = net.maps()
    slope, shift = (net.values(net.random(_CHANNELS, 1, 1)) for _ in range(2))
    normal = net.op("Relu", net.op("Add", net.op("Mul", x, slope), shift))
    return net.op("Add", net.conv(normal, of=_CHANNELS), x)


def _max_pool(net: Net) -> str:
    pooled = net.op("MaxPool", net.maps(), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    return net.conv(pooled, of=_CHANNELS)


def _average_pool(net: Net) -> str:
    window: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}
    return net.conv(net.op("AveragePool", net.maps(), count_include_pad=0, **window), of=_CHANNELS, size=1)


def _global_average_pool(net: Net) -> str:
    return net.op("Flatten", net.op("GlobalAveragePool", net.maps()), axis=1)


def _mean_of_maps(net: Net) -> str:
    return net.op("ReduceMean", net.maps(), net.constant([2, 3]), keepdims=0)


def _concatenation(net: Net) -> str:
    x = net.maps()
    branches = [net.op("Relu", net.conv(x, of=_CHANNELS, size=size)) for size in (1, 3, 5)]
    joined = net.op("Concat", *(net.quantised(b) for b in branches), axis=1)
    return net.conv(joined, of=3 * _CHANNELS, size=1)


def _along_features(net: Net) -> str:
    signal = net.op("Unsqueeze", net.rows(32), net.constant([1]))
    weight, bias = net.weight(4, 1, 3), net.values(net.random(4))
    convolved = net.op("Relu", net.op("Conv", signal, weight, bias, kernel_shape=[3], pads=[1, 1]))
    pooled = net.op("MaxPool", convolved, kernel_shape=[2], strides=[2])
    return net.op("Sigmoid", net.gemm(net.op("Flatten", pooled, axis=1), of=64, to=8))


def _gemm(net: Net) -> str:
    return net.gemm(net.op("Relu", net.gemm(net.rows(32), of=32, to=16)), of=16, to=8)


def _matmul(net: Net) -> str:
    return net.op("MatMul", net.rows(6, 32), net.weight(32, 16, axis=1))


def _row_scaled_adjacency(net: Net) -> str:
    x = net.rows(6, 32)
    queries, keys = (net.op("MatMul", x, net.weight(32, 16, axis=1)) for _ in range(2))
    across = net.op("Transpose", net.quantised(keys), perm=[0, 2, 1])
    squares = net.op("Pow", net.op("MatMul", net.quantised(queries), across), net.values(2))
    rows = net.op("ReduceSum", squares, net.constant([2]), keepdims=1)
    adjacency = net.op("Div", squares, net.op("Clip", rows, net.values(1e-3)))
    return net.op("MatMul", net.quantised(adjacency), x)


def _layer_normalization(net: Net) -> str:
    scale, shift = (net.values(net.random(32)) for _ in range(2))
    return net.op("LayerNormalization", net.rows(6, 32), scale, shift, axis=-1, epsilon=1e-5)


def _unit_norm(net: Net) -> str:
    x = net.rows(32)
    length = net.op("ReduceL2", x, net.constant([1]), keepdims=1)
    return net.op("Div", x, net.op("Clip", length, net.values(1e-4)))


def _grid_sample(net: Net) -> str:
    grid = net.given(4, 4, 2)
    if net.type != TensorProto.FLOAT:
        grid = net.op("Cast", grid, to=net.type)
    return net.op("GridSample", net.maps(), grid, mode="linear", padding_mode="border", align_corners=0)


def _gru(net: Net) -> str:
    # Its loop stays in float32, whatever gives its input.
    frames = net.op("MatMul", net.rows(5, 16), net.weight(16, 16, axis=1))
    if net.type != TensorProto.FLOAT:
        frames = net.op("Cast", frames, to=TensorProto.FLOAT)
    first = net.op("Transpose", frames, perm=[1, 0, 2])
    shapes = ((2, 24, 16), (2, 24, 8), (2, 48))
    weights = [net.constant(net.random(*shape), np.float32) for shape in shapes]
    arguments: dict[str, Any] = {"hidden_size": 8, "direction": "bidirectional", "linear_before_reset": 1}
    states = net.op("GRU", first, *weights, outputs=2, **arguments)
    return net.op("Transpose", states, perm=[2, 0, 1, 3])


def _mixture_of_experts(net: Net) -> str:
    shared = net.op("Relu", net.gemm(net.rows(32), of=32, to=16))
    gates = net.op("Reshape", net.gemm(shared, of=16, to=6), net.constant([-1, 2, 3]))
    experts = net.op("Reshape", net.gemm(shared, of=16, to=4), net.constant([-1, 2, 2]))
    shares = net.op("Softmax", gates, axis=2)
    used = net.op("Slice", shares, net.constant([0]), net.constant([2]), net.constant([2]))
    voted = net.op("Mul", used, net.op("Sigmoid", experts))
    return net.op("ReduceSum", voted, net.constant([2]), keepdims=0)


def _softmax(net: Net) -> str:
    return net.op("Softmax", net.gemm(net.rows(32), of=32, to=8), axis=1)


#: Name to what makes the pattern.
PATTERNS: dict[str, Callable[[Net], str]] = {
    "uint8 pixels": _pixels,
    "convolution, ReLU": _relu,
    "convolution, ReLU6": _relu6,
    "convolution, swish": _swish,
    "depthwise convolution": _depthwise,
    "squeeze and excitation": _squeeze_and_excitation,
    "residual addition": _residual,
    "pre-activation": _pre_activation,
    "max pool": _max_pool,
    "average pool": _average_pool,
    "global average pool": _global_average_pool,
    "mean of maps": _mean_of_maps,
    "concatenation": _concatenation,
    "convolution along features": _along_features,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "row-scaled adjacency": _row_scaled_adjacency,
    "LayerNormalization": _layer_normalization,
    "unit norm": _unit_norm,
    "GridSample": _grid_sample,
    "GRU": _gru,
    "mixture of experts": _mixture_of_experts,
    "softmax": _softmax,
}


def pattern(name: str, precision: str) -> bytes:
    """A pattern's graph."""
    net = Net(precision)
    return net.bytes(PATTERNS[name](net))
