"""The nouns that every stage shares: small frozen records and closed lists of words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, get_args

import msgspec
from numpy.typing import NDArray

from vsa_rt.errors import UsageError

#: Pillow's own bomb limit, twice ``Image.MAX_IMAGE_PIXELS``; more pixels than this are refused.
MAX_PIXELS = 178_956_970


class Precision(str, Enum):
    """The dtype policy that is written into a graph; ``mixed`` where backbones differ (see ``vsa_rt.plan``)."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    MIXED = "mixed"

    def __str__(self) -> str:
        return self.value


#: How one call is divided among cores. ``threads``: all of them work on the whole batch, layer by layer. ``images``:
#: each, or each group of them, takes a share of the images. ``branches``: each takes some of the backbones that share
#: no arithmetic; what joins them follows on all cores. On a GPU, ``merged``: one engine for the whole graph;
#: ``streams``: an engine for each backbone, each on a stream of its own, then one for what joins them.
Division = Literal["threads", "images", "branches", "merged", "streams"]
DIVISIONS: tuple[Division, ...] = get_args(Division)
#: Those of a CPU's cores.
CPU_DIVISIONS: tuple[Division, ...] = ("threads", "images", "branches")


class Task(str, Enum):
    """What a head's scores mean."""

    BINARY = "binary"
    SINGLE_LABEL = "single-label"
    MULTI_LABEL = "multi-label"
    DISTRIBUTION = "distribution"

    def __str__(self) -> str:
        return self.value


class Resample(str, Enum):
    """How the host resizes: to the last bit as the weights' own transform, or faster."""

    EXACT = "exact"
    FAST = "fast"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Target:
    """Where an engine runs, written ``backend:device``.

    Attributes:
        backend: A key of ``vsa_rt.engines.table.BACKENDS``, such as ``openvino``.
        device: The backend's own word for the device, such as ``cpu``.
    """

    backend: str
    device: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``backend:device``.

        Raises:
            UsageError: The text has another form.
        """
        backend, colon, device = text.strip().partition(":")
        if not colon or not backend or not device:
            raise UsageError(f"target {text!r}: expected BACKEND:DEVICE, such as openvino:cpu")
        return cls(backend, device)

    def covers(self, other: Target) -> bool:
        """Whether what was built for this one is what another one names: ``sm_86+sm_89`` is for either of the two."""
        devices = self.device.split("+")
        return self == other or (self.backend == other.backend and other.device in devices)

    def __str__(self) -> str:
        return f"{self.backend}:{self.device}"


class ResizeSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one graph input is made from an upright RGB image of any size.

    Attributes:
        height: Final height in pixels.
        width: Final width in pixels.
        fit: ``shortest`` resizes the shorter edge to ``scale`` and keeps the aspect; ``warp`` resizes to
            exactly ``height`` x ``width``. A centre crop to the final size follows ``shortest``.
        scale: Length of the shorter edge after ``shortest``; 0 with ``warp``.
        kernel: How pixels are interpolated, to the last bit as one library does it. ``bicubic`` and ``bilinear``
            are Pillow's, with antialiasing. The other two read two neighbours an axis however much the image
            shrinks: ``opencv-bilinear`` is ``cv2.resize`` with ``INTER_LINEAR`` (also MXNet's ``imresize``);
            ``tf-bilinear`` is TensorFlow's ``ResizeBilinear`` without aligned corners or half-pixel centres
            (graphs of TensorFlow 1, such as Inception of 2015-12-05), its fractions rounded to uint8.
    """

    height: int
    width: int
    fit: Literal["shortest", "warp"]
    kernel: Literal["bicubic", "bilinear", "opencv-bilinear", "tf-bilinear"]
    scale: int = 0

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"size {self.height} x {self.width} must be positive")
        if self.fit == "shortest" and self.scale < max(self.height, self.width):
            raise ValueError(f"scale {self.scale} is shorter than the crop {self.height} x {self.width}")
        if self.fit == "warp" and self.scale:
            raise ValueError("scale has no meaning with fit = warp")

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Size ``(height, width)`` of the whole image after the resize, before the crop."""
        if self.fit == "warp":
            return self.height, self.width
        # torchvision.transforms.functional.resize with one int: the longer edge is truncated.
        if width <= height:
            return int(self.scale * height / width), self.scale
        return self.scale, int(self.scale * width / height)

    def crop_offset(self, height: int, width: int) -> tuple[int, int]:
        """Offset ``(top, left)`` of the centre crop inside an image resized to ``(height, width)``."""
        # torchvision.transforms.functional.center_crop rounds half to even.
        return round((height - self.height) / 2.0), round((width - self.width) / 2.0)


#: ``moe``: each below 1, and they need not add up to 1. ``partial``: a softmax over more outputs than there are labels.
ScoresKind = Literal["softmax", "independent", "distribution", "moe", "partial"]


def scores_kind(task: Task, head: str = "") -> ScoresKind:
    """What kind of numbers a head of some kind gives for a task."""
    if head == "moe":
        return "moe"
    if head == "units":
        return "partial"
    if task is Task.MULTI_LABEL:
        return "independent"
    return "distribution" if task is Task.DISTRIBUTION else "softmax"


class Views(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Through how many views an image is looked at, where the head scores each and the mean is the image's.

    Attributes:
        count: 1 where the head sees the image once.
        rows: Of views that lie on a grid, row by row; 0 for crops such as corners and mirror images.
        columns: Of that grid.
        window: Share of the image's sides that one view of the grid covers; the first begins at the edge, the last
            ends at the other.
    """

    count: int = 1
    rows: int = 0
    columns: int = 0
    window: float = 0.0


@dataclass(frozen=True)
class Item:
    """An image with the ready tensors that belong to it.

    Attributes:
        image: A path, encoded bytes, a PIL image or a uint8 array ``(H, W, 3)`` in RGB.
        tensors: Input name to array, such as ``objects`` with a row per object.
    """

    image: Any
    tensors: Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one engine input or output; ``None`` stands for the batch axis."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Sentiment:
    """What one image says.

    Attributes:
        label: The winning label; ``None`` for multi-label tasks.
        labels: The labels over the decision threshold (multi-label only, else empty).
        scores: Label to score, in the recipe's order.
        scores_kind: ``softmax``, ``independent``, ``distribution``, ``moe`` or ``partial``.
        views: Scores of each view ``(V, C)`` in float32, whose mean the scores are; ``None`` where the head sees the
            image once.
    """

    label: str | None
    scores: dict[str, float]
    scores_kind: str
    labels: tuple[str, ...] = ()
    views: NDArray[Any] | None = field(default=None, compare=False, repr=False)
