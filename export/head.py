"""Heads: concatenated features to scores. A head file is safetensors with what it was trained for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from vsa_rt.contracts import ResizeSpec, Task
from vsa_rt.errors import CheckpointAbsent, CheckpointError, RecipeError
from vsa_rt.export.checkpoint import load_weights
from vsa_rt.locate import locate, where_found
from vsa_rt.manifest import CheckpointRecord, TapRecord
from vsa_rt.recipe import Head, Recipe, options_of

if TYPE_CHECKING:
    from vsa_rt.export.backbones import LoadedBackbone


class LinearHead(nn.Module):
    """One dense layer: features ``(N, D)`` to logits ``(N, C)``."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(N, C)``."""
        logits: Tensor = self.fc(features)
        return logits


class NNHead(nn.Module):
    """Dense layers with ReLU and dropout between.

    SMAP 2021, section 3.3: one hidden layer of 200, dropout 0.4. MediaEval 2021, subtasks 2 and 3: 1000 and 200.

    Args:
        width: Length of the features.
        classes: Outputs.
        hidden: Widths of the hidden layers.
        dropout: Rate while it is trained.
    """

    def __init__(self, width: int, classes: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        widths = [width, *hidden, classes]
        self.fc = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(N, C)``."""
        for layer in self.fc[:-1]:
            features = self.dropout(functional.relu(layer(features)))
        logits: Tensor = self.fc[-1](features)
        return logits


class MoeHead(nn.Module):
    """Mixture of experts: Abu-El-Haija et al. 2016 (youtube-8m's ``MoeModel``), as SMAP 2021 puts it on one layer.

    Each class has M experts and M + 1 gates; the last gate belongs to a dummy that always says 0, so a class's
    score lies below 1 and the scores do not add up to 1.

    Args:
        width: Length of the features.
        classes: Outputs.
        hidden: Width of the layer that gates and experts read.
        experts: M.
        gate_bias: Whether the gates have a bias.
        dropout: Rate while it is trained, before the ReLU.
    """

    def __init__(
        self, width: int, classes: int, hidden: int, experts: int, gate_bias: bool, dropout: float
    ) -> None:
        super().__init__()
        self.classes, self.count = classes, experts
        self.fc = nn.Linear(width, hidden)
        self.dropout = nn.Dropout(dropout)
        self.gates = nn.Linear(hidden, classes * (experts + 1), bias=gate_bias)
        self.experts = nn.Linear(hidden, classes * experts)

    def raw(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the gates ``(N, C, M + 1)``, the dummy's last, and of the experts ``(N, C, M)``."""
        shared = functional.relu(self.dropout(self.fc(features)))
        gates = self.gates(shared).reshape(-1, self.classes, self.count + 1)
        return gates, self.experts(shared).reshape(-1, self.classes, self.count)

    def parts(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gates ``(N, C (M + 1))``, experts ``(N, C M)`` and scores ``(N, C)``.

        Class c's gate m stands in column ``c (M + 1) + m``, its expert m in column ``c M + m``.
        """
        raw_gates, raw_experts = self.raw(features)
        gates, experts = torch.softmax(raw_gates, 2), torch.sigmoid(raw_experts)
        scores = (gates[:, :, : self.count] * experts).sum(2)
        return gates.flatten(1), experts.flatten(1), scores

    def forward(self, features: Tensor) -> Tensor:
        """Scores ``(N, C)``."""
        return self.parts(features)[2]


#: Kind to what makes an untrained head of it, from the recipe's table, the features' width and the classes.
_MAKERS: dict[str, Callable[[Head, int, int], nn.Module]] = {
    "linear": lambda head, width, classes: LinearHead(width, classes),
    "nn": lambda head, width, classes: NNHead(width, classes, head.hidden, head.dropout),
    "moe": lambda head, width, classes: MoeHead(
        width, classes, head.hidden[0], head.experts, head.gate_bias, head.dropout
    ),
}


def make_head(recipe: Recipe, width: int) -> nn.Module:
    """An untrained head of the recipe's kind for features of this width."""
    return _MAKERS[recipe.head.kind](recipe.head, width, len(recipe.labels))


def scores_from_logits(logits: Tensor, task: Task) -> Tensor:
    """Scores ``(N, C)``: independent sigmoids for multi-label, else softmax."""
    return torch.sigmoid(logits) if task is Task.MULTI_LABEL else torch.softmax(logits, 1)


def head_taps(head: nn.Module, features: Tensor, task: Task) -> tuple[Tensor, ...]:
    """What a head gives for features ``(N, D)``, in the order of ``head_tap_records``."""
    if isinstance(head, MoeHead):
        return head.parts(features)
    logits = head(features)
    return logits, scores_from_logits(logits, task)


def head_tap_records(recipe: Recipe) -> list[TapRecord]:
    """Names and widths of what the recipe's head gives; ``scores`` comes last."""
    classes, experts = len(recipe.labels), recipe.head.experts
    scores = TapRecord(name="scores", width=classes, kind="scores")
    if recipe.head.kind == "moe":
        return [
            TapRecord(name="gates", width=classes * (experts + 1), kind="gates"),
            TapRecord(name="experts", width=classes * experts, kind="experts"),
            scores,
        ]
    return [TapRecord(name="logits", width=classes, kind="logits"), scores]


class BackboneRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a head remembers of one backbone that it was fitted over.

    Attributes:
        architecture: As the recipe spells it.
        reads: The backbone whose features it takes, in the graph or made elsewhere; empty for the image.
        options: All of the architecture's own, defaults included.
        resize: How the host makes the image; ``None`` for a network that reads none.
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


def backbone_records(backbones: Sequence[LoadedBackbone]) -> dict[str, BackboneRecord]:
    """What a head remembers of the backbones below it, by name."""
    return {
        b.name: BackboneRecord(
            architecture=b.entry.architecture,
            reads=b.entry.reads,
            options=msgspec.to_builtins(options_of(b.entry)),
            resize=b.made.resize,
            mean=list(b.made.mean),
            std=list(b.made.std),
            sha256=b.record.sha256,
            random_seed=b.record.random_seed,
        )
        for b in backbones
    }


def _purpose(recipe: Recipe, backbones: Sequence[LoadedBackbone]) -> dict[str, str]:
    """What a head was trained for: it fits no other order of features or labels."""
    widths = {b.name: b.width for b in backbones}
    return {
        "kind": recipe.head.kind,
        "task": str(recipe.task),
        "labels": json.dumps(recipe.labels),
        "features": json.dumps([[name, widths[name]] for name in recipe.head.features]),
        "unit_norm": json.dumps(recipe.head.unit_norm),
    }


def _joined_width(recipe: Recipe, backbones: Sequence[LoadedBackbone]) -> int:
    """Length of the concatenated features."""
    widths = {b.name: b.width for b in backbones}
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
    key = next((k for k in before | after if before.get(k) != after.get(k)), None)
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
    if weights is None and not recipe.head.weights:
        raise CheckpointError(
            "key `head.weights`: the recipe has no trained head; train one with vsa-rt fit and name it there, "
            "or with --weights head=PATH"
        )
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
                f"key `head.weights`: {path} was trained for {key} {purpose.get(key)}, the recipe has {wanted}"
            )
    _check_backbones(purpose.get("backbones", ""), backbones, f"key `head.weights`: {path}")
    head = make_head(recipe, _joined_width(recipe, backbones))
    load_weights(head, state, f"key `head.weights`: {path}")
    record = CheckpointRecord(sha256=sha256, found=where_found(path, "" if weights else recipe.head.weights))
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


def check_labels(recipe: Recipe, found: list[str]) -> None:
    """Check that data and recipe speak of the same labels.

    Raises:
        RecipeError: A label of the data is not the recipe's.
    """
    foreign = sorted(set(found) - set(recipe.labels))
    if foreign:
        raise RecipeError(
            f"key `labels`: the data has {', '.join(map(repr, foreign))}, the recipe {', '.join(recipe.labels)}"
        )
