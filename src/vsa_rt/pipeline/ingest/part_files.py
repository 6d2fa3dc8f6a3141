"""The output's folder: how its files are called, and what a killed run leaves there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from vsa_rt.errors import UsageError
from vsa_rt.pipeline.ingest.layout import FAMILIES, FORMATS, Family
from vsa_rt.pipeline.ingest.ledger_rows import Part
from vsa_rt.pipeline.ingest.spool import PREFIX

#: The list of pieces that failed. JSON lines, whatever the parts are.
FAILED = "failed.jsonl"
_PART = re.compile(rf"({'|'.join(FAMILIES)})-(\d{{6,}})\.({'|'.join(FORMATS)})")
_STAGED = re.compile(rf"\.(?:{_PART.pattern}|{re.escape(FAILED)})\.partial|{re.escape(PREFIX)}.+")


def part_file(folder: Path, family: Family, number: int, suffix: str) -> Path:
    """Where a part's rows of one family lie."""
    return folder / f"{family}-{number:06d}.{suffix}"


def results_in(folder: Path) -> list[str]:
    """Names of the files in a folder that hold results, sorted.

    Raises:
        OSError: It cannot be read.
    """
    return sorted(p.name for p in folder.iterdir() if _PART.fullmatch(p.name) or p.name == FAILED)


def recover(folder: Path, parts: Iterable[Part], suffix: str) -> list[str]:
    """Put right what a killed run left, and look whether every part is there.

    Args:
        folder: The output's; nobody else works there.
        parts: Those that the ledger knows, by number.
        suffix: Of their files.

    Returns:
        Sentences about parts whose files are gone: who takes them away has them.

    Raises:
        UsageError: A part's file is not as it was written, or there are parts that no killed run leaves behind.
        OSError: The folder cannot be read, or not written.
    """
    known = list(parts)
    last = known[-1].number if known else 0
    staged, unknown = [], []
    for path in folder.iterdir():
        if _STAGED.fullmatch(path.name):
            staged.append(path)
        elif (match := _PART.fullmatch(path.name)) and int(match[2]) > last:
            unknown.append((int(match[2]), path))
    # A killed run leaves one part at most that was not entered. Others say that the ledger is older than the parts.
    if beyond := [path.name for number, path in sorted(unknown) if number > last + 1]:
        raise UsageError(
            f"{folder}: has {beyond[0]}, and the last part in its ledger is {last}: the ledger is older than the "
            "parts; restore it, or name another folder"
        )
    notes = _absent(folder, known, suffix)
    for path in [*staged, *(path for _, path in unknown)]:
        path.unlink()
    return notes


def _absent(folder: Path, parts: Iterable[Part], suffix: str) -> list[str]:
    """What to say about files that are not there; a file of another size is an error."""
    gone = []
    for part in parts:
        for family in FAMILIES:
            nbytes = part.items_bytes if family == "items" else part.frames_bytes
            path = part_file(folder, family, part.number, suffix)
            if nbytes and not path.exists():
                gone.append(path.name)
            elif nbytes and (size := path.stat().st_size) != nbytes:
                raise UsageError(
                    f"{path}: has {size} bytes, and {nbytes} were written; restore it, or name another folder"
                )
    if not gone:
        return []
    more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
    return [f"{gone[0]}{more}: not there any more; their pieces count as done"]
