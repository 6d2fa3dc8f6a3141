"""Holding a stage against its reference over photographs, with the tolerance of its precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.bench.parity import FAST_LEVELS, TOLERANCES, Comparison, Parity, Tolerance, loosest
from vsa_rt.budget import Budget
from vsa_rt.contracts import Precision, Resample
from vsa_rt.dataset import Photograph
from vsa_rt.manifest import GateRecord, InputRecord, Manifest
from vsa_rt.pipeline.images import PhotographFeed, Prepare, PreparedBatch, batch_of
from vsa_rt.recipe import Recipe
from vsa_rt.runtime.resample import effective

#: Every tap of one batch.
Arrays = Mapping[str, NDArray[Any]]
#: Runs one batch of inputs ``(N, H, W, 3)`` by name.
Run = Callable[[dict[str, NDArray[Any]]], Arrays]


@dataclasses.dataclass(frozen=True)
class Judged:
    """A reference's outputs over some photographs, to hold several candidates against.

    Attributes:
        batches: Photographs with the reference's taps.
        stand_ins: How many of them got stand-ins for their ready tensors.
        skipped: How many photographs could not be read.
    """

    batches: list[tuple[PreparedBatch, Arrays]]
    stand_ins: int = 0
    skipped: int = 0


@dataclasses.dataclass(frozen=True)
class Reference:
    """Something to be held against.

    Attributes:
        name: ``torch``, ``onnx`` or ``golden``.
        why: Why it is not torch; empty if it is.
        labels: In the order of its scores.
        prepare: Its transform.
        run: Every tap of one batch.
    """

    name: str
    why: str
    labels: list[str]
    prepare: Prepare
    run: Run


#: Where labels decide nothing there is no budget, and taps are all that is judged: seeded networks moved by 0.5.
_INT8_ALONE = 0.6


def tolerance_for(precision: Precision, resample: Resample = Resample.EXACT) -> Tolerance:
    """What a precision and a resample may change together.

    The fast resample moves pixels, so every tap behind them moves too; only decisions are gated then.
    """
    return _resampled(TOLERANCES[precision], resample)


def _resampled(allowed: Tolerance, resample: Resample) -> Tolerance:
    if resample is Resample.EXACT:
        return allowed
    loose = loosest([TOLERANCES[Precision.BF16], allowed])
    return dataclasses.replace(
        loose,
        relative=float("inf"),
        gain=0.05,
        scores=2 * loose.scores,
        levels=FAST_LEVELS,
        tie=2 * loose.tie,
    )


def _tap_tolerances(
    manifest: Manifest, plan: Mapping[str, Precision], decided: bool, resample: Resample
) -> dict[str, Tolerance]:
    """What each tap may differ by: as its own backbone and what that reads, behind the backbones as any of them."""
    reads = {t.name: t.reads for t in manifest.taps}

    def behind(tap: str) -> set[Precision]:
        parts: set[Precision] = set()
        while tap in plan:
            parts.add(plan[tap])
            tap = reads.get(tap, "")
        return parts

    found = {}
    for tap in reads:
        allowed = loosest(TOLERANCES[p] for p in behind(tap) or set(plan.values()) or {Precision.FP32})
        if not decided:
            allowed = dataclasses.replace(allowed, relative=min(allowed.relative, _INT8_ALONE))
        found[tap] = _resampled(allowed, resample)
    return found


def run_reference(
    reference: Reference,
    inputs: Sequence[InputRecord],
    photographs: list[Photograph],
    recipe: Recipe | None = None,
) -> Judged:
    """The reference's taps over photographs; the recipe says how many of them go together."""
    feed = PhotographFeed(inputs, reference.prepare, batch=batch_of(recipe))
    batches = [(batch, reference.run(batch.reference)) for batch in feed.batches(photographs)]
    return Judged(batches, feed.stand_ins, len(feed.rejected))


