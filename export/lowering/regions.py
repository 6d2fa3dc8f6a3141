"""Which backbone a node's arithmetic belongs to, and where the backbones begin and end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

#: Where the backbones' arithmetic begins: what lies before is normalisation of pixels.
_ENTRANCES = frozenset({"Conv", "MatMul", "Gemm"})


def _downstream_of_entrance(graph: onnx.GraphProto) -> set[int]:
    """Indices of nodes that are an entrance or come after one. Nodes are in topological order (ONNX)."""
    reached: set[str] = set()
    found: set[int] = set()
    for index, node in enumerate(graph.node):
        if node.op_type in _ENTRANCES or any(name in reached for name in node.input):
            found.add(index)
            reached.update(node.output)
    return found


def upstream_of(graph: onnx.GraphProto, tensors: Iterable[str]) -> set[int]:
    """Indices of nodes that these tensors depend on."""
    wanted = set(tensors)
    found: set[int] = set()
    for index in reversed(range(len(graph.node))):
        if wanted.intersection(graph.node[index].output):
            found.add(index)
            wanted.update(graph.node[index].input)
    return found


def owners(
    graph: onnx.GraphProto, taps: Iterable[str], exact: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Which backbone each node's arithmetic belongs to.

    A node that several backbones need belongs to the innermost: the trunk that the others read. What only prepares
    pixels, or comes after the backbones, belongs to none.

    Args:
        graph: Its nodes have names of their own.
        taps: Outputs where the backbones end.
        exact: Of these, the ones whose own arithmetic stays in float32, each with the tap that it reads.

    Returns:
        Node name to tap, in the graph's order.
    """
    behind = _downstream_of_entrance(graph)
    needed = {tap: upstream_of(graph, [tap]) & behind for tap in taps}
    found: dict[int, str] = {}
    for tap in sorted(needed, key=lambda t: len(needed[t])):
        for index in needed[tap]:
            found.setdefault(index, tap)
    for tap, read in (exact or {}).items():
        for index in needed[tap] - needed[read]:
            found.pop(index, None)
    return {graph.node[index].name: found[index] for index in sorted(found)}


def behind_backbones(graph: onnx.GraphProto, owned: Iterable[str]) -> set[str]:
    """Names of the nodes that compute on what backbones give and belong to none of them: the head, and its like.

    Args:
        graph: Its nodes have names of their own.
        owned: What belongs to the backbones.
    """
    mine = set(owned)
    return {graph.node[index].name for index in _downstream_of_entrance(graph)} - mine
