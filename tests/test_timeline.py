"""A video's timeline as a picture: what is where in it, for videos of every length and text of every kind."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from vsa_rt.contracts import Task
from vsa_rt.errors import ItemError, UsageError
from vsa_rt.pipeline.ingest.records import Moment
from vsa_rt.pipeline.ingest.summary import Rule, summarise
from vsa_rt.pipeline.ingest.thumbnails import Thumbnail
from vsa_rt.render.timeline import TimelineWriter, file_name, timeline
from vsa_rt.render.timeline_labels import BLUE, GREEN, ORANGE, PALETTE, VERMILLION

PAIR = ("negative", "positive")
#: Where a picture's time begins and ends, in pixels.
LEFT, RIGHT = 120, 1248
MAGENTA = (255, 0, 255)
Pixels = NDArray[np.uint8]


def summary_of(seconds: Any, scores: Any, labels: Sequence[str], task: Task, end: float) -> dict[str, Any]:
    moments = [
        Moment(
            float(second),
            index,
            None if task is Task.MULTI_LABEL else labels[int(np.argmax(row))],
            (),
            dict(zip(labels, map(float, row), strict=True)),
        )
        for index, (second, row) in enumerate(zip(seconds, scores, strict=True))
    ]
    return summarise(moments, Rule(labels, task, window=0, shortest=0), end)


def drawn(
    seconds: Any,
    scores: Any,
    labels: Sequence[str] = PAIR,
    task: Task = Task.SINGLE_LABEL,
    end: float = 0.0,
    thumbnails: Sequence[Thumbnail] = (),
    title: str = "clip.mp4",
) -> Pixels:
    """A picture's pixels."""
    summary = summary_of(seconds, scores, labels, task, end)
    return np.asarray(timeline(title, seconds, scores, labels, summary, thumbnails))


