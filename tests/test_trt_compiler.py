"""Graphs to TensorRT engines: the real compiler of RTX, and doubles of the bindings that cannot be installed here."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

onnx = pytest.importorskip("onnx", reason="the graphs are made with onnx")
pytest.importorskip("ml_dtypes", reason="weights in bfloat16 are made with ml_dtypes")

from patterns import Net, pattern
from recorded_trt import Bindings, double, options, real

from vsa_rt.engines.compiling import CompileOptions, Tuning
from vsa_rt.engines.tensorrt import library as libraries
from vsa_rt.engines.tensorrt.command import command
from vsa_rt.engines.tensorrt.compiler import Compilation, compile_graph, is_quantised
from vsa_rt.engines.tensorrt.dialects import dialect_of
from vsa_rt.engines.tensorrt.library import open_library
from vsa_rt.engines.tensorrt.monitor import Phases
from vsa_rt.errors import EnvironmentUnusable, UsageError


def quantised() -> bytes:
    return b"a node\x22\x0eQuantizeLinear"


# What a graph says of itself


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int8 in fp16"])
def test_a_quantised_graph_is_known_by_its_nodes(precision: str) -> None:
    assert is_quantised(pattern("Gemm", precision)) == precision.startswith("int8")


def test_a_graph_whose_weights_alone_are_quantised_is_quantised() -> None:
    net = Net("int8")
    graph = net.bytes(net.op("MatMul", net.given(32), net.weight(32, 8, axis=1)))
    assert b"\x22\x0eQuantizeLinear" not in graph
    assert is_quantised(graph)


def test_a_name_is_no_node() -> None:
    net = Net()
    assert not is_quantised(net.bytes(net.op("Relu", net.given(8), name="QuantizeLinear")))


# Batches


@pytest.mark.parametrize(
    ("most", "tuning", "batches"),
    [(8, {}, (1, 8, 8)), (8, {"opt_batch": 4}, (1, 4, 8)), (8, {"min_batch": 2, "opt_batch": 2}, (2, 2, 8))],
)
def test_the_profile_has_least_usual_and_largest_batch(
    most: int, tuning: dict[str, Any], batches: tuple[int, int, int]
) -> None:
    library, bindings = double()
    made = compile_graph(library, b"graph", ["sm_87"], options(most, **tuning))
    [profile] = bindings.configs[0].profiles
    assert profile["image"] == tuple((batch, 4, 4, 3) for batch in batches)
    assert made.batches == batches
    assert made.inputs == (("image", (4, 4, 3)),)


@pytest.mark.parametrize(
    "tuning", [{"min_batch": 9}, {"opt_batch": 9}, {"min_batch": 4, "opt_batch": 2}, {"min_batch": 0}]
)
def test_batches_that_do_not_rise_are_refused(tuning: dict[str, Any]) -> None:
    library, bindings = double()
    with pytest.raises(UsageError, match="must rise from 1"):
        compile_graph(library, b"graph", ["sm_87"], options(8, **tuning))
    assert bindings.configs == []


# What is said


def test_the_dialect_is_said() -> None:
    told: list[str] = []
    compile_graph(double("11.4.0")[0], b"graph", ["sm_110"], options(told=told), "model.engine")
    assert told[0] == "compiling model.engine with tensorrt 11.4.0, as tensorrt 11.x"


def test_weak_typing_is_said_and_kept_in_the_record() -> None:
    told: list[str] = []
    library, bindings = double("10.3.0")
    made = compile_graph(library, quantised(), ["sm_87"], options(told=told))
    assert made.typing == "weak"
    assert set(made.flags) == {"FP16", "INT8"} == bindings.configs[0].flags
    [warning] = [line for line in told if line.startswith("warning: ")]
    assert "tensorrt 10.3.0" in warning
    assert "FP16 and INT8" in warning


@pytest.mark.parametrize(
    ("version", "graph"), [("10.3.0", b"graph"), ("10.12.0", quantised()), ("11.4.0", quantised())]
)
def test_strong_typing_needs_no_warning(version: str, graph: bytes) -> None:
    told: list[str] = []
    made = compile_graph(double(version)[0], graph, ["sm_87"], options(told=told))
    assert (made.typing, made.flags) == ("strong", ())
    assert not [line for line in told if line.startswith("warning: ")]


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0"])
def test_a_refusal_names_library_and_version(version: str) -> None:
    with pytest.raises(
        EnvironmentUnusable, match=rf"tensorrt {version} refuses the graph for sm_87: no kernel for it; "
    ):
        compile_graph(double(version)[0], b"refused", ["sm_87"], options())


# Progress


def shares(told: Sequence[str]) -> list[int]:
    return [int(found[1]) for line in told if (found := re.search(r" (\d+) %, ", line))]


def test_phases_within_phases_become_one_bar() -> None:
    told: list[str] = []
    phases = Phases("model.engine", told.append)
    phases.start("Building engine", None, 4)
    phases.step("Building engine", 0)
    phases.start("Timing", "Building engine", 2)
    phases.step("Timing", 0)
    phases.finish("Timing")
    phases.step("Building engine", 1)
    phases.finish("Building engine")
    assert shares(told) == [0, 25, 37, 50]
    assert told[2] == "compiling model.engine ███████░░░░░░░░░░░░░ 37 %, Timing"


def test_a_bar_never_goes_back() -> None:
    told: list[str] = []
    phases = Phases("model.engine", told.append)
    phases.start("one", None, 2)
    phases.start("inner", "one", 1)
    phases.step("inner", 0)
    phases.finish("inner")
    phases.start("inner", "one", 10)
    phases.step("unknown", 3)
    phases.step("inner", 3)
    phases.finish("never began")
    assert shares(told) == [0, 50]


@real
def test_the_real_compiler_tells_how_far_it_is() -> None:
    told: list[str] = []
    here = threading.current_thread()
    threads = set()

    def progress(line: str) -> None:
        told.append(line)
        threads.add(threading.current_thread())

    compile_graph(
        open_library("tensorrt-rtx"),
        pattern("Gemm", "fp16"),
        ["sm_86"],
        CompileOptions(4, progress=progress),
        "g",
    )
    found = shares(told)
    assert found == sorted(set(found))
    assert found[0] == 0
    assert found[-1] > 50
    assert threads == {here}


# Stopping

STOPPED = """
import os, signal, sys
from pathlib import Path
from vsa_rt.engines.compiling import CompileOptions, Source
from vsa_rt.engines.tensorrt import monitor
from vsa_rt.engines.tensorrt.backend import TensorRtRtx

