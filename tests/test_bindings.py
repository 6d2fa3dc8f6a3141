"""Every name that the GPU adapters use is one of the real bindings': of TensorRT's oldest and newest, of RTX and CUDA.

None of them needs a GPU or a driver for that: the bindings import over libraries that hold nothing.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import bindings
import make_stubs
import pytest
from adapter_kinds import Findings, Table
from adapter_names import Reader
from adapter_table import CUDA, CUDA_TABLE, FLAVOURS, NEWEST, OLDEST, RTX, TENSORRT, sources
from bindings import Catalogue, Missing

pytestmark = pytest.mark.skipif(
    not (bindings.ROOT / "engines").is_dir(), reason="the repository is not around these tests"
)

Catalogues = dict[str, Catalogue]


@pytest.fixture(scope="module")
def known() -> Catalogues:
    """Catalogues that were taken."""
    return {}


def taken(flavour: str, known: Catalogues, folder: Path) -> Catalogue:
    """A flavour's catalogue; the test is skipped where something is missing for it."""
    if flavour not in known:
        try:
            if flavour == RTX:
                known[flavour] = bindings.rtx()
            elif flavour == CUDA:
                known[flavour] = bindings.cuda()
            else:
                known[flavour] = bindings.classic(flavour.rpartition(" ")[2], folder)
        except Missing as missing:
            pytest.skip(f"needs {missing}")
    return known[flavour]


@pytest.fixture
def catalogue(request: pytest.FixtureRequest, known: Catalogues, tmp_path: Path) -> Catalogue:
    """The catalogue of the flavour that a test is for."""
    return taken(request.param, known, tmp_path)


def of(*flavours: str) -> pytest.MarkDecorator:
    """The test is for these flavours, one after the other."""
    return pytest.mark.parametrize(
        ("flavour", "catalogue"), [(f, f) for f in flavours], indirect=["catalogue"], ids=flavours
    )


def read(flavour: str, catalogue: Catalogue, changed: dict[str, tuple[str, str]] | None = None) -> Findings:
    """What adapters use of a flavour; some of them with a text in place of another."""
    found = sources("cuda" if flavour == CUDA else "tensorrt")
    for name, (old, new) in (changed or {}).items():
        assert found[name].count(old) == 1, f"{name}.py has {old!r} no more, or more than once"
        found[name] = found[name].replace(old, new)
    return Reader(found, catalogue, flavour, CUDA_TABLE if flavour == CUDA else TENSORRT).read()


def fresh(flavour: str, catalogue: Catalogue, changed: dict[str, tuple[str, str]]) -> list[str]:
    """What is wrong with changed adapters, without file and line."""
    return [
        told.partition(": ")[2].removesuffix(f" [{flavour}]")
        for told in read(flavour, catalogue, changed).wrong
    ]


# The adapters as they are


@of(*FLAVOURS, CUDA)
def test_all_that_the_adapters_use_is_in_the_bindings(flavour: str, catalogue: Catalogue) -> None:
    assert read(flavour, catalogue).wrong == []


@of(*FLAVOURS)
def test_the_verbs_of_every_dialect_were_looked_at(flavour: str, catalogue: Catalogue) -> None:
    used = read(flavour, catalogue).used
    assert {
        "Builder.build_serialized_network",
        "BuilderFlag.REFIT_IDENTICAL",
        "IBuilderConfig.set_memory_pool_limit",
        "ICudaEngine.get_tensor_profile_shape",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_device_memory",
        "IExecutionContext.update_device_memory_size_for_shapes",
        "ILayer.metadata",
        "IProgressMonitor.step_complete",
        "IProfiler.report_layer_time",
        "ITimingCache.combine",
        "OnnxParserRefitter.refit_from_bytes",
        "ParserError.node_operator",
        "Runtime.deserialize_cuda_engine",
    } <= used
    assert ("BuilderFlag.INT8" in used) == (flavour == OLDEST)
    assert ("IRuntimeConfig.cuda_graph_strategy" in used) == (flavour == RTX)


