"""Decoded frames to upright RGB pixels that are square, progressive, and of BT.709's colours.

Alpha is dropped, not blended, as of images; greyscale is expanded; more than eight bits are rounded to eight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.runtime.pixels import Refused, check_size
from vsa_rt.runtime.video_colour import conversion_of, matrix_of, to_bt709
from vsa_rt.runtime.video_times import rational

if TYPE_CHECKING:
    from av.filter import Graph
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_LIMITED, _FULL = 1, 2  # AVCOL_RANGE_MPEG and AVCOL_RANGE_JPEG
_RANGES = {_LIMITED: "limited", _FULL: "full"}
#: Without these the scaler is faster and on average a level too dark (measured over random colours, 8-bit 4:2:0).
_EXACT = "bicubic+accurate_rnd+full_chroma_int"


def graph_of(frame: VideoFrame, filters: Sequence[tuple[str, str]]) -> Graph:
    """A filter graph for frames like this one, with one thread: pixels do not depend on how work is divided."""
    from av.filter import Graph

    graph = Graph()
    graph.threads = 1
    size = f"{frame.width}x{frame.height}"
    # The time base says nothing: whoever reads the frames keeps their times beside them.
    source = graph.add(
        "buffer", video_size=size, pix_fmt=frame.format.name, time_base="1/90000", pixel_aspect="1/1"
    )
    nodes = [source, *(graph.add(name, options) for name, options in filters), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    return graph


@dataclass(frozen=True)
class _Look:
    """What decides how a frame is converted; frames that agree in it share a filter graph."""

    width: int
    height: int
    form: str
    matrix: str
    range: str
    size: tuple[int, int]
    deep: bool


class Converter:
    """Turns frames of one stream into pixels.

    Args:
        stream: Whose they are.
    """

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        self._look: _Look | None = None
        self._graph: Graph | None = None
        self._turn: tuple[int, tuple[int, int, int, int]] | None = None

    def pixels(
        self, frame: VideoFrame, before: VideoFrame | None, after: VideoFrame | None
    ) -> NDArray[np.uint8]:
        """Convert a frame.

        Args:
            frame: As decoded.
            before: The one before it, and
            after: the one after it, if they are next to it; an interlaced frame is told from its neighbours.

        Returns:
            ``(H, W, 3)``, dense, of its own memory.

        Raises:
            Refused: Colours or a size that are not converted.
        """
        wide = conversion_of(frame)
        look = self._look_of(frame, deep=wide is not None)
        rgb = self._rgb(progressive(frame, before, after) if frame.interlaced_frame else frame, look)
        pixels = to_bt709(rgb, *wide) if wide is not None else rgb
        if _is_grey(frame) and frame.color_range == _LIMITED:
            pixels = _STRETCH[pixels]  # FFmpeg takes all greyscale for full range
        return turned(pixels, self._turn_of(frame))

    def _turn_of(self, frame: VideoFrame) -> tuple[int, int, int, int]:
        # Whoever asks PyAV for side data makes the frame part of a cycle, and its memory waits for the collector. So
        # the first frame is asked, and each whose angle is another.
        if self._turn is None or self._turn[0] != frame.rotation:
            self._turn = frame.rotation, display_matrix(frame)
        return self._turn[1]

    def _look_of(self, frame: VideoFrame, *, deep: bool) -> _Look:
        form = frame.format.name
        matrix = "auto" if frame.format.is_rgb or _is_grey(frame) else matrix_of(frame)
        size = square(frame.width, frame.height, rational(self._stream.sample_aspect_ratio))
        check_size(*size)
        return _Look(
            frame.width, frame.height, form, matrix, _RANGES.get(frame.color_range, "auto"), size, deep
        )

    def _rgb(self, frame: VideoFrame, look: _Look) -> NDArray[Any]:
        form = "rgb48le" if look.deep else "rgb24"
        if self._graph is None or look != self._look:
            width, height = look.size
            scale = f"w={width}:h={height}:in_color_matrix={look.matrix}:in_range={look.range}:out_range=full:flags={_EXACT}"
            self._graph = graph_of(frame, [("scale", scale), ("format", form)])
            self._look = look
        self._graph.vpush(frame)
        return self._graph.vpull().to_ndarray()


#: 16…235 to 0…255, ITU-R BT.601-7 item 2.5.4 and BT.709-6 item 4.6.
_STRETCH = np.rint((np.arange(256) - 16) * (255 / 219)).clip(0, 255).astype(np.uint8)


def _is_grey(frame: VideoFrame) -> bool:
    return not frame.format.has_palette and sum(not part.is_alpha for part in frame.format.components) == 1


def square(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """The size with square pixels: the shorter side of a pixel is stretched, so that nothing is thrown away."""
    if aspect is None or aspect <= 0 or aspect == 1:
        return width, height
    if aspect > 1:
        return max(1, round(width * aspect)), height
    return width, max(1, round(height / aspect))


# Interlaced


def progressive(frame: VideoFrame, before: VideoFrame | None, after: VideoFrame | None) -> VideoFrame:
    """A frame of the frame's first field, its other lines interpolated.

    With a neighbour FFmpeg's `bwdif` does it, which keeps what stands still; without one, `estdif` from the field alone.
    """
    around = [other for other in (before, frame, after) if other is not None and _alike(other, frame)]
    if len(around) == 1:
        graph = graph_of(frame, [("estdif", "mode=frame:deint=all")])
    else:
        graph = graph_of(frame, [("bwdif", "mode=send_frame:deint=all")])
    shown = None
    wanted = next(number for number, other in enumerate(around) if other is frame)
    for number, output in enumerate(_through(graph, around)):
        if number == wanted:
            shown = output
    if shown is None:
        raise Refused("FFmpeg's deinterlacer gave no frame")
    return shown


def _alike(one: VideoFrame, other: VideoFrame) -> bool:
    return (one.width, one.height, one.format.name) == (other.width, other.height, other.format.name)


def _through(graph: Graph, frames: Sequence[VideoFrame]) -> list[VideoFrame]:
    from av.error import BlockingIOError, EOFError

    found = []
    for frame in (*frames, None):
        graph.vpush(frame)
        while True:
            try:
                found.append(graph.vpull())
            except (BlockingIOError, EOFError):
                break
    return found


# Upright


def display_matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """How a frame is to be turned: a, b, c, d of its display matrix, which shows (x, y) at (ax + cy, bx + dy)."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    values = np.frombuffer(bytes(data), np.int32)
    return int(values[0]), int(values[1]), int(values[3]), int(values[4])


def turned(pixels: NDArray[np.uint8], matrix: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Turn and mirror pixels as a display matrix asks, to the nearest right angle."""
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    if a < 0:
        pixels = pixels[:, ::-1]
    if d < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
