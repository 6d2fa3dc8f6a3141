"""One capture at a time, and nothing that would spoil it meanwhile."""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import suppress
from typing import ClassVar

from vsa_rt.engines.cuda.seam import Closable, Device
from vsa_rt.errors import EnvironmentUnusable, UsageError


class Gate:
    """A lock around captures, which also holds back what the garbage collector wants to free.

    The collector may run in any thread at any allocation, also in one that captures, where freeing memory makes the
    capture invalid (``CU_STREAM_CAPTURE_MODE_THREAD_LOCAL``). The lock is not reentrant, so that a collector's try inside
    of a capture fails, and the memory waits for its end. All sessions share it: the collector does not ask whose arrays
    it finds.

    Args:
        device: Where things are freed.
    """

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _loose: ClassVar[deque[tuple[Device, Closable]]] = deque()

    def __init__(self, device: Device) -> None:
        self._device = device

    @classmethod
    def forked(cls) -> None:
        """Begin anew in a child process: what was loose is its parent's, and whoever held the lock is not there."""
        cls._lock = threading.Lock()
        cls._loose.clear()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *unused: object) -> None:
        self._lock.release()
        self._free()

    def give(self, thing: Closable) -> None:
        """Close something now, or once nobody captures; never waits."""
        self._loose.append((self._device, thing))
        self._free()

    def _free(self) -> None:
        # Whoever comes while another thread is inside leaves his to that one, which looks again after the lock.
        while self._loose and self._lock.acquire(blocking=False):
            try:
                while self._loose:
                    _close(*self._loose.popleft())
            finally:
                self._lock.release()


if hasattr(os, "register_at_fork"):  # where processes can be forked at all
    os.register_at_fork(after_in_child=Gate.forked)


def _close(device: Device, thing: Closable) -> None:
    """Close something as far as its device lets anybody; after a fork it is not this process's to close."""
    try:
        device.enter()
    except UsageError:
        return
    except BaseException as error:
        with suppress(Exception):
            thing.close()
        if not isinstance(error, Exception):
            raise
        return
    with suppress(Exception):  # what cannot be freed went with the device
        thing.close()


class Health:
    """Whether a session can be used."""

    def __init__(self) -> None:
        self.closed = False
        #: The first failure of the device, empty without one.
        self.failure = ""

    def fail(self, error: Exception) -> None:
        """Keep the first failure."""
        self.failure = self.failure or str(error) or type(error).__name__

    def require(self) -> None:
        """Refuse work that cannot be done.

        Raises:
            UsageError: The session is closed.
            EnvironmentUnusable: The device failed before.
        """
        if self.closed:
            raise UsageError("cuda: the session is closed; open the engine again")
        if self.failure:
            # A fault that ended the context says itself that the process has to go.
            again = "" if "restart" in self.failure else "; close it and open the engine again"
            raise EnvironmentUnusable(
                f"cuda: the device failed before, and the session with it: {self.failure}{again}"
            )
