"""A growing folder: each file once, when it is complete, whatever happens meanwhile."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from vsa_rt.errors import ItemError, UsageError
from vsa_rt.pipeline.ingest.records import Piece
from vsa_rt.pipeline.ingest.sources import pieces
from vsa_rt.pipeline.ingest.watch import Complete, Watch, follow

JPEG = b"\xff\xd8\xff\xe0 a picture by its first bytes "
Step = Callable[[], None]


class Script(threading.Event):
    """A stop that lets the next step happen between two looks instead of waiting, and stops after the last."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self.steps: list[Step] = list(steps)
        self.now = 0.0
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        self.now += timeout
        if self.steps:
            self.steps.pop(0)()
        else:
            self.set()
        return self.is_set()

    def clock(self) -> float:
        return self.now


def nothing() -> None:
    """Between two looks nothing happens."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    return tmp_path / "d"


def put(path: Path, data: bytes, at: int = 1_700_000_000) -> Step:
    def step() -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        os.utime(path, (at, at))

    return step


def rename(path: Path, to: Path) -> Step:
    def step() -> None:
        path.rename(to)

    return step


def looks(*steps: Step) -> list[list[tuple[str, str]]]:
    """Path and version of what was given after each step, the first look's before all of them."""
    script = Script(steps)
    given: list[list[tuple[str, str]]] = []
    for complete in follow([("d", os.path.realpath("d"))], Watch(stop=script), script.clock):
        while len(given) <= len(script.waits):
            given.append([])
        given[-1].append((complete.path, complete.version))
    return given + [[] for _ in range(len(steps) + 1 - len(given))]


def names(found: list[list[tuple[str, str]]]) -> list[list[str]]:
    return [[path for path, _ in some] for some in found]


def keys(words: list[str], *steps: Step, **options: object) -> list[str]:
    script = Script(steps)
    return [p.key for p in pieces(words, watch=Watch(stop=script), **options)]  # type: ignore[arg-type]


def test_a_file_counts_once_two_looks_found_it_the_same(folder: Path) -> None:
    put(folder / "there.jpg", b"1")()
    found = looks(put(folder / "new.jpg", b"1"), nothing, nothing)
    assert names(found) == [[], ["d/there.jpg"], ["d/new.jpg"], []]


def test_a_file_that_grows_is_waited_for(folder: Path) -> None:
    path = folder / "a.jpg"
    found = looks(
        put(path, b"1"), put(path, b"12"), put(path, b"12", 1_700_000_001), put(path, b"13"), nothing, nothing
    )
    assert names(found) == [[], [], [], [], [], ["d/a.jpg"], []]


def test_a_file_that_was_renamed_into_place_waits_for_no_second_look(folder: Path) -> None:
    part = folder / ".a.jpg.part"
    found = looks(put(part, b"1"), nothing, rename(part, folder / "a.jpg"), nothing)
    assert names(found) == [[], [], [], ["d/a.jpg"], []]


def test_a_file_that_was_finished_and_renamed_between_two_looks_waits_for_one(folder: Path) -> None:
    part = folder / ".a.jpg.part"

    def finish() -> None:
        put(part, b"12")()
        part.rename(folder / "a.jpg")

    assert names(looks(put(part, b"1"), finish, nothing, nothing)) == [[], [], [], ["d/a.jpg"], []]


def test_a_place_on_the_drive_that_another_file_gets_is_no_rename(folder: Path) -> None:
    """File systems give the place of a deleted file to the next one: it is not complete for that."""
    part = folder / ".part"

    def exchange() -> None:
        place = part.stat().st_ino
        part.rename(folder / "b.jpg")  # the same place, and another content
        put(folder / "b.jpg", b"other", 1_700_000_009)()
        assert (folder / "b.jpg").stat().st_ino == place

    assert names(looks(put(part, b"1"), exchange, nothing)) == [[], [], [], ["d/b.jpg"]]


def test_new_folders_are_found_and_hidden_files_are_not_given(folder: Path) -> None:
    found = looks(
        put(folder / "sub" / "a.jpg", b"1"),
        put(folder / ".b.jpg", b"1"),
        put(folder / ".git" / "c.jpg", b"1"),
        nothing,
    )
    assert names(found) == [[], [], ["d/sub/a.jpg"], [], []]


