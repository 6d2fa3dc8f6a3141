"""Checkpoint formats: how each is read without executing anything, and how its keys are spelt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from vsa_rt.errors import CheckpointError
from vsa_rt.export.arrays import read_arrays
from vsa_rt.export.caffe import groups_of, read_layers, tensors_of
from vsa_rt.export.checkpoint import State, read_tensors, timm_keys_from_efficientnet_pytorch
from vsa_rt.export.mxnet import read_params
from vsa_rt.export.networks.caffenet import GROUPS, keys_from_caffe
from vsa_rt.export.networks.dual_encoding import keys_from_dual_encoding, tensors_of_dual_encoding
from vsa_rt.export.networks.inception2015 import keys_from_fid
from vsa_rt.export.networks.object_graph import keys_from_object_graphs
from vsa_rt.export.networks.resnet152v2 import keys_from_mxnet
from vsa_rt.export.networks.sentiment_student import keys_from_student, keys_from_torchvision
from vsa_rt.export.networks.youtube8m import keys_from_keras, keys_from_yt8m
from vsa_rt.export.torch_pickle import read_torch

#: A file's bytes and what to call it, to name and tensor.
Read = Callable[[bytes, str], State]
#: Published keys to the network's own; a key that is not known keeps its name, so that loading reports it.
Rename = Callable[[State, nn.Module], State]


@dataclass(frozen=True)
class Format:
    """One published form of weights.

    Attributes:
        read: From bytes.
        rename: By name.
        published: Where such files come from, for people.
    """

    read: Read
    rename: Rename
    published: str


def _dual_encoding(data: bytes, where: str) -> State:
    return tensors_of_dual_encoding(read_torch(data, where), where)


def _caffe(data: bytes, where: str) -> State:
    """A ``.caffemodel`` whose grouped convolutions are CaffeNet's: the file says so, and shapes alone might agree."""
    layers = read_layers(data, where)
    for name, groups in groups_of(layers).items():
        wanted = GROUPS.get(name, 1)
        if groups != wanted:
            raise CheckpointError(
                f"{where}: layer {name!r} has {groups} groups, CaffeNet has {wanted}: this is another network"
            )
    order = [layer.name for layer in layers]
    for number in (1, 2):
        pool, norm = f"pool{number}", f"norm{number}"
        if pool in order and norm in order and order.index(norm) < order.index(pool):
            raise CheckpointError(
                f"{where}: normalises before it pools ({norm}, then {pool}): this is AlexNet, whose layers have the same "
                "names and sizes; CaffeNet pools first"
            )
    return tensors_of(layers)


def _student(state: State, module: nn.Module) -> State:
    """A student, or what it usually starts from: ImageNet weights of torchvision or timm, which know no stages."""
    staged = any("stage" in key or key.startswith("stu.") for key in state)
    return keys_from_student(state) if staged else keys_from_torchvision(state, module)


#: Name in a recipe to the format. A ``.safetensors`` file may stand in for any of them.
FORMATS: dict[str, Format] = {
    "timm": Format(read_tensors, lambda state, module: state, "huggingface/pytorch-image-models"),
    "efficientnet-pytorch": Format(
        read_tensors, timm_keys_from_efficientnet_pytorch, "lukemelas/EfficientNet-PyTorch"
    ),
    "mxnet": Format(read_params, lambda state, module: keys_from_mxnet(state), "Apache MXNet model zoo"),
    "pytorch-fid": Format(read_tensors, lambda state, module: keys_from_fid(state), "mseitzer/pytorch-fid"),
    "youtube8m": Format(read_arrays, lambda state, module: keys_from_yt8m(state), "google/youtube-8m"),
    "keras-arrays": Format(
        read_arrays,
        lambda state, module: keys_from_keras(state),
        "arrays of a Keras model (bmezaris/subclass_deep_neural_networks)",
    ),
    "dual-encoding": Format(
        _dual_encoding,
        lambda state, module: keys_from_dual_encoding(state),
        "bmezaris/AVS_dual_encoding_attention_network",
    ),
    "object-graphs": Format(
        read_tensors, lambda state, module: keys_from_object_graphs(state), "bmezaris/ObjectGraphs"
    ),
    "caffe": Format(_caffe, keys_from_caffe, "imatge-upc/sentiment-2015-asm, BVLC/caffe"),
    "cvpr2023": Format(
        read_tensors, _student, "tinglyfeng/sentiment_pretraining; ImageNet weights of torchvision or timm"
    ),
}


def read_checkpoint(path: Path, known: Format = FORMATS["timm"], sha256: str = "") -> tuple[State, str]:
    """Read a checkpoint; nothing in it is executed.

    Args:
        path: The file.
        known: Its format; by default plain tensors, as timm's files have them.
        sha256: Hash that the file must have; empty for any.

    Returns:
        Key to tensor, on the CPU, and the file's SHA-256, taken of the bytes that were parsed.

    Raises:
        CheckpointError: Unreadable, truncated, another hash, or something other than tensors.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 and found != sha256:
        raise CheckpointError(
            f"{path}: SHA-256 is {found}, the recipe wants {sha256}; get that file or pin this one"
        )
    read = read_tensors if path.suffix == ".safetensors" else known.read
    return read(data, str(path)), found
