"""Distance to the limit: the least time that a graph and its parts can take here, beside what they took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vsa_rt.bench.cost import HEAD, Graph
from vsa_rt.bench.gpu_devices import DEVICES, PRECISIONS, Device, device_named
from vsa_rt.bench.gpu_floor import KernelTime, floor, kernel_times, part_times
from vsa_rt.bench.layers import by_backbone
from vsa_rt.bench.records.limits import Ceiling, Floor, Limits, PaperFloor, Profile
from vsa_rt.bench.records.timing import Plan
from vsa_rt.errors import UsageError

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


def _note(words: Sequence[str], graph: Graph, profile: Profile | None, measured: Mapping[str, float]) -> str:
    """What floors rest on, and which times could not be told apart."""
    words = list(words)
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


def _in_order(parts: Mapping[str, str]) -> list[str]:
    """Backbones in the graph's order, then the head."""
    names = [name for name in dict.fromkeys(parts.values()) if name != HEAD]
    return [*names, HEAD] if HEAD in parts.values() else names


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
    chosen = {part: [name for name, owner in parts.items() if owner == part] for part in _in_order(parts)}
    chosen[WHOLE] = list(graph.nodes)
    note = _note(
        [
            f"compute against the {compute.kind} of {compute.library} in {compute.precision}, the higher of both",
            "bytes against the copy, although weights that stay in a cache can come faster",
        ],
        graph,
        profile,
        measured,
    )
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


def _on_paper(part: str, times: Sequence[KernelTime], precision: str, measured: Mapping[str, float]) -> Floor:
    compute, memory = sum(t.compute_ms for t in times), sum(t.memory_ms for t in times)
    least, took = sum(t.least_ms for t in times), measured.get(part)
    return Floor(
        part=part,
        macs=sum(t.kernel.macs for t in times),
        nbytes=sum(t.nbytes for t in times),
        precision=precision,
        floor_ms=least,
        bound="compute" if compute >= memory else "memory",
        measured_ms=took,
        share=least / took if took else None,
    )


def _fastest(precisions: Mapping[str, str], device: Device) -> str:
    """The precision of a plan's backbones that the device computes fastest in; empty if it has no figure for any."""
    return max((p for p in precisions.values() if p in device.tops), key=lambda p: device.tops[p], default="")


def datasheet_limits(
    plan: Plan,
    batch: int,
    graph: Graph,
    parts: Mapping[str, str],
    machine: str,
    precisions: Mapping[str, str],
    call_ms: float,
    profile: Profile | None = None,
) -> Limits:
    """Hold a GPU plan's time against the datasheet of its GPU.

    Nothing measures a GPU's ceilings. The floor is that of ``gpu_floor.floor``, in the fastest precision that any
    backbone has: those in a wider one have a higher floor in truth.

    Args:
        plan: On a GPU.
        batch: Images per call.
        graph: The FP32 graph, counted for that batch.
        parts: Whose each of its nodes is (``cost.owners``).
        machine: The GPU's or the board's name.
        precisions: Backbone's tap to its precision in the plan.
        call_ms: Of the plan at that batch, measured without counters.
        profile: Of the same plan and batch, for the parts' times.

    Returns:
        Floors like those of ``limits``; none where no datasheet of this GPU is known, with the reason.
    """

    def without(why: str) -> Limits:
        return Limits(plan=plan.name, batch=batch, floors=[], note=why, against="datasheet")

    device = device_named(machine)
    if device is None:
        known = ", ".join(d.name for d in DEVICES)
        return without(
            f"no floor: a GPU called {machine!r} is none whose datasheet is known; there are {known}"
        )
    precision = _fastest(precisions, device)
    if not precision:
        return without(
            f"no floor: no throughput of {device.name} in {plan.precision}; there is {', '.join(device.tops)}"
        )
    try:
        times = kernel_times(graph, device, precision)
    except UsageError as error:
        return without(f"no floor: {error}")
    measured = _measured(profile, call_ms)
    words = [
        f"on paper, from the datasheet of {device.name}, all of it in {precision}: {device.source}",
        "a kernel takes at least its multiply-adds at that throughput or its bytes at that bandwidth",
        "copies and launches are in the time taken, and not in the floor",
    ]
    note = _note(words, graph, profile, measured)
    measured[WHOLE] = call_ms
    owned = part_times(times, parts)
    floors = [_on_paper(p, owned[p], precision, measured) for p in _in_order(parts) if p in owned]
    floors.append(_on_paper(WHOLE, times, precision, measured))
    if any(f.share is not None and f.share > 1 for f in floors):
        note += "; a share above 1: weights stay in the cache, or clocks are above the datasheet's"
    return Limits(plan=plan.name, batch=batch, floors=floors, note=note, against="datasheet")


def paper_floors(graph: Graph) -> list[PaperFloor]:
    """The floors of one call on every device of the budget, in each precision; nothing of it was measured.

    Args:
        graph: The FP32 graph, counted for a batch.

    Raises:
        UsageError: The graph is a quantised one.
    """
    return [floor(graph, device, precision) for device in DEVICES for precision in PRECISIONS]
