"""Two reports side by side on a terminal: what got slower or wrong, and what cannot be told."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.markup import escape

from vsa_rt.documents import finite
from vsa_rt.render.numbers import percent
from vsa_rt.render.tables import new_table, number
from vsa_rt.render.text import plain

if TYPE_CHECKING:
    from vsa_rt.bench.records.comparison import Comparison, Row

_VERDICTS = {
    "regression": "[bold red]regression[/]",
    "within": "[green]within[/]",
    "inconclusive": "[yellow]inconclusive[/]",
}


def _shown(text: str) -> str:
    return escape(plain(text))


def _what(row: Row) -> str:
    batch = f", batch {row.batch}" if row.batch is not None else ""
    scenario = f" {row.scenario}" if row.scenario else ""
    return f"{row.name or row.quantity}{scenario}{batch}"


def _interval(row: Row) -> str:
    if row.low is None and row.high is None:
        return "-"
    return f"{number(row.low, 4)} to {number(row.high, 4)}"


def comparison(found: Comparison, as_json: bool) -> None:
    """Print a comparison.

    Args:
        found: Of two reports.
        as_json: Print its JSON alone.
    """
    if as_json:
        text = msgspec.json.format(msgspec.json.encode(finite(msgspec.to_builtins(found))), indent=2)
        sys.stdout.write(text.decode() + "\n")
        sys.stdout.flush()
        return
    console = Console(highlight=False)
    words = "[bold red]refused[/]" if found.failed else "[bold green]no regression shown[/]"
    console.print(f"{words}: report of {_shown(found.new)} against {_shown(found.old)}")
    limits = found.limits
    console.print(f"allowed: {percent(limits.max_slowdown, 1)} slower, {percent(limits.max_flips, 1)} flips")
    for reason in found.reasons:
        console.print(f"  [bold red]{_shown(reason)}[/]")
    if found.inconclusive:
        console.print(f"  [yellow]{found.inconclusive} of the rows that count decide nothing[/]")
    console.print()
    table = new_table("plan", "what", "by", "old>", "new>", "change>", "interval>", "verdict", "note")
    for row in found.rows:
        table.add_row(
            _shown(row.plan or row.bundle),
            _shown(_what(row)),
            _shown(row.by),
            number(row.old, 4),
            number(row.new, 4),
            number(row.change, 4),
            _interval(row),
            _VERDICTS[row.verdict] + ("" if row.gates else " (does not count)"),
            _shown(row.note),
        )
    console.print(table)
    for note in found.notes:
        console.print(f"note: {_shown(note)}")


def baselines(sentences: Mapping[str, str]) -> None:
    """Print the baselines that ``bench --against`` takes."""
    table = new_table("name", "what it is")
    for name, sentence in sentences.items():
        table.add_row(_shown(name), _shown(sentence))
    Console(highlight=False).print(table)
