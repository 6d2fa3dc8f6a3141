"""A bounded way from one thread to another, which either end can close."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """Hands things on in order. Who puts waits while it is full, who reads while it is empty.

    Args:
        size: How many may wait.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._finished = self._closed = False
        self._error: BaseException | None = None

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T, patience: float | None = None) -> bool:
        """Hand something on.

        Args:
            item: What.
            patience: Seconds to wait for room; ``None``: as long as it takes.

        Returns:
            Whether it was taken: not if the channel is closed or ended by an error, or there was no room.
        """
        until = None if patience is None else time.monotonic() + patience
        with self._changed:
            while not self._over() and len(self._items) >= self._size:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
            if self._over():
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def _over(self) -> bool:
        return self._closed or self._error is not None

    def finish(self, error: BaseException | None = None) -> None:
        """Nothing follows; the reader gets what waits, and then ends, or gets the error."""
        with self._changed:
            if not self._finished:
                self._finished, self._error = True, error
            self._changed.notify_all()

    def close(self) -> list[T]:
        """End both sides at once.

        Returns:
            What waited, for whoever has to put it away.
        """
        with self._changed:
            self._closed = True
            left = list(self._items)
            self._items.clear()
            self._changed.notify_all()
            return left

    def __iter__(self) -> Iterator[T]:
        """What was put in, in order, until it is finished or closed.

        Raises:
            BaseException: With which it was finished.
        """
        while True:
            with self._changed:
                while not (self._items or self._finished or self._closed):
                    self._changed.wait()
                if self._closed:
                    return
                if not self._items:
                    if self._error is not None:
                        raise self._error
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
            del item  # it may be a frame of a hundred megabytes, and the next one may be long in coming
