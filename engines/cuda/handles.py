"""What the seam's device hands out, over ``cuda.core``: streams, events, memory, graphs and captures."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.engines.cuda import seam
from vsa_rt.engines.cuda.faults import translated, unusable

if TYPE_CHECKING:
    from vsa_rt.engines.cuda.device import CudaDevice


def native_of(wrapped: Any) -> Any:
    """``cuda.core``'s own object behind one of the seam's, which must be this module's."""
    return wrapped.native


class Held:
    """Something of ``cuda.core``'s that is given back once.

    Attributes:
        device: Whose it is.
        native: ``cuda.core``'s own; ``None`` once it is given back.
    """

    def __init__(self, device: CudaDevice, native: Any) -> None:
        self.device, self.native = device, native

    def close(self) -> None:
        """See ``seam.Closable``.

        Raises:
            EnvironmentUnusable: The device failed before.
            UsageError: The process was forked: what it holds is the other process's.
        """
        native, self.native = self.native, None
        if native is not None:
            self.device.enter()
            with translated("the GPU does not take back what it gave"):
                self._give_back(native)

    def _give_back(self, native: Any) -> None:
        native.close()


class CudaEvent(Held):
    """See ``seam.Event``."""

    def sync(self) -> None:
        """See ``seam.Event.sync``."""
        try:
            self.native.sync()
        except Exception as error:
            raise unusable(error, "the GPU failed") from error


class CudaStream(Held):
    """See ``seam.Stream``."""

    def __init__(self, device: CudaDevice, native: Any) -> None:
        super().__init__(device, native)
        self._handle = int(native.handle)
        self._buffer = device.core.Buffer.from_handle

    @property
    def handle(self) -> int:
        """See ``seam.Stream.handle``."""
        return self._handle

    def record(self, event: seam.Event) -> None:
        """See ``seam.Stream.record``."""
        try:
            self.native.record(native_of(event))
        except Exception as error:
            raise unusable(error, "an event cannot be recorded") from error

    def wait(self, event: seam.Event) -> None:
        """See ``seam.Stream.wait``."""
        try:
            self.native.wait(native_of(event))
        except Exception as error:
            raise unusable(error, "a stream cannot wait for an event") from error

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """See ``seam.Stream.copy``. The views own nothing: whoever asks keeps both memories alive."""
        try:
            self._buffer(source, nbytes).copy_to(self._buffer(to, nbytes), stream=self.native)
        except Exception as error:
            raise unusable(error, f"{nbytes} bytes cannot be copied") from error

    def sync(self) -> None:
        """See ``seam.Stream.sync``."""
        try:
            self.native.sync()
        except Exception as error:
            raise unusable(error, "the GPU failed") from error


class CudaMemory(Held):
    """See ``seam.Memory``."""

    def __init__(self, device: CudaDevice, native: Any, nbytes: int) -> None:
        super().__init__(device, native)
        self._address, self._nbytes = int(native.handle), nbytes

    @property
    def address(self) -> int:
        """See ``seam.Memory.address``."""
        return self._address

    @property
    def nbytes(self) -> int:
        """See ``seam.Memory.nbytes``."""
        return self._nbytes

    def _give_back(self, native: Any) -> None:
        own = self.device.own_stream
        native.close(own)
        # A pool gives memory back to the driver at the next wait, not before.
        own.sync()


class CudaPinned(CudaMemory):
    """See ``seam.Pinned``."""

    def array(self, dtype: str, shape: Sequence[int], offset: int = 0) -> NDArray[Any]:
        """See ``seam.Pinned.array``.

        Raises:
            ValueError: It is closed, or smaller than that.
        """
        if self.native is None:
            raise ValueError("the pinned memory is closed")
        memory = memoryview((ctypes.c_ubyte * self.nbytes).from_address(self.address))
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(memory, np.dtype(dtype), count, offset).reshape(tuple(shape))


class CudaGraph(Held):
    """See ``seam.Graph``."""

    def launch(self, stream: seam.Stream) -> None:
        """See ``seam.Graph.launch``."""
        try:
            self.native.launch(native_of(stream))
        except Exception as error:
            raise unusable(error, "the CUDA graph cannot be launched") from error


class CudaCapture:
    """See ``seam.Capture``."""

    def __init__(self, stream: CudaStream) -> None:
        self._stream = stream
        # Other threads may allocate and free while this one captures; this one may not.
        self._builder: Any = stream.native.create_graph_builder().begin_building("thread_local")

    def end(self) -> CudaGraph:
        """See ``seam.Capture.end``. The graph's resources go to the device at once, not at its first launch."""
        try:
            with translated("the CUDA graph cannot be made"):
                graph = self._builder.end_building().complete()
        except BaseException:
            self.abandon()
            raise
        self._builder, builder = None, self._builder
        builder.close()
        made = CudaGraph(self._stream.device, graph)
        try:
            with translated("the CUDA graph cannot be moved to the GPU"):
                graph.upload(self._stream.native)
        except BaseException:
            made.close()
            raise
        return made

    def abandon(self) -> None:
        """See ``seam.Capture.abandon``."""
        # Not left to the collector: it would end whatever the stream captures by then.
        self._builder, builder = None, self._builder
        # Ending a capture that went wrong reports once more what went wrong.
        with contextlib.suppress(Exception):
            if builder is not None:
                builder.close()
