"""The independent branches of an OpenVINO model: finding them, sharing them out, cutting the model into parts."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino as ov

#: Operations that are a network's arithmetic: two branches never share one. What prepares an image for them may be
#: computed by each branch for itself.
_PRODUCTS = frozenset(
    {
        "Convolution",
        "GroupConvolution",
        "ConvolutionBackpropData",
        "GroupConvolutionBackpropData",
        "MatMul",
        "Einsum",
        "RNNSequence",
        "GRUSequence",
        "LSTMSequence",
        "RNNCell",
        "GRUCell",
        "LSTMCell",
        "TensorIterator",
        "Loop",
    }
)

#: How names begin of what one part gives another although it is no tap.
SEAM = "vsa-rt.seam."


@dataclass(frozen=True)
class Branch:
    """Taps that share arithmetic with each other and with no other branch.

    Attributes:
        taps: Their names.
        work: Multiply-adds of one image up to all of them.
    """

    taps: tuple[str, ...]
    work: int


@dataclass(frozen=True)
class Group:
    """Branches that run one beside the other groups, on threads of their own."""

    taps: tuple[str, ...]
    threads: int


def _shape(port: ov.Output | ov.Input) -> list[int]:
    """A port's shape; 1 for an axis that is not known before the call."""
    return [d.get_length() if d.is_static else 1 for d in port.get_partial_shape()]


def _multiply_adds(node: ov.Node, constant: Collection[int]) -> int:
    """Multiply-adds of a product, biases aside.

    Args:
        node: One of ``_PRODUCTS``.
        constant: Its inputs that no graph input leads to.
    """
    kind, shapes = str(node.get_type_name()), [_shape(port) for port in node.inputs()]
    if kind == "MatMul":
        transposed = node.get_attributes()["transpose_a"] and len(shapes[0]) > 1
        return math.prod(_shape(node.output(0))) * shapes[0][-2 if transposed else -1]
    if kind.startswith(("Convolution", "GroupConvolution")):
        # Every weight meets every position of its own channel: of the output, or of the input if it is transposed.
        met = shapes[0] if kind.endswith("BackpropData") else _shape(node.output(0))
        return math.prod(met) * math.prod(shapes[1]) // met[1]
    weights = sum(math.prod(shapes[i]) for i in constant)
    # Recurrent: input (N, steps, width).
    return weights * (shapes[0][1] if kind.endswith("Sequence") else 1)


def _name(node: ov.Node) -> str:
    """A node's name that no other node of the model has; the friendly one may be another's, too."""
    return str(node.get_name())


class _Above:
    """What every node of a model depends on.

    Attributes:
        work: Multiply-adds of each product.
        products: Node to the products above it and itself, a bit each.
        live: Nodes that an input of the graph leads to.
    """

    def __init__(self, model: ov.Model) -> None:
        self.work: list[int] = []
        self.products: dict[str, int] = {}
        self.live: set[str] = set()
        for node in model.get_ordered_ops():
            self._add(node)

    def _add(self, node: ov.Node) -> None:
        name, sources = _name(node), [_name(port.get_source_output().get_node()) for port in node.inputs()]
        bits = 0
        for source in sources:
            bits |= self.products[source]
        if node.get_type_name() == "Parameter" or not self.live.isdisjoint(sources):
            self.live.add(name)
            if node.get_type_name() in _PRODUCTS:
                bits |= 1 << len(self.work)
                constant = [i for i, source in enumerate(sources) if source not in self.live]
                self.work.append(_multiply_adds(node, constant))
        self.products[name] = bits

    def total(self, products: int) -> int:
        """Multiply-adds of a set of products."""
        return sum(work for bit, work in enumerate(self.work) if products >> bit & 1)


def _results(model: ov.Model, taps: Iterable[str]) -> dict[str, ov.Node]:
    """Tap name to the node that gives it out."""
    found = {name: result for result in model.get_results() for name in result.output(0).get_names()}
    return {tap: found[tap] for tap in taps}


def find_branches(model: ov.Model, taps: Iterable[str]) -> list[Branch]:
    """The independent branches of a model.

    A tap that shares a product with one branch belongs to it; one that reads several branches joins them, and so
    does all that reads it.

    Args:
        model: Its shapes fixed, for one image.
        taps: The outputs to look at.
    """
    above = _Above(model)
    reach = {tap: above.products[_name(node)] for tap, node in _results(model, taps).items()}
    found: list[tuple[int, list[str]]] = []
    # What a tap reads is above it, so that it has fewer products.
    for tap, products in sorted(reach.items(), key=lambda entry: entry[1].bit_count()):
        touched = [index for index, (known, _) in enumerate(found) if known & products]
        if products and not touched:
            found.append((products, [tap]))
        elif len(touched) == 1:
            known, members = found[touched[0]]
            found[touched[0]] = (known | products, [*members, tap])
    return [Branch(tuple(members), above.total(products)) for products, members in found]


