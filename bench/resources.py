"""Resources: what a run took of the machine, and what the machine felt meanwhile.

Everything comes from the files under ``/proc`` and ``/sys`` that the kernel documents, and from NVML; what is not
there is ``None``, with the reason in ``Resources.sources``.
"""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vsa_rt.bench.records.timing import Resources
from vsa_rt.bench.sensors import INTERVAL, Gpus, Looks, number_of, text_of

#: Seconds under which nothing is said about the use of processors: the kernel counts in ticks of 10 ms
#: (``proc(5)``, ``/proc/stat``), and two ticks of this are a tenth.
SHORTEST = 0.2
#: Ticks per second of ``/proc/stat`` and ``/proc/PID/stat``.
_TICKS = os.sysconf("SC_CLK_TCK")


def _processors(root: Path) -> dict[int, tuple[int, int, int]]:
    """Processor to its busy, stolen and total ticks; guests' time is part of the user's (``proc(5)``)."""
    found = {}
    for line in (text_of(root / "proc/stat") or "").splitlines():
        if match := re.match(r"cpu(\d+) (.*)", line):
            user, nice, system, idle, waiting, irq, soft, stolen = map(int, match[2].split()[:8])
            busy = user + nice + system + irq + soft
            found[int(match[1])] = (busy, stolen, busy + stolen + idle + waiting)
    return found


def _allowed(root: Path) -> set[int]:
    """Processors that any thread of this process may use: libraries bind single threads to single ones."""
    found: set[int] = set()
    for status in (root / "proc/self/task").glob("*/status"):
        for part in re.findall(r"^Cpus_allowed_list:\s*(\S+)", text_of(status) or "", re.MULTILINE):
            for piece in part.split(","):
                first, _, last = piece.partition("-")
                found |= set(range(int(first), int(last or first) + 1))
    return found


def _stat_fields(path: Path) -> list[str]:
    """The fields of a ``/proc/PID/stat`` from the third on; a name may hold spaces and brackets."""
    return (text_of(path) or "").rpartition(")")[2].split()


def _own_ticks(root: Path) -> int | None:
    """Processor time of this process, its living descendants, and the dead whom any of them waited for."""
    own = (text_of(root / "proc/self/stat") or "").partition(" ")[0]
    processes: dict[str, tuple[str, int]] = {}
    for path in (root / "proc").glob("[0-9]*/stat"):
        if len(fields := _stat_fields(path)) > 14:
            processes[path.parent.name] = (fields[1], sum(map(int, fields[11:15])))
    if own not in processes:
        return None
    family, added = {own}, True
    while added:
        more = {pid for pid, (parent, _) in processes.items() if parent in family} - family
        family |= more
        added = bool(more)
    return sum(processes[pid][1] for pid in family)


def _pressure(root: Path) -> int | None:
    """Microseconds in which something waited for a processor (``Documentation/accounting/psi.rst``)."""
    match = re.search(r"^some .*total=(\d+)", text_of(root / "proc/pressure/cpu") or "", re.MULTILINE)
    return int(match[1]) if match else None


def _thermal_counts(root: Path) -> dict[str, int]:
    """How often each processor and package slowed down for its heat (x86)."""
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
    return {str(path): count for path in files if (count := number_of(path)) is not None}


