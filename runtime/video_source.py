"""Opens a video: a path, bytes, a file object or an address, as one FFmpeg container under limits.

What FFmpeg may do on the way is closed down, because files come from strangers. A file may not make it open another
file or an address (playlists, scripts of files, references), text is not drawn as a picture, and an address may not lead
back to this machine's files. A format that the caller names is taken at the caller's word.

A container of up to 1,000 streams, FFmpeg's own limit, is read; of them the video that FFmpeg holds for the best is
shown. Sound, subtitles, attachments and cover pictures are passed over.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO

from vsa_rt.contracts import MAX_PIXELS
from vsa_rt.errors import needs
from vsa_rt.runtime.pixels import Refused, check_size
from vsa_rt.runtime.video_kind import SCHEMES, address, head_of, picture_name

if TYPE_CHECKING:
    from typing import TypeAlias

    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

    VideoSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

#: Demultiplexers that open what a file names, draw text, or would read still pictures and cameras by a path.
_NAMES = (
    "adf alias_pix alsa applehttp avisynth bin brender_pix concat concatf dash data fbdev ffmetadata fileseq hls idf"
    " image2 image2pipe imf jack kmsgrab lavfi oss pulse rtp rtsp sap sdp tty v4l2 vapoursynth video4linux2"
    " webm_dash_manifest x11grab xbin xcbgrab"
)
_FOLLOWING = frozenset(_NAMES.split())
_OF_ADDRESSES = frozenset(("applehttp", "dash", "hls", "rtp", "rtsp", "sdp"))
#: What an address's transport is made of. Files are in none of them.
_TRANSPORTS = {
    "http": "http,https,tcp,tls,httpproxy,crypto,data",
    "https": "http,https,tcp,tls,httpproxy,crypto,data",
    "rtsp": "rtsp,rtsps,rtp,srtp,udp,tcp,tls,http,https",
    "rtsps": "rtsp,rtsps,rtp,srtp,udp,tcp,tls,http,https",
    "rtmp": "rtmp,rtmps,rtmpt,rtmpts,tcp,tls,http,https",
    "rtmps": "rtmp,rtmps,rtmpt,rtmpts,tcp,tls,http,https",
    "rtp": "rtp,srtp,udp",
    "srt": "srt,udp",
    "udp": "udp",
    "tcp": "tcp",
}
_VIDEO4LINUX_MAJOR = 81  # Documentation/admin-guide/devices.txt of Linux
_SPECIAL = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True, eq=False)
class Opened:
    """A container, and the one stream of it that is looked at.

    Attributes:
        container: FFmpeg's.
        stream: Its video.
        timeout: Seconds that one read may take.
    """

    container: InputContainer
    stream: VideoStream
    timeout: float

    @property
    def format(self) -> frozenset[str]:
        """The container format's names."""
        return frozenset(self.container.format.name.split(","))


class Source:
    """Something that can be opened.

    Args:
        source: A path, an encoded video, an opened binary file (read from where it stands, and left open), or an
            address.
        timeout: Seconds that opening may take, and each read after it.
        format: An FFmpeg input format; ``None`` looks at the content.
        threads: Of the decoder; 0 leaves it to FFmpeg.

    Attributes:
        item: What to call it: the path, the address without a password, or ``video``.
        again: Whether it can be opened twice and sought in at little cost.
    """

    def __init__(
        self, source: VideoSource, *, timeout: float, format: str | None = None, threads: int = 0
    ) -> None:
        self._source = source
        self._timeout = timeout
        self._format = format
        self._threads = threads
        self._begin: int | None = None
        self.item, self.again = "video", True
        if isinstance(source, (str, os.PathLike)):
            text = os.fspath(source)
            found = address(text)
            self.item = found[1] if found else text
            self.again = found is None and format is None
        elif not isinstance(source, (bytes, bytearray, memoryview)):
            self.item = str(getattr(source, "name", "video"))
            self.again = _seekable(source)
            if self.again:
                self._begin = source.tell()

    @contextmanager
    def open(self) -> Iterator[Opened]:
        """Open it, for a ``with`` block.

        Raises:
            Refused: It is not there, not a video, or over a limit.
        """
        with needs("video"):
            import av
        target, options = self._target(), {"max_pixels": str(MAX_PIXELS)}
        if self._format is not None and self._format not in _input_formats():
            raise Refused(f"this build of FFmpeg reads no input format {self._format!r}")
        form = self._format
        if isinstance(target, str) and form is None:
            scheme, target, form = self._local(target)
            options |= _limits(scheme, form)
        elif form is None:
            options |= _limits("", None)
        with reasons(self._timeout, waits=True):
            try:
                container = av.open(
                    target,
                    "r",
                    format=form,
                    options=options,
                    timeout=self._timeout,
                    **_lenient(av.__version__),
                )
            except (av.error.InvalidDataError, av.error.ArgumentError) as error:
                if self.again:
                    raise Refused(self._unreadable(target, error)) from None
                raise
        try:
            stream = _video_of(container)
            context = stream.codec_context
            if context.width or context.height:
                check_size(context.width, context.height)
            context.thread_type, context.thread_count = "AUTO", self._threads
            context.options = {"max_pixels": str(MAX_PIXELS)}
            yield Opened(container, stream, self._timeout)
        finally:
            container.close()

    def _target(self) -> Any:
        source = self._source
        if isinstance(source, (str, os.PathLike)):
            return os.fspath(source)
        if isinstance(source, (bytes, bytearray, memoryview)):
            if not len(source):
                raise Refused("empty (0 bytes), expected a video")
            return io.BytesIO(source)
        if isinstance(source, io.TextIOBase):
            raise Refused("a file opened for text; open it with mode 'rb'")
        if not callable(getattr(source, "read", None)):
            raise Refused(f"expected a path, an address, bytes or a binary file, got {type(source).__name__}")
        if self._begin is not None:
            source.seek(self._begin)
        return source

    def _local(self, text: str) -> tuple[str, str, str | None]:
        """The scheme, what FFmpeg is to open, and the input format where that must be given."""
        found = address(text)
        if found is not None:
            if found[0] not in SCHEMES:
                raise Refused(f"an address of kind {found[0]}://, expected one of {', '.join(SCHEMES)}")
            return found[0], text, None
        with reasons(self._timeout):
            info = os.stat(text)
            if stat.S_ISCHR(info.st_mode) and os.major(info.st_rdev) == _VIDEO4LINUX_MAJOR:
                if "v4l2" not in _input_formats():
                    raise Refused("a camera, and this build of FFmpeg has no v4l2 input")
                return "", text, "v4l2"
            if stat.S_ISDIR(info.st_mode):
                raise Refused("a folder, expected a video file")
            if not stat.S_ISREG(info.st_mode):
                special = _SPECIAL.get(stat.S_IFMT(info.st_mode), "a special file")
                raise Refused(f"{special}, expected a video file")
            if not info.st_size:
                raise Refused("empty (0 bytes), expected a video")
            if not os.access(text, os.R_OK):
                raise Refused("no permission to read the file")
        # The prefix keeps FFmpeg from reading a file's name as an address.
        return "", "file:" + os.path.abspath(text), None

    def _unreadable(self, target: Any, error: BaseException) -> str:
        if isinstance(target, str):
            head = head_of(target.removeprefix("file:"))
        elif isinstance(target, io.BytesIO):
            head = target.getvalue()[:512]
        else:
            head = b""
        picture = picture_name(head)
        if picture:
            return f"a {picture} picture that FFmpeg does not read as a video; pass it as an image"
        return f"not a video that FFmpeg can read: {sentence(error)}"


