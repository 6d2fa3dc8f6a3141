"""Caffe's ``.caffemodel`` files: a network's layers with their weights, read without Caffe.

The file is one protobuf message, ``NetParameter`` of ``src/caffe/proto/caffe.proto`` in BVLC/caffe (commit 9b89154).
Layers stand in the field ``layer``, of older files in ``layers``, whose messages (``V1LayerParameter``) have other
field numbers.

Google's ``protobuf`` parses it, by a schema that has only what is needed and declares three things otherwise than
Caffe, with the same bytes on the wire: layers, blobs and shapes are ``bytes``, so that each is looked at before it
is parsed, and packed numbers are ``bytes``, so that no weight becomes a Python object.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from vsa_rt.errors import CheckpointError
from vsa_rt.export.checkpoint import State

#: Message to field to number and type; ``*`` is repeated.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "Net": {"layers": (2, "bytes*"), "layer": (100, "bytes*")},
    "Convolution": {"group": (5, "uint32")},
    "InnerProduct": {"transpose": (6, "bool")},
    "Layer": {
        "name": (1, "bytes"),
        "type": (2, "bytes"),
        "blobs": (7, "bytes*"),
        "convolution_param": (106, "Convolution"),
        "inner_product_param": (117, "InnerProduct"),
    },
    "V1Layer": {
        "layer": (1, "bytes"),
        "name": (4, "bytes"),
        "type": (5, "int32"),
        "blobs": (6, "bytes*"),
        "convolution_param": (10, "Convolution"),
        "inner_product_param": (17, "InnerProduct"),
    },
    "Blob": {
        "num": (1, "int64"),
        "channels": (2, "int64"),
        "height": (3, "int64"),
        "width": (4, "int64"),
        "data": (5, "bytes"),
        "shape": (7, "bytes"),
        "double_data": (8, "bytes"),
    },
    "Shape": {"dim": (1, "int64*")},
}
#: How the four dimensions of old blobs are called, outermost first.
_LEGACY = ("num", "channels", "height", "width")
#: V1's numbers of the layer types that have weights, and their names since (``UpgradeV1LayerType`` in
#: ``src/caffe/util/upgrade_proto.cpp``).
_V1_TYPES = {4: "Convolution", 14: "InnerProduct", 39: "Deconvolution"}
_CONVOLUTIONS = ("Convolution", "Deconvolution")

#: Wire types of protobuf: a varint, eight bytes, a length and as many bytes, four bytes.
_VARINT, _I64, _BYTES, _I32 = 0, 1, 2, 5
#: Every field of NetParameter, number and wire type: what else stands there is no part of a network.
_NET = {
    *((number, _BYTES) for number in (1, 2, 3, 4, 6, 8, 100)),
    *((number, _VARINT) for number in (4, 5, 7)),
}
#: An empty layer is two bytes in the file and more than twenty times that when parsed, so they are counted first.
#: A residual network has about five layers for each one that its name counts (batch norm, scale, ReLU, split): the
#: deepest published one, of 1001, would have five thousand.
_MAX_LAYERS = 10_000
#: Most of a layer's fields are its inputs and outputs: where a network splits or joins, there are some dozens.
_MAX_FIELDS = 1_000
#: No layer of Caffe has more than a dozen blobs (an LSTM's, unrolled).
_MAX_BLOBS = 64
#: A blob has nine fields; numbers that are not packed take one each.
_MAX_BLOB_FIELDS = 32
#: ``kMaxBlobAxes`` in ``include/caffe/blob.hpp``.
_MAX_DIMENSIONS = 32
#: The dimensions of one shape, not packed: a byte of key and ten of number each.
_MAX_SHAPE_BYTES = 11 * _MAX_DIMENSIONS
_AGAIN = "the file is damaged, cut short or no binary .caffemodel"


@dataclass(frozen=True)
class CaffeLayer:
    """One layer as the file states it.

    Attributes:
        name: Unique among the layers that have blobs.
        kind: Caffe's name of its type, ``Convolution``. Old files have numbers: those of types with weights get
            today's name, others read ``V1 type 18``.
        groups: Of a layer with convolution parameters, into how many groups the channels are split; else None.
        blobs: Its weights, float32: the weight, then the bias if it has one. Of a convolution
            ``(out, in / groups, height, width)`` and ``(out,)``, of an inner product ``(out, in)`` and ``(out,)``.
    """

    name: str
    kind: str
    groups: int | None
    blobs: list[torch.Tensor]


@cache
def _schema() -> dict[str, Any]:
    """Message to class. The pool is this module's own: a real ``caffe_pb2`` in the process does not clash.

    Two threads that come first at once build one pool each; either serves.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for message, fields in _MESSAGES.items():
        declared = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            one = kind.removesuffix("*")
            field = declared.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if kind != one else kinds.LABEL_OPTIONAL
            if one in _MESSAGES:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".caffe.{one}"
            else:
                field.type = kinds.Type.Value(f"TYPE_{one.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {m: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{m}")) for m in _MESSAGES}


