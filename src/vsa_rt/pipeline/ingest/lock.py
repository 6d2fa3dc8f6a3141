"""One process at a time writes a folder."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from pathlib import Path

from vsa_rt.errors import EnvironmentUnusable, UsageError

#: The file that is locked; it stays, and means nothing when nobody holds it.
NAME = ".lock"
#: Files that this process holds: the kernel's record locks do not hold a process off from itself.
_HELD: set[tuple[int, int]] = set()


class Lock:
    """Holds a folder until it is released or the process dies, however it dies.

    A record lock (fcntl(2)) and not flock(2): children that a process forks, such as decoders, would keep the latter
    alive after their parent was killed. A record lock is lost when its process closes *any* descriptor of the file,
    so that nothing else here ever opens it.

    Args:
        folder: It exists.

    Raises:
        UsageError: Another run holds it.
        EnvironmentUnusable: It cannot be written, or its file system has no locks.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / NAME
        busy = f"{folder}: another run works there{{}}; wait for it, or name another folder"
        try:
            if path.exists() and _identity(os.stat(path)) in _HELD:
                raise UsageError(busy.format(" in this process"))
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise EnvironmentUnusable(
                f"{folder}: cannot be written: {error.strerror}; name another folder"
            ) from error
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"process {os.getpid()} on {platform.node()}".encode())
        except OSError as error:
            holder = os.pread(self._descriptor, 200, 0).decode("utf-8", "replace")
            os.close(self._descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UsageError(busy.format(f" ({holder})" if holder else "")) from error
            raise EnvironmentUnusable(
                f"{folder}: cannot be locked: {error.strerror}; name a folder on another disk"
            ) from error
        self._held = _identity(os.fstat(self._descriptor))
        _HELD.add(self._held)

    def release(self) -> None:
        """Let go; a second time does nothing."""
        if self._held in _HELD:
            _HELD.discard(self._held)
            os.close(self._descriptor)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
