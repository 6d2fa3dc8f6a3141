"""Parts: whole or absent, each piece once, and after every error the next run goes on where the last part ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from ingestion import IDENTITY, LAYOUT, everything, failing, image, keys, moment, opened, rows, video, work

from vsa_rt.errors import UsageError, VsaError
from vsa_rt.pipeline.ingest.layout import Format, Layout
from vsa_rt.pipeline.ingest.ledger import Ledger
from vsa_rt.pipeline.ingest.parts import Parts
from vsa_rt.pipeline.ingest.records import Moment, Outcome


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_part_has_a_row_per_piece_and_a_row_per_frame_of_its_videos(out: Path) -> None:
    with opened(out) as parts:
        assert all(map(parts.add, [image("a.jpg", "c1"), video("b.mp4"), failing("c.jpg")]))
        assert (parts.pending, sorted(p.name for p in out.glob("*-*.jsonl"))) == (3, [])
    assert sorted(p.name for p in out.glob("*.jsonl")) == [
        "failed.jsonl",
        "frames-000001.jsonl",
        "items-000001.jsonl",
    ]
    assert [(r["key"], r["frames"], r["content"]) for r in rows(out)] == [
        ("a.jpg", None, "c1"),
        ("b.mp4", 3, None),
    ]
    frames = rows(out, "frames-*.jsonl")
    assert [(r["key"], r["index"], r["seconds"]) for r in frames] == [("b.mp4", n, n / 2) for n in range(3)]
    (failed,) = rows(out, "failed.jsonl")
    assert (failed["key"], failed["error"], failed["attempts"], failed["label"]) == (
        "c.jpg",
        "cannot be decoded",
        1,
        None,
    )
    assert failed.keys() - {"attempts"} == rows(out)[0].keys()


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet"])
def test_every_format_has_parts(out: Path, format: Format) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow writes Parquet")
    with opened(out, Layout(LAYOUT.labels, "softmax", format)) as parts:
        parts.add(video("b.mp4"))
        parts.add(image("a.jpg"))
    data = (out / f"items-000001.{format}").read_bytes()
    assert data.startswith({"jsonl": b"{", "csv": b"key,", "parquet": b"PAR1"}[format])
    assert (out / f"frames-000001.{format}").is_file()


def test_a_part_is_full_by_pieces_by_bytes_and_by_seconds(out: Path) -> None:
    now = [100.0]
    with opened(out, pieces=3, nbytes=4000, seconds=10, clock=lambda: now[0]) as parts:
        for key in "abcd":
            parts.add(image(key))
        assert (keys(out), parts.pending) == (["a", "b", "c"], 1)
        now[0] += 9
        parts.tick()
        assert parts.pending == 1
        now[0] += 1
        parts.tick()
        assert (keys(out), parts.pending) == (["a", "b", "c", "d"], 0)
        now[0] += 100
        parts.tick()
        parts.add(video("e", 50))
        assert (keys(out)[-1], parts.pending) == ("e", 0)
    assert len(list(out.glob("items-*"))) == 3


def test_a_piece_that_has_a_result_is_not_taken_again(out: Path) -> None:
    with opened(out) as parts:
        assert parts.add(image("a"))
        assert not parts.add(image("a"))
        parts.flush()
        assert not parts.add(image("a"))
        assert not parts.add(failing("a"))
        assert parts.repeated == 3
    with opened(out) as parts:
        assert not parts.add(image("a"))
    assert (keys(out), keys(out, "failed.jsonl")) == (["a"], [])


def test_frames_put_aside_come_once_with_their_piece_and_never_without_it(out: Path) -> None:
    with opened(out) as parts:
        for first in range(0, 40, 10):
            parts.frames("long.mp4", "video", [moment(n) for n in range(first, first + 10)])
            parts.frames("other.mp4", "video", [moment(first)])
        parts.frames("cut off.mp4", "video", [moment()])
        parts.frames("dropped.mp4", "video", [moment()])
        parts.flush()
        assert keys(out) == []
        parts.forget("dropped.mp4")
        parts.add(Outcome("cut off.mp4", "video", error="timed out"))
        parts.add(Outcome("long.mp4", "video", (moment(40), moment(41))))
        parts.add(video("dropped.mp4", 1))
    assert [r["index"] for r in rows(out, "frames-*") if r["key"] == "long.mp4"] == list(range(42))
    assert {r["key"]: r["frames"] for r in rows(out)} == {"long.mp4": 42, "dropped.mp4": 1}
    assert keys(out, "frames-*").count("dropped.mp4") == 1
    assert set(keys(out, "frames-*")) == {"long.mp4", "dropped.mp4"}
    with opened(out) as parts, pytest.raises(VsaError, match=r"a.jpg: an image has no rows of frames"):
        parts.frames("a.jpg", "image", [moment()])


def test_a_long_video_waits_on_the_disk_and_leaves_nothing_there(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsa_rt.pipeline.ingest.spool.IN_MEMORY", 1000)
    with opened(out) as parts:
        for n in range(50):
            parts.frames("a.mp4", "video", [moment(n)])
        assert not list(out.glob(".spool*"))  # it has no name, and goes with the process
        parts.add(Outcome("a.mp4", "video"))
    assert [r["index"] for r in rows(out, "frames-*")] == list(range(50))


def test_a_repost_has_its_originals_result_and_names_it(out: Path) -> None:
    with opened(out) as parts:
        parts.add(image("a.jpg", "c1", dark=0.125), perceptual="00ff")
        parts.add(video("b.mp4", 4, "c2"))
        parts.add(Outcome("waiting.jpg", "image", content="c1", reused="a.jpg"))
        parts.flush()
        parts.add(Outcome("entered.jpg", "image", content="c3", reused="a.jpg", distance=5))
        parts.add(Outcome("again.mp4", "video", content="c2", reused="b.mp4"))
        with pytest.raises(VsaError, match=r"x: reuses nobody, which is unknown"):
            parts.add(Outcome("x", "image", reused="nobody"))
        with pytest.raises(
            VsaError, match=r"x: reuses waiting.jpg, which is reused; expected a piece that was"
        ):
            parts.add(Outcome("x", "image", reused="waiting.jpg"))
    found_rows = {r["key"]: r for r in rows(out)}
    own = {"key", "content", "reused", "distance"}
    for key, original, distance in [
        ("waiting.jpg", "a.jpg", 0),
        ("entered.jpg", "a.jpg", 5),
        ("again.mp4", "b.mp4", 0),
    ]:
        row = found_rows[key]
        assert (row["reused"], row["distance"]) == (original, distance)
        assert {k: v for k, v in row.items() if k not in own} == {
            k: v for k, v in found_rows[original].items() if k not in own
        }
    assert set(keys(out, "frames-*")) == {"b.mp4"}
    with Ledger(out, IDENTITY) as ledger:
        assert list(ledger.perceptual()) == [("a.jpg", "00ff")]


def test_a_retried_piece_that_succeeds_leaves_the_list_and_one_that_fails_stays(out: Path) -> None:
    with opened(out) as parts:
        parts.add(failing("a"))
        parts.add(failing("b\udcff"))
    assert [(r["key"], r["attempts"]) for r in rows(out, "failed.jsonl")] == [("a", 1), (r"b\xff", 1)]
    with Ledger(out, IDENTITY) as ledger, Parts(ledger, LAYOUT) as parts:
        assert ledger.states(["a", "b\udcff"]) == {"a": "failed", "b\udcff": "failed"}
        assert parts.add(image("a"))
        assert parts.add(failing("b\udcff", "timed out"))
    assert keys(out) == ["a"]
    assert [(r["key"], r["error"], r["attempts"]) for r in rows(out, "failed.jsonl")] == [
        (r"b\xff", "timed out", 2)
    ]


def test_the_list_is_made_from_the_ledger_whatever_became_of_it(out: Path) -> None:
    with opened(out) as parts:
        parts.add(failing("a"))
    whole = (out / "failed.jsonl").read_bytes()
    (out / "failed.jsonl").write_bytes(b"nonsense")
    with opened(out):
        pass
    assert (out / "failed.jsonl").read_bytes() == whole


def test_the_same_outcomes_in_another_order_and_other_parts_give_the_same_rows(
    out: Path, tmp_path: Path
) -> None:
    outcomes = [image("a", "c1"), video("b"), failing("c"), image("d", dark=1 / 3), video("e", 1)]
    for folder, order, pieces in [(out, outcomes, 100), (tmp_path / "other", outcomes[::-1], 2)]:
        with opened(folder, pieces=pieces) as parts:
            for outcome in order:
                parts.add(outcome)
    assert everything(out) == everything(tmp_path / "other")


def test_a_contradiction_leaves_the_part_as_it_was(out: Path) -> None:
    with opened(out) as parts:
        parts.add(image("a"))
        wrong = Moment(0, 1, "grey", (), {"grey": 1.0})
        with pytest.raises(VsaError, match="scores for grey"):
            parts.add(Outcome("b", "video", (moment(), wrong)))
        with pytest.raises(VsaError, match="an outcome has no key"):
            parts.add(image(""))
        parts.add(video("b", 2))
    assert (keys(out), keys(out, "frames-*")) == (["a", "b"], ["b", "b"])


def test_the_ledger_must_be_of_the_same_layout(out: Path) -> None:
    with Ledger(out, IDENTITY) as ledger, pytest.raises(VsaError, match="lacks the layout's format"):
        Parts(ledger, Layout(LAYOUT.labels, "softmax", "csv"))


def test_what_a_killed_run_left_is_removed_and_nothing_else(out: Path) -> None:
    work(out)
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.suffix == ".jsonl"}
    left = [
        "items-000003.jsonl",
        "frames-000003.jsonl",
        ".items-000003.jsonl.partial",
        ".failed.jsonl.partial",
    ]
    left += [".frames-000002.parquet.partial", ".spool-x1"]
    kept = [
        "notes.txt",
        "items.jsonl",
        "items-4.jsonl",
        "my-items-000009.jsonl",
        "items-000009.txt",
        ".partial",
    ]
    for name in [*left, *kept]:
        (out / name).write_bytes(b"x")
    with opened(out) as parts:
        assert parts.notes == []
    names = {p.name for p in out.iterdir()}
    assert not names & set(left)
    assert names > set(kept)
    assert {n: (out / n).read_bytes() for n in before} == before


def test_parts_that_no_killed_run_leaves_are_not_touched(out: Path) -> None:
    work(out)
    for name in ("items-000003.jsonl", "items-000004.jsonl"):
        (out / name).write_bytes(b"x")
    with pytest.raises(
        UsageError, match=r"has items-000004.jsonl, and the last part in its ledger is 2: the ledger"
    ):
        work(out)
    assert (out / "items-000003.jsonl").exists()


def test_a_part_that_changed_is_an_error_and_one_that_was_taken_away_a_note(out: Path) -> None:
    work(out)
    part = out / "items-000001.jsonl"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    with pytest.raises(UsageError, match=rf"has {len(whole) - 1} bytes, and {len(whole)} were written"):
        work(out)
    part.unlink()
    with opened(out) as parts:
        (note,) = parts.notes
        assert note == "items-000001.jsonl: not there any more; their pieces count as done"
        assert not parts.add(image("a"))


def test_what_waits_is_written_when_something_else_ends_the_run(out: Path) -> None:
    def interrupted() -> None:
        with opened(out) as parts:
            parts.add(image("a"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert keys(out) == ["a"]
