"""Recipe files: the shipped ones by name, a user's own by path."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from vsa_rt.contracts import Task
from vsa_rt.errors import RecipeError
from vsa_rt.label_sets import LABEL_SETS
from vsa_rt.recipe import Backbone, Recipe
from vsa_rt.recipe_rules import check_recipe
from vsa_rt.schedules import PRESETS

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - JetPack 6
    import tomli as tomllib


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
    except (ValueError, RecursionError) as error:  # of text, of TOML, or of a number with thousands of digits
        raise RecipeError(f"{path}: not TOML: {error}") from error
    fit = table.get("fit")
    if isinstance(fit, dict) and isinstance(fit.get("preset"), str):
        table["fit"] = PRESETS.get(fit["preset"], {}) | fit
    try:
        recipe = msgspec.convert(table, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{path}: {error}") from error
    return check_recipe(recipe, str(path))


#: Characters of an option's value.
_LONGEST = 100


def _value(text: str) -> str | int | float | bool:
    """A number, true or false, else the text itself."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


#: What ``--set task=`` takes: the words of CVPR 2023's code beside a recipe's own.
TASKS: dict[str, Task] = {
    "sll": Task.SINGLE_LABEL,
    "mll": Task.MULTI_LABEL,
    "ldl": Task.DISTRIBUTION,
    **{str(task): task for task in Task},
}


def _task(text: str) -> Task:
    """The task that a word of ``--set task=`` means."""
    if text not in TASKS:
        raise RecipeError(f"--set task={text[:_LONGEST]}: expected one of {', '.join(TASKS)}")
    return TASKS[text]


def _labels(text: str) -> list[str]:
    """The labels of ``--set labels=``: those of a published dataset, or the words themselves."""
    words = [word.strip() for word in text.split(",")]
    if len(words) > 1:
        return words
    if words[0] not in LABEL_SETS:
        raise RecipeError(
            f"--set labels={text[:_LONGEST]}: expected two or more labels, separated by commas, or one of "
            f"{', '.join(LABEL_SETS)}"
        )
    return list(LABEL_SETS[words[0]])


def _threshold(text: str) -> float:
    """The number of ``--set threshold=``; whether it can be one is checked with the recipe."""
    value = _value(text[:_LONGEST])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecipeError(f"--set threshold={text[:_LONGEST]}: expected a number between 0 and 1")
    return float(value)


def _with_option(backbones: list[Backbone], key: str, text: str) -> list[Backbone]:
    """The backbones, one of them with another option."""
    name, _, option = key.partition(".")
    if name not in {b.name for b in backbones}:
        raise RecipeError(
            f"--set {key}: no backbone {name!r}; there are {', '.join(b.name for b in backbones)}"
        )
    if len(text) > _LONGEST:
        raise RecipeError(
            f"--set {key}: a value of {len(text)} characters; options are short words and numbers"
        )
    return [
        msgspec.structs.replace(b, options=b.options | {option: _value(text)}) if b.name == name else b
        for b in backbones
    ]


def with_options(recipe: Recipe, settings: Mapping[str, str]) -> Recipe:
    """The recipe with other options of its backbones, another task or other labels.

    The threshold stays unless it is set, and so does the name of the head's file: whether its head was trained for this task and these
    labels is found out where it is loaded.

    Args:
        recipe: A checked one.
        settings: ``BACKBONE.OPTION`` to the text of its value; ``task`` to one of ``TASKS``; ``labels`` to a name of
            ``vsa_rt.label_sets.LABEL_SETS`` or to labels with commas between; ``threshold`` to a number.

    Raises:
        RecipeError: No such backbone, option, task or set of labels, or a value that does not fit.
    """
    if not settings:
        return recipe
    task, labels, backbones, threshold = recipe.task, recipe.labels, recipe.backbones, recipe.threshold
    for key, text in settings.items():
        if key == "task":
            task = _task(text)
        elif key == "labels":
            labels = _labels(text)
        elif key == "threshold":
            threshold = _threshold(text)
        else:
            backbones = _with_option(backbones, key, text)
    changed = msgspec.structs.replace(
        recipe, task=task, labels=labels, backbones=backbones, threshold=threshold
    )
    return check_recipe(changed, "--set")
