"""Metrics of folds, against values that a pencil gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vsa_rt.contracts import Task
from vsa_rt.recipe import Fit, Head, Recipe

for _name in ("torch", "sklearn"):
    pytest.importorskip(_name, reason="heads are trained with torch and scikit-learn")

import torch

from vsa_rt.export.head import LinearHead, MoeHead
from vsa_rt.export.training import gate_weights
from vsa_rt.pipeline.heads import metrics
from vsa_rt.pipeline.heads.metrics import Series, evaluate, routing
from vsa_rt.pipeline.heads.splits import Split

LABELS = ["a", "b", "c"]


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
    recipe = Recipe(
        schema=1, name="toy", task=task, labels=LABELS, head=Head(kind="linear", features=["one"]), fit=Fit()
    )
    none = np.array([], np.int64)
    splits = [Split(str(i), none, np.array(test)) for i, test in enumerate(tests)]
    steps: list[str] = []
    found = evaluate(recipe, np.array(rows, np.float32), np.array(targets), splits, 0, steps.append)
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
    assert found.accuracy is found.confusion is None


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
