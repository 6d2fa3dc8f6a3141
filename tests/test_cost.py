"""Multiply-adds and bytes of graphs equal sums made by hand, torch's own counter and published figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

onnx = pytest.importorskip("onnx", reason="graphs are written with onnx")
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from vsa_rt.bench.cost import HEAD, Graph, owners, read_graph
from vsa_rt.bundle import Bundle
from vsa_rt.errors import UsageError
from vsa_rt.manifest import TapRecord

Values = dict[str, tuple[int | str, ...]]


def model(
    nodes: list[Any],
    inputs: Values,
    weights: dict[str, Any],
    outputs: list[str],
    kind: int = TensorProto.FLOAT,
    domains: tuple[str, ...] = (),
) -> bytes:
    """A model whose outputs' shapes are left to inference."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    opsets = [helper.make_opsetid("", 22), *(helper.make_opsetid(d, 1) for d in domains)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(made.SerializeToString())


def f32(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    return helper.make_node(op, inputs, outputs, f"the_{op}", **attributes)


#: Node, its inputs, its weights, and its multiply-adds for a batch of 2 as they are summed up by hand.
BY_HAND: dict[str, tuple[Any, Values, dict[str, Any], int]] = {
    # 2 images, 8 channels of 6 x 6, each a sum over 3 channels and 3 x 3.
    "convolution": (
        node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]),
        {"x": ("N", 3, 6, 6)},
        {"w": f32(8, 3, 3, 3)},
        2 * 8 * 36 * 27,
    ),
    # Two groups: 8 channels of 2 x 2 (stride 2, no padding), each over 4 / 2 channels and 3 x 3.
    "grouped convolution with a stride": (
        node("Conv", ["x", "w"], ["y"], strides=[2, 2], group=2),
        {"x": ("N", 4, 6, 6)},
        {"w": f32(8, 2, 3, 3)},
        2 * 8 * 4 * 18,
    ),
    "depthwise convolution": (
        node("Conv", ["x", "w"], ["y"], pads=[2, 2, 2, 2], group=4),
        {"x": ("N", 4, 6, 6)},
        {"w": f32(4, 1, 5, 5)},
        2 * 4 * 36 * 25,
    ),
    # Every one of 4 x 3 x 3 inputs is spread over 5 channels and 2 x 2.
    "transposed convolution": (
        node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
        {"x": ("N", 4, 3, 3)},
        {"w": f32(4, 5, 2, 2)},
        2 * 4 * 9 * 20,
    ),
    "product with a bias": (
        node("Gemm", ["x", "w", "b"], ["y"], transB=1),
        {"x": ("N", 7)},
        {"w": f32(5, 7), "b": f32(5)},
        2 * 5 * 7,
    ),
    "product of the transpose": (
        node("Gemm", ["w", "x"], ["y"], transA=1, transB=1),
        {"x": ("N", 7)},
        {"w": f32(7, 5)},
        5 * 2 * 7,
    ),
    "product of stacks of matrices": (
        node("MatMul", ["x", "z"], ["y"]),
        {"x": ("N", 3, 4, 5), "z": ("N", 3, 5, 6)},
        {},
        2 * 3 * 4 * 6 * 5,
    ),
    "einsum": (
        node("Einsum", ["x", "w"], ["y"], equation="nij,jk->nik"),
        {"x": ("N", 4, 5)},
        {"w": f32(5, 6)},
        2 * 4 * 5 * 6,
    ),
    # 9 steps of 2 sequences, two directions, three gates, each over 5 inputs and 4 states.
    "GRU in both directions": (
        node("GRU", ["x", "w", "r"], ["y"], hidden_size=4, direction="bidirectional"),
        {"x": (9, "N", 5)},
        {"w": f32(2, 12, 5), "r": f32(2, 12, 4)},
        9 * 2 * 2 * 3 * 4 * (5 + 4),
    ),
    "LSTM": (
        node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4),
        {"x": (9, "N", 5)},
        {"w": f32(1, 16, 5), "r": f32(1, 16, 4)},
        9 * 2 * 4 * 4 * (5 + 4),
    ),
    "activation": (node("Relu", ["x"], ["y"]), {"x": ("N", 7)}, {}, 0),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_multiply_adds_are_those_summed_up_by_hand(name: str) -> None:
    made, inputs, weights, expected = BY_HAND[name]
    # The batch of recurrent networks is the second axis: it is written into the graph here.
    fixed = {k: tuple(2 if a == "N" else a for a in shape) for k, shape in inputs.items()}
    given = fixed if made.op_type in ("GRU", "LSTM") else inputs
    graph = read_graph(model([made], given, weights, ["y"]), 2)
    assert graph.unknown == {}
    assert graph.macs == graph.nodes[made.name].macs == expected


