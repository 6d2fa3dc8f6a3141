"""The only place that compares: two stages over the same images, tap by tap and decision by decision.

The verdict is given here; what scores decide is in ``decisions``, what true labels say of them in ``metrics``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.bench.decisions import Flip, Rule, ScoreLog, decisions, flip_reasons, over_budget
from vsa_rt.bench.metrics import McNemar, Metric, Reliability, ReliabilityBin, label_metrics
from vsa_rt.bench.tolerance import FAST_LEVELS, TOLERANCES, Tolerance, loosest
from vsa_rt.budget import Budget
from vsa_rt.contracts import Task
from vsa_rt.errors import VsaError

Array = NDArray[Any]
#: What others import from here; what a ``Parity`` is made of included.
__all__ = [
    "FAST_LEVELS",
    "TOLERANCES",
    "Comparison",
    "Flip",
    "McNemar",
    "Metric",
    "Parity",
    "Reliability",
    "ReliabilityBin",
    "TapParity",
    "Tolerance",
    "loosest",
]


#: Images from which on the tolerance of the gain holds as it stands; fewer images get a wider one.
_GAIN_IMAGES = 16
#: Rows of scores that sum to 1 within the first in the reference must do so within the second in the candidate:
#: heads run in fp32, and what normalises a row loses a scale that it had before.
_UNIT, _UNIT_KEPT = 1e-3, 1e-2


@dataclass(frozen=True)
class TapParity:
    """One tap's comparison.

    Where an output is not a number, ``max_abs`` and ``relative`` are infinite, and mean, cosine and gain ``None``.
    JSON has ``null`` for the infinite ones, which is read back as ``None``.

    Attributes:
        tap: Its name.
        kind: ``input``, ``features``, ``views`` (scores of each view) or ``scores``.
        max_abs: Largest absolute difference.
        mean_abs: Mean absolute difference.
        relative: Largest relative difference of one image (see ``Tolerance.relative``).
        cosine: Smallest cosine of one image.
        gain: Least-squares factor over all images.
        worst: The image with the largest difference.
        reason: Why the tap fails; empty if it holds.
    """

    tap: str
    kind: str
    max_abs: float | None
    mean_abs: float | None
    relative: float | None
    cosine: float | None
    gain: float | None
    worst: str
    reason: str


@dataclass(frozen=True)
class Parity:
    """The verdict over all images.

    Attributes:
        stage: What was judged.
        reference: What it was held against.
        images: How many were compared.
        taps: In the order of the data.
        flips: Every image with another label, ties included.
        kl: Mean Kullback-Leibler divergence of the normalised scores, in nats.
        metrics: With labels only, the one that matters most first.
        reasons: Why it fails, the first tap on the data's way first; empty if it holds.
        kl_worst: Largest divergence of one image.
        kl_item: Which image; empty where nothing diverges.
        rank_changes: Images whose labels, best first, come in another order.
        kendall_tau: Mean rank correlation (tau-b) of the images' scores; ``None`` where no two labels differ in score.
        distances: Distribution only: means of the distances (``decisions.DISTANCES``) of the candidate's scores from
            the reference's.
        undecided: Images with a score that is not a number; they are in no figure but those of the taps.
        labelled: Images whose true labels are known, of which ``metrics``, ``mcnemar`` and ``reliability`` tell.
        mcnemar: Whether one side is right more often; multi-label: with an image's whole set of labels.
        reliability: Confidence against accuracy; ``None`` without labels, and for distributions.
    """

    stage: str
    reference: str
    images: int
    taps: list[TapParity]
    flips: list[Flip]
    kl: float | None
    metrics: list[Metric]
    reasons: list[str]
    kl_worst: float | None = None
    kl_item: str = ""
    rank_changes: int = 0
    kendall_tau: float | None = None
    distances: dict[str, float] = field(default_factory=dict)
    undecided: int = 0
    labelled: int = 0
    mcnemar: McNemar | None = None
    reliability: Reliability | None = None

    @property
    def passed(self) -> bool:
        """Whether every tap and the decisions stayed inside the tolerance."""
        return not self.reasons

    @property
    def ties(self) -> int:
        """Number of flips that say nothing."""
        return sum(f.tie for f in self.flips)


@dataclass
class _TapSums:
    """What one tap's comparison needs, added up image by image."""

    max_abs: float = 0.0
    sum_abs: float = 0.0
    count: int = 0
    gaps: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    broken: str = ""
    cosine: float = 1.0
    dot: float = 0.0
    norm: float = 0.0
    worst_mean: float = 0.0
    images: int = 0
    pixels: bool = True
    unit: bool = True
    unit_gap: float = 0.0
    mass: float = 0.0
    mass_there: float = 0.0

    def add(self, items: Sequence[str], reference: Array, candidate: Array, again: bool) -> None:
        # Rounding averages out over images, not over the same image computed again.
        self.images += 0 if again else len(items)
        self.pixels = reference.dtype == np.uint8
        r = reference.reshape(len(items), -1).astype(np.float64)
        c = candidate.reshape(len(items), -1).astype(np.float64)
        # A NaN anywhere must fail the tap, and max() would drop it.
        finite = np.isfinite(c).all(1) & np.isfinite(r).all(1)
        if not finite.all():
            self.max_abs = float("inf")
            self.broken = self.broken or items[int(np.argmin(finite))]
            return
        gap = np.abs(c - r)
        norms = np.linalg.norm(r, axis=1)
        dots = (r * c).sum(1)
        lengths = norms * np.linalg.norm(c, axis=1)
        cosine = np.where(lengths > 0, dots / np.where(lengths > 0, lengths, 1.0), 1.0)
        self.max_abs = max(self.max_abs, float(gap.max(initial=0.0)))
        self.sum_abs += float(gap.sum())
        self.count += gap.size
        self.gaps += np.linalg.norm(c - r, axis=1).tolist()
        self.norms += norms.tolist()
        self.items += items
        self.cosine = min(self.cosine, float(cosine.min()))
        self.dot += float(dots.sum())
        self.norm += float((norms**2).sum())
        self.worst_mean = max(self.worst_mean, float(gap.mean(1).max()))
        here, there = c.sum(1), r.sum(1)
        self.unit = self.unit and bool((np.abs(there - 1) < _UNIT).all())
        self.unit_gap = max(self.unit_gap, float(np.abs(here - 1).max()))
        self.mass += float(here.sum())
        self.mass_there += float(there.sum())

    def largest(self) -> tuple[float, str]:
        """The largest relative difference, and whose it is."""
        if self.broken or not self.items:
            return float("inf") if self.broken else 0.0, self.broken
        gaps, norms = np.array(self.gaps), np.array(self.norms)
        floor = np.median(norms) / 10
        scale = np.maximum(norms, floor)
        # Zeros are right where zeros are expected, and infinitely wrong elsewhere.
        relative = np.where(
            scale > 0, gaps / np.where(scale > 0, scale, 1.0), np.where(gaps > 0, np.inf, 0.0)
        )
        place = int(relative.argmax())
        return float(relative[place]), self.items[place]

    @property
    def gain(self) -> float:
        return self.dot / self.norm if self.norm else 1.0


