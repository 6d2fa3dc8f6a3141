"""The line that a stream's items stand in, from their taking to their giving: who may enter, whose batch is due.

One lock guards it all; who takes from the source waits for ``room``, who sends for work, who reads for ``news``.
"""

from __future__ import annotations

import heapq
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from numpy.typing import NDArray

from vsa_rt.errors import ItemError, UsageError
from vsa_rt.runtime.batch import T, item_name
from vsa_rt.runtime.mutex import Mutex
from vsa_rt.runtime.slots import CLOSED
from vsa_rt.runtime.watch import Depths, Watch

#: Items that may wait for a host thread or be in one: enough that no core waits for the source, and no more, because
#: an item that is not resized yet may be a frame of a hundred megabytes.
UNPREPARED = 2 * (os.cpu_count() or 1)


class Clock:
    """What deadlines are measured with."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        """Wait for a notice, so many seconds at most."""
        condition.wait(seconds)


@dataclass(frozen=True)
class Options:
    """How items become batches.

    Attributes:
        batch: Items of one call at most.
        latency: Seconds from taking an item to sending its batch, where the engine is free.
        pad: Whether each call has exactly ``batch`` rows, zeros behind the last item.
    """

    batch: int
    latency: float
    pad: bool = False


@dataclass(frozen=True)
class Failure:
    """An error to be raised in an item's place."""

    error: BaseException


class End(Exception):
    """Every item was given, and the source has ended."""


class Entry(Generic[T]):
    """An item in the line.

    Attributes:
        index: Its number.
        source: What the caller passed, until it is prepared.
        taken: When it was taken from the source.
        name: What to call it in messages.
        rows: Input name to what the graph takes of it, until it is in a batch.
        value: What it said, once it is ``done``.
        done: Whether it can be given.
    """

    __slots__ = ("done", "index", "name", "rows", "source", "taken", "value")

    def __init__(self, index: int, source: Any, taken: float) -> None:
        self.index, self.source, self.taken = index, source, taken
        self.name = item_name(source, index)
        self.rows: dict[str, NDArray[Any]] = {}
        self.value: T | ItemError | Failure | None = None
        self.done = False


