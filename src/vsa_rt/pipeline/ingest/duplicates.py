"""Reposts: the same bytes, and pictures that look the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vsa_rt.errors import ItemError, UsageError, needs
from vsa_rt.pipeline.ingest.members import open_regular, why
from vsa_rt.runtime.video_kind import address

_CHUNK = 2**20
#: Bits of a perceptual hash that tell structure; eight for each mean colour follow.
BITS = 64
#: In how many of them two pictures may differ and count as the same, unless the user says otherwise; `docs` has what
#: re-encoding, resizing and cropping change, and how far different photographs are apart.
DISTANCE = 4
#: By how many of 255 levels the means of red, green and blue may differ. The 64 bits know neither colour nor
#: brightness, and sentiment depends on both: a photograph in greys, or half as bright, has nearly the same bits.
COLOUR = 4
#: The hash compares 64 coefficients with their median, so 32 bits are set; fewer where most coefficients are equal:
#: a picture of one colour, or nearly so, which tells nothing apart.
_TELLING = 24
#: Pictures are reduced by a whole number to no less than this on their shorter side: the hash looks at 32x32 anyway.
_SIDE = 256


def content_hash(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview,
    item: str,
    wanted: Callable[[], bool] = lambda: True,
) -> str:
    """SHA-256 of the bytes that a piece's ``open`` returned; of a file in chunks of a mebibyte.

    Args:
        source: Bytes, or a path.
        item: What to call it in an error.
        wanted: Asked after each chunk whether to go on.

    Returns:
        64 hexadecimal digits; empty for an address, whose bytes are not to be had twice.

    Raises:
        ItemError: The file cannot be read, or is none.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return hashlib.sha256(source).hexdigest()
    path = os.fspath(source)
    if address(path) is not None:
        return ""
    digest = hashlib.sha256()
    try:
        with open_regular(path) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                if not wanted():
                    raise ItemError(item, "its reading was given up")
    except (OSError, ValueError) as error:
        raise ItemError(item, f"the file cannot be read: {why(error)}") from None
    return digest.hexdigest()


def perceptual_hash(pixels: NDArray[np.uint8]) -> str:
    """How a picture looks: the signs of its 8x8 lowest frequencies against their median, and its mean colour.

    The first is imagehash's ``phash`` (Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions,
    2010, section 3.2.1): re-encoded and resized pictures have nearly the same one, cropped and mirrored ones have not.

    Args:
        pixels: Upright RGB ``(H, W, 3)``.

    Returns:
        22 hexadecimal digits: 16 of structure, 6 of colour. Empty for a picture of nearly one colour, whose structure
        is that of any other of these.

    Raises:
        EnvironmentUnusable: imagehash is not installed.
    """
    with needs("ingest"):
        import imagehash
    image = Image.fromarray(pixels)
    small = image.reduce(max(1, min(image.size) // _SIDE))
    bits = np.asarray(imagehash.phash(small).hash, np.bool_)
    if np.count_nonzero(bits) < _TELLING:
        return ""
    colour = np.rint(np.asarray(small).mean((0, 1))).astype(np.uint8)
    found: bytes = np.packbits(bits).tobytes() + colour.tobytes()
    return found.hex()


def _bits_set(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    if hasattr(np, "bitwise_count"):
        counted: NDArray[np.uint8] = np.bitwise_count(values)
        return counted
    # Before numpy 2: sums of bits in pairs, fours and eights (Warren, Hacker's Delight, 2nd edition, figure 5-2).
    one, two, four = np.uint64(1), np.uint64(2), np.uint64(4)
    pairs = values - ((values >> one) & np.uint64(0x5555555555555555))
    fours = (pairs & np.uint64(0x3333333333333333)) + ((pairs >> two) & np.uint64(0x3333333333333333))
    eights = (fours + (fours >> four)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    sums: NDArray[np.uint64] = (eights * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return sums.astype(np.uint8)


def _taken_apart(perceptual: str) -> tuple[np.uint64, NDArray[np.int16]]:
    data = bytes.fromhex(perceptual)
    return np.uint64(int.from_bytes(data[:8], "big")), np.frombuffer(data[8:], np.uint8).astype(np.int16)


class NearIndex:
    """Perceptual hashes, and which of them is nearest to another.

    It compares with all of them, eight bytes each in one array, which for 100,000 takes a fraction of a millisecond.
    Buckets by bands of bits are three times faster and a hundred times as large.
    """

    def __init__(self) -> None:
        self._hashes = np.empty(1024, np.uint64)
        self._colours = np.empty((1024, 3), np.int16)
        self._keys: list[str] = []

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, perceptual: str, key: str) -> None:
        """Put a piece's hash in."""
        count = len(self._keys)
        if count == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.empty_like(self._hashes)])
            self._colours = np.concatenate([self._colours, np.empty_like(self._colours)])
        self._hashes[count], self._colours[count] = _taken_apart(perceptual)
        self._keys.append(key)

    def nearest(self, perceptual: str, distance: int) -> tuple[str, int] | None:
        """The piece whose hash differs in the fewest bits, of those of about its colour.

        Args:
            perceptual: As ``perceptual_hash`` returns it.
            distance: In how many of the 64 bits it may differ.

        Returns:
            Its key and the number of bits; of several, the first key. ``None`` where there is none.
        """
        bits, colour = _taken_apart(perceptual)
        differ = _bits_set(self._hashes[: len(self._keys)] ^ bits)
        near = np.flatnonzero(differ <= distance)
        near = near[np.abs(self._colours[near] - colour).max(axis=1, initial=0) <= COLOUR]
        if not near.size:
            return None
        least, key = min((int(differ[i]), self._keys[i]) for i in near)
        return key, least


@dataclass(frozen=True)
class Near:
    """An earlier picture that looks the same.

    Attributes:
        key: Its piece's.
        distance: In how many bits their perceptual hashes differ.
    """

    key: str
    distance: int


class NearDuplicates:
    """Pictures that were computed, found again by how they look.

    Only put in what was computed, never what was reused: else distances would add up, from one picture to the next.

    Args:
        distance: In how many bits the perceptual hashes of near duplicates differ at most.

    Raises:
        UsageError: A distance that is none.
    """

    def __init__(self, distance: int) -> None:
        if not 0 <= distance < BITS // 2:
            raise UsageError(f"a distance of {distance} bits; expected 0 to {BITS // 2 - 1} of {BITS}")
        self._distance = distance
        self._index = NearIndex()

    def add(self, key: str, perceptual: str) -> None:
        """Put a computed picture in; one without a hash never looks like another."""
        if perceptual:
            self._index.add(perceptual, key)

    def of(self, perceptual: str) -> Near | None:
        """The earlier picture that looks most alike; ``None`` if none does."""
        found = self._index.nearest(perceptual, self._distance) if perceptual else None
        return None if found is None else Near(*found)
