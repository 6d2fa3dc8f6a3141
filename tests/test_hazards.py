"""Nodes that half precision would spoil are named from measured ranges; each hazard is shown to be real."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsa_rt.bundle import Bundle

onnx = pytest.importorskip("onnx", reason="graphs are ONNX's")
pytest.importorskip("torch", reason="the executor computes with torch")

from vsa_rt.export.half import HalfExecutor
from vsa_rt.export.lowering.hazards import HEADROOM, LARGEST, SENSITIVE, hazards

helper, to_array, from_array = onnx.helper, onnx.numpy_helper.to_array, onnx.numpy_helper.from_array
FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """A node named after its first output, in capitals."""
    names = outputs.split()
    return helper.make_node(kind, inputs.split(), names, name=names[0].upper(), **attributes)


def made(nodes: list[Any], shape: list[int], weights: dict[str, Any] | None = None) -> Any:
    """A checked float32 graph from ``x`` to ``y``."""
    info = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [info("x", FLOAT, shape)],
            [info("y", FLOAT, None)],
            [from_array(np.asarray(v), n) for n, v in (weights or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", 22)],
        ir_version=10,
    )
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    return model


def single(*values: Any) -> Any:
    return np.array(values, np.float32)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def every(model: Any) -> range:
    return range(len(model.graph.node))


def floats(model: Any) -> set[str]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {v.name for v in values if v.type.tensor_type.elem_type == FLOAT}


def peaks_of(model: Any, inputs: dict[str, Any]) -> dict[str, float]:
    """Largest magnitude of every float32 activation."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = floats(model)
    there = {o.name for o in model.graph.output}
    for part in model.graph.node:
        for name in part.output:
            if name in known - there:
                copy.graph.output.append(helper.make_tensor_value_info(name, FLOAT, None))
    found = HalfExecutor(copy).run(inputs) | inputs
    return {n: float(np.abs(v).max()) for n, v in found.items() if n in known}


def lowered(model: Any, keep: Collection[str] = (), nodes: Collection[int] | None = None) -> Any:
    """The graph with all nodes in half but some; casts stand where the type changes, outputs stay float32."""
    known = floats(model)
    weights = {t.name: t for t in model.graph.initializer}
    low: dict[str, str] = {}  # float32 names to their halves
    full: dict[str, str] = {}  # and the other way round
    born: set[str] = set()
    parts: list[Any] = []
    made_weights: list[Any] = []

    def cast(name: str, twins: dict[str, str], kind: int) -> str:
        if name not in twins:
            twins[name] = f"{name}:{'half' if kind == HALF else 'full'}"
            weight = weights.get(name)
            if weight is None:
                parts.append(helper.make_node("Cast", [name], [twins[name]], f"cast {twins[name]}", to=kind))
            else:
                with np.errstate(over="ignore"):
                    made_weights.append(from_array(to_array(weight).astype(np.float16), twins[name]))
        return twins[name]

    def is_float(name: str) -> bool:
        return name in known or (name in weights and weights[name].data_type == FLOAT)

    for index, source in enumerate(model.graph.node):
        part = onnx.NodeProto()
        part.CopyFrom(source)
        narrow = part.name not in keep and (nodes is None or index in nodes)
        for place, name in enumerate(source.input):
            if narrow and is_float(name) and name not in born:
                part.input[place] = cast(name, low, HALF)
            elif not narrow and name in born:
                part.input[place] = cast(name, full, FLOAT)
        parts.append(part)
        if narrow:
            born.update(n for n in part.output if n in known)
    outputs = [o.name for o in model.graph.output]
    for part in parts:
        part.output[:] = [f"{n}:born" if n in born and n in outputs else n for n in part.output]
        part.input[:] = [f"{n}:born" if n in born and n in outputs else n for n in part.input]
    parts += [
        helper.make_node("Cast", [f"{n}:born"], [n], f"cast {n}", to=FLOAT) for n in outputs if n in born
    ]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    copy.graph.node.extend(parts)
    copy.graph.initializer.extend(made_weights)
    del copy.graph.value_info[:]
    onnx.checker.check_model(copy, full_check=True)
    return copy


