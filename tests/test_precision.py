"""A lowered graph is the same graph with its precision written into its tensors' types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Precision
from vsa_rt.doctor import describe_machine
from vsa_rt.errors import UsageError

onnx = pytest.importorskip("onnx", reason="graphs are lowered with onnx")
pytest.importorskip("ml_dtypes", reason="bf16 weights are made with ml_dtypes")

from vsa_rt.export.lowering.lower import lower
from vsa_rt.export.skeleton import skeleton
from vsa_rt.plan import Plan

TAPS = ["small", "other"]


def lower_to_bf16(graph: Any, taps: list[str], exact: dict[str, str] | None = None) -> Any:
    """Every backbone in bf16."""
    return lower(graph, Plan.uniform(taps, Precision.BF16), exact)


BF16, FLOAT = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT


def share_of_bf16(model: Any) -> float:
    """Share of the convolutions whose weights are typed bfloat16."""
    types = {t.name: t.data_type for t in model.graph.initializer}
    kinds = [types.get(n.input[1]) for n in model.graph.node if n.op_type == "Conv"]
    return kinds.count(onnx.TensorProto.BFLOAT16) / len(kinds)


@pytest.fixture
def graph(tiny_bundle: Path) -> Any:
    return onnx.load_from_string((tiny_bundle / "graph.onnx").read_bytes())


@pytest.fixture
def lowered(graph: Any) -> Any:
    return lower_to_bf16(graph, TAPS)


def types(model: Any) -> dict[str, int]:
    """Element type of every tensor."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    found = {v.name: v.type.tensor_type.elem_type for v in values}
    return found | {t.name: t.data_type for t in inferred.initializer}


def signature(model: Any) -> list[tuple[str, int, list[Any]]]:
    return [
        (
            v.name,
            v.type.tensor_type.elem_type,
            [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim],
        )
        for v in (*model.graph.input, *model.graph.output)
    ]


def test_inputs_outputs_and_purpose_stay(graph: Any, lowered: Any) -> None:
    assert signature(lowered) == signature(graph)
    assert [(p.key, p.value) for p in lowered.metadata_props] == [
        (p.key, p.value) for p in graph.metadata_props
    ]
    onnx.checker.check_model(lowered, full_check=True)


def test_the_source_is_not_changed(graph: Any) -> None:
    before = graph.SerializeToString()
    lower_to_bf16(graph, TAPS)
    assert graph.SerializeToString() == before
    assert lower(graph, Plan.uniform(TAPS, Precision.FP32)) is graph


def test_every_convolution_is_bf16_and_no_other_weight_is_lost(graph: Any, lowered: Any) -> None:
    found = types(lowered)
    convolutions = [n for n in lowered.graph.node if n.op_type == "Conv"]
    assert len(convolutions) == sum(n.op_type == "Conv" for n in graph.graph.node) > 10
    for node in convolutions:
        assert {found[name] for name in (*node.input, *node.output) if name} == {BF16}
    assert (share_of_bf16(lowered), share_of_bf16(graph)) == (1.0, 0.0)


def test_pixels_pooling_and_head_stay_in_float32(graph: Any, lowered: Any) -> None:
    found = types(lowered)
    pools = [n for n in lowered.graph.node if n.op_type in ("ReduceMean", "GlobalAveragePool")]
    assert pools
    for node in pools:
        assert found[node.output[0]] == FLOAT
    made_by = {name: n for n in lowered.graph.node for name in n.output}
    for name in ("features", "logits", "scores"):
        node = made_by[name]
        assert all(found[n] != BF16 for n in (*node.input, *node.output) if n), name
    first = [n for n in lowered.graph.node if any(i.name in n.input for i in lowered.graph.input)]
    assert {n.op_type for n in first} == {"Cast"}
    assert {found[n.output[0]] for n in first} == {FLOAT}


def test_weights_are_rounded_to_nearest_even(graph: Any, lowered: Any) -> None:
    before = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    twins = [t for t in lowered.graph.initializer if t.data_type == BF16]
    assert twins
    for twin in twins:
        source = before[twin.name.removesuffix("_bf16")]
        bits = source.astype(np.float32).view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(twin).astype(np.float32), rounded)


