"""The ledger: one owner, one identity, answers by index, and clear words about what is wrong with it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vsa_rt.errors import EnvironmentUnusable, UsageError, VsaError
from vsa_rt.pipeline.ingest.ledger import NAME, Ledger
from vsa_rt.pipeline.ingest.ledger_rows import QUERIES, Entry, Part, State

IDENTITY = {"bundle": "b1", "threshold": "0.5"}
RESULT: dict[str, Any] = {
    "label": "dark",
    "labels": [],
    "scores": {"dark": 0.7, "bright": 0.3},
    "frames": None,
    "summary": None,
}
#: Opens the folder of its argument, forks a child that outlives it, says so, and waits to be killed.
HOLDER = """
import os, sys, time
from pathlib import Path
from vsa_rt.pipeline.ingest.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), {"bundle": "b1", "threshold": "0.5"})
child = os.fork()
if not child:
    os.close(1)
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""


def part(number: int, items: int = 1) -> Part:
    return Part(number, items, 0, 100, 0)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "out"


@pytest.fixture
def ledger(out: Path) -> Iterator[Ledger]:
    with Ledger(out, IDENTITY) as opened:
        yield opened


def test_bytes_whose_result_was_reused_are_known_too(ledger: Ledger) -> None:
    done = Entry("a.jpg", "image", "done", "c1", 1, result=RESULT)
    near = Entry("b.jpg", "image", "reused", "c2", 1, reused="a.jpg", distance=3)
    ledger.enter(part(1, 2), [done, near])
    found = ledger.by_content("c2", "image")
    assert found is not None
    assert (found.key, found.reused, found.distance) == ("b.jpg", "a.jpg", 3)


def test_what_is_entered_is_found_after_opening_again(out: Path) -> None:
    done = Entry("a.jpg", "image", "done", "c1", 1, perceptual="00ff", result=RESULT)
    reused = Entry("b.jpg", "image", "reused", "c1", 1, reused="a.jpg", distance=3)
    failed = Entry("c.mp4", "video", "failed", reason="no frames")
    with Ledger(out, IDENTITY) as ledger:
        assert ledger.counts() == {"done": 0, "failed": 0, "reused": 0}
        assert ledger.enter(part(1, 2), [done, reused, failed])
    with Ledger(out, IDENTITY) as ledger:
        assert [ledger.entry(k) for k in ("a.jpg", "b.jpg", "c.mp4", "d.jpg")] == [done, reused, failed, None]
        assert ledger.counts() == {"done": 1, "failed": 1, "reused": 1}
        assert ledger.states(["c.mp4", "d.jpg", "a.jpg"]) == {"c.mp4": "failed", "a.jpg": "done"}
        assert [ledger.done(k) for k in ("a.jpg", "b.jpg", "c.mp4", "d.jpg")] == [True, True, False, False]
        assert list(ledger.failed()) == [failed]
        assert list(ledger.perceptual()) == [("a.jpg", "00ff")]
        assert (ledger.parts(), ledger.last_part) == ([part(1, 2)], 1)


def test_a_repost_is_found_under_the_first_computed_piece_of_its_kind(ledger: Ledger) -> None:
    kinds: list[State] = ["failed", "done", "done", "reused"]
    entries = [
        Entry(f"{n}", "image", state, "same", reason="broken" if state == "failed" else "")
        for n, state in enumerate(kinds)
    ]
    ledger.enter(part(1, 3), [*entries, Entry("film", "video", "done", "same")])
    image, film = ledger.by_content("same", "image"), ledger.by_content("same", "video")
    assert (image and image.key, film and film.key) == ("1", "film")
    assert ledger.by_content("same", "feed") is None
    assert ledger.by_content("", "image") is None


