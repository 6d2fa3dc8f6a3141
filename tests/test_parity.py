"""The comparison by itself: what fails, what is a tie, and what the figures mean."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.bench.parity import TOLERANCES, Comparison, Parity
from vsa_rt.contracts import Precision, Task
from vsa_rt.errors import VsaError

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Reseal = Callable[..., None]
Array = NDArray[Any]
FP32, BF16 = TOLERANCES[Precision.FP32], TOLERANCES[Precision.BF16]
INT8 = TOLERANCES[Precision.INT8]


# The comparison by itself


def compared(
    reference: Array,
    candidate: Array,
    tap: str = "a",
    labels: Sequence[str] = (),
    reference_labels: Sequence[str] = (),
    truth: Sequence[str | None] = (),
    tolerance: Any = FP32,
) -> Parity:
    comparison = Comparison("stage", "torch", tolerance, labels, reference_labels or labels)
    names = [f"image {i}" for i in range(len(reference))]
    comparison.add_taps(names, {tap: reference}, {tap: candidate}, truth)
    return comparison.result()


def rows(count: int = 6, width: int = 8, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32) * 3


def test_equal_outputs_pass() -> None:
    parity = compared(rows(), rows())
    assert parity.passed
    assert (parity.taps[0].max_abs, parity.taps[0].relative, parity.images) == (0.0, 0.0, 6)
    assert parity.taps[0].gain == pytest.approx(1)
    assert parity.taps[0].cosine == pytest.approx(1)


def test_nothing_compared_is_a_failure() -> None:
    assert Comparison("s", "torch", FP32).result().reasons == ["nothing was compared"]
    empty = Comparison("s", "torch", FP32)
    empty.add_taps(["image"], {}, {})
    assert not empty.result().passed
    pixels = Comparison("s", "torch", FP32)
    pixels.add_inputs(["image"], {"x": np.zeros((1, 2, 2, 3))}, {"x": np.zeros((1, 2, 2, 3))})
    assert "nothing was compared" in pixels.result().reasons


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["reference", "candidate", "both"])
@pytest.mark.parametrize("tap", ["a", "scores", "logits"])
def test_what_is_not_a_number_fails(value: float, side: str, tap: str) -> None:
    harmed = rows()
    harmed[3, 2] = value
    reference = harmed if side in ("reference", "both") else rows()
    candidate = harmed if side in ("candidate", "both") else rows()
    with np.errstate(all="ignore"):
        parity = compared(reference, candidate, tap)
    assert not parity.passed
    assert parity.taps[0].worst == "image 3"


def test_what_is_not_a_number_stays_failed_after_good_batches() -> None:
    comparison = Comparison("s", "torch", FP32)
    harmed = rows()
    harmed[0, 0] = np.nan
    comparison.add_taps(list("abcdef"), {"t": rows()}, {"t": harmed})
    comparison.add_taps(list("ghijkl"), {"t": rows(seed=1)}, {"t": rows(seed=1)})
    assert not comparison.result().passed


def test_a_missing_tap_or_another_shape_is_an_error_that_names_it() -> None:
    comparison = Comparison("openvino fp32", "torch", FP32)
    with pytest.raises(VsaError, match="openvino fp32: tap 'b' gives nothing"):
        comparison.add_taps(
            ["image"], {"a": np.zeros((1, 2)), "b": np.zeros((1, 2))}, {"a": np.zeros((1, 2))}
        )
    with pytest.raises(VsaError, match=r"tap 'a' gives \(1, 3\), the reference \(1, 2\)"):
        comparison.add_taps(["image"], {"a": np.zeros((1, 2))}, {"a": np.zeros((1, 3))})


@pytest.mark.parametrize(("tolerance", "noise"), [(FP32, 1e-6), (BF16, 0.05)])
def test_noise_passes_and_a_scale_does_not(tolerance: Any, noise: float) -> None:
    reference = np.abs(rows(20, 1000))
    noisy = reference * (1 + noise * rows(20, 1000, seed=1) / 3)
    assert compared(reference, noisy, tolerance=tolerance).passed
    for factor in (0.98, 1.02):
        reasons = compared(reference, noisy * factor, tolerance=tolerance).reasons
        assert len(reasons) == 1
        assert reasons[0].startswith("a: scaled by ")
        assert float(reasons[0].split()[3].rstrip(",")) == pytest.approx(factor, abs=0.002)


def test_a_tap_that_is_zero_or_turned_fails() -> None:
    for factor in (0.0, -1.0):
        assert not compared(rows(), rows() * factor, tolerance=BF16).passed
    assert not compared(rows() * 1e-6, rows(seed=1) * 1e-6, tolerance=BF16).passed


SCORES = np.array([[0.9, 0.1], [0.2, 0.8], [0.50001, 0.49999]], np.float32)


def decided(candidate: Array, labels: Sequence[str] = ("a", "b"), truth: Sequence[str | None] = ()) -> Parity:
    return compared(SCORES, candidate, "scores", labels, ("a", "b"), truth)


def test_equal_scores_have_no_flip_and_no_divergence() -> None:
    parity = decided(SCORES)
    assert (parity.flips, parity.passed) == ([], True)
    assert parity.kl == pytest.approx(0.0, abs=1e-12)


def test_a_flip_at_a_small_margin_is_a_tie_and_reported_apart() -> None:
    almost = SCORES.copy()
    almost[2] = [0.49999, 0.50001]
    parity = decided(almost)
    assert [(f.item, f.reference, f.candidate, f.tie) for f in parity.flips] == [("image 2", "a", "b", True)]
    assert (parity.ties, parity.passed) == (1, True)


def test_a_flip_at_a_wide_margin_fails() -> None:
    wrong = SCORES.copy()
    wrong[0] = [0.1, 0.9]
    parity = decided(wrong)
    assert not parity.passed
    assert [(f.item, f.tie) for f in parity.flips] == [("image 0", False)]
    assert parity.flips[0].margin == pytest.approx(0.8)
    assert any(r.startswith("labels: 1 of 3 flip") and "image 0, a to b" in r for r in parity.reasons)
    assert parity.kl is not None
    assert parity.kl > 0.1


def test_two_ties_of_three_are_too_many() -> None:
    reference = np.full((3, 2), 0.5, np.float32)
    reference[:, 0] += 1e-5
    parity = compared(reference, reference[:, ::-1], "scores", ("a", "b"))
    assert parity.ties == 3
    assert any("3 of 3 flip" in r for r in parity.reasons)


def test_labels_are_compared_by_name() -> None:
    """The same numbers under swapped words flip; swapped numbers under swapped words say the same."""
    swapped_words = decided(SCORES, ("b", "a"))
    assert len(swapped_words.flips) == 3
    assert not swapped_words.passed
    both = decided(SCORES[:, ::-1], ("b", "a"))
    assert both.flips == []
    assert both.kl == pytest.approx(0.0, abs=1e-12)


def test_labels_of_another_set_are_an_error_that_names_them() -> None:
    with pytest.raises(VsaError, match="c"):
        decided(SCORES, ("a", "c"))


def test_accuracy_is_compared_with_an_interval_that_holds_the_difference() -> None:
    rng = np.random.default_rng(3)
    reference = rng.dirichlet([1, 1], 200).astype(np.float32)
    candidate = reference.copy()
    candidate[:10] = candidate[:10, ::-1]
    truth = ["a" if r[0] > r[1] else "b" for r in reference]
    metric = compared(reference, candidate, "scores", ("a", "b"), (), truth).metrics[0]
    assert (metric.name, metric.reference) == ("accuracy", 1.0)
    assert metric.candidate == pytest.approx(0.95)
    assert metric.low < metric.candidate - metric.reference < metric.high
    # The normal approximation to the interval of 10 lost of 200.
    assert metric.low == pytest.approx(-0.05 - 1.96 * math.sqrt(0.05 * 0.95 / 200), abs=0.01)


def test_images_without_a_label_do_not_count_towards_accuracy() -> None:
    parity = decided(SCORES, truth=["a", None, "b"])
    assert (parity.metrics[0].name, parity.metrics[0].reference) == ("accuracy", 0.5)
    assert (parity.images, parity.labelled) == (3, 2)
    unknown = decided(SCORES, truth=[None, None, None])
    assert (unknown.metrics, unknown.labelled, unknown.mcnemar, unknown.reliability) == ([], 0, None, None)


# Every task with true labels, planted faults


def names(scores: Array) -> list[str]:
    return [f"image {i}" for i in range(len(scores))]


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True), np.float32)


def judged(
    task: Task, reference: Array, candidate: Array, truth: Sequence[Sequence[str] | None] = ()
) -> Parity:
    """Two batches of scores of the labels a, b, c, d."""
    labels = list("abcd")[: reference.shape[1]]
    comparison = Comparison("stage", "torch", BF16, labels, labels, task)
    half = len(reference) // 2
    for part in (slice(0, half), slice(half, None)):
        comparison.add_taps(
            names(reference)[part], {"scores": reference[part]}, {"scores": candidate[part]}, truth[part]
        )
    return comparison.result()


def labelled(task: Task, images: int = 40) -> tuple[Array, list[tuple[str, ...] | None]]:
    """Scores and true labels, of which every seventh image's are unknown."""
    rng = np.random.default_rng(5)
    logits = rng.standard_normal((images, 4)) * 2
    if task is Task.MULTI_LABEL:
        sets = [tuple("abcd"[j] for j in np.flatnonzero(row > 0.4)) for row in logits]
        scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    else:
        sets = [("abcd"[(row + 0.5 * rng.standard_normal(4)).argmax()],) for row in logits]
        scores = softmax(logits)
    return scores, [None if i % 7 == 6 else s for i, s in enumerate(sets)]


