"""TensorRT's two backends: which devices they have, what a build leaves in its folder, what may be opened."""

from __future__ import annotations

import platform
import shlex
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

pytest.importorskip("onnx", reason="the graphs are made with onnx")
pytest.importorskip("ml_dtypes", reason="weights in bfloat16 are made with ml_dtypes")

from patterns import pattern
from recorded_trt import L4, ORIN, RTX_3090, Bindings, options, real, with_gpus

from vsa_rt.contracts import Precision
from vsa_rt.engines import table
from vsa_rt.engines.backend import OpenOptions
from vsa_rt.engines.compiling import Part, Source
from vsa_rt.engines.cuda.seam import DeviceFacts
from vsa_rt.engines.tensorrt.backend import TensorRt, TensorRtRtx
from vsa_rt.engines.tensorrt.library import Library, open_library
from vsa_rt.errors import EnvironmentUnusable, UsageError
from vsa_rt.manifest import CompiledRecord


@pytest.fixture
def jetson(monkeypatch: pytest.MonkeyPatch) -> Bindings:
    """A machine with an Orin and TensorRT 10.3."""
    bindings = Bindings("10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", bindings)
    with_gpus(monkeypatch, ORIN)
    return bindings


# The library


def test_a_library_of_another_version_is_no_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", Bindings("8.6.1"))
    with_gpus(monkeypatch, ORIN)
    found = TensorRt().probe("sm_87")
    assert not found.usable
    assert "tensorrt 8.6.1" in found.reason


def test_a_library_keeps_its_first_logger(jetson: Bindings) -> None:
    one, other = open_library("tensorrt"), open_library("tensorrt")
    assert one.logger is other.logger
    for i in range(1000):
        one.logger.log(jetson.ILogger.Severity.ERROR, f"error {i}")
    one.logger.log(jetson.ILogger.Severity.WARNING, "no error")
    assert list(one.logger.errors)[-1] == "error 999"
    assert len(one.logger.errors) < 1000
    with other.alone() as errors:
        assert not errors


# Targets


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_the_table_has_both(name: str) -> None:
    backend = table.backend(name)
    assert (backend.name, backend.half("sm_86")) == (name, True)
    assert backend.precisions("sm_86") == (Precision.FP32, Precision.FP16, Precision.INT8)


@pytest.mark.parametrize(
    ("name", "device", "words"),
    [
        ("tensorrt", "sm_87", ""),
        ("tensorrt", "sm_90", ""),
        ("tensorrt", "sm_60", "no device 'sm_60'; there are tensorrt:sm_75"),
        ("tensorrt", "cuda", "no device"),
        ("tensorrt", "sm_86+sm_89", "one device that it is compiled on"),
        ("tensorrt-rtx", "sm_86", ""),
        ("tensorrt-rtx", "sm_86+sm_89", ""),
        ("tensorrt-rtx", "sm_87", "no device 'sm_87'"),
        ("tensorrt-rtx", "sm_86+sm_90", "no device 'sm_90'"),
        ("tensorrt-rtx", "sm_86+sm_86", "twice"),
        ("tensorrt-rtx", "sm_86+", "no device ''"),
    ],
)
def test_a_target_names_devices_that_the_library_knows(name: str, device: str, words: str) -> None:
    said = table.backend(name).knows(device)
    assert (words in said) if words else said == ""


@real
def test_the_devices_of_rtx_are_the_real_librarys() -> None:
    members = open_library("tensorrt-rtx").trt.ComputeCapability.__members__
    assert set(TensorRtRtx().known) == {f"sm_{n.removeprefix('SM')}" for n in members if n.startswith("SM")}


def test_only_devices_that_are_here_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch)
    assert TensorRt().devices == TensorRtRtx().devices == ()
    with_gpus(monkeypatch, L4, ORIN, L4)
    assert TensorRt().devices == ("sm_89", "sm_87")
    assert TensorRtRtx().devices == ("sm_89",)


