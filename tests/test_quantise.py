"""int8 is written into the graph as symmetric Q/DQ, placed so that engines fuse what is around products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsa_rt.contracts import Precision
from vsa_rt.errors import UsageError
from vsa_rt.plan import Plan

onnx = pytest.importorskip("onnx", reason="graphs are lowered with onnx")
pytest.importorskip("ml_dtypes", reason="bf16 scales are made with ml_dtypes")
pytest.importorskip("onnxruntime", reason="lowered graphs are run by ONNX Runtime")

from onnx import TensorProto, helper, numpy_helper

from vsa_rt.engines.executor import GraphExecutor
from vsa_rt.export.half import HalfExecutor
from vsa_rt.export.lowering.lower import activations, lower
from vsa_rt.export.lowering.quantise import LEVELS, scale_of

TAPS = ["f"]
CHANNELS = 8


def block() -> Any:
    """A stem, a residual block with a pool behind it, and a dense layer with a bias: ``x (N, 3, 8, 8)`` to ``f (N, 5)``."""
    rng = np.random.default_rng(5)
    shapes = {"w0": (CHANNELS, 3, 3, 3), "w1": (CHANNELS, CHANNELS, 3, 3), "w2": (CHANNELS, CHANNELS, 1, 1)}
    weights = {n: rng.normal(0, np.prod(s[1:]) ** -0.5, s).astype(np.float32) for n, s in shapes.items()}
    # Channels of very different size: what scales per channel are for.
    weights["w1"][0] *= 100
    weights["wd"] = rng.normal(0, 0.3, (CHANNELS, 5)).astype(np.float32)
    for name, width in (("b0", CHANNELS), ("b1", CHANNELS), ("b2", CHANNELS), ("bd", 5)):
        weights[name] = rng.normal(0, 0.1, width).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], "stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"], "stem_relu"),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "first_relu"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "second"),
        helper.make_node("Add", ["c2", "r0"], ["sum"], "shortcut"),
        helper.make_node("Relu", ["sum"], ["r2"], "sum_relu"),
        helper.make_node("MaxPool", ["r2"], ["p"], "pool", kernel_shape=[8, 8]),
        helper.make_node("Flatten", ["p"], ["v"], "flat"),
        helper.make_node("Gemm", ["v", "wd", "bd"], ["f"], "dense"),
    ]
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("f", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    return {"x": np.random.default_rng(1).normal(0, 1, (16, 3, 8, 8)).astype(np.float32)}


@pytest.fixture(scope="module")
def ranges(inputs: dict[str, Any]) -> dict[str, float]:
    """The largest magnitude of what each product reads."""
    model = block()
    names = activations(model, TAPS)
    for name in names:
        if name != "x":
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    found = GraphExecutor(model.SerializeToString()).run(inputs) | inputs
    return {name: float(np.abs(found[name]).max()) for name in names}


def int8(ranges: dict[str, float], around: Precision = Precision.FP32, exclude: tuple[str, ...] = ()) -> Any:
    return lower(block(), Plan.uniform(TAPS, Precision.INT8, around=around, exclude=exclude), {}, ranges)


def by_name(model: Any) -> dict[str, Any]:
    return {n.name: n for n in model.graph.node}


def producers(model: Any) -> dict[str, Any]:
    return {o: n for n in model.graph.node for o in n.output}


def test_ranges_are_asked_for_what_products_read_and_nothing_else() -> None:
    assert activations(block(), TAPS) == ["x", "r0", "r1", "v"]


def test_every_product_reads_dequantised_activations_and_weights(ranges: dict[str, float]) -> None:
    model = int8(ranges)
    made = producers(model)
    for name in ("stem", "first", "second", "dense"):
        node = by_name(model)[name]
        assert [made[i].op_type for i in node.input[:2]] == ["DequantizeLinear"] * 2
        assert made[made[node.input[0]].input[0]].op_type == "QuantizeLinear"


def test_everything_is_symmetric_int8_with_a_scale_for_every_output_channel(ranges: dict[str, float]) -> None:
    model = int8(ranges)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    dequantised = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    assert len(dequantised) == 8
    for node in dequantised:
        zero, scale = constants[node.input[2]], constants[node.input[1]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert (scale > 0).all()
    widths = sorted(constants[n.input[1]].size for n in dequantised)
    assert widths == [1, 1, 1, 1, 5, CHANNELS, CHANNELS, CHANNELS]
    levels = [constants[n.input[0]] for n in dequantised if n.input[0] in constants]
    assert all(w.dtype == np.int8 and w.min() >= -LEVELS for w in levels)


def test_biases_stay_as_they_are(ranges: dict[str, float]) -> None:
    source = {t.name: numpy_helper.to_array(t) for t in block().graph.initializer}
    model = int8(ranges)
    kept = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name in ("b0", "b1", "b2", "bd"):
        np.testing.assert_array_equal(kept[name], source[name])
    assert by_name(model)["first"].input[2] == "b1"


def test_nothing_stands_between_a_product_and_what_engines_fuse_into_it(ranges: dict[str, float]) -> None:
    nodes = by_name(int8(ranges))
    assert list(nodes["stem_relu"].input) == ["c0"]
    assert list(nodes["first_relu"].input) == ["c1"]
    assert nodes["shortcut"].input[0] == "c2"
    assert list(nodes["sum_relu"].input) == ["sum"]
    assert list(nodes["pool"].input) == ["r2"]


def test_a_shortcut_that_is_quantised_anyway_is_added_as_int8(ranges: dict[str, float]) -> None:
    model = int8(ranges)
    nodes, made = by_name(model), producers(model)
    assert nodes["shortcut"].input[1] == nodes["first"].input[0]
    assert made[nodes["shortcut"].input[1]].op_type == "DequantizeLinear"
    assert len([n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "r0"]) == 1


def test_a_shortcut_that_nothing_else_quantises_stays_in_float(ranges: dict[str, float]) -> None:
    model = int8(ranges, exclude=("first",))
    assert by_name(model)["shortcut"].input[1] == "r0"


def test_int8_is_as_close_as_its_levels_allow(inputs: dict[str, Any], ranges: dict[str, float]) -> None:
    exact = GraphExecutor(block().SerializeToString()).run(inputs)["f"]
    lowered = GraphExecutor(int8(ranges).SerializeToString()).run(inputs)["f"]
    gap = np.linalg.norm(lowered - exact) / np.linalg.norm(exact)
    # Four roundings of 1/254 of a range each, at most; with one scale for all of w1 it is 0.3.
    assert 1e-4 < gap < 0.03


@pytest.mark.parametrize("around", [Precision.BF16, Precision.FP16])
def test_what_is_around_int8_is_typed_as_the_plan_says_and_rounds_so(
    around: Precision, inputs: dict[str, Any], ranges: dict[str, float]
) -> None:
    model = int8(ranges, around)
    constants = {t.name: t.data_type for t in model.graph.initializer}
    kind = {Precision.BF16: TensorProto.BFLOAT16, Precision.FP16: TensorProto.FLOAT16}[around]
    scales = {constants[n.input[1]] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    assert scales == {kind}
    assert constants[by_name(model)["first"].input[2]] == kind
    exact = GraphExecutor(block().SerializeToString()).run(inputs)["f"]
    found = HalfExecutor(model).run(inputs)["f"]
    assert found.dtype == np.float32
    assert np.linalg.norm(found - exact) / np.linalg.norm(exact) < 0.03


def test_the_same_plan_gives_the_same_bytes(ranges: dict[str, float]) -> None:
    assert int8(ranges).SerializeToString() == int8(dict(reversed(ranges.items()))).SerializeToString()


def test_an_excluded_node_reads_float_and_keeps_its_weights(ranges: dict[str, float]) -> None:
    node = by_name(int8(ranges, exclude=("second",)))["second"]
    assert list(node.input) == ["r1", "w2", "b2"]


def test_an_unknown_excluded_node_is_named(ranges: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="excluded node 'nothing': the graph has none of that name"):
        int8(ranges, exclude=("nothing",))


def test_a_missing_range_is_named(ranges: dict[str, float]) -> None:
    with pytest.raises(
        UsageError, match=r"no range of activation 'r1' \(1 in all\); calibrate with --calib DIR"
    ):
        int8({name: value for name, value in ranges.items() if name != "r1"})


def test_a_product_whose_activation_never_moved_stays_in_float(ranges: dict[str, float]) -> None:
    node = by_name(int8(ranges | {"r1": 0.0}))["second"]
    assert node.input[0] == "r1"


def test_a_graph_that_is_quantised_already_is_refused(ranges: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"quantised already: node .* is a \w+Linear"):
        lower(int8(ranges), Plan.uniform(TAPS, Precision.INT8), {}, ranges)


@given(
    st.lists(st.floats(2**-17, 2**20, width=32), min_size=1, max_size=20),
    st.sampled_from([Precision.FP32, Precision.BF16, Precision.FP16]),
)
def test_the_largest_magnitude_is_never_clipped_by_the_rounding_of_its_scale(
    largest: list[float], around: Precision
) -> None:
    magnitudes = np.array(largest, np.float32)
    magnitudes = magnitudes[magnitudes / LEVELS < 60_000]
    scale = scale_of(magnitudes, around)
    levels = magnitudes.astype(np.float64) / scale
    assert (levels <= LEVELS * (1 + 1e-6)).all()
    # At most one step of the narrow type more than needed, unless the scale is next to nothing.
    coarse = {Precision.FP32: 1e-6, Precision.BF16: 2**-7, Precision.FP16: 2**-10}[around]
    plain = magnitudes / LEVELS > 1e-4
    assert (levels[plain] >= LEVELS * (1 - 2 * coarse)).all()


def test_of_two_backbones_only_the_one_that_the_plan_names_is_quantised(tiny_bundle: Path) -> None:
    model = onnx.load_from_string((tiny_bundle / "graph.onnx").read_bytes())
    plan = Plan(backbones={"small": Precision.INT8, "other": Precision.BF16})
    ranges = dict.fromkeys(activations(model, plan.backbones), 3.0)
    lowered = lower(model, plan, {}, ranges)
    made = producers(lowered)
    kinds = {
        n.name: made[n.input[1]].op_type if n.input[1] in made else "typed"
        for n in lowered.graph.node
        if n.op_type == "Conv"
    }
    for tap, kind in (("small", "DequantizeLinear"), ("other", "typed")):
        wanted, found = {tap}, set()
        for node in reversed(model.graph.node):
            if wanted.intersection(node.output):
                found.add(node.name)
                wanted.update(node.input)
        assert {kinds[name] for name in found if name in kinds} == {kind}
