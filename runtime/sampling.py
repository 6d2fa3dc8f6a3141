"""Which frames of a video are looked at, by their presentation times rather than their numbers.

All times are seconds after the video's first frame. Frames are looked at from ``start`` (inclusive) to ``end``
(exclusive), in order of time:

===============  ===================================================================================================
``fps=R``        Of every whole multiple of 1/R seconds the first frame at or after it; one that is the first for
                 several counts once. ``fps=1`` is the rate of YouTube-8M (Abu-El-Haija et al. 2016, section 3.1).
                 R is a number or a fraction: ``fps=0.5``, ``fps=30000/1001``.
``every=N``      The first frame and every N-th after it.
``keyframes``    Frames that the decoder calls key frames; the others are not even decoded.
``uniform=K``    The stretch is cut into K equal parts, and of each the frame on the screen at its middle is taken:
                 the last that began at or before it. A frame that is on the screen at several counts once.
                 ``uniform=9`` is what ObjectGraphs does. The video must have an end.
``scenes``       The first frame, and the first of every scene after it (`SCENE_THRESHOLD`).
``all``          Every frame.
===============  ===================================================================================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from vsa_rt.errors import UsageError

if TYPE_CHECKING:
    from typing import TypeAlias

    Kind: TypeAlias = Literal["fps", "every", "keyframes", "uniform", "scenes", "all"]

#: A scene begins where FFmpeg's `scdet` filter scores a frame at least this, of 100: its default, in the middle of
#: the range [8, 14] that its documentation recommends.
SCENE_THRESHOLD = 10.0

FORMS = "fps=1, every=30, keyframes, uniform=9, scenes, all"

_FORM = re.compile(r"(fps|every|keyframes|uniform|scenes|all)(?:=(.*))?", re.DOTALL)
_RATE = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?|[0-9]{1,9}/[0-9]{1,9}")
_COUNT = re.compile(r"[0-9]{1,9}")
#: More frames a second than any camera that FFmpeg reads takes, and more parts than fit into a day of them.
_MAX_RATE = 1_000_000
_MAX_PARTS = 1_000_000


class Candidate(Protocol):
    """What is known of a frame when it is chosen or passed over."""

    @property
    def seconds(self) -> Fraction:
        """Presentation time after the video's first frame."""

    @property
    def key(self) -> bool:
        """Whether it is a key frame."""

    @property
    def cut(self) -> bool:
        """Whether a scene begins with it."""


C = TypeVar("C", bound=Candidate)


@dataclass(frozen=True)
class Sample:
    """A rule that chooses frames.

    Attributes:
        kind: Which rule.
        rate: Of ``fps``: frames a second.
        count: Of ``every``: the step; of ``uniform``: how many parts.
    """

    kind: Kind
    rate: Fraction = Fraction(1)
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Sample:
        """Read a rule as the command line and recipes write it.

        Args:
            text: One of the forms of this module's table.

        Returns:
            The rule; its text is the form again.

        Raises:
            UsageError: The text is none of them; the message lists them.
        """
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise UsageError(f"sample {text!r} is not known; the forms are {FORMS}")
        kind, value = found[1], found[2]
        if kind == "fps":
            return cls("fps", rate=_rate(text, value))
        if kind == "every":
            return cls("every", count=_count(text, value, "a step, every=30", 999_999_999))
        if kind == "uniform":
            return cls("uniform", count=_count(text, value, "a number of frames, uniform=9", _MAX_PARTS))
        if value is not None:
            raise UsageError(f"sample {text!r}: {kind} takes no value; the forms are {FORMS}")
        if kind == "keyframes":
            return cls("keyframes")
        return cls("scenes") if kind == "scenes" else cls("all")

    def __str__(self) -> str:
        if self.kind == "fps":
            return f"fps={self.rate}"
        return f"{self.kind}={self.count}" if self.kind in ("every", "uniform") else self.kind

    def choose(
        self, frames: Iterable[C], *, start: Fraction = Fraction(0), length: Fraction | None = None
    ) -> Iterator[C]:
        """Choose among frames while they come; ``uniform`` holds one frame back, the others none.

        Args:
            frames: In order of time, none before ``start``, none at or after the end.
            start: Where the stretch begins.
            length: Of ``uniform``: the stretch's duration in seconds.

        Returns:
            The chosen frames, in order.

        Raises:
            ValueError: ``uniform`` without a length.
        """
        if self.kind == "fps":
            return _at_rate(frames, self.rate, start)
        if self.kind == "every":
            return (frame for number, frame in enumerate(frames) if number % self.count == 0)
        if self.kind == "keyframes":
            return (frame for frame in frames if frame.key)
        if self.kind == "scenes":
            return (frame for number, frame in enumerate(frames) if number == 0 or frame.cut)
        if self.kind == "all":
            return iter(frames)
        if length is None:
            raise ValueError("uniform needs the length of the stretch")
        return _on_screen(frames, middles(self.count, start, length))


def middles(parts: int, start: Fraction, length: Fraction) -> list[Fraction]:
    """The middles of equal parts of a stretch, in seconds."""
    return [start + length * (2 * part + 1) / (2 * parts) for part in range(parts)]


def _at_rate(frames: Iterable[C], rate: Fraction, start: Fraction) -> Iterator[C]:
    due = math.ceil(start * rate)
    for frame in frames:
        now = math.floor(frame.seconds * rate)
        if now >= due:
            yield frame
            due = now + 1


def _on_screen(frames: Iterable[C], times: list[Fraction]) -> Iterator[C]:
    due, shown = 0, None
    for frame in frames:
        passed = due
        while passed < len(times) and times[passed] < frame.seconds:
            passed += 1
        if shown is not None and passed > due:
            yield shown
        due, shown = passed, frame
        if due == len(times):
            return
    if shown is not None:
        yield shown


def _rate(text: str, value: str | None) -> Fraction:
    numerator, _, denominator = (value or "").partition("/")
    if value is None or not _RATE.fullmatch(value) or (denominator and not int(denominator)):
        raise UsageError(f"sample {text!r}: fps takes frames a second, fps=1; the forms are {FORMS}")
    rate = Fraction(numerator) / int(denominator or 1)
    if not 0 < rate <= _MAX_RATE:
        raise UsageError(f"sample {text!r}: fps takes a number over 0 and up to {_MAX_RATE:,}")
    return rate


def _count(text: str, value: str | None, takes: str, most: int) -> int:
    if value is None or not _COUNT.fullmatch(value) or not 1 <= int(value) <= most:
        kind = text.strip().partition("=")[0]
        raise UsageError(f"sample {text!r}: {kind} takes {takes}, of 1 to {most:,}; the forms are {FORMS}")
    return int(value)
