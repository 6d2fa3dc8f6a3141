"""What the CUDA driver's errors mean: in one sentence each, with a way out, and which of them end the process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vsa_rt.errors import EnvironmentUnusable, VsaError

_RESTART = "no GPU work can be done in this process any more: restart it"
_SMALLER = (
    "close what else uses the GPU, open with a smaller batch (--max-batch at build), or build in fp16 or int8"
)


@dataclass(frozen=True)
class Fault:
    """One error of CUDA.

    Attributes:
        name: The driver's; the runtime's where the driver has none.
        words: The runtime's text for the same (``cudaGetErrorString``), by which other libraries report it; empty
            where nobody does.
        cause: What happened.
        advice: What to do; of a sticky one, that a restart is needed is said besides.
        sticky: Every later call in the process fails, too: the driver's own documentation says that the process must
            be relaunched (``cuda.h``, ``CUresult``), or that the context must be destroyed, which here is the
            process's one.
    """

    name: str
    words: str
    cause: str
    advice: str = ""
    sticky: bool = False

    def __str__(self) -> str:
        way_out = [self.advice] if self.advice else []
        if self.sticky:
            way_out.append(_RESTART)
        return "; ".join([f"{self.cause} ({self.name})", *way_out])


_MEMCHECK = "compute-sanitizer shows where"
#: Every error that this code can meet and that has a better explanation than its name.
FAULTS = (
    Fault("CUDA_ERROR_OUT_OF_MEMORY", "out of memory", "the GPU has not enough memory left", _SMALLER),
    Fault(
        "CUDA_ERROR_NO_DEVICE",
        "no CUDA-capable device is detected",
        "the driver finds no GPU",
        "look at CUDA_VISIBLE_DEVICES, and in a container start it with --gpus all",
    ),
    Fault(
        "cudaErrorInsufficientDriver",
        "CUDA driver version is insufficient for CUDA runtime version",
        "the driver is older than the CUDA libraries",
        "update it, or install cuda-bindings of the driver's CUDA version",
    ),
    Fault(
        "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER",
        "API call is not supported in the installed CUDA driver",
        "the driver is too old",
        "update it",
    ),
    Fault(
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        "system has unsupported display driver / cuda driver combination",
        "the kernel's driver and libcuda are of different versions",
        "reboot after an update of the driver; in a container, let the host's libcuda in",
    ),
    Fault(
        "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
        "forward compatibility was attempted on non supported HW",
        "this GPU cannot use a libcuda newer than its driver",
        "remove the cuda-compat package, or update the driver",
    ),
    Fault(
        "CUDA_ERROR_SYSTEM_NOT_READY",
        "system not yet initialized",
        "the system's GPUs are not ready",
        "start NVIDIA's fabric manager",
    ),
    Fault(
        "CUDA_ERROR_NOT_INITIALIZED",
        "initialization error",
        "the driver was not initialised in this process",
        "processes that use the GPU must be started by spawn, not by fork",
    ),
    Fault(
        "CUDA_ERROR_DEVICE_UNAVAILABLE",
        "CUDA-capable device(s) is/are busy or unavailable",
        "the GPU is another process's alone",
        "end that process, or allow several (nvidia-smi -c DEFAULT)",
    ),
    Fault(
        "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        "operation not permitted when stream is capturing",
        "something was done that cannot be captured into a graph",
    ),
    Fault(
        "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        "operation failed due to a previous error during capture",
        "something before it could not be captured into a graph",
    ),
    Fault(
        "CUDA_ERROR_STREAM_CAPTURE_UNJOINED",
        "capturing stream has unjoined work",
        "a stream that was forked during capture was not joined",
    ),
    Fault(
        "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT",
        "operation would make the legacy stream depend on a capturing blocking stream",
        "the legacy default stream was used during capture",
    ),
    Fault(
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "an illegal memory access was encountered",
        "a kernel read or wrote an address that is not its own",
        _MEMCHECK,
        sticky=True,
    ),
    Fault(
        "CUDA_ERROR_MISALIGNED_ADDRESS",
        "misaligned address",
        "a kernel read or wrote a misaligned address",
        _MEMCHECK,
        sticky=True,
    ),
    Fault(
        "CUDA_ERROR_INVALID_ADDRESS_SPACE",
        "operation not supported on global/shared address space",
        "a kernel mixed up kinds of memory",
        _MEMCHECK,
        sticky=True,
    ),
    Fault(
        "CUDA_ERROR_LAUNCH_FAILED",
        "unspecified launch failure",
        "a kernel broke off",
        "dmesg shows the driver's Xid message",
        sticky=True,
    ),
    Fault(
        "CUDA_ERROR_LAUNCH_TIMEOUT",
        "the launch timed out and was terminated",
        "a kernel took longer than the display's watchdog allows",
        "use a GPU without a display, or smaller batches",
        sticky=True,
    ),
    Fault(
        "CUDA_ERROR_ILLEGAL_INSTRUCTION",
        "an illegal instruction was encountered",
        "a kernel holds an instruction that this GPU does not know",
        "build the engine on this GPU",
        sticky=True,
    ),
    Fault("CUDA_ERROR_INVALID_PC", "invalid program counter", "a kernel left its own code", sticky=True),
    Fault(
        "CUDA_ERROR_HARDWARE_STACK_ERROR", "hardware stack error", "a kernel's stack overflowed", sticky=True
    ),
    Fault("CUDA_ERROR_ASSERT", "device-side assert triggered", "a kernel's own check failed", sticky=True),
    Fault(
        "CUDA_ERROR_TENSOR_MEMORY_LEAK",
        "tensor memory not completely freed",
        "a kernel kept tensor memory",
        sticky=True,
    ),
    Fault(
        "CUDA_ERROR_ECC_UNCORRECTABLE",
        "uncorrectable ECC error encountered",
        "the GPU's memory is faulty",
        "restart the process, and look at nvidia-smi -q -d ECC: the GPU may need a reset",
    ),
    Fault(
        "CUDA_ERROR_CONTAINED",
        "Invalid access of peer GPU memory over nvlink or a hardware error",
        "the GPU contained an error of its hardware or of NVLink",
        "dmesg shows the driver's Xid message",
        sticky=True,
    ),
    Fault(
        "CUDA_ERROR_EXTERNAL_DEVICE",
        "an async error has occured in external entity outside of CUDA",
        "a device outside of CUDA that the GPU waited for failed",
        sticky=True,
    ),
    Fault(
        "CUDA_ERROR_MPS_CLIENT_TERMINATED",
        "the MPS client has been terminated by the server",
        "the MPS server ended this process's share of the GPU",
        sticky=True,
    ),
)
_BY_NAME = {fault.name: fault for fault in FAULTS}
_NAME = re.compile(r"\bCUDA_ERROR_\w+|\bcudaError[A-Z]\w+")

_NO_DRIVER = (
    "there is no NVIDIA driver here (libcuda.so.1 is not found); install it, on a Jetson flash JetPack, and in a "
    "container start it with --gpus all or --runtime nvidia"
)
_OLD_DRIVER = "the driver is too old for cuda-bindings ({}); update it, or install cuda-bindings of the driver's CUDA version"


def find_fault(text: str) -> Fault | None:
    """The error that a message of the driver, of CUDA's runtime or of a library on top of it is about.

    Args:
        text: Such as ``CUDA_ERROR_OUT_OF_MEMORY: ...`` or ``Cuda Runtime (out of memory)``.

    Returns:
        ``None`` if no error of ``FAULTS`` is in it.
    """
    named = _NAME.search(text)
    if named is not None and named[0] in _BY_NAME:
        return _BY_NAME[named[0]]
    return next((fault for fault in FAULTS if fault.words and fault.words in text), None)


def explain(text: str) -> str:
    """What a message means: the sentence of its error, or the message itself in one line."""
    fault = find_fault(text)
    return str(fault) if fault is not None else " ".join(text.split()).rstrip(".")


def is_drivers(error: Exception) -> bool:
    """Whether an exception comes from the driver or a library over it, and not from a fault of our own."""
    if isinstance(error, VsaError):
        return False
    return isinstance(error, (RuntimeError, OSError, MemoryError)) or type(error).__name__ in (
        "CUDAError",
        "NVRTCError",
    )


def _cause(error: Exception) -> str:
    text = str(error)
    if type(error).__name__ == "DynamicLibNotFoundError" and '"cuda"' in text:
        return _NO_DRIVER
    absent = re.fullmatch(r'(?:Function|Symbol) "(\w+)" not found', text)
    return _OLD_DRIVER.format(f"it lacks {absent[1]}") if absent else explain(text or type(error).__name__)


def unusable(error: Exception, doing: str) -> Exception:
    """What to raise for an exception: a sentence for the driver's errors, the exception itself for others.

    Args:
        error: Caught.
        doing: What was tried, as the message begins.
    """
    if not is_drivers(error):
        return error
    return EnvironmentUnusable(f"{doing}: {_cause(error)}")


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Around calls of the driver: its errors become sentences.

    Args:
        doing: What is tried, as the message begins.

    Raises:
        EnvironmentUnusable: The driver is absent, or refuses.
    """
    try:
        yield
    except Exception as error:
        if not is_drivers(error):
            raise
        # Without a name for it: its frames hold this one, so that it would keep itself, and all that they hold.
        raise unusable(error, doing) from error
