"""A plan written into a graph: Q/DQ first, then the float types around them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

import onnx

from vsa_rt.contracts import Precision
from vsa_rt.errors import UsageError
from vsa_rt.export.lowering.casts import FLOATS, can_be_retyped, retype
from vsa_rt.export.lowering.names import name_nodes
from vsa_rt.export.lowering.normalisation import split_normalisations
from vsa_rt.export.lowering.quantise import quantisable, quantise
from vsa_rt.export.lowering.regions import behind_backbones, owners
from vsa_rt.export.quantised import refuse_quantised
from vsa_rt.export.skeleton import skeleton
from vsa_rt.plan import Plan


def prepared(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an FP32 graph as every plan starts from: nodes named, normalisations taken apart.

    Raises:
        UsageError: It is quantised already.
    """
    refuse_quantised(graph)
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    name_nodes(model)
    split_normalisations(model)
    return model


def activations(
    graph: onnx.ModelProto, taps: Iterable[str], exact: Mapping[str, str] | None = None
) -> list[str]:
    """The tensors whose ranges int8 needs, whatever the plan: what the backbones' products read.

    Args:
        graph: The FP32 graph; it is not changed.
        taps: Outputs where the backbones end.
        exact: Backbones whose own arithmetic stays in float32, each with the tap that it reads.

    Raises:
        UsageError: It is quantised already.
    """
    model = prepared(graph)
    nodes = owners(model.graph, taps, exact)
    return list(dict.fromkeys(n.input[0] for n in quantisable(model, nodes)))


def lower(
    graph: onnx.ModelProto,
    plan: Plan,
    exact: Mapping[str, str] | None = None,
    ranges: Mapping[str, float] | None = None,
) -> onnx.ModelProto:
    """Write a plan into the types of a graph's tensors; pooling, concatenation, head and scores stay float32.

    Args:
        graph: The FP32 graph; it is not changed.
        plan: Every backbone's precision.
        exact: Backbones whose own arithmetic stays in float32, each with the tap that it reads.
        ranges: Of activations, for int8: the magnitude that becomes the last level.

    Returns:
        A checked graph with the same inputs and outputs. With all backbones in fp32 it is the graph itself.

    Raises:
        UsageError: Nothing in it can be lowered, a range or a node is missing, or the result is no valid graph.
    """
    if plan.precision is Precision.FP32 and plan.head is Precision.FP32:
        return graph
    model = prepared(graph)
    check_excluded(model, plan.exclude)
    groups: dict[Precision, set[str]] = {p: set() for p in Precision}
    owner = owners(model.graph, plan.backbones, exact)
    for node, tap in owner.items():
        groups[plan.backbones[tap]].add(node)
    # What stays exact belongs to a backbone, not to the head, whose products may be half.
    groups[plan.head] |= behind_backbones(model.graph, owners(model.graph, plan.backbones))
    for nodes in groups.values():
        nodes.difference_update(plan.exclude)
    narrow = {p: can_be_retyped(model, groups[p]) for p in FLOATS}
    try:
        added = quantise(model, groups[Precision.INT8], ranges or {}, plan.around)
        if not added and not any(narrow.values()):
            raise UsageError("nothing to lower: no convolution or product leads to a backbone's output")
        if added and plan.around is not Precision.FP32:
            narrow[plan.around] |= can_be_retyped(model, groups[Precision.INT8] | added)
        for precision, nodes in narrow.items():
            if nodes:
                retype(model, nodes, precision)
        onnx.checker.check_model(skeleton(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UsageError(f"the graph cannot be written as {plan}: {str(error).strip()}") from error
    return model


def check_excluded(model: onnx.ModelProto, exclude: Iterable[str]) -> None:
    """Check that a graph has the nodes that are to be left out.

    Args:
        model: As ``prepared`` gives it.
        exclude: Names of nodes.

    Raises:
        UsageError: It has none of a name.
    """
    known = [n.name for n in model.graph.node]
    unknown = [name for name in exclude if name not in set(known)]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, 3)
        hint = f"; there are {', '.join(near)}" if near else ""
        raise UsageError(f"excluded node {unknown[0]!r}: the graph has none of that name{hint}")
