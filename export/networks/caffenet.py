"""CaffeNet as ASM 2015 takes it apart: an image's centre, ten crops or a grid of positions to features of a layer.

The network is BVLC/caffe's ``models/bvlc_reference_caffenet`` (Krizhevsky et al. 2012 with pooling before
normalisation); what is cut off, averaged or made fully convolutional is that of Campos et al. 2015, "Diving Deep into
Sentiment" (imatge-upc/sentiment-2015-asm), whose pixels are prepared as ``caffe.io`` does it.
"""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from vsa_rt.errors import CheckpointError, UsageError
from vsa_rt.export.checkpoint import State

Top = Literal["pool5", "fc6", "fc7", "fc8"]

#: Side in pixels of what the network was trained on, of the warped image it is cut from, and of the image that the
#: fully convolutional form takes: eight positions of 227 pixels, 32 apart.
CROP, WARPED, MAP = 227, 256, 451
#: Pixels between two positions of the map: strides 4, 2, 2 and 2.
_STRIDE = 32
#: Positions of the map along a side.
GRID = (MAP - CROP) // _STRIDE + 1
#: Length of what each layer gives for one crop.
WIDTHS: dict[Top, int] = {"pool5": 9216, "fc6": 4096, "fc7": 4096, "fc8": 1000}
#: The layer that a head over each of them stands for.
NEXT: dict[Top, str] = {"pool5": "fc6", "fc6": "fc7", "fc7": "fc8", "fc8": "fc9"}
#: Convolutions that read half of the channels for each half of their outputs: two GPUs in 2012.
GROUPS = {"conv2": 2, "conv4": 2, "conv5": 2}


class CrossChannelNorm(nn.Module):
    """Local response normalisation across five channels: ``x / (1 + 1e-4 / 5 * sum x²) ** 0.75``.

    Caffe's ``ACROSS_CHANNELS``, torch's and ONNX's LRN alike. Raw activations pass 256, whose square is beyond half
    precision: they are divided by 256 first, alpha is multiplied by 256² instead, and the quotient by 256. These are
    powers of two, so that float32 gives the same to the last bit. In half precision five neighbours of 29,000 still
    have a finite sum, and what vanishes is too small to change one that begins at 1.
    """

    SIZE, ALPHA, BETA, SCALE = 5, 1e-4, 0.75, 256.0

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same shape."""
        alpha = self.ALPHA * self.SCALE**2
        small = x * (1 / self.SCALE)
        if torch.compiler.is_exporting():
            # Decomposed, it is a pool in three dimensions and a power, which no engine recognises.
            attributes: dict[str, Any] = {"alpha": alpha, "beta": self.BETA, "bias": 1.0, "size": self.SIZE}
            normed: Tensor = torch.onnx.ops.symbolic(
                "LRN", (small,), attributes, dtype=x.dtype, shape=x.shape, version=13
            )
        else:
            normed = functional.local_response_norm(small, self.SIZE, alpha, self.BETA, 1.0)
        return normed * self.SCALE


class Convolution(nn.Conv2d):
    """A convolution with its ReLU: Caffe activates in place, so that its layer *is* what comes out of both."""

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H', W')``, not negative."""
        return functional.relu(super().forward(x))


class BgrConvolution(Convolution):
    """One whose weights are in the published order, blue first, over an image whose red comes first."""

    def forward(self, x: Tensor) -> Tensor:
        """RGB ``(N, 3, H, W)`` to ``(N, outputs, H', W')``."""
        return functional.relu(self._conv_forward(x, self.weight.flip(1), self.bias))


class Dense(nn.Linear):
    """A dense layer, which can be laid over a larger map as a convolution: the fully convolutional form.

    There, a position sees its neighbours where a crop of its own would see the padding's zeros.

    Args:
        inputs: Numbers of one window.
        outputs: Numbers that it gives.
        window: Side of the window in the map that it reads.
        activated: Whether a ReLU follows.
    """

    def __init__(self, inputs: int, outputs: int, window: int = 1, activated: bool = True) -> None:
        super().__init__(inputs, outputs)
        self.window, self.activated = window, activated

    def forward(self, x: Tensor) -> Tensor:
        """``(M, inputs)`` to ``(M, outputs)``; a map ``(M, C, H, W)`` to ``(M, outputs, H', W')``."""
        if x.ndim == 2:
            y = super().forward(x)
        else:
            kernel = self.weight.reshape(self.out_features, -1, self.window, self.window)
            y = functional.conv2d(x, kernel, self.bias)
        return functional.relu(y) if self.activated else y


