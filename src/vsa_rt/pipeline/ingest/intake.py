"""Pieces to works whose pictures are being decoded: opened and hashed ahead, in order, reposts told apart.

Three things go on at once: sources give pieces, threads open and hash them, decoders work on those that are new. Which
are new is decided in the order of the sources, so that of two pieces that are the same always the first is computed.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from vsa_rt.contracts import Item
from vsa_rt.doctor import usable_cores
from vsa_rt.errors import ItemError
from vsa_rt.pipeline.ingest.budget import Held
from vsa_rt.pipeline.ingest.channel import Channel
from vsa_rt.pipeline.ingest.decoders import Decoders, ImageJob, VideoJob
from vsa_rt.pipeline.ingest.duplicates import content_hash
from vsa_rt.pipeline.ingest.ledger import Ledger
from vsa_rt.pipeline.ingest.members import open_regular, why
from vsa_rt.pipeline.ingest.opening import Openers, Opening
from vsa_rt.pipeline.ingest.records import Kind, Piece, frames_lack
from vsa_rt.pipeline.ingest.tally import Tally
from vsa_rt.pipeline.ingest.work import Work
from vsa_rt.runtime.companions import tensors_of
from vsa_rt.runtime.preprocess import Preprocessor
from vsa_rt.runtime.sampling import Sample

#: Files of pictures up to this size are read once, so that what is hashed is what is decoded; larger ones are read
#: twice rather than held.
_HELD = 2**26
#: Bytes of opened pieces that may wait for a decoder, beyond which no other is opened.
_ALL_HELD = 2**28


@dataclass(frozen=True)
class Looking:
    """How pieces are looked at.

    Attributes:
        sample: Which frames of videos.
        longest: Seconds; a video that goes on for longer fails.
        at_least: ``(height, width)`` that a picture keeps when it is decoded at a fraction; ``None``: whole.
        perceptual: Whether perceptual hashes are taken of images.
        tensors: Name to shape of ready tensors that belong to each image.
    """

    sample: Sample
    longest: float
    at_least: tuple[int, int] | None
    perceptual: bool
    tensors: Mapping[str, tuple[int, ...]]

    def job(self, work: Work, under_way: int) -> ImageJob | VideoJob:
        """What a decoder is to do.

        Args:
            work: Of which work.
            under_way: Jobs that the decoders have already. FFmpeg's threads wait for each other, which costs about a
                tenth of the work: they are worth it only where there are cores without a job.
        """
        if work.kind == "image":
            return ImageJob(work.source, self.at_least, self.perceptual)
        # Whoever reads the pictures ends a video that goes on for longer; where none come, this does.
        threads = max(1, usable_cores() // (under_way + 1))
        return VideoJob(work.source, self.sample, end=2 * self.longest, threads=threads)


def looking(sample: Sample, longest: float, perceptual: bool, preprocessor: Preprocessor) -> Looking:
    """How pieces are looked at for a graph's inputs."""
    return Looking(sample, longest, preprocessor.at_least, perceptual, preprocessor.rows)


