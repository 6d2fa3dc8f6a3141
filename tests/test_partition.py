"""A graph cut at its backbones: each piece by itself, all of them together the whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx", reason="graphs are cut with onnx")
ort = pytest.importorskip("onnxruntime", reason="pieces are run by ONNX Runtime")

from onnx import TensorProto, helper, numpy_helper

from vsa_rt.bundle import Bundle
from vsa_rt.export.partition import HEAD, Piece, partition

Arrays = dict[str, NDArray[Any]]
#: What a network's arithmetic is: no two pieces may share one.
PRODUCTS = {"Conv", "MatMul", "Gemm", "GRU"}


def run(graph: bytes, inputs: Arrays) -> Arrays:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    given = {i.name: inputs[i.name] for i in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


def together(pieces: Sequence[Piece], inputs: Arrays) -> Arrays:
    """Run pieces in their order, each on what the graph takes and earlier ones gave."""
    known = dict(inputs)
    for piece in pieces:
        given = run(piece.graph, {name: known[name] for name in piece.inputs})
        assert tuple(given) == piece.outputs
        known.update(given)
    return known


def backbones(bundle: Bundle) -> list[str]:
    return [t.name for t in bundle.manifest.taps if t.kind == "backbone"]


def some_inputs(bundle: Bundle, count: int = 3) -> Arrays:
    rng = np.random.default_rng(0)
    return {
        i.name: rng.integers(0, 256, (count, *i.shape)).astype(i.dtype)
        if i.dtype == "uint8"
        else rng.standard_normal((count, *i.shape)).astype(i.dtype)
        for i in bundle.manifest.inputs
    }


def products(graph: bytes) -> Counter[str]:
    """Products by the weights that they multiply with."""
    nodes = onnx.load_from_string(graph).graph.node
    return Counter(f"{n.op_type} {n.input[1]}" for n in nodes if n.op_type in PRODUCTS)


@pytest.mark.parametrize("which", ["tiny_bundle", "wired_bundle"])
def test_the_pieces_together_compute_what_the_whole_does(which: str, request: pytest.FixtureRequest) -> None:
    bundle = Bundle.open(request.getfixturevalue(which))
    graph, inputs = bundle.read(bundle.manifest.graphs[0].path), some_inputs(bundle)
    pieces = partition(graph, backbones(bundle))
    assert pieces[-1].name == HEAD
    assert {p.name for p in pieces[:-1]} == set(backbones(bundle))
    whole, known = run(graph, inputs), together(pieces, inputs)
    for tap, value in whole.items():
        np.testing.assert_allclose(known[tap], value, rtol=0, atol=1e-5 * np.abs(value).max())


@pytest.mark.parametrize("which", ["tiny_bundle", "wired_bundle"])
def test_no_product_is_in_two_pieces(which: str, request: pytest.FixtureRequest) -> None:
    bundle = Bundle.open(request.getfixturevalue(which))
    graph = bundle.read(bundle.manifest.graphs[0].path)
    pieces = partition(graph, backbones(bundle))
    assert sum((products(p.graph) for p in pieces), Counter()) == products(graph)


def test_lowered_graphs_are_cut_as_well(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    from vsa_rt.contracts import Precision
    from vsa_rt.export.lowering.lower import lower
    from vsa_rt.plan import Plan

    model = onnx.load_from_string(bundle.read(bundle.manifest.graphs[0].path))
    taps = backbones(bundle)
    plan = Plan.uniform(taps, Precision.FP16, head=Precision.FP16)
    graph = lower(model, plan).SerializeToString()
    inputs = some_inputs(bundle)
    known, whole = together(partition(graph, taps), inputs), run(graph, inputs)
    for tap, value in whole.items():
        np.testing.assert_allclose(known[tap], value, rtol=0, atol=2e-3 * np.abs(value).max())


def test_the_same_graph_gives_the_same_bytes(wired_bundle: Path) -> None:
    bundle = Bundle.open(wired_bundle)
    graph = bundle.read(bundle.manifest.graphs[0].path)
    assert partition(graph, backbones(bundle)) == partition(graph, backbones(bundle))


def test_one_backbone_is_not_cut(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert partition(bundle.read(bundle.manifest.graphs[0].path), ["small"]) == []


# Graphs made by hand


def tiny_graph(nodes: Sequence[Any], outputs: Sequence[str], weights: Sequence[str]) -> bytes:
    """A graph of products of 4 with 4, from ``x`` and ``y`` ``(N, 4)``."""
    rng = np.random.default_rng(1)
    constants = [
        numpy_helper.from_array(rng.standard_normal((4, 4)).astype(np.float32), name) for name in weights
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in ("x", "y")],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", None]) for n in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def product(left: str, weight: str, out: str) -> Any:
    return helper.make_node("MatMul", [left, weight], [out], name=f"to_{out}")


def test_what_two_backbones_share_is_given_by_the_innermost() -> None:
    """``b`` reads a tensor inside of ``a``, which is no output of the graph."""
    graph = tiny_graph(
        [
            product("x", "w1", "inner"),
            product("inner", "w2", "a"),
            helper.make_node("Add", ["inner", "y"], ["sum"]),
            product("sum", "w3", "b"),
            helper.make_node("Concat", ["a", "b"], ["features"], axis=1),
        ],
        ["a", "b", "features"],
        ["w1", "w2", "w3"],
    )
    first, second, head = partition(graph, ["a", "b"])
    assert (first.name, first.inputs, first.outputs) == ("a", ("x",), ("a", "inner"))
    assert (second.name, set(second.inputs), second.outputs) == ("b", {"y", "inner"}, ("b",))
    assert (head.name, set(head.inputs), head.outputs) == (HEAD, {"a", "b"}, ("features",))
    rng = np.random.default_rng(2)
    inputs = {n: rng.standard_normal((2, 4)).astype(np.float32) for n in ("x", "y")}
    known = together([first, second, head], inputs)
    np.testing.assert_allclose(known["features"], run(graph, inputs)["features"], rtol=1e-5)


def test_two_backbones_over_two_shared_middles_are_cut_once() -> None:
    """The first has both middles, the second one reads what it makes of them for itself."""
    graph = tiny_graph(
        [
            product("x", "w1", "p"),
            product("y", "w2", "q"),
            helper.make_node("Add", ["p", "q"], ["pq"]),
            product("pq", "w3", "a"),
            helper.make_node("Sub", ["p", "q"], ["d"]),
            product("d", "w4", "b"),
            helper.make_node("Concat", ["a", "b"], ["features"], axis=1),
        ],
        ["a", "b", "features"],
        ["w1", "w2", "w3", "w4"],
    )
    pieces = partition(graph, ["a", "b"])
    assert [(p.name, set(p.inputs)) for p in pieces] == [
        ("a", {"x", "y"}),
        ("b", {"p", "q"}),
        (HEAD, {"a", "b"}),
    ]
    rng = np.random.default_rng(2)
    inputs = {n: rng.standard_normal((2, 4)).astype(np.float32) for n in ("x", "y")}
    known = together(pieces, inputs)
    np.testing.assert_allclose(known["features"], run(graph, inputs)["features"], rtol=1e-5)


def test_what_lies_between_two_backbones_goes_with_the_one_that_reads_it() -> None:
    """What the head reads of it is given on: no piece may come before and after another."""
    graph = tiny_graph(
        [
            product("x", "w1", "a"),
            helper.make_node("Relu", ["a"], ["r"]),
            helper.make_node("Add", ["r", "y"], ["ry"]),
            product("ry", "w2", "b"),
            helper.make_node("Concat", ["r", "b"], ["features"], axis=1),
        ],
        ["a", "b", "features"],
        ["w1", "w2"],
    )
    pieces = partition(graph, ["a", "b"])
    assert [p.name for p in pieces] == ["a", "b", HEAD]
    rng = np.random.default_rng(2)
    inputs = {n: rng.standard_normal((2, 4)).astype(np.float32) for n in ("x", "y")}
    known = together(pieces, inputs)
    np.testing.assert_allclose(known["features"], run(graph, inputs)["features"], rtol=1e-5)


def test_a_graph_inside_of_a_node_is_not_cut() -> None:
    """It may read tensors from outside, which no cut would see."""
    inner = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["chosen"])],
        "branch",
        [],
        [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)],
    )
    graph = tiny_graph(
        [
            product("x", "w1", "a"),
            product("y", "w2", "b"),
            helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
            helper.make_node("If", ["yes"], ["c"], then_branch=inner, else_branch=inner),
            helper.make_node("Concat", ["c", "b"], ["features"], axis=1),
        ],
        ["a", "b", "features"],
        ["w1", "w2"],
    )
    assert partition(graph, ["a", "b"]) == []


def test_a_seam_of_a_free_shape_is_not_cut() -> None:
    """TensorRT's profiles have one free axis, the batch."""
    graph = tiny_graph(
        [
            product("x", "w1", "a"),
            helper.make_node("NonZero", ["a"], ["places"]),
            helper.make_node("Cast", ["places"], ["numbers"], to=TensorProto.FLOAT),
            product("y", "w2", "b"),
            helper.make_node("ReduceSum", ["numbers"], ["total"]),
            helper.make_node("Mul", ["b", "total"], ["features"]),
        ],
        ["a", "b", "numbers", "features"],
        ["w1", "w2"],
    )
    assert partition(graph, ["a", "b"]) == []


def test_a_seam_with_other_rows_than_images_is_not_cut() -> None:
    """Four rows for each image: a session would give such a tensor room for one."""
    graph = tiny_graph(
        [
            product("x", "w1", "trunk"),
            helper.make_node("Constant", [], ["to_rows"], value=numpy_helper.from_array(np.array([-1, 1]))),
            helper.make_node("Reshape", ["trunk", "to_rows"], ["rows"]),
            helper.make_node("Constant", [], ["back"], value=numpy_helper.from_array(np.array([-1, 4]))),
            helper.make_node("Reshape", ["rows", "back"], ["again"]),
            product("again", "w2", "a"),
            helper.make_node("Relu", ["rows"], ["more"]),
            helper.make_node("Reshape", ["more", "back"], ["wide"]),
            product("wide", "w3", "b"),
            helper.make_node("Concat", ["a", "b"], ["features"], axis=1),
        ],
        ["a", "b", "features"],
        ["w1", "w2", "w3"],
    )
    assert partition(graph, ["a", "b"]) == []
