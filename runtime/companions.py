"""Ready tensors that belong to an image: passed with it, or in files beside it (``photo.jpg.objects.npy``)."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from vsa_rt.contracts import Item
from vsa_rt.errors import ItemError

#: Inputs that architectures of this project take; files so named are no items of a folder.
NAMES = ("objects", "boxes", "frames")
#: Corners of boxes, as shares of an image's sides: in [0, 1], but detectors overshoot, and so may their users. What
#: lies further off than a whole side was not meant as a share.
BOXES_FROM, BOXES_TO = -1.0, 2.0

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_OPEN_FLAGS = os.O_RDONLY
for _flag in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY"):  # not every system has each
    _OPEN_FLAGS |= getattr(os, _flag, 0)


def companion_path(image: str | os.PathLike[str], name: str) -> Path:
    """The file beside an image that holds one of its ready tensors: ``a.jpg`` has ``a.jpg.objects.npy``."""
    return Path(os.fsdecode(image) + f".{name}.npy")


def is_companion(name: str) -> bool:
    """Whether a file's name is that of a ready tensor."""
    return any(name.endswith(f".{known}.npy") for known in NAMES)


def not_a_file(path: str | os.PathLike[str]) -> str:
    """What a path leads to if it is no regular file, in a few words; empty if it is one.

    Nothing is opened: a FIFO would block for ever, and a device may have effects of its own.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        return f"the file cannot be read: {error.strerror or type(error).__name__}"
    except ValueError as error:  # a NUL character, or one that the file system cannot encode
        return f"not a path: {error}"
    if stat.S_ISREG(mode):
        return ""
    return _KINDS.get(stat.S_IFMT(mode), "a special file")


def require_image_file(path: str | os.PathLike[str], item: str) -> None:
    """Refuse a path that leads to no regular file, for a graph that takes no pixels: it is not opened.

    Raises:
        ItemError: Absent, a folder, a FIFO or a device.
    """
    found = not_a_file(path)
    if found in _KINDS.values():
        raise ItemError(item, f"{found}, expected an image file")
    if found:
        raise ItemError(item, found)


def read_companion(path: Path, item: str) -> NDArray[Any]:
    """Map one ``.npy`` file of numbers; a size that its header only claims is refused.

    Raises:
        ItemError: Absent or not an array of numbers.
    """
    found = not_a_file(path)
    if found == "no such file":
        raise ItemError(item, f"no file {path.name} beside it")
    if found:
        raise ItemError(item, f"{path.name}: {found}, expected a .npy file")
    try:
        with open(os.open(path, _OPEN_FLAGS), "rb", buffering=0) as stream:
            return _mapped(stream)
    except Exception as error:  # noqa: BLE001 - the header is parsed as Python literals: any of that parser's errors
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise ItemError(item, f"{path.name} is not an array of numbers in a .npy file: {text}") from None


def _mapped(stream: IO[bytes]) -> NDArray[Any]:
    """A file's array, mapped: nothing is allocated of the size that it has or claims to have."""
    info = os.fstat(stream.fileno())
    if not stat.S_ISREG(info.st_mode):  # exchanged since it was looked at
        raise ValueError("not a regular file")
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format, expected 1.0 or 2.0")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.kind not in "fiu":
        raise ValueError(f"it holds {str(dtype)[:60]}")
    start = stream.tell()
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize > info.st_size - start:
        raise ValueError(f"it declares {dtype} {str(shape)[:80]} and has {info.st_size - start} bytes")
    return np.memmap(stream, dtype, "r", start, shape, "F" if fortran else "C")


def fill(name: str, rows: NDArray[Any], out: NDArray[np.float32], item: str) -> None:
    """Copy the rows that are there into an input, zeros behind them.

    Args:
        name: The input's.
        rows: ``(n, width)`` with n up to the input's own number of rows.
        out: ``(rows, width)``.
        item: What to call the image in an error.

    Raises:
        ItemError: Another shape, too many rows, not numbers, or not finite; boxes in pixels.
    """
    if rows.ndim != 2 or rows.shape[1] != out.shape[1] or len(rows) > len(out):
        raise ItemError(
            item,
            f"{name} has shape {rows.shape}, expected up to {out.shape[0]} rows of {out.shape[1]} numbers",
        )
    if rows.dtype.kind not in "fiu":
        raise ItemError(item, f"{name} holds {rows.dtype}, expected numbers")
    with np.errstate(over="ignore"):
        out[: len(rows)] = rows
    out[len(rows) :] = 0
    if not np.isfinite(out).all():
        raise ItemError(item, f"{name} holds values that are not finite in float32")
    if name == "boxes" and (out.min() < BOXES_FROM or out.max() > BOXES_TO):
        far = out.flat[np.abs(out - 0.5).argmax()]
        raise ItemError(
            item,
            f"boxes holds {far:g}; expected shares of the sides, not pixels: 0 to 1, where {BOXES_FROM:g} to "
            f"{BOXES_TO:g} is let pass because detectors overshoot",
        )


def tensors_of(source: Any, names: Mapping[str, tuple[int, ...]], item: str) -> Mapping[str, NDArray[Any]]:
    """The ready tensors of one source.

    Args:
        source: An ``Item``, or a path whose files lie beside it.
        names: Input name to its shape.
        item: What to call it in an error.

    Raises:
        ItemError: One is absent or no array.
    """
    if isinstance(source, Item):
        if not isinstance(source.tensors, Mapping):
            got = type(source.tensors).__name__
            raise ItemError(item, f"expected a mapping of ready tensors, got {got}; pass {_example(names)}")
        absent = next((n for n in names if n not in source.tensors), None)
        if absent is not None:
            raise ItemError(item, f"has no {absent}; pass {_example([absent])}")
        return {name: _as_array(name, source.tensors[name], item) for name in names}
    if not isinstance(source, str | os.PathLike):
        raise ItemError(item, f"comes without {', '.join(names)}; pass {_example(names)}")
    return {name: read_companion(companion_path(source, name), item) for name in names}


def _example(names: Iterable[str]) -> str:
    return f"vsa_rt.Item(image, {{{next(iter(names))!r}: rows}})"


def _as_array(name: str, value: Any, item: str) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except Exception as error:  # noqa: BLE001 - rows of different lengths, or what a foreign object's __array__ raises
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise ItemError(item, f"{name} is no array: {text}") from None
