"""A timeline's segments as bars: who holds when, and how surely."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vsa_rt.render.lettering import Lettering
from vsa_rt.render.timeline_axis import Axis
from vsa_rt.render.timeline_labels import GREY, Cast, Colour
from vsa_rt.render.timeline_lines import luminance

#: Heights in pixels: of the confidences, of the bar of single labels, and of one lane where several may hold.
_CONFIDENCE, _BAR, _LANE = 28, 28, 20
#: Between bars; and between two segments that are wide enough to part.
_GAP, _WIDE = 2, 6
#: Behind the bars.
BACK: Colour = (238, 241, 244)
_INK, _PAPER, _QUIET = (31, 35, 40), (255, 255, 255), (89, 99, 110)


def held(segments: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds that each label holds in.

    Args:
        segments: Of a summary.

    Returns:
        Label to seconds, of those that hold anywhere.
    """
    found: dict[str, float] = {}
    for segment in segments:
        for label in names(segment):
            found[label] = found.get(label, 0.0) + float(segment["end"]) - float(segment["start"])
    return found


def names(segment: Mapping[str, Any]) -> tuple[str, ...]:
    """The labels that hold in a segment: one, or several, or none."""
    if segment["label"] is not None:
        return (segment["label"],)
    return tuple(segment["labels"])


@dataclass(frozen=True)
class Run:
    """Columns of pixels that belong together: from ``left`` to before ``right``, of a segment, or of none below 0."""

    left: int
    right: int
    segment: int


def runs(segments: Sequence[Mapping[str, Any]], axis: Axis) -> list[Run]:
    """Which segment each column of pixels belongs to: the one that holds in its middle.

    Args:
        segments: In order of time.
        axis: Where times lie.

    Returns:
        Runs from left to right, as many as there are columns at most, however many segments there are. A video without
        a length is one run.
    """
    if not segments:
        return []
    if axis.span <= 0:
        return [Run(axis.left, axis.right, 0)]
    width = axis.right - axis.left
    middles = axis.begin + (np.arange(width) + 0.5) / width * axis.span
    starts = np.array([float(s["start"]) for s in segments])
    ends = np.array([float(s["end"]) for s in segments])
    owners = np.searchsorted(starts, middles, side="right") - 1
    owners = np.where((owners >= 0) & (middles < ends[owners]), owners, -1)
    return _joined(owners, axis.left)


def _joined(owners: NDArray[np.int64], left: int) -> list[Run]:
    found = []
    for owner, group in groupby(owners.tolist()):
        right = left + len(list(group))
        found.append(Run(left, right, owner))
        left = right
    return found


def on(colour: Colour) -> Colour:
    """Ink or paper, whichever is easier to read on a colour (the higher contrast by WCAG 2.2)."""
    ground = luminance(colour) + 0.05
    return _PAPER if 1.05 / ground > ground / (luminance(_INK) + 0.05) else _INK


def lanes(holding: Iterable[str], cast: Cast) -> list[str | None]:
    """Rows where several labels may hold: each label that has a colour and holds, then one for all others if any holds."""
    holding = set(holding)
    coloured: list[str | None] = [label for label in cast.colours if label in holding]
    return [*coloured, *([None] if len(coloured) < len(holding) else [])] or [None]


def bars_height(holding: Iterable[str], cast: Cast, several: bool) -> int:
    """How many pixels high the bars are.

    Args:
        holding: The labels that hold in any segment.
        cast: Colours of the labels.
        several: Whether several may hold at once.
    """
    return _CONFIDENCE + _GAP + (len(lanes(holding, cast)) * (_LANE + _GAP) - _GAP if several else _BAR)


