"""What a Jetson says of itself: board, JetPack, power mode, clocks. From files and one query; nothing is changed."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: L4T's release file, which every JetPack writes.
_RELEASE = "etc/nv_tegra_release"
_MODEL = "proc/device-tree/model"
_COMPATIBLE = "proc/device-tree/compatible"
_PACKAGES = "var/lib/dpkg/status"
#: The power modes that the board has, as ``nvpmodel`` reads them.
_MODES = "etc/nvpmodel.conf"
#: Where ``nvpmodel`` lies, whatever the caller's search path is.
_TOOLS = ("usr/sbin", "usr/bin", "sbin", "bin")
#: Folders below ``sys/class/devfreq`` that are a GPU's: ``17000000.gpu`` on Orin, ``gpu-gpc-0`` and ``gpu-nvd-0`` on
#: Thor, the chip's name in the place of ``gpu`` before JetPack 6.
_GPU = re.compile(r"[0-9a-f]+\.(gpu|ga10b|gv11b|gp10b)|gpu-\w+-\d+")
#: Seconds that a query may take.
TIMEOUT = 5.0


@dataclass(frozen=True)
class Clock:
    """One clock that follows the load.

    Attributes:
        name: ``cpu`` with the first core of those that share it, or the kernel's name of the GPU's.
        current_mhz: Now; an idle GPU may tell 0.
        min_mhz: The lowest that is allowed.
        max_mhz: The highest that is allowed, by the power mode too.
        pinned: Whether only one is allowed; ``None`` where the limits cannot be read.
    """

    name: str
    current_mhz: float | None
    min_mhz: float | None
    max_mhz: float | None
    pinned: bool | None


@dataclass(frozen=True)
class Jetson:
    """A Jetson. What cannot be read is ``None`` and has its reason.

    Attributes:
        board: As the device tree names it.
        l4t: Release of Jetson Linux, such as ``36.4.0``.
        jetpack: Version of the package ``nvidia-jetpack``, such as ``6.1+b123``.
        tensorrt: Version of the package ``python3-libnvinfer``, JetPack's TensorRT for Python.
        power_mode: Its name, such as ``MAXN_SUPER``.
        power_modes: Those that the board has, by name, with the number that ``nvpmodel -m`` takes.
        clocks: Of processors and GPU.
        reasons: Attribute to why it could not be read.
    """

    board: str | None
    l4t: str | None
    jetpack: str | None
    tensorrt: str | None
    power_mode: str | None
    power_modes: dict[str, int]
    clocks: list[Clock]
    reasons: dict[str, str]

    @property
    def pinned(self) -> bool | None:
        """Whether all clocks are pinned; ``None`` if one of them does not tell and none is free."""
        answers = {clock.pinned for clock in self.clocks} or {None}
        if False in answers:
            return False
        return None if None in answers else True


def _text(path: Path) -> str | None:
    """A file's text; ``None`` where it cannot be read. Strings of the device tree end in a NUL."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").replace("\0", "\n").strip()
    except OSError:
        return None


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether the system below a root runs on a Jetson, in a container too.

    Args:
        root: Where ``etc`` and ``proc`` are.
    """
    model, compatible = _text(root / _MODEL) or "", _text(root / _COMPATIBLE) or ""
    return (root / _RELEASE).is_file() or "Jetson" in model or "nvidia,tegra" in compatible


def find_jetson(root: Path = Path("/"), timeout: float = TIMEOUT) -> Jetson | None:
    """Ask a Jetson what it is. Never raises, and needs no rights.

    Args:
        root: Where ``etc``, ``proc``, ``sys``, ``usr`` and ``var`` are.
        timeout: Seconds that ``nvpmodel`` may take.

    Returns:
        What it says; ``None`` on any other machine.
    """
    if not is_jetson(root):
        return None
    reasons: dict[str, str] = {}

    def told(attribute: str, value: str | None, reason: str) -> str | None:
        if value is None:
            reasons[attribute] = reason
        return value

    board = told("board", _text(root / _MODEL), f"/{_MODEL} cannot be read")
    l4t = told("l4t", _l4t(root), f"/{_RELEASE} cannot be read, or names no release")
    packages = _packages(root)
    absent = f"/{_PACKAGES} cannot be read" if packages is None else "the package {} is not installed"
    names = {"jetpack": "nvidia-jetpack", "tensorrt": "python3-libnvinfer"}
    versions = {
        attribute: told(attribute, (packages or {}).get(package), absent.format(package))
        for attribute, package in names.items()
    }
    mode, reason = _power_mode(root, timeout)
    clocks = [*_cpu_clocks(root), *_gpu_clocks(root)]
    if not clocks:
        reasons["clocks"] = "/sys has neither cpufreq nor a GPU's devfreq"
    return Jetson(
        board=board,
        l4t=l4t,
        jetpack=versions["jetpack"],
        tensorrt=versions["tensorrt"],
        power_mode=told("power_mode", mode, reason),
        power_modes=_power_modes(root),
        clocks=clocks,
        reasons=reasons,
    )


def _l4t(root: Path) -> str | None:
    """``# R36 (release), REVISION: 4.0, GCID: …`` is 36.4.0."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", _text(root / _RELEASE) or "")
    return f"{found[1]}.{found[2]}" if found else None


