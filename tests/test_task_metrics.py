"""Metrics against true labels: values of scikit-learn, scipy or a pencil, and intervals that hold what they should."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.bench.decisions import DISTANCES, Rule, ScorePairs
from vsa_rt.bench.metrics import BINS, LabelMetrics, Metric, label_metrics, mcnemar
from vsa_rt.contracts import Task

Array = NDArray[Any]
LABELS = ["joy", "fear", "awe", "calm"]


def measured(
    task: Task, reference: Any, candidate: Any, truth: Sequence[Sequence[str] | None], threshold: float = 0.5
) -> LabelMetrics:
    r, c = np.array(reference, np.float64), np.array(candidate, np.float64)
    sets = [None if t is None else frozenset(t) for t in truth]
    pairs = ScorePairs([str(i) for i in range(len(r))], r, c, sets)
    return label_metrics(pairs, Rule(LABELS[: r.shape[1]], task, threshold))


def by_name(found: LabelMetrics) -> dict[str, Metric]:
    return {m.name: m for m in found.metrics}


def single(images: int = 300, seed: int = 0) -> tuple[Array, Array, Array]:
    """Scores of two sides and true places: four labels of different frequency."""
    rng = np.random.default_rng(seed)
    places = rng.choice(4, images, p=[0.5, 0.3, 0.15, 0.05])
    powers = np.exp(2 * np.eye(4)[places] + rng.standard_normal((images, 4)))
    reference = powers / powers.sum(1, keepdims=True)
    powers = powers * np.exp(0.4 * rng.standard_normal((images, 4)))
    return reference, powers / powers.sum(1, keepdims=True), places


def several(images: int = 300, seed: int = 0) -> tuple[Array, Array, Array]:
    """Scores of two sides, coarse enough for equal ones, and true labels ``(N, 4)``; the last applies to none."""
    rng = np.random.default_rng(seed)
    applies = rng.random((images, 4)) < [0.5, 0.3, 0.1, 0.0]
    logits = 2.0 * applies - 1 + rng.standard_normal((images, 4))
    changed = logits + 0.4 * rng.standard_normal((images, 4))
    return (1 / (1 + np.exp(-logits))).round(2), (1 / (1 + np.exp(-changed))).round(2), applies


def sets_of(applies: Array) -> list[list[str]]:
    return [[LABELS[j] for j in np.flatnonzero(row)] for row in applies]


# One label


@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.BINARY])
def test_accuracy_and_weighted_f1_are_scikit_learns(task: Task) -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="the golden values are scikit-learn's")
    reference, candidate, places = single()
    found = by_name(measured(task, reference, candidate, [[LABELS[p]] for p in places]))
    for side, scores in (("reference", reference), ("candidate", candidate)):
        said = scores.argmax(1)
        assert getattr(found["accuracy"], side) == pytest.approx(sklearn.accuracy_score(places, said))
        wanted = sklearn.f1_score(places, said, average="weighted", zero_division=0)
        assert getattr(found["weighted F1"], side) == pytest.approx(wanted)


def test_a_true_label_that_the_bundle_lacks_is_missed_and_weighs() -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="the golden values are scikit-learn's")
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    truth = [["joy"], ["boredom"], ["fear"], ["joy", "fear"]]
    found = by_name(measured(Task.SINGLE_LABEL, scores, scores, truth))
    assert found["accuracy"].reference == 0.5
    wanted = sklearn.f1_score([0, 2, 1, 2], [0, 0, 1, 1], average="weighted", zero_division=0)
    assert found["weighted F1"].reference == pytest.approx(wanted)


def test_the_calibration_error_is_that_of_a_pencil() -> None:
    """Bins of 1/15: two images at 0.95 and 0.99, of which one is right, one at 0.6, which is right."""
    scores = [[0.95, 0.05], [0.01, 0.99], [0.6, 0.4]]
    found = measured(Task.BINARY, scores, scores, [["joy"], ["joy"], ["joy"]])
    ece = by_name(found)["ECE"]
    assert ece.reference == pytest.approx(2 / 3 * abs(0.5 - 0.97) + 1 / 3 * abs(1 - 0.6))
    assert found.reliability is not None
    first, last = found.reliability.reference
    assert (first.count, last.count) == (1, 2)
    # 0.6 = 9 / 15 is an upper edge: it belongs to the bin below.
    assert (first.low, first.high) == pytest.approx((8 / 15, 9 / 15))
    assert (first.confidence, first.accuracy) == pytest.approx((0.6, 1.0))
    assert (last.low, last.high) == pytest.approx((14 / 15, 1.0))
    assert (last.confidence, last.accuracy) == pytest.approx((0.97, 0.5))


def test_scores_that_do_not_add_up_to_one_are_scaled_for_their_confidence() -> None:
    found = measured(Task.BINARY, [[0.45, 0.05]], [[0.9, 0.1]], [["joy"]])
    assert found.reliability is not None
    [reference], [candidate] = found.reliability.reference, found.reliability.candidate
    assert reference.confidence == candidate.confidence == pytest.approx(0.9)


def test_the_calibration_error_is_the_sum_over_the_reliability_bins() -> None:
    reference, candidate, places = single()
    found = measured(Task.SINGLE_LABEL, reference, candidate, [[LABELS[p]] for p in places])
    assert found.reliability is not None
    for side in ("reference", "candidate"):
        bins = getattr(found.reliability, side)
        assert 3 < len(bins) <= BINS
        assert all(b.low < b.confidence <= b.high for b in bins)
        assert [b.low for b in bins] == sorted(b.low for b in bins)
        wanted = sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / 300
        assert getattr(by_name(found)["ECE"], side) == pytest.approx(wanted)


# Several labels


def test_multi_label_metrics_are_scikit_learns() -> None:
    sklearn = pytest.importorskip("sklearn.metrics", reason="the golden values are scikit-learn's")
    reference, candidate, applies = several()
    assert not applies[:, 3].any()
    found = by_name(measured(Task.MULTI_LABEL, reference, candidate, sets_of(applies), 0.6))
    for side, scores in (("reference", reference), ("candidate", candidate)):
        said = scores > 0.6
        assert getattr(found["label accuracy"], side) == pytest.approx((said == applies).mean())
        assert getattr(found["hamming loss"], side) == pytest.approx(sklearn.hamming_loss(applies, said))
        wanted = sklearn.label_ranking_loss(applies, scores)
        assert getattr(found["ranking loss"], side) == pytest.approx(wanted)
        for average in ("micro", "macro"):
            wanted = sklearn.f1_score(applies, said, average=average, zero_division=0)
            assert getattr(found[f"{average} F1"], side) == pytest.approx(wanted)
        wanted = np.mean([sklearn.average_precision_score(applies[:, j], scores[:, j]) for j in range(3)])
        assert getattr(found["mAP"], side) == pytest.approx(wanted)


def test_multi_label_calibration_is_of_every_decision() -> None:
    """Given at 0.9: right. Not given at 0.2, confidence 0.8: wrong. In bins of their own."""
    found = measured(Task.MULTI_LABEL, [[0.9, 0.2]], [[0.9, 0.2]], [["joy", "fear"]])
    assert by_name(found)["ECE"].reference == pytest.approx((0.1 + 0.8) / 2)
    assert found.reliability is not None
    bins = [(b.count, round(b.confidence, 6), b.accuracy) for b in found.reliability.reference]
    assert bins == [(1, 0.8, 0.0), (1, 0.9, 1.0)]


def test_mcnemars_test_counts_whole_sets_of_labels() -> None:
    truth = [["joy"], ["joy", "fear"], [], ["awe"]]
    reference = [[0.9, 0.1], [0.9, 0.9], [0.1, 0.1], [0.1, 0.1]]
    candidate = [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1]]
    found = measured(Task.MULTI_LABEL, reference, candidate, truth)
    assert found.mcnemar is not None
    assert (found.mcnemar.reference_only, found.mcnemar.candidate_only) == (2, 0)
    # The last image's true label is none of the two: no side is right, the reference misses 1 of 2 decisions.
    assert by_name(found)["label accuracy"].reference == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert by_name(found)["micro F1"].reference == pytest.approx(2 * 3 / (3 + 4))
    assert by_name(found)["hamming loss"].reference == pytest.approx((0 + 0 + 0 + 0.5) / 4)


def test_the_ranking_loss_is_that_of_a_pencil() -> None:
    scores = [[0.9, 0.5, 0.1], [0.5, 0.5, 0.1], [0.2, 0.1, 0.3], [0.9, 0.9, 0.9], [0.1, 0.2, 0.3]]
    # One of two pairs is wrong; one of two ties; the foreign label stands below both others and joy below awe: 3 of
    # 4; of the last two there is no pair.
    truth = [["fear"], ["joy"], ["joy", "boredom"], ["joy", "fear", "awe"], []]
    metric = by_name(measured(Task.MULTI_LABEL, scores, scores, truth))["ranking loss"]
    assert metric.reference == pytest.approx((1 / 2 + 1 / 2 + 3 / 4 + 0 + 0) / 5)


def test_a_candidate_that_ranks_worse_has_an_interval_above_nothing() -> None:
    reference, _, applies = several(150)
    found = by_name(measured(Task.MULTI_LABEL, reference, 1 - reference, sets_of(applies)))
    for name in ("hamming loss", "ranking loss"):
        assert 0 < found[name].low < found[name].candidate - found[name].reference < found[name].high


def test_without_a_true_label_there_is_no_average_precision() -> None:
    found = by_name(measured(Task.MULTI_LABEL, [[0.9, 0.1]] * 3, [[0.9, 0.1]] * 3, [[], [], []]))
    assert list(found) == ["label accuracy", "hamming loss", "ranking loss", "micro F1", "macro F1", "ECE"]


def test_resamples_without_a_true_label_do_not_spoil_the_interval_of_map() -> None:
    """One of three images has a label: 30 % of the resamples have none."""
    reference = [[0.9, 0.1], [0.2, 0.1], [0.3, 0.1]]
    candidate = [[0.1, 0.1], [0.2, 0.1], [0.3, 0.1]]
    metric = by_name(measured(Task.MULTI_LABEL, reference, candidate, [["joy"], [], []]))["mAP"]
    assert (metric.reference, metric.candidate) == pytest.approx((1.0, 1 / 3))
    assert -1 < metric.low <= metric.candidate - metric.reference <= metric.high <= 0


# Distributions


def test_a_distribution_is_right_where_its_winner_is_a_true_label() -> None:
    truth = [["joy", "awe"], ["fear"], [], None]
    reference = [[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.4, 0.3, 0.3], [1, 0, 0]]
    candidate = [[0.2, 0.3, 0.5], [0.8, 0.1, 0.1], [0.4, 0.3, 0.3], [1, 0, 0]]
    found = measured(Task.DISTRIBUTION, reference, candidate, truth)
    assert found.labelled == 3
    accuracy = by_name(found)["top-1 accuracy"]
    assert (accuracy.reference, accuracy.candidate) == pytest.approx((2 / 3, 1 / 3))
    assert found.mcnemar is not None
    assert (found.mcnemar.reference_only, found.mcnemar.candidate_only) == (1, 0)
    # The true distribution is uniform over the set; an empty set has none.
    target = np.array([[0.5, 0, 0.5], [0, 1, 0]])
    for name, distance in DISTANCES.items():
        metric = by_name(found)[f"{name} to truth"]
        assert metric.reference == pytest.approx(distance(target, np.array(reference[:2])).mean())
        assert metric.candidate == pytest.approx(distance(target, np.array(candidate[:2])).mean())


def test_the_true_distribution_is_the_datas_where_it_has_one() -> None:
    """Awe, which wins the third image and has no share of the others; boredom, which the bundle lacks, the fourth."""
    truth: list[Mapping[str, float]] = [
        {"joy": 0.7, "fear": 0.3},
        {"joy": 0.5, "fear": 0.5, "awe": 0.0},
        {"joy": 0.2, "awe": 0.8},
        {"boredom": 0.6, "fear": 0.4},
    ]
    scores = np.array([[0.2, 0.7, 0.1], [0.4, 0.5, 0.1], [0.1, 0.2, 0.7], [0.1, 0.8, 0.1]])
    pairs = ScorePairs(list("abcd"), scores, scores, truth)
    found = label_metrics(pairs, Rule(LABELS[:3], Task.DISTRIBUTION, 0.5))
    # The first says fear, which applies and does not win; the second one of the two that tie.
    assert by_name(found)["top-1 accuracy"].reference == pytest.approx(2 / 4)
    target = np.array([[0.7, 0.3, 0], [0.5, 0.5, 0], [0.2, 0, 0.8], [0, 1, 0]])
    for name, distance in DISTANCES.items():
        metric = by_name(found)[f"{name} to truth"]
        assert metric.reference == pytest.approx(distance(target, scores).mean())
    as_sets = by_name(measured(Task.DISTRIBUTION, scores, scores, [[*t] for t in truth]))
    assert as_sets["kl to truth"].reference != pytest.approx(by_name(found)["kl to truth"].reference)


def test_shares_of_a_single_label_task_are_the_labels_that_have_some() -> None:
    truth: list[Mapping[str, float]] = [{"joy": 1.0, "fear": 0.0}, {"joy": 0.9, "fear": 0.1}]
    scores = np.array([[0.9, 0.1], [0.9, 0.1]])
    pairs = ScorePairs(["a", "b"], scores, scores, truth)
    found = label_metrics(pairs, Rule(LABELS[:2], Task.BINARY, 0.5))
    assert by_name(found)["accuracy"].reference == 0.5


def test_distributions_without_any_true_label_have_no_distance() -> None:
    found = measured(Task.DISTRIBUTION, [[0.6, 0.4]], [[0.6, 0.4]], [[]])
    assert [m.name for m in found.metrics] == ["top-1 accuracy"]


# Intervals


def test_an_interval_is_the_bootstrap_that_resamples_image_by_image() -> None:
    """Held against a plain loop over resamples with scikit-learn, which draws other images: ends within 0.01."""
    sklearn = pytest.importorskip("sklearn.metrics", reason="the golden values are scikit-learn's")
    reference, candidate, applies = several(150)
    found = by_name(measured(Task.MULTI_LABEL, reference, candidate, sets_of(applies)))
    rng = np.random.default_rng(9)
    gaps: dict[str, list[float]] = {"micro F1": [], "macro F1": [], "label accuracy": []}
    for _ in range(400):
        drawn = rng.integers(0, 150, 150)
        true, r, c = applies[drawn], reference[drawn] > 0.5, candidate[drawn] > 0.5
        for average in ("micro", "macro"):
            f1 = [sklearn.f1_score(true, said, average=average, zero_division=0) for said in (r, c)]
            gaps[f"{average} F1"].append(f1[1] - f1[0])
        gaps["label accuracy"].append(float((c == true).mean() - (r == true).mean()))
    for name, drawn_gaps in gaps.items():
        ends = np.percentile(drawn_gaps, [2.5, 97.5])
        assert (found[name].low, found[name].high) == pytest.approx(ends, abs=0.01), name
        assert found[name].low < found[name].high


def test_intervals_hold_the_difference_and_repeat() -> None:
    reference, candidate, places = single()
    truth = [[LABELS[p]] for p in places]
    found = measured(Task.SINGLE_LABEL, reference, candidate, truth)
    for metric in found.metrics:
        assert metric.low < metric.candidate - metric.reference < metric.high
    assert measured(Task.SINGLE_LABEL, reference, candidate, truth) == found
    back = by_name(measured(Task.SINGLE_LABEL, candidate, reference, truth))
    for metric in found.metrics:
        assert (back[metric.name].low, back[metric.name].high) == pytest.approx((-metric.high, -metric.low))


def test_many_images_are_resampled_in_parts() -> None:
    """5,000 images: 2,000 resamples do not fit at once. 250 lost of them, by the normal approximation."""
    scores = np.tile([[0.8, 0.2]], (5000, 1))
    candidate = scores.copy()
    candidate[:250] = candidate[:250, ::-1]
    metric = by_name(measured(Task.BINARY, scores, candidate, [["joy"]] * 5000))["accuracy"]
    half = 1.96 * math.sqrt(0.05 * 0.95 / 5000)
    assert (metric.low, metric.high) == pytest.approx((-0.05 - half, -0.05 + half), abs=5e-4)


# McNemar's test


def marks(both: int, first: int, second: int, neither: int = 3) -> tuple[Array, Array]:
    counts = [both, first, second, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (3, 0, 0.25), (1, 6, 0.125), (6, 1, 0.125), (4, 4, 1.0), (10, 0, 2 / 1024)],
)
def test_mcnemars_p_is_that_of_a_pencil(first: int, second: int, p: float) -> None:
    found = mcnemar(*marks(5, first, second))
    assert (found.reference_only, found.candidate_only) == (first, second)
    assert found.p == pytest.approx(p)


@pytest.mark.parametrize(("first", "second"), [(2, 9), (86, 150), (13, 14), (1200, 1000), (3000, 1)])
def test_mcnemars_p_is_scipys_binomial_test(first: int, second: int) -> None:
    """86 and 150: the approval ratings of Agresti (2002), Categorical Data Analysis, table 10.1."""
    stats = pytest.importorskip("scipy.stats", reason="the golden values are scipy's")
    found = mcnemar(*marks(0, first, second))
    assert found.p == pytest.approx(stats.binomtest(first, first + second).pvalue, rel=1e-9, abs=1e-300)
