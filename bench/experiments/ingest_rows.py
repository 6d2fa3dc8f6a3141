"""What the measurements of ingestion print: a figure, what was asked of it, and whether it holds."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        what: What was measured.
        value: The figure; of several rounds, their median.
        unit: Its unit.
        low: Lower end of its interval, or the smallest; ``None`` where it is a single figure.
        high: Likewise.
        asked: What was asked of it, in words; empty for a figure that only explains others.
        held: Whether it is so; ``None`` where nothing was asked.
        note: Number of pairs or the like.
    """

    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    asked: str = ""
    held: bool | None = None
    note: str = ""


def line(row: Row) -> str:
    """A row as text."""
    interval = "" if row.low is None or row.high is None else f"[{row.low:.3f}, {row.high:.3f}]"
    verdict = "" if row.held is None else f"asked {row.asked}: {'held' if row.held else 'NOT HELD'}"
    words = "; ".join(filter(None, (verdict, row.note)))
    return f"{row.what:<72} {row.value:10.3f} {row.unit:<8} {interval:<20} {words}".rstrip()


def print_rows(rows: Iterable[Row], conditions: str, as_json: bool) -> bool:
    """Print figures as they come, or all of them as one JSON document.

    Args:
        rows: The figures.
        conditions: Under which they were measured: engine, precision, batch, cores.
        as_json: Print the document.

    Returns:
        Whether everything that was asked holds.
    """
    seen = []
    if not as_json:
        print(f"{platform.processor() or platform.machine()}; {conditions}", flush=True)
    for row in rows:
        seen.append(row)
        if not as_json:
            print(line(row), flush=True)
    if as_json:
        document = {
            "machine": platform.processor(),
            "conditions": conditions,
            "rows": [asdict(row) for row in seen],
        }
        print(json.dumps(document, indent=2))
    return all(row.held is not False for row in seen)
