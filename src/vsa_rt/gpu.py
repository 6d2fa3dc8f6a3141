"""The GPUs of this machine, as NVIDIA's driver tells them. No library of Python is needed, and no context is made."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from functools import cache
from typing import Any

#: The driver's own library (CUDA Driver API); a machine without one has no usable GPU.
LIBCUDA = "libcuda.so.1"
#: ``CUdevice_attribute`` (cuda.h).
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18
#: ``CUresult`` (cuda.h): the ones that people meet, with what they mean.
_RESULTS = {
    2: ("CUDA_ERROR_OUT_OF_MEMORY", "there is no memory left on it"),
    3: ("CUDA_ERROR_NOT_INITIALIZED", "the driver is not initialised"),
    34: (
        "CUDA_ERROR_STUB_LIBRARY",
        "libcuda is a stub of the toolkit; put the driver's own first on the library path",
    ),
    46: ("CUDA_ERROR_DEVICE_UNAVAILABLE", "it is used by another process alone, or disabled"),
    100: (
        "CUDA_ERROR_NO_DEVICE",
        "the driver sees no GPU: in a container, pass it in (docker run --gpus all)",
    ),
    101: ("CUDA_ERROR_INVALID_DEVICE", "there is no such device"),
    802: ("CUDA_ERROR_SYSTEM_NOT_READY", "the system is not ready: is the fabric manager running?"),
    803: ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "kernel module and libcuda are of different versions: reboot"),
    804: ("CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", "forward compatibility is not for this GPU"),
    999: ("CUDA_ERROR_UNKNOWN", "an unknown error: a module that was not loaded, or a sleep of the machine"),
}
_NAME = 256


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: Its product name.
        capability: Compute capability, such as ``sm_87``.
        nbytes: Of memory.
        integrated: Whether it shares the host's memory, as on Jetson.
    """

    name: str
    capability: str
    nbytes: int
    integrated: bool


@dataclass(frozen=True)
class Gpus:
    """The GPUs of a machine.

    Attributes:
        devices: In the driver's order.
        driver: The newest CUDA version that the driver serves, such as ``12.6``; empty without a driver.
        reason: Why there is none; empty where there is one.
    """

    devices: list[Gpu] = field(default_factory=list)
    driver: str = ""
    reason: str = ""


class _Refused(Exception):
    """A call of the driver's failed."""


def _said(code: int) -> str:
    name, meaning = _RESULTS.get(code, (f"CUDA error {code}", ""))
    return f"{name}: {meaning}" if meaning else name


def _call(library: Any, name: str, *arguments: Any) -> None:
    try:
        function = getattr(library, name)
    except AttributeError as error:
        raise _Refused(f"the NVIDIA driver is too old: its library lacks {name}") from error
    code = int(function(*arguments))
    if code:
        raise _Refused(f"{name}: {_said(code)}")


def _attribute(library: Any, device: ctypes.c_int, attribute: int) -> int:
    value = ctypes.c_int()
    _call(library, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
    return value.value


def _gpu(library: Any, index: int) -> Gpu:
    device, name, nbytes = ctypes.c_int(), ctypes.create_string_buffer(_NAME), ctypes.c_size_t()
    _call(library, "cuDeviceGet", ctypes.byref(device), index)
    _call(library, "cuDeviceGetName", name, _NAME, device)
    _call(library, "cuDeviceTotalMem_v2", ctypes.byref(nbytes), device)
    major, minor = _attribute(library, device, _MAJOR), _attribute(library, device, _MINOR)
    return Gpu(
        name.value.decode("utf-8", "replace"),
        f"sm_{major}{minor}",
        nbytes.value,
        bool(_attribute(library, device, _INTEGRATED)),
    )


def look(libcuda: str = LIBCUDA) -> Gpus:
    """Ask the driver. Never raises: what fails is the reason.

    Args:
        libcuda: The driver's library, by name or path.
    """
    try:
        library = ctypes.CDLL(libcuda)
    except OSError as error:
        # The loader names what it could not open; that may be a library that the driver's own one needs.
        said = str(error)
        if said.startswith((f"{libcuda}:", "dlopen(")) and "no such file" in said.lower():
            return Gpus(reason=f"no NVIDIA driver is installed: {libcuda} is not there")
        return Gpus(reason=f"the NVIDIA driver's library does not load: {error}")
    driver = ""
    try:
        version = ctypes.c_int()
        _call(library, "cuDriverGetVersion", ctypes.byref(version))
        driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
        _call(library, "cuInit", 0)
        count = ctypes.c_int()
        _call(library, "cuDeviceGetCount", ctypes.byref(count))
        devices = [_gpu(library, index) for index in range(count.value)]
    except _Refused as error:
        return Gpus(driver=driver, reason=str(error))
    return Gpus(devices, driver, "" if devices else _RESULTS[100][1])


@cache
def find_gpus() -> Gpus:
    """The same once for a process.

    ``cuInit`` makes no context. A process that forks after it may still not use CUDA in its child (CUDA C++
    Programming Guide, fork); what vsa-rt starts for decoding is spawned.
    """
    return look()
