"""Paths of a command line to items: folders walked in sorted order, nothing silently passed over."""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterable, Iterator

from vsa_rt.runtime.companions import is_companion


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)


def _walk(folder: str, glob: str | None) -> Iterator[str]:
    """Regular files below a folder, and links that lead nowhere: those become an error of their item."""
    try:
        entries = _entries(folder)
    except OSError:
        yield folder  # decoding it says why it cannot be read
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, glob)
            continue
        if is_companion(entry.name) or (glob and not fnmatch.fnmatch(entry.name, glob)):
            continue
        try:
            mode = os.stat(entry.path).st_mode
        except OSError:
            yield entry.path  # a broken link or a loop
            continue
        # A linked folder is left out: it may lead anywhere, itself included. So are pipes and devices.
        if stat.S_ISREG(mode):
            yield entry.path


def items_from_paths(paths: Iterable[str], glob: str | None = None) -> Iterator[str]:
    """The items that paths stand for.

    Args:
        paths: Files are taken as they are; folders are walked recursively in sorted order, every regular file
            an item; hidden ones and ready tensors beside images (``a.jpg.objects.npy``) left out, linked folders
            not followed.
        glob: Take only files of a folder whose name fits this pattern.

    Yields:
        One path per item. A path that cannot be read is an item too, so that it gets its error.
    """
    for path in paths:
        if os.path.isdir(path):
            yield from _walk(path, glob)
        else:
            yield path
