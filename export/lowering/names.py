"""Names in a graph: every one that is taken, and fresh ones."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

#: Attributes that hold whole graphs; such nodes are left alone.
GRAPHS = frozenset({onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS})


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs inside a node, such as a branch of ``If``."""
    for attribute in node.attribute:
        if attribute.type in GRAPHS:
            yield from (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)


def names_in_subgraphs(graph: onnx.GraphProto) -> set[str]:
    """Every name that graphs inside nodes mention: they may read tensors from outside."""
    found: set[str] = set()
    for node in graph.node:
        for inner in subgraphs(node):
            found.update(name for n in inner.node for name in n.input)
            found.update(o.name for o in inner.output)
            found |= names_in_subgraphs(inner)
    return found


def all_names(graph: onnx.GraphProto) -> set[str]:
    """Every tensor's name in a graph and in the graphs inside its nodes."""
    found = {v.name for v in (*graph.input, *graph.output, *graph.initializer)}
    for node in graph.node:
        found.update(node.input, node.output)
        for inner in subgraphs(node):
            found |= all_names(inner)
    return found


class Fresh:
    """Gives names that nothing in a graph has yet.

    Args:
        graph: Its names are taken, those of tensors and of nodes.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._taken = all_names(graph) | {n.name for n in graph.node}

    def __call__(self, name: str) -> str:
        """The name, made longer as far as needed."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node without a name of its own one, so that people and lists can point at it.

    Nodes are named in their order, so that the same graph always gives the same names.
    """
    seen: set[str] = set()
    fresh = Fresh(model.graph)
    for node in model.graph.node:
        if not node.name or node.name in seen:
            node.name = fresh(node.name or f"{node.op_type}_{node.output[0]}")
        seen.add(node.name)
