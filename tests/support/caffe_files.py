"""Caffe's ``.caffemodel`` files, written from the wire format: nothing here is shared with the reader under test.

Field numbers: ``src/caffe/proto/caffe.proto`` of BVLC/caffe. Encoding: protobuf's documentation of its wire format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: ``V1LayerParameter.LayerType``: what old files have for the name of a type.
V1_TYPES = {
    "Convolution": 4,
    "Dropout": 6,
    "InnerProduct": 14,
    "LRN": 15,
    "Pooling": 17,
    "ReLU": 18,
    "Softmax": 20,
    "Deconvolution": 39,
}


def varint(value: int) -> bytes:
    """A whole number, seven bits a byte; a negative one as its 64 bits."""
    value %= 1 << 64
    found = b""
    while value > 0x7F:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    """One field: a number as a varint, bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def shape(dims: Sequence[int], packed: bool = True) -> bytes:
    """A blob's ``shape``."""
    if packed:
        return field(7, field(1, b"".join(map(varint, dims))))
    return field(7, b"".join(field(1, size) for size in dims))


def legacy_shape(dims: Sequence[int]) -> bytes:
    """A blob's four dimensions as old files have them, ones before the first."""
    return b"".join(field(i + 1, size) for i, size in enumerate([1] * (4 - len(dims)) + list(dims)))


def blob(values: Any, legacy: bool = False, doubles: bool = False, diff: bool = False) -> bytes:
    """One ``BlobProto``.

    Args:
        values: An array or tensor.
        legacy: Four dimensions in place of a shape.
        doubles: Stored as doubles.
        diff: With gradients, as snapshots may have; they are NaN.
    """
    array = np.asarray(values)
    stored = np.dtype("<f8" if doubles else "<f4")
    data = legacy_shape(array.shape) if legacy else shape(array.shape)
    data += field(8 if doubles else 5, array.astype(stored).tobytes())
    return data + (field(9 if doubles else 6, np.full(array.size, np.nan, stored).tobytes()) if diff else b"")


@dataclass(frozen=True)
class Layer:
    """One layer to write.

    Attributes:
        name: Its name.
        kind: Its type, as Caffe names it today.
        blobs: Weight and bias as arrays or tensors; bytes are a ``BlobProto`` as it is to stand in the file.
        groups: Of a convolution; None writes no convolution parameters.
        more: Further fields, as bytes.
    """

    name: str
    kind: str
    blobs: Sequence[Any] = ()
    groups: int | None = None
    more: bytes = b""


def layer_bytes(layer: Layer, legacy: bool = False) -> bytes:
    """One ``LayerParameter``, or ``V1LayerParameter``."""
    kind: int | bytes = V1_TYPES[layer.kind] if legacy else layer.kind.encode()
    blobs = [b if isinstance(b, bytes) else blob(b, legacy) for b in layer.blobs]
    data = field(4 if legacy else 1, layer.name.encode()) + field(5 if legacy else 2, kind)
    data += b"".join(field(6 if legacy else 7, b) for b in blobs)
    if layer.groups is not None:
        data += field(10 if legacy else 106, field(5, layer.groups))
    return data + layer.more


def caffemodel(layers: Sequence[Layer | bytes], legacy: bool = False) -> bytes:
    """A ``.caffemodel`` file.

    Args:
        layers: In the network's order; bytes are a layer as it is to stand in the file.
        legacy: The older form: ``layers`` in place of ``layer``, numbers for types, four dimensions for every blob.
    """
    data = field(1, b"CaffeNet") + field(3, b"data") + b"".join(field(4, size) for size in (10, 3, 227, 227))
    for layer in layers:
        data += field(2 if legacy else 100, layer if isinstance(layer, bytes) else layer_bytes(layer, legacy))
    return data
