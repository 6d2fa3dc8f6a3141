"""Turns whatever a caller calls an image into upright RGB pixels, or into one clear error.

Rules: EXIF orientation is applied, alpha is dropped (not blended), greyscale and palettes are expanded, CMYK and
YCbCr are converted as Pillow does it, of an animation the first frame counts. Sixteen bits become eight by
dropping the lower ones, as Pillow does with 16-bit colour; 32-bit integers count as 16-bit values, floats as
values from 0 to 255, both clipped.

Baseline JPEG files are decoded by OpenCV where it is installed: the same bytes as Pillow's, a sixth sooner. Pillow
reads every header, decides every doubtful case and decodes everything else.
"""

from __future__ import annotations

import io
import os
import stat
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

from vsa_rt.errors import ItemError
from vsa_rt.runtime.jpeg import pixels_from_jpeg
from vsa_rt.runtime.pixels import DECODING_ERRORS, Refused, check_size, orientation, pixels_from_pillow
from vsa_rt.runtime.video_kind import kind_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    ImageSource: TypeAlias = (
        str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8]
    )

#: Larger files are refused unread: 178 million pixels of 64 bits fit below it.
MAX_FILE_BYTES = 2**31

_FORMATS = "JPEG, PNG, GIF, WebP, AVIF, BMP, TIFF or PPM"


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
            return pixels_from_pillow(source, own=False)
        if isinstance(source, (str, os.PathLike)):
            data = _read(os.fspath(source))
        elif isinstance(source, (bytes, bytearray, memoryview)):
            data = bytes(source)
        else:
            raise Refused(
                f"expected a path, encoded bytes, a PIL image or uint8 pixels (H, W, 3), got {type(source).__name__}"
            )
        return _from_bytes(data, at_least, decoder)
    except Refused as error:
        raise ItemError(item, str(error)) from None
    except MemoryError:
        raise ItemError(item, "not enough memory to decode it") from None
    except DECODING_ERRORS as error:
        raise ItemError(item, f"not a readable image: {_text(error)}") from error


def _text(error: BaseException) -> str:
    """An exception's text as part of one sentence."""
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__


def _from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise Refused(f"expected a uint8 array (H, W, 3), got {array.dtype} {array.shape}")
    check_size(array.shape[1], array.shape[0])
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
                raise Refused(f"a file of {info.st_size:,} bytes, more than the {MAX_FILE_BYTES:,} allowed")
            head = file.read(512) or b""
            if head:
                _check_kind(head)
            return head + (file.read() or b"")
    except FileNotFoundError:
        raise Refused("no such file") from None
    except PermissionError:
        raise Refused("no permission to read the file") from None
    except OSError as error:
        raise Refused(f"the file cannot be read: {error.strerror or _text(error)}") from None
    except ValueError as error:  # a NUL character, or one that the file system cannot encode
        raise Refused(f"not a path: {_text(error)}") from None


def _check_regular(info: os.stat_result) -> None:
    if stat.S_ISREG(info.st_mode):
        return
    if stat.S_ISDIR(info.st_mode):
        raise Refused("a folder, expected an image file")
    raise Refused(f"{_SPECIAL.get(stat.S_IFMT(info.st_mode), 'a special file')}, expected an image file")


_SPECIAL = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


_STILL_BRANDS = {b"avif", b"avis", b"mif1", b"msf1", b"miaf"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}


def _check_kind(head: bytes) -> None:
    """Refuse, by name, what people do pass but Pillow would only call unknown.

    Raises:
        Refused: The bytes begin a video, a HEIF picture, or a page of markup.
    """
    box, brand = head[4:8], head[8:12]
    if box == b"ftyp" and brand in _HEIF_BRANDS:
        raise Refused("a HEIF picture: not supported; convert it to JPEG or PNG")
    if kind_of(head) == "video":
        raise Refused("a video: vsa_rt.video gives its frames; pass those")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise Refused(f"an HTML page, expected an image ({_FORMATS})")
    if start.startswith((b"<svg", b"<?xml")):
        raise Refused(f"a drawing or document in XML, expected an image ({_FORMATS})")


def _from_bytes(data: bytes, at_least: tuple[int, int] | None, decoder: str) -> NDArray[np.uint8]:
    if not data:
        raise Refused("empty (0 bytes), expected an image")
    name, reader = _reader(data)
    try:
        # The readers are called directly. Image.open would try more formats, among them EPS, which runs
        # Ghostscript, and would warn about large images through the process-wide state of `warnings`.
        image = reader(io.BytesIO(data))
        check_size(*image.size)
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            reduced = at_least is not None and _draft(image, at_least)
            if not reduced and decoder == "auto":
                pixels = pixels_from_jpeg(image, data)
                if pixels is not None:
                    return pixels
        return pixels_from_pillow(image, own=True)
    except Refused:
        raise
    except MemoryError:
        raise
    except DECODING_ERRORS as error:
        raise Refused(f"a damaged, truncated or unusual {name} file: {_text(error)}") from error


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
            raise Refused("a WebP image, which this build of Pillow cannot read")
        return "WebP", WebPImagePlugin.WebPImageFile
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF", TiffImagePlugin.TiffImageFile
    if data.startswith(b"BM"):
        return "BMP", BmpImagePlugin.BmpImageFile
    if data[:1] == b"P" and data[1:2] in b"123456fy" and data[2:3].isspace():
        return "PPM", PpmImagePlugin.PpmImageFile
    if data[4:8] == b"ftyp" and data[8:12] in _STILL_BRANDS:
        if not AvifImagePlugin.SUPPORTED:
            raise Refused("an AVIF image, which this build of Pillow cannot read")
        return "AVIF", AvifImagePlugin.AvifImageFile
    _check_kind(data[:512])
    raise Refused(f"not an image in a format that is read here ({_FORMATS})")


def _draft(image: JpegImagePlugin.JpegImageFile, at_least: tuple[int, int]) -> bool:
    """Let a JPEG reader decode at a fraction, if the rest is large enough."""
    height, width = at_least
    if orientation(image) >= 5:
        height, width = width, height
    before = image.size
    image.draft(None, (width, height))
    return image.size != before
