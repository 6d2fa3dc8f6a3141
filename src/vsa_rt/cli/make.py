"""Making things: heads, graphs, bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from vsa_rt.contracts import Precision


@app.command()
def fit(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A shipped recipe's name or a TOML file.")],
    data: Annotated[
        Path,
        typer.Option(
            help="labels.csv (file,label; several labels as a|b) beside images/, or one folder per label."
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The head file, .safetensors; its report goes beside it.")
    ],
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
    """Train the recipe's head on the frozen features of labelled photographs."""
    from vsa_rt import render
    from vsa_rt.pipeline.fit import FitOptions
    from vsa_rt.pipeline.fit import fit as fit_head
    from vsa_rt.recipe_file import find_recipe, read_recipe

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
        report, rejected = fit_head(read_recipe(path), path.parent, data, out, options)
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
    as_json: AsJson = False,
) -> None:
    """Build a bundle: export, lower, compile, gate and measure."""
    from vsa_rt import render
    from vsa_rt.pipeline.build import BuildOptions
    from vsa_rt.pipeline.build import build as build_bundle

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
        )
        manifest = build_bundle(source, out, options)
    render.manifest(manifest, out, as_json)
