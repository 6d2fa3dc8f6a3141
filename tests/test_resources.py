"""Resources: counters and sensors from planted ``/proc`` and ``/sys`` trees and a planted NVML."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vsa_rt.bench import resources, sensors
from vsa_rt.bench.records.timing import Resources
from vsa_rt.bench.resources import watch
from vsa_rt.bench.sensors import COST, INTERVAL, Ina, Rapl, pause

#: Files to write: path below the root to text.
Files = dict[str, str]
PID = 41
TICKS = resources._TICKS


def write(root: Path, files: Files) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")


def process(pid: int, parent: int, user: int = 0, waited: int = 0, name: str = "py") -> Files:
    """A process's stat: ``user`` ticks of its own, ``waited`` of children that it waited for (proc(5))."""
    fields = ["S", str(parent), *["0"] * 9, str(user), "0", str(waited), "0", "20", "0"]
    text = f"{pid} ({name}) {' '.join(fields)}"
    return {f"proc/{pid}/stat": text} | ({"proc/self/stat": text} if pid == PID else {})


def stat(*processors: tuple[int, int, int]) -> Files:
    """``/proc/stat`` with (user, idle, steal) ticks per processor."""
    lines = [
        f"cpu{i} {user} 0 0 {idle} 0 0 0 {steal} 7 7" for i, (user, idle, steal) in enumerate(processors)
    ]
    return {"proc/stat": "\n".join(["cpu  9 9 9 9 9 9 9 9 9 9", *lines, "intr 0"])}


def pressure(microseconds: int) -> Files:
    line = "avg10=0.00 avg60=0.00 avg300=0.00 total="
    return {"proc/pressure/cpu": f"some {line}{microseconds}\nfull {line}0"}


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU of this machine takes part."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    plant_nvml(monkeypatch, count=0)


def plant_nvml(monkeypatch: pytest.MonkeyPatch, count: int = 1, **answers: Any) -> list[tuple[str, Any]]:
    """Plant an NVML whose functions give these values, or call them with the GPU's index."""
    calls: list[tuple[str, Any]] = []

    class NVMLError(Exception):
        pass

    module: Any = types.ModuleType("pynvml")
    module.NVMLError = NVMLError
    module.nvmlInit = lambda: calls.append(("init", None))
    module.nvmlShutdown = lambda: calls.append(("shutdown", None))
    module.nvmlDeviceGetCount = lambda: count
    module.nvmlDeviceGetHandleByIndex = lambda index: index

    def refuse(*_: object) -> None:
        raise NVMLError("Not Supported")

    names = (
        "UUID",
        "TotalEnergyConsumption",
        "Temperature",
        "ClockInfo",
        "CurrentClocksThrottleReasons",
        "MemoryInfo",
    )
    for name in names:
        answer = answers.get(name, refuse)
        call = answer if callable(answer) else lambda *_, answer=answer: answer
        setattr(module, f"nvmlDeviceGet{name}", call)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return calls


def seen(root: Path, change: Callable[[Clock], None], images: int = 0) -> Resources:
    """Watch while the tree changes."""
    clock = Clock()
    with watch(root, clock) as watched:
        change(clock)
    return watched.result(images)


def after(root: Path, files: Files, seconds: float = 2.0) -> Callable[[Clock], None]:
    def change(clock: Clock) -> None:
        write(root, files)
        clock.at += seconds

    return change