def halves(first: float = 1.0, second: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ten seconds: five of the first label, five of the second, as sure as that."""
    positive = np.repeat([1 - first, second], 50)
    return np.arange(100) / 10, np.stack([1 - positive, positive], 1)


def column(share: float) -> int:
    return round(LEFT + share * (RIGHT - LEFT))


def rows(picture: Pixels, x: int, colour: Sequence[int]) -> NDArray[np.int64]:
    """Rows of a column that have exactly a colour."""
    return np.flatnonzero((picture[:, x] == colour).all(1))


def longest(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The longest stretch of neighbours."""
    stretches = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    return max(stretches, key=len)


def thumbnail(seconds: float, size: tuple[int, int] = (90, 160), colour: Any = MAGENTA) -> Thumbnail:
    return Thumbnail(np.full((*size, 3), colour, np.uint8), seconds)


def box(picture: Pixels, colour: Sequence[int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what has a colour."""
    down, across = np.nonzero((picture == colour).all(2))
    return int(across.min()), int(down.min()), int(across.max()), int(down.max())


def test_segments_have_their_colours_at_their_times() -> None:
    picture = drawn(*halves(), end=10.0)
    # 28 rows of confidence and 28 of the label, one below the other.
    for share, colour, other in ((0.1, VERMILLION, BLUE), (0.9, BLUE, VERMILLION)):
        bars = rows(picture, column(share), colour)
        assert 56 <= len(bars) <= 56 + 8  # and the line of its score
        assert len(rows(picture, column(share), other)) < 8
    both = rows(picture, column(0.1), VERMILLION)[:56]
    for row in both:  # the segments change half-way between the frames at 4.9 and 5.0
        blue = np.flatnonzero((picture[row] == BLUE).all(1))
        assert (blue[0], blue[-1]) == (pytest.approx(column(0.495), abs=2), RIGHT - 1)


def test_confidence_is_height() -> None:
    picture = drawn(*halves(first=1.0, second=0.75), end=10.0)
    sure, less = rows(picture, column(0.1), VERMILLION), rows(picture, column(0.9), BLUE)
    bars_sure, bars_less = (places[places < longest(sure).max() + 40] for places in (sure, less))
    assert len(bars_sure) - len(bars_less) == pytest.approx(7, abs=1)


def test_a_thumbnail_stands_over_its_time() -> None:
    picture = drawn(*halves(), end=10.0, thumbnails=[thumbnail(2.5)])
    left, top, right, bottom = box(picture, MAGENTA)
    assert (right - left + 1, bottom - top + 1) == (160, 90)
    assert (left + right) / 2 == pytest.approx(column(0.25), abs=1)
    bar = longest(rows(picture, column(0.25), VERMILLION)).min()
    assert bottom < bar


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, LEFT), (10.0, RIGHT - 160)])
def test_thumbnails_at_the_ends_stay_inside(seconds: float, expected: int) -> None:
    assert box(drawn(*halves(), end=10.0, thumbnails=[thumbnail(seconds)]), MAGENTA)[0] == expected


@pytest.mark.parametrize("size", [(90, 51), (20, 160), (1, 1)])
def test_the_aspect_of_a_thumbnail_is_kept(size: tuple[int, int]) -> None:
    left, top, right, bottom = box(drawn(*halves(), end=10.0, thumbnails=[thumbnail(5.0, size)]), MAGENTA)
    assert (bottom - top + 1, right - left + 1) == size


def test_a_picture_that_is_no_thumbnail_yet_is_made_one() -> None:
    left, top, right, bottom = box(
        drawn(*halves(), end=10.0, thumbnails=[thumbnail(5.0, (720, 1280))]), MAGENTA
    )
    assert (bottom - top + 1, right - left + 1) == (90, 160)


def test_each_labels_peak_is_marked_where_it_is() -> None:
    seconds = np.arange(101) / 10
    scores = np.full((101, 3), 0.2)
    scores[30, 0], scores[60, 1], scores[90, 2] = 0.9, 0.8, 0.7
    picture = drawn(seconds, scores, ("a", "b", "c"), Task.MULTI_LABEL)
    height = len(picture)
    for share, colour, score in ((0.3, BLUE, 0.9), (0.6, ORANGE, 0.8), (0.9, GREEN, 0.7)):
        x = column(share)
        dot = [y for y in range(height) if (picture[y, x - 3 : x + 4] == colour).all()]
        scale = [y for y in range(height) if (picture[y, x - 6 : x - 3] == (225, 229, 234)).all()]
        top, bottom = scale[0], scale[-1]
        middle = np.mean([y for y in dot if y > top - 4])
        assert middle == pytest.approx(bottom - score * (bottom - top), abs=2)


def test_of_a_hundred_thousand_frames_none_is_overlooked_and_none_takes_long() -> None:
    scores = np.zeros((100_000, 8))
    scores[:, 0] = 0.01
    scores[25_000, 1] = scores[70_000, 1] = 1.0  # the first is the peak, and has a dot; the second is a shade
    labels = [f"label {n}" for n in range(8)]
    summary = summary_of([0.0], scores[:1], labels, Task.SINGLE_LABEL, 4000.0)
    begun = time.monotonic()
    picture = np.asarray(timeline("x", np.arange(100_000) / 25, scores, labels, summary, []))
    assert time.monotonic() - begun < 10
    height = [
        (picture[:, column(share) - 3 : column(share) + 4].astype(int) @ [1, 0, -1] > 5).any(1).sum()
        for share in (0.7, 0.55)
    ]  # more red than blue: orange's shade, the second label's
    assert height[0] > height[1] + 100


@pytest.mark.parametrize("end", [0.0, 10.0])
def test_a_single_frame_fills_its_picture(end: float) -> None:
    picture = drawn([0.0], [[0.2, 0.8]], end=end, thumbnails=[thumbnail(0.0)])
    for share in (0.02, 0.3, 0.98):
        assert len(longest(rows(picture, column(share), BLUE))) >= 22
    assert box(picture, MAGENTA)[0] == (LEFT if end else (LEFT + RIGHT) // 2 - 80)


def test_several_labels_have_rows_of_their_own_and_may_hold_together() -> None:
    # 0 to 4 s: joy; 4 to 8 s: joy and fear; then none.
    seconds = np.arange(120) / 10
    scores = np.array([[0.9, 0.1, 0.1]] * 40 + [[0.9, 0.8, 0.1]] * 40 + [[0.1, 0.1, 0.1]] * 40)
    picture = drawn(seconds, scores, ("joy", "fear", "anger"), Task.MULTI_LABEL, end=12.0)
    shown = [
        [len(rows(picture, column(share), colour)) >= 20 for colour in (BLUE, ORANGE, GREEN)]
        for share in (0.15, 0.5, 0.85)
    ]
    assert shown == [[True, False, False], [True, True, False], [False, False, False]]
    joy, fear = (longest(rows(picture, column(0.5), colour)) for colour in (BLUE, ORANGE))
    assert joy.max() < fear.min()


def test_a_video_where_no_label_ever_holds_has_no_coloured_bar() -> None:
    picture = drawn(np.arange(10.0), np.full((10, 3), 0.1), ("joy", "fear", "anger"), Task.MULTI_LABEL)
    assert all(len(rows(picture, column(0.45), colour)) < 12 for colour in PALETTE)


def test_time_before_the_first_frame_stays_empty() -> None:
    seconds, scores = halves()
    picture = drawn(seconds + 10, scores, end=20.0)
    assert len(rows(picture, column(0.25), VERMILLION)) < 8
    assert len(rows(picture, column(0.55), VERMILLION)) >= 56


HOSTILE = "\0\n\u202e悲\udcff🎬é" + "W" * 4000


def test_text_of_any_kind_stays_inside_the_picture() -> None:
    labels = (HOSTILE + "a", HOSTILE + "b", "c")
    for task in (Task.SINGLE_LABEL, Task.MULTI_LABEL):
        scores = np.tile([[0.9, 0.8, 0.1]], (50, 1))
        picture = drawn(np.arange(50.0), scores, labels, task, end=50.0, title=HOSTILE)
        assert picture.shape[1] == 1280
        edge = np.ones(picture.shape[:2], bool)
        edge[3:-3, 3:-3] = False
        assert (picture[edge] == 255).all()
        # The title ends before the duration begins.
        assert (picture[20:44, 1170:1198] == 255).all()


def test_a_title_is_there() -> None:
    seconds, scores = halves()
    assert (drawn(seconds, scores)[20:44, 20:100] < 128).any()
    assert (drawn(seconds, scores, title="")[20:44, 20:100] == 255).all()


@pytest.mark.parametrize(
    ("seconds", "scores", "reason"),
    [
        ([], np.zeros((0, 2)), "none of its frames"),
        ([0.0], [[0.5, float("nan")]], "not a finite number"),
        ([float("inf")], [[0.5, 0.5]], "not a finite number"),
        ([0.0, 1.0], [[0.5, 0.5]], r"scores \(1, 2\), expected one row for each of 2 frames"),
        ([0.0], [[0.5, 0.3, 0.2]], "one column for each of 2 labels"),
    ],
)
def test_what_cannot_be_drawn_is_an_error_of_the_item(seconds: Any, scores: Any, reason: str) -> None:
    with pytest.raises(ItemError, match=reason) as error:
        timeline("clip.mp4", seconds, scores, PAIR, {}, [])
    assert error.value.item == "clip.mp4"


KEYS = st.one_of(
    st.text(st.characters(), max_size=40),
    st.text(st.sampled_from("aA./\\\0\udcffé😀悲"), max_size=8),
    st.text(st.sampled_from("aé悲"), min_size=3900, max_size=4000),
)


@given(KEYS)
@settings(deadline=None)
def test_a_file_name_is_short_utf8_and_inside_the_folder(key: str) -> None:
    name = file_name(key)
    assert len(name.encode("utf-8")) < 200
    assert Path("folder", name).parts == ("folder", name)
    assert not name.startswith((".", "-"))
    assert name.isprintable()
    assert name == file_name(key)


@given(st.lists(KEYS, unique=True, max_size=6))
@settings(deadline=None)
def test_different_keys_have_different_names_whatever_the_file_system_takes_for_equal(
    keys: list[str],
) -> None:
    assert len({file_name(key).casefold() for key in keys}) == len(keys)


@pytest.mark.parametrize(
    ("key", "begins"),
    [
        ("videos/holiday clip.mp4", "holiday_clip.mp4-"),
        ("shard-000.tar!a/b.mkv", "b.mkv-"),
        ("rtsp://camera/live@2026-11-22T17:00:00Z", "live_2026-11-22T17_00_00Z-"),
        ("видео/радость.mp4", "радость.mp4-"),
        ("..", ""),
        ("", ""),
    ],
)
def test_a_file_name_says_which_video_it_is_of(key: str, begins: str) -> None:
    name = file_name(key)
    assert name.startswith(begins)
    assert len(name) == len(begins) + 20 + len(".png")


def write(writer: TimelineWriter, key: str = "clip.mp4", **changed: Any) -> Path:
    seconds, scores = halves()
    summary = summary_of(seconds, scores, PAIR, Task.SINGLE_LABEL, 10.0)
    values: dict[str, Any] = {
        "seconds": seconds,
        "scores": scores,
        "labels": PAIR,
        "summary": summary,
        "thumbnails": [],
    }
    return writer.write(key, **(values | changed))


def test_a_picture_is_written_whole_and_written_again_the_same(tmp_path: Path) -> None:
    writer = TimelineWriter(tmp_path / "out" / "timelines")
    path = write(writer, "../a/../clip.mp4")
    first = path.read_bytes()
    with Image.open(path) as picture:
        assert (picture.format, picture.width) == ("PNG", 1280)
    assert write(writer, "../a/../clip.mp4") == path
    assert path.read_bytes() == first
    assert [p.name for p in (tmp_path / "out" / "timelines").iterdir()] == [path.name]
    assert path.parent == tmp_path / "out" / "timelines"


def test_twins_do_not_replace_each_other(tmp_path: Path) -> None:
    writer = TimelineWriter(tmp_path)
    assert len({write(writer, key).name.lower() for key in ("a/x.mp4", "b/x.mp4", "a/X.mp4", "x.mp4")}) == 4


def test_a_folder_that_cannot_be_made_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--timeline .*cannot be made"):
        TimelineWriter(tmp_path / "file" / "timelines")


def test_a_picture_that_cannot_be_written_is_an_os_error_and_leaves_nothing(tmp_path: Path) -> None:
    writer = TimelineWriter(tmp_path / "timelines")
    (tmp_path / "timelines" / file_name("clip.mp4")).mkdir()
    with pytest.raises(OSError, match="directory"):
        write(writer)
    assert [p.name for p in (tmp_path / "timelines").iterdir()] == [file_name("clip.mp4")]


def test_nothing_is_written_for_a_video_that_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(ItemError):
        write(TimelineWriter(tmp_path), seconds=[], scores=np.zeros((0, 2)))
    assert not list(tmp_path.iterdir())
