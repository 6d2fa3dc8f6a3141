"""An opened Pillow image to upright RGB pixels, without a copy where Pillow lends its memory."""

from __future__ import annotations

import ctypes
import struct
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vsa_rt.contracts import MAX_PIXELS

if TYPE_CHECKING:
    from collections.abc import Callable

# Everything that Pillow's readers are known to raise on hostile or broken files. Warnings are there for callers
# who turn them into errors.
DECODING_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)

_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Refused(Exception):
    """The reason why an item cannot be decoded."""


def check_size(width: int, height: int) -> None:
    """Refuse an image of no pixels, or of more than Pillow's own limit, before memory is taken for it.

    Raises:
        Refused: With the size.
    """
    if width < 1 or height < 1:
        raise Refused(f"an image without pixels: {width} x {height}")
    if width * height > MAX_PIXELS:
        raise Refused(f"{width} x {height} pixels are more than the {MAX_PIXELS:,} allowed")


def orientation(image: Image.Image) -> int:
    """How to turn the image, as EXIF (or XMP) has it; 1 where nothing legible says anything."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except DECODING_ERRORS:
        # Broken metadata; the pixels can be sound.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def pixels_from_pillow(image: Image.Image, *, own: bool) -> NDArray[np.uint8]:
    """Load, convert and turn an image; one that is not our own stays as it is."""
    check_size(*image.size)
    # Some formats keep their EXIF behind the pixels, and TIFF turns itself while loading: first load, then look.
    image.load()
    turn = _TRANSPOSE.get(orientation(image))
    check_size(*image.size)
    image = _rgb(image, own=own)
    if turn is not None:
        image = image.transpose(turn)
    return _pixels(image)


def _rgb(image: Image.Image, *, own: bool) -> Image.Image:
    mode = image.mode
    if mode == "RGB":
        return image
    if mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if mode == "I":
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if mode == "F":
        values = np.nan_to_num(np.asarray(image), nan=0.0, posinf=255.0, neginf=0.0)
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info:
        # convert() would look for a way to keep the transparent colour, warn, and at times fail.
        if not own:
            image = image.copy()
        del image.info["transparency"]
    try:
        if mode == "La":
            image = image.convert("LA")
        return image.convert("RGB")
    except (ValueError, KeyError):
        raise Refused(f"colour mode {mode} cannot be converted to RGB") from None


class _ArrowArray(ctypes.Structure):
    """The Arrow C data interface's ``struct ArrowArray``."""


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    ("dictionary", ctypes.c_void_p),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]


class _Borrowed:
    """Pillow's own pixels as numpy sees them; keeps the capsule, and thereby the pixels, alive."""

    def __init__(self, capsule: object, address: int, height: int, width: int) -> None:
        self._capsule = capsule
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "data": (address, True),
            "shape": (height, width, 3),
            "strides": (width * 4, 4, 1),
        }


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels of an RGB image: Pillow's own memory (four bytes a pixel) where it lends it, else a copy."""
    borrowed = _borrow(image)
    return np.asarray(image) if borrowed is None else np.asarray(borrowed)


def _borrow(image: Image.Image) -> _Borrowed | None:
    # A quarter of a JPEG's decoding time would go into the copy. Pillow refuses the loan for images that it
    # keeps in several blocks.
    get_pointer = _capsule_pointer()
    if get_pointer is None or _rows_are_padded():
        return None
    try:
        _schema, capsule = image.__arrow_c_array__()
        array = _ArrowArray.from_address(get_pointer(capsule, b"arrow_array"))
        if array.n_children != 1 or array.offset or array.length != image.width * image.height:
            return None
        values = array.children[0].contents
        if values.n_buffers != 2 or values.offset or values.length != 4 * array.length:
            return None
        address = values.buffers[1]
        if not address:
            return None
    except (ValueError, TypeError, AttributeError):
        return None
    return _Borrowed(capsule, address, image.height, image.width)


def _rows_are_padded() -> bool:
    """Whether PILLOW_ALIGNMENT, or a call to the same effect, pads rows: the loan does not describe that."""
    return bool(getattr(Image, "core").get_alignment() != 1)  # noqa: B009  # Pillow's types leave `core` out


@lru_cache(maxsize=1)
def _capsule_pointer() -> Callable[[object, bytes], int] | None:
    try:
        prototype = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
        return prototype(("PyCapsule_GetPointer", ctypes.pythonapi))
    except AttributeError:  # not CPython
        return None
