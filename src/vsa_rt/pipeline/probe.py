"""Layer-wise probes: how much of the labels a linear classifier reads from each layer of a frozen network.

Campos et al. 2015 ("Diving Deep into Sentiment"), layer analysis: a linear SVM and a softmax classifier over the
flattened numbers of every layer, judged by the folds of the data set.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vsa_rt.contracts import Task
from vsa_rt.dataset import Dataset, read_dataset
from vsa_rt.documents import write_whole
from vsa_rt.errors import CheckpointError, DatasetError, ItemError, UsageError, needs
from vsa_rt.pipeline.export import Progress
from vsa_rt.pipeline.fitting.activations import LayerReader
from vsa_rt.pipeline.fitting.features import cache_folder, readable
from vsa_rt.pipeline.fitting.gram import MOST, Gram, coordinates
from vsa_rt.pipeline.fitting.layer_grams import layer_grams
from vsa_rt.pipeline.fitting.layers import HEAD, Layer, find_layers
from vsa_rt.pipeline.fitting.linear_probe import CLASSIFIERS, GRIDS, NestedFolds
from vsa_rt.pipeline.fitting.options import FitOptions, check_out, versions
from vsa_rt.pipeline.fitting.probe_report import ProbedClassifier, ProbedLayer, ProbeReport
from vsa_rt.pipeline.fitting.splits import Split, make_splits, read_fold_files
from vsa_rt.pipeline.fitting.targets import training_targets
from vsa_rt.pipeline.images import data_key
from vsa_rt.recipe import Recipe, views_of_recipe
from vsa_rt.recipe_file import with_options
from vsa_rt.recipe_rules import check_recipe

with needs("export"):
    from torch import nn

    from vsa_rt.export.backbones import LoadedBackbone
    from vsa_rt.export.ensemble import load_backbones
    from vsa_rt.export.head import check_labels
    from vsa_rt.export.head_file import backbone_records, load_head
    from vsa_rt.export.training import repeatable


@dataclass(frozen=True)
class Probes:
    """What to probe, and with what.

    Attributes:
        layers: ``BACKBONE.LAYER``, ``LAYER`` where the recipe has one backbone, or ``head``; in the report's order.
        classifiers: Of ``CLASSIFIERS``; all where empty.
    """

    layers: Sequence[str]
    classifiers: Sequence[str] = ()

    def words(self) -> list[str]:
        """The options that name them."""
        return ["--probe", ",".join(self.layers), *(w for n in self.classifiers for w in ("--classifier", n))]


def _in_effect(recipe: Recipe, options: FitOptions) -> Recipe:
    """The recipe with the settings that the options change.

    Raises:
        UsageError: Options contradict each other, or the task or the views are not those of probes.
        RecipeError: The settings do not fit the recipe.
    """
    if options.preset is not None:
        raise UsageError("--preset: a probe trains no head; leave it out, or --probe")
    recipe = with_options(recipe, options.settings)
    fit = options.split_of(recipe.fit)
    if recipe.task not in (Task.BINARY, Task.SINGLE_LABEL):
        raise UsageError(
            f"--probe: {recipe.name} has task {recipe.task}; a probe's classifiers give one label: binary or "
            "single-label"
        )
    views = views_of_recipe(recipe).count
    if views > 1:
        raise UsageError(
            f"--probe: {recipe.name} looks at an image through {views} views; a probe needs one row of numbers per "
            "image: switch oversample or map off with --set BACKBONE.OPTION=false"
        )
    return check_recipe(msgspec.structs.replace(recipe, fit=fit), recipe.name)


def _classifiers(probes: Probes) -> list[str]:
    """Those that are asked for, each once; by default all.

    Raises:
        UsageError: One is unknown.
    """
    unknown = [name for name in probes.classifiers if name not in CLASSIFIERS]
    if unknown:
        raise UsageError(f"--classifier {unknown[0]!r}: expected one of {', '.join(CLASSIFIERS)}")
    return list(dict.fromkeys(probes.classifiers or CLASSIFIERS))


def _labelled(data: Path, recipe: Recipe) -> Dataset:
    """The data set, of which every photograph has one of the recipe's labels.

    Raises:
        DatasetError: It has no labels, or more photographs than a probe takes.
    """
    dataset = read_dataset(data)
    if not dataset.labelled:
        raise DatasetError(f"{data}: has no labels; expected labels.csv (file,label) or one folder per label")
    check_labels(recipe, dataset.labels)
    if len(dataset.photographs) > MOST:
        raise DatasetError(
            f"{data}: {len(dataset.photographs)} photographs; a probe takes {MOST} at most, because every two of them "
            "have an inner product in memory"
        )
    training_targets(recipe, dataset.photographs)
    return dataset


def _trained_head(
    recipe: Recipe,
    folder: Path,
    backbones: Sequence[LoadedBackbone],
    layers: Sequence[Layer],
    options: FitOptions,
) -> tuple[nn.Module | None, str]:
    """The recipe's trained head and its file's SHA-256; ``None`` and nothing where no layer is the head's.

    Raises:
        UsageError: There is no trained head, or one without logits; or one is given that no layer wants.
    """
    name = next((layer.name for layer in layers if not layer.path), None)
    if name is None:
        if "head" in options.weights:
            raise UsageError("--weights head=…: none of the layers is the head; leave it out, or probe head")
        return None, ""
    if recipe.head.kind in ("moe", "units"):
        why = {"moe": "a mixture of experts has no logits", "units": "a head of units has no weights"}
        raise UsageError(f"--probe {name}: {why[recipe.head.kind]}; probe the layers below it")
    try:
        head, record, _ = load_head(recipe, folder, backbones, options.weights.get("head"))
    except CheckpointError as error:
        raise UsageError(f"--probe {name}: needs the trained head: {error}") from error
    return head, record.sha256


def _probed(
    layer: Layer, width: int, gram: Gram, folds: NestedFolds, classifiers: Sequence[str], progress: Progress
) -> ProbedLayer:
    """What the classifiers read from one layer."""
    found = {}
    with repeatable(folds.seed):
        points = coordinates(gram)
        for name in classifiers:
            progress(f"{layer.name}: {name}")
            reading = folds.read(name, points)
            accuracy = reading.accuracy
            found[name] = ProbedClassifier(accuracy.folds, accuracy.mean, accuracy.std, reading.strengths)
    return ProbedLayer(layer.name, layer.backbone, layer.path or HEAD, width, found)


def _report(
    recipe: Recipe, data: Path, options: FitOptions, splits: Sequence[Split], **found: Any
) -> ProbeReport:
    """The report: what was found, and all that follows from the call."""
    files = found["fold_files"]
    tested = np.unique(np.concatenate([split.test for split in splits]))
    return ProbeReport(
        recipe=recipe.name,
        task=str(recipe.task),
        data=data.resolve().name,
        labels=recipe.labels,
        seed=options.seed,
        split="files" if files else recipe.fit.split,
        test=recipe.fit.test if recipe.fit.split == "random" and not files else None,
        tested=[len(split.test) for split in splits],
        train_only=found["photographs"] - len(tested),
        grids={name: list(GRIDS[name]) for name in found["classifiers"]},
        versions=versions(),
        **found,
    )


def probe(
    recipe: Recipe, recipe_folder: Path, data: Path, out: Path, probes: Probes, options: FitOptions
) -> tuple[ProbeReport, list[ItemError]]:
    """Say how much of the labels a linear classifier reads from each layer of a recipe's networks.

    The networks run once over the photographs. A layer's numbers lie on disk until their inner products are taken,
    which are kept for the next time. On these the classifiers train, exactly as on the numbers themselves moved to the
    training part's mean and divided by one factor, not each by its own deviation.

    Args:
        recipe: Backbones, labels and splits.
        recipe_folder: For the recipe's relative paths.
        data: A labelled folder.
        out: The report, a file that ends in ``.json``.
        probes: Layers and classifiers.
        options: As of ``fit``, without a preset: seed, folds, weights, cache.

    Returns:
        The report, and the photographs that were left out with their reasons.

    Raises:
        DatasetError: No labels, too few photographs for the folds or too many for a probe, or a fold file that does
            not fit the data.
        EnvironmentUnusable: The disk has no room for the layers.
        RecipeError: The data's labels are not the recipe's.
        UsageError: A layer is unknown or cannot be probed, or the options contradict each other or the recipe.
    """
    check_out(out, ".json", "the plot goes beside it as .svg")
    recipe, classifiers = _in_effect(recipe, options), _classifiers(probes)
    dataset = _labelled(data, recipe)
    files = read_fold_files(options.fold_files, data, dataset, recipe.labels)
    options.progress("loading checkpoints")
    backbones = load_backbones(recipe, recipe_folder, options.weights, options.random_seed)
    layers = find_layers(probes.layers, backbones, recipe.head.features)
    head, head_sha256 = _trained_head(recipe, recipe_folder, backbones, layers, options)
    reader = LayerReader(recipe, backbones, layers, head)
    options.progress("reading photographs")
    photographs, rejected = readable(dataset, reader.inputs)
    if not photographs:
        raise DatasetError(f"{data}: no photograph can be read; the first: {rejected[0]}")
    targets = training_targets(recipe, photographs)
    splits = make_splits(recipe, targets, options.seed, photographs, files)
    folds = NestedFolds.of(targets, splits, recipe.labels, options.seed)
    key, folder = data_key(photographs, reader.inputs), cache_folder(options.cache) / "probes"
    progress = options.progress
    grams = layer_grams(reader, layers, backbones, head_sha256, photographs, key, folder, progress)
    probed = [_probed(x, reader.widths[x], gram, folds, classifiers, progress) for x, gram in grams]
    always = folds.majority()
    report = _report(
        recipe,
        data,
        options,
        splits,
        command=options.command(recipe, data, out, *probes.words()),
        data_sha256=key,
        photographs=len(photographs),
        fold_files=[{"name": f.name, "sha256": f.sha256} for f in files],
        inner_folds=folds.inner,
        classifiers={name: CLASSIFIERS[name] for name in classifiers},
        majority=always.folds,
        majority_mean=always.mean,
        majority_std=always.std,
        layers=probed,
        checkpoints={b.name: b.record.sha256 for b in reader.used}
        | ({"head": head_sha256} if head_sha256 else {}),
        backbones=backbone_records(reader.used),
        random_seed=next(
            (b.record.random_seed for b in reader.used if b.record.random_seed is not None), None
        ),
    )
    write_whole(out, json.dumps(msgspec.to_builtins(report), indent=2).encode() + b"\n")
    return report, rejected
