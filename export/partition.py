"""A graph cut where its backbones end: each a graph of its own, and one for what joins them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

import onnx
from onnx import helper

from vsa_rt.export.lowering.names import name_nodes, subgraphs
from vsa_rt.export.lowering.regions import owners, upstream_of
from vsa_rt.export.skeleton import skeleton

#: The part that comes after the backbones.
HEAD = "head"
#: A batch that shapes are inferred for: no other axis of a network has so many.
_IMAGES = 509


@dataclass(frozen=True)
class Piece:
    """A part of a graph as a graph of its own.

    Attributes:
        name: A tap, or ``head``.
        graph: A whole ONNX model.
        inputs: Tensors that it takes: of the whole graph, or what earlier pieces give.
        outputs: Tensors that it gives.
    """

    name: str
    graph: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def partition(graph: bytes, taps: Sequence[str]) -> list[Piece]:
    """Cut a graph at its backbones.

    No product is in two pieces: what several backbones need is in the innermost, which gives the others what they
    read, be it a tap or a tensor inside of it. What only prepares pixels or weights is in every piece that needs it.

    Args:
        graph: A whole ONNX model, of any precision.
        taps: Outputs where the backbones end.

    Returns:
        The pieces, each after those whose outputs it takes, the head last. None where there is nothing to cut: fewer
        than two backbones, backbones that each need the other, or a seam of another shape than ``(N, fixed, ...)``.
    """
    model = onnx.load_from_string(graph)
    name_nodes(model)
    # Graphs inside of nodes may read tensors from outside, which no cut would see.
    if len(taps) < 2 or any(next(subgraphs(node), None) is not None for node in model.graph.node):
        return []
    places = _places(model.graph, taps)
    needs = _needs(model.graph, places)
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError:
        return []
    if len(order) < 3:
        return []
    seams = _seams(model, places)
    types = _types(model, {tensor for found in seams.values() for tensor in found})
    if types is None:
        return []
    return [_piece(model, place, places, seams, types) for place in order]


def _places(graph: onnx.GraphProto, taps: Sequence[str]) -> dict[int, str]:
    """Index of every node that computes on a product, to the piece that it is in."""
    owned = owners(graph, taps)
    index = {node.name: i for i, node in enumerate(graph.node)}
    found = {index[name]: tap for name, tap in owned.items()}
    made: set[str] = {tensor for i in found for tensor in graph.node[i].output}
    for i, node in enumerate(graph.node):
        if i not in found and any(tensor in made for tensor in node.input):
            found[i] = HEAD
            made.update(node.output)
    # What is of no backbone, and yet comes before one, goes with the first that needs it.
    for tap in taps:
        mine = {t for i, place in found.items() if place == tap for t in graph.node[i].input}
        for i in upstream_of(graph, mine):
            if found.get(i) == HEAD:
                found[i] = tap
    return found


def _makers(graph: onnx.GraphProto) -> dict[str, int]:
    """Tensor to the index of the node that gives it."""
    return {tensor: i for i, node in enumerate(graph.node) for tensor in node.output}


def _needs(graph: onnx.GraphProto, places: Mapping[int, str]) -> dict[str, set[str]]:
    """Each piece to those whose tensors it reads."""
    makers = _makers(graph)
    found: dict[str, set[str]] = {place: set() for place in dict.fromkeys(places.values())}
    for i, place in places.items():
        for tensor in graph.node[i].input:
            source = places.get(makers.get(tensor, -1), place)
            if source != place:
                found[place].add(source)
    return found


def _seams(model: onnx.ModelProto, places: Mapping[int, str]) -> dict[str, list[str]]:
    """Each piece to what it gives: outputs of the graph, and what others read."""
    graph = model.graph
    makers = _makers(graph)
    wanted = [value.name for value in graph.output]
    for i, place in places.items():
        for tensor in graph.node[i].input:
            if places.get(makers.get(tensor, -1), place) != place:
                wanted.append(tensor)
    found: dict[str, list[str]] = {place: [] for place in places.values()}
    for tensor in dict.fromkeys(wanted):
        # What no product leads to, such as an input that is given out as it is, comes with the head.
        found.setdefault(places.get(makers.get(tensor, -1), HEAD), []).append(tensor)
    return found


def _types(model: onnx.ModelProto, tensors: Iterable[str]) -> dict[str, onnx.ValueInfoProto] | None:
    """Type and shape of tensors; none where one has not one row for each image, or another free axis.

    Inferred for a batch of some number: a name that inference gives a free axis says nothing of how many rows it has.
    """
    bare = skeleton(model)
    batch = ""
    inputs = {value.name for value in model.graph.input}
    for value in bare.graph.input:
        if value.name in inputs:
            first = value.type.tensor_type.shape.dim[0]
            batch = batch or first.dim_param or "batch"
            first.dim_value = _IMAGES
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    known = {v.name: v.type.tensor_type for v in (*inferred.value_info, *inferred.output, *inferred.input)}
    found = {}
    for name in tensors:
        sizes = [d.dim_value for d in known[name].shape.dim] if name in known else []
        if not sizes or sizes[0] != _IMAGES or not all(sizes):
            return None
        found[name] = helper.make_tensor_value_info(name, known[name].elem_type, [batch, *sizes[1:]])
    return found


def _piece(
    model: onnx.ModelProto,
    place: str,
    places: Mapping[int, str],
    seams: Mapping[str, Sequence[str]],
    types: Mapping[str, onnx.ValueInfoProto],
) -> Piece:
    graph, makers = model.graph, _makers(model.graph)
    given = {value.name: value for value in graph.input}
    kept: set[int] = set()
    taken: dict[str, onnx.ValueInfoProto] = {}
    open_ends = list(seams[place])
    seen = set(open_ends)
    while open_ends:
        tensor = open_ends.pop()
        i = makers.get(tensor)
        if i is None:
            if tensor in given:
                taken[tensor] = given[tensor]
            continue
        if places.get(i, place) != place:
            taken[tensor] = types[tensor]
            continue
        kept.add(i)
        fresh = [t for t in graph.node[i].input if t and t not in seen]
        seen.update(fresh)
        open_ends.extend(fresh)
    nodes = [graph.node[i] for i in sorted(kept)]
    read = {tensor for node in nodes for tensor in node.input}
    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = place
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(t for t in graph.initializer if t.name in read)
    # In the whole graph's order, so that the same graph gives the same bytes.
    inputs = [*(n for n in given if n in taken), *sorted(n for n in taken if n not in given)]
    part.graph.input.extend(taken[name] for name in inputs)
    part.graph.output.extend(types[name] for name in seams[place])
    return Piece(place, part.SerializeToString(), tuple(inputs), tuple(seams[place]))
