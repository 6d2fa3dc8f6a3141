"""How well a linear classifier tells labels apart, its regularisation chosen on each fold's training part alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsa_rt.errors import DatasetError, needs
from vsa_rt.pipeline.fitting.metrics import Series
from vsa_rt.pipeline.fitting.splits import Indices, Split

with needs("export"):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.svm import SVC

Coordinates = NDArray[np.float64]
#: Classifier to what it is.
CLASSIFIERS = {
    "svm": "support vector machine with hinge loss: LIBSVM (scikit-learn's SVC) over inner products; several labels "
    "pair by pair",
    "softmax": "multinomial logistic regression (scikit-learn's LogisticRegression, newton-cg)",
}
#: Classifier to the C that are tried, in half decades. On features of mean squared norm 1, C = 0.01 hardly leaves the
#: majority's label. Beyond 100 a margin that can be hard is hard, and LIBSVM takes millions of steps where it cannot.
GRIDS: dict[str, tuple[float, ...]] = {
    "svm": tuple(float(10 ** (k / 2)) for k in range(-4, 5)),
    "softmax": tuple(float(10 ** (k / 2)) for k in range(-4, 9)),
}
#: Inner folds that choose C; fewer where a label has fewer training photographs.
INNER = 5
#: When training ends: LIBSVM's own tolerance of its optimality conditions, and the largest slope of the mean loss.
TOLERANCES = {"svm": 1e-3, "softmax": 1e-8}


@dataclass(frozen=True)
class Decision:
    """What a trained classifier says.

    Attributes:
        labels: Index of the label of each row ``(M,)``.
        values: Its decision values: ``(M,)`` for two labels, else ``(M, C)``.
    """

    labels: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """What folds show of one classifier on one layer.

    Attributes:
        accuracy: Share of test photographs whose label is right.
        strengths: The chosen C of each fold.
    """

    accuracy: Series
    strengths: list[float]


def centred_and_scaled(points: Coordinates, train: Indices, test: Indices) -> tuple[Coordinates, Coordinates]:
    """Training and test rows, both moved and scaled by what the training rows alone say.

    The origin is their mean, and one factor for all coordinates makes their mean squared norm 1. Features are not
    standardised one by one: their own scales cannot be seen in inner products.
    """
    origin = points[train].mean(0)
    known, others = points[train] - origin, points[test] - origin
    scale = float(np.sqrt((known**2).sum(1).mean())) or 1.0
    return known / scale, others / scale


def decide(
    classifier: str,
    known: Coordinates,
    targets: NDArray[np.int64],
    others: Coordinates,
    strengths: Sequence[float],
) -> Iterator[Decision]:
    """Train one classifier per C and let it decide.

    Args:
        classifier: One of ``CLASSIFIERS``.
        known: Rows ``(N, D)`` to train on.
        targets: Their labels ``(N,)``.
        others: Rows ``(M, D)`` to decide.
        strengths: Inverse strengths C of the L2 penalty: ``|w|² / 2 + C * (sum of losses)`` is minimised.

    Returns:
        What is decided, C by C.
    """
    tolerance = TOLERANCES[classifier]
    if classifier == "svm":
        kernel, cross = known @ known.T, others @ known.T
        for strength in strengths:
            machine = SVC(C=strength, kernel="precomputed", tol=tolerance).fit(kernel, targets)
            yield Decision(machine.predict(cross), machine.decision_function(cross))
        return
    for strength in strengths:
        model = LogisticRegression(C=strength, solver="newton-cg", tol=tolerance, max_iter=1_000)
        model.fit(known, targets)
        yield Decision(model.predict(others), model.decision_function(others))


@dataclass(frozen=True)
class NestedFolds:
    """Labels, outer folds that test, and inner folds of each training part that choose C.

    Attributes:
        targets: Indices into the labels ``(N,)``.
        splits: The outer folds.
        inner: How many inner folds.
        seed: Of the inner folds.
    """

    targets: NDArray[np.int64]
    splits: Sequence[Split]
    inner: int
    seed: int

    @classmethod
    def of(
        cls, targets: NDArray[np.int64], splits: Sequence[Split], labels: Sequence[str], seed: int
    ) -> NestedFolds:
        """With ``INNER`` inner folds, or as many as the rarest label has training photographs.

        Raises:
            DatasetError: A label has a single one in some split.
        """
        fewest = INNER
        for split in splits:
            counts = np.bincount(targets[split.train], minlength=len(labels))
            if counts.min() < 2:
                name = labels[int(counts.argmin())]
                raise DatasetError(
                    f"{split.name}: label {name!r} has {counts.min()} photograph to train on; choosing C takes 2"
                )
            fewest = min(fewest, int(counts.min()))
        return cls(targets, splits, fewest, seed)

    def choose(self, classifier: str, points: Coordinates, split: Split) -> float:
        """The C whose classifiers are right most often in a stratified cross-validation of a training part.

        Args:
            classifier: One of ``CLASSIFIERS``.
            points: ``(N, R)``; the split's test rows decide nothing.
            split: Whose training part chooses.

        Returns:
            Of ``GRIDS``; the smallest of those that are equally good.
        """
        grid, train, targets = GRIDS[classifier], split.train, self.targets
        right = np.zeros(len(grid), np.int64)
        dealt = StratifiedKFold(self.inner, shuffle=True, random_state=self.seed)
        for a, b in dealt.split(train, targets[train]):
            known, others = centred_and_scaled(points, train[a], train[b])
            said = decide(classifier, known, targets[train[a]], others, grid)
            right += [int((decision.labels == targets[train[b]]).sum()) for decision in said]
        return grid[int(right.argmax())]

    def read(self, classifier: str, points: Coordinates) -> Reading:
        """Train on each split's photographs, with the C that they choose, and test on its others.

        Args:
            classifier: One of ``CLASSIFIERS``.
            points: ``(N, R)``, as ``coordinates`` makes them.
        """
        accuracy, strengths = [], []
        for split in self.splits:
            strength = self.choose(classifier, points, split)
            known, others = centred_and_scaled(points, split.train, split.test)
            [said] = decide(classifier, known, self.targets[split.train], others, [strength])
            accuracy.append(float((said.labels == self.targets[split.test]).mean()))
            strengths.append(strength)
        return Reading(Series.of(accuracy), strengths)

    def majority(self) -> Series:
        """Accuracy of always saying the training part's most frequent label; of equally frequent ones the first."""
        said = [int(np.bincount(self.targets[split.train]).argmax()) for split in self.splits]
        return Series.of(
            [
                float((self.targets[s.test] == label).mean())
                for s, label in zip(self.splits, said, strict=True)
            ]
        )
