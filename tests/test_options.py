"""``--set BACKBONE.OPTION=VALUE``: another reading of a recipe, typed, checked, and on record."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outcome import fails

from vsa_rt.bundle import Bundle
from vsa_rt.cli.options import settings_of
from vsa_rt.contracts import Task
from vsa_rt.errors import RecipeError, UsageError
from vsa_rt.label_sets import LABEL_SETS
from vsa_rt.recipe import Recipe, options_of, tensor_input
from vsa_rt.recipe_file import find_recipe, read_recipe, with_options

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

#: An encoder and an object graph over ready objects; options can change what the graph takes.
SMALL = """\
schema = 1
name = "small"
task = "binary"
labels = ["dark", "bright"]

[[backbones]]
name = "r"
architecture = "timm:test_resnet"

[[backbones]]
name = "g"
architecture = "object-graph"
reads = "r"
options = { count = 6, features = 96 }

[head]
kind = "linear"
features = ["r", "g"]

[fit]
folds = 2
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    for library in ("torch", "timm", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason="the ensemble is exported to ONNX")
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return read_recipe(find_recipe("smap2021-moe"))


def options(recipe: Recipe, name: str) -> Any:
    return options_of(next(b for b in recipe.backbones if b.name == name))


# What is written


def test_entries_are_taken_apart() -> None:
    assert settings_of(None) == {}
    assert settings_of(["g.objects=grid", "y.kernel=5", "a.b=c=d", "task=mll", "labels=a, b"]) == {
        "g.objects": "grid",
        "y.kernel": "5",
        "a.b": "c=d",
        "task": "mll",
        "labels": "a, b",
    }


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "g",
        "g.objects",
        "g.objects=",
        "g=grid",
        "=grid",
        ".objects=grid",
        "g.=grid",
        "task=",
        "labels",
        "name=x",
    ],
)
def test_another_form_is_wrong_use(entry: str) -> None:
    with pytest.raises(UsageError, match=r"expected BACKBONE\.OPTION=VALUE") as caught:
        settings_of(["y.kernel=5", entry])
    assert repr(entry) in str(caught.value)


# What it means


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("r.crops", "ten", "ten"),
        ("g.objects", "boxes", "boxes"),
        ("g.count", "36", 36),
        ("pca.clip", "0", 0.0),
        ("pca.clip", "1.5", 1.5),
        ("pca.clip", "1e1", 10.0),
        ("pca.quantise", "true", True),
        ("y.normalise", "false", False),
        ("y.axis", "time", "time"),
        ("s.attention", "raw", "raw"),
        ("s.normalised", "false", False),
    ],
)
def test_a_value_has_the_options_type(recipe: Recipe, key: str, text: str, value: object) -> None:
    name, _, option = key.partition(".")
    changed = with_options(recipe, {key: text})
    found = getattr(options(changed, name), option)
    assert found == value
    assert type(found) is type(value)
    before = options(recipe, name)
    assert getattr(before, option) != value
    # Nothing else is another.
    assert {b.name for b, c in zip(recipe.backbones, changed.backbones, strict=True) if b != c} == {name}
    same = {f: getattr(options(changed, name), f) for f in before.__struct_fields__ if f != option}
    assert same == {f: getattr(before, f) for f in before.__struct_fields__ if f != option}


def test_several_options_go_together(recipe: Recipe) -> None:
    changed = with_options(recipe, {"g.objects": "grid", "g.count": "14", "s.attention": "none"})
    assert (options(changed, "g").objects, options(changed, "g").count) == ("grid", 14)
    assert options(changed, "s").attention == "none"
    assert tensor_input(next(b for b in changed.backbones if b.name == "g")) is None
    assert with_options(recipe, {}) is recipe


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("z.count", "3", r"--set z\.count: no backbone 'z'; there are e, r, inception, pca, y, s, g"),
        ("head.experts", "3", "no backbone 'head'"),
        ("g.objekts", "grid", "object-graph: .*unknown field `objekts`"),
        ("e.crops", "ten", "timm:tf_efficientnet_b2: .*unknown field `crops`"),
        ("g.count.x", "3", r"unknown field `count\.x`"),
        ("g.objects", "squares", "Invalid enum value 'squares'"),
        ("g.objects", "3", "Expected `str`, got `int`"),
        ("g.count", "many", "Expected `int`, got `str`"),
        ("g.count", "true", "Expected `int`, got `bool`"),
        ("g.count", "3.5", "Expected `int`, got `float`"),
        ("g.count", "0", "0 must lie in"),
        ("g.count", "-3", "-3 must lie in"),
        ("g.count", "65537", "must lie in"),
        ("g.count", "nan", "Expected `int`, got `float`"),
        ("pca.clip", "nan", "must lie in"),
        ("pca.clip", "inf", "must lie in"),
        ("pca.quantise", "1", "Expected `bool`, got `int`"),
        ("pca.quantise", "yes", "Expected `bool`, got `str`"),
        ("y.axis", "frequency", "Invalid enum value"),
    ],
)
def test_what_does_not_fit_is_one_error(recipe: Recipe, key: str, text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        with_options(recipe, {"s.attention": "raw", key: text})
    assert str(caught.value).startswith("--set")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["9" * 4000, "9" * 5000, "1e400", "x" * 5000])
