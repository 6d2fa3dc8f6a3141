from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import Pixels, encoded, expected, noise, photograph, png, reason
from PIL import Image

from vsa_rt.contracts import MAX_PIXELS
from vsa_rt.errors import ItemError
from vsa_rt.runtime import pixels as pillow_pixels
from vsa_rt.runtime.decode import decode

# Sources


def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path) -> None:
    pixels = noise(11, 14)
    data = encoded(Image.fromarray(pixels), "PNG")
    path = tmp_path / "grün & 'blue'.bin"  # the name decides nothing
    path.write_bytes(data)
    sources: list[Any] = [
        path, str(path), data, bytearray(data), memoryview(data), Image.fromarray(pixels),
        Image.open(path), pixels, pixels[::-1][::-1],
    ]  # fmt: skip
    for source in sources:
        got = decode(source, item="x")
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, pixels)
    sources[6].close()


def test_an_array_is_not_copied() -> None:
    pixels = noise(5, 6)
    assert decode(pixels, item="x") is pixels
    assert decode(pixels[::2], item="x").base is pixels


def test_pillows_pixels_are_borrowed_and_stay_alive() -> None:
    pixels = noise(40, 30)
    got = decode(Image.fromarray(pixels).copy(), item="x")
    Image.new("RGB", (30, 40)).copy()  # would take the memory had it been given back
    np.testing.assert_array_equal(got, pixels)
    assert not got.flags.writeable or got.base is None


def test_pixels_that_pillow_does_not_lend_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(40, 30)
    monkeypatch.setattr(pillow_pixels, "_rows_are_padded", lambda: True)
    got = decode(Image.fromarray(pixels), item="x")
    np.testing.assert_array_equal(got, pixels)
    assert got.strides == (90, 3, 1)


def test_an_image_in_several_blocks_is_copied() -> None:
    image = Image.new("RGB", (2100, 2100), (1, 2, 3))  # more than Pillow's block of 16 MiB
    image.putpixel((2099, 2099), (4, 5, 6))
    got = decode(image, item="x")
    assert got[-1, -1].tolist() == [4, 5, 6]
    assert got[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (np.zeros((4, 4, 3), np.float32), "expected a uint8 array (H, W, 3), got float32 (4, 4, 3)"),
        (np.zeros((4, 4), np.uint8), "got uint8 (4, 4)"),
        (np.zeros((4, 4, 4), np.uint8), "got uint8 (4, 4, 4)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "got uint8 (1, 4, 4, 3)"),
        (np.zeros((0, 4, 3), np.uint8), "an image without pixels: 4 x 0"),
        (np.array(None), "got object ()"),
        (
            np.broadcast_to(np.uint8(0), (20000, 20000, 3)),
            "20000 x 20000 pixels are more than the 178,956,970",
        ),
        (Image.new("RGB", (0, 5)), "an image without pixels: 0 x 5"),
        (None, "got NoneType"),
        (7, "got int"),
        ([1, 2], "expected a path, encoded bytes, a PIL image or uint8 pixels (H, W, 3), got list"),
    ],
)
def test_wrong_sources(source: Any, text: str) -> None:
    assert text in reason(source)


def test_a_closed_image() -> None:
    image = Image.open(io.BytesIO(encoded(photograph(8, 8), "JPEG")))
    image.close()
    assert reason(image).startswith("not a readable image")


# Files


def test_what_is_not_a_file(tmp_path: Path) -> None:
    fifo, loop, dangling = tmp_path / "fifo.jpg", tmp_path / "loop.jpg", tmp_path / "dangling.jpg"
    os.mkfifo(fifo)
    loop.symlink_to(loop)
    dangling.symlink_to(tmp_path / "nothing")
    assert reason(tmp_path) == "a folder, expected an image file"
    assert reason(str(tmp_path / "none.jpg")) == "no such file"
    assert reason(dangling) == "no such file"
    assert reason("") == "no such file"
    assert reason(fifo) == "a FIFO, expected an image file"
    assert reason("/dev/null") == "a device, expected an image file"
    assert reason("/dev/zero") == "a device, expected an image file"
    assert reason(loop).startswith("the file cannot be read: Too many levels of symbolic links")
    assert reason(tmp_path / "x" / ("a" * 300)).startswith(("no such file", "the file cannot be read"))
    assert reason("a\0b").startswith("not a path")
    assert reason("\ud800.jpg").startswith(("not a path", "no such file"))
    (tmp_path / "plain").write_bytes(b"x")
    assert reason(tmp_path / "plain" / "inside.jpg").startswith("the file cannot be read: Not a directory")


