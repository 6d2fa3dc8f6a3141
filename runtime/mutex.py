"""A lock that closing can ask about."""

from __future__ import annotations

import threading


class _Depth(threading.local):
    """How many locks of this kind a thread holds."""

    value = 0


class Mutex:
    """A reentrant lock, one of several that threads of a runtime share.

    The garbage collector may close an abandoned stream in any thread at any allocation, within a lock's protection
    too. That must neither block on the lock nor wait for a thread that does: hence reentrant, and hence ``held``.
    """

    _depth = _Depth()

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def condition(self) -> threading.Condition:
        """A condition that is guarded by this lock."""
        return threading.Condition(self._lock)

    @classmethod
    def held(cls) -> bool:
        """Whether the calling thread holds any of these locks."""
        return cls._depth.value > 0

    def __enter__(self) -> None:
        self._depth.value += 1
        self._lock.acquire()

    def __exit__(self, *unused: object) -> None:
        self._lock.release()
        self._depth.value -= 1
