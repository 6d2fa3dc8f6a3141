"""What doctor says of precisions, by the speeds that it measured and by nothing else."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vsa_rt import gpu, jetson, render
from vsa_rt.bench import clock
from vsa_rt.bench.layer_kinds import kind_of_word
from vsa_rt.bench.probe import CHANNELS, LAYERS, PROBED, SIZE, probe_graph
from vsa_rt.contracts import Precision, Target, TensorSpec
from vsa_rt.doctor import LIBRARIES, Library, Machine, describe_machine, made_for_newer, missing
from vsa_rt.engines import table
from vsa_rt.engines.backend import OpenOptions, Probe
from vsa_rt.engines.compiling import CompileOptions, Source
from vsa_rt.errors import EnvironmentUnusable
from vsa_rt.pipeline import diagnose

if TYPE_CHECKING:
    import subprocess

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
OPENVINO = Target("openvino", "cpu")


def test_a_precision_that_is_no_faster_will_not_pay() -> None:
    assert diagnose.pays("openvino:cpu", Precision.INT8, 0.9) == (
        "int8 will not pay on openvino:cpu here: 0.90 of fp32's speed on convolutions."
    )
    assert diagnose.pays("openvino:cpu", Precision.BF16, 1.19) == (
        "bf16 will not pay on openvino:cpu here: only 1.19 times fp32's speed on convolutions, "
        "and a network gains less."
    )
    assert diagnose.pays("openvino:cpu", Precision.BF16, 4.64) == (
        "bf16 pays on openvino:cpu: 4.6 times fp32's speed on convolutions."
    )


@pytest.mark.parametrize("precision", [p for p in PROBED if p is not Precision.FP32])
def test_each_precision_pays_from_its_own_bound_on(precision: Precision) -> None:
    bound = diagnose.PAYS[precision]
    assert "will not pay" in diagnose.pays("x:y", precision, bound - 0.01)
    assert " pays " in diagnose.pays("x:y", precision, bound)


def test_int8_does_not_pay_at_what_a_processor_without_vnni_gives() -> None:
    """64 products take vpmaddubsw, vpmaddwd and vpaddd there, and four fused multiply-adds in fp32."""
    assert "will not pay" in diagnose.pays("openvino:cpu", Precision.INT8, 4 / 3)
    assert " pays " in diagnose.pays("openvino:cpu", Precision.INT8, 4.0)


def plant(monkeypatch: pytest.MonkeyPatch, speeds: list[diagnose.Speed]) -> None:
    """Let every measurement say this."""
    monkeypatch.setattr(diagnose, "_measure", lambda target: speeds)


FAST = diagnose.Speed("fp32", 400.0, 1.0, "", 1.0)


def test_advice_follows_planted_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="a target has to be usable for advice on it")
    plant(
        monkeypatch,
        [FAST, diagnose.Speed("bf16", 360.0, 1.0, "", 0.9), diagnose.Speed("int8", 1600.0, 1.0, "", 4.0)],
    )
    advice = diagnose.diagnose().advice
    assert "bf16 will not pay on openvino:cpu here: 0.90 of fp32's speed on convolutions." in advice
    assert "int8 pays on openvino:cpu: 4.0 times fp32's speed on convolutions." in advice
    assert not any(line.startswith("fp32") for line in advice)


def test_paying_has_what_runs_below_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(
        monkeypatch,
        [FAST, diagnose.Speed("bf16", 900.0, 1.0, "", 2.25), diagnose.Speed("int8", None, None, "refused")],
    )
    assert diagnose.paying(OPENVINO) == {Precision.BF16: 2.25}


def test_a_speed_is_the_median_of_the_pairs_of_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="the probes are opened with it")

    def measure(calls: dict[str, object], rounds: int) -> dict[str, list[float]]:
        # The medians are 10 and 4; that of the pairs is 2.
        return {name: [8.0, 10.0, 30.0] if name == "fp32" else [4.0, 10.0, 4.0] for name in calls}

    monkeypatch.setattr(clock, "measure", measure)
    found = diagnose.paying(OPENVINO)
    assert found
    assert set(found.values()) == {2.0}


def test_every_probe_that_ships_is_the_one_that_is_made() -> None:
    pytest.importorskip("onnx", reason="the probes are made with it")
    folder = Path(str(table.__file__)).parent
    assert {p.name for p in folder.glob("probe.*.onnx")} == {f"probe.{p}.onnx" for p in PROBED}
    for precision in PROBED:
        assert (folder / f"probe.{precision}.onnx").read_bytes() == probe_graph(precision)


def test_openvino_runs_the_probe_of_int8_in_bytes() -> None:
    """Its own counters say so; weights that it folded to fp32 first would be measured as fp32."""
    pytest.importorskip("openvino", reason="its convolutions are looked at")
    backend = table.backend("openvino")
    with tempfile.TemporaryDirectory() as folder:
        source = Source(probe_graph(Precision.INT8))
        made = backend.build(source, Path(folder), "cpu", CompileOptions(4))
        files = [(Path(folder) / name).read_bytes() for name in made.files]
    inputs = [TensorSpec("image", "float32", (None, CHANNELS, SIZE, SIZE))]
    outputs = [TensorSpec("features", "float32", (None, CHANNELS))]
    profiler = backend.profiler(files, inputs, outputs, OpenOptions(max_batch=4, threads=1))
    try:
        profiler.run({"image": np.zeros((4, CHANNELS, SIZE, SIZE), np.float32)})
        profiler.collect()
    finally:
        layers = profiler.finish()
    ran = [layer.precision for layer in layers if kind_of_word(layer.kind) == "convolution"]
    assert len(ran) == LAYERS
    assert set(ran) <= {"int8", "uint8"}


def test_openvino_says_that_it_computes_each_probe_in_its_precision() -> None:
    pytest.importorskip("openvino", reason="it is asked")
    for precision in (Precision.FP32, Precision.INT8):
        session = diagnose._open(OPENVINO, precision)
        try:
            session.slots[0].run({"image": np.zeros((4, CHANNELS, SIZE, SIZE), np.float32)})
            assert session.achieved == 1.0
        finally:
            session.close()


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8])
def test_tensorrt_compiles_every_probe(precision: Precision) -> None:
    pytest.importorskip("tensorrt_rtx", reason="it compiles the probes", exc_type=ImportError)
    from vsa_rt.engines.tensorrt.compiler import compile_ahead

    assert compile_ahead(probe_graph(precision), (diagnose.AHEAD,), max_batch=4)


def test_onnxruntime_takes_the_probe_of_int8() -> None:
    pytest.importorskip("onnxruntime", reason="it opens the probe")
    diagnose._open(Target("onnxruntime", "cpu"), Precision.INT8).close()


@pytest.mark.skipif(
    not any("BF16" in words for words in describe_machine().instruction_sets),
    reason="the processor has no bf16 instructions to hide",
)
def test_doctor_finds_out_that_bf16_does_not_pay_where_its_instructions_are_hidden(vsa: Cli) -> None:
    """The library's list of capabilities still names them: only a measurement tells."""
    pytest.importorskip("openvino", reason="its convolutions are measured")
    done = vsa("doctor", "--json", env={"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"})
    found = json.loads(done.stdout)
    [target] = [t for t in found["targets"] if t["target"] == "openvino:cpu"]
    [speed] = [s for s in target["speeds"] if s["precision"] == "bf16"]
    assert speed["times"] < 1, "emulated bf16 was measured five times slower than fp32"
    assert any(line.startswith("bf16 will not pay on openvino:cpu here") for line in found["advice"])


