"""Tars, gzipped tars, zips and WebDataset shards: their pictures and videos as pieces, read into memory alone."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterator

from vsa_rt.pipeline.ingest.kinds import is_archive, is_other_archive, kind_of
from vsa_rt.pipeline.ingest.members import (
    Damaged,
    Holding,
    Limits,
    Member,
    Refused,
    failed,
    open_regular,
    stamp_of,
    why,
)
from vsa_rt.pipeline.ingest.records import Piece
from vsa_rt.pipeline.ingest.seen import Unique
from vsa_rt.pipeline.ingest.tars import tar_members
from vsa_rt.pipeline.ingest.zips import zip_members

#: Between an archive and its member in a key.
INSIDE = "!"
#: Linux's longest path; a longer name is shortened in its key.
_NAME = 4096
_GZIP = b"\x1f\x8b"
_ZIP = (b"PK\3\4", b"PK\5\6")


class Archives:
    """How a run looks into archives.

    A piece of a plain tar or a zip holds no bytes: opening it reads its member. Pieces of gzipped tars hold theirs, up
    to ``limits.held_bytes`` in the whole run. Besides, each archive holds about 100 bytes for every member's name.

    Args:
        glob: Take only members whose last name fits this pattern.
        known: Says of a key that it is done, so that its member is neither read nor given.
        limits: What an archive may cost.
    """

    def __init__(self, glob: str | None, known: Callable[[str], bool], limits: Limits) -> None:
        self._glob = glob
        self._known = known
        self._limits = limits
        self._holding = Holding(limits.held_bytes)

    def pieces(self, path: str, key: str) -> Iterator[Piece]:
        """The pictures and videos in an archive, in its order.

        Members are taken for what their first bytes say, then for what their suffix says. Those that are neither
        picture nor video are passed over: a shard carries labels and texts beside its pictures. So are hidden ones.
        Links, devices, sparse and encrypted members, archives in the archive and members that are too large become
        pieces that fail; a damaged archive gives the members before the damage and then one failing piece of its own.

        Args:
            path: The archive; its first bytes tell which kind.
            key: Its key; a member's is ``key!name``, with ``#2`` behind the name's second occurrence.

        Yields:
            Pieces. Their ``open`` returns bytes and may be called at any time, in any thread.
        """
        members = taken = 0
        names = Unique()
        try:
            for member in self._members(path):
                members += 1
                name = self._name(member)
                if name is None:
                    continue
                member_key = f"{key}{INSIDE}{names.name(name)}"
                if self._known(member_key):
                    taken += 1
                    continue
                piece = _piece(member, member_key, name)
                if piece is not None:
                    taken += 1
                    yield piece
                    del piece  # it may hold bytes, which the next one needs room for
        except Damaged as error:
            reason = f"a damaged archive: {error}"
        else:
            fitting = f" that fits {self._glob!r}" if self._glob else ""
            reason = "" if taken else f"no picture and no video{fitting} among its {members:,} members"
        if reason and not self._known(key):
            yield failed(key, reason)

    def _name(self, member: Member) -> str | None:
        """A member's name in its key; ``None`` if it is hidden or does not fit."""
        name = _readable(member.name)
        fits = not self._glob or fnmatch.fnmatch(_base(name), self._glob)
        return name if fits and not _hidden(name) else None

    def _members(self, path: str) -> Iterator[Member]:
        """Members of an archive, by its first bytes.

        Raises:
            Damaged: It cannot be opened, or not read further.
        """
        try:
            with open_regular(path) as stream:
                stamp = stamp_of(os.fstat(stream.fileno()))
                head = stream.read(4)
                stream.seek(0)
                if not head:
                    raise Damaged("empty (0 bytes)")
                if head.startswith(_ZIP) or path.lower().endswith(".zip"):
                    yield from zip_members(path, stream, stamp, self._limits)
                else:
                    packed = head.startswith(_GZIP)
                    yield from tar_members(path, stream, stamp, packed, self._limits, self._holding)
        except (OSError, ValueError) as error:
            raise Damaged(f"it cannot be read: {why(error)}") from None


def _piece(member: Member, key: str, name: str) -> Piece | None:
    """A member's piece; ``None`` for one that is neither picture nor video.

    Raises:
        Damaged: The archive ends or breaks in it.
    """
    base = _base(name)
    if is_archive(base) or is_other_archive(base):
        return failed(key, "an archive in an archive: not looked into; unpack it and name it")
    try:
        kind = kind_of(base, member.head())
        return None if kind is None else Piece(key, kind, member.opener(key), member.size)
    except Refused as error:
        return failed(key, str(error))
    except Damaged:
        raise
    except Exception as error:  # noqa: BLE001 - a stranger's archive must not end the run, whatever it makes us do
        raise Damaged(f"it cannot be read: {why(error)}") from None


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _readable(name: str) -> str:
    """A member's name in a key: without a ``./`` before it, and no longer than a path can be."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name if len(name) <= _NAME else f"{name[: _NAME // 2]}…{name[-_NAME // 2 :]}"


def _hidden(name: str) -> bool:
    return any(part.startswith(".") and part != "." and not part.startswith("..") for part in name.split("/"))
