"""Layer profile: what the backend's own counters say, mapped to ONNX nodes, backbones and kinds of layer."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping

from vsa_rt.bench import clock
from vsa_rt.bench.cost import Graph, Node
from vsa_rt.bench.layer_kinds import COMPUTE, RANK, kind_of_word
from vsa_rt.bench.records.limits import Layer, Profile
from vsa_rt.engines.backend import Profiler, RawLayer, Tensors

#: So many nodes at most lie between a fused layer's last node, by which some backends name it, and its product.
_FUSED = 8


class _Map:
    """From the backend's layers to a graph's nodes."""

    def __init__(self, graph: Graph, parts: Mapping[str, str], raw: Iterable[RawLayer]) -> None:
        self._graph, self._parts = graph, parts
        self._producers = graph.producers()
        # Nodes that a layer names are that layer's: no other one reaches through them.
        self._named = {node.name for layer in raw for node in self._found(layer.nodes)}

    def _found(self, names: Iterable[str]) -> Iterator[Node]:
        """Nodes by their names, or by those of the tensors that they write."""
        for name in names:
            node = self._graph.nodes.get(name) or self._graph.nodes.get(self._producers.get(name, ""))
            if node is not None:
                yield node

    def _fused_before(self, node: Node) -> list[Node]:
        """The nodes between a fused layer's last node and its product, and the product; empty if there is none.

        ONNX Runtime names a convolution with a fused activation by the activation's result.
        """
        chain: list[Node] = []
        while len(chain) < _FUSED:
            above = [n for n in self._found(node.inputs) if not n.folded and n.name not in self._named]
            if len(above) != 1:
                return []
            node = above[0]
            chain.append(node)
            if node.kind in COMPUTE:
                return chain
        return []

    def nodes(self, layer: RawLayer) -> list[Node]:
        """The nodes that a layer holds, so far as its names tell."""
        found = list({node.name: node for node in self._found(layer.nodes)}.values())
        if kind_of_word(layer.kind) in COMPUTE and found and not any(n.kind in COMPUTE for n in found):
            found = [*reversed(self._fused_before(found[0])), *found]
        return found

    def part(self, layer: RawLayer, nodes: Iterable[Node]) -> str:
        """Whose a layer is: of fused nodes, that of the costliest; of what the backend added, its reader's."""
        counted = [node for node in nodes if not node.folded] or list(self._found(layer.feeds))
        if not counted:
            return ""
        costliest = max(counted, key=lambda node: (node.macs, node.nbytes))
        return self._parts.get(costliest.name, "")

    def kind(self, layer: RawLayer, nodes: Iterable[Node]) -> str:
        """The kind of the layer's most telling node; without nodes, what the backend's own word means."""
        kinds = {node.kind for node in nodes}
        return next((kind for kind in RANK if kind in kinds), kind_of_word(layer.kind))


def map_layers(raw: list[RawLayer], graph: Graph, parts: Mapping[str, str]) -> list[Layer]:
    """A backend's layers with their ONNX nodes, backbones and kinds.

    Args:
        raw: As the backend tells them.
        graph: That the engine was built from.
        parts: Whose each node is; see ``cost.owners``.

    Returns:
        One entry each, slowest first.
    """
    mapped = _Map(graph, parts, raw)
    layers = []
    for layer in raw:
        nodes = mapped.nodes(layer)
        layers.append(
            Layer(
                name=layer.name,
                nodes=[node.name for node in nodes],
                backbone=mapped.part(layer, nodes),
                kind=mapped.kind(layer, nodes),
                precision=layer.precision,
                ms=layer.ms,
            )
        )
    return sorted(layers, key=lambda layer: -layer.ms)


def profile(
    profiler: Profiler,
    graph: Graph,
    parts: Mapping[str, str],
    feed: Tensors,
    plan: str,
    calls: int = 20,
    warm_up: int = 3,
) -> Profile:
    """Run an engine with its counters on.

    Args:
        profiler: Of ``open_profiler``; it is finished here.
        graph: That the engine was built from.
        parts: Whose each node is.
        feed: One batch of every input, C-contiguous.
        plan: The plan's name.
        calls: How many are counted.
        warm_up: Calls before them.

    Raises:
        ValueError: No call is asked for.
    """
    if calls < 1:
        raise ValueError(f"calls={calls}: expected 1 or more")
    times = []
    try:
        for _ in range(warm_up):
            profiler.run(feed)
        for _ in range(calls):
            times.append(clock.single(lambda: profiler.run(feed)) * 1e3)
            profiler.collect()
    finally:
        raw = profiler.finish()
    return Profile(
        plan=plan,
        batch=len(next(iter(feed.values()))),
        source=profiler.source,
        calls=calls,
        call_ms=statistics.median(times),
        layers=map_layers(raw, graph, parts),
    )


def _sum(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for key, ms in pairs:
        sums[key] = sums.get(key, 0.0) + ms
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def by_backbone(profile: Profile) -> dict[str, float]:
    """Milliseconds per call by backbone, slowest first; an empty name for layers that nobody could be told for."""
    return _sum((layer.backbone, layer.ms) for layer in profile.layers)


def by_kind(profile: Profile) -> dict[str, float]:
    """Milliseconds per call by kind of layer, slowest first."""
    return _sum((layer.kind, layer.ms) for layer in profile.layers)
