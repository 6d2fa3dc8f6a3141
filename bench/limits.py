"""Distance to the limit: the least time that a graph and its parts can take here, beside what they took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vsa_rt.bench.cost import HEAD, Graph
from vsa_rt.bench.layers import by_backbone
from vsa_rt.bench.records.limits import Ceiling, Floor, Limits, Profile
from vsa_rt.bench.records.timing import Plan

WHOLE = "whole"


def _compute_ceiling(ceilings: Sequence[Ceiling], plan: Plan) -> Ceiling | None:
    """The higher one of convolution and product of matrices, in the plan's precision by the plan's library."""
    fitting = [
        c
        for c in ceilings
        if c.kind != "copy"
        and c.value is not None
        and (c.precision, c.library, c.threads) == (plan.precision, plan.target, plan.threads)
    ]
    return max(fitting, key=lambda c: c.value or 0.0, default=None)


def _copy_ceiling(ceilings: Sequence[Ceiling], plan: Plan) -> Ceiling | None:
    fitting = [c for c in ceilings if c.kind == "copy" and c.value and c.threads == plan.threads]
    return max(fitting, key=lambda c: c.value or 0.0, default=None)


def _measured(profile: Profile | None, call_ms: float) -> dict[str, float]:
    """Milliseconds by part: a part's share of the layers' time, of the call without counters."""
    if profile is None:
        return {}
    spent = by_backbone(profile)
    whole = sum(spent.values())
    return {part: call_ms * ms / whole for part, ms in spent.items()} if whole else {}


def _note(compute: Ceiling, graph: Graph, profile: Profile | None, measured: Mapping[str, float]) -> str:
    words = [
        f"compute against the {compute.kind} of {compute.library} in {compute.precision}, the higher of both",
        "bytes against the copy, although weights that stay in a cache can come faster",
    ]
    if profile is None:
        words.append("without a layer profile the parts' times cannot be told apart")
    elif not measured:
        words.append(f"{profile.source} told no times")
    else:
        unknown = measured.get("", 0.0) / sum(measured.values())
        words.append(f"parts by their shares in {profile.source}, {unknown:.1%} of whose time is nobody's")
    if graph.unknown:
        first = next(iter(graph.unknown.items()))
        words.append(f"nodes that are not counted: {len(graph.unknown)}, such as {first[0]}: {first[1]}")
    return "; ".join(words)


def limits(
    plan: Plan,
    batch: int,
    graph: Graph,
    parts: Mapping[str, str],
    ceilings: Sequence[Ceiling],
    call_ms: float,
    profile: Profile | None = None,
) -> Limits:
    """Hold a plan's time against what the machine could do.

    A part's floor is ``max(macs / compute ceiling, bytes / copy ceiling)`` (the roofline of Williams, Waterman and
    Patterson 2009), with the least bytes: its weights once, what it reads from outside, what is read outside. The
    ceiling is that of the plan's precision; nodes that the graph keeps in a wider one have a higher floor in truth.

    Args:
        plan: Its target, precision and threads choose the ceilings.
        batch: Images per call.
        graph: Counted for that batch, in the plan's precision.
        parts: Whose each node is (``cost.owners``).
        ceilings: Of the machine.
        call_ms: Of the plan at that batch, measured without counters.
        profile: Of the same plan and batch, for the parts' times.

    Returns:
        Backbones in the graph's order, the head, the whole; no floors where a ceiling is missing, with the reason.
    """
    compute, copy = _compute_ceiling(ceilings, plan), _copy_ceiling(ceilings, plan)
    if compute is None or compute.value is None or copy is None or copy.value is None:
        what = (
            "copy" if compute is not None else f"convolution or product in {plan.precision} by {plan.target}"
        )
        why = next(
            (c.note for c in ceilings if (c.precision, c.library) == (plan.precision, plan.target)), ""
        )
        note = f"no ceiling of a {what} on {plan.threads} threads" + (f": {why}" if why else "")
        return Limits(plan=plan.name, batch=batch, floors=[], note=note)
    measured = _measured(profile, call_ms)
    names = [name for name in dict.fromkeys(parts.values()) if name != HEAD]
    if HEAD in parts.values():
        names.append(HEAD)
    chosen = {part: [name for name, owner in parts.items() if owner == part] for part in names}
    chosen[WHOLE] = list(graph.nodes)
    note = _note(compute, graph, profile, measured)
    measured[WHOLE] = call_ms
    floors = []
    for part, nodes in chosen.items():
        macs, nbytes = sum(graph.nodes[name].macs for name in nodes), graph.least_bytes(nodes)
        # 10^9 per second are 10^6 per millisecond.
        by_compute, by_memory = macs / compute.value / 1e6, nbytes / copy.value / 1e6
        took = measured.get(part)
        least = max(by_compute, by_memory)
        floors.append(
            Floor(
                part=part,
                macs=macs,
                nbytes=nbytes,
                precision=compute.precision,
                floor_ms=least,
                bound="compute" if by_compute >= by_memory else "memory",
                measured_ms=took,
                share=least / took if took else None,
            )
        )
    if any(floor.share is not None and floor.share > 1 for floor in floors):
        note += (
            "; a share above 1: the ceilings were measured on a busier machine than the call, measure again"
        )
    return Limits(plan=plan.name, batch=batch, floors=floors, note=note)