def test_no_cast_stands_where_none_is_needed(lowered: Any) -> None:
    """A cast to bf16 of what was just cast from it would round for nothing and cost time."""
    made_by = {name: n for n in lowered.graph.node for name in n.output}
    found = types(lowered)
    for node in lowered.graph.node:
        if node.op_type == "Cast":
            source = made_by.get(node.input[0])
            assert found[node.input[0]] != found[node.output[0]], node.name
            if source is not None and source.op_type == "Cast":
                assert found[source.input[0]] != found[node.output[0]], node.name
    names = [name for node in lowered.graph.node for name in node.output]
    assert len(names) == len(set(names))


def test_a_graph_whose_names_look_lowered_already_is_lowered_rightly(graph: Any) -> None:
    """A tensor may be called like the twin that lowering would make."""
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    node = next(n for n in model.graph.node if n.op_type == "Conv")
    weight, old = node.input[1], node.output[0]
    for other in model.graph.node:
        other.input[:] = [f"{weight}_bf16" if name == old else name for name in other.input]
        other.output[:] = [f"{weight}_bf16" if name == old else name for name in other.output]
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    names = [n for node in lower_to_bf16(model, TAPS).graph.node for n in node.output]
    assert len(names) == len(set(names))


@pytest.fixture
def session(lowered: Any, tiny_bundle: Path, tmp_path: Path) -> Iterator[Any]:
    pytest.importorskip("openvino", reason="OpenVINO runs bf16 graphs on a CPU")
    from vsa_rt.engines import table
    from vsa_rt.engines.backend import OpenOptions
    from vsa_rt.engines.compiling import CompileOptions, Source
    from vsa_rt.engines.select import input_specs, output_specs

    manifest = Bundle.open(tiny_bundle).manifest
    backend = table.backend("openvino")
    made = backend.build(Source(lowered.SerializeToString()), tmp_path, "cpu", CompileOptions(4))
    files = [(tmp_path / name).read_bytes() for name in made.files]
    options = OpenOptions(max_batch=4, threads=2)
    opened = backend.open(files, input_specs(manifest), output_specs(manifest), options)
    yield opened
    opened.close()


def golden(tiny_bundle: Path) -> dict[str, dict[str, NDArray[Any]]]:
    from vsa_rt.golden import read_golden

    opened = Bundle.open(tiny_bundle)
    found: dict[str, dict[str, NDArray[Any]]] = {"input": {}, "tap": {}}
    stored = read_golden(opened.read(opened.manifest.golden))
    stored.pop("labels")
    for name, value in ((k, v[:4]) for k, v in stored.items()):
        kind, _, inner = name.partition(".")
        found[kind][inner] = value
    return found


