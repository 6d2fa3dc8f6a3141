"""Checkpoints as their authors publish them, written from a network's own weights: the documented mappings, inverted."""

from __future__ import annotations

import io
import re
import struct
import tarfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="checkpoints hold torch tensors")

State = dict[str, Any]


def saved(value: object, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def array(tensor: Any) -> Any:
    return np.asarray(tensor)


def params(state: Mapping[str, Any]) -> bytes:
    """MXNet's list of arrays (``NDArray::Save``, version 2): float32, on a CPU, names behind them."""
    found = struct.pack("<QQQ", 0x112, 0, len(state))
    for tensor in state.values():
        values = array(tensor).astype("<f4")
        found += struct.pack("<Iii", 0xF993FAC9, 0, values.ndim)
        found += struct.pack(f"<{values.ndim}qiii", *values.shape, 1, 0, 0) + values.tobytes()
    found += struct.pack("<Q", len(state))
    return found + b"".join(struct.pack("<Q", len(n)) + n.encode() for n in state)


def npz(state: Mapping[str, Any]) -> bytes:
    stream = io.BytesIO()
    arrays: dict[str, Any] = {name: array(tensor) for name, tensor in state.items()}
    np.savez(stream, **arrays)
    return stream.getvalue()


def npy(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=True)
    return stream.getvalue()


def tgz(members: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(f"{name}.npy")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def as_efficientnet_pytorch(state: State) -> State:
    """lukemelas/EfficientNet-PyTorch: one number per block, three norms counted in the order of use."""
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    expanding = {
        "conv_pw": "_expand_conv",
        "bn1": "_bn0",
        "conv_dw": "_depthwise_conv",
        "bn2": "_bn1",
        "conv_pwl": "_project_conv",
        "bn3": "_bn2",
    }
    outside = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
    outside["classifier"] = "_fc"
    numbers: dict[str, int] = {}
    found = {}
    for key, tensor in state.items():
        block = re.fullmatch(r"(blocks\.\d+\.\d+)\.(\w+)\.(.+)", key)
        if block is None:
            layer, _, rest = key.partition(".")
            found[f"{outside[layer]}.{rest}"] = tensor
        else:
            number = numbers.setdefault(block[1], len(numbers))
            names = expanding if f"{block[1]}.conv_pwl.weight" in state else first
            found[f"_blocks.{number}.{names[block[2]]}.{block[3]}"] = tensor
    if "_fc.weight" not in found:  # a network without its classifier
        found |= {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    return found


def as_mxnet(state: State) -> State:
    """tornadomeet/ResNet's symbol: stages and units from 1, statistics among the auxiliary arrays."""
    norm = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_var"}
    found = {}
    for key, tensor in state.items():
        unit = re.fullmatch(r"stages\.(\d+)\.(\d+)\.(.+)", key)
        layer, _, kind = (unit[3] if unit else key).partition(".")
        if kind == "num_batches_tracked":
            continue
        kind = norm[kind] if layer.startswith("bn") else kind
        place = f"stage{int(unit[1]) + 1}_unit{int(unit[2]) + 1}_" if unit else ""
        found[f"{'aux' if kind.startswith('moving') else 'arg'}:{place}{layer}_{kind}"] = tensor
    return found | {"arg:fc1_weight": torch.zeros(11, 16), "arg:fc1_bias": torch.zeros(11)}


def as_fid(state: State) -> State:
    """mseitzer/pytorch-fid: the network's own names, and a classifier."""
    return state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


def as_yt8m(state: State) -> State:
    """yt8m_pca.tgz: columns, one component per row, and more components than are kept."""
    found = {}
    for key, tensor in state.items():
        values = array(tensor)
        if key == "eigenvecs":
            found[key] = np.concatenate([values.T, np.ones((6, len(values)), np.float32)])
        elif key == "eigenvals":
            found[key] = np.concatenate([values, np.ones(6, np.float32)])[:, None]
        else:
            found[key] = values[:, None] if key == "mean" else values
    return found


def as_keras(state: State) -> State:
    """Keras: a kernel is ``(length, channels, filters)`` or ``(inputs, classes)``."""
    found = {}
    for key, tensor in state.items():
        layer, _, kind = key.partition(".")
        name = {"conv": "conv1d", "dense": "dense_1"}.get(layer, layer)
        values = array(tensor)
        if kind == "weight":
            values = values[:, :, 0].transpose(2, 1, 0) if layer == "conv" else values.T
        found[f"model/{name}/{'kernel' if kind == 'weight' else kind}:0"] = np.ascontiguousarray(values)
    return found


def as_dual_encoding(state: State) -> State:
    return {f"module.{key}": tensor for key, tensor in state.items()}


def around_dual_encoding(visual: State, opt: object = None) -> State:
    """What the authors' script saves: both branches in a list, its options as an object."""
    return {
        "epoch": 3,
        "model": [OrderedDict(visual), OrderedDict({"embed.weight": torch.ones(2)})],
        "best_rsum": np.float64(1.5),
        "opt": opt or Namespace(visual_norm=True, visual_kernel_sizes="2-3-4-5"),
        "Eiters": 10,
    }


def as_object_graphs(state: State) -> State:
    """The full model: the graph's tensors under a prefix, its LSTM and classifier beside them."""
    rest = {"cls.rnn.weight_ih_l0": torch.zeros(4, 2), "cls.fc1.weight": torch.zeros(2, 4)}
    return {f"graph.{key}": tensor for key, tensor in state.items()} | rest
