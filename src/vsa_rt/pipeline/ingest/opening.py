"""Pieces opened and hashed ahead, in threads that may get stuck: a disk that is gone answers nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from vsa_rt.pipeline.ingest.channel import Channel
from vsa_rt.pipeline.ingest.records import Piece
from vsa_rt.pipeline.ingest.work import Work

#: Seconds between two looks at whether there is progress.
_LOOK = 0.5


class Opening:
    """One piece that is being opened.

    Args:
        piece: Which.
        alive: Whether the run goes on.

    Attributes:
        piece: Which.
    """

    def __init__(self, piece: Piece, alive: Callable[[], bool]) -> None:
        self.piece = piece
        self._alive = alive
        self._done = threading.Event()
        self._work: Work | None = None
        self._abandoned = False
        self._began = False
        self._moved = time.monotonic()

    def moved(self) -> bool:
        """Say that there is progress; whether anybody still waits for it."""
        self._moved = time.monotonic()
        return self._alive() and not self._abandoned

    def finish(self, work: Work) -> None:
        """It is open."""
        self._work = work
        self._done.set()
        if self._abandoned:  # nobody takes it any more
            work.holding()

    def result(self, limit: float) -> Work | None:
        """Wait for it.

        Args:
            limit: Seconds without progress.

        Returns:
            The work; ``None`` if there was no progress for so long, or the run is over.
        """
        while not self._done.wait(_LOOK):
            if not self._alive():
                return None
            if self._began and time.monotonic() - self._moved > limit:
                self._abandoned = True
                return self._work if self._done.is_set() else None  # it may have come just now
        return self._work

    def begin(self) -> None:
        """A thread has it now; until then it waited for others."""
        self._moved = time.monotonic()
        self._began = True


class Openers:
    """Threads that open pieces, first in, first out. Daemons: one that is stuck must not keep the process alive.

    Args:
        count: How many.
        work_of: Opens a piece; calls ``Opening.moved`` now and then, and gives up where it says so.
        ahead: Pieces that may wait or be open without having been asked for.
    """

    def __init__(self, count: int, work_of: Callable[[Opening], Work], ahead: int) -> None:
        self._work_of = work_of
        self._todo: Channel[Opening] = Channel(ahead)
        #: In the order in which they were submitted.
        self.opened: Channel[Opening] = Channel(ahead)
        self._closed = False
        for _ in range(count):
            self.replace()

    def replace(self) -> None:
        """Start one more thread, for one that is stuck."""
        threading.Thread(target=self._run, name="vsa-ingest-open", daemon=True).start()

    def submit(self, piece: Piece) -> bool:
        """Have a piece opened; false once they are closed."""
        opening = Opening(piece, lambda: not self._closed)
        # First where it is read: what is open and not handed on cannot be more than `ahead`.
        return self.opened.put(opening) and self._todo.put(opening)

    def close(self) -> None:
        """Open nothing more; whoever is at it gives up at the next sign of progress."""
        self._closed = True
        self._todo.close()
        self.opened.close()

    def _run(self) -> None:
        for opening in self._todo:
            opening.begin()
            opening.finish(self._work_of(opening))
