"""ONNX to ONNX: the same graph in a lower precision, written into its tensors' types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vsa_rt.contracts import Precision
from vsa_rt.errors import UsageError
from vsa_rt.export.skeleton import skeleton

#: Where the backbones' arithmetic begins: what lies before is normalisation of pixels.
_ENTRANCES = frozenset({"Conv", "MatMul", "Gemm"})
#: What is lowered: arithmetic on single elements, short sums, and moving data. Long sums (pooling, normalisation,
#: softmax) and functions that a coarse argument spoils stay in float32, and so does whatever is not listed.
_LOWERED = frozenset(
    {
        "Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "Sub", "Mul", "Clip", "Relu", "LeakyRelu", "PRelu",
        "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "Gelu", "MaxPool", "AveragePool", "Concat",
        "Pad", "Reshape", "Transpose", "ReduceMax", "ReduceMin", "Abs", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split",
    }
)  # fmt: skip
#: Attributes that hold whole graphs; such nodes are left alone.
_GRAPHS = frozenset({onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS})


def _downstream_of_entrance(graph: onnx.GraphProto) -> set[int]:
    """Indices of nodes that are an entrance or come after one. Nodes are in topological order (ONNX)."""
    reached: set[str] = set()
    found: set[int] = set()
    for index, node in enumerate(graph.node):
        if node.op_type in _ENTRANCES or any(name in reached for name in node.input):
            found.add(index)
            reached.update(node.output)
    return found


def _upstream_of(graph: onnx.GraphProto, taps: Iterable[str]) -> set[int]:
    """Indices of nodes that these tensors depend on."""
    wanted = set(taps)
    found: set[int] = set()
    for index in reversed(range(len(graph.node))):
        if wanted.intersection(graph.node[index].output):
            found.add(index)
            wanted.update(graph.node[index].input)
    return found


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(skeleton(model))
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT} | {
        t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT
    }


def _names_in_subgraphs(graph: onnx.GraphProto) -> set[str]:
    """Every name that graphs inside nodes mention: they may read tensors from outside."""
    found: set[str] = set()
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.type in _GRAPHS else []), *attribute.graphs):
                found.update(name for n in inner.node for name in n.input)
                found.update(o.name for o in inner.output)
                found |= _names_in_subgraphs(inner)
    return found


def _split_normalisations(model: onnx.ModelProto) -> None:
    """Write each BatchNormalization as one product and one sum per channel, folded in double precision.

    Those that no convolution stands before, as in pre-activation networks, remain in a graph. With statistics in
    bfloat16 they would lose more than their own rounding, and in float32 each would cost two casts.
    """
    known = {t.name: t for t in model.graph.initializer}
    maps = _maps(model)
    taken = _names(model.graph)
    nodes: list[onnx.NodeProto] = []

    def fresh(name: str) -> str:
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    for node in model.graph.node:
        plain = len([o for o in node.output if o]) == 1 and all(name in known for name in node.input[1:5])
        if node.op_type != "BatchNormalization" or not plain or node.input[0] not in maps:
            nodes.append(node)
            continue
        scale, shift, mean, variance = (
            numpy_helper.to_array(known[name]).astype(np.float64) for name in node.input[1:5]
        )
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        slope = scale / np.sqrt(variance + epsilon)
        result = node.output[0]
        names = [fresh(f"{result}_slope"), fresh(f"{result}_shift"), fresh(f"{result}_scaled")]
        for name, values in zip(names, (slope, shift - mean * slope), strict=False):
            shaped = values.astype(np.float32).reshape(-1, 1, 1)
            model.graph.initializer.append(numpy_helper.from_array(shaped, name))
        nodes.append(helper.make_node("Mul", [node.input[0], names[0]], [names[2]]))
        nodes.append(helper.make_node("Add", [names[2], names[1]], [result]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _maps(model: onnx.ModelProto) -> set[str]:
    """Names of float32 tensors ``(N, C, H, W)``."""
    inferred = onnx.shape_inference.infer_shapes(skeleton(model)).graph
    return {
        v.name
        for v in (*inferred.value_info, *inferred.input)
        if v.type.tensor_type.elem_type == TensorProto.FLOAT and len(v.type.tensor_type.shape.dim) == 4
    }


def _names(graph: onnx.GraphProto) -> set[str]:
    """Every name in a graph and in the graphs inside its nodes."""
    found = {v.name for v in (*graph.input, *graph.output, *graph.initializer)}
    for node in graph.node:
        found.update(node.input, node.output)
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.type in _GRAPHS else []), *attribute.graphs):
                found |= _names(inner)
    return found


class _Bfloat16:
    """Rewrites one graph: chosen nodes read and write bfloat16, casts stand at the borders."""

    def __init__(self, model: onnx.ModelProto, lowered: set[int]) -> None:
        self.model, self.lowered = model, lowered
        self.floats = _float_tensors(model)
        self.initializers = {t.name: t for t in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[str, str] = {}  # fp32 name -> its bf16 twin
        self.full: dict[str, str] = {}  # bf16 name -> its fp32 twin
        self.born_low: set[str] = set()  # names whose tensor is now bf16
        self.inner = _names_in_subgraphs(model.graph)
        self.taken = _names(model.graph)

    def _unique(self, name: str) -> str:
        """A name that no tensor of the graph has yet."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def _low(self, name: str) -> str:
        """The bf16 form of a float tensor."""
        if name in self.born_low:
            return name
        if name not in self.made:
            twin = self.made[name] = self._unique(f"{name}_bf16")
            weight = self.initializers.get(name)
            if weight is not None:
                values = numpy_helper.to_array(weight).astype(ml_dtypes.bfloat16)
                self.model.graph.initializer.append(numpy_helper.from_array(values, twin))
            else:
                self.nodes.append(
                    helper.make_node("Cast", [name], [twin], f"{name}_to_bf16", to=TensorProto.BFLOAT16)
                )
        return self.made[name]

    def _full(self, name: str) -> str:
        """The fp32 form of a tensor that is now bf16."""
        if name not in self.born_low:
            return name
        twin = self.full.get(name, "")
        if not twin:
            twin = self.full[name] = self._unique(f"{name}_fp32")
            self.nodes.append(
                helper.make_node("Cast", [name], [twin], f"{name}_to_fp32", to=TensorProto.FLOAT)
            )
        return twin

    def rewrite(self) -> None:
        outputs = {o.name for o in self.model.graph.output}
        for index, node in enumerate(self.model.graph.node):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            if index in self.lowered:
                copy.input[:] = [self._low(n) if n in self.floats else n for n in node.input]
                casts: list[tuple[str, str]] = []
                for place, name in enumerate(node.output):
                    if name in self.floats and name in outputs:  # a graph's output stays fp32
                        low = self.made[name] = self._unique(f"{name}_bf16")
                        copy.output[place] = low
                        self.born_low.add(low)
                        casts.append((low, name))
                    elif name in self.floats:
                        self.born_low.add(name)
                self.nodes.append(copy)
                for low, full in casts:
                    self.nodes.append(
                        helper.make_node("Cast", [low], [full], f"{full}_to_fp32", to=TensorProto.FLOAT)
                    )
            else:
                copy.input[:] = [self._full(n) for n in node.input]
                self.nodes.append(copy)
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input} | self.inner | outputs
        kept = [t for t in self.model.graph.initializer if t.name in used]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)
        del self.model.graph.value_info[:]


