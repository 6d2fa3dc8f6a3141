"""Architectures: what a backbone can be, what it reads, and which options it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

#: ``timm:NAME`` stands for any network of the timm library.
TIMM = "timm"


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


#: The options of some architecture.
Options = (
    NoOptions
    | ResNet152V2Options
    | YouTube8MPcaOptions
    | ShallowCnnOptions
    | DualEncodingOptions
    | ObjectGraphOptions
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
    """

    reads: Literal["image", "features", "objects"]
    formats: tuple[str, ...]
    options: type[Options] = NoOptions
    summary: str = ""
    encodes: bool = False
    exact: bool = False


#: Name in a recipe to what is known of it. What builds each stands in ``vsa_rt.export.backbones.MAKERS``.
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
    ),
    "inception-2015": Architecture(
        "image", ("pytorch-fid",), summary="Inception-v3 of the TF graph of 2015-12-05, to pool_3"
    ),
    "youtube8m-pca": Architecture(
        "features",
        ("youtube8m",),
        YouTube8MPcaOptions,
        "PCA with whitening of the YouTube-8M dataset",
        exact=True,
    ),
    "shallow-cnn": Architecture(
        "features", ("keras-arrays",), ShallowCnnOptions, "shallow CNN over a YouTube-8M feature"
    ),
    "dual-encoding": Architecture(
        "features", ("dual-encoding",), DualEncodingOptions, "visual branch of dual encoding"
    ),
    "object-graph": Architecture(
        "objects",
        ("object-graphs",),
        ObjectGraphOptions,
        "graph convolution over objects (ObjectGraphs)",
    ),
}


def family_of(architecture: str) -> str:
    """The table's key for a recipe's word: ``timm`` for ``timm:NAME``, else the word itself."""
    family, colon, _ = architecture.partition(":")
    return TIMM if colon and family == TIMM else architecture
