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
from vsa_rt.export.head import LinearHead, MoeHead, head_taps, make_head
from vsa_rt.recipe import Recipe, views_of_recipe

Features = NDArray[np.float32]
#: ``(N,)`` indices into the labels, int64; for multi-label tasks ``(N, C)`` of 0 and 1, int64; for distributions
#: ``(N, C)``, each label's share of the image, float64 with rows of sum 1.
Targets = NDArray[Any]
Scores = NDArray[np.float64]


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
            # A copy: what comes from the cache cannot be written, of which torch would warn.
            part = functional.normalize(torch.tensor(part), dim=1).numpy()
        parts.append(part)
    return np.concatenate(parts, 1)


def _logistic(
    recipe: Recipe,
    standardised: NDArray[np.float64],
    targets: Targets,
    weights: NDArray[np.float64] | None = None,
) -> tuple[Any, Any]:
    """Slopes ``(C, D)`` and offsets ``(C,)`` of logistic regression; one row for two classes.

    Args:
        recipe: For the strength of the penalty.
        standardised: ``(N, D)``.
        targets: ``(N,)`` indices.
        weights: How much each row counts, ``(N,)``; ``None`` where all count 1.
    """
    model: Any = LogisticRegression(C=recipe.fit.regularisation, max_iter=10_000, tol=1e-8)
    model.fit(standardised, targets, weights)
    return model.coef_, model.intercept_


def _train_linear(recipe: Recipe, features: Features, targets: Targets) -> nn.Module:
    """Logistic regression on standardised features; the standardisation is folded into the layer.

    Multinomial for one label of several; one regression per label, against the rest, for multi-label tasks. For
    distributions multinomial, too: an image stands there once for each label that has a share of it, weighted with that
    share, and so weighs 1. The weighted cross-entropy is the divergence of ``head_loss`` plus the targets' entropy, on
    which no weight has an influence.
    """
    scaler = StandardScaler()
    standardised = scaler.fit_transform(features.astype(np.float64))
    if recipe.task is Task.MULTI_LABEL:
        rows = [_logistic(recipe, standardised, column) for column in targets.T]
        slope, offset = np.concatenate([s for s, _ in rows]), np.concatenate([o for _, o in rows])
    else:
        if recipe.task is Task.DISTRIBUTION:
            image, label = np.nonzero(targets)
            slope, offset = _logistic(recipe, standardised[image], label, targets[image, label])
        else:
            slope, offset = _logistic(recipe, standardised, targets)
        if len(recipe.labels) == 2:
            # One decision value z: softmax over (-z / 2, z / 2) is the logistic function of z.
            slope, offset = np.concatenate([-slope, slope]) / 2, np.concatenate([-offset, offset]) / 2
    slope = slope / scaler.scale_
    head = LinearHead(features.shape[1], len(recipe.labels))
    with torch.no_grad():
        head.fc.weight.copy_(torch.from_numpy(slope))
        head.fc.bias.copy_(torch.from_numpy(offset - slope @ scaler.mean_))
    return head


def _log_mixture(head: MoeHead, features: Tensor) -> tuple[Tensor, Tensor]:
    """``log o`` and ``log (1 - o)``, both ``(N, C)``, of a mixture's scores o.

    1 - o is the sum of gate times (1 - expert), the dummy's gate counted whole, because a class's gates sum to 1.
    Both sums are taken in log space: they stay finite, and have a gradient, where a gate or an expert is saturated.
    """
    raw_gates, experts = head.raw(features)
    gates = functional.log_softmax(raw_gates, 2)
    real, dummy = gates[:, :, : head.count], gates[:, :, head.count :]
    said = torch.logsumexp(real + functional.logsigmoid(experts), 2)
    unsaid = torch.logsumexp(torch.cat([real + functional.logsigmoid(-experts), dummy], 2), 2)
    return said, unsaid


def _log_softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """``log p`` and ``log (1 - p)``, both ``(N, C)``, of softmax scores p; the latter from the other logits alone."""
    own = torch.eye(logits.shape[1], dtype=torch.bool)
    others = logits[:, None, :].masked_fill(own, -torch.inf)
    total = torch.logsumexp(logits, 1, keepdim=True)
    return logits - total, torch.logsumexp(others, 2) - total


def head_loss(head: nn.Module, features: Tensor, targets: Tensor, task: Task, loss: str) -> Tensor:
    """Mean loss of a batch.

    With p the head's scores (softmax; sigmoids for multi-label tasks; o of a mixture of experts) and y the one-hot or
    multi-hot target:

    - ``bce``: ``-(y log p + (1 - y) log (1 - p))``, mean over images and labels (SMAP 2021, section 3.3);
    - ``cross-entropy``: ``-log p`` of the target; for a mixture p is then ``softmax(o)``, its scores taken as logits
      (MediaEval 2021 names the loss, but not of which function of o);
    - ``nll``: ``-log (o / sum o)`` of the target.

    Multi-label tasks have ``bce`` alone. Distributions have one loss of their own, the Kullback-Leibler divergence
    KL(target || p) of p, for a mixture of ``o / sum o``: the cross-entropy with the shares as targets minus their
    entropy, mean over images (the CVPR 2023 paper's loss is ``KLDivLoss`` of the log-softmax, its reduction is not
    said).

    Args:
        head: In training or evaluation mode.
        features: ``(N, D)``.
        targets: As ``Targets`` has them for the task.
        task: What the scores mean.
        loss: One of the three, for tasks with one label of several.

    Returns:
        A scalar with a gradient.
    """
    if isinstance(head, MoeHead):
        said, unsaid = _log_mixture(head, features)
    elif task is Task.MULTI_LABEL:
        logits = head(features)
        said, unsaid = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    else:
        said, unsaid = _log_softmax(head(features))
    if task is Task.MULTI_LABEL:
        return -torch.where(targets.bool(), said, unsaid).mean()
    if task is Task.DISTRIBUTION:
        # The softmax of log o is o / sum o, and that of log p is p.
        return functional.kl_div(functional.log_softmax(said, 1), targets.to(said), reduction="batchmean")
    if loss == "bce":
        wanted = functional.one_hot(targets, said.shape[1]).bool()
        return -torch.where(wanted, said, unsaid).mean()
    # The softmax of log o is o / sum o, and that of log p is p.
    taken = said.exp() if loss == "cross-entropy" and isinstance(head, MoeHead) else said
    return functional.cross_entropy(taken, targets)


