"""The comparison by itself: what fails, what is a tie, and what the figures mean."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.bench.parity import TOLERANCES, Comparison, Parity
from vsa_rt.contracts import Precision
from vsa_rt.errors import VsaError

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Reseal = Callable[..., None]
Array = NDArray[Any]
FP32, BF16 = TOLERANCES[Precision.FP32], TOLERANCES[Precision.BF16]


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
    [metric] = compared(reference, candidate, "scores", ("a", "b"), (), truth).metrics
    assert (metric.name, metric.reference) == ("accuracy", 1.0)
    assert metric.candidate == pytest.approx(0.95)
    assert metric.low < metric.candidate - metric.reference < metric.high
    # The normal approximation to the interval of 10 lost of 200.
    assert metric.low == pytest.approx(-0.05 - 1.96 * math.sqrt(0.05 * 0.95 / 200), abs=0.01)
    [same] = compared(reference, reference, "scores", ("a", "b"), (), truth).metrics
    assert (same.low, same.high) == (0.0, 0.0)


def test_images_without_a_label_do_not_count_towards_accuracy() -> None:
    [metric] = decided(SCORES, truth=["a", None, "b"]).metrics
    assert metric.reference == 0.5
    assert decided(SCORES, truth=[None, None, None]).metrics == []