def test_a_classic_engine_is_compiled_on_the_device_alone(
    jetson: Bindings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vsa_rt.engines.tensorrt.backend._has_cuda_core", lambda: True)
    found = TensorRt().probe("sm_87")
    assert (found.usable, found.version, found.machine) == (True, "10.3.0", "Orin")
    other = TensorRt().probe("sm_86")
    assert (other.usable, other.compiles) == (False, False)
    assert (
        "no GPU of sm_86 is here: there is Orin (sm_87); tensorrt compiles on the device itself"
        in other.reason
    )
    with pytest.raises(EnvironmentUnusable, match="no GPU of sm_86 is here"):
        TensorRt().build(Source(b"graph"), tmp_path, "sm_86", options())


def test_without_cuda_core_nothing_can_be_opened(jetson: Bindings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vsa_rt.engines.tensorrt.backend._has_cuda_core", lambda: False)
    found = TensorRt().probe("sm_87")
    assert not found.usable
    assert "cuda-core is not installed" in found.reason
    assert found.install


@real
def test_rtx_compiles_anywhere_and_runs_where_one_of_its_devices_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch)
    found = TensorRtRtx().probe("sm_86+sm_89")
    assert (found.usable, found.compiles) == (False, True)
    assert "no GPU of sm_86 or sm_89 is here: no NVIDIA driver is installed" in found.reason
    monkeypatch.setattr("vsa_rt.engines.tensorrt.backend._has_cuda_core", lambda: True)
    with_gpus(monkeypatch, ORIN, L4)
    found = TensorRtRtx().probe("sm_86+sm_89")
    assert (found.usable, found.machine) == (True, "L4")


# Building


def parts() -> list[Part]:
    return [
        Part("x", b"part x", ("image",), ("x",)),
        Part("y", b"part y", ("image",), ("y",)),
        Part("head", b"part head", ("x", "y"), ("scores",)),
    ]


def test_a_build_gives_both_forms_and_says_how(jetson: Bindings, tmp_path: Path) -> None:
    made = TensorRt().build(
        Source(b"graph", "graph-fp16.onnx", parts), tmp_path, "sm_87", options(8, level=4)
    )
    assert made.files == ["model.engine", "stream-0.engine", "stream-1.engine", "stream-2.engine"]
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        "model.engine": b"engine of graph",
        "stream-0.engine": b"engine of part x",
        "stream-1.engine": b"engine of part y",
        "stream-2.engine": b"engine of part head",
    }
    record = made.compiled
    assert record is not None
    assert (record.library, record.version, record.capabilities, record.driver) == (
        "tensorrt", "10.3.0", ["sm_87"], "12.6"
    )  # fmt: skip
    assert (record.typing, record.flags, record.batches, record.stripped) == ("strong", [], [1, 8, 8], False)
    assert record.system == f"{sys.platform}-{platform.machine()}"
    assert [(s.name, s.file, s.inputs, s.outputs) for s in record.stages] == [
        ("x", "stream-0.engine", ["image"], ["x"]),
        ("y", "stream-1.engine", ["image"], ["y"]),
        ("head", "stream-2.engine", ["x", "y"], ["scores"]),
    ]
    line = shlex.split(record.trtexec)
    assert {"--onnx=graph-fp16.onnx", "--saveEngine=model.engine", "--builderOptimizationLevel=4"} <= set(
        line
    )


@pytest.mark.parametrize(
    ("tuning", "cut", "words"),
    [
        ({"fusion": "merged"}, parts, ""),
        ({"strip": True}, parts, "one engine alone"),
        ({"fusion": "auto"}, list, ""),
        ({"fusion": "streams"}, list, "warning: there is nothing to cut"),
    ],
)
def test_a_build_gives_one_engine_where_more_are_not_asked_for_or_cannot_be(
    jetson: Bindings, tmp_path: Path, tuning: dict[str, Any], cut: Callable[[], list[Part]], words: str
) -> None:
    told: list[str] = []
    made = TensorRt().build(Source(b"graph", parts=cut), tmp_path, "sm_87", options(8, told, **tuning))
    assert made.files == ["model.engine"]
    assert made.compiled is not None
    assert made.compiled.stages == []
    assert [line for line in told if words in line]
    assert made.compiled.stripped == ("strip" in tuning)