def share_out(branches: Sequence[Branch], threads: int) -> list[Group]:
    """Balance branches over threads by their multiply-adds.

    The largest branch goes first, each to the group that has least (Graham, "Bounds on multiprocessing timing
    anomalies", 1969). Threads that are left over go, one by one, to the group with most work per thread.

    Args:
        branches: None where no tap is a backbone's: a graph without products has no work to share.
        threads: Of all groups together; there are at most as many groups.
    """
    if not branches:
        return []
    count = min(len(branches), threads)
    work = [0] * count
    taps: list[list[str]] = [[] for _ in range(count)]
    for branch in sorted(branches, key=lambda b: -b.work):
        least = work.index(min(work))
        work[least] += branch.work
        taps[least] += branch.taps
    given = [1] * count
    for _ in range(threads - count):
        given[max(range(count), key=lambda g: work[g] / given[g])] += 1
    return [Group(tuple(t), n) for t, n in zip(taps, given, strict=True)]


def cut(model: ov.Model, taps: Iterable[str], groups: Sequence[Sequence[str]]) -> list[ov.Model]:
    """Cut a model into one for each group of branches, and one for what joins them, if anything does.

    The joining part reads what the others give under the same name: a tap, or a tensor of a name of its own where it
    reads something that is no tap.

    Args:
        model: Its shapes fixed. The parts are made of its nodes: it cannot be used afterwards.
        taps: Every output that is wanted.
        groups: Taps of whole branches.
    """
    return _Cut(model, taps, groups).parts


class _Cut:
    """See ``cut``."""

    def __init__(self, model: ov.Model, taps: Iterable[str], groups: Sequence[Sequence[str]]) -> None:
        import openvino as ov

        above = _Above(model)
        results = _results(model, taps)
        self._tap_of = {self._place(node.input_value(0)): tap for tap, node in results.items()}
        #: Node with arithmetic above it to the group that computes it.
        self._owner: dict[str, int] = {}
        self._given: list[list[ov.Node]] = []
        self._seams: dict[tuple[str, int], ov.Node] = {}
        parameters: list[list[ov.Node]] = []
        for index, group in enumerate(groups):
            given = _distinct(results[tap] for tap in group)
            inside = _upstream(given)
            self._given.append(given)
            parameters.append(_parameters(inside))
            self._owner |= {n: index for n in inside if n in above.live and above.products[n]}
        grouped = {tap for group in groups for tap in group}
        joined = _distinct(node for tap, node in results.items() if tap not in grouped)
        needed = [*_parameters(self._detach(joined)), *self._seams.values()]
        self.parts = [ov.Model(g, p) for g, p in zip(self._given, parameters, strict=True)]
        if joined:
            self.parts.append(ov.Model(joined, needed))

    def _place(self, output: ov.Output) -> tuple[str, int]:
        return _name(output.get_node()), output.get_index()

    def _detach(self, joined: Sequence[ov.Node]) -> dict[str, ov.Node]:
        """Let the joining part read inputs of its own where it read a branch; gives its nodes by name."""
        pending, seen = list(joined), {_name(node): node for node in joined}
        while pending:
            for port in pending.pop().inputs():
                source = port.get_source_output()
                node, name = source.get_node(), _name(source.get_node())
                if name in self._owner:
                    port.replace_source_output(self._seam(source).output(0))
                elif name not in seen:
                    seen[name] = node
                    pending.append(node)
        return seen

    def _seam(self, source: ov.Output) -> ov.Node:
        """The joining part's input in place of what a branch computes."""
        from openvino import opset13

        place = self._place(source)
        if place not in self._seams:
            name = self._tap_of.get(place)
            if name is None:
                name = f"{SEAM}{len(self._seams)}"
                source.get_tensor().add_names({name})
                self._given[self._owner[place[0]]].append(opset13.result(source))
            seam = opset13.parameter(source.get_partial_shape(), source.get_element_type(), name=name)
            seam.output(0).set_names({name})
            self._seams[place] = seam
        return self._seams[place]


def _distinct(nodes: Iterable[ov.Node]) -> list[ov.Node]:
    """Each node once: two taps may be one tensor."""
    return list({_name(node): node for node in nodes}.values())


def _upstream(nodes: Sequence[ov.Node]) -> dict[str, ov.Node]:
    """These nodes and all above them, by name."""
    pending, seen = list(nodes), {_name(node): node for node in nodes}
    while pending:
        for value in pending.pop().input_values():
            node = value.get_node()
            if _name(node) not in seen:
                seen[_name(node)] = node
                pending.append(node)
    return seen


def _parameters(nodes: dict[str, ov.Node]) -> list[ov.Node]:
    return [node for node in nodes.values() if node.get_type_name() == "Parameter"]
