"""Networks of timm as backbones: up to the vector before their classifier, with timm's own preprocessing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import timm
import timm.data
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vsa_rt.contracts import ResizeSpec
from vsa_rt.errors import RecipeError
from vsa_rt.export.transforms import Transform


class GlobalAveragePool(nn.Module):
    """Mean over height and width, kept as ``(N, C, 1, 1)``.

    The same computation as ``nn.AdaptiveAvgPool2d(1)``, whose export with a dynamic batch needs a Gather.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Average ``(N, C, H, W)``."""
        return features.mean((2, 3), keepdim=True)


class TimmFeatures(nn.Module):
    """A timm network up to the vector before its classifier.

    Args:
        network: As timm makes it.
        size: Side of its images.

    Attributes:
        view_size: Side of what ``encode`` takes.
        view_share: Share of an image's sides that it sees: all.
        view_count: Views of one image.
    """

    view_share, view_count = 1.0, 1

    def __init__(self, network: Any, size: int) -> None:
        super().__init__()
        self.network, self.view_size = network, size

    def views(self, image: Tensor) -> Tensor:
        """The image itself."""
        return image

    def encode(self, views: Tensor) -> Tensor:
        """Features ``(N, D)`` of a normalised ``(N, 3, H, W)``."""
        features: Tensor = self.network.forward_head(self.network.forward_features(views), pre_logits=True)
        return features

    def fold(self, features: Tensor) -> Tensor:
        """The features themselves."""
        return features

    def forward(self, image: Tensor) -> Tensor:
        """Features ``(N, D)`` of a normalised ``(N, 3, H, W)``."""
        return self.encode(image)


def replace_adaptive_pools(module: nn.Module) -> None:
    """Put ``GlobalAveragePool`` wherever a network pools its whole map adaptively."""
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
            setattr(module, name, GlobalAveragePool())
        else:
            replace_adaptive_pools(child)


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


def uint8_transform(config: dict[str, Any]) -> Transform:
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
