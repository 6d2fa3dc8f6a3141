"""Reference transforms: what a resize spec means, in Pillow or in plain arithmetic, apart from the runtime's code.

Networks that are not timm's have no transform of their own to measure the host's resize against. This is written
for reading, one output row at a time; it needs numpy and Pillow alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vsa_rt.contracts import ResizeSpec

#: An upright RGB picture to the pixels ``(height, width, 3)`` of a graph input.
Transform = Callable[[Image.Image], NDArray[np.uint8]]
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class _Taps(NamedTuple):
    """The two source indices of each output of an axis, and what they count.

    Attributes:
        first: Source indices ``(n,)``.
        second: Source indices ``(n,)``.
        weights: Of both taps in 1/2048, ``(n, 2)`` (OpenCV), or of the second as float32, ``(n, 1)`` (TensorFlow).
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    weights: NDArray[Any]


def _opencv_taps(in_size: int, out_size: int, wanted: range, vertical: bool) -> _Taps:
    """Half-pixel centres; a position is rounded to float32 before it is split, then each weight to 1/2048."""
    scale = 1.0 / (out_size / in_size)
    taps, weights = [], []
    for index in wanted:
        position = np.float32((index + 0.5) * scale - 0.5)
        first = math.floor(position)
        fraction = position - np.float32(first)
        if not vertical and not 0 <= first < in_size - 1:
            fraction = np.float32(0)
        taps.append((min(max(first, 0), in_size - 1), min(max(first + 1, 0), in_size - 1)))
        # Half to even, each on its own: the sum need not be 2048.
        weights.append((round(float(np.float32(1) - fraction) * 2048), round(float(fraction) * 2048)))
    first_taps, second_taps = np.array(taps).T
    return _Taps(first_taps, second_taps, np.array(weights))


def _opencv_row(pixels: NDArray[np.uint8], columns: _Taps, y: int, rows: _Taps) -> NDArray[np.uint8]:
    total = np.zeros((len(columns.first), 3), np.int64)
    for source, down in (
        (pixels[rows.first[y]], rows.weights[y, 0]),
        (pixels[rows.second[y]], rows.weights[y, 1]),
    ):
        across = (
            source[columns.first] * columns.weights[:, :1] + source[columns.second] * columns.weights[:, 1:]
        )
        total += across // 16 * down // 65536
    return ((total + 2) // 4).astype(np.uint8)


def _tf_taps(in_size: int, out_size: int, wanted: range, vertical: bool) -> _Taps:
    """No centres: output ``i`` lies at ``i * in / out``, in float32."""
    scale = np.float32(in_size) / np.float32(out_size)
    positions = [np.float32(index) * scale for index in wanted]
    first = [min(math.floor(p), in_size - 1) for p in positions]
    second = [min(math.ceil(p), in_size - 1) for p in positions]
    fractions = [p - np.float32(math.floor(p)) for p in positions]
    return _Taps(np.array(first), np.array(second), np.array(fractions, np.float32)[:, None])


def _tf_row(pixels: NDArray[np.uint8], columns: _Taps, y: int, rows: _Taps) -> NDArray[np.uint8]:
    top, bottom = (
        source[columns.first] + (source[columns.second] - source[columns.first]) * columns.weights
        for source in (pixels[rows.first[y]].astype(np.float32), pixels[rows.second[y]].astype(np.float32))
    )
    exact: NDArray[np.float32] = top + (bottom - top) * rows.weights[y]
    return exact.round().astype(np.uint8)


_BY_ROWS = {"opencv-bilinear": (_opencv_taps, _opencv_row), "tf-bilinear": (_tf_taps, _tf_row)}


def reference_transform(spec: ResizeSpec) -> Callable[[Image.Image], NDArray[np.uint8]]:
    """What the host's resize is measured against: Pillow for its own kernels, else the library's published rule.

    ``opencv-bilinear`` follows ``modules/imgproc/src/resize.cpp`` of opencv/opencv (``resizeGeneric_`` with
    ``HResizeLinear`` and ``VResizeLinear`` on bytes); ``tf-bilinear`` follows
    ``tensorflow/core/kernels/resize_bilinear_op.cc`` of tensorflow/tensorflow, its float32 result rounded to the
    nearest level, half to even.

    Args:
        spec: Sizes, fit and kernel.

    Returns:
        From an upright RGB picture of any size to uint8 ``(spec.height, spec.width, 3)``.
    """

    def by_pillow(picture: Image.Image) -> NDArray[np.uint8]:
        height, width = spec.resized(picture.height, picture.width)
        top, left = spec.crop_offset(height, width)
        whole = picture.resize((width, height), _FILTERS[spec.kernel])
        return np.asarray(whole.crop((left, top, left + spec.width, top + spec.height)))

    def by_rows(picture: Image.Image) -> NDArray[np.uint8]:
        taps, row = _BY_ROWS[spec.kernel]
        height, width = spec.resized(picture.height, picture.width)
        top, left = spec.crop_offset(height, width)
        columns = taps(picture.width, width, range(left, left + spec.width), False)
        rows = taps(picture.height, height, range(top, top + spec.height), True)
        pixels = np.asarray(picture)
        return np.stack([row(pixels, columns, y, rows) for y in range(spec.height)])

    return by_pillow if spec.kernel in _FILTERS else by_rows
