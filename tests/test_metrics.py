"""Metrics of folds, against values that a pencil gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vsa_rt.contracts import Task
from vsa_rt.recipe import Recipe

for _name in ("torch", "sklearn"):
    pytest.importorskip(_name, reason="heads are trained with torch and scikit-learn")

import torch

from vsa_rt.export.head import LinearHead, MoeHead
from vsa_rt.export.training import gate_weights
from vsa_rt.pipeline.fitting import metrics
from vsa_rt.pipeline.fitting.metrics import Series, evaluate, routing, score_folds
from vsa_rt.pipeline.fitting.splits import Split

LABELS = ["a", "b", "c"]


def toy(task: Task, classes: int = 3) -> Recipe:
    return Recipe(schema=1, name="toy", task=task, labels=LABELS[:classes])


def identity() -> LinearHead:
    """Logits are the features."""
    head = LinearHead(3, 3).eval()
    with torch.no_grad():
        head.fc.weight.copy_(torch.eye(3))
        head.fc.bias.zero_()
    return head


def evaluated(monkeypatch: pytest.MonkeyPatch, task: Task, rows: Any, targets: Any, *tests: Any) -> Any:
    """What ``evaluate`` says of a head that repeats its features, on these test rows."""
    monkeypatch.setattr(metrics, "train_head", lambda *_: identity())
    none = np.array([], np.int64)
    splits = [Split(str(i), none, np.array(test)) for i, test in enumerate(tests)]
    steps: list[str] = []
    found = evaluate(toy(task), np.array(rows, np.float32), np.array(targets), splits, 0, steps.append)
    assert steps == [f"fold {i + 1} of {len(tests)}" for i in range(len(tests))]
    return found


def test_one_label_per_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fold 1: a a b said a b b. Fold 2: c said c."""
    rows = [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]]
    found = evaluated(monkeypatch, Task.SINGLE_LABEL, rows, [0, 0, 1, 2], [0, 1, 2], [3])
    assert found.tested == [3, 1]
    assert found.accuracy.folds == pytest.approx([2 / 3, 1])
    # F1 of a and b is 2 / 3 each: precision and recall are 1 and 1 / 2, and the other way round.
    assert found.weighted_f1.folds == pytest.approx([2 / 3, 1])
    assert found.confusion == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert found.micro_f1 is found.macro_f1 is found.label_accuracy is found.routing is None
    assert found.hamming_loss is found.ranking_loss is found.distances is None


def test_several_labels_per_photograph(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[1, 1, -1], [1, -1, -1], [-1, -1, -1], [1, 1, -1]]  # said: a b, a, nothing, a b
    targets = [[1, 1, 0], [1, 1, 0], [0, 1, 0], [1, 0, 0]]
    found = evaluated(monkeypatch, Task.MULTI_LABEL, rows, targets, [0, 1, 2, 3])
    f1_a, f1_b = 1.0, 0.4  # b: one right of two said, of three true
    assert found.weighted_f1.mean == pytest.approx((3 * f1_a + 3 * f1_b) / 6)
    assert found.macro_f1.mean == pytest.approx((f1_a + f1_b + 0) / 3)
    assert found.micro_f1.mean == pytest.approx(2 * 4 / (5 + 6))
    assert found.label_accuracy == {"a": 1.0, "b": 0.25, "c": 1.0}
    assert found.weighted_f1.std is None
    assert found.accuracy is found.confusion is found.distances is None
    assert found.hamming_loss.mean == pytest.approx(3 / 12)  # b twice missed, once given wrongly
    # Equal scores are in the wrong order: b and c of row 2, b with both others of row 3, a and b of row 4.
    assert found.ranking_loss.mean == pytest.approx((0 + 1 / 2 + 2 / 2 + 1 / 2) / 4)


