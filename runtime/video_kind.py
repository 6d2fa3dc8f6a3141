"""Says from a name and a few bytes whether something is a video; opens nothing else, imports nothing heavy."""

from __future__ import annotations

import os
import re
import stat
from typing import Literal

#: Live feeds and files on servers that FFmpeg opens by their address.
FEEDS = ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp", "tcp")
SCHEMES = ("http", "https", *FEEDS)

_NAMES = (
    "3g2 3gp amv asf avi divx dv evo f4v flv gxf h264 h265 hevc ivf m1v m2t m2ts m2v m4v mjpeg mjpg mkv mov mp4 mpe"
    " mpeg mpg mpv mts mxf nsv nut obu ogm ogv qt rm rmvb vob vro webm wmv wtv y4m"
)
#: Suffixes in lower case. Not ``.ts``: it is TypeScript's too, and the content tells a transport stream.
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
#: Everything up to the last ``@`` before a slash; and, where what follows the first colon is no port, up to the first
#: ``@`` behind one: a password may have any of these in it.
_CREDENTIALS = re.compile(r"(://)(?:[^/?#]*@|(?!\[)[^/?#@:]*:(?![0-9]*(?:[/?#]|$))[^@]*@)")
_SECRET = re.compile(r"([?&;][^=&;#]*(?:pass|pwd|token|secret|sig|auth|key)[^=&;#]*=)[^&;#]*", re.IGNORECASE)

_STILL_BRANDS = {b"avif", b"avis", b"mif1", b"msf1", b"miaf"}
_STILL_BRANDS |= {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_VIDEO_BOXES = {b"ftyp", b"styp", b"moov", b"mdat", b"wide"}
_VIDEO_HEADS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"FLV\x01",
    b"OggS",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02",  # MXF
    b"YUV4MPEG2 ",
    b"DKIF",  # IVF
    b".RMF",
    b"nut/multimedia container",
)
_PICTURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
}


def address(source: str) -> tuple[str, str] | None:
    """An address's scheme in lower case, and the address without what is secret in it; none of a path.

    User name and password are left out; of ``?token=…``, ``&password=…`` and the like, the value is ``***``.
    """
    found = _ADDRESS.match(source)
    if found is None:
        return None
    return found[1].lower(), _SECRET.sub(r"\1***", _CREDENTIALS.sub(r"\1", source, count=1))


def kind_of(head: bytes) -> Literal["video", "picture", "unknown"]:
    """What the first bytes (512 are enough) begin. A GIF, PNG or WebP is a picture, whether or not it moves."""
    box, brand = head[4:8], head[8:12]
    if picture_name(head):
        return "picture"
    if (
        head.startswith(_VIDEO_HEADS)
        or box in _VIDEO_BOXES
        or (head[:4] == b"RIFF" and brand in (b"AVI ", b"AVIX"))
    ):
        return "video"
    # Transport streams: packets of 188 bytes, on Blu-ray discs behind four bytes of arrival time each.
    for lead, size in ((0, 188), (4, 192)):
        if len(head) > lead + 2 * size and all(head[lead + size * number] == 0x47 for number in range(3)):
            return "video"
    return "unknown"


def picture_name(head: bytes) -> str:
    """The format of the picture that the bytes begin; empty if they begin none."""
    for magic, name in _PICTURES.items():
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS:
        return "AVIF" if head[8:11] == b"avi" else "HEIF"
    return ""


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether something is for `vsa_rt.video` rather than for an image decoder; it reads 512 bytes at most.

    The content decides where it is known, the suffix where not: of an empty, cut off or unreadable file, and of formats
    without a signature. Of a moving GIF, PNG or WebP, which `vsa_rt.video` reads where FFmpeg does, the answer is no:
    as images their first picture counts. An address of a feed is a video; of one with ``http://`` the suffix decides.

    Args:
        path: A path, or an address.
    """
    text = os.fspath(path)
    found = address(text)
    if found is not None:
        scheme, plain = found
        return scheme in FEEDS or (scheme in SCHEMES and _has_suffix(re.split(r"[?#]", plain, maxsplit=1)[0]))
    kind = kind_of(head_of(text))
    return kind == "video" or (kind == "unknown" and _has_suffix(text) and not os.path.isdir(text))


def head_of(path: str) -> bytes:
    """The first 512 bytes of a regular file; none of anything else, which opening could block or disturb."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        with open(path, "rb", buffering=0) as file:
            return file.read(512) or b""
    except (OSError, ValueError):
        return b""


def _has_suffix(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in SUFFIXES
