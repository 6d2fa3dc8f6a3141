"""Numbers of a run of ingestion: what came, what became of it, where it is now, and what took the time."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from vsa_rt.runtime.watch import Depths, Watch

#: ``found``: pieces that sources gave, what an earlier run finished left out. ``images``, ``videos``, ``feeds``: pieces
#: that have a result (of a feed every window is one), and of them ``reused``. ``failed``: pieces without one. ``frames``:
#: pictures that the engine answered, an image being one. ``bytes``: of pieces that were read. ``dropped``: frames of
#: feeds for which there was no time.
Event = Literal["found", "images", "videos", "feeds", "reused", "failed", "frames", "bytes", "dropped"]


@dataclass(frozen=True)
class Numbers:
    """A tally at one moment.

    Attributes:
        seconds: Since the run began.
        found: Pieces that sources gave, what an earlier run finished left out.
        images: Of them, that have a result.
        videos: Likewise.
        feeds: Windows of feeds, likewise.
        reused: Pieces, counted above, whose result is that of an earlier one.
        failed: Pieces without a result.
        frames: Pictures that the engine answered.
        nbytes: Of pieces that were read.
        dropped: Frames of feeds for which there was no time.
        before: Pieces that earlier runs into the same folder had finished.
        opening: Pieces that wait to be opened, or are being hashed.
        decoding: Pieces that wait for a decoder, are in one, or wait for their turn with its pictures.
        stream: Pictures on their way to the engine and back.
        decode_seconds: Processor time of the decoders.
        resize_seconds: Summed over threads, by the wall clock.
        engine_seconds: Summed over the engine's calls, by the wall clock.
        current: Key of the piece that was taken from the sources last.
    """

    seconds: float = 0.0
    found: int = 0
    images: int = 0
    videos: int = 0
    feeds: int = 0
    reused: int = 0
    failed: int = 0
    frames: int = 0
    nbytes: int = 0
    dropped: int = 0
    before: int = 0
    opening: int = 0
    decoding: int = 0
    stream: Depths = field(default_factory=Depths)
    decode_seconds: float = 0.0
    resize_seconds: float = 0.0
    engine_seconds: float = 0.0
    current: str = ""

    @property
    def finished(self) -> int:
        """Pieces that came to an end in this run."""
        return self.images + self.videos + self.feeds + self.failed

    @property
    def unfinished(self) -> int:
        """Pieces that were found and have not come to an end."""
        return max(0, self.found - self.finished)

    @property
    def frames_per_second(self) -> float:
        """Pictures a second."""
        return self.frames / self.seconds if self.seconds > 0 else 0.0

    def shares(self) -> dict[str, float]:
        """Shares of decode, resize and engine in the time that they take together; all 0 before there is any."""
        taken = {"decode": self.decode_seconds, "resize": self.resize_seconds, "engine": self.engine_seconds}
        whole = sum(taken.values())
        return {name: seconds / whole if whole else 0.0 for name, seconds in taken.items()}

    def since(self, earlier: Numbers) -> Numbers:
        """What came to be after an earlier moment of the same run.

        Args:
            earlier: The numbers at that moment.

        Returns:
            The differences of what only grows; depths, ``before`` and ``current`` as they are now.
        """
        return replace(self, **{name: getattr(self, name) - getattr(earlier, name) for name in _GROWING})


#: What only grows in a run.
_GROWING = (
    "seconds", "found", "images", "videos", "feeds", "reused", "failed", "frames", "nbytes", "dropped",
    "decode_seconds", "resize_seconds", "engine_seconds",
)  # fmt: skip


class Tally:
    """Counts what happens in a run; any thread may count and read.

    Args:
        clock: Seconds since any moment.

    Attributes:
        watch: To be passed to ``rt.stream``: counts what happens there.
        before: Pieces that earlier runs had finished.
        current: Key of the piece that was taken from the sources last.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._ended: float | None = None
        self._mutex = threading.Lock()
        self._events: Counter[Event] = Counter()
        self._decode = 0.0
        self.watch = Watch()
        self.before = 0
        self.current = ""
        #: How many pieces are being opened and decoded; whoever runs them puts the questions here.
        self.opening: Callable[[], int] = _none
        self.decoding: Callable[[], int] = _none

    def add(self, event: Event, count: int = 1) -> None:
        """Count."""
        with self._mutex:
            self._events[event] += count

    def decoded(self, seconds: float) -> None:
        """Count processor time of a decoder."""
        with self._mutex:
            self._decode += seconds

    def end(self) -> None:
        """Stop the clock; a second time does nothing."""
        if self._ended is None:
            self._ended = self._clock()

    def numbers(self) -> Numbers:
        """The numbers now."""
        with self._mutex:
            events, decode = Counter(self._events), self._decode
        stream = self.watch.counts()
        return Numbers(
            seconds=(self._clock() if self._ended is None else self._ended) - self._began,
            found=events["found"],
            images=events["images"],
            videos=events["videos"],
            feeds=events["feeds"],
            reused=events["reused"],
            failed=events["failed"],
            frames=events["frames"],
            nbytes=events["bytes"],
            dropped=events["dropped"],
            before=self.before,
            opening=self.opening(),
            decoding=self.decoding(),
            stream=stream.depths,
            decode_seconds=decode,
            resize_seconds=stream.resize_seconds,
            engine_seconds=stream.engine_seconds,
            current=self.current,
        )


def _none() -> int:
    return 0
