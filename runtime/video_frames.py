"""Decodes a video frame by frame, and says at the end what of it was damaged or missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

from vsa_rt.contracts import MAX_PIXELS
from vsa_rt.runtime.pixels import Refused
from vsa_rt.runtime.video_health import Health
from vsa_rt.runtime.video_source import Opened, Source, next_packet, sentence
from vsa_rt.runtime.video_times import Timeline, frame_step, time_base

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.frame import VideoFrame

    from vsa_rt.runtime.video_source import VideoSource


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded frame, not yet converted.

    Attributes:
        frame: FFmpeg's.
        seconds: Presentation time after the video's first frame.
        key: Whether it is a key frame.
        cut: Whether a scene begins with it; known only where that was asked for.
        before: Of an interlaced frame: the one before it, if it is next to it.
        after: Of an interlaced frame: the one after it, if it is next to it.
    """

    frame: VideoFrame
    seconds: Fraction
    key: bool
    cut: bool = False
    before: VideoFrame | None = None
    after: VideoFrame | None = None


class Heard(Source):
    """A source whose packets are heard of, whoever reads them.

    Args:
        source: See `Source`.
        alive: Called for every packet of every stream.
        options: See `Source`.
    """

    def __init__(self, source: VideoSource, alive: Callable[[], object], **options: Any) -> None:
        super().__init__(source, **options)
        self._alive = alive

    @contextmanager
    def open(self) -> Iterator[Opened]:
        """See `Source.open`."""
        with super().open() as opened:
            yield replace(opened, container=cast("InputContainer", _Container(opened.container, self._alive)))


class _Container:
    """An FFmpeg container that says of each packet that it was read."""

    def __init__(self, container: InputContainer, alive: Callable[[], object]) -> None:
        self._container = container
        self._alive = alive

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def demux(self, *streams: Any) -> Iterator[Packet[Stream]]:
        for packet in self._container.demux(*streams):
            self._alive()
            yield packet


class Reader:
    """Reads the video of an opened container once, in order.

    Args:
        opened: What to read.
        keys: Decode key frames only. Where the container has no time stamps every frame is decoded all the same:
            the frame rate can place key frames only by what lies between them.
        needed: Which packets of the video to decode, by their number; ``None`` decodes them all.
        origin: Time stamp of the video's first frame, where reading does not begin with it.

    Attributes:
        health: What was met so far.
    """

    def __init__(
        self,
        opened: Opened,
        *,
        keys: bool = False,
        needed: Sequence[bool] | None = None,
        origin: int | None = None,
    ) -> None:
        self._opened = opened
        self._stream = opened.stream
        self._context = opened.stream.codec_context
        self._keys = keys
        self._needed = needed
        self._origin = origin
        self.health = Health(opened, complete=origin is None, decoded=needed is None and not keys)

    def frames(self) -> Iterator[tuple[VideoFrame, Fraction]]:
        """Every frame with its time in seconds.

        Raises:
            Refused: After the last frame: what is damaged or missing.
        """
        timeline = Timeline(time_base(self._stream), frame_step(self._stream), self._origin)
        for frame in self._decoded():
            yield frame, timeline.place(frame.pts)

    def _decoded(self) -> Iterator[VideoFrame]:
        failure = ""
        # The packets of all streams tell how far a container goes that states nothing else.
        packets = self._opened.container.demux(*(() if self.health.watches_all else (self._stream,)))
        position, skipped = -1, False
        while True:
            try:
                packet = next_packet(packets, self._opened.timeout)
            except Refused as refused:
                failure = str(refused)
                break
            if packet is None:
                break
            self.health.reached(packet)
            if packet.stream_index != self._stream.index:
                continue
            position += 1
            if position == 0 and self._keys and packet.pts is not None:
                self._context.skip_frame = "NONKEY"
            if self._needed is not None and position < len(self._needed) and not self._needed[position]:
                skipped = True
                continue
            if skipped:
                yield from self._decode(None)
                self._context.flush_buffers()
                skipped = False
            if self.health.usable(packet):
                yield from self._decode(packet)
        yield from self._decode(None)
        self.health.check(failure)

    def _decode(self, packet: Packet[Stream] | None) -> Iterator[VideoFrame]:
        from av.error import EOFError, FFmpegError

        if packet is None and not self._context.is_open:
            return
        try:
            frames = self._context.decode(packet)
        except EOFError:  # emptied before
            return
        except FFmpegError as error:
            # A decoder that was refused a size keeps none.
            too_large = "" if self._context.width else f", or a size of more than {MAX_PIXELS:,} pixels"
            self.health.failed(sentence(error) + too_large)
            return
        for frame in frames:
            if self.health.shown(frame):
                yield frame
