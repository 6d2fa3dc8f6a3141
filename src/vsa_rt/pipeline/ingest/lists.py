"""Words and files that stand for many paths: brace patterns, list files, and standard input."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO, Literal, NamedTuple

from vsa_rt.errors import UsageError

Form = Literal["lines", "csv", "jsonl"]
#: The column of a table, or the key of an object, that holds the path; the first of these that is there.
COLUMNS = ("path", "file", "filename", "url")
#: A longer line is no path: Linux's have 4,096 bytes at most, and addresses hardly more.
MAX_LINE = 2**16
#: Names that a brace pattern may stand for.
MAX_NAMES = 1_000_000
_SHOWN = 40
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")


class Entry(NamedTuple):
    """One line of a list: its number from 1, the path or address that it names, or why it names none."""

    number: int
    text: str
    error: str = ""


# Brace patterns


def _alternatives(inner: str) -> list[str] | range | None:
    """What a brace stands for: names, or numbers; ``None`` if it stands for itself."""
    bounds = _RANGE.fullmatch(inner)
    if bounds is not None:
        first, last = int(bounds[1]), int(bounds[2])
        return range(first, last + 1) if first <= last else range(first, last - 1, -1)
    return inner.split(",") if "," in inner else None


def _width(inner: str) -> int:
    """To how many digits the numbers of a range are filled with zeros, as bash does it: if one of its ends is."""
    ends = inner.split("..")
    return max(map(len, ends)) if any(len(e) > 1 and e.startswith("0") for e in ends) else 0


def expand(pattern: str) -> Iterator[str]:
    """The names that a brace pattern stands for, as bash and WebDataset expand it; no braces in braces, no steps,
    no letters.

    Args:
        pattern: ``shard-{000000..000099}.tar`` or ``{train,val}/{0..9}.tar``; any other text stands for itself.

    Yields:
        Names, the last brace varying fastest.

    Raises:
        UsageError: More than a million.
    """
    fixed, parts = 0, []
    total = 1
    for brace in _BRACES.finditer(pattern):
        found = _alternatives(brace[1])
        if found is None:
            continue
        parts.append([pattern[fixed : brace.start()]])
        width = _width(brace[1]) if isinstance(found, range) else 0
        total *= len(found)
        if total > MAX_NAMES:
            raise UsageError(
                f"{pattern}: stands for {total:,} names or more, expected {MAX_NAMES:,} at most; "
                "write them to a list file"
            )
        parts.append([str(value).zfill(width) for value in found])
        fixed = brace.end()
    parts.append([pattern[fixed:]])
    yield from map("".join, itertools.product(*parts))


# Lists


def entries(stream: BinaryIO, form: Form) -> Iterator[Entry]:
    """What a list names, line by line; each is there as soon as its line is.

    Args:
        stream: The list: bytes, UTF-8 where they are text; others survive as Python's file names keep them
            (surrogateescape). A byte-order mark is passed over.
        form: ``lines``: a path or address on each line, as it is, spaces included. ``csv``: a table; the column
            ``path``, ``file``, ``filename`` or ``url`` where the first row has one of these, else the first column and
            no row of names. ``jsonl``: on each line a string, or an object with one of these keys. Lines that are
            empty are passed over.

    Yields:
        Entries, those of unusable lines with the reason.
    """
    readers: dict[Form, Callable[[Iterator[_Line]], Iterator[Entry]]] = {
        "lines": _from_lines,
        "csv": _from_csv,
        "jsonl": _from_jsonl,
    }
    yield from readers[form](_lines(stream))


class _Line(NamedTuple):
    number: int
    text: str
    problem: str = ""


def _lines(stream: BinaryIO) -> Iterator[_Line]:
    """Lines without their ends; of one that is too long the beginning, and the rest is passed over."""
    for number in itertools.count(1):
        problem = ""
        try:
            end = data = stream.readline(MAX_LINE)
            if not data:
                return
            while not end.endswith(b"\n") and (end := stream.readline(MAX_LINE)):
                problem = f"a line of more than {MAX_LINE:,} bytes, which no path has"
        except OSError as error:
            yield _Line(number, "", f"the list cannot be read further: {error.strerror or error}")
            return
        if number == 1:
            data = data.removeprefix(b"\xef\xbb\xbf")
        text = data.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape")
        if "\0" in text:
            problem = (
                "a NUL character; expected a path on each line, ended by a newline (find -print, not -print0)"
            )
        yield _Line(number, "" if problem else text, problem)


def _from_lines(lines: Iterator[_Line]) -> Iterator[Entry]:
    for line in lines:
        if line.text or line.problem:
            yield Entry(*line)


def _from_csv(lines: Iterator[_Line]) -> Iterator[Entry]:
    unusable: list[Entry] = []
    number = 0

    def usable() -> Iterator[str]:
        nonlocal number
        for line in lines:
            number = line.number
            if line.problem:
                unusable.append(Entry(*line))
            else:
                yield line.text + "\n"

    rows = csv.reader(usable(), strict=True)
    column: int | None = None
    try:
        for row in rows:
            yield from unusable
            unusable.clear()
            if not any(cell.strip() for cell in row):
                continue
            if column is None:
                names = [cell.strip().lower() for cell in row]
                column = next((names.index(c) for c in COLUMNS if c in names), -1)
                if column >= 0:
                    continue
                column = 0
            if column < len(row) and row[column]:
                yield Entry(number, row[column])
            else:
                yield Entry(number, "", f"nothing in column {column + 1}, where the paths are expected")
    except csv.Error as error:
        unusable.append(Entry(number, "", f"not a row of a table: {error}; the rest was not read"))
    yield from unusable


def _from_jsonl(lines: Iterator[_Line]) -> Iterator[Entry]:
    for line in lines:
        if line.problem:
            yield Entry(*line)
        elif line.text.strip():
            yield Entry(line.number, *_from_json(line.text))


def _from_json(text: str) -> tuple[str, str]:
    """The path that a line of JSON holds, or why there is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return "", f"not JSON: {str(error)[:100]}"
    if isinstance(value, dict):
        value = next((value[c] for c in COLUMNS if c in value), None)
    if not isinstance(value, str) or not value or "\0" in value:
        return (
            "",
            f"{text[:_SHOWN]!r}: expected a string, or an object with a string as {' or '.join(COLUMNS)}",
        )
    return value, ""
