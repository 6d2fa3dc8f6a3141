"""Golden tensors: inputs and taps of a few photographs, stored in the bundle to test it anywhere."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.errors import BundleError


def golden_to_bytes(inputs: dict[str, NDArray[Any]], taps: dict[str, NDArray[Any]]) -> bytes:
    """An ``.npz`` with ``input.NAME`` ``(N, H, W, 3)`` and ``tap.NAME`` ``(N, D)``."""
    stream = io.BytesIO()
    named = {f"input.{k}": v for k, v in inputs.items()} | {f"tap.{k}": v for k, v in taps.items()}
    np.savez_compressed(stream, **named)  # type: ignore[arg-type]  # numpy types the keywords as flags
    return stream.getvalue()


def read_golden(data: bytes) -> dict[str, NDArray[Any]]:
    """The tensors by their names in the file.

    Raises:
        BundleError: Not such a file, or it holds objects instead of numbers.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, OSError, zipfile.BadZipFile, KeyError, EOFError) as error:
        raise BundleError(f"golden tensors: not readable: {error}; rebuild the bundle") from error
