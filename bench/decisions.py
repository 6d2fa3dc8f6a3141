"""What scores decide: labels and margins, divergence, order; two stages over the same images. Labels unseen."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.budget import Budget
from vsa_rt.contracts import Task

if TYPE_CHECKING:
    from vsa_rt.bench.metrics import Metric
    from vsa_rt.bench.parity import Parity

Array = NDArray[Any]
_TINY = np.finfo(np.float64).tiny
#: Keeps the published code's KL finite where a probability is 0.
_KL_GUARD = 1e-10


@dataclass(frozen=True)
class Flip:
    """One image whose label changed; ``margin`` is the reference's lead of its label, ``tie`` if it is small."""

    item: str
    reference: str
    candidate: str
    margin: float
    tie: bool


@dataclass(frozen=True)
class Rule:
    """How a row of scores becomes labels.

    Attributes:
        labels: In the order of the scores.
        task: What the scores mean.
        threshold: Multi-label: the score above which a label is given.
    """

    labels: Sequence[str]
    task: Task
    threshold: float

    def given(self, scores: Array) -> Array:
        """The labels that scores ``(N, C)`` stand for, as ``(N, C)`` of bool; of equal scores the first wins."""
        if self.task is Task.MULTI_LABEL:
            return np.asarray(scores > self.threshold)
        return np.asarray(scores.argmax(1)[:, None] == np.arange(scores.shape[1]))

    def words(self, given: Array) -> str:
        """One row of ``given`` in words."""
        return ", ".join(sorted(n for n, g in zip(self.labels, given, strict=True) if g)) or "no label"

    def margin(self, scores: Array, changed: Array) -> float:
        """How sure a row of scores was: its lead over the next label, or the distance from the threshold.

        Args:
            scores: ``(C,)``.
            changed: ``(C,)`` of bool, the labels that the other side decides otherwise.
        """
        if self.task is Task.MULTI_LABEL:
            return float(np.abs(scores[changed] - self.threshold).max())
        ordered = np.sort(scores)
        return float(ordered[-1] - ordered[-2])


@dataclass(frozen=True)
class ScorePairs:
    """Scores of both sides for the same images; all of them are numbers.

    Attributes:
        items: The images' names.
        reference: ``(N, C)``, float64.
        candidate: ``(N, C)``, float64, its columns in the reference's order.
        truth: The true labels of each image, as a mapping to their shares where these are known; ``None`` where
            nothing is.
    """

    items: list[str]
    reference: Array
    candidate: Array
    truth: Sequence[Collection[str] | None]

    def __len__(self) -> int:
        return len(self.items)


@dataclass
class ScoreLog:
    """Collects scores batch by batch.

    All are kept until the end: bins, ranks and the bootstrap look at every image at once. 704 images of 8 labels
    are 90 kB.
    """

    _items: list[str] = field(default_factory=list)
    _reference: list[Array] = field(default_factory=list)
    _candidate: list[Array] = field(default_factory=list)
    _truth: list[Collection[str] | None] = field(default_factory=list)

    def add(
        self,
        items: Sequence[str],
        reference: Array,
        candidate: Array,
        truth: Sequence[Collection[str] | None],
    ) -> None:
        """Add one batch: ``(N, C)`` of each side, and the true labels, with or without shares, or nothing at all."""
        self._items += items
        # Engines hand out views of buffers that the next call overwrites: float64 is a copy, and the type in which
        # the runtime holds a score against its threshold.
        self._reference.append(reference.astype(np.float64))
        self._candidate.append(candidate.astype(np.float64))
        self._truth += [_copied(t) for t in truth] or [None] * len(items)

    def __len__(self) -> int:
        return len(self._items)

    def pairs(self) -> ScorePairs:
        """The images whose scores are numbers on both sides; on the others nothing decides."""
        if not self._items:
            return ScorePairs([], np.zeros((0, 0)), np.zeros((0, 0)), [])
        reference, candidate = np.concatenate(self._reference), np.concatenate(self._candidate)
        finite = np.isfinite(reference).all(1) & np.isfinite(candidate).all(1)
        return ScorePairs(
            [item for item, keep in zip(self._items, finite, strict=True) if keep],
            reference[finite],
            candidate[finite],
            [truth for truth, keep in zip(self._truth, finite, strict=True) if keep],
        )


