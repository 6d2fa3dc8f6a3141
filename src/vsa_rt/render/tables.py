"""What every output shares: JSON documents, tables, numbers, verdicts."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsa_rt.documents import finite
from vsa_rt.errors import ItemError

if TYPE_CHECKING:
    from vsa_rt.manifest import Manifest

#: Version of every JSON document and line (docs/json.md).
SCHEMA = 1


def document(kind: str, **fields: Any) -> None:
    """Print one JSON document on standard output."""
    text = json.dumps(finite({"schema": SCHEMA, "kind": kind, **msgspec.to_builtins(fields)}), indent=2)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def errors(rejected: Sequence[ItemError]) -> list[dict[str, str]]:
    """Items' errors as JSON has them."""
    return [{"item": e.item, "error": e.reason} for e in rejected]


def new_table(*columns: str, title: str | None = None) -> Table:
    """An empty table; a column whose name ends in ``>`` is aligned to the right."""
    table = Table(
        title=title, title_justify="left", header_style="bold", title_style="bold", box=None, pad_edge=False
    )
    for column in columns:
        right = column.endswith(">")
        table.add_column(column.rstrip(">"), justify="right" if right else "left", overflow="fold")
    return table


def number(value: float | None, digits: int = 3) -> str:
    """A number with some significant digits, a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.{digits}g}"


def print_rejected(rejected: Sequence[ItemError]) -> None:
    """The first items that were left out, on standard error."""
    console = Console(stderr=True)
    for error in rejected[:10]:
        console.print(f"left out: {escape(str(error))}", soft_wrap=True)
    if len(rejected) > 10:
        console.print(f"and {len(rejected) - 10} more")


def verdict(passed: bool) -> str:
    """``holds`` or ``FAILS``, coloured."""
    return "[green]holds[/]" if passed else "[bold red]FAILS[/]"


def random_weights(manifest: Manifest) -> str:
    """A warning for bundles whose labels mean nothing; empty for all others."""
    seeds = sorted({c.random_seed for c in manifest.checkpoints.values() if c.random_seed is not None})
    if not seeds:
        return ""
    head = manifest.checkpoints.get("head")
    fitted = head is not None and head.random_seed is None
    meaning = "the labels are those of the fitted head" if fitted else "the labels mean nothing"
    return f"random weights (seed {', '.join(map(str, seeds))}): {meaning}"
