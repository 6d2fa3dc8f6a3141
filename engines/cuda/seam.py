"""The seam: all that the CUDA session asks of a driver and of an inference library.

``cuda.core`` and TensorRT's bindings are behind it (``engines.cuda.device``, ``engines.tensorrt.loaded``), and in tests a
double that records every call and computes on the host. Nothing else in vsa-rt talks to a GPU. Addresses are device or
pinned host addresses as integers, sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from numpy.typing import NDArray


@dataclass(frozen=True)
class DeviceFacts:
    """What a device says of itself.

    Attributes:
        name: Its product name.
        capability: Such as ``sm_87``.
        nbytes: Of memory.
        driver: The newest CUDA version that the driver serves, such as ``12.6``.
        integrated: Whether it shares the host's memory, as on Jetson.
    """

    name: str
    capability: str
    nbytes: int
    driver: str
    integrated: bool


class Closable(Protocol):
    """Something of the driver's or the library's that has to be given back, once."""

    def close(self) -> None:
        """Give it back; a second time does nothing."""
        ...


class Event(Closable, Protocol):
    """A point in a stream's work."""

    def sync(self) -> None:
        """Wait on the host, without the GIL, until the last recorded work is done.

        Raises:
            EnvironmentUnusable: The device failed.
        """
        ...


class Stream(Closable, Protocol):
    """A queue of device work."""

    @property
    def handle(self) -> int:
        """The driver's handle."""
        ...

    def record(self, event: Event) -> None:
        """Mark the work so far."""
        ...

    def wait(self, event: Event) -> None:
        """Let what follows begin after the event's work."""
        ...

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Copy between device and pinned host memory, in the stream's order."""
        ...

    def sync(self) -> None:
        """Wait on the host, without the GIL, until the stream is idle.

        Raises:
            EnvironmentUnusable: The device failed.
        """
        ...


class Memory(Closable, Protocol):
    """Device memory."""

    @property
    def address(self) -> int:
        """Where it begins."""
        ...

    @property
    def nbytes(self) -> int:
        """Its size."""
        ...


class Pinned(Memory, Protocol):
    """Page-locked host memory, which the device copies from and to by itself."""

    def array(self, dtype: str, shape: Sequence[int], offset: int = 0) -> NDArray[Any]:
        """A view of it as an array; valid until it is closed."""
        ...


class Graph(Closable, Protocol):
    """Captured work, ready to be launched as one."""

    def launch(self, stream: Stream) -> None:
        """Put all of it into a stream."""
        ...


class Capture(Protocol):
    """Work on a stream, and on those forked from it by events, is written down instead of done."""

    def end(self) -> Graph:
        """Finish, and make the graph; every forked stream must have been joined.

        Raises:
            EnvironmentUnusable: A stream was not joined, or something was done that cannot be captured.
        """
        ...

    def abandon(self) -> None:
        """Finish without a graph, after a failure; never raises."""
        ...


class Device(Protocol):
    """One GPU."""

    @property
    def facts(self) -> DeviceFacts:
        """What it says of itself."""
        ...

    def enter(self) -> None:
        """Make it the calling thread's device. Cheap where it is already.

        Raises:
            UsageError: The process was forked after the device was opened.
        """
        ...

    def stream(self) -> Stream:
        """A new stream that does not wait for the legacy default stream."""
        ...

    def event(self) -> Event:
        """A new event without timing, whose ``sync`` blocks instead of spinning."""
        ...

    def memory(self, nbytes: int) -> Memory:
        """New device memory, at least 256-byte aligned.

        Raises:
            EnvironmentUnusable: There is not enough.
        """
        ...

    def pinned(self, nbytes: int) -> Pinned:
        """New page-locked host memory.

        Raises:
            EnvironmentUnusable: There is not enough.
        """
        ...

    def sync(self) -> None:
        """Wait on the host, without the GIL, until all streams of the process are idle, those of other libraries too.

        Not while anybody captures: the driver refuses then, and the capture is lost.

        Raises:
            EnvironmentUnusable: The device failed, or somebody captures.
        """
        ...

    def capture(self, stream: Stream) -> Capture:
        """Begin to write down work on a stream, without hindering other threads."""
        ...

    def foreign(self, array: Any, stream: Stream) -> Foreign:
        """Look at a device array of another library, once whatever its own stream still does to it is ordered before
        ``stream``.

        Args:
            array: Anything with ``__cuda_array_interface__`` or ``__dlpack__``.
            stream: Where it will be read.

        Raises:
            UsageError: It is no such array, or lies on another device.
        """
        ...


@dataclass(frozen=True)
class Foreign:
    """A device array of another library.

    Attributes:
        address: Where it begins.
        dtype: numpy's word.
        shape: Its shape.
        contiguous: Whether it is C-contiguous.
        owner: Keeps it alive.
    """

    address: int
    dtype: str
    shape: tuple[int, ...]
    contiguous: bool
    owner: Any


@dataclass(frozen=True)
class Port:
    """One tensor that an engine takes or gives.

    Attributes:
        name: Its name.
        taken: Whether the engine takes it.
        dtype: numpy's word.
        shape: Without a value for the batch axis, which is the first.
    """

    name: str
    taken: bool
    dtype: str
    shape: tuple[int | None, ...]


class Context(Closable, Protocol):
    """One place where an engine can run. One call at a time."""

    def set_batch(self, batch: int) -> None:
        """Fix every input's shape for a batch size; once, before addresses are bound.

        Raises:
            EnvironmentUnusable: The engine's profile has no such batch.
        """
        ...

    @property
    def scratch(self) -> int:
        """Bytes of device memory that it needs beside its tensors, for the batch that was set."""
        ...

    def use_scratch(self, memory: Memory | None) -> None:
        """Give it that memory, which nothing else may use while it runs."""
        ...

    def bind(self, name: str, address: int) -> None:
        """Say where a tensor lies. After a capture it must never change."""
        ...

    def enqueue(self, stream: Stream) -> None:
        """Put one run into a stream.

        Raises:
            EnvironmentUnusable: The library refuses.
        """
        ...

    def capturable(self, stream: Stream) -> bool:
        """Whether a run can be captured now, as far as the library tells."""
        ...


class Engine(Closable, Protocol):
    """A deserialised engine: its weights are on the device, once for all contexts."""

    @property
    def ports(self) -> Sequence[Port]:
        """What it takes and gives."""
        ...

    def context(self) -> Context:
        """A new context without scratch memory of its own.

        Raises:
            EnvironmentUnusable: There is not enough memory.
        """
        ...


@dataclass(frozen=True)
class Stage:
    """One engine of a session and what it waits for.

    Attributes:
        name: ``merged``, a tap, or ``head``.
        engine: Opened.
    """

    name: str
    engine: Engine


@dataclass(frozen=True)
class Form:
    """One way to compute the whole graph.

    Attributes:
        name: ``merged`` or ``streams``.
        stages: In an order in which each comes after those whose outputs it takes. Stages that take nothing of each
            other run beside each other.
    """

    name: Literal["merged", "streams"]
    stages: tuple[Stage, ...]
