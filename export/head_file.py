"""The head's file: weights with what they were trained for and over, or where else a head comes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from vsa_rt.architecture import ARCHITECTURES, family_of
from vsa_rt.contracts import ResizeSpec
from vsa_rt.errors import CheckpointAbsent, CheckpointError
from vsa_rt.export.checkpoint import load_weights
from vsa_rt.export.head import make_head
from vsa_rt.locate import locate, where_found
from vsa_rt.manifest import CheckpointRecord
from vsa_rt.recipe import Recipe, options_of, seen_once

if TYPE_CHECKING:
    from vsa_rt.export.backbones import LoadedBackbone


class BackboneRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a head remembers of one backbone that it was fitted over.

    Attributes:
        architecture: As the recipe spells it.
        reads: The backbone whose features it takes, in the graph or made elsewhere; empty for the image.
        options: All of the architecture's own, defaults included.
        resize: How the host makes the image; ``None`` for a network that reads none, and where views decide it.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, of pixels in [0, 1].
        sha256: Hash of the checkpoint's file; of the tensors where weights are random.
        random_seed: The seed of random weights, else ``None``.
    """

    architecture: str
    reads: str
    options: dict[str, str | int | float | bool]
    resize: ResizeSpec | None
    mean: list[float]
    std: list[float]
    sha256: str
    random_seed: int | None


def _remembered_resize(backbone: LoadedBackbone) -> ResizeSpec | None:
    """A backbone's resize, unless its views decide it: a head scores each view alike."""
    entry = backbone.entry
    own = ARCHITECTURES[family_of(entry.architecture)].view_options and entry.resize is None
    return None if own else backbone.resize


def backbone_records(backbones: Sequence[LoadedBackbone]) -> dict[str, BackboneRecord]:
    """What a head remembers of the backbones below it, by name."""
    return {
        b.name: BackboneRecord(
            architecture=b.entry.architecture,
            reads=b.entry.reads,
            options=msgspec.to_builtins(options_of(seen_once(b.entry))),
            resize=_remembered_resize(b),
            mean=list(b.made.mean),
            std=list(b.made.std),
            sha256=b.record.sha256,
            random_seed=b.record.random_seed,
        )
        for b in backbones
    }