def test_a_cut_graph_keeps_its_weights(jetson: Bindings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--strip-weights, --fusion streams"):
        TensorRt().build(Source(b"graph"), tmp_path, "sm_87", options(strip=True, fusion="streams"))
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_fails_leaves_no_file(jetson: Bindings, tmp_path: Path) -> None:
    bad = [*parts()[:2], Part("head", b"refused", ("x",), ("scores",))]
    with pytest.raises(EnvironmentUnusable, match="refuses the graph"):
        TensorRt().build(Source(b"graph", parts=lambda: bad), tmp_path, "sm_87", options())
    assert list(tmp_path.iterdir()) == []


def test_among_several_gpus_the_one_that_is_meant_compiles(
    jetson: Bindings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CUDA's device is each thread's own: the builder is made in one thread and builds in another."""
    with_gpus(monkeypatch, RTX_3090, L4)
    entered: list[tuple[str, str]] = []

    def open_device(capability: str) -> Any:
        return SimpleNamespace(enter=lambda: entered.append((capability, threading.current_thread().name)))

    monkeypatch.setattr("vsa_rt.engines.cuda.device.open_device", open_device)
    TensorRt().build(Source(b"graph"), tmp_path, "sm_89", options())
    assert {capability for capability, _ in entered} == {"sm_89"}
    assert set(jetson.threads) <= {thread for _, thread in entered}
    assert len(set(jetson.threads)) == 2


@real
def test_a_real_build_ahead_of_time_gives_both_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch)

    def cut() -> list[Part]:
        return [
            Part("x", pattern("convolution, ReLU", "fp16"), ("input_0",), ("y",)),
            Part("head", pattern("Gemm", "fp16"), ("input_0",), ("y",)),
        ]

    source = Source(pattern("concatenation", "fp16"), "graph-fp16.onnx", cut)
    made = TensorRtRtx().build(source, tmp_path, "sm_86+sm_89", options(4))
    assert made.files == ["model.engine", "stream-0.engine", "stream-1.engine"]
    assert all((tmp_path / name).stat().st_size > 1000 for name in made.files)
    record = made.compiled
    assert record is not None
    assert (record.library, record.capabilities, record.driver) == ("tensorrt-rtx", ["sm_86", "sm_89"], "")
    assert record.trtexec.startswith("tensorrt_rtx --onnx=graph-fp16.onnx ")


@real
def test_rtx_leaves_weights_out_only_where_there_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch)
    with pytest.raises(EnvironmentUnusable, match="weights can be left out only on a machine with a GPU"):
        TensorRtRtx().build(Source(b"graph"), tmp_path, "sm_86", options(strip=True))


# Opening


class Loaded:
    """An engine of the seam that keeps whether it is open."""

    def __init__(self, data: bytes) -> None:
        self.data, self.is_open, self.ports = data, True, ()

    def close(self) -> None:
        self.is_open = False


class Machine:
    """What opening needs, as doubles that keep what they are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded: list[Loaded] = []
        self.graphs: list[bytes | None] = []
        self.host_code: list[bool] = []
        self.sessions: list[Any] = []
        self.prepared: list[int] = []
        self.fails: BaseException | None = None
        self.unprepared: BaseException | None = None
        self.bad = b""
        facts = DeviceFacts("Orin", "sm_87", 8 << 30, "12.6", True)
        self.device = SimpleNamespace(facts=facts, enter=lambda: None)
        monkeypatch.setattr("vsa_rt.engines.cuda.device.open_device", lambda capability: self.device)
        monkeypatch.setattr("vsa_rt.engines.tensorrt.loaded.load_engine", self._load)
        monkeypatch.setattr("vsa_rt.engines.cuda.session.CudaSession", self._session)

    def _load(
        self, library: Library, data: bytes, graph: Callable[[], bytes] | None, host_code: bool
    ) -> Loaded:
        self.host_code.append(host_code)
        if data == self.bad:
            raise EnvironmentUnusable("no engine")
        self.graphs.append(graph() if graph else None)
        self.loaded.append(Loaded(data))
        return self.loaded[-1]

    def _session(self, device: Any, forms: Any, inputs: Any, outputs: Any, options: OpenOptions) -> Any:
        if self.fails is not None:
            raise self.fails
        self.sessions.append(forms)
        return SimpleNamespace(prepare=self._prepare, close=lambda: self._close(forms))

    def _prepare(self, counts: list[int]) -> None:
        self.prepared += counts
        if self.unprepared is not None:
            raise self.unprepared

    def _close(self, forms: Any) -> None:
        for stage in (stage for form in forms for stage in form.stages):
            stage.engine.close()


@pytest.fixture
def machine(jetson: Bindings, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def record(jetson: Bindings, tmp_path: Path) -> CompiledRecord:
    made = TensorRt().build(Source(b"graph", parts=parts), tmp_path, "sm_87", options()).compiled
    assert made is not None
    return made


FILES = [b"merged", b"x", b"y", b"head"]


def opening(record: CompiledRecord | None, graph: Callable[[], bytes] | None = None) -> OpenOptions:
    return OpenOptions(8, 4, device="sm_87", compiled=record, graph=graph)


def altered(record: CompiledRecord, **changes: Any) -> CompiledRecord:
    return msgspec.structs.replace(record, **changes)


def test_an_engine_opens_in_both_forms(machine: Machine, record: CompiledRecord) -> None:
    TensorRt().open(FILES, [], [], opening(record))
    [[merged, streams]] = machine.sessions
    assert (merged.name, [s.engine.data for s in merged.stages]) == ("merged", [b"merged"])
    assert (streams.name, [(s.name, s.engine.data) for s in streams.stages]) == (
        "streams",
        [("x", b"x"), ("y", b"y"), ("head", b"head")],
    )
    assert all(engine.is_open for engine in machine.loaded)
    assert machine.graphs == [None] * 4
    assert machine.prepared == [1]
    assert not any(machine.host_code)


def test_an_engine_without_stages_has_one_form(machine: Machine, record: CompiledRecord) -> None:
    TensorRt().open(FILES[:1], [], [], opening(altered(record, stages=[])))
    assert [form.name for form in machine.sessions[0]] == ["merged"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"capabilities": ["sm_86"]}, "compiled for sm_86.*sm_87"),
        ({"version": "10.4.0"}, r"10\.4\.0"),
        ({"system": "windows-amd64"}, "windows-amd64"),
        ({"library": "tensorrt-rtx"}, "tensorrt-rtx"),
    ],
)
def test_what_does_not_fit_is_refused_before_native_code_sees_it(
    machine: Machine, record: CompiledRecord, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(EnvironmentUnusable, match=words):
        TensorRt().open(FILES, [], [], opening(altered(record, **changes)))
    assert machine.loaded == []


def test_an_engine_of_which_nothing_is_known_is_refused(machine: Machine, record: CompiledRecord) -> None:
    with pytest.raises(EnvironmentUnusable, match=r"nothing says how .* rebuild"):
        TensorRt().open(FILES, [], [], opening(None))
    with pytest.raises(EnvironmentUnusable, match="has 3 files, expected 4"):
        TensorRt().open(FILES[:3], [], [], opening(record))
    with pytest.raises(EnvironmentUnusable, match="no weights, and there is no graph"):
        TensorRt().open(FILES[:1], [], [], opening(altered(record, stages=[], stripped=True)))
    assert machine.loaded == []


def test_an_engine_without_weights_gets_the_graph(machine: Machine, record: CompiledRecord) -> None:
    stripped = altered(record, stages=[], stripped=True)
    TensorRt().open(FILES[:1], [], [], opening(stripped, lambda: b"graph"))
    assert machine.graphs == [b"graph"]


def test_an_engine_with_code_for_the_host_opens_only_where_that_may_run(
    machine: Machine, record: CompiledRecord
) -> None:
    compatible = altered(record, version_compatible=True)
    with pytest.raises(EnvironmentUnusable, match=r"version-compatible.*signature"):
        TensorRt().open(FILES, [], [], opening(compatible))
    assert machine.loaded == []
    TensorRt().open(FILES, [], [], replace(opening(compatible), host_code=True))
    assert machine.host_code == [True] * 4


@pytest.mark.parametrize("where", ["a later engine", "the session", "the first batch"])
def test_what_was_opened_is_closed_where_a_later_step_fails(
    machine: Machine, record: CompiledRecord, where: str
) -> None:
    if where == "the session":
        machine.fails = KeyboardInterrupt()
    elif where == "the first batch":
        machine.unprepared = EnvironmentUnusable("no memory")
    else:
        machine.bad = b"head"
    with pytest.raises((EnvironmentUnusable, KeyboardInterrupt)):
        TensorRt().open(FILES, [], [], opening(record))
    assert len(machine.loaded) == (3 if where == "a later engine" else 4)
    assert not any(engine.is_open for engine in machine.loaded)


def test_counters_are_those_of_the_merged_engine(
    machine: Machine, record: CompiledRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr("vsa_rt.engines.tensorrt.layers.TensorRtProfiler", lambda *given: made.append(given))
    TensorRt().profiler(FILES, [], [], opening(record))
    assert [engine.data for engine in machine.loaded] == [b"merged"]
    assert made == [(machine.device, machine.loaded[0], 8)]
    assert machine.loaded[0].is_open
