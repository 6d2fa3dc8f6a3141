"""Whether a graph is quantised already: nothing is measured on such a graph, and nothing lowered from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from vsa_rt.errors import UsageError

#: What only quantised graphs hold.
_QUANTISED = frozenset(
    {
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "FakeQuantize", "QLinearConv", "QLinearMatMul",
        "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearGlobalAveragePool", "QGemm", "ConvInteger", "MatMulInteger",
    }
)  # fmt: skip


def refuse_quantised(model: onnx.ModelProto) -> None:
    """Check that a graph is not quantised.

    Raises:
        UsageError: It is; the message names the first such node.
    """
    for nodes in (model.graph.node, *(f.node for f in model.functions)):
        for node in _with_inner(nodes):
            if node.op_type in _QUANTISED:
                raise UsageError(
                    f"the graph is quantised already: node {node.name or node.output[0]!r} is a {node.op_type}; "
                    "give the FP32 graph, which ranges are measured on and which is lowered"
                )


def _with_inner(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Nodes, and those of the graphs inside them."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _with_inner(attribute.g.node)
            for inner in attribute.graphs:
                yield from _with_inner(inner.node)
