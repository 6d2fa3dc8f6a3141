"""Backbones: what builds each architecture, its weights, and the preprocessing that travels with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import timm
import timm.data
import torch
from torch import Tensor, nn

from vsa_rt.architecture import (
    ARCHITECTURES,
    TIMM,
    DualEncodingOptions,
    ObjectGraphOptions,
    ResNet152V2Options,
    ShallowCnnOptions,
    YouTube8MPcaOptions,
    family_of,
)
from vsa_rt.contracts import ResizeSpec
from vsa_rt.errors import CheckpointAbsent, RecipeError
from vsa_rt.export.checkpoint import load_weights
from vsa_rt.export.formats import FORMATS, read_checkpoint
from vsa_rt.export.networks import dual_encoding, inception2015, object_graph, resnet152v2, youtube8m
from vsa_rt.export.random_weights import Samples, randomise, seeded
from vsa_rt.export.timm_features import TimmFeatures, replace_adaptive_pools, resize_spec, uint8_transform
from vsa_rt.export.transforms import Transform, reference_transform
from vsa_rt.locate import locate, where_found
from vsa_rt.manifest import CheckpointRecord
from vsa_rt.recipe import Backbone, options_of, tensor_input, upstream

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Network:
    """What an architecture makes before it has weights.

    Attributes:
        module: Its input to features ``(N, width)`` in float32.
        width: Length of the feature vector.
        weights: The module whose keys a checkpoint has, if it is an inner one.
        ignored: Prefixes of checkpoint keys that the network leaves out on purpose.
        resize: How the host makes the image; ``None`` for a network that reads features.
        transform: The reference for ``resize``.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, of pixels in [0, 1].
    """

    module: nn.Module
    width: int
    weights: nn.Module | None = None
    ignored: tuple[str, ...] = ()
    resize: ResizeSpec | None = None
    transform: Transform | None = None
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class LoadedBackbone:
    """A network with its weights, and its place in the recipe.

    Attributes:
        entry: The recipe's words for it.
        made: The network and its preprocessing.
        record: Where the weights came from.
    """

    entry: Backbone
    made: Network
    record: CheckpointRecord

    @property
    def name(self) -> str:
        """The tap's name."""
        return self.entry.name

    @property
    def network(self) -> nn.Module:
        """Its input, normalised ``(N, 3, H, W)`` float32 for one that reads images, to ``(N, width)``."""
        return self.made.module

    @property
    def width(self) -> int:
        """Length of the feature vector."""
        return self.made.width

    @property
    def resize(self) -> ResizeSpec | None:
        """How the host makes the image; ``None`` for a network that reads features."""
        return self.made.resize

    @property
    def reads(self) -> str:
        """The backbone that has to run before it; empty for none."""
        return upstream(self.entry)

    @property
    def given(self) -> tuple[str, list[int]] | None:
        """Name and shape of the ready tensor that it takes."""
        return tensor_input(self.entry)


class Encoder(Protocol):
    """What a network offers through which regions of an image go as images do.

    Attributes:
        view_size: Side of what ``encode`` takes.
        view_share: Share of an image's sides that one view covers.
        view_count: Views of one image.
    """

    view_size: int
    view_share: float
    view_count: int

    def views(self, image: Tensor) -> Tensor:
        """Views ``(V * N, 3, view_size, view_size)`` of images, one view of all of them after the other."""
        ...

    def encode(self, views: Tensor) -> Tensor:
        """Features ``(M, width)`` of views or regions."""
        ...

    def fold(self, features: Tensor) -> Tensor:
        """An image's features ``(N, width)`` from those of its views, in the order of ``views``."""
        ...


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


#: Architecture to what builds it, from the recipe's entry and the width of what it reads.
MAKERS: dict[str, Callable[[Backbone, int], Network]] = {
    TIMM: _timm,
    "resnet152-v2": _resnet152v2,
    "inception-2015": _inception2015,
    "youtube8m-pca": _youtube8m_pca,
    "shallow-cnn": _shallow_cnn,
    "dual-encoding": _dual_encoding,
    "object-graph": _object_graph,
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


def _load_file(backbone: Backbone, network: Network, folder: Path, weights: Path | None) -> CheckpointRecord:
    """Load the checkpoint's tensors, all or none."""
    name, checkpoint = backbone.name, backbone.checkpoint
    if weights is None and not checkpoint.path:
        advice = f" {checkpoint.obtain}" if checkpoint.obtain else ""
        raise CheckpointAbsent(
            f"key `backbones.{name}.checkpoint`: missing; name a file with --weights {name}=PATH, or take seeded "
            f"weights with --random-weights SEED.{advice}"
        )
    path = weights or locate(checkpoint.path, folder, f"backbones.{name}.checkpoint.path", checkpoint.obtain)
    known = FORMATS[checkpoint.format or ARCHITECTURES[family_of(backbone.architecture)].formats[0]]
    state, sha256 = read_checkpoint(path, known, "" if weights else checkpoint.sha256)
    module = network.weights or network.module
    state = known.rename(state, module)
    load_weights(module, state, f"key `backbones.{name}.checkpoint`: {path}", network.ignored)
    return CheckpointRecord(sha256=sha256, found=where_found(path, "" if weights else checkpoint.path))


def load_backbone(
    backbone: Backbone,
    folder: Path,
    weights: Path | None = None,
    random_seed: int | None = None,
    samples: Samples | None = None,
) -> LoadedBackbone:
    """Build a network, load its weights and derive its preprocessing.

    Args:
        backbone: The recipe's entry.
        folder: The recipe's folder.
        weights: A file to use instead of the recipe's.
        random_seed: Seeded weights instead of any file.
        samples: What the backbones before it gave; needed by one that reads features.

    Returns:
        The network in evaluation mode.

    Raises:
        RecipeError: No such architecture, or preprocessing that the host does not have.
        CheckpointError: The weights are absent or do not fit.
    """
    samples = samples or Samples()
    read = upstream(backbone)
    with seeded(random_seed or 0, backbone.name):
        network = make_network(backbone, samples.width(read) if read else 0)
        if network.resize is not None and (backbone.resize is not None or network.transform is None):
            resize = backbone.resize or network.resize
            network = dataclasses.replace(network, resize=resize, transform=reference_transform(resize))
        if weights is None and random_seed is not None:
            own = network.weights is None
            sha256 = randomise(network.module, samples.inputs(backbone, network), own)
            record = CheckpointRecord(sha256=sha256, found="random weights", random_seed=random_seed)
        else:
            record = _load_file(backbone, network, folder, weights)
    network.module.eval().requires_grad_(False)
    loaded = LoadedBackbone(backbone, network, record)
    samples.add(loaded)
    return loaded
