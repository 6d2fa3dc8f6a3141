"""Words of a command line to pieces: files, folders, archives, lists, standard input, cameras and addresses.

Which file a word means is decided by its place, not by its spelling: one that two words name is one piece. Words are
taken in an order of their own, so that neither a piece nor its key depends on the order in which they were written:
single files, archives, cameras and addresses; lists; folders; standard input; watched folders at last.
"""

from __future__ import annotations

import fnmatch
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from vsa_rt.pipeline.ingest.archives import INSIDE, Archives
from vsa_rt.pipeline.ingest.folders import Identities, clean, files_below
from vsa_rt.pipeline.ingest.kinds import (
    ARCHIVE_SUFFIXES,
    HEAD_BYTES,
    IMAGE_SUFFIXES,
    LIST_FORMS,
    is_archive,
    is_camera,
    is_other_archive,
    kind_of,
    suffix,
)
from vsa_rt.pipeline.ingest.lists import Form, entries, expand
from vsa_rt.pipeline.ingest.members import FromPath, Limits, failed, open_regular, why
from vsa_rt.pipeline.ingest.records import Piece
from vsa_rt.pipeline.ingest.seen import Seen
from vsa_rt.pipeline.ingest.watch import Watch, follow
from vsa_rt.runtime.companions import not_a_file
from vsa_rt.runtime.video_kind import SCHEMES, address, is_video

STDIN = "-"
_LIST = "@"


def pieces(
    words: Iterable[str],
    *,
    glob: str | None = None,
    watch: Watch | None = None,
    known: Callable[[str], bool] | None = None,
    limits: Limits | None = None,
    stdin: BinaryIO | None = None,
) -> Iterator[Piece]:
    """What words stand for, piece by piece, each made when it is asked for.

    A word is a picture or video; a folder, walked as ``vsa-rt run`` does, archives in it looked into; a ``.tar``,
    ``.tar.gz``, ``.tgz`` or ``.zip``; a pattern of these (``shard-{000000..000099}.tar``); a list
    (``.txt``, ``.lst``, ``.csv``, ``.jsonl``, or any other behind ``@``); ``-``, a list of lines on standard input; a
    camera (``/dev/video0``); or an address (``rtsp://``, ``http://``, …). A line of a list may be all of these but a
    pattern, a list and ``-``; relative paths start at the working directory, as ``find`` writes them.

    A key is the path as it was given, tidied (``./a//b.jpg`` is ``a/b.jpg``; relative stays relative); below a folder,
    the folder and the way from it; in an archive, ``shard.tar!name.jpg``; an address goes without its password.
    What cannot be read is a piece that fails, so that it is counted.

    Memory: the words; the names of one folder, about 100 bytes each, while it is walked; about 100 bytes for each file
    that a word, a list or standard input names, and, if standard input comes after folders, for each of theirs.

    Args:
        words: As the command line has them.
        glob: Take only files of folders and members of archives whose name fits. Files that a word or a list names are
            always taken, and archives are always looked into.
        watch: Follow the folders among the words; ``None``: walk them once.
        known: Says of a key that its piece is done: it is not given, and its file not opened.
        limits: What archives may cost.
        stdin: Standard input; ``None``: the process's.

    Yields:
        Pieces with distinct keys.

    Raises:
        UsageError: A pattern stands for more than a million names.
    """
    return _Sources(glob, watch, known or _nothing_is_known, limits or Limits(), stdin).pieces(words)


def _nothing_is_known(_: str) -> bool:
    return False