def test_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        assert reason("s") == "a socket, expected an image file"


def test_a_file_swapped_for_a_fifo_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "file").write_bytes(b"x")
    regular = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda path: regular)
    assert reason(fifo) == "a FIFO, expected an image file"


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(photograph(4, 4), "PNG"))

    def refuse(*_: object) -> int:  # chmod would not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert reason(path) == "no permission to read the file"


def test_empty_and_huge_files(tmp_path: Path) -> None:
    empty, sparse = tmp_path / "empty.jpg", tmp_path / "sparse.bmp"
    empty.write_bytes(b"")
    with sparse.open("wb") as file:
        file.write(b"BM")
        file.truncate(2**32)
    assert reason(empty) == "empty (0 bytes), expected an image"
    assert reason(b"") == "empty (0 bytes), expected an image"
    assert reason(sparse).startswith("a file of 4,294,967,296 bytes, more than")


@pytest.mark.parametrize("from_file", [True, False])
@pytest.mark.parametrize(
    ("head", "text"),
    [
        (b"\0\0\0\x18ftypisom\0\0\2\0", "a video"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0", "a video"),
        (b"\0\0\0\x08wide\0\0\0\0mdat", "a video"),
        (b"\x1a\x45\xdf\xa3\x01\0\0\0", "a video"),
        (b"RIFF\0\0\0\0AVI LIST", "a video"),
        (b"\0\0\x01\xba\x44\0", "a video"),
        (b"\0\0\x01\xb3\x14\0", "a video"),
        (b"FLV\x01\x05", "a video"),
        (b"OggS\0\x02", "a video"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a video"),
        ((b"\x47" + bytes(187)) * 4, "a video"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIF picture"),
        (b"\xef\xbb\xbf\n <!DOCTYPE html><html>", "an HTML page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a drawing or document in XML"),
        (b"<?xml version='1.0'?><svg/>", "a drawing or document in XML"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in a format that is read here"),
        (b"%PDF-1.7", "not an image in a format that is read here"),
        (b"Dear reader,\n", "not an image in a format that is read here (JPEG, PNG"),
        (b"Python is a language\n", "not an image in a format that is read here"),
        (b"\0", "not an image in a format that is read here"),
        (b"\xff\xd8\xff", "a damaged, truncated or unusual JPEG file"),
        (b"\x89PNG\r\n\x1a\n", "a damaged, truncated or unusual PNG file"),
        (b"GIF89a", "a damaged, truncated or unusual GIF file"),
        (b"BM", "a damaged, truncated or unusual BMP file"),
        (b"II*\0", "a damaged, truncated or unusual TIFF file"),
        (b"P6\n", "a damaged, truncated or unusual PPM file"),
        (b"RIFF\x04\0\0\0WEBP", "a damaged, truncated or unusual WebP file"),
    ],
)
def test_what_is_no_image(tmp_path: Path, head: bytes, text: str, from_file: bool) -> None:
    source: Any = head
    if from_file:
        source = tmp_path / "photograph.jpg"
        source.write_bytes(head)
    assert reason(source).startswith(text)


# Pixels


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(33, 50), kind, exif=exif)
    for decoder in ("auto", "pillow"):
        np.testing.assert_array_equal(decode(data, item="x", decoder=decoder), expected(data))
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decode(image, item="x"), expected(data))
        if kind != "TIFF":  # Pillow itself turns a TIFF file while it loads it
            assert image.size == (50, 33)
            assert image.getexif().get(0x0112) == orientation


@pytest.mark.parametrize("value", ["6", (6, 1), 77, -1])
def test_an_illegible_orientation_is_no_orientation(value: Any) -> None:
    image = photograph(6, 9)
    image.getexif()[0x0112] = value
    assert decode(image, item="x").shape == (6, 9, 3)


def test_broken_exif_does_not_lose_the_photograph() -> None:
    data = encoded(photograph(6, 9), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x03")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode(data, item="x").shape == (6, 9, 3)


def test_modes_of_files() -> None:
    colour = photograph(20, 30)
    rgb = np.asarray(colour)
    grey = colour.convert("L")
    alpha = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8))
    rgba = colour.copy()
    rgba.putalpha(alpha)
    la = grey.copy()
    la.putalpha(alpha)
    palette = colour.quantize(32)
    flat = np.asarray(palette.convert("RGB"))
    grey3 = np.repeat(np.asarray(grey)[..., None], 3, 2)
    bits = np.asarray(grey.convert("1").convert("RGB"))
    cases: list[tuple[str, bytes, Pixels]] = [
        ("RGB", encoded(colour, "PNG"), rgb),
        (
            "RGB with a transparent colour",
            encoded(colour, "PNG", transparency=tuple(rgb[0, 0].tolist())),
            rgb,
        ),
        ("alpha dropped, not blended", encoded(rgba, "PNG"), rgb),
        ("alpha, TIFF", encoded(rgba, "TIFF"), rgb),
        ("alpha, WebP", encoded(rgba, "WEBP", lossless=True, exact=True), rgb),
        ("grey", encoded(grey, "PNG"), grey3),
        ("grey with a transparent level", encoded(grey, "PNG", transparency=7), grey3),
        ("grey with alpha", encoded(la, "PNG"), grey3),
        ("one bit", encoded(grey.convert("1"), "PNG"), bits),
        ("one bit, fax", encoded(grey.convert("1"), "TIFF", compression="group4"), bits),
        ("palette", encoded(palette, "PNG"), flat),
        ("palette, GIF", encoded(palette, "GIF"), flat),
        ("palette, BMP", encoded(palette, "BMP"), flat),
        ("palette with one transparent entry", encoded(palette, "PNG", transparency=3), flat),
        ("palette with alpha", encoded(palette, "PNG", transparency=bytes(range(0, 256, 8))), flat),
        ("PPM", encoded(colour, "PPM"), rgb),
        ("PGM", encoded(grey, "PPM"), grey3),
        ("BMP", encoded(colour, "BMP"), rgb),
        ("TIFF, LZW", encoded(colour, "TIFF", compression="tiff_lzw"), rgb),
    ]
    for name, data, pixels in cases:
        np.testing.assert_array_equal(decode(data, item="x"), pixels, err_msg=name)


def test_cmyk_is_converted_as_pillow_does_it() -> None:
    cmyk = photograph(16, 24).convert("CMYK")
    for data in (encoded(cmyk, "JPEG"), encoded(cmyk, "TIFF")):  # Pillow inverts Adobe's JPEGs both ways
        np.testing.assert_array_equal(decode(data, item="x"), expected(data))
    assert b"Adobe" in encoded(cmyk, "JPEG")


def test_sixteen_bits_become_eight_by_dropping_the_lower_ones() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (9, 13), dtype=np.uint16)
    eight = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, 2)
    big = values.astype(">u2")
    grey_rows = b"".join(b"\0" + row.tobytes() for row in big)
    rgb_rows = b"".join(b"\0" + np.repeat(row, 3).tobytes() for row in big)
    cases: dict[str, Any] = {
        "PNG grey": png(13, 9, 16, 0, grey_rows),
        "PNG colour": png(13, 9, 16, 2, rgb_rows),
        "TIFF": encoded(Image.fromarray(values), "TIFF"),
        "I;16B": Image.frombytes("I;16B", (13, 9), big.tobytes()),
        "I": Image.fromarray(values.astype(np.int32)),
    }
    for name, source in cases.items():
        np.testing.assert_array_equal(decode(source, item="x"), eight, err_msg=name)
    beyond = Image.fromarray(np.array([[-5, 70000, 256]], np.int32))
    assert decode(beyond, item="x")[0, :, 0].tolist() == [0, 255, 1]


