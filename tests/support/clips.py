"""Awkward videos, made by PyAV: every frame carries its number, so that tests can say which one came out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_BITS = 8
#: Lossless, so that what comes out can be compared with what went in.
EXACT = {"qp": "0", "preset": "ultrafast"}


def numbered(number: int, size: tuple[int, int] = (48, 64)) -> NDArray[np.uint8]:
    """A picture ``(H, W, 3)`` whose columns are the bits of a number, in black and white."""
    height, width = size
    bits = [(number >> bit) & 1 for bit in range(_BITS)]
    columns = np.repeat(bits, -(-width // _BITS))[:width]
    return np.ascontiguousarray(np.broadcast_to((columns * 255)[None, :, None], (height, width, 3)), np.uint8)


def number_of(pixels: NDArray[np.uint8]) -> int:
    """The number that a picture carries, of whatever size it is."""
    height, width = pixels.shape[:2]
    cell = -(-width // _BITS)
    row = pixels[height // 2, :, 1]
    return sum(int(row[min(bit * cell + cell // 2, width - 1)] > 127) << bit for bit in range(_BITS))


def card(
    colours: Sequence[Sequence[int]], *, matrix: str, full: bool = False, deep: bool = False, size: int = 32
) -> tuple[VideoFrame, list[Sequence[int]]]:
    """A test card of patches side by side, 4:4:4, with sample values from the matrix's definition.

    ITU-R BT.601-7 items 2.5.1 to 2.5.4, BT.709-6 items 3.2 to 4.6, BT.2020-2 table 4.

    Args:
        colours: R'G'B' of each patch: 0 to 255, or of a deep card 0 to 1.
        matrix: ``bt601``, ``bt709`` or ``bt2020``.
        full: Full range.
        deep: Ten bits rather than eight.
        size: Of a patch, in pixels.

    Returns:
        The frame without colour tags, and the colours.
    """
    import av

    kr, kb = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}[matrix]
    rgb = np.asarray(colours, float) / (1 if deep else 255)
    luma = rgb @ [kr, 1 - kr - kb, kb]
    blue, red = (rgb[:, 2] - luma) / (2 * (1 - kb)), (rgb[:, 0] - luma) / (2 * (1 - kr))
    scale, most = (4, 1023) if deep else (1, 255)
    if full:
        planes = [most * luma, (most + 1) / 2 + most * blue, (most + 1) / 2 + most * red]
    else:
        planes = [scale * (16 + 219 * luma), scale * (128 + 224 * blue), scale * (128 + 224 * red)]
    frame = av.VideoFrame(size * len(rgb), size, "yuv444p10le" if deep else "yuv444p")
    for plane, values in zip(frame.planes, planes, strict=True):
        row = np.repeat(np.rint(values).clip(0, most), size).astype(np.uint16 if deep else np.uint8)
        _fill(plane, np.broadcast_to(row, (size, len(row))))
    return frame, list(colours)


def grey(values: Sequence[int], size: int = 32) -> VideoFrame:
    """Patches of 8-bit greyscale side by side."""
    import av

    row = np.repeat(np.asarray(values, np.uint8), size)
    frame = av.VideoFrame(len(row), size, "gray")
    _fill(frame.planes[0], np.broadcast_to(row, (size, len(row))))
    return frame


def _fill(plane: Any, samples: NDArray[Any]) -> None:
    rows = np.zeros((plane.height, plane.line_size // samples.itemsize), samples.dtype)
    rows[: len(samples), : samples.shape[1]] = samples
    plane.update(rows.tobytes())


def clip(
    path: Path,
    frames: Iterable[NDArray[np.uint8] | VideoFrame],
    *,
    codec: str = "libx264",
    rate: Fraction | int = 25,
    form: str | None = None,
    pix_fmt: str = "yuv420p",
    stamps: Sequence[int] | None = None,
    base: Fraction | None = None,
    gop: int = 10,
    options: dict[str, str] | None = None,
    muxing: dict[str, str] | None = None,
    aspect: Fraction | None = None,
    turn: tuple[float, bool] | None = None,
    tags: dict[str, int] | None = None,
    sound: bool = False,
) -> Path:
    """Write a video.

    Args:
        path: Where to.
        frames: RGB pictures ``(H, W, 3)``, or frames as they are to be encoded.
        codec: FFmpeg's encoder.
        rate: Frames a second.
        form: Container format; ``None`` goes by the suffix.
        pix_fmt: What pictures are converted to.
        stamps: Time stamps; 0, 1, 2, … if none.
        base: Their unit in seconds; 1/rate if none.
        gop: From one key frame to the next.
        options: The encoder's; `EXACT` for x264 if none.
        muxing: The container's.
        aspect: Sample aspect ratio.
        turn: Counter-clockwise degrees of the display matrix, and whether it mirrors.
        tags: Attributes of the encoder: ``colorspace``, ``color_range``, ….
        sound: Put a track of silence and an attached cover beside it.

    Returns:
        The path.
    """
    import av

    with av.open(str(path), "w", format=form, options=muxing or {}) as container:
        options = EXACT if options is None and codec == "libx264" else options or {}
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        context = stream.codec_context
        for name, value in (tags or {}).items():
            setattr(context, name, value)
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        if turn is not None:
            stream.set_display_rotation(turn[0], hflip=turn[1])
        silence: Any = container.add_stream("aac", rate=8000) if sound else None
        first = True
        for number, picture in enumerate(frames):
            frame: Any = picture
            if isinstance(picture, np.ndarray):
                frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pix_fmt)
            if first:
                context.width, context.height = frame.width, frame.height
                context.pix_fmt, context.gop_size = frame.format.name, gop
                first = False
            frame.pts = number if stamps is None else stamps[number]
            frame.time_base = base or 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        if first:
            context.width, context.height, context.pix_fmt = 64, 48, pix_fmt
            container.start_encoding()
        container.mux(stream.encode(None)) if not first else None
        if silence is not None:
            _silence(container, silence)
    return path


def _silence(container: Any, stream: Any) -> None:
    import av

    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts = 8000, 0
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def sound_only(path: Path) -> Path:
    """A file of silence."""
    import av

    with av.open(str(path), "w") as container:
        _silence(container, container.add_stream("aac", rate=8000))
    return path


def marked(frames: Iterable[VideoFrame], filters: str) -> list[VideoFrame]:
    """Frames that went through one of FFmpeg's filters: ``setfield=tff`` marks them as interlaced."""
    from av.filter import Graph

    found: list[VideoFrame] = []
    graph: Graph | None = None
    for frame in frames:
        if graph is None:
            graph = Graph()
            size = f"{frame.width}x{frame.height}"
            source = graph.add(
                "buffer", video_size=size, pix_fmt=frame.format.name, time_base="1/25", pixel_aspect="1/1"
            )
            name, _, options = filters.partition("=")
            graph.link_nodes(source, graph.add(name, options), graph.add("buffersink")).configure()
        graph.vpush(frame)
        found.append(graph.vpull())
    return found
