"""Sentiments: a table, JSON lines or CSV."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.markup import escape

from vsa_rt.contracts import Sentiment
from vsa_rt.documents import finite, path_text
from vsa_rt.errors import ItemError
from vsa_rt.pipeline.looks import Look, Looks, Subject, Whole, has_videos
from vsa_rt.render.result_lines import Line, is_frame, line_of
from vsa_rt.render.result_table import ImageTable, RunningTable, clock
from vsa_rt.render.tables import random_weights
from vsa_rt.runtime.sampling import Sample

if TYPE_CHECKING:
    from vsa_rt.render.overlay import MapWriter
    from vsa_rt.runtime.fused import Runtime

Row = Look | Whole

_OF_VIDEOS = ("seconds", "index", "frames")
_OF_MAPS = ("map", "map_error")


class Printer(Protocol):
    """Prints lines in one form."""

    def write(self, line: Line) -> None:
        """Take the next line."""
        ...

    def end(self) -> None:
        """Print what is left."""
        ...


class _JsonLines:
    def __init__(self, at_once: bool) -> None:
        self._at_once = at_once

    def write(self, line: Line) -> None:
        sys.stdout.write(json.dumps(finite(line), ensure_ascii=False, allow_nan=False) + "\n")
        if self._at_once:
            sys.stdout.flush()

    def end(self) -> None:
        sys.stdout.flush()


class _Csv:
    def __init__(self, videos: bool, maps: bool) -> None:
        self._at_once = videos
        self._columns = ["path", *(_OF_VIDEOS if videos else ()), "label", "labels", "score", "error"]
        self._columns += _OF_MAPS if maps else ()
        self._writer = csv.writer(sys.stdout, lineterminator="\n")
        self._writer.writerow(self._columns)

    def write(self, line: Line) -> None:
        found = line | {"labels": "|".join(line["labels"]), "score": max(line["scores"].values(), default="")}
        self._writer.writerow(["" if found.get(name) is None else found[name] for name in self._columns])
        if self._at_once:
            sys.stdout.flush()

    def end(self) -> None:
        sys.stdout.flush()


def _printer(form: str, subjects: Sequence[Subject], labels: Sequence[str], maps: bool) -> Printer:
    """Who prints; rows of videos and feeds are printed at once."""
    videos = has_videos(subjects)
    if form == "csv":
        return _Csv(videos, maps)
    if form == "jsonl":
        return _JsonLines(videos)
    return RunningTable([path_text(s.name) for s in subjects], labels) if videos else ImageTable()


def _with_progress(rows: Iterator[Row], subjects: Sequence[Subject]) -> Iterator[Row]:
    """The rows, with a bar on stderr while they come; of feeds nobody knows how long they last."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    more: list[ProgressColumn] = [TimeRemainingColumn()]
    if has_videos(subjects):
        place = TextColumn("{task.fields[frames]:,} frames  {task.fields[place]}", markup=False)
        more = [TimeElapsedColumn(), place]
    total = None if any(subject.kind == "feed" for subject in subjects) else len(subjects)
    console, frames = Console(stderr=True), 0
    columns = (BarColumn(), MofNCompleteColumn(), *more)
    # By itself it would take what is printed on standard output for its own console's.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=total, frames=0, place="")
        for row in rows:
            yield row
            if isinstance(row, Look) and row.seconds is not None:
                frames += 1
                bar.update(task, frames=frames, place=f"{path_text(row.name)} {clock(row.seconds)}")
            else:
                bar.advance(task)


def _with_map(line: Line, maps: MapWriter, path: str, result: Sentiment | ItemError) -> None:
    """Write the item's map; what went wrong with it alone stands beside the label."""
    found = maps.write(path, result) if isinstance(result, Sentiment) else None
    line["map"] = path_text(str(found)) if isinstance(found, Path) else None
    line["map_error"] = found.reason if isinstance(found, ItemError) else None


@dataclass
class _Count:
    """What was printed: images and videos as a whole, frames, and items that could not be processed, or not wholly."""

    items: int = 0
    frames: int = 0
    failed: int = 0

    def add(self, line: Line) -> None:
        if is_frame(line):
            self.frames += 1
            return
        self.items += 1
        self.failed += bool(line["error"] or line.get("map_error"))


def results(
    subjects: Sequence[Subject],
    runtime: Runtime,
    output: str | None,
    top: int,
    maps: MapWriter | None = None,
    sample: Sample | None = None,
) -> int:
    """Look at items and print what they say as it comes; which engine ran, and why, goes to stderr.

    Args:
        subjects: The items.
        runtime: The opened bundle.
        output: ``table``, ``jsonl`` or ``csv``; by default a table on a terminal, else JSON lines.
        top: How many scores; 0 for all.
        maps: Writes each image's map, too.
        sample: Which frames of videos; by default one a second.

    Returns:
        How many could not be processed.

    Raises:
        KeyboardInterrupt: While a video or feed was looked at; what it said until then was printed.
    """
    chosen = output or ("table" if sys.stdout.isatty() else "jsonl")
    videos = has_videos(subjects)
    # Lines that scroll on the same terminal would fight with the bar.
    scrolls = videos or chosen != "table"
    bar = sys.stderr.isatty() and not (scrolls and sys.stdout.isatty())
    looks, count = Looks(runtime, subjects, sample or Sample("fps")), _Count()
    printer = _printer(chosen, subjects, runtime.labels, maps is not None)

    def put(row: Row) -> None:
        line = line_of(row, top, runtime.manifest.scores_kind)
        if maps is not None and isinstance(row, Look):
            _with_map(line, maps, row.name, row.result)
        count.add(line)
        printer.write(line)

    interrupt: KeyboardInterrupt | None = None
    try:
        with closing(iter(looks)) as rows:
            for row in _with_progress(rows, subjects) if bar else rows:
                put(row)
    except KeyboardInterrupt as error:
        rest, interrupt = looks.rest(), error
        if rest is None:
            raise
        put(rest)
    printer.end()
    _notes(count, len(subjects), runtime, videos=videos, interrupted=interrupt is not None)
    if interrupt is not None:
        raise interrupt
    return count.failed


def _notes(count: _Count, items: int, runtime: Runtime, *, videos: bool, interrupted: bool) -> None:
    looked = f"{count.items} of {items} items" if interrupted else f"{items} items"
    frames = f", {count.frames:,} frames" if videos else ""
    begin = "interrupted: " if interrupted else ""
    choice = runtime.choice
    notes = [f"{begin}{looked}{frames}, {count.failed} failed; {choice.why}; resize {runtime.resample}"]
    notes += [f"not used: {folder}: {reason}" for folder, reason in choice.refused.items()]
    notes += [warning] if (warning := random_weights(runtime.manifest)) else []
    for note in notes:
        Console(stderr=True, highlight=False).print(escape(note), style="dim", soft_wrap=True)
