"""Planted faults: an error at any step of a part is a sentence, and everything before it is whole."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ingestion import IDENTITY, everything, failing, image, keys, moment, opened, video, work

from vsa_rt.errors import EnvironmentUnusable, VsaError
from vsa_rt.pipeline.ingest import durable
from vsa_rt.pipeline.ingest.ledger import Ledger


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


class Planted:
    """A function that fails at its n-th call, and counts."""

    def __init__(self, real: Callable[..., Any], at: int, error: Exception) -> None:
        self.real, self.at, self.error, self.calls = real, at, error, 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        return self.real(*args, **options)


class Torn:
    """A file whose writes fail after some bytes."""

    def __init__(self, path: Path, mode: str) -> None:
        self.file = open(path, mode)  # noqa: SIM115 - closed where the code under test closes it

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.file.write(data[: len(data) // 2])
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    def flush(self) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def plant(monkeypatch: pytest.MonkeyPatch, step: str, at: int) -> Planted:
    full = OSError(errno.ENOSPC, "No space left on device")
    if step == "commit":

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
                if sql.startswith("SELECT"):
                    return super().execute(sql, *values)
                return planted(super().execute, sql, *values)  # type: ignore[no-any-return]

        def real(execute: Callable[..., Any], sql: str, *values: Any) -> Any:
            return execute(sql, *values)

        planted = Planted(real, at, sqlite3.OperationalError("database or disk is full"))
        connect = sqlite3.connect
        monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Connection))
        return planted
    if step == "write":
        planted = Planted(open, at, full)

        def torn(path: Path, mode: str) -> Any:
            planted.calls += 1
            return Torn(path, mode) if planted.calls == at else open(path, mode)

        monkeypatch.setattr(durable, "open", torn, raising=False)
        return planted
    name = {"fsync": "fsync", "rename": "replace"}[step]
    planted = Planted(getattr(os, name), at, full)
    monkeypatch.setattr(os, name, planted)
    return planted


def stopped(out: Path) -> str:
    """What ends a run; empty if nothing does."""
    try:
        work(out)
    except EnvironmentUnusable as error:
        return str(error)
    return ""


@pytest.mark.parametrize("step", ["write", "fsync", "rename", "commit"])
def test_an_error_at_any_step_is_a_sentence_and_the_next_run_ends_with_the_same_output(
    tmp_path: Path, step: str
) -> None:
    work(tmp_path / "whole")
    at = failed = 0
    while True:
        at += 1
        out = tmp_path / f"{step}-{at}"
        with pytest.MonkeyPatch.context() as patch:
            planted = plant(patch, step, at)
            said = stopped(out)
        if said:
            failed += 1
            assert any(w in said for w in ("No space left", "quota", "disk is full")), said
            assert "give the same command again" in said or "name another folder" in said
        if planted.calls < at:  # no such call any more: the run was not disturbed
            break
        done = set(keys(out))
        work(out)
        assert done <= set(keys(out))
        assert everything(out) == everything(tmp_path / "whole"), at
        assert not [p.name for p in out.iterdir() if p.name.endswith(".partial")]
    assert failed == at - 1 > 3


def test_after_an_error_nothing_more_is_written(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(out, pieces=1) as parts:
        parts.add(image("a"))
        with monkeypatch.context() as patch:
            patch.setattr(
                os, "replace", Planted(os.replace, 1, OSError(errno.EROFS, "Read-only file system"))
            )
            with pytest.raises(
                EnvironmentUnusable, match=r"Read-only file system; every part before is whole, 1 finished"
            ):
                parts.add(image("b"))
        with pytest.raises(VsaError, match="nothing more can be written after an error"):
            parts.add(image("c"))
    assert keys(out) == ["a"]
    with Ledger(out, IDENTITY) as ledger:
        assert list(ledger.states("abc")) == ["a"]


@pytest.mark.parametrize("replaced", [False, True])
def test_a_vanished_folder_ends_the_run_and_nothing_is_written_elsewhere(out: Path, replaced: bool) -> None:
    with opened(out) as parts:
        parts.add(image("a"))
        parts.flush()
        shutil.rmtree(out)
        if replaced:
            out.mkdir()
        parts.add(image("b"))
        with pytest.raises(EnvironmentUnusable, match="was removed while a run wrote there"):
            parts.flush()
    assert out.exists() == replaced
    assert not replaced or not list(out.iterdir())


def test_files_reach_the_disk_before_their_names_and_names_before_the_ledger(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    sync, rename, enter = os.fsync, os.replace, Ledger.enter

    def watched_sync(descriptor: int) -> None:
        said.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        sync(descriptor)

    def watched_rename(old: Path, new: Path) -> None:
        said.append(f"name {new.name}")
        rename(old, new)

    def watched_enter(ledger: Ledger, *args: Any) -> bool:
        said.append("enter")
        return enter(ledger, *args)

    with opened(out) as parts:
        parts.add(video("a"))
        parts.add(failing("b"))
        monkeypatch.setattr(os, "fsync", watched_sync)
        monkeypatch.setattr(os, "replace", watched_rename)
        monkeypatch.setattr(Ledger, "enter", watched_enter)
        parts.flush()
    items, frames, failed = "items-000001.jsonl", "frames-000001.jsonl", "failed.jsonl"
    assert said == [
        *[f"sync .{items}.partial", f"sync .{frames}.partial", f"name {frames}", f"name {items}", "sync out"],
        *["enter", f"sync .{failed}.partial", f"name {failed}", "sync out"],
    ]


def test_a_long_video_that_finds_no_room_to_wait_ends_the_run(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vsa_rt.pipeline.ingest.spool.IN_MEMORY", 1000)
    with opened(out) as parts:
        parts.add(image("a"))
        parts.flush()
        shutil.rmtree(out)
        with pytest.raises(
            EnvironmentUnusable, match="No such file or directory; every part before is whole"
        ):
            parts.frames("b.mp4", "video", [moment(n) for n in range(20)])
        with pytest.raises(VsaError, match="nothing more can be written"):
            parts.add(video("b.mp4"))