class Line(Generic[T]):
    """Items under way, in order.

    Args:
        options: Batch and deadline.
        limit: Items that may be under way, results that nobody has read among them.
        watch: Counts.
        clock: Measures deadlines.

    Attributes:
        listener: Called, with the lock held, when there may be room or news: for a reader that cannot wait in a thread.
        stopped: Whether nothing more is begun.
    """

    def __init__(self, options: Options, limit: int, watch: Watch, clock: Clock) -> None:
        self._options, self._limit, self._watch, self._clock = options, limit, watch, clock
        self._mutex = Mutex()
        self._room, self._work, self._news = (self._mutex.condition() for _ in range(3))
        self.listener: Callable[[], None] = lambda: None
        self._order: deque[Entry[T]] = deque()
        self._ready: list[tuple[int, Entry[T]]] = []
        self._taken = self._unprepared = self._running = 0
        #: Free places in batches that wait for the engine.
        self._places = 0
        self._ended = self.stopped = False
        self._failure: BaseException | None = None
        self._reason: BaseException | None = None

    def stop(self, reason: BaseException | None = None) -> None:
        """Begin nothing more.

        Args:
            reason: What a reader gets who wants more than is done; by default, that the runtime is closed.
        """
        with self._mutex:
            if not self.stopped:
                self.stopped, self._reason = True, reason
                self._ready.clear()
                self._work.notify_all()
                self._tell(self._room)
                self._tell(self._news)

    def depths(self) -> Depths:
        """Items under way, by where they are."""
        with self._mutex:
            others = self._unprepared + len(self._ready) + self._running
            return Depths(self._unprepared, len(self._ready), self._running, len(self._order) - others)

    def tell(self) -> None:
        """Have readers look whether there are news."""
        with self._mutex:
            self._tell(self._news)

    def _tell(self, condition: threading.Condition) -> None:
        condition.notify_all()
        self.listener()

    # Taking

    @property
    def room(self) -> bool:
        """Whether one more item may be taken from the source."""
        return len(self._order) < self._limit and self._unprepared < UNPREPARED

    def wait_for_room(self) -> bool:
        """Wait for room; false if the line stopped."""
        with self._mutex:
            while not self.stopped and not self.room:
                self._room.wait()
            return not self.stopped

    def enter(self, source: Any) -> Entry[T] | None:
        """Take one item, which the caller found room for; ``None`` if the line stopped."""
        with self._mutex:
            if self.stopped:
                return None
            entry: Entry[T] = Entry(self._taken, source, self._clock.now())
            self._taken += 1
            self._unprepared += 1
            self._order.append(entry)
        self._watch.add("taken")
        return entry

    def end(self, failure: BaseException | None = None) -> None:
        """No item will follow; ``failure`` is raised in the place of the next one."""
        with self._mutex:
            if not self.stopped:
                self._ended, self._failure = True, failure
                self._work.notify_all()
                self._tell(self._news)

    def prepared(self, entry: Entry[T], error: ItemError | None) -> None:
        """An item's rows are ready, or never will be."""
        with self._mutex:
            entry.source = None
            self._unprepared -= 1
            if error is not None:
                entry.value, entry.done = error, True
            elif not self.stopped:
                heapq.heappush(self._ready, (entry.index, entry))
            # Who waits for work has to look at the deadline of another oldest item.
            oldest = bool(self._ready) and self._ready[0][1] is entry
            if oldest or not self._unprepared or len(self._ready) - self._places >= self._options.batch:
                self._work.notify_all()
            self._tell(self._room)
            if self._order[0].done:
                self._tell(self._news)
        self._watch.add("prepared" if error is None else "failed")

    # Sending

    def wait_for_work(self) -> bool:
        """Wait until a batch is due; false if none will be."""
        with self._mutex:
            while not self.stopped:
                if self._due():
                    return True
                if self._ended and not self._unprepared and not self._ready:
                    return False
                self._clock.wait(self._work, self._patience())
            return False

    def _due(self) -> bool:
        """Whether a batch should go: it is full, nothing can join it, or its oldest item has waited long enough."""
        if len(self._ready) - self._places >= self._options.batch:
            return True
        if not self._ready or self._places:  # a batch that waits for the engine has places for them
            return False
        oldest = self._ready[0][1]
        # A reader who waits for this very item makes no room for others.
        alone = self._ended or (len(self._order) >= self._limit and self._order[0] is oldest)
        if alone and not self._unprepared:
            return True
        return self._clock.now() >= oldest.taken + self._options.latency

    def _patience(self) -> float | None:
        """Seconds until the next deadline; ``None`` without one."""
        if not self._ready or self._places or math.isinf(self._options.latency):
            return None
        left = self._ready[0][1].taken + self._options.latency - self._clock.now()
        return min(max(left, 0.0), threading.TIMEOUT_MAX)

    def claim(self) -> list[Entry[T]]:
        """A batch if one is due: the oldest items that are ready. They have to be joined and answered."""
        with self._mutex:
            if not self._due():
                return []
            batch = self._pop(self._options.batch)
            self._places += self._options.batch - len(batch)
            if self._ready:
                self._work.notify_all()
        self._watch.add("sent", len(batch))
        return batch

    def join(self, count: int) -> list[Entry[T]]:
        """The items that became ready while a batch of ``count`` waited for the engine, as many as it has places."""
        with self._mutex:
            self._places -= self._options.batch - count
            batch = self._pop(self._options.batch - count)
            if self._ready:
                self._work.notify_all()
        self._watch.add("sent", len(batch))
        return batch

    def _pop(self, most: int) -> list[Entry[T]]:
        batch = [heapq.heappop(self._ready)[1] for _ in range(min(most, len(self._ready)))]
        self._running += len(batch)
        return batch

    def answer(self, batch: Sequence[Entry[T]], values: Sequence[T | ItemError | Failure]) -> None:
        """What the engine said of items that were claimed."""
        with self._mutex:
            self._running -= len(batch)
            for entry, value in zip(batch, values, strict=True):
                entry.value, entry.done = value, True
            if self._order[0].done:
                self._tell(self._news)
        self._watch.add("answered", len(batch))

    # Giving

    @property
    def news(self) -> bool:
        """Whether ``get`` has an answer."""
        if self._order:
            return self._order[0].done or self.stopped
        return self._ended or self.stopped

    def wait_for_news(self) -> None:
        """Wait until ``get`` has an answer."""
        with self._mutex:
            while not self.news:
                self._news.wait()

    def get(self) -> T | ItemError:
        """The next item's value, once there are news.

        Raises:
            End: There is none.
            UsageError: The runtime was closed before it was done.
            Exception: What the source or the engine raised in its place.
        """
        value: T | ItemError | Failure | None
        with self._mutex:
            if self._order and self._order[0].done:
                value = self._order.popleft().value
                self._tell(self._room)
            elif self._ended and not self._order:
                value, self._failure = Failure(self._failure or End()), None
            else:
                value = Failure(self._reason or UsageError(CLOSED))
        if isinstance(value, Failure):
            try:
                raise value.error
            finally:
                del value  # the error's traceback holds this frame
        self._watch.add("given")
        return value  # type: ignore[return-value]  # an entry that is done has one
