"""Checkpoints of numpy arrays: ``.npz``, a tar of ``.npy`` files, or one ``.npy``. Nothing in them is executed.

What a file declares is checked against the bytes that are there before anything of that size is allocated.
"""

from __future__ import annotations

import io
import math
import stat
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from vsa_rt.errors import CheckpointError

#: What compressed members may grow to together: the largest network of the papers, 253 million weights in
#: double precision, takes half of it ...
_LIMIT = 4 << 30
#: ... and, beyond the allowance, this many times the file. Trained weights compress to more than half, DEFLATE
#: reaches 1032 on zeros: only a bomb comes near.
_GROWTH, _ALLOWANCE = 100, 64 << 20
#: numpy writes headers of 128 bytes; one for a plain dtype and as many dimensions as numpy has takes 1 KiB.
_HEADER = 4096
#: What weights are stored as; torch has a type of its own for each.
_TYPES = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1"))
#: Entries of an archive: the deepest network here has a thousand tensors. Empty ones cost time and no bytes.
_ENTRIES = 10_000
#: Bytes of an extended tar header; real ones hold a time or an owner.
_EXTENDED = 64 << 10
_BLOCK = 512
_ENCRYPTED = 1  # bit 0 of a zip entry's flags

_Members = Iterator[tuple[str, memoryview]]


def _limit(stored: int) -> int:
    return min(_LIMIT, max(_ALLOWANCE, _GROWTH * stored))


