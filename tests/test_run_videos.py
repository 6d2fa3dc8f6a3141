"""`vsa-rt run` on videos and feeds: each frame, then the whole; what is damaged; who is let wait for what."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from outcome import fails, lines
from PIL import Image

import vsa_rt
from vsa_rt.pipeline.looks import Look, Looks, Whole, subject_of
from vsa_rt.render.result_table import clock
from vsa_rt.runtime.line import UNPREPARED
from vsa_rt.runtime.sampling import Sample

pytest.importorskip("av", reason="PyAV is not installed")

from clips import clip

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
IMAGE = ["path", "label", "labels", "scores", "scores_kind", "error"]
FRAME = ["path", "seconds", "index", "label", "labels", "scores", "scores_kind", "error"]
WHOLE = ["path", "seconds", "frames", "label", "labels", "scores", "scores_kind", "error", "summary"]
#: Longer than anything here takes: a wait that ends by it failed.
SOON = 60
RATE = 5


def photograph(toy_data: Path, label: str) -> NDArray[np.uint8]:
    with Image.open(toy_data / label / "coffee.png") as image:
        return np.asarray(image.convert("RGB").resize((192, 128)))


@pytest.fixture(scope="session")
def story(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds that are bright, then three that are dark."""
    frames = [photograph(toy_data, "bright")] * 3 * RATE + [photograph(toy_data, "dark")] * 3 * RATE
    return clip(tmp_path_factory.mktemp("story") / "story.mkv", frames, rate=RATE)