def off(model: Any, x: Any, keep: Collection[str] = ()) -> float:
    """How far half is from float32, relative to the largest value; infinite where one is not finite."""
    wanted = HalfExecutor(model).run({"x": x})["y"].astype(np.float64)
    found = HalfExecutor(lowered(model, keep)).run({"x": x})["y"].astype(np.float64)
    if not np.isfinite(found).all():
        return math.inf
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


#: A few roundings of half, one of which is 2^-11 = 0.0005.
RIGHT, WRONG = 0.005, 0.02


# A safe network


def network(gain: float = 1.0) -> Any:
    """Two convolutions, a shortcut, a gate and a product; ``gain`` multiplies one channel of the first."""
    first = draw(8, 3, 3, 3, seed=1, scale=0.2)
    first[5] *= gain
    nodes = [
        node("Conv", "x w0 b0", "a", pads=[1] * 4),
        node("Clip", "a zero most", "b"),
        node("Conv", "b w1", "c", pads=[1] * 4, group=8),
        node("Sigmoid", "c", "gate"),
        node("Mul", "b gate", "d"),
        node("Add", "d b", "e"),
        node("MaxPool", "e", "f", kernel_shape=[4, 4], strides=[4, 4]),
        node("Flatten", "f", "g"),
        node("Gemm", "g w2 b2", "h", transB=1),
        node("Softmax", "h", "y"),
    ]
    weights = {
        "w0": first,
        "b0": draw(8, seed=2),
        "zero": np.float32(0),
        "most": np.float32(3.4e38),  # how exporters write a bound that is none
        "w1": draw(8, 1, 3, 3, seed=3, scale=0.2),
        "w2": draw(4, 32, seed=4, scale=0.01),
        "b2": single(0.3, -0.2, 1e-12, 0.0),
    }
    return made(nodes, [1, 3, 8, 8], weights)


def test_nothing_in_a_safe_network_is_flagged() -> None:
    model, x = network(), draw(1, 3, 8, 8)
    assert hazards(model, every(model), peaks_of(model, {"x": x})) == {}
    assert off(model, x) < RIGHT
    assert HalfExecutor(lowered(model)).overflows({"x": x}) == []


def test_the_tiny_ensemble_is_safe_and_half_says_the_same(tiny_bundle: Path) -> None:
    from vsa_rt.golden import read_golden

    model = onnx.load_from_string((tiny_bundle / "graph.onnx").read_bytes())
    opened = Bundle.open(tiny_bundle)
    stored = read_golden(opened.read(opened.manifest.golden))
    inputs = {n.partition(".")[2]: v[:2] for n, v in stored.items() if n.startswith("input.")}
    kinds = {"Conv", "Relu", "Add", "Mul", "Sigmoid", "Clip", "MaxPool"}
    nodes = [i for i, n in enumerate(model.graph.node) if n.op_type in kinds]
    first = min(i for i in nodes if model.graph.node[i].op_type == "Conv")
    nodes = [i for i in nodes if i >= first]
    assert len(nodes) > 20
    assert hazards(model, nodes, peaks_of(model, inputs)) == {}
    executor = HalfExecutor(lowered(model, nodes=nodes))
    assert executor.overflows(inputs) == []
    assert len(executor.watch(inputs)) > 20
    found, wanted = executor.run(inputs), HalfExecutor(model).run(inputs)
    for name in ("small", "other"):
        relative = np.linalg.norm(found[name] - wanted[name]) / np.linalg.norm(wanted[name])
        # bf16, eight times as coarse, is let stray by 0.1 (test_precision.py).
        assert 1e-5 < relative < 0.1 / 8, name


# Ranges