def test_floats_count_from_0_to_255() -> None:
    values = np.array([[-1.0, 0.0, 0.9, 128.0, 255.0, 1e9, np.nan, np.inf, -np.inf]], np.float32)
    got = decode(encoded(Image.fromarray(values), "TIFF"), item="x")
    assert got[0, :, 1].tolist() == [0, 0, 0, 128, 255, 255, 0, 255, 0]


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_modes_of_pil_images(mode: str) -> None:
    image = Image.new(mode, (5, 4))
    before = image.info.copy(), image.mode, image.tobytes()
    assert decode(image, item="x").shape == (4, 5, 3)
    assert (image.info, image.mode, image.tobytes()) == before


def test_a_callers_image_keeps_its_transparency() -> None:
    palette = photograph(8, 8).quantize(8)
    palette.info["transparency"] = bytes(8)
    np.testing.assert_array_equal(
        decode(palette, item="x"), np.asarray(palette.copy().convert("RGBA"))[..., :3]
    )
    assert palette.info["transparency"] == bytes(8)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (16, 12), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert decode(data, item="x").tolist() == np.asarray(frames[0]).tolist()


def test_avif() -> None:
    data = encoded(photograph(16, 24), "AVIF", quality=90)
    np.testing.assert_array_equal(decode(data, item="x"), expected(data))


