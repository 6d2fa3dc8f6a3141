"""``--set BACKBONE.OPTION=VALUE``: another reading of a recipe, typed, checked, and on record."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outcome import fails

from vsa_rt.bundle import Bundle
from vsa_rt.cli.options import settings_of
from vsa_rt.errors import RecipeError, UsageError
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
    assert settings_of(["g.objects=grid", "y.kernel=5", "a.b=c=d"]) == {
        "g.objects": "grid",
        "y.kernel": "5",
        "a.b": "c=d",
    }


@pytest.mark.parametrize(
    "entry", ["", "g", "g.objects", "g.objects=", "g=grid", "=grid", ".objects=grid", "g.=grid"]
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
