"""Zips, read through their directory, entry by entry, and never unpacked to disk.

The standard library's reader keeps the whole directory in memory and unpacks what LZMA's header asks memory for; this
one does neither. The layout is that of PKWARE's APPNOTE.TXT, version 6.3.10, sections 4.3 to 4.5.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from vsa_rt.errors import ItemError
from vsa_rt.pipeline.ingest.kinds import HEAD_BYTES
from vsa_rt.pipeline.ingest.members import CHUNK, Damaged, Limits, Refused, Stamp, open_regular, reopen, why

_END = struct.Struct("<4s4H2LH")  # end of the directory, 4.3.16
_LOCATOR = struct.Struct("<4sLQL")  # where the zip64 end is, 4.3.15
_END64 = struct.Struct("<4sQ2H2L4Q")  # zip64 end of the directory, 4.3.14
_ENTRY = struct.Struct("<4s6H3L5H2L")  # an entry of the directory, 4.3.12
_LOCAL = struct.Struct("<4s5H3L2H")  # what stands before the data, 4.3.7
_ENCRYPTED = 1 << 0 | 1 << 6 | 1 << 13  # by the old cipher, by a strong one, with a masked directory; 4.4.4
_UTF8 = 1 << 11
_STORED, _DEFLATED = 0, 8  # 4.4.5
_FULL32, _FULL16 = 0xFFFFFFFF, 0xFFFF  # the value is in the zip64 record, 4.5.3
_UNIX = 3  # 4.4.2: file modes are in the upper half of the external attributes


class _Directory(NamedTuple):
    """Where the directory is; ``shift`` is the length of what stands before the zip (a self-extracting program)."""

    start: int
    size: int
    entries: int
    shift: int


class Entry(NamedTuple):
    """What the directory says of a member."""

    name: str
    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int
    mode: int


def _find_directory(stream: BinaryIO, length: int) -> _Directory:
    """Find the directory from the file's end.

    Raises:
        Damaged: There is none: not a zip, or its end is missing.
    """
    tail = min(length, _END.size + _FULL16)  # the end, and the longest comment
    stream.seek(length - tail)
    data = stream.read(tail)
    at = data.rfind(b"PK\5\6")
    while at >= 0 and at + _END.size + int.from_bytes(data[at + 20 : at + 22], "little") != len(data):
        at = data.rfind(b"PK\5\6", 0, at)  # that one stood in the comment
    if at < 0:
        raise Damaged("no directory at its end: not a zip, or cut off; none of its members can be listed")
    _, disk, first, _, count, size, start, _ = _END.unpack_from(data, at)
    end = length - tail + at
    wide = _wide_end(stream, end)
    if wide is not None:
        end, disk, first, count, size, start = wide
    if disk or first:
        raise Damaged("one of several files of a split zip: join them first")
    shift = end - size - start
    if shift < 0:
        raise Damaged("the directory is said to lie where it cannot: cut off or damaged")
    return _Directory(start + shift, size, count, shift)


def _wide_end(stream: BinaryIO, end: int) -> tuple[int, int, int, int, int, int] | None:
    """The zip64 end: its place, both disks, count, size and start of the directory; ``None`` where there is none."""
    if end < _LOCATOR.size:
        return None
    stream.seek(end - _LOCATOR.size)
    signature, _, _, _ = _LOCATOR.unpack(stream.read(_LOCATOR.size))
    if signature != b"PK\6\7":
        return None
    place = end - _LOCATOR.size - _END64.size  # without extensible data, as every known writer has it
    if place < 0:
        raise Damaged("its zip64 end is missing")
    stream.seek(place)
    signature, _, _, _, disk, first, _, count, size, start = _END64.unpack(stream.read(_END64.size))
    if signature != b"PK\6\6":
        raise Damaged("its zip64 end is missing")
    return place, disk, first, count, size, start


def _entries(stream: BinaryIO, directory: _Directory) -> Iterator[Entry]:
    """Entries of the directory, one at a time.

    Raises:
        Damaged: An entry is none.
    """
    stream.seek(directory.start)
    left, number = directory.size, 0
    while left > 0:
        fixed = stream.read(_ENTRY.size)
        if len(fixed) < _ENTRY.size or not fixed.startswith(b"PK\1\2") or left < _ENTRY.size:
            raise Damaged(f"its directory is damaged after {number:,} entries")
        (_, made, _, flags, method, _, _, crc, packed, size, *lengths, _, _, attributes, offset) = (
            _ENTRY.unpack(fixed)
        )
        variable = stream.read(sum(lengths))
        left -= len(fixed) + len(variable)
        if len(variable) < sum(lengths) or left < 0:
            raise Damaged(f"its directory is damaged after {number:,} entries")
        raw_name = variable[: lengths[0]]
        extra = variable[lengths[0] : lengths[0] + lengths[1]]
        size, packed, offset = _wide(extra, size, packed, offset)
        # Without the flag the encoding is unknown; code page 437 is the format's own and has a letter for each byte.
        name = raw_name.decode("utf-8", "surrogateescape") if flags & _UTF8 else raw_name.decode("cp437")
        mode = attributes >> 16 if made >> 8 == _UNIX else 0
        yield Entry(name, raw_name, flags, method, crc, packed, size, offset + directory.shift, mode)
        number += 1
    if number & _FULL16 != directory.entries & _FULL16:  # some writers count in 16 bits
        raise Damaged(f"{number:,} entries in its directory, which says {directory.entries:,}")


def _wide(extra: bytes, *values: int) -> tuple[int, ...]:
    """Values of which those that are full are in the zip64 record, in this order (4.5.3).

    Raises:
        Damaged: One is not there.
    """
    record = b""
    while len(extra) >= 4:
        tag, length = struct.unpack_from("<2H", extra)
        if tag == 1:
            record = extra[4 : 4 + length]
        extra = extra[4 + length :]
    found = []
    for value in values:
        if value == _FULL32:
            if len(record) < 8:
                raise Damaged("an entry of its directory lacks its zip64 record")
            found.append(int.from_bytes(record[:8], "little"))
            record = record[8:]
        else:
            found.append(value)
    return tuple(found)


def _unpacked(stream: BinaryIO, entry: Entry) -> Iterator[bytes]:
    """A member's data, in chunks, never more than it declares and one byte.

    Raises:
        Refused: The member cannot be read.
        zlib.error: It does not unpack.
    """
    stream.seek(entry.offset)
    fixed = stream.read(_LOCAL.size)
    if len(fixed) < _LOCAL.size or not fixed.startswith(b"PK\3\4"):
        raise Refused("no member where the directory says that it is: the archive is damaged")
    *_, name_length, extra_length = _LOCAL.unpack(fixed)
    if stream.read(name_length) != entry.raw_name:
        raise Refused(
            "the member has another name than the directory gives it: the archive is damaged or forged"
        )
    stream.seek(extra_length, os.SEEK_CUR)
    unpack = zlib.decompressobj(-zlib.MAX_WBITS) if entry.method == _DEFLATED else None
    left, room = entry.packed, entry.size + 1
    while left > 0 and room > 0:
        data = stream.read(min(CHUNK, left))
        if not data:
            return
        left -= len(data)
        while data and room > 0:
            chunk = unpack.decompress(data, min(CHUNK, room)) if unpack else data[:room]
            data = unpack.unconsumed_tail if unpack else b""
            room -= len(chunk)
            yield chunk
        if unpack and unpack.eof:
            return


@dataclass(frozen=True)
class FromZip:
    """Opens a member of a zip: its bytes.

    Attributes:
        path: The zip.
        stamp: By which the zip is known again.
        key: The piece's, for errors.
        entry: The member.
    """

    path: str
    stamp: Stamp
    key: str
    entry: Entry

    def __call__(self) -> bytes:
        """The member's bytes; raises an ``ItemError`` where they are not to be had."""
        with reopen(self.path, self.stamp, self.key) as stream:
            try:
                data = b"".join(_unpacked(stream, self.entry))
            except (Refused, OSError, ValueError, OverflowError, zlib.error) as error:
                raise ItemError(self.key, f"it does not unpack: {why(error)}") from None
        if len(data) > self.entry.size:
            raise ItemError(
                self.key, f"it unpacks to more than the {self.entry.size:,} bytes that it declares"
            )
        if len(data) < self.entry.size:
            raise ItemError(self.key, f"{len(data):,} bytes of the {self.entry.size:,} that it declares")
        if zlib.crc32(data) != self.entry.crc:
            raise ItemError(self.key, "its checksum is wrong: the archive is damaged")
        return data