@pytest.mark.parametrize("task", list(Task))
def test_the_same_scores_differ_by_exactly_nothing(task: Task) -> None:
    scores, truth = labelled(task)
    parity = judged(task, scores, scores, truth)
    assert parity.passed
    assert (parity.images, parity.labelled, parity.undecided) == (40, 35, 0)
    assert {m.candidate - m.reference for m in parity.metrics} == {0.0}
    assert {end for m in parity.metrics for end in (m.low, m.high)} == {0.0}
    assert parity.mcnemar is not None
    assert (parity.mcnemar.reference_only, parity.mcnemar.candidate_only, parity.mcnemar.p) == (0, 0, 1.0)
    assert (parity.kl, parity.kl_worst, parity.kl_item, parity.rank_changes) == (0.0, 0.0, "", 0)
    assert parity.kendall_tau == 1.0
    if parity.reliability is not None:
        assert parity.reliability.reference == parity.reliability.candidate
    if task is Task.DISTRIBUTION:
        assert parity.distances == pytest.approx(
            {"chebyshev": 0, "clark": 0, "canberra": 0, "kl": 0, "cosine": 1, "intersection": 1}
        )
    else:
        assert parity.distances == {}


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        (Task.BINARY, ["accuracy", "weighted F1", "ECE"]),
        (Task.SINGLE_LABEL, ["accuracy", "weighted F1", "ECE"]),
        (
            Task.MULTI_LABEL,
            ["label accuracy", "hamming loss", "ranking loss", "micro F1", "macro F1", "mAP", "ECE"],
        ),
        (
            Task.DISTRIBUTION,
            ["top-1 accuracy"]
            + [f"{n} to truth" for n in ("chebyshev", "clark", "canberra", "kl", "cosine", "intersection")],
        ),
    ],
)
def test_each_task_has_its_own_metrics(task: Task, metrics: list[str]) -> None:
    scores, truth = labelled(task)
    parity = judged(task, scores, scores, truth)
    assert [m.name for m in parity.metrics] == metrics
    assert (parity.reliability is None) is (task is Task.DISTRIBUTION)


