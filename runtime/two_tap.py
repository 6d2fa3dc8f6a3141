"""Bilinear resizes of two taps an axis, without antialiasing, each to the last bit as one library computes it.

Where an image shrinks, both read two neighbours and skip what lies between, so they need no more of a large
photograph than twice the output's rows and columns. Pillow's bilinear kernel, which widens with the scale, is in
``vsa_rt.runtime.resample``.

``opencv-bilinear`` is ``cv2.resize`` with ``INTER_LINEAR`` on uint8, which MXNet's ``imresize`` calls too:
half-pixel centres, weights of 11 bits, two truncations on the way. No byte differed from opencv-python-headless
3.4.18.65, 4.5.5.64, 4.10.0.84, 4.14.0.94 and 5.0.0.93 on x86-64 in 4,566 resizes with each, of edges from 1 to
70,000 pixels. That includes a shrink by exactly 2 on both axes, where OpenCV turns to ``INTER_AREA``: the mean of
four pixels, halves rounded up, is what the formula gives as well. OpenCV's own replacements for other processors
(Carotene, KleidiCV) were not compared.

``tf-bilinear`` is TensorFlow's ``ResizeBilinear`` with ``align_corners`` and ``half_pixel_centers`` both false,
the only form that graphs of 2015 had: output pixel ``i`` lies at ``i * in / out``, the corner of what it covers
and not its centre. Arithmetic is float32 in the order of TensorFlow's CPU kernel. That kernel returns fractions and
the published networks kept them; a graph's inputs are uint8 here, so the result is rounded to the nearest level,
half to even, which moves it by at most half a level of 255.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vsa_rt.contracts import ResizeSpec

# Output pixels of one step: enough to spread numpy's cost per call over, few enough for a core's own cache.
_STEP_PIXELS = 1 << 14


class _Taps(NamedTuple):
    """What each output index of one axis reads.

    Attributes:
        first: Source indices ``(n,)``.
        second: Source indices ``(n,)``, equal to ``first`` or one more.
        weights: ``(n,)`` each: of both taps in 1/2048 as int32 (OpenCV), or of the second as float32 (TensorFlow).
    """

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    weights: tuple[NDArray[Any], ...]


_Lerp = Callable[[NDArray[Any], NDArray[Any], tuple[NDArray[Any], ...]], NDArray[Any]]


class _Kernel(NamedTuple):
    """One library's bilinear resize.

    Attributes:
        taps: Input length, output length, offset and number of the wanted outputs, and whether the axis is the
            vertical one, to what they read.
        across: Left and right pixels, as bytes, to lines.
        down: Upper and lower lines to what rounds to pixels by truncation.
    """

    taps: Callable[[int, int, int, int, bool], _Taps]
    across: _Lerp
    down: _Lerp


def _opencv_taps(in_size: int, out_size: int, offset: int, count: int, vertical: bool) -> _Taps:
    # Twice the reciprocal: OpenCV derives the scale from the one that callers may pass instead of a size.
    scale = 1.0 / (out_size / in_size)
    at = ((np.arange(offset, offset + count) + 0.5) * scale - 0.5).astype(np.float32)
    whole = np.floor(at)
    fraction = at - whole
    first = whole.astype(np.intp)
    if not vertical:
        # At an edge both taps are the same pixel. OpenCV drops the fraction there for columns alone: for rows the
        # truncations of two parts stay and may cost one level.
        fraction[(first < 0) | (first >= in_size - 1)] = 0
    bits = np.float32(2048)
    weights = tuple(np.rint(part * bits).astype(np.int32) for part in (1 - fraction, fraction))
    return _Taps(np.clip(first, 0, in_size - 1), np.clip(first + 1, 0, in_size - 1), weights)


def _opencv_across(
    left: NDArray[Any], right: NDArray[Any], weights: tuple[NDArray[Any], ...]
) -> NDArray[Any]:
    lines: NDArray[np.int32] = left * weights[0]
    lines += right * weights[1]
    lines >>= 4
    return lines


def _opencv_down(upper: NDArray[Any], lower: NDArray[Any], weights: tuple[NDArray[Any], ...]) -> NDArray[Any]:
    upper *= weights[0]
    upper >>= 16
    lower *= weights[1]
    lower >>= 16
    upper += lower
    upper += 2
    upper >>= 2
    return upper


def _tf_taps(in_size: int, out_size: int, offset: int, count: int, vertical: bool) -> _Taps:
    scale = np.float32(in_size) / np.float32(out_size)
    at = np.arange(offset, offset + count).astype(np.float32) * scale
    whole = np.floor(at)
    # float32 may round the last position of a very long axis up to its length.
    first = np.minimum(whole.astype(np.intp), in_size - 1)
    return _Taps(first, np.minimum(first + 1, in_size - 1), (at - whole,))


def _tf_across(left: NDArray[Any], right: NDArray[Any], weights: tuple[NDArray[Any], ...]) -> NDArray[Any]:
    start = left.astype(np.float32)
    lines = right - start
    lines *= weights[0]
    lines += start
    return lines


def _tf_down(upper: NDArray[Any], lower: NDArray[Any], weights: tuple[NDArray[Any], ...]) -> NDArray[Any]:
    lower -= upper
    lower *= weights[0]
    lower += upper
    # Never outside 0 to 255: rounding is monotone, and each step stays between its two ends.
    np.rint(lower, out=lower)
    return lower


_KERNELS = {
    "opencv-bilinear": _Kernel(_opencv_taps, _opencv_across, _opencv_down),
    "tf-bilinear": _Kernel(_tf_taps, _tf_across, _tf_down),
}
#: The kernels of ``ResizeSpec`` that are computed here.
TWO_TAP = frozenset(_KERNELS)


def resize_two_tap(image: NDArray[np.uint8], spec: ResizeSpec, out: NDArray[np.uint8]) -> None:
    """Write an image, resized and cropped, into a target.

    Args:
        image: RGB pixels ``(H, W, 3)``, uint8; rows and pixels may be strided.
        spec: Its kernel is one of ``TWO_TAP``.
        out: uint8 ``(spec.height, spec.width, 3)``; it must not share memory with the image.

    Raises:
        KeyError: The kernel is another one.
    """
    kernel = _KERNELS[spec.kernel]
    height, width = image.shape[:2]
    to_height, to_width = spec.resized(height, width)
    top, left = spec.crop_offset(to_height, to_width)
    rows = kernel.taps(height, to_height, top, spec.height, True)
    columns = kernel.taps(width, to_width, left, spec.width, False)
    # One weight per byte: a short last axis would keep numpy from vector code.
    byte_weights = tuple(np.repeat(weight, 3) for weight in columns.weights)
    # Whole pixels as items are gathered at one speed, dense or four bytes apart.
    dense = image if image.strides[2] == 1 else np.ascontiguousarray(image)
    pixels = dense.view("V3")[..., 0]
    step = max(1, _STEP_PIXELS // spec.width)
    for start in range(0, spec.height, step):
        part = slice(start, start + step)
        # Where an image grows, neighbouring outputs share rows.
        used, which = np.unique(np.concatenate((rows.first[part], rows.second[part])), return_inverse=True)
        lines = kernel.across(
            pixels[used[:, None], columns.first].view(np.uint8),
            pixels[used[:, None], columns.second].view(np.uint8),
            byte_weights,
        )
        upper, lower = np.split(which, 2)
        done = kernel.down(lines[upper], lines[lower], tuple(w[part, None] for w in rows.weights))
        out[part] = done.reshape(-1, spec.width, 3)
