"""Bytes that wait in memory between two stages, and a bound on their sum."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Held:
    """Counts bytes that are held; who would add more waits while they are too many.

    The bound is soft: what is under way when it is reached comes on top, so that one large piece is never stuck.

    Args:
        most: Bytes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._now = 0
        self._closed = False
        self._changed = threading.Condition()

    @property
    def now(self) -> int:
        """Bytes that are held."""
        return self._now

    def wait(self) -> bool:
        """Wait for room; false once it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._now < self._most)
            return not self._closed

    def take(self, nbytes: int) -> Callable[[], None]:
        """Hold some.

        Returns:
            Gives them back; a second time does nothing.
        """
        with self._changed:
            self._now += nbytes
        left = [nbytes]

        def give() -> None:
            with self._changed:
                self._now -= left[0]
                left[0] = 0
                self._changed.notify_all()

        return give

    def close(self) -> None:
        """Let all who wait go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
