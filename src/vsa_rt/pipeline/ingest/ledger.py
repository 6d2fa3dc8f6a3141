"""The ledger of a run: which pieces are done, which failed and why, and which part of the output has them.

It is a SQLite database in the output's folder. It is written in one transaction per part, with the settings under which
SQLite promises that a finished transaction survives a killed process and a power cut: a write-ahead log with
``synchronous`` at least FULL (https://www.sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vsa_rt.errors import EnvironmentUnusable, UsageError, VsaError
from vsa_rt.pipeline.ingest import durable
from vsa_rt.pipeline.ingest.layout import shown
from vsa_rt.pipeline.ingest.ledger_rows import (
    APPLICATION,
    ENTER,
    QUERIES,
    SCHEMA,
    STATES,
    TABLES,
    Entry,
    Part,
    State,
    entry_of,
    key_bytes,
    key_text,
    values_of,
)
from vsa_rt.pipeline.ingest.lock import Lock
from vsa_rt.pipeline.ingest.part_files import results_in
from vsa_rt.pipeline.ingest.records import Kind

if TYPE_CHECKING:
    from typing_extensions import Self

#: The database's name in the output's folder.
NAME = "ledger.sqlite"


class Ledger:
    """The ledger of one folder, which nobody else can open for as long as it is open here.

    Questions may come from any thread.

    Args:
        folder: Of the output; it is made where it is not there.
        identity: What the results depend on, name to value: the bundle's digest, target and precision of its engine,
            and every option that changes a row. A folder has one identity for good.

    Raises:
        UsageError: Another run works there; its ledger has another identity, is damaged or foreign; or it has parts
            without a ledger.
        EnvironmentUnusable: It cannot be read or written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        self.folder = folder
        self.identity = {shown(name): shown(value) for name, value in identity.items()}
        self._path = folder / NAME
        self._mutex = threading.RLock()
        _make(folder)
        self._lock = Lock(folder)
        try:
            with self._guarded():
                self._connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        except BaseException:
            self._lock.release()
            raise
        try:
            with self._guarded():
                self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        new = self._all("SELECT count(*) FROM sqlite_master") == [(0,)]
        if not new:  # a database that is not ours stays as it is
            self._check()
        # EXTRA is FULL, and syncs the folder of a rollback journal where a file system cannot do write-ahead logs.
        for pragma in ("journal_mode = WAL", "synchronous = EXTRA", "foreign_keys = ON"):
            self._all(f"PRAGMA {pragma}")
        if new:
            self._create()
        status = os.stat(self._path)
        self._file = status.st_dev, status.st_ino
        self._counts = dict.fromkeys(STATES, 0)
        self._counts.update(cast("list[tuple[State, int]]", self._all(QUERIES["counts"])))
        self.last_part = int(self._all(QUERIES["last_part"])[0][0] or 0)

    def _create(self) -> None:
        if found := results_in(self.folder):
            raise UsageError(
                f"{self.folder}: has {found[0]}, but no {NAME} that says what is in it; restore the ledger, or name "
                "another folder"
            )
        with self._transaction():
            for statement in TABLES.split(";")[:-1]:
                self._connection.execute(statement)
            self._connection.executemany("INSERT INTO identity VALUES (?, ?)", self.identity.items())
            self._connection.execute(f"PRAGMA application_id = {APPLICATION}")
            self._connection.execute(f"PRAGMA user_version = {SCHEMA}")
        durable.sync_folder(self.folder)

    def _check(self) -> None:
        """Whether this is our ledger, whole, and of this run."""
        if self._all("PRAGMA application_id") != [(APPLICATION,)]:
            raise UsageError(f"{self._path}: is not a ledger of vsa-rt; name another folder")
        if self._all("PRAGMA user_version") != [(SCHEMA,)]:
            raise UsageError(
                f"{self._path}: was written by another version of vsa-rt (tables "
                f"{self._all('PRAGMA user_version')[0][0]}, here {SCHEMA}); go on with that one, or name another folder"
            )
        if (found := self._all("PRAGMA quick_check(1)")) != [("ok",)]:
            raise self._damaged(" ".join(str(found[0][0]).split()))
        stored = dict(cast("list[tuple[str, str]]", self._all("SELECT name, value FROM identity")))
        if stored != self.identity:
            names = sorted(n for n in stored | self.identity if stored.get(n) != self.identity.get(n))
            which = "; ".join(
                f"{n}: {stored.get(n, 'not set')} there, {self.identity.get(n, 'not set')} now" for n in names
            )
            raise UsageError(
                f"{self.folder}: has results of another run ({which}); name another folder, or give the same "
                "bundle and options as that run"
            )

    def _damaged(self, what: str) -> UsageError:
        return UsageError(
            f"{self._path}: is damaged ({what}); restore it, or name another folder and leave this one as it is"
        )

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """One thread at a time; what SQLite raises becomes a sentence."""
        with self._mutex:
            try:
                yield
            except sqlite3.OperationalError as error:
                if str(error).startswith(("no such", "Could not decode")):  # a table or a column; a text
                    raise self._damaged(str(error)) from error
                raise EnvironmentUnusable(
                    f"{self._path}: {error}; put that right and give the same command again: it goes on where the "
                    "last part ended"
                ) from error
            except sqlite3.ProgrammingError:  # a fault of our own, such as a closed ledger
                raise
            except (sqlite3.DatabaseError, ValueError) as error:  # SQLITE_CORRUPT, SQLITE_NOTADB; a value
                raise self._damaged(str(error)) from error
            except OSError as error:
                raise EnvironmentUnusable(
                    f"{self.folder}: {error.strerror}; put that right and give the same command again"
                ) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing. After an error in COMMIT only opening the ledger again tells which."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _all(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(query, values).fetchall()

    def check_there(self) -> None:
        """Whether the folder's ledger is still the opened one: SQLite would write into a removed file.

        Raises:
            EnvironmentUnusable: It was removed or replaced.
        """
        try:
            status = os.stat(self._path)
            gone = (status.st_dev, status.st_ino) != self._file
        except OSError:
            gone = True
        if gone:
            raise EnvironmentUnusable(
                f"{self._path}: was removed while a run wrote there; what is left of the folder has every part that "
                "was finished before"
            )

    def entry(self, key: str) -> Entry | None:
        """What is known of a piece; ``None`` if it never came to an end."""
        with self._guarded():
            return next(map(entry_of, self._all(QUERIES["entry"], [key_bytes(key)])), None)

    def done(self, key: str) -> bool:
        """Whether a piece has a result, its own or a reused one."""
        return self.states([key]).get(key, "failed") != "failed"

    def states(self, keys: Iterable[str]) -> dict[str, State]:
        """How pieces ended; those that did not are absent."""
        found: dict[str, State] = {}
        for key in keys:
            with self._guarded():
                rows = self._all(QUERIES["state"], [key_bytes(key)])
            if rows:
                found[key] = rows[0][0]
        return found

    def by_content(self, content: str, kind: Kind) -> Entry | None:
        """The first piece of this kind with these bytes that has a result, its own or a reused one; ``None`` without."""
        with self._guarded():
            return next(map(entry_of, self._all(QUERIES["by_content"], [content, kind])), None)

    def failed(self) -> Iterator[Entry]:
        """Pieces that failed, sorted by the bytes of their keys; those that stop failing meanwhile may be absent."""
        last = b""
        while True:
            with self._guarded():
                found = [entry_of(row) for row in self._all(QUERIES["failed"], [last])]
            if not found:
                return
            last = key_bytes(found[-1].key)
            yield from found

    def perceptual(self) -> Iterator[tuple[str, str]]:
        """Key and perceptual hash of every piece that was computed and has one, in the order of entry."""
        last = -1
        while True:
            with self._guarded():
                found = [
                    (i, key_text(key), text) for i, key, text in self._all(QUERIES["perceptual"], [last])
                ]
            if not found:
                return
            last = found[-1][0]
            yield from ((key, text) for _, key, text in found)

    def counts(self) -> dict[State, int]:
        """How many pieces ended how."""
        with self._mutex:
            return dict(self._counts)

    def parts(self) -> list[Part]:
        """Parts of the output, by number."""
        with self._guarded():
            rows = self._all(
                "SELECT number, items, frames, items_bytes, frames_bytes FROM parts ORDER BY number"
            )
        return [Part(*row) for row in rows]

    def enter(self, part: Part | None, entries: Sequence[Entry]) -> bool:
        """Enter pieces that came to an end, all of them or none.

        Args:
            part: What has the rows of those that did not fail; its files are on the disk. ``None`` if all failed.
            entries: One per piece. A piece that failed before may end again, no other.

        Returns:
            Whether the pieces that failed, or what is known of them, are others than before.

        Raises:
            VsaError: A piece has a result already, stands twice in ``entries``, or has a result and no part.
            EnvironmentUnusable: The disk is full or gone. Whether the pieces are entered, the next opening tells.
        """
        if part is None and any(e.state != "failed" for e in entries):
            raise VsaError("a piece with a result is entered without a part that has it")
        now = int(time.time())
        before = self.states(e.key for e in entries)
        twice = [e.key for e in entries if before.get(e.key, "failed") != "failed"]
        if twice or len({e.key for e in entries}) < len(entries):
            raise VsaError(f"{shown((twice or [''])[0])}: a piece is entered twice; each has one result")
        with self._guarded():
            self.check_there()
            with self._transaction():
                if part is not None:
                    values = (part.number, part.items, part.frames, part.items_bytes, part.frames_bytes)
                    self._connection.execute("INSERT INTO parts VALUES (?, ?, ?, ?, ?)", values)
                number = None if part is None else part.number
                self._connection.executemany(ENTER, (values_of(e, number, now) for e in entries))
            for entry in entries:
                if entry.key in before:
                    self._counts["failed"] -= 1
                self._counts[entry.state] += 1
            self.last_part = part.number if part else self.last_part
        return bool(before) or any(e.state == "failed" for e in entries)

    def close(self) -> None:
        """Close it; a second time does nothing."""
        with self._mutex:
            self._connection.close()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _make(folder: Path) -> None:
    """The output's folder, whose name stays after a power cut."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is not a folder; name another one")
    try:
        new = [p for p in (folder, *folder.parents) if not p.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in new:
            durable.sync_folder(path.parent)
    except OSError as error:
        raise EnvironmentUnusable(
            f"{folder}: cannot be written: {error.strerror}; name another folder"
        ) from error
