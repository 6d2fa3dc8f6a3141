"""Caffe's .caffemodel files: written by an encoder of the tests' own, read whole or refused with one error.

The form: ``src/caffe/proto/caffe.proto`` and ``src/caffe/blob.cpp`` (``FromProto``, ``ShapeEquals``) of BVLC/caffe.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsa_rt.errors import CheckpointError

torch = pytest.importorskip("torch", reason="the blobs become tensors")

from caffe_files import Layer, blob, caffemodel, field, layer_bytes, legacy_shape, shape, varint

from vsa_rt.export.caffe import groups_of, read_caffemodel, read_layers, tensors_of

WHERE = "fold4.caffemodel"
RANDOM = np.random.default_rng(7)
CONV = RANDOM.standard_normal((6, 2, 3, 3)).astype(np.float32)
FC = RANDOM.standard_normal((4, 5)).astype(np.float32)
BIAS6, BIAS4 = np.arange(6, dtype=np.float32) - 2.5, np.arange(4, dtype=np.float32) / 3
ONE = np.array([1.5], np.float32)
#: Two layers with weights among some without, as a deploy network has them.
NETWORK = [
    Layer("conv2", "Convolution", [CONV, BIAS6], groups=2),
    Layer("relu2", "ReLU"),
    Layer("norm2", "LRN"),
    Layer("fc8_twitter", "InnerProduct", [FC, BIAS4]),
    Layer("prob", "Softmax"),
]
WRITTEN = {
    "conv2.weight": CONV,
    "conv2.bias": BIAS6,
    "fc8_twitter.weight": FC,
    "fc8_twitter.bias": BIAS4,
}
BOTH = pytest.mark.parametrize("legacy", [False, True], ids=["layer", "layers"])


def refused(data: bytes, says: str) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(CheckpointError, match=says) as caught:
        read_caffemodel(data, WHERE)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: ")
    assert "\n" not in message
    assert len(message) < 400
    return message


def one_blob(data: bytes, kind: str = "PReLU") -> bytes:
    """A file of one layer with this blob."""
    return caffemodel([Layer("x", kind, [data])])


def numbers(count: int) -> bytes:
    """A blob's data."""
    return field(5, struct.pack(f"<{count}f", *range(count)))


@BOTH
def test_both_forms_give_the_numbers_that_were_written(legacy: bool) -> None:
    found = read_caffemodel(caffemodel(NETWORK, legacy), WHERE)
    assert list(found) == list(WRITTEN)
    for key, values in WRITTEN.items():
        assert found[key].dtype == torch.float32
        assert found[key].shape == values.shape, key
        assert np.array_equal(found[key].numpy(), values), key


@BOTH
def test_every_layer_is_listed_in_the_files_order(legacy: bool) -> None:
    layers = read_layers(caffemodel(NETWORK, legacy), WHERE)
    assert [layer.name for layer in layers] == [layer.name for layer in NETWORK]
    kinds = ["Convolution", "ReLU", "LRN", "InnerProduct", "Softmax"]
    old = ["Convolution", "V1 type 18", "V1 type 15", "InnerProduct", "V1 type 20"]
    assert [layer.kind for layer in layers] == (old if legacy else kinds)
    assert [len(layer.blobs) for layer in layers] == [2, 0, 0, 2, 0]
    assert list(tensors_of(layers)) == list(WRITTEN)


@BOTH
def test_groups_are_what_the_file_states_and_one_where_it_states_none(legacy: bool) -> None:
    layers = [
        Layer("conv1", "Convolution", [CONV]),
        Layer("conv2", "Convolution", [CONV], groups=2),
        Layer("up", "Deconvolution", [CONV], groups=3),
        Layer("padded", "Convolution", [CONV], more=field(10 if legacy else 106, field(3, 1))),
        Layer("fc6", "InnerProduct", [FC]),
        Layer("bare", "Convolution"),
    ]
    read = read_layers(caffemodel(layers, legacy), WHERE)
    assert [layer.groups for layer in read] == [1, 2, 3, 1, None, 1]
    assert groups_of(read) == {"conv1": 1, "conv2": 2, "up": 3, "padded": 1}


def test_another_kind_with_convolution_parameters_has_groups() -> None:
    layer = Layer("dw", "ConvolutionDepthwise", [CONV], groups=6)
    assert groups_of(read_layers(caffemodel([layer]), WHERE)) == {"dw": 6}


