"""What a source is, by its name and its first bytes: picture, video, feed, archive or list."""

from __future__ import annotations

import os
import re
from typing import Literal

from vsa_rt.pipeline.ingest.records import Kind
from vsa_rt.runtime import video_kind

#: First bytes that tell a kind: three packets of an MPEG transport stream.
HEAD_BYTES = 512
IMAGE_SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
        ".pbm", ".pnm", ".avif", ".heic", ".heif",
    }
)  # fmt: skip
#: Archives that are looked into.
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
#: Archives that are known and not looked into.
_OTHER_ARCHIVES = (
    ".tar.bz2",
    ".tbz2",
    ".tar.xz",
    ".txz",
    ".tar.zst",
    ".tzst",
    ".tar.lz4",
    ".7z",
    ".rar",
    ".gz",
)
#: How the lines of a list are written, by the list's suffix.
LIST_FORMS: dict[str, Literal["lines", "csv", "jsonl"]] = {
    ".txt": "lines",
    ".lst": "lines",
    ".csv": "csv",
    ".jsonl": "jsonl",
}
_CAMERA = re.compile(r"/dev/video[0-9]+")
#: A text may begin like a bitmap or a pixmap; what follows in these does not.
_BITMAP = re.compile(rb"BM.{4}\0{4}", re.DOTALL)
_PIXMAP = re.compile(rb"P[1-6fy]\s+[#0-9]")
_BIG_TIFF = (b"II+\0", b"MM\0+")


def suffix(name: str) -> str:
    """A name's last suffix in lower case, with its point."""
    return os.path.splitext(name)[1].lower()


def _by_bytes(head: bytes) -> Kind | None:
    found = video_kind.kind_of(head)
    if found == "video":
        return "video"
    if head.startswith(b"BM"):
        return "image" if _BITMAP.match(head) else None
    return "image" if found == "picture" or head.startswith(_BIG_TIFF) or _PIXMAP.match(head) else None


def kind_of(name: str, head: bytes) -> Kind | None:
    """Whether a file is a picture or a video.

    Args:
        name: Its name; counts where the first bytes tell nothing.
        head: Its first bytes, up to ``HEAD_BYTES``; they count before the name, for videos do come as ``.gif``.

    Returns:
        ``image``, ``video``, or ``None`` where neither the bytes nor the name are known.
    """
    found = _by_bytes(head)
    if found is not None:
        return found
    if suffix(name) in video_kind.SUFFIXES:
        return "video"
    return "image" if suffix(name) in IMAGE_SUFFIXES else None


def is_archive(name: str) -> bool:
    """Whether a file is an archive that is looked into, by its name."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def is_other_archive(name: str) -> bool:
    """Whether a file is an archive in a format that is not looked into, by its name."""
    return name.lower().endswith(_OTHER_ARCHIVES)


def is_camera(path: str) -> bool:
    """Whether a path is that of a camera: ``/dev/video0``."""
    return _CAMERA.fullmatch(path) is not None