class Intake:
    """Turns pieces into works, in threads of its own.

    Args:
        ledger: Knows what was computed before.
        decoders: Decode what was not.
        how: How pieces are looked at.
        tally: Counts.
        on_feed: Takes feeds, which are cut into pieces elsewhere.
        limit: Seconds without progress after which a piece that is being read is given up.
    """

    def __init__(
        self,
        ledger: Ledger,
        decoders: Decoders,
        how: Looking,
        tally: Tally,
        on_feed: Callable[[Work], None],
        limit: float,
    ) -> None:
        self._ledger, self._decoders, self._how, self._tally = ledger, decoders, how, tally
        self._on_feed, self._limit = on_feed, limit
        cores = usable_cores()
        self._same: dict[tuple[Kind, str], Work] = {}
        self._openers = Openers(cores, self._open, 2 * cores)
        self._held = Held(_ALL_HELD)
        #: Works in the order of the sources; a picture may wait in each.
        self.works: Channel[Work] = Channel(cores + 1)
        tally.opening = self._openers.opened.__len__

    def start(self, pieces: Iterable[Piece]) -> None:
        """Start the threads. They are daemons: a source may stay silent for ever."""
        threading.Thread(target=self._read, args=(pieces,), name="vsa-ingest-source", daemon=True).start()
        threading.Thread(target=self._judge, name="vsa-ingest-judge", daemon=True).start()

    def close(self) -> None:
        """Take nothing more, and put away what waits."""
        self._openers.close()
        self._held.close()
        for work in self.works.close():
            if work.pictures is not None:
                work.pictures.close()

    def entered(self, kind: Kind, content: str) -> None:
        """The ledger knows these bytes by now; they need not be remembered here as well."""
        self._same.pop((kind, content), None)

    def _read(self, pieces: Iterable[Piece]) -> None:
        try:
            for piece in pieces:
                self._tally.current = piece.key
                if piece.kind == "feed" and not (feed := _source_of(piece)).error:
                    self._on_feed(feed)  # its windows are counted
                    continue
                self._tally.add("found")
                if not (self._held.wait() and self._openers.submit(piece)):
                    return
            self._openers.opened.finish()
        except BaseException as error:  # noqa: BLE001 - handed on, in its place
            self._openers.opened.finish(error)

    def _open(self, opening: Opening) -> Work:
        """Open a piece and hash it."""
        piece = opening.piece
        work = _source_of(piece)
        try:
            if work.kind != "image" and self._how.tensors:
                work.error = frames_lack(self._how.tensors)
            if not work.error:
                self._hash(work, opening.moved)
        except ItemError as error:
            work.error = error.reason
        except Exception as error:  # noqa: BLE001 - of whatever kind: it is this piece's alone
            work.error = f"internal error: {error!r}"
        held = len(work.source) if isinstance(work.source, bytes) else 0
        self._tally.add("bytes", piece.nbytes or held)
        if not work.error:
            work.holding = self._held.take(held)
        return work

    def _hash(self, work: Work, wanted: Callable[[], bool]) -> None:
        if work.kind == "image" and isinstance(work.source, str):
            if self._how.tensors:
                work.tensors = tensors_of(work.source, self._how.tensors, work.key)
            work.source = _read_whole(work.source, work.key)
        work.content = _with_tensors(content_hash(work.source, work.key, wanted), work.tensors)

    def _judge(self) -> None:
        try:
            for opening in self._openers.opened:
                work = opening.result(self._limit)
                if work is None:
                    self._openers.replace()
                    piece = opening.piece
                    work = Work(
                        piece.key, piece.kind, error=f"nothing could be read of it for {self._limit:g} s"
                    )
                if not work.error:
                    self._find(work)
                if not (work.error or work.reused):
                    work.pictures = self._decoders.submit(self._how.job(work, self._decoders.depth), work.key)
                else:
                    work.holding()
                work.source = None
                if not self.works.put(work):
                    if work.pictures is not None:
                        work.pictures.close()
                    return
            self.works.finish()
        except BaseException as error:  # noqa: BLE001 - handed on, in its place
            self.works.finish(error)

    def _find(self, work: Work) -> None:
        """Look for an earlier piece with the same bytes."""
        if not work.content:
            return
        # First what came in this run: it is forgotten only once the ledger has it.
        found = self._same.get((work.kind, work.content))
        if found is not None:
            work.reused, work.original = found.key, found
        elif (entry := self._ledger.by_content(work.content, work.kind)) is not None:
            work.reused = entry.key
        else:
            self._same[work.kind, work.content] = work


def _source_of(piece: Piece) -> Work:
    work = Work(piece.key, piece.kind)
    try:
        work.source = piece.open()
    except ItemError as error:
        work.error = error.reason
    except Exception as error:  # noqa: BLE001 - of whatever kind: it is this piece's alone
        work.error = f"internal error: {error!r}"
    return work


def _read_whole(path: str, item: str) -> str | bytes:
    """A file's bytes, or of a large one the path again."""
    try:
        with open_regular(path) as stream:
            if os.fstat(stream.fileno()).st_size > _HELD:
                return path
            return stream.read(_HELD + 1)
    except (OSError, ValueError) as error:
        raise ItemError(item, f"the file cannot be read: {why(error)}") from None


def _with_tensors(content: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    """The hash of a picture with its ready tensors: another detection beside the same picture is another piece."""
    if not tensors or not content:
        return content
    digest = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        rows = tensors[name]
        digest.update(f"\0{name}\0{rows.dtype.str}\0{rows.shape}\0".encode())
        digest.update(rows.tobytes())
    return digest.hexdigest()


def picture_of(work: Work, pixels: NDArray[Any]) -> Any:
    """What the runtime takes: pixels, with the ready tensors that belong to them."""
    return Item(pixels, work.tensors) if work.tensors else pixels
