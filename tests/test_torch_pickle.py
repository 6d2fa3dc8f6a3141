"""PyTorch files that hold more than tensors: read whole, with nothing of them executed or believed."""

from __future__ import annotations

import argparse
import copyreg
import io
import os
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsa_rt.errors import CheckpointError

reason = "PyTorch files hold torch's tensors"
torch = pytest.importorskip("torch", reason=reason)

from vsa_rt.export import torch_pickle
from vsa_rt.export.torch_pickle import Foreign, read_torch

FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def saved(value: object, zipped: bool, protocol: int = 2) -> bytes:
    """A file as torch writes it."""
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return file.getvalue()


class Stored:
    """A storage that a stream declares; the file's bytes need not agree."""

    def __init__(self, number: Any, key: str = "0", kind: Any = torch.FloatStorage) -> None:
        self.identity = ("storage", kind, key, "cpu", number)


class Declared:
    """A tensor that a stream declares inside a storage."""

    def __init__(self, storage: Stored, offset: Any, size: Any, stride: Any) -> None:
        self.arguments: tuple[Any, ...] = (storage, offset, size, stride, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self.arguments


class Pickler(pickle.Pickler):
    """Writes ``Stored`` as torch writes a storage."""

    def persistent_id(self, value: Any) -> Any:
        return value.identity if isinstance(value, Stored) else None


def pickled(value: object) -> bytes:
    file = io.BytesIO()
    Pickler(file, 2).dump(value)
    return file.getvalue()


def archive(stream: bytes, *storages: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file around any pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        made.writestr("archive/data.pkl", stream)
        for key, data in enumerate(storages):
            made.writestr(f"archive/data/{key}", data)
    return file.getvalue()


def legacy(stream: bytes, keys: object = (), *storages: tuple[int, bytes]) -> bytes:
    """A file of the old form around any pickle: header, pickle, keys, and each storage behind its length."""
    system = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    header = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, system))
    blocks = b"".join(number.to_bytes(8, "little") + data for number, data in storages)
    return header + stream + pickle.dumps(list(keys) if isinstance(keys, tuple) else keys, 2) + blocks


FLOATS = np.arange(6, dtype="<f4").tobytes()


def around(stream: bytes, zipped: bool) -> bytes:
    """A file of either form around a pickle without storages."""
    return archive(stream) if zipped else legacy(stream)


# What is read


@FORMS
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_file_gives_back_what_was_saved(zipped: bool, protocol: int) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    value: dict[str, Any] = {
        "model": [OrderedDict(base=base, part=base.t()[1:3, ::2], scalar=torch.tensor(7)), {"bias": base[3]}],
        "types": [torch.ones(3, dtype=d) for d in (torch.float64, torch.float16, torch.bfloat16, torch.int64)]
        + [
            torch.tensor([True, False]),
            torch.tensor([-1], dtype=torch.int8),
            torch.ones(1, dtype=torch.complex64),
        ],
        "parameter": torch.nn.Parameter(torch.full((2, 2), 0.5)),
        "empty": torch.empty(0, 3),
        "plain": {
            "epoch": 3,
            5: (1, 2, 3, 4),
            "rate": 1.5,
            "none": None,
            "yes": True,
            "raw": b"ab",
            "far": -(2**70),
        },
        "text": "ünïcode",
    }
    found: Any = read_torch(saved(value, zipped, protocol), "file")
    if protocol == 2:  # bytes of Python 3 in Python 2's protocol are a call of an encoder
        assert isinstance(found["plain"].pop("raw"), Foreign)
        value["plain"].pop("raw")
    assert found["plain"] == value["plain"]
    assert found["text"] == "ünïcode"
    assert found.keys() == value.keys()
    pairs = [(found["parameter"], value["parameter"]), (found["empty"], value["empty"])]
    pairs += list(zip(found["types"], value["types"], strict=True))
    for mine, theirs in zip(found["model"], value["model"], strict=True):
        assert mine.keys() == theirs.keys()
        pairs += [(mine[k], theirs[k]) for k in theirs]
    assert len(pairs) == 13
    for mine, theirs in pairs:
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        assert torch.equal(mine, theirs.detach())
    first, second = found["model"]
    assert first["part"].stride() == base.t()[1:3, ::2].stride()
    first["base"][3, 0] = 99
    assert second["bias"][0] == 99  # one storage, as it was


