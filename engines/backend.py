"""What a backend is: probe, build, open. One module per backend implements these protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vsa_rt.contracts import DIVISIONS, Division, Precision, TensorSpec
from vsa_rt.engines.compiling import CompileOptions, Made, Source
from vsa_rt.errors import EnvironmentUnusable, UsageError
from vsa_rt.manifest import CompiledRecord

#: A batch of inputs or outputs by tensor name.
Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Probe:
    """Whether a backend can be used on this machine.

    Attributes:
        usable: The library is there and has the device: engines can be opened.
        version: The library's version, empty without the library.
        machine: The device's own name, as the library tells it.
        reason: Why it is not usable, empty if it is.
        install: The command that would make it usable.
        compiles: Engines can be compiled here although none can be opened: ahead of time, for another machine.
    """

    usable: bool
    version: str = ""
    machine: str = ""
    reason: str = ""
    install: str = ""
    compiles: bool = False


@dataclass(frozen=True)
class OpenOptions:
    """How a session is opened.

    Attributes:
        max_batch: Largest batch of one call.
        threads: Cores that all streams use together.
        streams: Calls that may run at the same time, each on its share of the threads.
        slots: Sets of buffers; with more of them than streams, the host fills one while the engine works.
        first: Batch size that is compiled at once, where each is compiled by itself: an engine that cannot run
            here is to be refused when it is opened.
        division: Batch size to how a call of so many images is divided among the threads. Empty: ``threads``. With
            more than one stream, or with one thread, each call has its own core already: then it is ``threads``
            whatever is asked here. On a GPU, ``merged`` or ``streams``; empty: the first that the engine has.
        device: The target's.
        compiled: The engine's record of its compilation.
        graph: Reads the graph that the engine was compiled from, for one without weights.
        host_code: Whether code for the host inside of an engine may run: who made it is known.

    Raises:
        UsageError: A division is unknown, or is that of a batch below 1.
    """

    max_batch: int
    threads: int
    streams: int = 1
    slots: int = 1
    first: int = 1
    division: Mapping[int, str] = field(default_factory=dict)
    device: str = ""
    compiled: CompiledRecord | None = None
    graph: Callable[[], bytes] | None = None
    host_code: bool = False

    def __post_init__(self) -> None:
        for batch, word in self.division.items():
            if word not in DIVISIONS:
                raise UsageError(
                    f"division {word!r} of batch {batch}: unknown; there are {', '.join(DIVISIONS)}"
                )
            if batch < 1:
                raise UsageError(f"division {word!r} of batch {batch}: expected a batch of at least 1")

    @property
    def divides(self) -> bool:
        """Whether one call has several threads to divide."""
        return self.streams == 1 and self.threads > 1

    def division_of(self, count: int) -> Division:
        """How a call of ``count`` images is divided: as asked for the nearest smaller batch, else the nearest larger."""
        if not self.divides or not self.division:
            return "threads"
        named = max((n for n in self.division if n <= count), default=min(self.division))
        return DIVISIONS[DIVISIONS.index(self.division[named])]


class Slot(Protocol):
    """One place where a call can run. Not thread-safe: one caller at a time."""

    @property
    def buffers(self) -> Tensors:
        """Input buffers ``(max_batch, …)`` for the host to fill in place; they live as long as the session."""
        ...

    def run(self, inputs: Tensors) -> Tensors:
        """Run one batch.

        Args:
            inputs: Every input, C-contiguous ``(N, …)`` with the same N of 1 to ``max_batch``. Leading parts
                of ``buffers`` are taken without a copy, other arrays too where the backend allows.

        Returns:
            Every output ``(N, width)``, float32. The arrays belong to the slot and are overwritten by its
            next run.
        """
        ...


@runtime_checkable
class DeviceSlot(Protocol):
    """A slot that takes and gives arrays on its own device, too."""

    def run_device(self, inputs: Mapping[str, Any], keep: bool) -> Mapping[str, Any]:
        """Run one batch of arrays that lie on the device, without a copy to the host.

        Args:
            inputs: Every input, C-contiguous ``(N, ...)``: anything with ``__cuda_array_interface__`` or
                ``__dlpack__``. What its own stream still does to it is waited for on the device.
            keep: Whether the outputs stay on the device.

        Returns:
            Every output ``(N, width)``, float32: device arrays of their own if they are kept, else as ``Slot.run``.

        Raises:
            UsageError: An array is of another dtype, shape or device.
        """
        ...


class Session(Protocol):
    """An opened engine."""

    @property
    def slots(self) -> Sequence[Slot]:
        """Where calls run; as many as were asked for."""
        ...

    @property
    def calls(self) -> int:
        """Calls that may run at the same time."""
        ...

    @property
    def achieved(self) -> float | None:
        """Share of the convolutions that run in the graph's precision, 0 to 1; ``None`` if unknown."""
        ...

    @property
    def divisions(self) -> tuple[Division, ...]:
        """The divisions that ``OpenOptions.division`` may name for this engine, graph and number of threads.

        ``threads`` is always among them; with more than one stream, or with one thread, nothing else is.
        """
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What does not run as it should, in sentences, so far as calls have shown it."""
        ...

    def prepare(self, counts: Sequence[int]) -> None:
        """Compile for these batch sizes now instead of at their first call."""
        ...

    def close(self) -> None:
        """Free everything. The slots cannot be used afterwards."""
        ...


@dataclass(frozen=True)
class RawLayer:
    """One layer as a backend's own counters tell it.

    Attributes:
        name: The backend's.
        nodes: Names of the graph's nodes or tensors that it was made of, so far as the backend tells. Names that
            the graph does not hold may be among them.
        kind: The backend's own word for what it does.
        precision: Of what it computes with, such as ``fp32``, ``bf16``, ``int8``; empty if the backend does not tell.
        ms: Mean per call.
        feeds: For a layer that the backend added: names, as in ``nodes``, of what reads its result.
    """

    name: str
    nodes: tuple[str, ...]
    kind: str
    precision: str
    ms: float
    feeds: tuple[str, ...] = ()


class Profiler(Protocol):
    """An engine opened with the backend's counters on. Counters cost time: its calls are not what is reported."""

    @property
    def source(self) -> str:
        """Whose counters they are."""
        ...

    def run(self, inputs: Tensors) -> None:
        """Run one batch; see ``Slot.run``."""
        ...

    def collect(self) -> None:
        """Take the last call's counters into the means. Calls without it are warm-up."""
        ...

    def finish(self) -> list[RawLayer]:
        """Free the engine.

        Returns:
            What ran, in the order of the calls; means over the calls that were collected.
        """
        ...


