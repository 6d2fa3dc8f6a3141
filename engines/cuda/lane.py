"""One batch size of one slot: contexts bound to the slot's memory for good, and the graphs of their work."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vsa_rt.engines.cuda.census import Census
from vsa_rt.engines.cuda.schedule import Schedule
from vsa_rt.engines.cuda.seam import Context, Device, Event, Graph, Memory, Stream


@dataclass(frozen=True)
class Transfer:
    """A tensor's two places.

    Attributes:
        host: Address of its pinned buffer.
        device: Address of its device buffer.
        nbytes: Of one row.
    """

    host: int
    device: int
    nbytes: int


@dataclass(frozen=True)
class Place:
    """What the lanes of one slot work with. They never run together, so they share all of it.

    Attributes:
        device: The GPU.
        streams: The main one first.
        fork: Recorded after the inputs, where there is more than one stream.
        marks: Number of a step to the event after it.
        addresses: Tensor to where it lies on the device.
        scratch: Scratch memory of each stream, big enough for the largest batch: what runs beside other work has its
            own, what runs after it on the same stream shares it.
        uploads: Inputs, which come from the host.
        downloads: Outputs, which go there.
    """

    device: Device
    streams: Sequence[Stream]
    fork: Event | None
    marks: Mapping[int, Event]
    addresses: Mapping[str, int]
    scratch: Sequence[Memory | None]
    uploads: Sequence[Transfer]
    downloads: Sequence[Transfer]


class Lane:
    """One bucket of one slot.

    The work comes in two kinds: with the copies from and to the host, or without them. Each becomes a graph once it is
    needed.

    Args:
        place: The slot's.
        census: Keeps what is opened here.
        bucket: Images of every run.
        schedule: How it is computed.
        contexts: One for each step, as ``open_contexts`` makes them, if there are any already; the lane keeps them.

    Raises:
        EnvironmentUnusable: An engine cannot run so many images, or there is not enough memory.
    """

    def __init__(
        self,
        place: Place,
        census: Census,
        bucket: int,
        schedule: Schedule,
        contexts: Sequence[Context] | None = None,
    ) -> None:
        self.bucket = bucket
        self._place, self._census, self._schedule = place, census, schedule
        if contexts is None:
            contexts = open_contexts(census, schedule, bucket)
        self._contexts = contexts
        #: Whether the host's copies are inside, to the graph; ``None`` where it could not be captured.
        self._graphs: dict[bool, Graph | None] = {}
        for number, context in enumerate(contexts):
            self._bind(number, context)

    def _bind(self, number: int, context: Context) -> None:
        step = self._schedule.steps[number]
        nbytes, memory = context.scratch, self._place.scratch[step.stream]
        if not nbytes:
            memory = None
        elif memory is None or memory.nbytes < nbytes:
            # A library may take other kernels for a smaller batch, with more scratch memory. What is captured never
            # moves, so that the shared memory cannot grow.
            memory = self._census.keep("memory", self._place.device.memory(nbytes))
        context.use_scratch(memory)
        for port in step.stage.engine.ports:
            context.bind(port.name, self._place.addresses[port.name])

    def enqueue(self, transfers: bool) -> None:
        """Put the work into the slot's streams, piece by piece; all of it has joined the main stream at the end.

        Args:
            transfers: Whether inputs come from the host and outputs go there.
        """
        if transfers:
            self._upload()
        self._compute()
        main = self._place.streams[0]
        for download in self._place.downloads if transfers else ():
            main.copy(download.host, download.device, self.bucket * download.nbytes)

    def warm_up(self) -> None:
        """Put a first run into the slot's streams, as ``enqueue`` does, on whatever lies in the host's buffers.

        Nothing comes back to the host: somebody may still read there what the slot's last run gave.
        """
        self._upload()
        self._compute()

    def _upload(self) -> None:
        for upload in self._place.uploads:
            self._place.streams[0].copy(upload.device, upload.host, self.bucket * upload.nbytes)

    def _compute(self) -> None:
        place, streams = self._place, self._place.streams
        main = streams[0]
        if self._schedule.forks and place.fork is not None:
            main.record(place.fork)
        for number, (step, context) in enumerate(zip(self._schedule.steps, self._contexts, strict=True)):
            stream = streams[step.stream]
            if step.forks and place.fork is not None:
                stream.wait(place.fork)
            for source in step.waits:
                stream.wait(place.marks[source])
            context.enqueue(stream)
            if step.marked:
                stream.record(place.marks[number])
        for source in self._schedule.joins:
            main.wait(place.marks[source])

    def captured(self, transfers: bool) -> bool:
        """Whether a graph of this kind was made, or tried."""
        return transfers in self._graphs

    def capture(self, transfers: bool) -> str:
        """Make a graph of the work. Every context must have run once, since libraries prepare themselves then.

        A capture that fails is tried once more: it may have been spoilt by what another library did meanwhile.

        Args:
            transfers: As for ``enqueue``.

        Returns:
            Why there is none, empty if there is: the work is then put into the streams piece by piece.
        """
        self._graphs[transfers] = None
        reason = ""
        for _ in range(2):
            try:
                for step, context in zip(self._schedule.steps, self._contexts, strict=True):
                    if not context.capturable(self._place.streams[step.stream]):
                        return f"the library cannot have the engine {step.stage.name!r} captured"
                self._graphs[transfers] = self._census.keep("graph", self._written(transfers))
            except Exception as error:  # noqa: BLE001 - the same work without a graph shows whether all is well
                reason = str(error)
            except BaseException:
                del self._graphs[transfers]
                raise
            else:
                return ""
        return reason

    def _written(self, transfers: bool) -> Graph:
        # In this thread the collector could free another library's arrays on the GPU, which no capture survives.
        collects = gc.isenabled()
        gc.disable()
        try:
            capture = self._place.device.capture(self._place.streams[0])
            try:
                self.enqueue(transfers)
                return capture.end()
            except BaseException:
                capture.abandon()
                raise
        finally:
            if collects:
                gc.enable()

    def launch(self, transfers: bool) -> None:
        """Put the work into the slot's main stream: as one graph, where there is one."""
        graph = self._graphs.get(transfers)
        if graph is None:
            self.enqueue(transfers)
        else:
            graph.launch(self._place.streams[0])


def open_contexts(census: Census, schedule: Schedule, bucket: int) -> list[Context]:
    """A context for each step, with its batch set.

    Raises:
        EnvironmentUnusable: An engine cannot run so many images, or there is not enough memory.
    """
    contexts = []
    for step in schedule.steps:
        contexts.append(census.keep("context", step.stage.engine.context()))
        contexts[-1].set_batch(bucket)
    return contexts