def _train_by_steps(recipe: Recipe, features: Features, targets: Targets) -> nn.Module:
    """Adam with an L2 penalty on batches in a new order every epoch; the learning rate falls in steps."""
    fit = recipe.fit
    head = make_head(recipe, features.shape[1]).train()
    # Fused: one pass over the weights instead of several; measured on two million weights, steps take half the time.
    optimiser = torch.optim.Adam(
        head.parameters(), lr=fit.learning_rate, weight_decay=fit.weight_decay, fused=True
    )
    # Without steps, one that no epoch reaches.
    fall = torch.optim.lr_scheduler.StepLR(optimiser, fit.step or fit.epochs + 1, fit.factor)
    inputs, wanted = torch.from_numpy(features), torch.from_numpy(targets)
    for _ in range(fit.epochs):
        order: Tensor = torch.randperm(len(inputs))
        for start in range(0, len(order), fit.batch_size):
            chosen = order[start : start + fit.batch_size]
            optimiser.zero_grad()
            loss = head_loss(head, inputs[chosen], wanted[chosen], recipe.task, fit.loss)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        fall.step()
    return head


#: Head kind to what trains it.
_TRAINERS: dict[str, Callable[[Recipe, Features, Targets], nn.Module]] = {
    "linear": _train_linear,
    "nn": _train_by_steps,
    "moe": _train_by_steps,
}


def _check_targets(recipe: Recipe, targets: Targets) -> None:
    """Check that every label can be told from the others."""
    classes = len(recipe.labels)
    counts = (targets > 0).sum(0) if targets.ndim == 2 else np.bincount(targets, minlength=classes)
    constant = {"no": counts == 0}
    if recipe.task is not Task.DISTRIBUTION:  # whose every photograph may have some of a label
        constant["every"] = counts == len(targets)
    for which, same in constant.items():
        names = [name for name, is_so in zip(recipe.labels, same, strict=True) if is_so]
        if names:
            raise RecipeError(
                f"key `labels`: {which} photograph is labelled {', '.join(names)}: nothing can be learnt"
            )


def train_head(recipe: Recipe, features: Features, targets: Targets, seed: int) -> nn.Module:
    """Train the recipe's head.

    Args:
        recipe: Kind, labels and settings.
        features: ``(N, V * D)``; of several views V each is a row of its own, with the image's target: Campos et al.
            2015 train on crops and mirror images, too.
        targets: As ``Targets`` has them for the recipe's task and labels.
        seed: Of initial weights, order and dropout.

    Returns:
        The head in evaluation mode.

    Raises:
        RecipeError: A label has no photograph, or, unless it is a distribution's, every one.
    """
    _check_targets(recipe, targets)
    views = views_of_recipe(recipe).count
    features, targets = features.reshape(len(features) * views, -1), np.repeat(targets, views, 0)
    with repeatable(seed):
        return _TRAINERS[recipe.head.kind](recipe, features, targets).eval().requires_grad_(False)


def scores_of(head: nn.Module, features: Features, recipe: Recipe) -> Scores:
    """Scores of a head, as every evaluation takes them.

    Args:
        head: In evaluation mode.
        features: ``(N, V * D)``.
        recipe: What the scores mean, and of how many views they are the mean.

    Returns:
        ``(N, C)``, in the type in which the runtime holds a score against its threshold.
    """
    with torch.inference_mode():
        scores: Scores = head_taps(head, torch.from_numpy(features), recipe)[-1].double().numpy()
    return scores


def decide(scores: Scores, task: Task, threshold: float) -> NDArray[np.int64]:
    """What scores ``(N, C)`` stand for.

    Args:
        scores: Of any head.
        task: What they mean.
        threshold: Multi-label only: the score above which a label is given.

    Returns:
        The winning label's index of each row ``(N,)``, of equal scores the first; for multi-label tasks ``(N, C)`` of
        0 and 1.
    """
    said = scores > threshold if task is Task.MULTI_LABEL else scores.argmax(1)
    return said.astype(np.int64)


def predict(head: nn.Module, features: Features, recipe: Recipe) -> NDArray[np.int64]:
    """What a head says of features ``(N, D)``, as ``decide`` has it."""
    return decide(scores_of(head, features, recipe), recipe.task, recipe.threshold)


def gate_weights(head: MoeHead, features: Features) -> NDArray[np.float32]:
    """Weights ``(M, C, experts + 1)`` that a mixture gives its experts; the dummy's is the last, and each sum is 1.

    Args:
        head: A mixture.
        features: ``(N, V * D)``; of several views V each is a row of its own.
    """
    with torch.inference_mode():
        rows = torch.from_numpy(features).reshape(-1, head.fc.in_features)
        gates: NDArray[np.float32] = head.parts(rows)[0].numpy()
    return gates.reshape(len(rows), head.classes, head.count + 1)
