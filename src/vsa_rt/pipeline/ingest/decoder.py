"""One decoder process, looked after: given jobs, replaced when it was lost, ended when it is to end."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from vsa_rt.errors import EnvironmentUnusable, ItemError, UsageError
from vsa_rt.pipeline.ingest.child import Child, Ended
from vsa_rt.pipeline.ingest.pictures import Picture, VideoJob
from vsa_rt.pipeline.ingest.wire import job_message, mapped, memory
from vsa_rt.runtime.video_kind import address

if TYPE_CHECKING:
    from vsa_rt.pipeline.ingest.pictures import Job

#: Why a job that somebody ended has no more pictures.
STOPPED = "its decoding was stopped"


class Run:
    """One job on its way through a decoder.

    Attributes:
        stopped: Somebody ended it.
        number: The decoder's, of its jobs.
        taken: Pictures that the reader took.
        decode_seconds: Processor time so far, also of what became no picture.
    """

    def __init__(self) -> None:
        self.stopped = False
        self.number = 0
        self.taken = 0
        self.decode_seconds = 0.0


class Decoder:
    """One decoder process, which does one job at a time.

    Args:
        limit: Seconds without progress after which the process is ended; of an address, besides those that its server
            may be silent.
        ahead: Pictures that may be decoded and not taken; fewer of large ones, see
            `vsa_rt.pipeline.ingest.decoder_main.BUDGET`.
        command: What to run rather than this package's decoder.

    Raises:
        UsageError: A limit or a number that is none.
    """

    def __init__(self, limit: float = 60.0, ahead: int = 4, *, command: Sequence[str] | None = None) -> None:
        if not (math.isfinite(limit) and limit > 0):
            raise UsageError(f"a time limit of {limit} s; expected seconds over 0")
        if ahead < 1:
            raise UsageError(f"{ahead} pictures ahead; expected 1 or more")
        self._limit, self._ahead, self._command = limit, ahead, command
        self._lock = threading.RLock()
        self._child: Child | None = None
        self._run: Run | None = None
        self._number = 0
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the process; ``None`` while there is none."""
        with self._lock:
            return None if self._child is None else self._child.pid

    def pictures(self, job: Job, item: str) -> Generator[Picture, None, None]:
        """Do a job. Closing the iterator early ends it, and with a video the process.

        Args:
            job: What to decode.
            item: What to call it in an error.

        Returns:
            The pictures: of an image one.

        Raises:
            ItemError: While iterating: it cannot be decoded, or its decoder was lost; pictures before came before.
            UsageError: While iterating: the decoder is closed, or at another job, or the job asks for what cannot be.
            EnvironmentUnusable: While iterating: a library is missing, or no process starts.
        """
        run = Run()
        with contextlib.closing(self.received(job, item, run)) as received:
            for picture in received:
                yield picture
                self.taken(run)

    def received(self, job: Job, item: str, run: Run) -> Generator[Picture, None, None]:
        """As ``pictures``, but whoever takes them calls ``taken``.

        Args:
            job: What to decode.
            item: What to call it in an error.
            run: A new one.
        """
        try:
            child = self._begun(job, item, run)
            del job  # its bytes are the decoder's by now
            over = False
            while not over:
                message, descriptor = self._heard(child, item, run)
                run.decode_seconds += message.get("decode_seconds", 0.0)
                over = "end" in message or "error" in message or bool(message.get("last"))
                picture = _picture(message, descriptor, child, item) if "picture" in message else None
                if over:
                    self._leave(run, keep=True)
                if "error" in message:
                    raise _error(message, item)
                if picture is not None:
                    yield picture
                    del picture  # the next one may be long in coming
        finally:
            self._leave(run, keep=False)

    def taken(self, run: Run) -> None:
        """The reader took a picture of a run: another one may be decoded."""
        run.taken += 1
        with self._lock:
            if self._run is run and self._child is not None:
                # Whoever waits for the pictures sees that the process is gone.
                with contextlib.suppress(OSError):
                    self._child.wire.send({"number": run.number, "taken": run.taken})

    def interrupt(self, run: Run | None = None) -> None:
        """From another thread: end the job under way at once, whatever it does; it has an ``ItemError`` in its place.

        Args:
            run: End this one, or do not let it begin; ``None``: whatever is under way, if anything is.
        """
        with self._lock:
            if run is not None:
                run.stopped = True
            if self._run is not None and run in (None, self._run):
                self._run.stopped = True
                if self._child is not None:
                    self._child.kill()

    def close(self) -> None:
        """End the process; a job under way is interrupted."""
        with self._lock:
            self._closed = True
            self.interrupt()
            if self._child is None:
                return
            if self._run is None:
                self._drop(self._child)
            else:  # its reader may be waiting for a message, and lets go of the rest
                self._child.end()

    # Beginning and ending

    def _begun(self, job: Job, item: str, run: Run) -> Child:
        """The process with the job begun. One that was lost while it had nothing to do is replaced."""
        again = True
        while True:
            child = self._ready(item, run)
            content = None
            try:
                content = memory(job.source) if isinstance(job.source, bytes) else None
                message = job_message(job) | {"number": run.number, "ahead": self._ahead}
                child.begin(message, content, self._limit_of(job))
                return child
            except Ended:
                why = STOPPED if run.stopped else child.why()
                self._drop(child)
                if run.stopped or not again:
                    raise ItemError(item, why) from None
                again = False
            except (OSError, ValueError) as error:
                reason = f"it cannot be handed to a decoder: {getattr(error, 'strerror', None) or error}"
                raise ItemError(item, reason) from None
            finally:
                if content is not None:
                    os.close(content)

    def _ready(self, item: str, run: Run) -> Child:
        with self._lock:
            if run.stopped:
                raise ItemError(item, STOPPED)
            if self._closed:
                raise UsageError(f"{item}: the decoder is closed")
            if self._run not in (None, run):
                raise UsageError(f"{item}: the decoder is at another job; read it to its end, or close it")
            self._run = run
            self._number += 1
            run.number = self._number
            if self._child is None:
                self._child = Child(self._command)
            child = self._child
        try:
            child.wait_until_ready()
        except Ended:
            why = child.why()
            if run.stopped:
                raise ItemError(item, STOPPED) from None
            raise EnvironmentUnusable(f"a decoder process does not start: {why}") from None
        return child

    def _leave(self, run: Run, *, keep: bool) -> None:
        """A run is over; the process is kept if it is ready for another."""
        with self._lock:
            if self._run is not run:
                return
            self._run = None
            if self._child is not None and (not keep or run.stopped or self._closed):
                self._drop(self._child)

    def _drop(self, child: Child) -> None:
        with self._lock:
            if self._child is child:
                self._child = None
        child.close()

    def _limit_of(self, job: Job) -> float:
        silent = isinstance(job, VideoJob) and isinstance(job.source, str) and address(job.source)
        return self._limit + (job.timeout if isinstance(job, VideoJob) and silent else 0.0)

    def _heard(self, child: Child, item: str, run: Run) -> tuple[dict[str, Any], int | None]:
        try:
            return child.receive()
        except Ended:
            raise ItemError(item, STOPPED if run.stopped else child.why()) from None


def _picture(message: dict[str, Any], descriptor: int | None, child: Child, item: str) -> Picture:
    if descriptor is None:  # the system delivers the message without it
        raise ItemError(item, "its picture did not arrive: too many open files; raise the limit (ulimit -n)")
    try:
        pixels = mapped(descriptor, message["height"], message["width"])
    except (OSError, ValueError) as error:
        child.fail(str(error))
        raise ItemError(item, child.why()) from None
    return Picture(
        pixels,
        message.get("seconds", 0.0),
        message.get("index", 0),
        message["decode_seconds"],
        message.get("perceptual", ""),
    )


def _error(message: dict[str, Any], item: str) -> ItemError | UsageError | EnvironmentUnusable:
    if message["kind"] == "usage":
        return UsageError(message["reason"])
    if message["kind"] == "environment":
        return EnvironmentUnusable(message["reason"])
    return ItemError(item, message["reason"])
