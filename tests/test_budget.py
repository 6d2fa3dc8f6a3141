"""The budget: how it is written, and that each of its clauses catches what it must and lets pass what just holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.bench.decisions import over_budget
from vsa_rt.bench.parity import TOLERANCES, Comparison, Flip, Metric, Parity, loosest
from vsa_rt.budget import Budget
from vsa_rt.cli.options import budget_of
from vsa_rt.contracts import Precision, Task
from vsa_rt.errors import UsageError

Array = NDArray[Any]
INT8 = TOLERANCES[Precision.INT8]
DEFAULT = Budget()


# As text


def test_without_a_word_it_is_the_default() -> None:
    assert (DEFAULT.flips, DEFAULT.margin, DEFAULT.kl, DEFAULT.accuracy) == (0.01, 0.2, 0.01, 0.0)
    assert budget_of(None) == DEFAULT
    assert str(DEFAULT) == "flips=1%,margin=0.2,kl=0.01,accuracy=0%"


def test_named_clauses_replace_the_default_and_the_others_stay() -> None:
    assert budget_of("flips=0.5%,kl=0.005") == Budget(flips=0.005, kl=0.005)
    assert Budget.parse(" margin = 15% , accuracy = 0.5 % ") == Budget(margin=0.15, accuracy=0.005)
    assert Budget.parse("flips=0.003") == Budget.parse("flips=0.3%")
    assert Budget.parse("accuracy=off").accuracy is None
    assert Budget.parse("kl=1e-3,margin=1,flips=100%") == Budget(kl=0.001, margin=1.0, flips=1.0)


@pytest.mark.parametrize(
    "budget",
    [DEFAULT, Budget(flips=0.003, margin=0.1234567, kl=1e-7, accuracy=None), Budget(flips=1 / 3, kl=12.5)],
)
def test_its_text_is_read_back_as_itself(budget: Budget) -> None:
    assert Budget.parse(str(budget)) == budget
    assert msgspec.json.decode(msgspec.json.encode(budget), type=Budget) == budget


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "''.*CLAUSE=VALUE"),
        ("flips", "'flips'.*CLAUSE=VALUE"),
        ("flips=1%,", "''.*CLAUSE=VALUE"),
        ("speed=2", "'speed=2'.*flips, margin, kl, accuracy"),
        ("Flips=1%", "'Flips=1%'"),
        ("flips=1%,flips=2%", "'flips=2%': flips is named twice"),
        ("flips=", "flips=: expected a share such as 0.5% or 0.005"),
        ("flips=-1%", "flips=-1%: expected a share"),
        ("flips=101%", "flips=101%: .*at most 100%"),
        ("flips=1.5", "flips=1.5: .*at most 100%"),
        ("flips=off", "flips=off: expected a share"),
        ("margin=nan", "margin=nan: expected a share"),
        ("kl=inf", "kl=inf: expected nats such as 0.01"),
        ("kl=1%", "kl=1%: expected nats such as 0.01"),
        ("kl=1_0", "kl=1_0: expected nats"),
        ("kl=1e999", "kl=1e999: expected nats"),
        ("kl=٣", "kl=٣: expected nats"),
        ("accuracy=none", "accuracy=none: .*or off"),
    ],
)
def test_another_text_is_refused_by_its_entry(text: str, names: str) -> None:
    with pytest.raises(UsageError, match=names):
        Budget.parse(text)


@pytest.mark.parametrize("clause", ["flips", "margin", "kl", "accuracy"])
@pytest.mark.parametrize("value", [-0.01, math.nan, math.inf])
def test_a_budget_that_cannot_be_is_not_made(clause: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"budget {clause}"):
        Budget(**{clause: value})


def test_a_file_with_a_budget_that_cannot_be_is_refused() -> None:
    for raw in (b'{"flips": 1.5}', b'{"kl": -1}', b'{"speed": 2}'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(raw, type=Budget)


# The clauses, on verdicts made by hand


def verdict(
    margins: Sequence[float] = (), images: int = 1000, kl: float | None = 0.0, metric: Metric | None = None
) -> Parity:
    """A comparison whose flips have these margins; those under 0.1 are ties."""
    flips = [Flip(f"image {i}", "a", "b", margin, margin < 0.1) for i, margin in enumerate(margins)]
    metrics = [] if metric is None else [metric]
    return Parity("stage", "onnx", images, [], flips, kl, metrics, [], kl_item="image 7")


#: What just holds, what just fails, and what the failure says.
CLAUSES = {
    "flips": (
        verdict([0.15] * 10),
        verdict([0.15] * 11),
        "labels: 11 of 1000 flip outside ties, the budget is 1 %",
    ),
    "margin": (
        verdict([0.2]),
        verdict([0.15, 0.201]),
        "labels: 1 of 1000 flip at a margin above 0.2; the widest: image 1, a to b at 0.201",
    ),
    "kl": (
        verdict(kl=0.01),
        verdict(kl=0.0101),
        "scores: mean KL 0.0101 nats, the budget is 0.01; worst image 7",
    ),
    "accuracy": (
        verdict(metric=Metric("accuracy", 0.9, 0.88, -0.04, 0.0)),
        verdict(metric=Metric("accuracy", 0.9, 0.87, -0.05, -0.001)),
        "accuracy: 0.9000 to 0.8700, difference -0.0300, 95 % interval -0.0500 to -0.0010, wholly below 0",
    ),
}


@pytest.mark.parametrize("clause", CLAUSES)
def test_each_clause_holds_at_its_bound_and_alone_fails_beyond(clause: str) -> None:
    holds, fails, says = CLAUSES[clause]
    assert over_budget(holds, DEFAULT) == []
    assert over_budget(fails, DEFAULT) == [says]


def test_another_budget_moves_each_bound() -> None:
    for clause, text in (("flips", "flips=2%"), ("margin", "margin=0.3"), ("kl", "kl=0.02")):
        assert over_budget(CLAUSES[clause][1], Budget.parse(text)) == []
    for clause, text in (("flips", "flips=0.5%"), ("margin", "margin=0.19"), ("kl", "kl=0.005")):
        assert over_budget(CLAUSES[clause][0], Budget.parse(text)) != []


def test_a_loss_that_is_allowed_must_be_significantly_exceeded() -> None:
    lost = CLAUSES["accuracy"][1]
    assert over_budget(lost, Budget(accuracy=None)) == []
    assert over_budget(lost, Budget(accuracy=0.001)) == []
    [reason] = over_budget(lost, Budget(accuracy=0.0005))
    assert reason.endswith("wholly below minus the budget of 0.0005")


def test_one_image_may_always_flip_within_the_margin_and_never_beyond() -> None:
    """Of 17 photographs one is 6 %."""
    assert over_budget(verdict([0.15], images=17), Budget(flips=0.0)) == []
    assert len(over_budget(verdict([0.15] * 2, images=17), DEFAULT)) == 1
    assert len(over_budget(verdict([0.9], images=17), DEFAULT)) == 1


def test_ties_are_not_counted_but_their_margin_is_held() -> None:
    assert over_budget(verdict([0.09] * 50), DEFAULT) == []
    [reason] = over_budget(verdict([0.09] * 50), Budget(margin=0.05))
    assert reason.startswith("labels: 50 of 1000 flip at a margin above 0.05")


def test_a_share_of_whole_images_is_not_lost_to_rounding() -> None:
    """0.29 times 100 is 28.999999999999996 in binary."""
    assert over_budget(verdict([0.15] * 29, images=100), Budget(flips=0.29)) == []


def test_where_nothing_decides_nothing_is_over_the_budget() -> None:
    assert over_budget(verdict(images=17, kl=None), DEFAULT) == []


def test_a_divergence_that_is_not_a_number_is_over_the_budget() -> None:
    assert over_budget(verdict(kl=math.nan), DEFAULT) != []


# In a comparison, with int8's tolerance


def names(scores: Array) -> list[str]:
    return [f"image {i}" for i in range(len(scores))]


def compared(
    scores: Array,
    candidate: Array,
    labels: str = "abcd",
    truth: Sequence[Any] = (),
    task: Task = Task.SINGLE_LABEL,
    precision: Precision = Precision.INT8,
) -> Parity:
    comparison = Comparison(
        "stage", "onnx", TOLERANCES[precision], list(labels), list("abcd"), task, budget=DEFAULT
    )
    comparison.add_taps(names(scores), {"scores": scores}, {"scores": candidate}, truth)
    return comparison.result()


def softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True), np.float32)


@pytest.fixture
def logits() -> Array:
    """Of 200 images, the lead of the winner spread widely."""
    return np.random.default_rng(5).standard_normal((200, 4)) * 3


def test_rounding_like_int8s_holds(logits: Array) -> None:
    noise = 0.1 * np.random.default_rng(6).standard_normal(logits.shape)
    parity = compared(softmax(logits), softmax(logits + noise))
    assert parity.reasons == []
    assert parity.taps[0].max_abs is not None
    assert parity.taps[0].max_abs > 0.02
    assert parity.kl is not None
    assert 0 < parity.kl < 0.01


def test_the_same_flips_fail_without_a_budget_at_the_margin_of_a_tie(logits: Array) -> None:
    scores = softmax(logits)
    row = int(np.flatnonzero(np.abs(np.diff(np.sort(scores, 1)[:, -2:])[:, 0] - 0.15) < 0.04)[0])
    harmed = scores.copy()
    first, second = np.argsort(-scores[row])[:2]
    harmed[row, [first, second]] = scores[row, [second, first]]
    assert compared(scores, harmed).passed
    strict = Comparison("stage", "onnx", INT8, list("abcd"), list("abcd"))
    strict.add_taps(names(scores), {"scores": scores}, {"scores": harmed})
    [reason] = strict.result().reasons
    assert reason.startswith("labels: 1 of 200 flip at a margin above 0.1")


@pytest.mark.parametrize("precision", [p for p in Precision if p is not Precision.FP32])
def test_swapped_labels_are_caught(logits: Array, precision: Precision) -> None:
    scores = softmax(logits)
    parity = compared(scores, scores, labels="bacd", precision=precision)
    assert any("flip at a margin above 0.2" in r for r in parity.reasons)
    assert any("flip outside ties" in r for r in parity.reasons)
    assert any("mean KL" in r for r in parity.reasons)


def test_a_head_whose_scores_are_scaled_by_two_percent_is_caught(logits: Array) -> None:
    """No label flips, and the divergence of the scaled rows is nothing."""
    scores = softmax(logits)
    for factor in (0.98, 1.02):
        parity = compared(scores, scores * np.float32(factor))
        assert parity.flips == []
        assert parity.kl == pytest.approx(0, abs=1e-9)
        assert parity.reasons == ["scores: an image's scores sum to 1 +- 0.02, the reference's to 1"]


def test_independent_scores_are_held_to_the_gain_together(logits: Array) -> None:
    noise = 0.1 * np.random.default_rng(6).standard_normal(logits.shape)
    scores, rounded = (np.asarray(1 / (1 + np.exp(-z)), np.float32) for z in (logits, logits + noise))
    assert compared(scores, rounded).reasons == []
    [reason] = compared(scores, scores * np.float32(0.93)).reasons
    assert reason.startswith("scores: all scores sum to ")
    assert reason.endswith("allowed 1 +- 0.05 of it")


def test_scores_that_vanish_are_caught(logits: Array) -> None:
    scores = np.asarray(1 / (1 + np.exp(-logits)), np.float32)
    assert not compared(scores, np.zeros_like(scores)).passed
    assert not compared(np.zeros_like(scores), scores).passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_numbers_are_caught_by_name(logits: Array, value: float) -> None:
    scores = softmax(logits)
    harmed = scores.copy()
    harmed[3, 1] = value
    reasons = compared(scores, harmed).reasons
    assert reasons[0] == "scores: differs by inf; worst image 3"
    assert "scores: 1 of 200 images have one that is not a number" in reasons
    assert not compared(scores, np.full_like(scores, value)).passed


def test_a_backbone_scaled_by_more_than_int8_clips_is_caught() -> None:
    features = np.abs(np.random.default_rng(1).standard_normal((40, 500))).astype(np.float32)
    noise = 1 + 0.3 * np.random.default_rng(2).standard_normal(features.shape)
    for factor, holds in ((0.98, True), (0.93, False), (1.07, False), (0.0, False), (-1.0, False)):
        comparison = Comparison("stage", "onnx", INT8, budget=DEFAULT)
        comparison.add_taps(names(features), {"r": features}, {"r": features * noise * factor})
        assert comparison.result().passed is holds, factor


def test_a_significant_loss_of_accuracy_is_caught_where_labels_are_known(logits: Array) -> None:
    """Each of 40 of 200 images flips at a margin inside a tie, and always from right to wrong."""
    narrow = np.tile(np.array([[0.3, 0.28, 0.22, 0.2]], np.float32), (200, 1))
    turned = narrow.copy()
    turned[:40, :2] = narrow[:40, 1::-1]
    assert compared(narrow, turned).reasons == []
    [reason] = compared(narrow, turned, truth=[("a",)] * 200).reasons
    assert reason.startswith("accuracy: 1.0000 to 0.8000, difference -0.2000, 95 % interval -0.")
    # As many from wrong to right: nothing is lost.
    truth = [("a",)] * 20 + [("b",)] * 20 + [("a",)] * 160
    assert compared(narrow, turned, truth=truth).reasons == []


# Tolerances


def test_every_precision_has_a_tolerance_and_fp32s_is_as_it_was() -> None:
    assert set(TOLERANCES) == set(Precision)
    exact = TOLERANCES[Precision.FP32]
    assert (exact.relative, exact.gain, exact.scores, exact.flips, exact.tie) == (1e-4, 2e-5, 1e-4, 0.0, 1e-3)


def test_a_mixed_graph_is_as_loose_as_its_loosest_part() -> None:
    half, brain = TOLERANCES[Precision.FP16], TOLERANCES[Precision.BF16]
    assert loosest([half]) == half
    assert loosest([half, brain]) == brain
    mixed = TOLERANCES[Precision.MIXED]
    for one in TOLERANCES.values():
        assert loosest([one, mixed]) == mixed
