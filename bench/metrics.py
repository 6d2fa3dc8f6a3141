"""Metrics of two stages against true labels, each with a paired bootstrap interval of the difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.bench.decisions import DISTANCES, Rule, ScorePairs, normalised
from vsa_rt.bench.truth import Truth, truth_of
from vsa_rt.contracts import Task

Array = NDArray[Any]
#: A metric of weighted images: how often each counts, ``(B, N)`` with rows of sum N, to ``(B,)`` values.
Statistic = Callable[[Array], Array]

#: Bins of equal width (Guo et al. 2017, On Calibration of Modern Neural Networks, section 5).
BINS = 15
#: Of the bootstrap.
RESAMPLES = 2000
_SEED = 0
_EDGES = np.linspace(0.0, 1.0, BINS + 1)
#: Weights that are held at once: 2 MB of float64, which stay in the cache.
_CELLS = 250_000


@dataclass(frozen=True)
class Metric:
    """A metric of reference and candidate against the true labels, and the 95 % interval of the difference.

    The interval is of ``candidate - reference``.
    """

    name: str
    reference: float
    candidate: float
    low: float
    high: float


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test: whether images that only one side gets right are as often the one's as the other's.

    Attributes:
        reference_only: Images that only the reference gets right.
        candidate_only: Images that only the candidate gets right.
        p: Two-sided; 1 where no image tells them apart.
    """

    reference_only: int
    candidate_only: int
    p: float


@dataclass(frozen=True)
class ReliabilityBin:
    """Decisions of similar confidence.

    Attributes:
        low: The bin is above this confidence; 0 belongs to the first bin.
        high: And up to this, inclusive.
        count: Decisions in it.
        confidence: Their mean confidence.
        accuracy: The share of them that is right.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Reliability:
    """Both sides' bins by rising confidence; an empty bin is left out."""

    reference: list[ReliabilityBin]
    candidate: list[ReliabilityBin]


@dataclass(frozen=True)
class LabelMetrics:
    """All that true labels say; see ``Parity`` for the attributes."""

    labelled: int
    metrics: list[Metric]
    mcnemar: McNemar | None
    reliability: Reliability | None


@dataclass(frozen=True)
class _Side:
    """One side's scores and decisions, ``(N, C)``; ``right``: per image, whether it counts as decided rightly."""

    scores: Array
    given: Array
    right: Array


def label_metrics(pairs: ScorePairs, rule: Rule) -> LabelMetrics:
    """Hold both sides against the true labels of those images where they are known.

    Single-label and binary: accuracy, F1 weighted by how many images have each label, ECE. Multi-label: share of
    right decisions, Hamming loss, ranking loss, micro and macro F1, mean average precision, ECE over all decisions.
    Distribution: whether the winning label is the true winner (one of them, where several tie), and the distances to
    the truth: the true shares of those labels that ``rule`` has, scaled to sum 1; a set of labels without shares is
    taken as uniform, and where ``rule`` has none of an image's labels the image has no distance.

    Args:
        pairs: The scores and what is known of the images.
        rule: How scores become labels.
    """
    known = [i for i, truth in enumerate(pairs.truth) if truth is not None]
    if not known:
        return LabelMetrics(0, [], None, None)
    truth = truth_of([truth for truth in pairs.truth if truth is not None], rule.labels)
    reference, candidate = (_side(s[known], truth, rule) for s in (pairs.reference, pairs.candidate))
    compared = [
        _metric(name, statistic(reference), statistic(candidate), len(known))
        for name, statistic in _statistics(truth, rule.task).items()
    ]
    reliability = None
    if rule.task is Task.DISTRIBUTION:
        compared += _to_truth(truth, reference, candidate)
    else:
        reliability = Reliability(
            _bins(*_confidences(reference, truth, rule.task)),
            _bins(*_confidences(candidate, truth, rule.task)),
        )
    return LabelMetrics(len(known), compared, mcnemar(reference.right, candidate.right), reliability)


def _side(scores: Array, truth: Truth, rule: Rule) -> _Side:
    given = rule.given(scores)
    if rule.task is Task.MULTI_LABEL:
        right = (given == truth.applies).all(1) & (truth.foreign == 0)
    elif rule.task is Task.DISTRIBUTION:
        right = (given & truth.best).any(1)
    else:
        right = given.argmax(1) == truth.place
    return _Side(scores, given, right)