# GPUs and Jetson

ABSENT = gpu.Gpus(reason="no NVIDIA driver is installed: libcuda.so.1 is not there")
L4 = gpu.Gpus([gpu.Gpu("NVIDIA L4", "sm_89", 23 << 30, False)], "13.0")
ORIN = gpu.Gpus([gpu.Gpu("Orin", "sm_87", 8 << 30, True)], "12.6")
BOARD = jetson.Jetson(
    board="NVIDIA Jetson Orin Nano Developer Kit",
    l4t="36.4.0",
    jetpack="6.1+b123",
    tensorrt="10.3.0.30-1+cuda12.5",
    power_mode="15W",
    power_modes={"15W": 0, "MAXN_SUPER": 2},
    clocks=[jetson.Clock("17000000.gpu", 306.0, 306.0, 624.8, False)],
    reasons={},
)
#: With nothing installed.
BARE = Machine(
    "a processor", "x86_64", 2, 8.0, [], "3.11", "Linux", [Library(n, None, *t) for n, t in LIBRARIES.items()]
)


def plant_accelerators(
    monkeypatch: pytest.MonkeyPatch, gpus: gpu.Gpus, board: jetson.Jetson | None = None
) -> None:
    """Let this machine have these GPUs, and be this board."""
    plant(monkeypatch, [FAST])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(gpu, "find_gpus", lambda: gpus)
    monkeypatch.setattr(jetson, "find_jetson", lambda root: board)