@pytest.mark.parametrize(
    ("weights", "group", "kind"),
    [
        ((4, 4, 3, 3), 1, "convolution"),
        ((4, 2, 3, 3), 2, "convolution"),
        ((4, 1, 3, 3), 4, "depthwise"),
        ((4, 4, 1, 1), 1, "pointwise"),
        ((4, 1, 1, 1), 4, "depthwise"),
    ],
)
def test_kinds_of_convolution_are_told_apart(weights: tuple[int, ...], group: int, kind: str) -> None:
    made = node("Conv", ["x", "w"], ["y"], group=group)
    graph = read_graph(model([made], {"x": ("N", 4, 6, 6)}, {"w": f32(*weights)}, ["y"]), 1)
    assert graph.nodes["the_Conv"].kind == kind


def two_layers() -> bytes:
    """``x -> Gemm (w) -> Reshape -> Gemm (the same w) -> y``, all of width 8."""
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], "first"),
        helper.make_node("Reshape", ["a", "shape"], ["b"], "view"),
        helper.make_node("Gemm", ["b", "w"], ["y"], "second"),
    ]
    shape = np.array([-1, 8], np.int64)
    return model(nodes, {"x": ("N", 8)}, {"w": f32(8, 8), "shape": shape}, ["y"])


def test_bytes_of_a_node_are_what_it_reads_and_writes_and_a_view_moves_none() -> None:
    graph = read_graph(two_layers(), 3)
    row, weights = 4 * 3 * 8, 4 * 8 * 8
    assert [n.nbytes for n in graph.nodes.values()] == [2 * row + weights, 0, 2 * row + weights]


def test_the_least_bytes_hold_weights_once_and_leave_out_what_stays_inside() -> None:
    graph = read_graph(two_layers(), 3)
    row, weights, shape = 4 * 3 * 8, 4 * 8 * 8, 2 * 8
    assert graph.least_bytes() == 2 * row + weights + shape
    assert graph.least_bytes(["first"]) == 2 * row + weights


def test_the_batch_scales_activations_and_not_weights() -> None:
    one, four = (read_graph(two_layers(), batch) for batch in (1, 4))
    assert four.macs == 4 * one.macs
    assert four.least_bytes() - one.least_bytes() == 3 * 2 * 4 * 8


def test_weights_that_are_dequantised_at_load_count_in_their_small_form() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], "weights"),
        helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
    ]
    weights = {"q": np.ones((64, 64), np.int8), "s": np.array(0.1, np.float32)}
    graph = read_graph(model(nodes, {"x": ("N", 64)}, weights, ["y"]), 1)
    assert graph.nodes["weights"].folded
    assert graph.nodes["weights"].nbytes == 0
    assert graph.least_bytes() == 64 * 64 + 4 + 2 * 4 * 64


def test_what_cannot_be_counted_is_named_and_in_no_sum() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["found"], "search"),
        helper.make_node("Cast", ["found"], ["f"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], "turn"),
        helper.make_node("MatMul", ["t", "w"], ["y"], "product"),
        helper.make_node("Relu", ["x"], ["z"], "plain"),
        helper.make_node("Fancy", ["x"], ["q"], "foreign", domain="acme"),
    ]
    made = model(nodes, {"x": ("N", 8)}, {"w": f32(2, 8)}, ["y", "z", "q"], domains=("acme",))
    graph = read_graph(made, 2)
    assert set(graph.unknown) == {"product", "foreign"}
    assert "depends on the data" in graph.unknown["product"]
    assert "acme.Fancy" in graph.unknown["foreign"]
    assert graph.macs == 0


def test_nodes_without_a_name_of_their_own_are_told_apart_by_their_outputs() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"], "same"), helper.make_node("Relu", ["a"], ["b"], "same")]
    nodes.append(helper.make_node("Relu", ["b"], ["y"]))
    assert list(read_graph(model(nodes, {"x": ("N", 8)}, {}, ["y"]), 1).nodes) == ["same", "b", "y"]


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot be read.*expected an ONNX model"):
        read_graph(b"certainly not protobuf", 1)


def test_shapes_that_contradict_each_other_are_refused() -> None:
    made = node("MatMul", ["x", "w"], ["y"])
    with pytest.raises(UsageError, match="does not fit a batch of 1"):
        read_graph(model([made], {"x": ("N", 8)}, {"w": f32(7, 3)}, ["y"]), 1)


def per_part(graph: Graph, parts: dict[str, str]) -> dict[str, int]:
    return {p: sum(n.macs for n in graph.nodes.values() if parts[n.name] == p) for p in set(parts.values())}


