"""Finds out before decoding how long a video is, and which of its packets matter."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

from vsa_rt.runtime.pixels import Refused
from vsa_rt.runtime.video_frames import Reader
from vsa_rt.runtime.video_health import Health
from vsa_rt.runtime.video_source import Opened, Source, next_packet, reasons
from vsa_rt.runtime.video_times import frame_step, time_base

#: Up to this many seconds are decoded and passed over rather than sought.
SEEK_FROM = Fraction(5)


@dataclass(frozen=True)
class Index:
    """The packets of a video, as its container has them, in the order of decoding.

    Attributes:
        stamps: Presentation times, in units of the stream's time base.
        keys: Whether decoding can begin with a packet.
        end: Where the last frame ends, in the same units.
        base: Seconds of a unit.
    """

    stamps: tuple[int, ...]
    keys: tuple[bool, ...]
    end: int
    base: Fraction

    @property
    def length(self) -> Fraction:
        """The video's duration in seconds, to the end of its last frame."""
        return (self.end - min(self.stamps)) * self.base

    def needed(self, times: Sequence[Fraction]) -> list[bool]:
        """Which packets to decode for the frames on the screen at some times, in seconds after the first frame.

        Of each such frame its group of pictures, which a key packet begins, and the group before: frames behind a key
        packet may be shown before it, and decoders that begin at a recovery point need some frames until they show any.
        The first group is always among them; it says when the video begins.
        """
        groups: list[int] = []
        for key in self.keys:
            groups.append((groups[-1] if groups else 0) + (key and bool(groups)))
        first = min(self.stamps)
        shown = sorted((stamp, group) for stamp, group in zip(self.stamps, groups, strict=True))
        wanted = {0}
        for time in times:
            place = bisect_right(shown, (first + time // self.base, groups[-1])) - 1
            group = shown[max(place, 0)][1]
            wanted |= {group - 1, group}
        return [group in wanted for group in groups]


def index_of(opened: Opened) -> tuple[Index | None, str]:
    """Read every packet's head, and decode none.

    Returns:
        The index; ``None`` if time stamps are missing or run backwards, so that only decoding tells. And what is
        missing of the container; empty if nothing.
    """
    stamps: list[int] = []
    keys: list[bool] = []
    end, decoded = 0, None
    base, step = time_base(opened.stream), frame_step(opened.stream)
    health = Health(opened, complete=True, decoded=False)
    packets = opened.container.demux(*(() if health.watches_all else (opened.stream,)))
    try:
        while (packet := next_packet(packets, opened.timeout)) is not None:
            health.reached(packet)
            if packet.stream_index != opened.stream.index:
                continue
            backwards = packet.dts is not None and decoded is not None and packet.dts < decoded
            if packet.pts is None or backwards:
                return None, ""
            decoded = packet.dts if packet.dts is not None else decoded
            until = packet.pts + (packet.duration or round(step / base))
            end = max(end, until) if stamps else until
            stamps.append(packet.pts)
            keys.append(packet.is_keyframe)
    except Refused as refused:
        damage = str(refused)
    else:
        missing = health.missing()
        damage = f"cut off: {missing}" if missing else ""
    return (Index(tuple(stamps), tuple(keys), end, base) if stamps else None), damage


def length_of(source: Source) -> tuple[Fraction, Index | None, str]:
    """A video's duration in seconds, its index where it has one, and what is missing of it.

    Of a source that can be opened only once the duration is what the container states.

    Raises:
        Refused: It has no end, or does not say.
    """
    with source.open() as opened:
        if not source.again:
            return _stated(opened), None, ""
        index, damage = index_of(opened)
        if index is not None and index.length > 0:
            return index.length, index, damage
    with source.open() as opened:
        end = Fraction(0)
        try:
            for _frame, seconds in Reader(opened).frames():
                end = seconds + frame_step(opened.stream)
        except Refused as refused:
            if not end:
                raise
            damage = str(refused)
        return end, None, damage


def _stated(opened: Opened) -> Fraction:
    stream = opened.stream
    if stream.duration:
        return stream.duration * time_base(stream)
    if opened.container.duration:
        return Fraction(opened.container.duration, 1_000_000)
    raise Refused("uniform=K needs a video with an end, and it states no duration; sample it by fps=1")


@contextmanager
def opened_at(source: Source, start: Fraction) -> Iterator[tuple[Opened, int | None]]:
    """Open a video for reading from a time on, for a ``with`` block: sought where that is known to work, else whole.

    Args:
        source: What to open.
        start: Seconds after the video's first frame.

    Returns:
        The container, and the time stamp of the video's first frame where reading will not begin with it.

    Raises:
        Refused: See `Source.open`.
    """
    if start >= SEEK_FROM and source.again:
        with source.open() as opened:
            origin = _seek(opened, start)
            if origin is not None:
                yield opened, origin
                return
    with source.open() as opened:
        yield opened, None


def _seek(opened: Opened, start: Fraction) -> int | None:
    """Go to a key frame at or before a time; the time stamp of the video's first frame, none if that did not work."""
    first = _first_stamp(opened)
    if first is None:
        return None
    target = first + int(start / time_base(opened.stream))
    if not _go(opened, target):
        return None
    there = _first_stamp(opened)
    # Looking took frames away: go there again.
    return first if there is not None and first <= there <= target and _go(opened, target) else None


def _go(opened: Opened, target: int) -> bool:
    try:
        with reasons(opened.timeout):
            opened.container.seek(target, stream=opened.stream)
    except Refused:
        return False
    return True


def _first_stamp(opened: Opened) -> int | None:
    try:
        for frame, _seconds in Reader(opened, origin=0).frames():
            return frame.pts
    except Refused:
        pass
    return None
