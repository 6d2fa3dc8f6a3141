"""The seam's device over ``cuda.core`` 1.x: opening one, what it hands out, arrays of other libraries.

Unproven on a GPU: the machines that run the tests have none. It is kept small for that; ``make test-gpu`` proves it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from vsa_rt.engines.cuda import seam
from vsa_rt.engines.cuda.faults import is_drivers, translated, unusable
from vsa_rt.engines.cuda.handles import (
    CudaCapture,
    CudaEvent,
    CudaMemory,
    CudaPinned,
    CudaStream,
    native_of,
)
from vsa_rt.errors import EnvironmentUnusable, UsageError

INSTALL = "pip install 'cuda-core>=1.0' 'cuda-bindings>=12.6'"
#: DLPack's words for memory that a GPU can read as its own (``DLDeviceType``): CUDA's, and managed.
_ON_DEVICE = (2, 13)


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"


class CudaDevice:
    """See ``seam.Device``.

    Args:
        core: The module ``cuda.core``.
        ordinal: The device's number.
        facts: What it says of itself.

    Attributes:
        core: See Args.
        facts: See Args.
        own_stream: A stream of ``cuda.core``'s in whose order memory is taken and given back, and nothing else done.

    Raises:
        EnvironmentUnusable: The driver refuses.
    """

    def __init__(self, core: Any, ordinal: int, facts: seam.DeviceFacts) -> None:
        self.core, self._ordinal, self._facts = core, ordinal, facts
        self._pid = os.getpid()
        device = self._current()
        with translated(f"{facts.name} cannot be used"):
            self.own_stream = device.create_stream()
            # A pool of our own: the driver's shared one keeps what was freed from everybody else in the process. It has
            # no release threshold, and gives back what no chunk of it uses: a threshold counts all that the pool holds
            # (cuda.h, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD), so that one above an open session's memory, without which it
            # changes nothing for the outputs that calls keep, would also keep a closed session's from everybody.
            self._memory = (
                core.DeviceMemoryResource(device, core.DeviceMemoryResourceOptions())
                if device.properties.memory_pools_supported
                else device.memory_resource
            )
            self._pinned = core.LegacyPinnedMemoryResource()

    @property
    def facts(self) -> seam.DeviceFacts:
        """See ``seam.Device.facts``."""
        return self._facts

    def enter(self) -> None:
        """See ``seam.Device.enter``.

        The calling thread stays on this GPU, as after ``torch.cuda.set_device``: ``cuda.core`` could bring back another
        device's primary context, but no context of a library's own. Whoever works with several GPUs in one thread
        selects his again after a call.
        """
        self._current()

    def _current(self) -> Any:
        """``cuda.core``'s device of the calling thread, which has one of its own, made current.

        Raises:
            EnvironmentUnusable: The driver refuses.
            UsageError: The process was forked after the device was opened.
        """
        if os.getpid() != self._pid:
            raise UsageError(
                f"{self._facts.name} was opened in process {self._pid}, of which this one was forked: CUDA does not "
                "survive that; start processes by spawn (multiprocessing.get_context('spawn')), or open the bundle "
                "in each"
            )
        try:
            device = self.core.Device(self._ordinal)
            device.set_current()
        except Exception as error:
            raise unusable(error, f"{self._facts.name} cannot be used") from error
        return device

    def stream(self) -> CudaStream:
        """See ``seam.Device.stream``."""
        device = self._current()
        with translated("a stream cannot be made"):
            return CudaStream(self, device.create_stream(options=self.core.StreamOptions(nonblocking=True)))

    def event(self) -> CudaEvent:
        """See ``seam.Device.event``."""
        device = self._current()
        options = self.core.EventOptions(timing_enabled=False, blocking_sync=True)
        with translated("an event cannot be made"):
            return CudaEvent(self, device.create_event(options=options))

    def memory(self, nbytes: int) -> CudaMemory:
        """See ``seam.Device.memory``."""
        self._current()
        try:
            buffer = self._memory.allocate(nbytes, stream=self.own_stream)
            self.own_stream.sync()
        except Exception as error:
            raise unusable(error, f"no {_mib(nbytes)} of GPU memory{self._left()}") from error
        return CudaMemory(self, buffer, nbytes)

    def pinned(self, nbytes: int) -> CudaPinned:
        """See ``seam.Device.pinned``."""
        self._current()
        try:
            buffer = self._pinned.allocate(nbytes)
        except Exception as error:
            raise unusable(error, f"no {_mib(nbytes)} of page-locked memory") from error
        return CudaPinned(self, buffer, nbytes)

    def sync(self) -> None:
        """See ``seam.Device.sync``."""
        device = self._current()
        with translated("the GPU failed"):
            device.sync()

    def memory_left(self) -> tuple[int, int]:
        """Bytes of GPU memory that are free and that there are, with those of other processes.

        Raises:
            EnvironmentUnusable: The driver refuses.
        """
        self._current()
        with translated("the GPU's memory cannot be asked for"):
            free, total = _ask("cuMemGetInfo")
            return int(free), int(total)

    def _left(self) -> str:
        try:
            free, total = self.memory_left()
        except EnvironmentUnusable:
            return ""
        return f", {_mib(free)} of {_mib(total)} are free"

    def capture(self, stream: seam.Stream) -> CudaCapture:
        """See ``seam.Device.capture``."""
        self._current()
        if not isinstance(stream, CudaStream):
            raise TypeError(f"{stream!r} is no stream of this device")
        with translated("a capture cannot begin"):
            return CudaCapture(stream)

    def foreign(self, array: Any, stream: seam.Stream) -> seam.Foreign:
        """See ``seam.Device.foreign``. An array whose library tells of no stream is taken to be written on the default
        stream."""
        self._current()
        kind = f"{type(array).__module__}.{type(array).__qualname__}"
        try:
            view = self._view(array, stream)
        except UsageError:
            raise
        except Exception as error:
            if is_drivers(error) and "CUDA_ERROR" in str(error):
                raise unusable(error, f"the array of {kind} cannot be read") from error
            raise UsageError(f"the array of {kind} cannot be read on the GPU: {error}") from error
        if view is None or not view.is_device_accessible:
            raise UsageError(
                f"an array of {kind} is not on a GPU: expected a device array (with __cuda_array_interface__ or "
                "__dlpack__), as a torch tensor on cuda; give arrays of the host to the ordinary call"
            )
        if view.device_id != self._ordinal:
            raise UsageError(
                f"the array of {kind} lies on GPU {view.device_id}, the engine on GPU {self._ordinal}: copy it there"
            )
        shape = tuple(int(n) for n in view.shape)
        return seam.Foreign(
            address=int(view.ptr),
            dtype=np.dtype(view.dtype).name,
            shape=shape,
            contiguous=_is_contiguous(shape, view.strides),
            owner=view,
        )

    def _view(self, array: Any, stream: seam.Stream) -> Any:
        """``cuda.core``'s view of an array; ``None`` if it is no array of a device."""
        views = self.core.utils.StridedMemoryView
        interface = getattr(array, "__cuda_array_interface__", None)
        asked = getattr(array, "__dlpack_device__", None)
        # DLPack orders what the array's library still does before the stream, the interface only where it names the
        # library's own. Where both do, the interface: cuda.core before 1.2 overlooks DLPack's offset into the memory.
        if interface is not None and (asked is None or interface.get("stream") is not None):
            if interface.get("stream") is None:
                native_of(stream).wait(self.core.LEGACY_DEFAULT_STREAM)
            return views.from_cuda_array_interface(array, stream_ptr=stream.handle)
        if asked is None or int(asked()[0]) not in _ON_DEVICE:
            return None
        return views.from_dlpack(array, stream_ptr=stream.handle)


