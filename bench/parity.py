"""The only place that compares: two stages over the same images, tap by tap and decision by decision."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.contracts import Precision, Task
from vsa_rt.errors import VsaError

Array = NDArray[Any]


@dataclass(frozen=True)
class Tolerance:
    """How far a candidate may be from its reference.

    Attributes:
        relative: Largest ``|c - r| / |r|`` (L2 norms) of one image's features. An image whose norm is under a
            tenth of the tap's median counts with that tenth: next to nothing differs from nothing at all.
        gain: Largest deviation from 1 of the least-squares factor between candidate and reference over all
            images. Rounding is random and averages out of it, a wrong scale does not.
        scores: Largest absolute difference of a score.
        levels: Largest mean difference of one image's input, in levels of 255.
        flips: Largest share of images with another label; one image is always allowed if it is a tie.
        tie: A flip where the reference's margin is under this says nothing and is reported apart; one above
            it fails. Ten times the tolerance of a typical score.
    """

    relative: float
    gain: float
    scores: float
    levels: float
    flips: float
    tie: float


#: fp32 engines order their sums differently: 3e-6 relative was measured, 1e-4 leaves room for deeper networks.
#: bf16 keeps 8 significant bits through some 120 layers: over 704 photographs 0.19 relative, a gain of 0.995
#: and 0.045 in a score were measured, on texture scans 0.23 and 0.066 (docs/performance.md).
TOLERANCES = {
    Precision.FP32: Tolerance(relative=1e-4, gain=2e-5, scores=1e-4, levels=0.0, flips=0.0, tie=1e-3),
    Precision.BF16: Tolerance(relative=0.4, gain=0.01, scores=0.1, levels=0.0, flips=0.01, tie=0.1),
}
#: Images from which on the tolerance of the gain holds as it stands; fewer images get a wider one.
_GAIN_IMAGES = 16
#: Mean difference in levels that the fast resample may add to an input.
FAST_LEVELS = 3.0


@dataclass(frozen=True)
class TapParity:
    """One tap's comparison.

    Attributes:
        tap: Its name.
        kind: ``input``, ``features`` or ``scores``.
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
    max_abs: float
    mean_abs: float
    relative: float
    cosine: float
    gain: float
    worst: str
    reason: str


@dataclass(frozen=True)
class Flip:
    """One image whose label changed; ``margin`` is the reference's lead of its label, ``tie`` if it is small."""

    item: str
    reference: str
    candidate: str
    margin: float
    tie: bool


