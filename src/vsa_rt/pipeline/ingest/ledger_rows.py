"""What the ledger holds: its tables, the questions that are asked, and its records."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vsa_rt.pipeline.ingest.layout import Row, shown
from vsa_rt.pipeline.ingest.records import Kind

#: How a piece ended: computed; not; or taken from an earlier piece that is the same.
State = Literal["done", "failed", "reused"]
STATES: tuple[State, ...] = get_args(State)
#: Version of the tables (``user_version``), and what marks the file as ours (``application_id``): "vsaL" in ASCII.
SCHEMA = 1
APPLICATION = 0x7673614C

TABLES = """
CREATE TABLE identity (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE parts (
    number INTEGER PRIMARY KEY, items INTEGER NOT NULL, frames INTEGER NOT NULL,
    items_bytes INTEGER NOT NULL, frames_bytes INTEGER NOT NULL
);
CREATE TABLE pieces (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, kind TEXT NOT NULL, state TEXT NOT NULL, content TEXT,
    part INTEGER REFERENCES parts (number), attempts INTEGER NOT NULL, reason TEXT NOT NULL, perceptual TEXT,
    reused BLOB, distance INTEGER NOT NULL, result TEXT, updated INTEGER NOT NULL,
    CHECK (state IN ('done', 'failed', 'reused')), CHECK ((state = 'failed') = (part IS NULL))
);
CREATE INDEX by_state ON pieces (state);
CREATE INDEX failed_by_key ON pieces (key) WHERE state = 'failed';
CREATE INDEX with_result_by_content ON pieces (content, kind) WHERE state IN ('done', 'reused') AND content IS NOT NULL;
CREATE INDEX hashed_by_order ON pieces (state, id, key, perceptual) WHERE perceptual IS NOT NULL;
"""
#: Every question that a run asks, by name; each of them is answered through an index. A page is 500 rows.
QUERIES = {
    "entry": "SELECT * FROM pieces WHERE key = ?",
    "state": "SELECT state FROM pieces WHERE key = ?",
    "by_content": "SELECT * FROM pieces WHERE content = ? AND kind = ? AND state IN ('done', 'reused') "
    "AND content IS NOT NULL ORDER BY id LIMIT 1",
    # Without statistics SQLite takes the index of the states, and sorts all that failed for every page.
    "failed": "SELECT * FROM pieces INDEXED BY failed_by_key WHERE state = 'failed' AND key > ? "
    "ORDER BY key LIMIT 500",
    "perceptual": "SELECT id, key, perceptual FROM pieces INDEXED BY hashed_by_order "
    "WHERE state = 'done' AND perceptual IS NOT NULL AND id > ? ORDER BY id LIMIT 500",
    "counts": "SELECT state, count(*) FROM pieces GROUP BY state",
    "last_part": "SELECT max(number) FROM parts",
}
#: Enters a piece; one that failed before is tried once more, and any other stays as it is.
ENTER = """
INSERT INTO pieces (key, kind, state, content, part, attempts, reason, perceptual, reused, distance, result, updated)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET
    kind = excluded.kind, state = excluded.state, content = excluded.content, part = excluded.part,
    attempts = attempts + 1, reason = excluded.reason, perceptual = excluded.perceptual, reused = excluded.reused,
    distance = excluded.distance, result = excluded.result, updated = excluded.updated
WHERE state = 'failed'
"""


@dataclass(frozen=True)
class Entry:
    """A piece in the ledger.

    Attributes:
        key: Its key.
        kind: What it is.
        state: How it ended.
        content: SHA-256 of its bytes; empty where they could not be had.
        part: Number of the part that has its rows; ``None`` if it failed.
        attempts: How often it was tried.
        reason: Why it failed; empty if it did not.
        perceptual: Its perceptual hash as text; empty where none was taken.
        reused: Key of the earlier piece whose result this is; empty where it was computed.
        distance: In how many bits their perceptual hashes differ.
        result: What it said (``Layout.result``); ``None`` where it failed or was reused.
    """

    key: str
    kind: Kind
    state: State
    content: str = ""
    part: int | None = None
    attempts: int = 1
    reason: str = ""
    perceptual: str = ""
    reused: str = ""
    distance: int = 0
    result: Row | None = None


@dataclass(frozen=True)
class Part:
    """A part of the output: its number, its rows and the sizes of its files (no frames, no file of frames)."""

    number: int
    items: int
    frames: int
    items_bytes: int
    frames_bytes: int


def key_bytes(key: str) -> bytes:
    """Any key as bytes, different ones for different keys: SQLite's texts hold no lone surrogates."""
    return key.encode("utf-8", "surrogatepass")


def key_text(key: bytes) -> str:
    """The key that ``key_bytes`` made bytes of."""
    return key.decode("utf-8", "surrogatepass")


def entry_of(row: tuple[Any, ...]) -> Entry:
    """A row of the table ``pieces`` as a record."""
    _, key, kind, state, content, part, attempts, reason, perceptual, reused, distance, result, _ = row
    return Entry(
        key=key_text(key),
        kind=kind,
        state=state,
        content=content or "",
        part=part,
        attempts=attempts,
        reason=reason,
        perceptual=perceptual or "",
        reused=key_text(reused or b""),
        distance=distance,
        result=None if result is None else json.loads(result),
    )


def values_of(entry: Entry, part: int | None, now: int) -> tuple[Any, ...]:
    """A row of the table, in the order of ``ENTER``."""
    return (
        key_bytes(entry.key),
        entry.kind,
        entry.state,
        shown(entry.content) or None,
        None if entry.state == "failed" else part,
        1,
        shown(entry.reason),
        shown(entry.perceptual) or None,
        key_bytes(entry.reused) if entry.reused else None,
        entry.distance,
        None if entry.result is None else json.dumps(entry.result, ensure_ascii=False, allow_nan=False),
        now,
    )
