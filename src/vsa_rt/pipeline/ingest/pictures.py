"""What a decoder is asked for, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vsa_rt.runtime.sampling import Sample

if TYPE_CHECKING:
    from typing import TypeAlias

    Job: TypeAlias = "ImageJob | VideoJob"

_EACH_SECOND = Sample("fps")


@dataclass(frozen=True, eq=False)
class Picture:
    """One decoded picture.

    Attributes:
        pixels: Upright RGB ``(H, W, 3)``, read-only. Memory that was shared with the decoder, and that is freed with
            the array and its views.
        seconds: Of a video: presentation time after its first frame.
        index: Of a video: its number among the frames that were looked at.
        decode_seconds: Processor time of the decoder since the picture before, or since the job began.
        perceptual: Of an image, where it was asked for: `vsa_rt.pipeline.ingest.duplicates.perceptual_hash`.
    """

    pixels: NDArray[np.uint8]
    seconds: float = 0.0
    index: int = 0
    decode_seconds: float = 0.0
    perceptual: str = ""


@dataclass(frozen=True)
class ImageJob:
    """Decode an image, see `vsa_rt.runtime.decode.decode`.

    Attributes:
        source: A path, or an encoded image.
        at_least: Height and width that suffice.
        perceptual: Take its perceptual hash, too.
    """

    source: str | bytes = field(repr=False)
    at_least: tuple[int, int] | None = None
    perceptual: bool = False


@dataclass(frozen=True)
class VideoJob:
    """Look at frames of a video, see `vsa_rt.video`.

    Attributes:
        source: A path, an address, or an encoded video.
        sample: Which frames.
        end: Seconds after the first frame; frames from there on are not looked at.
        threads: Of the decoder; 0 is one for each core.
        timeout: Seconds that opening may take, and each read after it. While a server is silent for so long, no
            progress is expected of the decoder.
        format: The FFmpeg input format, where the content does not tell.
    """

    source: str | bytes = field(repr=False)
    sample: Sample = _EACH_SECOND
    end: float | None = None
    threads: int = 0
    timeout: float = 30.0
    format: str | None = None