@FORMS
def test_what_is_not_restored_is_remembered(zipped: bool) -> None:
    settings = argparse.Namespace(rate=0.1, sizes=[1, 2])
    layer = torch.nn.Linear(2, 1)
    value = {"opt": settings, "best": np.float64(1.5), "array": np.ones(3), "set": {1}, "layer": layer}
    found: Any = read_torch(saved(value, zipped), "file")
    assert {type(v) for v in found.values()} == {Foreign}
    assert found["opt"].name == "argparse.Namespace"
    assert found["opt"].given == [(), {"rate": 0.1, "sizes": [1, 2]}]
    assert found["best"].name.endswith("multiarray.scalar")
    assert found["layer"].name == "torch.nn.modules.linear.Linear"
    assert torch.equal(found["layer"].given[1]["_parameters"]["weight"], layer.weight)
    for foreign in found.values():
        assert not callable(foreign)
        assert not hasattr(foreign, "__setstate__")
        assert repr(foreign) == f"<{foreign.name}>"


def test_a_file_that_python_2_wrote() -> None:
    # Strings are byte strings (opcode U), an ordered dictionary is made of pairs, tensors of the first function,
    # on a GPU; the second tensor lies in a part of the storage that has a key of its own.
    storage = b"(U\x07storagectorch.cuda\nFloatStorage\nU\x0242U\x06cuda:0K\x06%sQ"
    tensor = b"ctorch._utils\n_rebuild_tensor\n(%sK\x00K\x02K\x03\x86K\x03K\x01\x86tR"
    part = b"ctorch._utils\n_rebuild_tensor\n(%sK\x01K\x02\x85K\x01\x85tR"
    stream = b"".join(
        [
            b"\x80\x02}q\x00(U\x05modelq\x01](ccollections\nOrderedDict\nq\x02](](U\x01w",
            tensor % (storage % b"Nt"),
            b"e](U\x01v",
            part % (storage % b"U\x0243K\x02K\x03\x87t"),
            b"ee\x85R}eU\x03optcargparse\nNamespace\n)\x81}U\x04nameU\x04caf\xe9sbu.",
        ]
    )
    found: Any = read_torch(legacy(stream, ("42",), (6, FLOATS)), "file")
    visual, text = found["model"]
    assert text == {}
    assert torch.equal(visual["w"], torch.arange(6.0).reshape(2, 3))
    assert torch.equal(visual["v"], torch.tensor([3.0, 4.0]))
    assert found["opt"].given == [(), {"name": "café"}]


# What is not executed