def lower_to_bf16(
    graph: onnx.ModelProto, backbone_taps: Iterable[str], exact: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """Type the backbones' tensors as bfloat16; pooling, concatenation, head and scores stay float32.

    Args:
        graph: The fp32 graph; it is not changed.
        backbone_taps: Names of the outputs where the backbones end.
        exact: Of these, the ones whose own arithmetic stays in float32, each with the tap that it reads.

    Returns:
        A checked graph with the same inputs and outputs, weights rounded to nearest even.

    Raises:
        UsageError: Nothing in it can be lowered, or the result is no valid graph.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    _split_normalisations(model)
    nodes = model.graph.node
    trunk = _downstream_of_entrance(model.graph) & _upstream_of(model.graph, backbone_taps)
    for tap, read in (exact or {}).items():
        trunk -= _upstream_of(model.graph, [tap]) - _upstream_of(model.graph, [read])
    # What a graph inside a node reads must keep its type: the types in there are not ours to change.
    inner = _names_in_subgraphs(model.graph)
    lowered = {i for i in trunk if nodes[i].op_type in _LOWERED and not inner.intersection(nodes[i].output)}
    if not lowered:
        raise UsageError("nothing to lower: no convolution or product leads to a backbone's output")
    try:
        _Bfloat16(model, lowered).rewrite()
        onnx.checker.check_model(skeleton(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UsageError(f"the graph cannot be written in bf16: {str(error).strip()}") from error
    return model


def lower(
    graph: onnx.ModelProto,
    precision: Precision,
    backbone_taps: Iterable[str],
    exact: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """The graph in a precision: itself in fp32, else a lowered copy; see ``lower_to_bf16``."""
    return graph if precision is Precision.FP32 else lower_to_bf16(graph, backbone_taps, exact)
