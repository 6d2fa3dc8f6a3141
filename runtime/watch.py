"""Numbers of a running stream: how many items, in which batches, how many wait where, what takes the time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from vsa_rt.runtime.mutex import Mutex
from vsa_rt.runtime.preprocess import Preprocessor

if TYPE_CHECKING:
    from vsa_rt.runtime.decode import ImageSource

Stage = Literal["decode", "resize", "engine"]
Event = Literal["taken", "prepared", "failed", "sent", "answered", "given", "padding"]


@dataclass(frozen=True)
class Depths:
    """Items under way, by where they are now.

    Attributes:
        unprepared: Waiting for a host thread, or being decoded and resized.
        ready: Waiting for their batch.
        running: In a batch that is being copied, waits for the engine or runs.
        unread: Done, but not given yet: an earlier item is not done, or the consumer is elsewhere.
    """

    unprepared: int = 0
    ready: int = 0
    running: int = 0
    unread: int = 0

    def __add__(self, other: Depths) -> Depths:
        return Depths(
            self.unprepared + other.unprepared,
            self.ready + other.ready,
            self.running + other.running,
            self.unread + other.unread,
        )


@dataclass(frozen=True)
class Counts:
    """A watch's numbers at one moment, since it was made.

    Attributes:
        taken: Items taken from the source.
        prepared: Of them, decoded and resized.
        failed: Of them, that could not be.
        sent: Items that were put into a batch.
        answered: Items that came back from the engine.
        given: Items, failed ones too, that were given to the consumer.
        batches: Engine calls that ended.
        sizes: Number of items in a call to how many calls held so many; rows of padding do not count.
        padding: Rows of zeros that the engine computed to fill its batches.
        decode_seconds: Summed over the host threads, by the wall clock: waiting for a core is in it.
        resize_seconds: Likewise.
        engine_seconds: Summed over the engine's calls, without the waiting for their turn.
        depths: Items under way in the streams that are open.
    """

    taken: int = 0
    prepared: int = 0
    failed: int = 0
    sent: int = 0
    answered: int = 0
    given: int = 0
    batches: int = 0
    sizes: Mapping[int, int] = field(default_factory=dict)
    padding: int = 0
    decode_seconds: float = 0.0
    resize_seconds: float = 0.0
    engine_seconds: float = 0.0
    depths: Depths = field(default_factory=Depths)


class Watched(Protocol):
    """A stream."""

    def depths(self) -> Depths:
        """Its items under way."""
        ...


class Watch:
    """Counts what happens in the streams that it is passed to; any thread may read it at any time."""

    def __init__(self) -> None:
        self._mutex = Mutex()
        self._events: Counter[Event] = Counter()
        self._nanoseconds: Counter[Stage] = Counter()
        self._sizes: Counter[int] = Counter()
        self._streams: list[Watched] = []

    def add(self, event: Event, count: int = 1) -> None:
        """Count items."""
        with self._mutex:
            self._events[event] += count

    def called(self, size: int, padding: int) -> None:
        """Count an engine call on so many items, and so many rows of zeros."""
        with self._mutex:
            self._sizes[size] += 1
            self._events["padding"] += padding

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """Count what is inside as a stage's time, whether or not it succeeds."""
        begin = time.monotonic_ns()
        try:
            yield
        finally:
            taken = time.monotonic_ns() - begin
            with self._mutex:
                self._nanoseconds[stage] += taken

    def follow(self, stream: Watched) -> None:
        """Count a stream's items under way until ``leave``."""
        with self._mutex:
            self._streams.append(stream)

    def leave(self, stream: Watched) -> None:
        """Let a stream go; nothing happens if it is gone."""
        with self._mutex:
            self._streams = [other for other in self._streams if other is not stream]

    def counts(self) -> Counts:
        """The numbers now."""
        with self._mutex:
            events, sizes, taken = Counter(self._events), dict(sorted(self._sizes.items())), self._nanoseconds
            decode, resize, engine = (taken[stage] / 1e9 for stage in ("decode", "resize", "engine"))
            streams = list(self._streams)
        # Not under the lock: a stream that counts here holds its own already.
        depths = sum((stream.depths() for stream in streams), Depths())
        return Counts(
            **{str(name): events[name] for name in events},
            batches=sum(sizes.values()),
            sizes=sizes,
            decode_seconds=decode,
            resize_seconds=resize,
            engine_seconds=engine,
            depths=depths,
        )


class TimedPreprocessor(Preprocessor):
    """Does what another one does, and tells a watch how long decoding and resizing take.

    Args:
        of: The other.
        watch: Who counts.
    """

    def __init__(self, of: Preprocessor, watch: Watch) -> None:
        super().__init__(of.specs, of.mode, of.rows)
        self._watch = watch

    def decode(self, picture: ImageSource, item: str) -> NDArray[np.uint8]:
        """See ``Preprocessor.decode``."""
        with self._watch.timed("decode"):
            return super().decode(picture, item)

    def resize(self, image: NDArray[np.uint8], outputs: Mapping[str, NDArray[Any]], item: str) -> None:
        """See ``Preprocessor.resize``."""
        with self._watch.timed("resize"):
            super().resize(image, outputs, item)
