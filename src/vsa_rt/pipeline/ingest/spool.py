"""Encoded rows that wait to be written: in memory while they are few, then in a file without a name."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

#: Bytes that one spool keeps in memory.
IN_MEMORY = 4 << 20
#: What the name of a spool's file would begin with.
PREFIX = ".spool-"


class Spool:
    """Rows in the order in which they came. The file behind them is gone when the process is.

    Attributes:
        rows: How many.
        nbytes: Their size.
    """

    def __init__(self, folder: Path) -> None:
        self.rows = 0
        self.nbytes = 0
        # Where the system cannot make a file without a name, it has this one for an instant.
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - lives as long as the spool, which closes it
            max_size=IN_MEMORY, dir=str(folder), prefix=PREFIX
        )

    def append(self, line: bytes) -> None:
        """One row more, ended by a line feed.

        Raises:
            OSError: The disk is full, or the folder is gone.
        """
        self._file.write(line)
        self.rows += 1
        self.nbytes += len(line)

    def extend(self, other: Spool) -> None:
        """The rows of another spool behind these.

        Raises:
            OSError: The disk is full, or the folder is gone.
        """
        other._file.seek(0)
        shutil.copyfileobj(other._file, self._file)
        self.rows += other.rows
        self.nbytes += other.nbytes

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(0)
        yield from self._file
        self._file.seek(0, 2)

    def close(self) -> None:
        """Forget them."""
        self._file.close()
