"""The report of ``fit``: what the folds showed of a head, and all that repeats it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vsa_rt.errors import needs
from vsa_rt.pipeline.fitting.metrics import Evaluation, Routing, Series

with needs("export"):
    from vsa_rt.export.head_file import BackboneRecord


@dataclass(frozen=True)
class FitReport:
    """What the folds showed.

    A metric that does not fit the task or the head is ``None``; so is the deviation of a single fold.

    Attributes:
        recipe: Name of the recipe.
        head: Kind of the head.
        task: What the scores mean.
        threshold: Multi-label: the score above which a label is given.
        data: Name of the folder.
        data_sha256: Over the files' bytes and labels, in order.
        photographs: How many were used.
        labels: In the order of the scores.
        seed: Of everything.
        preset: The schedule's name; empty for none.
        split: ``folds``, ``random`` or ``files``.
        fold_files: Name and SHA-256 of each given fold.
        tested: Test photographs per fold.
        train_only: Photographs that no fold tested.
        accuracy: Per fold; single label, and of distributions' winning labels.
        weighted_f1: Per fold; not of distributions.
        micro_f1: Per fold; multi-label.
        macro_f1: Per fold; multi-label.
        hamming_loss: Per fold; multi-label.
        ranking_loss: Per fold; multi-label.
        accuracy_mean: Over the folds.
        accuracy_std: Sample standard deviation over the folds.
        weighted_f1_mean: Over the folds.
        weighted_f1_std: Sample standard deviation over the folds.
        micro_f1_mean: Over the folds.
        micro_f1_std: Sample standard deviation over the folds.
        macro_f1_mean: Over the folds.
        macro_f1_std: Sample standard deviation over the folds.
        hamming_loss_mean: Over the folds.
        hamming_loss_std: Sample standard deviation over the folds.
        ranking_loss_mean: Over the folds.
        ranking_loss_std: Sample standard deviation over the folds.
        distances: Distribution: name to its values by fold, their mean and sample standard deviation.
        label_accuracy: Multi-label: label to the share of right decisions over the folds' test parts.
        confusion: Summed over the folds' test parts: rows true, columns predicted, in the labels' order.
        routing: Mixture of experts: per label, how its gates share the decision over the folds' test parts.
        checkpoints: Backbone name to the SHA-256 of its weights.
        backbones: Backbone name to what the head file remembers of it: architecture, options, preprocessing, weights.
        random_seed: Of the backbones whose weights are random; ``None`` if none is.
        head_sha256: Of the head file, trained on all photographs.
        settings: The ``fit`` and ``head`` tables that were in effect.
        command: What repeats it.
        versions: Of the libraries that computed it.
    """

    recipe: str
    head: str
    task: str
    threshold: float | None
    data: str
    data_sha256: str
    photographs: int
    labels: list[str]
    seed: int
    preset: str
    split: str
    fold_files: list[dict[str, str]]
    tested: list[int]
    train_only: int
    accuracy: list[float] | None
    weighted_f1: list[float] | None
    micro_f1: list[float] | None
    macro_f1: list[float] | None
    hamming_loss: list[float] | None
    ranking_loss: list[float] | None
    accuracy_mean: float | None
    accuracy_std: float | None
    weighted_f1_mean: float | None
    weighted_f1_std: float | None
    micro_f1_mean: float | None
    micro_f1_std: float | None
    macro_f1_mean: float | None
    macro_f1_std: float | None
    hamming_loss_mean: float | None
    hamming_loss_std: float | None
    ranking_loss_mean: float | None
    ranking_loss_std: float | None
    distances: dict[str, Series] | None
    label_accuracy: dict[str, float] | None
    confusion: list[list[int]] | None
    routing: list[Routing] | None
    checkpoints: dict[str, str]
    backbones: dict[str, BackboneRecord]
    random_seed: int | None
    head_sha256: str
    settings: dict[str, object]
    command: str
    versions: dict[str, str]


#: Series of ``Evaluation`` that the report has as three keys.
SERIES = ("accuracy", "weighted_f1", "micro_f1", "macro_f1", "hamming_loss", "ranking_loss")


def metrics_of(found: Evaluation) -> dict[str, Any]:
    """The keys of the report that the folds fill."""
    keys: dict[str, Any] = {
        "tested": found.tested,
        "distances": found.distances,
        "label_accuracy": found.label_accuracy,
        "confusion": found.confusion,
        "routing": found.routing,
    }
    for name in SERIES:
        series: Series | None = getattr(found, name)
        values = (None, None, None) if series is None else (series.folds, series.mean, series.std)
        keys |= dict(zip((name, f"{name}_mean", f"{name}_std"), values, strict=True))
    return keys
