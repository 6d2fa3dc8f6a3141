"""Several views of an image: the head scores each, the image's scores are their mean, and a grid becomes a picture."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="networks are torch modules")
onnx = pytest.importorskip("onnx", reason="graphs are ONNX's")
pytest.importorskip("timm", reason="networks are made beside timm's")
pytest.importorskip("openvino", reason="bundles of these tests run on OpenVINO")
import msgspec
from caffe_files import Layer, caffemodel
from PIL import Image

import vsa_rt
from vsa_rt.architecture import CaffeNetOptions, output_width, sides_of, views_of
from vsa_rt.contracts import Resample, ResizeSpec, Sentiment, Task, Views
from vsa_rt.errors import BundleError, CheckpointError, ItemError, RecipeError
from vsa_rt.export.backbones import LoadedBackbone
from vsa_rt.export.ensemble import load_backbones, load_ensemble
from vsa_rt.export.head import head_tap_records, head_taps, make_head
from vsa_rt.export.head_file import backbone_records, head_to_bytes, load_head
from vsa_rt.export.makers import Network
from vsa_rt.export.networks.caffenet import CROP, GRID, MAP, CaffeNet
from vsa_rt.export.purpose import METADATA, GraphPurpose
from vsa_rt.manifest import CheckpointRecord, InputRecord, TapRecord
from vsa_rt.recipe import Recipe, views_of_recipe
from vsa_rt.recipe_file import find_recipe, read_recipe, with_options
from vsa_rt.render.overlay import heat, overlay

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
OVERSAMPLE = {"caffenet.oversample": "true"}


def recipe_of(name: str, **settings: str) -> Recipe:
    return with_options(read_recipe(find_recipe(name)), {k.replace("_", "."): v for k, v in settings.items()})


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``.caffemodel`` of the ablation ``fc6-2``: convolutions, and a dense layer of two outputs that was renamed."""
    draw = np.random.default_rng(0)
    shapes = {
        "conv1": ((96, 3, 11, 11), 1),
        "conv2": ((256, 48, 5, 5), 2),
        "conv3": ((384, 256, 3, 3), 1),
        "conv4": ((384, 192, 3, 3), 2),
        "conv5": ((256, 192, 3, 3), 2),
        "fc6_twitter": ((2, 9216), None),
    }
    layers = []
    for name, (shape, groups) in shapes.items():
        scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        blobs = [draw.standard_normal(shape, np.float32) * scale, np.zeros(shape[0], np.float32)]
        kind = "InnerProduct" if groups is None else "Convolution"
        layers.append(Layer(name, kind, blobs, groups))
    path = tmp_path_factory.mktemp("caffe") / "fc6-2.caffemodel"
    path.write_bytes(caffemodel(layers, legacy=True))
    return path