def test_processor_time_is_told_apart_into_ours_and_others(tmp_path: Path) -> None:
    write(tmp_path, stat((0, 0, 0), (0, 0, 0)) | process(PID, 1) | process(50, PID) | process(60, 1))
    # Two seconds: 3 core-seconds busy, of which 1.5 are ours: 1 of the process, 0.3 of a child that lives and
    # 0.2 of children that died.
    busy = stat((TICKS, TICKS, 0), (2 * TICKS, 0, 0))
    ours = process(PID, 1, user=TICKS, waited=TICKS // 5) | process(50, PID, user=3 * TICKS // 10)
    result = seen(tmp_path, after(tmp_path, busy | ours | process(60, 1, user=9 * TICKS)))
    assert result.cores == pytest.approx(0.75)
    assert result.other_cores == pytest.approx(0.75)
    assert result.stolen == 0.0


def test_a_process_with_brackets_and_spaces_in_its_name_is_counted(tmp_path: Path) -> None:
    write(tmp_path, stat((0, 0, 0)) | process(PID, 1, name="a) S 7 (b"))
    result = seen(tmp_path, after(tmp_path, process(PID, 1, user=TICKS, name="a) S 7 (b")))
    assert result.cores == pytest.approx(0.5)


def test_processors_that_the_process_may_not_use_do_not_count(tmp_path: Path) -> None:
    write(tmp_path, stat(*[(0, 0, 0)] * 4) | process(PID, 1))
    write(tmp_path, {"proc/self/task/41/status": "Name:\tpy\nCpus_allowed_list:\t0"})
    write(tmp_path, {"proc/self/task/42/status": "Name:\tpy\nCpus_allowed_list:\t2-2"})
    quarter, whole = (TICKS // 2, 0, 0), (2 * TICKS, 0, 0)
    result = seen(tmp_path, after(tmp_path, stat(quarter, whole, quarter, whole)))
    assert result.other_cores == pytest.approx(0.5)
    assert "2 processors" in result.sources["other_cores"]


def test_stolen_time_is_a_share_of_all_time(tmp_path: Path) -> None:
    write(tmp_path, stat((0, 0, 0), (0, 0, 0)) | process(PID, 1))
    result = seen(tmp_path, after(tmp_path, stat((150, 30, 20), (100, 100, 0))))
    assert result.stolen == pytest.approx(20 / 400)


def test_a_run_that_is_too_short_for_ticks_says_so(tmp_path: Path) -> None:
    write(tmp_path, stat((0, 0, 0)) | process(PID, 1))
    result = seen(tmp_path, after(tmp_path, stat((5, 5, 0)), seconds=0.05))
    assert (result.cores, result.other_cores, result.stolen) == (None, None, None)
    assert "too short" in result.sources["other_cores"]


def test_pressure_is_the_share_of_the_time(tmp_path: Path) -> None:
    write(tmp_path, pressure(7_000_000))
    result = seen(tmp_path, after(tmp_path, pressure(7_500_000)))
    assert result.pressure == pytest.approx(0.25)


def rapl(zone: str, name: str, microjoules: int, most: int = 262_143_328_850) -> Files:
    base = f"sys/class/powercap/{zone}"
    return {
        f"{base}/name": name,
        f"{base}/energy_uj": str(microjoules),
        f"{base}/max_energy_range_uj": str(most),
    }


def test_energy_of_packages_and_memory_adds_up_and_parts_do_not_count_twice(tmp_path: Path) -> None:
    zones = [("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:0:1", "dram")]
    zones += [("intel-rapl:1", "package-1"), ("intel-rapl:2", "psys"), ("intel-rapl-mmio:0", "package-0")]
    for zone, name in zones:
        write(tmp_path, rapl(zone, name, 1_000_000))
    files: Files = {}
    for (zone, name), joules in zip(zones, (10, 7, 2, 30, 99, 10), strict=True):
        files |= rapl(zone, name, 1_000_000 + joules * 1_000_000)
    result = seen(tmp_path, after(tmp_path, files), images=100)
    assert result.joules == pytest.approx(42.0)
    assert result.joules_per_image == pytest.approx(0.42)
    assert "package-1: 30 J" in result.sources["joules"]


def test_an_energy_counter_that_wraps_around_goes_on(tmp_path: Path) -> None:
    most = 65_532_610_987
    write(tmp_path, rapl("intel-rapl:0", "package-0", most - 4_000_000, most))
    result = seen(tmp_path, after(tmp_path, rapl("intel-rapl:0", "package-0", 6_000_000, most)))
    assert result.joules == pytest.approx(10.0)


def test_a_long_run_adds_up_over_several_wraps(tmp_path: Path) -> None:
    most = 10_000_000
    write(tmp_path, rapl("intel-rapl:0", "package-0", 0, most))
    counter = Rapl(tmp_path)
    counter.look()
    for value in (8, 5, 2, 9):  # 8 joules, 7 over a wrap, 7 over a wrap, 7
        write(tmp_path, rapl("intel-rapl:0", "package-0", value * 1_000_000, most))
        counter.look()
    assert sum(counter.joules.values()) == pytest.approx(29.0)


def test_energy_that_only_root_may_read_says_so(tmp_path: Path) -> None:
    write(tmp_path, {"sys/class/powercap/intel-rapl:0/name": "package-0"})
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").mkdir()  # reading it fails for root, too
    result = seen(tmp_path, after(tmp_path, {}), images=1)
    assert result.joules is None
    assert "anyone but root" in result.sources["joules"]


def ina(address: str, channel: int, label: str, millivolts: int, milliamperes: int) -> Files:
    base = f"sys/bus/i2c/drivers/ina3221/1-00{address}/hwmon/hwmon3"
    return {
        f"{base}/in{channel}_label": label,
        f"{base}/in{channel}_input": str(millivolts),
        f"{base}/curr{channel}_input": str(milliamperes),
    }


def test_a_jetsons_power_is_integrated_over_its_rails(tmp_path: Path) -> None:
    write(tmp_path, ina("40", 1, "VDD_GPU_SOC", 5000, 1000) | ina("41", 2, "VDD_CPU_CV", 5000, 600))
    write(tmp_path, ina("40", 2, "NC", 5000, 9000))
    write(tmp_path, {"sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/in7_label": "sum of shunt voltages"})
    # From 8 W to 12 W within two seconds.
    result = seen(tmp_path, after(tmp_path, ina("40", 1, "VDD_GPU_SOC", 5000, 1800)), images=10)
    assert result.joules == pytest.approx(20.0)
    assert "INA3221 VDD_GPU_SOC, VDD_CPU_CV: 20 J" in result.sources["joules"]


def test_a_rail_that_measures_the_whole_module_counts_alone(tmp_path: Path) -> None:
    write(tmp_path, ina("40", 1, "VDD_IN", 5000, 2000) | ina("40", 2, "VDD_CPU_GPU_CV", 5000, 1000))
    assert list(Ina(tmp_path).rails) == ["VDD_IN"]


def throttle(core: int, package: int) -> Files:
    base = "sys/devices/system/cpu/cpu0/thermal_throttle"
    return {f"{base}/core_throttle_count": str(core), f"{base}/package_throttle_count": str(package)}


def test_a_processor_that_grew_too_hot_throttled(tmp_path: Path) -> None:
    write(tmp_path, throttle(4, 9))
    assert seen(tmp_path, after(tmp_path, {})).throttled is False
    result = seen(tmp_path, after(tmp_path, throttle(4, 11)))
    assert result.throttled is True
    assert "2 more" in result.sources["throttled"]


@pytest.mark.parametrize(
    ("membership", "folder"),
    [
        ("0::/user.slice/app.scope", "sys/fs/cgroup/user.slice"),  # v2, the quota is of the group around it
        ("0::/", "sys/fs/cgroup"),  # v2, inside a container
        ("3:cpuset:/\n2:cpu,cpuacct:/docker/7", "sys/fs/cgroup/cpu,cpuacct/docker/7"),  # v1
        ("1:cpu:/docker/7", "sys/fs/cgroup/cpu"),  # v1, inside a container
    ],
)
def test_a_quota_that_cut_in_throttled(tmp_path: Path, membership: str, folder: str) -> None:
    write(tmp_path, {"proc/self/cgroup": membership})
    write(tmp_path, {f"{folder}/cpu.stat": "usage_usec 5\nnr_periods 90\nnr_throttled 12\nthrottled_usec 9"})
    # A quota that was kept says nothing about heat.
    assert seen(tmp_path, after(tmp_path, {})).throttled is None
    result = seen(tmp_path, after(tmp_path, {f"{folder}/cpu.stat": "nr_throttled 15"}))
    assert result.throttled is True
    assert "3 periods" in result.sources["throttled"]


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Clock], None]:
    """Waits until the thread has looked at the sensors once."""
    done = threading.Event()

    def pause_and_tell(cost: float) -> float:
        done.set()
        return 60.0

    monkeypatch.setattr(sensors, "pause", pause_and_tell)

    def wait(clock: Clock) -> None:
        assert done.wait(60), "the thread never looked"

    return wait


