"""Making things: heads, graphs, bundles."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vsa_rt.cli.app import FAILED, app, shown_progress
from vsa_rt.cli.options import (
    AsJson,
    BudgetText,
    BuildPrecision,
    Calib,
    CalibMethod,
    Data,
    Exclude,
    MaxBatch,
    RandomSeed,
    Settings,
    SplitKind,
    Targets,
    Weights,
    budget_of,
    excluded_of,
    settings_of,
    targets_of,
    weights_of,
)
from vsa_rt.cli.tuning import (
    AuxStreams,
    FusionOption,
    HardwareCompatible,
    Level,
    MinBatch,
    OptBatch,
    StripWeights,
    TimingCache,
    VersionCompatible,
    Workspace,
    tuning_of,
)
from vsa_rt.contracts import Precision
from vsa_rt.errors import UsageError

if TYPE_CHECKING:
    from vsa_rt.pipeline.probe import Probes


class Classifier(str, Enum):
    """What ``fit --classifier`` takes."""

    SVM = "svm"
    SOFTMAX = "softmax"


def _probes(layers: list[str] | None, classifiers: list[Classifier] | None) -> Probes | None:
    """What ``--probe`` and ``--classifier`` ask for; ``None`` if a head is to be trained.

    Raises:
        UsageError: Classifiers without a layer.
    """
    if layers is None:
        if classifiers:
            raise UsageError("--classifier: says what reads layers; name them with --probe, or leave it out")
        return None
    from vsa_rt.pipeline.probe import Probes

    # Repeated names are for the probe to refuse: words_of would drop them.
    names = [word.strip() for entry in layers for word in entry.split(",") if word.strip()]
    return Probes(names, [c.value for c in classifiers or []])


@app.command()
def fit(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name or a TOML file.")],
    data: Annotated[
        Path,
        typer.Option(
            help="labels.csv beside images/ (file,label; several labels as a|b; or file and a column of votes for each "
            "label), or one folder per label."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            help="The head file, .safetensors; its report goes beside it. With --probe the report, .json; its plot "
            "goes beside it.",
        ),
    ],
    probe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER,...",
            help="Instead of a head: what a linear classifier reads from each of these layers, such as conv1,fc7, "
            "lite0.blocks.0 or head. Repeats.",
        ),
    ] = None,
    classifier: Annotated[
        list[Classifier] | None, typer.Option(help="With --probe: which of them; default both. Repeats.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of folds, weights and order.")] = 0,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="A paper's schedule instead of the recipe's settings.")
    ] = None,
    split: Annotated[
        SplitKind | None, typer.Option(help="Stratified folds or random splits, instead of the recipe's.")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="How many of either. Instead of the recipe's.")
    ] = None,
    fold_file: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Test photographs of one given fold, one name a line. Repeats."),
    ] = None,
    weights: Weights = None,
    random_weights: RandomSeed = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for features; default $XDG_CACHE_HOME/vsa-rt.")
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Train the recipe's head on the frozen features of labelled photographs, or probe the layers below it."""
    from vsa_rt import render
    from vsa_rt.pipeline.fit import fit as fit_head
    from vsa_rt.pipeline.fitting.options import FitOptions
    from vsa_rt.pipeline.probe import probe as probe_layers
    from vsa_rt.recipe_file import find_recipe, read_recipe
    from vsa_rt.render.probe import probe as render_probe
    from vsa_rt.render.probe import require_plot, write_probe_plot

    probes = _probes(probe, classifier)
    if probes is not None:
        require_plot()
    path = find_recipe(recipe)
    with shown_progress() as progress:
        options = FitOptions(
            seed=seed,
            preset=preset,
            split=split.value if split else None,
            folds=folds,
            fold_files=fold_file or [],
            weights=weights_of(weights),
            random_seed=random_weights,
            settings=settings_of(settings),
            cache=cache,
            progress=progress,
        )
        if probes is not None:
            probed, rejected = probe_layers(read_recipe(path), path.parent, data, out, probes, options)
        else:
            report, rejected = fit_head(read_recipe(path), path.parent, data, out, options)
    if probes is not None:
        write_probe_plot(probed, out.with_suffix(".svg"))
        render_probe(probed, rejected, out, as_json)
    else:
        render.fit(report, rejected, out, as_json)
    if rejected:
        raise typer.Exit(FAILED)


