"""Checkpoints of numpy arrays: what honest writers make is read, whatever else there is is one clear error."""

from __future__ import annotations

import gzip
import io
import pickle
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.errors import CheckpointError

torch = pytest.importorskip("torch", reason="arrays are read into torch tensors")

from vsa_rt.export.arrays import read_arrays

Array = NDArray[Any]
NUMBERS = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7


def saved(array: Array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def declaring(header: str, body: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """A ``.npy`` with this header text, whatever it says."""
    length = len(header).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + header.encode("latin-1") + body


def described(shape: str, descr: str = "'<f4'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n"


def npz(arrays: dict[str, Any], packed: bool = False) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(stream, **arrays)
    return stream.getvalue()


def zipped(members: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED, mode: int = 0) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type, entry.external_attr = kind, mode << 16
            archive.writestr(entry, data)
    return stream.getvalue()


def tarred(
    members: dict[str, bytes], kind: bytes = tarfile.REGTYPE, style: int = tarfile.GNU_FORMAT
) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=style) as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.size, entry.linkname = kind, len(data), "other"
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def patched(archive: bytes, at: int, field: bytes) -> bytes:
    """A tar whose first header has another field, checksum right."""
    header = bytearray(archive[:512])
    header[at : at + len(field)] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + archive[512:]


def refused(data: bytes, says: str) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        read_arrays(data, "file.npz")
    assert str(caught.value).startswith("file.npz: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def same(tensor: Any, array: Array) -> bool:
    native = array.astype(array.dtype.newbyteorder("="))
    return bool(tensor.is_contiguous() and np.array_equal(tensor.numpy(), native)) and (
        tensor.numpy().dtype == native.dtype
    )


# What is read


@pytest.mark.parametrize(
    "array",
    [
        NUMBERS,
        NUMBERS.astype(">f4"),
        NUMBERS.astype(">f8"),
        np.asfortranarray(NUMBERS),
        np.asfortranarray(NUMBERS.astype(">f8")),
        NUMBERS.astype(np.float16),
        NUMBERS.astype(np.int64),
        NUMBERS.astype(np.uint8),
        np.array(3.5),
    ],
    ids=["f4", "big-f4", "big-f8", "fortran", "big-fortran", "f2", "i8", "u1", "scalar"],
)
def test_one_array(array: Array) -> None:
    read = read_arrays(saved(array), "file")
    assert list(read) == ["arr_0"]
    assert same(read["arr_0"], array)


def test_what_was_read_is_its_own_and_can_be_written() -> None:
    data = saved(NUMBERS)
    tensor = read_arrays(data, "file")["arr_0"]
    tensor += 1
    assert same(read_arrays(data, "file")["arr_0"], NUMBERS)


def test_headers_of_version_2_and_of_python_2() -> None:
    body = NUMBERS.tobytes()
    for data in (
        declaring(described("(2, 3, 4)"), body, (2, 0)),
        declaring(described("(2L, 3L, 4L)"), body),
    ):
        assert same(read_arrays(data, "file")["arr_0"], NUMBERS)


@pytest.mark.parametrize("packed", [False, True], ids=["stored", "deflated"])
def test_npz_keys_are_those_it_was_saved_with(packed: bool) -> None:
    arrays = {"conv1d/kernel:0": NUMBERS, "dense/kernel:0": NUMBERS[0], "bias": np.ones(3)}
    read = read_arrays(npz(arrays, packed), "file")
    assert list(read) == list(arrays)
    assert all(same(read[k], v) for k, v in arrays.items())


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["tar", "tgz"])
def test_tar_keys_are_names_without_folder_and_suffix(
    tmp_path: Path, pack: Callable[[bytes], bytes], style: int
) -> None:
    folder = tmp_path / "yt8m"
    folder.mkdir()
    np.save(folder / "mean.npy", NUMBERS[0])
    np.save(folder / "eigenvals.npy", np.asfortranarray(NUMBERS[1]))
    (folder / "._mean.npy").write_bytes(b"what macOS adds")
    (folder / "README.txt").write_text("not an array")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=style) as archive:
        archive.add(tmp_path, ".")  # PAX keeps the files' times in extended headers
    read = read_arrays(pack(stream.getvalue()), "file")
    assert sorted(read) == ["eigenvals", "mean"]
    assert same(read["mean"], NUMBERS[0])
    assert same(read["eigenvals"], NUMBERS[1])


def test_gzip_padded_with_zeros_is_read() -> None:
    assert list(read_arrays(gzip.compress(tarred({"a.npy": saved(NUMBERS)})) + bytes(512), "file")) == ["a"]


def test_small_files_of_zeros_are_no_bombs() -> None:
    zeros = np.zeros((1000, 2000), np.float32)
    packed = npz({"a": zeros}, packed=True)
    assert len(packed) * 900 < zeros.nbytes
    assert same(read_arrays(packed, "file")["a"], zeros)


# What is refused


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a .npy, .npz, .tar or .tgz file"),
        (b"rubbish" * 100, "not a .npy"),
        (b"PK\5\6" + bytes(18), "holds no .npy arrays"),
        (zipped({"archive/data.pkl": b"x"}), "holds no .npy arrays"),
        (tarred({"README": b"x"}), "holds no .npy arrays"),
        (gzip.compress(b"rubbish"), "not a .npy"),
        (gzip.compress(saved(NUMBERS)), "not a .npy"),
    ],
    ids=["empty", "rubbish", "empty-zip", "other-zip", "other-tar", "other-gzip", "gzipped-npy"],
)
def test_another_file_is_one_error(data: bytes, says: str) -> None:
    refused(data, says)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.array([{"a": 1}, None], object), "holds object, expected"),
        (np.ones(3, bool), "holds bool, expected"),
        (np.ones(3, np.complex64), "holds complex64"),
        (np.ones(3, [("a", "f4"), ("b", "f4")]), "expected float16"),
        (np.array(["text"]), "holds <U4"),
        (np.array([b"bytes"]), r"holds \|S5"),
        (np.array(["2021-01-01"], "M8[D]"), "holds datetime64"),
        (np.ones(3, np.uint16), "holds uint16"),
        (np.ones((0, 3)), r"declares shape \(0, 3\), expected sizes of 1 or more"),
    ],
    ids=["object", "bool", "complex", "structured", "text", "bytes", "dates", "uint16", "empty"],
)
def test_an_array_of_something_else_is_one_error(array: Array, says: str) -> None:
    for data in (saved(array), zipped({"a.npy": saved(array)}), tarred({"a.npy": saved(array)})):
        refused(data, says)


