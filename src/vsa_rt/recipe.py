"""The recipe: what an ensemble is made of, read from TOML and validated before anything is loaded."""

from __future__ import annotations

import math
import re
import sys
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from vsa_rt.contracts import Resample, ResizeSpec, Task
from vsa_rt.errors import RecipeError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - JetPack 6
    import tomli as tomllib

SCHEMA = 1
#: Names that the graph gives to its own outputs, and the head's own; a backbone cannot be called so.
RESERVED_NAMES = frozenset({"features", "logits", "scores", "head"})
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,40}")
_HEX64 = re.compile(r"[0-9a-f]{64}")


class Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where trained weights lie and how their keys are spelt.

    Attributes:
        path: Relative to the recipe's folder, or ``package:NAME/inner/path`` for a file that an installed
            package ships. A file elsewhere is named on the command line: ``--weights NAME=PATH``.
        format: Key names: ``timm`` (timm's own) or ``efficientnet-pytorch`` (``_conv_stem``, ``_blocks.0``).
        sha256: Hash that the file must have; empty for any file.
        obtain: One sentence for people: how to get the file.
    """

    path: str = ""
    format: Literal["timm", "efficientnet-pytorch"] = "timm"
    sha256: str = ""
    obtain: str = ""


class Backbone(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One network that turns an image into a feature vector.

    Attributes:
        name: The tap's name in the graph.
        architecture: ``timm:NAME``; its data config gives size, resize, mean and std.
        checkpoint: The trained weights.
    """

    name: str
    architecture: str
    checkpoint: Checkpoint = Checkpoint()


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What turns the concatenated features into scores.

    Attributes:
        kind: ``linear`` (one dense layer) or ``nn`` (dense, ReLU, dropout, dense: SMAP 2021, section 3.3).
        features: Backbone names in the order of concatenation.
        weights: A head file that ``vsa-rt fit`` wrote, relative to the recipe's folder; empty before the fit.
        sha256: Hash that the head file must have; empty for any file.
        hidden: Width of the hidden layer of ``nn``.
        dropout: Dropout rate of ``nn`` while it is trained; inert afterwards.
        unit_norm: Scale each backbone's features to unit L2 norm before concatenation (SMAP 2021).
    """

    kind: Literal["linear", "nn"]
    features: list[str]
    weights: str = ""
    sha256: str = ""
    hidden: int = 200
    dropout: float = 0.4
    unit_norm: bool = False


class Fit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How ``vsa-rt fit`` trains the head. The defaults of ``nn`` are SMAP 2021's settings.

    Attributes:
        folds: Stratified folds of the cross-validation.
        regularisation: ``linear``: inverse strength C of the L2 penalty, on standardised features.
        epochs: ``nn``: passes over the data.
        batch_size: ``nn``: images per step.
        learning_rate: ``nn``: Adam's step size.
    """

    folds: int = 5
    regularisation: float = 0.002
    epochs: int = 20
    batch_size: int = 8
    learning_rate: float = 1e-4


class GraphInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One image input of a bare ONNX file: float32 ``(N, 3, H, W)``, normalised RGB.

    Attributes:
        name: The tensor's name in the file.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, of pixels in [0, 1].
        resize: How the host makes it.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: ResizeSpec


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a bare ONNX file takes and gives, for ``vsa-rt build MODEL.onnx --recipe FILE``.

    Attributes:
        inputs: Its image inputs.
        logits: The output that gives one number per label.
        activated: Whether that output holds scores already, so that no softmax or sigmoid is added.
    """

    inputs: list[GraphInput]
    logits: str
    activated: bool = False


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An ensemble: backbones, head, labels and task.

    Attributes:
        schema: Version of this format; 1.
        name: Name of the recipe.
        summary: One sentence for people.
        task: What the scores mean.
        labels: In the order of the head's outputs.
        threshold: Multi-label only: the score above which a label is given.
        resample: ``exact`` (bit-identical to the weights' own transform) or ``fast``.
        backbones: The networks.
        head: The classifier.
        fit: Training settings of the head.
        graph: Instead of backbones and head: what a bare ONNX file takes and gives.
    """

    schema: int
    name: str
    task: Task
    labels: list[str]
    backbones: list[Backbone] = []
    head: Head = Head(kind="linear", features=[])
    graph: Graph | None = None
    summary: str = ""
    threshold: float = 0.5
    resample: Resample = Resample.EXACT
    fit: Fit = Fit()


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
    for i, backbone in enumerate(recipe.backbones):
        key = f"backbones[{i}]"
        _check_name(where, f"{key}.name", backbone.name)
        if backbone.name in RESERVED_NAMES or backbone.name.startswith("image_"):
            raise _refuse(
                where,
                f"{key}.name",
                f"{backbone.name!r} has a meaning of its own in every graph or bundle; choose another",
            )
        family, colon, architecture = backbone.architecture.partition(":")
        if not colon or family != "timm" or not architecture:
            raise _refuse(where, f"{key}.architecture", f"{backbone.architecture!r}: expected timm:NAME")
        checkpoint = backbone.checkpoint
        if checkpoint.sha256 and not _HEX64.fullmatch(checkpoint.sha256):
            raise _refuse(where, f"{key}.checkpoint.sha256", "expected 64 lower-case hexadecimal digits")
    _check_unique(where, "backbones.name", [b.name for b in recipe.backbones])


def _check_head(recipe: Recipe, where: str) -> None:
    head = recipe.head
    known = {b.name for b in recipe.backbones}
    for name in head.features:
        if name not in known:
            raise _refuse(
                where, "head.features", f"no backbone {name!r}; there are {', '.join(sorted(known))}"
            )
    _check_unique(where, "head.features", head.features)
    unused = known - set(head.features)
    if unused:
        raise _refuse(where, "head.features", f"backbone {', '.join(sorted(unused))} is used by nothing")
    if head.sha256 and not _HEX64.fullmatch(head.sha256):
        raise _refuse(where, "head.sha256", "expected 64 lower-case hexadecimal digits")
    if head.hidden < 1:
        raise _refuse(where, "head.hidden", f"{head.hidden} must be at least 1")
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
    if fit.folds < 2:
        raise _refuse(where, "fit.folds", f"{fit.folds} must be at least 2")
    for key in ("regularisation", "epochs", "batch_size", "learning_rate"):
        if not (getattr(fit, key) > 0 and math.isfinite(getattr(fit, key))):
            raise _refuse(where, f"fit.{key}", f"{getattr(fit, key)} must be a positive number")


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


def shipped_names() -> list[str]:
    """Names of the recipes that the package ships, sorted."""
    folder = resources.files("vsa_rt.recipes")
    return sorted(f.name[: -len(".toml")] for f in folder.iterdir() if f.name.endswith(".toml"))


def find_recipe(name_or_path: str) -> Path:
    """The TOML file of a shipped recipe's name or of a path.

    Raises:
        RecipeError: Neither a shipped recipe nor a file.
    """
    if name_or_path in shipped_names():
        return Path(str(resources.files("vsa_rt.recipes") / f"{name_or_path}.toml"))
    path = Path(name_or_path)
    if path.is_file():
        return path
    raise RecipeError(
        f"recipe {name_or_path!r}: no such file, and no shipped recipe of that name; "
        f"shipped are {', '.join(shipped_names())}"
    )


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe file.

    Raises:
        RecipeError: The file is not TOML, has an unknown or missing key, or a value that does not fit.
    """
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise RecipeError(f"{path}: not TOML: {error}") from error
    try:
        recipe = msgspec.convert(table, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {error}") from error
    return check_recipe(recipe, str(path))