@app.command()
def export(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name or a TOML file.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The new directory.")],
    data: Data = None,
    weights: Weights = None,
    random_weights: RandomSeed = None,
    max_batch: MaxBatch = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Export checkpoints to one ONNX graph and compare it with PyTorch."""
    from vsa_rt import render
    from vsa_rt.pipeline.export import ExportOptions
    from vsa_rt.pipeline.export import export as export_recipe
    from vsa_rt.recipe_file import find_recipe, read_recipe, with_options

    path = find_recipe(recipe)
    with shown_progress() as progress:
        options = ExportOptions(
            data=data,
            weights=weights_of(weights),
            random_seed=random_weights,
            max_batch=max_batch,
            progress=progress,
        )
        manifest = export_recipe(
            with_options(read_recipe(path), settings_of(settings)), path.parent, out, options
        )
    render.manifest(manifest, out, as_json)


@app.command()
def build(
    source: Annotated[str, typer.Argument(metavar="RECIPE|DIR|MODEL.onnx", help="What to build.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The new bundle.")],
    target: Targets = None,
    precision: Annotated[
        BuildPrecision,
        typer.Option(
            help="`auto`: measures every precision of every backbone, and leads with the fastest plan that holds."
        ),
    ] = BuildPrecision.AUTO,
    calib: Calib = None,
    calib_method: CalibMethod = None,
    budget: BudgetText = None,
    exclude: Exclude = None,
    force: Annotated[
        bool, typer.Option("--force", help="Keep engines that fail; the manifest then says so.")
    ] = False,
    data: Data = None,
    weights: Weights = None,
    random_weights: RandomSeed = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Labels and preprocessing of a bare ONNX file; else features only.")
    ] = None,
    max_batch: MaxBatch = None,
    settings: Settings = None,
    fusion: FusionOption = None,
    min_batch: MinBatch = None,
    opt_batch: OptBatch = None,
    timing_cache: TimingCache = None,
    aux_streams: AuxStreams = None,
    workspace: Workspace = None,
    level: Level = None,
    version_compatible: VersionCompatible = False,
    hardware_compatible: HardwareCompatible = None,
    strip_weights: StripWeights = False,
    as_json: AsJson = False,
) -> None:
    """Build a bundle: export, lower, compile, gate and measure."""
    from vsa_rt import render
    from vsa_rt.pipeline.build import BuildOptions
    from vsa_rt.pipeline.build import build as build_bundle

    tuning = {
        "fusion": fusion,
        "min_batch": min_batch,
        "opt_batch": opt_batch,
        "timing_cache": timing_cache,
        "aux_streams": aux_streams,
        "workspace": workspace,
        "level": level,
        "version_compatible": version_compatible,
        "hardware": hardware_compatible,
        "strip": strip_weights,
    }
    with shown_progress() as progress:
        options = BuildOptions(
            data=data,
            weights=weights_of(weights),
            random_seed=random_weights,
            max_batch=max_batch,
            progress=progress,
            targets=targets_of(target),
            precision=None if precision is BuildPrecision.AUTO else Precision(precision.value),
            recipe=recipe,
            settings=settings_of(settings),
            calib=calib,
            method=calib_method,
            budget=budget_of(budget),
            exclude=excluded_of(exclude),
            force=force,
            tuning=tuning_of(tuning, targets_of(target)),
        )
        manifest = build_bundle(source, out, options)
    render.manifest(manifest, out, as_json)