graph, folder, how = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), sys.argv[3]
steps, told = [], []
step = monitor.Phases.step

def counted(self, name, number):
    step(self, name, number)
    steps.append(name)
    if how == "while it compiles" and len(steps) == 12:
        os.kill(os.getpid(), signal.SIGINT)

def progress(line):
    told.append(line)
    if how == "while it tells" and " 33 %" in line:
        os.kill(os.getpid(), signal.SIGINT)

monitor.Phases.step = counted
def build():
    steps.clear()
    return TensorRtRtx().build(Source(graph), folder, "sm_86", CompileOptions(4, progress=progress))
try:
    build()
    print("never stopped")
except KeyboardInterrupt:
    print("stopped", len(steps), list(folder.iterdir()))
how = ""
made = build()
print("whole", len(steps), made.files, (folder / "model.engine").stat().st_size > 0)
"""


@real
@pytest.mark.parametrize("how", ["while it compiles", "while it tells"])
def test_ctrl_c_stops_the_real_compiler_and_leaves_nothing(tmp_path: Path, how: str) -> None:
    """The signal comes in the middle of a build; the process lives on, and the next build is whole."""
    (tmp_path / "graph.onnx").write_bytes(pattern("concatenation", "int8"))
    (tmp_path / "engines").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, str(tmp_path / "graph.onnx"), str(tmp_path / "engines"), how],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    stopped = re.match(r"stopped (\d+) \[\]\nwhole (\d+) \['model.engine'\] True\n", done.stdout)
    assert stopped, done.stdout
    assert int(stopped[1]) < int(stopped[2])


def test_what_progress_raises_stops_the_compiler_and_comes_out() -> None:
    """Also where it is Ctrl-C that meets it there."""
    for raised in (KeyboardInterrupt, BrokenPipeError):
        library, bindings = double("11.4.0")
        steps: list[int] = []
        told = threading.Event()

        def during(step: int, steps: list[int] = steps, told: threading.Event = told) -> None:
            steps.append(step)
            if step == 1:
                told.wait(60)

        lines: list[str] = []

        def progress(
            line: str,
            raised: type[BaseException] = raised,
            told: threading.Event = told,
            lines: list[str] = lines,
        ) -> None:
            if " %, " in line:
                lines.append(line)
                threading.Timer(0.3, told.set).start()
                raise raised

        bindings.during = during
        with pytest.raises(raised):
            compile_graph(library, b"graph", ["sm_110"], CompileOptions(4, progress=progress))
        assert steps == [0, 1]
        assert len(lines) == 1


def test_a_fault_in_the_monitor_does_not_reach_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that crosses into the library would end the process."""

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("in the monitor")

    monkeypatch.setattr(Phases, "step", broken)
    with pytest.raises(ZeroDivisionError, match="in the monitor"):
        compile_graph(double()[0], b"graph", ["sm_87"], options())