def _text(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _array(data: memoryview, what: str) -> NDArray[Any]:
    """One ``.npy`` as a contiguous array of this machine's byte order."""
    start = io.BytesIO(data[:_HEADER])
    try:
        version = npy.read_magic(start)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format, expected 1.0 or 2.0")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy says that Python 2 wrote the file; so it did
            shape, fortran, dtype = read(start, max_header_size=_HEADER)
    except Exception as error:  # the header is parsed as Python literals, with any of that parser's errors
        raise CheckpointError(f"{what}: not a .npy file of plain numbers: {_text(error)}") from error
    if dtype.str[1:] not in _TYPES:
        raise CheckpointError(
            f"{what}: holds {str(dtype)[:60]}, expected float16 to float64, int8 to int64 or uint8"
        )
    shown = str(shape) if len(str(shape)) < 80 else f"{str(shape)[:80]} ..."
    # True is an int to numpy's own check, and nothing stops a negative size there.
    if any(isinstance(size, bool) or size < 1 for size in shape):
        raise CheckpointError(f"{what}: declares shape {shown}, expected sizes of 1 or more")
    there = len(data) - start.tell()
    if math.prod(shape) * dtype.itemsize != there:
        raise CheckpointError(f"{what}: declares {dtype} {shown}, which are not the {there} bytes there")
    try:
        flat = np.frombuffer(data, dtype, offset=start.tell())
        laid = flat.reshape(shape, order="F" if fortran else "C")
        return np.array(laid, dtype=dtype.newbyteorder("="), order="C")
    except ValueError as error:  # more dimensions than numpy has
        raise CheckpointError(f"{what}: declares shape {shown}: {_text(error)}") from error


def _check_name(name: str, where: str) -> None:
    """Refuse a member's name that no honest writer gives."""
    if not name.isprintable() or "\\" in name or name.startswith("/") or ".." in name.split("/"):
        raise CheckpointError(f"{where}: has a member {name[:80]!r}, expected a plain relative name")


def _is_array(name: str) -> bool:
    """Whether a member is meant to be read; macOS adds a ``._`` file, which is no array, to each."""
    last = name.rsplit("/", 1)[-1]
    return last.endswith(".npy") and not last.startswith(".")


def _check_count(entries: int, where: str) -> None:
    if entries > _ENTRIES:
        raise CheckpointError(f"{where}: has more than {_ENTRIES} entries")


def _from_zip(data: bytes, where: str) -> _Members:
    """Names are the keys that ``np.savez`` was given, slashes included."""
    left = _limit(len(data))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        _check_count(len(archive.infolist()), where)
        for entry in archive.infolist():
            name = entry.filename
            _check_name(name, where)
            if not _is_array(name):
                continue
            mode = entry.external_attr >> 16  # as Unix writes it; 0 from elsewhere
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise CheckpointError(f"{where}: {name} is a link or a device, expected a file")
            if entry.flag_bits & _ENCRYPTED or entry.compress_type not in (
                zipfile.ZIP_STORED,
                zipfile.ZIP_DEFLATED,
            ):
                raise CheckpointError(f"{where}: {name} is encrypted or packed by other means than deflate")
            left -= entry.file_size
            if left < 0:
                raise CheckpointError(f"{where}: unpacks to more than {_limit(len(data))} bytes")
            with archive.open(entry) as member:  # gives no more than the size that the entry declares
                yield name.removesuffix(".npy"), memoryview(member.read(entry.file_size))


def _unpacked(data: bytes, where: str) -> bytes:
    """What a gzip file holds."""
    limit = _limit(len(data))
    # Several members in one file are allowed by the format, and written by nobody for a tar of arrays.
    stream = zlib.decompressobj(wbits=31)
    whole = stream.decompress(data, limit + 1)
    if len(whole) > limit:
        raise CheckpointError(f"{where}: unpacks to more than {limit} bytes")
    if not stream.eof:
        raise CheckpointError(f"{where}: the gzip stream ends early")
    if stream.unused_data.strip(b"\0"):
        raise CheckpointError(f"{where}: has {len(stream.unused_data)} bytes behind the gzip stream")
    return whole


def _octal(field: bytes, where: str) -> int:
    digits = field.strip(b" \0")
    if not digits or digits.strip(b"01234567"):
        raise CheckpointError(f"{where}: a tar header has the number {field!r}, expected octal digits")
    return int(digits, 8)


def _check_extended(records: bytes, where: str) -> None:
    """Refuse an extended header that gives the next member another size, name or kind than its own header."""
    while records:
        head, space, _ = records.partition(b" ")
        length = int(head) if head.isdigit() and len(head) < 9 else 0
        if not space or not len(head) + 1 < length <= len(records):
            raise CheckpointError(f"{where}: has a damaged extended tar header")
        key = records[len(head) + 1 : length].partition(b"=")[0]
        if key in (b"size", b"path", b"linkpath") or key.startswith(b"GNU.sparse"):
            raise CheckpointError(
                f"{where}: an extended tar header sets {key.decode('ascii', 'replace')}, "
                "expected plain files with names of 100 characters or less"
            )
        records = records[length:]


def _from_tar(data: bytes, where: str) -> _Members:
    """Names are the files' without folder.

    The headers are walked here, since ``tarfile`` follows what a hostile header says: it expands sparse members
    to the size they declare and takes negative sizes.
    """
    view, at, entries = memoryview(data), 0, 0
    while at + _BLOCK <= len(data) and any(header := data[at : at + _BLOCK]):
        blank = header[:148] + b" " * 8 + header[156:]  # the sum is taken with its own field blank
        if _octal(header[148:156], where) != sum(blank):
            raise CheckpointError(f"{where}: the tar header at byte {at} is damaged")
        entries += 1
        _check_count(entries, where)
        kind, size = header[156:157], _octal(header[124:136], where)
        at += _BLOCK
        if at + size > len(data):
            raise CheckpointError(f"{where}: a tar member declares {size} bytes, {len(data) - at} are there")
        content, at = view[at : at + size], at + size + -size % _BLOCK
        if kind in (b"x", b"g"):
            if size > _EXTENDED:
                raise CheckpointError(f"{where}: has an extended tar header of {size} bytes")
            _check_extended(bytes(content), where)
            continue
        name = header[:100].partition(b"\0")[0].decode("utf-8", "replace")
        _check_name(name, where)
        if kind not in (b"0", b"\0", b"5"):
            raise CheckpointError(f"{where}: {name} is not a plain file, but of tar type {kind!r}")
        if kind != b"5" and _is_array(name):
            yield name.rsplit("/", 1)[-1].removesuffix(".npy"), content
    if any(view[at : at + _BLOCK]):
        raise CheckpointError(f"{where}: ends within a tar header")


def _members(data: bytes, where: str) -> _Members:
    if data.startswith(npy.MAGIC_PREFIX):
        return iter([("arr_0", memoryview(data))])
    if data.startswith((b"PK\3\4", b"PK\5\6")):
        return _from_zip(data, where)
    if data.startswith(b"\x1f\x8b"):
        data = _unpacked(data, where)
    if data[257:262] == b"ustar":  # POSIX and GNU alike
        return _from_tar(data, where)
    raise CheckpointError(f"{where}: not a .npy, .npz, .tar or .tgz file")


def read_arrays(data: bytes, where: str) -> dict[str, torch.Tensor]:
    """Read a file of numpy arrays, told apart by content.

    Args:
        data: A ``.npz`` (keys are those that ``np.savez`` was given), a ``.tar`` or ``.tgz`` of ``.npy`` files
            (keys are their names without folder and suffix), or one ``.npy`` (its key is ``arr_0``, as
            ``np.savez`` names an array that was given no key). Other files and folders in an archive are
            skipped, so are files whose name begins with a dot.
        where: What to call the file in messages.

    Returns:
        Key to tensor, on the CPU, in the type of the file, C order and this machine's byte order.

    Raises:
        CheckpointError: Not such a file; damaged; holds something other than floating-point numbers or
            integers; a link, an odd or repeated name; declares more than is there; or unpacks to more than
            4 GiB or a hundred times its size (64 MiB are always allowed).
    """
    arrays: dict[str, torch.Tensor] = {}
    try:
        for name, content in _members(data, where):
            if name in arrays:
                raise CheckpointError(f"{where}: has two arrays {name!r}")
            arrays[name] = torch.from_numpy(_array(content, f"{where}: array {name!r}"))
    except CheckpointError:
        raise
    except Exception as error:  # zip and zlib raise errors of many kinds on damaged data
        raise CheckpointError(f"{where}: cannot be unpacked: {_text(error)}") from error
    if not arrays:
        raise CheckpointError(f"{where}: holds no .npy arrays")
    return arrays
