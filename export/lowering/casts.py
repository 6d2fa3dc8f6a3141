"""Chosen nodes read and write a narrower float type; casts stand at the borders."""

from __future__ import annotations

from collections.abc import Collection

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vsa_rt.contracts import Precision
from vsa_rt.export.lowering.names import Fresh, names_in_subgraphs
from vsa_rt.export.skeleton import skeleton

#: Precision to numpy's and ONNX's word for its type.
FLOATS = {
    Precision.BF16: (np.dtype(ml_dtypes.bfloat16), TensorProto.BFLOAT16),
    Precision.FP16: (np.dtype(np.float16), TensorProto.FLOAT16),
}
#: What is lowered: arithmetic on single elements, short sums, and moving data. Long sums (pooling, normalisation,
#: softmax) and functions that a coarse argument spoils stay in float32, and so does whatever is not listed.
LOWERED = frozenset(
    {
        "Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "Sub", "Mul", "Clip", "Relu", "LeakyRelu", "PRelu",
        "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "Elu", "Gelu", "MaxPool", "AveragePool", "Concat",
        "Pad", "Reshape", "Transpose", "ReduceMax", "ReduceMin", "Abs", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split",
        "QuantizeLinear", "DequantizeLinear",
    }
)  # fmt: skip


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(skeleton(model))
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT} | {
        t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT
    }


class _Rewriter:
    """Rewrites one graph: chosen nodes read and write the narrow type, casts stand at the borders."""

    def __init__(self, model: onnx.ModelProto, lowered: Collection[str], precision: Precision) -> None:
        self.model, self.lowered, self.word = model, lowered, str(precision)
        self.dtype, self.kind = FLOATS[precision]
        self.floats = _float_tensors(model)
        self.initializers = {t.name: t for t in model.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[str, str] = {}  # fp32 name -> its narrow twin
        self.full: dict[str, str] = {}  # narrow name -> its fp32 twin
        self.born_low: set[str] = set()  # names whose tensor is now narrow
        self.inner = names_in_subgraphs(model.graph)
        self.fresh = Fresh(model.graph)

    def _cast(self, source: str, result: str, kind: int, name: str) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [result], self.fresh(name), to=kind))

    def _low(self, name: str) -> str:
        """The narrow form of a float tensor."""
        if name in self.born_low:
            return name
        if name not in self.made:
            twin = self.made[name] = self.fresh(f"{name}_{self.word}")
            weight = self.initializers.get(name)
            if weight is not None:
                # An infinite bound of a Clip may be written as float32's largest number: in half it is infinity again.
                with np.errstate(over="ignore"):
                    values = numpy_helper.to_array(weight).astype(self.dtype)
                self.model.graph.initializer.append(numpy_helper.from_array(values, twin))
            else:
                self._cast(name, twin, self.kind, f"{name}_to_{self.word}")
        return self.made[name]

    def _full(self, name: str) -> str:
        """The fp32 form of a tensor that is now narrow."""
        if name not in self.born_low:
            return name
        twin = self.full.get(name, "")
        if not twin:
            twin = self.full[name] = self.fresh(f"{name}_fp32")
            self._cast(name, twin, TensorProto.FLOAT, f"{name}_to_fp32")
        return twin

    def _lower(self, node: onnx.NodeProto, outputs: set[str]) -> None:
        node.input[:] = [self._low(n) if n in self.floats else n for n in node.input]
        casts: list[tuple[str, str]] = []
        for place, name in enumerate(node.output):
            if name in self.floats and name in outputs:  # a graph's output stays fp32
                low = self.made[name] = self.fresh(f"{name}_{self.word}")
                node.output[place] = low
                self.born_low.add(low)
                casts.append((low, name))
            elif name in self.floats:
                self.born_low.add(name)
        self.nodes.append(node)
        for low, full in casts:
            self._cast(low, full, TensorProto.FLOAT, f"{full}_to_fp32")

    def rewrite(self) -> None:
        outputs = {o.name for o in self.model.graph.output}
        for node in self.model.graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            if node.name in self.lowered:
                self._lower(copy, outputs)
            else:
                copy.input[:] = [self._full(n) for n in node.input]
                self.nodes.append(copy)
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)
        drop_unused(self.model, keep=self.inner)


def drop_unused(model: onnx.ModelProto, keep: Collection[str] = ()) -> None:
    """Remove weights that no node reads, and types that may hold no longer.

    Args:
        model: Changed in place.
        keep: Names that graphs inside nodes read.
    """
    used = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
    kept = [t for t in model.graph.initializer if t.name in used or t.name in keep]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.value_info[:]


def retype(model: onnx.ModelProto, nodes: Collection[str], precision: Precision) -> None:
    """Let nodes compute in a narrower float type.

    Args:
        model: Changed in place; its nodes have names of their own.
        nodes: Names of the nodes; weights that they read are rounded to nearest even.
        precision: ``bf16`` or ``fp16``.
    """
    _Rewriter(model, nodes, precision).rewrite()


def can_be_retyped(model: onnx.ModelProto, nodes: Collection[str]) -> set[str]:
    """Those of the nodes that may compute in a narrower float type: see ``LOWERED``.

    What a graph inside a node reads must keep its type: the types in there are not ours to change.
    """
    inner = names_in_subgraphs(model.graph)
    return {
        n.name
        for n in model.graph.node
        if n.name in nodes and n.op_type in LOWERED and not inner.intersection(n.output)
    }