@of(CUDA)
def test_the_verbs_of_cuda_were_looked_at(flavour: str, catalogue: Catalogue) -> None:
    assert {
        "Buffer.copy_to",
        "Device.create_stream",
        "DeviceProperties.integrated",
        "Graph.upload",
        "GraphBuilder.end_building",
        "Stream.create_graph_builder",
        "StridedMemoryView.from_dlpack",
        "cuda.bindings.driver.cuDriverGetVersion",
        "cuda.core.LegacyPinnedMemoryResource",
    } <= read(flavour, catalogue).used


@of(CUDA)
def test_errors_that_are_told_apart_by_name_are_cudas(flavour: str, catalogue: Catalogue) -> None:
    from vsa_rt.engines.cuda.faults import FAULTS

    there = set(catalogue["classes"]["CUresult"]) | set(catalogue["classes"]["cudaError_t"])
    assert [fault.name for fault in FAULTS if fault.name not in there] == []
    assert {"CUDAError", "NVRTCError"} <= set(catalogue["classes"])
    assert hasattr(pytest.importorskip("cuda.pathfinder"), "DynamicLibNotFoundError")


@pytest.mark.parametrize("catalogue", [CUDA], indirect=True)
def test_nothing_stands_in_the_table_of_cuda_that_no_adapter_needs(catalogue: Catalogue) -> None:
    assert _entries(CUDA_TABLE) - read(CUDA, catalogue).taken == set()


@of(*FLAVOURS)
def test_what_is_asked_for_first_is_really_not_there(flavour: str, catalogue: Catalogue) -> None:
    for name in TENSORRT.guarded.get(flavour, ()):
        owner, _, member = name.rpartition(".")
        assert member not in catalogue["classes"][owner]
        assert name in read(flavour, catalogue).taken


def test_nothing_stands_in_the_table_of_tensorrt_that_no_adapter_needs(
    known: Catalogues, tmp_path: Path
) -> None:
    needed: set[str] = set()
    for flavour in FLAVOURS:
        needed |= read(flavour, taken(flavour, known, tmp_path)).taken
    assert _entries(TENSORRT) - needed == set()


def _entries(table: Table) -> set[str]:
    return {*table.declared, *table.words, *table.dynamic, *table.calls}


# Planted faults


@of(*FLAVOURS)
def test_a_made_up_name_is_found(flavour: str, catalogue: Catalogue) -> None:
    assert fresh(flavour, catalogue, {"loaded": (".execute_async_v3(", ".execute_async_v4(")}) == [
        "IExecutionContext has no execute_async_v4"
    ]
    # Through what a call returns, an item of a list, a field of another class, an enumeration and a string.
    assert fresh(flavour, catalogue, {"refusals": ("error.desc()", "error.text()")}) == [
        "ParserError has no text"
    ]
    assert fresh(flavour, catalogue, {"compiler": ("str(tensor.name)", "str(tensor.title)")}) == [
        "ITensor has no title"
    ]
    assert fresh(flavour, catalogue, {"compiler": ("library.trt.Builder(", "library.trt.Bilder(")})[:1] == [
        "trt has no Bilder"
    ]
    assert fresh(flavour, catalogue, {"dialects": ("known.TF32", "known.TF33")}) == [
        "BuilderFlag has no TF33"
    ]
    assert fresh(flavour, catalogue, {"dialects": ('"STRIP_PLAN"', '"STRIP_PLANS"')}) == [
        "BuilderFlag has no STRIP_PLANS"
    ]


@of(OLDEST)
def test_a_name_of_later_versions_is_found_in_shared_code(flavour: str, catalogue: Catalogue) -> None:
    later = "context.get_runtime_config()"
    change = {"dialects": ("context.update_device_memory_size_for_shapes()", later)}
    assert fresh(flavour, catalogue, change) == ["IExecutionContext has no get_runtime_config"]


