"""What an interrupted sweep had finished: one JSON file per part, found again by everything that decides its content."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

import msgspec

from vsa_rt.documents import finite, write_whole

T = TypeVar("T")
FOLDER = "parts"


class Kept:
    """The finished parts in a folder.

    A part is taken from its file only where every word of its key is the same; a file that cannot be read is
    measured again.

    Args:
        folder: The report's folder.
        key: Everything that decides what any of the parts holds.

    Attributes:
        resumed: Parts that were not measured again, with the time at which they were.
    """

    def __init__(self, folder: Path, key: Mapping[str, object]) -> None:
        self._folder, self._key = folder / FOLDER, dict(key)
        self.resumed: list[str] = []

    def part(self, name: str, kind: type[T], make: Callable[[], T]) -> T:
        """A part: from its file, or made now and kept.

        Args:
            name: Its own within the key, and the beginning of the file's name.
            kind: Its type, as msgspec reads it.
            make: Measures it.
        """
        text = msgspec.json.encode({"part": name, **self._key}, order="deterministic")
        slug = "".join(c if c.isascii() and c.isalnum() else "-" for c in name[:64])
        file = self._folder / f"{slug}-{hashlib.sha256(text).hexdigest()[:16]}.json"
        try:
            found = msgspec.json.decode(file.read_bytes(), type=kind)
        except (OSError, msgspec.MsgspecError, RecursionError):
            made = make()
            write_whole(file, msgspec.json.encode(finite(msgspec.to_builtins(made))))
            return made
        when = datetime.fromtimestamp(file.stat().st_mtime, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.resumed.append(f"{name} of {when}")
        return found