def test_parameters_in_two_parts_are_one_as_protobuf_has_it() -> None:
    layer = Layer("c", "Convolution", [CONV], groups=2, more=field(106, field(1, 6)))
    assert groups_of(read_layers(caffemodel([layer]), WHERE)) == {"c": 2}


@BOTH
def test_doubles_become_float32(legacy: bool) -> None:
    values = np.array([0.1, -1e-300, 1e300, np.nan])
    found = read_caffemodel(
        caffemodel(
            [Layer("x", "Convolution", [blob(values.reshape(1, 4, 1, 1), legacy, doubles=True)])], legacy
        ),
        WHERE,
    )["x.weight"]
    assert found.dtype == torch.float32
    assert found.flatten()[:3].tolist() == [np.float32(0.1), 0.0, np.inf]  # refused where it is loaded
    assert found.flatten()[3].isnan()


def test_of_numbers_in_both_types_the_doubles_are_taken_as_caffe_does() -> None:
    data = shape([2]) + numbers(2) + field(8, struct.pack("<2d", 7, 8))
    assert read_caffemodel(one_blob(data), WHERE)["x.weight"].tolist() == [7, 8]


@BOTH
@pytest.mark.parametrize("doubles", [False, True])
def test_gradients_are_left_out(legacy: bool, doubles: bool) -> None:
    with_diff = [Layer("x", "InnerProduct", [blob(FC, legacy, doubles, diff=True)])]
    found = read_caffemodel(caffemodel(with_diff, legacy), WHERE)["x.weight"]
    assert np.array_equal(found.numpy(), FC)


def test_more_than_two_blobs_are_numbered() -> None:
    norm = Layer("bn", "BatchNorm", [BIAS6, BIAS6 + 1, ONE])
    found = read_caffemodel(caffemodel([norm, Layer("scale", "Scale", [BIAS6])]), WHERE)
    assert list(found) == ["bn.blobs.0", "bn.blobs.1", "bn.blobs.2", "scale.weight"]
    assert found["bn.blobs.2"].tolist() == [1.5]


@pytest.mark.parametrize(
    ("kind", "blobs", "shapes"),
    [
        ("InnerProduct", [(1, 1, 4, 5), (1, 1, 1, 4)], [(4, 5), (4,)]),
        ("InnerProduct", [(1, 1, 1, 5), (1, 1, 1, 1)], [(1, 5), (1,)]),
        ("InnerProduct", [(1, 1, 5, 1)], [(5, 1)]),
        ("Convolution", [(6, 2, 3, 3), (1, 1, 1, 6)], [(6, 2, 3, 3), (6,)]),
        ("Convolution", [(1, 1, 3, 3), (1, 1, 1, 1)], [(1, 1, 3, 3), (1,)]),
        ("Convolution", [(1, 1, 1, 5)], [(1, 1, 1, 5)]),
        ("Deconvolution", [(1, 1, 1, 4)], [(1, 1, 1, 4)]),
        ("InnerProduct", [(4, 5, 1, 1)], [(4, 5, 1, 1)]),
        ("PReLU", [(1, 1, 1, 3)], [(3,)]),
        ("PReLU", [(1, 1, 3, 2)], [(1, 1, 3, 2)]),
    ],
)
def test_four_old_dimensions_become_those_of_today(
    kind: str, blobs: list[tuple[int, ...]], shapes: list[tuple[int, ...]]
) -> None:
    """Also in files that were upgraded to the new form: their blobs were copied as they were."""
    layer = Layer("x", kind, [legacy_shape(dims) + numbers(int(np.prod(dims))) for dims in blobs])
    (read,) = read_layers(caffemodel([layer]), WHERE)
    assert [tuple(found.shape) for found in read.blobs] == shapes


def test_a_shape_of_today_keeps_its_ones() -> None:
    layer = Layer("x", "InnerProduct", [shape([1, 1, 1, 5]) + numbers(5)])
    assert read_caffemodel(caffemodel([layer]), WHERE)["x.weight"].shape == (1, 1, 1, 5)


def test_old_dimensions_come_before_a_shape_as_in_caffe() -> None:
    data = shape([2, 3]) + legacy_shape([1, 1, 3, 2]) + numbers(6)
    assert read_caffemodel(one_blob(data, "InnerProduct"), WHERE)["x.weight"].shape == (3, 2)


def test_dimensions_may_stand_one_by_one() -> None:
    data = shape([2, 300], packed=False) + numbers(600)
    assert read_caffemodel(one_blob(data), WHERE)["x.weight"].shape == (2, 300)


