"""What layer-wise probes report."""

from __future__ import annotations

from dataclasses import dataclass

from vsa_rt.errors import needs

with needs("export"):
    from vsa_rt.export.head_file import BackboneRecord


@dataclass(frozen=True)
class ProbedClassifier:
    """What the folds show of one classifier on one layer.

    Attributes:
        accuracy: Per fold.
        accuracy_mean: Over the folds.
        accuracy_std: Sample standard deviation over the folds; ``None`` with one fold.
        c: The inverse strength of the L2 penalty that each fold's training part chose.
    """

    accuracy: list[float]
    accuracy_mean: float
    accuracy_std: float | None
    c: list[float]


@dataclass(frozen=True)
class ProbedLayer:
    """What can be read from one layer.

    Attributes:
        name: As it was asked for.
        backbone: Whose layer it is; empty for the head.
        layer: The submodule's name; ``head`` for the trained head's logits.
        width: Numbers per photograph.
        classifiers: Classifier to what its folds show.
    """

    name: str
    backbone: str
    layer: str
    width: int
    classifiers: dict[str, ProbedClassifier]


@dataclass(frozen=True)
class ProbeReport:
    """What the layers say of the labels.

    Attributes:
        recipe: Name of the recipe.
        task: What the labels are.
        data: Name of the folder.
        data_sha256: Over the files' bytes and labels, in order.
        photographs: How many were used.
        labels: In the recipe's order.
        seed: Of folds and inner folds.
        split: ``folds``, ``random`` or ``files``.
        test: ``random``: the share that is tested; else ``None``.
        fold_files: Name and SHA-256 of each given fold.
        tested: Test photographs per fold.
        train_only: Photographs that no fold tested.
        inner_folds: Into how many parts a training part was divided to choose C.
        grids: Classifier to the C that were tried.
        classifiers: Classifier to what it is, in words.
        majority: Per fold: accuracy of always saying the training part's most frequent label.
        majority_mean: Over the folds.
        majority_std: Sample standard deviation over the folds; ``None`` with one fold.
        layers: In the order in which they were asked for.
        checkpoints: Backbone name, or ``head``, to the SHA-256 of its weights; those that were run.
        backbones: Backbone name to architecture, options, preprocessing and weights.
        random_seed: Of the backbones whose weights are random; ``None`` if none is.
        command: What repeats it.
        versions: Of the libraries that computed it.
    """

    recipe: str
    task: str
    data: str
    data_sha256: str
    photographs: int
    labels: list[str]
    seed: int
    split: str
    test: float | None
    fold_files: list[dict[str, str]]
    tested: list[int]
    train_only: int
    inner_folds: int
    grids: dict[str, list[float]]
    classifiers: dict[str, str]
    majority: list[float]
    majority_mean: float
    majority_std: float | None
    layers: list[ProbedLayer]
    checkpoints: dict[str, str]
    backbones: dict[str, BackboneRecord]
    random_seed: int | None
    command: str
    versions: dict[str, str]