def test_openvino_runs_it_close_to_float32(session: Any, tiny_bundle: Path) -> None:
    stored = golden(tiny_bundle)
    outputs = session.slots[0].run(stored["input"])
    for name, wanted in stored["tap"].items():
        relative = np.linalg.norm(outputs[name] - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
        assert relative.max() < 0.1, name
    # bf16 was really used: float32 would agree to seven digits.
    assert np.abs(outputs["features"] - stored["tap"]["features"]).max() > 1e-4


def test_openvino_really_computes_in_bf16(session: Any, tiny_bundle: Path) -> None:
    if not {"BF16", "AMX BF16"} & set(describe_machine().instruction_sets):
        pytest.skip("this processor has no bf16 instructions")
    assert session.achieved == 1.0
    engines = {(e.target, e.precision): e for e in Bundle.open(tiny_bundle).manifest.engines}
    assert engines["openvino:cpu", "bf16"].achieved == 1.0


def test_the_fp32_engine_really_computes_in_float32(tiny_bundle: Path) -> None:
    """OpenVINO's own default on such processors is bf16."""
    engines = {(e.target, e.precision): e for e in Bundle.open(tiny_bundle).manifest.engines}
    assert engines["openvino:cpu", "fp32"].achieved == 1.0
    assert engines["openvino:cpu", "fp32"].gate.worst["features"] < 1e-4


# Small graphs, written by hand


def made(nodes: list[Any], weights: dict[str, Any], outputs: dict[str, list[int]], **more: Any) -> Any:
    """A checked graph that reads ``x`` ``(N, 3, 8, 8)``; outputs are named with their shape behind the batch."""
    inputs = {"x": [3, 8, 8]} | more
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "small",
            [onnx.helper.make_tensor_value_info(n, FLOAT, ["n", *s]) for n, s in inputs.items()],
            [onnx.helper.make_tensor_value_info(n, FLOAT, ["n", *s]) for n, s in outputs.items()],
            [onnx.numpy_helper.from_array(v, n) for n, v in weights.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 22)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def values(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def norm(channels: int, name: str) -> dict[str, Any]:
    """Statistics that a fold in single precision would spoil: the mean almost takes the shift away."""
    rng = np.random.default_rng(5)
    scale, variance = rng.uniform(1, 2, channels), rng.uniform(0.2, 0.4, channels)
    mean = rng.uniform(900, 1100, channels)
    found = {"scale": scale, "shift": mean * scale / np.sqrt(variance + 1e-3), "mean": mean, "var": variance}
    return {f"{name}_{k}": v.astype(np.float32) for k, v in found.items()}


NORM = "{0}_scale {0}_shift {0}_mean {0}_var"


def preactivation(names: dict[str, str] | None = None) -> Any:
    """A unit that adds, and the next one's norm behind the addition; tensors may be called otherwise."""
    weights = {"w0": values(4, 3, 3, 3), "w1": values(4, 4, 1, 1, seed=1), "axes": np.array([2, 3])}
    nodes = [
        node("Conv", "x w0", "c0", pads=[1] * 4),
        node("Conv", "c0 w1", "c1"),
        node("Add", "c0 c1", "sum"),
        node("BatchNormalization", "sum " + NORM.format("bn"), "normed", epsilon=1e-3),
        node("Relu", "normed", "relu"),
        node("ReduceMean", "relu axes", "f", keepdims=0),
    ]
    model = made(nodes, weights | norm(4, "bn"), {"f": [4]})
    for old, new in (names or {}).items():
        for part in (*model.graph.node, *model.graph.initializer, *model.graph.output):
            if isinstance(part, onnx.NodeProto):
                part.input[:] = [new if n == old else n for n in part.input]
                part.output[:] = [new if n == old else n for n in part.output]
            elif part.name == old:
                part.name = new
    onnx.checker.check_model(model, full_check=True)
    return model


def bf16(array: Any) -> Any:
    """Rounded to nearest even, as float32."""
    import ml_dtypes

    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


def folded(model: Any, kind: type) -> tuple[Any, Any]:
    """Slope and shift of the norm, folded in some precision."""
    known = {t.name: onnx.numpy_helper.to_array(t).astype(kind) for t in model.graph.initializer}
    slope = known["bn_scale"] / np.sqrt(known["bn_var"] + kind(np.float32(1e-3)))
    return slope, known["bn_shift"] - known["bn_mean"] * slope


def test_a_norm_behind_an_addition_is_a_product_and_a_sum() -> None:
    model = preactivation()
    low = lower_to_bf16(model, ["f"])
    kinds = [n.op_type for n in low.graph.node]
    assert kinds == ["Cast", "Conv", "Conv", "Add", "Mul", "Add", "Relu", "Cast", "ReduceMean"]
    product, total = low.graph.node[4:6]
    found = types(low)
    assert {found[n] for part in (product, total) for n in (*part.input, *part.output)} == {BF16}
    assert product.input[0] == "sum"
    assert total.output[0] == "normed"
    stored = {t.name: onnx.numpy_helper.to_array(t).astype(np.float32) for t in low.graph.initializer}
    slope, shift = (stored[part.input[1]] for part in (product, total))
    assert slope.shape == shift.shape == (4, 1, 1)
    double, single = folded(model, np.float64), folded(model, np.float32)
    np.testing.assert_array_equal(slope.ravel(), bf16(double[0].astype(np.float32)))
    np.testing.assert_array_equal(shift.ravel(), bf16(double[1].astype(np.float32)))
    assert (shift.ravel() != bf16(single[1])).any(), "statistics on which the precision of the fold shows"
    assert not [name for name in stored if name.startswith("bn_")]
    assert [n.op_type for n in model.graph.node].count("BatchNormalization") == 1


def test_a_norm_of_vectors_is_left_alone() -> None:
    """Its slope would need another shape; it stays in float32 between two casts."""
    nodes = [
        node("Flatten", "x", "flat"),
        node("MatMul", "flat w", "h"),
        node("BatchNormalization", "h " + NORM.format("bn"), "normed"),
        node("Relu", "normed", "relu"),
        node("MatMul", "relu v", "f"),
    ]
    weights = {"w": values(192, 4), "v": values(4, 5, seed=1)} | norm(4, "bn")
    low = lower_to_bf16(made(nodes, weights, {"f": [5]}), ["f"])
    [batch_norm] = [n for n in low.graph.node if n.op_type == "BatchNormalization"]
    found = types(low)
    assert {found[n] for n in (*batch_norm.input, *batch_norm.output)} == {FLOAT}
    assert list(batch_norm.input[1:]) == NORM.format("bn").split()
    products = [n for n in low.graph.node if n.op_type == "MatMul"]
    assert {found[n] for p in products for n in (*p.input, *p.output)} == {BF16}


def test_a_norm_may_be_a_tap_itself() -> None:
    nodes = [
        node("Conv", "x w0", "c0", kernel_shape=[8, 8]),
        node("BatchNormalization", "c0 " + NORM.format("bn"), "tap"),
    ]
    model = made(nodes, {"w0": values(4, 3, 8, 8)} | norm(4, "bn"), {"tap": [4, 1, 1]})
    low = lower_to_bf16(model, ["tap"])
    assert [n.op_type for n in low.graph.node] == ["Cast", "Conv", "Mul", "Add", "Cast"]
    assert signature(low) == signature(model)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("c0", "normed_slope"),
        ("c1", "normed_shift"),
        ("relu", "normed_scaled"),
        ("f", "normed_slope"),
        ("w1", "normed_slope"),
        ("w1", "w0_bf16"),
        ("relu", "w0_bf16"),
        ("f", "relu_fp32"),
        ("c0", "x_bf16"),
        ("f", "normed_slope_bf16"),
    ],
)
def test_names_that_lowering_would_give_may_be_taken(old: str, new: str) -> None:
    """By a tensor, a weight or a tap; what is computed does not change."""
    plain, low = lower_to_bf16(preactivation(), ["f"]), preactivation({old: new})
    low = lower_to_bf16(low, [new if old == "f" else "f"])
    assert [n.op_type for n in low.graph.node] == [n.op_type for n in plain.graph.node]
    names = [name for n in low.graph.node for name in n.output] + [t.name for t in low.graph.initializer]
    assert len(names) == len(set(names))

    def weights(model: Any) -> list[bytes]:
        known = {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in model.graph.initializer}
        return [known[n] for part in model.graph.node for n in part.input if n in known]

    assert weights(low) == weights(plain)