def _reason(kind: str, sums: _TapSums, allowed: Tolerance) -> str:
    relative, worst = sums.largest()
    if kind == "input":
        if sums.broken:
            return f"not a number; {worst}"
        if not sums.pixels:  # a ready tensor: there is nothing to resize
            return f"differs by {sums.max_abs:.3g}; worst {worst}" if sums.max_abs else ""
        if sums.worst_mean > allowed.levels:
            what = f"mean difference {sums.worst_mean:.3g} levels"
            return f"{what}, allowed {allowed.levels:g}; worst {worst}"
        return ""
    # The rounding's share of the gain falls with the root of the number of images.
    gain = allowed.gain * max(1.0, (_GAIN_IMAGES / max(sums.images, 1)) ** 0.5)
    if kind == "scores":
        return _scores_reason(sums, allowed.scores, gain, worst)
    if kind == "views" and (sums.broken or allowed.scores < float("inf")):
        # Each is a score: small ones have no relative difference that means anything.
        return _scores_reason(sums, allowed.scores, gain, worst)
    if not abs(sums.gain - 1) <= gain:
        return f"scaled by {sums.gain:.4f}, allowed 1 +- {gain:.3g}"
    if relative > allowed.relative:
        return f"relative difference {relative:.3g}, allowed {allowed.relative:g}; worst {worst}"
    return ""