def _purpose(recipe: Recipe, backbones: Sequence[LoadedBackbone]) -> dict[str, str]:
    """What a head was trained for: it fits no other order of features or labels."""
    widths = {b.name: b.width // b.views for b in backbones}
    return {
        "kind": recipe.head.kind,
        "task": str(recipe.task),
        "labels": json.dumps(recipe.labels),
        "features": json.dumps([[name, widths[name]] for name in recipe.head.features]),
        "unit_norm": json.dumps(recipe.head.unit_norm),
    }


def _joined_width(recipe: Recipe, backbones: Sequence[LoadedBackbone]) -> int:
    """Length of one view's concatenated features."""
    widths = {b.name: b.width // b.views for b in backbones}
    return sum(widths[name] for name in recipe.head.features)


def head_to_bytes(head: nn.Module, recipe: Recipe, backbones: Sequence[LoadedBackbone]) -> bytes:
    """A head file: the weights in float32 and, as metadata, what they were trained for and over.

    Args:
        head: Trained.
        recipe: Labels, task, features and their order.
        backbones: All that the features need.

    Returns:
        The same bytes for the same weights, recipe and backbones.
    """
    tensors = {k: v.detach().contiguous() for k, v in head.state_dict().items()}
    # In the order of names, not of the recipe's tables: that order steers nothing.
    over = msgspec.json.encode(backbone_records(backbones), order="sorted").decode()
    return _sorted_header(save(tensors, metadata=_purpose(recipe, backbones) | {"backbones": over}))


def _sorted_header(data: bytes) -> bytes:
    """The same file with its JSON header sorted: safetensors writes metadata in an order that changes by run."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format aligns the tensors to eight bytes with spaces
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file: a JSON header behind its little-endian 8-byte length."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found = header.get("__metadata__", {})
    return {str(k): str(v) for k, v in found.items()}


def _compared(record: BackboneRecord) -> dict[str, object]:
    """What two records are compared by; what comes first explains what comes after it."""
    resize = {} if record.resize is None else msgspec.to_builtins(record.resize)
    return {
        "architecture": record.architecture,
        "reads": record.reads,
        **{f"option {key}": value for key, value in record.options.items()},
        **{f"preprocessing {key}": value for key, value in resize.items()},
        "preprocessing mean": record.mean,
        "preprocessing std": record.std,
        "weights": record.sha256,
    }


def _weights(record: BackboneRecord) -> str:
    seed = "" if record.random_seed is None else f" (random, seed {record.random_seed})"
    return f"{record.sha256[:12]}…{seed}"


def _difference(name: str, was: BackboneRecord, now: BackboneRecord) -> str:
    """What differs first between two backbones of one name, and what to do; empty if nothing does.

    Raises:
        CheckpointAbsent: The same seed gave other weights.
    """
    before, after = _compared(was), _compared(now)
    # What either has, weights last: other preprocessing or options explain other weights.
    keys = [*dict.fromkeys([*before, *after])]
    key = next((k for k in sorted(keys, key="weights".__eq__) if before.get(k) != after.get(k)), None)
    if key is None:
        return ""
    if key == "weights":
        if was.random_seed is not None and was.random_seed == now.random_seed:
            # Sums of floats: another processor or library may round a seeded network's statistics differently.
            raise CheckpointAbsent(
                f"the random weights of {name!r} come out differently on this machine than where the head was "
                "fitted; fit it again here"
            )
        seed = was.random_seed
        source = f"--weights {name}=PATH" if seed is None else f"--random-weights {seed}"
        return (
            f"weights {_weights(was)} there, {_weights(now)} here; fit it again, or take those with {source}"
        )
    there, here = (json.dumps(values.get(key)) for values in (before, after))
    kind, _, option = key.partition(" ")
    advice = "take the recipe that it was fitted with"
    if kind == "option" and option in was.options:
        value = was.options[option]
        advice = f"pass --set {name}.{option}={value if isinstance(value, str) else there}"
    return f"{key} {there} there, {here} here; fit it again, or {advice}"


def _check_backbones(text: str, backbones: Sequence[LoadedBackbone], where: str) -> None:
    """Check that a head stands on the backbones that it was fitted over.

    Args:
        text: What the head file says of them.
        backbones: Each one after what it reads.
        where: What to call the file in messages.

    Raises:
        CheckpointAbsent: Seeded weights are others on this machine.
        CheckpointError: Another backbone, or the file does not say over which it was fitted.
    """
    known: dict[str, BackboneRecord] = {}
    with suppress(msgspec.DecodeError, RecursionError):
        known = msgspec.json.decode(text, type=dict[str, BackboneRecord])
    records = backbone_records(backbones)
    for name, now in records.items():
        found = _difference(name, known[name], now) if name in known else ""
        if found:
            raise CheckpointError(f"{where} was fitted over another {name!r}: {found}")
    missing = next((name for name in records if name not in known), None)
    if missing is not None:
        raise CheckpointError(
            f"{where} does not say over which {missing!r} it was fitted, as those of earlier versions; fit it again"
        )


def load_head(
    recipe: Recipe, folder: Path, backbones: Sequence[LoadedBackbone], weights: Path | None = None
) -> tuple[nn.Module, CheckpointRecord, bytes]:
    """Load the recipe's head.

    Args:
        recipe: Names the kind, the labels and the features' order.
        folder: The recipe's folder.
        backbones: All that the features need, each one after what it reads.
        weights: A file to use instead of the recipe's.

    Returns:
        The head in evaluation mode, where it came from, and the file's bytes.

    Raises:
        CheckpointAbsent: No such file, or it was fitted over seeded weights that are others on this machine.
        CheckpointError: Damaged, or trained for other labels, another order of features or other backbones.
    """
    if weights is None and recipe.head.kind == "units":
        return _head_without_weights(recipe, backbones)
    if weights is None and not recipe.head.weights:
        return _head_of_checkpoint(recipe, backbones)
    path = weights or locate(recipe.head.weights, folder, "head.weights", "Train it with vsa-rt fit.")
    try:
        data = path.read_bytes()
        state, purpose = load(data), _metadata(data)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"key `head.weights`: {path} is not a head file: {error}") from error
    sha256 = hashlib.sha256(data).hexdigest()
    if weights is None and recipe.head.sha256 and sha256 != recipe.head.sha256:
        raise CheckpointError(
            f"key `head.sha256`: {path} has {sha256}, the recipe wants {recipe.head.sha256}"
        )
    for key, wanted in _purpose(recipe, backbones).items():
        if purpose.get(key) != wanted:
            raise CheckpointError(
                f"key `head.weights`: {path} was trained for {key} {purpose.get(key)}, the recipe has {wanted}; fit one "
                "for this recipe, with the same --set, and name it with --weights head=PATH"
            )
    _check_backbones(purpose.get("backbones", ""), backbones, f"key `head.weights`: {path}")
    head = make_head(recipe, _joined_width(recipe, backbones))
    load_weights(head, state, f"key `head.weights`: {path}")
    record = CheckpointRecord(sha256=sha256, found=where_found(path, "" if weights else recipe.head.weights))
    return head.eval().requires_grad_(False), record, data


def _head_without_weights(
    recipe: Recipe, backbones: Sequence[LoadedBackbone]
) -> tuple[nn.Module, CheckpointRecord, bytes]:
    """Units of the last layer: the file says what they stand for, and holds no tensor."""
    head = make_head(recipe, _joined_width(recipe, backbones)).eval()
    data = head_to_bytes(head, recipe, backbones)
    return head, CheckpointRecord(sha256=hashlib.sha256(data).hexdigest(), found="no weights"), data


def brings_head(recipe: Recipe, backbones: Sequence[LoadedBackbone]) -> bool:
    """Whether the only backbone's checkpoint holds a dense layer above it that fits the recipe's labels."""
    if len(backbones) != 1 or recipe.head.kind != "linear" or recipe.head.weights:
        return False
    weight = backbones[0].head.get("weight")
    return weight is not None and tuple(weight.shape) == (
        len(recipe.labels),
        _joined_width(recipe, backbones),
    )


def _head_of_checkpoint(
    recipe: Recipe, backbones: Sequence[LoadedBackbone]
) -> tuple[nn.Module, CheckpointRecord, bytes]:
    """The dense layer that the only backbone's checkpoint holds above it.

    Raises:
        CheckpointError: There is none, or it has other inputs or outputs.
    """
    how = "train one with vsa-rt fit and name it there, or with --weights head=PATH"
    found = backbones[0].head if len(backbones) == 1 and recipe.head.kind == "linear" else {}
    if not found:
        raise CheckpointError(f"key `head.weights`: the recipe has no trained head; {how}")
    head = make_head(recipe, _joined_width(recipe, backbones))
    state = {f"fc.{key}": tensor for key, tensor in found.items()}
    owner = backbones[0]
    where = f"key `head.weights`: none, and layer {owner.made.head_layer!r} of {owner.name!r}'s checkpoint"
    try:
        load_weights(head, state, where)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: {len(recipe.labels)} labels are wanted; {how}") from error
    data = head_to_bytes(head, recipe, backbones)
    record = CheckpointRecord(sha256=hashlib.sha256(data).hexdigest(), found=owner.record.found)
    return head.eval().requires_grad_(False), record, data


def random_head(
    recipe: Recipe, backbones: Sequence[LoadedBackbone], seed: int
) -> tuple[nn.Module, CheckpointRecord, bytes]:
    """A seeded head, which decides nothing; for networks without trained weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = make_head(recipe, _joined_width(recipe, backbones))
    data = head_to_bytes(head, recipe, backbones)
    record = CheckpointRecord(
        sha256=hashlib.sha256(data).hexdigest(), found="random weights", random_seed=seed
    )
    return head.eval().requires_grad_(False), record, data