@pytest.mark.parametrize("name", ["w0_bf16", "x_bf16", "normed_slope"])
def test_names_that_lowering_would_give_may_be_an_unused_inputs(name: str) -> None:
    """A file of somebody else's may take an input that nothing reads."""
    model = preactivation()
    model.graph.input.append(onnx.helper.make_tensor_value_info(name, FLOAT, ["n", 2]))
    onnx.checker.check_model(model, full_check=True)
    low = lower_to_bf16(model, ["f"])
    assert [i.name for i in low.graph.input] == ["x", name]


def test_names_that_lowering_would_give_may_be_a_branchs() -> None:
    """A graph inside a node has names of its own, and may not repeat those around it."""
    branch = [
        onnx.helper.make_graph(
            [node(kind, "f", "w0_bf16")],
            kind,
            [],
            [onnx.helper.make_tensor_value_info("w0_bf16", FLOAT, None)],
        )
        for kind in ("Relu", "Neg")
    ]
    model = preactivation()
    model.graph.node.append(node("If", "yes", "g", then_branch=branch[0], else_branch=branch[1]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("g", FLOAT, ["n", 4]))
    onnx.checker.check_model(model, full_check=True)
    assert share_of_bf16(lower_to_bf16(model, ["f"])) == 1.0


def test_what_cancels_keeps_its_own_nodes_in_float32() -> None:
    """Between the tap that it reads and its own; what comes before and after is lowered."""
    nodes = [
        node("Conv", "x w0", "c0", kernel_shape=[8, 8]),
        node("Flatten", "c0", "read"),
        node("Sub", "read mean", "centred"),
        node("MatMul", "centred whitening", "whitened"),
        node("Clip", "whitened low high", "exact"),
        node("MatMul", "exact dense", "dark"),
        node("Sigmoid", "dark", "after"),
    ]
    weights = {
        "w0": values(4, 3, 8, 8),
        "mean": values(4, seed=1),
        "whitening": values(4, 5, seed=2),
        "dense": values(5, 6, seed=3),
        "low": np.array(-2, np.float32),
        "high": np.array(2, np.float32),
    }
    model = made(nodes, weights, {"read": [4], "exact": [5], "after": [6]})
    taps = ["read", "exact", "after"]
    between = ("mean", "centred", "whitening", "whitened", "low", "high", "exact")
    plain, low = (types(lower_to_bf16(model, taps, exact)) for exact in (None, {"exact": "read"}))
    assert {low[name] for name in between} == {FLOAT}
    assert plain["centred"] == plain["whitened"] == BF16
    for found in (plain, low):
        assert found["c0"] == found["w0_bf16"] == found["dark"] == found["dense_bf16"] == BF16
        assert {found[tap] for tap in taps} == {FLOAT}
    # Lowered, not just missing: the exact part's weights have no twin.
    assert not {"mean_bf16", "whitening_bf16"} & low.keys()
    assert {"mean_bf16", "whitening_bf16"} <= plain.keys()


# Graphs without their weights


def heavy(rows: int = 2048) -> Any:
    """A product with a large matrix, and a reshape whose target is a weight too."""
    nodes = [
        node("Flatten", "x", "flat"),
        node("MatMul", "flat w", "h"),
        node("Reshape", "h target", "maps"),
        node("Conv", "maps w0", "c0"),
        node("ReduceMean", "c0 axes", "f", keepdims=0),
    ]
    weights = {
        "w": values(192, rows),
        "target": np.array([-1, 2, 32, 32]),
        "w0": values(4, 2, 1, 1),
        "axes": np.array([2, 3]),
    }
    return made(nodes, weights, {"f": [4]})


def test_a_skeleton_holds_no_large_weight_and_shapes_are_still_known() -> None:
    model = heavy()
    before = model.SerializeToString()
    bare = skeleton(model)
    assert model.SerializeToString() == before
    assert len(before) > 192 * 2048 * 4
    assert bare.ByteSize() < 2000
    assert [t.name for t in bare.graph.initializer] == ["target", "w0", "axes"]
    assert [
        (i.name, [d.dim_value or d.dim_param for d in i.type.tensor_type.shape.dim]) for i in bare.graph.input
    ] == [
        ("x", ["n", 3, 8, 8]),
        ("w", [192, 2048]),
    ]
    onnx.checker.check_model(bare, full_check=True)

    def shapes(of: Any) -> dict[str, list[Any]]:
        inferred = onnx.shape_inference.infer_shapes(of).graph.value_info
        return {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred}

    assert shapes(bare) == shapes(model)
    assert shapes(bare)["maps"][1:] == [2, 32, 32]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda m: m.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values(193, 2048), "w")),
        lambda m: m.graph.initializer[3].CopyFrom(onnx.numpy_helper.from_array(np.array([2, 9]), "axes")),
        lambda m: m.graph.node[1].input.__setitem__(1, "absent"),
        lambda m: m.graph.node.append(m.graph.node[1]),
        lambda m: m.graph.output[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 5),
    ],
    ids=["large-weight", "axes", "absent-weight", "node-twice", "output"],
)
def test_an_invalid_graph_is_still_found_invalid(break_it: Any) -> None:
    model = heavy()
    lower_to_bf16(model, ["f"])
    break_it(model)
    with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
        onnx.checker.check_model(model, full_check=True)
    with pytest.raises((onnx.checker.ValidationError, onnx.shape_inference.InferenceError)):
        onnx.checker.check_model(skeleton(model), full_check=True)
    with pytest.raises(UsageError):
        lower_to_bf16(model, ["f"])


# Weights that are only moved


def test_weights_that_are_only_moved_about_are_moved_at_the_export(wired_bundle: Path) -> None:
    """The signature joins and reshapes its matrices in every call; the graph holds them joined."""
    moves = {"Concat", "Reshape", "Transpose", "Slice", "Split", "Squeeze", "Unsqueeze", "Identity"}
    for name, wanted in (("graph.onnx", FLOAT), ("graph.bf16.onnx", BF16)):
        graph = onnx.load_from_string((wired_bundle / name).read_bytes()).graph
        known = {t.name: t for t in graph.initializer}
        still = [n.name for n in graph.node if n.op_type in moves and all(i in known for i in n.input if i)]
        assert still == []
        used = {i for n in graph.node for i in n.input}
        assert known.keys() <= used
        # Both directions' gates, and every tap of every convolution: one matrix each, in the graph's own type.
        found = {tuple(t.dims): t.data_type for t in graph.initializer}
        for shape in ((96, 2 * 3 * 1024), (2 * 1024, 512 * (2 + 3 + 4 + 5))):
            kind = found.get(shape, found.get(shape[::-1]))
            assert kind == wanted, (name, shape, sorted(found))
