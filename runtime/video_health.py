"""Keeps count of what a video should have and has: packets, frames, time."""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from typing import TYPE_CHECKING

from vsa_rt.runtime.pixels import Refused
from vsa_rt.runtime.video_source import Opened

if TYPE_CHECKING:
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame

#: A container whose streams end this much before the duration that its header states is cut off.
_SHORTFALL = Fraction(1, 2)
#: Formats that state a duration in their header, and nowhere how many frames follow.
_STATES_DURATION = frozenset(("matroska", "webm", "flv"))
#: Packets that a decoder may hold: more than threads and reordering make it hold.
_LATE = 128


class Health:
    """What reading a container once has met.

    Args:
        opened: The container.
        complete: It is read from its first packet to its last, so that what is missing shows.
        decoded: All that is read is decoded, so that what a decoder keeps shows.

    Attributes:
        watches_all: Packets of all its streams are to be reported, not those of the video alone.
    """

    def __init__(self, opened: Opened, *, complete: bool, decoded: bool) -> None:
        self._opened = opened
        self._complete = complete
        self._decoded = complete and decoded
        self._packets = self._frames = self._broken = self._cut = 0
        self._late: deque[int] = deque(maxlen=_LATE)
        self._stamped = False
        self._reason = ""
        self._end = self._gap = Fraction(0)
        self.watches_all = complete and bool(opened.format & _STATES_DURATION)

    def reached(self, packet: Packet[Stream]) -> None:
        """A packet of any stream was read."""
        if packet.stream_index == self._opened.stream.index:
            self._packets += 1
            self._cut += self._is_cut(packet)
        if self.watches_all and packet.pts is not None:
            end = (packet.pts + (packet.duration or 0)) * Fraction(packet.time_base)
            if end > self._end:
                self._gap, self._end = max(self._gap, end - self._end), end

    def usable(self, packet: Packet[Stream]) -> bool:
        """Whether a packet can be decoded. One that is cut off would show as a frame that is half grey."""
        if self._is_cut(packet):
            return False
        if self._decoded and packet.pts is not None and not packet.is_discard:
            self._late.append(packet.pts)
        return True

    def _is_cut(self, packet: Packet[Stream]) -> bool:
        # Transport streams call whole packets corrupt where recordings were put behind each other.
        return packet.is_corrupt and "mpegts" not in self._opened.format

    def failed(self, reason: str) -> None:
        """A packet could not be decoded. Before the first frame that is no damage: a recording may begin anywhere."""
        self._broken += bool(self._frames)
        self._reason = reason

    def shown(self, frame: VideoFrame) -> bool:
        """Whether a decoded frame is sound."""
        if frame.is_corrupt:
            self.failed("damaged")
            return False
        self._frames += 1
        if frame.pts is not None and self._decoded:
            self._stamped = True
            self._late = deque((stamp for stamp in self._late if stamp > frame.pts), maxlen=_LATE)
        return True

    def check(self, failure: str) -> None:
        """At the end.

        Raises:
            Refused: There was no frame at all, or something is damaged or missing.
        """
        if not self._frames:
            if failure:
                raise Refused(failure)
            if self._packets:
                why = self._reason or "the decoder shows none"
                raise Refused(f"no frame of its {self._packets:,} packets of video can be decoded: {why}")
            raise Refused("no frames: its stream of video is empty")
        before = f"; the {self._frames:,} frames before were read"
        if failure:
            raise Refused(failure + before)
        missing = self.missing()
        if missing:
            raise Refused(f"cut off: {missing}{before}")
        if self.broken():
            raise Refused(self.broken())
        # One may be a place-holder, as AVI files have them; PyAV drops the frames behind an error that is met when
        # the decoder is emptied.
        if self._stamped and len(self._late) > 1:
            raise Refused(f"its last {len(self._late):,} frames cannot be decoded{before}")

    def broken(self) -> str:
        """What could not be decoded so far; empty if nothing."""
        if not self._broken:
            return ""
        return (
            f"{self._broken:,} of {self._packets:,} packets of video cannot be decoded ({self._reason});"
            f" {self._frames:,} frames were read"
        )

    def missing(self) -> str:
        """At the end: what was announced and did not come; empty if nothing is missing."""
        if self._cut:
            return f"{self._cut:,} of its {self._packets:,} packets of video are incomplete"
        if not self._complete:
            return ""
        opened, stream = self._opened, self._opened.stream
        expected = 0
        if "mov" in opened.format:
            expected = len(stream.index_entries)
        elif "avi" in opened.format:
            expected = stream.frames
        if self._packets < expected:
            return f"{self._packets:,} of its {expected:,} packets of video are there"
        duration = Fraction(opened.container.duration or 0, 1_000_000)
        if self.watches_all and duration - self._end > _SHORTFALL + self._gap:
            return f"it ends after {float(self._end):.1f} of {float(duration):.1f} s"
        return ""
