"""The file that keeps what the compiler measured, so that the next compilation need not measure it again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from vsa_rt.errors import UsageError


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there with all of its bytes or not at all."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that others cannot read; what is kept has the usual rights.
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o666 & ~mask)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


class TimingCache:
    """A timing cache that a compilation uses and adds to.

    Args:
        config: The library's builder configuration, which gets it.
        file: Where it is kept; made if absent.
        library: Name and version, for messages.

    Raises:
        UsageError: The file cannot be one, or is of another version of the library or another GPU.
    """

    def __init__(self, config: Any, file: Path, library: str) -> None:
        if not file.parent.is_dir() or file.is_dir():
            raise UsageError(f"timing cache {file}: not a file in a folder that exists; name another")
        self._config, self._file, self._library = config, file, library
        self._read = file.read_bytes() if file.exists() else b""
        # The library wants it alive until the engine is built.
        self._cache = self._of(self._read)
        if self._cache is None or not config.set_timing_cache(self._cache, False):
            raise self._foreign()

    def _of(self, data: bytes) -> Any:
        """The library's cache of these bytes; ``None`` if they are not of this library and GPU."""
        cache = self._config.create_timing_cache(data)
        if cache is None or not data:
            return cache
        # What it cannot read, the library may also take for an empty cache, and say so in its log alone.
        empty = len(bytes(self._config.create_timing_cache(b"").serialize()))
        lost = len(bytes(cache.serialize())) == empty and len(data) != empty
        return None if lost else cache

    def _foreign(self) -> UsageError:
        return UsageError(
            f"timing cache {self._file}: not of {self._library} and this GPU, or damaged; name another file, or "
            "remove it"
        )

    def save(self) -> None:
        """Write what was known and what the compilation added, together with what others wrote meanwhile.

        Raises:
            UsageError: What others wrote is of another version or GPU.
        """
        cache = self._config.get_timing_cache()
        now = self._file.read_bytes() if self._file.exists() else b""
        if now and now != self._read:
            other = self._of(now)
            if other is None or not cache.combine(other, False):
                raise self._foreign()
        data = bytes(cache.serialize())
        if data != now:
            write_whole(self._file, data)
        self._read = data
