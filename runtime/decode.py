"""Turns whatever a caller calls an image into upright RGB pixels, or into one clear error.

Rules: EXIF orientation is applied, alpha is dropped (not blended), greyscale and palettes are expanded, CMYK and
YCbCr are converted as Pillow does it, of an animation the first frame counts. Sixteen bits become eight by
dropping the lower ones, as Pillow does with 16-bit colour; 32-bit integers count as 16-bit values, floats as
values from 0 to 255, both clipped.

Baseline JPEG files are decoded by OpenCV where it is installed: the same bytes as Pillow's, a sixth sooner. Pillow
reads every header, decides every doubtful case and decodes everything else.
"""

from __future__ import annotations

import ctypes
import io
import os
import re
import stat
import struct
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from vsa_rt.contracts import MAX_PIXELS
from vsa_rt.errors import ItemError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    ImageSource: TypeAlias = (
        str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8]
    )

#: Larger files are refused unread: 178 million pixels of 64 bits fit below it.
MAX_FILE_BYTES = 2**31

_FORMATS = "JPEG, PNG, GIF, WebP, AVIF, BMP, TIFF or PPM"

# Everything that Pillow's readers are known to raise on hostile or broken files. Warnings are there for callers
# who turn them into errors.
_DECODING_ERRORS: tuple[type[Exception], ...] = (
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


class _Refused(Exception):
    """The reason why an item cannot be decoded."""


def jpeg_decoder() -> Literal["opencv", "pillow"]:
    """Say which library decodes ordinary JPEG files here."""
    return "pillow" if _opencv() is None else "opencv"


def decode(
    source: ImageSource,
    *,
    item: str,
    at_least: tuple[int, int] | None = None,
    decoder: Literal["auto", "pillow"] = "auto",
) -> NDArray[np.uint8]:
    """Decode one image.

    Only regular files are opened, so neither a FIFO nor a device can block or be disturbed. The result may be a
    view of the caller's array or image, or read-only: treat it as input.

    Args:
        source: A path, an encoded image, a PIL image (its current frame), or RGB pixels ``(H, W, 3)``.
        item: What to call the source in an error.
        at_least: Height and width that suffice: a JPEG file that is two, four or eight times larger is decoded
            at that fraction, in the frequency domain. Faster, but not the pixels of the whole image resized.
        decoder: ``pillow`` keeps OpenCV out.

    Returns:
        Upright RGB pixels ``(H, W, 3)``; the last axis is dense, the others may be strided.

    Raises:
        ItemError: The source is not an image that can be decoded; the reason says what it is.
    """
    try:
        if isinstance(source, np.ndarray):
            return _from_array(source)
        if isinstance(source, Image.Image):
            return _from_pillow(source, own=False)
        if isinstance(source, (str, os.PathLike)):
            data = _read(os.fspath(source))
        elif isinstance(source, (bytes, bytearray, memoryview)):
            data = bytes(source)
        else:
            raise _Refused(
                f"expected a path, encoded bytes, a PIL image or uint8 pixels (H, W, 3), got {type(source).__name__}"
            )
        return _from_bytes(data, at_least, decoder)
    except _Refused as error:
        raise ItemError(item, str(error)) from None
    except MemoryError:
        raise ItemError(item, "not enough memory to decode it") from None
    except _DECODING_ERRORS as error:
        raise ItemError(item, f"not a readable image: {_text(error)}") from error


def _text(error: BaseException) -> str:
    """An exception's text as part of one sentence."""
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise _Refused(f"an image without pixels: {width} x {height}")
    if width * height > MAX_PIXELS:
        raise _Refused(f"{width} x {height} pixels are more than the {MAX_PIXELS:,} allowed")


def _from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise _Refused(f"expected a uint8 array (H, W, 3), got {array.dtype} {array.shape}")
    _check_size(array.shape[1], array.shape[0])
    return np.asarray(array)


# Files


_OPEN_FLAGS = os.O_RDONLY
for _name in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY"):  # not every system has each
    _OPEN_FLAGS |= getattr(os, _name, 0)


def _read(path: str | bytes) -> bytes:
    """Read a regular file whole, unless its first bytes already tell that it is none of ours."""
    try:
        # Opening a device can have effects of its own, so look first; look again at what was opened.
        _check_regular(os.stat(path))
        with open(os.open(path, _OPEN_FLAGS), "rb", buffering=0) as file:
            info = os.fstat(file.fileno())
            _check_regular(info)
            if info.st_size > MAX_FILE_BYTES:
                raise _Refused(f"a file of {info.st_size:,} bytes, more than the {MAX_FILE_BYTES:,} allowed")
            head = file.read(512) or b""
            if head:
                _check_kind(head)
            return head + (file.read() or b"")
    except FileNotFoundError:
        raise _Refused("no such file") from None
    except PermissionError:
        raise _Refused("no permission to read the file") from None
    except OSError as error:
        raise _Refused(f"the file cannot be read: {error.strerror or _text(error)}") from None
    except ValueError as error:  # a NUL character, or one that the file system cannot encode
        raise _Refused(f"not a path: {_text(error)}") from None


def _check_regular(info: os.stat_result) -> None:
    if stat.S_ISREG(info.st_mode):
        return
    if stat.S_ISDIR(info.st_mode):
        raise _Refused("a folder, expected an image file")
    raise _Refused(f"{_SPECIAL.get(stat.S_IFMT(info.st_mode), 'a special file')}, expected an image file")


_SPECIAL = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_STILL_BRANDS = {b"avif", b"avis", b"mif1", b"msf1", b"miaf"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_VIDEO_BOXES = {b"ftyp", b"moov", b"mdat", b"wide"}
_VIDEO_HEADS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"FLV\x01",
    b"OggS",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
)


def _check_kind(head: bytes) -> None:
    """Refuse, by name, what people do pass but Pillow would only call unknown.

    Raises:
        _Refused: The bytes begin a video, a HEIF picture, or a page of markup.
    """
    box, brand = head[4:8], head[8:12]
    if box == b"ftyp" and brand in _HEIF_BRANDS:
        raise _Refused("a HEIF picture: not supported; convert it to JPEG or PNG")
    transport_stream = head[:1] == head[188:189] == head[376:377] == b"\x47"
    if (
        transport_stream
        or head.startswith(_VIDEO_HEADS)
        or (box in _VIDEO_BOXES and brand not in _STILL_BRANDS)
        or (head[:4] == b"RIFF" and brand == b"AVI ")
    ):
        raise _Refused("a video: not supported yet; pass its frames")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise _Refused(f"an HTML page, expected an image ({_FORMATS})")
    if start.startswith((b"<svg", b"<?xml")):
        raise _Refused(f"a drawing or document in XML, expected an image ({_FORMATS})")


# Encoded images


def _from_bytes(data: bytes, at_least: tuple[int, int] | None, decoder: str) -> NDArray[np.uint8]:
    if not data:
        raise _Refused("empty (0 bytes), expected an image")
    name, reader = _reader(data)
    try:
        # The readers are called directly. Image.open would try more formats, among them EPS, which runs
        # Ghostscript, and would warn about large images through the process-wide state of `warnings`.
        image = reader(io.BytesIO(data))
        _check_size(*image.size)
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            reduced = at_least is not None and _draft(image, at_least)
            if not reduced and decoder == "auto":
                pixels = _with_opencv(image, data)
                if pixels is not None:
                    return pixels
        return _from_pillow(image, own=True)
    except _Refused:
        raise
    except MemoryError:
        raise
    except _DECODING_ERRORS as error:
        raise _Refused(f"a damaged, truncated or unusual {name} file: {_text(error)}") from error


def _reader(data: bytes) -> tuple[str, Callable[[io.BytesIO], ImageFile.ImageFile]]:
    """Choose the reader by the first bytes, from a closed list of formats that are decoded in this process."""
    if data.startswith(b"\xff\xd8\xff"):
        # Also of several pictures in one file (MPO): the first is the photograph.
        return "JPEG", JpegImagePlugin.JpegImageFile
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG", PngImagePlugin.PngImageFile
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF", GifImagePlugin.GifImageFile
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        if not WebPImagePlugin.SUPPORTED:
            raise _Refused("a WebP image, which this build of Pillow cannot read")
        return "WebP", WebPImagePlugin.WebPImageFile
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF", TiffImagePlugin.TiffImageFile
    if data.startswith(b"BM"):
        return "BMP", BmpImagePlugin.BmpImageFile
    if data[:1] == b"P" and data[1:2] in b"123456fy" and data[2:3].isspace():
        return "PPM", PpmImagePlugin.PpmImageFile
    if data[4:8] == b"ftyp" and data[8:12] in _STILL_BRANDS:
        if not AvifImagePlugin.SUPPORTED:
            raise _Refused("an AVIF image, which this build of Pillow cannot read")
        return "AVIF", AvifImagePlugin.AvifImageFile
    _check_kind(data[:512])
    raise _Refused(f"not an image in a format that is read here ({_FORMATS})")


def _draft(image: JpegImagePlugin.JpegImageFile, at_least: tuple[int, int]) -> bool:
    """Let a JPEG reader decode at a fraction, if the rest is large enough."""
    height, width = at_least
    if _orientation(image) >= 5:
        height, width = width, height
    before = image.size
    image.draft(None, (width, height))
    return image.size != before


def _orientation(image: Image.Image) -> int:
    """How to turn the image, as EXIF (or XMP) has it; 1 where nothing legible says anything."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DECODING_ERRORS:
        # Broken metadata; the pixels can be sound.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


# Pillow


def _from_pillow(image: Image.Image, *, own: bool) -> NDArray[np.uint8]:
    """Load, convert and turn an image; one that is not our own stays as it is."""
    _check_size(*image.size)
    # Some formats keep their EXIF behind the pixels, and TIFF turns itself while loading: first load, then look.
    image.load()
    turn = _TRANSPOSE.get(_orientation(image))
    _check_size(*image.size)
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
        raise _Refused(f"colour mode {mode} cannot be converted to RGB") from None


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


# OpenCV


@lru_cache(maxsize=1)
def _opencv() -> Any:
    """The module, or ``None``; imported late because it takes a while and is an extra."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2


# In a sound baseline file nothing but stuffed and restart markers lies between its scan's header and its end.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")


def _with_opencv(image: JpegImagePlugin.JpegImageFile, data: bytes) -> NDArray[np.uint8] | None:
    """Decode a JPEG file whose header Pillow has read; ``None`` leaves it to Pillow.

    OpenCV says nothing about a photograph that is truncated or damaged, and fills it with grey. So it gets
    baseline files only, and only such whose markers show that the decoder will arrive at the end: there both
    libraries accept the same files and give the same bytes. (Damage within a progressive file does not show
    so easily.)
    """
    ordinary = (
        image.mode == "RGB"
        and image.bits == 8
        and image.layers == 3
        and not image.info.get("progressive")
        and image.info.get("adobe_transform", 1) == 1
    )
    cv2 = _opencv() if ordinary else None
    if cv2 is None or image.fp is None:
        return None
    # Pillow reads headers up to the first scan.
    marker = _MARKER.search(data, image.fp.tell())
    if marker is None or marker.start() != len(data) - 2 or marker[0] != b"\xff\xd9":
        return None
    code = np.frombuffer(data, np.uint8)
    try:
        if hasattr(cv2, "IMREAD_COLOR_RGB"):
            pixels = cv2.imdecode(code, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        else:
            pixels = cv2.imdecode(code, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
            pixels = None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        if pixels is None or pixels.shape != (image.height, image.width, 3):
            return None
        return _turn(cv2, pixels, _orientation(image))
    except cv2.error:
        return None


def _turn(cv2: Any, pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation == 1:
        return pixels
    turned: NDArray[np.uint8]
    if orientation in (2, 3, 4):
        turned = cv2.flip(pixels, {2: 1, 3: -1, 4: 0}[orientation])
    else:
        turned = cv2.transpose(pixels)
        if orientation != 5:
            turned = cv2.flip(turned, {6: 1, 7: -1, 8: 0}[orientation])
    return turned
