"""Architectures: what a backbone can be, what it reads, which options it has, and how large that makes it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import msgspec

from vsa_rt.contracts import Views
from vsa_rt.errors import UsageError

#: ``timm:NAME`` stands for any network of the timm library.
TIMM = "timm"
#: Longer sides of images, in pixels, are nobody's wish; it bounds what a foreign recipe can allocate.
LARGEST_SIDE = 4096


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An architecture without options."""


class ResNet152V2Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``resnet152-v2``.

    Attributes:
        crops: ``center``, or ``ten``: the mean over corners, centre and their mirrors, as video-cnn-feat's
            features with the suffix ``os``.
    """

    crops: Literal["center", "ten"] = "center"


class YouTube8MPcaOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``youtube8m-pca``.

    Attributes:
        clip: Limit of the whitened values, as the dataset's storage has it; 0 for none.
        quantise: Round to the dataset's 8 bits.
    """

    clip: float = 2.0
    quantise: bool = False


class ShallowCnnOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``shallow-cnn``. It takes as many values as the backbone that it reads gives.

    Attributes:
        axis: What the convolution runs along: the ``features`` of one frame, or ``time``.
        kernel: Its length.
        filters: Its outputs.
        pool: Length of the max-pool behind it; with ``axis = "time"`` there is none.
        audio: Zeros appended in the place of audio features: 128 for a network trained with sound.
        normalise: Scale the input to unit L2 norm.
        classes: Sigmoid outputs; 3,862 in YouTube-8M.
    """

    axis: Literal["features", "time"] = "features"
    kernel: int = 3
    filters: int = 64
    pool: int = 2
    audio: int = 0
    normalise: bool = True
    classes: int = 3862


class DualEncodingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``dual-encoding``.

    Attributes:
        attention: ``one``: a softmax over a single value, so 1, as in the published code; ``raw``: the scalar
            gate itself; ``none``: the variant without attention on the visual side.
        normalised: Take the feature after the final L2 norm; else before it.
        frames: 1 reads a backbone's features of the image in the graph. More: an input ``frames`` of as many
            rows, features that the backbone gave elsewhere, fewer rows allowed.
        features: Length of one row of the input ``frames``.
    """

    attention: Literal["one", "raw", "none"] = "one"
    normalised: bool = True
    frames: int = 1
    features: int = 2048


class ObjectGraphOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``object-graph``.

    Attributes:
        objects: ``features``: an input ``objects`` with a vector per object, made elsewhere. ``boxes``: an
            input ``boxes``, whose regions go through the backbone that it reads, in the same call. ``grid``:
            the same with fixed regions: an approximation that needs no detector.
        count: Objects of one image at most; fewer are masked exactly.
        features: Length of one row of the input ``objects``.
        frame: Side in pixels of the warped image that regions are cut from.
    """

    objects: Literal["features", "boxes", "grid"] = "features"
    count: int = 50
    features: int = 2048
    frame: int = 512


class CaffeNetOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``caffenet``. With ``oversample`` or ``map`` the head scores each view; see ``Views``.

    Attributes:
        top: The last layer whose values are the features; the head stands for the layer above it.
        oversample: Ten crops of an image instead of its centre.
        map: All positions of an image of 451 pixels instead: the fully convolutional form.
    """

    top: Literal["pool5", "fc6", "fc7", "fc8"] = "fc7"
    oversample: bool = False
    map: bool = False


class SentimentStudentOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``sentiment-student``.

    Attributes:
        arch: Which network; the VGGs are those with BatchNorms.
    """

    arch: Literal["vgg16", "vgg19", "resnet18", "resnet50", "resnet101"] = "resnet50"


#: The options of some architecture.
Options = (
    NoOptions
    | ResNet152V2Options
    | YouTube8MPcaOptions
    | ShallowCnnOptions
    | DualEncodingOptions
    | ObjectGraphOptions
    | CaffeNetOptions
    | SentimentStudentOptions
)


@dataclass(frozen=True)
class Architecture:
    """What is known of an architecture before any library is loaded.

    Attributes:
        reads: ``image``; ``features`` of another backbone; or ``objects`` that another backbone encodes.
        formats: Checkpoint formats that its weights come in, the usual one first. Each may also lie in a
            safetensors file, with the published keys or the network's own.
        options: Their type.
        encodes: Whether regions of an image can go through it as images do: it offers ``views``, ``encode`` and
            ``fold``, as ``vsa_rt.export.backbones.Encoder`` says.
        exact: Whether its own arithmetic stays in float32 in lowered graphs: it cancels, so that rounding its
            input would drown its output.
        summary: What it is, for people.
        width: Length of the feature vector where it is always the same; 0 where not.
        sides: Least and greatest height and width, in pixels, of the image that it works on.
        view_options: Names of options that decide through how many views it looks at an image; its weights do not.
    """

    reads: Literal["image", "features", "objects"]
    formats: tuple[str, ...]
    options: type[Options] = NoOptions
    summary: str = ""
    encodes: bool = False
    exact: bool = False
    width: int = 0
    sides: tuple[int, int] = (1, LARGEST_SIDE)
    view_options: frozenset[str] = frozenset()


#: Name in a recipe to what is known of it. What builds each stands in ``vsa_rt.export.makers.MAKERS``.
ARCHITECTURES: dict[str, Architecture] = {
    TIMM: Architecture(
        "image", ("timm", "efficientnet-pytorch"), summary="any network of timm", encodes=True
    ),
    "resnet152-v2": Architecture(
        "image",
        ("mxnet",),
        ResNet152V2Options,
        "pre-activation ResNet-152 on raw pixels (MXNet model zoo)",
        encodes=True,
        width=2048,
        sides=(256, 256),  # its views are cut from 256 x 256
    ),
    "inception-2015": Architecture(
        "image",
        ("pytorch-fid",),
        summary="Inception-v3 of the TF graph of 2015-12-05, to pool_3",
        width=2048,
        sides=(75, LARGEST_SIDE),  # of less, its unpadded convolutions and pools leave no map
    ),
    "youtube8m-pca": Architecture(
        "features",
        ("youtube8m",),
        YouTube8MPcaOptions,
        "PCA with whitening of the YouTube-8M dataset",
        exact=True,
        width=1024,
    ),
    "shallow-cnn": Architecture(
        "features", ("keras-arrays",), ShallowCnnOptions, "shallow CNN over a YouTube-8M feature"
    ),
    "dual-encoding": Architecture(
        "features", ("dual-encoding",), DualEncodingOptions, "visual branch of dual encoding", width=2048
    ),
    "object-graph": Architecture(
        "objects",
        ("object-graphs",),
        ObjectGraphOptions,
        "graph convolution over objects (ObjectGraphs)",
    ),
    "caffenet": Architecture(
        "image",
        ("caffe",),
        CaffeNetOptions,
        "CaffeNet up to a layer: its centre crop, ten crops, or a map",
        view_options=frozenset({"oversample", "map"}),
    ),
    "sentiment-student": Architecture(
        "image",
        ("cvpr2023",),
        SentimentStudentOptions,
        "VGG or ResNet up to its global average pool (CVPR 2023)",
        sides=(32, LARGEST_SIDE),  # of less, its pools and strides leave no map
    ),
}
#: Length of what each layer of CaffeNet gives for one view, and of what each student gives.
_CAFFENET_WIDTHS = {"pool5": 9216, "fc6": 4096, "fc7": 4096, "fc8": 1000}
_STUDENT_WIDTHS = {"vgg16": 512, "vgg19": 512, "resnet18": 512, "resnet50": 2048, "resnet101": 2048}


def family_of(architecture: str) -> str:
    """The table's key for a recipe's word: ``timm`` for ``timm:NAME``, else the word itself."""
    family, colon, _ = architecture.partition(":")
    return TIMM if colon and family == TIMM else architecture


def sides_of(architecture: str, options: Options) -> tuple[int, int]:
    """Least and greatest height and width, in pixels, of the image that an architecture with these options takes."""
    if isinstance(options, CaffeNetOptions):
        return (451, 451) if options.map else (256, 256)  # what its positions, or its crops, are cut from
    return ARCHITECTURES[family_of(architecture)].sides


def views_of(options: Options) -> Views:
    """Through how many views an architecture with these options looks at an image."""
    if isinstance(options, CaffeNetOptions) and options.oversample:
        return Views(count=10)
    if isinstance(options, CaffeNetOptions) and options.map:
        # 451 pixels hold eight crops of 227, 32 apart (Campos et al. 2015, the fully convolutional deploy form).
        return Views(count=64, rows=8, columns=8, window=227 / 451)
    return Views()


def output_width(architecture: str, options: Options, read: int | None) -> int | None:
    """Length of an architecture's feature vector, as far as the table and the options tell it.

    Args:
        architecture: The recipe's word.
        options: Its options.
        read: Width of what it reads; ``None`` where that is not known, or for one that reads the image.

    Returns:
        ``None`` for a network of timm, and for one that is as wide as what it reads where that is not known.
    """
    if isinstance(options, ShallowCnnOptions):
        return options.classes
    if isinstance(options, ObjectGraphOptions):
        return options.features if options.objects == "features" else read
    if isinstance(options, CaffeNetOptions):
        return views_of(options).count * _CAFFENET_WIDTHS[options.top]
    if isinstance(options, SentimentStudentOptions):
        return _STUDENT_WIDTHS[options.arch]
    return ARCHITECTURES[family_of(architecture)].width or None


def parameters_of(options: Options, read: int) -> int:
    """Trained parameters of a network whose size its options or what it reads decide.

    Args:
        options: An architecture's.
        read: Width of what it reads in the graph; not looked at where it takes a ready tensor.

    Returns:
        Exactly as many as the network in ``vsa_rt.export.networks`` has; 0 for those of a fixed size and for timm's.
    """
    if isinstance(options, YouTube8MPcaOptions):
        return read + 1024 + read * 1024
    if isinstance(options, ShallowCnnOptions):
        length, filters, classes = read + options.audio, options.filters, options.classes
        if options.axis == "time":
            return (length * options.kernel + 1) * filters + (filters + 1) * classes
        return (options.kernel + 1) * filters + (length // options.pool * filters + 1) * classes
    if isinstance(options, DualEncodingOptions):
        width = options.features if options.frames > 1 else read
        hidden, states, filters, kernels, mapping = 1024, 2048, 512, (2, 3, 4, 5), 2048
        recurrent = 2 * 3 * hidden * (width + hidden + 2)
        attention = 0 if options.attention == "none" else (states + 1) * states + states + 1
        convolutions = sum((k * states + 1) * filters for k in kernels)
        joined = states + filters * len(kernels) + width
        return recurrent + attention + convolutions + (joined + 1) * mapping + 2 * mapping
    if isinstance(options, ObjectGraphOptions):
        width = options.features if options.objects == "features" else read
        return 2 * (width + 1) * width + 2 * (width + 2) * width
    return 0


def _levels(count: int) -> list[int] | None:
    """Boxes per side of each level: 1, 2, .. k and one finer level that fills the rest, for the largest k."""
    best, coarse, total = None, 0, 0
    while total < count:
        coarse += 1
        total += coarse * coarse
        rest = math.isqrt(max(count - total, 0))
        if total + rest * rest == count and (rest == 0 or rest > coarse):
            best = [*range(1, coarse + 1), *([rest] if rest else [])]
    return best


def grid_levels(count: int) -> list[int]:
    """How a number of fixed regions is spread over square grids, coarse before fine.

    Args:
        count: 1 + 4 + .. + k², or that and one larger square, for some k from 1 on.

    Returns:
        Boxes per side of each level: ``[1, 2, 3, 6]`` for 50.

    Raises:
        UsageError: The count is no such sum; the message names its neighbours.
    """
    levels = _levels(count)
    if levels is None:
        below = next((n for n in range(count - 1, 0, -1) if _levels(n)), None)
        above = next(n for n in itertools.count(max(count, 0) + 1) if _levels(n))
        raise UsageError(
            f"{count} boxes are no pyramid of square grids (1 + 4 + .. + k², and one larger square); "
            f"expected {f'{below} or ' if below else ''}{above}"
        )
    return levels
