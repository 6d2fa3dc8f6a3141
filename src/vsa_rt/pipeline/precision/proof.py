"""What ``lowered.json`` says of a lowered graph: how it was made, and what proves it safe."""

from __future__ import annotations

from typing import Literal

import msgspec

from vsa_rt.bench.parity import Parity, Tolerance
from vsa_rt.budget import Budget
from vsa_rt.manifest import CalibrationRecord, InputRecord
from vsa_rt.plan import Plan

#: The proof's file.
RECORD = "lowered.json"
#: Version of it.
SCHEMA = 1

#: Why a node stays in fp32.
Cause = Literal["asked", "exact", "ranges", "overflow", "input", "head", "around", "operator"]


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A node of the FP32 graph that computes on floats and stays in fp32.

    Attributes:
        node: Its name.
        op: Its operator.
        cause: Which rule kept it.
        reason: In words.
    """

    node: str
    op: str
    cause: Cause
    reason: str


class RangeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the range analysis saw.

    Attributes:
        photographs: How many.
        skipped: How many could not be read.
        stand_ins: How many had no files of their ready tensors.
        limit: The largest peak that is let through; half itself ends at 65504.
        peaks: Activation that was to be half, to its largest magnitude in the FP32 graph.
    """

    photographs: int
    skipped: int
    stand_ins: int
    limit: float
    peaks: dict[str, float]


class OverflowRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor that left its type's range first, the node that made it, and a photograph that did it."""

    tensor: str
    node: str
    op: str
    image: str


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the executor: what overflowed, and which nodes were therefore put back to fp32."""

    overflows: list[OverflowRecord]
    excluded: list[str]


class RoundingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the executor saw that rounds every result to the type that the graph gives it.

    Attributes:
        photographs: How many went through it.
        tensors: How many tensors typed float16 or bfloat16 it watched.
        largest: The largest magnitude among them in the last round; ``None`` if it is none.
        tensor: Which one that was.
        rounds: In order; the last one is of the graph that was judged.
    """

    photographs: int
    tensors: int
    largest: float | None
    tensor: str
    rounds: list[Round]


class Lowered(msgspec.Struct, frozen=True, kw_only=True):
    """A lowered graph and its proof.

    Attributes:
        vsa_rt: Version that made it.
        source: Digest of the bundle's manifest.
        graph: The file.
        nbytes: Its size.
        sha256: Of its bytes.
        opset: Of the default domain.
        inputs: What it takes, as the bundle.
        outputs: What it gives: tap to width, all float32.
        plan: As it was lowered, with every node that was taken out.
        kept: Every node on floats that stays in fp32, and why.
        ranges: The range analysis; ``None`` where nothing is half.
        rounding: The executor that rounds.
        tolerance: How far taps may be.
        budget: What decisions may change.
        decides: Whether labels were judged: those of a random head mean nothing.
        parity: Against the FP32 graph, run by ONNX Runtime in float32.
        calibration: What int8's ranges were measured on; ``None`` without int8.
        trtexec: The command that builds an engine of it with TensorRT.
        verdict: ``holds`` or ``failed parity``.
        reasons: Why it failed; empty if it holds.
    """

    vsa_rt: str
    source: str
    graph: str
    nbytes: int
    sha256: str
    opset: int
    inputs: list[InputRecord]
    outputs: dict[str, int]
    plan: Plan
    kept: list[Kept]
    ranges: RangeRecord | None
    rounding: RoundingRecord
    tolerance: Tolerance
    budget: Budget
    decides: bool
    parity: Parity
    calibration: CalibrationRecord | None
    trtexec: str
    verdict: Literal["holds", "failed parity"]
    reasons: list[str]
