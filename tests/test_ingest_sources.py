"""From words to pieces: which files, which keys, and nothing lost or given twice."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import shutil
import subprocess
import threading
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vsa_rt.errors import ItemError, UsageError
from vsa_rt.pipeline.ingest.lists import Entry, entries, expand
from vsa_rt.pipeline.ingest.records import Piece
from vsa_rt.pipeline.ingest.sources import pieces

JPEG = b"\xff\xd8\xff\xe0 a picture by its first bytes"
MP4 = b"\0\0\0\x18ftypisom a video by its first bytes"
Write = Callable[..., Path]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def write(here: Path) -> Write:
    def make(name: str, data: bytes = JPEG) -> Path:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return make


def keys(*words: str, **options: object) -> list[str]:
    return [piece.key for piece in pieces(words, **options)]  # type: ignore[arg-type]


def reason(piece: Piece) -> str:
    with pytest.raises(ItemError) as caught:
        piece.open()
    assert caught.value.item == piece.key
    return caught.value.reason


def only(*words: str, **options: object) -> Piece:
    (piece,) = pieces(words, **options)  # type: ignore[arg-type]
    return piece


# Files and folders


def test_a_folder_gives_its_files_sorted_without_what_is_hidden(write: Write) -> None:
    for name in ("d/b.jpg", "d/a.jpg", "d/.hidden.jpg", "d/.git/c.jpg", "d/sub/c.mp4", "d/a.jpg.objects.npy"):
        write(name)
    found = list(pieces(["d"]))
    assert [p.key for p in found] == ["d/a.jpg", "d/b.jpg", "d/sub/c.mp4"]
    assert [p.open() for p in found] == ["d/a.jpg", "d/b.jpg", "d/sub/c.mp4"]
    assert {p.nbytes for p in found} == {len(JPEG)}


def test_the_working_directory_gives_bare_names(write: Write) -> None:
    write("a.jpg")
    write("d/b.jpg")
    assert keys(".") == ["a.jpg", "d/b.jpg"]


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.jpg", JPEG, "image"),
        ("a.mp4", MP4, "video"),
        ("twitter.gif", MP4, "video"),
        ("a.mp4", JPEG, "image"),
        ("no suffix", b"\x1a\x45\xdf\xa3 matroska", "video"),
        ("no suffix", b"\x89PNG\r\n\x1a\n", "image"),
        ("a.mov", b"\0\0\0\x08wide\0\0\0\0mdat", "video"),
        ("a.avi", b"RIFF\0\0\0\0AVI LIST", "video"),
        ("a.webp", b"RIFF\0\0\0\0WEBPVP8 ", "image"),
        ("a.heic", b"\0\0\0\x18ftypheic", "image"),
        ("broadcast.ts", (b"\x47" + bytes(187)) * 3, "video"),
        ("camera.m2ts", (bytes(4) + b"\x47" + bytes(187)) * 3, "video"),
        ("empty.mkv", b"", "video"),
        ("empty.jpg", b"", "image"),
        ("notes.doc", b"neither", "image"),
    ],
)
def test_first_bytes_tell_the_kind_and_then_the_suffix(
    write: Write, name: str, data: bytes, kind: str
) -> None:
    write(name, data)
    piece = only(name)
    assert (piece.kind, piece.nbytes) == (kind, len(data))


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "PPM"])
def test_every_format_that_is_decoded_is_a_picture_without_a_suffix(write: Write, suffix: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), (9, 99, 200)).save(stream, suffix)
    write("picture", stream.getvalue())
    assert only("picture").kind == "image"


def test_a_glob_filters_folders_and_no_named_file(write: Write) -> None:
    for name in ("d/a.jpg", "d/b.png", "c.png"):
        write(name)
    assert keys("d", "c.png", glob="*.jpg") == ["c.png", "d/a.jpg"]


def test_what_cannot_be_read_is_a_piece_that_fails(here: Path, write: Write) -> None:
    os.mkfifo(here / "fifo")
    (here / "broken.jpg").symlink_to("nowhere")
    write("old.tar.xz")
    found = {p.key: reason(p) for p in pieces(["gone.mp4", "fifo", "broken.jpg", "old.tar.xz", "no\0file"])}
    assert found["gone.mp4"] == "no such file"
    assert found["broken.jpg"] == "no such file"
    assert found["fifo"] == "a FIFO"
    assert "expected one of .tar" in found["old.tar.xz"]
    assert "not a path" in found["no\0file"]


def test_links_to_files_are_followed_and_links_to_folders_are_not(here: Path, write: Write) -> None:
    write("elsewhere/a.jpg")
    write("d/b.jpg")
    (here / "d" / "link.jpg").symlink_to(here / "elsewhere" / "a.jpg")
    (here / "d" / "loop").symlink_to(here / "d")
    found = {p.key: p for p in pieces(["d"])}
    assert sorted(found) == ["d/b.jpg", "d/link.jpg", "d/loop"]
    assert reason(found["d/loop"]) == "a folder"


def test_a_folder_that_is_closed_to_us_is_a_piece_that_fails(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("d/a.jpg")
    write("d/closed/b.jpg")
    scan = os.scandir

    def closed(path: str) -> Iterator[os.DirEntry[str]]:
        if path == "d/closed":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    found = list(pieces(["d"]))
    assert [p.key for p in found] == ["d/a.jpg", "d/closed"]
    assert reason(found[1]) == "the folder cannot be read: Permission denied"


def test_folders_in_folders_may_be_deeper_than_python_recurses(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth = 1200
    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")
    Path("a.jpg").write_bytes(JPEG)
    monkeypatch.chdir(here)
    (piece,) = pieces(["d"])
    assert piece.key.count("/") == depth
    subprocess.run(["rm", "-r", "d"], check=True)  # pytest's own clean-up recurses, too


# Keys


def test_one_file_is_one_piece_however_it_is_spelled(here: Path, write: Write) -> None:
    write("d/a.jpg")
    write("d/sub/b.jpg")
    (here / "link").symlink_to(here / "d")
    words = [
        "d",
        "./d/",
        "d//a.jpg",
        str(here / "d"),
        str(here / "d" / "sub"),
        "d/sub/../a.jpg",
        "link",
        "link/a.jpg",
    ]
    found = {
        tuple(sorted(keys(*order))) for order in itertools.islice(itertools.permutations(words), 0, None, 997)
    }
    assert len(found) == 1
    names = [os.path.realpath(key) for key in found.pop()]
    assert sorted(names) == [str(here / "d/a.jpg"), str(here / "d/sub/b.jpg")]


def test_relative_stays_relative_and_absolute_absolute(here: Path, write: Write) -> None:
    write("d/a.jpg")
    assert keys("./d/./a.jpg") == ["d/a.jpg"]
    assert keys(str(here / "d")) == [str(here / "d/a.jpg")]
    assert keys("../here/d") == ["../here/d/a.jpg"]


def test_pieces_do_not_depend_on_the_order_of_words(write: Write) -> None:
    for name in ("d/a.jpg", "d/sub/b.jpg", "e/c.jpg", "f.jpg", "d/shard.zip"):
        write(name)
    write("list.txt", b"d/sub\nf.jpg\ng.jpg\n")
    words = ["d", "e", "f.jpg", "d/sub", "@list.txt", "rtsp://camera/1"]
    runs = {tuple(keys(*order)) for order in itertools.permutations(words)}
    assert len(runs) == 1
    (found,) = runs
    assert sorted(found) == sorted(set(found))
    assert set(found) == {
        "d/a.jpg", "d/sub/b.jpg", "e/c.jpg", "f.jpg", "d/shard.zip", "g.jpg", "rtsp://camera/1"
    }  # fmt: skip


def test_bytes_that_are_not_utf8_survive(here: Path) -> None:
    raw = os.fsencode(here / "d")
    os.mkdir(raw)
    with open(raw + b"/caf\xe9.jpg", "wb") as stream:
        stream.write(JPEG)
    piece = only("d")
    assert os.fsencode(piece.key) == b"d/caf\xe9.jpg"
    assert os.fsencode(piece.open()) == b"d/caf\xe9.jpg"
    listed = only("-", stdin=io.BytesIO(b"d/caf\xe9.jpg\n"))
    assert (listed.key, listed.nbytes) == (piece.key, len(JPEG))


def test_a_file_that_is_named_as_a_member_is_keeps_its_own_key(here: Path, write: Write) -> None:
    write("d/a.zip!b.jpg")
    with zipfile.ZipFile(here / "d" / "a.zip", "w") as archive:
        archive.writestr("b.jpg", JPEG)
    found = {p.key: p.open() for p in pieces(["d"])}
    assert found == {"d/a.zip!b.jpg": JPEG, "./d/a.zip!b.jpg": "d/a.zip!b.jpg"}


def test_a_name_that_ffmpeg_would_take_for_a_protocol_is_opened_as_a_file(write: Write) -> None:
    write("concat:a.mp4", MP4)
    piece = only("./concat:a.mp4")
    assert (piece.key, piece.open()) == ("concat:a.mp4", "./concat:a.mp4")


def test_known_keys_are_not_given_and_their_files_not_opened(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("d/a.jpg", "d/b.jpg"):
        write(name)
    opened: list[str] = []
    real = os.open

    def watched(path: str, *rest: int) -> int:
        opened.append(path)
        return real(path, *rest)

    monkeypatch.setattr(os, "open", watched)
    assert keys("d", known={"d/a.jpg"}.__contains__) == ["d/b.jpg"]
    assert [path for path in opened if str(path).endswith(".jpg")] == ["d/b.jpg"]


def test_what_opens_a_file_can_be_sent_to_another_process(write: Write) -> None:
    write("a.mp4", MP4)
    assert pickle.loads(pickle.dumps(only("a.mp4"))).open() == "a.mp4"  # noqa: S301 - our own bytes


# Cameras and addresses


def test_cameras_and_addresses_are_feeds_and_a_video_at_an_address_has_an_end() -> None:
    words = ["rtsp://camera/1", "/dev/video0", "https://host/live.m3u8?x=1", "https://host/clip.MP4?x=1"]
    found = {p.key: (p.kind, p.open(), p.nbytes) for p in pieces(words)}
    kinds = {"https://host/clip.MP4?x=1": "video"}
    assert found == {word: (kinds.get(word, "feed"), word, 0) for word in words}


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("rtsp://user:s3cret@camera:554/1?a=b", "rtsp://camera:554/1?a=b"),
        ("rtsp://admin:s3@cret@camera/1", "rtsp://camera/1"),
        ("rtsp://admin:s3/cret@camera/1", "rtsp://camera/1"),
        ("rtsp://admin:s3#cret@camera/1", "rtsp://camera/1"),
        ("rtsp://admin:12/s3cret@camera/1", "rtsp://admin:12/s3cret@camera/1"),  # as likely a port and a path
        ("rtsp://camera:8080/a@2x.mp4", "rtsp://camera:8080/a@2x.mp4"),
        ("rtsp://camera/a@b:c", "rtsp://camera/a@b:c"),
        ("rtsp://[::1]:554/a@b", "rtsp://[::1]:554/a@b"),
        ("rtsp://dvr/1?user=a&password=s3cret&x=1", "rtsp://dvr/1?user=a&password=***&x=1"),
        ("https://host/live.m3u8?Token=s3cret", "https://host/live.m3u8?Token=***"),
    ],
)
def test_a_key_does_not_tell_the_password(word: str, key: str) -> None:
    piece = only(word)
    assert piece.key == key
    assert piece.open() == word


def test_addresses_that_are_not_read_fail() -> None:
    found = {p.key: reason(p) for p in pieces(["file:///etc/passwd", "https://host/a.jpg"])}
    assert "expected http, https, rtsp" in found["file:///etc/passwd"]
    assert "only videos and feeds" in found["https://host/a.jpg"]


# Lists


def test_lists_give_files_folders_and_addresses(write: Write) -> None:
    for name in ("a b.jpg", "d/b.jpg", "c.mp4"):
        write(name)
    write("l.txt", b"\xef\xbb\xbfa b.jpg\r\n\n./d\nrtsp://camera/1\ngone.jpg\na b.jpg")
    found = {p.key: p for p in pieces(["l.txt"])}
    assert list(found) == ["a b.jpg", "d/b.jpg", "rtsp://camera/1", "gone.jpg"]
    assert reason(found["gone.jpg"]) == "no such file"
    assert list(found) == keys("@l.txt")


def test_a_table_names_its_column(write: Write) -> None:
    write("t.csv", b'id,Path\n1,a.jpg\n2,"b, c.jpg"\n3,\n')
    found = list(pieces(["t.csv"]))
    assert [p.key for p in found] == ["a.jpg", "b, c.jpg", "t.csv:4"]
    assert "nothing in column 2" in reason(found[2])
    write("bare.csv", b"a.jpg,joy\nb.jpg,sad\n")
    assert keys("bare.csv") == ["a.jpg", "b.jpg"]


def test_lines_of_json_are_strings_or_objects(write: Write) -> None:
    write("l.jsonl", b'"a.jpg"\n{"file": "b.jpg"}\n\n{"name": 1}\n[\n{"path": 3}\n"\\ud800.jpg"\n')
    found = list(pieces(["l.jsonl"]))
    assert [p.key for p in found] == ["a.jpg", "b.jpg", "l.jsonl:4", "l.jsonl:5", "l.jsonl:6", "\ud800.jpg"]
    assert "expected a string" in reason(found[2])
    assert "not JSON" in reason(found[3])
    assert "not a path" in reason(found[5])


def test_a_list_that_is_not_there_fails(here: Path) -> None:
    assert "the list cannot be read: No such file" in reason(only("@gone"))
    (here / "folder.txt").mkdir()
    assert keys("folder.txt") == []


def test_unusable_lines_fail_and_the_others_count(write: Write) -> None:
    long = b"x" * 70_000
    write("l.txt", b"a.jpg\n" + long + b"\nb\0c\nd.jpg\n" + long)
    found = {p.key: p for p in pieces(["l.txt"])}
    assert list(found) == ["a.jpg", "l.txt:2", "l.txt:3", "d.jpg", "l.txt:5"]
    assert "more than 65,536 bytes" in reason(found["l.txt:2"])
    assert "find -print" in reason(found["l.txt:3"])
    assert "more than 65,536 bytes" in reason(found["l.txt:5"])


def test_a_line_of_any_length_takes_little_memory() -> None:
    reader, writer = os.pipe()
    zeros = subprocess.Popen(["head", "-c", "200000000", "/dev/zero"], stdout=writer)
    os.close(writer)
    with zeros, open(reader, "rb") as stdin:
        tracemalloc.start()
        (entry,) = entries(stdin, "lines")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert "NUL" in entry.error
    assert peak < 2**20


def test_standard_input_gives_a_piece_as_soon_as_its_line_is_there(write: Write) -> None:
    write("a.jpg")
    write("b.jpg")
    reader, writer = os.pipe()
    with open(reader, "rb") as stdin, open(writer, "wb", buffering=0) as typed:
        found = pieces(["-"], stdin=stdin)
        for name in ("a.jpg", "b.jpg"):
            typed.write(f"{name}\n".encode())
            # Without the line a reader waits; a thread tells a wait that has no end.
            got: list[str] = []
            thread = threading.Thread(target=lambda got=got: got.append(next(found).key), daemon=True)
            thread.start()
            thread.join(30)
            assert got == [name]


def test_standard_input_adds_nothing_that_a_folder_gave(write: Write) -> None:
    for name in ("d/a.jpg", "b.jpg"):
        write(name)
    assert keys("-", "d", stdin=io.BytesIO(b"./d/a.jpg\nb.jpg\nb.jpg\n")) == ["d/a.jpg", "b.jpg"]


def test_words_of_lines_mean_no_lists(write: Write) -> None:
    write("l.txt", b"l.txt\n@l.txt\n-\n{a,b}.jpg\n")
    assert keys("@l.txt") == ["l.txt", "@l.txt", "-", "{a,b}.jpg"]


_NAME = st.binary(min_size=1, max_size=40).filter(lambda b: not set(b) & {0, 10, 13})


@given(st.lists(_NAME, max_size=8), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_lines_are_read_back(names: list[bytes], end: bytes, last: bool) -> None:
    if names and names[0].startswith(b"\xef\xbb\xbf"):
        names[0] = b"x" + names[0]
    text = end.join(names) + (end if last else b"")
    found = list(entries(io.BytesIO(text), "lines"))
    assert found == [Entry(i, os.fsdecode(name)) for i, name in enumerate(names, 1)]


@given(st.lists(st.text(min_size=1, max_size=20).filter(lambda t: t.strip() and "\0" not in t), max_size=6))
def test_lines_of_json_are_read_back(names: list[str]) -> None:
    text = "".join(json.dumps(n if i % 2 else {"other": 1, "path": n}) + "\n" for i, n in enumerate(names))
    assert [e.text for e in entries(io.BytesIO(text.encode()), "jsonl")] == names


@given(
    st.lists(
        st.text(min_size=1, max_size=20).filter(lambda t: t.strip() and not set(t) & set("\0\r\n")),
        max_size=6,
    )
)
def test_tables_are_read_back(names: list[str]) -> None:
    rows = "".join('7,"{}"\n'.format(n.replace('"', '""')) for n in names)
    found = [e.text for e in entries(io.BytesIO(f"id,path\n{rows}".encode("utf-8", "surrogatepass")), "csv")]
    assert [f.encode("utf-8", "surrogateescape") for f in found] == [
        n.encode("utf-8", "surrogatepass") for n in names
    ]


@given(st.binary(max_size=300), st.sampled_from(["lines", "csv", "jsonl"]))
def test_any_bytes_are_a_list(data: bytes, form: str) -> None:
    for entry in entries(io.BytesIO(data), form):  # type: ignore[arg-type]
        assert bool(entry.text) != bool(entry.error)


# Patterns


def test_patterns_stand_for_shards(write: Write) -> None:
    for number in range(8, 11):
        write(f"shard-{number:06}.jpg")
    assert keys("shard-{000008..000010}.jpg") == ["shard-000008.jpg", "shard-000009.jpg", "shard-000010.jpg"]
    assert reason(only("shard-{000011..000011}.jpg")) == "no such file"


def test_a_file_with_braces_in_its_name_is_itself(write: Write) -> None:
    write("{a,b}.jpg")
    assert keys("{a,b}.jpg") == ["{a,b}.jpg"]


def test_too_many_names_are_refused() -> None:
    for pattern in ("{0..1000000}", "{0..999}{0..999}{0..999}", "{0..999999999999999999}"):
        with pytest.raises(UsageError, match="1,000,000 at most"):
            list(expand(pattern))


_PLAIN = st.text("ab./-_", max_size=4)
_BRACE = st.one_of(
    st.lists(_PLAIN, min_size=2, max_size=3).map(lambda names: "{" + ",".join(names) + "}"),
    st.tuples(st.from_regex(r"[0-9]{1,3}", fullmatch=True), st.integers(-3, 3)).map(
        lambda pair: f"{{{pair[0]}..{max(0, int(pair[0]) + pair[1])}}}"
    ),
    st.sampled_from(["{x}", "{\u0660..1}", "{1..b}", "{1..2..3..4}", "{..}"]),
    st.just("{}"),
)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is what patterns are compared with")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(_PLAIN, _BRACE), min_size=1, max_size=4).map("".join))
def test_patterns_expand_as_bash_expands_them(pattern: str) -> None:
    script = "for x in " + pattern + '""; do printf "%s\\n" "$x"; done'
    done = subprocess.run(["bash", "-fc", script], capture_output=True, check=True)
    assert list(expand(pattern)) == done.stdout.decode().split("\n")[:-1]


# Memory


def test_a_folder_of_many_files_takes_little_memory(here: Path) -> None:
    for folder in range(10):
        (here / "d" / str(folder)).mkdir(parents=True)
        for number in range(500):
            (here / "d" / str(folder) / f"{number}.jpg").touch()

    def peak_of(word: str) -> int:
        tracemalloc.start()
        count = sum(1 for _ in pieces([word]))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count % 500 == 0
        return peak

    one = peak_of("d/0")
    assert peak_of("d") < 1.5 * one + 100_000