def plant_flavours(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    """Let TensorRTs of these versions be there, and of no use."""
    monkeypatch.setattr(
        diagnose,
        "_flavour",
        lambda name, gpus, commands: diagnose.Flavour(
            name, versions.get(name, ""), False, False, "planted", ""
        ),
    )


def commands(gpus: gpu.Gpus, board: jetson.Jetson | None = None, **changed: object) -> dict[str, str]:
    """What doctor would have installed on a bare machine."""
    return {found.name: found.install for found in missing(replace(BARE, **changed), gpus, board)}  # type: ignore[arg-type]  # keys of Machine


def test_without_a_gpu_nothing_that_needs_one_is_missing() -> None:
    assert set(commands(ABSENT)) == set(LIBRARIES) - {"tensorrt", "cuda-core", "onnxruntime-gpu", "pycuda"}


def test_with_a_gpu_everything_that_it_takes_is_missing() -> None:
    found = commands(L4)
    assert set(found) == set(LIBRARIES)
    assert found["tensorrt"] == "pip install 'vsa-rt[tensorrt]'"


def test_a_driver_for_cuda_12_is_not_given_what_is_made_for_cuda_13() -> None:
    found = commands(replace(L4, driver="12.6"))
    assert found["cuda-core"] == "pip install 'cuda-core>=1.0' 'cuda-bindings>=12.6,<13'"
    assert found["tensorrt"] == "pip install 'tensorrt-cu12>=10.3,<12'"


def test_on_a_jetson_tensorrt_comes_from_jetpack() -> None:
    found = commands(ORIN, BOARD, architecture="aarch64")
    assert found["tensorrt"] == "python3 -m venv --system-site-packages .venv"
    assert found["cuda-core"] == "pip install 'cuda-core>=1.0' 'cuda-bindings>=12.6,<13'"
    thor = commands(replace(ORIN, driver="13.0"), BOARD, architecture="aarch64")
    assert thor["cuda-core"] == "pip install 'cuda-core>=1.0' 'cuda-bindings>=13,<14'"
    assert not {"tensorrt-rtx-cu13", "onnxruntime-gpu"} & set(found), "there is none for it"
    absent = replace(BOARD, tensorrt=None)
    assert commands(ORIN, absent)["tensorrt"].startswith(
        "sudo apt install python3-libnvinfer; python3 -m venv"
    )


def test_one_onnxruntime_is_not_missed_beside_the_other() -> None:
    there = [replace(lib, version="1") if lib.name == "onnxruntime-gpu" else lib for lib in BARE.libraries]
    assert "onnxruntime" not in commands(L4, libraries=there)


def test_tensorrt_is_found_under_each_of_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"tensorrt-cu12": "10.9.0"}
    monkeypatch.setattr("vsa_rt.doctor.library_version", versions.get)
    [found] = [lib for lib in describe_machine().libraries if lib.name == "tensorrt"]
    assert found.version == "10.9.0"


