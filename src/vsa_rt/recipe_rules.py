"""What a recipe must satisfy beyond its types; each refusal names the key."""

from __future__ import annotations

import math
import re

import msgspec

from vsa_rt.architecture import ARCHITECTURES, TIMM, family_of
from vsa_rt.contracts import Task
from vsa_rt.errors import RecipeError
from vsa_rt.recipe import RESERVED_NAMES, SCHEMA, Backbone, Graph, Recipe, options_of, tensor_input, upstream
from vsa_rt.schedules import PRESETS

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,40}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
#: Bounds what a foreign recipe can make a network allocate.
_LARGEST = 1 << 16
#: Options that count something which must be there.
_POSITIVE = frozenset({"kernel", "filters", "pool", "classes", "frames", "features", "count", "frame"})


def _refuse(where: str, key: str, problem: str) -> RecipeError:
    return RecipeError(f"{where}: key `{key}`: {problem}")


def _check_name(where: str, key: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise _refuse(where, key, f"{name!r} must be 1 to 41 of a-z, 0-9, _ and -, beginning with a letter")


def _check_unique(where: str, key: str, names: list[str]) -> None:
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise _refuse(where, key, f"{', '.join(map(repr, twice))} is named more than once")


def _check_backbones(recipe: Recipe, where: str) -> None:
    if not recipe.backbones:
        raise _refuse(where, "backbones", "at least one [[backbones]] table is needed")
    _check_unique(where, "backbones.name", [b.name for b in recipe.backbones])
    for i, backbone in enumerate(recipe.backbones):
        key = f"backbones[{i}]"
        _check_name(where, f"{key}.name", backbone.name)
        if backbone.name in RESERVED_NAMES or backbone.name.startswith("image_"):
            raise _refuse(
                where,
                f"{key}.name",
                f"{backbone.name!r} has a meaning of its own in every graph or bundle; choose another",
            )
        _check_architecture(backbone, where, key)
        checkpoint = backbone.checkpoint
        if checkpoint.sha256 and not _HEX64.fullmatch(checkpoint.sha256):
            raise _refuse(where, f"{key}.checkpoint.sha256", "expected 64 lower-case hexadecimal digits")
    _check_wiring(recipe, where)


def _check_architecture(backbone: Backbone, where: str, key: str) -> None:
    """Check that the architecture is known and its options and checkpoint format are its own."""
    family = family_of(backbone.architecture)
    known = ARCHITECTURES.get(family)
    if known is None or backbone.architecture in (TIMM, f"{TIMM}:"):
        names = ", ".join(n for n in ARCHITECTURES if n != TIMM)
        raise _refuse(
            where, f"{key}.architecture", f"{backbone.architecture!r}: expected timm:NAME or {names}"
        )
    try:
        options = options_of(backbone)
    except msgspec.ValidationError as error:
        raise _refuse(where, f"{key}.options", f"{backbone.architecture}: {error}") from error
    for name, value in msgspec.structs.asdict(options).items():
        if isinstance(value, int | float) and not 0 <= value <= _LARGEST:
            raise _refuse(where, f"{key}.options.{name}", f"{value} must lie in [0, {_LARGEST}]")
        if name in _POSITIVE and value < 1:
            raise _refuse(where, f"{key}.options.{name}", f"{value} must be at least 1")
    if backbone.checkpoint.format and backbone.checkpoint.format not in known.formats:
        formats = ", ".join(known.formats)
        raise _refuse(
            where, f"{key}.checkpoint.format", f"{backbone.checkpoint.format!r}: expected one of {formats}"
        )


def _check_wiring(recipe: Recipe, where: str) -> None:
    """Check who reads whom: every name is there, no circle, and images go where images are expected."""
    by_name = {b.name: b for b in recipe.backbones}
    for i, backbone in enumerate(recipe.backbones):
        key, reads = f"backbones[{i}].reads", ARCHITECTURES[family_of(backbone.architecture)].reads
        if reads == "image" and backbone.reads:
            raise _refuse(where, key, f"{backbone.architecture} reads the image, not {backbone.reads!r}")
        if reads == "image":
            continue
        if backbone.resize is not None:
            raise _refuse(where, f"backbones[{i}].resize", f"{backbone.architecture} reads no image")
        if not backbone.reads:
            raise _refuse(where, key, f"{backbone.architecture} needs the name of the backbone that it reads")
        if backbone.reads not in by_name:
            raise _refuse(
                where, key, f"no backbone {backbone.reads!r}; there are {', '.join(sorted(by_name))}"
            )
        read = by_name[backbone.reads]
        if reads == "objects" and ARCHITECTURES[family_of(read.architecture)].reads != "image":
            raise _refuse(where, key, f"{backbone.reads!r} must read images: it encodes the objects' regions")
        if (
            reads == "objects"
            and upstream(backbone)
            and not ARCHITECTURES[family_of(read.architecture)].encodes
        ):
            able = ", ".join(n for n, a in ARCHITECTURES.items() if a.encodes)
            raise _refuse(where, key, f"{read.architecture} encodes no regions of an image; {able} do")
        seen = [backbone.name]
        while by_name.get(read.reads) is not None and read.name not in seen:
            seen.append(read.name)
            read = by_name[read.reads]
        if read.name in seen:
            raise _refuse(where, key, f"{' reads '.join([*seen, read.name])}: a circle")
    _check_tensor_inputs(recipe, where)


def _check_tensor_inputs(recipe: Recipe, where: str) -> None:
    """Check that two backbones that take the same ready tensor mean the same by it."""
    takers: dict[str, tuple[list[int], Backbone]] = {}
    for i, backbone in enumerate(recipe.backbones):
        given = tensor_input(backbone)
        if given is None:
            continue
        name, shape = given
        first_shape, first = takers.setdefault(name, (shape, backbone))
        same_maker = name == "boxes" or first.reads == backbone.reads
        if shape != first_shape or not same_maker:
            raise _refuse(
                where,
                f"backbones[{i}].options",
                f"{backbone.name!r} and {first.name!r} both take the input {name!r}, {shape} made by "
                f"{backbone.reads!r} and {first_shape} made by {first.reads!r}; it can only be one",
            )


def _check_head(recipe: Recipe, where: str) -> None:
    head = recipe.head
    known = {b.name for b in recipe.backbones}
    for name in head.features:
        if name not in known:
            raise _refuse(
                where, "head.features", f"no backbone {name!r}; there are {', '.join(sorted(known))}"
            )
    _check_unique(where, "head.features", head.features)
    unused = known - set(head.features) - {b.reads for b in recipe.backbones}
    if unused:
        raise _refuse(where, "head.features", f"backbone {', '.join(sorted(unused))} is used by nothing")
    if head.sha256 and not _HEX64.fullmatch(head.sha256):
        raise _refuse(where, "head.sha256", "expected 64 lower-case hexadecimal digits")
    if not head.hidden or min(head.hidden) < 1 or max(head.hidden) > _LARGEST:
        raise _refuse(where, "head.hidden", f"{head.hidden} must be widths of at least 1")
    if head.kind == "moe" and len(head.hidden) != 1:
        raise _refuse(where, "head.hidden", f"{head.hidden}: a mixture of experts has one hidden layer")
    if not 1 <= head.experts <= _LARGEST:
        raise _refuse(where, "head.experts", f"{head.experts} must be at least 1")
    if not 0 <= head.dropout < 1:
        raise _refuse(where, "head.dropout", f"{head.dropout} must lie in [0, 1)")


def _check_graph(graph: Graph, recipe: Recipe, where: str) -> None:
    if recipe.backbones or recipe.head.features:
        raise _refuse(where, "graph", "a recipe of a bare ONNX file has neither backbones nor a head")
    if not graph.inputs:
        raise _refuse(where, "graph.inputs", "at least one [[graph.inputs]] table is needed")
    _check_unique(where, "graph.inputs.name", [i.name for i in graph.inputs])
    for i, entry in enumerate(graph.inputs):
        if not all(s > 0 and math.isfinite(s) for s in entry.std):
            raise _refuse(where, f"graph.inputs[{i}].std", f"{entry.std} must be positive numbers")
        if not all(map(math.isfinite, entry.mean)):
            raise _refuse(where, f"graph.inputs[{i}].mean", f"{entry.mean} must be numbers")


def _check_fit(recipe: Recipe, where: str) -> None:
    fit = recipe.fit
    if fit.preset and fit.preset not in PRESETS:
        raise _refuse(where, "fit.preset", f"{fit.preset!r}: expected one of {', '.join(PRESETS)}")
    if fit.folds < 2:
        raise _refuse(where, "fit.folds", f"{fit.folds} must be at least 2")
    for key in ("regularisation", "epochs", "batch_size", "learning_rate", "factor"):
        if not (getattr(fit, key) > 0 and math.isfinite(getattr(fit, key))):
            raise _refuse(where, f"fit.{key}", f"{getattr(fit, key)} must be a positive number")
    for key in ("weight_decay", "step"):
        if not (getattr(fit, key) >= 0 and math.isfinite(getattr(fit, key))):
            raise _refuse(where, f"fit.{key}", f"{getattr(fit, key)} must not be negative")
    if not 0 < fit.test < 1:
        raise _refuse(where, "fit.test", f"{fit.test} must lie between 0 and 1")
    if fit.loss == "nll" and recipe.head.kind != "moe":
        raise _refuse(where, "fit.loss", 'nll is for head.kind = "moe"; cross-entropy is the same elsewhere')


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
        raise _refuse(where, "schema", f"{recipe.schema}: this version reads schema {SCHEMA}")
    _check_name(where, "name", recipe.name)
    if len(recipe.labels) < 2:
        raise _refuse(where, "labels", "at least two labels are needed")
    if recipe.task is Task.BINARY and len(recipe.labels) != 2:
        raise _refuse(where, "labels", f"task binary has two labels, not {len(recipe.labels)}")
    _check_unique(where, "labels", recipe.labels)
    if not all(label.strip() for label in recipe.labels):
        raise _refuse(where, "labels", "a label is empty")
    if not 0 < recipe.threshold < 1:
        raise _refuse(where, "threshold", f"{recipe.threshold} must lie between 0 and 1")
    if recipe.graph is None:
        _check_backbones(recipe, where)
        _check_head(recipe, where)
    else:
        _check_graph(recipe.graph, recipe, where)
    _check_fit(recipe, where)
    return recipe
