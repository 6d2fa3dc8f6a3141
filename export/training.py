"""Training a head on frozen features, seeded and repeatable to the last digit on one machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional

from vsa_rt.contracts import Task
from vsa_rt.errors import RecipeError
from vsa_rt.export.head import LinearHead, make_head
from vsa_rt.recipe import Recipe

Features = NDArray[np.float32]
Targets = NDArray[np.int64]


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """One thread, seeded generators and deterministic kernels: sums are added in one order only."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        with torch.random.fork_rng(), threadpool_limits(1):
            torch.set_num_threads(1)
            torch.use_deterministic_algorithms(True)
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def join_features(recipe: Recipe, by_backbone: dict[str, Features]) -> Features:
    """Concatenate in the head's order, each backbone's rows scaled to unit norm if the recipe says so."""
    parts = []
    for name in recipe.head.features:
        part = by_backbone[name]
        if recipe.head.unit_norm:
            part = functional.normalize(torch.from_numpy(part), dim=1).numpy()
        parts.append(part)
    return np.concatenate(parts, 1)


def _train_linear(recipe: Recipe, features: Features, targets: Targets) -> nn.Module:
    """Multinomial logistic regression on standardised features; the standardisation is folded into the layer."""
    scaler = StandardScaler()
    standardised = scaler.fit_transform(features.astype(np.float64))
    model: Any = LogisticRegression(C=recipe.fit.regularisation, max_iter=10_000, tol=1e-8)
    model.fit(standardised, targets)
    slope, offset = model.coef_, model.intercept_
    if len(recipe.labels) == 2:
        # One decision value z: softmax over (-z / 2, z / 2) is the logistic function of z.
        slope, offset = np.concatenate([-slope, slope]) / 2, np.concatenate([-offset, offset]) / 2
    slope = slope / scaler.scale_
    head = LinearHead(features.shape[1], len(recipe.labels))
    with torch.no_grad():
        head.fc.weight.copy_(torch.from_numpy(slope))
        head.fc.bias.copy_(torch.from_numpy(offset - slope @ scaler.mean_))
    return head


def _train_nn(recipe: Recipe, features: Features, targets: Targets) -> nn.Module:
    """Adam on the cross-entropy of the softmax; for two classes this is SMAP 2021's binary cross-entropy."""
    fit = recipe.fit
    head = make_head(recipe, features.shape[1]).train()
    optimiser = torch.optim.Adam(head.parameters(), lr=fit.learning_rate)
    inputs, wanted = torch.from_numpy(features), torch.from_numpy(targets)
    for _ in range(fit.epochs):
        order: Tensor = torch.randperm(len(inputs))
        for start in range(0, len(order), fit.batch_size):
            chosen = order[start : start + fit.batch_size]
            optimiser.zero_grad()
            functional.cross_entropy(head(inputs[chosen]), wanted[chosen]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return head


#: Head kind to what trains it.
_TRAINERS: dict[str, Callable[[Recipe, Features, Targets], nn.Module]] = {
    "linear": _train_linear,
    "nn": _train_nn,
}


def train_head(recipe: Recipe, features: Features, targets: Targets, seed: int) -> nn.Module:
    """Train the recipe's head.

    Args:
        recipe: Kind, labels and settings.
        features: ``(N, D)``.
        targets: ``(N,)`` indices into the recipe's labels.
        seed: Of initial weights, order and dropout.

    Returns:
        The head in evaluation mode.

    Raises:
        RecipeError: The task is not one that this head is trained for, or a label has no photograph.
    """
    if recipe.task not in (Task.BINARY, Task.SINGLE_LABEL):
        raise RecipeError(
            f"key `task`: heads for {recipe.task} are not trained here; binary and single-label are"
        )
    absent = [name for index, name in enumerate(recipe.labels) if not (targets == index).any()]
    if absent:
        raise RecipeError(f"key `labels`: no photograph is labelled {', '.join(absent)}")
    with repeatable(seed):
        return _TRAINERS[recipe.head.kind](recipe, features, targets).eval().requires_grad_(False)


def predict(head: nn.Module, features: Features) -> Targets:
    """The winning label's index of each row."""
    with torch.inference_mode():
        return head(torch.from_numpy(features)).argmax(1).numpy()  # type: ignore[no-any-return]
