"""What a recipe must satisfy beyond its types; each refusal names the key."""

from __future__ import annotations

import math

import msgspec

from vsa_rt.backbone_rules import (
    LARGEST,
    check_backbones,
    check_name,
    check_pin,
    check_resize,
    check_sizes,
    check_unique,
    refuse,
)
from vsa_rt.contracts import Task
from vsa_rt.recipe import SCHEMA, Fit, Graph, Head, Recipe, known_widths, views_of_recipe
from vsa_rt.schedules import PRESETS

# As in vsa_rt.backbone_rules: limits far above every published ensemble.
_MOST_LABELS = 10_000
_MOST_LAYERS = 8
_MOST_EXPERTS = 1024
_MOST_IMAGES = 64
_MOST_STEPS = 1_000_000
#: The default, which says nothing.
_THRESHOLD = 0.5
#: Keys of the head that mean nothing to a kind.
_IDLE_HEAD: dict[str, tuple[str, ...]] = {
    "linear": ("hidden", "dropout", "experts", "gate_bias"),
    "nn": ("experts", "gate_bias"),
    "moe": (),
    "units": ("weights", "sha256", "hidden", "dropout", "experts", "gate_bias"),
}
#: Keys of the schedule, by which a linear head is not trained.
_SCHEDULE = ("epochs", "batch_size", "learning_rate", "weight_decay", "step", "factor", "loss")


def _changed(table: Head | Fit, default: Head | Fit) -> list[str]:
    """Keys whose values are not the default ones. Whether a default was written out cannot be told."""
    values, defaults = msgspec.structs.asdict(table), msgspec.structs.asdict(default)
    return [key for key, value in values.items() if value != defaults[key]]


def _check_head(recipe: Recipe, where: str) -> None:
    head = recipe.head
    known = {b.name for b in recipe.backbones}
    for name in head.features:
        if name not in known:
            raise refuse(
                where, "head.features", f"no backbone {name!r}; there are {', '.join(sorted(known))}"
            )
    check_unique(where, "head.features", head.features)
    unused = known - set(head.features) - {b.reads for b in recipe.backbones}
    if unused:
        raise refuse(where, "head.features", f"backbone {', '.join(sorted(unused))} is used by nothing")
    check_pin(where, "head.sha256", head.sha256, "head.weights", head.weights)
    if not 1 <= len(head.hidden) <= _MOST_LAYERS:
        raise refuse(where, "head.hidden", f"{len(head.hidden)} layers; 1 to {_MOST_LAYERS} are taken")
    if min(head.hidden) < 1 or max(head.hidden) > LARGEST:
        raise refuse(where, "head.hidden", f"{head.hidden} must be widths of 1 to {LARGEST}")
    if head.kind == "moe" and len(head.hidden) != 1:
        raise refuse(where, "head.hidden", f"{head.hidden}: a mixture of experts has one hidden layer")
    if not 1 <= head.experts <= _MOST_EXPERTS:
        raise refuse(where, "head.experts", f"{head.experts} must lie in [1, {_MOST_EXPERTS}]")
    if not 0 <= head.dropout < 1:
        raise refuse(where, "head.dropout", f"{head.dropout} must lie in [0, 1)")
    _check_views(recipe, where)
    default = Head(kind=head.kind, features=head.features)
    idle = [key for key in _changed(head, default) if key in _IDLE_HEAD[head.kind]]
    if idle:
        raise refuse(
            where,
            f"head.{idle[0]}",
            f'has no meaning with kind = "{head.kind}"; leave it out, or as it is by default',
        )


