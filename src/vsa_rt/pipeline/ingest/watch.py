"""A folder that keeps growing: looked at again and again, each file taken once it is complete."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import NamedTuple

from vsa_rt.errors import UsageError
from vsa_rt.pipeline.ingest.folders import Found, files_below
from vsa_rt.pipeline.ingest.members import Stamp, stamp_of
from vsa_rt.pipeline.ingest.seen import Seen

_NS = 1_000_000_000


@dataclass(frozen=True)
class Watch:
    """How a growing folder is followed.

    Folders are polled: notifications of the system do not reach across network drives. A look asks for the size and
    the time of every file, so after a long one the next waits as long as it took.

    Attributes:
        period: Seconds between two looks; a writer that pauses for longer is taken to have finished.
        idle: End after so many seconds without a change; ``None``: only at ``stop``.
        stop: Ends it at once.
    """

    period: float = 1.0
    idle: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        if not 0 < self.period < float("inf"):
            raise UsageError(f"a period of {self.period} seconds between looks; expected a number above 0")
        if self.idle is not None and not 0 <= self.idle < float("inf"):
            raise UsageError(f"idle for {self.idle} seconds; expected a number of 0 or more")


class Complete(NamedTuple):
    """A file that is complete.

    Attributes:
        path: Its path.
        identity: Its identity.
        version: Empty the first time that a file of this path is given; after it was replaced,
            ``2026-11-22T17:00:00.123456789Z,48213``: time of change and size of the new one.
        error: Why it cannot be read: a folder that is closed to us; given once.
    """

    path: str
    identity: str
    version: str = ""
    error: str = ""


#: By what a file is known again while it is written and renamed.
_Place = tuple[int, int]


class _Watcher:
    def __init__(self, folders: Sequence[tuple[str, str]]) -> None:
        self._folders = folders
        self._before: dict[str, tuple[_Place, Stamp]] = {}  # identity to what the last look found
        self._given = Seen()  # path, size and time of change of what was given
        self._paths = Seen()
        self._unreadable = Seen()
        self.changed = False

    def look(self) -> Iterator[Complete]:
        """Files that are complete by now, while they are found."""
        now: dict[str, tuple[_Place, Stamp]] = {}
        by_place = dict(self._before.values())
        self.changed = False
        for folder, identity in self._folders:
            for found in files_below(folder, identity, hidden=True):
                if found.error:
                    yield from self._report(found)
                    continue
                seen = _look_at(found.path)
                if seen is None:
                    continue
                place, stamp = seen
                if f"{stamp.size} {stamp.mtime_ns} {found.identity}" in self._given:
                    continue
                # A file that was written under another name and renamed is known by its place on the drive. Some
                # network drives number files anew at each look, so the name comes first.
                _, before = self._before.get(found.identity, (place, by_place.get(place)))
                if before == stamp and not os.path.basename(found.path).startswith("."):
                    self.changed = True
                    yield self._give(found, stamp)
                else:
                    self.changed = self.changed or before != stamp
                    now[found.identity] = seen
        self._before = now

    def _give(self, found: Found, stamp: Stamp) -> Complete:
        self._given.add(f"{stamp.size} {stamp.mtime_ns} {found.identity}")
        version = "" if self._paths.add(found.identity) else version_of(stamp)
        return Complete(found.path, found.identity, version)

    def _report(self, found: Found) -> Iterator[Complete]:
        # A folder that is gone may have been moved, or its drive may come back.
        if os.path.lexists(found.path) and self._unreadable.add(found.identity):
            yield Complete(found.path, found.identity, error=found.error)


def _look_at(path: str) -> tuple[_Place, Stamp] | None:
    """Where a regular file lies and its stamp; ``None`` for what is none, or gone."""
    try:
        info = os.stat(path)
    except (OSError, ValueError):
        return None
    return ((info.st_dev, info.st_ino), stamp_of(info)) if stat.S_ISREG(info.st_mode) else None


def version_of(stamp: Stamp) -> str:
    """The version of a file that was replaced, for its key."""
    seconds, nanoseconds = divmod(stamp.mtime_ns, _NS)
    try:
        moment = f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}"
    except (ValueError, OverflowError, OSError):  # a year that the calendar has no number for
        moment = f"{seconds}s"
    return f"{moment}.{nanoseconds:09d}Z,{stamp.size}"


def follow(
    folders: Sequence[tuple[str, str]], options: Watch, clock: Callable[[], float] = time.monotonic
) -> Iterator[Complete]:
    """Files of growing folders, each as soon as it is complete.

    A file is complete once two looks found it with the same size and time of change, be it under another name the first
    time: one that was written as ``.part`` and renamed into place waits for no second look. The same path with the same
    size and time is given once, also if it vanishes and comes back; one that was replaced is given again, with its
    version. Memory: about 200 bytes for each file that was ever given, and 500 for each
    that waits.

    Args:
        folders: Paths and identities.
        options: How they are followed.
        clock: Seconds of a clock that only goes forward.

    Yields:
        Files, and folders that cannot be read; ends as the options say.
    """
    watcher = _Watcher(folders)
    since = clock()
    while not options.stop.is_set():
        began = clock()
        for complete in watcher.look():
            yield complete
            if options.stop.is_set():
                return
            began = since = clock()
        ended = clock()
        if watcher.changed:
            since = ended
        elif options.idle is not None and ended - since >= options.idle:
            return
        options.stop.wait(max(options.period, ended - began))