@of(NEWEST, RTX)
def test_the_same_name_is_there_later(flavour: str, catalogue: Catalogue) -> None:
    later = "context.get_runtime_config()"
    change = {"dialects": ("context.update_device_memory_size_for_shapes()", later)}
    assert fresh(flavour, catalogue, change) == []


@of(OLDEST, NEWEST)
def test_what_only_rtx_has_is_found_in_shared_code(flavour: str, catalogue: Catalogue) -> None:
    change = {"loaded": ("self._native.report_to_profiler()", "self._native.is_stream_capturable(0)")}
    assert fresh(flavour, catalogue, change) == ["IExecutionContext has no is_stream_capturable"]


@of(OLDEST)
def test_an_overload_of_later_versions_is_found_in_shared_code(flavour: str, catalogue: Catalogue) -> None:
    change = {
        "dialects": (
            "engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)",
            "engine.create_execution_context(runtime_config=None)",
        )
    }
    assert fresh(flavour, catalogue, change) == [
        "ICudaEngine.create_execution_context has no parameter runtime_config"
    ]


@of(*FLAVOURS)
def test_a_call_that_does_not_fit_is_found(flavour: str, catalogue: Catalogue) -> None:
    few = {"dialects": ("set_memory_pool_limit(pool, workspace)", "set_memory_pool_limit(workspace)")}
    assert fresh(flavour, catalogue, few) == ["IBuilderConfig.set_memory_pool_limit lacks pool_size"]
    many = {"dialects": ("update_device_memory_size_for_shapes()", "update_device_memory_size_for_shapes(0)")}
    assert fresh(flavour, catalogue, many) == [
        "IExecutionContext.update_device_memory_size_for_shapes takes 0 arguments by position, not 1"
    ]
    named = {"compiler": ("library.trt.OnnxParser(network,", "library.trt.OnnxParser(network, builder=")}
    assert fresh(flavour, catalogue, named) == ["OnnxParser has no parameter builder"]
    swapped = {
        "monitor": ("build_serialized_network(network, config)", "build_serialized_network(config, network)")
    }
    (told,) = fresh(flavour, catalogue, swapped)
    assert told.startswith("Builder.build_serialized_network takes INetworkDefinition as network")


@of(*FLAVOURS)
def test_what_cannot_be_set_is_found(flavour: str, catalogue: Catalogue) -> None:
    change = {"layers": ("self._calls = 0", "engine._native.num_layers = 0")}
    assert fresh(flavour, catalogue, change) == ["ICudaEngine.num_layers cannot be set"]


@of(*FLAVOURS)
def test_an_override_that_the_bindings_never_call_is_found(flavour: str, catalogue: Catalogue) -> None:
    renamed = {"layers": ("def report_layer_time(", "def report_time(")}
    assert fresh(flavour, catalogue, renamed) == ["IProfiler has no report_time"]
    shorter = {
        "monitor": (
            "def step_complete(self, phase_name: str, step: int)",
            "def step_complete(self, step: int)",
        )
    }
    assert fresh(flavour, catalogue, shorter) == ["IProgressMonitor.step_complete is called with 2, not 1"]


@of(*FLAVOURS)
def test_what_nobody_declared_is_found(flavour: str, catalogue: Catalogue) -> None:
    parameter = {
        "refusals": ("def layers_of(trt: Any, network: Any)", "def layers_of(trt: Any, network: Any, x: Any)")
    }
    assert fresh(flavour, catalogue, parameter) == ["layers_of.x is Any, and the table does not say what"]
    word = {"layers": ('json.loads(text).get("Layers", [])', 'json.loads(text).get("REFIT_INDIVIDUAL", [])')}
    assert fresh(flavour, catalogue, word) == [
        "'REFIT_INDIVIDUAL' in described_layers: the table does not say of what it is a member"
    ]
    made_up = {"refusals": ("layer.name, node[1]", "getattr(layer, node[1]), node[1]")}
    assert fresh(flavour, catalogue, made_up) == [
        "layers_of: getattr(layer, node[1]): the table does not say which names it asks for"
    ]
    untyped = {
        "dialects": ("int(context.update_device_memory_size_for_shapes())", "context.device_memory.real")
    }
    assert fresh(flavour, catalogue, untyped) == [
        ".real of something of the bindings that nothing says the type of"
    ]