def test_an_outlier_channel_and_what_reads_it_are_flagged() -> None:
    model, x = network(gain=60_000.0), draw(1, 3, 8, 8)
    peaks = peaks_of(model, {"x": x})
    assert peaks["a"] > LARGEST
    found = hazards(model, every(model), peaks)
    assert list(found) == ["A", "B", "C", "GATE", "D", "E", "F", "G", "H"], (
        "all that carry the channel, and the last product"
    )
    assert "a reached" in found["A"]
    assert "half ends at 65504" in found["A"]
    [first, *_] = HalfExecutor(lowered(model)).overflows({"x": x})
    assert (first.node, first.op) == ("A", "Conv")
    assert off(model, x) == math.inf
    assert off(model, x, keep=found) < RIGHT


def test_headroom_is_for_photographs_that_were_not_measured() -> None:
    """Measured on a dim picture everything fits; a bright one of the same scene overflows."""
    model, bright = network(gain=60_000.0), draw(1, 3, 8, 8)
    dim = bright / 12
    peaks = peaks_of(model, {"x": dim})
    assert max(peaks.values()) < LARGEST
    assert hazards(model, [0], peaks, limit=LARGEST) == {}
    assert "let through" in hazards(model, [0], peaks)["A"]
    assert HalfExecutor(lowered(model)).overflows({"x": dim}) == []
    assert HalfExecutor(lowered(model)).overflows({"x": bright})[0].node == "A"


def test_the_limit_is_where_it_says() -> None:
    model = made([node("Relu", "x", "y")], [1])
    limit = LARGEST / HEADROOM
    assert hazards(model, [0], {"x": limit, "y": limit}) == {}
    assert list(hazards(model, [0], {"x": limit * 1.001, "y": limit})) == ["Y"]
    assert list(hazards(model, [0], {"x": limit, "y": limit * 1.001})) == ["Y"]
    assert list(hazards(model, [0], {"x": 11.0, "y": 10.0}, limit=10.0)) == ["Y"]


@pytest.mark.parametrize(
    ("peaks", "says"),
    [
        ({"x": 1.0}, "no range was measured for y"),
        ({"y": 1.0}, "no range was measured for x"),
        ({"x": 1.0, "y": math.nan}, "y was not finite on the photographs"),
        ({"x": math.inf, "y": 1.0}, "x was not finite on the photographs"),
        ({"x": 1.0, "y": 2e-5}, "y never rose above 2e-05"),
    ],
)
def test_ranges_that_say_nothing_good_are_flagged(peaks: dict[str, float], says: str) -> None:
    model = made([node("Relu", "x", "y")], [1])
    assert says in hazards(model, [0], peaks)["Y"]


def test_a_tensor_of_subnormals_loses_its_precision() -> None:
    model = made([node("Mul", "x small", "tiny"), node("Mul", "tiny large", "y")], [64], {"small": np.float32(3e-4), "large": np.float32(1e4)})  # fmt: skip
    x = draw(64, scale=1e-4)
    found = hazards(model, every(model), peaks_of(model, {"x": x}))
    assert "never rose above" in found["TINY"]
    assert off(model, x) > WRONG
    assert off(model, x, keep=found) < RIGHT


def test_integers_need_no_range_and_other_nodes_are_not_judged() -> None:
    nodes = [
        node("Exp", "x", "large"),
        node("Cast", "large", "whole", to=onnx.TensorProto.INT64),
        node("Add", "whole one", "more"),
        node("Cast", "more", "y", to=FLOAT),
    ]
    model = made(nodes, [2], {"one": np.int64(1)})
    assert hazards(model, [2], {}) == {}
    peaks = peaks_of(model, {"x": single(1, 12)})
    assert list(hazards(model, [0, 1], peaks)) == ["LARGE", "WHOLE"]
    assert hazards(model, [], peaks) == {}


def test_a_node_without_a_name_goes_by_its_first_output() -> None:
    model = made([node("Relu", "x", "y")], [1])
    model.graph.node[0].name = ""
    assert list(hazards(model, [0], {})) == ["y"]


# Operators that need more than a range