def test_without_a_gpu_doctor_says_why_and_that_engines_can_be_compiled_ahead(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="it compiles ahead of time", exc_type=ImportError)
    plant_accelerators(monkeypatch, ABSENT)
    found = diagnose.diagnose()
    [flavour] = [f for f in found.tensorrt if f.package == "tensorrt-rtx"]
    assert (flavour.version, flavour.usable, flavour.compiles) == (rtx.__version__, False, True)
    assert not [t for t in found.targets if t.target.startswith("tensorrt")]
    [line] = [line for line in found.advice if "--target tensorrt-rtx:" in line]
    assert table.probe(Target.parse(line.split("--target ")[1].rstrip("."))).compiles
    render.diagnosis(found, False)
    text = capsys.readouterr().out
    assert "none: no NVIDIA driver is installed: libcuda.so.1 is not there" in text
    assert "compiles ahead of time, runs nothing: no GPU is here" in text
    assert "MHz" not in text


def test_a_gpu_is_a_target_and_is_described(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="its target is looked for", exc_type=ImportError)
    pytest.importorskip("cuda.core", reason="it opens engines", exc_type=ImportError)
    plant_accelerators(monkeypatch, L4)
    found = diagnose.diagnose()
    [target] = [t for t in found.targets if t.target == "tensorrt-rtx:sm_89"]
    assert (target.usable, target.machine) == (True, "NVIDIA L4")
    [flavour] = [f for f in found.tensorrt if f.package == "tensorrt-rtx"]
    assert (flavour.usable, flavour.compiles, flavour.reason) == (True, True, "")
    assert not any("elsewhere" in line for line in found.advice)
    render.diagnosis(found, False)
    text = capsys.readouterr().out
    assert "NVIDIA L4 (sm_89), 23.0 GiB" in text
    assert "serves CUDA up to 13.0" in text


def test_a_gpu_that_tensorrt_does_not_know_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="it is asked for an old GPU", exc_type=ImportError)
    plant_accelerators(monkeypatch, gpu.Gpus([gpu.Gpu("old", "sm_61", 1 << 30, False)], "12.6"))
    found = diagnose.diagnose()
    [flavour] = [f for f in found.tensorrt if f.package == "tensorrt-rtx"]
    assert (flavour.usable, flavour.reason) == (False, "it has no engines for sm_61")
    assert not any("No TensorRT can use" in line for line in found.advice), "nothing would change that"


def test_a_gpu_that_no_tensorrt_uses_yet_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_accelerators(monkeypatch, L4)
    plant_flavours(monkeypatch, {})
    advice = diagnose.diagnose().advice
    assert "No TensorRT can use this machine's GPU yet; what it needs is listed as missing." in advice


def test_what_is_made_for_a_newer_cuda_than_the_drivers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"cuda-bindings": "13.5.0", "tensorrt-cu13": "11.4.0", "tensorrt-rtx-cu13": "1.7.1"}
    monkeypatch.setattr("vsa_rt.doctor.library_version", versions.get)
    told = made_for_newer(replace(L4, driver="12.6"))
    head = "is made for CUDA 13, and the driver serves CUDA up to 12.6: update the driver"
    assert told == [
        f"cuda-bindings {head}, or pip install 'cuda-bindings>=12.6,<13'.",
        f"tensorrt-cu13 {head}, or pip uninstall tensorrt tensorrt-cu13; pip install 'tensorrt-cu12>=10.3,<12'.",
        f"tensorrt-rtx-cu13 {head}.",
    ]
    assert made_for_newer(L4) == []
    assert made_for_newer(ABSENT) == [], "without a driver there is none to be too old"
    versions["cuda-bindings"] = "12.9.2"
    assert not any(line.startswith("cuda-bindings") for line in made_for_newer(replace(L4, driver="12.6")))


