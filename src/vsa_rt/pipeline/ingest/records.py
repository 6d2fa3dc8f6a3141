"""What travels through ingestion: pieces to look at, and what each of them said.

Words of this folder, in the order of the way:

- source: a word of the command line, or a line of a list;
- piece: one thing to look at, which users call an item: an image, a video, a window of a feed;
- work: a piece that is under way (`work`); job: what a decoder does for it (`pictures`); picture: what it gives;
- look: a picture that is sent to the engine, and end: no more of them follow (`work`);
- moment: what one picture said; outcome: what a piece said, or why it says nothing;
- row: how that is written (`layout`); entry: what the ledger keeps of it (`ledger_rows`); part: files of rows that appear
  together;
- identity: what the results of a folder depend on, so that others do not mix with them; of a file, what it is however it is
  named (`folders`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from vsa_rt.contracts import Sentiment
from vsa_rt.errors import ItemError

#: What a piece is: one picture; a file of frames with an end; a feed without one, cut into windows of time.
Kind = Literal["image", "video", "feed"]


@dataclass(frozen=True)
class Piece:
    """One thing to look at, which is done or not done as a whole.

    Attributes:
        key: Its name in the ledger and in the output, unique in a run and the same in the next one: the path as it was
            given or found, ``shard.tar!name.jpg`` inside an archive, ``rtsp://…@2026-11-22T17:00:00Z`` for a window.
        kind: What it is.
        open: Opens it: a path, encoded bytes, or for a feed whatever the video reader takes. Called once, late; what it
            raises becomes the piece's error.
        nbytes: Its size where that is known without opening it; 0 where not.
    """

    key: str
    kind: Kind
    open: Callable[[], Any]
    nbytes: int = 0


@dataclass(frozen=True)
class Moment:
    """What one frame said.

    Attributes:
        seconds: Its presentation time from the video's beginning; 0 for an image.
        index: Its number among the frames that were looked at.
        label: The winning label; ``None`` for multi-label tasks and on an error.
        labels: Multi-label: those over the threshold.
        scores: Label to score, all of them; empty on an error.
        error: One sentence, or empty.
    """

    seconds: float
    index: int
    label: str | None
    labels: tuple[str, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    error: str = ""

    @classmethod
    def of(cls, seconds: float, index: int, answer: Sentiment | ItemError) -> Moment:
        """What the engine answered for a frame."""
        if isinstance(answer, ItemError):
            return cls(seconds, index, None, error=answer.reason)
        return cls(seconds, index, answer.label, answer.labels, answer.scores)


@dataclass(frozen=True)
class Outcome:
    """What a piece said, frame by frame and as a whole; one piece has one outcome.

    Attributes:
        key: The piece's.
        kind: The piece's.
        moments: One for an image; of a video every frame that was looked at, in order of time.
        content: SHA-256 of the bytes, hexadecimal; empty where they cannot be had (a feed).
        reused: Key of the earlier piece whose result this is, because it is the same; empty where it was computed.
        distance: Of a near duplicate: in how many bits its perceptual hash differs from that piece's; 0 for an exact one.
        error: Why there is no result: one sentence; empty if there is one.
        summary: Of a video: what ``vsa_rt.pipeline.ingest.summary`` makes of the moments; empty for an image.
    """

    key: str
    kind: Kind
    moments: tuple[Moment, ...] = ()
    content: str = ""
    reused: str = ""
    distance: int = 0
    error: str = ""
    summary: dict[str, Any] = field(default_factory=dict)


def frames_lack(tensors: Iterable[str]) -> str:
    """Why a bundle that reads ready tensors beside each image cannot look at videos; empty where it reads none."""
    names = ", ".join(tensors)
    return (
        f"a video, and this bundle reads {names} beside each image, which frames do not have" if names else ""
    )