def _statistics(truth: Truth, task: Task) -> dict[str, Callable[[_Side], Statistic]]:
    """The task's metrics by name, the one that matters most first."""
    if task is Task.DISTRIBUTION:
        return {"top-1 accuracy": lambda side: _mean(side.right)}
    calibration: dict[str, Callable[[_Side], Statistic]] = {
        "ECE": lambda side: _ece(*_confidences(side, truth, task))
    }
    if task is not Task.MULTI_LABEL:
        return {
            "accuracy": lambda side: _mean(side.right),
            "weighted F1": lambda side: _weighted_f1(truth, side.given),
        } | calibration
    decided: dict[str, Callable[[_Side], Statistic]] = {
        "label accuracy": lambda side: _mean(1 - _hamming(truth, side.given)),
        "hamming loss": lambda side: _mean(_hamming(truth, side.given)),
        "ranking loss": lambda side: _mean(_ranking_loss(truth, side.scores)),
        "micro F1": lambda side: _micro_f1(truth, side.given),
        "macro F1": lambda side: _macro_f1(truth, side.given),
    }
    # Without one true label there is no precision to average.
    if truth.applies.any():
        decided["mAP"] = lambda side: _mean_average_precision(truth.applies, side.scores)
    return decided | calibration


def _to_truth(truth: Truth, reference: _Side, candidate: _Side) -> list[Metric]:
    """Distances between the true distribution and each side's scores."""
    some = truth.applies.any(1)
    if not some.any():
        return []
    target = normalised(truth.shares[some])
    r, c = normalised(reference.scores[some]), normalised(candidate.scores[some])
    return [
        _metric(f"{name} to truth", _mean(distance(target, r)), _mean(distance(target, c)), len(r))
        for name, distance in DISTANCES.items()
    ]


# Statistics


def _mean(values: Array) -> Statistic:
    """The mean of ``(N,)``."""
    return lambda weights: np.asarray(weights @ values.astype(np.float64) / len(values))


def _hamming(truth: Truth, given: Array) -> Array:
    """Share of wrong decisions of each image, ``(N,)``."""
    return np.asarray(((given != truth.applies).sum(1) + truth.foreign) / given.shape[1])


def _ranking_loss(truth: Truth, scores: Array) -> Array:
    """Share of pairs of a true and another label whose order is wrong, ``(N,)``; equal scores are wrong, too.

    Schapire and Singer 2000, as scikit-learn's ``label_ranking_loss``: 0 where every label is true or none. A true label
    that has no score stands below all others.
    """
    losses = []
    for applies, foreign, row in zip(truth.applies, truth.foreign, scores, strict=True):
        others = np.sort(row[~applies])
        above = len(others) - np.searchsorted(others, row[applies])
        pairs = (applies.sum() + foreign) * len(others)
        losses.append((above.sum() + foreign * len(others)) / max(pairs, 1))
    return np.array(losses)


def _f1(hits: Array, given: Array, true: Array) -> Array:
    """2 TP / (2 TP + FP + FN); 0 where nothing is given and nothing true."""
    both = given + true
    return np.asarray(np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0))


def _counts(applies: Array, given: Array) -> Callable[[Array], tuple[Array, Array, Array]]:
    """Per label, ``(B, C)`` each: given rightly, given, true."""
    hits, said, true = (a.astype(np.float64) for a in (given & applies, given, applies))
    return lambda weights: (weights @ hits, weights @ said, weights @ true)


def _weighted_f1(truth: Truth, given: Array) -> Statistic:
    # Images that belong to none of the labels are a class that nothing finds: they weigh, and their F1 is 0.
    single = truth.place[:, None] == np.arange(given.shape[1])
    counts = _counts(single, given)

    def value(weights: Array) -> Array:
        hits, said, true = counts(weights)
        return np.asarray((true * _f1(hits, said, true)).sum(1) / len(given))

    return value


def _micro_f1(truth: Truth, given: Array) -> Statistic:
    counts, foreign = _counts(truth.applies, given), truth.foreign.astype(np.float64)

    def value(weights: Array) -> Array:
        hits, said, true = (c.sum(1) for c in counts(weights))
        return _f1(hits, said, true + weights @ foreign)

    return value


def _macro_f1(truth: Truth, given: Array) -> Statistic:
    counts = _counts(truth.applies, given)
    return lambda weights: np.asarray(_f1(*counts(weights)).mean(1))


def _mean_average_precision(applies: Array, scores: Array) -> Statistic:
    """Mean of the labels' average precisions, over those labels that apply to an image.

    The average precision is the sum of precisions at every distinct score, each weighted by its gain in recall,
    without interpolation (Manning et al. 2008, Introduction to Information Retrieval, section 8.4).
    """
    columns = [_ranking(true, column) for true, column in zip(applies.T, scores.T, strict=True)]

    def value(weights: Array) -> Array:
        by_image = np.ascontiguousarray(weights.T)
        each = np.stack([_average_precision(by_image, *column) for column in columns])
        labels = np.isfinite(each).sum(0)
        nothing = np.full(len(weights), np.nan)
        return np.asarray(np.divide(np.nansum(each, axis=0), labels, out=nothing, where=labels > 0))

    return value