@of(CUDA)
def test_faults_in_the_cuda_adapter_are_found(flavour: str, catalogue: Catalogue) -> None:
    for name, old, new, told in (
        ("handles", "graph.upload(", "graph.uplode(", "Graph has no uplode"),
        ("handles", ".complete()", ".finish()", "GraphBuilder has no finish"),
        ("handles", "native.close(own)", "native.free(own)", "Buffer has no free"),
        ("device", "nonblocking=True", "blocking=False", "StreamOptions has no parameter blocking"),
        (
            "device",
            "device.properties.integrated",
            "device.properties.shared",
            "DeviceProperties has no shared",
        ),
        ("device", '_ask("cuMemGetInfo")', '_ask("cuMemInfo")', "cuda.bindings.driver has no cuMemInfo"),
        ("device", '_ask("cuInit", 0)', '_ask("cuInit")', "cuda.bindings.driver.cuInit lacks Flags"),
        ("device", "view.device_id != ", "view.device != ", "StridedMemoryView has no device"),
        (
            "device",
            "LegacyPinnedMemoryResource",
            "OldPinnedMemoryResource",
            "cuda.core has no OldPinnedMemoryResource",
        ),
        ("faults", '"CUDA_ERROR_ASSERT"', '"CUDA_ERROR_ASSERTS"', "CUresult has no CUDA_ERROR_ASSERTS"),
    ):
        assert fresh(flavour, catalogue, {name: (old, new)})[:1] == [told]


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bindings, "FOLDER", tmp_path)
    with pytest.raises(Missing, match=r"bindings of TensorRT 10\.3\.0: `make bindings`"):
        bindings.classic("10.3.0", tmp_path)
    (tmp_path / "10.3.0" / "tensorrt_bindings").mkdir(parents=True)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Missing, match="gcc"):
        bindings.classic("10.3.0", tmp_path)


# Types for mypy


@of(RTX)
def test_the_types_for_mypy_are_those_of_the_installed_library(flavour: str, catalogue: Catalogue) -> None:
    text = make_stubs.STUB.read_text("utf-8")
    assert text == make_stubs.make_stub(catalogue), "run python tests/support/make_stubs.py"


def test_mypy_finds_wrong_names_and_calls_by_them(tmp_path: Path) -> None:
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("needs mypy: pip install 'vsa-rt[dev]'")
    snippet = tmp_path / "snippet.py"
    snippet.write_text(
        "import tensorrt_rtx as trt\n"
        "def compiled(builder: trt.Builder, graph: bytes) -> bytes:\n"
        "    network = builder.create_network(0)\n"
        "    config = builder.create_builder_config()\n"
        "    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)\n"
        "    config.max_aux_stream = 1\n"
        "    return bytes(builder.build_serialized_network(network, config))\n"
    )
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file",
        "",
        "--no-incremental",
        str(snippet),
    ]
    stubs = {"MYPYPATH": str(make_stubs.STUB.parents[1]), "PATH": "", "HOME": str(tmp_path)}
    told = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=stubs)
    assert [line.partition("snippet.py:")[2].partition(":")[0] for line in told.stdout.splitlines()[:-1]] == [
        "5",
        "6",
    ]
    assert 'Missing positional argument "pool_size"' in told.stdout
    assert '"IBuilderConfig" has no attribute "max_aux_stream"' in told.stdout