class Bomb:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    made = tmp_path / "executed"
    data = saved(np.array([Bomb(made)], object))
    np.load(io.BytesIO(data), allow_pickle=True)
    assert made.exists()  # the bomb works where it is let
    made.rmdir()
    for form in (data, zipped({"a.npy": data}), gzip.compress(tarred({"a.npy": data}))):
        refused(form, "holds object")
    raw = declaring(described("(1,)"), pickle.dumps(Bomb(made)))
    refused(raw, "which are not the")
    assert not made.exists()


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (described(f"({2**60},)"), "which are not the 96 bytes there"),
        (described(f"({2**40}, {2**40})"), "which are not"),
        (described(f"({'9' * 3000},)"), "which are not"),
        (described("(24, 0)"), "sizes of 1 or more"),
        (described(f"(0, {2**62})"), "sizes of 1 or more"),
        (described("(-24,)"), "sizes of 1 or more"),
        (described("(-4, -6)"), "sizes of 1 or more"),
        (described("(True, 24)"), "sizes of 1 or more"),
        (described("(23,)"), "which are not the 96 bytes there"),
        (described("(25,)"), "which are not the 96 bytes there"),
        (described("(24.0,)"), "shape is not valid"),
        (described("24"), "shape is not valid"),
        (described("(24,)", order="2"), "fortran_order"),
        (described(f"({'1,' * 200} 24)"), "dimension"),
        (described("(24,)", descr="'|O'"), "holds object"),
        (described("(24,)", descr="'V99999999'"), "holds"),
        (described("(24,)", descr="('<f4', (2,))"), "holds"),
        (described("(24,)", descr="'nothing'"), "descr is not"),
        (described("(24,)", descr="[[[]]]"), "not a .npy file of plain numbers"),
        ("{'descr': '<f4', 'shape': (24,)}\n", "correct keys"),
        ("[1, 2]\n", "not a dictionary"),
        ("__import__('os').getcwd()\n", "not a .npy file of plain numbers"),
        ("(" * 3000, "not a .npy file of plain numbers"),
        ("-" * 3000 + "1", "not a .npy file of plain numbers"),
        ("'" + "a" * 5000 + "'", "not a .npy file of plain numbers"),
    ],
)
def test_a_header_that_lies_is_one_error(header: str, says: str) -> None:
    refused(declaring(header, NUMBERS.tobytes()), says)


