"""Linear classifiers over inner products: what scikit-learn says of the features, and C without a look at the test."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

for _name in ("torch", "sklearn"):
    pytest.importorskip(_name, reason="probes belong to the export extra")

from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from vsa_rt.errors import DatasetError
from vsa_rt.pipeline.fitting import linear_probe as module
from vsa_rt.pipeline.fitting.gram import coordinates, gram_matrix
from vsa_rt.pipeline.fitting.linear_probe import (
    CLASSIFIERS,
    GRIDS,
    NestedFolds,
    centred_and_scaled,
    decide,
)
from vsa_rt.pipeline.fitting.splits import Split

Ints = NDArray[np.int64]


def made(count: int, width: int, labels: int, signal: float, seed: int = 0) -> tuple[NDArray[Any], Ints]:
    """Features far from the origin that hold something of the labels, and the labels."""
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % labels
    rows = rng.normal(5, 1, (count, width))
    rows[:, :labels] += signal * np.eye(labels)[targets]
    return rows.astype(np.float32), targets


def split_at(count: int, tested: int) -> Split:
    return Split("fold 1", np.arange(tested, count), np.arange(tested))


def folds_of(targets: Ints, splits: list[Split]) -> NestedFolds:
    return NestedFolds.of(targets, splits, [str(k) for k in range(targets.max() + 1)], 0)


@pytest.mark.parametrize("classifier", list(CLASSIFIERS))
@pytest.mark.parametrize("labels", [2, 3])
def test_inner_products_say_what_the_features_say(
    monkeypatch: pytest.MonkeyPatch, classifier: str, labels: int
) -> None:
    # Both sides are solved until only rounding is left: the theorem is about the solution.
    monkeypatch.setitem(module.TOLERANCES, "svm", 1e-9)
    monkeypatch.setitem(module.TOLERANCES, "softmax", 1e-12)
    rows, targets = made(60, 400, labels, 1.5)
    split = split_at(60, 15)
    points = coordinates(gram_matrix([rows[:, :150], rows[:, 150:]], 60))
    known, others = centred_and_scaled(points, split.train, split.test)
    wide = rows.astype(np.float64)
    plain = wide[split.train] - wide[split.train].mean(0)
    scale = np.sqrt((plain**2).sum(1).mean())
    tested = (wide[split.test] - wide[split.train].mean(0)) / scale
    strengths = [0.1, 1.0, 10.0]
    for strength, said in zip(
        strengths, decide(classifier, known, targets[split.train], others, strengths), strict=True
    ):
        model: Any = (
            SVC(C=strength, kernel="linear", tol=1e-9)
            if classifier == "svm"
            else LogisticRegression(C=strength, tol=1e-12, max_iter=10_000, solver="newton-cg")
        )
        model.fit(plain / scale, targets[split.train])
        assert said.values == pytest.approx(model.decision_function(tested), abs=1e-6)
        assert said.labels.tolist() == model.predict(tested).tolist()


def test_the_training_part_alone_centres_and_scales() -> None:
    points = np.array([[1.0, 0.0], [3.0, 0.0], [5.0, 7.0]])
    known, others = centred_and_scaled(points, np.array([0, 1]), np.array([2]))
    assert known.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert others.tolist() == [[3.0, 7.0]]
    points[2] = 1e6
    assert centred_and_scaled(points, np.array([0, 1]), np.array([2]))[0].tolist() == known.tolist()


@pytest.mark.parametrize("classifier", list(CLASSIFIERS))
def test_test_photographs_have_no_say_in_c(classifier: str) -> None:
    rows, targets = made(90, 60, 2, 1.0, seed=3)
    split = split_at(90, 30)
    points = coordinates(gram_matrix([rows], 90))
    folds = folds_of(targets, [split])
    chosen = folds.choose(classifier, points, split)
    known, others = centred_and_scaled(points, split.train, split.test)
    grid = GRIDS[classifier]

    def best_on_the_test_part(labels: Ints) -> float:
        said = decide(classifier, known, targets[split.train], others, grid)
        return grid[int(np.argmax([(d.labels == labels).sum() for d in said]))]

    # Test labels under which another C looks best: whoever chose by them, or by all photographs, would change.
    last = list(decide(classifier, known, targets[split.train], others, grid))
    planted = next(
        targets_of_c.labels
        for c, targets_of_c in zip(grid, last, strict=True)
        if best_on_the_test_part(targets_of_c.labels) != chosen and c != chosen
    )
    leaked = targets.copy()
    leaked[split.test] = planted
    assert best_on_the_test_part(planted) != chosen
    assert folds_of(leaked, [split]).choose(classifier, points, split) == chosen
    # And other test photographs altogether: whoever looked at a row that is no number could not go on.
    rows[split.test] = made(30, 60, 2, 50.0, seed=9)[0]
    moved = coordinates(gram_matrix([rows], 90))
    assert folds.choose(classifier, moved, split) == chosen
    points[split.test] = np.nan
    assert folds.choose(classifier, points, split) == chosen


def test_of_equally_good_c_the_smallest_is_taken() -> None:
    rows, targets = made(40, 4, 2, 0.0)
    rows[:, 0] += 1_000 * targets
    split = split_at(40, 10)
    folds = folds_of(targets, [split])
    points = coordinates(gram_matrix([rows], 40))
    assert folds.choose("softmax", points, split) == GRIDS["softmax"][0]
    assert folds.read("softmax", points).accuracy.folds == [1.0]


def test_signal_is_read_and_noise_is_not() -> None:
    targets = np.arange(120) % 2
    splits = [
        Split(str(k), np.setdiff1d(np.arange(120), t), t) for k, t in enumerate(np.split(np.arange(120), 4))
    ]
    folds = folds_of(targets, splits)
    for classifier in CLASSIFIERS:
        clear, noise = (
            folds.read(classifier, coordinates(gram_matrix([made(120, 300, 2, s, seed=1)[0]], 120)))
            for s in (8.0, 0.0)
        )
        assert clear.accuracy.mean > 0.95
        assert 0.3 < noise.accuracy.mean < 0.7
        assert len(clear.strengths) == 4
        assert set(clear.strengths + noise.strengths) <= set(GRIDS[classifier])


@pytest.mark.parametrize("classifier", list(CLASSIFIERS))
def test_a_layer_that_says_nothing_gives_the_majority(classifier: str) -> None:
    targets = np.array([0] * 10 + [1] * 20)
    split = Split("fold 1", np.arange(0, 30, 2), np.arange(1, 30, 2))
    folds = folds_of(targets, [split])
    reading = folds.read(classifier, np.zeros((30, 1)))
    assert reading.accuracy.folds == folds.majority().folds == [10 / 15]


def test_every_c_of_the_grids_converges_on_labels_that_cannot_be_told_apart() -> None:
    rng = np.random.default_rng(0)
    rows, targets = rng.normal(size=(150, 3)), rng.integers(0, 3, 150)
    known, others = centred_and_scaled(rows, np.arange(100), np.arange(100, 150))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for classifier, grid in GRIDS.items():
            assert len(list(decide(classifier, known, targets[:100], others, grid))) == len(grid)


def test_the_majority_of_the_folds_of_campos_2015() -> None:
    # Positives among the 176 test photographs of each published fold, and the paper's always-positive row
    # (fc6-4096: 0.657 +- 0.040, truncated from 0.658).
    positives = [115, 113, 124, 121, 106]
    targets = np.concatenate([[1] * p + [0] * (176 - p) for p in positives])
    everything = np.arange(880)
    tests = np.split(everything, 5)
    folds = folds_of(targets, [Split(str(k), np.setdiff1d(everything, t), t) for k, t in enumerate(tests)])
    found = folds.majority()
    assert found.folds == pytest.approx([p / 176 for p in positives])
    assert found.mean == pytest.approx(0.658, abs=5e-4)
    assert found.std == pytest.approx(0.040, abs=5e-4)
    assert folds.inner == 5


def test_rare_labels_make_fewer_inner_folds_and_a_single_one_none() -> None:
    split = split_at(20, 5)
    targets = np.array([0] * 17 + [1] * 3)
    assert folds_of(targets, [split]).inner == 3
    targets = np.array([0] * 19 + [1])
    with pytest.raises(DatasetError, match="fold 1: label '1' has 1 photograph to train on"):
        folds_of(targets, [split])