def _parse(message: str, data: bytes, item: str) -> Any:
    from google.protobuf.message import DecodeError

    parsed = _schema()[message]()
    try:
        parsed.ParseFromString(data)
    except DecodeError as error:
        raise CheckpointError(f"{item}: cannot be parsed; {_AGAIN}") from error
    return parsed


def _varint(data: bytes, at: int, item: str) -> tuple[int, int]:
    """The number at a place, seven bits a byte, and the place behind it."""
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise CheckpointError(f"{item}: has no whole number at byte {at}; {_AGAIN}")


def _count(data: bytes, limit: int, item: str, most: str) -> Counter[tuple[int, int]]:
    """How often a message has each field, by number and wire type, without an object for each.

    Args:
        data: The message.
        limit: How many fields it may have.
        item: What to call it in messages.
        most: What ``limit`` is, for people.
    """
    found: Counter[tuple[int, int]] = Counter()
    at = 0
    for _ in range(limit):
        if at == len(data):
            return found
        start = at
        key, at = _varint(data, at, item)
        number, wire = key >> 3, key & 7
        if wire == _BYTES:
            size, at = _varint(data, at, item)
        elif wire == _VARINT:
            size, at = 0, _varint(data, at, item)[1]
        else:
            size = {_I64: 8, _I32: 4}.get(wire, -1)
        if size < 0:
            raise CheckpointError(
                f"{item}: has field {number} with wire type {wire} at byte {start}, which Caffe does not write; "
                f"{_AGAIN}"
            )
        if size > len(data) - at:
            raise CheckpointError(
                f"{item}: field {number} at byte {start} needs {size} bytes, {len(data) - at} are left; {_AGAIN}"
            )
        at += size
        found[number, wire] += 1
    if at < len(data):
        raise CheckpointError(f"{item}: has more than {limit} {most}; {_AGAIN}")
    return found


