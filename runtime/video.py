"""Frames of a video, with their times: of files that FFmpeg reads, of addresses, and of cameras, through PyAV.

Frames come as one expects of photographs: upright (display matrices are applied, to the nearest right angle, mirrored
ones, too), of square pixels, deinterlaced, 8-bit RGB of BT.709's colours (`vsa_rt.runtime.video_colour` has HDR). Matrix
and range are those that the video states; where it states no matrix: BT.709 from 1280 columns or 577 rows on, BT.601
below. Frames may change their size in mid-stream.

Times count from the first frame, by presentation time stamps, so that frame rates may vary. Where stamps are missing,
the frame rate places the frames; where they go backwards, the axis does not (`vsa_rt.runtime.video_times`).

What a container breaks off, or a decoder refuses, is said after the frames that could be read. Damage that a decoder
conceals without saying so, and the missing end of formats that do not say how long they are (MPEG transport streams, GIF,
raw streams), cannot be told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vsa_rt.errors import ItemError, UsageError, needs
from vsa_rt.runtime.pixels import Refused
from vsa_rt.runtime.sampling import Sample, middles
from vsa_rt.runtime.video_frames import Decoded, Heard, Reader
from vsa_rt.runtime.video_kind import is_video
from vsa_rt.runtime.video_pixels import Converter
from vsa_rt.runtime.video_plan import SEEK_FROM, length_of, opened_at
from vsa_rt.runtime.video_scenes import Scenes
from vsa_rt.runtime.video_source import Source, reasons

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from vsa_rt.runtime.video_source import VideoSource

__all__ = ["Frame", "is_video", "video"]


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame that was looked at.

    Attributes:
        pixels: Upright RGB, ``(H, W, 3)``.
        seconds: Presentation time after the video's first frame.
        index: Its number among the frames that were looked at, from 0.
    """

    pixels: NDArray[np.uint8]
    seconds: float
    index: int


def video(
    source: VideoSource,
    sample: str | Sample = "fps=1",
    *,
    start: float = 0.0,
    end: float | None = None,
    timeout: float = 30.0,
    format: str | None = None,
    threads: int = 0,
    alive: Callable[[], object] | None = None,
) -> Iterator[Frame]:
    """Look at frames of a video. They are decoded while they are taken; the video is closed with the iterator.

    Args:
        source: A path; an encoded video; an opened binary file, which is read from where it stands and left open; an
            address (``http``, ``https``, ``rtsp``, ``rtmp``, ``srt``, ``udp``, …); or a camera (``/dev/video0``).
        sample: Which frames: ``fps=1`` (the rate of YouTube-8M), ``every=30``, ``keyframes``, ``uniform=9``,
            ``scenes``, ``all``; `vsa_rt.runtime.sampling` has what each means.
        start: Seconds after the first frame; earlier frames are not looked at.
        end: Seconds after the first frame; frames from there on are not looked at. ``None`` goes to the end.
        timeout: Seconds that opening may take, and each read after it. It ends waiting for servers and cameras; a
            decoder that hangs it cannot end.
        format: The FFmpeg input format, where the content does not tell: ``v4l2`` for cameras, or a raw format.
        threads: Of the decoder; 0 is one for each core.
        alive: Called for every packet that was read, of whatever stream, before it is decoded: also while no frame is
            chosen, and while ``uniform`` looks for the end. Whoever watches over a decoder hears that it goes on. It
            must not raise.

    Returns:
        The frames, in order of time.

    Raises:
        UsageError: The sample, the stretch or the time limit is none.
        EnvironmentUnusable: PyAV is not installed.
        ItemError: While iterating: there is no video, or it is damaged; frames before the damage came before.
    """
    rule = sample if isinstance(sample, Sample) else Sample.parse(sample)
    if not (math.isfinite(start) and start >= 0):
        raise UsageError(f"start is {start}, expected seconds from 0 on")
    if end is not None and not (math.isfinite(end) and end > start):
        raise UsageError(f"end is {end}, expected seconds after start ({start:g}), or none")
    if not (math.isfinite(timeout) and timeout > 0):
        raise UsageError(f"timeout is {timeout}, expected seconds over 0")
    if threads < 0:
        raise UsageError(f"threads is {threads}, expected a number from 0 on")
    with needs("video"):
        import av  # noqa: F401 - a missing library is said now, not with the first frame
    opener = Source(source, timeout=timeout, format=format, threads=threads)
    if alive is not None:
        opener = Heard(source, alive, timeout=timeout, format=format, threads=threads)
    return _frames(opener, rule, Fraction(start), None if end is None else Fraction(end), timeout)


