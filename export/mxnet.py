"""MXNet's ``.params`` files: a list of named arrays in a binary format, read without MXNet.

The format is what ``NDArray::Save`` and ``NDArray::Load`` of apache/mxnet write and read
(``src/ndarray/ndarray.cc``, ``include/mxnet/tuple.h`` for shapes, ``include/mxnet/base.h`` for the context,
``mshadow/base.h`` for the type flags; vectors and strings as dmlc-core's ``serializer.h`` stores them). All
numbers are little-endian::

    file    uint64 0x112, uint64 reserved, uint64 count, count arrays, uint64 count, count names
    name    uint64 length, bytes
    array   uint32 magic, then
            V2, V3   int32 storage type (0 dense, 1 row-sparse, 2 CSR), shape
            V1       shape
            else     the magic is the number of dimensions; each is a uint32
            then context (int32 device type, int32 device number), int32 type flag, the elements
    shape   int32 number of dimensions, each an int64 (nnvm's older uint32 number is the same bytes)

V3 is V2 saved with NumPy's meaning of shapes: there, no dimensions are a scalar. In the others they are an
array that was never filled and that the file ends at once.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import torch

from vsa_rt.errors import CheckpointError

_LIST_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
#: Type flag to its elements in the file.
_TYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "|u1", 4: "<i4", 5: "|i1", 6: "<i8"}
_STORAGES = {-1: "undefined", 1: "row-sparse", 2: "CSR"}
#: NumPy's limit when MXNet was written, so that no array made in Python has more.
_MAX_DIMENSIONS = 32
#: One array without magic: number of dimensions, one dimension, context, type flag, one element of one byte.
_SMALLEST_ARRAY = 4 + 4 + 8 + 4 + 1
_AGAIN = "the file is damaged or cut short, get it again"


class _Reader:
    """The bytes that are left, and errors that name the file and the place."""

    def __init__(self, data: bytes, where: str) -> None:
        self._left = memoryview(data)
        self._where = where

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._left)

    def error(self, what: str) -> CheckpointError:
        """An error that names the file."""
        return CheckpointError(f"{self._where}: {what}")

    def take(self, nbytes: int, item: str) -> memoryview:
        """The next bytes, without a copy."""
        if nbytes > self.left:
            needed = str(nbytes) if nbytes < 2**64 else "more than 2^64"
            raise self.error(f"{item} needs {needed} bytes, {self.left} are left; {_AGAIN}")
        taken, self._left = self._left[:nbytes], self._left[nbytes:]
        return taken

    def numbers(self, layout: str, item: str) -> tuple[Any, ...]:
        """The next numbers, in ``struct``'s little-endian layout."""
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}"), item))


def _shown(shape: tuple[int, ...]) -> str:
    """A shape for messages, which declared sizes must not make long."""
    return str(shape) if len(shape) < 7 else f"({', '.join(map(str, shape[:6]))}, and {len(shape) - 6} more)"


def _read_shape(reader: _Reader, magic: int, item: str) -> tuple[int, ...]:
    versioned = magic in (_V1, _V2, _V3)
    count: int = reader.numbers("i", f"{item}'s number of dimensions")[0] if versioned else magic
    if count > _MAX_DIMENSIONS and not versioned:
        raise reader.error(
            f"{item} begins with 0x{magic:08X}, expected 0x{_V1:X}, 0x{_V2:X}, 0x{_V3:X} or a number of "
            f"dimensions up to {_MAX_DIMENSIONS}; {_AGAIN}"
        )
    if count > _MAX_DIMENSIONS:
        raise reader.error(
            f"{item} declares {count} dimensions, expected at most {_MAX_DIMENSIONS}; {_AGAIN}"
        )
    if count < 0 or (count == 0 and magic != _V3):
        raise reader.error(f"{item} was saved without data; save the network again with all its weights set")
    shape = reader.numbers(f"{count}{'q' if versioned else 'I'}", f"{item}'s shape")
    if any(size <= 0 for size in shape):
        raise reader.error(f"{item} has the shape {_shown(shape)}, expected positive dimensions; {_AGAIN}")
    return shape


def _read_array(reader: _Reader, item: str) -> torch.Tensor:
    (magic,) = reader.numbers("I", f"{item}'s magic number")
    if magic in (_V2, _V3):
        (storage,) = reader.numbers("i", f"{item}'s storage type")
        if storage != 0:
            raise reader.error(
                f"{item} is stored as {_STORAGES.get(storage, 'unknown')} (storage type {storage}), expected "
                "dense (0); convert it with tostype('default') in MXNet"
            )
    shape = _read_shape(reader, magic, item)
    reader.take(8, f"{item}'s context")  # the device that it lay on steers nothing
    (flag,) = reader.numbers("i", f"{item}'s type flag")
    if flag not in _TYPES:
        known = ", ".join(f"{np.dtype(t).name} {f}" for f, t in _TYPES.items())
        raise reader.error(f"{item} has the type flag {flag}, expected one of {known}")
    stored = np.dtype(_TYPES[flag])
    data = reader.take(math.prod(shape) * stored.itemsize, f"{item}, {stored.name} {_shown(shape)},")
    # The copy is aligned, writable and in this machine's byte order: torch needs all three.
    return torch.from_numpy(np.frombuffer(data, stored).reshape(shape).astype(stored.newbyteorder("=")))


def _read_name(reader: _Reader, item: str) -> str:
    (length,) = reader.numbers("Q", f"{item}'s length")
    try:
        name = str(reader.take(length, item), "utf-8")
    except UnicodeDecodeError as error:
        raise reader.error(f"{item} is not UTF-8: {error.reason}; {_AGAIN}") from error
    if not name.isprintable():  # messages print names as they are
        raise reader.error(f"{item} is {name[:100]!r}, expected printable text; {_AGAIN}")
    return name


def read_params(data: bytes, where: str) -> dict[str, torch.Tensor]:
    """Read the arrays of an MXNet ``.params`` file; nothing in it is executed.

    Every number in the file is held against the bytes that are left before memory is asked for.

    Args:
        data: The whole file.
        where: What to call it in messages.

    Returns:
        Name, as stored (``arg:conv0_weight``), to tensor, on the CPU, in the file's type and order.

    Raises:
        CheckpointError: Another format, damaged, truncated, sparse, without names, or with a name twice.
    """
    reader = _Reader(data, where)
    (magic,) = reader.numbers("Q", "the file's magic number")
    if magic != _LIST_MAGIC:
        raise reader.error(
            f"not an MXNet .params file: it begins with 0x{magic:X}, expected 0x{_LIST_MAGIC:X}"
        )
    _reserved, count = reader.numbers("QQ", "the file's header")
    if count == 0:
        raise reader.error("holds no arrays, expected the weights of a network")
    if count > reader.left // _SMALLEST_ARRAY:
        raise reader.error(f"declares {count} arrays, too many for the {reader.left} bytes left; {_AGAIN}")
    arrays = [_read_array(reader, f"array {i + 1} of {count}") for i in range(count)]
    (names,) = reader.numbers("Q", "the number of names")
    if names != count:
        raise reader.error(f"holds {count} arrays and {names} names, expected a name for each array")
    named: dict[str, torch.Tensor] = {}
    for i, array in enumerate(arrays):
        name = _read_name(reader, f"name {i + 1} of {count}")
        if name in named:
            raise reader.error(f"holds {name[:100]!r} twice, expected each name once")
        named[name] = array
    if reader.left:
        raise reader.error(f"{reader.left} bytes follow the last name, expected none; {_AGAIN}")
    return named
