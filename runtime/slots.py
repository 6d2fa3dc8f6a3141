"""The engine's slots and its calls, shared by all who use a runtime at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vsa_rt.engines.backend import Slot
from vsa_rt.errors import UsageError
from vsa_rt.runtime.mutex import Mutex

CLOSED = "the runtime is closed; open the bundle again with vsa_rt.load"


class Guest(Protocol):
    """What takes slots in threads of its own, and has to end before the engine does."""

    def stop(self) -> None:
        """Begin nothing more; a slot that is in use comes back after its call."""
        ...

    def close(self) -> None:
        """Stop, and wait for the threads."""
        ...


def _never() -> bool:
    return False


class Slots:
    """Hands out slots, and says how many calls may run.

    Args:
        slots: The session's.
        calls: Engine calls that may run at the same time.
    """

    def __init__(self, slots: Sequence[Slot], calls: int) -> None:
        self._count, self._calls, self._running = len(slots), calls, 0
        # Last in, first out: the slot used last is warm in the caches, and its request is bound already.
        self._free = list(reversed(slots))
        self._mutex = Mutex()
        self._changed = self._mutex.condition()
        self._closed = False
        self._guests: list[Guest] = []
        # In turn: who gives a slot back and takes one again at once would starve the others.
        self._takers: deque[object] = deque()
        self._callers: deque[object] = deque()
        self._shapes = {name: (b.shape[1:], b.dtype) for name, b in slots[0].buffers.items()}

    def __len__(self) -> int:
        return self._count

    def require_open(self) -> None:
        """Refuse work after ``refuse``.

        Raises:
            UsageError: The runtime is closed.
        """
        if self._closed:
            raise UsageError(CLOSED)

    def new_rows(self) -> dict[str, NDArray[Any]]:
        """Memory for one item, shaped as a row of a slot's buffers; its contents are undefined."""
        return {name: np.empty(shape, dtype) for name, (shape, dtype) in self._shapes.items()}

    def take(self, stopped: Callable[[], bool] = _never) -> Slot:
        """Wait for a slot.

        Args:
            stopped: Whether the caller has no use for it any more; looked at again after ``wake``.

        Raises:
            UsageError: The runtime is closed, or the caller stopped.
        """
        with self._mutex:
            if self._turn(self._takers, lambda: bool(self._free), lambda: self._closed or stopped()):
                return self._free.pop()
        raise UsageError(CLOSED)

    def _turn(self, waiting: deque[object], ready: Callable[[], bool], stopped: Callable[[], bool]) -> bool:
        """Wait for one's turn, in the order of arrival; false if it is no use any more."""
        me = object()
        waiting.append(me)
        try:
            while not stopped():
                if waiting[0] is me and ready():
                    return True
                self._changed.wait()
            return False
        finally:
            waiting.remove(me)
            self._changed.notify_all()

    def give(self, slot: Slot) -> None:
        """Give a slot back."""
        with self._mutex:
            self._free.append(slot)
            self._changed.notify_all()

    @contextmanager
    def call(self, stopped: Callable[[], bool] = _never) -> Iterator[None]:
        """Wait for the engine, and have it inside.

        Args:
            stopped: As for ``take``. A closed runtime is no reason: what holds a slot is let finish.

        Raises:
            UsageError: The caller stopped.
        """
        with self._mutex:
            if not self._turn(self._callers, lambda: self._running < self._calls, stopped):
                raise UsageError(CLOSED)
            self._running += 1
        try:
            yield
        finally:
            with self._mutex:
                self._running -= 1
                self._changed.notify_all()

    def wake(self) -> None:
        """Have those who wait look whether they stopped."""
        with self._mutex:
            self._changed.notify_all()

    def attach(self, guest: Guest) -> None:
        """Keep a guest until it leaves.

        Raises:
            UsageError: The runtime is closed.
        """
        with self._mutex:
            self.require_open()
            self._guests.append(guest)

    def detach(self, guest: Guest) -> None:
        """Let a guest go; nothing happens if it is gone."""
        with self._mutex:
            self._guests = [other for other in self._guests if other is not guest]

    def refuse(self) -> None:
        """Hand out no slot from now on, and end the guests."""
        with self._mutex:
            self._closed = True
            self._changed.notify_all()
            guests = list(self._guests)
        for guest in guests:
            guest.stop()
        for guest in guests:
            guest.close()

    def wait_for_all(self) -> None:
        """Wait until whoever still runs a call has given its slot back."""
        with self._mutex:
            self._changed.wait_for(lambda: len(self._free) == self._count)
