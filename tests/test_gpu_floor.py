"""Floors on paper are what a graph's work and a datasheet make of each other, and are never taken for measurements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vsa_rt.bench import gpu_floor
from vsa_rt.bench.cost import HEAD, Graph, Node, read_graph
from vsa_rt.bench.gpu_devices import DEVICES, OLDER, PRECISIONS, Device, device_named, on_gpu
from vsa_rt.bench.gpu_floor import floor, kernel_times, kernels, launch_us, moved
from vsa_rt.bench.limits import WHOLE, datasheet_limits, paper_floors
from vsa_rt.bench.records.limits import Layer, Profile
from vsa_rt.bench.records.timing import Plan
from vsa_rt.contracts import Target
from vsa_rt.errors import UsageError

#: 10^9 operations and 10^6 bytes per millisecond in FP16, four times the operations in INT8, a cache of 1000 bytes.
ROUND = Device(
    name="Round",
    tops={"fp16": 1.0, "int8": 4.0},
    bandwidth=1.0,
    cache=1000,
    link=2.0,
    graphs=True,
    known_as="Round",
    source="made up",
)


def node(
    op: str, inputs: str, output: str, macs: int = 0, kind: str = "", folded: bool = False, name: str = ""
) -> Node:
    kinds = {"Relu": "activation", "Sigmoid": "activation", "Softmax": "activation", "Add": "elementwise"}
    kinds |= {"Mul": "elementwise", "Cast": "convert", "Conv": "convolution", "Gemm": "matmul"}
    return Node(
        name=name or f"{op}_{output}",
        op=op,
        kind=kind or kinds.get(op, "other"),
        inputs=tuple(inputs.split()),
        outputs=(output,),
        macs=macs,
        nbytes=0,
        folded=folded,
    )


def graph(nodes: list[Node], outputs: str, weights: dict[str, int] | None = None, **tensors: int) -> Graph:
    """A graph of input ``x``; a tensor has 4000 bytes unless told."""
    weights = weights or {}
    named = {t for n in nodes for t in (*n.inputs, *n.outputs)} | {"x"}
    return Graph(
        nodes={n.name: n for n in nodes},
        inputs=("x",),
        outputs=tuple(outputs.split()),
        weights=weights,
        tensors={t: tensors.get(t, 4000) for t in named if t not in weights},
    )


#: ``x -> Conv -> Relu -> MaxPool -> Gemm -> y``: 3 x 10^9 multiply-adds, then few.
TINY = graph(
    [
        node("Conv", "x w", "a", 3_000_000_000),
        node("Relu", "a", "b"),
        node("MaxPool", "b", "c", kind="pool"),
        node("Gemm", "c v", "y", 100_000),
    ],
    "y",
    {"w": 8_000_000, "v": 400_000},
    a=2_000_000,
    b=2_000_000,
    c=500_000,
    y=40,
)


def grouped(made: Graph) -> list[str]:
    """Operators of every kernel."""
    return [" ".join(made.nodes[n].op for n in k.nodes) for k in kernels(made)]


# The floor


def test_a_floor_is_the_sum_of_each_kernels_longer_side_as_added_up_by_hand() -> None:
    found = floor(TINY, ROUND, "fp16")
    # Conv and Relu: 6 x 10^9 operations are 6 ms. 4 MB of weights in half; 3000 bytes of x and 999,000 of b do not fit
    # the cache. The pool: 999,000 bytes and 249,000 of c. The product: 2 x 10^5 operations, 200,000 bytes of weights,
    # 249,000 of c, and y fits.
    first, second, third = 4_000_000 + 3000 + 999_000, 999_000 + 249_000, 200_000 + 249_000
    assert [t.nbytes for t in kernel_times(TINY, ROUND, "fp16")] == [first, second, third]
    assert found.kernels == 3
    assert found.macs == 3_000_100_000
    assert found.compute_ms == pytest.approx(6.0002)
    assert found.memory_ms == pytest.approx((first + second + third) / 1e6)
    assert found.floor_ms == pytest.approx(6.0 + 1.248 + 0.449)
    assert found.bound == "memory"
    assert found.nbytes == first + second + third


def test_int8_has_a_byte_per_value_and_its_own_throughput() -> None:
    found = floor(TINY, ROUND, "int8")
    # 1.5 ms of operations against 2 MB of weights, 3000 bytes of x (which keeps its type) and 499,000 of b.
    assert found.floor_ms == pytest.approx(2.502 + (499_000 + 124_000) / 1e6 + (100_000 + 124_000) / 1e6)


def test_copies_and_launches_stand_beside_the_floor() -> None:
    found = floor(TINY, ROUND, "fp16")
    assert (found.taken_nbytes, found.given_nbytes) == (4000, 40)
    assert found.copy_ms == pytest.approx(4040 / 2e6)
    # Three kernels and two copies: 2.5 us, and 1 ns and 0.5 us for each.
    assert found.launch_us == pytest.approx(2.5 + 5 * 0.501) == launch_us(5)
    assert found.floor_ms == pytest.approx(sum(t.least_ms for t in kernel_times(TINY, ROUND, "fp16")))


def test_a_shared_memory_is_read_and_written_by_a_copy_and_nothing_is_said_of_launches() -> None:
    found = floor(TINY, replace(ROUND, link=None, graphs=False), "fp16")
    assert found.copy_ms == pytest.approx(2 * 4040 / 1e6)
    assert found.launch_us is None


def test_weights_that_fit_the_cache_are_said_to() -> None:
    # 4.2 MB in half.
    assert not floor(TINY, replace(ROUND, cache=4_199_999), "fp16").cached
    assert floor(TINY, replace(ROUND, cache=4_200_000), "fp16").cached


def test_weights_are_charged_once_however_many_kernels_read_them() -> None:
    twice = graph([node("Gemm", "x w", "a"), node("Gemm", "a w", "y")], "y", {"w": 4_000_000})
    assert [t.nbytes for t in kernel_times(twice, replace(ROUND, cache=4000), "fp16")] == [2_000_000, 0]


def test_a_shape_that_a_kernel_reads_is_no_weight() -> None:
    nodes = [node("Shape", "x", "s"), node("Gather", "s w", "n"), node("Expand", "x n", "y", kind="reorder")]
    made = graph(nodes, "y", {"w": 400})
    assert grouped(made) == ["Expand"]
    assert kernels(made)[0].weights == set()
    assert floor(made, ROUND, "fp16").cached


def test_without_a_cache_everything_between_kernels_is_moved() -> None:
    assert [moved(TINY, k, "fp16") for k in kernels(TINY)] == [
        4_000_000 + 4000 + 1_000_000, 1_000_000 + 250_000, 200_000 + 250_000 + 40
    ]  # fmt: skip


def test_a_bound_over_the_whole_graph_would_be_lower() -> None:
    # What the sum over kernels is for: a pool that waits for memory does no convolution meanwhile.
    found = floor(TINY, ROUND, "fp16")
    assert found.floor_ms > max(found.compute_ms, found.memory_ms)
    assert found.floor_ms < found.compute_ms + found.memory_ms


@pytest.mark.parametrize("precision", ["fp32", "bf16", "mixed", ""])
def test_a_precision_without_a_published_throughput_is_refused(precision: str) -> None:
    with pytest.raises(UsageError, match=r"Round: no published throughput in.*there are fp16, int8"):
        floor(TINY, ROUND, precision)


def test_a_device_without_int8_is_not_given_one() -> None:
    nano = next(d for d in OLDER if d.name == "Jetson Nano")
    with pytest.raises(UsageError, match=r"Jetson Nano: no published throughput in 'int8'; there are fp16"):
        floor(TINY, nano, "int8")


def test_a_quantised_graph_is_refused_since_its_types_are_not_fp32s() -> None:
    made = graph(
        [node("QuantizeLinear", "x s", "q", name="quantiser"), node("Relu", "q", "y")], "y", {"s": 4}
    )
    with pytest.raises(UsageError, match=r"node 'quantiser': the graph is quantised.*from the FP32 graph"):
        floor(made, ROUND, "int8")


# Kernels


#: What becomes one launch: nodes, outputs, and the operators of every kernel.
FUSED: dict[str, tuple[list[Node], str, list[str]]] = {
    "activation": ([node("Conv", "x w", "a"), node("Relu", "a", "y")], "y", ["Conv Relu"]),
    "BatchNorm": (
        [node("Conv", "x w", "a"), node("BatchNormalization", "a w", "b", kind="normalise"), node("Relu", "b", "y")],
        "y",
        ["Conv BatchNormalization Relu"],
    ),
    "swish": (
        [node("Conv", "x w", "a"), node("Sigmoid", "a", "s"), node("Mul", "a s", "y")],
        "y",
        ["Conv Sigmoid Mul"],
    ),
    "residual sum": (
        [node("Conv", "x w", "a"), node("Conv", "a w", "b"), node("Add", "a b", "y")],
        "y",
        ["Conv", "Conv Add"],
    ),
    "view": (
        [node("Conv", "x w", "a"), node("Reshape", "a w", "b"), node("Gemm", "b w", "y")],
        "y",
        ["Conv", "Gemm"],
    ),
    "activation behind a view": (
        [node("Conv", "x w", "a"), node("Reshape", "a w", "b"), node("Relu", "b", "y")],
        "y",
        ["Conv Relu"],
    ),
    "concatenation, written in place": (
        [node("Conv", "x w", "a"), node("Conv", "x w", "b"), node("Concat", "a b", "c"), node("Gemm", "c w", "y")],
        "y",
        ["Conv", "Conv", "Gemm"],
    ),
    "activation behind a concatenation": (
        [node("Conv", "x w", "a"), node("Conv", "x w", "b"), node("Concat", "a b", "c"), node("Relu", "c", "y")],
        "y",
        ["Conv", "Conv", "Relu"],
    ),
    "softmax, which needs a whole row": (
        [node("Gemm", "x w", "a"), node("Softmax", "a", "y")],
        "y",
        ["Gemm", "Softmax"],
    ),
    "what is computed at load": (
        [node("Mul", "w w", "v", folded=True), node("Conv", "x v", "y")],
        "y",
        ["Conv"],
    ),
    "arithmetic of shapes": (
        [node("Shape", "x", "s"), node("Gather", "s w", "n"), node("Conv", "x w", "a"), node("Reshape", "a n", "y")],
        "y",
        ["Conv"],
    ),
    "elementwise chain before any product": (
        [node("Cast", "x", "a"), node("Mul", "a w", "b"), node("Conv", "b w", "y")],
        "y",
        ["Cast Mul", "Conv"],
    ),
    "two readers": (
        [node("Conv", "x w", "a"), node("Relu", "a", "b"), node("Conv", "b w", "c"), node("Relu", "a", "y")],
        "c y",
        ["Conv Relu Relu", "Conv"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FUSED)
def test_nodes_become_kernels_as_the_rule_says(what: str) -> None:
    nodes, outputs, expected = FUSED[what]
    assert grouped(graph(nodes, outputs, {"w": 400, **({"v": 400} if "load" in what else {})})) == expected


def test_a_gate_that_is_spread_over_a_map_is_no_epilogue() -> None:
    # Squeeze-and-excitation: the map waits for the gate, and the gate's product has only a value per channel.
    nodes = [
        node("Conv", "x w", "a"),
        node("ReduceMean", "a", "m", kind="reduce"),
        node("Conv", "m w", "g"),
        node("Sigmoid", "g", "s"),
        node("Mul", "a s", "y"),
    ]
    made = graph(nodes, "y", {"w": 400}, m=40, g=40, s=40)
    assert grouped(made) == ["Conv", "ReduceMean", "Conv Sigmoid", "Mul"]


def test_each_kernel_comes_after_those_that_it_reads() -> None:
    for what, (nodes, outputs, _) in FUSED.items():
        done = {"x"}
        for kernel in kernels(graph(nodes, outputs, {"w": 400, "v": 400})):
            assert kernel.reads.keys() <= done, what
            done |= kernel.writes


def test_a_view_of_a_view_is_read_as_what_it_is_a_view_of() -> None:
    nodes = [
        node("Conv", "x w", "a"),
        node("Conv", "x w", "b"),
        node("Concat", "a b", "c"),
        node("Reshape", "c w", "d"),
        node("Gemm", "d w", "y"),
    ]
    made = kernels(graph(nodes, "y", {"w": 400}, a=100, b=300))
    assert made[2].reads == {"a": 100, "b": 300}
    assert (made[0].writes, made[1].writes) == ({"a"}, {"b"})


def test_what_looks_something_up_reads_no_more_than_it_gives() -> None:
    nodes = [node("Conv", "x w", "a"), node("Slice", "a w", "y", kind="reorder")]
    assert kernels(graph(nodes, "y", {"w": 400}, a=90_000, y=300))[1].reads == {"a": 300}


def test_an_output_inside_a_kernel_is_written_although_nobody_reads_it() -> None:
    made = graph([node("Conv", "x w", "a"), node("Relu", "a", "y")], "a y", {"w": 400})
    assert [k.writes for k in kernels(made)] == [{"a", "y"}]


def test_an_engine_that_fuses_nothing_would_be_told_from_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = floor(TINY, ROUND, "fp16")
    monkeypatch.setattr(gpu_floor, "_FOLLOWS", frozenset())
    apart = floor(TINY, ROUND, "fp16")
    assert (fused.kernels, apart.kernels) == (3, 4)
    # The convolution's own result goes to memory and back once more.
    assert apart.nbytes - fused.nbytes == 2 * 999_000


# Monotonicity, on a real graph


def small_network(batch: int) -> Graph:
    onnx = pytest.importorskip("onnx", reason="graphs are read with onnx")
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], "pool"),
        helper.make_node("Flatten", ["c"], ["d"], "flat"),
        helper.make_node("Gemm", ["d", "v"], ["y"], "gemm"),
    ]
    weights = {"w": np.ones((64, 3, 3, 3), np.float32), "v": np.ones((64, 8), np.float32)}
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 3, 128, 128))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 22)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=10)
    return read_graph(bytes(model.SerializeToString()), batch)


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
def test_more_images_take_longer_and_a_narrower_precision_does_not(device: Device) -> None:
    floors = {
        (batch, precision): floor(small_network(batch), device, precision).floor_ms
        for batch in (1, 2, 8, 32)
        for precision in PRECISIONS
    }
    for precision in PRECISIONS:
        times = [floors[batch, precision] for batch in (1, 2, 8, 32)]
        assert times == sorted(times)
        assert len(set(times)) == len(times)
    assert all(floors[batch, "int8"] < floors[batch, "fp16"] for batch in (1, 2, 8, 32))


def test_launches_do_not_depend_on_the_batch() -> None:
    assert {floor(small_network(b), DEVICES[0], "fp16").kernels for b in (1, 8, 32)} == {3}


def test_a_better_device_in_every_respect_is_nowhere_slower() -> None:
    names = ["Orin Nano 8GB", "Orin Nano 8GB Super", "AGX Orin 64GB", "L4"]
    by_name = {d.name: d for d in DEVICES}
    for batch in (1, 32):
        made = small_network(batch)
        times = [floor(made, by_name[name], "fp16").floor_ms for name in names]
        assert times == sorted(times, reverse=True)


# The table of devices


#: Dense figures as the datasheets print them, without the sparsity that they print first.
PRINTED = {
    "Orin Nano 8GB": (10, 20, 68),
    "Orin Nano 8GB Super": (17, 33, 102),
    "AGX Orin 64GB": (170 / 4, 170 / 2, 204.8),
    "L4": (242 / 2, 485 / 2, 300),
    "A100 SXM 80GB": (312, 624, 2039),
    "H100 SXM": (1979 / 2, 3958 / 2, 3350),
}


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
def test_throughputs_are_the_dense_ones(device: Device) -> None:
    assert (device.tops["fp16"], device.tops["int8"], device.bandwidth) == PRINTED[device.name]
    # Of these tensor cores INT8 is twice FP16, but for rounding: a sparse figure in one place would be four times.
    assert 1.9 < device.tops["int8"] / device.tops["fp16"] < 2.1
    assert device.source


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA L4", "L4"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "AGX Orin 64GB"),
        ("NVIDIA Jetson Orin Nano Developer Kit", "Orin Nano 8GB"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "Orin Nano 8GB Super"),
        ("Tesla T4", "T4"),
        # Other modules, boards and memories have other figures; the driver calls every Orin so.
        *((n, None) for n in ("Orin", "NVIDIA L40S", "NVIDIA L40", "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA H200")),
        *((n, None) for n in ("NVIDIA A100-SXM4-40GB", "NVIDIA A100 80GB PCIe", "NVIDIA Jetson AGX Orin 32GB", "")),
        ("NVIDIA Jetson Orin Nano 4GB", None),
    ],
)  # fmt: skip
def test_a_device_is_known_by_its_own_name_alone(name: str, expected: str | None) -> None:
    found = device_named(name)
    assert (found.name if found else None) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("tensorrt:sm_87", True),
        ("tensorrt-rtx:sm_86+sm_89", True),
        ("onnxruntime:cuda", True),
        ("onnxruntime:tensorrt", True),
        ("onnxruntime:cpu", False),
        ("openvino:cpu", False),
    ],
)
def test_targets_on_gpus_are_told_apart(target: str, expected: bool) -> None:
    assert on_gpu(Target.parse(target)) is expected


# A GPU plan's distance to its datasheet


PARTS = {"Conv_a": "a", "Relu_b": "a", "MaxPool_c": "a", "Gemm_y": HEAD}


def on_device(machine: str = "NVIDIA L4", call_ms: float = 1.0, **precisions: str) -> Any:
    plan = Plan(
        name="p",
        bundle="b",
        target="tensorrt:sm_89",
        precision=precisions.get("a", "fp16"),
        achieved=None,
        threads=1,
        why="",
    )
    spent = [("a", 3.0), (HEAD, 1.0)]
    layers = [
        Layer(name=part, nodes=[], backbone=part, kind="matmul", precision="fp16", ms=ms)
        for part, ms in spent
    ]
    profile = Profile(plan="p", batch=1, source="counters", calls=1, call_ms=9.0, layers=layers)
    return datasheet_limits(plan, 1, TINY, PARTS, machine, precisions or {"a": "fp16"}, call_ms, profile)


def test_a_gpu_plan_is_held_against_the_datasheet_of_its_gpu_and_says_so() -> None:
    found = on_device()
    own = floor(TINY, next(d for d in DEVICES if d.name == "L4"), "fp16")
    a, head, whole = found.floors
    assert found.against == "datasheet"
    assert found.note.startswith("on paper, from the datasheet of L4, all of it in fp16: NVIDIA L4")
    assert [f.part for f in found.floors] == ["a", HEAD, WHOLE]
    assert whole.floor_ms == own.floor_ms == pytest.approx(a.floor_ms + head.floor_ms)
    assert (whole.macs, whole.nbytes) == (own.macs, own.nbytes)
    assert [f.measured_ms for f in found.floors] == [pytest.approx(0.75), pytest.approx(0.25), 1.0]
    assert whole.share == pytest.approx(own.floor_ms)
    assert "a share above 1" not in found.note


def test_a_plan_of_several_precisions_is_held_against_the_fastest() -> None:
    assert on_device(a="int8", b="fp32").floors[-1].precision == "int8"
    assert on_device(a="fp16", b="fp32").floors[-1].precision == "fp16"


def test_a_gpu_of_an_unknown_name_gets_no_floor_and_the_reason() -> None:
    found = on_device("Orin")
    assert found.floors == []
    assert "a GPU called 'Orin' is none whose datasheet is known; there are Orin Nano 8GB," in found.note
    assert found.against == "datasheet"


def test_a_plan_in_fp32_gets_no_floor_and_the_reason() -> None:
    found = on_device(a="fp32")
    assert found.floors == []
    assert found.note == "no floor: no throughput of L4 in fp32; there is fp16, int8"


def test_a_time_below_its_floor_on_paper_is_said_aloud() -> None:
    found = on_device(call_ms=1e-4)
    assert found.floors[-1].share is not None
    assert found.floors[-1].share > 1
    assert "a share above 1: weights stay in the cache, or clocks" in found.note


def test_floors_on_paper_are_of_every_device_in_each_precision() -> None:
    found = paper_floors(TINY)
    assert [(f.device, f.precision) for f in found] == [(d.name, p) for d in DEVICES for p in PRECISIONS]