def test_a_long_value_is_one_short_line(recipe: Recipe, text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        with_options(recipe, {"g.count": text})
    assert len(str(caught.value)) < 400


# Task and labels


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("sll", Task.SINGLE_LABEL),
        ("mll", Task.MULTI_LABEL),
        ("ldl", Task.DISTRIBUTION),
        ("single-label", Task.SINGLE_LABEL),
        ("multi-label", Task.MULTI_LABEL),
        ("distribution", Task.DISTRIBUTION),
        ("binary", Task.BINARY),
    ],
)
def test_a_task_has_the_papers_word_and_the_recipes_own(text: str, task: Task) -> None:
    """Of a recipe with two labels, which fit every task."""
    changed = with_options(read_recipe(find_recipe("quickstart")), {"task": text, "labels": "dull,bright"})
    assert changed.task is task


#: Labels of each dataset, as its paper counts them.
COUNTS = {"fi": 8, "unbiasedemo": 6, "emotic": 26, "emotion6": 7, "emotion6-6": 6, "abstract": 8}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_labels_of_published_datasets_have_names(recipe: Recipe, name: str, count: int) -> None:
    labels = with_options(recipe, {"task": "ldl", "labels": name}).labels
    assert len(set(labels)) == len(labels) == count
    assert labels == list(LABEL_SETS[name])


def test_every_set_of_labels_is_counted_here_and_in_order() -> None:
    assert LABEL_SETS.keys() == COUNTS.keys()
    for name, labels in LABEL_SETS.items():
        most = labels[:-1] if name == "emotion6" else labels
        assert sorted(most) == list(most)
    assert LABEL_SETS["emotion6"][-1] == "neutral"
    assert LABEL_SETS["emotion6"][:-1] == LABEL_SETS["emotion6-6"]


def test_labels_of_ones_own_are_in_ones_own_order(recipe: Recipe) -> None:
    changed = with_options(recipe, {"labels": "sad, glad,shy and calm", "task": "mll"})
    assert (changed.labels, changed.task) == (["sad", "glad", "shy and calm"], Task.MULTI_LABEL)
    assert changed.threshold == recipe.threshold
    assert (changed.backbones, changed.head) == (recipe.backbones, recipe.head)


def test_task_and_labels_go_with_options_of_backbones(recipe: Recipe) -> None:
    changed = with_options(recipe, {"g.objects": "grid", "labels": "fi", "task": "sll", "r.crops": "ten"})
    assert (options(changed, "g").objects, options(changed, "r").crops) == ("grid", "ten")
    assert len(changed.labels) == 8


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"task": "regression"},
            "--set task=regression: expected one of sll, mll, ldl, binary, single-label",
        ),
        (
            {"labels": "flickr"},
            "--set labels=flickr: expected two or more labels, .* fi, unbiasedemo, emotic, ",
        ),
        ({"labels": "x" * 5000}, "expected two or more labels"),
        ({"task": "x" * 5000}, "expected one of sll"),
        ({"labels": "sad,sad"}, "key `labels`: "),
        ({"labels": "sad,,glad", "task": "sll"}, "key `labels`: a label is empty"),
        ({"labels": "fi", "task": "binary"}, "key `labels`: task binary has two labels, not 8"),
    ],
)
def test_a_task_or_labels_that_do_not_fit_are_one_error(
    recipe: Recipe, settings: dict[str, str], says: str
) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        with_options(recipe, settings)
    assert str(caught.value).startswith("--set")
    assert len(str(caught.value)) < 400


def test_a_threshold_may_be_set_beside_the_task() -> None:
    recipe = read_recipe(find_recipe("cvpr2023-resnet18"))
    changed = with_options(recipe, {"threshold": "0.3", "task": "mll", "labels": "emotic"})
    assert (changed.threshold, changed.task) == (0.3, Task.MULTI_LABEL)
    for text, problem in (
        ("high", "expected a number"),
        ("true", "expected a number"),
        ("1", "between 0 and 1"),
    ):
        with pytest.raises(RecipeError, match=problem):
            with_options(recipe, {"task": "mll", "threshold": text})
    with pytest.raises(RecipeError, match="multi-label tasks"):
        with_options(recipe, {"threshold": "0.3"})