AXIS = {"axes": np.array([1])}
#: Nodes, what they hold, an input that they spoil in half, and the nodes that are flagged for it.
SPOILT: dict[str, tuple[list[Any], dict[str, Any], Any, list[str]]] = {
    "lrn": ([node("LRN", "x", "y", size=5)], {}, np.full((1, 8, 2, 2), 300.0), ["Y"]),
    "squared distances": ([node("Mul", "x x", "d"), node("Mul", "d small", "y")], {"small": np.float32(1e-3)}, np.full((2, 3), 300.0), ["D", "Y"]),
    "power": ([node("Pow", "x two", "d"), node("Mul", "d small", "y")], {"two": np.float32(2), "small": np.float32(1e-3)}, np.full((2, 3), 300.0), ["D", "Y"]),
    "sum of squares": ([node("ReduceSumSquare", "x axes", "d"), node("Mul", "d small", "y")], AXIS | {"small": np.float32(1e-3)}, np.full((2, 64), 40.0), ["D", "Y"]),
    "l2": ([node("ReduceL2", "x axes", "y")], AXIS, np.full((2, 64), 40.0), ["Y"]),
    "l2 of small values": ([node("ReduceL2", "x axes", "y")], AXIS, np.full((2, 64), 1e-4), ["Y"]),
    "lp": ([node("LpNormalization", "x", "y")], {}, np.full((2, 64), 40.0), ["Y"]),
    "lp of small values": ([node("LpNormalization", "x", "y")], {}, np.full((2, 64), 1e-4), ["Y"]),
    "exponential": ([node("Exp", "x", "d"), node("Mul", "d small", "y")], {"small": np.float32(1e-3)}, np.full((2, 3), 12.0), ["D", "Y"]),
    "sum of exponentials": ([node("ReduceLogSumExp", "x axes", "y")], AXIS, np.full((2, 3), 12.0), ["Y"]),
    "division": ([node("Mul", "x x", "d"), node("Div", "x d", "y")], {}, np.full((2, 3), 1e-4), ["D", "Y"]),
    "reciprocal": ([node("Mul", "x x", "d"), node("Reciprocal", "d", "y")], {}, np.full((2, 3), 1e-4), ["D", "Y"]),
    "logarithm": ([node("Mul", "x x", "d"), node("Log", "d", "y")], {}, np.full((2, 3), 1e-4), ["D", "Y"]),
    "angle": ([node("Sin", "x", "y")], {}, np.full((2, 3), 1001.3), ["Y"]),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_what_half_spoils_is_flagged_and_right_in_float32(case: str) -> None:
    nodes, weights, values, wanted = SPOILT[case]
    x = values.astype(np.float32)
    model = made(nodes, list(x.shape), weights)
    found = hazards(model, every(model), peaks_of(model, {"x": x}))
    assert list(found) == wanted
    assert off(model, x) > WRONG
    assert off(model, x, keep=found) < RIGHT


#: The same operators where half holds them.
HARMLESS: dict[str, tuple[list[Any], dict[str, Any], Any]] = {
    "lrn": ([node("LRN", "x", "y", size=5)], {}, draw(1, 8, 2, 2, scale=3.0)),
    "square": ([node("Mul", "x x", "y")], {}, draw(2, 3)),
    "power": ([node("Pow", "x two", "y")], {"two": np.float32(2)}, draw(2, 3)),
    "sum of squares": ([node("ReduceSumSquare", "x axes", "y")], AXIS, draw(2, 16)),
    "l2": ([node("ReduceL2", "x axes", "y")], AXIS, draw(2, 16)),
    "lp": ([node("LpNormalization", "x", "y")], {}, draw(2, 16)),
    "exponential of logits": ([node("Exp", "x", "y")], {}, -np.abs(draw(2, 3))),
    "sum of exponentials": ([node("ReduceLogSumExp", "x axes", "y")], AXIS, draw(2, 3, scale=0.3)),
    "division by a constant": ([node("Div", "x three", "y")], {"three": np.float32(3)}, draw(2, 3)),
    "angle": ([node("Cos", "x", "y")], {}, draw(2, 3)),
    "different factors": ([node("Relu", "x", "d"), node("Mul", "x d", "y")], {}, np.full((2, 3), 60.0)),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_the_same_operators_pass_where_half_holds_them(case: str) -> None:
    nodes, weights, values = HARMLESS[case]
    x = values.astype(np.float32)
    model = made(nodes, list(x.shape), weights)
    assert hazards(model, every(model), peaks_of(model, {"x": x})) == {}
    assert off(model, x) < RIGHT


def test_coordinates_are_flagged() -> None:
    """Half rounds places by up to one part in 2048: on wide pictures that is between other pixels."""
    grid = np.random.default_rng(0).uniform(-0.9, 0.9, (1, 8, 8, 2)).astype(np.float32)
    nodes = [node("GridSample", "x grid", "y", mode="linear", align_corners=1)]
    x = np.tile(single(1, -1), (1, 1, 2, 1024)).reshape(1, 1, 2, 2048)
    model = made(nodes, [1, 1, 2, 2048], {"grid": grid})
    found = hazards(model, [0], peaks_of(model, {"x": x}))
    assert "one part in 2048" in found["Y"]
    assert off(model, x) > 0.1


def test_every_sensitive_operator_is_onnx_s_and_says_why() -> None:
    for name, (why, judge) in SENSITIVE.items():
        assert onnx.defs.has(name), name
        assert why
        assert callable(judge)


# Constants


def test_an_epsilon_that_vanishes_is_flagged() -> None:
    nodes = [node("Add", "x eps", "d"), node("Div", "x d", "y")]
    x = single([0.0, 0.5], [0.0, 2.0])
    model = made(nodes, [2, 2], {"eps": np.float32(1e-12)})
    peaks = peaks_of(model, {"x": x})
    found = hazards(model, every(model), peaks)
    assert "constant eps holds 1e-12, which is 0 in half" in found["D"]
    assert off(model, x) == math.inf, "0 over 0"
    assert off(model, x, keep=found) < RIGHT
    solid = made(nodes, [2, 2], {"eps": np.float32(1e-3)})
    assert "D" not in hazards(solid, every(solid), peaks)


@pytest.mark.parametrize("kind", ["Max", "Clip"])
def test_a_floor_that_vanishes_is_flagged(kind: str) -> None:
    nodes = [node(kind, "x floor", "d"), node("Reciprocal", "d", "y")]
    x = single(0.0, 1.0)
    model = made(nodes, [2], {"floor": np.float32(1e-12)})
    found = hazards(model, every(model), peaks_of(model, {"x": x}))
    assert "constant floor holds 1e-12, which is 0 in half" in found["D"]
    assert off(model, x) == math.inf
    assert off(model, x, keep=found) < RIGHT


def test_constants_beyond_half_are_flagged() -> None:
    """A mask of -1e9 becomes -inf; a row that is masked whole is then NaN instead of even."""
    nodes = [node("Mul", "x most", "m"), node("Softmax", "m", "y")]
    x = single([1.0, 1.0], [0.0, 1.0])
    model = made(nodes, [2, 2], {"most": np.float32(-1e9)})
    found = hazards(model, every(model), {"x": 1.0, "m": 1.0, "y": 1.0})
    assert found == {"M": "constant most holds -1e+09, which is infinite in half"}
    assert off(model, x) == math.inf


def test_weights_beyond_half_are_flagged() -> None:
    model = made([node("MatMul", "x w", "y")], [1, 2], {"w": single([1e5], [1.0])})
    x = single([1e-3, 1.0])
    found = hazards(model, [0], peaks_of(model, {"x": x}))
    assert found == {"Y": "constant w holds 1e+05, which is infinite in half"}
    assert off(model, x) == math.inf


def channel(kind: str) -> tuple[Any, Any, Any]:
    """A product of one output channel and two inputs, the way that each operator lays out its weights."""
    weights = single([3e-7, -1.4e-7])
    attributes: dict[str, Any] = {}
    x = single([8000.0, 7000.0])
    if kind == "Conv":
        weights, x = weights.reshape(1, 2, 1, 1), x.reshape(1, 2, 1, 1)
    elif kind == "ConvTranspose":
        weights, x = weights.reshape(2, 1, 1, 1), x.reshape(1, 2, 1, 1)
    elif kind == "MatMul":
        weights = weights.T.copy()
    else:
        attributes = {"transB": 1}
    return made([node(kind, "x w", "y", **attributes)], list(x.shape), {"w": weights}), x, weights


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "MatMul", "Gemm"])
def test_a_channel_of_subnormal_weights_is_flagged(kind: str) -> None:
    model, x, weights = channel(kind)
    found = hazards(model, [0], peaks_of(model, {"x": x}))
    assert "the largest of channel 0 is 3e-07" in found["Y"]
    assert "(1 of 1 channels)" in found["Y"]
    assert off(model, x) > WRONG
    model.graph.initializer[0].CopyFrom(from_array(weights * 1000, "w"))
    assert hazards(model, [0], peaks_of(model, {"x": x})) == {}
    assert off(model, x) < RIGHT


