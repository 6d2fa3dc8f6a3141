"""Batch normalisation that no convolution took in, as one product and one sum."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vsa_rt.export.lowering.names import Fresh
from vsa_rt.export.skeleton import skeleton


def _maps(model: onnx.ModelProto) -> set[str]:
    """Names of float32 tensors ``(N, C, H, W)``."""
    inferred = onnx.shape_inference.infer_shapes(skeleton(model)).graph
    return {
        v.name
        for v in (*inferred.value_info, *inferred.input)
        if v.type.tensor_type.elem_type == TensorProto.FLOAT and len(v.type.tensor_type.shape.dim) == 4
    }


def split_normalisations(model: onnx.ModelProto) -> None:
    """Write each BatchNormalization as one product and one sum per channel, folded in double precision.

    Those that no convolution stands before, as in pre-activation networks, remain in a graph. With statistics in
    bfloat16 they would lose more than their own rounding, and in float32 each would cost two casts. The product takes
    over the node's name with ``_scale`` behind it, the sum the name itself.
    """
    known = {t.name: t for t in model.graph.initializer}
    maps, fresh = _maps(model), Fresh(model.graph)
    nodes: list[onnx.NodeProto] = []
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
        product = fresh(f"{node.name}_scale")
        nodes.append(helper.make_node("Mul", [node.input[0], names[0]], [names[2]], product))
        nodes.append(helper.make_node("Add", [names[2], names[1]], [result], node.name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
