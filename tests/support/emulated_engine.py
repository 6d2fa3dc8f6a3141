"""Engines of the emulated GPU: what they compute is a function of numpy arrays that the test gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from emulated_streams import EmulatedGraph, EmulatedStream
from emulated_work import Action, Span, overlap
from numpy.typing import NDArray

from vsa_rt.engines.cuda.seam import Memory, Port, Stream
from vsa_rt.errors import EnvironmentUnusable

if TYPE_CHECKING:
    from emulated_cuda import EmulatedDevice

#: Inputs to outputs, each ``(N, …)``.
Compute = Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]


def _no_scratch(_: int) -> int:
    return 0


class EmulatedEngine:
    """See ``seam.Engine``.

    Args:
        device: Where it lies.
        ports: What it takes and gives.
        compute: What it computes.
        name: For messages.
        batches: Smallest and largest batch of its profile.
        scratch: Batch to bytes of scratch memory.
        capturable: Whether its contexts say that they can be captured.
        breaks_capture: Whether its runs make a capture invalid although the contexts say that they can be captured.

    Attributes:
        title: Its name, as it was given.
        runs: Inputs of every run that was done, padding and all.
    """

    def __init__(
        self,
        device: EmulatedDevice,
        ports: Sequence[Port],
        compute: Compute,
        *,
        name: str = "engine",
        batches: tuple[int, int] = (1, 1 << 20),
        scratch: Callable[[int], int] = _no_scratch,
        capturable: bool = True,
        breaks_capture: bool = False,
    ) -> None:
        self.device, self.ports, self.compute, self.batches = device, tuple(ports), compute, batches
        self.scratch, self.capturable, self.breaks_capture = scratch, capturable, breaks_capture
        self.runs: list[dict[str, NDArray[Any]]] = []
        self.contexts: list[EmulatedContext] = []
        self.title = name
        self.name = f"{name} ({device.opened(self, 'engine')})"
        self.closed = False

    def context(self) -> EmulatedContext:
        """See ``seam.Engine.context``."""
        self.device.call("engine.context", self)
        self.device.require_uncaptured("engine.context")
        made = EmulatedContext(self)
        self.contexts.append(made)
        return made

    def close(self) -> None:
        """Give it back, after its contexts."""
        if not self.closed:
            alive = any(not context.closed for context in self.contexts)
            self.device.gone(self, "its contexts are open" if alive else "")


class EmulatedContext:
    """See ``seam.Context``."""

    def __init__(self, engine: EmulatedEngine) -> None:
        self.engine, self._device = engine, engine.device
        self.batch: int | None = None
        self.memory: Memory | None = None
        self.bound: dict[str, int] = {}
        #: Whether it ran since its shapes were set: TensorRT updates itself in that run, which cannot be captured.
        self.warm = False
        #: Graphs that hold runs of it.
        self.graphs: list[EmulatedGraph] = []
        self.name = f"{self._device.opened(self, 'context')} of {engine.name}"
        self.closed = False

    def _require_free(self, what: str) -> None:
        if graph := next((g for g in self.graphs if not g.closed), None):
            raise self._device.misuse(f"{what} of {self.name} changes, which {graph.name} has captured")
        if user := self._device.work.holds(self):
            raise self._device.misuse(f"{what} of {self.name} changes while {user} is under way")

    def set_batch(self, batch: int) -> None:
        """See ``seam.Context.set_batch``."""
        if not self._device.call("context.set_batch", self, batch=batch):
            return
        self._require_free("the batch")
        low, high = self.engine.batches
        if not low <= batch <= high:
            raise EnvironmentUnusable(f"{self.engine.name}: batch {batch}; its profile has {low} to {high}")
        if self.bound:
            raise self._device.misuse(f"the batch of {self.name} is set after addresses were bound")
        self.batch, self.warm = batch, False

    def _batch(self) -> int:
        if self.batch is None:
            raise self._device.misuse(f"{self.name} has no batch yet")
        return self.batch

    @property
    def scratch(self) -> int:
        """See ``seam.Context.scratch``."""
        self._device.call("context.scratch", self)
        return self.engine.scratch(self._batch())

    def use_scratch(self, memory: Memory | None) -> None:
        """See ``seam.Context.use_scratch``."""
        if not self._device.call(
            "context.use_scratch", self, address=None if memory is None else memory.address
        ):
            return
        if memory is not self.memory:
            self._require_free("the scratch memory")
            self.memory, self.warm = memory, False

    def bind(self, name: str, address: int) -> None:
        """See ``seam.Context.bind``."""
        if not self._device.call("context.bind", self, tensor=name, address=address):
            return
        port = next((p for p in self.engine.ports if p.name == name), None)
        if port is None:
            raise self._device.misuse(f"{self.engine.name} has no tensor {name!r}")
        if address != self.bound.get(name):
            self._require_free(f"the address of {name!r}")
        self._device.at(address, self._nbytes(port), tensor=True)
        self.bound[name] = address

    def _shape(self, port: Port) -> tuple[int, ...]:
        return (self._batch(), *(n for n in port.shape[1:] if n is not None))

    def _nbytes(self, port: Port) -> int:
        return math.prod(self._shape(port)) * np.dtype(port.dtype).itemsize

    def capturable(self, stream: Stream) -> bool:
        """See ``seam.Context.capturable``."""
        self._device.call("context.capturable", self, stream=getattr(stream, "name", ""))
        return self.engine.capturable

    def enqueue(self, stream: Stream) -> None:
        """See ``seam.Context.enqueue``."""
        device, engine = self._device, self.engine
        known = device.own(stream, EmulatedStream)
        bound, captured = dict(self.bound), known.capture is not None
        facts = {"stream": known.name, "batch": self.batch, "bound": bound, "captured": captured}
        if not device.call("context.enqueue", self, **facts):
            return
        self._batch()
        if missing := [p.name for p in engine.ports if p.name not in bound]:
            raise device.misuse(f"{self.name} runs without an address of {', '.join(missing)}")
        action = self._action(bound, known)
        if known.capture is None:
            known.put(action)
            self.warm = True
            return
        if not self.warm or not engine.capturable:
            known.capture.broken = True
            why = "before it ran once with these shapes" if engine.capturable else "and cannot be"
            raise device.misuse(f"{self.name} is captured {why}")
        known.put(action)
        known.capture.contexts.append(self)
        if engine.breaks_capture:
            known.capture.broken = True

    def _action(self, bound: dict[str, int], stream: EmulatedStream) -> Action:
        """One run with the addresses of now."""
        device, engine, memory, batch = self._device, self.engine, self.memory, self._batch()
        needed = engine.scratch(batch)
        there = 0 if memory is None else memory.nbytes
        if there < needed:
            raise device.misuse(f"{self.name} has {there} bytes of scratch memory and needs {needed}")
        spans: dict[str, Span] = {
            p.name: (bound[p.name], bound[p.name] + self._nbytes(p)) for p in engine.ports
        }
        reads = [spans[p.name] for p in engine.ports if p.taken]
        writes = [spans[p.name] for p in engine.ports if not p.taken]
        own = [(memory.address, memory.address + needed)] if memory is not None and needed else []
        written = [*own, *writes]
        if any(overlap([one], [*reads, *written[index + 1 :]]) for index, one in enumerate(written)):
            raise device.misuse(f"tensors or scratch memory of {self.name} overlap")

        def check() -> None:
            if self.closed or engine.closed:
                raise device.misuse(f"{self.name} runs after it was closed")
            for start, end in [*reads, *writes]:
                device.at(start, end - start, tensor=True)
            for start, end in own:
                device.at(start, end - start)

        def run() -> None:
            self._run(bound, own)

        return Action(f"a run of {self.name} on {stream.name}", run, check, reads, [*writes, *own], [self])

    def _run(self, bound: dict[str, int], own: Sequence[Span]) -> None:
        device, engine = self._device, self.engine
        for start, end in own:
            device.at(start, end - start)[:] = 0xEE  # whoever keeps something there loses it
        places = {
            p.name: device.at(bound[p.name], self._nbytes(p)).view(p.dtype).reshape(self._shape(p))
            for p in engine.ports
        }
        taken = {p.name: places[p.name].copy() for p in engine.ports if p.taken}
        engine.runs.append({name: array.copy() for name, array in taken.items()})
        given = engine.compute(taken)
        for port in engine.ports:
            if not port.taken:
                places[port.name][...] = np.asarray(given[port.name], port.dtype)

    def close(self) -> None:
        """Give it back."""
        if not self.closed:
            self._device.gone(self, f"{user} is under way" if (user := self._device.work.holds(self)) else "")
