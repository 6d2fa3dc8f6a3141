"""Training a recipe's head: frozen features (cached), folds, and the head trained on everything."""

from __future__ import annotations

import hashlib
import json
import platform
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from vsa_rt.contracts import Task
from vsa_rt.dataset import Photograph, read_dataset
from vsa_rt.documents import write_whole
from vsa_rt.errors import DatasetError, ItemError, RecipeError, UsageError, needs
from vsa_rt.pipeline.export import Progress, silent
from vsa_rt.pipeline.heads.features import features_by_backbone, readable
from vsa_rt.pipeline.heads.metrics import Evaluation, Routing, Series, evaluate
from vsa_rt.pipeline.heads.splits import Split, make_splits, read_fold_files
from vsa_rt.pipeline.images import data_key
from vsa_rt.recipe import Fit, Recipe
from vsa_rt.recipe_file import with_options
from vsa_rt.recipe_rules import check_recipe
from vsa_rt.schedules import PRESETS
from vsa_rt.version import __version__

with needs("export"):
    import PIL
    import sklearn
    import timm
    import torch

    from vsa_rt.export.ensemble import load_backbones
    from vsa_rt.export.head import check_labels
    from vsa_rt.export.head_file import BackboneRecord, backbone_records, head_to_bytes
    from vsa_rt.export.training import Targets, join_features, train_head
    from vsa_rt.export.trunk import Trunk


@dataclass(frozen=True)
class FitOptions:
    """How to fit.

    Attributes:
        seed: Of folds, weights and order.
        preset: A paper's schedule instead of the recipe's.
        split: Instead of the recipe's.
        folds: Instead of the recipe's.
        fold_files: Each lists one fold's test photographs; instead of ``split`` and ``folds``.
        weights: Backbone name to a file to use instead of the recipe's.
        random_seed: Seeded backbones.
        settings: ``BACKBONE.OPTION``, ``task`` or ``labels`` to a value instead of the recipe's.
        cache: Folder for features; ``None`` for ``$XDG_CACHE_HOME/vsa-rt``.
        progress: Told of every step.
    """

    seed: int = 0
    preset: str | None = None
    split: Literal["folds", "random"] | None = None
    folds: int | None = None
    fold_files: Sequence[Path] = ()
    weights: dict[str, Path] = field(default_factory=dict)
    random_seed: int | None = None
    settings: dict[str, str] = field(default_factory=dict)
    cache: Path | None = None
    progress: Progress = silent


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


def _loss(recipe: Recipe) -> Literal["cross-entropy", "bce", "nll"]:
    """What the task makes of the recipe's loss.

    Raises:
        RecipeError: The task has another one.
    """
    if recipe.task is Task.MULTI_LABEL:
        return "bce"
    if recipe.task is not Task.DISTRIBUTION:
        return recipe.fit.loss
    if recipe.fit.loss == "bce":
        brought = f", which preset {recipe.fit.preset} brings," if recipe.fit.preset else ""
        raise RecipeError(
            f"{recipe.name}: key `fit.loss`: bce{brought} judges label by label; a distribution is learnt by its "
            'divergence from the true shares: write loss = "cross-entropy"'
        )
    return "nll" if recipe.head.kind == "moe" else "cross-entropy"


def _in_effect(recipe: Recipe, options: FitOptions) -> Recipe:
    """The recipe with the settings that the options change.

    Raises:
        UsageError: A preset is unknown or trains nothing, fold files meet another split, weights are a head's, or the
            head has none.
        RecipeError: The settings do not fit the recipe.
    """
    if "head" in options.weights:
        raise UsageError("--weights head=…: fit trains the head, from nothing; leave it out")
    recipe = with_options(recipe, options.settings)
    if recipe.head.kind == "units":
        raise UsageError(
            f"{recipe.name}: head.kind units has no weights: nothing to train; build it as it is"
        )
    fit = recipe.fit
    if options.preset is not None:
        if options.preset not in PRESETS:
            raise UsageError(f"--preset {options.preset!r}: expected one of {', '.join(PRESETS)}")
        if recipe.head.kind == "linear":
            raise UsageError("--preset: a linear head is not trained by a schedule; kinds nn and moe are")
        # Nothing of the recipe's own schedule stays: a preset that is silent on a key means the default.
        kept = {key: getattr(fit, key) for key in ("split", "folds", "test", "regularisation")}
        fit = msgspec.convert(kept | PRESETS[options.preset] | {"preset": options.preset}, Fit)
    if options.fold_files and (options.split is not None or options.folds is not None):
        raise UsageError("--fold-file: the files are the folds; leave out --split and --folds")
    if options.split is not None:
        fit = msgspec.structs.replace(fit, split=options.split)
    if options.folds is not None:
        fit = msgspec.structs.replace(fit, folds=options.folds)
    recipe = msgspec.structs.replace(recipe, fit=fit)
    fit = msgspec.structs.replace(fit, loss=_loss(recipe))
    return check_recipe(msgspec.structs.replace(recipe, fit=fit), recipe.name)


def _shares(recipe: Recipe, photographs: Sequence[Photograph]) -> NDArray[np.float64]:
    """Each label's share of each photograph ``(N, C)``: the table's, else the same for all labels that apply.

    Raises:
        DatasetError: A photograph has no label.
    """
    for photograph in photographs:
        if not photograph.labels:
            raise DatasetError(f"{photograph.path}: has no label; task {recipe.task} wants at least one")
    truth = [dict(p.shares or ((name, 1.0) for name in p.labels or ())) for p in photographs]
    rows = np.array([[shares.get(name, 0.0) for name in recipe.labels] for shares in truth])
    return np.asarray(rows / rows.sum(1, keepdims=True))


