"""Resizes an image to what graph inputs want, to the last bit as the library does that the spec's kernel names.

Two kernels are Pillow's; the others lie in ``vsa_rt.runtime.two_tap``. The native code computes Pillow's own
fixed-point arithmetic in vector code, for the crop's pixels only: about fifteen times faster than Pillow on a
photograph of 600 x 450 and the three quickstart inputs. Without it (no compiler at installation), Pillow does the
same work with the same result. Coefficients of 16 bits would save a third of its time, 0.15 core-ms of a
photograph's 1.5, at the price of other bytes: not worth a second kernel, so ``resample = "fast"`` changes how a
photograph is decoded, not how it is resized.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vsa_rt.contracts import MAX_PIXELS, Resample, ResizeSpec
from vsa_rt.runtime.two_tap import TWO_TAP, resize_two_tap

try:
    from vsa_rt.runtime import _resample as _native
except ImportError:  # built without a compiler
    _native = None  # type: ignore[assignment]

_KERNELS: tuple[Literal["bicubic"], Literal["bilinear"]] = ("bicubic", "bilinear")
_CUBIC = {"bicubic": True, "bilinear": False}
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

# The kernel lays a block of rows out as 32 bytes per column; longer edges are rare enough to be left to Pillow.
_NATIVE_EDGE = 1 << 20
# Plans of longer edges are made anew: a few of them would outweigh all others in the cache.
_CACHED_EDGE = 1 << 14
_JOBS = 64

_VerticalFirst = Callable[[int, int, int, int], bool]


class ResizeRefused(ValueError):
    """An image has such a shape that its resize would not fit into memory; the text is an item's reason."""


def implementation() -> Literal["native", "pillow"]:
    """Say which code resizes here.

    Returns:
        ``native`` if the extension was built and its results equal the installed Pillow's on a few probes;
        else ``pillow``. Results are the same.
    """
    return "pillow" if _pass_order() is None else "native"


def instruction_set() -> str:
    """Name the instruction set that the native kernel uses here, such as ``avx2``; empty without it."""
    return "" if _native is None or _pass_order() is None else _native.kernels()[0]


def effective(mode: Resample, kernels: Sequence[str]) -> Resample:
    """How images are really resized: ``fast`` changes nothing where some input's kernel is not antialiased."""
    return Resample.EXACT if TWO_TAP.intersection(kernels) else mode