class CaffeNet(nn.Module):
    """Pixels to what a layer says.

    Every layer is a submodule of its published name.

    Args:
        top: The last layer.
        oversample: Ten views of an image instead of its centre: four corners, the centre, and their mirror images.
        map: All positions of a larger image instead: the fully convolutional form.

    Attributes:
        view_count: Views of one image: 1, 10 or 64.
        width: Length of its features: ``view_count`` times that of the layer.
        size: Side of the image that it takes.

    Raises:
        UsageError: No such layer, or options that exclude each other.
    """

    def __init__(self, top: Top = "fc7", oversample: bool = False, map: bool = False) -> None:
        super().__init__()
        if top not in get_args(Top):
            raise UsageError(f"top {top!r} is not known; there are {', '.join(get_args(Top))}")
        if map and (oversample or top == "pool5"):
            raise UsageError("map = true takes the whole image, and top = fc6, fc7 or fc8")
        self.top, self.oversample, self.map = top, oversample, map
        self.view_count = GRID**2 if map else 10 if oversample else 1
        self.width = self.view_count * WIDTHS[top]
        self.size = MAP if map else WARPED
        self.conv1 = BgrConvolution(3, 96, 11, 4)
        self.pool1 = nn.MaxPool2d(3, 2)
        self.norm1 = CrossChannelNorm()
        self.conv2 = Convolution(96, 256, 5, padding=2, groups=GROUPS["conv2"])
        self.pool2 = nn.MaxPool2d(3, 2)
        self.norm2 = CrossChannelNorm()
        self.conv3 = Convolution(256, 384, 3, padding=1)
        self.conv4 = Convolution(384, 384, 3, padding=1, groups=GROUPS["conv4"])
        self.conv5 = Convolution(384, 256, 3, padding=1, groups=GROUPS["conv5"])
        self.pool5 = nn.MaxPool2d(3, 2)
        # Flattened channel by channel, in Caffe as in torch.
        dense = {"fc6": Dense(9216, 4096, window=6), "fc7": Dense(4096, 4096)}
        dense["fc8"] = Dense(4096, 1000, activated=False)
        order = list(WIDTHS)
        self.dense = order[1 : order.index(top) + 1]
        for name in self.dense:
            self.add_module(name, dense[name])

    def crops(self, image: Tensor) -> Tensor:
        """What of an image goes through the layers.

        Args:
            image: float32 ``(N, 3, size, size)``.

        Returns:
            ``(N, 3, 227, 227)``, or ``(10 N, 3, 227, 227)``, an image's ten behind each other: corners row by row, the
            centre, then the same five mirrored, as ``caffe.io.oversample``. The image itself for a map.

        Raises:
            UsageError: The image has another height or width.
        """
        if tuple(image.shape[2:]) != (self.size, self.size):
            raise UsageError(
                f"an image tensor of shape {tuple(image.shape)}, expected (N, 3, {self.size}, {self.size}): "
                "resize the image first"
            )
        if self.map:
            return image
        far = WARPED - CROP
        middle = far // 2
        if not self.oversample:
            return image[:, :, middle : middle + CROP, middle : middle + CROP]
        places = ((0, 0), (0, far), (far, 0), (far, far), (middle, middle))
        crops = [image[:, :, y : y + CROP, x : x + CROP] for y, x in places]
        # Mirrored one by one: a mirror image of the warped image has its centre one pixel beside.
        crops += [crop.flip(3) for crop in crops]
        return torch.stack(crops, 1).flatten(0, 1)

    def encode(self, crops: Tensor) -> Tensor:
        """Features of crops ``(M, 3, H, W)``: ``(M, D)``, or a map's ``(M, positions D)``, row by row."""
        x: Tensor = self.norm1(self.pool1(self.conv1(crops)))
        x = self.norm2(self.pool2(self.conv2(x)))
        x = self.pool5(self.conv5(self.conv4(self.conv3(x))))
        if not self.map:
            x = x.flatten(1)
        for name in self.dense:
            x = self.get_submodule(name)(x)
        return x.flatten(2).transpose(1, 2).flatten(1) if self.map else x

    def forward(self, image: Tensor) -> Tensor:
        """Features of every view, one after the other.

        Args:
            image: float32 ``(N, 3, size, size)``, RGB from 0 to 255 minus the channels' means.

        Returns:
            ``(N, width)``.

        Raises:
            UsageError: The image has another height or width.
        """
        return self.encode(self.crops(image)).reshape(-1, self.width)


#: A layer's name in the fully convolutional form: ``fc6-conv``.
_NAME = re.compile(r"(\w+?)(?:-conv)?\.(weight|bias)")


def keys_from_caffe(state: State, module: nn.Module) -> State:
    """Rename the tensors of a ``.caffemodel`` to the module's, by the layers' names.

    Args:
        state: ``LAYER.weight`` and ``LAYER.bias`` of CaffeNet or its fully convolutional form.
        module: Says where the network ends.

    Returns:
        The same tensors under the module's keys, dense layers in two axes. The layer above ``top`` that a training
        script renamed (``fc8_twitter``) becomes ``head``, and so does a plain one (``fc9``, or ``fc7`` above
        ``top = "fc6"``); dense layers above that are left out. A key that is not known keeps its name, so that loading
        reports it.

    Raises:
        CheckpointError: Two layers mean the same one, or several may be the head.
    """
    if not isinstance(module, CaffeNet):
        raise TypeError(f"keys of CaffeNet for a {type(module).__name__}")
    above = NEXT[module.top]
    own = module.state_dict()
    layers = {m[1] for key in state if (m := _NAME.fullmatch(key))}
    trained = sorted(name for name in layers if name.startswith(f"{above}_"))
    if len(trained) > 1:
        raise CheckpointError(f"layers {', '.join(trained)} may each be the head; leave all but one out")
    head = trained[0] if trained else above
    renamed: State = {}
    for key, tensor in state.items():
        match = _NAME.fullmatch(key)
        layer, kind = (match[1], match[2]) if match else (key, "")
        if f"{layer}.{kind}" in own:
            name = f"{layer}.{kind}"
        elif layer == head:
            name = f"head.{kind}"
        elif re.fullmatch(r"fc\d\w*", layer) and layer[: len(above)] >= above:
            continue
        else:
            name = key
        if name in renamed:
            raise CheckpointError(
                f"layer {layer!r} is there twice, plain and with the suffix -conv; expected one of them"
            )
        flat = kind == "weight" and tensor.ndim == 4 and layer.startswith("fc")
        renamed[name] = tensor.flatten(1) if flat else tensor
    return renamed
