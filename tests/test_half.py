"""The executor that really rounds to half: what a GPU that stores halves would give, seen on a CPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsa_rt.bundle import Bundle
from vsa_rt.errors import UsageError

onnx = pytest.importorskip("onnx", reason="graphs are ONNX's")
torch = pytest.importorskip("torch", reason="the executor computes with torch")
pytest.importorskip("ml_dtypes", reason="bfloat16 on the host is ml_dtypes'")

from vsa_rt.export.half import HalfExecutor, Overflow

helper = onnx.helper
FLOAT, HALF, BF16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
#: Half an ulp of 1 in half precision (IEEE 754-2019, table 3.5).
ROUNDING = 2.0**-11


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(
        kind, inputs.split(), outputs.split(), name=f"the_{outputs.split()[0]}", **attributes
    )


def made(
    nodes: list[Any],
    weights: dict[str, Any] | None = None,
    kind: int = HALF,
    result: int | None = None,
    rank: int = 1,
) -> Any:
    """A checked graph from ``x``, of some rank, to ``y``, both of some type."""
    info = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [info("x", kind, [f"n{i}" for i in range(rank)])],
            [info("y", kind if result is None else result, None)],
            [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in (weights or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", 22)],
        ir_version=10,
    )
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    return model


def half(*values: Any) -> Any:
    return np.array(values, np.float16)


def single(*values: Any) -> Any:
    return np.array(values, np.float32)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Any:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def run(model: Any, x: Any) -> Any:
    return HalfExecutor(model).run({"x": x})["y"]


# Rounding


def test_300_squared_is_infinite() -> None:
    found = run(made([node("Mul", "x x", "y")]), half(255, 256, 300))
    assert found.dtype == np.float16
    assert found.tolist() == [65024.0, math.inf, math.inf]
    full = run(made([node("Mul", "x x", "y")], kind=FLOAT), single(300))
    assert full.tolist() == [90_000.0]


def test_every_result_is_rounded_to_nearest_even_before_it_is_read() -> None:
    """Between 2048 and 4096 halves are 2 apart: 2049 and 2051 are ties, which go to 2048 and 2052."""
    chain = [node("Add", "x one", "more"), node("Sub", "more x", "y")]
    odd = np.array([1, 3, 1.5], np.float16)
    assert run(made(chain, {"one": odd}), half(2048, 2048, 2048)).tolist() == [0.0, 4.0, 2.0]
    kept = run(made(chain, {"one": odd.astype(np.float32)}, FLOAT), np.full(3, 2048, np.float32))
    assert kept.tolist() == [1.0, 3.0, 1.5]


def test_a_cast_to_half_rounds_and_overflows_where_the_standard_says() -> None:
    """65520 lies midway between 65504 and what would come next (IEEE 754-2019, 4.3.1)."""
    model = made([node("Cast", "x", "y", to=HALF)], kind=FLOAT, result=HALF)
    found = run(model, single(65519.9, 65520, -65520, 2.0**-25, 1.1 * 2.0**-25))
    assert found.tolist() == [65504.0, math.inf, -math.inf, 0.0, 2.0**-24]


@pytest.mark.parametrize("kind", ["Conv", "MatMul", "Gemm"])
def test_sums_inside_one_node_are_float32(kind: str) -> None:
    """Summed in half, the first would be infinite on the way and the second would stop at 2048."""
    terms = np.ones((4096, 2), np.float16)
    terms[:, 0] = 0
    terms[:4, 0] = [60_000, 60_000, -60_000, -30_000]
    if kind == "Conv":
        model = made(
            [node("Conv", "x w", "y")], {"w": np.ascontiguousarray(terms.T)[:, :, None, None]}, rank=4
        )
        found = run(model, np.ones((1, 4096, 1, 1), np.float16))
    else:
        found = run(made([node(kind, "x w", "y")], {"w": terms}, rank=2), np.ones((1, 4096), np.float16))
    assert found.ravel().tolist() == [30_000.0, 4096.0]


def test_a_sum_that_half_cannot_hold_is_infinite() -> None:
    model = made([node("MatMul", "x w", "y")], {"w": np.full((2, 1), 40_000, np.float16)}, rank=2)
    assert run(model, np.ones((1, 2), np.float16)).tolist() == [[math.inf]]


def test_bfloat16_is_rounded_to_its_eight_bits() -> None:
    import ml_dtypes

    chain = [
        node("Cast", "x", "low", to=BF16),
        node("Mul", "low low", "sq"),
        node("Cast", "sq", "y", to=FLOAT),
    ]
    found = run(made(chain, kind=FLOAT), single(300, 1.01))
    wanted = single(300, 1.01).astype(ml_dtypes.bfloat16).astype(np.float32)
    assert found.tolist() == (wanted**2).astype(ml_dtypes.bfloat16).astype(np.float32).tolist()
    assert 80_000 < found[0] < 100_000


# Against PyTorch and ONNX Runtime


def small_network() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8),
            torch.nn.Hardswish(),
            torch.nn.MaxPool2d(3, 2, 1),
            torch.nn.Conv2d(8, 12, 1),
            torch.nn.Sigmoid(),
            torch.nn.AvgPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(48, 5),
        ).requires_grad_(False)


def small_graph(network: Any, dtype: Any) -> Any:
    weights = {f"{n}": p.numpy().astype(dtype) for n, p in network.named_parameters()}
    nodes = [
        node("Conv", "x 0.weight 0.bias", "a", strides=[2, 2], pads=[1] * 4),
        node("Relu", "a", "b"),
        node("Conv", "b 2.weight 2.bias", "c", pads=[2] * 4, dilations=[2, 2], group=8),
        node("HardSwish", "c", "d"),
        node("MaxPool", "d", "e", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        node("Conv", "e 5.weight 5.bias", "f"),
        node("Sigmoid", "f", "g"),
        node("AveragePool", "g", "h", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "h", "i"),
        node("Gemm", "i 9.weight 9.bias", "y", transB=1),
    ]
    return made(nodes, weights, HALF if dtype == np.float16 else FLOAT, rank=4)


def test_it_agrees_with_torch_in_half() -> None:
    network, x = small_network(), draw(2, 3, 16, 16, scale=2.0)
    wanted = network.half()(torch.from_numpy(x).half()).float().numpy()
    executor = HalfExecutor(small_graph(small_network(), np.float16).SerializeToString())
    found = executor.run({"x": x.astype(np.float16)})["y"].astype(np.float32)
    exact = run(small_graph(small_network(), np.float32), x)
    # Ten nodes, each rounded once; torch's kernels may round inside as well.
    assert np.abs(found - wanted).max() < 4 * ROUNDING * np.abs(wanted).max()
    assert 0 < np.abs(found - exact).max() < 10 * ROUNDING * np.abs(exact).max()


SIGNED = [
    ("Conv", (2, 6, 11, 9), {"w": (4, 3, 3, 2)}, {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("Conv", (1, 3, 12, 11), {"w": (4, 3, 3, 3)}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", (1, 3, 12, 11), {"w": (4, 3, 4, 4)}, {"auto_pad": "SAME_LOWER", "strides": [3, 1]}),
    ("Conv", (1, 3, 12, 11), {"w": (4, 3, 3, 3), "b": (4,)}, {"auto_pad": "VALID"}),
    ("Conv", (1, 3, 9), {"w": (4, 3, 3)}, {"pads": [1, 1]}),
    ("Conv", (1, 2, 5, 6, 4), {"w": (3, 2, 2, 3, 2)}, {}),
    ("ConvTranspose", (1, 4, 5, 6), {"w": (4, 3, 3, 3), "b": (6,)}, {"group": 2, "strides": [2, 2], "pads": [1] * 4}),
    ("ConvTranspose", (1, 4, 5, 6), {"w": (4, 3, 3, 3)}, {"strides": [2, 2], "pads": [0, 0, 1, 1]}),
    ("MaxPool", (2, 3, 11, 9), {}, {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    ("MaxPool", (1, 3, 10, 10), {}, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", (2, 3, 11, 9), {}, {"kernel_shape": [3, 3], "pads": [1, 1, 0, 1]}),
    ("AveragePool", (1, 3, 9, 9), {}, {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}),
    ("AveragePool", (1, 3, 10, 10), {}, {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ("LRN", (1, 7, 3, 2), {}, {"size": 5, "alpha": 2.0, "beta": 0.6, "bias": 1.5}),
    ("LRN", (3, 6, 2, 2), {}, {"size": 3, "alpha": 1.0}),
    ("LpNormalization", (3, 7), {}, {"p": 2}),
    ("LpNormalization", (3, 7), {}, {"p": 1, "axis": 0}),
    ("GridSample", (1, 2, 6, 5), {"w": (1, 4, 3, 2)}, {"mode": "linear", "align_corners": 1}),
    ("GridSample", (1, 2, 6, 5), {"w": (1, 4, 3, 2)}, {"mode": "linear", "padding_mode": "border"}),
    ("GridSample", (1, 2, 6, 5), {"w": (1, 4, 3, 2)}, {"mode": "nearest"}),
    ("GlobalAveragePool", (2, 3, 5, 4), {}, {}),
    ("LayerNormalization", (2, 5, 6), {"w": (6,), "b": (6,)}, {}),
    ("InstanceNormalization", (2, 3, 6), {"w": (3,), "b": (3,)}, {}),
    ("Softmax", (2, 6), {}, {}),
    ("Gelu", (2, 6), {}, {}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "shape", "weights", "attributes"), SIGNED, ids=[f"{c[0]}-{i}" for i, c in enumerate(SIGNED)]
)
def test_float32_nodes_agree_with_onnx_runtime(
    kind: str, shape: tuple[int, ...], weights: dict[str, tuple[int, ...]], attributes: dict[str, Any]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="another implementation to compare with")
    values = {n: draw(*s, seed=i + 1) for i, (n, s) in enumerate(weights.items())}
    model = made([node(kind, " ".join(["x", *weights]), "y", **attributes)], values, FLOAT, rank=len(shape))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = draw(*shape, seed=9)
    [wanted] = session.run(None, {"x": x})
    found = run(model, x)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"])
@pytest.mark.parametrize("axes", [[1], [0, 2], None])
@pytest.mark.parametrize("keep", [0, 1])
def test_float32_reductions_agree_with_onnx_runtime(kind: str, axes: list[int] | None, keep: int) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="another implementation to compare with")
    weights = {} if axes is None else {"axes": np.array(axes)}
    model = made([node(kind, " ".join(["x", *weights]), "y", keepdims=keep)], weights, FLOAT, rank=3)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = draw(2, 3, 4)
    [wanted] = session.run(None, {"x": x})
    found = run(model, x)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def pixels(model: Any, count: int) -> dict[str, Any]:
    """Smooth pictures, and whatever else a graph takes."""
    rng = np.random.default_rng(3)
    found: dict[str, Any] = {}
    for value in model.graph.input:
        shape = [count, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])]
        if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
            steps = rng.integers(-2, 3, shape).cumsum(axis=1).cumsum(axis=2)
            found[value.name] = (128 + steps).clip(0, 255).astype(np.uint8)
        else:
            found[value.name] = np.abs(rng.standard_normal(shape)).astype(np.float32)
    return found


@pytest.mark.parametrize("bundle", ["tiny_bundle", "wired_bundle"])
def test_whole_float32_graphs_agree_with_onnx_runtime(bundle: str, request: pytest.FixtureRequest) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="another implementation to compare with")
    data = (request.getfixturevalue(bundle) / "graph.onnx").read_bytes()
    inputs = pixels(onnx.load_from_string(data), 2)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    executor = HalfExecutor(data)
    found = executor.run(inputs)
    assert list(found) == names
    for name, wanted in zip(names, session.run(names, inputs), strict=True):
        assert found[name].dtype == wanted.dtype
        np.testing.assert_allclose(
            found[name], wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max(), err_msg=name
        )
    assert executor.watch(inputs) == [], "nothing in it is typed half"
    assert executor.overflows(inputs) == []


def test_the_bf16_graph_computes_in_bf16(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    paths = {g.precision: tiny_bundle / g.path for g in manifest.graphs}
    full, low = (paths[precision].read_bytes() for precision in ("fp32", "bf16"))
    inputs = pixels(onnx.load_from_string(full), 2)
    wanted, found = HalfExecutor(full).run(inputs), HalfExecutor(low).run(inputs)
    for name in [t.name for t in manifest.taps if t.kind == "backbone"]:
        relative = np.linalg.norm(found[name] - wanted[name]) / np.linalg.norm(wanted[name])
        assert 1e-4 < relative < 0.1, name


def test_quantised_graphs_quantise() -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="another implementation to compare with")
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("MaxPool", "q", "p", kernel_shape=[2, 2]),
        node("DequantizeLinear", "p s z", "d"),
        node("DequantizeLinear", "wq ws wz", "w", axis=0),
        node("Conv", "d w", "y"),
    ]
    weights = {
        "s": np.float32(0.05),
        "z": np.int8(0),
        "wq": np.random.default_rng(2).integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        "ws": single(0.01, 0.02, 0.03, 0.04),
        "wz": np.zeros(4, np.int8),
    }
    model = made(nodes, weights, FLOAT, rank=4)
    options = onnxruntime.SessionOptions()
    # Fused integer convolutions round differently: the graph as it is written is what is compared.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = draw(1, 3, 8, 8, scale=4.0)
    [wanted] = session.run(None, {"x": x})
    np.testing.assert_allclose(run(model, x), wanted, rtol=1e-4, atol=1e-4)


# Graphs inside nodes, and functions


def test_a_graph_inside_a_node_reads_from_outside() -> None:
    info = helper.make_tensor_value_info
    then = helper.make_graph([node("Mul", "sq sq", "t")], "then", [], [info("t", HALF, ["n"])])
    other = helper.make_graph([node("Identity", "x", "o")], "other", [], [info("o", HALF, ["n"])])
    nodes = [node("Mul", "x x", "sq"), node("If", "yes", "y", then_branch=then, else_branch=other)]
    model = made(nodes, {"yes": np.array(True)})
    assert run(model, half(3)).tolist() == [81.0]
    assert run(model, half(100)).tolist() == [math.inf]


def test_functions_round_inside() -> None:
    """A function is its nodes: 300 squared overflows before its root is taken."""
    model = made([node("Sqrt", "x", "y")])
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Absolute", ["x"], ["y"], "f", domain="own"))
    body = [node("Mul", "a a", "b"), node("Sqrt", "b", "c")]
    opset = [helper.make_opsetid("", 22)]
    model.functions.append(helper.make_function("own", "Absolute", ["a"], ["c"], body, opset))
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.checker.check_model(model, full_check=True)
    assert run(model, half(-3, 300)).tolist() == [3.0, math.inf]


# Overflows are named


def overflowing() -> Any:
    chain = [
        node("Relu", "x", "positive"),
        node("Mul", "positive positive", "square"),
        node("Sub", "square square", "nothing"),
        node("Cast", "nothing", "y", to=FLOAT),
    ]
    return made(chain, result=FLOAT)


def test_an_overflow_is_named_where_it_begins() -> None:
    executor = HalfExecutor(overflowing())
    assert executor.overflows({"x": half(1, 255)}) == []
    assert executor.overflows({"x": half(-300, 255)}) == []
    assert executor.overflows({"x": half(1, 300)}) == [Overflow("square", "the_square", "Mul")]
    assert np.isnan(executor.run({"x": half(1, 300)})["y"]).tolist() == [False, True]


def test_watching_gives_the_largest_magnitude_of_every_half() -> None:
    executor = HalfExecutor(overflowing())
    found = executor.watch({"x": half(-7, 3)})
    assert [(w.tensor, w.op, w.largest) for w in found] == [
        ("positive", "Relu", 3.0),
        ("square", "Mul", 9.0),
        ("nothing", "Sub", 0.0),
    ]
    assert not any(w.overflowed for w in found)
    large = {w.tensor: w for w in executor.watch({"x": half(300)})}
    assert (large["square"].largest, large["square"].first) == (math.inf, True)
    assert math.isnan(large["nothing"].largest)
    assert (large["nothing"].overflowed, large["nothing"].first) == (True, False)


def test_an_overflow_inside_a_node_is_named_though_its_result_is_finite() -> None:
    """Over the infinite sum of squares everything is 0."""
    model = made([node("LRN", "x", "y", size=5)], rank=4)
    large = np.full((1, 8, 1, 1), 300, np.float16)
    executor = HalfExecutor(model)
    assert executor.run({"x": large})["y"].tolist() == np.zeros((1, 8, 1, 1)).tolist()
    assert executor.overflows({"x": large}) == [Overflow("y", "the_y", "LRN")]
    assert executor.overflows({"x": large / 10}) == []
    full = run(made([node("LRN", "x", "y", size=5)], kind=FLOAT, rank=4), large.astype(np.float32))
    assert full.min() > 50


def test_infinite_weights_are_named_by_what_they_spoil() -> None:
    executor = HalfExecutor(made([node("Mul", "x w", "z"), node("Relu", "z", "y")], {"w": half(1, math.inf)}))
    assert executor.overflows({"x": half(1, 1)}) == [Overflow("z", "the_z", "Mul")]
    bound = made([node("Clip", "x low high", "y")], {"low": np.float16(0), "high": np.float16(math.inf)})
    assert HalfExecutor(bound).overflows({"x": half(1, -1)}) == []


def test_infinite_inputs_are_named() -> None:
    executor = HalfExecutor(made([node("Relu", "x", "y")]))
    assert executor.overflows({"x": half(1, math.nan)}) == [Overflow("x", "", "input")]


# Wrong use


def test_wrong_inputs_are_refused() -> None:
    executor = HalfExecutor(made([node("Relu", "x", "y")]))
    with pytest.raises(UsageError, match=r"inputs \['z'\] were given; the graph has \['x'\]"):
        executor.run({"z": half(1)})
    with pytest.raises(UsageError, match="input 'x' is float32; the graph takes float16"):
        executor.run({"x": single(1)})


def test_an_operator_that_is_not_onnx_s_is_refused_by_name() -> None:
    model = made([node("Relu", "x", "y")])
    model.graph.node[0].op_type, model.graph.node[0].domain = "FusedConv", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(UsageError, match=r"node 'the_y' \(FusedConv\) cannot be computed"):
        HalfExecutor(model)
