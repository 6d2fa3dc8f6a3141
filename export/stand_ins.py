"""Stand-ins for ready tensors that no file gives: made of a photograph's own pixels, for gates and seeded weights.

They decide nothing. A detector's boxes and a network's object features are things that only their makers have; to
compare two engines, or to set a normalisation layer's statistics, values of the same shape and sign that differ
from image to image as the images do are enough.
"""

from __future__ import annotations

import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Rows = NDArray[np.float32]
#: A region is seen through this many pixels a side.
_SIDE = 16


@lru_cache(maxsize=4)
def _projection(width: int) -> Rows:
    """Pixels of a region to ``width`` values, the same in every process."""
    values = np.random.default_rng(width).standard_normal((3 * _SIDE * _SIDE, width), np.float32)
    return np.asarray(values / np.float32(np.sqrt(3 * _SIDE * _SIDE)), np.float32)


def _boxes(rng: np.random.Generator, count: int) -> Rows:
    """Random boxes x1, y1, x2, y2 in [0, 1], a tenth to nine tenths of a side long."""
    sides = rng.uniform(0.1, 0.9, (count, 2))
    corners = rng.uniform(0, 1 - sides)
    return np.concatenate([corners, corners + sides], 1).astype(np.float32)


def stand_in(picture: Image.Image, name: str, shape: list[int]) -> Rows:
    """Rows for one photograph.

    Args:
        picture: Upright RGB.
        name: ``boxes``, or anything else for vectors, which are not negative, as behind a ReLU.
        shape: ``[rows, width]``.

    Returns:
        ``(n, width)``, with all rows for every other photograph and 1 to all for the rest.
    """
    rows, width = shape
    small = picture.resize((4 * _SIDE, 4 * _SIDE), Image.Resampling.BILINEAR)
    rng = np.random.default_rng(zlib.crc32(small.tobytes()))
    count = rows if rng.random() < 0.5 else int(rng.integers(1, rows + 1))
    boxes = _boxes(rng, count)
    if name == "boxes":
        return boxes
    pixels = np.stack(
        [
            np.asarray(
                small.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box=tuple(4 * _SIDE * b)), np.float32
            )
            for b in boxes.astype(float)
        ]
    ).reshape(count, -1)
    spread = pixels.std(1, keepdims=True)
    pixels = (pixels - pixels.mean(1, keepdims=True)) / np.maximum(spread, 1.0)
    return np.asarray(np.maximum(pixels @ _projection(width), 0), np.float32)