def test_the_channel_is_found_among_others() -> None:
    """Channels are the weights' rows, one of which is small beside its own output alone."""
    weights = draw(6, 4, 1, 1, scale=1e-3)
    weights[2] = 2e-6
    model = made([node("Conv", "x w", "y", group=2)], [1, 8, 1, 1], {"w": weights})
    found = hazards(model, [0], {"x": 1000.0, "y": 0.1})
    assert "the largest of channel 2 is 2e-06" in found["Y"]
    assert "(1 of 6 channels)" in found["Y"]
    assert hazards(model, [0], {"x": 1000.0, "y": 3.0}) == {}, "below half's rounding of the others"


def test_a_dead_channel_is_left_alone() -> None:
    """Half's rounding of the other channels is larger than all that it adds."""
    weights = draw(8, 3, 3, 3, scale=0.2)
    weights[3] = 1e-9
    weights[4] = 0.0
    model, x = made([node("Conv", "x w", "y")], [1, 3, 8, 8], {"w": weights}), draw(1, 3, 8, 8)
    assert hazards(model, [0], peaks_of(model, {"x": x})) == {}
    assert off(model, x) < RIGHT


def test_factors_per_channel_that_vanish_are_judged_by_what_they_scale() -> None:
    model = made([node("Mul", "x slope", "y")], [1, 2], {"slope": single(1.0, 2e-8)})
    assert hazards(model, [0], {"x": 8.0, "y": 8.0}) == {}
    assert "constant slope holds 2e-08" in hazards(model, [0], {"x": 8000.0, "y": 1e-4})["Y"]


