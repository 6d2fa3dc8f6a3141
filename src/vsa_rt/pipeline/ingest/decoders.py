"""Decodes in processes of their own: what crashes, hangs or takes all memory there takes only its own item with it.

A `Decoder` is one such process, started when it is first needed and again when it was lost. `Decoders` are several, which
take jobs first in, first out; each decodes ahead of its reader by a bounded number of pictures, so that whoever reads the
jobs in the order in which they were submitted never waits for a decoder that waits for them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vsa_rt.errors import EnvironmentUnusable, ItemError, UsageError
from vsa_rt.pipeline.ingest.decoder import STOPPED, Decoder, Run
from vsa_rt.pipeline.ingest.pictures import ImageJob, Picture, VideoJob

if TYPE_CHECKING:
    from vsa_rt.pipeline.ingest.pictures import Job

__all__ = ["Decoder", "Decoders", "ImageJob", "Picture", "Pictures", "VideoJob"]


class Pictures:
    """The pictures of one job, in order; iterate over them once, in one thread. Made by ``Decoders.submit``.

    Read it to its end, or close it: until then it occupies a decoder.

    Raises:
        ItemError: In the place of what cannot be decoded.
        UsageError: The job asks for what cannot be.
        EnvironmentUnusable: A library is missing, or no process starts.
    """

    def __init__(self, owner: Decoders, job: Job, item: str) -> None:
        self.item = item
        self._owner = owner
        self._job: Job | None = job
        self._run = Run()
        self._decoder: Decoder | None = None
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[Picture] = deque()
        self._error: BaseException | None = None
        self._over = self._closed = False

    @property
    def decode_seconds(self) -> float:
        """Processor time of the job so far, also of what became no picture; whole once it was read to its end."""
        return self._run.decode_seconds

    def __iter__(self) -> Iterator[Picture]:
        return self

    def __next__(self) -> Picture:
        error: BaseException | None = None
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._over or self._closed)
            picture = self._waiting.popleft() if self._waiting else None
            if picture is None:
                error, self._error = self._error, None
            read = self._over and not self._waiting and self._error is None
        if read:
            self._owner._read(self)
        if picture is not None:
            if self._decoder is not None:
                self._decoder.taken(self._run)
            return picture
        raise error or StopIteration

    def close(self) -> None:
        """Drop the rest; a job under way is ended."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._error = None
            self._changed.notify_all()
        self._owner._cancel(self)

    # For the owner

    def _decode(self, decoder: Decoder) -> None:
        """Do the job, in a decoder's thread."""
        with self._changed:
            if self._over:
                return
            self._decoder = decoder
        error: BaseException | None = None
        try:
            for picture in decoder.received(self._take_job(), self.item, self._run):
                self._put(picture)
                del picture
        except (ItemError, UsageError, EnvironmentUnusable) as known:
            error = known
        except BaseException as fault:  # noqa: BLE001 - of whatever kind: nobody waits for ever
            error = ItemError(self.item, f"internal error: {fault!r}")
        # Without the traceback: its frames hold the job for as long as somebody keeps the error.
        self._finish(None if error is None else error.with_traceback(None))

    def _stop(self) -> None:
        """End the job, wherever it is."""
        with self._changed:
            decoder = self._decoder
            if decoder is None:
                self._finish(ItemError(self.item, STOPPED))
        if decoder is not None:
            decoder.interrupt(self._run)

    def _take_job(self) -> Job:
        job, self._job = self._job, None
        if job is None:
            raise UsageError(f"{self.item}: was decoded before")
        return job

    def _put(self, picture: Picture) -> None:
        with self._changed:
            if not self._closed:
                self._waiting.append(picture)
                self._changed.notify_all()

    def _finish(self, error: BaseException | None) -> None:
        with self._changed:
            if not self._over:
                self._over, self._job = True, None
                self._error = None if self._closed else error
            self._changed.notify_all()


class Decoders:
    """Decoder processes with a thread each, which take jobs first in, first out.

    Args:
        count: How many.
        limit: Of each, see `Decoder`.
        ahead: Of each job, see `Decoder`.
        command: Of each, see `Decoder`.

    Raises:
        UsageError: A limit or a number that is none.
    """

    def __init__(
        self, count: int, limit: float = 60.0, ahead: int = 4, *, command: Sequence[str] | None = None
    ) -> None:
        if count < 1:
            raise UsageError(f"{count} decoders; expected 1 or more")
        self._decoders = [Decoder(limit, ahead, command=command) for _ in range(count)]
        self._changed = threading.Condition(threading.RLock())
        self._queue: deque[Pictures] = deque()
        self._unread: set[Pictures] = set()
        self._threads: list[threading.Thread] = []
        self._closed = False

    @property
    def depth(self) -> int:
        """Jobs that were submitted and neither read to their end nor closed."""
        return len(self._unread)

    @property
    def pids(self) -> list[int]:
        """Of the processes that there are."""
        return [pid for decoder in self._decoders if (pid := decoder.pid) is not None]

    def submit(self, job: Job, item: str) -> Pictures:
        """Queue a job.

        Args:
            job: What to decode.
            item: What to call it in an error.

        Returns:
            Its pictures, to be read to their end or closed.

        Raises:
            UsageError: The decoders are closed.
        """
        pictures = Pictures(self, job, item)
        with self._changed:
            if self._closed:
                raise UsageError(f"{item}: the decoders are closed")
            if not self._threads:
                self._threads = [self._thread(decoder) for decoder in self._decoders]
            self._queue.append(pictures)
            self._unread.add(pictures)
            self._changed.notify()
        return pictures

    def close(self) -> None:
        """End all jobs at once, and the processes; whoever still reads one gets an ``ItemError``."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            unread = list(self._unread)
            self._unread.clear()  # what nobody reads any more goes with its reader
            self._changed.notify_all()
        for pictures in unread:
            pictures._stop()
        for decoder in self._decoders:
            decoder.close()
        for thread in self._threads:
            thread.join()

    def _read(self, pictures: Pictures) -> None:
        """A job was read to its end."""
        with self._changed:
            self._unread.discard(pictures)

    def _cancel(self, pictures: Pictures) -> None:
        """End a job; one that has not begun is passed over when its turn comes."""
        with self._changed:
            self._unread.discard(pictures)
        pictures._stop()

    def _thread(self, decoder: Decoder) -> threading.Thread:
        thread = threading.Thread(target=self._work, args=(decoder,), name="vsa-decoder", daemon=True)
        thread.start()
        return thread

    def _work(self, decoder: Decoder) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    return
                pictures = self._queue.popleft()
            pictures._decode(decoder)
            del pictures
