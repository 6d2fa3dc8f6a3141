"""Steps with their answers to outcomes, and these into the output's parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vsa_rt.pipeline.ingest.parts import Parts
from vsa_rt.pipeline.ingest.records import Kind, Moment, Outcome
from vsa_rt.pipeline.ingest.scoring import Answer
from vsa_rt.pipeline.ingest.summary import Rule, Track
from vsa_rt.pipeline.ingest.tally import Event, Tally
from vsa_rt.pipeline.ingest.thumbnails import Thumbnail
from vsa_rt.pipeline.ingest.work import End, Look, Work

#: Frames of a video after which their rows are put aside on the disk.
_ASIDE = 256
_COUNTED: dict[Kind, Event] = {"image": "images", "video": "videos", "feed": "feeds"}


@dataclass(frozen=True, eq=False)
class Finished:
    """A video or a window of a feed that came to its end, for whoever draws it.

    Attributes:
        key: The piece's.
        kind: The piece's.
        track: What its frames said.
        summary: What it said as a whole.
        thumbnails: Small pictures of it.
    """

    key: str
    kind: Kind
    track: Track
    summary: dict[str, Any]
    thumbnails: list[Thumbnail]


class Assembly:
    """Puts the answers of each work together. For one thread.

    Args:
        parts: Where outcomes go.
        rule: How frames become a summary.
        tally: Counts.
        keep_damaged: Whether what could be read of a damaged video counts as its result.
        entered: Told of the bytes that the ledger knows by now.
        on_video: Takes videos that came to their end.
    """

    def __init__(
        self,
        parts: Parts,
        rule: Rule,
        tally: Tally,
        *,
        keep_damaged: bool,
        entered: Callable[[Kind, str], None],
        on_video: Callable[[Finished], None] | None,
    ) -> None:
        self._parts, self._rule, self._tally = parts, rule, tally
        self._keep_damaged, self._entered, self._on_video = keep_damaged, entered, on_video
        self._waiting: list[tuple[Kind, str]] = []
        self._held: dict[Work, list[End]] = {}

    def look(self, look: Look, answer: Answer) -> None:
        """The engine answered for a picture."""
        work = look.work
        moment = Moment.of(look.seconds, look.index, answer)
        self._tally.add("frames")
        work.moments.append(moment)
        if work.kind == "image":
            return
        if work.track is None:
            work.track = Track(self._rule.labels)
        work.track.add(moment)
        if len(work.moments) >= _ASIDE:
            self._parts.frames(work.key, work.kind, work.moments)
            work.moments = []

    def end(self, end: End) -> None:
        """A work has no more pictures: its outcome goes into the parts."""
        work = end.work
        if (
            work.original is not None and not work.original.ended
        ):  # a repost, read faster than what it repeats
            self._held.setdefault(work.original, []).append(end)
            return
        outcome = self._outcome(end)
        if self._parts.add(outcome, work.perceptual):
            self._count(outcome)
            if work.content:
                self._waiting.append((work.kind, work.content))
        self._written()
        work.leave()
        for held in self._held.pop(work, []):
            self.end(held)

    def idle(self) -> None:
        """Nothing came for a while: a part may be due all the same."""
        self._parts.tick()
        self._written()

    def _written(self) -> None:
        if self._waiting and not self._parts.pending:
            for kind, content in self._waiting:
                self._entered(kind, content)
            self._waiting.clear()

    def _count(self, outcome: Outcome) -> None:
        entry = self._parts.entry(outcome.key)
        if entry is not None and entry.state == "failed":
            self._tally.add("failed")
            return
        self._tally.add(_COUNTED[outcome.kind])
        if outcome.reused:
            self._tally.add("reused")

    def _outcome(self, end: End) -> Outcome:
        work = end.work
        if work.error:
            return Outcome(work.key, work.kind, content=work.content, error=work.error)
        if work.reused:
            return self._repeated(work)
        if work.kind == "image":
            return Outcome(work.key, work.kind, tuple(work.moments), work.content, error=end.error)
        return self._whole(end, Track(self._rule.labels) if work.track is None else work.track)

    def _repeated(self, work: Work) -> Outcome:
        """What the earlier piece said, which has come to its end by now."""
        entry = self._parts.entry(work.reused)
        if entry is not None and entry.state == "failed":
            return Outcome(work.key, work.kind, content=work.content, error=entry.reason)
        if entry is not None and entry.state == "reused":  # it turned out to look like one before it
            return Outcome(
                work.key, work.kind, content=work.content, reused=entry.reused, distance=entry.distance
            )
        return Outcome(work.key, work.kind, content=work.content, reused=work.reused, distance=work.distance)

    def _whole(self, end: End, track: Track) -> Outcome:
        """A video, or a window of a feed."""
        work = end.work
        # What a feed showed before it broke off is not to be had again.
        kept = not end.error or self._keep_damaged or work.kind == "feed"
        if not (kept and len(track)):
            none = "no frame was looked at"
            none += f"; {work.dropped} came while there was no time for them" if work.dropped else ""
            error = end.error or track.error or none
            return Outcome(work.key, work.kind, content=work.content, error=error)
        summary = track.summary(self._rule, end.seconds)
        if end.error:
            summary["damage"] = end.error
        if work.kind == "feed":
            summary["dropped"] = work.dropped
        if self._on_video is not None:
            kept_thumbnails = work.thumbnails.kept if work.thumbnails is not None else []
            self._on_video(Finished(work.key, work.kind, track, summary, kept_thumbnails))
        return Outcome(work.key, work.kind, tuple(work.moments), work.content, summary=summary)
