"""Training a recipe's head: frozen features (cached), folds, and the head trained on everything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from vsa_rt.contracts import Task
from vsa_rt.dataset import read_dataset
from vsa_rt.documents import write_whole
from vsa_rt.errors import DatasetError, ItemError, RecipeError, UsageError, needs
from vsa_rt.pipeline.fitting.features import features_by_backbone, readable
from vsa_rt.pipeline.fitting.fit_report import FitReport, metrics_of
from vsa_rt.pipeline.fitting.metrics import evaluate
from vsa_rt.pipeline.fitting.options import FitOptions, check_out, versions
from vsa_rt.pipeline.fitting.splits import Split, make_splits, read_fold_files
from vsa_rt.pipeline.fitting.targets import check_votes, training_targets
from vsa_rt.pipeline.images import data_key
from vsa_rt.recipe import Fit, Recipe
from vsa_rt.recipe_file import with_options
from vsa_rt.recipe_rules import check_recipe
from vsa_rt.schedules import PRESETS

with needs("export"):
    from vsa_rt.export.ensemble import load_backbones
    from vsa_rt.export.head import check_labels
    from vsa_rt.export.head_file import backbone_records, head_to_bytes
    from vsa_rt.export.training import join_features, train_head
    from vsa_rt.export.trunk import Trunk


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
            f"{recipe.name}: head.kind units has no weights: nothing to train. Build it from a network that was "
            "fine-tuned so: units 0 and 1 of others stand for no sentiment"
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
    recipe = msgspec.structs.replace(recipe, fit=options.split_of(fit))
    fit = msgspec.structs.replace(recipe.fit, loss=_loss(recipe))
    return check_recipe(msgspec.structs.replace(recipe, fit=fit), recipe.name)


def _head_settings(recipe: Recipe) -> dict[str, object]:
    """What decides the training; where an earlier head lies does not."""
    settings: dict[str, object] = msgspec.to_builtins(recipe.head)
    return {k: v for k, v in settings.items() if k not in ("weights", "sha256")}


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
    check_out(out, ".safetensors", "its report goes beside it as .json")
    recipe = _in_effect(recipe, options)
    dataset = read_dataset(data)
    if not dataset.labelled:
        raise DatasetError(f"{data}: has no labels; expected labels.csv or one folder per label")
    check_labels(recipe, dataset.labels)
    check_votes(recipe, data, dataset)
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
        command=options.command(recipe, data, out),
        versions=versions(),
        **metrics_of(found),
    )
    write_whole(out, head_file)
    write_whole(out.with_suffix(".json"), json.dumps(msgspec.to_builtins(report), indent=2).encode() + b"\n")
    return report, rejected
