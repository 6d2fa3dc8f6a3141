"""Seeded weights with realistic activations, for networks whose trained weights are not at hand.

Layers begin variance-preserving (He et al. 2015); normalisation layers get their statistics, and layers without
one behind them their scale (layer-sequential unit variance, Mishkin and Matas 2016), from a pass over the
photographs that the export extra's packages ship. What comes out of such a network differs from image to image and
neither dies out nor explodes, which is what parity and latency need. Its scores mean nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck  # type: ignore[import-untyped]

from vsa_rt.export.checkpoint import hash_state
from vsa_rt.export.networks.dual_encoding import DualEncoding, DualEncodingFrames
from vsa_rt.export.networks.inception2015 import Inception2015
from vsa_rt.export.networks.object_graph import ObjectGraph, present_rows
from vsa_rt.export.networks.resnet152v2 import Unit
from vsa_rt.export.networks.sentiment_student import SentimentStudent
from vsa_rt.export.networks.youtube8m import YouTube8MPca
from vsa_rt.export.photographs import shipped_photographs
from vsa_rt.export.stand_ins import stand_in
from vsa_rt.recipe import tensor_input

if TYPE_CHECKING:
    from vsa_rt.export.backbones import LoadedBackbone
    from vsa_rt.export.makers import Network
    from vsa_rt.recipe import Backbone

#: Photographs that statistics are taken of.
_PHOTOGRAPHS = 16


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Seed torch for one backbone, and let one thread add up: two backbones of one seed differ."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            torch.set_num_threads(1)
            torch.manual_seed(int.from_bytes(digest[:7], "big"))
            yield
    finally:
        torch.set_num_threads(threads)


class Samples:
    """What networks see of the photographs: images, and the features of the backbones before them."""

    def __init__(self) -> None:
        self._loaded: dict[str, LoadedBackbone] = {}
        self._features: dict[str, Tensor] = {}

    def add(self, backbone: LoadedBackbone) -> None:
        """Remember a backbone that others may read."""
        self._loaded[backbone.name] = backbone

    @cached_property
    def _pictures(self) -> list[Image.Image]:
        found = []
        for path in shipped_photographs()[:_PHOTOGRAPHS]:
            with Image.open(path) as picture:
                found.append(ImageOps.exif_transpose(picture).convert("RGB"))
        return found

    def images(self, network: Network) -> Tensor:
        """Normalised ``(N, 3, H, W)`` as the network takes them."""
        if network.transform is None:
            raise TypeError("the network reads no images")
        pixels = np.stack([network.transform(p) for p in self._pictures]).astype(np.float64) / 255
        values = (pixels - np.array(network.mean)) / np.array(network.std)
        return torch.from_numpy(values.astype(np.float32)).permute(0, 3, 1, 2).contiguous()

    def rows(self, name: str, shape: list[int]) -> Tensor:
        """Stand-ins ``(N, rows, width)`` for a ready tensor, zeros behind the rows that are there."""
        values = np.zeros((len(self._pictures), *shape), np.float32)
        for row, picture in zip(values, self._pictures, strict=True):
            found = stand_in(picture, name, shape)
            row[: len(found)] = found
        return torch.from_numpy(values)

    def features(self, name: str) -> Tensor:
        """A backbone's features of the photographs ``(N, width)``."""
        if name not in self._features:
            backbone = self._loaded[name]
            with torch.inference_mode():
                self._features[name] = backbone.network(*self.inputs(backbone.entry, backbone.made))
        return self._features[name]

    def width(self, name: str) -> int:
        """Length of a backbone's features."""
        return self._loaded[name].width

    def inputs(self, entry: Backbone, network: Network) -> tuple[Tensor, ...]:
        """What a network takes, from the photographs."""
        if network.resize is not None:
            return (self.images(network),)
        given = tensor_input(entry)
        if isinstance(network.module, ObjectGraph):
            # Regions that the graph cuts are not cut here: their features are of the same kind.
            known = given is not None and given[0] == "objects"
            rows = self.rows("objects", given[1] if given and known else [50, network.width])
            return rows, present_rows(rows)
        return (self.rows(*given) if given is not None else self.features(entry.reads),)


def _begin(module: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Draw every layer's weights so that a ReLU behind it keeps the variance."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    units = [m for m in module.modules() if isinstance(m, Unit)]
    for unit in units:
        # Branches that add up to the variance of what they are added to, whatever their number (Hayou et al. 2021,
        # "Stable ResNet"). Else fifty of them amplify a rounding error a hundred times, which no trained network does.
        with torch.no_grad():
            unit.conv3.weight.mul_(len(units) ** -0.5)
    if isinstance(module, SentimentStudent):
        blocks = [m for m in module.modules() if isinstance(m, BasicBlock | Bottleneck)]
        for (
            block
        ) in blocks:  # the last norm, because a norm behind the convolution would undo any scaling there
            last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            nn.init.constant_(last.weight, len(blocks) ** -0.5)
    if isinstance(module, Inception2015):
        # Without shortcuts a deep network at its drawing is chaotic; units that are mostly awake make it less so.
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.constant_(layer.bias, 0.5)
    if isinstance(module, DualEncoding | DualEncodingFrames):
        _begin_dual_encoding(module)
    if isinstance(module, YouTube8MPca):
        _begin_pca(module, inputs[0])


def _begin_dual_encoding(module: DualEncoding | DualEncodingFrames) -> None:
    """Gates of a recurrent layer that neither saturate nor sleep.

    The frame's vector has unit norm, so weights of unit variance give pre-activations of unit variance.
    """
    for name, parameter in module.rnn.named_parameters():
        if name.startswith("weight_ih"):
            nn.init.normal_(parameter, std=1.0)
        elif name.startswith("weight_hh"):
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        else:
            nn.init.normal_(parameter, std=0.1)


def _begin_pca(module: YouTube8MPca, features: Tensor) -> None:
    """Mean and variances as they are along the drawn directions."""
    state = module.state_dict()
    mean = features.double().mean(0)
    variances = ((features.double() - mean) @ state["eigenvecs"].double()).var(0)
    module.load_state_dict(state | {"mean": mean.float(), "eigenvals": variances.float()})


def _calibrate(module: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Set normalisation statistics, and the scale of layers with none behind them, from one pass."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    hooks: list[Any] = []

    def unit_variance(layer: Any, _: object, output: Tensor) -> Tensor:
        spread = float(output.std())
        if not spread > 0:
            return output
        layer.weight.div_(spread)
        bias: Any = 0.0 if layer.bias is None else layer.bias
        if output.ndim == 4 and layer.bias is not None:
            bias = layer.bias[:, None, None]
        scaled: Tensor = (output - bias) / spread + bias
        return scaled

    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean
        norm.train()
    if not norms:
        hooks = [
            m.register_forward_hook(unit_variance)
            for m in module.modules()
            if isinstance(m, nn.Linear | nn.Conv2d)
        ]
    with torch.no_grad():
        module(*inputs)
    for hook in hooks:
        hook.remove()
    module.eval()


def randomise(module: nn.Module, inputs: Sequence[Tensor], own: bool) -> str:
    """Give a network seeded weights; call it inside ``seeded``.

    Args:
        module: As it was made.
        inputs: What it sees of the photographs.
        own: Whether its layers are to be drawn here; timm's networks draw their own.

    Returns:
        SHA-256 of the weights.
    """
    if own:
        _begin(module, inputs)
    _calibrate(module, inputs)
    return hash_state(module)