def test_after_a_stop_the_lock_is_free(tmp_path: Path) -> None:
    library, bindings = double()
    bindings.during = lambda _: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        compile_graph(library, b"graph", ["sm_87"], options(timing_cache=tmp_path / "t"))
    assert list(tmp_path.iterdir()) == []
    bindings.during = lambda _: None
    assert compile_graph(library, b"graph", ["sm_87"], options()).engine == b"engine of graph"


# Timing cache


def test_what_was_measured_is_kept_and_used_again(tmp_path: Path) -> None:
    file = tmp_path / "timing.cache"
    for graph in (b"one", b"two", b"one"):
        compile_graph(double()[0], graph, ["sm_87"], options(timing_cache=file))
    assert file.read_bytes() == b"cache of 10.3.0\none\ntwo"
    assert list(tmp_path.iterdir()) == [file]


def test_what_another_process_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "timing.cache"
    library, bindings = double()

    def during(_: int) -> None:
        file.write_bytes(b"cache of 10.3.0\ntheirs")

    bindings.during = during
    compile_graph(library, b"ours", ["sm_87"], options(timing_cache=file))
    assert file.read_bytes() == b"cache of 10.3.0\nours\ntheirs"


@pytest.mark.parametrize("content", [b"cache of 10.2.0\none", b"garbage"])
def test_a_cache_of_another_version_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "timing.cache"
    file.write_bytes(content)
    with pytest.raises(
        UsageError, match=r"timing.cache: not of tensorrt 10\.3\.0 and this GPU, or damaged; name another"
    ):
        compile_graph(double()[0], b"one", ["sm_87"], options(timing_cache=file))
    assert file.read_bytes() == content


def test_a_cache_of_another_gpu_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "timing.cache"
    library, bindings = double()
    bindings.takes_cache = False
    with pytest.raises(UsageError, match="this GPU"):
        compile_graph(library, b"one", ["sm_87"], options(timing_cache=file))


def test_an_empty_cache_is_a_cache(tmp_path: Path) -> None:
    file = tmp_path / "timing.cache"
    file.write_bytes(b"cache of 10.3.0\n")
    compile_graph(double()[0], b"one", ["sm_87"], options(timing_cache=file))
    assert file.read_bytes() == b"cache of 10.3.0\none"


@pytest.mark.parametrize("place", ["nowhere/timing.cache", "."])
def test_a_cache_needs_a_folder_and_is_none(tmp_path: Path, place: str) -> None:
    with pytest.raises(UsageError, match="not a file in a folder that exists"):
        compile_graph(double()[0], b"one", ["sm_87"], options(timing_cache=tmp_path / place))


def test_a_cache_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "timing.cache"
    file.write_bytes(b"cache of 10.3.0\none")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        compile_graph(double()[0], b"two", ["sm_87"], options(timing_cache=file))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"timing.cache": b"cache of 10.3.0\none"}


@real
def test_the_real_rtx_has_no_use_for_a_cache_and_says_so(tmp_path: Path) -> None:
    told: list[str] = []
    file = tmp_path / "timing.cache"
    compile_graph(
        open_library("tensorrt-rtx"), pattern("Gemm", "fp16"), ["sm_86"], options(4, told, timing_cache=file)
    )
    assert [line for line in told if line.startswith("warning: ") and str(file) in line and "unused" in line]
    assert not file.exists()


# The real compiler's options


@real
def test_the_real_compiler_takes_every_option_that_it_has() -> None:
    tuning: dict[str, Any] = {"level": 2, "aux_streams": 1, "workspace": 1 << 28, "opt_batch": 2}
    made = compile_graph(
        open_library("tensorrt-rtx"),
        pattern("concatenation", "int8 in fp16"),
        ["sm_86", "sm_89"],
        options(4, **tuning),
    )
    assert made.engine
    assert (made.typing, made.flags, made.batches) == ("strong", (), (1, 2, 4))
    assert made.inputs == (("input_0", (16, 16, 3)),)


@real
def test_too_little_scratch_memory_is_refused_with_the_option_that_helps() -> None:
    with pytest.raises(EnvironmentUnusable, match=r"workspace.*allow more scratch memory with --workspace"):
        compile_graph(
            open_library("tensorrt-rtx"), pattern("Gemm", "fp16"), ["sm_86"], options(4, workspace=1 << 10)
        )


