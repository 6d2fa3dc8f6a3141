"""One future for several: the lists of batches, joined in their order."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def joined(parts: Sequence[Future[list[T]]]) -> Future[list[T]]:
    """A future of all parts' items in order; it fails as the first part that fails, once all have ended."""
    whole: Future[list[T]] = Future()
    whole.set_running_or_notify_cancel()
    left, lock = len(parts), threading.Lock()

    def end() -> None:
        failed = next((e for e in (part.exception() for part in parts) if e is not None), None)
        if failed is not None:
            whole.set_exception(failed)
        else:
            whole.set_result([item for part in parts for item in part.result()])

    def arrived(_: Future[list[T]]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            end()

    if not parts:
        end()
    for part in parts:
        part.add_done_callback(arrived)
    return whole