def test_a_sharpened_head_keeps_its_accuracy_and_its_calibration_error_gives_it_away() -> None:
    rng = np.random.default_rng(8)
    logits = rng.standard_normal((400, 4)) * 1.5
    scores = softmax(logits)
    # Truth is drawn from the scores: the reference is calibrated, whatever a sharper head says is overconfident.
    truth = [("abcd"[rng.choice(4, p=row / row.sum())],) for row in scores.astype(np.float64)]
    parity = judged(Task.SINGLE_LABEL, scores, softmax(3 * logits), truth)
    accuracy, f1, ece = parity.metrics
    assert (accuracy.reference, accuracy.low, accuracy.high) == (accuracy.candidate, 0.0, 0.0)
    assert (f1.reference, f1.low, f1.high) == (f1.candidate, 0.0, 0.0)
    assert ece.candidate - ece.reference > 0.1
    assert 0 < ece.low < ece.candidate - ece.reference < ece.high
    assert (parity.flips, parity.rank_changes) == ([], 0)
    assert parity.kendall_tau == 1.0
    assert parity.reliability is not None
    reference, candidate = parity.reliability.reference, parity.reliability.candidate
    assert sum(b.count for b in reference) == sum(b.count for b in candidate) == 400
    assert candidate[-1].confidence - candidate[-1].accuracy > 0.1


