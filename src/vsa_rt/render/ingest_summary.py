"""What came of a run of ingestion: lines for people, or one JSON document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from vsa_rt.pipeline.ingest.layout import shown
from vsa_rt.pipeline.ingest.part_files import FAILED
from vsa_rt.render.ingest_progress import rate
from vsa_rt.render.numbers import count, percent
from vsa_rt.render.tables import document
from vsa_rt.render.text import plain

if TYPE_CHECKING:
    from vsa_rt.pipeline.ingest.report import IngestReport
    from vsa_rt.pipeline.ingest.tally import Numbers


def summary(report: IngestReport, as_json: bool) -> None:
    """What came of a run, on standard output.

    Args:
        report: Of the run.
        as_json: One JSON document (docs/json.md) instead of lines for people.
    """
    if as_json:
        document("ingest", **_fields(report))
        return
    console = Console(highlight=False)
    for line in _lines(report):
        console.print(line, soft_wrap=True)


def _fields(report: IngestReport) -> dict[str, object]:
    numbers = report.numbers
    return {
        "out": shown(str(report.out)),
        "format": report.format,
        "ended": report.ended,
        "engine": report.engine,
        "random_weights": report.random_weights,
        "run": {
            "seconds": round(numbers.seconds, 3),
            "found": numbers.found,
            "images": numbers.images,
            "videos": numbers.videos,
            "feed_windows": numbers.feeds,
            "failed": numbers.failed,
            "reused": numbers.reused,
            "unfinished": numbers.unfinished,
            "finished_before": numbers.before,
            "bytes_read": numbers.nbytes,
            "frames": numbers.frames,
            "frames_dropped": numbers.dropped,
            "frames_per_second": round(numbers.frames_per_second, 3),
            "decode_seconds": round(numbers.decode_seconds, 3),
            "resize_seconds": round(numbers.resize_seconds, 3),
            "engine_seconds": round(numbers.engine_seconds, 3),
        },
        "totals": {state: report.totals.get(state, 0) for state in ("done", "reused", "failed")},
        "parts": report.parts,
        "notes": list(report.notes),
        "failures": [{"item": shown(e.item), "error": shown(e.reason)} for e in report.failures],
    }


def _lines(report: IngestReport) -> Iterator[str]:
    """The summary in rich's markup."""
    numbers = report.numbers
    yield _headline(report)
    if numbers.finished:
        yield _named("items", _what_came(numbers))
    if numbers.before:
        yield _named(
            "earlier", f"{count(numbers.before, 'item')}, finished by earlier runs into the same folder"
        )
    if numbers.reused:
        yield _named("reused", f"{count(numbers.reused, 'duplicate')}, with the result of an earlier item")
    if numbers.frames:
        lost = (
            f"; {count(numbers.dropped, 'frame')} of feeds dropped for lack of time"
            if numbers.dropped
            else ""
        )
        speed = f"{rate(numbers.frames_per_second)} a second"
        yield _named(
            "speed", f"{count(numbers.frames, 'image or frame', 'images and frames')}, {speed}{lost}"
        )
    if any(numbers.shares().values()):
        shares = ", ".join(f"{stage} {percent(share, 0)}" for stage, share in numbers.shares().items())
        yield _named("time", f"{shares} of what these three took together")
    yield _named("engine", report.engine)
    yield _named("output", _where(report))
    yield from _failures(report)
    for note in report.notes:
        yield _named("note", note)
    if report.random_weights:
        yield f"[bold yellow]{escape(plain(report.random_weights))}[/]"


def _headline(report: IngestReport) -> str:
    numbers = report.numbers
    taken = _duration(numbers.seconds)
    finished = count(numbers.finished, "item")
    if report.ended == "stopped":
        more = f", {numbers.unfinished:,} more had come" if numbers.unfinished else ""
        return (
            f"[bold yellow]stopped[/] after {taken}: {finished} finished and written{more}; "
            "the same command goes on from here"
        )
    if numbers.finished:
        return f"[bold]complete[/]: {finished} in {taken}"
    return f"[bold]complete[/]: the sources gave {'nothing new' if numbers.before else 'no items'}"


def _where(report: IngestReport) -> str:
    """What the folder has, and in which files."""
    results = report.totals.get("done", 0) + report.totals.get("reused", 0)
    if not report.parts:
        return f"{report.out}: no results"
    files = f"items-*.{report.format}, and frames-*.{report.format} of videos and feeds"
    return f"{report.out}: {count(results, 'item')} in {count(report.parts, 'part')}: {files}"


def _what_came(numbers: Numbers) -> str:
    kinds = [
        count(numbers.images, "image") if numbers.images else "",
        count(numbers.videos, "video") if numbers.videos else "",
        count(numbers.feeds, "window of feeds", "windows of feeds") if numbers.feeds else "",
        f"{numbers.failed:,} failed" if numbers.failed else "",
    ]
    size = f"; {_size(numbers.nbytes)} read" if numbers.nbytes else ""
    return ", ".join(filter(None, kinds)) + size


def _failures(report: IngestReport) -> Iterator[str]:
    failed = report.totals.get("failed", 0)
    if not failed:
        return
    listed = escape(plain(shown(str(report.out / FAILED))))
    yield (
        f"[bold red]{'failed':<8}[/]{count(failed, 'item')} in all, reasons in {listed}; the same command with "
        f"--retry-failed tries {'it' if failed == 1 else 'them'} again"
    )
    for failure in report.failures[:5]:
        yield f"{'':10}{escape(plain(shown(str(failure)), 200))}"
    if report.failures and failed > len(report.failures[:5]):
        yield f"{'':10}and {failed - len(report.failures[:5]):,} more"


def _named(name: str, text: str) -> str:
    return f"{name:<8}{escape(plain(shown(text)))}"


def _duration(seconds: float) -> str:
    """``3.2 s``, ``4 min 12 s``, ``5 h 03 min``."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def _size(nbytes: int) -> str:
    value = float(nbytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"