def test_a_file_that_vanishes_before_it_is_complete_is_not_given(folder: Path) -> None:
    path = folder / "a.jpg"
    assert names(looks(put(path, b"1"), path.unlink, nothing, put(path, b"1"), nothing)) == [
        [], [], [], [], [], ["d/a.jpg"]
    ]  # fmt: skip


def test_a_file_that_comes_back_as_it_was_is_not_given_again(folder: Path) -> None:
    path = folder / "a.jpg"
    found = looks(put(path, b"1"), nothing, path.unlink, nothing, put(path, b"1"), nothing, nothing)
    assert [name for some in names(found) for name in some] == ["d/a.jpg"]


def test_a_file_that_is_replaced_is_given_again_with_its_version(folder: Path) -> None:
    path = folder / "a.jpg"
    found = looks(
        put(path, b"1"), nothing, put(path, b"two", 1_700_000_005), nothing, put(path, b"2"), nothing
    )
    given = [item for some in found for item in some]
    assert given == [("d/a.jpg", ""), ("d/a.jpg", "2023-11-14T22:13:25.000000000Z,3")]
    # Back with the size and the time of the first: that was given.


def test_two_versions_of_one_time_differ_by_their_size(folder: Path) -> None:
    path = folder / "a.jpg"
    found = looks(put(path, b"1"), nothing, put(path, b"22"), nothing, put(path, b"333"), nothing)
    versions = [version for some in found for _, version in some]
    assert versions == ["", "2023-11-14T22:13:20.000000000Z,2", "2023-11-14T22:13:20.000000000Z,3"]


def test_a_time_that_no_calendar_has_is_a_version_too(folder: Path) -> None:
    path = folder / "a.jpg"
    far = 2**42  # tmpfs and ext4 differ in what they keep
    found = looks(put(path, b"1"), nothing, put(path, b"22", far), nothing)
    versions = [version for some in found for _, version in some]
    assert len(versions) == 2
    assert versions[1].endswith(",2")