def test_a_failed_piece_can_end_again_and_a_done_one_cannot(ledger: Ledger) -> None:
    failed = Entry("a", "image", "failed", reason="timed out")
    assert ledger.enter(None, [failed])
    assert ledger.enter(None, [failed])
    found = ledger.entry("a")
    assert found is not None
    assert (found.attempts, ledger.counts()["failed"]) == (2, 1)
    assert ledger.enter(part(1), [Entry("a", "image", "done", result=RESULT)])
    assert ledger.entry("a") == Entry("a", "image", "done", part=1, attempts=3, result=RESULT)
    assert ledger.counts() == {"done": 1, "failed": 0, "reused": 0}
    assert not ledger.enter(part(2), [Entry("b", "image", "done")])
    with pytest.raises(VsaError, match=r"^a: a piece is entered twice"):
        ledger.enter(part(3), [Entry("c", "image", "done"), Entry("a", "image", "done")])
    with pytest.raises(VsaError, match="entered twice"):
        ledger.enter(part(3), [Entry("d", "image", "done"), Entry("d", "image", "done")])
    with pytest.raises(VsaError, match="without a part"):
        ledger.enter(None, [Entry("e", "image", "done")])
    assert (ledger.states("cde"), ledger.last_part) == ({}, 2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(keys=st.lists(st.text(st.characters(codec=None), min_size=1), unique=True, max_size=20))
def test_every_key_is_found_again_and_no_two_are_one(tmp_path: Path, keys: list[str]) -> None:
    keys = [*keys, "plain", "caf\udce9.jpg", "café.jpg", "\\xe9", "a\x00b", "\ud83d\ude00", "\U0001f600"]
    keys = list(dict.fromkeys(keys))
    folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
    with Ledger(folder, IDENTITY) as ledger:
        ledger.enter(None, [Entry(k, "image", "failed", reason=k) for k in keys])
        assert list(ledger.states(keys)) == keys
        assert sorted(e.key for e in ledger.failed()) == sorted(keys)
        assert ledger.counts()["failed"] == len(keys)


def test_more_failed_pieces_than_a_page_come_once_each_sorted_by_key(ledger: Ledger) -> None:
    keys = [f"{n:05d}" for n in range(1203)]
    ledger.enter(None, [Entry(k, "image", "failed") for k in reversed(keys)])
    assert [e.key for e in ledger.failed()] == keys
    ledger.enter(part(1), [Entry(f"p{k}", "image", "done", perceptual=k) for k in keys])
    assert [h for _, h in ledger.perceptual()] == keys


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("entry", "SEARCH pieces USING INDEX sqlite_autoindex_pieces_1 (key=?)"),
        ("state", "SEARCH pieces USING INDEX sqlite_autoindex_pieces_1 (key=?)"),
        ("by_content", "SEARCH pieces USING INDEX with_result_by_content (content=? AND kind=?)"),
        ("failed", "SEARCH pieces USING INDEX failed_by_key (key>?)"),
        ("perceptual", "SEARCH pieces USING COVERING INDEX hashed_by_order (state=? AND id>?)"),
        ("counts", "SCAN pieces USING COVERING INDEX by_state"),
        ("last_part", "SEARCH parts"),
    ],
)
def test_every_question_is_answered_by_one_step_through_an_index(
    ledger: Ledger, name: str, step: str
) -> None:
    query = QUERIES[name]
    with sqlite3.connect(ledger.folder / NAME) as reader:
        plan = reader.execute(f"EXPLAIN QUERY PLAN {query}", ["x"] * query.count("?")).fetchall()
    reader.close()
    assert [row[3].replace(" TABLE", "") for row in plan] == [step]  # SQLite before 3.36 says SEARCH TABLE


def test_no_question_is_left_out_of_that() -> None:
    assert sorted(QUERIES) == ["by_content", "counts", "entry", "failed", "last_part", "perceptual", "state"]


def test_the_plan_of_a_question_without_index_is_a_scan(ledger: Ledger) -> None:
    with sqlite3.connect(ledger.folder / NAME) as reader:
        plan = reader.execute("EXPLAIN QUERY PLAN SELECT * FROM pieces WHERE reason = 'x'").fetchall()
    reader.close()
    assert plan[0][3].startswith("SCAN")


def test_another_identity_is_refused_and_named_and_nothing_changes(out: Path) -> None:
    Ledger(out, IDENTITY).close()
    before = (out / NAME).read_bytes()
    for other, words in [
        ({**IDENTITY, "bundle": "b2"}, "bundle: b1 there, b2 now"),
        ({"bundle": "b1"}, "threshold: 0.5 there, not set now"),
        ({**IDENTITY, "dedup": "near"}, "dedup: not set there, near now"),
    ]:
        with pytest.raises(UsageError, match=rf"{words}\).*name another folder, or give the same"):
            Ledger(out, other)
    assert (out / NAME).read_bytes() == before
    Ledger(out, IDENTITY).close()


def test_one_process_opens_it_once(out: Path) -> None:
    with Ledger(out, IDENTITY), pytest.raises(UsageError, match="another run works there in this process"):
        Ledger(out, IDENTITY)
    Ledger(out, IDENTITY).close()