def test_swapped_classes_in_three_images_are_counted_by_mcnemars_test() -> None:
    scores = softmax(np.random.default_rng(2).standard_normal((40, 2)) * 3)
    truth = [("ab"[row.argmax()],) for row in scores]
    truth[5] = ("ab"[scores[5].argmin()],)
    swapped = scores.copy()
    for row in (5, 11, 30):
        swapped[row] = swapped[row, ::-1]
    parity = judged(Task.BINARY, scores, swapped, truth)
    assert parity.mcnemar is not None
    assert (parity.mcnemar.reference_only, parity.mcnemar.candidate_only) == (2, 1)
    assert [f.item for f in parity.flips] == ["image 5", "image 11", "image 30"]
    assert (parity.rank_changes, parity.metrics[0].reference) == (3, 39 / 40)
    assert parity.metrics[0].candidate == 38 / 40
    assert parity.kl_item in {f.item for f in parity.flips}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["reference", "candidate"])
@pytest.mark.parametrize("task", list(Task))
def test_an_image_whose_scores_are_not_numbers_fails_and_decides_nothing(
    task: Task, side: str, value: float
) -> None:
    scores, truth = labelled(task)
    harmed = scores.copy()
    harmed[3, 1] = value
    both = (harmed, scores) if side == "reference" else (scores, harmed)
    parity = judged(task, *both, truth)
    assert parity.reasons[0].startswith("scores: differs by inf")
    assert "image 3" in parity.reasons[0]
    assert "not a number in the outputs" in parity.reasons
    assert (parity.images, parity.undecided, parity.labelled, parity.flips) == (40, 1, 34, [])
    without = np.delete(scores, 3, 0)
    rest = judged(task, without, without, [t for i, t in enumerate(truth) if i != 3])
    assert (parity.metrics, parity.reliability) == (rest.metrics, rest.reliability)


def test_scores_that_are_all_no_numbers_fail_without_a_figure() -> None:
    scores, truth = labelled(Task.SINGLE_LABEL)
    parity = judged(Task.SINGLE_LABEL, scores, scores * np.float32(np.nan), truth)
    assert not parity.passed
    assert (parity.kl, parity.kendall_tau, parity.metrics, parity.undecided) == (None, None, [], 40)
    assert (parity.taps[0].cosine, parity.taps[0].gain, parity.taps[0].mean_abs) == (None, None, None)


