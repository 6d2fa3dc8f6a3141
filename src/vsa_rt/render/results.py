"""Sentiments: a table, JSON lines or CSV."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.markup import escape

from vsa_rt.contracts import Sentiment
from vsa_rt.documents import finite, path_text
from vsa_rt.errors import ItemError
from vsa_rt.render.tables import (
    new_table,
    random_weights,
)

if TYPE_CHECKING:
    from vsa_rt.render.overlay import MapWriter
    from vsa_rt.runtime.fused import Runtime

T = TypeVar("T")


def _top(scores: dict[str, float], top: int) -> dict[str, float]:
    best = sorted(scores.items(), key=lambda s: -s[1])
    return dict(best[:top] if top else best)


def _short(score: float) -> str:
    """A score in three decimals; one that they would make 0, a share of thousands of units, in two digits."""
    return f"{score:.3f}" if score >= 0.0005 or not score else f"{score:.1e}"


def _line(path: str, result: Sentiment | ItemError, top: int) -> dict[str, Any]:
    shown = path_text(path)
    if isinstance(result, ItemError):
        return {
            "path": shown, "label": None, "labels": [], "scores": {}, "scores_kind": None, "error": result.reason
        }  # fmt: skip
    return {
        "path": shown,
        "label": result.label,
        "labels": list(result.labels),
        "scores": {k: float(f"{v:.6g}") for k, v in _top(result.scores, top).items()},
        "scores_kind": result.scores_kind,
        "error": None,
    }


def _write_lines(lines: Iterable[dict[str, Any]]) -> None:
    for line in lines:
        sys.stdout.write(json.dumps(finite(line), ensure_ascii=False, allow_nan=False) + "\n")


_COLUMNS = ("path", "label", "labels", "score", "error")


def _write_csv(lines: Iterable[dict[str, Any]], more: Sequence[str] = ()) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*_COLUMNS, *more])
    for line in lines:
        found = line | {"labels": "|".join(line["labels"]), "score": max(line["scores"].values(), default="")}
        writer.writerow(["" if found[name] is None else found[name] for name in (*_COLUMNS, *more)])


def _write_table(lines: Iterable[dict[str, Any]]) -> None:
    table = new_table("image", "label", "scores")
    for line in lines:
        if line["error"]:
            table.add_row(escape(line["path"]), "[bold red]error[/]", escape(line["error"]))
        else:
            scores = "  ".join(f"{name} {_short(score)}" for name, score in line["scores"].items())
            scores += f"  no map: {escape(line['map_error'])}" if line.get("map_error") else ""
            table.add_row(
                escape(line["path"]), f"[bold]{escape(line['label'] or ', '.join(line['labels']))}[/]", scores
            )
    Console().print(table)


def _with_progress(items: Sequence[T], shown: bool) -> Iterator[T]:
    """The items, with a bar on stderr while they are consumed."""
    if not shown:
        yield from items
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(items)


def _with_map(line: dict[str, Any], maps: MapWriter, path: str, result: Sentiment | ItemError) -> None:
    """Write the item's map; what went wrong with it alone stands beside the label."""
    found = maps.write(path, result) if isinstance(result, Sentiment) else None
    line["map"] = path_text(str(found)) if isinstance(found, Path) else None
    line["map_error"] = found.reason if isinstance(found, ItemError) else None


def results(
    items: Sequence[str], runtime: Runtime, output: str | None, top: int, maps: MapWriter | None = None
) -> int:
    """Run items and print them as they come; which engine ran, and why, goes to stderr.

    Args:
        items: Paths.
        runtime: The opened bundle.
        output: ``table``, ``jsonl`` or ``csv``; by default a table on a terminal, else JSON lines.
        top: How many scores; 0 for all.
        maps: Writes each item's map, too.

    Returns:
        How many could not be processed.
    """
    failed = 0
    chosen = output or ("table" if sys.stdout.isatty() else "jsonl")
    # Lines that scroll on the same terminal would fight with the bar.
    bar = sys.stderr.isatty() and (chosen == "table" or not sys.stdout.isatty())

    def lines() -> Iterable[dict[str, Any]]:
        nonlocal failed
        for path, result in zip(_with_progress(items, bar), runtime.map(items), strict=True):
            line = _line(path, result, top)
            if maps is not None:
                _with_map(line, maps, path, result)
            failed += bool(line["error"] or line.get("map_error"))
            yield line

    if chosen == "csv":
        _write_csv(lines(), ("map", "map_error") if maps is not None else ())
    else:
        {"table": _write_table, "jsonl": _write_lines}[chosen](lines())
    sys.stdout.flush()
    notes = [f"{len(items)} items, {failed} failed; {runtime.choice.why}; resize {runtime.resample}"]
    notes += [f"not used: {folder}: {reason}" for folder, reason in runtime.choice.refused.items()]
    notes += [warning] if (warning := random_weights(runtime.manifest)) else []
    for note in notes:
        Console(stderr=True, highlight=False).print(escape(note), style="dim", soft_wrap=True)
    return failed
