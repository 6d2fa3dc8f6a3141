"""Outputs that stay on the device: arrays that CuPy, PyTorch and others take as they are."""

from __future__ import annotations

import contextlib
import math
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.engines.cuda.census import Census
from vsa_rt.engines.cuda.gate import Gate
from vsa_rt.engines.cuda.seam import Device, Memory
from vsa_rt.errors import EnvironmentUnusable, UsageError


class _Read:
    """Memory that streams of other libraries may still read when the last reference to it goes.

    Args:
        device: Where it lies.
        memory: It.
    """

    def __init__(self, device: Device, memory: Memory) -> None:
        self._device, self._memory = device, memory

    def close(self) -> None:
        """Free it once nothing on the device is under way: whose streams read it, nobody says."""
        try:
            # A device that failed has nothing under way.
            with contextlib.suppress(EnvironmentUnusable):
                self._device.sync()
        finally:
            self._memory.close()


class DeviceArray:
    """An array on the device whose memory is its own: it outlives the session, and is freed with it.

    It is complete when it is handed out, so that no stream needs to wait for it. What reads it holds a reference to it,
    as CuPy and PyTorch do, until its work is queued: freeing it waits until the whole device is idle. While another
    library captures a CUDA graph, that cannot be waited for, and would break the capture: keep it until then.

    Args:
        device: Where it lies.
        gate: Says when its memory may be freed.
        memory: Its memory, from its beginning.
        dtype: numpy's word.
        shape: Its shape.

    Attributes:
        dtype: numpy's type.
        shape: Its shape.
        nbytes: Its size.
    """

    def __init__(
        self, device: Device, gate: Gate, memory: Memory, dtype: str, shape: tuple[int, ...]
    ) -> None:
        self.dtype, self.shape = np.dtype(dtype), shape
        self.nbytes = math.prod(shape) * self.dtype.itemsize
        self._device, self._memory = device, memory
        self._finish = weakref.finalize(self, gate.give, _Read(device, memory))
        # With the process the driver frees it by itself, and may be gone before the interpreter.
        self._finish.atexit = False

    @property
    def address(self) -> int:
        """Where it begins on the device.

        Raises:
            UsageError: It is closed.
        """
        if not self._finish.alive:
            raise UsageError("the device array is closed")
        return self._memory.address

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}, {self.shape}{'' if self._finish.alive else ', closed'})"

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the interface, as Numba's manual describes it.

        Raises:
            UsageError: It is closed.
        """
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": None,
            "version": 3,
        }

    def to_host(self) -> NDArray[Any]:
        """A copy on the host.

        Raises:
            UsageError: It is closed.
            EnvironmentUnusable: The device failed.
        """
        address = self.address
        self._device.enter()
        census = Census()
        try:
            pinned = census.keep("pinned", self._device.pinned(self.nbytes))
            stream = census.keep("stream", self._device.stream())
            stream.copy(pinned.address, address, self.nbytes)
            stream.sync()
            return pinned.array(self.dtype.name, self.shape).copy()
        finally:
            census.close()

    def close(self) -> None:
        """Free it now, or once nobody captures; a second time does nothing."""
        self._finish()
