"""Ingestion: videos, folders, archives and feeds into a folder of results."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from vsa_rt.cli.app import FAILED, app
from vsa_rt.cli.options import AsJson, OnePrecision, OneTarget, ResampleOption, Trust, sample_of
from vsa_rt.contracts import Target
from vsa_rt.errors import EnvironmentUnusable, ItemError, UsageError

if TYPE_CHECKING:
    from vsa_rt.pipeline.ingest.assembly import Finished

#: What a shell reports of a command that an interrupt ended.
_INTERRUPTED = 130


class ResultFormat(str, Enum):
    """What ``--format`` takes."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


class Dedup(str, Enum):
    """What ``--dedup`` takes."""

    EXACT = "exact"
    NEAR = "near"


@app.command()
def ingest(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Images, videos, folders, tar and zip archives, lists (.txt, .csv, .jsonl, @FILE), - for a list on "
            "stdin, cameras (/dev/video0), addresses (rtsp://...).",
        ),
    ],
    bundle: Annotated[Path, typer.Option("-b", "--bundle", metavar="BUNDLE", help="A bundle.")],
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            metavar="DIR",
            help="Results and ledger; the same command again goes on where it was.",
        ),
    ],
    sample: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="Frames of videos: fps=1, every=30, keyframes, uniform=9, scenes, all; default fps=1.",
        ),
    ] = None,
    fps: Annotated[str | None, typer.Option(metavar="R", help="Short for --sample fps=R.")] = None,
    glob: Annotated[
        str | None, typer.Option(help="Take only files of folders and archives with such names: '*.jpg'.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on following folders as they grow.")] = False,
    idle: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="With --watch: end after so long without a change."),
    ] = None,
    output: Annotated[
        ResultFormat, typer.Option("--format", help="Of the results' files.")
    ] = ResultFormat.JSONL,
    dedup: Annotated[
        Dedup,
        typer.Option(help="Reuse the result of the same bytes, or also of pictures that look the same."),
    ] = Dedup.EXACT,
    distance: Annotated[
        int | None,
        typer.Option(
            metavar="BITS",
            min=0,
            help="With --dedup near: bits of 64 in which two pictures may differ; default 4.",
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try what failed in earlier runs again.")
    ] = False,
    keep_damaged: Annotated[
        bool,
        typer.Option("--keep-damaged", help="Of a damaged video, what could be read is its result."),
    ] = False,
    timeline: Annotated[
        bool,
        typer.Option("--timeline", help="Draw each video's timeline with thumbnails, into DIR/timelines."),
    ] = False,
    window: Annotated[
        float, typer.Option(metavar="SECONDS", help="Cut feeds into pieces of this length.")
    ] = 60.0,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="End a decoder that makes no progress for so long.")
    ] = 60.0,
    longest: Annotated[
        float, typer.Option(metavar="SECONDS", help="A video that goes on for longer fails.")
    ] = 86_400.0,
    part_items: Annotated[
        int, typer.Option(metavar="N", min=1, help="Write a part of the output after so many items,")
    ] = 1024,
    part_seconds: Annotated[float, typer.Option(metavar="SECONDS", help="or after so many seconds.")] = 60.0,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            help="Serve Prometheus metrics on 127.0.0.1; 0 takes a free port.",
        ),
    ] = None,
    target: OneTarget = None,
    precision: OnePrecision = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images per engine call; default: max-batch.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Cores for the engine; default: all.")] = None,
    resample: ResampleOption = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Run videos, folders, archives and feeds through a bundle, each item exactly once."""
    from vsa_rt import render
    from vsa_rt.bundle import Bundle
    from vsa_rt.pipeline.ingest.duplicates import DISTANCE
    from vsa_rt.pipeline.ingest.ingest import IngestOptions
    from vsa_rt.pipeline.ingest.ingest import ingest as run_ingest
    from vsa_rt.pipeline.ingest.tally import Tally
    from vsa_rt.pipeline.ingest.watch import Watch
    from vsa_rt.render.tables import random_weights

    if idle is not None and not watch:
        raise UsageError("--idle: says when --watch ends; give --watch, too")
    if distance is not None and dedup is not Dedup.NEAR:
        raise UsageError("--distance: is of near duplicates; give --dedup near, too")
    near = (DISTANCE if distance is None else distance) if dedup is Dedup.NEAR else None
    tally, opened = Tally(), Bundle.open(bundle)
    with ExitStack() as stack:
        stop = stack.enter_context(_stopped_by_signals())
        options = IngestOptions(
            sample=sample_of(sample, fps),
            glob=glob,
            watch=Watch(idle=idle, stop=stop) if watch else None,
            format=output.value,
            distance=near,
            retry_failed=retry_failed,
            keep_damaged=keep_damaged,
            window=window,
            timeout=timeout,
            longest=longest,
            part_items=part_items,
            part_seconds=part_seconds,
            target=Target.parse(target) if target else None,
            precision=precision,
            resample=resample,
            batch=batch,
            threads=threads,
            on_video=_drawn_into(out / "timelines", opened.manifest.labels) if timeline else None,
        )
        if metrics_port is not None:
            from vsa_rt.pipeline.ingest.metrics import serve

            port = stack.enter_context(serve(tally, metrics_port))
            print(f"vsa-rt: metrics on http://127.0.0.1:{port}/metrics", file=sys.stderr)
        with render.shown_ingest(tally):
            report = run_ingest(opened, sources, out, options, tally=tally, stop=stop)
    report = replace(report, random_weights=random_weights(opened.manifest))
    render.ingest_summary(report, as_json)
    if report.ended == "stopped":
        raise typer.Exit(_INTERRUPTED)
    if report.numbers.failed:
        raise typer.Exit(FAILED)


def _drawn_into(folder: Path, labels: Sequence[str]) -> Callable[[Finished], None]:
    """Draws videos; one that cannot be drawn keeps its result."""
    from vsa_rt import render

    def draw(video: Finished) -> None:
        try:
            render.TimelineWriter(folder).write(
                video.key, video.track.seconds, video.track.scores, labels, video.summary, video.thumbnails
            )
        except ItemError as error:
            print(f"vsa-rt: no timeline: {error}", file=sys.stderr)
        except OSError as error:
            raise EnvironmentUnusable(
                f"{error.filename or 'timelines'}: cannot be written: {error.strerror or error}; put that right and "
                "give the same command again: it goes on where the last part ended"
            ) from error

    return draw


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """An event that the first interrupt or termination sets; the second ends the process as usual."""
    stop = threading.Event()
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stopping(number: int, _: FrameType | None) -> None:
        stop.set()
        for known, handler in usual.items():
            signal.signal(known, handler)
        # Not through a buffered stream, which may be in use just now.
        os.write(
            2, b"\nvsa-rt: stopping; what is under way is finished and written, once more ends at once\n"
        )

    for number in usual:
        signal.signal(number, stopping)
    try:
        yield stop
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