def _text(data: bytes, item: str, what: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{item}: its {what} is not UTF-8: {error.reason}; {_AGAIN}") from error
    if not text.isprintable():  # messages print names as they are
        raise CheckpointError(f"{item}: its {what} is {text[:100]!r}, expected printable text; {_AGAIN}")
    return text


def _shown(shape: Sequence[int]) -> str:
    """A shape for messages, which declared sizes must not make long."""
    shown = ", ".join(map(str, shape[:6])) + ("," if len(shape) == 1 else "")
    return f"({shown}{f', and {len(shape) - 6} more' if len(shape) > 6 else ''})"


def _without_ones(shape: tuple[int, ...], kind: str, index: int) -> tuple[int, ...]:
    """The shape that an old blob of four dimensions has today.

    Old parameters were indexed from the end, ``(1, 1, 1, n)`` for a bias and ``(1, 1, out, in)`` for an inner
    product (``Blob::ShapeEquals`` in ``src/caffe/blob.cpp``); only a convolution's weight has four dimensions.
    """
    if index == 0 and kind in _CONVOLUTIONS:
        return shape
    if index == 0 and kind == "InnerProduct":
        return shape[2:] if shape[:2] == (1, 1) else shape
    return shape[3:] if shape[:3] == (1, 1, 1) else shape


def _read_shape(blob: Any, kind: str, index: int, item: str) -> tuple[int, ...]:
    legacy = any(blob.HasField(name) for name in _LEGACY)  # they come first (Blob::FromProto)
    if legacy:
        shape = tuple(getattr(blob, name) for name in _LEGACY)
    else:
        if len(blob.shape) > _MAX_SHAPE_BYTES:
            raise CheckpointError(
                f"{item}: its shape takes {len(blob.shape)} bytes, expected at most {_MAX_DIMENSIONS} dimensions; "
                f"{_AGAIN}"
            )
        shape = tuple(_parse("Shape", blob.shape, f"{item}: its shape").dim)
    if len(shape) > _MAX_DIMENSIONS:
        raise CheckpointError(
            f"{item}: has {len(shape)} dimensions, expected at most {_MAX_DIMENSIONS}; {_AGAIN}"
        )
    if any(size <= 0 for size in shape):
        raise CheckpointError(
            f"{item}: has the shape {_shown(shape)}, expected positive dimensions; {_AGAIN}"
        )
    return _without_ones(shape, kind, index) if legacy else shape


def _check_blob(fields: Counter[tuple[int, int]], item: str) -> None:
    """Refuse what the schema, which has each field once and packed, would leave out."""
    for name, single in (("data", _I32), ("double_data", _I64)):
        number = _MESSAGES["Blob"][name][0]
        if fields[number, single]:
            raise CheckpointError(
                f"{item}: stores its numbers one by one, expected them packed, as Caffe writes them"
            )
    for name in ("data", "double_data", "shape"):
        times = fields[_MESSAGES["Blob"][name][0], _BYTES]
        if times > 1:
            raise CheckpointError(f"{item}: has {name} {times} times, expected it once; {_AGAIN}")


def _read_blob(waiting: list[bytes], kind: str, index: int, item: str) -> torch.Tensor:
    """The last of the blobs, which it takes off: no caller holds its bytes beside the tensor."""
    data = waiting.pop()
    most = "fields, as numbers have that are stored one by one; expected them packed"
    _check_blob(_count(data, _MAX_BLOB_FIELDS, item, most), item)
    blob = _parse("Blob", data, item)
    del data
    shape = _read_shape(blob, kind, index, item)
    # Doubles come first (Blob::FromProto).
    layout, numbers = "<f8", blob.double_data
    if not numbers:
        layout, numbers = "<f4", blob.data
    del blob
    stored = np.dtype(layout)
    if not numbers:
        raise CheckpointError(
            f"{item}: holds no numbers for its shape {_shown(shape)}; save the network again with its weights"
        )
    needed = math.prod(shape) * stored.itemsize
    if needed != len(numbers):
        shown = str(needed) if needed < 2**63 else "more than 2^63"
        raise CheckpointError(
            f"{item}: {stored.name} {_shown(shape)} needs {shown} bytes, {len(numbers)} are there; {_AGAIN}"
        )
    # A double may be too large: whoever loads the tensor looks for infinities.
    with np.errstate(all="ignore"):
        # The copy is aligned, writable and in this machine's byte order: torch needs all three.
        return torch.from_numpy(np.frombuffer(numbers, stored).astype(np.float32).reshape(shape))


def _groups(layer: Any, kind: str, item: str) -> int | None:
    if kind not in _CONVOLUTIONS and not layer.HasField("convolution_param"):
        return None
    stated = layer.convolution_param
    groups: int = stated.group if stated.HasField("group") else 1  # the schema's default
    if groups == 0:
        raise CheckpointError(f"{item}: has 0 groups, expected 1 or more; {_AGAIN}")
    return groups


def _kind(layer: Any, item: str) -> str:
    if isinstance(layer.type, bytes):
        return _text(layer.type, item, "type")
    return _V1_TYPES.get(layer.type, f"V1 type {layer.type}")


def _read_layer(waiting: list[bytes], message: str, where: str, place: str) -> CaffeLayer:
    """The last of the layers, which it takes off."""
    data, item = waiting.pop(), f"{where}: {place}"
    fields = _count(data, _MAX_FIELDS, item, "fields")
    blobs = fields[_MESSAGES[message]["blobs"][0], _BYTES]
    if blobs > _MAX_BLOBS:
        raise CheckpointError(f"{item}: has {blobs} blobs, expected at most {_MAX_BLOBS}; {_AGAIN}")
    if message == "V1Layer" and fields[_MESSAGES[message]["layer"][0], _BYTES]:
        raise CheckpointError(
            f"{item}: is of Caffe's oldest form (V0), expected V1 or later; upgrade the file with Caffe's "
            "upgrade_net_proto_binary"
        )
    layer = _parse(message, data, item)
    del data
    name, kind = _text(layer.name, item, "name"), _kind(layer, item)
    if blobs and not name:
        raise CheckpointError(f"{item}: has {blobs} blobs and no name, expected a name")
    item = f"{where}: layer {name[:100]!r}" if name else item
    if blobs and layer.inner_product_param.transpose:
        raise CheckpointError(
            f"{item}: stores its weight as (in, out) (transpose: true), expected (out, in); transpose it in Caffe"
        )
    groups, stored = _groups(layer, kind, item), list(layer.blobs)[::-1]
    del layer
    read = [_read_blob(stored, kind, i, f"{item}: blob {i + 1} of {blobs}") for i in range(blobs)]
    return CaffeLayer(name, kind, groups, read)


def read_layers(data: bytes, where: str) -> list[CaffeLayer]:
    """Read the layers of a ``.caffemodel`` file, in its order; nothing in it is executed.

    What the file declares is counted and held against its bytes before memory is asked for.

    Args:
        data: The whole file.
        where: What to call it in messages.

    Returns:
        Every layer, those without blobs included (their names may repeat). Gradients in the file are left out.

    Raises:
        CheckpointError: Another format, damaged, truncated, of the oldest form (V0), without layers or weights, or
            with two layers of one name that have blobs. The message says which layer.
    """
    if data.startswith(b"\x89HDF\r\n\x1a\n"):
        raise CheckpointError(
            f"{where}: is an HDF5 file, expected a binary .caffemodel; save it again as one"
        )
    found = _count(data, _MAX_LAYERS, where, "layers and inputs")
    foreign = next((field for field in found if field not in _NET), None)
    if foreign:
        raise CheckpointError(
            f"{where}: has field {foreign[0]} with wire type {foreign[1]}, which Caffe's NetParameter does not have: "
            "it was saved by a fork of Caffe, or the file is damaged, cut short or no binary .caffemodel; save it with BVLC's"
        )
    forms = [name for name, (number, _) in _MESSAGES["Net"].items() if found[number, _BYTES]]
    if len(forms) != 1:
        raise CheckpointError(
            f"{where}: has {'both layer and layers, expected one of them' if forms else 'no layers'}; {_AGAIN}"
        )
    waiting = list(getattr(_parse("Net", data, where), forms[0]))[::-1]
    count, message = len(waiting), "V1Layer" if forms == ["layers"] else "Layer"
    layers: list[CaffeLayer] = []
    named: set[str] = set()
    for i in range(count):
        layer = _read_layer(waiting, message, where, f"layer {i + 1} of {count}")
        if layer.blobs and layer.name in named:
            raise CheckpointError(
                f"{where}: has two layers {layer.name[:100]!r} with blobs, expected each name once"
            )
        if layer.blobs:
            named.add(layer.name)
        layers.append(layer)
    if not named:
        raise CheckpointError(
            f"{where}: none of its {count} layers has blobs, expected the weights of a network"
        )
    return layers


def groups_of(layers: Sequence[CaffeLayer]) -> dict[str, int]:
    """Layer to its number of groups, of each convolution and deconvolution that has blobs."""
    return {layer.name: layer.groups for layer in layers if layer.blobs and layer.groups is not None}


def tensors_of(layers: Sequence[CaffeLayer]) -> State:
    """The blobs of layers by key: ``NAME.weight`` and ``NAME.bias``, or ``NAME.blobs.0`` ... of more than two."""
    state: State = {}
    for layer in layers:
        few = ("weight", "bias") if len(layer.blobs) <= 2 else None
        for i, blob in enumerate(layer.blobs):
            state[f"{layer.name}.{few[i] if few else f'blobs.{i}'}"] = blob
    return state


def read_caffemodel(data: bytes, where: str) -> State:
    """Read the weights of a ``.caffemodel`` file; nothing in it is executed.

    Args:
        data: The whole file.
        where: What to call it in messages.

    Returns:
        ``NAME.weight`` and ``NAME.bias`` to float32 tensor, of each layer with one or two blobs; of one with more
        (batch norm), ``NAME.blobs.0`` and so on. In the file's order and shapes, see `CaffeLayer`.

    Raises:
        CheckpointError: As `read_layers`.
    """
    return tensors_of(read_layers(data, where))
