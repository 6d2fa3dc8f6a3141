"""A recipe is read from TOML; whatever is wrong with it is one error that names the key."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from vsa_rt.contracts import Task
from vsa_rt.errors import CheckpointError, RecipeError
from vsa_rt.locate import locate
from vsa_rt.recipe import Recipe, needed_backbones
from vsa_rt.recipe_file import find_recipe, read_recipe, shipped_names
from vsa_rt.recipe_rules import check_recipe

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
        (GOOD + f"[fit]\nepochs = 1{'0' * 400}\n", "fit.epochs"),
        (GOOD + "[fit]\nfolds = 1000001\n", "fit.folds"),
        (GOOD + "[fit]\nbatch_size = 0\n", "fit.batch_size"),
        (GOOD + "[fit]\nstep = -1\n", "fit.step"),
        (GOOD + "[fit]\nweight_decay = inf\n", "fit.weight_decay"),
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


# Backbones with options: what is too large, what means nothing, and what cannot be built

WIRED = """\
schema = 1
name = "mine"
task = "binary"
labels = ["negative", "positive"]

[[backbones]]
name = "r"
architecture = "resnet152-v2"

[[backbones]]
name = "inception"
architecture = "inception-2015"

[[backbones]]
name = "pca"
architecture = "youtube8m-pca"
reads = "inception"
options = { clip = 2.0 }

[[backbones]]
name = "y"
architecture = "shallow-cnn"
reads = "pca"
options = { kernel = 3 }

[[backbones]]
name = "s"
architecture = "dual-encoding"
reads = "r"
options = { frames = 1 }

[[backbones]]
name = "t"
architecture = "timm:test_resnet"

[[backbones]]
name = "g"
architecture = "object-graph"
reads = "t"
options = { objects = "features" }

