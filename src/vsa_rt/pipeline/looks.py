"""What `vsa-rt run` looks at: images, and the frames of videos and feeds, one after another through one engine.

Neither frames nor answers are kept: of a video only the numbers that its summary is made of are, eight bytes each.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vsa_rt.contracts import Sentiment
from vsa_rt.errors import EnvironmentUnusable, ItemError
from vsa_rt.pipeline.ingest.kinds import IMAGE_SUFFIXES, is_camera, suffix
from vsa_rt.pipeline.ingest.records import Kind, Moment, frames_lack
from vsa_rt.pipeline.ingest.summary import Rule, Track
from vsa_rt.runtime.sampling import Sample
from vsa_rt.runtime.video import video
from vsa_rt.runtime.video_kind import FEEDS, address, is_video

if TYPE_CHECKING:
    from vsa_rt.runtime.fused import Runtime

#: Milliseconds that a frame of a feed may wait for others to share its engine call.
_LATENCY_MS = 50.0
_PICTURE_AT_ADDRESS = (
    "a picture at an address: only videos and feeds are read from there; fetch it and name the file"
)
_STOPPED = "stopped before its end"


@dataclass(frozen=True)
class Subject:
    """One thing to look at.

    Attributes:
        source: The path or address.
        name: What it is called in the output: the path, or the address without user name and password.
        kind: An image; a video, which has an end; a feed, which may have none.
        endless: Whether it surely has none: a camera, or an address of a live protocol.
        error: Why it cannot be looked at; empty if nothing speaks against it.
    """

    source: str
    name: str
    kind: Kind
    endless: bool = False
    error: str = ""


def subject_of(path: str) -> Subject:
    """What a path or an address stands for; of a file its first 512 bytes are read.

    Content decides before the name, as for `vsa_rt.runtime.video_kind.is_video`.
    """
    found = address(path)
    if found is None:
        # Cameras have lasting names, too: links in /dev/v4l.
        if path.startswith("/dev/") and is_camera(os.path.realpath(path)):
            return Subject(path, path, "feed", endless=True)
        return Subject(path, path, "video" if is_video(path) else "image")
    scheme, name = found
    if scheme not in ("http", "https"):
        return Subject(path, name, "feed", endless=scheme in FEEDS)
    if suffix(re.split(r"[?#]", name, maxsplit=1)[0]) in IMAGE_SUFFIXES:
        return Subject(path, name, "image", error=_PICTURE_AT_ADDRESS)
    return Subject(path, name, "video" if is_video(path) else "feed")


def has_videos(subjects: Iterable[Subject]) -> bool:
    """Whether there are videos or feeds among subjects."""
    return any(subject.kind != "image" for subject in subjects)


@dataclass(frozen=True)
class Look:
    """What one image or one frame says.

    Attributes:
        name: The subject's.
        result: What it says.
        seconds: Of a frame: its presentation time; ``None`` of an image.
        index: Of a frame: its number among those that were looked at; ``None`` of an image.
    """

    name: str
    result: Sentiment | ItemError
    seconds: float | None = None
    index: int | None = None


@dataclass(frozen=True)
class Whole:
    """What a video or a feed says as a whole, after its frames.

    Attributes:
        name: The subject's.
        frames: How many were looked at.
        summary: See `vsa_rt.pipeline.ingest.summary.summarise`; empty where no frame has a result.
        error: What is missing; empty if nothing.
    """

    name: str
    frames: int
    summary: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class _Frame:
    """A frame was put into the stream."""

    subject: Subject
    seconds: float
    index: int


@dataclass(frozen=True)
class _End:
    """A subject has nothing more, and takes one place in the stream that says so.

    It is not an image, so that its answer is an error that costs no engine call, and is dropped. This way it comes in
    its place without anybody counting.
    """

    subject: Subject
    error: str


class Looks:
    """Looks at subjects, in order, while it is iterated; once.

    Videos are decoded in a thread of the stream, a bounded number of frames ahead of the engine. With feeds among the
    subjects, answers come as soon as they are there. Without, engine calls are full, and all of one size, so that no
    answer depends on how soon its frame was decoded.

    Args:
        runtime: The opened bundle.
        subjects: What to look at.
        sample: Which frames of videos and feeds.
    """

    def __init__(self, runtime: Runtime, subjects: Sequence[Subject], sample: Sample) -> None:
        self._runtime, self._subjects, self._sample = runtime, subjects, sample
        self._rule = Rule(runtime.labels, runtime.manifest.task, runtime.manifest.threshold)
        #: What is in the stream, in order: put in by its thread, taken out with the answers.
        self._steps: deque[Subject | _Frame | _End] = deque()
        #: The video whose frames are coming.
        self._current: Subject | None = None
        self._track = Track(runtime.labels)

    def __iter__(self) -> Generator[Look | Whole, None, None]:
        """What each image says; of videos and feeds what each frame says, and then the whole.

        Raises:
            UsageError: The bundle has features only.
        """
        if all(subject.kind == "image" and not subject.error for subject in self._subjects):
            paths = [subject.source for subject in self._subjects]
            for subject, result in zip(self._subjects, self._runtime.map(paths), strict=True):
                yield Look(subject.name, result)
            return
        live = any(subject.kind == "feed" for subject in self._subjects)
        items = self._items()
        answers = self._runtime.stream(items, max_latency_ms=_LATENCY_MS if live else math.inf, pad=not live)
        try:
            for answer in answers:
                yield self._answered(self._steps.popleft(), answer)
        finally:
            answers.close()
            # A feed that is silent is still being waited for, in the stream's thread, and cannot be closed from here.
            with contextlib.suppress(ValueError):
                items.close()

    def rest(self) -> Whole | None:
        """The video or feed under way as a whole, for those who stop here; ``None`` between subjects."""
        if self._current is None:
            return None
        return self._whole(self._current, "" if self._current.kind == "feed" else _STOPPED)

    # In the stream's thread

    def _items(self) -> Generator[Any, None, None]:
        for subject in self._subjects:
            if subject.kind == "image" and not subject.error:
                self._steps.append(subject)
                yield subject.source
                continue
            preprocessor = self._runtime.preprocessor
            error = subject.error or frames_lack(() if preprocessor is None else preprocessor.rows)
            if not error:
                error = yield from self._frames(subject)
            end = _End(subject, error)
            self._steps.append(end)
            yield end

    def _frames(self, subject: Subject) -> Generator[Any, None, str]:
        """Put the frames of a video into the stream.

        Returns:
            Why there are not all of them; empty if there are.
        """
        try:
            for frame in video(subject.source, self._sample):
                self._steps.append(_Frame(subject, frame.seconds, frame.index))
                yield frame
                del frame  # not to be kept while the next one is waited for
        except ItemError as error:
            return error.reason
        except EnvironmentUnusable as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - a fault of ours: the others still get their answers
            return f"internal error: {error!r}"
        return ""

    # With the answers

    def _answered(self, step: Subject | _Frame | _End, answer: Sentiment | ItemError) -> Look | Whole:
        if isinstance(step, Subject):
            return Look(step.name, answer)
        if isinstance(step, _Frame):
            self._current = step.subject
            self._track.add(Moment.of(step.seconds, step.index, answer))
            return Look(step.subject.name, answer, step.seconds, step.index)
        if step.subject.kind == "image":
            return Look(step.subject.name, ItemError(step.subject.name, step.error))
        return self._whole(step.subject, step.error)

    def _whole(self, subject: Subject, error: str) -> Whole:
        track, self._track, self._current = self._track, Track(self._runtime.labels), None
        frames = len(track) + track.failed
        reasons = [error] if error else []
        if track.failed:
            reasons.append(f"{track.failed:,} of {frames:,} frames have no result: {track.error}")
        return Whole(subject.name, frames, track.summary(self._rule), "; ".join(reasons))
