"""What folds show of a head: the metrics of its task, and which expert decides how much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.bench.decisions import DISTANCES, normalised
from vsa_rt.contracts import Task
from vsa_rt.errors import needs
from vsa_rt.pipeline.export import Progress
from vsa_rt.pipeline.fitting.splits import Split
from vsa_rt.recipe import Recipe

with needs("export"):
    from sklearn.metrics import (
        accuracy_score,
        confusion_matrix,
        f1_score,
        hamming_loss,
        label_ranking_loss,
    )

    from vsa_rt.export.head import MoeHead
    from vsa_rt.export.training import Scores, Targets, decide, gate_weights, scores_of, train_head


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
        accuracy: Single label: share of right ones; distribution: of photographs whose winning label is the true
            winner, or one of them where several tie.
        weighted_f1: Not of distributions: F1 of each label, weighted by how many test photographs have it.
        micro_f1: Multi-label: F1 of all decisions together.
        macro_f1: Multi-label: plain mean of the labels' F1; a label that is neither there nor given counts 0.
        hamming_loss: Multi-label: share of wrong decisions.
        ranking_loss: Multi-label: share of pairs of a true and another label whose scores are in the wrong order or
            equal, mean over photographs; 0 of one that has no such pair.
        distances: Distribution: name to the mean over photographs (``vsa_rt.bench.decisions.DISTANCES``).
        label_accuracy: Multi-label: per label the share of right decisions over the folds' test photographs.
        confusion: Single label: summed over the folds; rows true, columns predicted.
        routing: Mixture of experts: per label.
    """

    tested: list[int]
    accuracy: Series | None = None
    weighted_f1: Series | None = None
    micro_f1: Series | None = None
    macro_f1: Series | None = None
    hamming_loss: Series | None = None
    ranking_loss: Series | None = None
    distances: dict[str, Series] | None = None
    label_accuracy: dict[str, float] | None = None
    confusion: list[list[int]] | None = None
    routing: list[Routing] | None = None


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


def _series(metric: Callable[..., Any], *sides: Sequence[NDArray[Any]], **options: Any) -> Series:
    """A metric of each fold's truth and what was said of it."""
    return Series.of([float(metric(*fold, **options)) for fold in zip(*sides, strict=True)])


def _of_one_label(recipe: Recipe, truth: Sequence[Targets], said: Sequence[Targets]) -> Evaluation:
    places = range(len(recipe.labels))
    return Evaluation(
        tested=[len(t) for t in truth],
        accuracy=_series(accuracy_score, truth, said),
        weighted_f1=_series(f1_score, truth, said, average="weighted", zero_division=0),
        confusion=confusion_matrix(np.concatenate(truth), np.concatenate(said), labels=places).tolist(),
    )


def _of_several_labels(
    recipe: Recipe, truth: Sequence[Targets], said: Sequence[Targets], scores: Sequence[Scores]
) -> Evaluation:
    right = (np.concatenate(truth) == np.concatenate(said)).mean(0)
    # Without one true or given label F1 is 0.
    return Evaluation(
        tested=[len(t) for t in truth],
        weighted_f1=_series(f1_score, truth, said, average="weighted", zero_division=0),
        micro_f1=_series(f1_score, truth, said, average="micro", zero_division=0),
        macro_f1=_series(f1_score, truth, said, average="macro", zero_division=0),
        hamming_loss=_series(hamming_loss, truth, said),
        ranking_loss=_series(label_ranking_loss, truth, scores),
        label_accuracy=dict(zip(recipe.labels, right.tolist(), strict=True)),
    )


def _winner_is_right(truth: Targets, said: Targets) -> float:
    return float((truth[np.arange(len(truth)), said] >= truth.max(1)).mean())


def _of_distributions(
    truth: Sequence[Targets], said: Sequence[Targets], scores: Sequence[Scores]
) -> Evaluation:
    shares = [normalised(s) for s in scores]
    means = {
        name: Series.of([float(distance(t, q).mean()) for t, q in zip(truth, shares, strict=True)])
        for name, distance in DISTANCES.items()
    }
    return Evaluation(
        tested=[len(t) for t in truth],
        accuracy=_series(_winner_is_right, truth, said),
        distances=means,
    )


def score_folds(recipe: Recipe, truth: Sequence[Targets], scores: Sequence[Scores]) -> Evaluation:
    """Metrics of scores, wherever they come from.

    Args:
        recipe: Labels, task and threshold.
        truth: Each fold's targets, as ``vsa_rt.export.training.Targets`` has them for the task.
        scores: Each fold's scores ``(N, C)`` of the same photographs.

    Returns:
        The metrics of the recipe's task, without a routing.
    """
    said = [decide(s, recipe.task, recipe.threshold) for s in scores]
    if recipe.task is Task.MULTI_LABEL:
        return _of_several_labels(recipe, truth, said, scores)
    if recipe.task is Task.DISTRIBUTION:
        return _of_distributions(truth, said, scores)
    return _of_one_label(recipe, truth, said)


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
        targets: As ``vsa_rt.export.training.Targets`` has them for the task.
        splits: At least one.
        seed: Of every training.
        progress: Told of every fold.

    Returns:
        The metrics of the recipe's task.
    """
    truth, scores, gates = [], [], []
    for number, split in enumerate(splits):
        progress(f"fold {number + 1} of {len(splits)}")
        head = train_head(recipe, features[split.train], targets[split.train], seed)
        truth.append(targets[split.test])
        scores.append(scores_of(head, features[split.test], recipe))
        if isinstance(head, MoeHead):
            gates.append(gate_weights(head, features[split.test]))
    found = score_folds(recipe, truth, scores)
    return replace(found, routing=routing(recipe.labels, np.concatenate(gates)) if gates else None)
