"""Inception-v3 as TensorFlow published it on 2015-12-05, up to ``pool_3``: the frame feature of YouTube-8M."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import inception  # type: ignore[import-untyped]

from vsa_rt.export.checkpoint import State

#: Prefixes of a published checkpoint that this network leaves out on purpose: the 1008-way classifier.
IGNORED = ("fc.",)

#: A chain is names of layers one after the other; a tuple of names in it is layers side by side.
_Chain = tuple["str | tuple[str, ...]", ...]

#: The branches of each kind of block in the order in which their channels are concatenated; behind them
#: comes the pool branch (Szegedy et al. 2016, figures 5, 6 and 7; names as in the published port).
_A: tuple[_Chain, ...] = (
    ("branch1x1",),
    ("branch5x5_1", "branch5x5_2"),
    ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
)
_C: tuple[_Chain, ...] = (
    ("branch1x1",),
    ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
    ("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"),
)
_E: tuple[_Chain, ...] = (
    ("branch1x1",),
    ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
    ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")),
)


class _Mixed(nn.Module):
    """A block with torchvision's layers and the 2015 graph's pool branch.

    TensorFlow's average pool with SAME padding divides by the number of cells that lie inside the map, where
    torchvision divides by nine everywhere. The last block of the 2015 graph takes the maximum instead.
    """

    def __init__(self, layers: nn.Module, chains: tuple[_Chain, ...], maximum: bool = False) -> None:
        super().__init__()
        for name, layer in layers.named_children():
            self.add_module(name, layer)
        self._chains = chains
        self._pool = (
            nn.MaxPool2d(3, stride=1, padding=1)
            if maximum
            else nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        )

    def _follow(self, chain: _Chain, maps: Tensor) -> Tensor:
        for step in chain:
            if isinstance(step, str):
                maps = self.get_submodule(step)(maps)
            else:
                maps = torch.cat([self.get_submodule(name)(maps) for name in step], 1)
        return maps

    def forward(self, maps: Tensor) -> Tensor:
        """Maps ``(N, C, H, W)`` to the concatenated branches ``(N, C', H, W)``."""
        branches = [self._follow(chain, maps) for chain in self._chains]
        return torch.cat([*branches, self._follow(("branch_pool",), self._pool(maps))], 1)


class Inception2015(nn.Module):
    """The TensorFlow graph ``inception-2015-12-05`` from the scaled image to ``pool_3``.

    Differs from torchvision's Inception-v3 in its pool branches: those of ``Mixed_5b`` to ``5d``, ``6b`` to
    ``6e`` and ``7b`` leave the padding out of the divisor, that of ``Mixed_7c`` is a max pool. Batch
    normalisation has eps 1e-3; there is no auxiliary classifier. Layers and keys are those of the published
    port (mseitzer/pytorch-fid, ``pt_inception-2015-12-05-6726825d.pth``) without its classifier ``fc``.

    Attributes:
        width: Length of the feature vector.
    """

    width = 2048

    def __init__(self) -> None:
        super().__init__()
        conv, a, c = inception.BasicConv2d, inception.InceptionA, inception.InceptionC
        self.Conv2d_1a_3x3 = conv(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = conv(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = conv(32, 64, kernel_size=3, padding=1)
        self.maxpool1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = conv(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = conv(80, 192, kernel_size=3)
        self.maxpool2 = nn.MaxPool2d(3, stride=2)
        self.Mixed_5b = _Mixed(a(192, pool_features=32), _A)
        self.Mixed_5c = _Mixed(a(256, pool_features=64), _A)
        self.Mixed_5d = _Mixed(a(288, pool_features=64), _A)
        self.Mixed_6a = inception.InceptionB(288)
        self.Mixed_6b = _Mixed(c(768, channels_7x7=128), _C)
        self.Mixed_6c = _Mixed(c(768, channels_7x7=160), _C)
        self.Mixed_6d = _Mixed(c(768, channels_7x7=160), _C)
        self.Mixed_6e = _Mixed(c(768, channels_7x7=192), _C)
        self.Mixed_7a = inception.InceptionD(768)
        self.Mixed_7b = _Mixed(inception.InceptionE(1280), _E)
        self.Mixed_7c = _Mixed(inception.InceptionE(2048), _E, maximum=True)
        # torch's default would let a signal fade away over 48 layers, and seeded networks compare nothing then.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """Features of an image.

        Args:
            image: ``(N, 3, 299, 299)`` float32, RGB, scaled as (x - 128) / 128 from 0 to 255.

        Returns:
            ``(N, 2048)``, the mean over the last map, at least 0.
        """
        maps = image
        for layer in self.children():
            maps = layer(maps)
        return maps.mean((2, 3))


def keys_from_fid(state: State) -> State:
    """Rename the keys of the published port to this network's.

    Args:
        state: As published by mseitzer/pytorch-fid; the names are torchvision's, and so are this network's.

    Returns:
        The same tensors under the same names: 564 entries, of which 94 batch counters may be absent, and the
        two of ``fc`` that :data:`IGNORED` names.
    """
    return dict(state)
