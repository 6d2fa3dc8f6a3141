"""MXNet's .params files: written here byte by byte from the format, read whole or refused with one error.

The format: ``NDArray::Save`` and ``NDArray::LegacyLoad`` in apache/mxnet's ``src/ndarray/ndarray.cc``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vsa_rt.errors import CheckpointError

torch = pytest.importorskip("torch", reason="the arrays become tensors")

from vsa_rt.export.mxnet import read_params

V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
LEGACY = 0
WHERE = "net-0000.params"
FLOATS = (0, struct.pack("<6f", 0.5, -1.25, 3.0, 4.0, -0.0, 1e-30))


def array(
    version: int, shape: Sequence[int], flag: int, data: bytes, *, storage: int = 0, context: int = 1
) -> bytes:
    """One array; the shape's numbers are written as given, whether they fit the data or not."""
    if version == LEGACY:
        head = struct.pack(f"<I{len(shape)}I", len(shape), *shape)
    else:
        head = struct.pack("<I", version)
        head += struct.pack("<i", storage) if version != V1 else b""
        head += struct.pack(f"<i{len(shape)}q", len(shape), *shape)
    return head + struct.pack("<iii", context, 0, flag) + data


def file(arrays: Sequence[bytes], names: Sequence[bytes], **counts: int) -> bytes:
    """A list of arrays; ``arrays`` and ``names`` in ``counts`` are declared instead of the true numbers."""
    data = struct.pack(
        "<QQQ", counts.get("magic", 0x112), counts.get("reserved", 0), counts.get("a", len(arrays))
    )
    data += b"".join(arrays) + struct.pack("<Q", counts.get("n", len(names)))
    return data + b"".join(struct.pack("<Q", len(name)) + name for name in names)


def refused(data: bytes, says: str) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(CheckpointError, match=says) as caught:
        read_params(data, WHERE)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: ")
    assert "\n" not in message
    assert len(message) < 400
    return message


#: A file with every form of array that there is.
MIXED = file(
    [
        array(V2, (2, 3), *FLOATS),
        array(V1, (3, 2), *FLOATS, context=2),  # saved from a GPU
        array(LEGACY, (6,), *FLOATS),
        array(V3, (), 4, struct.pack("<i", -7)),
        array(V3, (1, 2, 3, 1), *FLOATS),
    ],
    [b"arg:a", b"aux:b", b"c", b"scalar", "ü".encode()],
)


def test_every_version_gives_the_same_numbers() -> None:
    found = read_params(MIXED, WHERE)
    assert list(found) == ["arg:a", "aux:b", "c", "scalar", "ü"]
    flat = torch.tensor([0.5, -1.25, 3.0, 4.0, -0.0, 1e-30])
    shapes = {"arg:a": (2, 3), "aux:b": (3, 2), "c": (6,), "ü": (1, 2, 3, 1)}
    for name, shape in shapes.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], flat.reshape(shape)), name
    assert found["scalar"].shape == ()
    assert found["scalar"].dtype == torch.int32
    assert found["scalar"].item() == -7