class _Sources:
    def __init__(
        self,
        glob: str | None,
        watch: Watch | None,
        known: Callable[[str], bool],
        limits: Limits,
        stdin: BinaryIO | None,
    ) -> None:
        self._glob = glob
        self._watch = watch
        self._known = known
        self._stdin = stdin
        self._archives = Archives(glob, known, limits)
        self._identities = Identities()
        self._seen = Seen()
        self._remembers = True  # whether files of folders are put into `_seen`

    def pieces(self, words: Iterable[str]) -> Iterator[Piece]:
        single, lists, folders, streamed = self._sorted(words)
        for word in single:
            yield from self._named(word)
        for path in lists:
            yield from self._list(path)
        self._remembers = streamed
        if self._watch is None:
            for identity, path in folders.items():
                yield from self._below(path, identity, folders)
        if streamed:
            yield from self._entries(self._stdin or _standard_input(), STDIN, "lines")
        if self._watch is not None and folders:
            yield from self._followed(folders, self._watch)

    def _sorted(self, words: Iterable[str]) -> tuple[list[str], list[str], dict[str, str], bool]:
        """Words by what they are: single ones, lists, folders (identity to path), and whether `-` is among them."""
        single: list[str] = []
        lists: list[str] = []
        folders: dict[str, str] = {}
        streamed = False
        for word in _in_order(words):
            if word == STDIN:
                streamed = True
            elif word.startswith(_LIST):
                lists.append(clean(word[1:]))
            elif address(word):
                single.append(word)
            elif os.path.isdir(word):
                folders.setdefault(self._identities.of_folder(word), clean(word))
            elif suffix(word) in LIST_FORMS:
                lists.append(clean(word))
            else:
                single.append(word)
        return single, sorted(set(lists), key=_rank), folders, streamed

    # Single files, and lines of lists

    def _named(self, word: str, listed: bool = False) -> Iterator[Piece]:
        """What one word or line stands for."""
        found = address(word)
        if found is not None:
            yield from self._address(word, found[1])
            return
        path = clean(word)
        if listed and os.path.isdir(path):
            yield from self._below(path, self._identities.of_folder(path), ())
            return
        try:
            new = self._seen.add(self._identities.of_file(path))
        except (
            OSError,
            ValueError,
        ):  # a NUL character, or one that the file system cannot encode: `_file` says so
            new = self._seen.add(path)
        if new:
            yield from self._file(path, _key(path))

    def _address(self, word: str, key: str) -> Iterator[Piece]:
        if not self._seen.add(key) or self._known(key):
            return
        problem = _address_problem(word)
        if problem:
            yield failed(key, problem, "feed")
        elif _over_http(word) and is_video(word):
            yield Piece(key, "video", FromPath(word))  # it has an end
        else:
            yield Piece(key, "feed", FromPath(word))

    def _file(self, path: str, key: str) -> Iterator[Piece]:
        """One file: a piece, or those of an archive."""
        if is_archive(path):
            yield from self._archives.pieces(path, key)
        elif not self._known(key):
            yield _piece(path, key)

    # Lists

    def _list(self, path: str) -> Iterator[Piece]:
        try:
            stream = open(path, "rb")  # noqa: SIM115 - closed below; an error that comes later is none of the list's
        except (OSError, ValueError) as error:
            if not self._known(path):
                yield failed(path, f"the list cannot be read: {why(error)}")
            return
        with stream:
            yield from self._entries(stream, path, LIST_FORMS.get(suffix(path), "lines"))

    def _entries(self, stream: BinaryIO, name: str, form: Form) -> Iterator[Piece]:
        for entry in entries(stream, form):
            if not entry.error:
                yield from self._named(entry.text, listed=True)
            elif not self._known(f"{name}:{entry.number}"):
                yield failed(f"{name}:{entry.number}", entry.error)

    # Folders

    def _below(self, path: str, identity: str, others: Iterable[str]) -> Iterator[Piece]:
        """Files below a folder; those of folders that are words themselves come with these."""
        for found in files_below(path, identity, frozenset(others)):
            if not found.error and not self._takes(found.path):
                continue
            new = self._seen.add(found.identity) if self._remembers else found.identity not in self._seen
            if not new:
                continue
            if not found.error:
                yield from self._file(found.path, _key(found.path))
            elif not self._known(found.path):
                yield failed(found.path, found.error)

    def _followed(self, folders: dict[str, str], options: Watch) -> Iterator[Piece]:
        for complete in follow([(path, identity) for identity, path in folders.items()], options):
            key = _key(complete.path) + (f"@{complete.version}" if complete.version else "")
            if complete.error:
                if not self._known(key):
                    yield failed(key, complete.error)
            elif self._takes(complete.path) and (complete.version or complete.identity not in self._seen):
                yield from self._file(complete.path, key)

    def _takes(self, path: str) -> bool:
        """Whether a file of a folder fits; archives always do, for their members are asked."""
        name = os.path.basename(path)
        return not self._glob or is_archive(name) or fnmatch.fnmatch(name, self._glob)


def _standard_input() -> BinaryIO:
    """Standard input, as a stream of our own: who waits for a line holds its lock, and the interpreter's end must not."""
    try:
        return open(os.dup(sys.stdin.fileno()), "rb")
    except (OSError, ValueError):  # something else took its place, or it is closed
        return sys.stdin.buffer


def _rank(path: str) -> tuple[bool, str]:
    return path.startswith("/"), path


def _in_order(words: Iterable[str]) -> list[str]:
    """Words with their patterns expanded, each once, in an order that does not depend on theirs.

    Of two spellings of a file the relative one gives the key.
    """
    found: set[str] = set()
    for word in words:
        # A file may have braces in its name.
        pattern = "{" in word and not address(word) and not os.path.lexists(word)
        found.update(expand(word) if pattern else [word])
    return sorted(found, key=lambda word: (*_rank(clean(word)), word))


def _key(path: str) -> str:
    """A path's key. A file ``a.tar!b.jpg`` is none of the members of ``a.tar``, so its key gets a dot more."""
    if not any(f"{s}{INSIDE}" in path.lower() for s in ARCHIVE_SUFFIXES):
        return path
    return f"/.{path}" if path.startswith("/") else f"./{path}"


def _over_http(word: str) -> bool:
    found = address(word)
    return found is not None and found[0] in ("http", "https")


def _address_problem(word: str) -> str:
    """Why an address is not read; empty if it is."""
    found = address(word)
    if found is None or found[0] not in SCHEMES:
        return f"an address of a kind that is not read; expected {', '.join(SCHEMES)}"
    if _over_http(word) and suffix(re.split(r"[?#]", word, maxsplit=1)[0]) in IMAGE_SUFFIXES:
        return (
            "a picture at an address: only videos and feeds are read from there; fetch it and name the file"
        )
    return ""


def _piece(path: str, key: str) -> Piece:
    """The piece of a file that is no archive."""
    if is_camera(path):
        return Piece(key, "feed", FromPath(path))
    problem = not_a_file(path)
    if problem:
        return failed(key, problem, kind_of(path, b"") or "image")
    if is_other_archive(path):
        return failed(
            key, f"an archive in a format that is not read; expected one of {', '.join(ARCHIVE_SUFFIXES)}"
        )
    try:
        with open_regular(path) as stream:
            head = stream.read(HEAD_BYTES)
            size = os.fstat(stream.fileno()).st_size
    except (OSError, ValueError) as error:
        return failed(key, f"the file cannot be read: {why(error)}")
    # What is neither by its bytes nor by its name goes to the decoder of pictures, whose errors say what it is.
    return Piece(key, kind_of(path, head) or "image", FromPath(path), size)
