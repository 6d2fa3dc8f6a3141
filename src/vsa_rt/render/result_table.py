"""Sentiments for people: one table at the end, or, where videos are among the items, rows while they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsa_rt.render.result_lines import Line, is_frame, is_whole
from vsa_rt.render.tables import new_table

#: Segments of a video that its row has room for.
_SEGMENTS = 6
#: Columns of the terminal that a label, and a time or a number of frames, may take.
_LABEL, _TIME = 24, 12
#: Share of the terminal that a name may take, and what it may in any case.
_NAME, _NAME_AT_LEAST = 0.4, 16


def short(score: float) -> str:
    """A score in three decimals; one that they would make 0, a share of thousands of units, in two digits."""
    return f"{score:.3f}" if score >= 0.0005 or not score else f"{score:.1e}"


def clock(seconds: float) -> str:
    """A time to the tenth: ``0:03.0``, ``1:00:03.0``."""
    tenths = round(seconds * 10)
    minutes, left = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    text = f"{left // 10:02}.{left % 10}"
    return f"{hours}:{minutes:02}:{text}" if hours else f"{minutes}:{text}"


def _label(line: Line) -> str:
    return escape(line["label"] or ", ".join(line["labels"]))


def _scores(line: Line) -> str:
    return "  ".join(f"{name} {short(score)}" for name, score in line["scores"].items())


class ImageTable:
    """Images as one table, as wide as its contents, which is printed at the end."""

    def __init__(self) -> None:
        self._table = new_table("image", "label", "scores")

    def write(self, line: Line) -> None:
        """Add an image."""
        if line["error"]:
            self._table.add_row(escape(line["path"]), "[bold red]error[/]", escape(line["error"]))
        else:
            scores = _scores(line)
            scores += f"  no map: {escape(line['map_error'])}" if line.get("map_error") else ""
            self._table.add_row(escape(line["path"]), f"[bold]{_label(line)}[/]", scores)

    def end(self) -> None:
        """Print it."""
        Console().print(self._table)


class _Console(Console):
    """A console whose reader may leave."""

    def on_broken_pipe(self) -> None:
        """Leave the error to whoever runs the command, as for other forms."""
        raise BrokenPipeError


class RunningTable:
    """Rows of a table that has no end, printed one by one.

    Args:
        names: Of all items; the longest says how wide the first column is.
        labels: The bundle's.
    """

    def __init__(self, names: Sequence[str], labels: Sequence[str]) -> None:
        self._console = _Console()
        most = max(int(self._console.width * _NAME), _NAME_AT_LEAST)
        self._name = min(max(map(len, names), default=0), most)
        self._label = min(max(map(len, [*labels, "label", "error"])), _LABEL)

        self._begun = False

    def write(self, line: Line) -> None:
        """Print a row, the first below the columns' names."""
        if not self._begun:
            self._row("item", "time", "label", "scores", "bold")
            self._begun = True
        self._row(escape(line["path"]), _when(line), *self._said(line), "bold" if is_whole(line) else "")

    def end(self) -> None:
        """Nothing is left to print."""

    def _row(self, name: str, when: str, label: str, said: str, style: str) -> None:
        table = Table.grid(padding=(0, 2))
        for width, right in ((self._name, False), (_TIME, True), (self._label, False), (None, False)):
            table.add_column(width=width, overflow="fold", justify="right" if right else "left")
        table.add_row(name, when, label, said, style=style)
        self._console.print(table)

    @staticmethod
    def _said(line: Line) -> tuple[str, str]:
        """Label and scores, of a damaged video with what is missing; or the error alone."""
        if line["error"] and not line["scores"]:
            return "[bold red]error[/]", escape(line["error"])
        parts = [_scores(line)]
        if is_whole(line):
            parts.append(_segments(line["summary"]["segments"]))
            parts += [f"[red]{escape(line['error'])}[/]"] if line["error"] else []
        return f"[bold]{_label(line)}[/]", "\n".join(parts)


def _when(line: Line) -> str:
    if is_frame(line):
        return clock(line["seconds"])
    if is_whole(line):
        return f"{line['frames']:,} frame{'' if line['frames'] == 1 else 's'}"
    return ""


def _segments(found: Sequence[dict[str, Any]]) -> str:
    """The timeline in short: ``0:00.0-0:04.0 awe, 0:04.0-0:09.0 fear``."""
    shown = [
        f"{clock(s['start'])}-{clock(s['end'])} {escape(s['label'] or '+'.join(s['labels']) or 'none')}"
        for s in found[:_SEGMENTS]
    ]
    more = len(found) - _SEGMENTS
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")
