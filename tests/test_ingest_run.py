"""Sources through a bundle into a folder: every item once, in whatever shape it comes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import clip, numbered
from ingestion import everything, rows
from PIL import Image
from sources import as_jpeg, distinct, mixed_folder, some_video

import vsa_rt
from vsa_rt.errors import EnvironmentUnusable, UsageError
from vsa_rt.pipeline.ingest.ingest import IngestOptions, ingest
from vsa_rt.pipeline.ingest.report import IngestReport
from vsa_rt.pipeline.ingest.tally import Tally
from vsa_rt.pipeline.ingest.watch import Watch
from vsa_rt.runtime.sampling import Sample

pytest.importorskip("av", reason="ingestion decodes with PyAV")

Ingest = Callable[..., IngestReport]


@pytest.fixture
def into(tiny_bundle: Path, tmp_path: Path) -> Ingest:
    """Ingests into ``tmp_path / "out"``."""

    def run(
        *sources: Path | str, out: str = "out", tally: Tally | None = None, **options: Any
    ) -> IngestReport:
        return ingest(
            tiny_bundle, [str(s) for s in sources], tmp_path / out, IngestOptions(**options), tally=tally
        )

    return run


@pytest.fixture
def folder(photographs: list[Path], tmp_path: Path) -> Path:
    pictures = [as_jpeg(p, tmp_path / "jpeg") for p in photographs[:6]]
    return mixed_folder(tmp_path / "in", pictures)


def by_name(out: Path) -> dict[str, dict[str, Any]]:
    """Rows of items by the last part of their key."""
    return {Path(row["key"].replace("!", "/")).name: row for row in rows(out)}


def failures(out: Path) -> dict[str, str]:
    lines = (out / "failed.jsonl").read_text().splitlines()
    return {Path(json.loads(line)["key"]).name: json.loads(line)["error"] for line in lines}


def test_every_item_has_one_row_or_one_reason(into: Ingest, folder: Path, tmp_path: Path) -> None:
    report = into(folder)
    out = tmp_path / "out"
    found, failed = by_name(out), failures(out)
    assert set(failed) == {
        "empty.jpg", "empty.mp4", "text.jpg", "text.mp4", "cut.mp4", "sound.mp4"
    } | ({"cut.jpg"} if "cut.jpg" in failed else set())  # fmt: skip
    assert len(rows(out)) == len(found)
    assert {f"p{n}.jpg" for n in range(6)} <= set(found)
    assert {f"t{n}.jpg" for n in range(4)} | {f"z{n}.jpg" for n in range(4)} <= set(found)
    assert {"v1.mp4", "v2.mp4", "v3-repost.mp4"} <= set(found)
    assert report.ended == "complete"
    assert report.totals["failed"] == len(failed)
    assert report.totals["done"] + report.totals["reused"] == len(found)


def test_an_image_says_what_the_runtime_says(
    into: Ingest, tiny_bundle: Path, photographs: list[Path], tmp_path: Path
) -> None:
    chosen = photographs[:5]
    into(*chosen)
    found = by_name(tmp_path / "out")
    with vsa_rt.load(tiny_bundle) as runtime:
        for path, expected in zip(chosen, runtime(chosen), strict=True):
            assert isinstance(expected, vsa_rt.Sentiment)
            row = found[path.name]
            assert row["label"] == expected.label
            assert row["scores"] == pytest.approx(expected.scores, abs=2e-3)
            assert row["error"] is None


def test_a_video_says_what_its_frames_say(into: Ingest, tiny_bundle: Path, tmp_path: Path) -> None:
    video = some_video(tmp_path / "v.mp4", frames=50)
    into(video, sample=Sample.parse("every=5"))
    frames = rows(tmp_path / "out", "frames-*.jsonl")
    with vsa_rt.load(tiny_bundle) as runtime:
        looked = list(vsa_rt.video(str(video), "every=5"))
        expected = runtime(looked)
    assert [f["seconds"] for f in frames] == [pytest.approx(frame.seconds) for frame in looked]
    assert [f["index"] for f in frames] == list(range(10))
    for row, sentiment in zip(frames, expected, strict=True):
        assert isinstance(sentiment, vsa_rt.Sentiment)
        assert row["scores"] == pytest.approx(sentiment.scores, abs=2e-3)
    whole = rows(tmp_path / "out")[0]
    assert (whole["kind"], whole["frames"]) == ("video", 10)
    mean = {label: np.mean([f["scores"][label] for f in frames]) for label in frames[0]["scores"]}
    assert whole["scores"] == pytest.approx(mean, abs=2e-6)
    assert whole["summary"]["segments"][0]["start"] == 0


def test_a_second_run_looks_at_nothing_again(into: Ingest, folder: Path, tmp_path: Path) -> None:
    into(folder)
    before = sorted((p.name, p.read_bytes()) for p in (tmp_path / "out").glob("*-*"))
    tally = Tally()
    into(folder, tally=tally)
    assert tally.numbers().found == 0
    assert sorted((p.name, p.read_bytes()) for p in (tmp_path / "out").glob("*-*")) == before


def test_what_came_since_is_added(
    into: Ingest, folder: Path, photographs: list[Path], tmp_path: Path
) -> None:
    into(folder)
    before = len(rows(tmp_path / "out"))
    distinct(photographs[0], folder / "new.jpg", 77)
    report = into(folder)
    assert (report.numbers.found, report.numbers.images) == (1, 1)
    assert len(rows(tmp_path / "out")) == before + 1


def test_reposts_reuse_the_first_result(into: Ingest, folder: Path, tmp_path: Path) -> None:
    report = into(folder)
    found = by_name(tmp_path / "out")
    # Archives and the folder `again` come before `p0.jpg` in the order of a walk, so either may be the first.
    for number in range(3):
        first, second = sorted(
            (found[f"p{number}.jpg"], found[f"repost{number}.jpg"]), key=lambda r: r["reused"] or ""
        )
        assert first["reused"] is None
        assert second["reused"] == first["key"]
        assert second["distance"] == 0
        assert {k: first[k] for k in ("label", "scores", "content")} == {
            k: second[k] for k in ("label", "scores", "content")
        }
    video = found["v3-repost.mp4"]
    assert video["reused"] == found["v1.mp4"]["key"]
    assert video["summary"] == found["v1.mp4"]["summary"]
    assert report.numbers.reused == 4
    assert report.numbers.frames == report.numbers.images + 4 * 2 - 3  # four seconds each of two videos


def test_near_duplicates_are_reused_on_request(into: Ingest, photographs: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("imagehash", reason="near duplicates need imagehash")
    source = tmp_path / "in"
    source.mkdir()
    with Image.open(photographs[0]) as image:
        image.convert("RGB").save(source / "a.jpg", quality=95)
        image.convert("RGB").save(source / "b.jpg", quality=60)
    with Image.open(photographs[1]) as image:
        image.convert("RGB").save(source / "c.jpg", quality=90)
    into(source, out="exact")
    assert [r["reused"] for r in rows(tmp_path / "exact")] == [None, None, None]
    into(source, out="near", distance=6)
    found = by_name(tmp_path / "near")
    assert found["b.jpg"]["reused"] == found["a.jpg"]["key"]
    assert 0 <= found["b.jpg"]["distance"] <= 6
    assert found["b.jpg"]["scores"] == found["a.jpg"]["scores"]
    assert found["c.jpg"]["reused"] is None


def test_near_duplicates_of_an_earlier_run_are_known(
    into: Ingest, photographs: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("imagehash", reason="near duplicates need imagehash")
    source = tmp_path / "in"
    source.mkdir()
    with Image.open(photographs[0]) as image:
        image.convert("RGB").save(source / "a.jpg", quality=95)
        into(source, distance=6)
        image.convert("RGB").save(source / "b.jpg", quality=60)
    into(source, distance=6)
    found = by_name(tmp_path / "out")
    assert found["b.jpg"]["reused"] == found["a.jpg"]["key"]


def test_a_repost_of_a_near_duplicate_names_what_was_computed(
    into: Ingest, photographs: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("imagehash", reason="near duplicates need imagehash")
    source = tmp_path / "in"
    source.mkdir()
    with Image.open(photographs[0]) as image:
        image.convert("RGB").save(source / "a.jpg", quality=95)
        image.convert("RGB").save(source / "b.jpg", quality=60)
    shutil.copy(source / "b.jpg", source / "c.jpg")
    into(source, distance=6)
    found = by_name(tmp_path / "out")
    assert found["b.jpg"]["reused"] == found["c.jpg"]["reused"] == found["a.jpg"]["key"]
    assert found["b.jpg"]["distance"] == found["c.jpg"]["distance"]


def test_a_repost_of_what_failed_fails_alike(into: Ingest, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in "ab":
        (source / f"{name}.jpg").write_text("not a picture")
    into(source)
    found = failures(tmp_path / "out")
    assert set(found) == {"a.jpg", "b.jpg"}
    assert found["a.jpg"] == found["b.jpg"]


def test_failed_items_are_tried_again_on_request_only(
    into: Ingest, photographs: list[Path], tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.jpg").write_bytes(b"")
    into(source)
    (source / "a.jpg").write_bytes(photographs[0].read_bytes())
    assert into(source).numbers.found == 0
    assert "a.jpg" in failures(tmp_path / "out")
    report = into(source, retry_failed=True)
    assert report.numbers.images == 1
    assert failures(tmp_path / "out") == {}
    assert [r["error"] for r in rows(tmp_path / "out")] == [None]


@pytest.mark.parametrize(
    "other",
    [
        {"sample": Sample.parse("fps=2")},
        {"distance": 4},
        {"format": "csv"},
        {"keep_damaged": True},
        {"precision": "fp32", "target": vsa_rt.contracts.Target.parse("onnxruntime:cpu")},
        {"batch": 2},
    ],
    ids=["sample", "dedup", "format", "damaged", "engine", "batch"],
)
def test_other_options_do_not_mix_with_old_results(
    into: Ingest, photographs: list[Path], other: dict[str, Any]
) -> None:
    into(photographs[0])
    with pytest.raises(UsageError, match="has results of another run"):
        into(photographs[0], **other)


def test_another_bundle_does_not_mix_with_old_results(
    into: Ingest, bundle_copy: Path, reseal: Callable[..., None], photographs: list[Path], tmp_path: Path
) -> None:
    into(photographs[0])
    reseal(bundle_copy, vsa_rt="0.0.1")
    with pytest.raises(UsageError, match="bundle: "):
        ingest(bundle_copy, [str(photographs[0])], tmp_path / "out", IngestOptions())


def test_a_damaged_video_fails_or_is_kept(into: Ingest, tmp_path: Path) -> None:
    whole = some_video(tmp_path / "whole.mkv", frames=60)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    into(cut, out="failed", sample=Sample.parse("every=2"))
    reason = failures(tmp_path / "failed")["cut.mkv"]
    assert rows(tmp_path / "failed", "frames-*.jsonl") == []

    into(cut, out="kept", sample=Sample.parse("every=2"), keep_damaged=True)
    row = rows(tmp_path / "kept")[0]
    assert row["summary"]["damage"] == reason
    assert 1 <= row["frames"] < 30
    assert len(rows(tmp_path / "kept", "frames-*.jsonl")) == row["frames"]


def test_a_video_that_goes_on_for_too_long_fails_alone(into: Ingest, tmp_path: Path) -> None:
    long = some_video(tmp_path / "long.mp4", frames=60)
    short = some_video(tmp_path / "short.mp4", frames=15, first=9)
    into(long, short, longest=3.0)
    assert "longer than 3 s" in failures(tmp_path / "out")["long.mp4"]
    assert list(by_name(tmp_path / "out")) == ["short.mp4"]


def test_a_picture_of_8k_has_a_result(into: Ingest, tmp_path: Path) -> None:
    video = clip(tmp_path / "8k.mp4", [numbered(n, (4320, 7680)) for n in range(2)], codec="mpeg4", rate=1)
    into(video)
    assert by_name(tmp_path / "out")["8k.mp4"]["frames"] == 2


def test_stopping_writes_what_is_done_and_the_next_run_goes_on(
    tiny_bundle: Path, photographs: list[Path], tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(40):
        distinct(photographs[0], source / f"p{number:02}.jpg", number)
    stop, tally = threading.Event(), _StoppingTally(after=10)
    tally.stop = stop
    out = tmp_path / "out"
    report = ingest(tiny_bundle, [str(source)], out, IngestOptions(), tally=tally, stop=stop)
    assert report.ended == "stopped"
    first = len(rows(out))
    assert 10 <= first < 40
    report = ingest(tiny_bundle, [str(source)], out, IngestOptions())
    assert report.ended == "complete"
    assert len({r["key"] for r in rows(out)}) == len(rows(out)) == 40
    assert report.numbers.found <= 40 - first


class _StoppingTally(Tally):
    """Stops the run after so many frames."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.stop = threading.Event()
        self._after = after

    def add(self, event: Any, count: int = 1) -> None:
        super().add(event, count)
        if event == "frames" and self.numbers().frames >= self._after:
            self.stop.set()