def test_several_pictures_in_one_jpeg_file() -> None:
    image = photograph(32, 48)
    data = encoded(image, "MPO", save_all=True, append_images=[photograph(32, 48, seed=1)])
    np.testing.assert_array_equal(decode(data, item="x"), expected(data))


# Sizes


def test_too_many_pixels_are_refused_by_the_header_alone() -> None:
    for data in (
        png(20000, 20000, 8, 2, b""),
        b"BM" + bytes(12) + struct.pack("<IiiHHIIiiII", 40, 20000, 20000, 1, 24, 0, 0, 0, 0, 0, 0),
        b"P6 20000 20000 255\n",
    ):
        assert reason(data) == f"20000 x 20000 pixels are more than the {MAX_PIXELS:,} allowed"


def test_large_images_within_the_limit_do_not_warn() -> None:
    """Pillow warns from half its limit on; here warnings are errors, and the reason would name one."""
    assert "truncated" in reason(b"P5 13000 7000 255\n" + bytes(99))


def test_no_warning_filter_is_touched_and_no_thread_waits() -> None:
    before = warnings.filters[:]
    data = encoded(photograph(40, 60), "JPEG")
    wrong: list[object] = []

    def work() -> None:
        pixels = decode(data, item="x", decoder="pillow")
        for _ in range(20):
            if not np.array_equal(decode(data, item="x"), pixels):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert warnings.filters[:] == before


def test_memory_that_does_not_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(pillow_pixels, "_rgb", lambda image, own: fail(image))
    assert reason(encoded(photograph(4, 4), "PNG")) == "not enough memory to decode it"


# Anything else


def _files() -> list[bytes]:
    colour = photograph(17, 23)
    every: list[Callable[[], bytes]] = [
        lambda: encoded(colour, "PNG"),
        lambda: encoded(colour.quantize(8), "PNG", transparency=b"\0\1"),
        lambda: encoded(colour.quantize(8), "GIF", save_all=True, append_images=[colour.quantize(4)]),
        lambda: encoded(colour, "WEBP"),
        lambda: encoded(colour, "AVIF"),
        lambda: encoded(colour, "BMP"),
        lambda: encoded(colour, "TIFF"),
        lambda: encoded(colour, "PPM"),
    ]
    return [make() for make in every]


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damage_never_raises_anything_but_an_item_error(data: st.DataObject) -> None:
    file = bytearray(data.draw(st.sampled_from(_FILES)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(file)))
        file[place : place + data.draw(st.integers(0, 30))] = data.draw(st.binary(max_size=8))
    try:
        pixels = decode(bytes(file), item="x")
    except ItemError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


_FILES = _files()


def test_importing_it_brings_no_opencv_and_no_torch() -> None:
    code = (
        "import sys, vsa_rt.runtime.preprocess\n"
        "print([name for name in ('cv2', 'torch', 'timm', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
