"""Which labels of a timeline are drawn, and in which colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]

#: Okabe and Ito 2008, "Color Universal Design": colours that people see apart whatever cones they have. Yellow, which
#: white paper nearly swallows, comes last.
BLUE, VERMILLION, ORANGE, GREEN = (0, 114, 178), (213, 94, 0), (230, 159, 0), (0, 158, 115)
PURPLE, SKY, BLACK, YELLOW = (204, 121, 167), (86, 180, 233), (0, 0, 0), (240, 228, 66)
PALETTE: tuple[Colour, ...] = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY, BLACK, YELLOW)
#: What has no colour of its own.
GREY: Colour = (129, 139, 150)
#: Labels that mean the same in every list.
_KNOWN: dict[str, Colour] = {"negative": VERMILLION, "neutral": GREY, "positive": BLUE}
#: Of more labels than colours, the lines of this many are drawn: more cannot be followed.
FEW = 5


@dataclass(frozen=True)
class Cast:
    """What is drawn of a timeline's labels.

    Attributes:
        lines: Columns of the scores that are drawn as lines, in the labels' order.
        colours: Label to colour, of the lines and of the bars that have one; `GREY` for all others.
    """

    lines: tuple[int, ...]
    colours: Mapping[str, Colour]

    def colour(self, label: str | None) -> Colour:
        """A label's colour; of none, grey."""
        return self.colours.get(label or "", GREY)


def _paired(labels: Sequence[str]) -> dict[str, Colour] | None:
    """Colours of labels that are opposites; ``None`` where they are not."""
    known = {label: _KNOWN.get(label.casefold()) for label in labels}
    if all(known.values()):
        return {label: colour for label, colour in known.items() if colour}
    if len(labels) == 2:  # the second is what is asked about, as on sentiment maps
        return dict(zip(labels, (VERMILLION, BLUE), strict=True))
    return None


def cast(labels: Sequence[str], means: NDArray[np.float64], held: Mapping[str, float]) -> Cast:
    """Choose what is drawn.

    Args:
        labels: In the order of the scores.
        means: Of each label's scores ``(C,)``.
        held: Label to the seconds that it holds in the segments.

    Returns:
        All labels where there are colours for them. Of more, the lines of the highest means; the colours that are left go
        to the labels that hold for the longest time.
    """
    paired = _paired(labels)
    if paired is not None:
        return Cast(tuple(range(len(labels))), paired)
    if len(labels) <= len(PALETTE):
        return Cast(tuple(range(len(labels))), dict(zip(labels, PALETTE, strict=False)))
    lines = sorted(np.argsort(-means, kind="stable")[:FEW].tolist())
    drawn = [labels[column] for column in lines]
    rest = sorted((label for label in held if label not in drawn), key=lambda label: -held[label])
    return Cast(tuple(lines), dict(zip([*drawn, *rest], PALETTE, strict=False)))
