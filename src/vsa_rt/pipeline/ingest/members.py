"""A member of an archive, what may be read of it, and how a piece is opened; nothing is ever written to disk."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from vsa_rt.errors import ItemError
from vsa_rt.pipeline.ingest.records import Kind, Piece

#: Bytes that are read at a time.
CHUNK = 2**16


@dataclass(frozen=True)
class Limits:
    """What an archive that a stranger made may cost.

    Attributes:
        member_bytes: A larger member is refused, before it is read; one that turns out larger than it declares, too.
        held_bytes: Members of compressed tars wait in memory until they are opened. Beyond this sum a piece holds
            none, and opening it decompresses the archive once more, up to its member.
        ratio: A member, or a compressed tar, that grows to more than this times its compressed size is refused.
            Photographs hardly shrink; DEFLATE reaches 1032 (zlib's technical details).
        ratio_from: Below this size nothing is refused for its ratio: a drawing of one colour may be that small.
    """

    member_bytes: int = 2**29
    held_bytes: int = 2**28
    ratio: int = 200
    ratio_from: int = 2**26


class Damaged(Exception):
    """The rest of an archive cannot be read; the text says why."""


class Refused(Exception):
    """One member cannot be read; the text says why."""


class Member(Protocol):
    """A member while its archive is being read; it is valid until the next one is asked for."""

    @property
    def name(self) -> str:
        """As the archive has it."""

    @property
    def size(self) -> int:
        """Declared size in bytes."""

    def head(self) -> bytes:
        """Its first bytes.

        Raises:
            Refused: They cannot be had; the archive's other members can.
            Damaged: The archive ends or breaks here.
        """

    def opener(self, key: str) -> Callable[[], Any]:
        """What opens it later, in any thread, and returns its bytes; raises as ``head`` does."""


# How a piece is opened


@dataclass(frozen=True)
class FromPath:
    """Opens a file, a camera or an address: the path itself, for whoever reads it."""

    path: str

    def __call__(self) -> str:
        """The path."""
        # FFmpeg would take a relative `concat:x.mp4` for one of its protocols; behind a slash nothing is.
        return f"./{self.path}" if _looks_like_a_protocol(self.path) else self.path


def _looks_like_a_protocol(path: str) -> bool:
    before, colon, after = path.partition(":")
    return bool(colon) and "/" not in before and not after.startswith("//")


@dataclass(frozen=True)
class Failing:
    """Opens nothing: says why."""

    key: str
    reason: str

    def __call__(self) -> Any:
        """Raises an ``ItemError``."""
        raise ItemError(self.key, self.reason)


def failed(key: str, reason: str, kind: Kind = "image") -> Piece:
    """A piece of which it is known that it cannot be read, so that it is counted and its reason written."""
    return Piece(key, kind, Failing(key, reason))


@dataclass(frozen=True)
class Stamp:
    """By what a file is known again: its size and its time of change."""

    size: int
    mtime_ns: int


def stamp_of(info: os.stat_result) -> Stamp:
    """The stamp of an open file."""
    return Stamp(info.st_size, info.st_mtime_ns)


def open_regular(path: str) -> BinaryIO:
    """Open a file for reading, if it is a regular one: a FIFO would block for ever, a device may have effects.

    Raises:
        OSError: It cannot be opened, or is something else.
    """
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    )
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a regular file")
    stream = open(os.open(path, flags), "rb")  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):  # exchanged since it was looked at
        stream.close()
        raise OSError("not a regular file")
    return stream


def reopen(path: str, stamp: Stamp, key: str) -> BinaryIO:
    """Open an archive again for one of its members.

    Raises:
        ItemError: It is gone, or another one by now.
    """
    try:
        stream = open_regular(path)
    except (OSError, ValueError) as error:
        raise ItemError(key, f"its archive cannot be opened again: {why(error)}") from None
    if stamp_of(os.fstat(stream.fileno())) != stamp:
        stream.close()
        raise ItemError(key, "its archive was changed while it was being read; run again when it is complete")
    return stream


def why(error: BaseException) -> str:
    """An exception's text as part of one sentence."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()).rstrip(".")[:200] or type(error).__name__


class Holding:
    """Counts the bytes that wait in memory; shared by all archives of a run.

    Args:
        limit: How many may wait.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._mutex = threading.RLock()  # a garbage collection may come in between, and `__del__` with it

    def take(self, nbytes: int) -> bool:
        """Ask for room.

        Returns:
            Whether there is enough, which is then taken.
        """
        with self._mutex:
            if nbytes > self._left:
                return False
            self._left -= nbytes
            return True

    def give(self, nbytes: int) -> None:
        """Hand room back."""
        with self._mutex:
            self._left += nbytes


class Held:
    """Bytes that wait in memory until their piece is opened, or dropped.

    Args:
        data: The bytes, for which room was taken.
        holding: Where.
        again: Reads them anew, should the piece be opened a second time.
    """

    def __init__(self, data: bytes, holding: Holding, again: Callable[[], bytes]) -> None:
        self._data: bytes | None = data
        self._size = len(data)
        self._holding = holding
        self._again = again
        self._mutex = threading.RLock()  # a garbage collection may come in between, and `__del__` with it

    def __call__(self) -> bytes:
        """The bytes, which wait no longer."""
        data = self._drop()
        return self._again() if data is None else data

    def _drop(self) -> bytes | None:
        with self._mutex:
            data, self._data = self._data, None
        if data is not None:
            self._holding.give(self._size)
        return data

    def __del__(self) -> None:
        self._drop()
