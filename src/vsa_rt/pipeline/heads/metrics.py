"""What folds show of a head: accuracy, F1, confusion, and which expert decides how much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsa_rt.contracts import Task
from vsa_rt.errors import needs
from vsa_rt.pipeline.export import Progress
from vsa_rt.pipeline.heads.splits import Split
from vsa_rt.recipe import Recipe

with needs("export"):
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    from vsa_rt.export.head import MoeHead
    from vsa_rt.export.training import gate_weights, predict, train_head

Targets = NDArray[np.int64]


@dataclass(frozen=True)
class Series:
    """A number per fold.

    Attributes:
        folds: In the order of the folds.
        mean: Over the folds.
        std: Sample standard deviation over the folds; ``None`` with one fold.
    """

    folds: list[float]
    mean: float
    std: float | None

    @classmethod
    def of(cls, folds: Sequence[float]) -> Series:
        """Mean and deviation of these."""
        std = float(np.std(folds, ddof=1)) if len(folds) > 1 else None
        return cls(list(folds), float(np.mean(folds)), std)


@dataclass(frozen=True)
class Routing:
    """How a mixture of experts shares the decision on one label, over the folds' test photographs.

    Attributes:
        label: Whose gates.
        weight: Mean weight of each gate, experts first, the dummy last; sums to 1.
        largest: Share of photographs in which each gate is the largest; sums to 1.
    """

    label: str
    weight: list[float]
    largest: list[float]


@dataclass(frozen=True)
class Evaluation:
    """What the folds showed; ``None`` where a metric does not fit the task or the head.

    Attributes:
        tested: Test photographs per fold.
        accuracy: Single label.
        weighted_f1: F1 of each label, weighted by how many test photographs have it.
        micro_f1: Multi-label: F1 of all decisions together.
        macro_f1: Multi-label: plain mean of the labels' F1; a label that is neither there nor given counts 0.
        label_accuracy: Multi-label: per label the share of right decisions over the folds' test photographs.
        confusion: Single label: summed over the folds; rows true, columns predicted.
        routing: Mixture of experts: per label.
    """

    tested: list[int]
    accuracy: Series | None
    weighted_f1: Series
    micro_f1: Series | None
    macro_f1: Series | None
    label_accuracy: dict[str, float] | None
    confusion: list[list[int]] | None
    routing: list[Routing] | None


def _f1(truth: Sequence[Targets], said: Sequence[Targets], average: str) -> Series:
    """F1 per fold; without one true or given label it is 0."""
    return Series.of(
        [float(f1_score(t, s, average=average, zero_division=0)) for t, s in zip(truth, said, strict=True)]
    )


def routing(labels: Sequence[str], gates: NDArray[np.float32]) -> list[Routing]:
    """Mean weight and share of first places of each gate.

    Args:
        labels: In the order of the scores.
        gates: ``(N, C, M + 1)``, the dummy last.
    """
    weight = gates.astype(np.float64).mean(0)
    first = gates.argmax(2)[:, :, None] == np.arange(gates.shape[2])
    largest = first.mean(0)
    return [
        Routing(name, w.tolist(), share.tolist())
        for name, w, share in zip(labels, weight, largest, strict=True)
    ]


def evaluate(
    recipe: Recipe,
    features: NDArray[np.float32],
    targets: Targets,
    splits: Sequence[Split],
    seed: int,
    progress: Progress,
) -> Evaluation:
    """Train on each split's photographs and test on its others.

    Args:
        recipe: Head, labels, task and settings.
        features: ``(N, D)``.
        targets: ``(N,)`` indices into the labels; ``(N, C)`` of 0 and 1 for multi-label tasks.
        splits: At least one.
        seed: Of every training.
        progress: Told of every fold.

    Returns:
        The metrics of the recipe's task.
    """
    truth, said, gates = [], [], []
    for number, split in enumerate(splits):
        progress(f"fold {number + 1} of {len(splits)}")
        head = train_head(recipe, features[split.train], targets[split.train], seed)
        truth.append(targets[split.test])
        said.append(predict(head, features[split.test], recipe.task, recipe.threshold))
        if isinstance(head, MoeHead):
            gates.append(gate_weights(head, features[split.test]))
    every_truth, every_said = np.concatenate(truth), np.concatenate(said)
    multi = recipe.task is Task.MULTI_LABEL
    accuracy = [float(accuracy_score(t, s)) for t, s in zip(truth, said, strict=True)]
    right = (every_truth == every_said).mean(0)
    return Evaluation(
        tested=[len(t) for t in truth],
        accuracy=None if multi else Series.of(accuracy),
        weighted_f1=_f1(truth, said, "weighted"),
        micro_f1=_f1(truth, said, "micro") if multi else None,
        macro_f1=_f1(truth, said, "macro") if multi else None,
        label_accuracy=dict(zip(recipe.labels, right.tolist(), strict=True)) if multi else None,
        confusion=None
        if multi
        else confusion_matrix(every_truth, every_said, labels=range(len(recipe.labels))).tolist(),
        routing=routing(recipe.labels, np.concatenate(gates)) if gates else None,
    )