def _cgroup_counts(root: Path) -> dict[str, int]:
    """Periods in which this process's control group, or one around it, had used up its quota (v2 and v1)."""
    found = {}
    for line in (text_of(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, inner = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / controllers
        parts = [p for p in inner.split("/") if p not in ("", "..")]
        for depth in range(len(parts) + 1):
            path = base.joinpath(*parts[:depth], "cpu.stat")
            if match := re.search(r"^nr_throttled (\d+)", text_of(path) or "", re.MULTILINE):
                found[str(path)] = int(match[1])
    return found


@dataclass(frozen=True)
class _Counters:
    """What is read before and after."""

    at: float
    processors: dict[int, tuple[int, int, int]]
    allowed: set[int]
    own: int | None
    pressure: int | None
    thermal: dict[str, int]
    cgroup: dict[str, int]
    millijoules: list[int] | None

    @classmethod
    def read(cls, root: Path, gpus: Gpus, now: Callable[[], float]) -> _Counters:
        return cls(
            thermal=_thermal_counts(root),
            cgroup=_cgroup_counts(root),
            millijoules=gpus.ask("nvmlDeviceGetTotalEnergyConsumption"),
            allowed=_allowed(root),
            own=_own_ticks(root),
            processors=_processors(root),
            pressure=_pressure(root),
            at=now(),
        )


class Watched:
    """What was seen of the machine during a block; see ``watch``."""

    def __init__(self, root: Path, now: Callable[[], float]) -> None:
        self._root, self._now = root, now
        self._gpus = Gpus()
        self._looks = Looks(root, self._gpus, now)
        self._after: _Counters | None = None
        self._device_mib: float | None = None
        self._before = _Counters.read(root, self._gpus, now)
        self._looks.begin()

    def end(self) -> None:
        """Read everything again; ``watch`` does it."""
        self._looks.end()
        after = _Counters.read(self._root, self._gpus, self._now)
        memory = self._gpus.ask("nvmlDeviceGetMemoryInfo")
        self._device_mib = None if memory is None else sum(int(m.used) for m in memory) / 2**20
        self._gpus.close()
        self._after = after

    def result(self, images: int) -> Resources:
        """What the block took.

        Args:
            images: That were done in it.

        Raises:
            ValueError: The block has not ended.
        """
        if self._after is None:
            raise ValueError("the watched block has not ended: call result() after it")
        sources: dict[str, str] = {}
        cores, others, stolen = self._load(self._before, self._after, sources)
        joules = self._joules(self._before, self._after, sources)
        sources["joules_per_image"] = sources["joules"] if images else "no image was done"
        return Resources(
            rss_mib=self._rss(sources),
            device_mib=self._device(sources),
            cores=cores,
            other_cores=others,
            stolen=stolen,
            pressure=self._waited(self._before, self._after, sources),
            joules=joules,
            joules_per_image=joules / images if joules is not None and images else None,
            megahertz=self._clocks(sources),
            celsius=self._heat(sources),
            throttled=self._slowed(self._before, self._after, sources),
            sources=sources,
        )

    def _load(
        self, a: _Counters, b: _Counters, sources: dict[str, str]
    ) -> tuple[float | None, float | None, float | None]:
        wall, allowed = b.at - a.at, a.allowed | b.allowed
        common = [n for n in a.processors if n in b.processors and (not allowed or n in allowed)]
        busy, stolen, total = (
            sum(b.processors[n][i] - a.processors[n][i] for n in common) / _TICKS for i in range(3)
        )
        own = None if a.own is None or b.own is None else (b.own - a.own) / _TICKS
        reason = {
            "cores": "" if own is not None else "/proc/self/stat cannot be read",
            "other_cores": ""
            if common and own is not None
            else "/proc/stat or /proc/self/stat cannot be read",
            "stolen": "" if total else "/proc/stat cannot be read",
        }
        if wall < SHORTEST:
            reason = dict.fromkeys(reason, f"the run took {wall:.2g} s, too short for ticks of 10 ms")
        says = {
            "cores": "/proc/PID/stat: this process and its descendants",
            "other_cores": f"/proc/stat: the {len(common)} processors that this process may use, without its own "
            "time; interrupts included",
            "stolen": "/proc/stat: steal",
        }
        sources |= {key: reason[key] or says[key] for key in reason}
        return (
            None if reason["cores"] or own is None else max(0.0, own / wall),
            # The kernel samples one and adds up the other, so that the difference can be a tick under zero.
            None if reason["other_cores"] or own is None else max(0.0, (busy - own) / wall),
            None if reason["stolen"] else max(0.0, stolen / total),
        )

    def _rss(self, sources: dict[str, str]) -> float | None:
        match = re.search(r"^VmRSS:\s*(\d+) kB", text_of(self._root / "proc/self/status") or "", re.MULTILINE)
        sources["rss_mib"] = "/proc/self/status: VmRSS" if match else "/proc/self/status has no VmRSS"
        return int(match[1]) / 1024 if match else None

    def _device(self, sources: dict[str, str]) -> float | None:
        told = self._device_mib is not None
        sources["device_mib"] = "NVML: used memory, of all processes" if told else self._no_gpu("memory")
        return self._device_mib

    def _no_gpu(self, what: str) -> str:
        return self._gpus.absent or f"NVML does not tell the GPU's {what}"

    def _waited(self, a: _Counters, b: _Counters, sources: dict[str, str]) -> float | None:
        if a.pressure is None or b.pressure is None or b.at <= a.at:
            sources["pressure"] = "/proc/pressure/cpu is absent: the kernel counts no pressure"
            return None
        sources["pressure"] = "/proc/pressure/cpu: some"
        return min(1.0, max(0.0, (b.pressure - a.pressure) / 1e6 / (b.at - a.at)))

    def _joules(self, a: _Counters, b: _Counters, sources: dict[str, str]) -> float | None:
        found: dict[str, float] = dict(self._looks.rapl.joules)
        if a.millijoules is not None and b.millijoules is not None:
            used = sum(y - x for x, y in zip(a.millijoules, b.millijoules, strict=True)) / 1000
            found[f"NVML {len(a.millijoules)} GPU"] = used
        if self._looks.ina.rails:
            found[f"INA3221 {', '.join(self._looks.ina.rails)}"] = self._looks.ina.joules
        absent = [
            "" if self._looks.rapl.joules else self._looks.rapl.reason,
            "" if a.millijoules is not None else self._no_gpu("energy"),
            "" if self._looks.ina.rails else "no INA3221",
        ]
        # What is added is named, and what is missing beside it: energy of the processor alone is not that of both.
        words = [f"{name}: {value:.4g} J" for name, value in found.items()] + [r for r in absent if r]
        sources["joules"] = "; ".join(words)
        return sum(found.values()) if found else None

    def _clocks(self, sources: dict[str, str]) -> list[float] | None:
        looks = self._looks
        gpu = (
            f"; GPU {min(looks.gpu_clocks):g} to {max(looks.gpu_clocks):g} MHz by NVML"
            if looks.gpu_clocks
            else ""
        )
        if not looks.clocks:
            sources["megahertz"] = (
                f"no clock was seen: the system tells none, or the run ended within {INTERVAL / 2} s{gpu}"
            )
            return None
        sources["megahertz"] = (
            f"{looks.clock_source}, the fastest processor at each of {len(looks.clocks)} looks{gpu}"
        )
        return [min(looks.clocks), statistics.median(looks.clocks), max(looks.clocks)]

    def _heat(self, sources: dict[str, str]) -> float | None:
        celsius, name = self._looks.hottest or (0.0, "")
        sources["celsius"] = name or "no thermal zone, hwmon sensor or GPU tells a temperature"
        return celsius if name else None

    def _slowed(self, a: _Counters, b: _Counters, sources: dict[str, str]) -> bool | None:
        def more(before: Mapping[str, int], after: Mapping[str, int]) -> int:
            return sum(max(0, after[k] - before[k]) for k in before if k in after)

        heat, quota, slowdowns = more(a.thermal, b.thermal), more(a.cgroup, b.cgroup), self._looks.slowdowns
        sources["throttled"] = "; ".join(
            [
                f"thermal_throttle counters: {heat} more" if a.thermal else "no thermal_throttle counters",
                f"cgroup quota: {quota} periods cut short" if a.cgroup else "no cgroup quota counters",
                self._no_gpu("clock reasons")
                if slowdowns is None
                else f"NVML: {', '.join(sorted(slowdowns)) or 'no slowdown'}",
            ]
        )
        if heat or quota or slowdowns:
            return True
        # A group that kept to its quota says nothing about the processor under it.
        return False if a.thermal or slowdowns is not None else None


@contextmanager
def watch(root: Path = Path("/"), now: Callable[[], float] = time.monotonic) -> Iterator[Watched]:
    """Watch the machine during a block.

    Counters are read before and after. A thread looks at clocks, temperatures and power at most twice a second, and
    so seldom that it takes at most a thousandth of one processor; a single look delays the call under way by what
    it takes, at most.

    Args:
        root: Where ``proc`` and ``sys`` are.
        now: Seconds of a monotonic clock.

    Yields:
        What ``result`` can be asked of after the block.
    """
    watched = Watched(root, now)
    try:
        yield watched
    finally:
        watched.end()
