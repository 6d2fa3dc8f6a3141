"""A GPU on the host: the seam of ``engines.cuda`` with real memory at real addresses, and without mercy.

Work runs when somebody waits for it and not before, in an order that hurts whoever forgot an event. Memory holds 0xFF
(NaN, 255) before it is written and after it was given back. Whatever a driver or an inference library would refuse, or
compute nonsense of, raises ``Misuse`` and stays in ``EmulatedDevice.faults``, also if the session catches it. Every call
is written down, and any of them can be made to fail.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from emulated_memory import ALIGNMENT, POISON, Addresses, EmulatedMemory, span
from emulated_streams import EmulatedCapture, EmulatedEvent, EmulatedStream
from emulated_work import Action, Misuse, Work
from numpy.typing import NDArray

from vsa_rt.engines.cuda.seam import DeviceFacts, Foreign, Stream
from vsa_rt.errors import EnvironmentUnusable, UsageError

Own = TypeVar("Own")


@dataclass(frozen=True)
class Call:
    """One call of the seam.

    Attributes:
        name: Such as ``stream.copy``.
        subject: What it was called on, such as ``stream 2``.
        thread: Whose call.
        captured: Whether it was written down into a graph instead of done.
        facts: Its arguments.
    """

    name: str
    subject: str
    thread: int
    captured: bool
    facts: dict[str, Any]


class EmulatedDevice:
    """See ``seam.Device``.

    Args:
        nbytes: Of device memory, and of pinned memory.
        lawful: Whether work that forgot to wait for other work is refused; otherwise it computes nonsense.
        integrated: Whether engines may read and write pinned memory.

    Attributes:
        log: Every call.
        faults: What was wrong about calls, also where the session caught it.
        most_captures: The most captures that were open at the same time.
    """

    def __init__(self, nbytes: int = 1 << 30, *, lawful: bool = True, integrated: bool = False) -> None:
        self.facts = DeviceFacts("an emulated GPU", "sm_87", nbytes, "12.6", integrated)
        self.lawful = lawful
        self.work = Work(lawful)
        self.log: list[Call] = []
        self.faults: list[str] = []
        self.most_captures = 0
        self.forked = False
        self._lock = threading.RLock()
        self._numbers: Counter[str] = Counter()
        self._open: dict[int, tuple[str, Any]] = {}
        self._addresses = Addresses()
        self._entered: set[int] = set()
        self._handles = itertools.count(0x1000)
        self._streams: dict[int, EmulatedStream] = {}
        #: Place in the log of a call that shall do nothing, as if the session had forgotten it; it must return nothing.
        self.left_out = -1
        self._until: int | None = None
        self._error: BaseException | None = None
        self._sticky = False

    # What the tests ask

    def open(self) -> dict[str, int]:
        """Kind to how many are open; of the session's alone, and only what there is."""
        with self._lock:
            return dict(Counter(kind for kind, _ in self._open.values() if not kind.startswith("their")))

    def things(self, kind: str) -> list[Any]:
        """What is open of a kind."""
        with self._lock:
            return [thing for known, thing in self._open.values() if known == kind]

    def fail_at(self, number: int, error: BaseException | None = None, *, sticky: bool = False) -> None:
        """Let one of the next calls fail.

        Args:
            number: Which, counted from 0; calls that close count, abandoned captures do not.
            error: What is raised; by default what a driver's refusal becomes.
            sticky: Whether all calls after it fail as well, but those that close.
        """
        self._until, self._sticky = number, sticky
        self._error = error or EnvironmentUnusable("an error that the test asked for")

    @property
    def spent(self) -> bool:
        """Whether the failure that was asked for has come."""
        return self._until is None

    def names(self, since: int = 0) -> list[str]:
        """Names of the calls from one on."""
        return [call.name for call in self.log[since:]]

    # The seam

    def enter(self) -> None:
        """See ``seam.Device.enter``."""
        if self.forked:
            raise UsageError("the process was forked after the device was opened; open it in the child")
        here = threading.get_ident()
        before = here in self._entered
        self._entered.add(here)
        if not self.call("device.enter", self) and not before:
            self._entered.discard(here)

    def stream(self) -> EmulatedStream:
        """See ``seam.Device.stream``."""
        self.call("device.stream", self)
        return self._keep(EmulatedStream(self, next(self._handles)))

    def event(self) -> EmulatedEvent:
        """See ``seam.Device.event``."""
        self.call("device.event", self)
        return EmulatedEvent(self)

    def memory(self, nbytes: int) -> EmulatedMemory:
        """See ``seam.Device.memory``."""
        return self._allocate(nbytes, "memory")

    def pinned(self, nbytes: int) -> EmulatedMemory:
        """See ``seam.Device.pinned``."""
        return self._allocate(nbytes, "pinned")

    def sync(self) -> None:
        """See ``seam.Device.sync``."""
        if not self.call("device.sync", self):
            return
        captures = self.things("capture")
        for capture in captures:
            capture.broken = True
        if captures:
            raise self.misuse("the device is waited for during a capture")
        self.work.finish_all()

    def capture(self, stream: Stream) -> EmulatedCapture:
        """See ``seam.Device.capture``."""
        known = self.own(stream, EmulatedStream)
        self.call("device.capture", self, stream=known.name)
        if known.capture is not None:
            raise self.misuse(f"{known.name} is captured already")
        self.require_uncaptured("a second capture")
        made = EmulatedCapture(self, known)
        self.most_captures = max(self.most_captures, len(self.things("capture")))
        return made

    def foreign(self, array: Any, stream: Stream) -> Foreign:
        """See ``seam.Device.foreign``."""
        known = self.own(stream, EmulatedStream)
        self.call("device.foreign", self, stream=known.name)
        facts = getattr(array, "__cuda_array_interface__", None)
        if facts is None:
            raise UsageError(f"{type(array).__name__} is no device array: no __cuda_array_interface__")
        address, dtype, shape = int(facts["data"][0]), np.dtype(facts["typestr"]), tuple(facts["shape"])
        if self._addresses.find(address) is None:
            raise UsageError("the array lies on another device")
        theirs = self._streams.get(facts.get("stream") or 0)
        if theirs is not None and theirs.tail is not None:
            known.put(Action(f"{known.name} waits for {theirs.name}"), theirs.tail)
        strides = facts.get("strides")
        packed = tuple(int(dtype.itemsize * np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        return Foreign(address, dtype.name, shape, strides is None or tuple(strides) == packed, array)

    # What its parts use

    def call(self, name: str, subject: Any, **facts: Any) -> bool:
        """Write a call down, and let it fail if the test wants it to.

        Returns:
            Whether it is to be done; otherwise the test leaves it out.
        """
        with self._lock:
            number = len(self.log)
            self.note(name, subject, **facts)
            self._fail()
        if not name.endswith(".close"):
            self._require_usable(name, subject)
        return number != self.left_out

    def _fail(self) -> None:
        if self._until is None:
            return
        self._until -= 1
        if self._until >= 0:
            return
        self._until = None
        # Whoever waits for a device is the one who learns that it failed.
        if self._sticky or self.log[-1].name.endswith(".sync"):
            self.work.lose("an error that sticks" if self._sticky else "")
        # Kept, it would keep the frames that it passes through, and what they hold.
        error, self._error = self._error, None
        raise error or EnvironmentUnusable("an error that the test asked for")

    def _require_usable(self, name: str, subject: Any) -> None:
        if getattr(subject, "closed", False):
            raise self.misuse(f"{name} on {subject.name} after it was closed")
        if self.work.failure:
            raise EnvironmentUnusable(f"the device failed before: {self.work.failure}")
        if threading.get_ident() not in self._entered:
            raise self.misuse(f"{name} in a thread that has not entered the device")

    def note(self, name: str, subject: Any, **facts: Any) -> None:
        """Write a call down."""
        with self._lock:
            captured = facts.pop(
                "captured", isinstance(subject, EmulatedStream) and subject.capture is not None
            )
            self.log.append(Call(name, getattr(subject, "name", ""), threading.get_ident(), captured, facts))

    def misuse(self, text: str) -> Misuse:
        """A fault to raise; it is kept."""
        with self._lock:
            if text not in self.faults:
                self.faults.append(text)
        return Misuse(text)

    def own(self, thing: object, kind: type[Own]) -> Own:
        """A thing as what it must be.

        Raises:
            Misuse: It is something else, or closed.
        """
        if not isinstance(thing, kind):
            raise self.misuse(f"{type(thing).__name__} where {kind.__name__} was expected")
        if getattr(thing, "closed", False):
            raise self.misuse(f"{getattr(thing, 'name', thing)} is used after it was closed")
        return thing

    def require_uncaptured(self, what: str) -> None:
        """Refuse what a thread may not do while it captures; its capture is broken by it.

        Raises:
            Misuse: The calling thread captures.
        """
        capture = self._captured_here()
        if capture is not None:
            capture.broken = True
            raise self.misuse(f"{what} in a thread that captures")

    def _captured_here(self) -> EmulatedCapture | None:
        """The calling thread's capture."""
        return next((c for c in self.things("capture") if c.thread == threading.get_ident()), None)

    def opened(self, thing: Any, kind: str) -> str:
        """Count something as open; its name."""
        with self._lock:
            self._numbers[kind] += 1
            self._open[id(thing)] = (kind, thing)
            return f"{kind} {self._numbers[kind]}"

    def forget(self, thing: Any) -> None:
        """Count something as closed."""
        with self._lock:
            thing.closed = True
            self._open.pop(id(thing))
        if isinstance(thing, EmulatedMemory):
            thing.data[:] = POISON

    def gone(self, thing: Any, busy: str = "") -> None:
        """Close something; if that fails, it is closed all the same.

        Raises:
            Misuse: It is busy.
        """
        kind = self._open[id(thing)][0]
        theirs = kind.startswith("their")
        if len(self.log) == self.left_out and not theirs:
            self.note(f"{kind}.close", thing)
            return
        self.forget(thing)
        if not theirs:
            self.call(f"{kind}.close", thing)
        if busy:
            raise self.misuse(f"{thing.name} is closed while {busy}")

    def _keep(self, stream: EmulatedStream) -> EmulatedStream:
        self._streams[stream.handle] = stream
        return stream

    def their_stream(self) -> EmulatedStream:
        """A stream of another library."""
        return self._keep(EmulatedStream(self, next(self._handles), "their stream"))

    # Memory

    def _allocate(self, nbytes: int, kind: str) -> EmulatedMemory:
        self.call(f"device.{kind}", self, nbytes=nbytes)
        self.require_uncaptured(f"device.{kind}")
        if nbytes < 1:
            raise self.misuse(f"{nbytes} bytes of memory")
        there = self._addresses.taken(kind)
        if there + nbytes > self.facts.nbytes:
            raise EnvironmentUnusable(f"out of memory: {there} bytes of {self.facts.nbytes} are taken")
        return self.allocated(nbytes, kind)

    def allocated(self, nbytes: int, kind: str) -> EmulatedMemory:
        """Memory of whatever kind."""
        made = EmulatedMemory(self, nbytes, kind)
        self._addresses.add(made)
        return made

    def free(self, memory: EmulatedMemory) -> None:
        """Poison memory, and give it back.

        Raises:
            Misuse: Work that is under way needs it, or the calling thread captures.
        """
        user = self.work.uses(span(memory))
        capture = self._captured_here() if memory.kind in ("memory", "pinned") else None
        if capture is not None:
            capture.broken = True
        self.gone(memory, f"{user} is under way" if user else "its thread captures" if capture else "")

    def kind_at(self, address: int) -> str:
        """What memory an address is of; ``nothing`` if of none."""
        memory = self._addresses.find(address)
        return "nothing" if memory is None else memory.kind

    def at(self, address: int, nbytes: int, *, tensor: bool = False) -> NDArray[np.uint8]:
        """Bytes at an address.

        Args:
            address: Where.
            nbytes: How many.
            tensor: Whether an engine is to use them: then they must be the device's own, and aligned.

        Raises:
            Misuse: They were not allocated, or not all of them, or are closed, or no place for a tensor.
        """
        memory = self._addresses.find(address)
        if memory is None:
            raise self.misuse(f"{address:#x} is no memory")
        if memory.closed:
            raise self.misuse(f"{memory.name} is used after it was closed")
        start = address - memory.address
        if start + nbytes > memory.nbytes:
            raise self.misuse(f"{memory.name} ends {start + nbytes - memory.nbytes} bytes too early")
        if tensor and memory.kind == "pinned" and not self.facts.integrated:
            raise self.misuse(f"an engine is given {memory.name}, which lies on the host")
        if tensor and start % ALIGNMENT:
            raise self.misuse(f"an engine is given an address in {memory.name} that is not aligned")
        return memory.data[start : start + nbytes]


@contextmanager
def guarded(device: EmulatedDevice) -> Iterator[EmulatedDevice]:
    """Check at the end that nothing was wrong and nothing is left open."""
    yield device
    assert device.faults == []
    assert device.open() == {}
