"""Backbones that read each other: one graph, a trunk computed once, ready tensors, regions, masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

reason = "ensembles are torch modules"
torch = pytest.importorskip("torch", reason=reason)
onnx = pytest.importorskip("onnx", reason="graphs are ONNX")
pytest.importorskip("onnxscript", reason="torch exports through onnxscript")
pytest.importorskip("onnxruntime", reason="graphs are run by ONNX Runtime")
pytest.importorskip("timm", reason="the encoder is a small network of timm")
pytest.importorskip("safetensors", reason="checkpoints are written as safetensors")
from safetensors.torch import save_file

from vsa_rt.architecture import ARCHITECTURES, output_width, parameters_of
from vsa_rt.contracts import Task
from vsa_rt.engines.executor import GraphExecutor
from vsa_rt.errors import RecipeError, UsageError
from vsa_rt.export.ensemble import LoadedEnsemble, load_ensemble
from vsa_rt.export.graph import graph_from_ensemble
from vsa_rt.export.head import make_head
from vsa_rt.export.makers import make_network
from vsa_rt.recipe import Backbone, Head, Recipe, needed_backbones, options_of, tensor_input
from vsa_rt.recipe_file import read_recipe
from vsa_rt.recipe_rules import check_recipe

#: timm's smallest residual network gives 96 features.
WIDTH = 96
HEADER = """\
schema = 1
name = "wired"
task = "binary"
labels = ["dark", "bright"]

[head]
kind = "linear"
features = [{features}]

"""
R = """\
[[backbones]]
name = "{name}"
architecture = "timm:test_resnet"
checkpoint.path = "{file}"

"""
S = """\
[[backbones]]
name = "s"
architecture = "dual-encoding"
reads = "{reads}"
{options}
"""
G = """\
[[backbones]]
name = "g"
architecture = "object-graph"
reads = "{reads}"
options = {{ objects = "{objects}", count = 5, {size} }}

