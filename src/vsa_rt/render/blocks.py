"""What a page is made of, before anybody decides between HTML and Markdown: both say the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

Tone = Literal["", "good", "warn", "bad", "quiet", "strong"]


@dataclass(frozen=True)
class Cell:
    """One field of a table: text, how it is meant, and a second line in small type."""

    text: str
    tone: Tone = ""
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A column's title, and whether its fields are numbers, aligned to the right."""

    title: str
    right: bool


@dataclass(frozen=True)
class Table:
    """Rows under a title; ``folded`` ones open on demand where the page can do that."""

    kind: ClassVar[str] = "table"
    title: str
    columns: list[Column]
    rows: list[list[Cell]]
    folded: bool


@dataclass(frozen=True)
class Paragraph:
    """Sentences."""

    kind: ClassVar[str] = "paragraph"
    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Items:
    """A list under a title."""

    kind: ClassVar[str] = "items"
    title: str
    items: list[Cell]
    folded: bool = False


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Figure:
    """A plot: what it shows, in words for those who do not see it, and how to draw it as SVG."""

    title: str
    alt: str
    caption: str
    draw: Callable[[], bytes]


@dataclass(frozen=True)
class Figures:
    """Plots side by side, where there is room; beside a ``tall`` first one the next two fit."""

    kind: ClassVar[str] = "figures"
    figures: list[Figure]
    tall: bool = False


Block = Table | Paragraph | Items | Heading | Figures


@dataclass
class Section:
    """A section of the page; ``key`` is its anchor."""

    key: str
    title: str
    lead: str = ""
    blocks: list[Block] = field(default_factory=list)


def cell(value: Cell | str) -> Cell:
    """Text as a field."""
    return value if isinstance(value, Cell) else Cell(value)


def table(
    *columns: str, rows: Iterable[Sequence[Cell | str]], title: str = "", folded: bool = False
) -> Table:
    """A table; a column whose title ends in ``>`` is aligned to the right. Columns without any content are left out."""
    filled = [[cell(value) for value in row] for row in rows]
    keep = [k for k in range(len(columns)) if any(row[k].text or row[k].note for row in filled)]
    return Table(
        title,
        [Column(columns[k].rstrip(">"), columns[k].endswith(">")) for k in keep],
        [[row[k] for k in keep] for row in filled],
        folded,
    )


def holds(passed: bool | None) -> Cell:
    """A verdict as a field."""
    if passed is None:
        return Cell("not checked", "quiet")
    return Cell("holds", "good") if passed else Cell("FAILS", "bad")