@pytest.fixture
def cut(story: Path, tmp_path: Path) -> Path:
    """The story without its end."""
    data = story.read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(data[: len(data) * 3 // 4])
    return path


# What is printed


def test_a_video_gives_its_frames_and_then_the_whole(here: Cli, portable: Path, story: Path) -> None:
    done = here("run", portable, story)
    assert done.returncode == 0, done.stderr
    *frames, whole = lines(done.stdout)
    assert [list(row) for row in frames] == [FRAME] * 6
    assert list(whole) == WHOLE
    assert {row["path"] for row in [*frames, whole]} == {str(story)}
    assert [(row["seconds"], row["index"]) for row in frames] == [(n, n) for n in range(6)]
    assert [row["label"] for row in frames] == ["bright"] * 3 + ["dark"] * 3
    assert (whole["seconds"], whole["frames"], whole["error"]) == (None, 6, None)
    assert "1 items, 6 frames, 0 failed" in done.stderr


def test_frames_say_what_the_library_says_and_the_whole_is_their_mean(
    here: Cli, portable: Path, story: Path
) -> None:
    *frames, whole = lines(here("run", portable, story).stdout)
    with vsa_rt.load(portable) as rt:
        expected = [rt([frame])[0] for frame in vsa_rt.video(story)]
    scores = [e.scores for e in expected if isinstance(e, vsa_rt.Sentiment)]
    for row, wanted in zip(frames, scores, strict=True):
        assert row["scores"] == pytest.approx(wanted, abs=1e-5)
    mean = {name: float(np.mean([s[name] for s in scores])) for name in scores[0]}
    assert whole["scores"] == pytest.approx(mean, abs=1e-5)
    assert whole["label"] == max(mean, key=mean.__getitem__)
    best = max(frames, key=lambda row: row["scores"]["dark"])
    peak = whole["summary"]["peak"]["dark"]
    assert (peak["score"], peak["seconds"]) == (best["scores"]["dark"], best["seconds"])
    assert whole["summary"]["majority"]["share"] == 0.5
    assert [s["label"] for s in whole["summary"]["segments"]] == ["bright", "dark"]
    assert (whole["summary"]["segments"][0]["start"], whole["summary"]["segments"][-1]["end"]) == (0, 5)


def test_images_beside_a_video_keep_their_place_and_their_keys(
    here: Cli, portable: Path, story: Path, toy_data: Path
) -> None:
    one, other = toy_data / "bright" / "coffee.png", toy_data / "dark" / "coffee.png"
    rows = lines(here("run", portable, one, story, other, story, "absent.png", "--fps", "0.3").stdout)
    assert [list(row) for row in rows] == [IMAGE, *([FRAME] * 2 + [WHOLE]), IMAGE, *([FRAME] * 2 + [WHOLE]), IMAGE]  # fmt: skip
    assert [rows[0]["label"], rows[4]["label"], rows[8]["error"]] == ["bright", "dark", "no such file"]


def test_videos_of_a_folder_are_looked_at_whatever_their_name(
    here: Cli, portable: Path, story: Path, toy_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(story.read_bytes())
    (tmp_path / "b.png").write_bytes((toy_data / "dark" / "coffee.png").read_bytes())
    done = here("run", portable, tmp_path, "--sample", "uniform=2")
    assert done.returncode == 0, done.stderr
    rows = lines(done.stdout)
    assert [(Path(row["path"]).name, row.get("seconds")) for row in rows] == [
        ("a.jpg", 1.4), ("a.jpg", 4.4), ("a.jpg", None), ("b.png", None)
    ]  # fmt: skip


def test_csv_has_columns_of_time_where_there_is_a_video_and_only_there(
    here: Cli, portable: Path, story: Path, coffee: Path
) -> None:
    alone = here("run", portable, coffee, "--format", "csv").stdout
    assert alone.splitlines()[0] == "path,label,labels,score,error"
    rows = list(csv.DictReader(io.StringIO(here("run", portable, coffee, story, "--format", "csv").stdout)))
    assert list(rows[0]) == ["path", "seconds", "index", "frames", "label", "labels", "score", "error"]
    assert [(r["seconds"], r["index"], r["frames"]) for r in rows] == [
        ("", "", ""), *((f"{n}.0", str(n), "") for n in range(6)), ("", "", "6")
    ]  # fmt: skip
    assert all(r["label"] and float(r["score"]) > 0.5 for r in rows[1:7])


def test_a_table_shows_times_and_the_segments(here: Cli, portable: Path, story: Path, toy_data: Path) -> None:
    odd = "[red]absent[/red].png"
    shown = here("run", portable, story, toy_data / "dark" / "coffee.png", odd, "--format", "table").stdout
    rows = [row.split() for row in shown.splitlines()]
    assert rows[0] == ["item", "time", "label", "scores"]
    assert [row[1:3] for row in rows[1:4]] == [[f"0:0{n}.0", "bright"] for n in range(3)]
    assert rows[7][:3] == [str(story), "6", "frames"]
    assert " ".join(rows[8]) == "0:00.0-0:02.5 bright, 0:02.5-0:05.0 dark"
    assert rows[9][1] == "dark"
    assert odd in shown
    assert "no such file" in shown


def test_scores_are_cut_to_the_best_of_the_whole_too(here: Cli, portable: Path, story: Path) -> None:
    *frames, whole = lines(here("run", portable, story, "--top", "1").stdout)
    assert {len(row["scores"]) for row in [*frames, whole]} == {1}
    assert len(whole["summary"]["peak"]) == 1


def test_times_are_written_as_clocks() -> None:
    texts = [clock(s) for s in (0, 3.04, 59.96, 61.5, 3600, 36061.25)]
    assert texts == ["0:00.0", "0:03.0", "1:00.0", "1:01.5", "1:00:00.0", "10:01:01.2"]


def test_two_runs_say_the_same(here: Cli, portable: Path, story: Path, coffee: Path) -> None:
    one, other = (here("run", portable, story, coffee, story, "--sample", "all").stdout for _ in range(2))
    assert one == other
    assert len(one.splitlines()) == 2 * (30 + 1) + 1


# Which frames


def test_frames_are_chosen(here: Cli, portable: Path, story: Path) -> None:
    for options, seconds in (
        (["--fps", "1/2"], [0, 2, 4]),
        (["--sample", "fps=0.5"], [0, 2, 4]),
        (["--sample", "every=14"], [0, 2.8, 5.6]),
        (["--sample", "uniform=1"], [3]),
    ):
        *frames, whole = lines(here("run", portable, story, *options).stdout)
        assert [row["seconds"] for row in frames] == seconds
        assert whole["frames"] == len(seconds)


def test_a_wrong_choice_is_one_line(here: Cli, portable: Path, story: Path, tmp_path: Path) -> None:
    fails(here("run", portable, story, "--fps", "2", "--sample", "all"), 2, "one of the two")
    fails(here("run", portable, story, "--fps", "0"), 2, "number over 0")
    fails(here("run", portable, story, "--sample", "often"), 2, "uniform=9")
    fails(here("run", portable, story, "--sample", ""), 2, "uniform=9")
    fails(here("run", portable, story, "--map", tmp_path / "maps"), 2, r"story\.mkv is a video")
    assert not (tmp_path / "maps").exists()


# What goes wrong


def test_a_damaged_video_gives_its_frames_and_says_what_is_missing(
    here: Cli, portable: Path, cut: Path, coffee: Path
) -> None:
    done = here("run", portable, cut, coffee)
    assert done.returncode == 1
    *frames, whole, image = lines(done.stdout)
    assert len(frames) == whole["frames"] >= 3
    assert [row["error"] for row in frames] == [None] * len(frames)
    assert "frames before were read" in whole["error"]
    assert whole["label"] == "bright"
    assert whole["summary"]["segments"][-1]["end"] == frames[-1]["seconds"]
    assert image["label"]
    table = here("run", portable, cut, "--format", "table").stdout
    assert whole["error"] in table
    assert "bright" in table.splitlines()[-3]
    assert "1 items" in done.stderr or "2 items" in done.stderr


def test_what_is_no_video_is_one_line(here: Cli, portable: Path, coffee: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    done = here("run", portable, tmp_path / "empty.mp4", coffee, tmp_path / "absent.mp4")
    empty, image, absent = lines(done.stdout)
    assert done.returncode == 1
    assert list(empty) == list(absent) == WHOLE
    assert (empty["frames"], empty["label"], empty["scores"], empty["summary"]) == (0, None, {}, None)
    assert (empty["error"], absent["error"]) == ("empty (0 bytes), expected a video", "no such file")
    assert image["label"]


def test_frames_without_a_result_are_counted(
    here: Cli, portable: Path, story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vsa_rt.runtime.sentiment import Labeller

    real, bad = Labeller.__call__, "engine gave scores that are not numbers"

    def dark_is_lost(self: Labeller, scores: NDArray[np.float32], views: Any = None) -> Any:
        lost = scores.copy()
        lost[scores[:, 0] > scores[:, 1]] = np.nan
        return real(self, lost, views)

    monkeypatch.setattr(Labeller, "__call__", dark_is_lost)
    done = here("run", portable, story)
    *frames, whole = lines(done.stdout)
    errors = [bool(row["error"]) for row in frames]
    assert sorted(errors) == [False] * 3 + [True] * 3
    assert all(bad in row["error"] for row in frames if row["error"])
    assert f"3 of 6 frames have no result: the {bad}" in whole["error"]
    assert whole["summary"]["majority"]["share"] == 1
    assert done.returncode == 1


def test_without_pyav_only_the_video_fails(
    here: Cli, portable: Path, story: Path, coffee: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    done = here("run", portable, story, coffee)
    video, image = lines(done.stdout)
    assert done.returncode == 1
    assert video["error"] == "av is not installed; pip install 'vsa-rt[video]'"
    assert image["label"]


def test_a_fault_of_ours_in_one_video_is_its_own(
    here: Cli, portable: Path, story: Path, coffee: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Iterator[Any]:
        yield from vsa_rt.video(story, "uniform=1")
        raise KeyError("oops")

    monkeypatch.setattr("vsa_rt.pipeline.looks.video", broken)
    frame, whole, image = lines(here("run", portable, story, coffee).stdout)
    assert (frame["error"], whole["frames"], whole["error"]) == (None, 1, "internal error: KeyError('oops')")
    assert image["label"]


def test_a_video_has_no_ready_tensors(here: Cli, wired_bundle: Path, wired_data: Path, story: Path) -> None:
    picture = wired_data / "bright" / "coffee.png"
    video, image = lines(here("run", wired_bundle, story, picture).stdout)
    assert "this bundle reads objects beside each image" in video["error"]
    assert (video["frames"], image["label"]) == (0, "bright")


def test_frames_do_not_pile_up(portable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Frame:
        def __init__(self, index: int) -> None:
            self.pixels, self.seconds, self.index = np.zeros((8, 8, 3), np.uint8), float(index), index

    def many(*_: object) -> Iterator[Frame]:
        nonlocal most
        for number in range(1000):
            frame = Frame(number)
            alive.add(frame)
            most = max(most, len(alive))
            yield frame
            del frame

    monkeypatch.setattr("vsa_rt.pipeline.looks.video", many)
    with vsa_rt.load(portable) as rt:
        rows = sum(1 for _ in Looks(rt, [subject_of("many.mp4")], Sample("all")))
    assert rows == 1001
    # Besides those that wait for a host thread: one that is being taken, and one that is being given.
    assert most <= UNPREPARED + 4


def test_a_reader_that_leaves_ends_the_run_quietly(portable: Path, story: Path) -> None:
    for form in ("jsonl", "csv", "table"):
        names = [str(story)] * 40
        command = [sys.executable, "-m", "vsa_rt", "run", str(portable), *names, "--format", form]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            errors = process.stderr.read().decode()
            assert (process.wait(SOON), errors) == (0, ""), form


# Addresses


def test_a_video_is_read_from_a_server(here: Cli, portable: Path, story: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(story.parent))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"127.0.0.1:{server.server_port}/story.mkv"
        rows = lines(here("run", portable, f"http://user:secret@{place}", "--fps", "0.5").stdout)
        server.shutdown()
    assert [(row["path"], row["seconds"]) for row in rows] == [
        (f"http://{place}", s) for s in (0, 2, 4, None)
    ]


@pytest.mark.parametrize(
    ("word", "name", "kind", "endless"),
    [
        ("rtsp://user:secret@camera/1", "rtsp://camera/1", "feed", True),
        ("/dev/video7", "/dev/video7", "feed", True),
        ("https://host/clip.MP4?x=1", "https://host/clip.MP4?x=1", "video", False),
        ("https://host/live.m3u8", "https://host/live.m3u8", "feed", False),
        ("ftp://host/a.mp4", "ftp://host/a.mp4", "feed", False),
        ("http://user:secret@host/a.jpg#x", "http://host/a.jpg#x", "image", False),
        ("absent.mp4", "absent.mp4", "video", False),
        ("absent.jpg", "absent.jpg", "image", False),
    ],
)
def test_words_stand_for_what_they_look_like(word: str, name: str, kind: str, endless: bool) -> None:
    found = subject_of(word)
    assert (found.name, found.kind, found.endless) == (name, kind, endless)


def test_addresses_that_are_not_read_are_errors(here: Cli, portable: Path, coffee: Path) -> None:
    done = here("run", portable, "http://host/a.jpg", "ftp://host/a.mp4", "/dev/null/none.mp4", coffee)
    picture, other, _, image = lines(done.stdout)
    assert done.returncode == 1
    assert list(picture) == IMAGE
    assert "only videos and feeds" in picture["error"]
    assert "expected one of http, https, rtsp" in other["error"]
    assert image["label"]


def test_what_has_no_end_comes_last(here: Cli, tmp_path: Path, coffee: Path) -> None:
    for first in ("rtsp://user:secret@camera/1", "/dev/video0"):
        done = here("run", tmp_path, first, coffee)
        fails(done, 2, "has no end.*name it last")
        assert "secret" not in done.stderr


# Live


@contextlib.contextmanager
def feed(toy_data: Path) -> Iterator[tuple[str, threading.Thread]]:
    """An address where a transport stream is sent to, 25 frames a second, until the block ends."""
    import av

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        address = f"udp://127.0.0.1:{free.getsockname()[1]}"
    pictures = [photograph(toy_data, label) for label in ("bright", "dark")]
    over = threading.Event()

    def send() -> None:
        with av.open(f"{address}?pkt_size=1316", "w", format="mpegts") as container:
            stream: Any = container.add_stream(
                "libx264", rate=25, options={"preset": "ultrafast", "tune": "zerolatency"}
            )
            stream.width, stream.height, stream.pix_fmt = 192, 128, "yuv420p"
            stream.codec_context.gop_size = 5
            number = 0
            while not over.wait(0.04):
                frame = av.VideoFrame.from_ndarray(pictures[number // 25 % 2], "rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame.reformat(format="yuv420p")))
                number += 1

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield address, thread
    finally:
        over.set()
        thread.join(SOON)


def drained(master: int, into: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # the other end is closed
        while data := os.read(master, 4096):
            into.append(data)


@contextlib.contextmanager
def seen_by_a_person(*arguments: object) -> Iterator[tuple[subprocess.Popen[bytes], list[bytes]]]:
    """The command line, whose standard error is a terminal and whose standard output is none; and what is on it."""
    # Whoever runs the tests may have chosen to be deaf to interrupts, and children inherit that.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.argv = ['vsa-rt', *{[str(a) for a in arguments]!r}]\n"
        "from vsa_rt.cli import main; main()\n"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    master, slave = pty.openpty()
    shown: list[bytes] = []
    reader = threading.Thread(target=drained, args=(master, shown), daemon=True)
    reader.start()
    try:
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=slave, env=buffered
        ) as process:
            os.close(slave)
            guard = threading.Timer(SOON, process.kill)
            guard.start()
            try:
                yield process, shown
            finally:
                guard.cancel()
                process.kill()
        reader.join(SOON)
    finally:
        os.close(master)


def text_of(stream: IO[bytes] | None) -> str:
    assert stream is not None
    return stream.read().decode()


@pytest.mark.parametrize("form", ["jsonl", "csv", "table"])
def test_rows_of_a_feed_come_while_it_lives_and_an_interrupt_ends_it_with_the_whole(
    portable: Path, toy_data: Path, form: str
) -> None:
    # One frame, and the next one too late: what comes has waited neither for a full batch nor for a full buffer.
    arguments = ("run", portable, "--fps", "1/600", "--format", form)
    with feed(toy_data) as (address, sender), seen_by_a_person(*arguments, address) as (process, shown):
        assert process.stdout is not None
        early = [process.stdout.readline().decode() for _ in range(1 if form == "jsonl" else 2)]
        assert sender.is_alive()
        assert address in early[-1], b"".join(shown)
        process.send_signal(signal.SIGINT)
        late = text_of(process.stdout)
        code = process.wait(SOON)
    assert code == 130, b"".join(shown)
    on_terminal = b"".join(shown).decode()
    assert "interrupted: 1 of 1 items" in on_terminal
    assert "0/?" in on_terminal
    if form == "jsonl":
        frame, whole = lines(early[-1] + late)
        assert (frame["seconds"], frame["index"]) == (0, 0)
        assert (whole["frames"], whole["error"], whole["label"]) == (1, None, frame["label"])
    else:
        assert {"csv": f"{address},,,1,", "table": "1 frame "}[form] in late


def test_a_video_that_is_interrupted_says_so(portable: Path, story: Path, coffee: Path) -> None:
    with vsa_rt.load(portable) as rt:
        looks = Looks(rt, [subject_of(str(coffee)), subject_of(str(story))], Sample("all"))
        with contextlib.closing(iter(looks)) as rows:
            first = next(rows)
            assert looks.rest() is None
            frames = [next(rows) for _ in range(4)]
        rest = looks.rest()
        assert looks.rest() is None
    assert isinstance(first, Look)
    assert all(isinstance(row, Look) and row.seconds is not None for row in frames)
    assert isinstance(rest, Whole)
    assert (rest.frames, rest.error, rest.summary["frames"]) == (4, "stopped before its end", 4)


def test_lines_go_to_standard_output_while_the_terminal_shows_a_bar(
    portable: Path, story: Path, coffee: Path
) -> None:
    for paths, count in (((coffee,) * 6, 6), ((coffee, story), 8)):
        with seen_by_a_person("run", portable, *paths) as (process, shown):
            rows = lines(text_of(process.stdout))
            code = process.wait(SOON)
        assert (code, len(rows)) == (0, count)
        assert "items" in b"".join(shown).decode()
