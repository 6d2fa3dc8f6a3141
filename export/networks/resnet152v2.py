"""The pre-activation ResNet-152 of MXNet's model zoo (ImageNet-11k): whole image to 2048 features.

Graph and names are those of ``symbol_resnet.py`` in tornadomeet/ResNet (commit e822a89), the symbol of the
zoo's ``imagenet-11k/resnet-152``; the architecture is He et al. 2016, "Identity Mappings in Deep Residual
Networks". Input and crops are those of xuchaoxi/video-cnn-feat, which extracts this feature for video search.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from vsa_rt.errors import CheckpointError, UsageError

Crops = Literal["center", "ten"]

#: Of every BatchNorm in the symbol; MXNet's and torch's defaults are others.
_EPSILON = 2e-5


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPSILON)


class Unit(nn.Module):
    """A bottleneck that normalises and activates before it convolves; nothing follows the addition.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output; a quarter of them between.
        stride: Of the 3 x 3 convolution and of the shortcut.
        first: Whether it is its stage's first unit, whose shortcut is a convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, first: bool) -> None:
        super().__init__()
        inner = outputs // 4
        self.bn1 = _norm(inputs)
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn2 = _norm(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn3 = _norm(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.sc = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if first else None

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``."""
        activated = functional.relu(self.bn1(x))
        y = self.conv1(activated)
        y = self.conv2(functional.relu(self.bn2(y)))
        y = self.conv3(functional.relu(self.bn3(y)))
        # The convolved shortcut takes the activated input, the plain one the input itself.
        shortcut = x if self.sc is None else self.sc(activated)
        added: Tensor = y + shortcut
        return added


class ResNet152V2(nn.Module):
    """Pixels to the vector before the classifier (``flatten0_output``), which is not negative.

    It takes RGB values from 0 to 255 as they are: its first layer, a BatchNorm of the pixels, is what scales
    them. That layer is not folded into the convolution behind it, whose padded border would change.

    Args:
        crops: ``center``, or ``ten``: the mean over the features of centre and corners and of their mirror
            images, which video-cnn-feat calls oversampling.
        units: Per stage.
        widths: Channels of each stage's output; the stem has a quarter of the first.
        size: Height and width of a view, a multiple of 7: the image's are 8 / 7 of it.

    Attributes:
        width: Length of the feature vector.
        view_size: Height and width of a view.
        view_share: Share of the image's sides that a view covers.
        view_count: Views of one image.
        resized: Height and width of the image: 256 for views of 224.

    Raises:
        UsageError: No such crops, or numbers that make no network.
    """

    def __init__(
        self,
        crops: Crops = "center",
        *,
        units: Sequence[int] = (3, 8, 36, 3),
        widths: Sequence[int] = (256, 512, 1024, 2048),
        size: int = 224,
    ) -> None:
        super().__init__()
        if crops not in get_args(Crops):
            raise UsageError(f"crops {crops!r} are not known; there are {', '.join(get_args(Crops))}")
        if not units or len(units) != len(widths) or min(units) < 1:
            raise UsageError(f"units {tuple(units)} do not fit widths {tuple(widths)}: one or more per width")
        if any(w < 4 or w % 4 for w in widths) or size < 7 or size % 7:
            raise UsageError(
                f"widths {tuple(widths)} and size {size}: expected multiples of 4 and a multiple of 7"
            )
        self.crops = crops
        self.width = widths[-1]
        self.view_size = size
        self.view_share = 7 / 8
        self.view_count = 10 if crops == "ten" else 1
        self.resized = size // 7 * 8
        stem = widths[0] // 4
        self.bn_data = _norm(3)
        self.conv0 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn0 = _norm(stem)
        self.stages = nn.ModuleList()
        inputs = stem
        for index, (count, outputs) in enumerate(zip(units, widths, strict=True)):
            stage = nn.Sequential(Unit(inputs, outputs, 2 if index else 1, first=True))
            stage.extend(Unit(outputs, outputs, 1, first=False) for _ in range(count - 1))
            self.stages.append(stage)
            inputs = outputs
        self.bn1 = _norm(inputs)

    def views(self, image: Tensor) -> Tensor:
        """Crop the views that are encoded.

        Args:
            image: float32 ``(N, 3, resized, resized)``, RGB from 0 to 255.

        Returns:
            ``(N, 3, view_size, view_size)``, or ``(10 N, 3, view_size, view_size)``: all images' centres,
            then their top left, bottom left, top right and bottom right corners, then the same five of the
            mirrored images. Image ``n``'s view ``v`` is row ``v * N + n``: one concatenation makes it, one
            reshape undoes it.

        Raises:
            UsageError: The image has another height or width.
        """
        if tuple(image.shape[2:]) != (self.resized, self.resized):
            raise UsageError(
                f"an image tensor of shape {tuple(image.shape)}, expected "
                f"(N, 3, {self.resized}, {self.resized}): resize the image first"
            )
        size, far = self.view_size, self.resized - self.view_size
        middle = far // 2
        if self.crops == "center":
            return image[:, :, middle : middle + size, middle : middle + size]
        corners = ((middle, middle), (0, 0), (far, 0), (0, far), (far, far))
        pictures = (image, image.flip(3))
        return torch.cat([p[:, :, y : y + size, x : x + size] for p in pictures for y, x in corners])

    def encode(self, views: Tensor) -> Tensor:
        """Features of each view.

        Args:
            views: float32 ``(M, 3, H, W)``, RGB from 0 to 255; the weights were trained at 224 x 224.

        Returns:
            ``(M, width)``.
        """
        x: Tensor = self.conv0(self.bn_data(views))
        x = functional.max_pool2d(functional.relu(self.bn0(x)), 3, 2, 1)
        for stage in self.stages:
            x = stage(x)
        return functional.relu(self.bn1(x)).mean((2, 3))

    def fold(self, features: Tensor) -> Tensor:
        """Mean over each image's views, in the order of ``views``: ``(N, width)``."""
        if self.crops == "center":
            return features
        return features.reshape(10, -1, self.width).mean(0)

    def forward(self, image: Tensor) -> Tensor:
        """Features ``(N, width)`` of float32 ``(N, 3, resized, resized)``, RGB from 0 to 255."""
        return self.fold(self.encode(self.views(image)))


#: Prefixes of keys, in the module's spelling, that the network leaves out on purpose: the classifier.
IGNORED: tuple[str, ...] = ("fc1.",)

_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}
_CONV = {"weight": "weight"}
#: Layer to what MXNet and the module call its tensors, outside the units and inside them.
_OUTSIDE = {
    "bn_data": _NORM,
    "conv0": _CONV,
    "bn0": _NORM,
    "bn1": _NORM,
    "fc1": {"weight": "weight", "bias": "bias"},
}
_INSIDE = {f"bn{i}": _NORM for i in (1, 2, 3)} | {f"conv{i}": _CONV for i in (1, 2, 3)} | {"sc": _CONV}
#: Three digits at most: names come from files of unknown origin, and ``int`` refuses very long ones.
_NAME = re.compile(
    r"(?:arg:|aux:)?(?:stage([1-9][0-9]{0,2})_unit([1-9][0-9]{0,2})_)?"
    r"(\w+?)_(gamma|beta|moving_mean|moving_var|weight|bias)"
)


def _key(name: str) -> str:
    """The module's key for one of MXNet's names; the name itself where there is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    stage, unit, layer, kind = match.groups()
    known = (_INSIDE if stage else _OUTSIDE).get(layer, {})
    if kind not in known:
        return name
    place = f"stages.{int(stage) - 1}.{int(unit) - 1}." if stage else ""
    return f"{place}{layer}.{known[kind]}"


def keys_from_mxnet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of MXNet's ``resnet-152`` to the module's, by name.

    Args:
        state: As in the ``.params`` file, with the prefixes ``arg:`` and ``aux:`` or without.

    Returns:
        The same tensors under the module's keys. ``bn_data``'s gamma becomes ones: the symbol sets
        ``fix_gamma`` there, so that MXNet ignores what is stored. A key that is not known keeps its name, so
        that loading reports it.

    Raises:
        CheckpointError: Two names mean the same tensor.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        key = _key(name)
        if key in renamed:
            raise CheckpointError(
                f"name {name!r} and another both mean {key!r}, expected one of them; leave the other out"
            )
        renamed[key] = torch.ones_like(tensor) if key == "bn_data.weight" else tensor
    return renamed