def _check_views(recipe: Recipe, where: str) -> None:
    """Check that a head which scores views has nothing else to score, and that units are there for every label."""
    views = views_of_recipe(recipe).count
    if views > 1 and len(recipe.backbones) > 1:
        raise refuse(
            where,
            "backbones",
            f"one of them gives {views} views of an image, which a head scores one by one: alone",
        )
    if views > 1 and recipe.head.unit_norm:
        raise refuse(where, "head.unit_norm", f"has no meaning over {views} views of an image; leave it out")
    widths = known_widths(recipe)
    units = sum((widths[name] or len(recipe.labels)) // views for name in recipe.head.features)
    if recipe.head.kind == "units" and units < len(recipe.labels):
        raise refuse(where, "head.kind", f"{units} units are fewer than {len(recipe.labels)} labels")
    if recipe.head.kind == "units" and recipe.task not in (Task.BINARY, Task.SINGLE_LABEL):
        raise refuse(
            where, "head.kind", f"units are outputs of one softmax, of which task {recipe.task} wants none"
        )


def _check_graph(graph: Graph, recipe: Recipe, where: str) -> None:
    if recipe.backbones or recipe.head.features:
        raise refuse(where, "graph", "a recipe of a bare ONNX file has neither backbones nor a head")
    idle = [f"head.{key}" for key in _changed(recipe.head, Head(kind="linear", features=[]))]
    idle += [f"fit.{key}" for key in _changed(recipe.fit, Fit())]
    if idle:
        raise refuse(where, idle[0], "has no meaning with [graph]: a bare ONNX file is its own head")
    if not graph.inputs:
        raise refuse(where, "graph.inputs", "at least one [[graph.inputs]] table is needed")
    if len(graph.inputs) > _MOST_IMAGES:
        raise refuse(where, "graph.inputs", f"{len(graph.inputs)} tables; at most {_MOST_IMAGES} are taken")
    check_unique(where, "graph.inputs.name", [i.name for i in graph.inputs])
    for i, entry in enumerate(graph.inputs):
        if not all(s > 0 and math.isfinite(s) for s in entry.std):
            raise refuse(where, f"graph.inputs[{i}].std", f"{entry.std} must be positive numbers")
        if not all(map(math.isfinite, entry.mean)):
            raise refuse(where, f"graph.inputs[{i}].mean", f"{entry.mean} must be numbers")
        check_resize(where, f"graph.inputs[{i}].resize", entry.resize)


def _check_fit(recipe: Recipe, where: str) -> None:
    fit = recipe.fit
    if fit.preset and fit.preset not in PRESETS:
        raise refuse(where, "fit.preset", f"{fit.preset!r}: expected one of {', '.join(PRESETS)}")
    for key, least in (("folds", 2), ("epochs", 1), ("batch_size", 1), ("step", 0)):
        if not least <= getattr(fit, key) <= _MOST_STEPS:
            raise refuse(where, f"fit.{key}", f"{getattr(fit, key)} must lie in [{least}, {_MOST_STEPS}]")
    for key in ("regularisation", "learning_rate", "factor"):
        if not (getattr(fit, key) > 0 and math.isfinite(getattr(fit, key))):
            raise refuse(where, f"fit.{key}", f"{getattr(fit, key)} must be a positive number")
    if not (fit.weight_decay >= 0 and math.isfinite(fit.weight_decay)):
        raise refuse(where, "fit.weight_decay", f"{fit.weight_decay} must not be negative")
    if not 0 < fit.test < 1:
        raise refuse(where, "fit.test", f"{fit.test} must lie between 0 and 1")
    if fit.loss == "nll" and recipe.head.kind != "moe":
        raise refuse(where, "fit.loss", 'nll is for head.kind = "moe"; cross-entropy is the same elsewhere')


def _check_fit_fits(recipe: Recipe, where: str) -> None:
    """Check that what is set is also used.

    ``test`` is left alone: ``--split`` may choose the other split for which it is meant.
    """
    fit, kind = recipe.fit, recipe.head.kind
    several = recipe.task is Task.MULTI_LABEL
    if fit.loss == "nll" and several:
        raise refuse(
            where, "fit.loss", "nll is for one label of several; multi-label heads are trained with bce"
        )
    changed = [key for key in _changed(fit, Fit()) if key in _SCHEDULE]
    if kind == "linear" and fit.preset:
        raise refuse(where, "fit.preset", "a linear head is not trained by a schedule; kinds nn and moe are")
    if kind == "linear" and several and fit.loss == "bce":  # one regression per label is just that
        changed.remove("loss")
    if kind == "linear" and changed:
        raise refuse(
            where,
            f"fit.{changed[0]}",
            'has no meaning with head.kind = "linear", a logistic regression; leave it out, or as it is by default',
        )
    # A preset may bring a factor along, which the recipe's own step = 0 then switches off.
    brought = PRESETS.get(fit.preset, {}).get("factor", Fit().factor)
    if not fit.step and fit.factor not in (Fit().factor, brought):
        raise refuse(where, "fit.factor", f"{fit.factor} has no meaning with step = 0: nothing falls")


def check_recipe(recipe: Recipe, where: str) -> Recipe:
    """Check what the types alone cannot.

    Args:
        recipe: A decoded recipe.
        where: What to call it in messages.

    Returns:
        The same recipe.

    Raises:
        RecipeError: A value does not fit; the message names its key.
    """
    if recipe.schema != SCHEMA:
        raise refuse(where, "schema", f"{recipe.schema}: this version reads schema {SCHEMA}")
    check_name(where, "name", recipe.name)
    if len(recipe.labels) < 2:
        raise refuse(where, "labels", "at least two labels are needed")
    if len(recipe.labels) > _MOST_LABELS:
        raise refuse(where, "labels", f"{len(recipe.labels)} labels; at most {_MOST_LABELS} are taken")
    if recipe.task is Task.BINARY and len(recipe.labels) != 2:
        raise refuse(where, "labels", f"task binary has two labels, not {len(recipe.labels)}")
    check_unique(where, "labels", recipe.labels)
    if not all(label.strip() for label in recipe.labels):
        raise refuse(where, "labels", "a label is empty")
    if not 0 < recipe.threshold < 1:
        raise refuse(where, "threshold", f"{recipe.threshold} must lie between 0 and 1")
    if recipe.task is not Task.MULTI_LABEL and recipe.threshold != _THRESHOLD:
        raise refuse(
            where, "threshold", f"is for multi-label tasks; task {recipe.task} gives the largest score"
        )
    if recipe.graph is None:
        check_backbones(recipe, where)
        _check_head(recipe, where)
        check_sizes(recipe, where)
    else:
        _check_graph(recipe.graph, recipe, where)
    _check_fit(recipe, where)
    _check_fit_fits(recipe, where)
    return recipe
