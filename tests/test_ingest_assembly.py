"""Answers to outcomes: reposts wait for what they repeat, failures stay with their items, damage is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ingestion import LAYOUT, opened, rows

from vsa_rt.contracts import Sentiment, Task
from vsa_rt.errors import ItemError
from vsa_rt.pipeline.ingest.assembly import Assembly, Finished
from vsa_rt.pipeline.ingest.parts import Parts
from vsa_rt.pipeline.ingest.records import Kind
from vsa_rt.pipeline.ingest.summary import Rule
from vsa_rt.pipeline.ingest.tally import Tally
from vsa_rt.pipeline.ingest.work import End, Look, Work


class Bench:
    """An assembly with what it writes to and tells."""

    def __init__(self, parts: Parts, **options: Any) -> None:
        self.parts, self.tally = parts, Tally()
        self.entered: list[tuple[Kind, str]] = []
        self.drawn: list[Finished] = []
        self.assembly = Assembly(
            parts,
            Rule(LAYOUT.labels, Task.BINARY, window=0.0, shortest=0.0),
            self.tally,
            keep_damaged=options.get("keep_damaged", False),
            entered=lambda kind, content: self.entered.append((kind, content)),
            on_video=self.drawn.append,
        )

    def image(self, work: Work, dark: float = 0.25) -> None:
        self.assembly.look(Look(work), said(dark))
        self.assembly.end(End(work))

    def frames(self, work: Work, count: int) -> None:
        for index in range(count):
            self.assembly.look(Look(work, float(index), index), said(0.25))


def said(dark: float) -> Sentiment:
    return Sentiment("dark" if dark > 0.5 else "bright", {"dark": dark, "bright": 1 - dark}, "softmax")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with opened(tmp_path) as parts:
        yield Bench(parts)


def test_a_repost_that_was_read_faster_waits_for_what_it_repeats(bench: Bench, tmp_path: Path) -> None:
    first = Work("a", "image", content="c1")
    second = Work("b", "image", content="c1", reused="a", original=first)
    bench.assembly.end(End(second))
    assert bench.parts.pending == 0
    bench.image(first)
    bench.parts.flush()
    assert {r["key"]: r["reused"] for r in rows(tmp_path)} == {"a": None, "b": "a"}


def test_reposts_of_a_repost_wait_for_the_first(bench: Bench, tmp_path: Path) -> None:
    first = Work("a", "image", content="c1")
    for key in "bcd":
        bench.assembly.end(End(Work(key, "image", content="c1", reused="a", original=first)))
    bench.image(first)
    bench.parts.flush()
    assert {r["key"]: r["reused"] for r in rows(tmp_path)} == {"a": None, "b": "a", "c": "a", "d": "a"}


def test_a_repost_of_what_fails_now_fails_alike(bench: Bench, tmp_path: Path) -> None:
    first = Work("a", "image", content="c1")
    bench.assembly.end(End(Work("b", "image", content="c1", reused="a", original=first)))
    bench.assembly.end(End(first, "no picture"))
    bench.parts.flush()
    assert {e.key: e.reason for e in bench.parts._ledger.failed()} == {"a": "no picture", "b": "no picture"}
    assert bench.tally.numbers().failed == 2


def test_a_repost_of_what_is_tried_again_does_not_get_its_old_failure(tmp_path: Path) -> None:
    with opened(tmp_path) as parts:
        Bench(parts).assembly.end(End(Work("a", "image", content="c1"), "the disk was away"))
    with opened(tmp_path) as parts:
        bench = Bench(parts)
        again = Work("a", "image", content="c1")
        bench.assembly.end(End(Work("b", "image", content="c1", reused="a", original=again)))
        bench.image(again)
    assert {r["key"]: r["reused"] for r in rows(tmp_path)} == {"a": None, "b": "a"}


def test_an_answer_without_numbers_is_the_images_failure(bench: Bench) -> None:
    work = Work("a", "image", content="c1")
    bench.assembly.look(Look(work), ItemError("item 0", "the engine gave scores that are not numbers"))
    bench.assembly.end(End(work))
    entry = bench.parts.entry("a")
    assert entry is not None
    assert (entry.state, entry.reason) == ("failed", "the engine gave scores that are not numbers")


def test_a_video_of_which_no_frame_has_an_answer_fails_with_its_first_reason(bench: Bench) -> None:
    work = Work("v", "video", content="c1")
    for index, reason in enumerate(("first", "second")):
        bench.assembly.look(Look(work, index, index), ItemError("x", reason))
    bench.assembly.end(End(work))
    entry = bench.parts.entry("v")
    assert entry is not None
    assert (entry.state, entry.reason) == ("failed", "first")


@pytest.mark.parametrize("kept", [False, True])
def test_damage_fails_a_video_or_stands_in_its_summary(tmp_path: Path, kept: bool) -> None:
    with opened(tmp_path) as parts:
        bench = Bench(parts, keep_damaged=kept)
        work = Work("v", "video", content="c1")
        bench.frames(work, 3)
        bench.assembly.end(End(work, "cut off"))
        assert len(bench.drawn) == kept
    found = rows(tmp_path)
    assert [r["summary"]["damage"] for r in found] == (["cut off"] if kept else [])
    assert len(rows(tmp_path, "frames-*.jsonl")) == (3 if kept else 0)


def test_a_window_of_a_feed_keeps_what_was_seen_before_it_broke_off(bench: Bench, tmp_path: Path) -> None:
    work = Work("rtsp://c@t", "feed", dropped=2)
    bench.frames(work, 3)
    bench.assembly.end(End(work, "the camera is away", 4.5))
    bench.parts.flush()
    summary = rows(tmp_path)[0]["summary"]
    assert (summary["damage"], summary["dropped"]) == ("the camera is away", 2)
    assert summary["segments"][-1]["end"] == 4.5


def test_a_window_whose_frames_were_all_dropped_says_so(bench: Bench) -> None:
    bench.assembly.end(End(Work("rtsp://c@t", "feed", dropped=7)))
    entry = bench.parts.entry("rtsp://c@t")
    assert entry is not None
    assert "7 came while there was no time" in entry.reason


def test_frames_of_a_long_video_come_out_in_order(bench: Bench, tmp_path: Path) -> None:
    work = Work("v", "video", content="c1")
    bench.frames(work, 700)
    bench.assembly.end(End(work))
    bench.parts.flush()
    assert [r["index"] for r in rows(tmp_path, "frames-*.jsonl")] == list(range(700))
    assert rows(tmp_path)[0]["frames"] == 700


def test_bytes_are_told_once_the_ledger_has_them_and_not_before(bench: Bench) -> None:
    bench.image(Work("a", "image", content="c1"))
    assert bench.entered == []
    bench.parts.flush()
    bench.assembly.idle()
    assert bench.entered == [("image", "c1")]


def test_a_work_that_ended_holds_nothing_large(bench: Bench) -> None:
    work = Work("v", "video", content="c1")
    bench.frames(work, 3)
    bench.assembly.end(End(work))
    assert work.ended
    assert (work.track, work.moments, work.thumbnails) == (None, [], None)
