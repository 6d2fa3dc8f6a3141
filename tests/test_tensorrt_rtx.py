"""What TensorRT's own parser and compiler say about graphs, ahead of time and without a GPU."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsa_rt.errors import EnvironmentUnusable, UsageError

if sys.platform != "linux" or platform.machine() != "x86_64":
    where = f"{sys.platform} on {platform.machine()}"
    pytest.skip(f"tensorrt-rtx-cu13 has no wheel for {where}", allow_module_level=True)
onnx = pytest.importorskip("onnx", reason="the graphs are made with onnx")
pytest.importorskip("ml_dtypes", reason="weights in bfloat16 are made with ml_dtypes")

from lowered import PLANS, Lowering
from patterns import PATTERNS, PRECISIONS, Net, pattern

from vsa_rt.engines.tensorrt.compiler import CAPABILITIES, compile_ahead, probe_compiler

UINT8, FLOAT = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT


def refusal(graph: bytes, *capabilities: str) -> str:
    """The message of the error that a refused graph ends in."""
    with pytest.raises(EnvironmentUnusable) as caught:
        compile_ahead(graph, capabilities, max_batch=4)
    return str(caught.value)


# What is legal


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_compiles_in_every_precision(name: str, precision: str) -> None:
    assert compile_ahead(pattern(name, precision), ["sm_86"], max_batch=4)


@pytest.mark.parametrize("precision", ["fp16", "int8 in fp16"])
@pytest.mark.parametrize("name", [n for n in PATTERNS if n != "GRU"])
def test_in_half_one_engine_serves_all_from_turing_on(name: str, precision: str) -> None:
    """The GRU's loop stays in float32, and its products with it."""
    assert CAPABILITIES[0] == "sm_75"
    assert compile_ahead(pattern(name, precision), max_batch=4)


@pytest.mark.parametrize("capability", CAPABILITIES[1:])
def test_bfloat16_is_legal_from_ampere_on(capability: str) -> None:
    assert compile_ahead(pattern("convolution, swish", "bf16"), [capability], max_batch=4)


# What is refused, and how that is said


def asymmetric(net: Net) -> str:
    ends = (net.constant(0.05, np.float32), net.constant(3, np.int8))
    levels = net.op("QuantizeLinear", net.given(32), *ends, name="lopsided")
    return net.op("DequantizeLinear", levels, *ends)


def quantised_bias(net: Net) -> str:
    levels = net.constant(np.arange(8), np.int32)
    bias = net.op("DequantizeLinear", levels, net.constant(0.01, np.float32), name="bias_of_fc")
    return net.op("Gemm", net.rows(32), net.weight(8, 32), bias, transB=1)


def early_transpose(net: Net) -> str:
    maps = net.op("Transpose", net.given(16, 16, 3, dtype=UINT8), name="layout", perm=[0, 3, 1, 2])
    return net.op("Cast", maps, to=FLOAT)


def proposals(net: Net) -> str:
    return net.op("NonZero", net.given(8), name="proposals")


def dense(net: Net) -> str:
    return net.gemm(net.op("Relu", net.rows(32)), of=32, to=8, name="fc")


def recurrent(net: Net) -> str:
    first = net.op("Transpose", net.rows(5, 16), perm=[1, 0, 2])
    weights = [net.values(net.random(*shape)) for shape in ((1, 24, 16), (1, 24, 8))]
    return net.op("GRU", first, *weights, name="rnn", hidden_size=8, linear_before_reset=1)