def test_clocks_are_those_of_the_fastest_processor_during_the_run(
    tmp_path: Path, looked: Callable[[Clock], None]
) -> None:
    base = "sys/devices/system/cpu"
    idle = {f"{base}/cpu{i}/cpufreq/scaling_cur_freq": "800000" for i in range(3)}
    write(tmp_path, idle | {f"{base}/cpu1/cpufreq/scaling_cur_freq": "3100000"})
    result = seen(tmp_path, looked)
    assert result.megahertz == [3100.0, 3100.0, 3100.0]
    assert "scaling_cur_freq" in result.sources["megahertz"]


def test_without_cpufreq_the_clocks_are_cpuinfos(tmp_path: Path, looked: Callable[[Clock], None]) -> None:
    write(tmp_path, {"proc/cpuinfo": "cpu MHz\t\t: 2600.000\nflags\t: fpu hypervisor\n\ncpu MHz\t\t: 2500.5"})
    result = seen(tmp_path, looked)
    assert result.megahertz == [2600.0, 2600.0, 2600.0]
    assert "nominal" in result.sources["megahertz"]


def test_the_temperature_is_the_highest_of_the_processors_sensors(tmp_path: Path) -> None:
    zone = "sys/class/thermal/thermal_zone"
    write(tmp_path, {f"{zone}0/type": "x86_pkg_temp", f"{zone}0/temp": "61000"})
    write(tmp_path, {f"{zone}1/type": "iwlwifi_1", f"{zone}1/temp": "99000"})
    write(tmp_path, {f"{zone}2/type": "cpu-thermal", f"{zone}2/temp": "-256000"})
    result = seen(tmp_path, after(tmp_path, {f"{zone}0/temp": "74500"}))
    assert result.celsius == 74.5
    assert "x86_pkg_temp" in result.sources["celsius"]


