"""A folder of labelled photographs: ``labels.csv`` beside ``images/``, or one folder per label."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

from vsa_rt.errors import DatasetError, ItemError
from vsa_rt.locate import contained, is_file

_IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"}
)


#: Between the labels of one photograph in ``labels.csv``; alone, it says that no label applies.
SEPARATOR = "|"


@dataclass(frozen=True)
class Photograph:
    """One file and what is known of it.

    Attributes:
        path: The file.
        labels: Those that apply, in the table's order; empty where none does; ``None`` in a folder without labels.
    """

    path: Path
    labels: tuple[str, ...] | None

    @property
    def label(self) -> str | None:
        """The label of a photograph that has exactly one, else ``None``."""
        return self.labels[0] if self.labels is not None and len(self.labels) == 1 else None


@dataclass(frozen=True)
class Dataset:
    """Photographs in a fixed order, and the entries that could not be used.

    Attributes:
        photographs: Sorted by path.
        rejected: Entries with the reason why each was left out.
    """

    photographs: list[Photograph]
    rejected: list[ItemError] = field(default_factory=list)

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


def _from_csv(folder: Path) -> Dataset:
    table = folder / "labels.csv"
    images = folder / "images" if (folder / "images").is_dir() else folder
    photographs: dict[Path, Photograph] = {}
    rejected: list[ItemError] = []
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream)
            if not rows.fieldnames or not {"file", "label"} <= set(rows.fieldnames):
                raise DatasetError(f"{table}: expected the columns file,label; got {rows.fieldnames}")
            for number, row in enumerate(rows, start=2):
                name, text = (row["file"] or "").strip(), (row["label"] or "").strip()
                labels = read_labels(text)
                entry = f"{table}, line {number}"
                path = contained(images, name) if name else None
                if not name or not text:
                    reason = f"a file and a label are expected; {SEPARATOR} alone says that no label applies"
                    rejected.append(ItemError(entry, reason))
                elif labels is None:
                    reason = f"{text!r}: an empty or repeated label; expected such as joy{SEPARATOR}surprise"
                    rejected.append(ItemError(entry, reason))
                elif path is None:
                    rejected.append(ItemError(entry, f"{name!r} leaves the folder {images}"))
                elif not is_file(path):
                    rejected.append(ItemError(entry, f"no file {path}"))
                elif path in photographs:
                    rejected.append(ItemError(entry, f"{name!r} is listed twice; the first line counts"))
                else:
                    photographs[path] = Photograph(path, labels)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{table}: cannot be read: {error}") from error
    return Dataset([photographs[p] for p in sorted(photographs)], rejected)


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
            several labels of one file in one cell, separated by ``|``, and ``|`` alone where none applies), or
            with one sub-folder per label, or with photographs alone (no labels then).

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
