"""Ordinary JPEG files by OpenCV, where it is installed and certain to give Pillow's bytes."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import JpegImagePlugin

from vsa_rt.runtime.pixels import orientation


def jpeg_decoder() -> Literal["opencv", "pillow"]:
    """Say which library decodes ordinary JPEG files here."""
    return "pillow" if _opencv() is None else "opencv"


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


def pixels_from_jpeg(image: JpegImagePlugin.JpegImageFile, data: bytes) -> NDArray[np.uint8] | None:
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
        return _turn(cv2, pixels, orientation(image))
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
