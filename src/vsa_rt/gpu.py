"""The GPUs of this machine, as NVIDIA's driver tells them. No library of Python is needed, and no context is made."""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
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
    36: ("CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER", "the driver is too old for it"),
    46: ("CUDA_ERROR_DEVICE_UNAVAILABLE", "it is used by another process alone, or disabled"),
    100: (
        "CUDA_ERROR_NO_DEVICE",
        "the driver sees no GPU: in a container, pass it in (docker run --gpus all)",
    ),
    101: ("CUDA_ERROR_INVALID_DEVICE", "there is no such device"),
    304: ("CUDA_ERROR_OPERATING_SYSTEM", "the system refuses: may this user open /dev/nvidia*?"),
    802: ("CUDA_ERROR_SYSTEM_NOT_READY", "the system is not ready: is the fabric manager running?"),
    803: ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "kernel module and libcuda are of different versions: reboot"),
    804: ("CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE", "forward compatibility is not for this GPU"),
    805: (
        "CUDA_ERROR_MPS_CONNECTION_FAILED",
        "the MPS server that this process is told to use does not answer",
    ),
    999: ("CUDA_ERROR_UNKNOWN", "an unknown error: a module that was not loaded, or a sleep of the machine"),
}
_NAME = 256
#: Seconds that the driver may take: it wakes every GPU first.
TIMEOUT = 60.0


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


def _said(library: Any, code: int) -> str:
    name, meaning = _RESULTS.get(code, ("", ""))
    return f"{name}: {meaning}" if name else f"{_drivers_word(library, code)} ({code})"


def _drivers_word(library: Any, code: int) -> str:
    """The driver's own word for an error that is not listed here."""
    word = ctypes.c_char_p()
    asked = getattr(library, "cuGetErrorName", None)
    if asked is None or asked(code, ctypes.byref(word)) or word.value is None:
        return "an error of CUDA"
    return word.value.decode("utf-8", "replace")


def _call(library: Any, name: str, *arguments: Any) -> None:
    try:
        function = getattr(library, name)
    except AttributeError as error:
        raise _Refused(f"the NVIDIA driver is too old: its library lacks {name}") from error
    code = int(function(*arguments))
    if code:
        raise _Refused(f"{name}: {_said(library, code)}")


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


def _load(libcuda: str) -> Any:
    """The driver's library. Nothing is initialised by loading it."""
    try:
        return ctypes.CDLL(libcuda)
    except OSError as error:
        # The loader names what it could not open; that may be a library that the driver's own one needs.
        said = str(error)
        if said.startswith((f"{libcuda}:", "dlopen(")) and "no such file" in said.lower():
            raise _Refused(f"no NVIDIA driver is installed: {libcuda} is not there") from error
        raise _Refused(f"the NVIDIA driver's library does not load: {error}") from error


def look(libcuda: str = LIBCUDA) -> Gpus:
    """Ask the driver in this process. Never raises: what fails is the reason.

    Args:
        libcuda: The driver's library, by name or path.
    """
    driver = ""
    try:
        library = _load(libcuda)
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


def ask(libcuda: str = LIBCUDA, timeout: float = TIMEOUT) -> Gpus:
    """Ask the driver in a process of its own, so that this one may still be forked. Never raises.

    ``cuInit`` makes no context, and yet a process that is forked from one that called it gets
    ``CUDA_ERROR_NOT_INITIALIZED`` of whatever it asks of CUDA. So this process does not call it, unless it has done so
    before, or has no interpreter that it could start, such as one that is embedded in another program.

    Args:
        libcuda: The driver's library, by name or path.
        timeout: Seconds that the driver may take.
    """
    try:
        library = _load(libcuda)
    except _Refused as error:
        return Gpus(reason=str(error))
    # Before cuInit, every function answers CUDA_ERROR_NOT_INITIALIZED (CUDA Driver API, initialization).
    count = getattr(library, "cuDeviceGetCount", None)
    if count is None or count(ctypes.byref(ctypes.c_int())) == 0:
        return look(libcuda)
    if not sys.executable or getattr(sys, "frozen", False) or not Path(__file__).is_file():
        return look(libcuda)
    try:
        # Without site-packages: whatever is installed, it needs nothing of it.
        done = subprocess.run(
            [sys.executable, "-I", "-S", __file__, libcuda],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Gpus(reason=f"the NVIDIA driver did not answer within {timeout:g} s")
    except OSError:
        return look(libcuda)
    if done.returncode < 0:
        # In this process it would end so, too.
        return Gpus(
            reason=f"the NVIDIA driver's library ended the process that asked it: {_signal(-done.returncode)}"
        )
    return _answer(done.stdout) or look(libcuda)


def _signal(number: int) -> str:
    known = {int(each): each.name for each in signal.Signals}
    return known.get(number, f"signal {number}")


def _answer(printed: bytes) -> Gpus | None:
    """What a process of ``ask`` printed; ``None`` if it was none of ours."""
    try:
        told = json.loads(printed)
        return Gpus([Gpu(**device) for device in told["devices"]], told["driver"], told["reason"])
    except (ValueError, KeyError, TypeError):
        return None


@cache
def find_gpus() -> Gpus:
    """The GPUs of this machine, asked for once in a process, without keeping it from being forked."""
    return ask()


if __name__ == "__main__":
    print(json.dumps(asdict(look(*sys.argv[1:]))))