@pytest.fixture(scope="module")
def ten_crops(fine_tuned: Path, few: Path, vsa: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ablation with ten crops, built from that file alone."""
    out = tmp_path_factory.mktemp("ten") / "ten.bundle"
    done = vsa(
        "build", "asm2015-fc6-2", "-o", out, "--weights", f"caffenet={fine_tuned}", "--data", few, "--max-batch", 2,
        "--set", "caffenet.oversample=true", "--target", "openvino:cpu", "--precision", "fp32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


# --- heads over views


@pytest.mark.parametrize("name", ["asm2015-finetuned", "asm2015-fc8-1000"])
def test_scores_are_the_mean_of_the_views_scores(name: str) -> None:
    recipe = recipe_of(name, caffenet_oversample="true")
    width = 1000
    head = make_head(recipe, width).eval()
    features = torch.randn(3, 10 * width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        taps = dict(
            zip([r.name for r in head_tap_records(recipe)], head_taps(head, features, recipe), strict=True)
        )
        rows = features.reshape(30, width)
        softmax = torch.softmax(rows if name.endswith("1000") else head(rows), 1)[:, :2].reshape(3, 10, 2)
    assert [(r.name, r.width) for r in head_tap_records(recipe)] == [
        ("logits", 20),
        ("views", 20),
        ("scores", 2),
    ]
    torch.testing.assert_close(taps["views"], softmax.flatten(1))
    torch.testing.assert_close(taps["scores"], softmax.mean(1))


def test_units_are_a_softmax_over_all_features_of_which_the_first_are_the_labels() -> None:
    recipe = recipe_of("asm2015-fc7-4096")
    features = torch.randn(2, 4096, generator=torch.Generator().manual_seed(0)) * 5
    logits, scores = head_taps(make_head(recipe, 4096), features, recipe)
    torch.testing.assert_close(scores, torch.softmax(features, 1)[:, :2])
    torch.testing.assert_close(logits, features[:, :2])
    assert float(scores.sum(1).max()) < 1


def test_a_head_over_one_view_fits_every_number_of_views(fine_tuned: Path, tmp_path: Path) -> None:
    once = recipe_of("asm2015-fc6-2")
    weights = {"caffenet": fine_tuned}
    backbones = load_backbones(once, tmp_path, weights)
    head = make_head(once, 9216)
    path = tmp_path / "head.safetensors"
    path.write_bytes(head_to_bytes(head, once, backbones))
    often = with_options(once, OVERSAMPLE)
    found, _, _ = load_head(often, tmp_path, load_backbones(often, tmp_path, weights), path)
    assert torch.equal(found.fc.weight, head.fc.weight)  # type: ignore[union-attr]
    other = with_options(once, {"caffenet.top": "pool5"})
    assert views_of_recipe(other).count == 1


# --- checkpoints that bring the head along


def test_the_checkpoints_own_last_layer_is_the_head(fine_tuned: Path, tmp_path: Path) -> None:
    found = load_ensemble(recipe_of("asm2015-fc6-2"), tmp_path, {"caffenet": fine_tuned})
    assert found.module.head.fc.weight.shape == (2, 9216)  # type: ignore[union-attr]
    assert found.checkpoints["head"].found == found.checkpoints["caffenet"].found


def test_a_last_layer_of_other_labels_is_no_head(fine_tuned: Path, tmp_path: Path) -> None:
    recipe = msgspec.structs.replace(
        recipe_of("asm2015-fc6-2"), task=Task.SINGLE_LABEL, labels=["a", "b", "c"]
    )
    with pytest.raises(
        CheckpointError, match=r"'fc6'.*\(2, 9216\) instead of \(3, 9216\).*3 labels.*vsa-rt fit"
    ):
        load_ensemble(recipe, tmp_path, {"caffenet": fine_tuned})


def test_a_checkpoint_without_a_last_layer_needs_a_fit(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no trained head; train one with vsa-rt fit"):
        load_head(
            recipe_of("asm2015-fc6-2"), tmp_path, load_backbones(recipe_of("asm2015-fc6-2"), tmp_path, {}, 0)
        )


def test_another_grouping_is_another_network(tmp_path: Path) -> None:
    path = tmp_path / "other.caffemodel"
    path.write_bytes(caffemodel([Layer("conv2", "Convolution", [np.zeros((256, 48, 5, 5))], 4)]))
    with pytest.raises(CheckpointError, match="'conv2' has 4 groups, CaffeNet has 2"):
        load_backbones(recipe_of("asm2015-fc6-2"), tmp_path, {"caffenet": path})


# --- rules


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"caffenet.map": "true", "caffenet.oversample": "true"}, "oversample"),
        ({"caffenet.map": "true", "caffenet.top": "pool5"}, "top"),
        ({"caffenet.top": "fc5"}, "top"),
        ({"caffenet.oversample": "yes"}, "oversample"),
    ],
)
def test_options_without_a_meaning_are_refused(settings: dict[str, str], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        with_options(read_recipe(find_recipe("asm2015-finetuned")), settings)


def changed_text(name: str, tmp_path: Path, *changes: tuple[str, str]) -> Path:
    text = find_recipe(name).read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "changed.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("asm2015-fc7-4096", [('kind = "units"', 'kind = "units"\nweights = "x"')], "head.weights"),
        ("asm2015-fc7-4096", [('task = "binary"', 'task = "multi-label"')], "head.kind"),
        ("asm2015-map", [('kind = "linear"', 'kind = "linear"\nunit_norm = true')], "head.unit_norm"),
        ("asm2015-map", [("[head]", '[[backbones]]\nname = "b"\narchitecture = "timm:resnet10t"\n[head]'), ('["caffenet"]', '["caffenet", "b"]')], "64 views"),
    ],
)  # fmt: skip
def test_recipes_that_views_or_units_do_not_fit_are_refused(
    name: str, changes: list[tuple[str, str]], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=problem):
        read_recipe(changed_text(name, tmp_path, *changes))


# --- bundles


def test_a_bundle_of_ten_crops_says_so_and_gives_each_views_scores(
    ten_crops: Path, photographs: list[Path]
) -> None:
    with vsa_rt.load(ten_crops) as runtime:
        assert runtime.manifest.views == Views(count=10)
        found = runtime([photographs[0], b"no image", photographs[1]])
        taps = runtime.features(photographs[:2])
    assert isinstance(found[1], ItemError)
    for row, said in ((0, found[0]), (1, found[2])):
        assert isinstance(said, Sentiment)
        assert said.views is not None
        assert said.views.shape == (10, 2)
        np.testing.assert_allclose(said.views.mean(0), list(said.scores.values()), rtol=1e-5)
        np.testing.assert_allclose(taps["views"][row].reshape(10, 2), said.views, rtol=1e-4, atol=1e-6)
    assert taps["caffenet"].shape == (2, 92160)


def test_views_do_not_share_memory_with_the_engine(ten_crops: Path, photographs: list[Path]) -> None:
    with vsa_rt.load(ten_crops) as runtime:
        first = runtime(photographs[0])[0]
        assert isinstance(first, Sentiment)
        assert first.views is not None
        kept = first.views.copy()
        runtime(photographs[1:5])
    np.testing.assert_array_equal(first.views, kept)


def test_a_bundle_holds_against_its_rebuilt_torch_model(ten_crops: Path, few: Path, vsa: Cli) -> None:
    done = vsa("check", ten_crops, "--data", few, "--json")
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout


@pytest.mark.parametrize(
    "views",
    [
        {"count": 9},
        {"count": 0},
        {"count": 10, "rows": 2, "columns": 6, "window": 0.5},
        {"count": 10, "rows": 2, "columns": 5},
        {"count": 10, "rows": -2, "columns": -5, "window": 0.5},
    ],
)
def test_a_manifest_whose_views_cannot_be_is_refused(
    ten_crops: Path, views: dict[str, Any], tmp_path: Path, reseal: Callable[..., None]
) -> None:
    import shutil

    copy = tmp_path / "copy.bundle"
    shutil.copytree(ten_crops, copy)
    reseal(copy, views=Views(**views))
    with pytest.raises(BundleError, match="contradicts itself"):
        vsa_rt.load(copy)


# --- maps


def grid_graph() -> Any:
    """A graph with a map of its own: the mean brightness of 8 x 8 windows of 227 pixels, as two labels."""
    helper, types = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=types.FLOAT),
        helper.make_node("ReduceMean", ["real", "last"], ["grey"], keepdims=0),
        helper.make_node("Unsqueeze", ["grey", "one"], ["plane"]),
        helper.make_node("AveragePool", ["plane"], ["means"], kernel_shape=[227, 227], strides=[32, 32]),
        helper.make_node("Reshape", ["means", "flat"], ["rows"]),
        helper.make_node("Div", ["rows", "white"], ["bright"]),
        helper.make_node("Sub", ["unit", "bright"], ["dark"]),
        helper.make_node("Concat", ["dark", "bright"], ["both"], axis=2),
        helper.make_node("Reshape", ["both", "wide"], ["views"]),
        helper.make_node("ReduceMean", ["both", "one"], ["scores"], keepdims=0),
    ]
    weights = {
        "last": np.array([3], np.int64),
        "one": np.array([1], np.int64),
        "flat": np.array([0, 64, 1], np.int64),
        "wide": np.array([0, 128], np.int64),
        "white": np.float32(255),
        "unit": np.float32(1),
    }
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "map",
        [info("image", types.UINT8, ["batch", 451, 451, 3])],
        [info("views", types.FLOAT, ["batch", 128]), info("scores", types.FLOAT, ["batch", 2])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    resize = ResizeSpec(height=451, width=451, fit="warp", kernel="bilinear")
    purpose = GraphPurpose(
        inputs=[InputRecord(name="image", dtype="uint8", shape=[451, 451, 3], resize=resize)],
        taps=[
            TapRecord(name="views", width=128, kind="views"),
            TapRecord(name="scores", width=2, kind="scores"),
        ],
        labels=["dark", "bright"],
        task=Task.BINARY,
        threshold=0.5,
        resample=Resample.EXACT,
        views=Views(count=64, rows=8, columns=8, window=227 / 451),
    )
    helper.set_model_props(model, {METADATA: msgspec.json.encode(purpose).decode()})
    return model


@pytest.fixture(scope="module")
def map_bundle(vsa: Cli, few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("map")
    onnx.save(grid_graph(), folder / "map.onnx")
    out = folder / "map.bundle"
    done = vsa(
        "build",
        folder / "map.onnx",
        "-o",
        out,
        "--data",
        few,
        "--target",
        "openvino:cpu",
        "--precision",
        "fp32",
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def half_bright(tmp_path: Path) -> Path:
    """Black on the left, white on the right."""
    pixels = np.zeros((300, 400, 3), np.uint8)
    pixels[:, 200:] = 255
    path = tmp_path / "photos" / "half.png"
    path.parent.mkdir()
    Image.fromarray(pixels).save(path)
    return path


def test_run_writes_a_map_over_each_image(
    map_bundle: Path, half_bright: Path, vsa: Cli, tmp_path: Path
) -> None:
    twin = tmp_path / "photos" / "deeper" / "half.png"
    twin.parent.mkdir()
    twin.write_bytes(half_bright.read_bytes())
    (tmp_path / "photos" / "bad.png").write_bytes(b"no image")
    out = tmp_path / "maps"
    done = vsa("run", map_bundle, tmp_path / "photos", "--map", out, "--format", "jsonl")
    assert done.returncode == 1, done.stderr
    lines = {Path(line["path"]).parent.name + "/" + Path(line["path"]).name: line for line in map(json.loads, done.stdout.splitlines())}  # fmt: skip
    assert lines["photos/bad.png"]["map"] is None
    assert lines["photos/bad.png"]["error"]
    written = [lines[name]["map"] for name in ("photos/half.png", "deeper/half.png")]
    assert len(set(written)) == 2
    for path in written:
        picture = Image.open(path)
        assert picture.size == (400, 300 + 28)
        left, right = np.asarray(picture)[150, 5].astype(int), np.asarray(picture)[150, 395].astype(int)
        assert left[2] > left[0]  # the colour of 0 is violet
        assert right[0] > right[2]  # and that of 1 is orange
    assert sorted(p.name for p in out.iterdir()) == ["half.png.2.map.png", "half.png.map.png"]


def test_the_map_may_be_of_the_other_label(
    map_bundle: Path, half_bright: Path, vsa: Cli, tmp_path: Path
) -> None:
    done = vsa("run", map_bundle, half_bright, "--map", tmp_path / "maps", "--map-label", "dark")
    assert done.returncode == 0, done.stderr
    pixels = np.asarray(Image.open(tmp_path / "maps" / "half.png.map.png")).astype(int)
    assert pixels[150, 5, 0] > pixels[150, 5, 2]


def test_a_map_that_cannot_be_is_refused(map_bundle: Path, tiny_bundle: Path, coffee: Path, vsa: Cli, tmp_path: Path) -> None:  # fmt: skip
    done = vsa("run", tiny_bundle, coffee, "--map", tmp_path / "maps")
    assert done.returncode == 2
    assert "asm2015-map" in done.stderr
    done = vsa("run", map_bundle, coffee, "--map", tmp_path / "maps", "--map-label", "joy")
    assert done.returncode == 2
    assert "dark, bright" in done.stderr
    done = vsa("run", map_bundle, coffee, "--map-label", "dark")
    assert done.returncode == 2
    assert "--map DIR" in done.stderr
    (tmp_path / "file").write_text("in the way")
    done = vsa("run", map_bundle, coffee, "--map", tmp_path / "file")
    assert done.returncode == 2
    assert "cannot be made" in done.stderr


def test_a_map_that_cannot_be_written_leaves_the_label(map_bundle: Path, half_bright: Path, vsa: Cli, tmp_path: Path) -> None:  # fmt: skip
    (tmp_path / "maps" / "half.png.map.png").mkdir(parents=True)
    done = vsa("run", map_bundle, half_bright, "--map", tmp_path / "maps", "--format", "jsonl")
    line = json.loads(done.stdout)
    assert done.returncode == 1
    assert (line["error"], line["map"]) == (None, None)
    assert line["label"] in ("dark", "bright")
    assert "cannot be written" in line["map_error"]


def test_heat_lies_where_the_views_centres_do() -> None:
    views = Views(count=64, rows=8, columns=8, window=227 / 451)
    scores = np.zeros((8, 8), np.float32)
    scores[2, 5] = 1
    found = heat(scores.ravel(), views, 451, 451)
    # The centre of a view is half a window in, and 32 pixels per place further.
    y, x = (227 / 2 + 32 * place for place in (2, 5))
    assert divmod(int(found.argmax()), 451) == (int(y), int(x))
    assert found[int(y), int(x)] == pytest.approx(1, abs=0.05)
    assert found[int(y) - 33, int(x)] == pytest.approx(0, abs=0.05)


def test_heat_keeps_between_its_scores_and_constant_at_the_border() -> None:
    views = Views(count=4, rows=2, columns=2, window=0.5)
    found = heat(np.array([0.2, 0.8, 0.4, 0.6], np.float32), views, 40, 60)
    assert found.min() >= 0.2 - 1e-6
    assert found.max() <= 0.8 + 1e-6
    np.testing.assert_allclose(found[0, :15], found[0, 0])  # outside the first centre


def test_an_overlay_of_a_tiny_or_narrow_image_is_a_picture() -> None:
    views = Views(count=64, rows=8, columns=8, window=227 / 451)
    scores = np.linspace(0, 1, 64, dtype=np.float32)
    for shape in ((1, 1, 3), (3, 900, 3), (2000, 4, 3)):
        picture = overlay(np.zeros(shape, np.uint8), scores, views, "a label that is longer than the picture")
        assert max(picture.size) <= 1024 + 28


def test_the_table_and_the_network_agree_on_views_and_widths() -> None:
    for top in ("pool5", "fc6", "fc7", "fc8"):
        for option in ("", "oversample", "map"):
            if option == "map" and top == "pool5":
                continue
            options = CaffeNetOptions(top=top, **({option: True} if option else {}))
            with torch.device("meta"):
                network = CaffeNet(options.top, options.oversample, options.map)
            views = views_of(options)
            assert output_width("caffenet", options, None) == network.width
            assert views.count == network.view_count
            assert sides_of("caffenet", options) == (network.size, network.size)
            if views.rows:
                assert (views.rows, views.columns, views.window) == (GRID, GRID, CROP / MAP)


def test_what_a_head_remembers_does_not_know_of_views() -> None:
    def remembered(entry: Any, side: int, views: int) -> Any:
        resize = ResizeSpec(height=side, width=side, fit="warp", kernel="opencv-bilinear")
        made = Network(torch.nn.Identity(), views * 4096, resize=resize)
        record = CheckpointRecord(sha256="0" * 64, found="file")
        return backbone_records([LoadedBackbone(entry, made, record)])["caffenet"]

    once, often, mapped = (
        recipe_of(name, **settings).backbones[0]
        for name, settings in (
            ("asm2015-finetuned", {}),
            ("asm2015-finetuned", {"caffenet_oversample": "true"}),
            ("asm2015-map", {}),
        )
    )
    assert remembered(once, 256, 1) == remembered(often, 256, 10) == remembered(mapped, 451, 64)
    other = msgspec.structs.replace(once, options={"top": "fc6"})
    assert remembered(other, 256, 1) != remembered(once, 256, 1)


def test_alexnet_is_told_from_caffenet_by_the_order_of_its_layers(tmp_path: Path) -> None:
    layers = [Layer("conv1", "Convolution", [np.zeros((96, 3, 11, 11)), np.zeros(96)], 1)]
    pool, norm = Layer("pool1", "Pooling"), Layer("norm1", "LRN")
    path = tmp_path / "net.caffemodel"
    path.write_bytes(caffemodel([*layers, norm, pool]))
    with pytest.raises(CheckpointError, match=r"normalises before it pools.*AlexNet"):
        load_backbones(recipe_of("asm2015-fc6-2"), tmp_path, {"caffenet": path})
    path.write_bytes(caffemodel([*layers, pool, norm]))
    with pytest.raises(CheckpointError, match="missing conv2"):  # read, but for its other layers
        load_backbones(recipe_of("asm2015-fc6-2"), tmp_path, {"caffenet": path})


def test_seeds_leave_a_head_that_the_checkpoint_brings(fine_tuned: Path, tmp_path: Path) -> None:
    found = load_ensemble(recipe_of("asm2015-fc6-2"), tmp_path, {"caffenet": fine_tuned}, random_seed=0)
    assert found.checkpoints["head"].random_seed is None
    labels = {"task": "sll", "labels": "a,b,c"}
    other = load_ensemble(recipe_of("asm2015-fc6-2", **labels), tmp_path, {"caffenet": fine_tuned}, 0)
    assert other.checkpoints["head"].random_seed == 0


def test_a_map_with_a_resize_of_its_own_keeps_its_size(tmp_path: Path) -> None:
    resize = '\n[backbones.resize]\nheight = {0}\nwidth = {0}\nfit = "warp"\nkernel = "bilinear"\n\n[head]'
    good = changed_text("asm2015-map", tmp_path, ("\n[head]", resize.format(451)))
    assert read_recipe(good).backbones[0].resize is not None
    bad = changed_text("asm2015-map", tmp_path, ("\n[head]", resize.format(256)))
    with pytest.raises(RecipeError, match="expected 451 x 451"):
        read_recipe(bad)


@pytest.mark.parametrize(
    "fields",
    [
        {"views": Views(count=10, rows=2, columns=5, window=0.5)},
        {"scores_kind": "moe"},
        {"task": Task.SINGLE_LABEL},
        {"threshold": 0.4},
    ],
)
def test_a_manifest_that_says_otherwise_than_its_recipe_is_refused(
    ten_crops: Path, fields: dict[str, Any], tmp_path: Path, reseal: Callable[..., None]
) -> None:
    import shutil

    copy = tmp_path / "copy.bundle"
    shutil.copytree(ten_crops, copy)
    reseal(copy, **fields)
    with pytest.raises(BundleError, match="by its recipe"):
        vsa_rt.load(copy)


def test_a_graph_whose_views_do_not_fit_is_not_built(few: Path, vsa: Cli, tmp_path: Path) -> None:
    for number, (old, new) in enumerate(
        [(b'"count":64', b'"count":10'), (b'"name":"views"', b'"name":"seens"')]
    ):
        model = grid_graph()
        text = next(p for p in model.metadata_props if p.key == METADATA)
        assert old in text.value.encode()
        text.value = text.value.replace(old.decode(), new.decode())
        if b"seens" in new:
            for output in (*model.graph.output, *model.graph.node):
                if getattr(output, "name", "") == "views":
                    output.name = "seens"
                for place, name in enumerate(getattr(output, "output", [])):
                    if name == "views":
                        output.output[place] = "seens"
        onnx.save(model, tmp_path / f"{number}.onnx")
        out = tmp_path / f"{number}.bundle"
        done = vsa("build", tmp_path / f"{number}.onnx", "-o", out, "--data", few, "--target", "openvino:cpu", "--precision", "fp32")  # fmt: skip
        assert done.returncode != 0
        assert "contradicts itself" in done.stderr
        assert "correct the recipe, or what the graph says of itself" in done.stderr
        assert not out.exists()


def test_maps_do_not_go_where_the_images_are(map_bundle: Path, half_bright: Path, vsa: Cli) -> None:
    for folder in (half_bright.parent, half_bright.parent / "maps"):
        done = vsa("run", map_bundle, half_bright.parent, "--map", folder)
        assert done.returncode == 2
        assert "elsewhere" in done.stderr
    assert [p.name for p in half_bright.parent.iterdir()] == ["half.png"]


def test_csv_says_why_there_is_no_map(map_bundle: Path, half_bright: Path, vsa: Cli, tmp_path: Path) -> None:
    (tmp_path / "maps" / "half.png.map.png").mkdir(parents=True)
    done = vsa("run", map_bundle, half_bright, "--map", tmp_path / "maps", "--format", "csv")
    header, row = done.stdout.splitlines()
    assert header == "path,label,labels,score,error,map,map_error"
    assert "cannot be written" in row