def _copied(truth: Collection[str] | None) -> Collection[str] | None:
    if truth is None:
        return None
    return dict(truth) if isinstance(truth, Mapping) else frozenset(truth)


@dataclass(frozen=True)
class Decisions:
    """What changed between both sides' decisions; see ``Parity`` for the attributes."""

    flips: list[Flip] = field(default_factory=list)
    kl: float | None = None
    kl_worst: float | None = None
    kl_item: str = ""
    rank_changes: int = 0
    kendall_tau: float | None = None
    distances: dict[str, float] = field(default_factory=dict)


def decisions(pairs: ScorePairs, rule: Rule, tie: float) -> Decisions:
    """Compare what both sides' scores decide.

    Args:
        pairs: The scores.
        rule: How they become labels.
        tie: Margin under which a flip says nothing.
    """
    if not len(pairs):
        return Decisions()
    diverged = divergences(pairs.reference, pairs.candidate)
    worst = int(diverged.argmax())
    p, q = normalised(pairs.reference), normalised(pairs.candidate)
    distribution = rule.task is Task.DISTRIBUTION
    return Decisions(
        flips=find_flips(pairs, rule, tie),
        kl=float(diverged.mean()),
        kl_worst=float(diverged[worst]),
        kl_item=pairs.items[worst] if diverged[worst] > 0 else "",
        rank_changes=rank_changes(pairs.reference, pairs.candidate),
        kendall_tau=kendall_tau(pairs.reference, pairs.candidate),
        distances={n: float(f(p, q).mean()) for n, f in DISTANCES.items()} if distribution else {},
    )


def find_flips(pairs: ScorePairs, rule: Rule, tie: float) -> list[Flip]:
    """Every image with another label, in the order of the images."""
    said, says = rule.given(pairs.reference), rule.given(pairs.candidate)
    flips = []
    for row in np.flatnonzero((said != says).any(1)):
        margin = rule.margin(pairs.reference[row], said[row] != says[row])
        flips.append(
            Flip(pairs.items[row], rule.words(said[row]), rule.words(says[row]), margin, margin < tie)
        )
    return flips


def flip_reasons(flips: Sequence[Flip], images: int, tie: float, share: float) -> list[str]:
    """Why these flips fail; empty if they do not.

    Args:
        flips: All of them.
        images: Among how many images.
        tie: Margin from which on a single one fails.
        share: Of the images that may flip; one image always may.
    """
    wide = [f for f in flips if f.margin >= tie]
    if wide:
        f = max(wide, key=lambda f: f.margin)
        widest = f"{f.item}, {f.reference} to {f.candidate} at {f.margin:.3f}"
        return [f"labels: {len(wide)} of {images} flip at a margin above {tie:g}; the widest: {widest}"]
    if len(flips) > max(1, share * images):
        return [f"labels: {len(flips)} of {images} flip, allowed {100 * share:g} %"]
    return []


def over_budget(parity: Parity, budget: Budget) -> list[str]:
    """Why a comparison is over a budget; empty if it holds. Where nothing decides, nothing is over it.

    Args:
        parity: The comparison; its ties are those of the candidate's precision.
        budget: What is allowed. One image may always flip within the margin: of 17 it is 6 %.
    """
    images, reasons = parity.images - parity.undecided, []
    if parity.undecided:
        reasons.append(f"scores: {parity.undecided} of {parity.images} images have one that is not a number")
    wide = [f for f in parity.flips if not f.margin <= budget.margin]
    if wide:
        widest = max(wide, key=lambda f: f.margin)
        reasons.append(
            f"labels: {len(wide)} of {images} flip at a margin above {budget.margin:g}; the widest: "
            f"{widest.item}, {widest.reference} to {widest.candidate} at {widest.margin:.3f}"
        )
    flips = len(parity.flips) - parity.ties
    # A share of a whole number is often no binary fraction: 29 % of 100 is 28.999999999999996.
    if flips > max(1, budget.flips * images + 1e-9):
        reasons.append(
            f"labels: {flips} of {images} flip outside ties, the budget is {100 * budget.flips:g} %"
        )
    if parity.kl is not None and not parity.kl <= budget.kl:
        reasons.append(
            f"scores: mean KL {parity.kl:.3g} nats, the budget is {budget.kl:g}; worst {parity.kl_item}"
        )
    if parity.metrics and budget.accuracy is not None:
        reasons += _loss(parity.metrics[0], budget.accuracy)
    return reasons