@pytest.mark.parametrize("task", list(Task))
def test_a_verdict_survives_json(task: Task) -> None:
    scores, truth = labelled(task)
    candidate = scores.copy()
    candidate[:4] = candidate[:4, ::-1]
    for known in (truth, ()):
        parity = judged(task, scores, candidate, known)
        assert parity.flips
        assert msgspec.json.decode(msgspec.json.encode(parity), type=Parity) == parity
    candidate[9] = np.nan
    broken = judged(task, scores, candidate, truth)
    back = msgspec.json.decode(msgspec.json.encode(broken), type=Parity)
    # JSON knows no infinity.
    assert (back.taps[0].max_abs, back.taps[0].relative) == (None, None)
    assert (back.reasons, back.passed, back.undecided) == (broken.reasons, False, 1)


def test_a_verdict_of_an_older_constructor_has_nothing_of_what_came_later() -> None:
    parity = Parity("s", "torch", 1, [], [], None, [], [])
    assert (parity.mcnemar, parity.reliability, parity.kendall_tau, parity.distances) == (
        None,
        None,
        None,
        {},
    )


def test_labels_in_another_order_are_held_against_the_truth_by_name() -> None:
    scores, truth = labelled(Task.SINGLE_LABEL)
    comparison = Comparison("stage", "torch", FP32, list("dcba"), list("abcd"))
    comparison.add_taps(names(scores), {"scores": scores}, {"scores": scores[:, ::-1]}, truth)
    parity = comparison.result()
    assert (parity.flips, parity.rank_changes, parity.kendall_tau) == ([], 0, 1.0)
    assert parity.metrics == judged(Task.SINGLE_LABEL, scores, scores, truth).metrics


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_an_engine_overwrites_after_its_batch_is_not_lost(dtype: Any) -> None:
    scores, truth = labelled(Task.SINGLE_LABEL, 8)
    buffer = np.empty((4, 4), dtype)
    comparison = Comparison("stage", "torch", FP32, list("abcd"), list("abcd"))
    for start in (0, 4):
        buffer[:] = scores[start : start + 4]
        comparison.add_taps(
            names(scores)[start : start + 4], {"scores": buffer}, {"scores": buffer}, truth[start : start + 4]
        )
    assert comparison.result().metrics == judged(Task.SINGLE_LABEL, scores, scores, truth).metrics


def views_of_images(seed: int = 0) -> Array:
    """Ten views' softmax scores of two labels for six images, one after the other."""
    first = np.random.default_rng(seed).random((6, 10, 1)).astype(np.float32)
    return np.concatenate([first, 1 - first], 2).reshape(6, 20)


@pytest.mark.parametrize("tolerance", [FP32, BF16, INT8])
def test_views_in_another_order_fail_although_their_mean_is_the_same(tolerance: Any) -> None:
    views = views_of_images()
    turned = views.reshape(6, 10, 2)[:, ::-1].reshape(6, 20)
    comparison = Comparison("stage", "torch", tolerance, ["a", "b"], ["a", "b"])
    mean = views.reshape(6, 10, 2).mean(1)
    comparison.add_taps(
        [f"image {i}" for i in range(6)], {"views": views, "scores": mean}, {"views": turned, "scores": mean}
    )
    parity = comparison.result()
    assert [t.tap for t in parity.taps if t.reason] == ["views"]
    assert {t.tap: t.kind for t in parity.taps} == {"views": "views", "scores": "scores"}


def test_views_are_judged_as_scores_are() -> None:
    tiny = np.full((6, 20), 1e-6, np.float32)
    assert compared(tiny, 2 * tiny, "views").passed  # relative, they would be twice as large
    assert not compared(tiny, tiny + 0.01, "views").passed