def resize(image: NDArray[np.uint8], targets: Sequence[tuple[ResizeSpec, NDArray[np.uint8]]]) -> None:
    """Write an image, resized and cropped, into each target.

    Args:
        image: RGB pixels ``(H, W, 3)``; rows and pixels may be strided. It must not share memory with a target.
        targets: Pairs of a spec and the C-contiguous array ``(spec.height, spec.width, 3)`` to fill.

    Raises:
        ResizeRefused: A whole resized image would exceed ``MAX_PIXELS``; no target was written.
        ValueError: The image or a target has another shape, dtype or layout than said above.
        MemoryError: The resize does not fit into memory.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"expected uint8 pixels (H, W, 3), got {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    work = []
    for spec, out in targets:
        if out.shape != (spec.height, spec.width, 3) or out.dtype != np.uint8:
            raise ValueError(
                f"expected a uint8 target ({spec.height}, {spec.width}, 3), got {out.dtype} {out.shape}"
            )
        if not (out.flags.c_contiguous and out.flags.writeable):
            raise ValueError("expected a C-contiguous, writeable target")
        whole = spec.resized(height, width)
        if whole[0] * whole[1] > MAX_PIXELS:
            raise ResizeRefused(
                f"{width} x {height} pixels are too elongated: resized they would be {whole[1]} x {whole[0]},"
                f" more than {MAX_PIXELS:,} pixels"
            )
        if whole == (height, width):
            top, left = spec.crop_offset(height, width)
            out[:] = image[top : top + spec.height, left : left + spec.width]
        else:
            work.append((spec, out))

    for spec, out in work:
        if spec.kernel in TWO_TAP:
            resize_two_tap(image, spec, out)
    work = [(spec, out) for spec, out in work if spec.kernel not in TWO_TAP]
    if not work:
        return
    order = _pass_order()
    if order is None or max(height, width) > _NATIVE_EDGE:
        resize_with_pillow(image, work)
    else:
        _resize_native(image, work, order)


def resize_with_pillow(
    image: NDArray[np.uint8], targets: Sequence[tuple[ResizeSpec, NDArray[np.uint8]]]
) -> None:
    """Do what ``resize`` does with Pillow alone: the fallback, and what the kernel is measured against.

    Args:
        image: RGB pixels ``(H, W, 3)``.
        targets: Pairs of a spec, with a kernel of Pillow's, and the array to fill.
    """
    if not targets:
        return
    whole = Image.fromarray(np.ascontiguousarray(image))
    for spec, out in targets:
        height, width = spec.resized(whole.height, whole.width)
        top, left = spec.crop_offset(height, width)
        resized = whole.resize((width, height), _FILTERS[spec.kernel])
        out[:] = np.asarray(resized.crop((left, top, left + spec.width, top + spec.height)))


def _resize_native(
    image: NDArray[np.uint8],
    targets: Sequence[tuple[ResizeSpec, NDArray[np.uint8]]],
    vertical_first: _VerticalFirst,
    kernel: str = "",
) -> None:
    height, width = image.shape[:2]
    # A single column has no pixel stride worth the name: numpy leaves any number there.
    step = image.strides[1] if width > 1 else 3
    if image.strides[2] != 1 or step not in (3, 4):
        image = np.array(image, order="C")
        step = 3
    jobs = []
    for spec, out in targets:
        whole = spec.resized(height, width)
        top, left = spec.crop_offset(*whole)
        cubic = _CUBIC[spec.kernel]
        jobs.append(
            (
                _plan(width, whole[1], left, spec.width, cubic),
                _plan(height, whole[0], top, spec.height, cubic),
                out.ctypes.data,
                vertical_first(height, width, *whole),
            )
        )
    for start in range(0, len(jobs), _JOBS):
        part = tuple(jobs[start : start + _JOBS])
        _native.resize(image.ctypes.data, image.strides[0], step, height, width, part, kernel)


def _plan(in_size: int, out_size: int, offset: int, count: int, cubic: bool) -> bytes:
    make = _cached_plan if max(in_size, count) <= _CACHED_EDGE else _cached_plan.__wrapped__
    return make(in_size, out_size, offset, count, cubic)


@lru_cache(maxsize=128)
def _cached_plan(in_size: int, out_size: int, offset: int, count: int, cubic: bool) -> bytes:
    return _native.plan(in_size, out_size, offset, count, cubic)


def _horizontal_always(height: int, width: int, to_height: int, to_width: int) -> bool:
    """The order of Pillow up to 12."""
    return False


def _whichever_saves(height: int, width: int, to_height: int, to_width: int) -> bool:
    """The order of Pillow 13: vertically first where that takes more pixels away."""
    return height > to_height and height - to_height > 2 * (width - to_width)


@lru_cache(maxsize=1)
def _pass_order() -> _VerticalFirst | None:
    """Find the order of passes with which the kernel gives the installed Pillow's bytes.

    The second pass works on rounded results of the first, so the order shows in the last bit. Releases of Pillow
    differ in it; a future one may differ in more, and then no order fits.

    Returns:
        Whether a resize of ``(height, width)`` to ``(to_height, to_width)`` begins vertically; ``None`` if the
        kernel is missing or differs from Pillow.
    """
    if _native is None:
        return None
    noise = np.random.default_rng(0)
    # Both sides of the threshold at which Pillow 13 turns round, and every mix of larger and smaller.
    sizes = (
        (12, 8, 4, 4), (13, 8, 4, 4), (9, 4, 4, 9), (4, 9, 9, 4), (5, 4, 11, 13), (33, 41, 17, 11),
        (40, 24, 16, 12), (41, 24, 16, 12), (40, 31, 39, 31), (31, 40, 31, 39),
    )  # fmt: skip
    probes = []
    for height, width, to_height, to_width in sizes:
        image = noise.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for kernel in _KERNELS:
            spec = ResizeSpec(height=to_height, width=to_width, fit="warp", kernel=kernel)
            want = np.empty((to_height, to_width, 3), np.uint8)
            resize_with_pillow(image, [(spec, want)])
            probes.append((image, spec, want))
    for order in (_whichever_saves, _horizontal_always):
        for image, spec, want in probes:
            got = np.empty_like(want)
            _resize_native(image, [(spec, got)], order)
            if not np.array_equal(got, want):
                break
        else:
            return order
    return None