#: What makes the graph, its precision, the capability, and what the message must have: the node, the op, the reason,
#: a way out.
REFUSALS: dict[str, tuple[Callable[[Net], str], str, str, list[str]]] = {
    "zero point of 3": (
        asymmetric,
        "fp32",
        "sm_86",
        ["'lopsided' (QuantizeLinear)", "Non-zero zero point is not supported", "symmetrically"],
    ),
    "int32 bias": (
        quantised_bias,
        "int8",
        "sm_86",
        ["'bias_of_fc' (DequantizeLinear)", "input has type Int32", "leave biases in float"],
    ),
    "Transpose of uint8": (
        early_transpose,
        "fp32",
        "sm_86",
        ["'layout' (Transpose)", "input has type UInt8", "let a Cast to float come first"],
    ),
    "NonZero": (proposals, "fp32", "sm_86", ["'proposals' (NonZero)", "not found", "fixed number of proposals"]),
    "product in fp32 on Turing": (
        dense,
        "fp32",
        "sm_75",
        ["'fc' (matrix multiply)", "FP32 GEMM is not supported", "compute it in fp16, or leave sm_75 out"],
    ),
    "int8 in fp32 on Turing": (
        dense,
        "int8",
        "sm_75",
        ["'fc' (matrix multiply)", "FP32 GEMM is not supported", "compute it in fp16, or leave sm_75 out"],
    ),
    "bf16 on Turing": (
        dense,
        "bf16",
        "sm_75",
        ["'Relu_1' (activation)", "b16", "fp16 instead of bf16, or leave sm_75 out"],
    ),
    "GRU in bf16": (recurrent, "bf16", "sm_86", ["'rnn' (GRU)", "Float and BFloat16", "--exclude"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_names_the_node_the_reason_and_a_way_out(case: str) -> None:
    make, precision, capability, words = REFUSALS[case]
    net = Net(precision)
    message = refusal(net.bytes(make(net)), capability)
    for word in [capability, *words]:
        assert word in message
    assert "\n" not in message
    for noise in (".cpp", "cudaError", "Error Code", "Assertion failed"):
        assert noise not in message


def test_an_engine_for_several_is_refused_if_one_cannot_compute_it() -> None:
    net = Net("bf16")
    assert "sm_75" in refusal(net.bytes(dense(net)), "sm_75", "sm_89")


def test_a_node_without_a_name_is_told_by_its_place_or_its_result() -> None:
    for make, capability, words in (
        (proposals, "sm_86", "'#0' (NonZero)"),
        (dense, "sm_75", "'node_of_fc_out'"),
    ):
        net = Net()
        model = onnx.load_from_string(net.bytes(make(net)))
        for node in model.graph.node:
            node.name = ""
        assert words in refusal(model.SerializeToString(), capability)


def test_a_refusal_leaves_nothing_behind() -> None:
    for _ in range(2):
        assert "'fc'" in refusal(pattern_of(dense), "sm_75")
        assert "'proposals'" not in refusal(pattern_of(dense), "sm_75")
        assert "'fc'" not in refusal(pattern_of(proposals), "sm_86")
        assert compile_ahead(pattern_of(dense), ["sm_86"], max_batch=4)


def pattern_of(make: Callable[[Net], str], precision: str = "fp32") -> bytes:
    net = Net(precision)
    return net.bytes(make(net))


# What is no graph for it


@pytest.mark.parametrize("data", [b"", b"garbage"])
def test_bytes_that_are_no_graph_are_refused(data: bytes) -> None:
    assert "give a whole ONNX model" in refusal(data, "sm_86")


def test_weights_in_other_files_are_not_read(working_folder: Path) -> None:
    """A graph of a stranger may name any file, also one that lies in the working directory."""
    weights = np.ones((32, 8), np.float32)
    (working_folder / "w.bin").write_bytes(weights.tobytes())
    model = onnx.load_from_string(pattern_of(lambda net: net.op("MatMul", net.given(32), net.weight(32, 8))))
    [tensor] = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for location in ("w.bin", str(working_folder / "w.bin")):
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=location)
        assert "keep every weight inside the ONNX file" in refusal(model.SerializeToString(), "sm_86")


@pytest.mark.parametrize("shape", [[2, 32], ["batch", "width"]])
def test_the_batch_must_be_the_one_free_axis(shape: list[Any]) -> None:
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    ends = [[onnx.helper.make_tensor_value_info(name, FLOAT, shape)] for name in "xy"]
    graph = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", *ends),
        opset_imports=[onnx.helper.make_opsetid("", 22)],
        ir_version=10,
    )
    with pytest.raises(UsageError, match=r"input 'x' has shape .* the batch, must be free"):
        compile_ahead(graph.SerializeToString(), ["sm_86"], max_batch=4)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"capabilities": ["sm_90"], "max_batch": 4}, "'sm_90': unknown; there are .*sm_89"),
        ({"capabilities": [], "max_batch": 4}, "no compute capability"),
        ({"max_batch": 0}, "batches 1, 0, 0"),
        ({"max_batch": 4, "opt_batch": 8}, "batches 1, 8, 4"),
        ({"max_batch": 4, "min_batch": 0}, "batches 0, 4, 4"),
    ],
)
def test_a_request_that_cannot_be_is_refused(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        compile_ahead(pattern_of(dense), **request_)


# The library


def test_the_compiler_is_there_with_its_version() -> None:
    """The wheel is a requirement of development on this platform: its absence is a failure, not a skip."""
    found = probe_compiler()
    assert found.usable, found.reason
    assert found.version.split(".")[0].isdecimal()


@pytest.mark.parametrize("how", ["absent", "broken"])
def test_without_the_wheel_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    if how == "absent":
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    else:
        (tmp_path / "tensorrt_rtx.py").write_text("raise OSError('libtensorrt_rtx.so.1: not there')")
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvironmentUnusable, match=r"pip install 'vsa-rt\[tensorrt-rtx\]'"):
        compile_ahead(pattern_of(dense), ["sm_86"], max_batch=4)
    found = probe_compiler()
    assert not found.usable
    assert ("not installed" if how == "absent" else "libtensorrt_rtx.so.1") in found.reason
    assert found.install == "pip install 'vsa-rt[tensorrt-rtx]'"


