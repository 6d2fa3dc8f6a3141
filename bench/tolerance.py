"""How far a candidate of each precision may be from its reference, tap by tap."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from vsa_rt.contracts import Precision


@dataclass(frozen=True)
class Tolerance:
    """How far a candidate may be from its reference.

    Attributes:
        relative: Largest ``|c - r| / |r|`` (L2 norms) of one image's features. An image whose norm is under a
            tenth of the tap's median counts with that tenth: next to nothing differs from nothing at all.
        gain: Largest deviation from 1 of the least-squares factor between candidate and reference over all
            images. Rounding is random and averages out of it, a wrong scale does not.
        scores: Largest absolute difference of a score; infinite where a budget alone judges them. Their scale is
            then held all the same: the budget's divergence is of scaled scores, and does not see it.
        levels: Largest mean difference of one image's input, in levels of 255.
        flips: Without a budget: largest share of images with another label; one image is always allowed if it is
            a tie.
        tie: A flip where the reference's margin is under this says nothing and is reported apart: ten times the
            tolerance of a typical score. Without a budget one at a wider margin fails; with one the budget says
            which.
    """

    relative: float
    gain: float
    scores: float
    levels: float
    flips: float
    tie: float


def loosest(tolerances: Iterable[Tolerance]) -> Tolerance:
    """What a graph of several precisions may differ by: in each figure as much as the loosest of its parts.

    Args:
        tolerances: Of its parts, at least one.
    """
    parts = list(tolerances)
    return Tolerance(**{f.name: max(getattr(part, f.name) for part in parts) for f in fields(Tolerance)})


#: fp32 engines order their sums differently: 3e-6 relative was measured, 1e-4 leaves room for deeper networks.
#: fp16 keeps 11 significant bits, three more than bf16: an eighth of its relative tolerance, and of the others a
#: little more, for what falls below its smallest number.
#: bf16 keeps 8 significant bits through some 120 layers: over 704 photographs 0.19 relative, a gain of 0.995
#: and 0.045 in a score were measured, on texture scans 0.23 and 0.066 (docs/performance.md).
#: int8 moves features as far as the budget of decisions allows; what remains here catches a wrong scale.
_PURE = {
    Precision.FP32: Tolerance(relative=1e-4, gain=2e-5, scores=1e-4, levels=0.0, flips=0.0, tie=1e-3),
    Precision.FP16: Tolerance(relative=0.05, gain=0.005, scores=0.02, levels=0.0, flips=0.01, tie=0.02),
    Precision.BF16: Tolerance(relative=0.4, gain=0.01, scores=0.1, levels=0.0, flips=0.01, tie=0.1),
    Precision.INT8: Tolerance(relative=1.0, gain=0.05, scores=float("inf"), levels=0.0, flips=0.01, tie=0.1),
}
#: A mixed graph may be any of them: whoever knows its parts takes ``loosest`` of those.
TOLERANCES = _PURE | {Precision.MIXED: loosest(_PURE.values())}
#: Mean difference in levels that the fast resample may add to an input.
FAST_LEVELS = 3.0
