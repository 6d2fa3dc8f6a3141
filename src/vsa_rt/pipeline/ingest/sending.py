"""Works to steps: each picture as soon as it is decoded, those of several works and feeds as they come.

One decoder alone does not keep all cores busy, so there are as many works under way as cores. Where pictures that look
the same count as reposts there is one: which of them is the first must not depend on who was faster.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from vsa_rt.doctor import usable_cores
from vsa_rt.errors import ItemError, UsageError
from vsa_rt.pipeline.ingest.channel import Channel
from vsa_rt.pipeline.ingest.decoders import Decoder, Picture, VideoJob
from vsa_rt.pipeline.ingest.duplicates import NearDuplicates
from vsa_rt.pipeline.ingest.feeds import Closed, Feed, Opened, Seen
from vsa_rt.pipeline.ingest.intake import picture_of
from vsa_rt.pipeline.ingest.scoring import Sent
from vsa_rt.pipeline.ingest.tally import Tally
from vsa_rt.pipeline.ingest.thumbnails import Thumbnails
from vsa_rt.pipeline.ingest.work import End, Look, Work
from vsa_rt.runtime.sampling import Sample

#: Decoded pictures that may wait for the engine's own queue.
_WAITING = 2
#: Seconds that a frame of a feed waits for room before it is dropped, at most; where the sample has a rate, as long as
#: until the next one. Who waited longer would read the feed too late, and later and later.
_PATIENCE, _SHORT_PATIENCE = 1.0, 0.04


class Sending:
    """Sends the pictures of works through a channel, in threads of its own.

    Args:
        works: In the order of the sources.
        near: Pictures that look the same; ``None`` where only the same bytes count.
        longest: Seconds; a video that goes on for longer fails.
        thumbnails: Makes what keeps small pictures of a video; ``None`` where they are not wanted.
        tally: Counts.

    Attributes:
        channel: Steps with their pictures; finished when works and feeds are over.
    """

    def __init__(
        self,
        works: Channel[Work],
        near: NearDuplicates | None,
        longest: float,
        thumbnails: Callable[[], Thumbnails] | None,
        tally: Tally,
    ) -> None:
        self._works, self._near, self._longest = works, near, longest
        self._thumbnails, self._tally = thumbnails, tally
        self.channel: Channel[Sent] = Channel(_WAITING)
        self._mutex = threading.Lock()
        self._senders = 1 if near is not None else usable_cores()
        self._left = self._senders  # threads that send works, and each feed's
        self._stop = threading.Event()
        self._live: list[Decoder] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start sending."""
        for number in range(self._senders):
            self._run(self._send_works, f"vsa-ingest-send-{number}")

    def follow(
        self, work: Work, sample: Sample, window: float, limit: float, known: Callable[[str], bool]
    ) -> None:
        """Send the windows of a feed, too, until it is over.

        Args:
            work: The feed: its key, and what it is opened by.
            sample: Which frames.
            window: Seconds of one piece.
            limit: Seconds without progress after which its decoder is ended.
            known: Says of a window's key that it was used before.
        """
        decoder = Decoder(limit)
        with self._mutex:
            self._left += 1
            self._live.append(decoder)
        feed = Feed(
            work.key,
            lambda: self._received(decoder, VideoJob(work.source, sample), work.key),
            window=window,
            stop=self._stop,
            known=known,
        )
        patience = min(_PATIENCE, float(1 / sample.rate)) if sample.kind == "fps" else _SHORT_PATIENCE
        self._run(lambda: self._send_feed(feed, decoder, patience), "vsa-ingest-feed")

    def stop(self) -> None:
        """Send no more pictures: the work under way has no end, but windows of feeds do."""
        self._stop.set()
        with self._mutex:
            live = list(self._live)
        for decoder in live:
            decoder.close()

    def _received(self, decoder: Decoder, job: VideoJob, key: str) -> Iterator[Picture]:
        """A feed's pictures until it breaks off; a run that is stopped closes its decoder."""
        try:
            yield from decoder.pictures(job, key)
        except UsageError:
            if self._stop.is_set():
                raise ItemError(key, "the run was stopped") from None
            raise

    def close(self) -> None:
        """Send nothing more."""
        self.stop()
        self.channel.close()
        with self._mutex:
            threads = list(self._threads)
        for thread in threads:
            thread.join()

    def _run(self, send: Callable[[], None], name: str) -> None:
        def run() -> None:
            error: BaseException | None = None
            try:
                send()
            except BaseException as problem:  # noqa: BLE001 - handed on to the reader
                error = problem
            with self._mutex:
                self._left -= 1
                last = not self._left
            if last or error is not None:
                self.channel.finish(error)

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        with self._mutex:
            self._threads.append(thread)

    # Files

    def _send_works(self) -> None:
        for work in self._works:
            end = self._send(work)
            if end is None or not self.channel.put((end, None)):
                return

    def _send(self, work: Work) -> End | None:
        """Send a work's pictures, and say how it ended; ``None`` if the run was stopped before."""
        if work.pictures is None:
            return End(work)
        if work.kind == "video" and self._thumbnails is not None:
            work.thumbnails = self._thumbnails()
        pictures, work.pictures = work.pictures, None
        counted = 0.0
        try:
            for picture in pictures:
                work.holding()
                self._tally.decoded(picture.decode_seconds)
                counted += picture.decode_seconds
                if work.kind == "video" and picture.seconds >= self._longest:
                    return End(
                        work,
                        f"goes on for longer than {self._longest:g} s; if that is right, allow more with --longest",
                    )
                if self._is_near(work, picture):
                    continue
                if self._stop.is_set() or not self._look(work, picture, picture.seconds, picture.index):
                    return None
        except ItemError as error:
            # A decoder that is stopped says so, which is no fault of the piece.
            return None if self._stop.is_set() else End(work, error.reason)
        finally:
            pictures.close()
            work.holding()
            self._tally.decoded(
                pictures.decode_seconds - counted
            )  # after the last picture, or before a failure
        return End(work)

    def _is_near(self, work: Work, picture: Picture) -> bool:
        """Whether an earlier picture looks the same; if not, later ones are compared with this one."""
        if self._near is None or not picture.perceptual:
            return False
        work.perceptual = picture.perceptual
        found = self._near.of(picture.perceptual)
        if found is not None:
            work.reused, work.distance = found.key, found.distance
            return True
        self._near.add(work.key, picture.perceptual)
        return False

    def _look(
        self, work: Work, picture: Picture, seconds: float, index: int, patience: float | None = None
    ) -> bool:
        sent = self.channel.put((Look(work, seconds, index), picture_of(work, picture.pixels)), patience)
        if sent and work.thumbnails is not None:
            work.thumbnails.add(picture.pixels, seconds)
        return sent

    # Feeds

    def _send_feed(self, feed: Feed[Picture], decoder: Decoder, patience: float) -> None:
        work = Work("", "feed")
        sent = 0
        try:
            for event in feed.events():
                if isinstance(event, Opened):
                    work, sent = Work(event.key, "feed"), 0
                    self._tally.add("found")
                    if self._thumbnails is not None:
                        work.thumbnails = self._thumbnails()
                elif isinstance(event, Seen):
                    self._tally.decoded(event.picture.decode_seconds)
                    if self._look(work, event.picture, event.seconds, sent, patience):
                        sent += 1
                    else:
                        work.dropped += 1
                        self._tally.add("dropped")
                elif isinstance(event, Closed) and not self.channel.put(
                    (End(work, event.error, event.end), None)
                ):
                    return
        finally:
            decoder.close()
