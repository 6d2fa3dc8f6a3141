"""Training a recipe's head: frozen features (cached), folds, and the head trained on everything."""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from vsa_rt.dataset import read_dataset
from vsa_rt.errors import DatasetError, ItemError, UsageError, needs
from vsa_rt.pipeline.export import Progress, silent
from vsa_rt.pipeline.features import backbone_features, data_key, readable, write_whole
from vsa_rt.recipe import Recipe
from vsa_rt.version import __version__

with needs("export"):
    import PIL
    import sklearn
    import timm
    import torch
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
    from sklearn.model_selection import StratifiedKFold

    from vsa_rt.export.ensemble import load_backbones
    from vsa_rt.export.head import check_labels, head_to_bytes
    from vsa_rt.export.training import join_features, predict, train_head

Features = NDArray[np.float32]


@dataclass(frozen=True)
class FitOptions:
    """How to fit.

    Attributes:
        seed: Of folds, weights and order.
        folds: Instead of the recipe's.
        weights: Backbone name to a file to use instead of the recipe's.
        random_seed: Seeded backbones.
        cache: Folder for features; ``None`` for ``$XDG_CACHE_HOME/vsa-rt``.
        progress: Told of every step.
    """

    seed: int = 0
    folds: int | None = None
    weights: dict[str, Path] = field(default_factory=dict)
    random_seed: int | None = None
    cache: Path | None = None
    progress: Progress = silent


@dataclass(frozen=True)
class FitReport:
    """What the folds showed.

    Attributes:
        recipe: Name of the recipe.
        head: Kind of the head.
        data: Name of the folder.
        data_sha256: Over the files' bytes and labels, in order.
        photographs: How many were used.
        labels: In the order of the scores.
        seed: Of everything.
        accuracy: Per fold.
        weighted_f1: Per fold.
        accuracy_mean: Over the folds.
        accuracy_std: Sample standard deviation over the folds.
        weighted_f1_mean: Over the folds.
        weighted_f1_std: Sample standard deviation over the folds.
        confusion: Summed over the folds' test parts: rows true, columns predicted, in the labels' order.
        checkpoints: Backbone name to the SHA-256 of its weights.
        head_sha256: Of the head file, trained on all photographs.
        settings: The recipe's ``fit`` and ``head`` tables.
        command: What repeats it.
        versions: Of the libraries that computed it.
    """

    recipe: str
    head: str
    data: str
    data_sha256: str
    photographs: int
    labels: list[str]
    seed: int
    accuracy: list[float]
    weighted_f1: list[float]
    accuracy_mean: float
    accuracy_std: float
    weighted_f1_mean: float
    weighted_f1_std: float
    confusion: list[list[int]]
    checkpoints: dict[str, str]
    head_sha256: str
    settings: dict[str, object]
    command: str
    versions: dict[str, str]


def _cross_validate(
    recipe: Recipe, features: Features, targets: NDArray[np.int64], options: FitOptions
) -> tuple[list[float], list[float], NDArray[np.int64]]:
    """Accuracy and weighted F1 per fold, and the summed confusion matrix."""
    folds = options.folds or recipe.fit.folds
    fewest = int(np.bincount(targets, minlength=len(recipe.labels)).min())
    if fewest < folds:
        raise DatasetError(f"{folds} folds need {folds} photographs of every label; one label has {fewest}")
    accuracy, weighted = [], []
    confusion = np.zeros((len(recipe.labels),) * 2, np.int64)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=options.seed)
    for number, (train, test) in enumerate(splitter.split(features, targets)):
        options.progress(f"fold {number + 1} of {folds}")
        said = predict(train_head(recipe, features[train], targets[train], options.seed), features[test])
        accuracy.append(float(accuracy_score(targets[test], said)))
        weighted.append(float(f1_score(targets[test], said, average="weighted")))
        confusion += confusion_matrix(targets[test], said, labels=range(len(recipe.labels)))
    return accuracy, weighted, confusion