def test_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fold 1: half a and half b, said as below. Fold 2: exactly what is true."""
    said = np.array([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6]])
    targets = [[0.5, 0.5, 0.0], [0.2, 0.2, 0.6]]
    found = evaluated(monkeypatch, Task.DISTRIBUTION, np.log(said), targets, [0], [1])
    assert found.tested == [1, 1]
    wanted = {
        "chebyshev": 0.25,
        "clark": np.sqrt((0.25 / 0.75) ** 2 + 0 + 1),
        "canberra": 0.25 / 0.75 + 0 + 1,
        "kl": 0.5 * np.log(0.5 / 0.25) + 0,
        "cosine": 0.375 / np.sqrt(0.5 * 0.375),
        "intersection": 0.25 + 0.5 + 0,
    }
    same = {"chebyshev": 0, "clark": 0, "canberra": 0, "kl": 0, "cosine": 1, "intersection": 1}
    assert list(found.distances) == list(wanted)
    for name, series in found.distances.items():
        assert series.folds == pytest.approx([wanted[name], same[name]], abs=1e-6), name
        assert series.mean == pytest.approx((wanted[name] + same[name]) / 2, abs=1e-6)
    # a and b tie: b, which is said, is one of the winners.
    assert found.accuracy.folds == [1.0, 1.0]
    others = (found.weighted_f1, found.micro_f1, found.macro_f1, found.hamming_loss, found.ranking_loss)
    assert others == (None,) * 5
    assert found.confusion is found.label_accuracy is None


def test_a_distribution_whose_winner_is_another_one_is_wrong() -> None:
    truth = np.array([[0.5, 0.4, 0.1], [0.1, 0.5, 0.4], [0.4, 0.2, 0.4]])
    scores = np.array([[0.4, 0.5, 0.1], [0.2, 0.6, 0.2], [0.1, 0.2, 0.7]])
    found = score_folds(toy(Task.DISTRIBUTION), [truth], [scores])
    assert found.accuracy is not None
    assert found.accuracy.mean == pytest.approx(2 / 3)


def test_scores_that_do_not_add_up_to_one_are_scaled_to_distributions() -> None:
    """Those of a mixture."""
    truth, scores = np.array([[0.5, 0.3, 0.2]]), np.array([[0.4, 0.1, 0.3]])
    one, two = (score_folds(toy(Task.DISTRIBUTION), [truth], [s]) for s in (scores, scores / 0.8))
    assert one == two


def test_distances_of_folds_are_scipys() -> None:
    """KL with the published code's guards differs by 1e-10 and its like."""
    distance = pytest.importorskip("scipy.spatial.distance", reason="the golden values are scipy's")
    stats = pytest.importorskip("scipy.stats", reason="the golden values are scipy's")
    rng = np.random.default_rng(0)
    truth, scores = rng.dirichlet([1, 1, 1], 20), rng.dirichlet([1, 1, 1], 20)
    found = score_folds(toy(Task.DISTRIBUTION), [truth], [scores]).distances or {}
    pairs = list(zip(truth, scores, strict=True))
    wanted = {
        "chebyshev": np.mean([distance.chebyshev(p, q) for p, q in pairs]),
        "canberra": np.mean([distance.canberra(p, q) for p, q in pairs]),
        "kl": np.mean([stats.entropy(p, q) for p, q in pairs]),
        "cosine": np.mean([1 - distance.cosine(p, q) for p, q in pairs]),
        # Half the city-block distance is what is not shared.
        "intersection": np.mean([1 - distance.cityblock(p, q) / 2 for p, q in pairs]),
    }
    assert {name: found[name].mean for name in wanted} == pytest.approx(wanted, abs=1e-6)


def test_whoever_always_says_positive_is_right_as_often_as_the_folds_are() -> None:
    """Campos et al. 2015: positive images of 176 in each of the five test folds; 0.658 +- 0.040, sample deviation."""
    positives = [115, 113, 124, 121, 106]
    truth = [np.arange(176) < count for count in positives]
    scores = [np.tile([0.0, 1.0], (176, 1))] * 5
    found = score_folds(toy(Task.BINARY, 2), [t.astype(np.int64) for t in truth], scores)
    assert found.accuracy is not None
    assert found.accuracy.folds == pytest.approx([count / 176 for count in positives])
    assert found.accuracy.std is not None
    assert (round(found.accuracy.mean, 3), round(found.accuracy.std, 3)) == (0.658, 0.040)
    assert round(float(np.std(found.accuracy.folds)), 3) == 0.036  # the deviation of a whole population
    assert found.confusion == [[0, 301], [0, 579]]
    shares = np.array(positives) / 176
    assert found.weighted_f1 is not None
    assert found.weighted_f1.folds == pytest.approx(shares * 2 * shares / (1 + shares))


def test_whoever_never_says_a_label_loses_as_many_decisions_as_labels_apply() -> None:
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1]])
    found = score_folds(toy(Task.MULTI_LABEL), [truth], [np.full((4, 3), 0.1)])
    assert found.hamming_loss is not None
    assert found.ranking_loss is not None
    assert found.micro_f1 is not None
    assert found.hamming_loss.mean == pytest.approx(6 / 12)
    assert found.ranking_loss.mean == pytest.approx(
        2 / 4
    )  # of two rows every pair ties, the others have none
    assert found.micro_f1.mean == 0.0


def test_a_series_has_the_sample_deviation() -> None:
    assert Series.of([1.0, 2.0, 3.0]) == Series([1.0, 2.0, 3.0], 2.0, 1.0)
    assert Series.of([0.5]) == Series([0.5], 0.5, None)


def test_routing_is_the_mean_weight_and_the_share_of_first_places() -> None:
    gates = np.array([[[0.5, 0.3, 0.2], [0.0, 0.0, 1.0]], [[0.1, 0.2, 0.7], [0.25, 0.5, 0.25]]], np.float32)
    a, b = routing(["a", "b"], gates)
    assert (a.label, b.label) == ("a", "b")
    assert a.weight == pytest.approx([0.3, 0.25, 0.45])
    assert a.largest == [0.5, 0.0, 0.5]
    assert b.weight == pytest.approx([0.125, 0.25, 0.625])
    assert b.largest == [0.0, 0.5, 0.5]


def test_gates_of_a_head_sum_to_one_and_the_dummy_is_the_last() -> None:
    head = MoeHead(4, 2, 8, 3, True, 0.0).eval()
    with torch.no_grad():
        head.gates.weight.zero_()
        head.gates.bias.copy_(torch.tensor([0.0, 0, 0, 2, 1, 0, 0, 0]))
    gates = gate_weights(head, np.ones((5, 4), np.float32))
    assert gates.shape == (5, 2, 4)
    np.testing.assert_allclose(gates.sum(2), 1, atol=1e-6)
    e = np.e
    np.testing.assert_allclose(gates[0, 0], np.array([1, 1, 1, e**2]) / (3 + e**2), rtol=1e-5)
    np.testing.assert_allclose(gates[4, 1], np.array([e, 1, 1, 1]) / (3 + e), rtol=1e-5)