def test_without_thermal_zones_the_processors_own_driver_tells(tmp_path: Path) -> None:
    for number, name, heat in ((0, "nvme", "90000"), (1, "k10temp", "55000")):
        base = f"sys/class/hwmon/hwmon{number}"
        write(tmp_path, {f"{base}/name": name, f"{base}/temp1_input": heat})
    assert seen(tmp_path, after(tmp_path, {})).celsius == 55.0


def test_a_gpus_memory_energy_heat_and_slowdowns_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked: Callable[[Clock], None]
) -> None:
    millijoules = iter([5_000_000, 5_060_000])
    calls = plant_nvml(
        monkeypatch,
        TotalEnergyConsumption=lambda handle: next(millijoules),
        Temperature=71,
        ClockInfo=1410,
        CurrentClocksThrottleReasons=0x1 | 0x4,
        MemoryInfo=types.SimpleNamespace(used=3 << 30),
    )
    result = seen(tmp_path, looked, images=10)
    assert (result.device_mib, result.joules, result.joules_per_image) == (3072.0, 60.0, 6.0)
    assert result.celsius == 71.0
    assert result.throttled is True
    assert "power cap" in result.sources["throttled"]
    assert "1410" in result.sources["megahertz"]
    assert [name for name, _ in calls] == ["init", "shutdown"]


def test_a_gpu_that_idles_or_keeps_to_its_set_clock_did_not_throttle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looked: Callable[[Clock], None]
) -> None:
    plant_nvml(monkeypatch, CurrentClocksThrottleReasons=0x1 | 0x2)
    assert seen(tmp_path, looked).throttled is False


@pytest.mark.parametrize(
    ("shown", "mib"), [(None, 7), ("1", 2), ("0, 2", 5), ("GPU-b", 2), ("GPU-c,0", 5), ("", None)]
)
def test_hidden_gpus_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str | None, mib: int | None
) -> None:
    plant_nvml(
        monkeypatch,
        count=3,
        UUID=lambda handle: f"GPU-{'abc'[handle]}-0000",
        MemoryInfo=lambda handle: types.SimpleNamespace(used=2**handle << 20),
    )
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert seen(tmp_path, after(tmp_path, {})).device_mib == mib


def test_a_gpu_that_does_not_answer_is_no_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_nvml(monkeypatch, MemoryInfo=types.SimpleNamespace(used=0))
    result = seen(tmp_path, after(tmp_path, {}), images=1)
    assert result.joules is None
    assert "NVML does not tell the GPU's energy" in result.sources["joules"]


def test_without_the_library_nvml_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    result = seen(tmp_path, after(tmp_path, {}))
    assert result.device_mib is None
    assert "vsa-rt[bench]" in result.sources["device_mib"]


def test_in_an_empty_tree_everything_is_none_and_has_a_reason(tmp_path: Path) -> None:
    result = seen(tmp_path, after(tmp_path, {}), images=1)
    values = {name: getattr(result, name) for name in Resources.__struct_fields__ if name != "sources"}
    assert set(values.values()) == {None}
    assert set(result.sources) == set(values)
    assert all(result.sources.values())


def test_no_image_is_no_division(tmp_path: Path) -> None:
    write(tmp_path, rapl("intel-rapl:0", "package-0", 0))
    result = seen(tmp_path, after(tmp_path, rapl("intel-rapl:0", "package-0", 5_000_000)), images=0)
    assert (result.joules, result.joules_per_image) == (5.0, None)


def test_the_result_before_the_end_of_the_block_is_refused(tmp_path: Path) -> None:
    with watch(tmp_path) as watched, pytest.raises(ValueError, match="not ended"):
        watched.result(1)


def test_an_error_in_the_block_stops_the_thread_and_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(KeyError), watch(tmp_path):
        raise KeyError("planted")
    assert "vsa-resources" not in {t.name for t in threading.enumerate()}


def test_expensive_looks_become_rare() -> None:
    assert pause(0.0) == INTERVAL
    assert INTERVAL >= 0.5
    assert 0.02 / pause(0.02) == pytest.approx(COST)


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs a Linux /proc")
def test_on_this_machine_a_busy_child_counts_as_ours() -> None:
    code = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"
    with watch() as watched:
        start = time.monotonic()
        subprocess.run([sys.executable, "-c", code], check=True)
        wall = time.monotonic() - start
    result = watched.result(1)
    assert result.rss_mib is not None
    assert result.rss_mib > 5
    assert result.cores is not None
    # Half a second of processor time; the block lasts a little longer than the child.
    assert result.cores * wall > 0.25