class Bars:
    """Draws segments, one row below another.

    Args:
        picture: RGB; it is drawn on.
        axis: Where times lie.
        segments: Of a summary.
        holding: The labels that hold in any of them.
        cast: Colours of the labels.
        several: Whether several labels may hold at once.
    """

    def __init__(
        self,
        picture: Image.Image,
        axis: Axis,
        segments: Sequence[Mapping[str, Any]],
        holding: Iterable[str],
        cast: Cast,
        several: bool,
    ) -> None:
        self._pen, self._text = ImageDraw.Draw(picture), Lettering(picture)
        self._axis, self._segments, self._cast, self._several = axis, segments, cast, several
        self._runs, self._holding = runs(segments, axis), frozenset(holding)

    def draw(self, top: int) -> None:
        """Draw them.

        Args:
            top: In pixels.
        """
        self._caption("confidence", top + _CONFIDENCE / 2)
        self._confidences(top)
        top += _CONFIDENCE + _GAP
        if not self._several:
            self._caption("label", top + _BAR / 2)
            self._back(top, _BAR)
            for run, segment in self._drawn():
                label, confidence = names(segment)[0], float(segment["confidence"])
                texts = [f"{label}  {confidence:.2f}", label]
                self._bar(run, top, _BAR, self._cast.colour(label), texts)
            return
        for lane in lanes(self._holding, self._cast):
            self._back(top, _LANE)
            self._lane(lane, top)
            top += _LANE + _GAP

    def _caption(self, text: str, middle: float) -> None:
        place = (self._axis.left - 10, middle)
        self._text.write(place, text, 13, _QUIET, width=self._axis.left - 14, anchor="rm")

    def _back(self, top: int, height: int) -> None:
        self._pen.rectangle((self._axis.left, top, self._axis.right - 1, top + height - 1), BACK)

    def _drawn(self) -> Iterator[tuple[Run, Mapping[str, Any]]]:
        return ((run, self._segments[run.segment]) for run in self._runs if run.segment >= 0)

    def _confidences(self, top: int) -> None:
        self._back(top, _CONFIDENCE)
        for run, segment in self._drawn():
            high = round(_CONFIDENCE * min(max(float(segment["confidence"]), 0.0), 1.0))
            colour = GREY if self._several else self._cast.colour(names(segment)[0])
            if high:
                self._pen.rectangle(
                    (run.left, top + _CONFIDENCE - high, self._right(run), top + _CONFIDENCE - 1), colour
                )

    def _right(self, run: Run) -> int:
        """The last column of a run: wide ones leave one to part them from the next."""
        return run.right - 1 - (run.right - run.left >= _WIDE and run.right < self._axis.right)

    def _lane(self, lane: str | None, top: int) -> None:
        """A label's own row; or that of all labels without a colour, which says who they are."""
        nobody = not self._holding
        others = "labels" if nobody else "others"
        self._caption(others if lane is None else lane, top + _LANE / 2)
        stretches = [(run, self._of_lane(run, lane)) for run in self._runs]
        for mine, group in groupby(stretches, key=lambda stretch: stretch[1]):
            parts = [run for run, _ in group]
            whole = Run(parts[0].left, parts[-1].right, parts[0].segment)
            if mine:
                texts = [" + ".join(mine)] if lane is None else []
                self._bar(whole, top, _LANE, self._cast.colour(lane), texts)
            elif nobody:
                self._inside(whole, top + _LANE / 2, ["none holds"], _QUIET)

    def _of_lane(self, run: Run, lane: str | None) -> tuple[str, ...]:
        """The labels of a run that belong into a row."""
        holding = names(self._segments[run.segment]) if run.segment >= 0 else ()
        return tuple(n for n in holding if (n if n in self._cast.colours else None) == lane)

    def _bar(self, run: Run, top: int, height: int, colour: Colour, texts: Sequence[str]) -> None:
        self._pen.rectangle((run.left, top, self._right(run), top + height - 1), colour)
        self._inside(run, top + height / 2, texts, on(colour))

    def _inside(self, run: Run, middle: float, texts: Sequence[str], colour: Colour) -> None:
        """The first of the texts that fits into a run."""
        room = run.right - run.left - 12
        for text in texts if room > 0 else []:
            if self._text.length(text, 13) <= room:
                self._text.write(
                    ((run.left + run.right) / 2, middle), text, 13, colour, width=room, anchor="mm"
                )
                return