[head]
kind = "nn"
features = ["r", "y", "s", "g"]
"""


def wired(*changes: tuple[str, str]) -> str:
    text = WIRED
    for old, new in changes:
        text = change(old, new, text)
    return text


R = ('architecture = "resnet152-v2"', 'architecture = "resnet152-v2"\n')
INCEPTION = ('architecture = "inception-2015"', 'architecture = "inception-2015"\n')
T = ('architecture = "timm:test_resnet"', 'architecture = "timm:test_resnet"\n')


def warped(of: tuple[str, str], height: int, width: int, more: str = 'fit = "warp"') -> tuple[str, str]:
    size = f"height = {height}, width = {width}"
    return of[0], f'{of[1]}resize = {{ {size}, {more}, kernel = "bilinear" }}'


def g(options: str) -> tuple[str, str]:
    return 'objects = "features"', options


def y(options: str) -> tuple[str, str]:
    return "kernel = 3", options


def s(options: str) -> tuple[str, str]:
    return "frames = 1", options


def head(text: str) -> tuple[str, str]:
    return 'kind = "nn"', text


LABELS = ('["negative", "positive"]', str([f"l{i}" for i in range(10_000)]))
SINGLE = ('"binary"', '"single-label"')
MULTI = ('"binary"', '"multi-label"')


@pytest.mark.parametrize(
    "changes",
    [
        [],
        [g("features = 13000")],
        [g("count = 2048")],
        [g('objects = "boxes", count = 100, frame = 4096')],
        [g('objects = "grid", count = 14')],
        [('reads = "t"', 'reads = "r"'), g('objects = "grid"'), ('"g"]', '"g", "t"]')],
        [s("frames = 60, features = 2048")],
        [('reads = "r"', 'reads = "t"'), s("frames = 60, features = 512")],
        [('reads = "pca"', 'reads = "inception"'), y("audio = 128"), ('"r", "y"', '"r", "pca", "y"')],
        [y('axis = "time", kernel = 1, filters = 4096')],
        [("clip = 2.0", "clip = 0.5, quantise = true")],
        [("clip = 2.0", "clip = 0")],
        [warped(R, 256, 256)],
        [warped(R, 256, 256, 'fit = "shortest", scale = 300')],
        [warped(INCEPTION, 75, 299)],
        [warped(T, 4096, 96)],
        [head('kind = "nn"\nhidden = [512, 512, 256, 256, 128, 128, 64, 64]')],
        [head('kind = "moe"\nexperts = 16\ngate_bias = true\ndropout = 0.5')],
        [head('kind = "linear"\nhidden = [200]\nexperts = 2\ndropout = 0.4')],
        [SINGLE, LABELS],
        [MULTI, ("schema = 1", "schema = 1\nthreshold = 0.3")],
        [("[head]", '[fit]\npreset = "smap2021-nn"\nepochs = 3\n\n[head]')],
        [("[head]", '[fit]\npreset = "mediaeval2021-1"\nstep = 0\n\n[head]')],
        [MULTI, ("[head]", '[fit]\npreset = "smap2021-nn"\n\n[head]')],
        [MULTI, head('kind = "linear"'), ("[head]", '[fit]\nloss = "bce"\nregularisation = 1\n\n[head]')],
        [head('kind = "linear"'), ("[head]", "[fit]\nepochs = 20\nstep = 0\nfactor = 0.1\n\n[head]")],
        [("[head]", "[fit]\nstep = 7\nfactor = 0.3\ntest = 0.4\n\n[head]")],
    ],
    ids=str,
)
def test_options_that_mean_something_are_taken(written: Written, changes: list[tuple[str, str]]) -> None:
    assert read_recipe(written(wired(*changes))).name == "mine"


@pytest.mark.parametrize(
    ("changes", "names", "says"),
    [
        # Each number is small enough, what they make together is not.
        ([g("features = 65536")], "backbones[6].options", "parameters"),
        ([g("features = 16384, count = 1")], "backbones[6].options", "parameters"),
        ([y("classes = 65536")], "backbones[3].options", "parameters"),
        ([y("filters = 4096, classes = 1000, pool = 1")], "backbones[3].options", "parameters"),
        ([y('axis = "time", kernel = 301, filters = 4096')], "backbones[3].options", "parameters"),
        ([g("features = 15000"), y("pool = 1")], "backbones[6].options", "parameters"),
        ([g("count = 4096, features = 2048")], "backbones[6].options.count", "4,194,304"),
        ([('reads = "r"', 'reads = "t"'), s("frames = 4096, features = 1025")], "backbones[4].options.frames", "4,194,304"),
        ([g('objects = "boxes", count = 513')], "backbones[6].options.count", "512"),
        ([head('kind = "nn"\nhidden = [65536, 65536]')], "head.hidden", "parameters"),
        ([head('kind = "moe"\nhidden = [65536]\nexperts = 1024'), SINGLE, LABELS], "head", ""),
        ([head('kind = "moe"\nhidden = [1]\nexperts = 1000'), SINGLE, LABELS], "head.experts", "4,194,304"),
        # And each number.
        ([g("count = 4097, features = 1")], "backbones[6].options.count", "[1, 4096]"),
        ([g('objects = "boxes", frame = 4097')], "backbones[6].options.frame", "[1, 4096]"),
        ([g('objects = "boxes", frame = 0')], "backbones[6].options.frame", "[1, 4096]"),
        ([y("filters = 65536")], "backbones[3].options.filters", "[1, 4096]"),
        ([y("audio = -1")], "backbones[3].options.audio", "[0, 65536]"),
        ([("clip = 2.0", "clip = nan")], "backbones[2].options.clip", "[0, 65536]"),
        ([s("frames = 4097, features = 1")], "backbones[4].options.frames", "[1, 4096]"),
        ([head('kind = "nn"\nhidden = [1, 1, 1, 1, 1, 1, 1, 1, 1]')], "head.hidden", "8"),
        ([head('kind = "moe"\nexperts = 1025')], "head.experts", "1024"),
        ([SINGLE, (LABELS[0], str([f"l{i}" for i in range(10_001)]))], "labels", "10000"),
        ([warped(T, 4097, 8)], "backbones[5].resize", "4096"),
        ([warped(T, 8, 8, 'fit = "shortest", scale = 4097')], "backbones[5].resize", "4096"),
        # What would be read and not used.
        ([g('objects = "boxes", features = 96')], "backbones[6].options.features", 'objects = "boxes"'),
        ([g('objects = "grid", features = 96')], "backbones[6].options.features", 'objects = "grid"'),
        ([g("frame = 256")], "backbones[6].options.frame", 'objects = "features"'),
        ([s("features = 96")], "backbones[4].options.features", "frames = 1"),
        ([y('axis = "time", pool = 4')], "backbones[3].options.pool", 'axis = "time"'),
        ([("clip = 2.0", "clip = 3.0, quantise = true")], "backbones[2].options.clip", "quantise"),
        ([("clip = 2.0", "clip = 0, quantise = true")], "backbones[2].options.clip", "quantise"),
        ([head('kind = "nn"\nexperts = 3')], "head.experts", 'kind = "nn"'),
        ([head('kind = "linear"\nexperts = 3')], "head.experts", 'kind = "linear"'),
        ([head('kind = "nn"\ngate_bias = true')], "head.gate_bias", 'kind = "nn"'),
        ([head('kind = "linear"\nhidden = [100]')], "head.hidden", 'kind = "linear"'),
        ([head('kind = "linear"\ndropout = 0.3')], "head.dropout", 'kind = "linear"'),
        ([head(f'kind = "nn"\nsha256 = "{"0" * 64}"')], "head.sha256", "head.weights"),
        ([(R[0], f'{R[1]}checkpoint.sha256 = "{"0" * 64}"')], "backbones[0].checkpoint.sha256", "checkpoint.path"),
        ([("schema = 1", "schema = 1\nthreshold = 0.3")], "threshold", "multi-label"),
        # What could not be built.
        ([g('objects = "grid", count = 49')], "backbones[6].options.count", "expected 41 or 50"),
        ([y("kernel = 4")], "backbones[3].options.kernel", "odd"),
        ([y("pool = 1025")], "backbones[3].options.pool", "1024"),
        ([y("pool = 1153, audio = 128")], "backbones[3].options.pool", "1152"),
        ([warped(R, 224, 224)], "backbones[0].resize", "256 x 256"),
        ([warped(INCEPTION, 299, 74)], "backbones[1].resize", "75"),
        ([("reads = \"t\"", "reads = \"r\""), g("features = 7")], "backbones[6].options.features", "'r' gives 2048"),
        ([("reads = \"t\"", "reads = \"y\"")], "backbones[6].reads", "must read images"),
        ([s("frames = 2, features = 7")], "backbones[4].options.features", "'r' gives 2048"),
        ([('reads = "r"', 'reads = "pca"'), s("frames = 2")], "backbones[4].options.features", "'pca' gives 1024"),
    ],
    ids=lambda value: str(value) if len(str(value)) < 90 else "",
)  # fmt: skip
def test_options_that_cannot_be_are_refused_with_their_key(
    written: Written, changes: list[tuple[str, str]], names: str, says: str
) -> None:
    path = written(wired(*changes))
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    message = str(caught.value)
    assert f"`{names}" in message, message
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("kind", "fit", "names"),
    [
        ("linear", 'preset = "smap2021-nn"', "fit.preset"),
        ("linear", "epochs = 3", "fit.epochs"),
        ("linear", "batch_size = 9", "fit.batch_size"),
        ("linear", "learning_rate = 0.1", "fit.learning_rate"),
        ("linear", "weight_decay = 0.1", "fit.weight_decay"),
        ("linear", "step = 3", "fit.step"),
        ("linear", "factor = 0.3", "fit.factor"),
        ("linear", 'loss = "bce"', "fit.loss"),
        ("nn", "factor = 0.3", "fit.factor"),
        ("moe", 'preset = "mediaeval2021-1"\nstep = 0\nfactor = 0.3', "fit.factor"),
    ],
)
def test_a_training_setting_that_trains_nothing_is_refused(
    written: Written, kind: str, fit: str, names: str
) -> None:
    text = change('kind = "linear"', f'kind = "{kind}"') + f"[fit]\n{fit}\n"
    with pytest.raises(RecipeError, match=f"`{names}`"):
        read_recipe(written(text))


def test_a_mixtures_own_loss_is_not_for_several_labels(written: Written) -> None:
    text = change('kind = "linear"', 'kind = "moe"') + '[fit]\nloss = "nll"\n'
    assert read_recipe(written(text)).fit.loss == "nll"
    with pytest.raises(RecipeError, match=r"`fit\.loss`.*bce"):
        read_recipe(written(change('"binary"', '"multi-label"', text)))


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ('[head]\nkind = "moe"\nfeatures = []\n', "head.kind"),
        ('[head]\nkind = "linear"\nfeatures = []\nunit_norm = true\n', "head.unit_norm"),
        ("[fit]\nfolds = 3\n", "fit.folds"),
    ],
)
def test_a_bare_graph_has_no_head_to_set(written: Written, more: str, names: str) -> None:
    with pytest.raises(RecipeError, match=f"`{names}`"):
        read_recipe(written(GRAPH + more))


def test_an_image_of_a_bare_graph_has_a_limit(written: Written) -> None:
    text = change("height = 8, width = 8", "height = 4096, width = 4096", GRAPH)
    assert read_recipe(written(text)).graph is not None
    with pytest.raises(RecipeError, match=r"`graph\.inputs\[0\]\.resize`.*4096"):
        read_recipe(written(change("height = 4096", "height = 4097", text)))
    entry = GRAPH[GRAPH.index("[[graph") :]
    many = GRAPH + "".join(change('"x"', f'"x{i}"', entry) for i in range(64))
    with pytest.raises(RecipeError, match=r"`graph\.inputs`.*64"):
        read_recipe(written(many))


def chained(count: int, close: bool) -> str:
    """PCAs that read each other, the reader before what it reads; the last reads an image, or the first."""
    one = '[[backbones]]\nname = "p{}"\narchitecture = "youtube8m-pca"\nreads = "p{}"\n\n'
    last = f'[[backbones]]\nname = "p{count - 1}"\narchitecture = "inception-2015"\n\n'
    links = [one.format(i, (i + 1) % count) for i in range(count if close else count - 1)]
    tables = "".join(links) + ("" if close else last)
    start, end = GOOD[: GOOD.index("[[")], GOOD[GOOD.index("[head]") :]
    return start + tables + change('["a", "b"]', '["p0"]', end)


def test_backbones_have_a_limit(written: Written) -> None:
    recipe = read_recipe(written(chained(64, close=False)))
    assert [b.name for b in needed_backbones(recipe)] == [f"p{i}" for i in range(63, -1, -1)]
    with pytest.raises(RecipeError, match=r"`backbones`.*64"):
        read_recipe(written(chained(65, close=False)))


def test_a_long_circle_is_refused(written: Written) -> None:
    with pytest.raises(
        RecipeError, match=r"`backbones\[0\]\.reads`: p0 reads p1 reads .* reads p63 reads p0: a circle"
    ):
        read_recipe(written(chained(64, close=True)))


def test_a_chain_of_any_length_is_put_in_order(written: Written) -> None:
    """The order itself needs no limit: nothing calls itself."""
    recipe = read_recipe(written(chained(2, close=False)))
    first, last = recipe.backbones
    names = [f"p{i}" for i in range(5000)]
    links = [msgspec.structs.replace(first, name=a, reads=b) for a, b in pairwise(names)]
    long = msgspec.structs.replace(recipe, backbones=[*links, msgspec.structs.replace(last, name=names[-1])])
    assert [b.name for b in needed_backbones(long)] == names[::-1]


def test_many_labels_and_features_are_looked_through_once(written: Written) -> None:
    """Nine thousand labels, and a million mentions of a backbone: quadratic work would take minutes."""
    recipe = read_recipe(written(wired(SINGLE, (LABELS[0], str([f"l{i}" for i in range(9000)])))))
    assert len(recipe.labels) == 9000
    many = msgspec.structs.replace(recipe.head, features=["r"] * 1_000_000)
    with pytest.raises(RecipeError, match=r"`head\.features`.*more than once"):
        check_recipe(msgspec.structs.replace(recipe, head=many), "here")
