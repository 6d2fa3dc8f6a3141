"""The program of a decoder process: takes jobs from its parent, gives pictures, and ends with it.

Files come from strangers, and decoders are native code: a file may crash one, make it hang, or make it take all memory.
So the process is made to be lost. While it works, a timer of the kernel runs that every sign of progress starts again; if
it runs out, the signal ends the process, whatever its threads are in and whether or not its parent still lives. Where
memory runs out, the kernel chooses this process before others.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.errors import EnvironmentUnusable, ItemError, UsageError
from vsa_rt.pipeline.ingest.duplicates import perceptual_hash
from vsa_rt.pipeline.ingest.pictures import ImageJob, VideoJob
from vsa_rt.pipeline.ingest.wire import Wire, contents, job_of, memory
from vsa_rt.runtime.decode import decode
from vsa_rt.runtime.video import video

#: Bytes of pictures that may wait for the parent's reader: ten of 1080p. A picture larger than that waits alone, and
#: the next one is decoded when it was taken.
BUDGET = 2**26
#: Seconds between two signs of life.
BEAT = 1.0
#: Of one sentence.
_LONGEST_REASON = 2000


def main() -> None:
    """Serve the parent whose socket the last argument names, until it is gone."""
    _set_up()
    descriptor = int(sys.argv[-1])
    os.set_inheritable(descriptor, False)
    wire = Wire(socket.socket(fileno=descriptor))
    inbox = Inbox(wire)
    wire.send({"ready": True})
    while True:
        Task(wire, inbox, *inbox.jobs.get()).run()


def _set_up() -> None:
    # What a process begins with is its parent's: whoever blocks or ignores alarms there must not do so here.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    # Ctrl-C is for the parent, which decides what is finished first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


class Inbox:
    """What the parent says, heard by a thread of its own: it ends the process when the parent is gone.

    Args:
        wire: Read here alone.

    Attributes:
        jobs: To be done, each with the memory file of its encoded bytes if it has any.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.jobs: queue.SimpleQueue[tuple[dict[str, Any], int | None]] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._number = self._taken = 0
        threading.Thread(target=self._listen, name="vsa-decoder-inbox", daemon=True).start()

    def taken(self, number: int, beyond: int, seconds: float) -> int:
        """Wait until the parent's reader took more of a job's pictures.

        Args:
            number: The job's.
            beyond: As many are known to be taken.
            seconds: To wait at most.

        Returns:
            How many are taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._of(number) > beyond, seconds)
            return self._of(number)

    def _of(self, number: int) -> int:
        return self._taken if self._number == number else 0

    def _listen(self) -> None:
        parent = os.getppid()
        while True:
            try:
                message, descriptor = self._wire.receive(BEAT)
            except TimeoutError:
                # A process that the parent forked may hold its end open.
                if os.getppid() != parent:
                    os._exit(0)
                continue
            except (EOFError, ValueError, OSError):
                os._exit(0)
            if "taken" in message:
                with self._changed:
                    self._number, self._taken = message["number"], message["taken"]
                    self._changed.notify_all()
            else:
                self.jobs.put((message, descriptor))


class Task:
    """One job, from its message to its end.

    Args:
        wire: Where pictures go.
        inbox: Says how many of them were taken.
        message: The job.
        content: The memory file of its encoded bytes, if it has any.
    """

    def __init__(self, wire: Wire, inbox: Inbox, message: dict[str, Any], content: int | None) -> None:
        self._wire, self._inbox = wire, inbox
        self._number: int = message["number"]
        self._ahead: int = message["ahead"]
        self._limit: float = message["limit"]
        self._message, self._content = message, content
        self._beat = time.monotonic()
        self._processor = time.process_time()
        self._waiting: deque[int] = deque()  # sizes of pictures that were sent and not taken
        self._taken = 0

    def run(self) -> None:
        """Do the job; whatever is wrong with it is said, and the process lives on."""
        _forget_stderr()
        self._tell({"begun": self._number})
        try:
            job = job_of(self._message, None if self._content is None else contents(self._content))
            if isinstance(job, ImageJob):
                self._image(job)
                return
            self._video(job)
        except ItemError as error:
            self._fail("item", error.reason)
        except UsageError as error:
            self._fail("usage", str(error))
        except EnvironmentUnusable as error:
            self._fail("environment", str(error))
        except MemoryError:
            self._fail("item", "not enough memory to decode it")
        except Exception as error:  # noqa: BLE001 - of whatever kind: it is this job's alone
            self._fail("item", f"internal error: {error!r}")
        else:
            self._rest()
            self._tell({"end": self._number, "decode_seconds": self._spent()})

    def _image(self, job: ImageJob) -> None:
        self.alive()
        pixels = decode(job.source, item="image", at_least=job.at_least)
        perceptual = perceptual_hash(pixels) if job.perceptual else ""
        self._give(pixels, {"perceptual": perceptual, "last": True})

    def _video(self, job: VideoJob) -> None:
        self.alive()
        frames = video(
            job.source,
            job.sample,
            end=job.end,
            timeout=job.timeout,
            format=job.format,
            threads=job.threads,
            alive=self.alive,
        )
        for frame in frames:
            size = frame.pixels.nbytes
            self._give(frame.pixels, {"seconds": frame.seconds, "index": frame.index})
            del frame
            self._wait_for_room(size)
            self.alive()

    # Progress

    def alive(self) -> None:
        """There is progress: the time limit begins anew, and now and then the parent hears of it."""
        signal.setitimer(signal.ITIMER_REAL, self._limit)
        now = time.monotonic()
        if now - self._beat >= BEAT:
            self._beat = now
            self._tell({"alive": self._number}, wait=False)

    def _rest(self) -> None:
        """Nothing is being worked on: there is no time limit."""
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _spent(self) -> float:
        before, self._processor = self._processor, time.process_time()
        return self._processor - before

    def _wait_for_room(self, size: int) -> None:
        """Wait until another picture of a size may be decoded; no time limit has run since the one before was given."""
        while self._waiting and (len(self._waiting) >= self._ahead or sum(self._waiting) + size > BUDGET):
            taken = self._inbox.taken(self._number, self._taken, BEAT)
            if taken == self._taken:
                self._tell({"alive": self._number}, wait=False)
            for _ in range(taken - self._taken):
                self._waiting.popleft()
            self._taken = taken

    # Talking

    def _give(self, pixels: NDArray[np.uint8], about: dict[str, Any]) -> None:
        descriptor = memory(np.ascontiguousarray(pixels).data)
        # Without a time limit: it is the parent's time if its end is full.
        self._rest()
        try:
            self._tell(
                {
                    "picture": self._number,
                    "height": pixels.shape[0],
                    "width": pixels.shape[1],
                    "decode_seconds": self._spent(),
                    **about,
                },
                descriptor,
            )
        finally:
            os.close(descriptor)
        self._waiting.append(pixels.nbytes)

    def _fail(self, kind: str, reason: str) -> None:
        self._rest()
        self._tell(
            {
                "error": self._number,
                "kind": kind,
                "reason": reason[:_LONGEST_REASON],
                "decode_seconds": self._spent(),
            }
        )

    def _tell(self, message: dict[str, Any], descriptor: int | None = None, *, wait: bool = True) -> None:
        try:
            self._wire.send(message, descriptor, wait=wait)
        except ConnectionError:
            os._exit(0)


def _forget_stderr() -> None:
    """What libraries printed about earlier files is of no use, and would grow for ever."""
    with contextlib.suppress(OSError):  # a terminal, or a pipe
        os.ftruncate(2, 0)
        os.lseek(2, 0, os.SEEK_SET)
