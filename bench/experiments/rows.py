"""What experiments print: one figure a line, over the photographs of a folder."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        what: What was measured, with the precision of both sides.
        value: Median.
        low: Of a ratio, the lower end of its 95 % interval; of times, the smallest.
        high: Likewise.
        unit: Of the three.
        note: Number of pairs or the like.
    """

    what: str
    value: float
    low: float
    high: float
    unit: str
    note: str = ""


def photographs_in(folder: Path) -> list[Path]:
    """Every photograph of a folder, in sorted order.

    Raises:
        SystemExit: There is none.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not paths:
        raise SystemExit(f"{folder}: no photographs")
    return paths


def print_rows(rows: Iterable[Row], as_json: bool) -> None:
    """Print figures as they come, or all of them as one JSON document."""
    seen = []
    for row in rows:
        seen.append(row)
        if not as_json:
            interval = f"[{row.low:.3f}, {row.high:.3f}]"
            print(f"{row.what:<92} {row.value:9.3f} {row.unit:<3} {interval:<22} {row.note}", flush=True)
    if as_json:
        print(json.dumps({"machine": platform.processor(), "rows": [asdict(r) for r in seen]}, indent=2))
