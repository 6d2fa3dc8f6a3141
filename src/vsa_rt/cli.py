"""The command line: each command parses, calls one function and prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from vsa_rt.contracts import Precision, Target
from vsa_rt.errors import UsageError, VsaError
from vsa_rt.options import (
    AsJson,
    BuildPrecision,
    Data,
    Format,
    MaxBatch,
    OnePrecision,
    OneTarget,
    RandomSeed,
    ResampleOption,
    Settings,
    SplitKind,
    Targets,
    Weights,
    settings_of,
    targets_of,
    weights_of,
)
from vsa_rt.version import __version__

app = typer.Typer(
    name="vsa-rt",
    help="Visual-sentiment ensembles as one engine: build, run, and prove parity with PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 a gate failed or an item could not be processed, 2 wrong use, "
    "3 the bundle or the environment cannot be used.",
)

#: A gate failed, or an item could not be processed.
FAILED = 1


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Steps on stderr, and only where somebody looks at it."""
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield status.update


def _drop_output() -> None:
    """Let nothing more be written: Python would try the rest again at its exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """A reader that has seen enough, as in `vsa-rt run … | head`, ends the run as done."""
    try:
        yield
    except BrokenPipeError:
        _drop_output()
        raise typer.Exit from None


def _version(value: bool) -> None:
    if value:
        typer.echo(f"vsa-rt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Visual-sentiment ensembles as one engine: build, run, and prove parity with PyTorch."""


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can build and run, measured, and how to install what is missing."""
    from vsa_rt import render
    from vsa_rt.pipeline.diagnose import diagnose

    with _progress() as progress:
        progress("measuring a small convolution on every target")
        found = diagnose()
    render.diagnosis(found, as_json)
    if not any(t.usable for t in found.targets):
        raise typer.Exit(3)


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show this one, or a recipe file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the shipped recipes, or show one."""
    from vsa_rt import render
    from vsa_rt.recipe_file import find_recipe, read_recipe, shipped_names

    if name is None:
        render.recipe_list([read_recipe(find_recipe(n)) for n in shipped_names()], as_json)
        return
    path = find_recipe(name)
    render.recipe(read_recipe(path), path, as_json)


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
    with _progress() as progress:
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
    with _progress() as progress:
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
        typer.Option(help="`auto`: every precision of each target; the fastest that holds leads."),
    ] = BuildPrecision.AUTO,
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

    with _progress() as progress:
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
        )
        manifest = build_bundle(source, out, options)
    render.manifest(manifest, out, as_json)


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle.")],
    as_json: AsJson = False,
) -> None:
    """Verify a bundle's files and show what it holds."""
    from vsa_rt import render
    from vsa_rt.bundle import Bundle

    opened = Bundle.open(bundle)
    opened.verify()
    render.manifest(opened.manifest, bundle, as_json)


@app.command()
def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle.")],
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Images and folders.")],
    output: Annotated[
        Format | None, typer.Option("--format", help="Default: a table on a terminal, else JSON lines.")
    ] = None,
    target: OneTarget = None,
    precision: OnePrecision = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images per engine call; default: max-batch.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Cores for the engine; default: all.")] = None,
    resample: ResampleOption = None,
    glob: Annotated[
        str | None, typer.Option(help="Take only files of a folder with such names: '*.jpg'.")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="Print the TOP best scores; 0 prints all.")] = 10,
) -> None:
    """Say the sentiment of images. A bad item gets its error; the others are unharmed."""
    from vsa_rt import render
    from vsa_rt.doctor import usable_cores
    from vsa_rt.runtime.load import load
    from vsa_rt.runtime.sources import items_from_paths

    items = list(items_from_paths(paths, glob))
    cores = threads or usable_cores()
    # Many images: one engine stream per core gives the most images per second. Few: the shortest call.
    streams = cores if len(items) > 4 * cores else 1
    with (
        _reader_may_leave(),
        load(
            bundle,
            target=target,
            precision=precision,
            threads=cores,
            streams=streams,
            resample=resample,
            batch=batch,
        ) as runtime,
    ):
        failed = render.results(items, runtime, output.value if output else None, top)
    if failed:
        raise typer.Exit(FAILED)


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Photographs, with labels or without; by default the bundle's own golden tensors."),
    ] = None,
    target: OneTarget = None,
    precision: OnePrecision = None,
    resample: ResampleOption = None,
    weights: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Compare a bundle with its reference, tap by tap and label by label; exit 1 when a gate fails."""
    from vsa_rt import render
    from vsa_rt.bundle import Bundle
    from vsa_rt.pipeline.check import CheckOptions, check_golden
    from vsa_rt.pipeline.check import check as check_bundle

    with _progress() as progress:
        options = CheckOptions(
            target=Target.parse(target) if target else None,
            precision=precision,
            resample=resample,
            weights=weights_of(weights),
            progress=progress,
        )
        if weights and data is None:
            raise UsageError("--weights: the golden tensors need no reference; name photographs with --data")
        opened = Bundle.open(bundle)
        found = check_bundle(opened, data, options) if data else check_golden(opened, options)
    render.check(found, as_json)
    if not found.passed or found.rejected:
        raise typer.Exit(FAILED)


def main() -> None:
    """Entry point: one line on stderr and an exit code for every error that vsa-rt raises on purpose."""
    # A path may hold bytes that are not UTF-8; printing it must not end the run.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")
    try:
        app()
    except VsaError as error:
        typer.echo(f"vsa-rt: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        _drop_output()
        name = f"{error.filename}: " if error.filename else ""
        typer.echo(f"vsa-rt: {name}{error.strerror or error}", err=True)
        sys.exit(VsaError.exit_code)


if __name__ == "__main__":
    main()
