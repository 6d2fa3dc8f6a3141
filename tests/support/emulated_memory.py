"""Memory of the emulated GPU, and arrays in it that are another library's."""

from __future__ import annotations

import bisect
import contextlib
import math
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from emulated_work import Action, Span
from numpy.typing import NDArray

from vsa_rt.engines.cuda.seam import Memory
from vsa_rt.errors import EnvironmentUnusable

if TYPE_CHECKING:
    from emulated_cuda import EmulatedDevice

#: What memory holds that nobody wrote: NaN, or 255.
POISON = 0xFF
#: Every allocation begins at a multiple of it; TensorRT asks it of tensors (``setTensorAddress``).
ALIGNMENT = 256


class EmulatedMemory:
    """Bytes of the host that play device memory, pinned memory, or another library's device memory."""

    def __init__(self, device: EmulatedDevice, nbytes: int, kind: str) -> None:
        self._device, self.kind, self.nbytes = device, kind, nbytes
        # Never freed before the device is: no address comes twice, so that a stale one is always found out.
        whole = np.full(nbytes + ALIGNMENT, POISON, np.uint8)
        start = -whole.ctypes.data % ALIGNMENT
        self.data = whole[start : start + nbytes]
        self.address = int(self.data.ctypes.data)
        self.name = device.opened(self, kind)
        self.closed = False

    def close(self) -> None:
        """Poison it."""
        if self.closed:
            return
        self._device.free(self)

    def array(self, dtype: str, shape: Sequence[int], offset: int = 0) -> NDArray[Any]:
        """See ``Pinned.array``."""
        if self.closed:
            raise self._device.misuse(f"{self.name} is looked at after it was closed")
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        if offset < 0 or offset + nbytes > self.nbytes:
            raise self._device.misuse(f"{self.name} has {self.nbytes} bytes, not {offset} + {nbytes}")
        return self.data[offset : offset + nbytes].view(dtype).reshape(tuple(shape))


class Addresses:
    """Which memory an address is of, also once it was closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._starts: list[int] = []
        self._memory: list[EmulatedMemory] = []

    def add(self, memory: EmulatedMemory) -> None:
        """Keep memory."""
        with self._lock:
            index = bisect.bisect(self._starts, memory.address)
            self._starts.insert(index, memory.address)
            self._memory.insert(index, memory)

    def find(self, address: int) -> EmulatedMemory | None:
        """The memory that an address is of."""
        with self._lock:
            index = bisect.bisect(self._starts, address) - 1
            memory = self._memory[index] if index >= 0 else None
        return memory if memory is not None and address < memory.address + memory.nbytes else None

    def taken(self, kind: str) -> int:
        """Bytes that are taken."""
        with self._lock:
            return sum(m.nbytes for m in self._memory if m.kind == kind and not m.closed)


def span(memory: Memory) -> Span:
    """Where memory lies."""
    return memory.address, memory.address + memory.nbytes


class TheirArray:
    """A device array of another library, which a stream of its own still writes.

    Args:
        device: Where it lies.
        values: What it holds once the stream is done.
        gap: Items between rows: the array is not contiguous then.
    """

    def __init__(self, device: EmulatedDevice, values: NDArray[Any], gap: int = 0) -> None:
        self._device = device
        rows = np.ascontiguousarray(values).reshape(len(values), -1)
        wide = np.zeros((len(rows), rows.shape[1] + gap), rows.dtype)
        wide[:, : rows.shape[1]] = rows
        self._memory = device.allocated(wide.nbytes, "their memory")
        self._stream = device.their_stream()
        nbytes, place = wide.nbytes, self._memory

        def run() -> None:
            place.data[:nbytes] = wide.view(np.uint8).reshape(-1)

        # A closure over the array itself would keep it alive as long as its own work.
        self._stream.put(Action("their kernel", run, writes=[span(place)]))
        strides = (wide.strides[0], *np.empty(values.shape, values.dtype).strides[1:])
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (place.address, False),
            "strides": strides if gap else None,
            "stream": self._stream.handle,
            "version": 3,
        }

    def __del__(self) -> None:
        with contextlib.suppress(EnvironmentUnusable):  # the device may have failed meanwhile
            self._device.work.finish(self._stream.tail)
        self._stream.close()
        self._memory.close()