@dataclass(frozen=True)
class Metric:
    """A metric of reference and candidate against the true labels, and the 95 % interval of the difference."""

    name: str
    reference: float
    candidate: float
    low: float
    high: float


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
        metrics: With labels only.
        reasons: Why it fails, the first tap on the data's way first; empty if it holds.
    """

    stage: str
    reference: str
    images: int
    taps: list[TapParity]
    flips: list[Flip]
    kl: float | None
    metrics: list[Metric]
    reasons: list[str]

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

    def add(self, items: Sequence[str], reference: Array, candidate: Array, again: bool) -> None:
        # Rounding averages out over images, not over the same image computed again.
        self.images += 0 if again else len(items)
        self.pixels = reference.dtype == np.uint8
        r = reference.reshape(len(items), -1).astype(np.float64)
        c = candidate.reshape(len(items), -1).astype(np.float64)
        gap = np.abs(c - r)
        norms = np.linalg.norm(r, axis=1)
        dots = (r * c).sum(1)
        lengths = norms * np.linalg.norm(c, axis=1)
        cosine = np.where(lengths > 0, dots / np.where(lengths > 0, lengths, 1.0), 1.0)
        # A NaN anywhere must fail the tap, and max() would drop it.
        finite = np.isfinite(c).all(1) & np.isfinite(r).all(1)
        if not finite.all():
            self.max_abs = float("inf")
            self.broken = self.broken or items[int(np.argmin(finite))]
            return
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
    if kind == "scores":
        if sums.max_abs > allowed.scores:
            return f"differs by {sums.max_abs:.3g}, allowed {allowed.scores:g}; worst {worst}"
        return ""
    # The rounding's share of the gain falls with the root of the number of images.
    gain = allowed.gain * max(1.0, (_GAIN_IMAGES / max(sums.images, 1)) ** 0.5)
    if not abs(sums.gain - 1) <= gain:
        return f"scaled by {sums.gain:.4f}, allowed 1 +- {gain:.3g}"
    if relative > allowed.relative:
        return f"relative difference {relative:.3g}, allowed {allowed.relative:g}; worst {worst}"
    return ""


def _kl(reference: Array, candidate: Array) -> float:
    """Sum over images of KL(reference || candidate) of the scores, each row scaled to sum 1."""
    tiny = np.finfo(np.float64).tiny
    p, q = reference.astype(np.float64), candidate.astype(np.float64)
    p = p / np.maximum(p.sum(1, keepdims=True), tiny)
    q = q / np.maximum(q.sum(1, keepdims=True), tiny)
    return float((p * (np.log(np.maximum(p, tiny)) - np.log(np.maximum(q, tiny)))).sum())


def _text(labels: set[str]) -> str:
    return ", ".join(sorted(labels)) or "no label"


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
    """

    stage: str
    reference: str
    tolerance: Tolerance
    labels: Sequence[str] = ()
    reference_labels: Sequence[str] = ()
    task: Task = Task.SINGLE_LABEL
    threshold: float = 0.5
    required: Sequence[str] = ()
    _taps: dict[tuple[str, str], _TapSums] = field(default_factory=dict)
    _flips: list[Flip] = field(default_factory=list)
    _kl: float = 0.0
    _decided: int = 0
    _images: int = 0
    _right: list[tuple[float, float]] = field(default_factory=list)

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
            role = "scores" if name == "scores" else kind
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
            truth: The labels that hold for each image, ``None`` where they are not known.

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
        candidate = candidate[:, by_name]
        self._kl += _kl(reference, candidate)
        self._decided += len(items)
        for row, item in enumerate(items):
            said, says = self._words(reference[row]), self._words(candidate[row])
            if said != says:
                margin = self._margin(reference[row], said ^ says)
                flip = Flip(item, _text(said), _text(says), margin, margin < self.tolerance.tie)
                self._flips.append(flip)
            known = truth[row] if truth else None
            if known is not None:
                self._right.append((self._share(said, set(known)), self._share(says, set(known))))

    def _share(self, words: set[str], truth: set[str]) -> float:
        """Multi-label: the share of labels that are decided rightly; else 1 or 0."""
        if self.task is Task.MULTI_LABEL:
            return 1 - len(words ^ truth) / len(self.reference_labels)
        return float(words == truth)

    def _words(self, scores: Array) -> set[str]:
        """The labels that a row of scores stands for."""
        if self.task is Task.MULTI_LABEL:
            return {name for name, s in zip(self.reference_labels, scores, strict=True) if s > self.threshold}
        return {self.reference_labels[int(scores.argmax())]}

    def _margin(self, scores: Array, changed: set[str]) -> float:
        """How sure the reference was: its lead over the next label, or the distance from the threshold."""
        if self.task is Task.MULTI_LABEL:
            places = [list(self.reference_labels).index(name) for name in changed]
            return float(np.abs(scores[places] - self.threshold).max())
        ordered = np.sort(scores)
        return float(ordered[-1] - ordered[-2])

    def _decision_reasons(self) -> list[str]:
        allowed, reasons = self.tolerance, []
        wide = [f for f in self._flips if f.margin >= allowed.tie]
        if wide:
            f = max(wide, key=lambda f: f.margin)
            reasons.append(
                f"labels: {len(wide)} of {self._decided} flip at a margin above {allowed.tie:g}; the widest: "
                f"{f.item}, {f.reference} to {f.candidate} at {f.margin:.3f}"
            )
        elif len(self._flips) > max(1, allowed.flips * self._decided):
            reasons.append(
                f"labels: {len(self._flips)} of {self._decided} flip, allowed {100 * allowed.flips:g} %"
            )
        return reasons

    def _metrics(self) -> list[Metric]:
        if not self._right:
            return []
        pairs = np.array(self._right, np.float64)
        change = pairs[:, 1] - pairs[:, 0]
        # Paired bootstrap, 2,000 resamples, percentile interval (Efron and Tibshirani 1993, 13.3). An image's change
        # is one of a few values, so a resample is one draw of their counts.
        values, counts = np.unique(change, return_counts=True)
        drawn = np.random.default_rng(0).multinomial(len(pairs), counts / len(pairs), 2000)
        low, high = (float(v) for v in np.percentile(drawn @ values / len(pairs), [2.5, 97.5]))
        name = "label accuracy" if self.task is Task.MULTI_LABEL else "accuracy"
        return [Metric(name, float(pairs[:, 0].mean()), float(pairs[:, 1].mean()), low, high)]

    def result(self) -> Parity:
        """The verdict. Nothing compared is a failure."""
        taps = [
            TapParity(
                tap=name,
                kind=kind,
                max_abs=s.max_abs,
                mean_abs=s.sum_abs / s.count if s.count else float("nan"),
                relative=s.largest()[0],
                cosine=s.cosine,
                gain=s.gain,
                worst=s.largest()[1],
                # Logits are judged through the scores: their zero is arbitrary.
                reason="" if name == "logits" else _reason(kind, s, self.tolerance),
            )
            for (name, kind), s in sorted(self._taps.items(), key=lambda t: t[0][1] != "input")
        ]
        reasons = [f"{t.tap}: {t.reason}" for t in taps if t.reason] + self._decision_reasons()
        if not self._images or not taps:
            reasons.append("nothing was compared")
        absent = [name for name in self.required if name not in {t.tap for t in taps}]
        if absent:
            reasons.append(f"not compared: {', '.join(absent)}")
        if self.labels and self._images and not self._decided:
            reasons.append("no label was compared: the reference gives no scores")
        if any(not np.isfinite(t.relative) for t in taps):
            reasons.append("not a number in the outputs")
        return Parity(
            stage=self.stage,
            reference=self.reference,
            images=self._images,
            taps=taps,
            flips=self._flips,
            kl=max(0.0, self._kl / self._decided) if self._decided else None,
            metrics=self._metrics(),
            reasons=reasons,
        )