def _loss(metric: Metric, allowed: float) -> list[str]:
    """Why a metric's loss is over a budget: its whole interval lies below what is allowed."""
    if metric.high >= -allowed:
        return []
    gap = metric.candidate - metric.reference
    most = f"minus the budget of {allowed:g}" if allowed else "0"
    interval = f"95 % interval {metric.low:+.4f} to {metric.high:+.4f}, wholly below {most}"
    return [
        f"{metric.name}: {metric.reference:.4f} to {metric.candidate:.4f}, difference {gap:+.4f}, {interval}"
    ]


def normalised(scores: Array) -> Array:
    """Scores ``(N, C)`` scaled to sum 1 per row; below 0 no head gives any, and a wrong candidate's count as 0."""
    positive = np.maximum(scores.astype(np.float64), 0.0)
    return np.asarray(positive / np.maximum(positive.sum(1, keepdims=True), _TINY))


def divergences(reference: Array, candidate: Array) -> Array:
    """KL(reference || candidate) of each image's normalised scores, ``(N,)`` in nats."""
    p, q = normalised(reference), normalised(candidate)
    gaps = (p * (np.log(np.maximum(p, _TINY)) - np.log(np.maximum(q, _TINY)))).sum(1)
    # It is never negative (Gibbs' inequality); rounding can make it so.
    return np.asarray(np.maximum(gaps, 0.0))


def rank_changes(reference: Array, candidate: Array) -> int:
    """Images whose labels, best first, come in another order; equal scores keep the labels' order, as labels do."""
    orders = [np.argsort(-scores, axis=1, kind="stable") for scores in (reference, candidate)]
    return int((orders[0] != orders[1]).any(1).sum())


def kendall_tau(reference: Array, candidate: Array) -> float | None:
    """Mean over the images of Kendall's rank correlation tau-b (Kendall 1945) of their scores.

    Args:
        reference: ``(N, C)``.
        candidate: ``(N, C)``.

    Returns:
        1 where every order is kept, -1 where every one is turned round; ``None`` if no image has one: it takes two
        labels whose scores differ, on both sides.
    """
    first, second = np.triu_indices(reference.shape[1], 1)
    taus = []
    for r, c in zip(reference, candidate, strict=True):
        a, b = np.sign(r[first] - r[second]), np.sign(c[first] - c[second])
        untied = np.count_nonzero(a) * np.count_nonzero(b)
        if untied:
            taus.append(float(a @ b) / untied**0.5)
    return float(np.mean(taus)) if taus else None


def _share(part: Array, whole: Array) -> Array:
    """``part / whole``, 0 where there is nothing to share."""
    return np.asarray(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0))


def _chebyshev(p: Array, q: Array) -> Array:
    return np.asarray(np.abs(p - q).max(1))


def _clark(p: Array, q: Array) -> Array:
    return np.asarray(np.sqrt((_share(p - q, p + q) ** 2).sum(1)))


def _canberra(p: Array, q: Array) -> Array:
    return np.asarray(_share(np.abs(p - q), p + q).sum(1))


def _kl(p: Array, q: Array) -> Array:
    # With the guards of the published code, which alone can push it below 0.
    return np.asarray(np.maximum((p * np.log(p / (q + _KL_GUARD) + _KL_GUARD)).sum(1), 0.0))


def _cosine(p: Array, q: Array) -> Array:
    return _share((p * q).sum(1), np.linalg.norm(p, axis=1) * np.linalg.norm(q, axis=1))


def _intersection(p: Array, q: Array) -> Array:
    return np.asarray(np.minimum(p, q).sum(1))


#: The metrics of label distribution learning (Geng 2016, Label Distribution Learning, table 1) of target p and
#: prediction q, both ``(N, C)`` with rows of sum 1, to ``(N,)``; of the last two more is better. Clark and Canberra
#: are not divided by the number of labels, and a label that has nothing on either side adds nothing to them.
DISTANCES: dict[str, Callable[[Array, Array], Array]] = {
    "chebyshev": _chebyshev,
    "clark": _clark,
    "canberra": _canberra,
    "kl": _kl,
    "cosine": _cosine,
    "intersection": _intersection,
}
