"""Tars, plain and gzipped, read once from the front and never unpacked to disk."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from vsa_rt.errors import ItemError
from vsa_rt.pipeline.ingest.kinds import HEAD_BYTES
from vsa_rt.pipeline.ingest.members import (
    CHUNK,
    Damaged,
    Held,
    Holding,
    Limits,
    Refused,
    Stamp,
    reopen,
    why,
)

#: Headers of one member, its long name and extended attributes included, may take this much.
HEADER_BYTES = 2**20
#: Global records that one archive may set; `git archive` writes one.
_GLOBALS = 64
_BLOCK = 512
_LINKS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a FIFO",
}
#: What tarfile and the decompressors raise for bytes that are none of theirs.
_DAMAGE = (
    tarfile.TarError,
    OSError,
    EOFError,
    zlib.error,
    ValueError,
    OverflowError,
    LookupError,
    RecursionError,
)


class _Forward(io.RawIOBase):
    """The unpacked tar as tarfile reads it: forward only, and no more of headers than is allowed.

    tarfile believes what headers declare. It would read a name of gigabytes, follow headers of headers, and go back
    to offsets below zero; all of it passes here.
    """

    def __init__(self, raw: BinaryIO, packed: BinaryIO | None, limits: Limits) -> None:
        self._raw = raw
        self._packed = packed
        self._limits = limits
        self._position = 0
        self.allowed = HEADER_BYTES
        self.last = b""  # what was read last: tells a tar's end from a torn one

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= self.allowed:
            raise Damaged(f"a member's headers take more than {HEADER_BYTES:,} bytes")
        self.allowed -= size
        self.last = self.take(size)
        return self.last

    def take(self, size: int) -> bytes:
        """Read the data of a member: up to so many bytes. Of a gzipped tar it takes the memory that there is data for."""
        try:
            data = self._raw.read(size) if self._packed is None else b"".join(self._unpacked(size))
        except _DAMAGE as error:
            raise Damaged(f"not a tar, or damaged: {why(error)}") from None
        if self._packed is None:
            self._position += len(data)
        return data

    def _unpacked(self, size: int) -> Iterator[bytes]:
        while size > 0 and (chunk := self._raw.read(min(size, CHUNK))):
            size -= len(chunk)
            self._position += len(chunk)
            self._check_ratio()
            yield chunk

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence != io.SEEK_SET or offset < self._position:
            raise Damaged("a header leads backwards")
        if self._packed is None:
            self._position = self._raw.seek(offset)
        while self._position < offset:
            if not self.take(min(CHUNK, offset - self._position)):
                raise Damaged("it ends in the middle of a member")
        return offset

    def _check_ratio(self) -> None:
        packed = self._packed.tell() if self._packed else self._position
        most = max(self._limits.ratio_from, self._limits.ratio * packed)
        if self._position > most:
            raise Damaged(
                f"{packed:,} bytes unpack to {self._position:,}, more than {self._limits.ratio} times as many: refused "
                "as a decompression bomb"
            )


@dataclass(frozen=True)
class FromTar:
    """Opens a member of a tar: its bytes.

    Attributes:
        path: The tar.
        stamp: By which the tar is known again.
        key: The piece's, for errors.
        offset: Where the data begin, in the unpacked tar.
        size: How many they are.
        packed: Whether the tar is gzipped.
        limits: What unpacking may cost.
    """

    path: str
    stamp: Stamp
    key: str
    offset: int
    size: int
    packed: bool
    limits: Limits

    def __call__(self) -> bytes:
        """The member's bytes; raises an ``ItemError`` where they are not to be had."""
        with reopen(self.path, self.stamp, self.key) as stream:
            try:
                forward = _forward(stream, self.packed, self.limits)
                forward.seek(self.offset)
                data = forward.take(self.size)
            except (Damaged, *_DAMAGE) as error:
                raise ItemError(self.key, f"its archive cannot be read: {why(error)}") from None
        if len(data) != self.size:
            raise ItemError(self.key, f"{len(data):,} bytes of the {self.size:,} that it declares")
        return data


