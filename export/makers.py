"""Makers: what builds each architecture's network, and the preprocessing that travels with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import timm.data
import torch
from torch import nn

from vsa_rt.architecture import (
    TIMM,
    CaffeNetOptions,
    DualEncodingOptions,
    ObjectGraphOptions,
    ResNet152V2Options,
    SentimentStudentOptions,
    ShallowCnnOptions,
    YouTube8MPcaOptions,
    family_of,
)
from vsa_rt.contracts import ResizeSpec
from vsa_rt.errors import RecipeError
from vsa_rt.export.networks import (
    caffenet,
    dual_encoding,
    inception2015,
    object_graph,
    resnet152v2,
    sentiment_student,
    youtube8m,
)
from vsa_rt.export.timm_features import TimmFeatures, replace_adaptive_pools, resize_spec, uint8_transform
from vsa_rt.export.transforms import Transform
from vsa_rt.recipe import Backbone, options_of

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Network:
    """What an architecture makes before it has weights.

    Attributes:
        module: Its input to features ``(N, width)`` in float32.
        width: Length of the feature vector.
        weights: The module whose keys a checkpoint has, if it is an inner one.
        ignored: Prefixes of checkpoint keys that the network leaves out on purpose.
        head_layer: The layer that a head over the network stands for, if its weights may lie in the same checkpoint;
            its keys are ``head.weight`` and ``head.bias`` then. Empty if not.
        resize: How the host makes the image; ``None`` for a network that reads features.
        transform: The reference for ``resize``.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, of pixels in [0, 1].
    """

    module: nn.Module
    width: int
    weights: nn.Module | None = None
    ignored: tuple[str, ...] = ()
    head_layer: str = ""
    resize: ResizeSpec | None = None
    transform: Transform | None = None
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)


def _timm(backbone: Backbone, read: int) -> Network:
    """A network of timm, with the preprocessing of its data config.

    Raises:
        RecipeError: No such network, or preprocessing that the host does not have.
    """
    architecture = backbone.architecture.removeprefix(f"{TIMM}:")
    where = f"key `backbones.{backbone.name}.architecture`"
    if not timm.is_model(architecture):
        near = ", ".join(timm.list_models(f"*{architecture.split('_')[0]}*")[:5])
        raise RecipeError(
            f"{where}: timm has no architecture {architecture!r}{f'; near: {near}' if near else ''}"
        )
    network: Any = timm.create_model(architecture, pretrained=False, num_classes=0)
    config = timm.data.resolve_model_data_config(network)
    resize = resize_spec(config, where)
    replace_adaptive_pools(network)
    features = TimmFeatures(network, resize.height).eval()
    with torch.inference_mode():
        shape = features(torch.zeros(1, 3, resize.height, resize.width)).shape
    if len(shape) != 2:
        raise RecipeError(f"{where}: {architecture} gives features of shape {tuple(shape)}, expected (N, D)")
    names = network.pretrained_cfg.get("classifier") or ()
    return Network(
        features,
        int(shape[1]),
        weights=network,
        ignored=tuple(f"{n}." for n in ((names,) if isinstance(names, str) else names)),
        resize=resize,
        transform=uint8_transform(config),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _warp(size: int, kernel: Any) -> ResizeSpec:
    return ResizeSpec(height=size, width=size, fit="warp", kernel=kernel)


def _resnet152v2(backbone: Backbone, read: int) -> Network:
    """MXNet's ResNet-152: raw RGB, warped as MXNet's ``imresize`` does it (video-cnn-feat)."""
    options = options_of(backbone)
    crops = options.crops if isinstance(options, ResNet152V2Options) else "center"
    network = resnet152v2.ResNet152V2(crops)
    return Network(
        network,
        network.width,
        ignored=resnet152v2.IGNORED,
        resize=_warp(network.resized, "opencv-bilinear"),
        std=(1 / 255, 1 / 255, 1 / 255),
    )


def _inception2015(backbone: Backbone, read: int) -> Network:
    """Inception of the TF graph of 2015-12-05: (x - 128) / 128, warped as TensorFlow 1 does it."""
    network = inception2015.Inception2015()
    middle = 128 / 255
    return Network(
        network,
        network.width,
        ignored=inception2015.IGNORED,
        resize=_warp(299, "tf-bilinear"),
        mean=(middle, middle, middle),
        std=(middle, middle, middle),
    )


def _youtube8m_pca(backbone: Backbone, read: int) -> Network:
    options = options_of(backbone)
    known = options if isinstance(options, YouTube8MPcaOptions) else YouTube8MPcaOptions()
    network = youtube8m.YouTube8MPca(clip=known.clip, quantise=known.quantise, features=read)
    return Network(network, network.width)


def _shallow_cnn(backbone: Backbone, read: int) -> Network:
    options = options_of(backbone)
    known = options if isinstance(options, ShallowCnnOptions) else ShallowCnnOptions()
    network = youtube8m.ShallowCnn(
        read + known.audio,
        kernel=known.kernel,
        filters=known.filters,
        pool=known.pool,
        classes=known.classes,
        normalise=known.normalise,
        axis=known.axis,
        audio=known.audio,
    )
    return Network(network, network.width)


def _dual_encoding(backbone: Backbone, read: int) -> Network:
    options = options_of(backbone)
    known = options if isinstance(options, DualEncodingOptions) else DualEncodingOptions()
    form = dual_encoding.DualEncodingFrames if known.frames > 1 else dual_encoding.DualEncoding
    width = known.features if known.frames > 1 else read
    network = form(width, attention=known.attention, normalised=known.normalised)
    return Network(network, network.width)


def _object_graph(backbone: Backbone, read: int) -> Network:
    options = options_of(backbone)
    given = isinstance(options, ObjectGraphOptions) and options.objects == "features"
    network = object_graph.ObjectGraph(options.features if given else read)  # type: ignore[union-attr]
    return Network(network, network.width, ignored=object_graph.IGNORED)


def _caffenet(backbone: Backbone, read: int) -> Network:
    """CaffeNet: warped as ``caffe.io`` does it, minus the channels' means.

    scikit-image's bilinear of 2015 reads two neighbours an axis with half-pixel centres, as OpenCV's does; it stayed in
    floats, where this is rounded to bytes. The means are those of ``ilsvrc_2012_mean.npy`` over all pixels, blue first
    in the file: 104.00699, 116.66877, 122.67891.
    """
    options = options_of(backbone)
    known = options if isinstance(options, CaffeNetOptions) else CaffeNetOptions()
    network = caffenet.CaffeNet(known.top, known.oversample, known.map)
    return Network(
        network,
        network.width,
        head_layer=caffenet.NEXT[known.top],
        resize=_warp(network.size, "opencv-bilinear"),
        mean=(122.67891 / 255, 116.66877 / 255, 104.00699 / 255),
        std=(1 / 255, 1 / 255, 1 / 255),
    )


def _sentiment_student(backbone: Backbone, read: int) -> Network:
    """CVPR 2023: the whole image warped to 256 x 256 by Pillow, ImageNet's mean and deviation (torchvision's)."""
    options = options_of(backbone)
    known = options if isinstance(options, SentimentStudentOptions) else SentimentStudentOptions()
    network = sentiment_student.SentimentStudent(known.arch)
    return Network(
        network,
        network.width,
        ignored=sentiment_student.IGNORED_TORCHVISION,
        head_layer="head",
        resize=_warp(256, "bilinear"),
        mean=timm.data.IMAGENET_DEFAULT_MEAN,
        std=timm.data.IMAGENET_DEFAULT_STD,
    )


#: Architecture to what builds it, from the recipe's entry and the width of what it reads.
MAKERS: dict[str, Callable[[Backbone, int], Network]] = {
    TIMM: _timm,
    "resnet152-v2": _resnet152v2,
    "inception-2015": _inception2015,
    "youtube8m-pca": _youtube8m_pca,
    "shallow-cnn": _shallow_cnn,
    "dual-encoding": _dual_encoding,
    "object-graph": _object_graph,
    "caffenet": _caffenet,
    "sentiment-student": _sentiment_student,
}


def make_network(backbone: Backbone, read: int = 0) -> Network:
    """An architecture's network without weights.

    Args:
        backbone: The recipe's entry.
        read: Width of the features that it reads.

    Raises:
        RecipeError: timm has no such architecture, or its preprocessing is one that the host does not have.
    """
    return MAKERS[family_of(backbone.architecture)](backbone, read)
