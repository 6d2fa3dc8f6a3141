"""Streams, events, captures and graphs of the emulated GPU."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from emulated_work import Action, Misuse, Node, race

from vsa_rt.engines.cuda.seam import Event, Stream
from vsa_rt.errors import EnvironmentUnusable

if TYPE_CHECKING:
    from emulated_cuda import EmulatedDevice


class EmulatedEvent:
    """See ``seam.Event``."""

    def __init__(self, device: EmulatedDevice) -> None:
        self._device = device
        self.node: Node | None = None
        self.capture: EmulatedCapture | None = None
        self.name = device.opened(self, "event")
        self.closed = False

    def sync(self) -> None:
        """See ``seam.Event.sync``."""
        if not self._device.call("event.sync", self):
            return
        self._device.require_uncaptured("event.sync")
        if self.capture is not None:
            raise self._device.misuse(f"{self.name} was recorded in a capture: there is nothing to wait for")
        self._device.work.finish(self.node)

    def close(self) -> None:
        """Give it back."""
        if not self.closed:
            self._device.gone(self)


class EmulatedStream:
    """See ``seam.Stream``."""

    def __init__(self, device: EmulatedDevice, handle: int, kind: str = "stream") -> None:
        self._device, self.handle = device, handle
        self.tail: Node | None = None
        self.capture: EmulatedCapture | None = None
        self.captured: Node | None = None
        self.name = device.opened(self, kind)
        self.closed = False

    def put(self, action: Action, *more: Node) -> None:
        """Append work that comes after what is there, and after ``more``."""
        try:
            action.check()
            if self.capture is not None and self.captured is not None:
                self.captured = self.capture.put(Node(action, (self.captured, *more)))
                return
            node = Node(action, tuple(n for n in (self.tail, *more) if n is not None))
            self._device.work.add([node])
            self.tail = node
        except Misuse as error:
            raise self._device.misuse(str(error)) from error

    def record(self, event: Event) -> None:
        """See ``seam.Stream.record``."""
        known = self._device.own(event, EmulatedEvent)
        if not self._device.call("stream.record", self, event=known.name):
            return
        known.capture = self.capture
        known.node = self.tail if self.capture is None else self.captured

    def wait(self, event: Event) -> None:
        """See ``seam.Stream.wait``."""
        known = self._device.own(event, EmulatedEvent)
        # The first wait of a forked stream is what brings it into the capture.
        captured = known.capture is not None
        if (
            not self._device.call("stream.wait", self, event=known.name, captured=captured)
            or known.node is None
        ):
            return
        if known.capture is None:
            if self.capture is not None:
                self.capture.broken = True
                raise self._device.misuse(f"captured {self.name} waits for work outside of its capture")
        elif known.capture.over:
            raise self._device.misuse(f"{self.name} waits for {known.name} of a capture that is over")
        elif self.capture is None:
            self.capture, self.captured = known.capture, known.node
            known.capture.streams.append(self)
            return
        elif self.capture is not known.capture:
            raise self._device.misuse(f"{self.name} waits for work of another capture")
        self.put(Action(f"{self.name} waits"), known.node)

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """See ``seam.Stream.copy``."""
        device = self._device
        kinds = f"{device.kind_at(source)} to {device.kind_at(to)}"
        if not device.call("stream.copy", self, to=to, source=source, nbytes=nbytes, kinds=kinds):
            return

        def check() -> None:
            device.at(to, nbytes)
            device.at(source, nbytes)

        def run() -> None:
            device.at(to, nbytes)[:] = device.at(source, nbytes)

        reads, writes = (source, source + nbytes), (to, to + nbytes)
        check()
        if max(to, source) < min(to, source) + nbytes:
            raise device.misuse("a copy onto itself")
        self.put(Action(f"a copy of {nbytes} bytes on {self.name}", run, check, [reads], [writes]))

    def sync(self) -> None:
        """See ``seam.Stream.sync``."""
        if not self._device.call("stream.sync", self):
            return
        self._device.require_uncaptured("stream.sync")
        if self.capture is not None:
            self.capture.broken = True
            raise self._device.misuse(f"{self.name} is waited for while it is captured")
        self._device.work.finish(self.tail)

    def close(self) -> None:
        """Give it back."""
        if self.closed:
            return
        busy = self.tail is not None and self.tail.state in ("waiting", "running")
        self._device.gone(self, "work is under way on it" if busy else "")


class EmulatedCapture:
    """See ``seam.Capture``; of one thread."""

    def __init__(self, device: EmulatedDevice, stream: EmulatedStream) -> None:
        self._device, self._origin = device, stream
        self.thread = threading.get_ident()
        self.root = Node(Action("the beginning"))
        self.nodes: list[Node] = []
        #: Contexts whose runs are among the nodes.
        self.contexts: list[Any] = []
        self.streams = [stream]
        self.over = self.broken = False
        self.name = device.opened(self, "capture")
        self.closed = False
        stream.capture, stream.captured = self, self.root

    def put(self, node: Node) -> Node:
        """Write work down."""
        if self._device.lawful and (found := race(node, self.nodes)):
            self.broken = True
            raise Misuse(f"a race: {found}")
        self.nodes.append(node)
        return node

    def _finish(self) -> None:
        for stream in self.streams:
            stream.capture = stream.captured = None
        self.over = True
        if not self.closed:
            self._device.forget(self)

    def end(self) -> EmulatedGraph:
        """See ``seam.Capture.end``."""
        self._device.call("capture.end", self)
        if self.over:
            raise self._device.misuse("a capture is ended twice")
        last = self._origin.captured
        loose = [s for s in self.streams if s.captured is not last and s.captured not in _all_before(last)]
        self._finish()
        if self.thread != threading.get_ident():
            raise self._device.misuse("a capture is ended by another thread than began it")
        if loose:
            raise self._device.misuse(f"{', '.join(s.name for s in loose)} left the capture without a join")
        if self.broken:
            raise EnvironmentUnusable("the capture is invalid: something in it cannot be captured")
        return EmulatedGraph(self._device, self)

    def abandon(self) -> None:
        """See ``seam.Capture.abandon``."""
        self._device.note("capture.abandon", self)
        self._finish()


def _all_before(node: Node | None) -> set[Node]:
    return set() if node is None else node.before()


class EmulatedGraph:
    """See ``seam.Graph``."""

    def __init__(self, device: EmulatedDevice, capture: EmulatedCapture) -> None:
        self._device = device
        self.nodes, self._root = capture.nodes, capture.root
        self.contexts = list(capture.contexts)
        for context in self.contexts:
            context.graphs.append(self)
        self._last: Node | None = None
        self.name = device.opened(self, "graph")
        self.closed = False

    def launch(self, stream: Stream) -> None:
        """See ``seam.Graph.launch``."""
        known = self._device.own(stream, EmulatedStream)
        if not self._device.call("graph.launch", self, stream=known.name):
            return
        if self.closed:
            raise self._device.misuse(f"{self.name} is launched after it was closed")
        if known.capture is not None:
            raise self._device.misuse(f"{self.name} is launched into a capture")
        # The driver never runs one graph beside itself.
        first = tuple(n for n in (known.tail, self._last) if n is not None)
        made = {self._root: Node(Action(f"{self.name} begins"), first)}
        for node in self.nodes:
            made[node] = Node(node.action, tuple(made[n] for n in node.after))
        end = Node(Action(f"{self.name} ends"), tuple(made.values()))
        try:
            for node in self.nodes:
                node.action.check()
            self._device.work.add([*made.values(), end])
        except Misuse as error:
            raise self._device.misuse(f"{self.name}: {error}") from error
        known.tail = self._last = end

    def close(self) -> None:
        """Give it back."""
        if self.closed:
            return
        busy = self._last is not None and self._last.state in ("waiting", "running")
        self._device.gone(self, "it is under way" if busy else "")