def test_places_that_change_with_every_look_do_no_harm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network drives number their files anew."""
    real, calls = os.stat, iter(range(10**6))

    def renumbered(path: str, **options: bool) -> os.stat_result:
        info = list(real(path, **options))
        info[1] = next(calls)
        times = real(path, **options)
        return os.stat_result(info, {"st_mtime_ns": times.st_mtime_ns})

    put(folder / "a.jpg", b"1")()
    monkeypatch.setattr("vsa_rt.pipeline.ingest.watch.os.stat", renumbered)
    assert names(looks(nothing, nothing)) == [[], ["d/a.jpg"], []]


def test_a_drive_that_goes_away_and_comes_back_gives_nothing_twice(folder: Path) -> None:
    put(folder / "a.jpg", b"1")()
    away = folder.with_name("away")
    found = looks(nothing, rename(folder, away), nothing, rename(away, folder), nothing)
    assert [name for some in names(found) for name in some] == ["d/a.jpg"]


def test_a_folder_that_is_closed_to_us_fails_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "closed").mkdir()
    scan = os.scandir

    def closed(path: str) -> Iterator[os.DirEntry[str]]:
        if path == "d/closed":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    script = Script([nothing, nothing])
    found = list(follow([("d", os.path.realpath("d"))], Watch(stop=script), script.clock))
    identity = os.path.realpath("d/closed")
    assert found == [Complete("d/closed", identity, error="the folder cannot be read: Permission denied")]


def test_what_is_no_regular_file_is_passed_over_until_it_is(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    (folder / "link.jpg").symlink_to("a.jpg")
    found = looks(nothing, put(folder / ".a.jpg", b"1"), rename(folder / ".a.jpg", folder / "a.jpg"))
    assert sorted(names(found)[3]) == ["d/a.jpg", "d/link.jpg"]


# When it ends


def test_it_ends_when_nothing_changed_for_long_enough(folder: Path) -> None:
    path = folder / "a.jpg"
    grow = [put(path, b"x" * n) for n in range(1, 6)]
    script = Script([*grow, *[nothing] * 20])
    found = list(follow([("d", os.path.realpath("d"))], Watch(period=1, idle=3, stop=script), script.clock))
    assert [c.path for c in found] == ["d/a.jpg"]
    # Five steps of growth, one look that finds it unchanged, three idle seconds.
    assert len(script.waits) == 5 + 1 + 3


def test_it_ends_at_a_stop_before_the_next_file(folder: Path) -> None:
    for n in range(3):
        put(folder / f"{n}.jpg", b"1")()
    script = Script([nothing, nothing])
    found = follow([("d", os.path.realpath("d"))], Watch(stop=script), script.clock)
    assert next(found).path == "d/0.jpg"
    script.set()
    assert list(found) == []


def test_a_stop_ends_a_real_wait(folder: Path) -> None:
    put(folder / "a.jpg", JPEG)()
    stop = threading.Event()
    found = pieces(["d"], watch=Watch(period=0.01, stop=stop))
    assert next(found).key == "d/a.jpg"
    threading.Timer(0.05, stop.set).start()
    rest: list[Piece] = []
    thread = threading.Thread(target=lambda: rest.extend(found), daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert rest == []


def test_after_a_long_look_it_waits_as_long(folder: Path) -> None:
    script = Script([nothing, nothing])
    ticks = iter([0, 0, 7, 8, 8.5, 100, 100])

    def clock() -> float:
        return next(ticks)

    list(follow([("d", os.path.realpath("d"))], Watch(period=2, stop=script), clock))
    assert script.waits[:2] == [7, 2]


@pytest.mark.parametrize(
    "options", [{"period": 0}, {"period": float("nan")}, {"idle": -1}, {"idle": float("inf")}]
)
def test_times_that_are_none_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected a number"):
        Watch(**options)  # type: ignore[arg-type]


# As pieces


def test_watched_folders_come_after_all_other_words(folder: Path) -> None:
    put(folder / "a.jpg", JPEG)()
    put(folder / "b.jpg", JPEG)()
    put(folder.parent / "c.jpg", JPEG)()
    found = keys(["d", "-", "c.jpg"], nothing, stdin=io.BytesIO(b"d/b.jpg\n"))
    assert found == ["c.jpg", "d/b.jpg", "d/a.jpg"]


def test_keys_of_replaced_files_have_their_version(folder: Path) -> None:
    path = folder / "a.jpg"
    found = keys(["d"], put(path, JPEG), nothing, put(path, JPEG + b"2"), nothing, glob="*.jpg")
    assert found == ["d/a.jpg", f"d/a.jpg@2023-11-14T22:13:20.000000000Z,{len(JPEG) + 1}"]


def test_a_listed_file_that_is_replaced_in_a_watched_folder_is_given_again(folder: Path) -> None:
    path = folder / "a.jpg"
    put(path, JPEG)()
    found = keys(["d", "d/a.jpg"], nothing, put(path, JPEG + b"2"), nothing)
    assert found == ["d/a.jpg", f"d/a.jpg@2023-11-14T22:13:20.000000000Z,{len(JPEG) + 1}"]


def test_an_archive_in_a_watched_folder_is_looked_into_once_it_is_complete(folder: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = len(JPEG)
        tar.addfile(info, io.BytesIO(JPEG))
    data = stream.getvalue()
    path = folder / "a.tar"
    found = keys(["d"], put(path, data[:1024]), put(path, data), nothing, nothing, glob="*.jpg")
    assert found == ["d/a.tar!a.jpg"]


def test_known_files_of_a_watched_folder_are_not_given(folder: Path) -> None:
    put(folder / "a.jpg", JPEG)()
    put(folder / "b.jpg", JPEG)()
    assert keys(["d"], nothing, known={"d/a.jpg"}.__contains__) == ["d/b.jpg"]


def test_a_file_that_vanishes_during_a_look_is_passed_over(folder: Path) -> None:
    for n in range(2):
        put(folder / f"{n}.jpg", JPEG)()
    found = pieces(["d"], watch=Watch(stop=Script([nothing])))
    assert next(found).key == "d/0.jpg"
    (folder / "1.jpg").unlink()
    assert list(found) == []


def test_a_file_that_vanishes_when_it_is_complete_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder / "a.jpg", JPEG)()
    monkeypatch.setattr(
        "vsa_rt.pipeline.ingest.sources.open_regular",
        lambda path: (_ for _ in ()).throw(FileNotFoundError(2, "gone")),
    )
    (piece,) = pieces(["d"], watch=Watch(stop=Script([nothing])))
    with pytest.raises(ItemError, match=r"d/a\.jpg: the file cannot be read: gone"):
        piece.open()
