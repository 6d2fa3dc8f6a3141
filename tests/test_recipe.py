"""A recipe is read from TOML; whatever is wrong with it is one error that names the key."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from vsa_rt.contracts import Task
from vsa_rt.errors import CheckpointError, RecipeError
from vsa_rt.locate import locate
from vsa_rt.recipe import Recipe
from vsa_rt.recipe_file import find_recipe, read_recipe, shipped_names

GOOD = """\
schema = 1
name = "mine"
task = "binary"
labels = ["negative", "positive"]

[[backbones]]
name = "a"
architecture = "timm:test_resnet"
checkpoint.path = "a.pth"

[[backbones]]
name = "b"
architecture = "timm:test_efficientnet"

[head]
kind = "linear"
features = ["a", "b"]
"""
GRAPH = """\
schema = 1
name = "mine"
task = "binary"
labels = ["negative", "positive"]

[graph]
logits = "out"

[[graph.inputs]]
name = "x"
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
resize = {height = 8, width = 8, fit = "warp", kernel = "bilinear"}
"""
Written = Callable[[str], Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(text: str) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_recipe_is_valid(name: str) -> None:
    recipe = read_recipe(find_recipe(name))
    assert recipe.name == name
    assert recipe.summary
    for entry in (b.checkpoint for b in recipe.backbones):
        assert entry.obtain
        assert bool(entry.path) == bool(entry.sha256)  # a file that is named is pinned
    assert bool(recipe.head.weights) == bool(recipe.head.sha256)


def test_the_quickstart_is_shipped() -> None:
    assert "quickstart" in shipped_names()


def test_the_good_recipes_of_these_tests_are_good(written: Written) -> None:
    assert read_recipe(written(GOOD)).task is Task.BINARY
    assert read_recipe(written(GRAPH)).graph is not None


def test_labels_keep_their_order(written: Written) -> None:
    recipe = read_recipe(written(GOOD.replace('["negative", "positive"]', '["z", "a"]')))
    assert recipe.labels == ["z", "a"]


def change(old: str, new: str, text: str = GOOD) -> str:
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (change("schema = 1", "schema = 2"), "schema"),
        (change("schema = 1\n", ""), "schema"),
        (change("schema = 1", 'schema = "1"'), "schema"),
        (change("schema = 1", "schema = true"), "schema"),
        (change('name = "mine"\n', ""), "name"),
        (change('name = "mine"', "name = 3"), "name"),
        (change('name = "mine"', 'name = "../mine"'), "name"),
        (change('task = "binary"', 'task = "binaries"'), "task"),
        (change('task = "binary"', ""), "task"),
        (change("schema = 1", "schema = 1\ncolour = 3"), "colour"),
        (change('name = "a"', 'name = "a"\ncolour = 3'), "colour"),
        (change('checkpoint.path = "a.pth"', "checkpoint.mean = 3"), "mean"),
        (change('checkpoint.path = "a.pth"', "checkpoint.path = 3"), "path"),
        (change('checkpoint.path = "a.pth"', 'checkpoint.format = "keras"'), "format"),
        (change('checkpoint.path = "a.pth"', 'checkpoint.sha256 = "abc"'), "sha256"),
        (change('checkpoint.path = "a.pth"', f'checkpoint.sha256 = "{"A" * 64}"'), "sha256"),
        (change('kind = "linear"', 'kind = "linear"\nlayers = 3'), "layers"),
        (change('kind = "linear"', 'kind = "svm"'), "kind"),
        (change('kind = "linear"', 'kind = "nn"\nhidden = [0]'), "head.hidden"),
        (change('kind = "linear"', 'kind = "nn"\ndropout = 1.0'), "head.dropout"),
        (change('kind = "linear"', 'kind = "linear"\nsha256 = "12"'), "head.sha256"),
        (change('["a", "b"]', '["a", "c"]'), "head.features"),
        (change('["a", "b"]', '["a", "a"]'), "head.features"),
        (change('["a", "b"]', '["a"]'), "head.features"),
        (change('["a", "b"]', "[]"), "head.features"),
        (change('name = "b"', 'name = "a"'), "backbones.name"),
        (change('name = "b"', 'name = "scores"'), "backbones[1].name"),
        (change('name = "b"', 'name = "features"'), "backbones[1].name"),
        (change('name = "b"', 'name = "logits"'), "backbones[1].name"),
        (change('name = "b"', 'name = "head"'), "backbones[1].name"),
        (change('name = "b"', 'name = "B b"'), "backbones[1].name"),
        (change('"timm:test_resnet"', '"test_resnet"'), "backbones[0].architecture"),
        (change('"timm:test_resnet"', '"keras:vgg"'), "backbones[0].architecture"),
        (change('"timm:test_resnet"', '"timm:"'), "backbones[0].architecture"),
        (change('["negative", "positive"]', '["one"]'), "labels"),
        (change('["negative", "positive"]', '["a", "b", "c"]'), "labels"),
        (change('["negative", "positive"]', '["a", "a"]'), "labels"),
        (change('["negative", "positive"]', '["a", ""]'), "labels"),
        (change('["negative", "positive"]', '["a", 3]'), "labels"),
        (change('["negative", "positive"]', '"ab"'), "labels"),
        (change("schema = 1", "schema = 1\nthreshold = 1.5"), "threshold"),
        (change("schema = 1", "schema = 1\nthreshold = nan"), "threshold"),
        (change("schema = 1", 'schema = 1\nresample = "quick"'), "resample"),
        (GOOD + "[fit]\nfolds = 1\n", "fit.folds"),
        (GOOD + "[fit]\nregularisation = 0.0\n", "fit.regularisation"),
        (GOOD + "[fit]\nlearning_rate = nan\n", "fit.learning_rate"),
        (GOOD + "[fit]\nepoch = 3\n", "epoch"),
        (GOOD + '[graph]\nlogits = "x"\ninputs = []\n', "graph"),
        (change("height = 8", "height = 0", GRAPH), "resize"),
        (change("height = 8", "height = 8, scale = 9", GRAPH), "resize"),
        (change('fit = "warp"', 'fit = "shortest"', GRAPH), "resize"),
        (change("std = [0.5, 0.5, 0.5]", "std = [0.5, 0.0, 0.5]", GRAPH), "graph.inputs[0].std"),
        (change("std = [0.5, 0.5, 0.5]", "std = [0.5, 0.5]", GRAPH), "std"),
        (change('logits = "out"', "", GRAPH), "logits"),
        ('schema = 1\nname = "mine"\ntask = "binary"\nlabels = ["a", "b"]\n', "backbones"),
    ],
    ids=lambda value: value if len(value) < 40 else "",
)
def test_a_wrong_key_is_named(written: Written, text: str, names: str) -> None:
    path = written(text)
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    message = str(caught.value)
    assert re.search(rf"(?<!\w){re.escape(names)}(?!\w)", message), message
    assert "recipe.toml" in message
    assert "\n" not in message


@pytest.mark.parametrize("data", [b"labels = [", b"\xff\xfe\x00", b"", b"a = " + b"[" * 100_000])
def test_what_is_no_recipe_is_one_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(data)
    with pytest.raises(RecipeError, match=re.escape(str(path))):
        read_recipe(path)


def test_an_unknown_name_lists_the_shipped_ones(tmp_path: Path) -> None:
    for name in ("quickstrat", str(tmp_path / "no.toml"), str(tmp_path)):
        with pytest.raises(RecipeError, match="quickstart"):
            find_recipe(name)


def test_a_recipe_survives_the_manifest(tiny_recipe: Path, tiny_bundle: Path) -> None:
    from vsa_rt.bundle import Bundle

    recipe = read_recipe(tiny_recipe)
    assert Bundle.open(tiny_bundle).manifest.recipe == recipe
    assert msgspec.json.decode(msgspec.json.encode(recipe), type=Recipe) == recipe


@pytest.mark.parametrize(
    ("path", "error", "says"),
    [
        ("../outside.pth", RecipeError, "leaves the folder"),
        ("inside/../../outside.pth", RecipeError, "leaves the folder"),
        ("/etc/hostname", RecipeError, "leaves the folder"),
        ("linked.pth", RecipeError, "leaves the folder"),
        ("linked/outside.pth", RecipeError, "leaves the folder"),
        ("with\0null.pth", RecipeError, "leaves the folder"),
        ("absent.pth", CheckpointError, "--weights NAME=PATH"),
        ("loop.pth", RecipeError, "key"),
        ("a" * 300, CheckpointError, "key"),
        (".", CheckpointError, "no file"),
        ("package:not_installed_here/a.pth", CheckpointError, "is not installed"),
        ("package:os/a.pth", CheckpointError, "is not installed"),
        ("package:../x/a.pth", CheckpointError, "is not installed"),
        ("package:vsa_rt/../../pyproject.toml", RecipeError, "leaves the folder"),
        ("package:vsa_rt", CheckpointError, "no file"),
        ("package:vsa_rt/absent.pth", CheckpointError, "no file"),
    ],
)
def test_a_path_that_cannot_be_used_is_refused(
    tmp_path: Path, path: str, error: type[Exception], says: str
) -> None:
    folder = tmp_path / "recipe"
    folder.mkdir()
    (tmp_path / "outside.pth").write_bytes(b"secret")
    (folder / "linked.pth").symlink_to(tmp_path / "outside.pth")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "loop.pth").symlink_to("loop.pth")
    with pytest.raises((RecipeError, CheckpointError), match=re.escape(says)) as caught:
        locate(path, folder, "backbones.a.checkpoint.path")
    assert "backbones.a.checkpoint.path" in str(caught.value)
    if path != "loop.pth":  # either class says it well
        assert isinstance(caught.value, error)


def test_a_package_of_the_running_program_is_not_one_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import __main__

    monkeypatch.setattr(__main__, "__spec__", None)
    with pytest.raises(CheckpointError, match="not installed"):
        locate("package:__main__/a.pth", tmp_path, "key")


def test_a_file_beside_the_recipe_and_one_in_a_package_are_found(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "a.pth").write_bytes(b"")
    (tmp_path / "link.pth").symlink_to("w/a.pth")
    assert locate("w/a.pth", tmp_path, "key") == tmp_path / "w" / "a.pth"
    assert locate("link.pth", tmp_path, "key").name == "a.pth"
    assert locate("package:vsa_rt/recipes/quickstart.toml", tmp_path, "key").is_file()


def test_the_advice_how_to_get_a_file_is_printed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Ask the authors"):
        locate("absent.pth", tmp_path, "key", "Ask the authors.")
    with pytest.raises(CheckpointError, match="Ask the authors"):
        locate("package:absent_package/a.pth", tmp_path, "key", "Ask the authors.")
