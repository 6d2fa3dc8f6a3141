"""Files that appear whole, and stay after a power cut."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO


def partial(path: Path) -> Path:
    """Where a file is written before it gets its name: hidden, in the same folder, one for each name."""
    return path.with_name(f".{path.name}.partial")


def stage(path: Path, write: Callable[[BinaryIO], None]) -> int:
    """Write a file to the disk beside the name that it will have; nothing has that name yet.

    Args:
        path: The name.
        write: Writes the contents.

    Returns:
        Its size in bytes.

    Raises:
        OSError: It cannot be written; what there was of it is removed.
    """
    temporary = partial(path)
    try:
        with open(temporary, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
            return stream.tell()
    except BaseException:
        discard([path])
        raise


def publish(paths: Iterable[Path]) -> None:
    """Give staged files of one folder their names, and bring the names to the disk.

    A rename is atomic, and lasts only once its folder is synced (rename(2), fsync(2)).

    Raises:
        OSError: It cannot be done; the files before have their names, the others do not.
    """
    folders = set()
    for path in paths:
        os.replace(partial(path), path)
        folders.add(path.parent)
    for folder in folders:
        sync_folder(folder)


def discard(paths: Iterable[Path]) -> None:
    """Remove staged files. Who calls this has a graver error to tell than that one stayed."""
    for path in paths:
        try:
            partial(path).unlink()
        except OSError:
            continue  # not there, or the next run removes it


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk.

    Raises:
        OSError: It cannot be done, or the folder is not there.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