def _packages(root: Path) -> dict[str, str] | None:
    """Versions of the packages that are installed, as dpkg keeps them (deb822, Debian Policy 5.1)."""
    text = _text(root / _PACKAGES)
    if text is None:
        return None
    found = {}
    for paragraph in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.+)$", paragraph, re.MULTILINE))
        # A package that was removed stays listed as long as its configuration does.
        if fields.get("Status", "").endswith(" installed") and {"Package", "Version"} <= fields.keys():
            found[fields["Package"]] = fields["Version"].strip()
    return found


def _power_modes(root: Path) -> dict[str, int]:
    """``< POWER_MODEL ID=2 NAME=MAXN_SUPER >``."""
    found = re.findall(
        r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=([^\s>]+)", _text(root / _MODES) or "", re.MULTILINE
    )
    return {name: int(number) for number, name in found}


def _power_mode(root: Path, timeout: float) -> tuple[str | None, str]:
    """The mode that is on, or why it is not known.

    ``nvpmodel -q`` prints ``NV Power Mode: MAXN_SUPER`` and the number; without rights it may complain of parameters
    that it could not read, and still print the mode.
    """
    tool = shutil.which("nvpmodel", path=":".join(str(root / folder) for folder in _TOOLS))
    if tool is None:
        return None, "nvpmodel is not there: a container does not have the board's tools"
    try:
        done = subprocess.run(
            [tool, "-q"], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"nvpmodel -q did not answer within {timeout:g} s"
    except OSError as error:
        return None, f"nvpmodel cannot be started: {error.strerror}"
    said = "\n".join(stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
    found = re.search(r"NV Power Mode: *(\S+)", said)
    if found:
        return found[1], ""
    first = next((line.strip() for line in said.splitlines() if line.strip()), "it printed nothing")
    return None, f"nvpmodel -q names no mode: {first}"


def _clock(name: str, folder: Path, prefix: str, per_mhz: float) -> Clock:
    def mhz(which: str) -> float | None:
        text = _text(folder / f"{prefix}{which}_freq")
        return round(int(text) / per_mhz, 1) if text is not None and text.isdecimal() else None

    least, most = mhz("min"), mhz("max")
    pinned = None if least is None or most is None else least == most
    return Clock(name, mhz("cur"), least, most, pinned)


def _numbered(folder: Path) -> int:
    return int(re.sub(r"\D", "", folder.name) or 0)


def _cpu_clocks(root: Path) -> Iterator[Clock]:
    """Of each group of cores that share one; cpufreq counts in kHz."""
    for folder in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy[0-9]*"), key=_numbered):
        yield _clock(f"cpu{_numbered(folder)}", folder, "scaling_", 1e3)


def _gpu_clocks(root: Path) -> Iterator[Clock]:
    """Of the GPU's parts; devfreq counts in Hz."""
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if _GPU.fullmatch(folder.name):
            yield _clock(folder.name, folder, "", 1e6)