class Bomb:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class Call:
    """Unpickling it would call anything with anything, and then set its state."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


@FORMS
def test_nothing_is_executed(tmp_path: Path, zipped: bool) -> None:
    made = tmp_path / "executed"
    bomb = Bomb(made)
    pickle.loads(pickle.dumps(bomb))  # noqa: S301 - the bomb works where it is let
    made.rmdir()
    text = str(made)
    values = [
        bomb,
        [{"deep": (1, [bomb])}],
        {"model": [{"weight": bomb}, {}]},
        Call(torch._utils._rebuild_parameter, (bomb, False, OrderedDict())),
        Call(getattr, (bomb, "path")),
        Call(copyreg._reconstructor, (dict, object, None), {"__setstate__": os.mkdir}),  # type: ignore[attr-defined]
        Call(OrderedDict, ([["key", bomb]],)),
        Call(eval, (f"__import__('os').mkdir({text!r})",)),
        Call(os.system, (f"mkdir {text}",)),
        Call(map, (os.mkdir, [text])),
    ]
    for value in values:
        read_torch(around(pickle.dumps(value, 2), zipped), "file")
        read_torch(around(pickle.dumps(value, 4), zipped), "file")
        assert not made.exists()
    found: Any = read_torch(around(pickle.dumps(bomb), zipped), "file")
    assert (type(found), found.given) == (Foreign, [(text,)])
    assert found.name.endswith(".mkdir")


@pytest.mark.parametrize(
    "stream",
    [
        b"\x80\x02cos\nmkdir\nP\x85R.",  # REDUCE
        b"\x80\x02cos\nmkdir\nP\x85\x81.",  # NEWOBJ
        b"\x80\x04cos\nmkdir\nP\x85}\x92.",  # NEWOBJ_EX
        b"\x80\x02(cos\nmkdir\nPo.",  # OBJ
        b"\x80\x02ctorch\nFloatStorage\n}(X\x0c\x00\x00\x00__setstate__cos\nmkdir\nubPb.",  # BUILD, twice
        b"\x80\x02ctorch._utils\n_rebuild_parameter\nN}(X\x08\x00\x00\x00__code__Pu\x86b.",  # BUILD of attributes
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x06\x00\x00\x00updatecos\nmkdir\nsbPb.",
        b"\x80\x02cos\nmkdir\nP\x86Q.",  # a persistent identity
        b"\x80\x02cos\nmkdir\nPa.",  # APPEND
        b"\x80\x02cos\nmkdir\nPNs.",  # SETITEM
        b"\x80\x02cbuiltins\ngetattr\ncbuiltins\n__import__\nU\x02os\x85RU\x05mkdir\x86RP\x85R.",
    ],
)
def test_no_opcode_calls_anything(tmp_path: Path, stream: bytes) -> None:
    made = tmp_path / "executed"
    text = str(made).encode()
    read_torch(archive(stream.replace(b"P", b"X" + len(text).to_bytes(4, "little") + text, 1)), "file")
    assert not made.exists()


@pytest.mark.parametrize(
    "stream", [b"\x80\x02\x82\xf0)R.", b"\x80\x02\x83\xf0\x00)R.", b"\x80\x02\x84\xf0\x00\x00\x00)R."]
)
def test_a_registered_extension_is_not_looked_up(stream: bytes) -> None:
    copyreg.add_extension("os", "getpid", 0xF0)
    try:
        assert pickle.loads(stream) == os.getpid()  # noqa: S301 - Python's own reader calls it
        with pytest.raises(CheckpointError, match=r"opcode EXT[124]"):
            read_torch(archive(stream), "file")
    finally:
        copyreg.remove_extension("os", "getpid", 0xF0)


# What is not believed


@pytest.mark.parametrize(
    ("number", "offset", "size", "stride", "says"),
    [
        (2**60, 0, (2**60,), (1,), "storage '0' declares"),
        (2**60, 0, (1,), (1,), "storage '0' declares"),
        (2**63, 0, (1,), (1,), "length is not a count"),
        (-6, 0, (1,), (1,), "length is not a count"),
        (5, 0, (5,), (1,), "storage '0'"),
        (7, 0, (1,), (1,), "storage '0'"),
        (6, 0, (7,), (1,), "leaves its storage of 6"),
        (6, 1, (6,), (1,), "leaves its storage of 6"),
        (6, 6, (), (), "leaves its storage of 6"),
        (6, 2**60, (1,), (1,), "leaves its storage of 6"),
        (6, 0, (2, 3), (4, 1), "leaves its storage of 6"),
        (6, 0, (2**60,), (0,), "overlaps itself"),
        (6, 0, (2, 3), (1, 1), "overlaps itself"),
        (6, 0, (2, 3), (2, 1), "overlaps itself"),
        (6, 5, (6,), (-1,), "not small counts"),
        (6, -1, (1,), (1,), "not small counts"),
        (6, 0, (-1,), (1,), "not small counts"),
        (6, 0, (True,), (1,), "not small counts"),
        (6, 0, (2.0,), (1,), "not small counts"),
        (6, 0, (2**80,), (1,), "not small counts"),
        (6, 0, (1,) * 65, (1,) * 65, "not small counts"),
        (6, 0, (2, 3), (3,), "not two tuples of one length"),
        (6, 0, [6], [1], "not two tuples"),
    ],
)
@FORMS
def test_a_tensor_outside_its_bytes_is_refused(
    zipped: bool, number: int, offset: Any, size: Any, stride: Any, says: str
) -> None:
    stream = pickled({"a": Declared(Stored(number), offset, size, stride)})
    data = archive(stream, FLOATS) if zipped else legacy(stream, ("0",), (6, FLOATS))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=says) as caught:
            read_torch(data, "a.pth")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith("a.pth: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            legacy(pickled(Declared(Stored(6), 0, (6,), (1,))), ("0",), (5, FLOATS)),
            "another length than its tensors",
        ),
        (
            legacy(pickled(Declared(Stored(6), 0, (6,), (1,))), ("0",), (6, FLOATS[:-1])),
            "declares 24 bytes and has 23",
        ),
        (
            legacy(pickled(Declared(Stored(6), 0, (6,), (1,))), ("1",), (6, FLOATS)),
            "not those of its tensors",
        ),
        (legacy(pickled(Declared(Stored(6), 0, (6,), (1,)))), "not those of its tensors"),
        (legacy(pickled(1), ("0",), (6, FLOATS)), "not those of its tensors"),
        (legacy(pickled(1), {"0": 1}), "not those of its tensors"),
        (legacy(pickled(1), [["0"]]), "name that is not a short text"),
        (
            archive(
                pickled(
                    [
                        Declared(Stored(6), 0, (6,), (1,)),
                        Declared(Stored(12, kind=torch.HalfStorage), 0, (1,), (1,)),
                    ]
                ),
                FLOATS,
            ),
            "two types or lengths",
        ),
        (
            archive(pickled(Declared(Stored(6, "../x"), 0, (6,), (1,))), FLOATS),
            "'../x' is not in the archive",
        ),
        (
            archive(pickled(Declared(Stored(6), 0, (6,), (1,))), FLOATS, compression=zipfile.ZIP_DEFLATED),
            "compressed",
        ),
        (archive(b"\x80\x02]" + b"." * 5), None),
        (archive(b"\x80\x02]]."), "does not end with one value"),
        (archive(b"\x80\x02(]."), "does not end with one value"),
        (archive(b"\x80\x02."), "does not end with one value"),
        (archive(b"\x80\x02a."), "never put there"),
        (archive(b"\x80\x02h\x07."), "never put there"),
        (archive(b"\x80\x02}K\x01a."), "fills dict as another container"),
        (archive(b"\x80\x02]K\x01K\x02s."), "fills list as another container"),
        (archive(b"\x80\x02K\x01K\x02K\x03s."), "fills int as another container"),
        (archive(b"\x80\x02K\x01K\x02\x93."), "name that is not a short text"),
        (archive(b"\x80\x02ccollections\nOrderedDict\nK\x05\x85R."), "other than pairs"),
        (archive(b"\x80\x02]"), "exhausted"),
        (archive(b""), "exhausted"),
        (archive(b"\x80\x02\xff."), "unknown"),
        (b"", "neither as a zip archive nor"),
        (b"not a checkpoint at all", "neither as a zip archive nor"),
        (pickle.dumps({"a": 1}), "neither as a zip archive nor"),
        (b"PK\x03\x04" + bytes(100), "zip"),
        (legacy(b"").replace(b"\x88", b"\x89", 1), "little-endian"),
    ],
    ids=lambda v: "file" if isinstance(v, bytes) else str(v),
)
def test_a_damaged_file_is_one_error(data: bytes, says: str | None) -> None:
    if says is None:  # what follows the end of a pickle is not read
        assert read_torch(data, "a.pth") == []
        return
    with pytest.raises(CheckpointError, match=says) as caught:
        read_torch(data, "a.pth")
    assert str(caught.value).startswith("a.pth: ")
    assert "\n" not in str(caught.value)


def test_an_archive_of_several_pickles_or_of_another_order_is_refused() -> None:
    for names, says in (
        (["a/data.pkl", "b/data.pkl"], "one data.pkl"),
        (["data.pkl"], "one data.pkl"),
        (["a/data.pkl", "a/byteorder"], "byte order"),
    ):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as made:
            for name in names:
                made.writestr(name, b"big" if name.endswith("order") else pickled(1))
        with pytest.raises(CheckpointError, match=says):
            read_torch(file.getvalue(), "file")


def test_members_that_lie_over_each_other_are_not_multiplied() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        tensors = [Declared(Stored(1024, str(i)), 0, (1024,), (1,)) for i in range(8)]
        made.writestr("archive/data.pkl", pickled(tensors))
        for key in range(8):
            made.writestr(f"archive/data/{key}", bytes(4096) if key == 0 else b"")
        first = made.getinfo("archive/data/0")
        for key in range(1, 8):  # the directory, written last, says that all lie at the first one's place
            info = made.getinfo(f"archive/data/{key}")
            info.header_offset, info.file_size, info.compress_size = first.header_offset, 4096, 4096
    with pytest.raises(CheckpointError, match="together are larger than the file"):
        read_torch(file.getvalue(), "file")


@FORMS
def test_every_file_that_is_cut_off_is_one_error(zipped: bool) -> None:
    whole = saved({"model": [{"a": torch.ones(2, 3)}, {}], "opt": argparse.Namespace(x=1)}, zipped)
    assert isinstance(read_torch(whole, "whole"), dict)
    for length in range(len(whole)):
        with pytest.raises(CheckpointError, match="cut"):
            read_torch(whole[:length], "cut")


# What it may cost


@pytest.mark.parametrize(
    "stream",
    [
        b"\x80\x04\x8e" + (2**60).to_bytes(8, "little") + b"a.",  # BINBYTES8
        b"\x80\x04\x8d" + (2**60).to_bytes(8, "little") + b"a.",  # BINUNICODE8
        b"\x80\x05\x96" + (2**60).to_bytes(8, "little") + b"a.",  # BYTEARRAY8
        b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b"a.",  # LONG4
        b"\x80\x02\x8b" + (-5).to_bytes(4, "little", signed=True) + b"a.",
        b"\x80\x02B" + (2**32 - 1).to_bytes(4, "little") + b"a.",  # BINBYTES
        b"\x80\x02I" + b"9" * 100_000 + b"\n.",  # INT: as text
        b"\x80\x02]" + b"2" * 2_000_000 + b".",  # DUP
        b"\x80\x02" + b"]" * 2_000_000 + b".",
        b"\x80\x02" + b"(" * 2_000_000 + b".",
        b"\x80\x02X"
        + (2000).to_bytes(4, "little")
        + b"a" * 2000
        + b"q\x00h\x00\x93.",  # STACK_GLOBAL of a long name
    ],
    ids=range(11),
)
def test_what_a_stream_declares_is_not_allocated(monkeypatch: pytest.MonkeyPatch, stream: bytes) -> None:
    monkeypatch.setattr(torch_pickle, "MAX_STEPS", 20_000)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            read_torch(archive(stream), "file")
        assert tracemalloc.get_traced_memory()[1] < 3 * len(stream) + 2**23
    finally:
        tracemalloc.stop()


def test_a_memo_index_is_no_allocation() -> None:
    stream = b"\x80\x02]r\xff\xff\xff\xff0j\xff\xff\xff\xff."  # LONG_BINPUT and back
    tracemalloc.start()
    try:
        assert read_torch(archive(stream), "file") == []
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_the_default_limit_ends_a_long_stream() -> None:
    with pytest.raises(CheckpointError, match="more than 1,000,000 steps"):
        read_torch(archive(b"\x80\x02" + b"N0" * 600_000 + b"N."), "file")


def test_nesting_is_no_recursion() -> None:
    depth = 100_000
    value: Any = read_torch(archive(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."), "file")
    for _ in range(depth - 1):
        [value] = value
    assert value == []
    nested: Any = read_torch(archive(b"\x80\x02]" + b"\x85" * depth + b"."), "file")  # tuples
    assert len(nested) == 1


def test_a_key_that_would_hash_for_ever_is_not_hashed() -> None:
    doubled = b"".join(b"q%ch%c\x86" % (i, i) for i in range(100))  # a pair of itself, a hundred times over
    found: Any = read_torch(archive(b"\x80\x02}N" + doubled + b"K\x01s."), "file")
    [(key, value)] = found.items()
    assert (type(key), key.name, value) == (Foreign, "key", 1)
    # Whole numbers that Python's hash sends to one place, text that takes long to compare, and a tuple.
    keys = [b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") for n in range(1, 20_000)]
    keys += [b"X" + (5000).to_bytes(4, "little") + b"a" * 5000, b"N\x85"]
    colliding: Any = read_torch(archive(b"\x80\x02}(" + b"".join(k + b"N" for k in keys) + b"u."), "file")
    assert len(colliding) == 20_001
    assert {type(k) for k in colliding} == {Foreign}


def test_tensors_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_pickle, "MAX_TENSORS", 10)
    storage = Stored(6)
    stream = pickled([Declared(storage, 0, (2,), (1,)) for _ in range(10)])
    found: Any = read_torch(archive(stream, FLOATS), "file")
    assert len(found) == 10
    stream = pickled([Declared(storage, 0, (2,), (1,)) for _ in range(11)])
    with pytest.raises(CheckpointError, match="more than 10 tensors"):
        read_torch(archive(stream, FLOATS), "file")


def test_an_ordered_dictionary_is_not_copied_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_pickle, "MAX_STEPS", 5_000)
    pairs = b"](" + b"".join(b"K%cN\x86" % i for i in range(200)) + b"e"
    copies = b"ccollections\nOrderedDict\nh\x00\x85R0" * 100
    with pytest.raises(CheckpointError, match="steps"):
        read_torch(archive(b"\x80\x02" + pairs + b"q\x00" + copies + b"."), "file")
