"""A folder of labelled photographs: ``labels.csv`` beside ``images/``, or one folder per label."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vsa_rt.errors import DatasetError, ItemError
from vsa_rt.locate import contained, is_file

_IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"}
)


#: Between the labels of one photograph in ``labels.csv``; alone, it says that no label applies.
SEPARATOR = "|"
#: Characters of a cell that a message repeats.
_SHOWN = 40


@dataclass(frozen=True)
class Photograph:
    """One file and what is known of it.

    Attributes:
        path: The file.
        labels: Those that apply, in the table's order; empty where none does; ``None`` in a folder without labels.
        shares: Where the table says how much of the photograph each label has: ``labels``, each with its share,
            above 0 and of sum 1; else ``None``.
    """

    path: Path
    labels: tuple[str, ...] | None
    shares: tuple[tuple[str, float], ...] | None = None

    @property
    def label(self) -> str | None:
        """The label of a photograph that has exactly one, else ``None``."""
        return self.labels[0] if self.labels is not None and len(self.labels) == 1 else None

    @property
    def truth(self) -> Mapping[str, float] | tuple[str, ...] | None:
        """All that is known: labels with their shares where the table has shares, else the labels."""
        return self.labels if self.shares is None else dict(self.shares)


@dataclass(frozen=True)
class Dataset:
    """Photographs in a fixed order, and the entries that could not be used.

    Attributes:
        photographs: Sorted by path.
        rejected: Entries with the reason why each was left out.
        beside: Columns of the table that nobody read: those beside ``file`` and ``label``.
    """

    photographs: list[Photograph]
    rejected: list[ItemError] = field(default_factory=list)
    beside: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """Labels that occur, sorted."""
        return sorted({label for p in self.photographs for label in p.labels or ()})

    @property
    def labelled(self) -> bool:
        """Whether it is known of every photograph which labels apply."""
        return bool(self.photographs) and all(p.labels is not None for p in self.photographs)


def read_labels(text: str) -> tuple[str, ...] | None:
    """The labels of one photograph as a table spells them.

    Args:
        text: One label, several separated by ``|``, or ``|`` alone where no label applies.

    Returns:
        The labels, in order; ``None`` if one of them is empty or stands there twice.
    """
    if text.strip() == SEPARATOR:
        return ()
    labels = tuple(part.strip() for part in text.split(SEPARATOR))
    return labels if all(labels) and len(set(labels)) == len(labels) else None


#: Label and share of each label that a row gives; shares are ``None`` where the row only names labels.
_Said = tuple[tuple[str, ...], tuple[tuple[str, float], ...] | None]
_Row = Mapping[str, str | None]


def _cell(row: _Row, column: str) -> str:
    return (row[column] or "").strip()


def _named(row: _Row) -> _Said:
    """What the column ``label`` says.

    Raises:
        ValueError: Nothing that can be read.
    """
    text = _cell(row, "label")
    if not text:
        raise ValueError(f"a file and a label are expected; {SEPARATOR} alone says that no label applies")
    labels = read_labels(text)
    if labels is None:
        raise ValueError(f"{text!r}: an empty or repeated label; expected such as joy{SEPARATOR}surprise")
    return labels, None


def _shared(row: _Row, columns: Sequence[str]) -> _Said:
    """What one column of votes or probabilities for each label says, scaled to sum 1.

    Raises:
        ValueError: A number is missing, negative or not finite, or all are 0.
    """
    if None in row:
        raise ValueError("more cells than the table has columns")
    numbers = []
    for column in columns:
        text = _cell(row, column)
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0 <= number < float("inf"):
            what = repr(text[:_SHOWN]) if text else "nothing"
            raise ValueError(f"column {column!r} has {what}; expected votes or a probability, 0 or more")
        numbers.append(number)
    total = sum(numbers)
    if not 0 < total < float("inf"):
        raise ValueError(f"the votes sum to {total:g}; expected a finite number above 0")
    given = [(column.strip(), number / total) for column, number in zip(columns, numbers, strict=True)]
    shares = tuple((label, share) for label, share in given if share > 0)
    return tuple(label for label, _ in shares), shares


def _row_reader(table: Path, columns: Sequence[str]) -> Callable[[_Row], _Said]:
    """What reads the labels of a row in a table of these columns.

    Raises:
        DatasetError: The columns are none of the known ones.
    """
    others = [column for column in columns if column != "file"]
    if "file" in columns and "label" in columns:
        return _named
    if "file" not in columns or len(others) < 2:
        raise DatasetError(
            f"{table}: expected the columns file,label, or file and one column of votes or probabilities for each "
            f"label; got {list(columns)}"
        )
    names = [column.strip() for column in columns]
    if not all(names) or len(set(names)) < len(names):
        raise DatasetError(f"{table}: a column has no name or that of another one: {names}")
    return lambda row: _shared(row, others)


def _from_csv(folder: Path) -> Dataset:
    table = folder / "labels.csv"
    images = folder / "images" if (folder / "images").is_dir() else folder
    photographs: dict[Path, Photograph] = {}
    rejected: list[ItemError] = []
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream)
            columns = [column.strip() for column in rows.fieldnames or []]
            read = _row_reader(table, rows.fieldnames or [])
            for number, row in enumerate(rows, start=2):
                entry = f"{table}, line {number}"
                try:
                    photograph = _photograph(row, read, images)
                    if photograph.path in photographs:
                        raise ValueError(f"{_cell(row, 'file')!r} is listed twice; the first line counts")
                    photographs[photograph.path] = photograph
                except ValueError as error:
                    rejected.append(ItemError(entry, str(error)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{table}: cannot be read: {error}") from error
    beside = [c for c in columns if c not in ("file", "label")] if "label" in columns else []
    return Dataset([photographs[p] for p in sorted(photographs)], rejected, tuple(beside))


def _photograph(row: _Row, read: Callable[[_Row], _Said], images: Path) -> Photograph:
    """The photograph of one row.

    Raises:
        ValueError: The reason why the row cannot be used.
    """
    name = _cell(row, "file")
    if not name:
        raise ValueError("a file and what it is labelled are expected; the cell of the file is empty")
    labels, shares = read(row)
    path = contained(images, name)
    if path is None:
        raise ValueError(f"{name!r} leaves the folder {images}")
    if not is_file(path):
        raise ValueError(f"no file {path}")
    return Photograph(path, labels, shares)


def _images_below(folder: Path, root: Path, label: str | None) -> tuple[list[Photograph], list[ItemError]]:
    photographs: list[Photograph] = []
    rejected: list[ItemError] = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.suffix.lower() not in _IMAGE_SUFFIXES:
            continue
        inside = contained(root, str(path.relative_to(root)))
        if inside is None:
            rejected.append(ItemError(str(path), f"the link leaves the folder {root} or loops"))
        elif is_file(inside):
            photographs.append(Photograph(path, None if label is None else (label,)))
        elif path.is_symlink():
            rejected.append(ItemError(str(path), "the link leads nowhere"))
    return photographs, rejected


def read_dataset(folder: Path) -> Dataset:
    """Read a folder of photographs.

    Args:
        folder: With ``labels.csv`` (columns ``file,label``; files relative to ``images/`` or to the folder;
            several labels of one file in one cell, separated by ``|``, and ``|`` alone where none applies; or, without
            the column ``label``, ``file`` and a column for each of two or more labels, which holds its votes or its
            probability), or with one sub-folder per label, or with photographs alone (no labels then).

    Returns:
        The photographs, sorted by path, and the rejected entries.

    Raises:
        DatasetError: No such folder, no usable photograph, or an unreadable table.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: not a folder")
    if (folder / "labels.csv").is_file():
        found = _from_csv(folder)
    else:
        children = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        flat = sorted(p for p in folder.iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES)
        photographs: list[Photograph] = []
        rejected: list[ItemError] = []
        if flat or not children:
            photographs, rejected = _images_below(folder, folder, None)
        else:
            for child in children:
                some, bad = _images_below(child, folder, child.name)
                photographs += some
                rejected += bad
        found = Dataset(photographs, rejected)
    if not found.photographs:
        why = f"; the first of {len(found.rejected)} rejected: {found.rejected[0]}" if found.rejected else ""
        raise DatasetError(f"{folder}: no photograph found{why}")
    return found