class _TarMember:
    """A member while the tar is read."""

    def __init__(
        self, info: tarfile.TarInfo, forward: _Forward, limits: Limits, holding: Holding | None, place: Any
    ) -> None:
        self.name = info.name
        self.size = info.size
        self._info = info
        self._forward = forward
        self._limits = limits
        self._holding = holding
        self._place = place  # makes a FromTar of key, offset and size
        self._head: bytes | None = None

    def head(self) -> bytes:
        info = self._info
        if not info.isreg():
            what = _LINKS.get(info.type, f"an entry of type {info.type!r}")
            raise Refused(f"{what} in an archive: not followed")
        if info.issparse():
            raise Refused("a sparse file in an archive: not read; pack it without holes")
        if self._head is None:
            if self._forward.tell() != info.offset_data:
                self._forward.seek(info.offset_data)
            self._head = self._forward.take(min(HEAD_BYTES, info.size))
        return self._head

    def opener(self, key: str) -> Callable[[], Any]:
        head = self.head()
        _check_size(self.size, self._limits)
        again: FromTar = self._place(key, self._info.offset_data, self.size)
        if self._holding is None or not self._holding.take(self.size):
            return again
        try:
            data = head + self._forward.take(self.size - len(head))
        except BaseException:
            self._holding.give(self.size)
            raise
        if len(data) < self.size:
            self._holding.give(self.size)
            raise Damaged("it ends in the middle of a member")
        return Held(data, self._holding, again)


def _check_size(size: int, limits: Limits) -> None:
    """Refuse a member for its size, before anything of that size is read.

    Raises:
        Refused: It is too large.
    """
    if size > limits.member_bytes:
        raise Refused(
            f"{size:,} bytes, more than the {limits.member_bytes:,} allowed in an archive; unpack it and name the file"
        )


def _forward(stream: BinaryIO, packed: bool, limits: Limits) -> _Forward:
    if packed:
        return _Forward(gzip.GzipFile(fileobj=stream), stream, limits)  # type: ignore[arg-type] # it has what is used
    return _Forward(stream, None, limits)


def tar_members(
    path: str, stream: BinaryIO, stamp: Stamp, packed: bool, limits: Limits, holding: Holding
) -> Iterator[_TarMember]:
    """Members of a tar, folders left out, in its order.

    Of a plain tar a member is read when it is opened, by its offset. A gzipped one is unpacked once, and its members
    wait in memory.

    Args:
        path: The tar.
        stream: The tar, open.
        stamp: By which it is known again.
        packed: Whether it is gzipped.
        limits: What it may cost.
        holding: Where members of a gzipped tar wait.

    Yields:
        Members, each valid until the next one.

    Raises:
        Damaged: What follows cannot be read; all before was given.
    """
    forward = _forward(stream, packed, limits)

    def place(key: str, offset: int, size: int) -> FromTar:
        return FromTar(path, stamp, key, offset, size, packed, limits)

    try:
        # tarfile takes headers apart and nothing else; its errors are told from the end of the archive below.
        with tarfile.open(fileobj=forward, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined] # it would keep every header for ever
                _check_header(info, tar, stamp, packed)
                if not info.isdir():
                    yield _TarMember(info, forward, limits, holding if packed else None, place)
                forward.allowed = HEADER_BYTES
        _check_end(forward, packed)
    except _DAMAGE as error:
        raise Damaged(f"not a tar, or damaged: {why(error)}") from None


def _check_header(info: tarfile.TarInfo, tar: tarfile.TarFile, stamp: Stamp, packed: bool) -> None:
    """Refuse what no writer of tars writes, and a member that the file is too short for.

    Raises:
        Damaged: So it is.
    """
    if info.size < 0 or info.offset_data < 0:
        raise Damaged("a header declares a negative size")
    if len(tar.pax_headers) > _GLOBALS:
        raise Damaged(f"more than {_GLOBALS} global records")
    if not packed and info.isreg() and not info.issparse() and info.offset_data + info.size > stamp.size:
        raise Damaged(f"it ends in the middle of {info.name[:200]!r}")


def _check_end(forward: _Forward, packed: bool) -> None:
    """tarfile ends quietly where a header is torn or foreign; a tar ends with a block of zeros.

    Raises:
        Damaged: It ends otherwise, or what follows its end does not unpack.
    """
    if forward.last != bytes(_BLOCK):
        what = (
            "ends without the mark of its end" if len(forward.last) < _BLOCK else "has a header that is none"
        )
        raise Damaged(f"it {what} at byte {forward.tell():,}: members may be missing")
    while packed and forward.take(CHUNK):  # up to the checksum of the whole
        pass