@pytest.mark.parametrize("data", [numbers(1), shape([]) + numbers(1)], ids=["none", "empty"])
def test_a_blob_without_dimensions_is_one_number(data: bytes) -> None:
    assert read_caffemodel(one_blob(data), WHERE)["x.weight"].shape == ()


def test_the_order_of_fields_and_unknown_fields_of_a_fork_do_not_matter() -> None:
    data = field(13, b"new") + numbers(6) + field(12, 3) + shape([2, 3])
    layer = Layer("x", "Convolution", [data], more=field(147, field(1, 1)))
    found = read_caffemodel(caffemodel([layer]) + field(1, b"name again"), WHERE)
    assert found["x.weight"].shape == (2, 3)


def test_tensors_are_the_readers_own_and_writable() -> None:
    data = caffemodel(NETWORK)
    read_caffemodel(data, WHERE)["conv2.weight"].fill_(9)
    assert np.array_equal(read_caffemodel(data, WHERE)["conv2.weight"].numpy(), CONV)


def test_several_threads_may_begin_at_once() -> None:
    data = caffemodel(NETWORK)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: read_caffemodel(data, WHERE), range(32)))
    assert all(np.array_equal(state["conv2.weight"].numpy(), CONV) for state in found)


def test_two_layers_without_blobs_may_share_a_name() -> None:
    layers = [Layer("data", "Data"), Layer("data", "Data"), Layer("", "Silence"), NETWORK[0]]
    assert len(read_layers(caffemodel(layers), WHERE)) == 4


