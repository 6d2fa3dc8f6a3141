"""Heads: concatenated features to logits and scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from vsa_rt.contracts import Task
from vsa_rt.errors import RecipeError
from vsa_rt.manifest import TapRecord
from vsa_rt.recipe import Head, Recipe, views_of_recipe


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


class UnitsHead(nn.Module):
    """The features' first numbers as they are: a network whose last layer is its classifier (Campos et al. 2015).

    Their softmax goes over all features. Which units stood for the labels is not said; trained on indices 0 and 1,
    these are the first.

    Args:
        classes: Outputs.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(N, C)`` of features ``(N, D)``."""
        return features[:, : self.classes]


#: Kind to what makes an untrained head of it, from the recipe's table, the features' width and the classes.
_MAKERS: dict[str, Callable[[Head, int, int], nn.Module]] = {
    "linear": lambda head, width, classes: LinearHead(width, classes),
    "nn": lambda head, width, classes: NNHead(width, classes, head.hidden, head.dropout),
    "moe": lambda head, width, classes: MoeHead(
        width, classes, head.hidden[0], head.experts, head.gate_bias, head.dropout
    ),
    "units": lambda head, width, classes: UnitsHead(classes),
}


def make_head(recipe: Recipe, width: int) -> nn.Module:
    """An untrained head of the recipe's kind for features of this width, which are one view's."""
    return _MAKERS[recipe.head.kind](recipe.head, width, len(recipe.labels))


def scores_from_logits(logits: Tensor, task: Task) -> Tensor:
    """Scores ``(N, C)``: independent sigmoids for multi-label, else softmax."""
    return torch.sigmoid(logits) if task is Task.MULTI_LABEL else torch.softmax(logits, 1)


def _taps_of_rows(head: nn.Module, rows: Tensor, task: Task) -> tuple[Tensor, ...]:
    """What a head gives for rows ``(M, D)`` of which each is one view; scores come last."""
    if isinstance(head, MoeHead):
        return head.parts(rows)
    logits: Tensor = head(rows)
    if isinstance(head, UnitsHead):
        return logits, torch.softmax(rows, 1)[:, : head.classes]
    return logits, scores_from_logits(logits, task)


def head_taps(head: nn.Module, features: Tensor, recipe: Recipe) -> tuple[Tensor, ...]:
    """What a head gives for features ``(N, V * D)``, in the order of ``head_tap_records``.

    With several views V the head scores each; the image's scores are their mean (Campos et al. 2015, oversampling).
    """
    views = views_of_recipe(recipe).count
    if views == 1:
        return _taps_of_rows(head, features, recipe.task)
    *before, scores = _taps_of_rows(head, features.reshape(-1, features.shape[1] // views), recipe.task)
    classes = scores.shape[1]
    together = [tap.reshape(-1, views * tap.shape[1]) for tap in (*before, scores)]
    return *together, scores.reshape(-1, views, classes).mean(1)


def head_tap_records(recipe: Recipe) -> list[TapRecord]:
    """Names and widths of what the recipe's head gives; ``scores`` comes last."""
    classes, experts, views = len(recipe.labels), recipe.head.experts, views_of_recipe(recipe).count
    found = [TapRecord(name="logits", width=views * classes, kind="logits")]
    if recipe.head.kind == "moe":
        found = [
            TapRecord(name="gates", width=views * classes * (experts + 1), kind="gates"),
            TapRecord(name="experts", width=views * classes * experts, kind="experts"),
        ]
    if views > 1:
        found.append(TapRecord(name="views", width=views * classes, kind="views"))
    return [*found, TapRecord(name="scores", width=classes, kind="scores")]


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