def _ranking(true: Array, scores: Array) -> tuple[Array, Array, Array]:
    """One label's images by falling score ``(N,)``; which are true ``(P,)``; the last of equal score of each ``(P,)``.

    All are places: the first among the images, the others in that order.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    places = np.flatnonzero(true[order])
    return order, places, ends[np.searchsorted(ends, places)]


def _average_precision(by_image: Array, order: Array, places: Array, ends: Array) -> Array:
    """Of weights ``(N, B)``, ``(B,)``; not a number where no true label has weight.

    Recall is gained at true labels only, so precision is needed there alone: the weight of all true ones up to the
    last of equal score, over that of all images up to it.
    """
    ranked = by_image[order]
    weight = ranked[places]
    given = ranked.cumsum(0)[ends]
    # Where an end would be sorted in among the places of the true ones is how many of them come up to it.
    hits = weight.cumsum(0)[np.searchsorted(places, ends, side="right") - 1]
    precision = np.divide(hits, given, out=np.zeros_like(hits), where=given > 0)
    total = weight.sum(0)
    return np.asarray(
        np.divide((weight * precision).sum(0), total, out=np.full_like(total, np.nan), where=total > 0)
    )


# Calibration


def _confidences(side: _Side, truth: Truth, task: Task) -> tuple[Array, Array]:
    """How sure a side was, and whether it was right, ``(N, K)`` each.

    One decision per image: the winning score, the row scaled to sum 1. Multi-label, one per label: its score where
    it is given, 1 minus its score where it is not.
    """
    if task is Task.MULTI_LABEL:
        return np.where(side.given, side.scores, 1 - side.scores), side.given == truth.applies
    return normalised(side.scores).max(1, keepdims=True), side.right[:, None]


def _places(confidence: Array) -> Array:
    """The bin of each confidence; a bin holds its upper edge and not its lower one (Guo et al. 2017, eq. 2)."""
    return np.asarray(np.digitize(confidence, _EDGES[1:-1], right=True))


def _ece(confidence: Array, right: Array) -> Statistic:
    """Expected calibration error (Guo et al. 2017, eq. 3): bin by bin the gap of confidence and accuracy.

    A bin's share of all decisions times its gap is the sum of its ``right - confidence`` over all decisions: such
    sums can be added up image by image.
    """
    gaps = np.zeros((len(confidence), BINS))
    np.add.at(gaps, (np.arange(len(confidence))[:, None], _places(confidence)), right - confidence)
    return lambda weights: np.asarray(np.abs(weights @ gaps).sum(1) / confidence.size)


def _bins(confidence: Array, right: Array) -> list[ReliabilityBin]:
    places = _places(confidence)
    found = []
    for place in np.unique(places).tolist():
        inside = places == place
        found.append(
            ReliabilityBin(
                low=float(_EDGES[place]),
                high=float(_EDGES[place + 1]),
                count=int(inside.sum()),
                confidence=float(confidence[inside].mean()),
                accuracy=float(right[inside].mean()),
            )
        )
    return found


# Intervals and tests


def _resamples(images: int) -> Iterator[Array]:
    """How often each image was drawn in every resample: parts of ``(RESAMPLES, images)``, the same at every call."""
    rng = np.random.default_rng(_SEED)
    most = max(1, _CELLS // images)
    for start in range(0, RESAMPLES, most):
        count = min(most, RESAMPLES - start)
        drawn = rng.integers(0, images, (count, images)) + images * np.arange(count)[:, None]
        flat = np.bincount(drawn.ravel(), minlength=count * images)
        yield flat.reshape(count, images).astype(np.float64)


def _metric(name: str, reference: Statistic, candidate: Statistic, images: int) -> Metric:
    """Both values and the interval of their difference.

    Paired bootstrap, percentile interval (Efron and Tibshirani 1993, section 13.3): both sides see the same images
    of each resample, and so does every metric.
    """
    gaps = np.concatenate([candidate(weights) - reference(weights) for weights in _resamples(images)])
    # A resample of few images may hold none with a true label, where no precision can be averaged.
    low, high = np.percentile(gaps[np.isfinite(gaps)], [2.5, 97.5]).tolist()
    whole = np.ones((1, images))
    return Metric(name, float(reference(whole)[0]), float(candidate(whole)[0]), low, high)


def mcnemar(reference: Array, candidate: Array) -> McNemar:
    """McNemar's test (1947) in its exact form: a two-sided binomial test of the images that one side gets right.

    Args:
        reference: ``(N,)`` of bool, whether the reference is right.
        candidate: ``(N,)`` likewise.
    """
    first, second = int((reference & ~candidate).sum()), int((candidate & ~reference).sum())
    total = first + second
    # Whole numbers: nothing underflows, however many images there are.
    ways = term = 1
    for hits in range(min(first, second)):
        term = term * (total - hits) // (hits + 1)
        ways += term
    return McNemar(first, second, min(1.0, 2 * ways / 2**total))
