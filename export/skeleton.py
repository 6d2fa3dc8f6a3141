"""A graph without its weights: what checks and shape inference need, without copying a gigabyte."""

from __future__ import annotations

import onnx
from onnx import helper

#: Weights of up to this many elements stay: shapes and axes are among them, whose values inference needs.
_SMALL = 1024


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its large weights as inputs of the same type and shape.

    Args:
        model: It is not changed.

    Returns:
        A model that is valid exactly where the whole one is, and of which shapes can be inferred.
    """
    bare = onnx.ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    graph, source = bare.graph, model.graph
    graph.name = source.name or "graph"
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    taken = {value.name for value in source.input}
    for tensor in source.initializer:
        elements = 1
        for size in tensor.dims:
            elements *= size
        if elements <= _SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in taken:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return bare