@pytest.mark.parametrize("version", [(0, 0), (3, 0), (255, 255)])
def test_another_version_is_one_error(version: tuple[int, int]) -> None:
    refused(declaring(described("(24,)"), NUMBERS.tobytes(), version), "version")


def test_nothing_of_a_declared_size_is_allocated() -> None:
    quarter = declaring(described(f"({2**26},)"), bytes(96))
    tracemalloc.start()
    try:
        for data in (quarter, zipped({"a.npy": quarter}), tarred({"a.npy": quarter})):
            refused(data, "which are not the 96 bytes there")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "make",
    [
        saved,
        lambda a: npz({"a": a}),
        lambda a: npz({"a": a}, packed=True),
        lambda a: tarred({"a.npy": saved(a)}),
        lambda a: gzip.compress(tarred({"a.npy": saved(a)})),
    ],
    ids=["npy", "npz", "npz-deflated", "tar", "tgz"],
)
def test_a_damaged_file_is_one_error_or_reads_whole(make: Callable[[Array], bytes]) -> None:
    array = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    whole = make(array)
    assert same(next(iter(read_arrays(whole, "file").values())), array)
    # The end of a tar is zeros, and its last array's bytes end before them.
    used = len(whole.rstrip(b"\0"))
    for length in [*range(0, used, max(1, used // 60)), used - 1]:
        with pytest.raises(CheckpointError):
            read_arrays(whole[:length], "file")
    draw = np.random.default_rng(1)
    for _ in range(300):
        spoilt = bytearray(whole)
        for at in draw.integers(0, len(whole), 3):
            spoilt[at] = draw.integers(256)
        try:
            read = read_arrays(bytes(spoilt), "file")
        except CheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017 - any other error fails the test
        else:
            assert sum(t.numel() for t in read.values()) <= 4 * array.size


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    zeros = saved(np.zeros(20 << 20, np.float32))  # 80 MiB in 80 KiB
    inside = zipped({"a.npy": zeros})
    tgz = gzip.compress(tarred({"a.npy": zeros}), 6)
    del zeros
    assert len(tgz) < 100_000
    tracemalloc.start()
    try:
        refused(inside, "unpacks to more than 67108864 bytes")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    refused(tgz, "unpacks to more than 67108864 bytes")


def test_many_members_together_have_the_same_limit() -> None:
    zeros = saved(np.zeros(5 << 20, np.float32))  # 20 MiB each
    refused(zipped({f"{i}.npy": zeros for i in range(4)}), "unpacks to more than")
    assert len(read_arrays(zipped({f"{i}.npy": zeros for i in range(3)}), "file")) == 3


def test_a_zip_that_declares_too_little_is_one_error() -> None:
    body = saved(NUMBERS)
    data = zipped({"a.npy": body})
    size = len(body).to_bytes(4, "little")
    assert data.count(size) == 2  # beside the member and in the directory
    less = data.replace(size, (len(body) - 4).to_bytes(4, "little"))
    refused(less, "cannot be unpacked: .*CRC")
    refused(data.replace(size, (2**31).to_bytes(4, "little")), "unpacks to more than")


def test_more_entries_than_any_network_has_are_refused() -> None:
    refused(tarred({f"{i}.txt": b"" for i in range(10_001)}), "more than 10000 entries")
    refused(zipped({f"{i}.txt": b"" for i in range(10_001)}), "more than 10000 entries")


@pytest.mark.parametrize("name", ["/a.npy", "../a.npy", "b/../a.npy", "b\\a.npy", "a\n.npy", "a\x1b[2J.npy"])
def test_odd_names_are_refused(name: str) -> None:
    for make in (zipped, tarred):
        refused(make({name: saved(NUMBERS)}), "expected a plain relative name")


def test_two_arrays_of_one_name_are_refused() -> None:
    refused(tarred({"a/x.npy": saved(NUMBERS), "b/x.npy": saved(NUMBERS)}), "two arrays 'x'")
    pair = zipped({"x.npy": saved(NUMBERS), "y.npy": saved(NUMBERS)})
    refused(pair.replace(b"y.npy", b"x.npy"), "two arrays 'x'")


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.LNKTYPE,
        tarfile.SYMTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CONTTYPE,
        tarfile.GNUTYPE_SPARSE,
        b"Z",
    ],
)
def test_links_and_devices_in_a_tar_are_refused(kind: bytes) -> None:
    data = patched(tarred({"a.npy": saved(NUMBERS)}), 156, kind)
    refused(data, "a.npy is not a plain file, but of tar type")


def test_links_and_devices_in_a_zip_are_refused() -> None:
    for kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO):
        refused(zipped({"a.npy": saved(NUMBERS)}, mode=kind | 0o644), "a.npy is a link or a device")
    assert list(read_arrays(zipped({"a.npy": saved(NUMBERS)}, mode=stat.S_IFREG | 0o644), "file")) == ["a"]


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_packed_otherwise_is_refused(kind: int) -> None:
    refused(zipped({"a.npy": saved(NUMBERS)}, kind), "packed by other means than deflate")


