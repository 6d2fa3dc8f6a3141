"""A piece on its way from its source to its outcome, and the steps that it takes there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from vsa_rt.pipeline.ingest.decoders import Pictures
from vsa_rt.pipeline.ingest.records import Kind, Moment
from vsa_rt.pipeline.ingest.summary import Track
from vsa_rt.pipeline.ingest.thumbnails import Thumbnails


def _nothing() -> None:
    pass


@dataclass(eq=False)
class Work:
    """A piece on its way. Each field is written by one thread, before the step that tells the next one of it.

    Attributes:
        key: The piece's.
        kind: The piece's.
        source: What it is decoded from: a path, an address or encoded bytes; ``None`` once a decoder has it.
        content: SHA-256 of its bytes; empty where they cannot be had.
        tensors: Ready tensors that belong to it.
        error: Why it cannot be looked at; empty if it can.
        reused: Key of the earlier piece that is the same; empty if there is none.
        original: That piece, if it is of this run.
        distance: In how many bits their perceptual hashes differ.
        perceptual: Its own perceptual hash, where one was taken.
        pictures: What its decoder gives.
        holding: Called when the bytes that it is decoded from are not held any more.
        dropped: Of a feed: frames for which there was no time.
        track: What its frames said, of a video or a feed.
        moments: What its latest frames said, which are not put aside yet.
        thumbnails: Small pictures of it, where they are wanted.
        ended: Whether it came to its end.
    """

    key: str
    kind: Kind
    source: Any = None
    content: str = ""
    tensors: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    error: str = ""
    reused: str = ""
    original: Work | None = None
    distance: int = 0
    perceptual: str = ""
    pictures: Pictures | None = None
    holding: Callable[[], None] = _nothing
    dropped: int = 0
    track: Track | None = None
    moments: list[Moment] = field(default_factory=list)
    thumbnails: Thumbnails | None = None
    ended: bool = False

    def leave(self) -> None:
        """It came to its end: reposts may still ask for it, but what it held is not needed any more."""
        self.ended = True
        self.tensors, self.moments, self.track, self.thumbnails, self.original = {}, [], None, None, None


@dataclass(frozen=True, eq=False)
class Look:
    """One picture of a work is looked at: the engine's answer belongs here.

    Attributes:
        work: Whose.
        seconds: Presentation time; of an image 0.
        index: Its number in the work.
    """

    work: Work
    seconds: float = 0.0
    index: int = 0


@dataclass(frozen=True, eq=False)
class End:
    """A work has no more pictures.

    Attributes:
        work: Whose.
        error: Why it broke off; empty if it did not.
        seconds: Where it ended, if that is known; else 0.
    """

    work: Work
    error: str = ""
    seconds: float = 0.0