def test_a_jetson_is_described_and_told_how_to_be_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_accelerators(monkeypatch, ORIN, replace(BOARD, l4t=None, reasons={"l4t": "the file is not there"}))
    found = diagnose.diagnose()
    assert "The power mode is 15W; the fastest is MAXN_SUPER: sudo nvpmodel -m 2." in found.advice
    assert "Clocks follow the load: sudo jetson_clocks pins them before a measurement." in found.advice
    render.diagnosis(found, False)
    text = capsys.readouterr().out
    for words in (
        "Orin (sm_87), 8.0 GiB shared with the processor",
        "NVIDIA Jetson Orin Nano Developer Kit",
        "6.1+b123",
        "unknown: the file is not there",
        "follows the load",
    ):
        assert words in text


def test_a_jetson_at_its_fastest_with_pinned_clocks_needs_no_advice_on_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fastest = replace(
        BOARD, power_mode="MAXN_SUPER", clocks=[jetson.Clock("17000000.gpu", 1.0, 1.0, 1.0, True)]
    )
    plant_accelerators(monkeypatch, ORIN, fastest)
    advice = diagnose.diagnose().advice
    assert not [line for line in advice if "nvpmodel" in line or "jetson_clocks" in line]


@pytest.mark.parametrize(("version", "told"), [("", True), ("10.3.0", False)])
def test_a_tensorrt_of_jetpack_that_this_environment_does_not_see_is_told(
    monkeypatch: pytest.MonkeyPatch, version: str, told: bool
) -> None:
    plant_accelerators(monkeypatch, ORIN, BOARD)
    plant_flavours(monkeypatch, {"tensorrt": version})
    advice = [line for line in diagnose.diagnose().advice if "--system-site-packages" in line]
    assert bool(advice) is told
    assert all("10.3.0.30-1+cuda12.5" in line for line in advice)


def test_a_jetson_without_jetpack_is_told_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = dict.fromkeys(("jetpack", "tensorrt"), "the package nvidia-jetpack is not installed")
    plant_accelerators(monkeypatch, ORIN, replace(BOARD, jetpack=None, tensorrt=None, reasons=reasons))
    [line] = [line for line in diagnose.diagnose().advice if line.startswith("JetPack: ")]
    assert line == "JetPack: the package nvidia-jetpack is not installed: sudo apt install nvidia-jetpack."


def test_a_jetson_that_has_the_parts_that_count_is_not_told_to_install_all_of_jetpack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reasons = {"jetpack": "the package nvidia-jetpack is not installed"}
    plant_accelerators(monkeypatch, ORIN, replace(BOARD, jetpack=None, reasons=reasons))
    assert not any("apt install nvidia-jetpack" in line for line in diagnose.diagnose().advice)


