"""Ready tensors that belong to an image: passed with it, or in files beside it (``photo.objects.npy``)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.contracts import Item
from vsa_rt.errors import ItemError

#: Inputs that architectures of this project take; files so named are no items of a folder.
NAMES = ("objects", "boxes", "frames")


def companion_path(image: str | os.PathLike[str], name: str) -> Path:
    """The file beside an image that holds one of its ready tensors: ``a.jpg`` has ``a.objects.npy``."""
    return Path(image).with_suffix(f".{name}.npy")


def is_companion(name: str) -> bool:
    """Whether a file's name is that of a ready tensor."""
    return any(name.endswith(f".{known}.npy") for known in NAMES)


def read_companion(path: Path, item: str) -> NDArray[Any]:
    """Read one ``.npy`` file; a size that its header only claims is refused.

    Raises:
        ItemError: Absent or not an array of numbers.
    """
    try:
        # Mapped, so that a header cannot make anything be allocated: the file has to be as large as it says.
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise ItemError(item, f"no file {path.name} beside it") from None
    except (OSError, ValueError, EOFError, SyntaxError, MemoryError, OverflowError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ItemError(item, f"{path.name} is not an array: {first}") from None


def fill(name: str, rows: NDArray[Any], out: NDArray[np.float32], item: str) -> None:
    """Copy the rows that are there into an input, zeros behind them.

    Args:
        name: The input's.
        rows: ``(n, width)`` with n up to the input's own number of rows.
        out: ``(rows, width)``.
        item: What to call the image in an error.

    Raises:
        ItemError: Another shape, too many rows, not numbers, or not finite.
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


def tensors_of(source: Any, names: Mapping[str, tuple[int, ...]], item: str) -> Mapping[str, NDArray[Any]]:
    """The ready tensors of one source.

    Args:
        source: An ``Item``, or a path whose files lie beside it.
        names: Input name to its shape.
        item: What to call it in an error.

    Raises:
        ItemError: One is absent.
    """
    if isinstance(source, Item):
        absent = next((n for n in names if n not in source.tensors), None)
        if absent is not None:
            raise ItemError(item, f"has no {absent}; pass vsa_rt.Item(image, {{{absent!r}: rows}})")
        return {name: np.asarray(source.tensors[name]) for name in names}
    if not isinstance(source, str | os.PathLike):
        first = next(iter(names))
        raise ItemError(
            item, f"comes without {', '.join(names)}; pass vsa_rt.Item(image, {{{first!r}: rows}})"
        )
    return {name: read_companion(companion_path(source, name), item) for name in names}