def _is_contiguous(shape: Sequence[int], strides: Sequence[int] | None) -> bool:
    """Whether elements lie in C order without gaps; strides count elements, and those of single ones say nothing."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides or ()), strict=False):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


# Opening


def _ask(name: str, *arguments: Any) -> Any:
    """Call the driver by its own name.

    Raises:
        RuntimeError: It refuses; the message has the error's name.
    """
    error, *values = getattr(import_module("cuda.bindings.driver"), name)(*arguments)
    if int(error) != 0:
        raise RuntimeError(f"{error.name}: {name}")
    return values[0] if len(values) == 1 else tuple(values)


def _libraries() -> tuple[Any, str]:
    """``cuda.core`` and the version of ``cuda.bindings`` under it.

    Raises:
        EnvironmentUnusable: They are not installed, or do not load.
    """
    try:
        core, bindings = import_module("cuda.core"), import_module("cuda.bindings")
    except (ImportError, OSError) as error:
        raise EnvironmentUnusable(f"cuda-core cannot be imported ({error}); {INSTALL}") from error
    return core, str(bindings.__version__)


def _check_driver(bindings: str) -> str:
    """The newest CUDA version that the driver serves, such as ``12.6``.

    Raises:
        EnvironmentUnusable: It is older than the bindings: symbols that they call are not in it.
    """
    version = int(_ask("cuDriverGetVersion"))
    served = f"{version // 1000}.{version % 1000 // 10}"
    needed = bindings.partition(".")[0]
    if version // 1000 < int(needed):
        raise EnvironmentUnusable(
            f"the NVIDIA driver is too old: it serves CUDA {served}, cuda-bindings {bindings} needs CUDA {needed}; "
            f"update the driver, or pip install 'cuda-bindings=={version // 1000}.*'"
        )
    return served


def _look(core: Any, ordinal: int, driver: str) -> seam.DeviceFacts:
    """What a device says of itself."""
    device = core.Device(ordinal)
    return seam.DeviceFacts(
        name=str(device.name),
        capability=f"sm_{device.arch}",
        nbytes=int(_ask("cuDeviceTotalMem", _ask("cuDeviceGet", ordinal))),
        driver=driver,
        integrated=bool(device.properties.integrated),
    )


def open_device(capability: str = "") -> CudaDevice:
    """Open a GPU of this machine.

    Args:
        capability: Such as ``sm_87``: the first one of that is taken. Empty: the first one. ``CUDA_VISIBLE_DEVICES``
            says which are there.

    Raises:
        EnvironmentUnusable: The library, the driver or such a GPU is not there, or the driver is too old.
    """
    core, bindings = _libraries()
    with translated("no GPU can be opened"):
        served = _check_driver(bindings)
        _ask("cuInit", 0)
        found = [_look(core, ordinal, served) for ordinal in range(int(_ask("cuDeviceGetCount")))]
    for ordinal, facts in enumerate(found):
        if capability in ("", facts.capability):
            return CudaDevice(core, ordinal, facts)
    there = ", ".join(f"{facts.name} ({facts.capability})" for facts in found)
    raise EnvironmentUnusable(
        f"no GPU of {capability or 'any capability'} is here; there is {there or 'none'}; look at "
        "CUDA_VISIBLE_DEVICES, or build for what is here"
    )
