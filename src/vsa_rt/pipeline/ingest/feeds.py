"""A feed, which has no end, as windows of time that have one: each is a piece with one outcome.

Windows are aligned to whole multiples of their length since 1970-01-01T00:00:00Z, so that two cameras have the same
ones. A frame's time is the wall clock's when it arrives: the presentation times of cameras count from anywhere.

Keys. A window's key ends in its aligned beginning, ``rtsp://…@2026-11-22T17:00:00Z``; fractions of a second are there
where the length is none of whole seconds. The first window of each connection ends at the same moment as the others,
but begins with its first frame and is named after it, in milliseconds: ``…@2026-11-22T17:00:23.512Z``. So a run that is
killed and begins again within a window, or a camera that comes back within one, does not give the same key twice with
other frames. A window without frames gives nothing.

Time does not run backwards here: when the clock is set back, the feed's time goes on from where it was, until the run
ends. What the clock repeats in a later run, ``known`` tells; such a window is named like the first of a connection.

Connections. The first one that gives no frame is an outcome with an error, and the feed is over: a wrong address is not
tried for ever. Once a frame came, a feed that breaks off is connected to again after 1, 2, 4 … 60 seconds, without end,
counted from 1 again after a frame. It is said twice at most: by the window that it broke off in, and by an outcome
without frames when connecting again fails, or when it broke off after the window's time was over (a camera that fell
silent); attempts after that say nothing. A server may also end a feed without an error, by which a finite stream and a
camera that starts anew look the same. Then it is connected to again likewise, but it is over as soon as a connection
ends without an error and without a frame, or after so many seconds of waiting as ``patience`` says.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from vsa_rt.errors import ItemError, UsageError
from vsa_rt.runtime.batch import HasPixels

if TYPE_CHECKING:
    from typing import TypeAlias

P = TypeVar("P", bound=HasPixels)

#: Seconds before the first attempt to connect again; each later pause is twice as long, up to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
#: What is said of a connection that ended without an error before it gave anything.
NO_FRAMES = "no frames: it ends before the first"


@dataclass(frozen=True)
class Opened:
    """A window begins: with its first frame, or as an outage.

    Attributes:
        key: The window's.
    """

    key: str


@dataclass(frozen=True, eq=False)
class Seen(Generic[P]):
    """A frame.

    Attributes:
        key: The window's.
        picture: The frame as it came.
        seconds: When it arrived, since the window's beginning, in whole milliseconds.
        index: Its number in the window, from 0.
    """

    key: str
    picture: P
    seconds: float
    index: int


@dataclass(frozen=True)
class Closed:
    """A window is over.

    Attributes:
        key: The window's.
        error: Why the feed broke off in it; empty where its time was over, or the feed ended or was stopped.
        end: Seconds since the window's beginning at which it ended; 0 of an outage.
    """

    key: str
    error: str
    end: float


if TYPE_CHECKING:
    #: Of a window: ``Opened``, any number of ``Seen``, ``Closed``.
    Event: TypeAlias = Opened | Seen[P] | Closed


class Feed(Generic[P]):
    """One feed; its events are taken once.

    Args:
        key: What its windows' keys begin with: the address without a password, or the camera's path.
        open: Connects and yields frames; an ``ItemError`` from either says why it broke off.
        window: Seconds of a window, taken to whole milliseconds.
        stop: Ends it. Whoever sets it while a camera is silent has to interrupt the iterator as well: an ``ItemError``
            that comes after the stop is none of the feed's.
        clock: Seconds since 1970, UTC.
        wait: Waits for so many seconds, and says whether the stop came; ``None``: ``stop.wait``.
        patience: Seconds of waiting for a feed to come back that had ended without an error.
        known: Says of a key that an earlier run gave it an outcome.

    Raises:
        UsageError: The window or the patience is none.
    """

    def __init__(
        self,
        key: str,
        open: Callable[[], Iterator[P]],
        *,
        window: float = 60.0,
        stop: threading.Event,
        clock: Callable[[], float] = time.time,
        wait: Callable[[float], bool] | None = None,
        patience: float = 600.0,
        known: Callable[[str], bool] | None = None,
    ) -> None:
        if not (math.isfinite(window) and window >= 0.001):
            raise UsageError(f"a window of {window} seconds; expected a number from 0.001 on")
        if not patience >= 0:
            raise UsageError(f"a patience of {patience} seconds; expected a number from 0 on")
        self._open, self._stop, self._patience = open, stop, patience
        self._wait = wait or stop.wait
        self._names = _Names(key, round(window * 1000), known or _nothing_is_known)
        self._time = _Time(clock)

    def events(self) -> Generator[Event[P], None, None]:
        """What happens, as it happens; blocks while the feed is silent or down.

        A window whose time is over is closed when the next frame comes, or when the feed breaks off. The connection
        is closed with the iterator.

        Yields:
            ``Opened``, its ``Seen``, ``Closed``; then the next window's.
        """
        came, by_itself, reported = False, False, False  # the last two: of the outage that lasts
        pause = waited = 0.0
        while not self._stop.is_set():
            end = yield from self._connection()
            if self._stop.is_set():
                return
            if end.came:
                came, by_itself, reported = True, not end.error, False
                pause, waited = FIRST_PAUSE, 0.0
            if not came:
                yield from self._outage(end.error or NO_FRAMES)
                return
            if by_itself and not (end.came or end.error):
                return
            if not (end.told or reported):
                yield from self._outage(end.error or NO_FRAMES)
                reported = True
            if (by_itself and waited >= self._patience) or self._wait(pause):
                return
            waited += pause
            pause = min(2 * pause, LONGEST_PAUSE)

    def _connection(self) -> Generator[Event[P], None, _End]:
        """Events of one connection, until it ends, breaks off or is stopped."""
        window: _Window | None = None
        frames: Iterator[P] | None = None
        error = ""
        try:
            while not self._stop.is_set():
                try:
                    frames = self._open() if frames is None else frames
                    picture = next(frames, None)
                except ItemError as broken:
                    error = broken.reason
                    break
                if picture is None or self._stop.is_set():
                    break
                now = self._time.now()
                if window is None or now >= window.end:
                    if window is not None:
                        yield window.closed(now)
                    window = self._names.window(now, first=window is None)
                    yield Opened(window.key)
                yield Seen(window.key, picture, *window.place(now))
        finally:
            close = getattr(frames, "close", None)
            if close is not None:
                close()
        if window is None:
            return _End(came=False, error=error, told=False)
        if self._stop.is_set():
            error = ""
        now = self._time.now()
        yield window.closed(now, error)
        return _End(came=True, error=error, told=not error or now < window.end)

    def _outage(self, error: str) -> Iterator[Event[P]]:
        window = self._names.window(self._time.now(), first=True)
        yield Opened(window.key)
        yield Closed(window.key, error, 0.0)


class _End(NamedTuple):
    """How a connection ended: whether a frame came, why it broke off, and whether nothing is left to be said of it."""

    came: bool
    error: str
    told: bool


class _Time:
    """Milliseconds since 1970 that never go back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._last, self._ahead = clock, 0, 0

    def now(self) -> int:
        now = math.floor(self._clock() * 1000) + self._ahead
        self._ahead += max(0, self._last - now)
        self._last = max(now, self._last)
        return self._last