"""
#: Rows made elsewhere, or regions that are cut from a warped image.
ROWS, CUT = "features = 96", "frame = 64"


def written(folder: Path, features: str, *backbones: str) -> Recipe:
    path = folder / "wired.toml"
    names = ", ".join(f'"{n}"' for n in features.split())
    head, _, tail = HEADER.format(features=names).partition("[head]")
    path.write_text(head + "".join(backbones) + "[head]" + tail, encoding="utf-8")
    return read_recipe(path)


def weights(seed: int) -> dict[str, Any]:
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    return {k: v.clone() for k, v in network.state_dict().items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(weights(1), tmp_path / "one.safetensors")
    save_file(weights(1), tmp_path / "again.safetensors", metadata={"another": "file"})
    save_file(weights(2), tmp_path / "two.safetensors")
    return tmp_path


def loaded(recipe: Recipe, folder: Path) -> LoadedEnsemble:
    """The ensemble with random weights for all that has no file."""
    files = {b.name: folder / b.checkpoint.path for b in needed_backbones(recipe) if b.checkpoint.path}
    return load_ensemble(recipe, folder, files, random_seed=5)


def inputs_of(ensemble: LoadedEnsemble, count: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {}
    for record in ensemble.module.inputs:
        shape = (count, *record.shape)
        if record.dtype == "uint8":
            made[record.name] = rng.integers(0, 256, shape, np.uint8)
        elif record.name == "boxes":
            corners = rng.uniform(0, 0.5, (*shape[:2], 2))
            made[record.name] = np.concatenate([corners, corners + 0.4], 2).astype(np.float32)
        else:
            made[record.name] = np.maximum(rng.standard_normal(shape), 0).astype(np.float32)
    return made


def agree(ensemble: LoadedEnsemble, counts: tuple[int, ...] = (1, 3)) -> Any:
    """Export, and compare every tap with torch; gives the graph."""
    model = graph_from_ensemble(ensemble.module)
    executor = GraphExecutor(model.SerializeToString())
    for count in counts:
        inputs = inputs_of(ensemble, count)
        wanted, found = ensemble.run(inputs), executor.run(inputs)
        assert wanted.keys() == found.keys()
        for tap, value in wanted.items():
            assert np.isfinite(value).all()
            np.testing.assert_allclose(found[tap], value, rtol=1e-3, atol=1e-4, err_msg=tap)
    return model


def convolutions(model: Any) -> int:
    return sum(node.op_type == "Conv" for node in model.graph.node)


def test_a_trunk_that_three_read_is_computed_once(folder: Path) -> None:
    alone = agree(loaded(written(folder, "r", R.format(name="r", file="one.safetensors")), folder), (1,))
    recipe = written(
        folder,
        "r s g",
        R.format(name="r", file="one.safetensors"),
        S.format(reads="r", options=""),
        G.format(reads="r", objects="boxes", size=CUT),
    )
    assert convolutions(agree(loaded(recipe, folder))) == convolutions(alone) > 0


@pytest.mark.parametrize(("file", "times"), [("again.safetensors", 1), ("two.safetensors", 2)])
def test_equal_weights_are_one_trunk_and_others_are_two(folder: Path, file: str, times: int) -> None:
    """Two backbones of the recipe, one set of weights in two files: the tensors decide, not the files."""
    recipe = written(
        folder,
        "r g",
        R.format(name="r", file="one.safetensors"),
        R.format(name="other", file=file),
        G.format(reads="other", objects="grid", size=CUT),
    )
    alone = graph_from_ensemble(
        loaded(written(folder, "r", R.format(name="r", file="one.safetensors")), folder).module
    )
    ensemble = loaded(recipe, folder)
    assert convolutions(agree(ensemble, (2,))) == times * convolutions(alone)
    taps = [t.name for t in ensemble.module.taps if t.kind == "backbone"]
    assert taps == (["r", "g"] if times == 1 else ["r", "other", "g"])
    assert ensemble.checkpoints.keys() == {"r", "other", "g", "head"}


def test_seeded_weights_of_two_backbones_differ(folder: Path) -> None:
    recipe = written(folder, "r other", R.format(name="r", file=""), R.format(name="other", file=""))
    ensemble = loaded(recipe, folder)
    assert [t.name for t in ensemble.module.taps][:2] == ["r", "other"]


def test_objects_as_features_need_no_encoder(folder: Path) -> None:
    recipe = written(
        folder,
        "g",
        R.format(name="r", file="absent.safetensors"),
        G.format(reads="r", objects="features", size=ROWS),
    )
    ensemble = loaded(recipe, folder)
    assert [(i.name, i.shape, i.rows) for i in ensemble.module.inputs] == [("objects", [5, WIDTH], True)]
    assert convolutions(agree(ensemble)) == 0


@pytest.mark.parametrize("there", [0, 1, 3, 5])
def test_fewer_objects_are_masked_exactly(folder: Path, there: int) -> None:
    """Five rows of which some are there give what that many rows give alone."""
    recipes = [
        written(
            folder,
            "g",
            R.format(name="r", file="one.safetensors"),
            G.format(reads="r", objects="features", size=ROWS).replace("count = 5", f"count = {count}"),
        )
        for count in (5, max(there, 1))
    ]
    five, few = (loaded(r, folder) for r in recipes)
    state = five.module.trunk.networks[0].state_dict()
    few.module.trunk.networks[0].load_state_dict(state)
    rows = inputs_of(five, 2)["objects"]
    rows[:, there:] = 0
    wanted = few.run({"objects": np.ascontiguousarray(rows[:, : max(there, 1)])})["g"]
    np.testing.assert_allclose(five.run({"objects": rows})["g"], wanted, rtol=1e-5, atol=1e-6)
    assert there or not wanted.any()


def test_absent_boxes_change_nothing(folder: Path) -> None:
    recipe = written(
        folder,
        "r g",
        R.format(name="r", file="one.safetensors"),
        G.format(reads="r", objects="boxes", size=CUT),
    )
    ensemble = loaded(recipe, folder)
    inputs = inputs_of(ensemble, 1)
    inputs["boxes"][:, 3:] = 0
    before = ensemble.run(inputs)["g"]
    inputs["boxes"][:, 3:] = [0.7, 0.7, 0.2, 0.9]  # no width
    np.testing.assert_allclose(ensemble.run(inputs)["g"], before, rtol=1e-5)
    inputs["boxes"][:, 3:] = [0.2, 0.2, 0.7, 0.9]
    assert not np.allclose(ensemble.run(inputs)["g"], before, rtol=1e-3)


def test_regions_go_through_the_encoder_as_images_do(folder: Path) -> None:
    """One box of the whole frame, encoded with the frame's own pixels: the graph's region is the image."""
    recipe = written(
        folder,
        "r g",
        R.format(name="r", file="one.safetensors"),
        G.format(reads="r", objects="boxes", size=CUT),
    )
    text = (folder / "wired.toml").read_text(encoding="utf-8").replace("frame = 64", "frame = 160")
    (folder / "wired.toml").write_text(text, encoding="utf-8")
    recipe = read_recipe(folder / "wired.toml")
    ensemble = loaded(recipe, folder)
    inputs = inputs_of(ensemble, 1)
    frame = next(i.name for i in ensemble.module.inputs if i.resize and i.resize.fit == "warp")
    image = next(n for n in inputs if n not in ("boxes", frame))
    inputs[frame] = inputs[image]
    inputs["boxes"][:] = 0
    inputs["boxes"][:, 0] = [0, 0, 1, 1]
    trunk: Any = ensemble.module.trunk
    given = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.inference_mode():
        regions = trunk.regions[0][0](given, trunk.normalise[0])
        encoded = trunk.networks[0].encode(regions[:, 0])
    np.testing.assert_allclose(encoded.numpy(), ensemble.run(inputs)["r"], rtol=1e-3, atol=1e-4)


def test_many_frames_come_as_an_input(folder: Path) -> None:
    options = "options = { frames = 4, features = 96 }"
    recipe = written(
        folder, "s", R.format(name="r", file="one.safetensors"), S.format(reads="r", options=options)
    )
    ensemble = loaded(recipe, folder)
    assert [(i.name, i.shape) for i in ensemble.module.inputs] == [("frames", [4, WIDTH])]
    model = agree(ensemble)
    assert any(node.op_type == "GRU" for node in model.graph.node)


def test_one_frame_needs_no_loop(folder: Path) -> None:
    recipe = written(folder, "s", R.format(name="r", file="one.safetensors"), S.format(reads="r", options=""))
    model = agree(loaded(recipe, folder))
    assert not {n.op_type for n in model.graph.node} & {"GRU", "Loop", "Scan", "If"}


def test_weights_for_what_is_not_computed_are_refused(folder: Path) -> None:
    recipe = written(
        folder,
        "g",
        R.format(name="r", file="one.safetensors"),
        G.format(reads="r", objects="features", size=ROWS),
    )
    with pytest.raises(UsageError, match="--weights r="):
        load_ensemble(recipe, folder, {"r": folder / "one.safetensors"}, 0)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (('reads = "r"', ""), "backbones[1].reads"),
        (('reads = "r"', 'reads = "x"'), "backbones[1].reads"),
        (('reads = "r"', 'reads = "s"'), "backbones[1].reads"),
        (
            ('architecture = "timm:test_resnet"', 'architecture = "timm:test_resnet"\nreads = "s"'),
            "backbones[0].reads",
        ),
        (('options = { attention = "one" }', 'options = { attention = "two" }'), "backbones[1].options"),
        (('options = { attention = "one" }', "options = { heads = 3 }"), "backbones[1].options"),
        (('options = { attention = "one" }', "options = { frames = 0 }"), "backbones[1].options.frames"),
        (
            ('options = { attention = "one" }', "options = { frames = 99999999 }"),
            "backbones[1].options.frames",
        ),
        (
            ('options = { attention = "one" }', 'checkpoint.format = "mxnet"'),
            "backbones[1].checkpoint.format",
        ),
        (
            (
                'options = { attention = "one" }',
                'resize = {height = 8, width = 8, fit = "warp", kernel = "bilinear"}',
            ),
            "backbones[1].resize",
        ),
        (('architecture = "dual-encoding"', 'architecture = "dual"'), "backbones[1].architecture"),
        (('architecture = "dual-encoding"', 'architecture = "timm"'), "backbones[1].architecture"),
        (('name = "s"', 'name = "objects"'), "backbones[1].name"),
    ],
)
def test_wrong_wiring_is_refused_with_its_key(folder: Path, change: tuple[str, str], names: str) -> None:
    written(
        folder,
        "s",
        R.format(name="r", file="one.safetensors"),
        S.format(reads="r", options='options = { attention = "one" }'),
    )
    path = folder / "wired.toml"
    text = path.read_text(encoding="utf-8")
    assert change[0] in text
    path.write_text(text.replace(*change), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert f"`{names}`" in str(caught.value), str(caught.value)


def test_objects_of_two_makers_cannot_be_one_input(folder: Path) -> None:
    with pytest.raises(RecipeError, match="can only be one"):
        written(
            folder,
            "g h",
            R.format(name="r", file="one.safetensors"),
            R.format(name="q", file="two.safetensors"),
            G.format(reads="r", objects="features", size=ROWS),
            G.format(reads="q", objects="features", size=ROWS).replace('"g"', '"h"'),
        )


def test_a_circle_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match="a circle"):
        written(
            folder,
            "s",
            S.format(reads="t", options=""),
            S.format(reads="s", options="").replace('name = "s"', 'name = "t"'),
        )


#: Architecture, its options, and the width of what it reads.
SIZES: list[tuple[str, dict[str, Any], int]] = [
    ("youtube8m-pca", {}, 2048),
    ("youtube8m-pca", {}, 96),
    ("shallow-cnn", {}, 1024),
    ("shallow-cnn", {"audio": 128, "kernel": 5, "filters": 7, "pool": 3, "classes": 11}, 2048),
    ("shallow-cnn", {"axis": "time", "audio": 128, "kernel": 5, "filters": 7, "classes": 11}, 2048),
    ("dual-encoding", {}, 2048),
    ("dual-encoding", {"attention": "none"}, 96),
    ("dual-encoding", {"attention": "raw", "frames": 4, "features": 300}, 0),
    ("object-graph", {"features": 300}, 0),
    ("object-graph", {"objects": "boxes"}, 96),
]


@pytest.mark.parametrize(("architecture", "options", "read"), SIZES)
def test_sizes_are_foretold_without_a_network(architecture: str, options: dict[str, Any], read: int) -> None:
    """What the recipe's rules count, against the network itself, on the device that allocates nothing."""
    backbone = Backbone(name="x", architecture=architecture, reads="r", options=options)
    with torch.device("meta"):
        made = make_network(backbone, read)
    known = options_of(backbone)
    assert parameters_of(known, read) == sum(p.numel() for p in made.module.parameters())
    assert output_width(architecture, known, read) == made.width


