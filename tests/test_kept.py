"""Finished parts of a sweep: taken from their file only where everything that decides their content is the same."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from vsa_rt.bench.records.record import Record
from vsa_rt.pipeline.measuring.kept import Kept


class Part(Record, frozen=True, kw_only=True):
    """Stands for a contest."""

    batch: int
    samples: list[float]
    worst: float | None = None


KEY: dict[str, object] = {"bundles": ["aa", "bb"], "seconds": 0.5, "machine": ["Xeon", 2, {"openvino": "1"}]}


class Maker:
    """Measures, and counts how often it had to."""

    def __init__(self, part: Part | None = None) -> None:
        self.part, self.calls = part or Part(batch=1, samples=[0.1, 1 / 3, 1e-9]), 0

    def __call__(self) -> Part:
        self.calls += 1
        return self.part


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_a_part_is_made_once_and_read_back_to_the_last_bit(tmp_path: Path) -> None:
    make = Maker()
    first = Kept(tmp_path, KEY)
    assert first.part("contest of batch 1", Part, make) == make.part
    assert first.resumed == []
    [file] = files(tmp_path)
    os.utime(file, (1_700_000_000, 1_700_000_000))
    again = Kept(tmp_path, dict(reversed(KEY.items())))
    assert again.part("contest of batch 1", Part, make) == make.part
    assert make.calls == 1
    assert again.resumed == ["contest of batch 1 of 2023-11-14T22:13:20Z"]
    assert file.stat().st_mtime == 1_700_000_000


def test_parts_of_other_names_do_not_meet(tmp_path: Path) -> None:
    kept, makers = (
        Kept(tmp_path, KEY),
        {f"contest of batch {b}": Maker(Part(batch=b, samples=[b])) for b in (1, 2)},
    )
    for name, make in makers.items():
        kept.part(name, Part, make)
    again = Kept(tmp_path, KEY)
    assert [again.part(name, Part, make).batch for name, make in makers.items()] == [1, 2]
    assert [re.sub(" of 20.*", "", entry) for entry in again.resumed] == list(makers)
    assert [m.calls for m in makers.values()] == [1, 1]


@pytest.mark.parametrize(
    "changed",
    [
        {"bundles": ["bb", "aa"]},
        {"bundles": ["aa"]},
        {"seconds": 0.6},
        {"machine": ["Xeon", 2, {"openvino": "2"}]},
        {"more": None},
    ],
)
def test_another_key_measures_anew_and_leaves_the_other_part(
    tmp_path: Path, changed: dict[str, object]
) -> None:
    Kept(tmp_path, KEY).part("contest", Part, Maker())
    make = Maker(Part(batch=2, samples=[]))
    other = Kept(tmp_path, KEY | changed)
    assert other.part("contest", Part, make).batch == 2
    assert (make.calls, other.resumed) == (1, [])
    assert Kept(tmp_path, KEY).part("contest", Part, make).batch == 1
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe\x00", b"null", b"[]", b"{}", b"[" * 100_000,
        b'{"batch": 1, "samples": [1.0', b'{"batch": "1", "samples": []}', b'{"batch": 1, "samples": [], "extra": 1}',
    ],
    ids=["empty", "cut", "binary", "null", "list", "blank", "deep", "truncated", "other-type", "unknown-key"],
)  # fmt: skip
def test_a_file_that_is_no_part_is_measured_again_and_replaced(tmp_path: Path, content: bytes) -> None:
    make = Maker()
    Kept(tmp_path, KEY).part("contest", Part, make)
    [file] = files(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(content)
    kept = Kept(tmp_path, KEY)
    assert kept.part("contest", Part, make) == make.part
    assert (make.calls, kept.resumed) == (2, [])
    assert files(tmp_path) == [file]
    assert file.read_bytes() == whole


def test_a_measurement_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> Part:
        raise RuntimeError("the engine is gone")

    with pytest.raises(RuntimeError, match="gone"):
        Kept(tmp_path, KEY).part("contest", Part, fail)
    assert files(tmp_path) == []
    make = Maker()
    Kept(tmp_path, KEY).part("contest", Part, make)
    assert make.calls == 1


def test_a_write_that_breaks_off_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            Kept(tmp_path, KEY).part("contest", Part, Maker())
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["parity of ../../elsewhere", "parity of /root", "parity of a b\0c", "parity of Ü"]
)
def test_a_name_never_leaves_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "report"
    make = Maker()
    for _ in range(2):
        Kept(folder, KEY).part(name, Part, make)
    assert make.calls == 1
    assert [p.parent for p in files(tmp_path)] == [folder / "parts"]


def test_a_long_name_is_kept_too(tmp_path: Path) -> None:
    """A bundle's directory may be called what a file system allows: 255 bytes."""
    make = Maker()
    for _ in range(2):
        Kept(tmp_path, KEY).part(f"parity of {'n' * 255}", Part, make)
    assert make.calls == 1


def test_a_number_that_json_does_not_know_is_read_back_as_absent(tmp_path: Path) -> None:
    make = Maker(Part(batch=1, samples=[1.0], worst=float("inf")))
    Kept(tmp_path, KEY).part("contest", Part, make)
    assert Kept(tmp_path, KEY).part("contest", Part, make) == Part(batch=1, samples=[1.0])
    assert make.calls == 1