@dataclass
class _Window:
    """A window that is open; its beginning and end in milliseconds since 1970."""

    key: str
    begin: int
    end: int
    count: int = 0

    def place(self, now: int) -> tuple[float, int]:
        """Seconds and number of a frame that arrives now."""
        self.count += 1
        return (now - self.begin) / 1000, self.count - 1

    def closed(self, now: int, error: str = "") -> Closed:
        """Its end; what happens after its time is none of its errors."""
        return Closed(self.key, error if now < self.end else "", (min(now, self.end) - self.begin) / 1000)


class _Names:
    """Places windows, and gives each a key that none had before."""

    def __init__(self, key: str, length: int, known: Callable[[str], bool]) -> None:
        self._key, self._length, self._known = key, length, known
        self._fractions = length % 1000 != 0
        self._last = -1  # the moment that the last key names

    def window(self, now: int, *, first: bool) -> _Window:
        """The window that a moment is in; the first of a connection begins at that moment."""
        begin = now - now % self._length
        end = begin + self._length
        moment, key = begin, self._named(begin, self._fractions)
        if first or begin <= self._last or self._known(key):
            begin, moment = now, max(now, self._last + 1)
            while self._known(key := self._named(moment, fractions=True)):
                moment += 1
        self._last = moment
        return _Window(key, begin, end)

    def _named(self, moment: int, fractions: bool) -> str:
        seconds, rest = divmod(moment, 1000)
        text = f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}"
        return f"{self._key}@{text}.{rest:03d}Z" if fractions else f"{self._key}@{text}Z"


def _nothing_is_known(_: str) -> bool:
    return False
