"""What of a plan can be taken back: products and what follows them, backbone by backbone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import onnx

from vsa_rt.contracts import Precision
from vsa_rt.export.lowering.casts import can_be_retyped
from vsa_rt.export.lowering.lower import prepared
from vsa_rt.export.lowering.quantise import quantisable
from vsa_rt.export.lowering.regions import owners
from vsa_rt.plan import Plan

#: What begins a unit: everything else that is lowered follows one of these.
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Unit:
    """Nodes that are lowered, or left in fp32, together.

    Attributes:
        backbone: The tap whose arithmetic they belong to.
        op: Operator of the first of them.
        weights: Shape of the constant that the first one multiplies with; empty without one.
        nodes: Their names in the graph's order, the product first. What follows a product (its activation, the
            addition of a shortcut) is with it where float types are narrowed: alone it would only add casts.
    """

    backbone: str
    op: str
    weights: tuple[int, ...]
    nodes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The first node's."""
        return self.nodes[0]


def units_of(
    graph: onnx.ModelProto,
    plan: Plan,
    exact: Mapping[str, str] | None = None,
    ranges: Mapping[str, float] | None = None,
) -> list[Unit]:
    """Everything that a plan lowers in its backbones.

    Where int8 stands in fp32, products are the only nodes that change, and each is a unit of its own.

    Args:
        graph: The FP32 graph; it is not changed.
        plan: What it lowers, without what it excludes.
        exact: Backbones whose own arithmetic stays in float32, each with the tap that it reads.
        ranges: Of activations, for int8; a product that reads one of range 0 is not quantised.

    Returns:
        Backbone by backbone, each in the graph's order.

    Raises:
        UsageError: The graph is quantised already.
    """
    model = prepared(graph)
    owner = owners(model.graph, plan.backbones, exact)
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    by_name = {n.name: n for n in model.graph.node}
    found = []
    for tap, precision in plan.backbones.items():
        mine = {name for name, whose in owner.items() if whose == tap} - set(plan.exclude)
        for nodes in _groups(model, mine, precision, plan.around, ranges or {}):
            first = by_name[nodes[0]]
            constants = (shapes[name] for name in first.input[1:2] if name in shapes)
            product = first.op_type in _PRODUCTS
            found.append(Unit(tap, first.op_type, next(constants, ()) if product else (), tuple(nodes)))
    return found


def _groups(
    model: onnx.ModelProto,
    mine: Collection[str],
    precision: Precision,
    around: Precision,
    ranges: Mapping[str, float],
) -> Iterator[list[str]]:
    """The nodes of one backbone that are lowered, in groups."""
    if precision is Precision.FP32:
        return
    if precision is Precision.INT8 and around is Precision.FP32:
        yield from ([n.name] for n in quantisable(model, mine) if ranges.get(n.input[0], 1.0) > 0)
        return
    narrow = can_be_retyped(model, mine)
    groups: dict[str, list[str]] = {}
    leader: dict[str, str] = {}  # tensor -> first node of the group that makes it
    for node in model.graph.node:
        if node.name in narrow:
            before = (
                None
                if node.op_type in _PRODUCTS
                else next((leader[n] for n in node.input if n in leader), None)
            )
            first = before or node.name
            groups.setdefault(first, []).append(node.name)
            leader.update(dict.fromkeys(node.output, first))
    yield from groups.values()