# Standard output


@real
def test_what_python_prints_while_it_compiles_goes_where_it_went(tmp_path: Path) -> None:
    """The compiler's own words on standard output do not: this pattern makes it print a warning."""
    (tmp_path / "graph.onnx").write_bytes(pattern("unit norm", "fp16"))
    code = (
        "import sys; from pathlib import Path\n"
        "from vsa_rt.engines.backend import CompileOptions\n"
        "from vsa_rt.engines.tensorrt.compiler import compile_graph\n"
        "from vsa_rt.engines.tensorrt.library import open_library\n"
        "graph = Path(sys.argv[1]).read_bytes()\n"
        "options = CompileOptions(4, progress=lambda line: print('told:', line))\n"
        "compile_graph(open_library('tensorrt-rtx'), graph, ['sm_86'], options)\n"
        "print('after')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path / "graph.onnx")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    *lines, last = done.stdout.splitlines()
    assert last == "after"
    assert len(lines) > 5
    assert all(line.startswith("told: compiling ") for line in lines)


# The command

MADE = Compilation(b"", "strong", (), (1, 4, 8), (("image", (224, 224, 3)), ("objects", (10, 2048))))


def words(version: str, made: Compilation = MADE, *capabilities: str, **tuning: Any) -> list[str]:
    package = "tensorrt-rtx" if version.startswith("1.") else "tensorrt"
    spoken = dialect_of(package, version, Bindings(version, package == "tensorrt-rtx"))
    line = command(
        spoken, "graph-fp16.onnx", "model.engine", made, Tuning(**tuning), capabilities or ["sm_87"]
    )
    return shlex.split(line)


def test_the_command_is_trtexecs() -> None:
    assert words("10.3.0") == [
        "trtexec", "--onnx=graph-fp16.onnx", "--saveEngine=model.engine", "--skipInference",
        "--minShapes=image:1x224x224x3,objects:1x10x2048",
        "--optShapes=image:4x224x224x3,objects:4x10x2048",
        "--maxShapes=image:8x224x224x3,objects:8x10x2048",
        "--stronglyTyped", "--noTF32", "--profilingVerbosity=detailed",
    ]  # fmt: skip


def test_the_command_has_every_option() -> None:
    tuning: dict[str, Any] = {
        "timing_cache": Path("/somewhere/timing.cache"), "workspace": 1 << 30, "level": 4, "aux_streams": 2,
        "version_compatible": True, "hardware": "ampere+", "strip": True,
    }  # fmt: skip
    line = words("10.3.0", **tuning)
    for word in (
        "--timingCacheFile=timing.cache", "--memPoolSize=workspace:1073741824B", "--builderOptimizationLevel=4",
        "--maxAuxStreams=2", "--versionCompatible", "--hardwareCompatibilityLevel=ampere+", "--stripWeights",
    ):  # fmt: skip
        assert word in line
    other = words("11.4.0", hardware="same capability")
    assert "--hardwareCompatibilityLevel=sameComputeCapability" in other


def test_the_command_says_how_types_are_decided() -> None:
    weak = words("10.3.0", replace(MADE, typing="weak", flags=("FP16", "INT8")))
    assert {"--fp16", "--int8"} <= set(weak)
    assert "--stronglyTyped" not in weak
    assert not {"--fp16", "--int8", "--stronglyTyped"} & set(words("11.4.0"))


def test_the_command_for_rtx_is_its_own_tools() -> None:
    line = words("1.7.1", MADE, "sm_86", "sm_120", timing_cache=Path("t"))
    assert line[0] == "tensorrt_rtx"
    assert "--computeCapabilities=86,120" in line
    assert not [word for word in line if word.startswith("--timingCacheFile")]


def test_odd_names_survive_the_shell() -> None:
    made = replace(MADE, inputs=(("in put:0", (3,)),))
    assert "--minShapes='in put:0':1x3" in words("11.4.0", made)


# The library


def test_on_a_jetson_the_library_comes_with_jetpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        EnvironmentUnusable, match=r"tensorrt cannot be imported.*pip install 'vsa-rt\[tensorrt\]'"
    ):
        open_library("tensorrt")
    (tmp_path / "nv_tegra_release").touch()
    monkeypatch.setattr(libraries, "_TEGRA", tmp_path / "nv_tegra_release")
    with pytest.raises(EnvironmentUnusable, match=r"comes with JetPack.*--system-site-packages"):
        open_library("tensorrt")