def _check_out(out: Path) -> None:
    """Find out before the work whether its result can be written.

    Raises:
        UsageError: It cannot.
    """
    if out.suffix != ".safetensors" or out.is_dir():
        raise UsageError(
            f"-o {out}: expected a file that ends in .safetensors; its report goes beside it as .json"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UsageError(f"-o {out}: cannot be written: {error.strerror}") from error


def _command(recipe: Recipe, data: Path, out: Path, options: FitOptions) -> str:
    """What repeats the fit, without the places of this machine."""
    words = [
        "vsa-rt fit",
        recipe.name,
        "--data",
        data.resolve().name,
        "-o",
        out.name,
        "--seed",
        str(options.seed),
    ]
    words += ["--folds", str(options.folds)] if options.folds else []
    words += [f"--weights {name}={path.name}" for name, path in options.weights.items()]
    words += ["--random-weights", str(options.random_seed)] if options.random_seed is not None else []
    return " ".join(words)


def _head_settings(recipe: Recipe) -> dict[str, object]:
    """What decides the training; where an earlier head lies does not."""
    settings: dict[str, object] = msgspec.to_builtins(recipe.head)
    return {k: v for k, v in settings.items() if k not in ("weights", "sha256")}


def fit(
    recipe: Recipe, recipe_folder: Path, data: Path, out: Path, options: FitOptions
) -> tuple[FitReport, list[ItemError]]:
    """Train the head of a recipe.

    Args:
        recipe: Backbones, head and settings.
        recipe_folder: For the recipe's relative paths.
        data: A labelled folder.
        out: The head file; ``out`` with the suffix ``.json`` gets the report.
        options: Seed, folds, cache.

    Returns:
        The report, and the photographs that were left out with their reasons.

    Raises:
        DatasetError: No labels, or too few photographs for the folds.
        RecipeError: The data's labels are not the recipe's.
    """
    _check_out(out)
    dataset = read_dataset(data)
    if not dataset.labelled:
        raise DatasetError(f"{data}: has no labels; expected labels.csv (file,label) or one folder per label")
    check_labels(recipe, dataset.labels)
    options.progress("loading checkpoints")
    backbones = load_backbones(recipe, recipe_folder, options.weights, options.random_seed)
    options.progress("reading photographs")
    photographs, rejected = readable(dataset, backbones)
    if not photographs:
        raise DatasetError(f"{data}: no photograph can be read; the first: {rejected[0]}")
    data_sha256 = data_key(photographs)
    by_backbone = {
        loaded.name: backbone_features(
            loaded, entry.architecture, photographs, data_sha256, options.cache, options.progress
        )
        for loaded, entry in zip(backbones, recipe.backbones, strict=True)
    }
    features = join_features(recipe, by_backbone)
    targets = np.array([recipe.labels.index(p.label or "") for p in photographs], np.int64)
    accuracy, weighted, confusion = _cross_validate(recipe, features, targets, options)
    options.progress("training on all photographs")
    head = train_head(recipe, features, targets, options.seed)
    head_file = head_to_bytes(head, recipe, {b.name: b.width for b in backbones})
    report = FitReport(
        recipe=recipe.name,
        head=recipe.head.kind,
        data=data.resolve().name,
        data_sha256=data_sha256,
        photographs=len(photographs),
        labels=recipe.labels,
        seed=options.seed,
        accuracy=accuracy,
        weighted_f1=weighted,
        accuracy_mean=float(np.mean(accuracy)),
        accuracy_std=float(np.std(accuracy, ddof=1)),
        weighted_f1_mean=float(np.mean(weighted)),
        weighted_f1_std=float(np.std(weighted, ddof=1)),
        confusion=confusion.tolist(),
        checkpoints={b.name: b.record.sha256 for b in backbones},
        head_sha256=hashlib.sha256(head_file).hexdigest(),
        settings={"fit": msgspec.to_builtins(recipe.fit), "head": _head_settings(recipe)},
        command=_command(recipe, data, out, options),
        versions={
            "vsa-rt": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
            "timm": timm.__version__,
            "pillow": PIL.__version__,
        },
    )
    write_whole(out, head_file)
    write_whole(out.with_suffix(".json"), json.dumps(msgspec.to_builtins(report), indent=2).encode() + b"\n")
    return report, rejected
