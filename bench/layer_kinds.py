"""Kinds of layer: ONNX's operators and the backends' own words in one short list."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: Kind to operators of ONNX, and to words of OpenVINO, ONNX Runtime and TensorRT for the same.
_WORDS: Mapping[str, tuple[str, ...]] = {
    "convolution": (
        "Conv", "ConvInteger", "QLinearConv", "ConvTranspose", "FusedConv", "NhwcFusedConv", "Convolution",
        "GroupConvolution", "Deconvolution", "DeformConv", "CaskConvolution", "CaskDeconvolutionV2", "conv",
    ),
    "matmul": (
        "MatMul", "Gemm", "Einsum", "MatMulInteger", "QLinearMatMul", "QGemm", "FusedMatMul", "FusedGemm",
        "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "FullyConnected", "CaskGemmConvolution", "gemm",
    ),
    "recurrent": ("GRU", "LSTM", "RNN", "RNNSeq", "RNNCell", "GRUSequence", "LSTMSequence"),
    "pool": (
        "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "Pooling", "QLinearAveragePool",
        "QLinearGlobalAveragePool", "AvgPool", "CaskPooling",
    ),
    "normalise": (
        "BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "LRN",
        "LpNormalization", "MeanVarianceNormalization", "SkipLayerNormalization", "SimplifiedLayerNormalization",
        "MVN", "NormalizeL2", "NormalizeIE", "RMSNormalization",
    ),
    "reduce": (
        "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
        "ReduceLogSumExp", "ReduceSumSquare", "ArgMax", "ArgMin", "TopK", "Reduce", "CumSum",
    ),
    "activation": (
        "Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "Selu", "Celu",
        "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "Swish", "Softplus", "Softsign", "Mish", "Erf", "Softmax",
        "LogSoftmax", "ThresholdedRelu",
    ),
    "elementwise": (
        "Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Exp", "Log", "Abs", "Neg", "Min", "Max", "Sum", "Mean", "Where",
        "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Not", "Xor", "Floor", "Ceil",
        "Round", "Sign", "Reciprocal", "Mod", "Sin", "Cos", "Eltwise", "Subgraph", "Math", "Select", "QLinearAdd",
        "QLinearMul", "IsNaN", "IsInf", "ElementWise", "PointWiseV2",
    ),
    "resize": ("Resize", "Upsample", "GridSample", "RoiAlign", "Interpolate", "AffineGrid"),
    "reorder": (
        "Transpose", "Concat", "Split", "Slice", "Gather", "GatherElements", "GatherND", "ScatterElements",
        "ScatterND", "Pad", "Expand", "Tile", "Reorder", "ReorderInput", "ReorderOutput", "Concatenation",
        "StridedSlice", "Broadcast", "ShuffleChannels", "DepthToSpace", "SpaceToDepth", "MemoryInput", "Reshape",
        "Flatten", "Squeeze", "Unsqueeze", "Identity", "NhwcTranspose", "Reformat", "NoOp", "Shuffle",
    ),
    "convert": ("Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Convert",
        "FakeQuantize"),
}  # fmt: skip
_KINDS = {word: kind for kind, words in _WORDS.items() for word in words}
#: Kinds whose multiply-adds are counted.
COMPUTE = frozenset({"convolution", "depthwise", "pointwise", "matmul", "recurrent"})
#: Of a fused layer's nodes, the first of these that is among them says what the layer is.
RANK = (
    "convolution", "depthwise", "pointwise", "matmul", "recurrent", "resize", "pool", "normalise", "reduce",
    "activation", "elementwise", "reorder", "convert", "other",
)  # fmt: skip
#: Operators that give another name or shape to the same bytes.
MOVES_NOTHING = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Size", "Constant"}
)
#: Operators with multiply-adds that nothing here counts.
NO_COUNT = frozenset({"Attention", "DeformConv", "If", "Loop", "Scan", "DFT", "STFT"})


def kind_of_word(word: str) -> str:
    """The kind of layer that a backend's own word means; ``other`` if nothing here knows the word."""
    return _KINDS.get(word, "other")


def kind_of_node(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The kind of layer that an ONNX node is.

    Args:
        node: An ``onnx.NodeProto``.
        shapes: Of tensors, so far as they are known. A convolution is ``depthwise`` if every group reads one
            channel of several, ``pointwise`` if it is dense with a kernel of one element.
    """
    kind = kind_of_word(node.op_type)
    if kind != "convolution":
        return kind
    weights = shapes.get(node.input[3 if node.op_type == "QLinearConv" else 1], ())
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    transposed = node.op_type == "ConvTranspose"
    if not weights:
        return kind
    if group > 1 and (weights[0] == group if transposed else weights[1] == 1):
        return "depthwise"
    return "pointwise" if group == 1 and math.prod(weights[2:]) == 1 else kind