def _seekable(file: Any) -> bool:
    try:
        return bool(file.seekable())
    except (AttributeError, ValueError, OSError):
        return False


def _lenient(version: str) -> dict[str, Any]:
    """What makes PyAV open files whose titles are not UTF-8; from its version 19 on nothing is needed."""
    return {"metadata_errors": "replace"} if int(version.partition(".")[0]) < 19 else {}


@lru_cache(maxsize=1)
def _input_formats() -> frozenset[str]:
    import av

    return frozenset(name for names in av.formats_available for name in names.split(","))


def _limits(scheme: str, form: str | None) -> dict[str, str]:
    if form is not None:  # a camera
        return {}
    refused = _FOLLOWING - _OF_ADDRESSES if scheme else _FOLLOWING
    allowed = sorted(name for name in _input_formats() - refused if not name.endswith("_pipe"))
    limits = {"format_whitelist": ",".join(allowed), "protocol_whitelist": _TRANSPORTS.get(scheme, "file")}
    # Cameras behind firewalls deliver nothing over UDP, and say nothing either.
    return limits | ({"rtsp_flags": "prefer_tcp"} if scheme in ("rtsp", "rtsps") else {})


def _video_of(container: InputContainer) -> VideoStream:
    from av.stream import Disposition

    still = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    streams = container.streams
    moving = [stream for stream in streams.video if not stream.disposition & still]
    if not moving:
        found = sorted({stream.type for stream in streams} - {"video"})
        cover = ["a cover picture"] if streams.video else []
        raise Refused(f"no video in it, only {' and '.join(found + cover) or 'no streams at all'}")
    decodable = [stream for stream in moving if stream.codec_context is not None]
    if not decodable:
        raise Refused("this build of FFmpeg has no decoder for its video")
    best = streams.best("video")
    return next(
        (stream for stream in decodable if best is not None and stream.index == best.index), decodable[0]
    )


# Reasons


@contextmanager
def reasons(timeout: float, *, waits: bool = False) -> Iterator[None]:
    """Turns what FFmpeg and the system raise into one sentence.

    Args:
        timeout: Seconds after which FFmpeg was to give up.
        waits: The block is one call that waits so long at most: an error after that time is that time's.

    Raises:
        Refused: With the sentence.
    """
    with needs("video"):
        import av
    began = time.monotonic()
    try:
        yield
    except Refused:
        raise
    except MemoryError:
        raise Refused("not enough memory to decode it") from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        late = waits and time.monotonic() - began >= timeout
        if late or isinstance(error, av.error.ExitError):
            raise Refused(_silent(timeout)) from None
        reason = next((words for kind, words in _REASONS if isinstance(error, kind)), None)
        if getattr(error, "errno", None) == errno.EPERM:  # of a damaged file, not of its permissions
            reason = None
        raise Refused(reason or f"it cannot be read: {sentence(error)}") from None


_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (FileNotFoundError, "no such file"),
    (PermissionError, "no permission to read it"),
    (ConnectionRefusedError, "the server refused the connection"),
    (EOFError, "no frames: it ends before the first"),
)


def _silent(timeout: float) -> str:
    return f"nothing came for {timeout:g} s (timeout)"


def next_packet(packets: Iterator[Packet[Stream]], timeout: float) -> Packet[Stream] | None:
    """The next packet; none at the end.

    Raises:
        Refused: It cannot be read, or did not come in time.
    """
    began = time.monotonic()
    with reasons(timeout, waits=True):
        packet = next(packets, None)
    if packet is not None and packet.size:
        return packet
    # PyAV marks the end by empty packets. RTSP calls an end what is a silence.
    if time.monotonic() - began >= timeout:
        raise Refused(_silent(timeout))
    return None


def sentence(error: BaseException) -> str:
    """An error's text without the file's name, as part of one sentence."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split()).rstrip(".")[:200] or type(error).__name__
