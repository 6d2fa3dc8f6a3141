"""Small pictures of a video, collected while it streams: a bounded number, spread evenly over what was looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Height and greatest width of a thumbnail, in pixels: of pictures up to 16:9 the height is full.
HEIGHT, WIDTH = 90, 160
#: How many are kept at most, and half of that at least once a video had as many. A timeline of 1280 pixels has room for 6
#: of 16:9 and 19 of 9:16; with more to choose from it leaves smaller gaps. 64 take 2.8 MB at most.
MOST = 64


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """One picture of a video.

    Attributes:
        pixels: RGB ``(h, w, 3)``, small.
        seconds: Its presentation time.
    """

    pixels: NDArray[np.uint8]
    seconds: float


def reduced(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture at the size of a thumbnail: as large as fits into ``WIDTH`` by ``HEIGHT``, its aspect kept.

    Args:
        pixels: RGB ``(H, W, 3)``, of any size.

    Returns:
        ``(h, w, 3)`` with memory of its own.
    """
    height, width = pixels.shape[:2]
    scale = min(HEIGHT / height, WIDTH / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # reducing_gap averages whole blocks first: of a large picture the filter sees twice the final size alone.
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.array(small, np.uint8)


class Thumbnails:
    """Keeps every picture at first; once that are too many, every second one, then every fourth, and so on.

    A picture that is not kept costs nothing, and none of the caller's memory is held.

    Args:
        most: How many are kept at most; an even number, so that what is left after a halving is evenly spread.
    """

    def __init__(self, most: int = MOST) -> None:
        if most < 2 or most % 2:
            raise ValueError(f"most={most}: expected an even number from 2")
        self._most, self._stride, self._seen = most, 1, 0
        self._kept: list[Thumbnail] = []

    @property
    def kept(self) -> list[Thumbnail]:
        """What was kept so far, in the order it came in."""
        return list(self._kept)

    def add(self, pixels: NDArray[np.uint8], seconds: float) -> None:
        """Take the next picture of the video.

        Args:
            pixels: RGB ``(H, W, 3)``.
            seconds: Its presentation time.
        """
        place = self._seen
        self._seen += 1
        if place % self._stride:
            return
        if len(self._kept) == self._most:
            # The place is an even multiple of the stride here, so it belongs to the wider stride, too.
            del self._kept[1::2]
            self._stride *= 2
        self._kept.append(Thumbnail(reduced(pixels), seconds))