def test_a_full_disk_ends_the_run_with_a_sentence_and_the_next_one_goes_on(
    into: Ingest, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vsa_rt.pipeline.ingest import durable

    into(folder, out="calm", part_items=3)
    stage, calls = durable.stage, 0

    def full(*arguments: Any) -> int:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return stage(*arguments)

    with monkeypatch.context() as planted:
        planted.setattr(durable, "stage", full)
        with pytest.raises(EnvironmentUnusable, match=r"No space left on device.*same command again"):
            into(folder, part_items=3)
    assert 0 < len(rows(tmp_path / "out")) < len(rows(tmp_path / "calm"))
    into(folder, part_items=3)
    assert everything(tmp_path / "out") == everything(tmp_path / "calm")


class _CrashingTally(Tally):
    """Crashes every decoder once, in the middle of a video."""

    def __init__(self) -> None:
        super().__init__()
        self.crashed: set[int] = set()

    def add(self, event: Any, count: int = 1) -> None:
        super().add(event, count)
        if event == "frames" and not self.crashed and self.numbers().frames >= 5:
            tasks = Path("/proc/self/task").glob("*/children")
            children = {int(pid) for task in tasks for pid in task.read_text().split()}
            self.crashed = {
                pid for pid in children if b"decoder_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
            }
            for pid in self.crashed:
                os.kill(pid, signal.SIGSEGV)


@pytest.mark.skipif(sys.platform != "linux", reason="finds its children in /proc")
def test_a_decoder_that_crashes_takes_its_item_with_it_and_no_other(
    into: Ingest, photographs: list[Path], tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    some_video(source / "a.mp4", frames=250)
    for number in range(12):
        distinct(photographs[0], source / f"p{number:02}.jpg", number)
    tally = _CrashingTally()
    report = into(source, tally=tally, sample=Sample.parse("all"), threads=1)
    assert tally.crashed
    found = failures(tmp_path / "out")
    # What each decoder had just then; both may have been at something.
    assert 1 <= len(found) <= len(tally.crashed)
    assert all("crashed (SIGSEGV)" in reason for reason in found.values())
    assert report.numbers.images + report.numbers.videos + len(found) == 13
    again = into(source, sample=Sample.parse("all"), threads=1, retry_failed=True)
    assert again.totals == {"done": 13, "failed": 0, "reused": 0}


def test_nothing_goes_on_after_a_run_that_followed_a_folder(
    tiny_bundle: Path, photographs: list[Path], tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    distinct(photographs[0], source / "a.jpg", 0)
    tally = _StoppingTally(after=1)
    options = IngestOptions(watch=Watch(period=0.05))
    ingest(tiny_bundle, [str(source)], tmp_path / "out", options, tally=tally, stop=tally.stop)
    deadline = time.monotonic() + 30
    while any(t.name.startswith("vsa-ingest") for t in threading.enumerate()):
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("photo.jpg", "video"),
        ("clip.mp4", "image"),
        ("photo.png", "image"),
        ("header.mp4", "header"),
        ("playlist.m3u8", "playlist"),
    ],
)
def test_a_wrong_suffix_or_a_strange_file_ends_as_a_result_or_a_reason(
    into: Ingest, photographs: list[Path], tmp_path: Path, name: str, content: str
) -> None:
    video = some_video(tmp_path / "v.mp4")
    contents = {
        "video": video.read_bytes(),
        "image": as_jpeg(photographs[0], tmp_path / "jpeg").read_bytes(),
        "header": video.read_bytes()[:32],
        # Without an end, and it names another file.
        "playlist": f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{video}\n".encode(),
    }
    path = tmp_path / name
    path.write_bytes(contents[content])
    into(path)
    found = rows(tmp_path / "out")
    if content in ("video", "image"):
        assert [row["kind"] for row in found] == [content]
    else:
        assert found == []
        assert failures(tmp_path / "out")[name]


@pytest.mark.parametrize("most", [1, 2**28])
def test_bytes_that_wait_for_a_decoder_are_counted_and_all_given_back(
    into: Ingest, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    from vsa_rt.pipeline.ingest import intake
    from vsa_rt.pipeline.ingest.budget import Held

    seen: list[Held] = []
    taken: list[int] = []

    class Watched(Held):
        def __init__(self, _: int) -> None:
            super().__init__(most)
            seen.append(self)

        def take(self, nbytes: int) -> Callable[[], None]:
            taken.append(nbytes)
            return super().take(nbytes)

    monkeypatch.setattr(intake, "Held", Watched)
    into(folder)
    assert sum(taken) >= sum(path.stat().st_size for path in folder.glob("p*.jpg"))
    assert seen[0].now == 0
    assert len(rows(tmp_path / "out")) > 10


def test_results_may_not_lie_in_their_sources(into: Ingest, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lies in the source"):
        into(tmp_path)


def test_a_list_on_standard_input(tiny_bundle: Path, photographs: list[Path], tmp_path: Path) -> None:
    lines = "".join(f"{p}\n" for p in photographs[:3])
    ingest(tiny_bundle, ["-"], tmp_path / "out", IngestOptions(), stdin=BytesIO(lines.encode()))
    assert {r["key"] for r in rows(tmp_path / "out")} == {str(p) for p in photographs[:3]}


def test_a_bundle_that_takes_objects_reads_them_beside_each_image(
    wired_bundle: Path, wired_data: Path, tmp_path: Path
) -> None:
    images = sorted(
        p.with_name(p.name.removesuffix(".objects.npy")) for p in wired_data.rglob("*.objects.npy")
    )[:3]
    source = tmp_path / "in"
    source.mkdir()
    for image in images:
        shutil.copy(image, source / image.name)
        shutil.copy(f"{image}.objects.npy", source / f"{image.name}.objects.npy")
    same, without = f"same{images[0].suffix}", f"without{images[0].suffix}"
    # The same picture with other objects is no repost.
    shutil.copy(images[0], source / same)
    objects = np.load(f"{images[0]}.objects.npy")
    np.save(source / f"{same}.objects.npy", objects * 2 + 1)
    shutil.copy(images[0], source / without)
    some_video(source / "v.mp4")
    ingest(wired_bundle, [str(source)], tmp_path / "out", IngestOptions())
    found = by_name(tmp_path / "out")
    assert "reads objects beside each image" in failures(tmp_path / "out")["v.mp4"]
    assert set(found) == {*(i.name for i in images), same}
    assert f"no file {without}.objects.npy beside it" in failures(tmp_path / "out")[without]
    assert found[same]["reused"] is None
    with vsa_rt.load(wired_bundle) as runtime:
        expected = runtime([source / same])[0]
    assert isinstance(expected, vsa_rt.Sentiment)
    assert found[same]["scores"] == pytest.approx(expected.scores, abs=2e-3)