def test_a_threshold_stays_and_is_refused_where_it_has_no_meaning(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(SMALL.replace('"binary"', '"multi-label"\nthreshold = 0.3'), encoding="utf-8")
    several = read_recipe(path)
    assert with_options(several, {"labels": "fi"}).threshold == 0.3
    with pytest.raises(RecipeError, match="--set: key `threshold`: is for multi-label tasks"):
        with_options(several, {"task": "sll"})


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (
            "labels=dim,light",
            r"""was trained for labels \["dark", "bright"\], the recipe has \["dim", "light"\]""",
        ),
        ("task=mll", "was trained for task binary, the recipe has multi-label"),
    ],
)
def test_a_recipes_own_head_is_refused_for_another_task_or_other_labels(
    here: Cli, tiny_recipe: Path, toy_data: Path, tmp_path: Path, entry: str, says: str
) -> None:
    """``fit`` trains one for them, which the same options then take."""
    out, head = tmp_path / "out", tmp_path / "h.safetensors"
    export = ["export", tiny_recipe, "--data", toy_data, "-o", out, "--set", entry]
    fails(here(*export), 2, says)
    assert not out.exists()
    data = toy_data
    if entry.startswith("labels"):
        data = tmp_path / "data"
        for old, new in (("dark", "dim"), ("bright", "light")):
            shutil.copytree(toy_data / old, data / new)
    done = here("fit", tiny_recipe, "--data", data, "-o", head, "--set", entry)
    assert done.returncode == 0, done.stderr
    assert json.loads(head.with_suffix(".json").read_text())["command"].endswith(f"--set {entry}")
    done = here(*export, "--weights", f"head={head}")
    assert done.returncode == 0, done.stderr


# On the command line


@pytest.mark.parametrize("command", ["export", "build", "fit"])
@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("g.count", r"--set 'g\.count': expected BACKBONE\.OPTION=VALUE"),
        ("z.count=3", "no backbone 'z'; there are r, g"),
        ("r.count=3", "unknown field `count`"),
        ("g.count=many", "Expected `int`, got `str`"),
    ],
)
def test_a_wrong_entry_exits_with_two(
    here: Cli, small: Path, toy_data: Path, tmp_path: Path, command: str, entry: str, says: str
) -> None:
    out = tmp_path / "out.safetensors"
    more = ["--data", toy_data, "--random-weights", "1", "-o", out, "--set", "g.count=4"]
    fails(here(command, small, *more, "--set", entry), 2, says)
    assert not out.exists()


def test_the_manifest_has_the_recipe_as_it_was_built(
    here: Cli, small: Path, toy_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    more = ["--data", toy_data, "--random-weights", "1"]
    done = here("export", small, *more, "-o", out, "--set", "g.count=4", "--set", "g.objects=features")
    assert done.returncode == 0, done.stderr
    manifest = Bundle.open(out).manifest
    assert manifest.recipe == with_options(read_recipe(small), {"g.count": "4", "g.objects": "features"})
    assert manifest.recipe is not None
    assert manifest.recipe.backbones[1].options == {"count": 4, "features": 96, "objects": "features"}
    assert next(i.shape for i in manifest.inputs if i.name == "objects") == [4, 96]
    # The bundle's own recipe is what its reference is rebuilt from.
    check = json.loads(here("check", out, "--data", toy_data, "--json").stdout)
    assert (check["reference"], check["passed"]) == ("torch", True)


def test_what_is_exported_has_no_options(here: Cli, tiny_bundle: Path, tmp_path: Path) -> None:
    for source in (tiny_bundle, tiny_bundle / "graph.onnx"):
        done = here("build", source, "-o", tmp_path / "out", "--set", "small.crops=ten")
        fails(done, 2, "--set: only a recipe has options")
    assert not (tmp_path / "out").exists()


#: The same with a convolution over the encoder's features: whatever its options, no file lies beside an image.
CNN = SMALL.replace("object-graph", "shallow-cnn").replace("count = 6, features = 96", "classes = 5")


@pytest.mark.parametrize("filters", ["65536", "4096"])
def test_a_size_that_no_machine_has_is_one_error(
    here: Cli, small: Path, toy_data: Path, tmp_path: Path, filters: str
) -> None:
    """Of one option, or of the layer between two of them."""
    small.write_text(CNN, encoding="utf-8")
    more = ["--data", toy_data, "--random-weights", "1", "-o", tmp_path / "out"]
    fails(here("export", small, *more, "--set", f"g.filters={filters}", "--set", "g.classes=65536"), 2)
    assert not (tmp_path / "out").exists()


def test_fit_takes_options_and_its_report_repeats_it(
    here: Cli, small: Path, toy_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn", reason="linear heads are trained with scikit-learn")
    small.write_text(CNN, encoding="utf-8")
    heads = [tmp_path / f"{n}.safetensors" for n in "ab"]
    more = ["--data", toy_data, "--random-weights", "1", "--cache", tmp_path / "cache"]
    settings = ["--set", "g.normalise=false", "--set", "g.classes=7"]
    for head, some in zip(heads, ([], settings), strict=True):
        done = here("fit", small, *more, "-o", head, *some)
        assert done.returncode == 0, done.stderr
    assert heads[0].read_bytes() != heads[1].read_bytes()
    reports = [json.loads(head.with_suffix(".json").read_text()) for head in heads]
    assert "--set" not in reports[0]["command"]
    assert "--set g.normalise=false --set g.classes=7" in reports[1]["command"]