def _frames(
    source: Source, rule: Sample, start: Fraction, end: Fraction | None, timeout: float
) -> Iterator[Frame]:
    damage: list[Refused] = []
    try:
        with reasons(timeout):
            length, needed = _stretch(source, rule, start, end, damage)
            with opened_at(source, start) as (opened, origin):
                reader = Reader(opened, keys=rule.kind == "keyframes", needed=needed, origin=origin)
                frames = _looked_at(_until(reader.frames(), damage), rule, start, end)
                converter = Converter(opened.stream)
                for number, chosen in enumerate(rule.choose(frames, start=start, length=length)):
                    pixels = converter.pixels(chosen.frame, chosen.before, chosen.after)
                    yield Frame(pixels, float(chosen.seconds), number)
            broken = reader.health.broken()
            if broken and not damage:  # whoever stops early does not reach the reader's own word
                raise Refused(broken)
            if damage:
                raise damage[0]
    except Refused as refused:
        raise ItemError(source.item, str(refused)) from None


def _stretch(
    source: Source, rule: Sample, start: Fraction, end: Fraction | None, damage: list[Refused]
) -> tuple[Fraction | None, list[bool] | None]:
    """How long the stretch is and which packets hold its frames, where that has to be known beforehand."""
    if rule.kind != "uniform":
        return None, None
    length, index, missing = length_of(source)
    if missing:
        damage.append(Refused(f"{missing}; {rule} was taken of what is there"))
    length = (length if end is None else min(length, end)) - start
    if length <= 0:
        raise Refused(f"no frame from {float(start):g} s on: it ends after {float(length + start):g} s")
    # Seeking skips packets, too, and then their numbers are not the index's.
    needed = index.needed(middles(rule.count, start, length)) if index and start < SEEK_FROM else None
    return length, needed


def _until(
    frames: Iterator[tuple[VideoFrame, Fraction]], damage: list[Refused]
) -> Iterator[tuple[VideoFrame, Fraction]]:
    """Frames up to the damage, which is kept for later: frames that others hold back come first."""
    try:
        yield from frames
    except Refused as refused:
        damage.append(refused)


def _looked_at(
    frames: Iterator[tuple[VideoFrame, Fraction]], rule: Sample, start: Fraction, end: Fraction | None
) -> Iterator[Decoded]:
    """The stretch's frames. One that is interlaced waits for its neighbour; the others pass at once.

    Raises:
        Refused: There is none.
    """
    scenes = Scenes() if rule.kind == "scenes" else None
    neighbours = rule.kind != "keyframes"  # key frames are far from each other
    waiting: Decoded | None = None
    before: VideoFrame | None = None
    seconds, some = Fraction(0), False
    for frame, seconds in frames:
        if waiting is not None:
            yield replace(waiting, after=frame)
            waiting = None
        if end is not None and seconds >= end:
            break
        if seconds >= start:
            some = True
            cut = scenes is not None and scenes.begins(frame)
            found = Decoded(frame, seconds, frame.key_frame, cut)
            if frame.interlaced_frame and neighbours:
                waiting = replace(found, before=before)
            else:
                yield found
        before = frame
    if waiting is not None:
        yield waiting
    if before is not None and not some:
        until = "on" if end is None else f"to {float(end):g} s"
        reason = f"no frame from {float(start):g} s {until}; the last before is at {float(seconds):g} s"
        raise Refused(reason)
