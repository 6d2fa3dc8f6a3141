"""Backbones: image to feature vector, with the preprocessing that travels with the weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import timm.data
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vsa_rt.contracts import ResizeSpec
from vsa_rt.errors import CheckpointAbsent, RecipeError
from vsa_rt.export.checkpoint import RENAME, load_weights, read_checkpoint
from vsa_rt.locate import locate, where_found
from vsa_rt.manifest import CheckpointRecord
from vsa_rt.recipe import Backbone

#: An upright RGB picture to the network's uint8 input ``(H, W, 3)``: the weights' own transform.
Transform = Callable[[Image.Image], NDArray[np.uint8]]


@dataclass(frozen=True)
class LoadedBackbone:
    """A network with its weights and everything that belongs to them.

    Attributes:
        name: The tap's name.
        network: Normalised ``(N, 3, H, W)`` float32 to features ``(N, width)``.
        width: Length of the feature vector.
        resize: How the host makes the input.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, of pixels in [0, 1].
        transform: The reference for ``resize``.
        record: Where the weights came from.
    """

    name: str
    network: nn.Module
    width: int
    resize: ResizeSpec
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    transform: Transform
    record: CheckpointRecord


class GlobalAveragePool(nn.Module):
    """Mean over height and width, kept as ``(N, C, 1, 1)``.

    The same computation as ``nn.AdaptiveAvgPool2d(1)``, whose export with a dynamic batch needs a Gather.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Average ``(N, C, H, W)``."""
        return features.mean((2, 3), keepdim=True)


class TimmFeatures(nn.Module):
    """A timm network up to the vector before its classifier."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Features ``(N, D)`` of a normalised ``(N, 3, H, W)``."""
        features: Tensor = self.network.forward_head(self.network.forward_features(image), pre_logits=True)
        return features


def _replace_adaptive_pools(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
            setattr(module, name, GlobalAveragePool())
        else:
            _replace_adaptive_pools(child)


def resize_spec(config: dict[str, Any], where: str) -> ResizeSpec:
    """The resize that timm's evaluation transform would do for a data config.

    Args:
        config: As ``timm.data.resolve_model_data_config`` gives it.
        where: What to call the backbone in messages.

    Raises:
        RecipeError: The config needs a resize that the host does not have.
    """
    _, height, width = config["input_size"]
    kernel, mode = config["interpolation"], config["crop_mode"]
    if kernel not in ("bicubic", "bilinear"):
        raise RecipeError(
            f"{where}: interpolation {kernel!r} is not supported; there are bicubic and bilinear"
        )
    scale = math.floor(height / config["crop_pct"])
    if mode == "squash" and config["crop_pct"] == 1.0:
        return ResizeSpec(height=height, width=width, fit="warp", kernel=kernel)
    if mode == "center" and height == width:
        return ResizeSpec(height=height, width=width, fit="shortest", scale=scale, kernel=kernel)
    raise RecipeError(
        f"{where}: crop mode {mode!r} at {height} x {width}, crop_pct {config['crop_pct']} is not supported; "
        "there are centre crops of squares and plain warps"
    )


def _uint8_transform(config: dict[str, Any]) -> Transform:
    """timm's own evaluation transform up to the pixels, before it scales and normalises them."""
    whole = timm.data.create_transform(**config, is_training=False)
    pixels = [
        t for t in whole.transforms if type(t).__name__ not in ("MaybeToTensor", "ToTensor", "Normalize")
    ]

    def transform(picture: Image.Image) -> NDArray[np.uint8]:
        for step in pixels:
            picture = step(picture)
        return np.asarray(picture, dtype=np.uint8)

    return transform


def _hash_state(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, tensor in network.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _classifier_prefixes(network: Any) -> tuple[str, ...]:
    names = network.pretrained_cfg.get("classifier") or ()
    return tuple(f"{n}." for n in ((names,) if isinstance(names, str) else names))


def _load(
    backbone: Backbone, network: Any, folder: Path, weights: Path | None, random_seed: int | None
) -> CheckpointRecord:
    name, checkpoint = backbone.name, backbone.checkpoint
    if weights is None and random_seed is not None:
        return CheckpointRecord(sha256=_hash_state(network), found="random weights", random_seed=random_seed)
    if weights is None and not checkpoint.path:
        raise CheckpointAbsent(
            f"key `backbones.{name}.checkpoint`: missing; name a file with --weights {name}=PATH"
        )
    path = weights or locate(checkpoint.path, folder, f"backbones.{name}.checkpoint.path", checkpoint.obtain)
    state, sha256 = read_checkpoint(path, "" if weights else checkpoint.sha256)
    state = RENAME[checkpoint.format or "timm"](state, network)
    load_weights(network, state, f"key `backbones.{name}.checkpoint`: {path}", _classifier_prefixes(network))
    return CheckpointRecord(sha256=sha256, found=where_found(path, "" if weights else checkpoint.path))


def load_backbone(
    backbone: Backbone, folder: Path, weights: Path | None = None, random_seed: int | None = None
) -> LoadedBackbone:
    """Build a network, load its weights and derive its preprocessing.

    Args:
        backbone: The recipe's entry.
        folder: The recipe's folder.
        weights: A file to use instead of the recipe's.
        random_seed: Seeded weights instead of any file.

    Returns:
        The network in evaluation mode.

    Raises:
        RecipeError: No such architecture, or preprocessing that the host does not have.
        CheckpointError: The weights are absent or do not fit.
    """
    architecture = backbone.architecture.removeprefix("timm:")
    where = f"key `backbones.{backbone.name}.architecture`"
    if not timm.is_model(architecture):
        near = ", ".join(timm.list_models(f"*{architecture.split('_')[0]}*")[:5])
        raise RecipeError(
            f"{where}: timm has no architecture {architecture!r}{f'; near: {near}' if near else ''}"
        )
    with torch.random.fork_rng():
        torch.manual_seed(random_seed or 0)
        network: Any = timm.create_model(architecture, pretrained=False, num_classes=0)
    config = timm.data.resolve_model_data_config(network)
    resize = resize_spec(config, where)
    record = _load(backbone, network, folder, weights, random_seed)
    _replace_adaptive_pools(network)
    features = TimmFeatures(network).eval().requires_grad_(False)
    with torch.inference_mode():
        width = features(torch.zeros(1, 3, resize.height, resize.width)).shape
    if len(width) != 2:
        raise RecipeError(f"{where}: {architecture} gives features of shape {tuple(width)}, expected (N, D)")
    return LoadedBackbone(
        name=backbone.name,
        network=features,
        width=int(width[1]),
        resize=resize,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        transform=_uint8_transform(config),
        record=record,
    )
