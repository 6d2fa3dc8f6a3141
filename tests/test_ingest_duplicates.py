"""Reposts: what counts as the same, and what must not."""

from __future__ import annotations

import hashlib
import io
import itertools
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vsa_rt.errors import EnvironmentUnusable, ItemError, UsageError
from vsa_rt.pipeline.ingest.duplicates import (
    DISTANCE,
    Near,
    NearDuplicates,
    NearIndex,
    content_hash,
    perceptual_hash,
)

Pixels = NDArray[np.uint8]
Change = Callable[[Image.Image], Image.Image]
#: SHA-256 of "abc": FIPS 180-2, appendix B.1.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# The same bytes


def test_the_content_of_bytes_and_of_files_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    for source in (b"abc", bytearray(b"abc"), memoryview(b"abc"), str(tmp_path / "abc"), tmp_path / "abc"):
        assert content_hash(source, "abc") == ABC


def test_a_large_file_is_read_in_pieces(tmp_path: Path) -> None:
    data = np.random.default_rng(1).bytes(2**20) * 24 + b"end"
    (tmp_path / "large").write_bytes(data)
    tracemalloc.start()
    found = content_hash(tmp_path / "large", "large")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == hashlib.sha256(data).hexdigest()
    assert peak < 2**22


def test_what_cannot_be_read_has_no_content_and_an_address_has_none(tmp_path: Path) -> None:
    with pytest.raises(ItemError, match=r"a\.jpg: the file cannot be read: No such file"):
        content_hash(tmp_path / "gone", "a.jpg")
    with pytest.raises(ItemError, match="not a regular file"):
        content_hash("/dev/zero", "a.jpg")
    assert content_hash("https://host/a.mp4", "a") == ""


# Pictures that look the same


def jpeg(image: Image.Image, quality: int = 60) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue()))


def halved(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def hash_of(image: Image.Image) -> str:
    return perceptual_hash(np.asarray(image.convert("RGB")))


def distance(one: str, other: str) -> int:
    return (int(one[:16], 16) ^ int(other[:16], 16)).bit_count()


@pytest.fixture(scope="module")
def shipped() -> list[Path]:
    pytest.importorskip("imagehash", reason="imagehash takes perceptual hashes")
    pytest.importorskip("skimage", reason="scikit-image ships the photographs")
    pytest.importorskip("sklearn", reason="scikit-learn ships photographs")
    from vsa_rt.export.photographs import shipped_photographs

    return shipped_photographs()


@pytest.mark.parametrize("change", [jpeg, halved, lambda image: jpeg(halved(image))])
def test_reencoded_and_resized_photographs_are_the_same(shipped: list[Path], change: Change) -> None:
    seen = NearDuplicates(DISTANCE)
    for path in shipped:
        seen.add(path.name, hash_of(read(path)))
    for path in shipped:
        found = seen.of(hash_of(change(read(path))))
        assert found is not None
        assert found.key == path.name


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda image: image.point(lambda value: value * 0.5),
        lambda image: image.point(lambda value: 128 + value * 0.5),
    ],
    ids=["mirrored", "darkened", "brightened"],
)
def test_changed_photographs_are_not_the_same(photographs: list[Path], change: Change) -> None:
    seen = NearDuplicates(DISTANCE)
    for path in photographs:
        seen.add(path.name, hash_of(read(path)))
    for path in photographs:
        assert seen.of(hash_of(change(read(path)))) is None, path.name


def test_a_photograph_without_its_colours_is_another_one(coffee: Path) -> None:
    pytest.importorskip("imagehash", reason="imagehash takes perceptual hashes")
    image = read(coffee)
    grey = hash_of(image.convert("L"))
    assert distance(hash_of(image), grey) <= DISTANCE  # the bits alone do not tell
    seen = NearDuplicates(DISTANCE)
    seen.add("coffee", hash_of(image))
    assert seen.of(grey) is None


def test_different_photographs_are_far_apart(shipped: list[Path]) -> None:
    hashes = {path.name: hash_of(read(path)) for path in shipped}
    near = {
        (a, b): distance(hashes[a], hashes[b])
        for a, b in itertools.combinations(hashes, 2)
        if distance(hashes[a], hashes[b]) <= 3 * DISTANCE
    }
    # Two views of one scene, from either eye.
    assert set(near) <= {("motorcycle_left.png", "motorcycle_right.png")}