def test_two_processes_never_hold_it_and_a_killed_one_lets_go_though_its_child_lives(out: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(UsageError, match=rf"another run works there \(process {holder.pid} on "):
            Ledger(out, IDENTITY)
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # it lives
        Ledger(out, IDENTITY).close()
    finally:
        holder.stdout.close()
        holder.kill()
        holder.wait()
        os.kill(child, signal.SIGKILL)


def test_questions_come_from_any_thread(ledger: Ledger) -> None:
    ledger.enter(part(1), [Entry("a", "image", "done")])
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(ledger.done("a"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4


def spoil(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(data)


def test_a_damaged_database_is_said_to_be_damaged(out: Path) -> None:
    with Ledger(out, IDENTITY) as ledger:
        ledger.enter(part(1), [Entry(f"{n}", "image", "done", "c" * 64) for n in range(500)])
    whole = (out / NAME).read_bytes()
    page = 4096
    for at, data in [
        (0, b"x" * 100),  # the header
        (1000, b"\xff" * 3000),  # the schema
        (page * 3, b"\xff" * page * (len(whole) // page - 3)),
    ]:
        (out / NAME).write_bytes(whole)
        spoil(out / NAME, at, data)
        with pytest.raises(UsageError, match=r"is damaged \(.*\); restore it, or name another folder"):
            Ledger(out, IDENTITY)
    (out / NAME).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="is damaged"):
        Ledger(out, IDENTITY)
    (out / NAME).write_bytes(whole)
    with Ledger(out, IDENTITY) as ledger:
        assert ledger.counts()["done"] == 500


def test_a_value_that_cannot_be_read_is_damage_too(out: Path) -> None:
    with Ledger(out, IDENTITY) as ledger:
        ledger.enter(part(1), [Entry("a", "image", "done", result=RESULT)])
    with sqlite3.connect(out / NAME) as other:
        other.execute("UPDATE pieces SET result = '{'")
    other.close()
    with Ledger(out, IDENTITY) as ledger, pytest.raises(UsageError, match="is damaged"):
        ledger.entry("a")


def test_a_foreign_database_and_another_version_stay_as_they_are(out: Path) -> None:
    out.mkdir(parents=True)
    with sqlite3.connect(out / NAME) as other:
        other.execute("CREATE TABLE songs (title TEXT)")
    other.close()
    before = (out / NAME).read_bytes()
    with pytest.raises(UsageError, match=r"is not a ledger of vsa-rt"):
        Ledger(out, IDENTITY)
    assert (out / NAME).read_bytes() == before
    second = out.parent / "second"
    Ledger(second, IDENTITY).close()
    with sqlite3.connect(second / NAME) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(UsageError, match=r"another version of vsa-rt \(tables 99, here 1\)"):
        Ledger(second, IDENTITY)


def test_results_without_a_ledger_are_left_alone(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "items-000003.csv").write_bytes(b"key\n")
    with pytest.raises(UsageError, match=r"has items-000003.csv, but no ledger.sqlite"):
        Ledger(out, IDENTITY)
    assert (out / "items-000003.csv").read_bytes() == b"key\n"


def test_a_file_in_the_folders_place_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(UsageError, match="is not a folder; name another one"):
        Ledger(tmp_path / "out", IDENTITY)


@pytest.mark.parametrize(("where", "name"), [(Path, "mkdir"), (os, "open")])
def test_a_folder_that_cannot_be_written_is_a_sentence(
    out: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(where, name, refuse)
    with pytest.raises(
        EnvironmentUnusable, match=r"out: cannot be written: Read-only file system; name another"
    ):
        Ledger(out, IDENTITY)


def test_a_removed_ledger_takes_nothing_more(ledger: Ledger) -> None:
    (ledger.folder / NAME).unlink()
    with pytest.raises(EnvironmentUnusable, match="was removed while a run wrote there"):
        ledger.enter(None, [Entry("a", "image", "failed")])


class _Full(sqlite3.Connection):
    """A database whose disk is full when a transaction ends: before it is kept, or after."""

    kept = False

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql == "COMMIT" and self.total_changes and not self.is_new:
            if self.kept:
                super().execute(sql, *values)
            raise sqlite3.OperationalError("database or disk is full")
        return super().execute(sql, *values)

    @property
    def is_new(self) -> bool:
        return bool(super().execute("SELECT count(*) FROM pieces").fetchone()[0] == 0)


@pytest.mark.parametrize("kept", [False, True])
def test_after_an_error_in_commit_the_next_opening_tells_what_was_kept(
    out: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    real = sqlite3.connect
    monkeypatch.setattr(_Full, "kept", kept)
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **k, factory=_Full))
    with (
        Ledger(out, IDENTITY) as ledger,
        pytest.raises(
            EnvironmentUnusable, match="database or disk is full; put that right and give the same"
        ),
    ):
        ledger.enter(part(1), [Entry("a", "image", "done")])
    monkeypatch.undo()
    with Ledger(out, IDENTITY) as ledger:
        assert (ledger.done("a"), ledger.last_part) == (kept, int(kept))


def test_it_is_set_so_that_a_finished_transaction_lasts(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Watched(sqlite3.Connection):
        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            said.append(sql)
            return super().execute(sql, *values)

    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **k, factory=Watched))
    with Ledger(out, IDENTITY) as ledger:
        first = next(n for n, sql in enumerate(said) if sql.startswith("BEGIN"))
        assert "PRAGMA synchronous = EXTRA" in said[:first]
        with sqlite3.connect(ledger.folder / NAME) as reader:
            assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        reader.close()
