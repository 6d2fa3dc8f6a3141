"""A camera that plays a script by a clock of its own, and a live sender of MPEG-TS over UDP."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from clips import numbered
from numpy.typing import NDArray

from vsa_rt.errors import ItemError
from vsa_rt.pipeline.ingest.feeds import Feed

#: 2026-11-22T17:00:00Z
FIVE = 1795366800.0


class Shot(NamedTuple):
    """A frame with the number that it carries."""

    number: int

    @property
    def pixels(self) -> NDArray[np.uint8]:
        return np.full((1, 1, 3), self.number, np.uint8)


class Breaks(NamedTuple):
    """So many seconds after 17:00:00 the feed breaks off."""

    at: float
    reason: str = "the cable is out"


class Does(NamedTuple):
    """Something happens to the camera, and no frame comes of it."""

    what: Callable[[Camera], object]


#: What one connection gives: frames by seconds after 17:00:00, and what else happens.
Session = Sequence["float | Breaks | Does"]


class Camera:
    """Gives one session for each connection; when there are no more, it stops the run.

    Attributes:
        now: Seconds after 17:00:00; test scripts may set it.
        stop: To be passed to the feed.
        waits: Seconds that were waited for between connections.
        closed: How many connections were closed.
        back: Seconds that the wall clock was set back by.
    """

    def __init__(self, *sessions: Session, refuses: Sequence[int] = ()) -> None:
        self.now, self.back = 0.0, 0.0
        self.stop = threading.Event()
        self.waits: list[float] = []
        self.closed = 0
        self._sessions = list(sessions)
        self._refuses = set(refuses)
        self._connections = 0
        self._shots = 0
        self._frames_of: list[Iterator[Shot]] = []  # kept, or losing them would close them

    def clock(self) -> float:
        return FIVE + self.now - self.back

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.now += seconds
        if not self._sessions:
            self.stop.set()
        return self.stop.is_set()

    def open(self) -> Iterator[Shot]:
        """Connect. Refused connections fail here, before there is an iterator."""
        session = self._sessions.pop(0)
        self._connections += 1
        if self._connections in self._refuses:
            assert isinstance(session[0], Breaks)
            raise ItemError("camera", session[0].reason)
        self._frames_of.append(self._frames(session))
        return self._frames_of[-1]

    def _frames(self, session: Session) -> Iterator[Shot]:
        try:
            for step in session:
                if isinstance(step, Does):
                    step.what(self)
                    continue
                self.now = max(self.now, step.at if isinstance(step, Breaks) else step)
                if isinstance(step, Breaks):
                    raise ItemError("camera", step.reason)
                self._shots += 1
                yield Shot(self._shots - 1)
        finally:
            self.closed += 1

    def feed(self, **options: Any) -> Feed[Shot]:
        """The feed of it, named ``cam``."""
        given: dict[str, Any] = {"stop": self.stop, "clock": self.clock, "wait": self.wait, **options}
        return Feed("cam", self.open, **given)


STOPS = Does(lambda camera: camera.stop.set())


def free_port() -> int:
    """A UDP port that nobody has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def sender(port: int, rate: int = 25) -> Iterator[None]:
    """Sends numbered pictures as MPEG-TS to a UDP port of this machine, as time goes by, while the block runs.

    Raises:
        av.error.ProtocolNotFoundError: This build of FFmpeg has no UDP.
    """
    import av

    over = threading.Event()
    address = f"udp://127.0.0.1:{port}?pkt_size=1316"
    container = av.open(address, "w", format="mpegts")
    stream: Any = container.add_stream("mpeg2video", rate=rate)
    stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 1_000_000
    stream.codec_context.gop_size = 5  # whoever begins to listen waits for a key frame

    def send() -> None:
        number, began = 0, time.monotonic()
        while not over.wait(max(0.0, began + number / rate - time.monotonic())):
            frame = av.VideoFrame.from_ndarray(numbered(number % 256), "rgb24").reformat(format="yuv420p")
            frame.pts = number
            # Until somebody listens the system refuses what is sent.
            with contextlib.suppress(av.error.ConnectionRefusedError):
                container.mux(stream.encode(frame))
            number += 1

    thread = threading.Thread(target=send, name="sender")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(av.error.ConnectionRefusedError):
            container.close()