def test_backbones_cost_what_torchs_own_counter_says(tiny_bundle: Path) -> None:
    torch = pytest.importorskip("torch", reason="the counter is torch's")
    timm = pytest.importorskip("timm", reason="the networks are timm's")
    from torch.utils.flop_counter import FlopCounterMode

    bundle = Bundle.open(tiny_bundle)
    expected = {HEAD: 0}
    for name, architecture in (("small", "test_efficientnet"), ("other", "test_resnet")):
        [size] = {i.shape[0] for i in bundle.manifest.inputs}
        with torch.device("meta"):
            network = timm.create_model(architecture, pretrained=False, num_classes=0).eval()
            image = torch.empty(1, 3, size, size)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            network(image)
        # A multiply-add is two operations.
        expected[name] = counter.get_total_flops() // 2
    widths = {t.name: t.width for t in bundle.manifest.taps}
    expected[HEAD] = widths["features"] * widths["logits"]
    for record in bundle.manifest.graphs:
        graph = read_graph(bundle.read(record.path), 1)
        assert graph.unknown == {}
        assert per_part(graph, owners(graph, bundle.manifest.taps)) == expected, record.precision


@pytest.mark.slow
def test_the_quickstarts_backbones_cost_what_was_published(quickstart_bundle: Path) -> None:
    # tensorflow/tpu, models/official/efficientnet/lite/README.md: MAdds with the classifier. They hold more than
    # convolutions and products: torch's counter gives 385.2, 600.2 and 859.7 million for the same networks.
    published = {"lite0": 407e6, "lite1": 631e6, "lite2": 899e6}
    counted = {"lite0": 385_187_552, "lite1": 600_185_232, "lite2": 859_736_272}
    bundle = Bundle.open(quickstart_bundle)
    graph = read_graph(bundle.read(bundle.manifest.graphs[0].path), 1)
    found = per_part(graph, owners(graph, bundle.manifest.taps))
    classifier = 1280 * 1000
    for name, millions in published.items():
        assert found[name] + classifier == counted[name]
        assert 0.94 * millions < counted[name] < millions


@pytest.mark.parametrize("bundle_of", ["tiny_bundle", "wired_bundle"])
def test_every_convolution_belongs_to_one_backbone_and_the_parts_are_the_whole(
    bundle_of: str, request: pytest.FixtureRequest
) -> None:
    bundle = Bundle.open(request.getfixturevalue(bundle_of))
    taps = bundle.manifest.taps
    backbones = {t.name for t in taps if t.kind == "backbone"}
    for record in bundle.manifest.graphs:
        graph = read_graph(bundle.read(record.path), 2)
        parts = owners(graph, taps)
        assert parts.keys() == graph.nodes.keys()
        assert set(parts.values()) == backbones | {HEAD}
        convolutions = [n for n in graph.nodes.values() if n.op == "Conv"]
        assert convolutions
        assert {parts[n.name] for n in convolutions} <= backbones
        assert sum(per_part(graph, parts).values()) == graph.macs > 0


def test_a_shared_trunk_belongs_to_the_backbone_that_others_read(wired_bundle: Path) -> None:
    bundle = Bundle.open(wired_bundle)
    graph = read_graph(bundle.read(bundle.manifest.graphs[0].path), 1)
    parts = owners(graph, bundle.manifest.taps)
    images = {i.name for i in bundle.manifest.inputs if i.resize is not None}
    readers = {n.name for n in graph.nodes.values() if images.intersection(n.inputs)}
    assert readers
    assert {parts[name] for name in readers} == {"r"}
    producers = graph.producers()
    assert parts[producers["s"]] == "s"
    assert parts[producers["g"]] == "g"
    assert parts[producers["scores"]] == HEAD


def trunk_and_reader() -> Graph:
    """Two backbones, of which ``reader`` reads ``trunk``, a cast that both need, and a head."""
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], "cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["c", "w"], ["trunk"], "product"),
        helper.make_node("Relu", ["trunk"], ["r"], "own"),
        helper.make_node("Add", ["r", "c"], ["reader"], "sum"),
        helper.make_node("Concat", ["trunk", "reader"], ["scores"], "join", axis=1),
    ]
    return read_graph(model(nodes, {"x": ("N", 8)}, {"w": f32(8, 8)}, ["trunk", "reader", "scores"]), 1)


def tap(name: str, kind: Any = "backbone", reads: str = "") -> TapRecord:
    return TapRecord(name=name, width=8, kind=kind, reads=reads)


@pytest.mark.parametrize(
    "turn", [lambda taps: taps, lambda taps: taps[::-1]], ids=["in order", "reader first"]
)
def test_a_trunk_keeps_its_nodes_wherever_its_reader_stands(
    turn: Callable[[list[TapRecord]], list[TapRecord]],
) -> None:
    taps = turn([tap("trunk"), tap("reader", reads="trunk"), tap("scores", "scores")])
    assert owners(trunk_and_reader(), taps) == {
        "cast": "trunk",
        "product": "trunk",
        "own": "reader",
        "sum": "reader",
        "join": HEAD,
    }


def test_a_tap_that_the_graph_does_not_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="no tensor 'other'"):
        owners(trunk_and_reader(), [tap("other")])
