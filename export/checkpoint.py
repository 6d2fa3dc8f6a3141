"""Trained weights as received: read without executing anything, renamed by key, loaded whole or not at all."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping

import torch
from safetensors.torch import load
from torch import nn

from vsa_rt.errors import CheckpointError
from vsa_rt.export.torch_pickle import Foreign, read_torch

State = dict[str, torch.Tensor]

#: Keys under which training scripts keep the weights.
_WRAPPERS = ("state_dict", "model_state_dict", "model")


def _flat(value: object, where: str) -> State:
    """The flat name -> tensor dictionary inside what was read."""
    for key in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
            break
    if not isinstance(value, Mapping) or not value:
        raise CheckpointError(f"{where}: holds {type(value).__name__}, expected a dictionary of tensors")
    wrong = next((k for k, v in value.items() if not isinstance(v, torch.Tensor)), None)
    if wrong is not None:
        raise CheckpointError(f"{where}: entry {wrong!r} is {type(value[wrong]).__name__}, expected a tensor")
    return {str(k).removeprefix("module."): v for k, v in value.items()}


def read_tensors(data: bytes, where: str) -> State:
    """Read a safetensors file or a PyTorch one; nothing in it is executed.

    Args:
        data: The file's bytes; what begins as safetensors does is read as such.
        where: What to call it in messages.

    Returns:
        Key to tensor, on the CPU. Of a training script's file, the weights.

    Raises:
        CheckpointError: Truncated, or something other than tensors.
    """
    try:
        # A safetensors file is a JSON object behind its length in eight bytes.
        if data[8:9] == b"{":
            return _flat(load(data), where)
    except Exception as error:  # the parser raises its own, value and type errors alike
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{where}: not a checkpoint of tensors alone: {first}") from error
    value = read_torch(data, where)
    foreign = next(_foreign(value), None)
    if foreign is not None:
        raise CheckpointError(
            f"{where}: not a checkpoint of tensors alone: it holds {foreign!r}, which is not restored; save the "
            "state dictionary by itself"
        )
    return _flat(value, where)


def _foreign(value: object) -> Iterator[Foreign]:
    """Objects in what was read that are neither tensors nor plain values."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, Foreign):
            yield found
        elif isinstance(found, Mapping):
            waiting += [*found.keys(), *found.values()]
        elif isinstance(found, list | tuple):
            waiting += found


#: EfficientNet-PyTorch's names to timm's, for a block that begins with its depthwise convolution ...
_DEPTHWISE_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
#: ... for one that expands first ...
_EXPAND_FIRST = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
#: ... and outside the blocks.
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+?)\.(.+)")


def timm_keys_from_efficientnet_pytorch(state: State, module: nn.Module) -> State:
    """Rename the keys of EfficientNet-PyTorch (``_blocks.{i}._expand_conv``) to timm's, by name.

    Args:
        state: As published by lukemelas/EfficientNet-PyTorch and its lite variants.
        module: The timm network; its stages say to which stage block ``i`` belongs.

    Returns:
        The same tensors under timm's keys. A key that is not known keeps its name, so that loading reports it.
    """
    stages = module.get_submodule("blocks")
    places = [(s, b) for s, stage in stages.named_children() for b, _ in stage.named_children()]
    expands = {int(m[1]) for k in state if (m := _BLOCK.fullmatch(k)) and m[2] == "_expand_conv"}
    renamed: State = {}
    for key, tensor in state.items():
        match = _BLOCK.fullmatch(key)
        if match and int(match[1]) < len(places):
            names = _SQUEEZE | (_EXPAND_FIRST if int(match[1]) in expands else _DEPTHWISE_FIRST)
            stage, block = places[int(match[1])]
            renamed[f"blocks.{stage}.{block}.{names.get(match[2], match[2])}.{match[3]}"] = tensor
        else:
            first, _, rest = key.partition(".")
            renamed[f"{_OUTSIDE.get(first, first)}.{rest}" if rest else key] = tensor
    return renamed


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def load_weights(module: nn.Module, state: State, where: str, ignore: tuple[str, ...] = ()) -> None:
    """Load every tensor into the network, or none.

    Args:
        module: The network.
        state: Its weights.
        where: What to call the checkpoint in messages.
        ignore: Key prefixes that the network leaves out on purpose: the classifier.

    Raises:
        CheckpointError: Keys are missing, unexpected or mis-shaped; the message names them.
    """
    own = module.state_dict()
    given = {k: v for k, v in state.items() if not k.startswith(ignore)} if ignore else dict(state)
    problems = []
    # Batch counters steer nothing at inference; older files lack them.
    missing = sorted(k for k in own.keys() - given.keys() if not k.endswith("num_batches_tracked"))
    if missing:
        problems.append(f"missing {_some(missing)}")
    unexpected = sorted(given.keys() - own.keys())
    if unexpected:
        problems.append(f"unexpected {_some(unexpected)}")
    shapes = sorted(
        f"{k} {tuple(given[k].shape)} instead of {tuple(own[k].shape)}"
        for k in own.keys() & given.keys()
        if own[k].shape != given[k].shape
    )
    if shapes:
        problems.append(f"mis-shaped {_some(shapes)}")
    fitting = {k: v for k, v in given.items() if k in own and own[k].shape == v.shape}
    kinds = sorted(
        f"{k} holds {v.dtype}"
        for k, v in fitting.items()
        if own[k].is_floating_point() and not v.is_floating_point()
    )
    if kinds:
        problems.append(f"not of floats: {_some(kinds)}")
    # Finite after the cast: a double may be too large for the network's own type.
    bad = sorted(
        k
        for k, v in fitting.items()
        if v.is_floating_point() and not torch.isfinite(v.to(own[k].dtype)).all()
    )
    if bad:
        problems.append(f"not finite {_some(bad)}")
    negative = sorted(k for k, v in fitting.items() if k.endswith("running_var") and bool((v < 0).any()))
    if negative:
        problems.append(f"negative variances in {_some(negative)}")
    if problems:
        raise CheckpointError(f"{where} does not fit the network: {'; '.join(problems)}")
    module.load_state_dict(given, strict=False)


def hash_state(module: nn.Module) -> str:
    """SHA-256 over a network's tensors with their names, in its own order."""
    digest = hashlib.sha256()
    for key, tensor in module.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
