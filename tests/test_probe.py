"""``vsa-rt fit --probe`` as a whole: its report, its cache, its refusals, its table and plot."""

from __future__ import annotations

import json
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

for _name in ("torch", "timm", "sklearn", "safetensors"):
    pytest.importorskip(_name, reason="probes belong to the export extra")

from vsa_rt.errors import DatasetError, EnvironmentUnusable, UsageError, VsaError
from vsa_rt.pipeline import probe as module
from vsa_rt.pipeline.fitting.activations import LayerReader
from vsa_rt.pipeline.fitting.linear_probe import GRIDS
from vsa_rt.pipeline.fitting.options import FitOptions
from vsa_rt.pipeline.fitting.probe_report import ProbeReport
from vsa_rt.pipeline.probe import Probes, probe
from vsa_rt.recipe_file import read_recipe

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
LAYERS = ["small.conv_stem", "other.layer1", "small.blocks.2", "head"]

plots = pytest.mark.skipif(
    find_spec("matplotlib") is None, reason="matplotlib is not installed: vsa-rt[bench]"
)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the layers that were really read, in order."""
    names: list[str] = []
    real = LayerReader.stream

    def stream(self: LayerReader, photographs: Any, layers: Any, take: Any) -> None:
        names.extend(layer.name for layer in layers)
        real(self, photographs, layers, take)

    monkeypatch.setattr(LayerReader, "stream", stream)
    return names


def run(
    recipe_path: Path, data: Path, out: Path, layers: list[str], classifiers: Any = (), **options: Any
) -> ProbeReport:
    probes = Probes(layers, classifiers)
    report, rejected = probe(
        read_recipe(recipe_path), recipe_path.parent, data, out, probes, FitOptions(**options)
    )
    assert rejected == []
    return report


def test_the_report_says_what_every_layer_gave(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path
) -> None:
    out = tmp_path / "new" / "p.json"
    report = run(tiny_recipe, toy_data, out, LAYERS, cache=cache, folds=3)
    assert json.loads(out.read_text()) == msgspec.to_builtins(report)
    assert [layer.name for layer in report.layers] == LAYERS
    assert [(x.backbone, x.layer) for x in report.layers] == [
        ("small", "conv_stem"),
        ("other", "layer1"),
        ("small", "blocks.2"),
        ("", "head"),
    ]
    assert report.layers[-1].width == 2
    assert (report.photographs, report.tested, report.train_only) == (12, [4, 4, 4], 0)
    # Four training photographs of each label in every fold.
    assert report.inner_folds == 4
    assert report.majority == [0.5, 0.5, 0.5]
    assert (report.majority_mean, report.majority_std) == (0.5, 0.0)
    for layer in report.layers:
        assert list(layer.classifiers) == list(report.classifiers) == ["svm", "softmax"]
        for name, found in layer.classifiers.items():
            assert len(found.accuracy) == len(found.c) == 3
            assert found.accuracy_mean == pytest.approx(float(np.mean(found.accuracy)))
            assert found.accuracy_std == pytest.approx(float(np.std(found.accuracy, ddof=1)))
            assert set(found.c) <= set(report.grids[name]) == set(GRIDS[name])
    # The head was fitted on these photographs: its logits tell them apart.
    assert report.layers[-1].classifiers["svm"].accuracy_mean > 0.8
    assert sorted(report.checkpoints) == ["head", "other", "small"]
    assert report.random_seed is None
    words = report.command.split()
    assert words[words.index("--probe") + 1] == ",".join(LAYERS)
    assert "--folds 3" in report.command


def test_only_what_is_asked_for_is_run_and_reported(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path
) -> None:
    report = run(tiny_recipe, toy_data, tmp_path / "p.json", ["other.layer1"], ["softmax"], cache=cache)
    assert list(report.checkpoints) == list(report.backbones) == ["other"]
    assert list(report.layers[0].classifiers) == list(report.grids) == ["softmax"]
    assert "--classifier softmax" in report.command


def test_a_probe_repeats_to_the_last_digit(tiny_recipe: Path, toy_data: Path, tmp_path: Path) -> None:
    for name in "ab":
        run(tiny_recipe, toy_data, tmp_path / name / "p.json", LAYERS, cache=tmp_path / name, seed=5)
    assert (tmp_path / "a" / "p.json").read_bytes() == (tmp_path / "b" / "p.json").read_bytes()


def test_one_pass_serves_all_layers_and_the_cache_serves_the_next_run(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path, streamed: list[str]
) -> None:
    first = run(tiny_recipe, toy_data, tmp_path / "p.json", LAYERS[:2], cache=cache)
    assert streamed == LAYERS[:2]
    again = run(tiny_recipe, toy_data, tmp_path / "p.json", LAYERS[:2], cache=cache)
    assert streamed == LAYERS[:2]
    assert first == again
    more = run(tiny_recipe, toy_data, tmp_path / "p.json", LAYERS, cache=cache)
    assert streamed == LAYERS
    assert more.layers[:2] == first.layers
    # Inner products alone stay: 12 x 12 doubles behind a hash of 32 bytes.
    kept = list((cache / "probes").iterdir())
    assert [path.stat().st_size for path in kept] == [32 + 8 * 144] * 4
    kept[0].write_bytes(kept[0].read_bytes()[:-1] + b"?")
    assert run(tiny_recipe, toy_data, tmp_path / "p.json", LAYERS, cache=cache) == more
    assert len(streamed) == 5


def test_other_weights_and_other_photographs_get_inner_products_of_their_own(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path, streamed: list[str]
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    run(tiny_recipe, toy_data, tmp_path / "a.json", ["small.conv_stem"], cache=cache)
    state = load_file(tiny_recipe.parent / "small.safetensors")
    state["conv_stem.weight"] = torch.roll(state["conv_stem.weight"], 1, 2)
    save_file(state, tmp_path / "small.safetensors")
    weights = {"small": tmp_path / "small.safetensors"}
    run(tiny_recipe, toy_data, tmp_path / "b.json", ["small.conv_stem"], cache=cache, weights=weights)
    assert len(streamed) == 2
    other = Path(shutil.copytree(toy_data, tmp_path / "data"))
    shutil.copy(other / "dark" / "coffee.png", other / "dark" / "rocket.png")
    run(tiny_recipe, other, tmp_path / "c.json", ["small.conv_stem"], cache=cache)
    assert len(streamed) == 3


def test_seeded_backbones_are_named(tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path) -> None:
    report = run(tiny_recipe, toy_data, tmp_path / "p.json", ["small.conv_stem"], cache=cache, random_seed=7)
    assert report.random_seed == report.backbones["small"].random_seed == 7
    assert "--random-weights 7" in report.command


def test_given_folds_are_tested_as_given(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path
) -> None:
    one = tmp_path / "one.txt"
    one.write_text("dark/coffee.png 0\nbright/coffee.png 1\nbright/china.png 1\n")
    report = run(tiny_recipe, toy_data, tmp_path / "p.json", ["head"], cache=cache, fold_files=[one])
    assert (report.split, report.tested, report.train_only) == ("files", [3], 9)
    assert report.majority_std is report.layers[0].classifiers["svm"].accuracy_std is None
    # Of nine training photographs five are dark.
    assert report.majority == [pytest.approx(1 / 3)]
    assert "--fold-file one.txt" in report.command


def test_what_cannot_be_probed_is_refused_before_the_work(
    tiny_recipe: Path,
    wired_recipe: Path,
    wired_data: Path,
    toy_data: Path,
    tmp_path: Path,
    cache: Path,
    streamed: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(says: str, layers: list[str], error: type[VsaError] = UsageError, **options: Any) -> None:
        recipe, data = options.pop("recipe", tiny_recipe), options.pop("data", toy_data)
        out = options.pop("out", tmp_path / "p.json")
        with pytest.raises(error, match=says):
            run(recipe, data, out, layers, options.pop("classifiers", ()), cache=cache, **options)
        assert streamed == []

    text, folder = tiny_recipe.read_text(encoding="utf-8"), tiny_recipe.parent
    several, headless = folder / "several.toml", folder / "headless.toml"
    several.write_text(text.replace('"binary"', '"multi-label"'), encoding="utf-8")
    headless.write_text(text.replace('weights = "head.safetensors"', ""), encoding="utf-8")
    refused("--preset: a probe trains no head", ["head"], preset="smap2021-nn")
    refused(r"expected a file that ends in \.json", ["head"], out=tmp_path / "h.safetensors")
    refused("'knn': expected one of svm, softmax", ["head"], classifiers=["svm", "knn"])
    refused("has task multi-label; a probe's classifiers give one label", ["head"], recipe=several)
    refused("--probe head: needs the trained head: .*no trained head", ["head"], recipe=headless)
    refused("--probe head: needs the trained head: .*fitted over another", ["head"], random_seed=3)
    refused("none of the layers is the head", ["small.bn1"], weights={"head": folder / "head.safetensors"})
    wired: dict[str, Any] = {"recipe": wired_recipe, "data": wired_data, "random_seed": 7}
    refused("--probe head: a mixture of experts has no logits", ["head"], **wired)
    refused("write BACKBONE.LAYER", ["small.bn1", "conv1"])
    refused("named twice", ["small.bn1", "small.bn1"])
    one = tmp_path / "one.txt"
    one.write_text("dark/coffee.png\n")
    refused("the files are the folds", ["head"], fold_files=[one], folds=2)
    monkeypatch.setattr(module, "MOST", 11)
    refused("12 photographs; a probe takes 11 at most", ["small.bn1"], DatasetError)
    monkeypatch.setattr(module, "MOST", 12)
    free = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    refused("probe fewer layers", ["small.bn1"], EnvironmentUnusable)


def test_views_of_an_image_are_refused(toy_data: Path, tmp_path: Path) -> None:
    from vsa_rt.recipe_file import find_recipe

    path = find_recipe("asm2015-finetuned")
    for option in ("oversample", "map"):
        settings = {f"caffenet.{option}": "true"}
        with pytest.raises(UsageError, match=r"looks at an image through \d+ views"):
            run(path, toy_data, tmp_path / "p.json", ["conv1"], settings=settings)


def test_the_layers_of_caffenet_have_the_published_sizes() -> None:
    from vsa_rt.export.ensemble import load_backbones
    from vsa_rt.pipeline.fitting.layers import find_layers
    from vsa_rt.recipe_file import find_recipe

    # Flattened, at 227 pixels: imatge-upc/sentiment-2015-asm, layer-wise study.
    sizes = {"conv1": 290_400, "pool1": 69_984, "norm1": 69_984, "conv2": 186_624, "pool2": 43_264}
    sizes |= {"norm2": 43_264, "conv3": 64_896, "conv4": 64_896, "conv5": 43_264, "pool5": 9_216}
    sizes |= {"fc6": 4_096, "fc7": 4_096}
    path = find_recipe("asm2015-finetuned")
    recipe = read_recipe(path)
    backbones = load_backbones(recipe, path.parent, {}, 0)
    layers = find_layers(list(sizes), backbones, recipe.head.features)
    widths = LayerReader(recipe, backbones, layers).widths
    assert {layer.name: width for layer, width in widths.items()} == sizes
    assert find_layers(["fc8"], backbones, recipe.head.features)[0].path == ""


# The command line


@plots
def test_the_command_writes_a_report_and_a_plot_and_prints_a_table(
    here: Cli, tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path
) -> None:
    out = tmp_path / "p.json"
    base = ["fit", tiny_recipe, "--data", toy_data, "-o", out, "--cache", cache]
    done = here(*base, "--probe", "small.conv_stem, other.layer1", "--probe", "head", "--folds", 2)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    rows: dict[str, str] = {}
    for line in filter(None, map(str.strip, done.stdout.splitlines())):
        rows.setdefault(line.split()[0], line)
    for layer in report["layers"]:
        for found in layer["classifiers"].values():
            assert f"{found['accuracy_mean']:.3f} +- {found['accuracy_std']:.3f}" in rows[layer["name"]]
    assert list(rows).index("small.conv_stem") < list(rows).index("other.layer1") < list(rows).index("head")
    assert "0.500 +- 0.000" in rows["majority"]
    assert "C chosen by 3 inner folds" in done.stdout
    assert "head is the trained head: if it was trained on these photographs" in done.stdout
    assert ET.fromstring(out.with_suffix(".svg").read_bytes()).tag.endswith("svg")  # noqa: S314 - our own file
    again = here(*base, "--probe", ",".join(x["name"] for x in report["layers"]), "--folds", 2, "--json")
    document = json.loads(again.stdout)
    assert (document["schema"], document["kind"], document["rejected"]) == (1, "probe", [])
    assert document["report"] == report


@plots
def test_wrong_use_of_the_command_is_one_line(
    here: Cli, tiny_recipe: Path, toy_data: Path, tmp_path: Path
) -> None:
    def fails(says: str, out: str, *more: str) -> None:
        done = here("fit", tiny_recipe, "--data", toy_data, "-o", tmp_path / out, *more)
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr

    fails("--classifier: says what reads layers", "h.safetensors", "--classifier", "svm")
    fails("--probe: names no layer", "p.json", "--probe", ",")
    fails("knn", "p.json", "--probe", "head", "--classifier", "knn")
    fails("--preset: a probe trains no head", "p.json", "--probe", "head", "--preset", "smap2021-nn")
    fails("'small' has no layer 'nothing'", "p.json", "--probe", "small.nothing")
    assert not list(tmp_path.iterdir())


@plots
def test_photographs_that_cannot_be_read_are_left_out_and_named(
    here: Cli, tiny_recipe: Path, toy_data: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(toy_data, tmp_path / "data"))
    (data / "dark" / "broken.png").write_bytes(b"nothing")
    done = here("fit", tiny_recipe, "--data", data, "-o", tmp_path / "p.json", "--probe", "head")
    assert done.returncode == 1
    assert "left out: " in done.stderr
    assert json.loads((tmp_path / "p.json").read_text())["photographs"] == 12


@plots
def test_the_plot_shows_its_numbers_and_nothing_of_when_it_was_drawn() -> None:
    from vsa_rt.render.plots.probe import Line, Point, accuracy_by_layer

    def drawn(mean: float, std: float | None = 0.02, majority: float = 0.6) -> bytes:
        layers = [f"layer{k}" for k in range(13)]
        points = [Point(mean, std), *[Point(0.7, std)] * 12]
        return accuracy_by_layer("a $title", layers, [Line("svm", points), Line("softmax", points)], majority)

    first = drawn(0.7)
    assert first == drawn(0.7)
    others = [drawn(0.8), drawn(0.7, 0.03), drawn(0.7, None), drawn(0.7, 0.02, 0.5)]
    assert len({first, *others}) == 5
    assert ET.fromstring(first).tag.endswith("svg")  # noqa: S314 - our own bytes
    assert b"stroke-dasharray" in first
