"""PyTorch files that hold more than tensors (settings, optimisers, scalars), read without executing anything.

A pickle is a program. ``read_torch`` runs it on a machine of its own, whose only results are Python's plain values,
tensors made of bytes in the file, and ``Foreign`` records in place of everything else. No global is looked up, no
callable of the stream is called, no method of a restored object exists. Python's own ``Unpickler`` with a guarded
``find_class`` would not do: it looks extension codes up elsewhere, allocates what a memo index or a length in the
stream declares before it reads, and hashes whatever a dictionary's key is.

Formats: torch/serialization.py and torch/_utils.py of PyTorch 2.x, which still write and read both forms; the
opcodes are those of ``pickletools``.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vsa_rt.errors import CheckpointError

#: First values of a file of the form before PyTorch 1.6 (torch/serialization.py: MAGIC_NUMBER, PROTOCOL_VERSION).
_MAGIC_NUMBER, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAGIC = _MAGIC_NUMBER.to_bytes(10, "little")
#: How a zip archive begins, and each member in it.
_ZIP = b"PK\x03\x04"
#: What a stream may cost: steps, and tensors among them. A checkpoint of a thousand tensors takes some 20,000 steps.
MAX_STEPS, MAX_TENSORS = 1_000_000, 100_000
#: Dimensions of a tensor; PyTorch's own kernels stop at 64.
_MAX_DIMENSIONS = 64
#: Characters of a global's name, a storage's key or a dictionary's.
_MAX_NAME = 1000

_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}  # fmt: skip
#: Storage types by global name; those of a GPU hold the same bytes.
_STORAGES = {f"{m}.{name}Storage": dtype for m in ("torch", "torch.cuda") for name, dtype in _DTYPES.items()}
_STORAGES["torch.storage.UntypedStorage"] = torch.uint8
_TENSORS = frozenset({"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"})
#: Their first argument is the parameter's tensor.
_PARAMETERS = frozenset({"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"})

#: Opcodes that push their argument. Text of Python 2 comes as latin-1, which every byte is.
_LITERALS = frozenset(
    {
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
        "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE",
        "BINUNICODE", "BINUNICODE8",
    }
)  # fmt: skip
#: Opcodes that push a new plain value.
_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": lambda: Foreign("builtins.set"),
}  # fmt: skip
#: Data type, declared elements and key of a storage to its elements, one dimension.
_Find = Callable[[str, torch.dtype, int], torch.Tensor]


class Foreign:
    """What stands for an object that is not restored.

    Attributes:
        name: Dotted name of its class or of the function that would have made it.
        given: What the stream gave it, in order: arguments, state, items.
    """

    __slots__ = ("given", "name")

    def __init__(self, name: str, *given: object) -> None:
        self.name = name
        self.given = list(given)

    def __repr__(self) -> str:
        return f"<{self.name[:100]}>"


class _Storage(Foreign):
    """A storage of the file; ``given`` holds its elements."""


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _strided(elements: torch.Tensor, offset: Any, size: Any, stride: Any) -> torch.Tensor:
    """A tensor that lies inside a storage, each of its elements in a place of its own."""
    if not (isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)):
        raise ValueError("a tensor's size and strides are not two tuples of one length")
    if len(size) > _MAX_DIMENSIONS or not all(map(_is_count, (offset, *size, *stride))):
        raise ValueError("a tensor's size, strides or offset are not small counts")
    if 0 in size:
        return elements.new_empty(size)
    last = 0  # the furthest element that the dimensions so far reach
    for step, length in sorted((t, s) for s, t in zip(size, stride, strict=True) if s > 1):
        if step <= last:
            raise ValueError(f"a tensor of size {size} and strides {stride} overlaps itself")
        last += step * (length - 1)
    there = elements.numel()
    if offset + last >= there:
        raise ValueError(f"a tensor of size {size}, strides {stride} leaves its storage of {there} elements")
    # PyTorch counts the offset from where the bytes begin, not from where a part of them does.
    return elements.as_strided(size, stride, elements.storage_offset() + offset)


def _text(value: object) -> str:
    """A name, which is short: copies of long ones would fill the memory."""
    if not isinstance(value, str) or len(value) > _MAX_NAME:
        raise TypeError("its pickle has a name that is not a short text")
    return value


def _key(key: object) -> object:
    """A dictionary's key: itself if it hashes and compares fast and without collisions that one could choose."""
    if isinstance(key, str | bytes):
        plain = len(key) <= _MAX_NAME
    else:
        plain = key is None or (isinstance(key, int) and -(2**31) < key < 2**31)
    return key if plain else Foreign("key", key)


