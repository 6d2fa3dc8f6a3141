"""Sensors: GPUs by NVML, energy by RAPL and INA3221, temperatures and clocks, and a thread that looks at them.

On a Jetson the INA3221 power sensors are read directly: ``tegrastats`` is a program that prints the same sensors in
a format that changes with its release.
"""

from __future__ import annotations

import importlib
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Seconds between two looks at clocks, temperatures and power at the least. They change over tenths of a second to
#: minutes; everything else is a counter, which is read before and after.
INTERVAL = 0.5
#: Share of one processor that the looks may take. Reading one sensor takes from microseconds to milliseconds, and a
#: machine may have hundreds, so that the pause follows from what the last look took.
COST = 0.001
#: Bits of NVML's clock event reasons that mean slower than asked for (NVML API reference, NvmlClocksEventReasons).
SLOWDOWNS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown by the driver",
    0x40: "thermal slowdown by the hardware",
    0x80: "power brake",
}
#: Rails that measure a Jetson module's whole input; the others are parts of them (jetson-stats takes them for it,
#: too). A module without one has rails beside each other, and they add up.
_WHOLE_RAILS = ("VDD_IN", "POM_5V_IN")
#: Drivers of processors' temperature sensors, where no thermal zone tells.
_HWMON = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal")


def text_of(path: Path) -> str | None:
    """What a file of the kernel says; ``None`` if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def number_of(path: Path) -> int | None:
    """The number in a file of the kernel; ``None`` if it cannot be read or holds none."""
    text = text_of(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def pause(cost: float) -> float:
    """Seconds to wait after a look that took ``cost`` seconds of processor time."""
    return max(INTERVAL, cost / COST)


class Gpus:
    """The GPUs that NVML tells of, but for those that ``CUDA_VISIBLE_DEVICES`` hides.

    Its numbers are taken in NVML's order, which is CUDA's with ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.

    Attributes:
        absent: Why there is none; empty if there is one.
    """

    def __init__(self) -> None:
        self.absent = ""
        self._handles: list[Any] = []
        self._nvml: Any = None
        try:
            nvml: Any = importlib.import_module("pynvml")  # ships no types
        except ImportError:
            self.absent = "NVML: nvidia-ml-py is not installed (pip install 'vsa-rt[bench]')"
            return
        try:
            nvml.nvmlInit()
            self._nvml = nvml
            count = nvml.nvmlDeviceGetCount()
            self._handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        except nvml.NVMLError as error:
            self.absent = f"NVML: {error}".replace("NVML: NVML", "NVML:")
            return
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        if shown is not None:
            self._handles = self._visible(shown.replace(" ", "").split(","))
        if not self._handles:
            self.absent = "NVML: no GPU" if shown is None else f"CUDA_VISIBLE_DEVICES={shown} shows no GPU"

    def _visible(self, shown: list[str]) -> list[Any]:
        uuids = self.ask("nvmlDeviceGetUUID") or [""] * len(self._handles)
        return [
            handle
            for index, (handle, uuid) in enumerate(zip(self._handles, uuids, strict=True))
            if any(s == str(index) or (not s.isdigit() and s and uuid.startswith(s)) for s in shown)
        ]

    def ask(self, function: str, *arguments: object) -> list[Any] | None:
        """One answer per GPU; ``None`` where there is no GPU, or not every one answers."""
        call = getattr(self._nvml, function, None)
        if call is None or not self._handles:
            return None
        try:
            return [call(handle, *arguments) for handle in self._handles]
        except self._nvml.NVMLError:
            return None

    def driver(self) -> str:
        """The driver's version; empty where NVML does not tell."""
        try:
            return str(self._nvml.nvmlSystemGetDriverVersion()) if self._nvml is not None else ""
        except self._nvml.NVMLError:
            return ""

    def close(self) -> None:
        """Let go of NVML."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml, self._handles = None, []


class Rapl:
    """A processor's energy counters (``Documentation/power/powercap/powercap.rst``).

    Attributes:
        joules: Zone to what it used between the first look and the last.
        reason: Why there is none.
    """

    def __init__(self, root: Path) -> None:
        self.joules: dict[str, float] = {}
        self.reason = "no RAPL under /sys/class/powercap"
        self._domains: dict[str, tuple[Path, int]] = {}
        self._last: dict[str, int] = {}
        for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
            name = text_of(zone / "name") or ""
            # Cores and graphics are parts of their package, and the platform's zone holds everything again.
            if name.startswith("package") or name == "dram":
                if number_of(zone / "energy_uj") is None:
                    self.reason = "RAPL: energy_uj cannot be read, as a rule by anyone but root"
                    continue
                self._domains[f"{zone.name} {name}"] = (zone, number_of(zone / "max_energy_range_uj") or 0)

    def look(self) -> None:
        """Add what was used since the last look: a counter that wrapped once in between is no lower for it."""
        for name, (zone, most) in self._domains.items():
            value = number_of(zone / "energy_uj")
            if value is None:
                continue
            step = value - self._last.get(name, value)
            self.joules[name] = self.joules.get(name, 0.0) + (step + most if step < 0 else step) / 1e6
            self._last[name] = value


class Ina:
    """A Jetson's power sensors (``Documentation/hwmon/ina3221.rst``: millivolts and milliamperes), integrated.

    Attributes:
        joules: Between the first look and the last.
        rails: That count; empty without sensors.
    """

    def __init__(self, root: Path) -> None:
        self.joules = 0.0
        self._last: tuple[float, float] | None = None
        rails: dict[str, tuple[Path, Path]] = {}
        for label in sorted((root / "sys/bus/i2c/drivers/ina3221").glob("*/hwmon/*/in[123]_label")):
            name, number = text_of(label) or "NC", label.name[2]
            files = (label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input"))
            if name != "NC" and all(number_of(f) is not None for f in files):  # NC: not connected
                rails[name] = files
        whole = [name for name in _WHOLE_RAILS if name in rails][:1]
        self.rails = {name: rails[name] for name in whole or rails}

    def look(self, at: float) -> None:
        """Add the trapezoid since the last look."""
        watts = 0.0
        for files in self.rails.values():
            millivolts, milliamperes = (number_of(f) for f in files)
            if millivolts is None or milliamperes is None:
                return
            watts += millivolts * milliamperes / 1e6
        if self._last is not None:
            self.joules += (watts + self._last[1]) / 2 * (at - self._last[0])
        self._last = (at, watts)


def _thermometers(root: Path) -> dict[str, Path]:
    """Sensors of processors: thermal zones, else those of the drivers that are known for them."""
    wanted = re.compile(r"cpu|pkg|soc|gpu|tj", re.IGNORECASE)
    zones = {
        f"{zone.name} {kind}": zone / "temp"
        for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*"))
        if wanted.search(kind := text_of(zone / "type") or "")
    }
    return zones or {
        f"{path.parent.name} {path.name.removesuffix('_input')}": path
        for path in sorted((root / "sys/class/hwmon").glob("*/temp*_input"))
        if text_of(path.with_name("name")) in _HWMON
    }


@dataclass
class Looks:
    """What changes during a run, looked at now and then.

    Attributes:
        root: Where ``proc`` and ``sys`` are.
        gpus: Those that are looked at.
        now: Seconds of a monotonic clock.
        clocks: Of the fastest processor at each look, in MHz.
        gpu_clocks: Of the GPUs, in MHz.
        hottest: The highest temperature in degrees Celsius and whose it is.
        slowdowns: Of ``SLOWDOWNS``, what NVML said; ``None`` where it says nothing.
    """

    root: Path
    gpus: Gpus
    now: Callable[[], float]
    clocks: list[float] = field(default_factory=list)
    gpu_clocks: list[float] = field(default_factory=list)
    hottest: tuple[float, str] | None = None
    slowdowns: set[str] | None = None

    def __post_init__(self) -> None:
        self.rapl, self.ina = Rapl(self.root), Ina(self.root)
        self._thermometers = _thermometers(self.root)
        self._frequencies = sorted(
            (self.root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="vsa-resources", daemon=True)

    @property
    def clock_source(self) -> str:
        """Where the clocks come from."""
        if self._frequencies:
            return "cpufreq scaling_cur_freq"
        virtual = "hypervisor" in (text_of(self.root / "proc/cpuinfo") or "")
        return "/proc/cpuinfo" + (", in a virtual machine a nominal clock" if virtual else "")

    def begin(self) -> None:
        """Look once, and from now on in a thread."""
        self._always()
        self._thread.start()

    def end(self) -> None:
        """Stop the thread and look once more."""
        self._stop.set()
        self._thread.join()
        self._always()

    def _loop(self) -> None:
        wait = INTERVAL / 2
        while not self._stop.wait(wait):
            start = time.thread_time()
            self._always()
            self._inside()
            wait = pause(time.thread_time() - start)

    def _always(self) -> None:
        """Energy and temperatures, at both ends, too."""
        self.rapl.look()
        self.ina.look(self.now())
        heat = [
            (celsius / 1000, name)
            for name, path in self._thermometers.items()
            if (celsius := number_of(path)) is not None
        ]
        heat += [(float(t), "NVML") for t in self.gpus.ask("nvmlDeviceGetTemperature", 0) or []]
        # Sensors without a probe give absolute zero or the end of their scale.
        self.hottest = max([(t, n) for t, n in heat if 0 < t < 150] + [self.hottest or (0.0, "")])

    def _inside(self) -> None:
        """Clocks, of the fastest processor: idle ones are slow for no fault; and what NVML says of the GPU's."""
        khz = [n for path in self._frequencies if (n := number_of(path)) is not None]
        lines = "" if khz else text_of(self.root / "proc/cpuinfo") or ""
        found = [n / 1000 for n in khz] + [
            float(m) for m in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", lines, re.MULTILINE)
        ]
        self.clocks += [max(found)] if found else []
        self.gpu_clocks += [float(c) for c in self.gpus.ask("nvmlDeviceGetClockInfo", 0) or []]
        reasons = self.gpus.ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        if reasons is not None:
            said = {words for bit, words in SLOWDOWNS.items() if any(r & bit for r in reasons)}
            self.slowdowns = (self.slowdowns or set()) | said