def test_an_encrypted_zip_is_refused() -> None:
    data = bytearray(zipped({"a.npy": saved(NUMBERS)}))
    data[6] |= 1  # the flags of the member ...
    data[data.index(b"PK\1\2") + 8] |= 1  # ... and of its entry in the directory
    refused(bytes(data), "a.npy is encrypted")


@pytest.mark.parametrize(
    ("field", "says"),
    [
        (b"\xff" * 11 + b"\0", "expected octal digits"),  # base 256, below zero
        (b"\x80" + bytes(6) + b"\xff" * 5, "expected octal digits"),  # base 256, a terabyte
        (b"77777777777\0", "declares 8589934591 bytes, .* are there"),
        (b"-0000000100\0", "expected octal digits"),
        (b"            ", "expected octal digits"),
    ],
)
def test_a_tar_size_that_lies_is_one_error(field: bytes, says: str) -> None:
    refused(patched(tarred({"a.npy": saved(NUMBERS)}), 124, field), says)


def test_a_damaged_tar_header_is_one_error() -> None:
    data = tarred({"a.npy": saved(NUMBERS)})
    refused(b"b" + data[1:], "the tar header at byte 0 is damaged")
    refused(data[:1024] + data[:300], "ends within a tar header")


@pytest.mark.parametrize(
    ("records", "says"),
    [
        (b"20 size=99999999999\n", "sets size"),
        (b"16 path=../../x\n", "sets path"),
        (b"22 GNU.sparse.major=1\n", "sets GNU.sparse.major"),
        (b"99 comment=x\n", "damaged extended"),
        (b"0 a=b\n", "damaged extended"),
        (b"rubbish", "damaged extended"),
        (b"6 a=b\n" * 20_000, "an extended tar header of 120000 bytes"),
    ],
    ids=["size", "path", "sparse", "long", "zero", "rubbish", "large"],
)
def test_an_extended_header_that_changes_a_member_is_refused(records: bytes, says: str) -> None:
    extended = patched(tarred({"h": records}), 156, b"x").rstrip(b"\0")
    extended += bytes(-len(extended) % 512)
    refused(extended + tarred({"a.npy": saved(NUMBERS)}), says)


def test_what_follows_a_gzip_stream_is_refused() -> None:
    good = gzip.compress(tarred({"a.npy": saved(NUMBERS)}))
    refused(good + good, "bytes behind the gzip stream")
    refused(good[:-9], "the gzip stream ends early")
    refused(good[:-8] + bytes(8), "cannot be unpacked: .*incorrect data check")