def run_in_parts(run: Run, inputs: dict[str, NDArray[Any]], size: int) -> Arrays:
    """Run a batch that may be larger than the engine's own."""
    count = len(next(iter(inputs.values())))
    parts = []
    for start in range(0, count, size):
        part = {name: np.ascontiguousarray(array[start : start + size]) for name, array in inputs.items()}
        parts.append({name: np.array(value) for name, value in run(part).items()})
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def comparison_of(
    stage: str,
    reference: Reference,
    manifest: Manifest,
    precision: Precision,
    resample: Resample = Resample.EXACT,
    budget: Budget | None = None,
    plan: Mapping[str, Precision] | None = None,
) -> Comparison:
    """A comparison with the tolerance of a precision and the words of a bundle.

    Args:
        stage: What to call the candidate.
        reference: What it is held against.
        manifest: The candidate's labels, taps and task.
        precision: The candidate's.
        resample: How the host resizes.
        budget: What a lowered candidate's decisions may change; ``None`` leaves them to the tolerance.
        plan: Tap of every backbone of a lowered candidate to its precision; each tap has the tolerance of its own.
    """
    decided = decides(manifest)
    resample = effective(resample, [i.resize.kernel for i in manifest.inputs if i.resize is not None])
    return Comparison(
        stage=stage,
        reference=reference.name,
        tolerance=tolerance_for(precision, resample),
        taps=_tap_tolerances(manifest, plan, decided, resample) if plan else {},
        labels=manifest.labels if decided else [],
        reference_labels=reference.labels if decided else [],
        task=manifest.task,
        threshold=manifest.threshold,
        required=[t.name for t in manifest.taps],
        budget=budget if decided else None,
    )


def compare_batch(
    comparison: Comparison, batch: PreparedBatch, taps: Arrays, run: Run, max_batch: int
) -> None:
    """Add one batch of photographs: what the host made of them, and what the candidate says."""
    comparison.add_inputs(batch.names, batch.reference, batch.candidate)
    outputs = run_in_parts(run, batch.candidate, max_batch)
    comparison.add_taps(batch.names, taps, outputs, [p.truth for p in batch.photographs])


def compare_sizes(
    comparison: Comparison, batch: PreparedBatch, taps: Arrays, run: Run, max_batch: int
) -> None:
    """Add the first photographs once more in every power of two: backends compile each batch size on its own."""
    size = 1
    while size <= max_batch:
        chosen = np.arange(size) % len(batch.photographs)
        inputs = {name: np.ascontiguousarray(array[chosen]) for name, array in batch.candidate.items()}
        names = [f"{batch.names[i]} in a batch of {size}" for i in chosen]
        comparison.add_repeat(names, {n: a[chosen] for n, a in taps.items()}, run(inputs))
        size *= 2


def judge(comparison: Comparison, judged: Judged, run: Run, max_batch: int, sizes: bool = True) -> Parity:
    """Compare one candidate with the reference's outputs over photographs, and in every batch size.

    Args:
        comparison: Fresh, of the candidate.
        judged: Photographs with the reference's taps.
        run: The candidate.
        max_batch: The candidate's largest batch.
        sizes: Whether every batch size is run; without it, only as many images at a time as there are.
    """
    for batch, taps in judged.batches:
        compare_batch(comparison, batch, taps, run, max_batch)
    if sizes:
        compare_sizes(comparison, *judged.batches[0], run, max_batch)
    return comparison.result()


def decides(manifest: Manifest) -> bool:
    """Whether the labels mean something: a random head decides nothing, and its network is judged at the taps."""
    head = manifest.checkpoints.get("head")
    return bool(manifest.labels) and (head is None or head.random_seed is None)


def record_of(parity: Parity, judged: Judged) -> GateRecord:
    """The verdict as the manifest keeps it, with what it was found on."""
    return GateRecord(
        stage=parity.stage,
        reference=parity.reference,
        images=parity.images,
        passed=parity.passed,
        reasons=parity.reasons,
        worst={
            t.tap: float(f"{t.relative:.3g}")
            for t in parity.taps
            if t.relative is not None and np.isfinite(t.relative)
        },
        flips=len(parity.flips) - parity.ties,
        ties=parity.ties,
        stand_ins=judged.stand_ins,
        skipped=judged.skipped,
    )
