"""When the frames of a video are shown, in seconds after the first, whatever their time stamps are like."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.video.stream import VideoStream

#: Frames a second where nothing says: what FFmpeg takes for raw streams.
DEFAULT_RATE = Fraction(25)

#: A step back of up to this many seconds is jitter; a larger one is a clock that began anew.
JITTER = Fraction(1)


def rational(value: object) -> Fraction | None:
    """A rational of FFmpeg's; none where it is unset, which libraries say in several ways."""
    if not value:
        return None
    return Fraction(getattr(value, "numerator", 0), getattr(value, "denominator", 1)) or None


def time_base(stream: VideoStream) -> Fraction:
    """Seconds of one unit of the stream's time stamps."""
    return rational(stream.time_base) or Fraction(1, 90_000)


def frame_step(stream: VideoStream) -> Fraction:
    """Seconds from one frame to the next, as the stream's frame rate has it; 1/25 where it has none."""
    # Of raw streams the average is FFmpeg's default, and the guess what the coder wrote.
    rate = rational(stream.guessed_rate) or rational(stream.average_rate)
    return 1 / (rate if rate and rate > 0 else DEFAULT_RATE)


class Timeline:
    """Places frames on one axis that begins at 0 with the first frame and never runs backwards.

    A frame without a time stamp comes one frame's time after the one before it. Of a time stamp that goes back by up
    to `JITTER` seconds the frame before it stands in; one that goes back further is a clock that began anew (recordings
    put behind each other): its stretch continues one frame's time after the last frame.

    Args:
        base: Seconds of one unit of the time stamps.
        step: Seconds from one frame to the next, where time stamps are missing.
        origin: Time stamp of the video's first frame; ``None`` takes the first that comes.

    Attributes:
        step: As passed.
        last: Where the last frame was placed; ``None`` before the first.
    """

    def __init__(self, base: Fraction, step: Fraction, origin: int | None = None) -> None:
        self.step = step
        self.last: Fraction | None = None
        self._base = base
        self._offset = None if origin is None else -origin * base

    def place(self, stamp: int | None) -> Fraction:
        """The next frame's time in seconds, by its time stamp."""
        expected = Fraction(0) if self.last is None else self.last + self.step
        if stamp is None:
            self.last = expected
            return expected
        if self._offset is None:
            self._offset = expected - stamp * self._base
        now = stamp * self._base + self._offset
        before = self.last if self.last is not None else Fraction(0)
        if now < before - JITTER:
            self._offset += expected - now
            now = expected
        self.last = max(now, before)
        return self.last