@pytest.mark.parametrize("architecture", ["resnet152-v2", "inception-2015"])
def test_the_table_knows_what_networks_of_a_fixed_size_give_and_take(architecture: str) -> None:
    backbone = Backbone(name="x", architecture=architecture)
    with torch.device("meta"):
        made = make_network(backbone)
        known = ARCHITECTURES[architecture]
        assert made.width == known.width == output_width(architecture, options_of(backbone), None)
        least, most = known.sides
        assert made.resize is not None
        assert least <= made.resize.height == made.resize.width <= most
        smallest = torch.zeros(1, 3, least, least)
        assert made.module.eval()(smallest).shape == (1, known.width)
        with pytest.raises((RuntimeError, UsageError)):
            made.module(smallest[:, :, 1:])


def test_the_width_of_timms_networks_is_not_foretold() -> None:
    backbone = Backbone(name="x", architecture="timm:test_resnet")
    assert output_width(backbone.architecture, options_of(backbone), None) is None
    reader = Backbone(name="g", architecture="object-graph", reads="x", options={"objects": "boxes"})
    assert output_width(reader.architecture, options_of(reader), None) is None
    assert tensor_input(reader) == ("boxes", [50, 4])


@pytest.mark.parametrize(
    "head",
    [
        Head(kind="nn", features=["r"], hidden=[65536, 20000, 7]),
        Head(kind="moe", features=["r"], hidden=[60000], experts=9),
        Head(kind="moe", features=["r"], hidden=[60000], experts=9, gate_bias=True),
    ],
    ids=["nn", "moe", "gate-bias"],
)
def test_the_size_of_a_head_is_foretold(head: Head) -> None:
    labels = [f"l{i}" for i in range(1000)]
    recipe = Recipe(
        schema=1,
        name="large",
        task=Task.SINGLE_LABEL,
        labels=labels,
        backbones=[Backbone(name="r", architecture="resnet152-v2")],
        head=head,
    )
    with torch.device("meta"):
        count = sum(p.numel() for p in make_head(recipe, 2048).parameters())
    with pytest.raises(RecipeError, match=f"`head.hidden`: brings the recipe to {count:,} parameters"):
        check_recipe(recipe, "here")