def test_the_hash_is_imagehashs(photographs: list[Path]) -> None:
    imagehash = pytest.importorskip("imagehash", reason="imagehash takes perceptual hashes")
    image = read(photographs[0]).resize((300, 200))
    assert hash_of(image)[:16] == str(imagehash.phash(image))
    means = np.asarray(image, np.float64).mean((0, 1))
    assert np.abs(np.frombuffer(bytes.fromhex(hash_of(image)[16:]), np.uint8) - means).max() <= 0.5


@pytest.mark.parametrize("size", [(300, 200), (1, 1), (5000, 3), (3, 2000)])
def test_pictures_of_one_colour_are_never_the_same(size: tuple[int, int]) -> None:
    pytest.importorskip("imagehash", reason="imagehash takes perceptual hashes")
    for colour in ((0, 0, 0), (255, 255, 255), (9, 99, 200)):
        assert hash_of(Image.new("RGB", size, colour)) == ""
    seen = NearDuplicates(DISTANCE)
    seen.add("black", "")
    assert seen.of("") is None


def test_without_imagehash_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(EnvironmentUnusable, match=r"vsa-rt\[ingest\]"):
        perceptual_hash(np.zeros((8, 8, 3), np.uint8))


def test_the_nearest_picture_is_named_with_its_distance() -> None:
    seen = NearDuplicates(DISTANCE)
    seen.add("one", "00000000ffffffff102030")
    seen.add("other", "00000000fffffff0102030")
    assert seen.of("00000000ffffffff102030") == Near("one", 0)
    assert seen.of("00000000fffffff1102030") == Near("other", 1)
    assert seen.of("0f" * 11) is None


@pytest.mark.parametrize("bits", [-1, 32, 64])
def test_distances_that_are_none_are_refused(bits: int) -> None:
    with pytest.raises(UsageError, match="expected 0 to 31 of 64"):
        NearDuplicates(bits)


# The index


_LOOKS = st.lists(st.integers(0, 2**64 - 1), max_size=30)


@given(_LOOKS, st.integers(0, 2**64 - 1), st.lists(st.integers(0, 63), max_size=6), st.integers(0, 31))
def test_the_nearest_is_the_one_of_a_plain_search(
    looks: list[int], asked: int, flipped: list[int], most: int
) -> None:
    near = asked
    for bit in flipped:
        near ^= 1 << bit
    looks = [*looks, near, near]
    index = NearIndex()
    for number, look in enumerate(looks):
        index.add(f"{look:016x}808080", f"key {number:02}")
    plain = min(((look ^ asked).bit_count(), f"key {number:02}") for number, look in enumerate(looks))
    expected = (plain[1], plain[0]) if plain[0] <= most else None
    assert index.nearest(f"{asked:016x}848480", most) == expected
    assert index.nearest(f"{asked:016x}858080", most) is None


def test_the_nearest_does_not_depend_on_the_order_of_entry() -> None:
    looks = [(f"{1 << n:016x}000000", f"key {n}") for n in range(6)]
    found = set()
    for order in itertools.permutations(looks):
        index = NearIndex()
        for look, key in order:
            index.add(look, key)
        found.add(index.nearest("0" * 22, 4))
    assert found == {("key 0", 1)}


def test_an_index_grows_and_an_empty_one_has_nothing() -> None:
    index = NearIndex()
    assert index.nearest("0" * 22, 31) is None
    rng = np.random.default_rng(7)
    looks = [rng.bytes(8).hex() + "000000" for _ in range(5000)]
    for look in looks:
        index.add(look, look)
    assert len(index) == 5000
    assert all(index.nearest(look, 0) == (look, 0) for look in looks[::97])


def test_before_numpy_2_bits_are_counted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(8)
    looks = [int.from_bytes(rng.bytes(8), "big") for _ in range(300)] + [0, 2**64 - 1, 1 << 63]
    index = NearIndex()
    for look in looks:
        index.add(f"{look:016x}000000", f"{look:016x}")
    asked = [f"{look ^ (1 << n % 64):016x}000000" for n, look in enumerate(looks)]
    here = [index.nearest(a, 31) for a in asked]
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert [index.nearest(a, 31) for a in asked] == here