def test_a_tensorrt_that_imports_is_not_missing_though_it_has_no_metadata(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant_accelerators(monkeypatch, ORIN, BOARD)
    monkeypatch.setattr(diagnose, "describe_machine", lambda: replace(BARE, architecture="aarch64"))
    plant_flavours(monkeypatch, {})
    assert "tensorrt" in {library.name for library in diagnose.diagnose().missing}
    plant_flavours(monkeypatch, {"tensorrt": "10.3.0"})
    assert "tensorrt" not in {library.name for library in diagnose.diagnose().missing}


def test_what_else_uses_gpus_is_listed_with_its_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_accelerators(monkeypatch, L4)
    names = {"cuda-core": "1.2.2", "onnxruntime-gpu": "1.23.0", "pycuda": "2025.1"}
    there = [replace(library, version=names.get(library.name)) for library in BARE.libraries]
    monkeypatch.setattr(diagnose, "describe_machine", lambda: replace(BARE, libraries=there))
    render.diagnosis(diagnose.diagnose(), False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name, version in names.items():
        assert [name, f"{version}:"] in [words[:2] for words in lines]


def test_a_container_that_hides_its_packages_is_not_told_to_install_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reasons = dict.fromkeys(("jetpack", "tensorrt"), "/var/lib/dpkg/status cannot be read")
    plant_accelerators(monkeypatch, ORIN, replace(BOARD, jetpack=None, tensorrt=None, reasons=reasons))
    assert not any("apt install nvidia-jetpack" in line for line in diagnose.diagnose().advice)


def test_everything_that_names_a_command_names_the_one_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant_accelerators(monkeypatch, replace(L4, driver="12.8"))
    monkeypatch.setattr(diagnose, "describe_machine", lambda: BARE)
    monkeypatch.setattr(table, "probe", lambda target: Probe(False, reason="absent", install="the usual"))
    found = diagnose.diagnose()
    command = "pip install 'tensorrt-cu12>=10.3,<12'"
    [missed] = [library for library in found.missing if library.name == "tensorrt"]
    [flavour] = [f for f in found.tensorrt if f.package == "tensorrt"]
    [target] = [t for t in found.targets if t.target == "tensorrt:sm_89"]
    assert (missed.install, flavour.install, target.install) == (command,) * 3


@pytest.mark.parametrize("columns", [60, 90, 200])
def test_a_command_is_not_broken_into_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    plant_accelerators(monkeypatch, replace(L4, driver="12.8"))
    monkeypatch.setattr(diagnose, "describe_machine", lambda: BARE)
    found = diagnose.diagnose()
    monkeypatch.setenv("COLUMNS", str(columns))
    render.diagnosis(found, False)
    text = capsys.readouterr().out
    assert found.missing
    for library in found.missing:
        assert library.name in text
        assert library.install in text


def test_gpus_and_board_are_in_the_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_accelerators(monkeypatch, ORIN, BOARD)
    render.diagnosis(diagnose.diagnose(), True)
    document = json.loads(capsys.readouterr().out)
    assert document["gpus"] == {
        "devices": [{"name": "Orin", "capability": "sm_87", "nbytes": 8 << 30, "integrated": True}],
        "driver": "12.6",
        "reason": "",
    }
    assert document["jetson"]["clocks"][0]["pinned"] is False
    assert document["jetson"]["power_modes"] == {"15W": 0, "MAXN_SUPER": 2}
    assert [f["package"] for f in document["tensorrt"]] == ["tensorrt", "tensorrt-rtx"]
    assert {"name", "version", "purpose", "install"} == set(document["missing"][0])


def test_where_no_precision_of_a_target_runs_the_reasons_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(target: Target, precision: Precision) -> None:
        raise EnvironmentUnusable(f"planted for {precision}")

    monkeypatch.setattr(diagnose, "_open", refuse)
    speeds = diagnose._measure(Target("onnxruntime", "cpu"))
    assert speeds
    assert all(s.gmacs is None and s.reason == f"planted for {s.precision}" for s in speeds)


class Planted:
    """A session that runs so often and then fails as a GPU does."""

    achieved = None

    def __init__(self, runs: int) -> None:
        self.slots, self.left, self.closed = [self], runs, False

    def run(self, inputs: object) -> None:
        self.left -= 1
        if self.left < 0:
            raise EnvironmentUnusable("planted: illegal address")

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("runs", [0, 1, 5])
def test_a_target_that_fails_while_it_is_measured_is_reported_and_closed(
    monkeypatch: pytest.MonkeyPatch, runs: int
) -> None:
    opened: list[Planted] = []

    def open_planted(target: Target, precision: Precision) -> Planted:
        opened.append(Planted(1000 if precision is Precision.FP32 else runs))
        return opened[-1]

    monkeypatch.setattr(diagnose, "_open", open_planted)
    speeds = {s.precision: s for s in diagnose._measure(Target("onnxruntime", "cpu"))}
    assert speeds["int8"].gmacs is None
    assert speeds["int8"].reason == "planted: illegal address"
    # What ran beside it is not measured to its end, unless the first call showed it.
    assert (speeds["fp32"].gmacs is not None) is (runs == 0)
    assert opened
    assert all(session.closed for session in opened)
