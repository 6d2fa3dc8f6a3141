"""Pictures that tests make: noise, photographs, files of every kind, and what decoding them should give."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vsa_rt.errors import ItemError
from vsa_rt.runtime.decode import decode

Pixels = NDArray[np.uint8]


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some grain: unlike noise, what a JPEG coder is made for."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    smooth = np.stack([np.sin(x / 17) + y / 40, np.cos(y / 11) + x / 90, np.sin((x + y) / 23)], -1) * 60 + 128
    grain = np.random.default_rng(seed).normal(0, 8, smooth.shape)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG file from its raw rows, or a forged one if the rows do not fit the header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def reason(source: Any) -> str:
    with pytest.raises(ItemError) as caught:
        decode(source, item="it")
    assert caught.value.item == "it"
    text = caught.value.reason
    assert "\n" not in text
    assert "0x" not in text  # no addresses of Python objects
    return text


def expected(data: bytes) -> Pixels:
    """Upright RGB as Pillow's own functions make it."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
