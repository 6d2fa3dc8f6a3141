"""Outcomes to write, a run that writes them, and what lies in its folder afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vsa_rt.pipeline.ingest.layout import Layout
from vsa_rt.pipeline.ingest.ledger import Ledger
from vsa_rt.pipeline.ingest.parts import Parts
from vsa_rt.pipeline.ingest.records import Moment, Outcome

LAYOUT = Layout(("dark", "bright"), "softmax")
IDENTITY = {"bundle": "b1", **LAYOUT.identity}


@contextmanager
def opened(out: Path, layout: Layout = LAYOUT, **options: Any) -> Iterator[Parts]:
    with Ledger(out, {**IDENTITY, **layout.identity}) as ledger, Parts(ledger, layout, **options) as parts:
        yield parts


def moment(index: int = 0, dark: float = 0.25) -> Moment:
    return Moment(index / 2, index, "bright", (), {"dark": dark, "bright": 1 - dark})


def image(key: str, content: str = "", dark: float = 0.25) -> Outcome:
    return Outcome(key, "image", (moment(0, dark),), content)


def video(key: str, frames: int = 3, content: str = "") -> Outcome:
    return Outcome(
        key, "video", tuple(moment(n) for n in range(frames)), content, summary={"label": "bright"}
    )


def failing(key: str, error: str = "cannot be decoded") -> Outcome:
    return Outcome(key, "image", error=error)


def rows(out: Path, pattern: str = "items-*.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(out.glob(pattern)) for line in path.read_bytes().splitlines()]


def keys(out: Path, pattern: str = "items-*.jsonl") -> list[str]:
    return [row["key"] for row in rows(out, pattern)]


def everything(out: Path) -> list[bytes]:
    files = [*out.glob("items-*"), *out.glob("frames-*"), out / "failed.jsonl"]
    return sorted(line for path in files for line in path.read_bytes().splitlines())


def work(out: Path) -> None:
    """A run that goes on where the last one ended."""
    with opened(out, pieces=3) as parts:
        for outcome in [
            image("a", "c1"),
            video("b"),
            failing("c"),
            image("d", "c2"),
            Outcome("e", "image", content="c1", reused="a"),
            video("f", 2),
            failing("g"),
        ]:
            if parts.entry(outcome.key) is None:
                parts.add(outcome)