class Backend(Protocol):
    """A library that compiles graphs and runs engines."""

    @property
    def name(self) -> str:
        """The backend's name in targets."""
        ...

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices that this machine may have, which are looked at where no target is named."""
        ...

    def knows(self, device: str) -> str:
        """Why a target may not name a device; empty if it may."""
        ...

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """Precisions of graphs that it can build for a device, most exact first."""
        ...

    def half(self, device: str) -> bool:
        """Whether a device really computes in half what the graph says: then nodes that half would spoil stay in fp32, and
        what surrounds int8 is half, and the head."""
        ...

    def probe(self, device: str) -> Probe:
        """Look whether the library and the device are there."""
        ...

    def build(self, source: Source, folder: Path, device: str, options: CompileOptions) -> Made:
        """Compile a graph into files.

        Args:
            source: The graph.
            folder: Existing and empty.
            device: One that it knows.
            options: Largest batch, and more.

        Returns:
            The files written, and how.

        Raises:
            EnvironmentUnusable: The library refuses the graph; the message has its reason.
        """
        ...

    def open(
        self,
        files: Sequence[bytes],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: OpenOptions,
    ) -> Session:
        """Open an engine from its files' bytes.

        Args:
            files: In the order that ``build`` returned.
            inputs: What the manifest says the engine takes.
            outputs: What the manifest says it gives.
            options: Batch, threads, slots and division.

        Raises:
            EnvironmentUnusable: The library cannot load the engine, the engine is not what the specs say, or it
                cannot be divided as asked.
        """
        ...

    def profiler(
        self,
        files: Sequence[bytes],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: OpenOptions,
    ) -> Profiler:
        """Open an engine as ``open`` does, with the library's counters of layers on.

        Args:
            files: As for ``open``.
            inputs: Likewise.
            outputs: Likewise.
            options: Likewise; one stream and one slot are enough. A call is never divided but by ``threads``: the
                library counts by layer, and layers that run side by side would each count the time of both.

        Raises:
            EnvironmentUnusable: As for ``open``, or the library keeps no counters here.
        """
        ...


def allocate(specs: Sequence[TensorSpec], max_batch: int) -> dict[str, NDArray[Any]]:
    """Host buffers ``(max_batch, …)`` for these tensors, zeroed."""
    return {
        s.name: np.zeros((max_batch, *(n for n in s.shape[1:] if n is not None)), np.dtype(s.dtype))
        for s in specs
    }


def check_division(backend: str, options: OpenOptions, applicable: Sequence[str]) -> None:
    """Check that an engine can be divided as asked, where anything is divided at all.

    Args:
        backend: Its name, for the message.
        options: What is asked.
        applicable: What can be: ``Session.divisions``.

    Raises:
        EnvironmentUnusable: Something else is asked.
    """
    for batch, word in options.division.items() if options.divides else ():
        if word not in applicable:
            raise EnvironmentUnusable(
                f"{backend}: calls of {batch} cannot be divided by {word} here; what applies: "
                f"{', '.join(applicable)}; rebuild the bundle"
            )


def check_tensor(backend: str, spec: TensorSpec, there: Mapping[str, Sequence[int | None]]) -> None:
    """Check that an engine has a tensor as the manifest says.

    Args:
        backend: Its name, for the message.
        spec: What the manifest says.
        there: What the engine has: name to shape, ``None`` for a free axis.

    Raises:
        EnvironmentUnusable: It has no such tensor, or of another shape.
    """
    shape = there.get(spec.name)
    if shape is None:
        raise EnvironmentUnusable(f"{backend}: the engine has no tensor {spec.name!r}; rebuild the bundle")
    fits = len(shape) == len(spec.shape) and all(
        None in (a, b) or a == b for a, b in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise EnvironmentUnusable(
            f"{backend}: tensor {spec.name!r} of the engine has shape {list(shape)}, the manifest says "
            f"{list(spec.shape)}; rebuild the bundle"
        )
