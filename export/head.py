"""Heads: concatenated features to scores. A head file is safetensors with what it was trained for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from vsa_rt.contracts import Task
from vsa_rt.errors import CheckpointError, RecipeError
from vsa_rt.export.checkpoint import load_weights
from vsa_rt.locate import locate, where_found
from vsa_rt.manifest import CheckpointRecord, TapRecord
from vsa_rt.recipe import Head, Recipe


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

    def parts(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gates ``(N, C (M + 1))``, experts ``(N, C M)`` and scores ``(N, C)``.

        Class c's gate m stands in column ``c (M + 1) + m``, its expert m in column ``c M + m``.
        """
        shared = functional.relu(self.dropout(self.fc(features)))
        gates = torch.softmax(self.gates(shared).reshape(-1, self.classes, self.count + 1), 2)
        experts = torch.sigmoid(self.experts(shared).reshape(-1, self.classes, self.count))
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


def _purpose(recipe: Recipe, widths: dict[str, int]) -> dict[str, str]:
    """What a head was trained for: it fits no other order of features or labels."""
    return {
        "kind": recipe.head.kind,
        "task": str(recipe.task),
        "labels": json.dumps(recipe.labels),
        "features": json.dumps([[name, widths[name]] for name in recipe.head.features]),
        "unit_norm": json.dumps(recipe.head.unit_norm),
    }


def head_to_bytes(head: nn.Module, recipe: Recipe, widths: dict[str, int]) -> bytes:
    """A head file: the weights in float32 and, as metadata, labels, features and their order."""
    tensors = {k: v.detach().contiguous() for k, v in head.state_dict().items()}
    return _sorted_header(save(tensors, metadata=_purpose(recipe, widths)))


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


def load_head(
    recipe: Recipe, folder: Path, widths: dict[str, int], weights: Path | None = None
) -> tuple[nn.Module, CheckpointRecord, bytes]:
    """Load the recipe's head.

    Args:
        recipe: Names the kind, the labels and the features' order.
        folder: The recipe's folder.
        widths: Width of each backbone's features.
        weights: A file to use instead of the recipe's.

    Returns:
        The head in evaluation mode, where it came from, and the file's bytes.

    Raises:
        CheckpointError: Absent, damaged, or trained for other labels or another order of features.
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
    for key, wanted in _purpose(recipe, widths).items():
        if purpose.get(key) != wanted:
            raise CheckpointError(
                f"key `head.weights`: {path} was trained for {key} {purpose.get(key)}, the recipe has {wanted}"
            )
    head = make_head(recipe, sum(widths[name] for name in recipe.head.features))
    load_weights(head, state, f"key `head.weights`: {path}")
    record = CheckpointRecord(sha256=sha256, found=where_found(path, "" if weights else recipe.head.weights))
    return head.eval().requires_grad_(False), record, data


def random_head(
    recipe: Recipe, widths: dict[str, int], seed: int
) -> tuple[nn.Module, CheckpointRecord, bytes]:
    """A seeded head, which decides nothing; for networks without trained weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = make_head(recipe, sum(widths[name] for name in recipe.head.features))
    data = head_to_bytes(head, recipe, widths)
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