def test_nothing_is_printed_past_the_logger(tmp_path: Path) -> None:
    """This pattern in half makes the compiler print a warning on standard output, which holds documents."""
    (tmp_path / "graph.onnx").write_bytes(pattern("unit norm", "fp16"))
    code = (
        "import sys; from pathlib import Path; from vsa_rt.engines.tensorrt.compiler import compile_ahead\n"
        "print('before', end=' ')\n"
        f"made = compile_ahead(Path({str(tmp_path / 'graph.onnx')!r}).read_bytes(), ['sm_86'], max_batch=4)\n"
        "print(len(made) > 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("before True\n", "")


def test_the_compiler_does_print_where_nobody_stops_it(capfd: pytest.CaptureFixture[str]) -> None:
    """What makes the test above one that can fail."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, logger).parse(pattern("unit norm", "fp16"))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("input_0", (1, 32), (4, 32), (4, 32))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
    assert "WARNING" in capfd.readouterr().out


def test_threads_compile_one_after_the_other() -> None:
    found: dict[int, str] = {}

    def work(index: int) -> None:
        make, capability = ((dense, "sm_75"), (proposals, "sm_86"))[index % 2]
        found[index] = refusal(pattern_of(make), capability)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, message in found.items():
        assert ("'fc'" in message, "'proposals'" in message) == (index % 2 == 0, index % 2 == 1)
    assert len(found) == 6


# What lowering makes


@pytest.fixture(scope="module", params=["tiny_bundle", "wired_bundle", "quickstart_bundle"])
def lowering(request: pytest.FixtureRequest, photographs: list[Path]) -> Lowering:
    return Lowering.of_bundle(request.getfixturevalue(request.param), photographs)


@pytest.mark.parametrize("plan", [p for p in PLANS if "throughout" not in p])
def test_lowered_ensembles_compile(lowering: Lowering, plan: str) -> None:
    assert compile_ahead(lowering.graph(plan), ["sm_86", "sm_89"], max_batch=4)


@pytest.mark.parametrize("plan", [p for p in PLANS if "throughout" in p])
def test_ensembles_in_half_throughout_compile_for_turing(lowering: Lowering, plan: str) -> None:
    assert compile_ahead(lowering.graph(plan), max_batch=4)


@pytest.mark.parametrize("plan", ["fp32", "fp16", "int8"])
def test_a_head_in_float32_is_refused_for_turing(lowering: Lowering, plan: str) -> None:
    assert "FP32 GEMM is not supported" in refusal(lowering.graph(plan), "sm_75")
