"""Golden tensors: inputs and taps of a few photographs, stored in the bundle to test it anywhere."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.errors import BundleError


def golden_to_bytes(
    inputs: dict[str, NDArray[Any]], taps: dict[str, NDArray[Any]], labels: list[str]
) -> bytes:
    """An ``.npz`` with ``input.NAME`` ``(N, H, W, 3)``, ``tap.NAME`` ``(N, D)`` and the ``labels`` of the scores."""
    stream = io.BytesIO()
    named = {f"input.{k}": v for k, v in inputs.items()} | {f"tap.{k}": v for k, v in taps.items()}
    named["labels"] = np.array(labels, np.str_)
    np.savez_compressed(stream, **named)  # type: ignore[arg-type]  # numpy types the keywords as flags
    return stream.getvalue()


def read_labels(golden: dict[str, NDArray[Any]]) -> list[str]:
    """The labels of the golden scores, in their order."""
    return [str(label) for label in golden.get("labels", np.array([], np.str_)).ravel()]


def read_golden(data: bytes) -> dict[str, NDArray[Any]]:
    """The tensors by their names in the file.

    Raises:
        BundleError: Not such a file, or it holds objects instead of numbers.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            tensors = {name: stored[name] for name in stored.files}
    except (ValueError, OSError, zipfile.BadZipFile, KeyError, EOFError) as error:
        raise BundleError(f"golden tensors: not readable: {error}; rebuild the bundle") from error
    counts = {len(t) if t.ndim else 0 for name, t in tensors.items() if name != "labels"}
    if len(counts) != 1 or not min(counts):
        raise BundleError(
            f"golden tensors: of {sorted(counts)} images, expected the same number of each; rebuild the bundle"
        )
    return tensors
