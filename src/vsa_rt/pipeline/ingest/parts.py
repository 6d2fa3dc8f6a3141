"""Results in atomic parts, each entered in the ledger in one transaction.

A part is ``items-000012.jsonl`` with a row per piece, and ``frames-000012.jsonl`` with a row per frame of its videos and
feeds, if it has any. Its files are written under hidden names, synced, renamed, and their folder is synced; then the
ledger gets the part's number and its pieces in one transaction, which is what counts. Killed before it, the files have a
number that the ledger does not know: the next run removes them and computes the pieces again. So that every piece is in
the output once, whenever the process dies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from vsa_rt.errors import EnvironmentUnusable, VsaError
from vsa_rt.pipeline.ingest import durable, failures
from vsa_rt.pipeline.ingest.formats import encoder
from vsa_rt.pipeline.ingest.layout import FAMILIES, Family, Layout, Row, reason, shown
from vsa_rt.pipeline.ingest.ledger import Ledger
from vsa_rt.pipeline.ingest.ledger_rows import Entry, Part, State
from vsa_rt.pipeline.ingest.part_files import part_file, recover
from vsa_rt.pipeline.ingest.records import Kind, Moment, Outcome
from vsa_rt.pipeline.ingest.spool import Spool

if TYPE_CHECKING:
    from typing_extensions import Self

#: When a part is full: pieces, bytes of rows, and seconds since its first piece; what a killed run computes again, and what
#: it holds in memory (about 3 KB for each piece that waits).
PIECES = 1024
NBYTES = 32 << 20
SECONDS = 60.0


class Parts:
    """Collects outcomes and writes them part by part. For one thread; the ledger may be asked by others.

    Opening it puts right what a killed run left: staged files and the files of a part that was never entered are
    removed, and the list of failed pieces is written anew from the ledger.

    Args:
        ledger: Of the same folder; its identity has ``layout.identity``.
        layout: How rows look.
        pieces: A part is full with so many pieces,
        nbytes: or so many bytes of rows,
        seconds: or so many seconds after its first piece.
        clock: Seconds since any moment.

    Attributes:
        notes: What is strange about earlier parts, in sentences.
        repeated: Outcomes that were not taken, because their pieces have one.

    Raises:
        UsageError: The folder's parts are not those that the ledger knows.
        EnvironmentUnusable: The folder cannot be written; or Parquet without pyarrow.
    """

    def __init__(
        self,
        ledger: Ledger,
        layout: Layout,
        *,
        pieces: int = PIECES,
        nbytes: int = NBYTES,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        strange = [n for n, v in layout.identity.items() if ledger.identity.get(n) != v]
        if strange:
            raise VsaError(f"{ledger.folder}: the ledger's identity lacks the layout's {', '.join(strange)}")
        self._ledger, self._layout = ledger, layout
        self._pieces, self._nbytes, self._seconds, self._clock = pieces, nbytes, seconds, clock
        self._encoders = {family: encoder(layout, family) for family in FAMILIES}
        self._spools: dict[str, Spool] = {}
        self._usable = True
        self.repeated = 0
        self._entries: dict[str, Entry] = {}
        with self._stopping():
            self.notes = recover(ledger.folder, ledger.parts(), layout.format)
            failures.write(ledger, layout)
            self._begin()

    def _begin(self) -> None:
        """An empty part."""
        self._entries = {}
        self._rows = {family: Spool(self._ledger.folder) for family in FAMILIES}
        self._since = 0.0

    @contextmanager
    def _stopping(self) -> Iterator[None]:
        """Whatever ends this block ends the writing; what the system says becomes a sentence."""
        if not self._usable:
            raise VsaError(f"{self._ledger.folder}: nothing more can be written after an error")
        self._usable = False
        try:
            yield
        except OSError as error:
            raise EnvironmentUnusable(
                f"{self._ledger.folder}: cannot be written: {error.strerror or error}; every part before is whole, "
                f"{len(self._entries)} finished pieces are not kept; put that right and give the same command again: "
                "it goes on where the last part ended"
            ) from error
        self._usable = True

    @property
    def pending(self) -> int:
        """How many pieces wait for the part to be full."""
        return len(self._entries)

    def entry(self, key: str) -> Entry | None:
        """What is known of a piece, those that wait for their part included."""
        return self._entries.get(key) or self._ledger.entry(key)

    def frames(self, key: str, kind: Kind, moments: Iterable[Moment]) -> None:
        """Put aside frames of a piece that has not come to its end, so that a long one need not be held in memory.

        They come into the output with the piece, in the order of the calls, or never.

        Args:
            key: Of the piece.
            kind: Of the piece; an image has no rows of frames.
            moments: What its next frames said.

        Raises:
            VsaError: A score is not of the bundle's labels, or it is an image.
            EnvironmentUnusable: The disk is full or gone.
        """
        if kind == "image":
            raise VsaError(f"{shown(key)}: an image has no rows of frames")
        lines = [self._encoders["frames"].line(self._layout.frame(key, kind, m)) for m in moments]
        with self._stopping():
            if key not in self._spools:
                self._spools[key] = Spool(self._ledger.folder)
            for line in lines:
                self._spools[key].append(line)

    def forget(self, key: str) -> None:
        """Drop the frames that were put aside for a piece; nothing where there are none."""
        if spool := self._spools.pop(key, None):
            spool.close()

    def add(self, outcome: Outcome, perceptual: str = "") -> bool:
        """Take a piece's outcome; a part that is full with it is written.

        A piece that failed (``layout.reason``) goes to the list of failures, and its frames are dropped. One with
        ``reused`` gets the result of the piece that it names, and no rows of frames: those are found under that key.

        Args:
            outcome: What it said; frames that were put aside come before its moments.
            perceptual: Its perceptual hash, where one was taken.

        Returns:
            Whether it was taken: not if the piece has a result, or waits with one.

        Raises:
            VsaError: It contradicts itself; or what it reuses has no result of its own.
            EnvironmentUnusable: The part cannot be written.
        """
        known = self.entry(outcome.key)
        if not outcome.key:
            raise VsaError("an outcome has no key; expected the piece's")
        if known is not None and (known.state != "failed" or outcome.key in self._entries):
            self.forget(outcome.key)
            self.repeated += 1
            return False
        failure = reason(outcome)
        if failure:
            self.forget(outcome.key)
            self._take(_entry(outcome, "failed", perceptual, reason=failure))
        elif outcome.reused:
            self.forget(outcome.key)
            self._take(_entry(outcome, "reused", perceptual), self._result_of(outcome))
        else:
            self._take_computed(outcome, perceptual)
        self.tick()
        return True

    def _take_computed(self, outcome: Outcome, perceptual: str) -> None:
        aside = self._spools.get(outcome.key)
        result = self._layout.result(outcome, len(outcome.moments) + (0 if aside is None else aside.rows))
        if outcome.kind != "image" and outcome.moments:
            self.frames(outcome.key, outcome.kind, outcome.moments)
        spool = self._spools.get(outcome.key)
        entry = _entry(outcome, "done", perceptual, result=result)
        if spool is not None:
            with self._stopping():
                self._rows["frames"].extend(spool)
            self.forget(outcome.key)
        self._take(entry, result)

    def _take(self, entry: Entry, result: Row | None = None) -> None:
        if not self._entries:
            self._since = self._clock()
        if result is not None:
            row = self._layout.item(
                entry.key,
                entry.kind,
                result,
                content=entry.content,
                reused=entry.reused,
                distance=entry.distance,
            )
            line = self._encoders["items"].line(row)
            with self._stopping():
                self._rows["items"].append(line)
        self._entries[entry.key] = entry

    def _result_of(self, outcome: Outcome) -> Row:
        """What the piece said that an outcome reuses."""
        found = self.entry(outcome.reused)
        if found is None or found.result is None:
            raise VsaError(
                f"{shown(outcome.key)}: reuses {shown(outcome.reused)}, which "
                f"{'is unknown' if found is None else f'is {found.state}'}; expected a piece that was computed"
            )
        return found.result

    def tick(self) -> None:
        """Write the part if it is full; to be called now and then where outcomes may be slow to come.

        Raises:
            EnvironmentUnusable: It cannot be written.
        """
        if self._entries and (
            len(self._entries) >= self._pieces
            or sum(rows.nbytes for rows in self._rows.values()) >= self._nbytes
            or self._clock() - self._since >= self._seconds
        ):
            self.flush()

    def flush(self) -> None:
        """Write the part as it is and enter its pieces; nothing where none wait.

        Raises:
            EnvironmentUnusable: It cannot be written. Everything before it is whole, and the next run goes on there.
        """
        if not self._entries:
            return
        with self._stopping():
            self._ledger.check_there()
            part = self._write() if self._rows["items"].rows else None
            changed = self._ledger.enter(part, list(self._entries.values()))
            self._close_rows()
            self._begin()
            if changed:
                failures.write(self._ledger, self._layout)

    def _write(self) -> Part:
        """The part's files, under their names and on the disk."""
        number = self._ledger.last_part + 1
        families = [family for family in FAMILIES if self._rows[family].rows]
        files = [part_file(self._ledger.folder, f, number, self._layout.format) for f in families]
        sizes = dict.fromkeys(FAMILIES, 0)
        try:
            for family, path in zip(families, files, strict=True):
                sizes[family] = durable.stage(path, self._writer(family))
            durable.publish(reversed(files))  # who finds a piece's row finds the rows of its frames
        except BaseException:
            durable.discard(files)
            raise
        items, frames = (self._rows[family].rows for family in FAMILIES)
        return Part(number, items, frames, sizes["items"], sizes["frames"])

    def _writer(self, family: Family) -> Callable[[BinaryIO], None]:
        return lambda stream: self._encoders[family].write(self._rows[family], stream)

    def _close_rows(self) -> None:
        for spool in self._rows.values():
            spool.close()

    def close(self) -> None:
        """Write what waits, unless an error ended the writing; a second time does nothing.

        Raises:
            EnvironmentUnusable: It cannot be written.
        """
        try:
            if self._usable:
                self.flush()
        finally:
            self._usable = False
            self._close_rows()
            for key in list(self._spools):
                self.forget(key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _entry(
    outcome: Outcome, state: State, perceptual: str, *, reason: str = "", result: Row | None = None
) -> Entry:
    reused = state == "reused"
    return Entry(
        key=outcome.key,
        kind=outcome.kind,
        state=state,
        content=outcome.content,
        reason=reason,
        perceptual=perceptual,
        reused=outcome.reused if reused else "",
        distance=outcome.distance if reused else 0,
        result=result,
    )
