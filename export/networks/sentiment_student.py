"""The student of sentiment-oriented pre-training (CVPR 2023): a VGG or ResNet in four stages, averaged to features.

Paper: Feng, Liu and Yang 2023, "Probing Sentiment-Oriented Pre-Training Inspired by Human Sentiment Perception
Mechanism". Stages and names are those of tinglyfeng/sentiment_pretraining (commit da7e482), which cuts torchvision's
networks into them; its "vgg16" and "vgg19" are the ones with batch normalisation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Literal, get_args

import torchvision  # type: ignore[import-untyped]
from torch import Tensor, nn
from torchvision.models import vgg  # type: ignore[import-untyped]

from vsa_rt.errors import CheckpointError, UsageError
from vsa_rt.export.checkpoint import State

Arch = Literal["vgg16", "vgg19", "resnet18", "resnet50", "resnet101"]

#: Keys of the classifier in a student's checkpoint.
HEAD = ("head.weight", "head.bias")
#: Prefixes of ImageNet checkpoints that this network leaves out on purpose: torchvision's ``fc.`` and ``classifier.``, timm's of its VGGs.
IGNORED_TORCHVISION = ("fc.", "classifier.", "pre_logits.", "head.fc.")

_STUDENT = "stu."
#: The three teachers that are trained beside the student.
_TEACHERS = ("t_low.", "t_mid.", "t_high.")
#: Of torchvision's VGGs: the configuration's letter, and where a stage begins among the layers; what comes
#: after the last one is a max-pool that the published code leaves out.
_VGG = {"vgg16": ("D", (0, 13, 23, 33, 43)), "vgg19": ("E", (0, 13, 26, 39, 52))}
#: Of ResNets: torchvision's and timm's names to the stages'.
_RESNET = {
    "conv1": "stage1.0",
    "bn1": "stage1.1",
    "layer1": "stage1.4",
    "layer2": "stage2",
    "layer3": "stage3",
    "layer4": "stage4",
}
#: A layer's name and the rest of a key; a VGG's layers are numbered.
_LAYER = re.compile(r"(features\.[^.]+|[^.]+)\.(.+)")


def _vgg_stages(arch: str) -> list[nn.Module]:
    """Slices of torchvision's layers, which keep their numbers as names."""
    letter, bounds = _VGG[arch]
    layers: nn.Sequential = vgg.make_layers(vgg.cfgs[letter], batch_norm=True)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):  # as torchvision draws them, around the layers that are made here
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return [layers[begin:end] for begin, end in pairwise(bounds)]


def _resnet_stages(arch: str) -> list[nn.Module]:
    """torchvision's four layers of blocks, the first with the stem before it."""
    network: Any = torchvision.models.get_model(arch, weights=None, num_classes=1)
    stem = (network.conv1, network.bn1, network.relu, network.maxpool)
    return [nn.Sequential(*stem, network.layer1), network.layer2, network.layer3, network.layer4]


class SentimentStudent(nn.Module):
    """Four stages and the mean over the last map; the classifier is the head's business.

    What a stage gives is not changed by the one behind it, so hooks on stages may keep it. Inside a stage ReLUs
    work in place, as published: what BatchNorms and inner blocks' additions give is overwritten.

    Args:
        arch: The backbone.

    Attributes:
        arch: The backbone.
        width: Length of the feature vector.

    Raises:
        UsageError: No such backbone.
    """

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        if arch not in get_args(Arch):
            raise UsageError(f"arch {arch!r} is not known; there are {', '.join(get_args(Arch))}")
        self.arch = arch
        self.width = 2048 if arch in ("resnet50", "resnet101") else 512
        stages = _vgg_stages(arch) if arch in _VGG else _resnet_stages(arch)
        self.stage1, self.stage2, self.stage3, self.stage4 = stages

    def forward(self, image: Tensor) -> Tensor:
        """Features of an image.

        Args:
            image: ``(N, 3, H, W)`` float32, RGB, normalised by ImageNet's mean and standard deviation. The paper
                evaluates at 256 x 256; the last map is a sixteenth (VGG) or a thirty-second (ResNet) of that.

        Returns:
            ``(N, width)``, at least 0.
        """
        maps = self.stage4(self.stage3(self.stage2(self.stage1(image))))
        features: Tensor = maps.mean((2, 3))
        return features


def _unique(named: Iterable[tuple[str, str, Tensor]]) -> State:
    """Own key to tensor, of names in a file, own keys and tensors.

    Raises:
        CheckpointError: Two names mean the same tensor.
    """
    renamed: State = {}
    names: dict[str, str] = {}
    for name, key, tensor in named:
        if key in renamed:
            raise CheckpointError(
                f"names {names[key]!r} and {name!r} both mean {key!r}, expected one of them; leave the other out"
            )
        renamed[key], names[key] = tensor, name
    return renamed


def keys_from_student(state: State) -> State:
    """Pick the student's tensors out of a published checkpoint and name them as this network does.

    Args:
        state: Of the amalgamation: the student under ``stu.`` beside its three teachers. Or of a pre-training
            script, or a student by itself: bare names.

    Returns:
        The stages' tensors and, where there is one, the classifier's (:data:`HEAD`). Teachers are left out. Beside
        ``stu.`` any other key keeps its name, so that loading reports it; among bare names all else is a
        pre-training task's, and is left out as the published code does.

    Raises:
        CheckpointError: No stage's tensor is there, or two names mean the same tensor.
    """
    own = {name: tensor for name, tensor in state.items() if not name.startswith(_TEACHERS)}
    if not any(name.startswith(_STUDENT) for name in own):
        own = {name: tensor for name, tensor in own.items() if "stage" in name or name in HEAD}
    picked = _unique((name, name.removeprefix(_STUDENT), tensor) for name, tensor in own.items())
    if not any("stage" in key for key in picked):
        first = next(iter(state), "")
        raise CheckpointError(
            f"no stage of a student among {len(state)} keys, of which the first is {first!r}; expected "
            "stu.stage1.0.weight or stage1.0.weight and so on, as tinglyfeng/sentiment_pretraining names them"
        )
    return picked


def keys_from_torchvision(state: State, module: nn.Module) -> State:
    """Rename the keys of torchvision's and timm's ImageNet checkpoints to the stages'.

    Args:
        state: Of the same backbone.
        module: The network that it is for; a VGG's stages say which layer is whose.

    Returns:
        The same tensors; the classifiers' are those that :data:`IGNORED_TORCHVISION` names. A key that is not
        known keeps its name, so that loading reports it.

    Raises:
        CheckpointError: Two names mean the same tensor.
    """
    places = _RESNET
    if isinstance(module, SentimentStudent) and module.arch in _VGG:
        stages = list(module.named_children())
        places = {
            f"features.{n}": f"{stage}.{n}" for stage, layers in stages for n, _ in layers.named_children()
        }

    def key(name: str) -> str:
        match = _LAYER.fullmatch(name)
        return f"{places[match[1]]}.{match[2]}" if match and match[1] in places else name

    return _unique((name, key(name), tensor) for name, tensor in state.items())
