"""Paths, how they are spelled and which file they mean; and all files below a folder."""

from __future__ import annotations

import functools
import os
from collections.abc import Container, Iterator
from typing import NamedTuple

from vsa_rt.pipeline.ingest.members import why
from vsa_rt.runtime.companions import is_companion


def clean(path: str) -> str:
    """A path as keys spell it: without ``.``, doubled and last slashes; relative stays relative, ``..`` stays."""
    parts = "/".join(part for part in path.split("/") if part not in ("", "."))
    return "/" + parts if path.startswith("/") else parts or "."


def _real(path: str) -> str:
    return os.path.realpath(path)


class Identities:
    """Which file a path means, however it is spelled: links of its folders followed, its own not."""

    def __init__(self) -> None:
        self._real = functools.lru_cache(maxsize=1024)(_real)

    def of_file(self, path: str) -> str:
        """Of a file. A link to it is another file: it has a name of its own."""
        folder, name = os.path.split(path)
        return os.path.join(self._real(folder or "."), name)

    def of_folder(self, path: str) -> str:
        """Of a folder."""
        return self._real(path)


class Found(NamedTuple):
    """A file below a folder, or a folder that cannot be read, with the reason."""

    path: str
    identity: str
    error: str = ""


def files_below(
    folder: str, identity: str, leave: Container[str] = frozenset(), hidden: bool = False
) -> Iterator[Found]:
    """Everything below a folder that is no folder, sorted by name, folder after folder.

    Hidden folders, links to folders, and ready tensors beside images (``a.jpg.objects.npy``) are left out, as
    ``vsa-rt run`` leaves them out. The names of one folder are in memory at a time, about 100 bytes each.

    Args:
        folder: The folder, as its files' paths begin.
        identity: Its identity.
        leave: Identities of folders that are not entered.
        hidden: Whether hidden files are given, too; of visible folders.
    """
    ahead = [(folder, identity)]
    while ahead:
        folder, identity = ahead.pop()
        try:
            names, folders = _names(folder, hidden)
        except OSError as error:
            yield Found(folder, identity, f"the folder cannot be read: {why(error)}")
            continue
        names.sort(reverse=True)
        while names:
            name = names.pop()
            path = name if folder == "." else os.path.join(folder, name)
            yield Found(path, os.path.join(identity, name))
        for name in sorted(folders, reverse=True):
            path = name if folder == "." else os.path.join(folder, name)
            below = os.path.join(identity, name)
            if below not in leave:
                ahead.append((path, below))


def _names(folder: str, hidden: bool) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders in a folder."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as found:
        for entry in found:
            dotted = entry.name.startswith(".")
            if entry.is_dir(follow_symlinks=False):
                if not dotted:
                    folders.append(entry.name)
            elif (hidden or not dotted) and not is_companion(entry.name):
                files.append(entry.name)
    return files, folders
