"""The environment: versions, variables, and whether clocks are fixed, from planted trees and a planted NVML."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from vsa_rt.bench import environment as module
from vsa_rt.bench.environment import environment, governor, pinned
from vsa_rt.bench.sensors import Gpus
from vsa_rt.doctor import describe_machine, usable_cores

CPU = "sys/devices/system/cpu"
Files = dict[str, str]


def policy(number: int, mode: str, least: int, most: int, nominal: int | None = None) -> Files:
    base = f"{CPU}/cpu{number}/cpufreq"
    files = {
        f"{base}/scaling_governor": mode,
        f"{base}/scaling_min_freq": str(least),
        f"{base}/scaling_max_freq": str(most),
    }
    return files | ({f"{base}/base_frequency": str(nominal)} if nominal else {})


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    """Writes files below an empty root and gives it."""

    def make(*parts: Files) -> Path:
        for files in parts:
            for name, text in files.items():
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{text}\n", encoding="utf-8")
        return tmp_path

    return make


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.0)
    monkeypatch.setitem(sys.modules, "pynvml", None)


TURBO = {f"{CPU}/intel_pstate/no_turbo": "0"}
NO_TURBO = {f"{CPU}/intel_pstate/no_turbo": "1"}
BOOST = {f"{CPU}/cpufreq/boost": "1"}


@pytest.mark.parametrize(
    ("parts", "fixed"),
    [
        pytest.param([], None, id="a virtual machine tells nothing"),
        pytest.param([NO_TURBO, policy(0, "powersave", 800, 3000)], False, id="the governor may slow down"),
        pytest.param([NO_TURBO, policy(0, "performance", 800, 3000)], True, id="performance without turbo"),
        pytest.param([TURBO, policy(0, "performance", 800, 3000, 2600)], False, id="turbo depends on heat"),
        pytest.param([BOOST, policy(0, "userspace", 3000, 3000)], False, id="boost depends on heat"),
        pytest.param([TURBO, policy(0, "powersave", 2600, 2600, 2600)], True, id="held at the nominal clock"),
        pytest.param([policy(0, "schedutil", 1500, 1500)], True, id="one clock, no switch for boost"),
        pytest.param(
            [policy(0, "performance", 1, 2), policy(1, "schedutil", 1, 2)], False, id="one of two is free"
        ),
        pytest.param(
            [{f"{CPU}/cpu0/cpufreq/scaling_governor": "performance"}], None, id="limits cannot be read"
        ),
    ],
)
def test_clocks_are_fixed_only_if_nothing_may_move_them(
    tree: Callable[..., Path], parts: list[Files], fixed: bool | None
) -> None:
    assert pinned(tree(*parts)) is fixed


def test_governors_that_differ_are_all_named(tree: Callable[..., Path]) -> None:
    root = tree(policy(0, "performance", 1, 2), policy(1, "schedutil", 1, 2), policy(2, "schedutil", 1, 2))
    assert governor(root) == "performance, schedutil"


def test_without_a_governor_there_is_none(tmp_path: Path) -> None:
    assert governor(tmp_path) is None


def plant_nvml(monkeypatch: pytest.MonkeyPatch, chosen: int | None, default: int = 1410) -> None:
    """One GPU whose application clock is ``chosen``; it refuses the question for ``None``."""
    nvml: Any = types.ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def application_clock(*_: object) -> int:
        if chosen is None:
            raise NVMLError("Not Supported")
        return chosen

    nvml.NVMLError = NVMLError
    nvml.nvmlInit = nvml.nvmlShutdown = lambda: None
    nvml.nvmlDeviceGetCount = lambda: 1
    nvml.nvmlDeviceGetHandleByIndex = lambda index: index
    nvml.nvmlDeviceGetName = lambda handle: "a GPU"
    nvml.nvmlSystemGetDriverVersion = lambda: "570.1"
    nvml.nvmlDeviceGetApplicationsClock = application_clock
    nvml.nvmlDeviceGetDefaultApplicationsClock = lambda *_: default
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(("chosen", "fixed"), [(1200, True), (1410, None), (None, None)])
def test_a_gpus_clock_is_fixed_only_if_somebody_chose_it(
    monkeypatch: pytest.MonkeyPatch, tree: Callable[..., Path], chosen: int | None, fixed: bool | None
) -> None:
    plant_nvml(monkeypatch, chosen)
    root = tree(NO_TURBO, policy(0, "performance", 800, 3000))
    assert pinned(root, Gpus()) is fixed


def test_a_processor_that_is_free_outweighs_a_gpu_that_does_not_tell(
    monkeypatch: pytest.MonkeyPatch, tree: Callable[..., Path]
) -> None:
    plant_nvml(monkeypatch, None)
    assert pinned(tree(policy(0, "powersave", 800, 3000)), Gpus()) is False


def test_the_environment_describes_this_machine_and_the_named_libraries(tmp_path: Path) -> None:
    found = environment(["numpy", "no-such-library"], tmp_path)
    machine = describe_machine()
    assert (found.processor, found.cores, found.python) == (
        machine.processor,
        usable_cores(),
        machine.python,
    )
    assert found.libraries == {"numpy": metadata.version("numpy"), "no-such-library": "not installed"}
    assert (found.governor, found.pinned, found.busy, found.gpus) == (None, None, None, [])


def test_gpus_are_named_with_their_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plant_nvml(monkeypatch, None)
    assert environment([], tmp_path).gpus == ["a GPU, driver 570.1"]


def test_variables_that_steer_are_listed_and_no_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("KMP_AFFINITY", "granularity=fine,compact,1,0")
    monkeypatch.setenv("OV_FRONTEND_PATH", f"{tmp_path}/somebody/lib:{tmp_path}/plugins")
    monkeypatch.setenv("NVIDIA_API_KEY", "planted secret")
    monkeypatch.setenv("HOME", f"{tmp_path}/somebody")
    found = environment([], tmp_path).variables
    assert found["OMP_NUM_THREADS"] == "2"
    assert found["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert found["KMP_AFFINITY"] == "granularity=fine,compact,1,0"
    assert found["OV_FRONTEND_PATH"] == "lib:plugins"
    assert "somebody" not in str(found)
    assert "planted secret" not in str(found)


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="needs a Linux /proc")
def test_on_this_machine_the_load_before_the_start_is_a_number_of_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.3)
    busy = environment([]).busy
    assert busy is not None
    assert 0 <= busy <= usable_cores() + 0.5
