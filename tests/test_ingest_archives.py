"""Archives that strangers made: every readable member once, no byte to disk, and no more memory than allowed."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vsa_rt.errors import ItemError
from vsa_rt.pipeline.ingest.members import Limits
from vsa_rt.pipeline.ingest.records import Piece
from vsa_rt.pipeline.ingest.sources import pieces

JPEG = b"\xff\xd8\xff\xe0 a picture by its first bytes "
MP4 = b"\0\0\0\x18ftypisom a video by its first bytes"
Members = list[tuple[str, bytes]]
#: Makes an archive of these members.
Pack = Callable[[str, Members], str]
FORMS = ["plain.tar", "packed.tar.gz", "packed.tgz", "deflated.zip", "stored.zip"]


def tar_of(members: Members, tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tar_format, errors="surrogateescape") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def zip_of(members: Members, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return stream.getvalue()


def packed(name: str, members: Members) -> bytes:
    if name.endswith(".zip"):
        return zip_of(members, zipfile.ZIP_STORED if name.startswith("stored") else zipfile.ZIP_DEFLATED)
    data = tar_of(members)
    return gzip.compress(data) if name.endswith("gz") else data


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pack:
    monkeypatch.chdir(tmp_path)

    def make(name: str, members: Members) -> str:
        Path(name).write_bytes(packed(name, members))
        return name

    return make


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], str]:
    monkeypatch.chdir(tmp_path)

    def make(name: str, data: bytes) -> str:
        Path(name).write_bytes(data)
        return name

    return make


Put = Callable[[str, bytes], str]


def contents(found: list[Piece]) -> dict[str, bytes | str]:
    """What each piece opens to, or why it does not; keys are distinct."""
    said: dict[str, bytes | str] = {}
    for piece in found:
        assert piece.key not in said
        said[piece.key] = opened(piece)
    return said


def opened(piece: Piece) -> bytes | str:
    try:
        data = piece.open()
    except ItemError as error:
        return str(error).removeprefix(f"{piece.key}: ")  # an error of another piece keeps its name
    assert isinstance(data, bytes)
    return data


def read(name: str, **options: object) -> dict[str, bytes | str]:
    return contents(list(pieces([name], **options)))  # type: ignore[arg-type]


# What is in an archive


@pytest.mark.parametrize("form", FORMS)
def test_pictures_and_videos_are_pieces_and_labels_are_passed_over(pack: Pack, form: str) -> None:
    name = pack(
        form,
        [
            ("0001.jpg", JPEG + b"1"),
            ("0001.cls", b"BMW 3, not a bitmap"),
            ("0002.txt", b"P5 is no pixmap either"),
            ("0001.json", b"{}"),
            ("d/0002.mp4", MP4),
            ("0003", JPEG),
            ("d/.hidden.jpg", JPEG),
            ("__MACOSX/._0001.jpg", b"\0\5\x16\7"),
            ("./0004.png", b""),
        ],
    )
    found = list(pieces([name]))
    assert contents(found) == {
        f"{name}!0001.jpg": JPEG + b"1",
        f"{name}!d/0002.mp4": MP4,
        f"{name}!0003": JPEG,
        f"{name}!0004.png": b"",
    }
    assert [(p.kind, p.nbytes) for p in found] == [
        ("image", len(JPEG) + 1), ("video", len(MP4)), ("image", len(JPEG)), ("image", 0)
    ]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_in_a_folder_is_looked_into_and_its_members_are_filtered(pack: Pack, form: str) -> None:
    Path("d").mkdir()
    name = pack(f"d/{form}", [("a.jpg", JPEG), ("b.png", JPEG)])
    assert [p.key for p in pieces(["d"], glob="*.jpg")] == [f"{name}!a.jpg"]


def test_shards_of_a_pattern(pack: Pack) -> None:
    for number in range(3):
        pack(f"shard-{number:06}.tar", [("0.jpg", JPEG)])
    keys = [p.key for p in pieces(["shard-{000000..000002}.tar"])]
    assert keys == [f"shard-{n:06}.tar!0.jpg" for n in range(3)]


def test_first_bytes_tell_which_archive_it_is(put: Put) -> None:
    put("really-packed.tar", gzip.compress(tar_of([("a.jpg", JPEG)])))
    put("really-a-zip.tar", zip_of([("a.jpg", JPEG)]))
    assert read("really-packed.tar") == {"really-packed.tar!a.jpg": JPEG}
    assert read("really-a-zip.tar") == {"really-a-zip.tar!a.jpg": JPEG}


@pytest.mark.parametrize("form", FORMS)
def test_members_of_one_name_get_keys_of_their_own(pack: Pack, form: str) -> None:
    names = ["a.jpg", "a.jpg", "a.jpg#2", "./a.jpg", "a.jpg"]
    with pytest.warns(UserWarning, match="Duplicate name") if form.endswith("zip") else _nothing():
        name = pack(form, [(n, JPEG + bytes([i])) for i, n in enumerate(names)])
    assert read(name) == {
        f"{name}!a.jpg": JPEG + b"\0",
        f"{name}!a.jpg#2": JPEG + b"\1",
        f"{name}!a.jpg#2#2": JPEG + b"\2",
        f"{name}!a.jpg#3": JPEG + b"\3",
        f"{name}!a.jpg#4": JPEG + b"\4",
    }


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def test_names_that_lead_out_of_the_archive_are_names_and_nothing_is_written(pack: Pack) -> None:
    Path("inside").mkdir()
    members = [("../../up.jpg", JPEG), ("/etc/abs.jpg", JPEG), ("..\\win.jpg", JPEG)]
    for form in FORMS:
        name = pack(f"inside/{form}", members)
        before = sorted(Path().rglob("*"))
        found = read(name)
        assert list(found) == [f"{name}!../../up.jpg", f"{name}!/etc/abs.jpg", f"{name}!..\\win.jpg"]
        assert set(found.values()) == {JPEG}
        assert sorted(Path().rglob("*")) == before


def test_names_that_are_not_utf8_survive(put: Put) -> None:
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    for tar_format in (tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        put("a.tar", tar_of([(name, JPEG)], tar_format))
        assert read("a.tar") == {f"a.tar!{name}": JPEG}
    put("a.zip", zip_of([("cafX.jpg", JPEG)]).replace(b"cafX", b"caf\xe9"))
    assert read("a.zip") == {"a.zip!cafΘ.jpg": JPEG}  # code page 437, the format's own


def test_long_names_are_told_apart(put: Put) -> None:
    long = "d" * 5000
    put("a.tar", tar_of([(f"{long}{n}{long}.jpg", JPEG) for n in range(2)]))
    found = read("a.tar")
    assert list(found.values()) == [JPEG, JPEG]
    assert all(len(key) < 5000 for key in found)


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_without_pictures_says_so(pack: Pack, form: str) -> None:
    name = pack(form, [("a.txt", b"text"), ("b.json", b"{}")])
    assert read(name) == {name: "no picture and no video among its 2 members"}
    name = pack(form, [("a.jpg", JPEG)])
    assert read(name, glob="*.png") == {name: "no picture and no video that fits '*.png' among its 1 members"}
    name = pack(form, [])
    assert read(name) == {name: "no picture and no video among its 0 members"}


@pytest.mark.parametrize("form", FORMS)
def test_known_members_are_left_out(pack: Pack, form: str) -> None:
    name = pack(form, [("a.jpg", JPEG), ("b.jpg", JPEG)])
    assert list(read(name, known={f"{name}!a.jpg"}.__contains__)) == [f"{name}!b.jpg"]
    assert read(name, known=lambda _: True) == {}


# What is refused, by name, and takes no other member with it


def test_links_devices_and_sparse_files_in_tars_fail(put: Put) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        kinds = {
            "sym": tarfile.SYMTYPE,
            "hard": tarfile.LNKTYPE,
            "dev": tarfile.CHRTYPE,
            "pipe": tarfile.FIFOTYPE,
        }
        for name, kind in kinds.items():
            info = tarfile.TarInfo(f"{name}.jpg")
            info.type = kind
            info.linkname = "/etc/passwd"
            tar.addfile(info)
        tar.addfile(_folder("folder.jpg"))
        info = tarfile.TarInfo("hole.jpg")
        info.pax_headers = {
            "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "hole.jpg",
            "GNU.sparse.size": str(2**50), "GNU.sparse.map": "0,3",
        }  # fmt: skip
        info.size = 3
        tar.addfile(info, io.BytesIO(JPEG[:3]))
        info = tarfile.TarInfo("last.jpg")
        info.size = len(JPEG)
        tar.addfile(info, io.BytesIO(JPEG))
    put("a.tar", stream.getvalue())
    assert read("a.tar") == {
        "a.tar!sym.jpg": "a symbolic link in an archive: not followed",
        "a.tar!hard.jpg": "a hard link in an archive: not followed",
        "a.tar!dev.jpg": "a device in an archive: not followed",
        "a.tar!pipe.jpg": "a FIFO in an archive: not followed",
        "a.tar!hole.jpg": "a sparse file in an archive: not read; pack it without holes",
        "a.tar!last.jpg": JPEG,
    }


def _folder(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


def test_links_in_zips_fail(put: Put) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        link = zipfile.ZipInfo("link.jpg")
        link.create_system = 3
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("folder.jpg/", b"")
        archive.writestr("a.jpg", JPEG)
    put("a.zip", stream.getvalue())
    assert read("a.zip") == {
        "a.zip!link.jpg": "a symbolic link in an archive: not followed",
        "a.zip!a.jpg": JPEG,
    }


def test_encrypted_members_and_unknown_methods_of_zips_fail(put: Put) -> None:
    data = bytearray(zip_of([("a.jpg", JPEG), ("b.jpg", JPEG)]))
    first = data.index(b"PK\1\2")
    data[first + 8] |= 1
    put("a.zip", bytes(data))
    assert read("a.zip") == {"a.zip!a.jpg": "encrypted: unpack it with its password", "a.zip!b.jpg": JPEG}
    put("b.zip", zip_of([("a.jpg", JPEG)], zipfile.ZIP_LZMA))
    assert read("b.zip") == {
        "b.zip!a.jpg": "packed by method 14; expected 0 (stored) or 8 (deflated): pack it anew"
    }


@pytest.mark.parametrize("form", FORMS)
def test_archives_in_archives_are_not_looked_into(pack: Pack, form: str) -> None:
    bomb = zip_of([("zeros.jpg", JPEG + bytes(10**6))])
    name = pack(form, [("inner.zip", bomb), ("inner.tar.xz", b""), ("a.jpg", JPEG)])
    found = read(name)
    assert found.pop(f"{name}!a.jpg") == JPEG
    assert set(found.values()) == {"an archive in an archive: not looked into; unpack it and name it"}
    assert len(found) == 2


@pytest.mark.parametrize("form", FORMS)
def test_members_that_are_too_large_fail(pack: Pack, form: str) -> None:
    name = pack(form, [("large.jpg", JPEG + bytes(3000)), ("a.jpg", JPEG), ("large.json", bytes(3000))])
    found = read(name, limits=Limits(member_bytes=2000))
    assert found.pop(f"{name}!a.jpg") == JPEG
    (reason,) = found.values()
    assert str(reason).startswith(f"{len(JPEG) + 3000:,} bytes, more than the 2,000 allowed")


def test_a_zip_bomb_is_refused_by_its_ratio_before_it_unpacks(put: Put) -> None:
    put("a.zip", zip_of([("bomb.jpg", JPEG + bytes(10**6)), ("a.jpg", JPEG)]))
    found = read("a.zip", limits=Limits(ratio_from=10**5))
    assert "more than 200 times as many: refused as a decompression bomb" in str(found["a.zip!bomb.jpg"])
    assert found["a.zip!a.jpg"] == JPEG
    assert len(read("a.zip")["a.zip!bomb.jpg"]) == 10**6 + len(JPEG)


def test_a_member_that_unpacks_to_more_than_it_declares_is_cut_off(put: Put) -> None:
    data = bytearray(zip_of([("bomb.jpg", JPEG + bytes(2**26))]))
    entry = data.index(b"PK\1\2")
    struct.pack_into("<L", data, entry + 24, 100)
    put("a.zip", bytes(data))
    tracemalloc.start()
    found = read("a.zip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == {"a.zip!bomb.jpg": "it unpacks to more than the 100 bytes that it declares"}
    assert peak < 2**21


def test_members_that_share_their_bytes_are_refused(put: Put) -> None:
    """A better zip bomb (Fifield, WOOT 2019): one kernel, many entries that all point at it."""
    data = zip_of([("a.jpg", JPEG + np.random.default_rng(1).bytes(4000))])
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    entry = data[start:end]
    body = data[:start] + entry * 40
    tail = bytearray(data[end:])
    struct.pack_into("<2H2L", tail, 8, 40, 40, len(entry) * 40, start)
    put("a.zip", bytes(body + tail))
    found = read("a.zip")
    assert "larger than the file: refused as a decompression bomb" in str(found.pop("a.zip"))
    assert len(found) == 1


def test_a_packed_tar_that_is_a_bomb_ends_with_what_was_before(put: Put) -> None:
    put("a.tar.gz", gzip.compress(tar_of([("a.jpg", JPEG), ("zeros.bin", bytes(10**7)), ("b.jpg", JPEG)])))
    found = read("a.tar.gz", limits=Limits(ratio_from=10**6))
    assert found.pop("a.tar.gz!a.jpg") == JPEG
    assert "more than 200 times as many: refused as a decompression bomb" in str(found.pop("a.tar.gz"))
    assert found == {}


def _header(name: bytes, size: int, kind: bytes) -> bytes:
    head = bytearray(512)
    head[: len(name)] = name
    head[100:108] = b"0000644\0"
    head[124:136] = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    head[148:156] = b" " * 8
    head[156:157] = kind
    head[257:265] = b"ustar\x0000"
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K", b"S"])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_headers_that_ask_for_gigabytes_get_none(put: Put, kind: bytes, name: str) -> None:
    data = tar_of([("a.jpg", JPEG)])[:1024] + _header(b"evil", 2**33, kind) + bytes(2**20)
    put(name, gzip.compress(data) if name.endswith("gz") else data)
    tracemalloc.start()
    found = read(name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.pop(f"{name}!a.jpg") == JPEG
    if kind == b"S":  # GNU's sparse file
        assert "a sparse file" in str(found.pop(f"{name}!evil"))
    assert list(found) == [name]
    assert peak < 2**23


def test_headers_of_headers_end(put: Put) -> None:
    long = _header(b"././@LongLink", 4, b"L") + b"a\0\0\0" + bytes(508)
    put("a.tar", tar_of([("a.jpg", JPEG)])[:1024] + long * 5000 + bytes(1024))
    found = read("a.tar")
    assert found.pop("a.tar!a.jpg") == JPEG
    assert "a damaged archive" in str(found["a.tar"])


def test_a_sparse_map_of_any_length_takes_little_memory(put: Put) -> None:
    head = bytearray(_header(b"hole.jpg", 0, b"S"))
    head[482] = 1  # the map goes on
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    more = b"00000000001\0" * 42 + b"\1" + bytes(7)
    put("a.tar.gz", gzip.compress(tar_of([("a.jpg", JPEG)])[:1024] + bytes(head) + more * 20_000))
    tracemalloc.start()
    found = read("a.tar.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.pop("a.tar.gz!a.jpg") == JPEG
    assert "headers take more than 1,048,576 bytes" in str(found.pop("a.tar.gz"))
    assert peak < 2**24


def test_a_sparse_map_without_an_end_is_damage(put: Put) -> None:
    info = tarfile.TarInfo("hole.jpg")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "hole.jpg"}
    body = b"999999999\n" + b"1\n" * 20
    info.size = len(body)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(info, io.BytesIO(body))
    put("a.tar", stream.getvalue()[:2048])
    assert list(read("a.tar")) == ["a.tar"]


@pytest.mark.parametrize("kind", [b"0", b"5", b"x", b"L", b"S"])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_negative_sizes_lead_nowhere(put: Put, kind: bytes, name: str) -> None:
    """CVE-2025-8194: a parser that adds them up goes back to where it was, for ever."""
    head = bytearray(_header(b"back.jpg", 0, kind))
    head[124:136] = (-512).to_bytes(12, "big", signed=True)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    data = tar_of([("a.jpg", JPEG)])[:1024] + bytes(head) + bytes(4096)
    put(name, gzip.compress(data) if name.endswith("gz") else data)
    found = read(name)
    assert found.pop(f"{name}!a.jpg") == JPEG
    if kind == b"S":  # its other size, the one without holes, is 0
        assert "a sparse file" in str(found.pop(f"{name}!back.jpg"))
    assert list(found) == [name]


def test_a_size_that_is_negative_in_extended_headers_leads_nowhere(put: Put) -> None:
    record = b"15 size=-99999\n"
    extended = _header(b"x", len(record), b"x") + record.ljust(512, b"\0")
    put("a.tar", tar_of([("a.jpg", JPEG)])[:1024] + extended + _header(b"b.jpg", 3, b"0") + bytes(2048))
    found = read("a.tar")
    assert found.pop("a.tar!a.jpg") == JPEG
    assert list(found) == ["a.tar"]


def test_global_records_do_not_pile_up(put: Put) -> None:
    records = b""
    for number in range(70):
        record = b"17 comment%03d=abc\n" % number
        records += (
            _header(b"g", len(record), b"g")
            + record.ljust(512, b"\0")
            + tar_of([(f"{number}.jpg", JPEG)])[:1024]
        )
    put("a.tar", records + bytes(1024))
    found = read("a.tar")
    assert "more than 64 global records" in str(found.pop("a.tar"))
    assert len(found) == 64


# Damage


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_a_torn_tar_gives_what_was_before_and_then_one_failing_piece(put: Put, name: str) -> None:
    noise = np.random.default_rng(2).bytes
    members = [(f"{n}.jpg", JPEG + noise(5000)) for n in range(6)]
    data = packed(name, members)
    whole = {f"{name}!{n}": body for n, body in members}
    counts = set()
    for cut in (len(data) // 3, len(data) // 2, len(data) * 3 // 4, 512 + 5632 + 100):
        put(name, data[:cut])
        found = read(name)
        assert "a damaged archive" in str(found.pop(name))
        assert found.items() <= whole.items()
        counts.add(len(found))
    assert min(counts) >= 1
    assert len(counts) > 1


def test_a_tar_that_ends_between_two_members_is_told_from_a_whole_one(put: Put) -> None:
    data = tar_of([("a.jpg", JPEG), ("b.jpg", JPEG)])
    put("a.tar", data[:1024])
    found = read("a.tar")
    assert found.pop("a.tar!a.jpg") == JPEG
    assert "ends without the mark of its end" in str(found["a.tar"])
    put("a.tar", data[:1024] + b"\xaa" * 512 + data[1024:])
    found = read("a.tar")
    assert found.pop("a.tar!a.jpg") == JPEG
    assert "has a header that is none" in str(found["a.tar"])


def test_a_wrong_checksum_at_the_end_of_a_packed_tar_is_told(put: Put) -> None:
    data = bytearray(gzip.compress(tar_of([("a.jpg", JPEG)])))
    data[-6] ^= 1
    put("a.tar.gz", bytes(data))
    found = read("a.tar.gz")
    assert found.pop("a.tar.gz!a.jpg") == JPEG
    assert "CRC check failed" in str(found["a.tar.gz"])


def test_a_zip_without_its_end_says_so(put: Put) -> None:
    data = zip_of([("a.jpg", JPEG), ("b.jpg", JPEG)])
    put("a.zip", data[:-30])
    assert "none of its members can be listed" in str(read("a.zip")["a.zip"])
    put("a.zip", data[50:])
    assert list(read("a.zip")) == ["a.zip"]


def test_a_directory_that_contradicts_itself_says_so(put: Put) -> None:
    data = zip_of([("a.jpg", JPEG), ("b.jpg", JPEG)])
    end = data.index(b"PK\5\6")

    def changed(at: int, value: int) -> dict[str, bytes | str]:
        copy = bytearray(data)
        struct.pack_into("<H", copy, end + at, value)
        put("a.zip", bytes(copy))
        return read("a.zip")

    assert changed(10, 3)["a.zip"] == "a damaged archive: 2 entries in its directory, which says 3"
    assert "a split zip" in str(changed(4, 1)["a.zip"])
    assert list(changed(12, 20_000)) == ["a.zip"]
    locator = b"PK\6\7" + bytes(16)
    put("a.zip", locator + data[end:])
    assert read("a.zip") == {"a.zip": "a damaged archive: its zip64 end is missing"}
    put("a.zip", data[:end] + locator + data[end:])
    assert read("a.zip") == {"a.zip": "a damaged archive: its zip64 end is missing"}


def test_a_damaged_directory_gives_the_entries_before_the_damage(put: Put) -> None:
    data = bytearray(zip_of([("a.jpg", JPEG), ("b.jpg", JPEG), ("c.jpg", JPEG)]))
    data[data.rindex(b"PK\1\2")] = 0
    put("a.zip", bytes(data))
    found = read("a.zip")
    assert (found.pop("a.zip!a.jpg"), found.pop("a.zip!b.jpg")) == (JPEG, JPEG)
    assert found == {"a.zip": "a damaged archive: its directory is damaged after 2 entries"}


def test_a_damaged_member_of_a_zip_takes_no_other_with_it(put: Put) -> None:
    data = bytearray(zip_of([("a.jpg", JPEG + b"1"), ("b.jpg", JPEG)], zipfile.ZIP_STORED))
    data[data.index(JPEG) + len(JPEG)] ^= 1
    put("a.zip", bytes(data))
    assert read("a.zip") == {
        "a.zip!a.jpg": "its checksum is wrong: the archive is damaged",
        "a.zip!b.jpg": JPEG,
    }
    data[data.index(b"a.jpg")] ^= 1
    put("b.zip", bytes(data))
    assert "another name" in str(read("b.zip")["b.zip!a.jpg"])


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip", "a.tgz"])
def test_what_is_no_archive_fails(put: Put, name: str) -> None:
    for data in (b"", JPEG, bytes(100), b"PK\3\4", b"\x1f\x8b", os.urandom(3000)):
        put(name, data)
        assert list(read(name)) == [name]
    Path(name).unlink()
    assert "No such file" in str(read(name)[name])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(form=st.sampled_from(FORMS), data=st.data())
def test_any_damage_ends_in_members_and_at_most_one_error_of_the_archive(
    put: Put, form: str, data: st.DataObject
) -> None:
    noise = np.random.default_rng(3).bytes
    members = [(f"{n}.jpg", JPEG + noise(700)) for n in range(4)]
    raw = bytearray(packed(form, members))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(len(raw) // 2, len(raw))) :]
    put(form, bytes(raw))
    found = list(pieces([form]))
    assert found
    contents(found)
    assert sum(p.key == form for p in found) <= 1


# Opening later, in another thread, and what waits in memory


@pytest.mark.parametrize("form", FORMS)
def test_members_are_opened_later_in_any_order_and_thread(pack: Pack, form: str) -> None:
    noise = np.random.default_rng(4).bytes
    members = [(f"{n}.jpg", JPEG + noise(20_000)) for n in range(40)]
    name = pack(form, members)
    # Room for a few of them: the others are read anew.
    found = list(pieces([name], limits=Limits(held_bytes=100_000)))
    found = [found[i] for i in np.random.default_rng(5).permutation(len(found))]
    said: dict[str, bytes] = {}

    def work(some: list[Piece]) -> None:
        said.update({p.key: p.open() for p in some})

    threads = [threading.Thread(target=work, args=(found[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {f"{name}!{n}": body for n, body in members}


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_that_is_exchanged_meanwhile_fails_and_gives_no_foreign_bytes(
    pack: Pack, form: str
) -> None:
    name = pack(form, [("a.jpg", JPEG + b"old"), ("b.jpg", JPEG + b"old")])
    found = list(pieces([name], limits=Limits(held_bytes=0)))
    pack(form, [("a.jpg", JPEG + b"newer"), ("b.jpg", JPEG + b"newer")])
    assert all("changed while it was being read" in str(said) for said in contents(found).values())
    Path(name).unlink()
    assert all("cannot be opened again" in str(said) for said in contents(found).values())


def test_a_piece_of_a_packed_tar_opens_twice(pack: Pack) -> None:
    (piece,) = pieces([pack("a.tar.gz", [("a.jpg", JPEG)])])
    assert (piece.open(), piece.open()) == (JPEG, JPEG)


def many(path: Path, count: int, form: str) -> Iterator[Piece]:
    body = JPEG + bytes(2000)
    with tarfile.open(path, form) as tar:  # type: ignore[call-overload]
        for number in range(count):
            info = tarfile.TarInfo(f"{number:06}.jpg")
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
            tar.members.clear()
    return pieces([str(path)])


@pytest.mark.parametrize(("name", "form"), [("a.tar", "w"), ("a.tar.gz", "w:gz")])
def test_a_tar_of_many_members_takes_little_memory(tmp_path: Path, name: str, form: str) -> None:
    count = 8000
    found = many(tmp_path / name, count, form)
    tracemalloc.start()
    opened = sum(len(piece.open()) for piece in found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert opened == count * (len(JPEG) + 2000)
    # 16 MB of members; what stays is a digest of each name (docs: about 100 bytes).
    assert peak < count * 130 + 1_000_000


def test_pieces_of_a_packed_tar_that_are_kept_hold_no_more_than_allowed(tmp_path: Path) -> None:
    found = many(tmp_path / "a.tar.gz", 3000, "w:gz")
    first = next(iter(found))
    tracemalloc.start()
    kept = [first, *many(tmp_path / "b.tar.gz", 3000, "w:gz")]
    unlimited = tracemalloc.get_traced_memory()[0]
    del kept
    before = tracemalloc.get_traced_memory()[0]
    kept = list(pieces([str(tmp_path / "b.tar.gz")], limits=Limits(held_bytes=200_000)))
    limited = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert unlimited > 3000 * 2000
    assert limited < 3000 * 1000 + 200_000
    assert kept[-1].open() == JPEG + bytes(2000)


def test_what_was_opened_or_dropped_makes_room(pack: Pack) -> None:
    body = JPEG + bytes(1000)
    name = pack("a.tar.gz", [(f"{n}.jpg", body) for n in range(20)])
    found = pieces([name], limits=Limits(held_bytes=len(body)))
    first, second = next(found), next(found)
    os.utime(name, (0, 0))  # from here on it cannot be read anew, only further
    assert first.open() == body
    with pytest.raises(ItemError, match="changed while it was being read"):
        second.open()
    del first, second
    third = next(found)
    assert third.open() == body
    del third
    dropped = next(found)
    del dropped
    assert next(found).open() == body


# Zips that Python's own reader reads


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(
        st.from_regex(r"[a-z]{1,4}(/[a-zäΩ]{1,3})?\.jpg", fullmatch=True), unique=True, max_size=6
    ),
    comment=st.binary(max_size=40).filter(lambda b: b"PK" not in b),
    before=st.binary(max_size=30),
    wide=st.booleans(),
)
def test_zips_are_read_as_python_reads_them(
    put: Put, names: list[str], comment: bytes, before: bytes, wide: bool
) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = comment
        for name in names:
            with archive.open(name, "w", force_zip64=wide) as member:
                member.write(JPEG + name.encode())
    put("a.zip", before + stream.getvalue())
    with zipfile.ZipFile("a.zip") as archive:
        expected: dict[str, bytes | str] = {f"a.zip!{n}": archive.read(n) for n in archive.namelist()}
    found = read("a.zip")
    assert found == (expected or {"a.zip": "no picture and no video among its 0 members"})


def test_a_comment_that_looks_like_an_end_is_a_comment(put: Put) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.jpg", JPEG)
        archive.comment = b"PK\5\6" * 9
    put("a.zip", stream.getvalue())
    assert read("a.zip") == {"a.zip!a.jpg": JPEG}


def test_a_zip_of_more_members_than_16_bits_count(put: Put) -> None:
    members = [(f"{n}.txt", b"") for n in range(66_000)]
    put("a.zip", zip_of([*members, ("last.jpg", JPEG)], zipfile.ZIP_STORED))
    assert read("a.zip") == {"a.zip!last.jpg": JPEG}


def test_a_zip_whose_directory_points_behind_the_end_fails_alone(put: Put) -> None:
    name, data = b"a.jpg", b"x" * 10
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 10, 10, len(name), 0) + name + data
    extra = struct.pack("<2HQ", 1, 8, 2**64 - 1)  # zip64: the offset
    sizes = (0, 10, 10, len(name), len(extra), 0, 0, 0, 0, 0xFFFFFFFF)
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, *sizes) + name + extra
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(local), 0)
    bad = put("bad.zip", local + entry + end)
    good = put("good.zip", zip_of([("b.jpg", JPEG)]))
    found = {p.key: opened(p) for p in pieces([bad, good])}
    assert found["good.zip!b.jpg"] == JPEG
    assert "damaged" in str(found["bad.zip"])
