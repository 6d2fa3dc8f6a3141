"""Holding a stage against its reference over photographs, with the tolerance of its precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.bench.parity import FAST_LEVELS, TOLERANCES, Comparison, Parity, Tolerance
from vsa_rt.contracts import Precision, Resample
from vsa_rt.manifest import GateRecord, Manifest
from vsa_rt.pipeline.images import PreparedBatch

#: Every tap of one batch.
Arrays = Mapping[str, NDArray[Any]]
#: Runs one batch of inputs ``(N, H, W, 3)`` by name.
Run = Callable[[dict[str, NDArray[np.uint8]]], Arrays]


def tolerance_for(precision: Precision, resample: Resample = Resample.EXACT) -> Tolerance:
    """What a precision and a resample may change together.

    The fast resample moves pixels, so every tap behind them moves too; only decisions are gated then.
    """
    allowed = TOLERANCES[precision]
    if resample is Resample.EXACT:
        return allowed
    loose = TOLERANCES[Precision.BF16]
    return dataclasses.replace(
        loose,
        relative=float("inf"),
        gain=0.05,
        scores=2 * loose.scores,
        levels=FAST_LEVELS,
        tie=2 * loose.tie,
    )


def run_in_parts(run: Run, inputs: dict[str, NDArray[np.uint8]], size: int) -> Arrays:
    """Run a batch that may be larger than the engine's own."""
    count = len(next(iter(inputs.values())))
    parts = []
    for start in range(0, count, size):
        part = {name: np.ascontiguousarray(array[start : start + size]) for name, array in inputs.items()}
        parts.append({name: np.array(value) for name, value in run(part).items()})
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def judge(
    stage: str,
    reference: str,
    batches: Iterable[tuple[PreparedBatch, Arrays]],
    run: Run,
    tolerance: Tolerance,
    labels: Sequence[str],
    reference_labels: Sequence[str],
    max_batch: int,
) -> Parity:
    """Compare one candidate with the reference's outputs.

    Args:
        stage: What to call the candidate.
        reference: ``torch`` or ``onnx``.
        batches: Photographs with the reference's taps.
        run: The candidate.
        tolerance: What is allowed.
        labels: The candidate's labels.
        reference_labels: The reference's.
        max_batch: The candidate's largest batch.
    """
    comparison = Comparison(stage, reference, tolerance, labels, reference_labels)
    for batch, taps in batches:
        comparison.add_inputs(batch.names, batch.reference, batch.candidate)
        outputs = run_in_parts(run, batch.candidate, max_batch)
        truth = [p.label for p in batch.photographs]
        comparison.add_taps(batch.names, taps, outputs, truth)
    return comparison.result()


def decides(manifest: Manifest) -> bool:
    """Whether the labels mean something: a head on random weights decides nothing and is judged at its taps."""
    return bool(manifest.labels) and all(c.random_seed is None for c in manifest.checkpoints.values())


def record_of(parity: Parity) -> GateRecord:
    """The verdict as the manifest keeps it."""
    return GateRecord(
        stage=parity.stage,
        reference=parity.reference,
        images=parity.images,
        passed=parity.passed,
        reasons=parity.reasons,
        worst={t.tap: float(f"{t.relative:.3g}") for t in parity.taps if np.isfinite(t.relative)},
        flips=len(parity.flips) - parity.ties,
        ties=parity.ties,
    )