@pytest.mark.parametrize(
    ("flag", "layout", "dtype", "values"),
    [
        (0, "f", torch.float32, [1.5, -2.0]),
        (1, "d", torch.float64, [0.1, -1e300]),
        (2, "e", torch.float16, [0.5, -65504.0]),
        (3, "B", torch.uint8, [0, 255]),
        (4, "i", torch.int32, [-(2**31), 258]),
        (5, "b", torch.int8, [-128, 127]),
        (6, "q", torch.int64, [-(2**63), 2**40 + 1]),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
@pytest.mark.parametrize("version", [V1, V2, V3, LEGACY], ids=["V1", "V2", "V3", "legacy"])
def test_every_type_is_read(version: int, flag: int, layout: str, dtype: Any, values: list[float]) -> None:
    data = file([array(version, (2, 1), flag, struct.pack(f"<2{layout}", *values))], [b"x"])
    (found,) = read_params(data, WHERE).values()
    assert found.dtype == dtype
    assert found.tolist() == [[values[0]], [values[1]]]


def test_the_arrays_are_rows_first_and_the_readers_own() -> None:
    values = np.arange(24, dtype="<f4")
    data = bytearray(file([array(V2, (2, 3, 4), 0, values.tobytes())], [b"x"]))
    found = read_params(bytes(data), WHERE)["x"]
    assert found[1, 2, 3] == 23
    assert found[0, 1, 0] == 4
    found[0, 0, 0] = 9.0  # writable, and of nobody else
    assert read_params(bytes(data), WHERE)["x"][0, 0, 0] == 0


def test_the_reserved_number_is_not_looked_at() -> None:
    data = file([array(V2, (6,), *FLOATS)], [b"x"], reserved=2**64 - 1)
    assert read_params(data, WHERE)["x"].shape == (6,)


def test_a_file_cut_anywhere_is_one_error() -> None:
    for length in range(len(MIXED)):
        refused(MIXED[:length], "get it again")


def test_bytes_behind_the_names_are_an_error() -> None:
    refused(MIXED + b"\0", "1 bytes follow the last name")


ONE = array(V2, (2, 3), *FLOATS)
HUGE = (0, b"\0" * 24)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"PK\x03\x04" + b"\0" * 40, r"not an MXNet \.params file: it begins with 0x4034B50, expected 0x112"),
        (file([ONE], [b"x"], magic=0x113), "begins with 0x113, expected 0x112"),
        (struct.pack(">QQQ", 0x112, 0, 1) + ONE, "not an MXNet"),
        (file([], []), "holds no arrays"),
        (file([ONE], [b"x"], a=2**60), f"declares {2**60} arrays, too many for the"),
        (file([ONE], [b"x"], a=2**64 - 1), f"declares {2**64 - 1} arrays"),
        (file([ONE], [b"x"], n=2**60), f"1 arrays and {2**60} names"),
        (file([ONE, ONE], [b"x"]), "2 arrays and 1 names"),
        (file([ONE], [b"x", b"y"]), "1 arrays and 2 names"),
        (file([ONE], []), "1 arrays and 0 names, expected a name for each"),
        (file([ONE, ONE], [b"x", b"x"]), "'x' twice"),
        (file([ONE, ONE], [b"x" * 5000] * 2), "xxx' twice"),
        (file([ONE], [b"x\n" * 500]), "name 1 of 1 is 'x.nx.*, expected printable text"),
        (file([ONE], [b"\xff\xfe"]), "name 1 of 1 is not UTF-8"),
        (
            file([ONE], [])[:-8] + struct.pack("<QQ", 1, 2**62) + b"x",
            f"name 1 of 1 needs {2**62} bytes, 1 are left",
        ),
        (
            file([array(V2, (2, 3), *FLOATS, storage=1)], [b"x"]),
            r"row-sparse \(storage type 1\), expected dense",
        ),
        (file([array(V3, (2, 3), *FLOATS, storage=2)], [b"x"]), r"CSR \(storage type 2\)"),
        (file([array(V2, (2, 3), *FLOATS, storage=-1)], [b"x"]), "undefined"),
        (file([array(V2, (2, 3), *FLOATS, storage=9)], [b"x"]), r"unknown \(storage type 9\)"),
        (file([array(V2, (2**60,), *HUGE)], [b"x"]), f"needs {2**62} bytes"),
        (
            file([array(V1, (2**60,) * 20, *HUGE)], [b"x"]),
            r"array 1 of 1, float32 \(.* and 14 more\), needs more than 2\^64 bytes",
        ),
        (file([array(V3, (2**63 - 1,) * 2, *HUGE)], [b"x"]), "needs"),
        (file([array(LEGACY, (2**32 - 1,) * 32, *HUGE)], [b"x"]), "needs"),
        (file([array(V2, (2, 4), *FLOATS)], [b"x"]), "name 1 of 1's length needs 8 bytes, 1 are left"),
        (
            file([ONE, array(V2, (1,) * 33, 0, b"\0" * 4)], [b"x", b"y"]),
            "array 2 of 2 declares 33 dimensions",
        ),
        (
            file([struct.pack("<Iii", V2, 0, 2**31 - 1) + b"\0" * 40], [b"x"]),
            "declares 2147483647 dimensions",
        ),
        (file([struct.pack("<Ii", V1, -1) + b"\0" * 40], [b"x"]), "array 1 of 1 was saved without data"),
        (file([struct.pack("<Iii", V3, 0, -1) + b"\0" * 40], [b"x"]), "without data"),
        (file([struct.pack("<Iii", V2, 0, 0), ONE], [b"x", b"y"]), "array 1 of 2 was saved without data"),
        (file([struct.pack("<I", 0), ONE], [b"x", b"y"]), "array 1 of 2 was saved without data"),
        (file([array(V2, (2, 0), 0, b"")], [b"x"]), r"shape \(2, 0\), expected positive"),
        (file([array(V2, (-2, -3), *FLOATS)], [b"x"]), r"shape \(-2, -3\), expected positive"),
        (file([array(LEGACY, (0,), *FLOATS)], [b"x"]), "expected positive"),
        (
            file([struct.pack("<I", 0xF993FACB) + ONE[4:]], [b"x"]),
            "begins with 0xF993FACB, expected 0xF993FAC8",
        ),
        (file([struct.pack(">I", V2) + ONE[4:]], [b"x"]), "begins with 0xC9FA93F9"),
        (file([array(V2, (6,), 7, b"\0" * 6)], [b"x"]), "type flag 7, expected one of float32 0, float64 1"),
        (file([array(V2, (6,), -1, b"\0" * 6)], [b"x"]), "type flag -1"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_damaged_or_foreign_file_is_one_error(data: bytes, says: str) -> None:
    refused(data, says)


def test_every_flipped_byte_is_read_or_refused() -> None:
    """Whatever stands in a byte, nothing but the one error is raised, and no more is held than was there."""
    outcomes = set()
    for at in range(len(MIXED)):
        for value in (0x00, 0x01, 0x7F, 0x80, 0xFF):
            data = MIXED[:at] + bytes([value]) + MIXED[at + 1 :]
            try:
                found = read_params(data, WHERE)
            except CheckpointError:
                outcomes.add("refused")
            else:
                outcomes.add("read")
                assert sum(t.nbytes for t in found.values()) <= len(MIXED)
    assert outcomes == {"read", "refused"}


def test_an_error_names_the_array_that_is_cut() -> None:
    whole = file([ONE, array(V2, (4, 5), 0, b"\0" * 80)], [b"x", b"y"])
    at = len(whole) - 8 - 2 * 9 - 80
    refused(whole[: at + 30], r"array 2 of 2, float32 \(4, 5\), needs 80 bytes, 30 are left")
