"""Small pictures of a stream: few, evenly spread, cheap, and nobody else's memory."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vsa_rt.pipeline.ingest.thumbnails import HEIGHT, MOST, WIDTH, Thumbnails, reduced


def plain(height: int, width: int, colour: tuple[int, int, int] = (200, 30, 90)) -> NDArray[np.uint8]:
    return np.full((height, width, 3), colour, np.uint8)


@given(count=st.integers(1, 700), most=st.integers(1, 20).map(lambda half: 2 * half))
@settings(deadline=None, max_examples=60)
def test_what_is_kept_is_bounded_and_evenly_spread(count: int, most: int) -> None:
    thumbnails = Thumbnails(most)
    for number in range(count):
        thumbnails.add(plain(2, 2), float(number))
    times = [t.seconds for t in thumbnails.kept]
    assert times[0] == 0
    assert min(count, most // 2) <= len(times) <= most
    gaps = set(np.diff(times))
    assert len(gaps) <= 1
    assert count - times[-1] <= (gaps.pop() if gaps else 2)  # the end is not left out


def test_a_short_video_keeps_all() -> None:
    thumbnails = Thumbnails()
    for number in range(MOST):
        thumbnails.add(plain(2, 2), number / 25)
    assert [t.seconds for t in thumbnails.kept] == [number / 25 for number in range(MOST)]


def test_a_picture_that_is_not_kept_is_not_looked_at() -> None:
    thumbnails = Thumbnails(2)
    nothing = cast("NDArray[np.uint8]", None)
    for number in range(64):
        kept = number & (number - 1) == 0  # of two at most: 0, 1, then each power of two
        thumbnails.add(plain(2, 2) if kept else nothing, float(number))
    assert [t.seconds for t in thumbnails.kept] == [0, 32]


@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
@settings(deadline=None, max_examples=30)
def test_a_thumbnail_fits_and_keeps_its_aspect(height: int, width: int) -> None:
    high, wide, _ = reduced(plain(height, width)).shape
    assert high == HEIGHT or wide == WIDTH
    assert 1 <= high <= HEIGHT
    assert 1 <= wide <= WIDTH
    scale = min(HEIGHT / height, WIDTH / width)
    assert high == pytest.approx(height * scale, abs=1)
    assert wide == pytest.approx(width * scale, abs=1)


@pytest.mark.parametrize(
    ("size", "shape"),
    [((1080, 1920), (90, 160, 3)), ((1920, 1080), (90, 51, 3)), ((100, 1600), (10, 160, 3))],
)
def test_landscape_portrait_and_panorama(size: tuple[int, int], shape: tuple[int, int, int]) -> None:
    assert reduced(plain(*size)).shape == shape


def test_colours_stay_and_fine_patterns_become_their_mean() -> None:
    assert (reduced(plain(720, 1280)) == (200, 30, 90)).all()
    board = np.indices((720, 1280)).sum(0) % 2 * 255
    small = reduced(np.repeat(board[..., None], 3, 2).astype(np.uint8))
    assert np.abs(small.astype(int) - 127).max() <= 2  # taking single pixels would give 0 or 255


def test_the_callers_memory_may_be_reused() -> None:
    pixels = plain(HEIGHT, WIDTH)
    thumbnails = Thumbnails()
    thumbnails.add(pixels, 0.0)
    pixels[:] = 0
    (kept,) = thumbnails.kept
    assert (kept.pixels == (200, 30, 90)).all()
    assert kept.pixels.base is None or not np.shares_memory(kept.pixels, pixels)


def test_rows_that_do_not_lie_behind_each_other_are_read_as_they_are() -> None:
    wide: Any = np.zeros((90, 320, 3), np.uint8)
    wide[:, ::2] = (200, 30, 90)
    thumbnails = Thumbnails()
    thumbnails.add(wide[:, ::2], 0.0)
    assert (thumbnails.kept[0].pixels == (200, 30, 90)).all()


@pytest.mark.parametrize("most", [0, 1, 7, -2])
def test_a_number_that_cannot_be_halved_is_refused(most: int) -> None:
    with pytest.raises(ValueError, match="even number"):
        Thumbnails(most)