def test_variances_that_vanish_are_flagged() -> None:
    def normalised(epsilon: float) -> Any:
        weights = {
            "scale": np.ones(2),
            "shift": np.zeros(2),
            "mean": np.zeros(2),
            "var": np.array([1.0, 2e-8]),
        }
        nodes = [node("BatchNormalization", "x scale shift mean var", "y", epsilon=epsilon)]
        return made(nodes, [1, 2, 1, 1], {n: v.astype(np.float32) for n, v in weights.items()})

    x = single(1.0, 1e-3).reshape(1, 2, 1, 1)
    model = normalised(1e-8)
    found = hazards(model, [0], peaks_of(model, {"x": x}))
    assert "variances var, rounded to half, move the result" in found["Y"]
    assert off(model, x) > WRONG
    assert off(model, x, keep=found) < RIGHT
    usual = normalised(1e-5)
    assert hazards(usual, [0], peaks_of(usual, {"x": x})) == {}
    assert off(usual, x) < RIGHT


def test_scales_of_quantisation_that_half_coarsens_are_flagged() -> None:
    nodes = [node("DequantizeLinear", "q s", "w", axis=0), node("MatMul", "x w", "y")]
    whole = np.full((2, 1), 100, np.int8)

    def quantised(scale: float) -> Any:
        return made(nodes, [1, 2], {"q": whole, "s": single(scale, scale)})

    model, x = quantised(2.5e-7), np.full((1, 2), 1000, np.float32)
    found = hazards(model, every(model), peaks_of(model, {"x": x}))
    assert "scale s holds 2.5e-07" in found["W"]
    assert off(model, x) > WRONG
    usual = quantised(1e-3)
    assert hazards(usual, every(usual), peaks_of(usual, {"x": x})) == {}
