"""Which nodes of a graph a plan types narrower than float32, what they touch, and why the others stay."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from vsa_rt.contracts import Precision
from vsa_rt.errors import needs
from vsa_rt.pipeline.precision.proof import Cause, Kept
from vsa_rt.plan import Plan

if TYPE_CHECKING:
    import onnx

#: Every type that is narrower than float32.
NARROW = (Precision.FP16, Precision.BF16)

_REASONS: dict[Cause, str] = {
    "asked": "named by --exclude",
    "exact": "what it computes cancels, so that rounding what it reads would spoil it",
    "input": "it prepares what the graph takes, before the first convolution or product",
    "head": "it comes after the backbones, and the head stays in fp32",
    "around": "it is not quantised, and what is around int8 stays in fp32",
    "operator": "a long sum, a function that a coarse argument spoils, or an operator that is not known to be safe",
}


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor whose type is known."""
    with needs("export"):
        import onnx

        from vsa_rt.export.skeleton import skeleton
    inferred = onnx.shape_inference.infer_shapes(skeleton(model)).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {v.name: v.type.tensor_type.elem_type for v in values} | {
        t.name: t.data_type for t in model.graph.initializer
    }


def narrowed_nodes(
    model: onnx.ModelProto, plan: Plan, exact: Mapping[str, str], kinds: Collection[Precision] = NARROW
) -> set[str]:
    """Names of the nodes that read and make one of some float types once a plan is written into a graph.

    Args:
        model: A graph of ``lowering.lower.prepared``.
        plan: Every backbone's precision.
        exact: Backbones whose own arithmetic stays in float32, each with the tap that it reads.
        kinds: The types.
    """
    with needs("export"):
        from vsa_rt.export.lowering.casts import can_be_retyped
        from vsa_rt.export.lowering.regions import behind_backbones, owners
    owner = owners(model.graph, plan.backbones, exact)
    floats = {tap: plan.around if p is Precision.INT8 else p for tap, p in plan.backbones.items()}
    nodes = {name for name, tap in owner.items() if floats[tap] in kinds}
    if plan.head in kinds:
        nodes |= behind_backbones(model.graph, owners(model.graph, plan.backbones))
    return can_be_retyped(model, nodes - set(plan.exclude))


def exact_nodes(model: onnx.ModelProto, plan: Plan, exact: Mapping[str, str]) -> list[str]:
    """Names of the nodes whose arithmetic has to stay in float32, whatever the head is.

    Args:
        model: A graph of ``lowering.lower.prepared``.
        plan: Its backbones.
        exact: As for ``narrowed_nodes``.
    """
    with needs("export"):
        from vsa_rt.export.lowering.regions import owners
    free = owners(model.graph, plan.backbones, exact)
    return [name for name in owners(model.graph, plan.backbones) if name not in free]


def float_activations(model: onnx.ModelProto, nodes: Collection[str]) -> list[str]:
    """The float32 tensors that nodes read or make, constants aside, each once.

    Args:
        model: In float32.
        nodes: Names.
    """
    with needs("export"):
        from onnx import TensorProto
    types = tensor_types(model)
    constants = {t.name for t in model.graph.initializer}
    constants.update(o for n in model.graph.node if n.op_type == "Constant" for o in n.output)
    touched = (name for n in model.graph.node if n.name in nodes for name in (*n.input, *n.output))
    floats = dict.fromkeys(name for name in touched if types.get(name) == TensorProto.FLOAT)
    return [name for name in floats if name not in constants]


def kept_nodes(
    model: onnx.ModelProto, plan: Plan, exact: Mapping[str, str], why: Mapping[str, tuple[Cause, str]]
) -> list[Kept]:
    """Every node on floats that stays in fp32 under a plan, in the graph's order, and why.

    Args:
        model: A graph of ``lowering.lower.prepared``.
        plan: Every backbone's precision.
        exact: As for ``narrowed_nodes``.
        why: Of nodes that the plan excludes: the cause, and a reason where the cause alone says too little.
    """
    with needs("export"):
        from onnx import TensorProto

        from vsa_rt.export.lowering.quantise import quantisable
        from vsa_rt.export.lowering.regions import behind_backbones, owners
    types = tensor_types(model)
    owner = owners(model.graph, plan.backbones, exact)
    behind = behind_backbones(model.graph, owner)
    lowered = narrowed_nodes(model, plan, exact)
    quantised = {n for n, tap in owner.items() if plan.backbones[tap] is Precision.INT8} - set(plan.exclude)
    lowered |= {n.name for n in quantisable(model, quantised)}
    found: list[Kept] = []
    for node in model.graph.node:
        floating = any(types.get(name) == TensorProto.FLOAT for name in (*node.input, *node.output))
        if node.name in lowered or node.op_type == "Constant" or not floating:
            continue
        cause: Cause
        if node.name in why:
            cause, reason = why[node.name]
        elif node.name in owner:
            around = plan.backbones[owner[node.name]] is Precision.INT8 and plan.around is Precision.FP32
            cause, reason = ("around" if around else "operator"), ""
        elif node.name in behind:
            cause, reason = ("head" if plan.head is Precision.FP32 else "operator"), ""
        else:
            cause, reason = "input", ""
        found.append(Kept(node=node.name, op=node.op_type, cause=cause, reason=reason or _REASONS[cause]))
    return found