#: What holds no network, and layers that are not what they should be.
FOREIGN = {
    "nothing": (b"", "has no layers"),
    "a pickle": (b"\x80\x04\x95\x10\x00\x00\x00\x00", "field"),
    "a zip": (
        b"PK\x03\x04" + bytes(60),
        "field 0 with wire type 3 at byte 2",
    ),
    "a prototxt": (b'name: "CaffeNet"\nlayer { }', "field 13 with wire type 6 at byte 0"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5 file, expected a binary .caffemodel"),
    "a solver's state": (field(1, 180) + field(2, b"net") + field(3, b""), "field 1 with wire type 0"),
    "no layers": (caffemodel([]), "has no layers"),
    "no weights": (caffemodel([Layer("relu", "ReLU")] * 3), "none of its 3 layers has blobs"),
    "both forms": (caffemodel(NETWORK) + field(2, b""), "both layer and layers"),
    "V0": (
        caffemodel([field(1, field(1, b"conv1") + field(50, blob(CONV)))], legacy=True),
        "layer 1 of 1: is of Caffe's oldest form .V0., .*upgrade_net_proto_binary",
    ),
    "names twice": (caffemodel([*NETWORK, NETWORK[0]]), "two layers 'conv2' with blobs"),
    "long names twice": (caffemodel([Layer("x" * 5000, "Scale", [ONE])] * 2), "two layers 'xxx.*xxx'"),
    "no name": (caffemodel([Layer("", "Convolution", [CONV])]), "layer 1 of 1: has 1 blobs and no name"),
    "name in lines": (caffemodel([Layer("a\nb" * 900, "Scale", [ONE])]), "its name is .*expected printable"),
    "name in bytes": (caffemodel([field(1, b"\xff") + field(7, b"")]), "its name is not UTF-8"),
    "type in bytes": (caffemodel([field(2, b"\xff")]), "its type is not UTF-8"),
    "no groups": (caffemodel([Layer("c", "Convolution", [CONV], groups=0)]), "layer 'c': has 0 groups"),
    "damaged groups": (caffemodel([field(1, b"c") + field(106, b"\x28")]), "layer 1 of 1: cannot be parsed"),
    "transposed": (
        caffemodel([Layer("fc7", "InnerProduct", [FC], more=field(117, field(6, 1)))]),
        r"layer 'fc7': stores its weight as \(in, out\)",
    ),
    "a group": (caffemodel(NETWORK) + varint(100 << 3 | 3), "wire type 3"),
    "field 0": (caffemodel(NETWORK) + bytes(8), "field 0 with wire type 0"),
    "a number behind it": (caffemodel(NETWORK) + field(99, 1), "field 99 with wire type 0, which Caffe's"),
    "a byte behind it": (caffemodel(NETWORK) + b"\xa2", "no whole number"),
    "a number without end": (b"\xff" * 40, "no whole number at byte 0"),
    "a length of 2^62": (
        varint(100 << 3 | 2) + varint(2**62) + b"x",
        f"field 100 .* needs {2**62} bytes, 1 are",
    ),
}
#: Blobs, each the only one of layer x.
BLOBS = {
    "no numbers": (shape([2, 3]), r"holds no numbers for its shape \(2, 3\)"),
    "nothing": (b"", r"holds no numbers for its shape \(\)"),
    "empty numbers": (shape([1]) + field(5, b""), "holds no numbers"),
    "too few": (shape([2, 3]) + numbers(5), r"float32 \(2, 3\) needs 24 bytes, 20 are there"),
    "too many": (shape([2, 3]) + numbers(7), "needs 24 bytes, 28 are there"),
    "half a number": (shape([2]) + field(5, bytes(6)), r"float32 \(2,\) needs 8 bytes, 6 are there"),
    "too few doubles": (shape([2]) + field(8, bytes(8)), r"float64 \(2,\) needs 16 bytes, 8 are there"),
    "a scalar of two": (numbers(2), r"float32 \(\) needs 4 bytes, 8 are there"),
    "zero": (shape([2, 0]) + numbers(1), r"the shape \(2, 0\), expected positive"),
    "negative": (shape([-2, -3]) + numbers(6), r"the shape \(-2, -3\), expected positive"),
    "old zero": (legacy_shape([1, 1, 0, 4]) + numbers(4), r"the shape \(1, 1, 0, 4\), expected positive"),
    "old negative": (legacy_shape([1, 1, -1, -4]) + numbers(4), "expected positive"),
    "one old dimension": (field(4, 4) + numbers(4), r"the shape \(0, 0, 0, 4\), expected positive"),
    "2^40 numbers": (shape([2**20, 2**20]) + numbers(1), f"needs {2**42} bytes, 4 are there"),
    "2^40 old numbers": (legacy_shape([2**20, 2**20]) + numbers(1), f"needs {2**42} bytes, 4 are there"),
    "2^64 numbers": (shape([2**32, 2**32]) + numbers(1), r"needs more than 2\^63 bytes"),
    "2^2016 numbers": (shape([2**63 - 1] * 32) + numbers(1), r", and 26 more\) needs more than 2\^63"),
    "33 dimensions": (shape([1] * 33) + numbers(1), "has 33 dimensions, expected at most 32"),
    "damaged shape": (field(7, b"\x0a\x05\x01") + numbers(1), "its shape: cannot be parsed"),
    "two shapes": (shape([2]) + shape([3]) + numbers(6), "has shape 2 times, expected it once"),
    "data in parts": (shape([2]) + numbers(1) + numbers(1), "has data 2 times"),
    "doubles in parts": (shape([2]) + field(8, bytes(8)) * 2, "has double_data 2 times"),
    "not packed": (shape([2]) + (varint(5 << 3 | 5) + bytes(4)) * 2, "stores its numbers one by one"),
    "doubles not packed": (shape([2]) + (varint(8 << 3 | 1) + bytes(8)) * 2, "stores its numbers one by one"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_another_file_or_a_damaged_layer_is_one_error(name: str) -> None:
    refused(*FOREIGN[name])


@pytest.mark.parametrize("name", BLOBS)
def test_a_blob_that_lies_is_one_error_that_names_it(name: str) -> None:
    data, says = BLOBS[name]
    refused(one_blob(data), f"layer 'x': blob 1 of 1:? .*{says}")
    layer = Layer("x", "Convolution", [CONV, data])
    refused(caffemodel([Layer("y", "Scale", [ONE]), layer]), f"layer 'x': blob 2 of 2:? .*{says}")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (field(100, b"") * 2_000_000, "more than 10000 layers"),
        (field(2, b"") * 2_000_000, "more than 10000 layers"),
        (field(3, b"") * 2_000_000, "more than 10000 layers"),
        (caffemodel([field(1, b"x") + field(7, b"") * 2_000_000]), "layer 1 of 1: has more than 1000 fields"),
        (
            caffemodel([field(1, b"x") + field(7, b"") * 65]),
            "layer 1 of 1: has 65 blobs, expected at most 64",
        ),
        (caffemodel([field(6, b"") * 65], legacy=True), "has 65 blobs"),
        (one_blob((varint(5 << 3 | 5) + bytes(4)) * 900_000), "more than 32 fields, .*packed"),
        (one_blob(field(5, b"") * 2_000_000), "more than 32 fields"),
        (one_blob(shape([1] * 4_000_000) + numbers(1)), "its shape takes 4000005 bytes"),
        (one_blob(shape([1] * 2_000_000, packed=False) + numbers(1)), "its shape takes 4000000 bytes"),
    ],
    ids=[
        "layers",
        "old layers",
        "inputs",
        "blobs",
        "some blobs",
        "some old blobs",
        "numbers",
        "data",
        "dimensions",
        "single dimensions",
    ],
)
def test_a_file_of_millions_of_parts_is_refused_before_any_is_made(data: bytes, says: str) -> None:
    read_caffemodel(caffemodel(NETWORK), WHERE)  # what the first call loads is not counted
    tracemalloc.start()
    try:
        refused(data, says)
        # What protobuf makes is not traced; two copies of the file are, one of each level of messages.
        assert tracemalloc.get_traced_memory()[1] < 2 * len(data) + (1 << 20)
    finally:
        tracemalloc.stop()


#: Prints by how many MiB refusing a file of ten million empty layers raises the most that the process has held.
HELD = """
import re
from pathlib import Path
from vsa_rt.errors import CheckpointError
from vsa_rt.export.caffe import read_caffemodel

def most():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

data = bytes([0x12, 0]) * 10_000_000
for file in (data[:2], data):
    before = most()
    try:
        read_caffemodel(file, "x")
    except CheckpointError as error:
        message = str(error)
assert "more than 10000 layers" in message, message
print(most() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="what a process held at most is in Linux's /proc"
)
def test_empty_layers_do_not_become_twenty_times_the_file() -> None:
    """Parsed at once, these 20 MB take 400 MB outside Python's own memory, which tracemalloc does not see."""
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 60


@BOTH
@pytest.mark.parametrize("blobs", [1, 8])
def test_memory_stays_below_three_times_the_file(legacy: bool, blobs: int) -> None:
    values = np.ones((5 << 20) // blobs, np.float32)
    parts = [Layer(f"fc{i}", "InnerProduct", [values]) for i in range(blobs)]
    data = caffemodel(parts, legacy)
    assert len(data) > 20_000_000
    tracemalloc.start()
    try:
        found = read_caffemodel(data, WHERE)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(data)
    finally:
        tracemalloc.stop()
    assert sum(tensor.nbytes for tensor in found.values()) == values.nbytes * blobs


def test_declared_sizes_ask_for_no_memory() -> None:
    data = one_blob(shape([2**20, 2**20]) + numbers(1))
    read_caffemodel(caffemodel(NETWORK), WHERE)
    tracemalloc.start()
    try:
        refused(data, "needs")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def read_or_refused(data: bytes) -> bool:
    """Whether a file was read; nothing but the one error is raised, and no more is held than was there."""
    try:
        found = read_caffemodel(data, WHERE)
    except CheckpointError as error:
        message = str(error)
    else:
        assert 0 < sum(tensor.nbytes for tensor in found.values()) <= len(data)
        return True
    assert message.startswith(f"{WHERE}: ")
    assert len(message) < 400
    return False


@BOTH
def test_a_file_cut_anywhere_is_refused_or_ends_with_a_whole_layer(legacy: bool) -> None:
    whole = caffemodel(NETWORK, legacy)
    ends = {len(caffemodel(NETWORK[:count], legacy)) for count in range(1, len(NETWORK) + 1)}
    assert {cut for cut in range(len(whole) + 1) if read_or_refused(whole[:cut])} == ends


def test_the_layer_that_is_cut_is_named() -> None:
    inner = layer_bytes(Layer("conv2", "Convolution", [blob(CONV)[:-9]]))
    refused(
        caffemodel([inner]), "layer 'conv2': blob 1 of 1: field 5 at byte .* needs 432 bytes, 423 are left"
    )


@BOTH
def test_every_flipped_bit_is_read_or_refused(legacy: bool) -> None:
    whole = caffemodel([Layer("c", "Convolution", [CONV[:1, :1], ONE], groups=2), NETWORK[1]], legacy)
    outcomes = set()
    for at in range(len(whole)):
        for bit in range(8):
            outcomes.add(read_or_refused(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]))
    assert outcomes == {True, False}


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes_are_read_or_refused(data: bytes) -> None:
    read_or_refused(data)
    for level in (caffemodel([data]), caffemodel([data], legacy=True), one_blob(data)):
        read_or_refused(level)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_real_file_with_parts_overwritten_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(caffemodel(NETWORK, data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole)))
        part = data.draw(st.binary(max_size=8))
        whole[at : at + data.draw(st.integers(0, 8))] = part
    read_or_refused(bytes(whole))