def _scores_reason(sums: _TapSums, scores: float, gain: float, worst: str) -> str:
    if sums.broken or sums.max_abs > scores:
        most = f", allowed {scores:g}" if scores < float("inf") else ""
        return f"differs by {sums.max_abs:.3g}{most}; worst {worst}"
    if sums.unit and sums.unit_gap > _UNIT_KEPT:
        return f"an image's scores sum to 1 +- {sums.unit_gap:.3g}, the reference's to 1"
    # Judged by a budget alone, whose divergence is of scaled scores.
    if (
        scores == float("inf")
        and not sums.unit
        and not abs(sums.mass - sums.mass_there) <= gain * abs(sums.mass_there)
    ):
        return f"all scores sum to {sums.mass:.5g}, the reference's to {sums.mass_there:.5g}, allowed 1 +- {gain:.3g} of it"
    return ""


def _tap_parity(name: str, kind: str, sums: _TapSums, allowed: Tolerance) -> TapParity:
    relative, worst = sums.largest()
    known = not sums.broken
    return TapParity(
        tap=name,
        kind=kind,
        max_abs=sums.max_abs,
        mean_abs=sums.sum_abs / sums.count if known and sums.count else None,
        relative=relative,
        cosine=sums.cosine if known else None,
        gain=sums.gain if known else None,
        worst=worst,
        # Logits are judged through the scores: their zero is arbitrary.
        reason="" if name == "logits" else _reason(kind, sums, allowed),
    )