def training_targets(recipe: Recipe, photographs: Sequence[Photograph]) -> Targets:
    """What to learn, as ``vsa_rt.export.training.Targets`` has it for the task.

    Raises:
        DatasetError: A photograph has no label or several, and the task wants one.
    """
    if recipe.task is Task.MULTI_LABEL:
        rows = [[name in (p.labels or ()) for name in recipe.labels] for p in photographs]
        return np.array(rows, np.int64)
    if recipe.task is Task.DISTRIBUTION:
        return _shares(recipe, photographs)
    for photograph in photographs:
        if photograph.label is None:
            has = ", ".join(photograph.labels or ()) or "no label"
            raise DatasetError(f"{photograph.path}: has {has}; task {recipe.task} wants exactly one label")
    return np.array([recipe.labels.index(p.label or "") for p in photographs], np.int64)


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
    words = ["vsa-rt", "fit", recipe.name, "--data", data.resolve().name, "-o", out.name]
    words += ["--seed", str(options.seed)]
    words += ["--preset", options.preset] if options.preset is not None else []
    words += ["--split", options.split] if options.split is not None else []
    words += ["--folds", str(options.folds)] if options.folds is not None else []
    words += [word for path in options.fold_files for word in ("--fold-file", path.name)]
    words += [w for name, path in options.weights.items() for w in ("--weights", f"{name}={path.name}")]
    words += ["--random-weights", str(options.random_seed)] if options.random_seed is not None else []
    words += [word for key, value in options.settings.items() for word in ("--set", f"{key}={value}")]
    return shlex.join(words)


def _head_settings(recipe: Recipe) -> dict[str, object]:
    """What decides the training; where an earlier head lies does not."""
    settings: dict[str, object] = msgspec.to_builtins(recipe.head)
    return {k: v for k, v in settings.items() if k not in ("weights", "sha256")}


def _versions() -> dict[str, str]:
    """Of the libraries that compute a head."""
    return {
        "vsa-rt": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "timm": timm.__version__,
        "pillow": PIL.__version__,
    }


#: Series of ``Evaluation`` that the report has as three keys.
_SERIES = ("accuracy", "weighted_f1", "micro_f1", "macro_f1", "hamming_loss", "ranking_loss")


def _metrics(found: Evaluation) -> dict[str, Any]:
    """The keys of the report that the folds fill."""
    keys: dict[str, Any] = {
        "tested": found.tested,
        "distances": found.distances,
        "label_accuracy": found.label_accuracy,
        "confusion": found.confusion,
        "routing": found.routing,
    }
    for name in _SERIES:
        series: Series | None = getattr(found, name)
        values = (None, None, None) if series is None else (series.folds, series.mean, series.std)
        keys |= dict(zip((name, f"{name}_mean", f"{name}_std"), values, strict=True))
    return keys


def _tested(splits: Sequence[Split]) -> int:
    """Photographs that at least one split tests."""
    return len(np.unique(np.concatenate([split.test for split in splits])))


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
        DatasetError: No labels, too few photographs for the folds, or a fold file that does not fit the data.
        RecipeError: The data's labels are not the recipe's.
        UsageError: The options contradict each other or the recipe.
    """
    _check_out(out)
    recipe = _in_effect(recipe, options)
    dataset = read_dataset(data)
    if not dataset.labelled:
        raise DatasetError(f"{data}: has no labels; expected labels.csv or one folder per label")
    check_labels(recipe, dataset.labels)
    training_targets(recipe, dataset.photographs)
    files = read_fold_files(options.fold_files, data, dataset, recipe.labels)
    options.progress("loading checkpoints")
    backbones = load_backbones(recipe, recipe_folder, options.weights, options.random_seed)
    options.progress("reading photographs")
    trunk = Trunk(backbones)
    photographs, rejected = readable(dataset, trunk.inputs)
    if not photographs:
        raise DatasetError(f"{data}: no photograph can be read; the first: {rejected[0]}")
    targets = training_targets(recipe, photographs)
    splits = make_splits(recipe, targets, options.seed, photographs, files)
    key = data_key(photographs, trunk.inputs)
    by_backbone = features_by_backbone(
        trunk, recipe.head.features, photographs, key, options.cache, options.progress
    )
    features = join_features(recipe, by_backbone)
    found = evaluate(recipe, features, targets, splits, options.seed, options.progress)
    options.progress("training on all photographs")
    head = train_head(recipe, features, targets, options.seed)
    head_file = head_to_bytes(head, recipe, backbones)
    report = FitReport(
        recipe=recipe.name,
        head=recipe.head.kind,
        task=str(recipe.task),
        threshold=recipe.threshold if recipe.task is Task.MULTI_LABEL else None,
        data=data.resolve().name,
        data_sha256=key,
        photographs=len(photographs),
        labels=recipe.labels,
        seed=options.seed,
        preset=recipe.fit.preset,
        split="files" if files else recipe.fit.split,
        fold_files=[{"name": f.name, "sha256": f.sha256} for f in files],
        train_only=len(photographs) - _tested(splits),
        checkpoints={b.name: b.record.sha256 for b in backbones},
        backbones=backbone_records(backbones),
        random_seed=next((b.record.random_seed for b in backbones if b.record.random_seed is not None), None),
        head_sha256=hashlib.sha256(head_file).hexdigest(),
        settings={"fit": msgspec.to_builtins(recipe.fit), "head": _head_settings(recipe)},
        command=_command(recipe, data, out, options),
        versions=_versions(),
        **_metrics(found),
    )
    write_whole(out, head_file)
    write_whole(out.with_suffix(".json"), json.dumps(msgspec.to_builtins(report), indent=2).encode() + b"\n")
    return report, rejected