class _ZipMember:
    """A member while the directory is read."""

    def __init__(self, path: str, stream: BinaryIO, stamp: Stamp, entry: Entry, limits: Limits) -> None:
        self.name = entry.name
        self.size = entry.size
        self._path = path
        self._stream = stream
        self._stamp = stamp
        self._entry = entry
        self._limits = limits

    def head(self) -> bytes:
        entry = self._entry
        if entry.flags & _ENCRYPTED:
            raise Refused("encrypted: unpack it with its password")
        if stat.S_ISLNK(entry.mode):
            raise Refused("a symbolic link in an archive: not followed")
        if entry.method not in (_STORED, _DEFLATED):
            raise Refused(
                f"packed by method {entry.method}; expected 0 (stored) or 8 (deflated): pack it anew"
            )
        head = b""
        try:
            for chunk in _unpacked(self._stream, entry):
                head += chunk
                if len(head) >= HEAD_BYTES:
                    break
        except zlib.error as error:
            raise Refused(f"it does not unpack: {why(error)}") from None
        except (OSError, ValueError, OverflowError) as error:
            raise Damaged(f"it cannot be read: {why(error)}") from None
        return head[:HEAD_BYTES]

    def opener(self, key: str) -> Callable[[], Any]:
        entry, limits = self._entry, self._limits
        if entry.size > limits.member_bytes or entry.packed > limits.member_bytes:
            raise Refused(
                f"{entry.size:,} bytes, more than the {limits.member_bytes:,} allowed in an archive; unpack it and name "
                "the file"
            )
        if entry.size > max(limits.ratio_from, limits.ratio * entry.packed):
            raise Refused(
                f"{entry.packed:,} bytes unpack to {entry.size:,}, more than {limits.ratio} times as many: refused as a "
                "decompression bomb"
            )
        return FromZip(self._path, self._stamp, key, entry)


def zip_members(path: str, stream: BinaryIO, stamp: Stamp, limits: Limits) -> Iterator[_ZipMember]:
    """Members of a zip, folders left out, in the order of its directory; each is read when it is opened.

    Args:
        path: The zip.
        stream: The zip, open.
        stamp: By which it is known again.
        limits: What it may cost.

    Yields:
        Members, each valid until the next one.

    Raises:
        Damaged: What follows cannot be read; all before was given.
    """
    try:
        directory = _find_directory(stream, stamp.size)
        total = 0
        with open_regular(path) as data:
            for entry in _entries(stream, directory):
                if entry.offset > stamp.size:
                    raise Damaged("an entry of its directory lies behind its end")
                total += entry.packed
                if total > stamp.size:  # members share their bytes, each of them unpacked on its own
                    raise Damaged(
                        "its members together are larger than the file: refused as a decompression bomb"
                    )
                if not entry.name.endswith("/"):
                    yield _ZipMember(path, data, stamp, entry, limits)
    except (OSError, struct.error) as error:
        raise Damaged(f"it cannot be read: {why(error)}") from None
