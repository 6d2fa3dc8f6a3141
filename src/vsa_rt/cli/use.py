"""Using a bundle: look into it, run it, prove it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vsa_rt.cli.app import FAILED, app, reader_may_leave, shown_progress
from vsa_rt.cli.options import (
    AsJson,
    Format,
    OnePrecision,
    OneTarget,
    ResampleOption,
    Trust,
    Weights,
    sample_of,
    weights_of,
)
from vsa_rt.contracts import Target
from vsa_rt.errors import UsageError

if TYPE_CHECKING:
    from vsa_rt.pipeline.looks import Subject


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle.")],
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Verify a bundle's files and show what it holds."""
    from vsa_rt import render
    from vsa_rt.bundle import Bundle

    opened = Bundle.open(bundle)
    opened.verify()
    render.manifest(opened.manifest, bundle, as_json)


def _check_subjects(subjects: Sequence[Subject], maps: Path | None) -> None:
    """Refuse what would never come, or could not be written."""
    for subject in subjects[:-1]:
        if subject.endless:
            raise UsageError(
                f"{subject.name}: has no end, so that what is named after it would never be looked at: "
                "name it last, or give each its own run"
            )
    video = next((subject for subject in subjects if subject.kind != "image"), None)
    if maps is not None and video is not None:
        raise UsageError(
            f"--map {maps}: maps are of images, and {video.name} is a video: leave it out, of folders with --glob"
        )


@app.command()
def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle.")],
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Images, videos and folders of them, addresses (rtsp://...), cameras (/dev/video0).",
        ),
    ],
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
    sample: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="Which frames of videos: fps=1 (the default), every=30, keyframes, uniform=9, scenes or all.",
        ),
    ] = None,
    fps: Annotated[
        str | None, typer.Option(metavar="R", help="Frames a second of videos; short for --sample fps=R.")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="Print the TOP best scores; 0 prints all.")] = 10,
    maps: Annotated[
        Path | None,
        typer.Option(
            "--map",
            metavar="DIR",
            help="Write where in each image the sentiment lies, as a picture over it; for bundles that give maps.",
        ),
    ] = None,
    map_label: Annotated[
        str | None,
        typer.Option(help="Whose map; default: the second of two labels, else the image's own."),
    ] = None,
    trust: Trust = None,
) -> None:
    """Say the sentiment of images and videos. A bad item gets its error; the others are unharmed."""
    from vsa_rt import render
    from vsa_rt.doctor import usable_cores
    from vsa_rt.pipeline.looks import subject_of
    from vsa_rt.runtime.load import load
    from vsa_rt.runtime.sources import items_from_paths

    rule = sample_of(sample, fps)

    if map_label is not None and maps is None:
        raise UsageError("--map-label: says whose map is written; name a folder with --map DIR")
    for folder in paths if maps is not None else ():
        if maps is not None and maps.resolve().is_relative_to(Path(folder).resolve()):
            raise UsageError(
                f"--map {maps}: lies in {folder}, whose images are read: name a folder elsewhere"
            )
    subjects = [subject_of(path) for path in items_from_paths(paths, glob)]
    _check_subjects(subjects, maps)
    cores = threads or usable_cores()
    # Many images: one engine stream per core gives the most images per second. Few, or a feed: the shortest call.
    many = len(subjects) > 4 * cores or any(subject.kind == "video" for subject in subjects)
    streams = cores if many else 1
    with (
        reader_may_leave(),
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
        writer = render.MapWriter(maps, runtime.manifest, map_label) if maps is not None else None
        failed = render.results(subjects, runtime, output.value if output else None, top, writer, rule)
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
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Compare a bundle with its reference, tap by tap and label by label; exit 1 when a gate fails."""
    from vsa_rt import render
    from vsa_rt.bundle import Bundle
    from vsa_rt.pipeline.check import CheckOptions, check_golden
    from vsa_rt.pipeline.check import check as check_bundle

    with shown_progress() as progress:
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