class _Machine:
    """Runs pickles; what they may cost is counted over all of them."""

    def __init__(self, find: _Find) -> None:
        self.find = find
        self.steps = self.tensors = 0

    def run(self, stream: io.BytesIO) -> Any:
        """The value of one pickle; the stream then stands behind it."""
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # what lies under each mark
        self.memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(stream):
            self._count()
            if opcode.name in _LITERALS:
                self.stack.append(argument)
            elif opcode.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode.name]())
            else:
                self._step(opcode.name, argument)
        if len(self.stack) != 1 or self.outer:
            raise ValueError("its pickle does not end with one value")
        return self.stack.pop()

    def _push(self, value: object) -> None:
        self.stack.append(value)

    def _count(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise ValueError(f"its pickle takes more than {MAX_STEPS:,} steps")

    def _step(self, opcode: str, argument: Any) -> None:
        """Any opcode but those that push a plain value."""
        match opcode:
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self._push(self.memo[argument])
            case "MARK":
                self.outer.append(self.stack)
                self.stack = []
            case "POP" if self.stack:
                self.stack.pop()
            case "POP" | "POP_MARK":
                self._marked()
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._push(self._last(int(opcode[-1])))
            case "TUPLE":
                self._push(tuple(self._marked()))
            case "LIST":
                self._push(self._marked())
            case "FROZENSET":
                self._push(Foreign("builtins.frozenset", self._marked()))
            case "DICT":
                items = self._marked()
                self._push({})
                self._add(items, True)
            case "APPEND":
                self._add(self._last(1), False)
            case "APPENDS" | "ADDITEMS":
                self._add(self._marked(), False)
            case "SETITEM":
                self._add(self._last(2), True)
            case "SETITEMS":
                self._add(self._marked(), True)
            case "GLOBAL":
                self._push(Foreign(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                self._push(Foreign("{}.{}".format(*map(_text, self._last(2)))))
            case "REDUCE" | "NEWOBJ":
                self._push(self._made(*self._last(2)))
            case "NEWOBJ_EX":
                self._push(self._made(*self._last(3)))
            case "OBJ":
                items = self._marked()
                self._push(self._made(items[0], tuple(items[1:])))
            case "BUILD":
                state = self.stack.pop()
                if isinstance(self.stack[-1], Foreign):  # else attributes, which are not restored
                    self.stack[-1].given.append(state)
            case "BINPERSID":
                self._push(self._persistent(self.stack.pop()))
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise ValueError(f"its pickle has the opcode {opcode}, which PyTorch does not write")

    def _marked(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _last(self, number: int) -> tuple[Any, ...]:
        items = tuple(self.stack[-number:])
        if len(items) < number:
            raise IndexError
        del self.stack[-number:]
        return items

    def _add(self, items: Sequence[Any], keyed: bool) -> None:
        """Values, or keys and values, to what lies on top."""
        target = self.stack[-1]
        if isinstance(target, Foreign):
            target.given.extend(items)
        elif isinstance(target, dict) and keyed:
            target.update(zip(map(_key, items[::2]), items[1::2], strict=True))
        elif isinstance(target, list) and not keyed:
            target.extend(items)
        else:
            raise TypeError(f"its pickle fills {type(target).__name__} as another container")

    def _persistent(self, identity: object) -> object:
        """What torch refers to: ``("storage", type, key, device, length)`` or ``("module", class, file, source)``."""
        if not isinstance(identity, tuple) or len(identity) < 4 or not isinstance(identity[1], Foreign):
            return Foreign("persistent", identity)
        _, kind, key, _, *rest = identity
        dtype = _STORAGES.get(kind.name)
        if dtype is None or not rest:
            return kind
        number, *view = rest
        if not _is_count(number):
            raise TypeError("a storage's length is not a count")
        elements = self.find(_text(key), dtype, number)
        if (elements.dtype, elements.numel()) != (dtype, number):
            raise ValueError(f"storage {key!r} is declared with two types or lengths")
        if view and view[0] is not None:  # PyTorch 0.x: a part of a storage, under a key of its own
            _, offset, length = view[0]
            elements = self._tensor(elements, offset, (length,), (1,))
        return _Storage(kind.name, elements)

    def _made(self, maker: object, arguments: object, *more: object) -> object:
        """What a call would have made: nothing is called."""
        name = maker.name if isinstance(maker, Foreign) else f"a call of {type(maker).__name__}"
        if isinstance(arguments, tuple) and not more:
            if name in _TENSORS and len(arguments) >= 4 and isinstance(arguments[0], _Storage):
                elements: Any = arguments[0].given[0]
                return self._tensor(elements, *arguments[1:4])
            if name in _PARAMETERS and arguments:
                return arguments[0]
            if name == "collections.OrderedDict":
                return self._ordered(*arguments)
        return Foreign(name, arguments, *more)

    def _tensor(self, elements: torch.Tensor, offset: Any, size: Any, stride: Any) -> torch.Tensor:
        self.tensors += 1
        if self.tensors > MAX_TENSORS:
            raise ValueError(f"its pickle holds more than {MAX_TENSORS:,} tensors")
        return _strided(elements, offset, size, stride)

    def _ordered(self, pairs: object = ()) -> dict[Any, Any]:
        """An ordered dictionary: Python 3 makes it empty and fills it, Python 2 gives a list of pairs."""
        made: dict[Any, Any] = {}
        for pair in pairs if isinstance(pairs, list | tuple) else [None]:
            self._count()
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise TypeError("an ordered dictionary is made of something other than pairs")
            made[_key(pair[0])] = pair[1]
        return made


def _elements(data: memoryview, dtype: torch.dtype, number: int, key: str) -> torch.Tensor:
    """A storage's bytes, copied, as elements."""
    if number * dtype.itemsize != len(data):
        raise ValueError(f"storage {key!r} declares {number * dtype.itemsize:,} bytes and has {len(data):,}")
    return torch.frombuffer(bytearray(data), dtype=dtype) if number else torch.empty(0, dtype=dtype)


def _read_legacy(data: bytes) -> object:
    """The form before PyTorch 1.6: four pickles, the storages' keys, then each storage behind its length."""
    stream = io.BytesIO(data)
    found: dict[str, torch.Tensor] = {}

    def declare(key: str, dtype: torch.dtype, number: int) -> torch.Tensor:
        if number * dtype.itemsize > len(data):
            raise ValueError(f"storage {key!r} declares more bytes than the file has: {number:,} elements")
        return found.setdefault(key, torch.empty(number, dtype=dtype, device="meta"))

    machine = _Machine(declare)
    if _MAGIC not in data[:32] or machine.run(stream) != _MAGIC_NUMBER:
        raise ValueError("it begins neither as a zip archive nor with PyTorch's magic number")
    protocol, system = machine.run(stream), machine.run(stream)
    if protocol != _PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its header is not that of a little-endian file of protocol 1001")
    start = stream.tell()
    # The bytes of the storages come last and their types first, so that the value is made twice: first without
    # bytes, which checks all that is declared, and then with them.
    machine.run(stream)
    keys = machine.run(stream)
    if not isinstance(keys, list) or sorted(map(_text, keys)) != sorted(found):
        raise ValueError("its storages are not those of its tensors, or some are of a type that is not read")
    position = stream.tell()
    for key in keys:
        meta, begin = found[key], position + 8
        position = begin + meta.numel() * meta.dtype.itemsize
        if int.from_bytes(data[begin - 8 : begin], "little") != meta.numel():
            raise ValueError(f"storage {key!r} has another length than its tensors say")
        found[key] = _elements(memoryview(data)[begin:position], meta.dtype, meta.numel(), key)
    stream.seek(start)
    return _Machine(lambda key, *_: found[key]).run(stream)


def _member(data: bytes, info: zipfile.ZipInfo) -> memoryview:
    """A member's bytes where they lie in the file."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
        raise ValueError(f"member {info.filename!r} is compressed or encrypted, which torch.save never does")
    header = data[info.header_offset : info.header_offset + 30]
    if header[:4] != _ZIP or len(header) != 30:
        raise ValueError(f"member {info.filename!r} is not where the archive's directory says")
    # A local header ends with two lengths, those of the name and the extra field that follow (APPNOTE 4.3.7).
    begin = info.header_offset + 30 + sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
    if begin + info.file_size > len(data):
        raise ValueError(f"member {info.filename!r} reaches beyond the end of the file")
    return memoryview(data)[begin : begin + info.file_size]


def _read_zip(data: bytes) -> object:
    """The form since PyTorch 1.6: a zip archive of one pickle and one uncompressed member per storage."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        listed = archive.infolist()
    members = {info.filename: info for info in listed}
    roots = [n.removesuffix("data.pkl") for n in members if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(roots) != 1 or len(members) != len(listed):
        raise ValueError("the archive does not hold one data.pkl and no name twice")
    order = members.get(f"{roots[0]}byteorder")
    if order is not None and bytes(_member(data, order)) != b"little":
        raise ValueError("its byte order is not little-endian")
    found: dict[str, torch.Tensor] = {}
    left = len(data)

    def find(key: str, dtype: torch.dtype, number: int) -> torch.Tensor:
        nonlocal left
        if key not in found:
            info = members.get(f"{roots[0]}data/{key}")
            if info is None:
                raise ValueError(f"storage {key!r} is not in the archive")
            # Members may lie over each other; together they never need more than the file.
            left -= info.file_size
            if left < 0:
                raise ValueError("its storages together are larger than the file")
            found[key] = _elements(_member(data, info), dtype, number, key)
        return found[key]

    return _Machine(find).run(io.BytesIO(_member(data, members[f"{roots[0]}data.pkl"])))


def read_torch(data: bytes, where: str) -> object:
    """Read a PyTorch file of either form without executing anything.

    Tensors are on the CPU; those that shared a storage share it again. Dictionaries of all kinds are plain ones,
    parameters are their tensors, and any other object is a ``Foreign``, whose methods are nobody's.

    Args:
        data: The file: a zip archive (PyTorch 1.6 and later), or the form before it, also from Python 2, whose
            text is taken as latin-1.
        where: What to call the file in messages.

    Returns:
        The value that was saved.

    Raises:
        CheckpointError: Another format, damaged or cut off; a storage or tensor that declares more than the file
            holds; compressed members; a pickle of more than ``MAX_STEPS`` steps or ``MAX_TENSORS`` tensors.
    """
    try:
        return _read_zip(data) if data[:4] == _ZIP else _read_legacy(data)
    except Exception as error:  # the parsers raise zip, value, lookup, type and memory errors alike
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, LookupError):
            first = "its pickle takes what was never put there"
        raise CheckpointError(f"{where}: not a PyTorch file that can be read: {first[:300]}") from error
