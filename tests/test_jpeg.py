"""JPEG files by both decoders: the same bytes, the same refusals."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import Pixels, encoded, expected, photograph, reason
from PIL import Image

from vsa_rt.errors import ItemError
from vsa_rt.runtime import decode as decoding
from vsa_rt.runtime import jpeg
from vsa_rt.runtime.decode import decode

# JPEG files, by both decoders


def both(data: bytes) -> tuple[Pixels | str, Pixels | str]:
    """What each decoder makes of a file: pixels or the reason."""
    results: list[Pixels | str] = []
    for decoder in ("auto", "pillow"):
        try:
            results.append(decode(data, item="x", decoder=decoder))
        except ItemError as error:
            results.append(error.reason)
    return results[0], results[1]


def assert_alike(data: bytes) -> None:
    first, second = both(data)
    if isinstance(first, str) or isinstance(second, str):
        assert first == second
    else:
        np.testing.assert_array_equal(first, second)


@pytest.fixture
def opencv() -> None:
    pytest.importorskip("cv2", reason="the extra opencv is not installed")


@pytest.mark.usefixtures("opencv")
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
def test_opencv_gives_pillows_pixels(
    subsampling: str, progressive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[bool] = []
    original = jpeg.pixels_from_jpeg

    def spy(*arguments: Any) -> Pixels | None:
        result = original(*arguments)
        used.append(result is not None)
        return result

    monkeypatch.setattr(decoding, "pixels_from_jpeg", spy)
    assert jpeg.jpeg_decoder() == "opencv"
    for height, width in ((1, 1), (5, 7), (16, 16), (31, 33), (3, 255), (255, 3), (241, 319)):
        for options in ({}, {"restart_marker_rows": 1}, {"optimize": True}):
            for quality in (20, 95):
                data = encoded(
                    photograph(height, width), "JPEG", subsampling=subsampling, progressive=progressive,
                    quality=quality, **options,
                )  # fmt: skip
                np.testing.assert_array_equal(decode(data, item="x"), expected(data))
    assert all(used) is not progressive
    assert any(used) is not progressive


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9", b"\0\xff\xd9", b"\xff\xd9trailing"])
def test_truncated_photographs(kept: float, end: bytes) -> None:
    data = encoded(photograph(120, 160), "JPEG", quality=90)
    cut = data[: int(len(data) * kept)] + end
    assert_alike(cut)
    if not end:
        assert "JPEG file: image file is truncated" in reason(cut)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), progressive=st.booleans())
def test_damaged_photographs_are_judged_alike(data: st.DataObject, progressive: bool) -> None:
    photo = bytearray(encoded(photograph(40, 56), "JPEG", progressive=progressive))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(2, max(2, len(photo) - 3)))
        damage = data.draw(st.sampled_from(("set", "cut", "insert")))
        some = data.draw(st.binary(min_size=1, max_size=8))
        if damage == "set":
            photo[place : place + 1] = some[:1]
        elif damage == "cut":
            del photo[place : place + 50]
        else:
            photo[place:place] = some
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_alike(bytes(photo))


def test_jpegs_that_opencv_is_not_asked_for() -> None:
    image = photograph(24, 32)
    for data in (
        encoded(image.convert("L"), "JPEG"),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(image, "JPEG", keep_rgb=True),
        encoded(image, "JPEG") + b"\0",
    ):
        np.testing.assert_array_equal(decode(data, item="x"), expected(data))


def test_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "_opencv", lambda: None)
    assert jpeg.jpeg_decoder() == "pillow"
    data = encoded(photograph(24, 32), "JPEG")
    np.testing.assert_array_equal(decode(data, item="x"), expected(data))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_photograph_may_be_decoded_at_a_fraction(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(400, 640), "JPEG", exif=exif)
    whole = decode(data, item="x")
    height, width = whole.shape[:2]
    assert decode(data, item="x", at_least=(height // 4, width // 4)).shape == (height // 4, width // 4, 3)
    assert decode(data, item="x", at_least=(height // 3, width // 4)).shape == (height // 2, width // 2, 3)
    np.testing.assert_array_equal(decode(data, item="x", at_least=(height // 2 + 1, 1)), whole)
    lossless = encoded(photograph(400, 640), "PNG")
    assert decode(lossless, item="x", at_least=(10, 10)).shape == (400, 640, 3)