@dataclass
class Comparison:
    """Collects two stages' outputs batch by batch and judges them at the end.

    Attributes:
        stage: What is judged.
        reference: What it is held against.
        tolerance: What is allowed.
        labels: The candidate's labels, in the order of its scores; empty where nothing decides.
        reference_labels: The reference's labels, in the order of its scores.
        task: What the scores mean.
        threshold: Multi-label: the score above which a label is given.
        required: Taps that must have been compared.
        budget: What a lowered candidate's decisions may change; ``None`` leaves them to the tolerance.
        taps: Of taps that may differ by something else than ``tolerance`` says.
    """

    stage: str
    reference: str
    tolerance: Tolerance
    labels: Sequence[str] = ()
    reference_labels: Sequence[str] = ()
    task: Task = Task.SINGLE_LABEL
    threshold: float = 0.5
    required: Sequence[str] = ()
    budget: Budget | None = None
    taps: Mapping[str, Tolerance] = field(default_factory=dict)
    _taps: dict[tuple[str, str], _TapSums] = field(default_factory=dict)
    _scores: ScoreLog = field(default_factory=ScoreLog)
    _images: int = 0

    def _add(
        self,
        kind: str,
        items: Sequence[str],
        reference: Mapping[str, Array],
        candidate: Mapping[str, Array],
        again: bool = False,
    ) -> None:
        for name, r in reference.items():
            if name not in candidate or candidate[name].shape != r.shape:
                got = candidate[name].shape if name in candidate else "nothing"
                raise VsaError(f"{self.stage}: tap {name!r} gives {got}, the reference {r.shape}")
            role = name if name in ("scores", "views") else kind
            self._taps.setdefault((name, role), _TapSums()).add(items, r, candidate[name], again)

    def add_inputs(
        self, items: Sequence[str], reference: Mapping[str, Array], candidate: Mapping[str, Array]
    ) -> None:
        """Compare what the host made of the images, ``(N, H, W, 3)`` by input name."""
        self._add("input", items, reference, candidate)

    def add_taps(
        self,
        items: Sequence[str],
        reference: Mapping[str, Array],
        candidate: Mapping[str, Array],
        truth: Sequence[Collection[str] | None] = (),
    ) -> None:
        """Compare the engines' outputs of one batch, ``(N, width)`` by tap name.

        Args:
            items: The images' names.
            reference: The reference's outputs.
            candidate: The candidate's outputs.
            truth: The labels that hold for each image, with their shares (a mapping) where these are known; ``None``
                where nothing is.

        Raises:
            VsaError: The candidate lacks a tap or gives another shape.
        """
        self._images += len(items)
        self._add("features", items, reference, candidate)
        if "scores" in reference and self.labels:
            self._decide(items, reference["scores"], candidate["scores"], truth)

    def add_repeat(
        self, items: Sequence[str], reference: Mapping[str, Array], candidate: Mapping[str, Array]
    ) -> None:
        """Compare images again that another batch size computed: their taps count, their labels do not twice."""
        self._add("features", items, reference, candidate, again=True)

    def _decide(
        self,
        items: Sequence[str],
        reference: Array,
        candidate: Array,
        truth: Sequence[Collection[str] | None],
    ) -> None:
        # By name: a bundle whose labels are swapped has the right scores and the wrong words.
        if sorted(self.labels) != sorted(self.reference_labels):
            raise VsaError(
                f"{self.stage}: has the labels {', '.join(self.labels)}, the reference {', '.join(self.reference_labels)}"
            )
        by_name = [list(self.labels).index(n) for n in self.reference_labels]
        self._scores.add(items, reference, candidate[:, by_name], truth)

    def result(self) -> Parity:
        """The verdict. Nothing compared is a failure."""
        taps = [
            _tap_parity(
                name, kind, sums, self.tolerance if kind == "input" else self.taps.get(name, self.tolerance)
            )
            for (name, kind), sums in sorted(self._taps.items(), key=lambda t: t[0][1] != "input")
        ]
        rule = Rule(self.reference_labels, self.task, self.threshold)
        pairs = self._scores.pairs()
        decided = decisions(pairs, rule, self.tolerance.tie)
        said = label_metrics(pairs, rule)
        found = Parity(
            stage=self.stage,
            reference=self.reference,
            images=self._images,
            taps=taps,
            flips=decided.flips,
            kl=decided.kl,
            metrics=said.metrics,
            reasons=[f"{t.tap}: {t.reason}" for t in taps if t.reason],
            kl_worst=decided.kl_worst,
            kl_item=decided.kl_item,
            rank_changes=decided.rank_changes,
            kendall_tau=decided.kendall_tau,
            distances=decided.distances,
            undecided=len(self._scores) - len(pairs),
            labelled=said.labelled,
            mcnemar=said.mcnemar,
            reliability=said.reliability,
        )
        return replace(found, reasons=found.reasons + self._decided(found) + self._left_out(taps))

    def _decided(self, found: Parity) -> list[str]:
        """Why the decisions fail."""
        if self.budget is not None:
            return over_budget(found, self.budget)
        decided = found.images - found.undecided
        return flip_reasons(found.flips, decided, self.tolerance.tie, self.tolerance.flips)

    def _left_out(self, taps: Sequence[TapParity]) -> list[str]:
        """What was not compared, or is not a number."""
        reasons = []
        if not self._images or not taps:
            reasons.append("nothing was compared")
        absent = [name for name in self.required if name not in {t.tap for t in taps}]
        if absent:
            reasons.append(f"not compared: {', '.join(absent)}")
        if self.labels and self._images and not len(self._scores):
            reasons.append("no label was compared: the reference gives no scores")
        if any(sums.largest()[0] == float("inf") for sums in self._taps.values()):
            reasons.append("not a number in the outputs")
        return reasons
