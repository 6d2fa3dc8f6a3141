"""``vsa-rt fit`` as a whole: what its report says, and a cache that is never wrong."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.dataset import Photograph
from vsa_rt.errors import CheckpointError, DatasetError, RecipeError, UsageError, VsaError
from vsa_rt.recipe import Recipe
from vsa_rt.recipe_file import read_recipe

for _name in ("torch", "timm", "sklearn", "safetensors"):
    pytest.importorskip(_name, reason="heads are trained with torch and scikit-learn")

from vsa_rt.export import training
from vsa_rt.pipeline import fit as module
from vsa_rt.pipeline.fit import fit
from vsa_rt.pipeline.fitting import features as features_module
from vsa_rt.pipeline.fitting import metrics
from vsa_rt.pipeline.fitting.fit_report import FitReport
from vsa_rt.pipeline.fitting.options import FitOptions
from vsa_rt.pipeline.images import data_key


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the backbones that were really run, in order."""
    names: list[str] = []
    real = features_module._compute

    def compute(trunk: Any, wanted: Any, *rest: Any) -> Any:
        names.extend(wanted)
        return real(trunk, wanted, *rest)

    monkeypatch.setattr(features_module, "_compute", compute)
    return names


def run(recipe_path: Path, data: Path, out: Path, **options: Any) -> FitReport:
    report, rejected = fit(read_recipe(recipe_path), recipe_path.parent, data, out, FitOptions(**options))
    assert rejected == []
    return report


@pytest.fixture
def variant(tiny_recipe: Path, tmp_path: Path) -> Callable[..., Path]:
    """The tiny recipe in a folder of its own, with some text replaced and settings added to its ``fit`` table."""

    def make(*replaced: tuple[str, str], fit: str = "") -> Path:
        folder = Path(shutil.copytree(tiny_recipe.parent, tmp_path / "variant"))
        text = tiny_recipe.read_text(encoding="utf-8")
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        path = folder / "variant.toml"
        path.write_text(text + fit, encoding="utf-8")
        return path

    return make


MOE = ('kind = "linear"', 'kind = "moe"\nhidden = [8]\ndropout = 0.0')
QUICK = "epochs = 40\nlearning_rate = 0.02\nbatch_size = 12\n"


@pytest.fixture
def several_data(toy_data: Path, tmp_path: Path) -> Path:
    """The toy photographs in one table with several labels, or none, per photograph."""
    folder = tmp_path / "several"
    (folder / "images").mkdir(parents=True)
    lines = ["file,label"]
    for path in sorted(toy_data.rglob("*.png")):
        name = f"{path.parent.name}_{path.name}"
        shutil.copy(path, folder / "images" / name)
        apply = ["bright"] if path.parent.name == "bright" else []
        apply += ["drink"] if path.stem in ("coffee", "china", "chelsea") else []
        lines.append(f"{name},{'|'.join(apply) or '|'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_the_confusion_sums_to_every_photograph_once(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path
) -> None:
    report = run(tiny_recipe, toy_data, tmp_path / "h.safetensors", cache=cache, folds=3)
    confusion, accuracy = np.array(report.confusion), report.accuracy or []
    assert confusion.sum(1).tolist() == [6, 6]
    assert len(accuracy) == len(report.weighted_f1 or []) == 3
    assert report.accuracy_mean == pytest.approx(float(np.trace(confusion)) / 12)
    assert report.accuracy_mean == pytest.approx(float(np.mean(accuracy)))
    assert report.accuracy_std == pytest.approx(float(np.std(accuracy, ddof=1)))
    assert float(np.mean(accuracy)) > 0.8
    assert report.labels == ["dark", "bright"]
    assert (report.split, report.tested, report.train_only) == ("folds", [4, 4, 4], 0)
    other = (report.routing, report.micro_f1, report.macro_f1, report.label_accuracy, report.threshold)
    assert other == (None,) * 5
    assert report.hamming_loss is report.ranking_loss is None
    assert report.distances is None


def test_every_fold_holds_every_label(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    real = training.train_head

    def train(recipe: Recipe, features: Any, targets: NDArray[np.int64], seed: int) -> Any:
        seen.append(np.bincount(targets, minlength=2).tolist())
        return real(recipe, features, targets, seed)

    monkeypatch.setattr(metrics, "train_head", train)
    monkeypatch.setattr(module, "train_head", train)
    run(tiny_recipe, toy_data, tmp_path / "h.safetensors", cache=cache, folds=3)
    assert seen == [[4, 4]] * 3 + [[6, 6]]


# Heads, tasks and splits


def test_a_mixture_repeats_to_the_last_byte_and_reports_its_routing(
    variant: Callable[..., Path], toy_data: Path, tmp_path: Path, cache: Path
) -> None:
    recipe = variant(MOE, fit=QUICK + "loss = 'bce'\n")
    first, again = (
        run(recipe, toy_data, tmp_path / name / "h.safetensors", cache=cache, seed=1) for name in "ab"
    )
    assert first == again
    for suffix in ("safetensors", "json"):
        assert len({(tmp_path / name / f"h.{suffix}").read_bytes() for name in "ab"}) == 1
    assert first.accuracy_mean is not None
    assert first.accuracy_mean > 0.8
    assert first.routing is not None
    assert [route.label for route in first.routing] == ["dark", "bright"]
    for route in first.routing:
        assert len(route.weight) == len(route.largest) == 3
        assert sum(route.weight) == pytest.approx(1, abs=1e-6)
        assert sum(route.largest) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["linear", "nn", "moe"])
def test_several_labels_from_the_table_to_the_report(
    variant: Callable[..., Path], several_data: Path, tmp_path: Path, cache: Path, kind: str
) -> None:
    labels = ('labels = ["dark", "bright"]', 'labels = ["drink", "bright"]\nthreshold = 0.4')
    own, schedule = ("", "") if kind == "linear" else ("\nhidden = [8]\ndropout = 0.0", QUICK)
    head = ('kind = "linear"', f'kind = "{kind}"{own}')
    recipe = variant(('"binary"', '"multi-label"'), labels, head, fit=schedule)
    out = tmp_path / "h.safetensors"
    report = run(recipe, several_data, out, cache=cache, folds=3)
    assert (report.task, report.threshold) == ("multi-label", 0.4)
    assert (report.accuracy, report.accuracy_mean, report.confusion) == (None, None, None)
    several = (report.weighted_f1, report.micro_f1, report.macro_f1, report.hamming_loss, report.ranking_loss)
    assert [len(folds or []) for folds in several] == [3] * 5
    assert report.distances is None
    assert sum(report.tested) == 12
    assert report.label_accuracy is not None
    assert list(report.label_accuracy) == ["drink", "bright"]
    assert report.label_accuracy["bright"] > 0.8
    # Of the recipe, which says cross-entropy, too: what was used is what is reported.
    assert report.settings["fit"]["loss"] == "bce"  # type: ignore[index]
    assert json.loads(out.with_suffix(".json").read_text())["label_accuracy"] == report.label_accuracy
    assert (report.routing is not None) == (kind == "moe")


def test_other_labels_are_other_data(
    variant: Callable[..., Path], several_data: Path, tmp_path: Path, cache: Path
) -> None:
    labels = ('labels = ["dark", "bright"]', 'labels = ["drink", "bright"]')
    recipe = variant(('"binary"', '"multi-label"'), labels)
    table = several_data / "labels.csv"
    first = run(recipe, several_data, tmp_path / "a.safetensors", cache=cache)
    table.write_text(table.read_text().replace("bright_coffee.png,bright|drink", "bright_coffee.png,|"))
    second = run(recipe, several_data, tmp_path / "b.safetensors", cache=cache)
    assert first.data_sha256 != second.data_sha256
    assert first.head_sha256 != second.head_sha256


def test_random_splits_test_their_share_as_often_as_asked(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path
) -> None:
    out = tmp_path / "h.safetensors"
    report = run(tiny_recipe, toy_data, out, cache=cache, split="random", folds=4)
    assert (report.split, report.tested) == ("random", [3, 3, 3, 3])
    assert np.array(report.confusion).sum() == 12
    assert report.settings["fit"]["split"] == "random"  # type: ignore[index]
    assert "--split random --folds 4" in report.command


def test_given_folds_are_tested_as_given(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path
) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("dark/coffee.png 0\nbright/coffee.png 1\nbright/china.png 1\n")
    two.write_text("/elsewhere/dark/rocket.png\n")
    out = tmp_path / "h.safetensors"
    with pytest.raises(DatasetError, match=r"two\.txt, line 1: .*rocket.png' can be"):
        run(tiny_recipe, toy_data, out, cache=cache, fold_files=[one, two])
    two.write_text("dark/rocket.png dark\n")
    report = run(tiny_recipe, toy_data, out, cache=cache, fold_files=[one, two])
    assert (report.split, report.tested, report.train_only) == ("files", [3, 1], 8)
    assert np.array(report.confusion).sum(1).tolist() == [2, 2]
    assert [f["name"] for f in report.fold_files] == ["one.txt", "two.txt"]
    assert report.fold_files[0]["sha256"] == hashlib.sha256(one.read_bytes()).hexdigest()
    assert "--fold-file one.txt --fold-file two.txt" in report.command
    single = run(tiny_recipe, toy_data, out, cache=cache, fold_files=[one])
    assert len(single.weighted_f1 or []) == 1
    assert single.accuracy_std is single.weighted_f1_std is None


def test_a_preset_replaces_the_recipes_schedule_and_leaves_its_splits(
    variant: Callable[..., Path], toy_data: Path, tmp_path: Path, cache: Path
) -> None:
    recipe = variant(MOE, fit="epochs = 7\nloss = 'nll'\nweight_decay = 0.5\n")
    report = run(recipe, toy_data, tmp_path / "h.safetensors", cache=cache, preset="mediaeval2021-1")
    settings: Any = report.settings["fit"]
    assert report.preset == settings["preset"] == "mediaeval2021-1"
    assert (settings["loss"], settings["epochs"], settings["batch_size"]) == ("cross-entropy", 300, 64)
    assert (settings["weight_decay"], settings["step"], settings["factor"]) == (0.0, 70, 0.5)
    assert (settings["folds"], settings["regularisation"]) == (2, 0.1)
    assert "--preset mediaeval2021-1" in report.command


def test_options_that_contradict_each_other_are_wrong_use(
    tiny_recipe: Path, variant: Callable[..., Path], toy_data: Path, several_data: Path, tmp_path: Path
) -> None:
    def refused(recipe: Path, says: str, error: type[VsaError] = UsageError, **options: Any) -> None:
        data = options.pop("data", toy_data)
        with pytest.raises(error, match=says):
            run(recipe, data, tmp_path / "h.safetensors", **options)
        assert not (tmp_path / "h.safetensors").exists()

    refused(tiny_recipe, "linear head is not trained by a schedule", preset="smap2021-nn")
    refused(tiny_recipe, "--preset 'best': expected one of smap2021-nn, ", preset="best")
    one = tmp_path / "one.txt"
    one.write_text("dark/coffee.png\n")
    refused(tiny_recipe, "the files are the folds", fold_files=[one], folds=3)
    refused(tiny_recipe, "the files are the folds", fold_files=[one], split="random")
    single = variant(('labels = ["dark", "bright"]', 'labels = ["drink", "bright"]'))
    refused(single, "has .*; task binary wants exactly one label", DatasetError, data=several_data)


# The report and the cache


def test_the_report_beside_the_head_is_the_report(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path
) -> None:
    import hashlib

    out = tmp_path / "new" / "h.safetensors"
    report = run(tiny_recipe, toy_data, out, cache=cache)
    assert json.loads(out.with_suffix(".json").read_text()) == msgspec.to_builtins(report)
    assert hashlib.sha256(out.read_bytes()).hexdigest() == report.head_sha256
    assert sorted(p.name for p in out.parent.iterdir()) == ["h.json", "h.safetensors"]


def test_the_cache_is_used_and_changes_nothing(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path, computed: list[str]
) -> None:
    first = run(tiny_recipe, toy_data, tmp_path / "a.safetensors", cache=cache)
    again = run(tiny_recipe, toy_data, tmp_path / "b.safetensors", cache=cache)
    assert computed == ["small", "other"]
    assert first.head_sha256 == again.head_sha256
    assert len(list((cache / "features").iterdir())) == 2


def test_another_checkpoint_gets_features_of_its_own(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path, computed: list[str]
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    run(tiny_recipe, toy_data, tmp_path / "a.safetensors", cache=cache)
    state = load_file(tiny_recipe.parent / "small.safetensors")
    state["conv_stem.weight"] = torch.roll(state["conv_stem.weight"], 1, 0)
    save_file(state, tmp_path / "small.safetensors")
    weights = {"small": tmp_path / "small.safetensors"}
    run(tiny_recipe, toy_data, tmp_path / "b.safetensors", cache=cache, weights=weights)
    assert computed == ["small", "other", "small"]


def test_another_preprocessing_gets_features_of_its_own(
    tiny_recipe: Path,
    toy_data: Path,
    tmp_path: Path,
    cache: Path,
    computed: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import dataclasses

    run(tiny_recipe, toy_data, tmp_path / "a.safetensors", cache=cache)
    real: Any = getattr(module, "load_backbones")  # noqa: B009 - mypy: not exported there
    changes: list[Callable[[Any], Any]] = [
        lambda made: dataclasses.replace(made, mean=(0.1, 0.2, 0.3)),
        lambda made: dataclasses.replace(made, std=(0.1, 0.2, 0.3)),
        lambda made: dataclasses.replace(
            made, resize=msgspec.structs.replace(made.resize, kernel="bilinear")
        ),
        lambda made: dataclasses.replace(made, resize=msgspec.structs.replace(made.resize, scale=200)),
    ]

    def changed(change: Callable[[Any], Any]) -> Callable[..., Any]:
        def load(*arguments: Any) -> Any:
            first, second = real(*arguments)
            return [dataclasses.replace(first, made=change(first.made)), second]

        return load

    for change in changes:
        computed.clear()
        monkeypatch.setattr(module, "load_backbones", changed(change))
        run(tiny_recipe, toy_data, tmp_path / "b.safetensors", cache=cache)
        assert computed == ["small"]


def test_other_photographs_get_features_of_their_own(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path, computed: list[str]
) -> None:
    run(tiny_recipe, toy_data, tmp_path / "a.safetensors", cache=cache)
    changed = Path(shutil.copytree(toy_data, tmp_path / "changed"))
    shutil.copy(changed / "dark" / "china.png", changed / "dark" / "coffee.png")
    run(tiny_recipe, changed, tmp_path / "b.safetensors", cache=cache)
    assert computed == ["small", "other"] * 2
    copied = Path(shutil.copytree(toy_data, tmp_path / "elsewhere"))
    run(tiny_recipe, copied, tmp_path / "c.safetensors", cache=cache)
    assert computed == ["small", "other"] * 2


def test_another_code_gets_features_of_its_own(
    tiny_recipe: Path,
    toy_data: Path,
    tmp_path: Path,
    cache: Path,
    computed: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(tiny_recipe, toy_data, tmp_path / "a.safetensors", cache=cache)
    monkeypatch.setattr(features_module, "code_sha256", lambda names: "0" * 64)
    run(tiny_recipe, toy_data, tmp_path / "b.safetensors", cache=cache)
    assert computed == ["small", "other"] * 2


def test_the_code_is_known_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module, or a package with all of its modules; importing them is not needed."""
    monkeypatch.syspath_prepend(tmp_path)
    inner = tmp_path / "vsa_rt_probe" / "inner"
    inner.mkdir(parents=True)
    single, among = inner.parent / "single.py", inner / "among.py"
    for path in (inner.parent / "__init__.py", inner / "__init__.py", single, among):
        path.write_text("")

    def found() -> str:
        features_module.code_sha256.cache_clear()
        importlib.invalidate_caches()
        return features_module.code_sha256(("vsa_rt_probe.single", "vsa_rt_probe.inner"))

    seen = [found()]
    for path, text in (
        (single, "x = 1"),
        (among, "x = 1"),
        (inner / "__init__.py", "x = 1"),
        (inner / "new.py", ""),
        (among, "raise ImportError"),
    ):
        path.write_text(text)
        seen.append(found())
    (inner.parent / "unrelated.py").write_text("x = 1")
    assert found() == seen[-1]
    assert len(set(seen)) == 6


def test_all_code_that_features_come_from_is_known() -> None:
    """What backbones, trunk and the host's preprocessing import; left out is what steers no value of a feature."""
    inert = {
        *("vsa_rt.export.photographs", "vsa_rt.export.stand_ins"),  # statistics of seeded weights
        *(
            "vsa_rt.export.random_weights",
            "vsa_rt.export.transforms",
        ),  # weights are hashed; the gate's reference
    }
    folders = ("vsa_rt.export.", "vsa_rt.runtime.")
    code = (
        "import sys, vsa_rt.pipeline.fitting.features\n"
        f"print(*(name for name in sys.modules if name.startswith({folders!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "vsa_rt.export.networks.resnet152v2" in loaded
    known = features_module.CODE
    covered = {name for name in loaded if any(f"{name}.".startswith(f"{module}.") for module in known)}
    assert loaded - covered - {"vsa_rt.export", "vsa_rt.runtime"} == inert
    for name in known:
        assert find_spec(name) is not None, name


@pytest.mark.parametrize("other", [(), ("a",), ("b",), ("b", "a"), ("a", "b", "c")])
def test_several_labels_are_part_of_the_data(toy_data: Path, other: tuple[str, ...]) -> None:
    path = next(iter(sorted(toy_data.rglob("*.png"))))
    one, two = (data_key([Photograph(path, labels)]) for labels in (("a", "b"), other))
    assert one != two
    assert one == data_key([Photograph(path, ("a", "b"))])


def test_shares_are_part_of_the_data(toy_data: Path) -> None:
    path = next(iter(sorted(toy_data.rglob("*.png"))))
    keys = {
        data_key([Photograph(path, ("a", "b"), shares)])
        for shares in (None, (("a", 0.5), ("b", 0.5)), (("a", 0.25), ("b", 0.75)))
    }
    assert len(keys) == 3


def _flip_last(data: bytes) -> bytes:
    return data[:-2] + bytes([data[-2] ^ 0x40]) + data[-1:]


def _of_nan(data: bytes) -> bytes:
    return data[:32] + np.full((len(data) - 32) // 4, np.nan, np.float32).tobytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"rubbish",
        lambda data: b"PK\x03\x04" + data,
        lambda data: hashlib.sha256(data[32:-1024]).digest() + data[32:-1024],
        lambda data: data[:40] + b"\xff" * 40 + data[80:],
        _flip_last,
        _of_nan,
    ],
    ids=["empty", "cut", "rubbish", "zip", "fewer-rows", "middle", "one-bit", "nan"],
)
def test_a_damaged_cache_entry_is_computed_again(
    tiny_recipe: Path,
    toy_data: Path,
    tmp_path: Path,
    cache: Path,
    computed: list[str],
    damage: Callable[[bytes], bytes],
) -> None:
    first = run(tiny_recipe, toy_data, tmp_path / "a.safetensors", cache=cache)
    entries = {p: p.read_bytes() for p in (cache / "features").iterdir()}
    for path, data in entries.items():
        changed = damage(data)
        assert changed != data
        path.write_bytes(changed)
    again = run(tiny_recipe, toy_data, tmp_path / "b.safetensors", cache=cache)
    assert computed == ["small", "other"] * 2
    assert again.head_sha256 == first.head_sha256
    assert {p: p.read_bytes() for p in (cache / "features").iterdir()} == entries


def test_unreadable_photographs_are_left_out_and_named(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path
) -> None:
    data = Path(shutil.copytree(toy_data, tmp_path / "data"))
    (data / "dark" / "bad.jpg").write_text("not an image")
    recipe = read_recipe(tiny_recipe)
    report, rejected = fit(
        recipe, tiny_recipe.parent, data, tmp_path / "h.safetensors", FitOptions(cache=cache)
    )
    assert report.photographs == 12
    assert [Path(e.item).name for e in rejected] == ["bad.jpg"]


def test_data_that_cannot_be_fitted_is_one_error(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path
) -> None:
    def refused(data: Path, error: type[VsaError], says: str, **options: Any) -> None:
        with pytest.raises(error, match=says):
            run(tiny_recipe, data, tmp_path / "h.safetensors", cache=cache, **options)
        assert not (tmp_path / "h.safetensors").exists()

    refused(toy_data / "dark", DatasetError, "no labels")
    refused(tmp_path, DatasetError, "no photograph")
    refused(toy_data, DatasetError, "7 folds need 7 photographs", folds=7)
    refused(toy_data, CheckpointError, "cannot be read", weights={"small": tmp_path / "absent"})
    refused(toy_data, UsageError, "--weights third", weights={"third": tmp_path})
    refused(toy_data, UsageError, "fit trains the head", weights={"head": tmp_path})
    refused(toy_data, RecipeError, "--set third.x: no backbone 'third'", settings={"third.x": "1"})
    foreign = Path(shutil.copytree(toy_data, tmp_path / "foreign"))
    (foreign / "bright").rename(foreign / "shiny")
    refused(foreign, RecipeError, "shiny")
    one = Path(shutil.copytree(toy_data, tmp_path / "one"))
    shutil.rmtree(one / "bright")
    refused(one, DatasetError, "label")


@pytest.mark.parametrize("name", ["head.json", "folder", "file/below.safetensors"])
def test_a_place_where_the_head_cannot_go_is_wrong_use(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path, name: str
) -> None:
    """``head.json`` is where the report goes: the head would be lost."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=name.partition("/")[0]):
        run(tiny_recipe, toy_data, tmp_path / name, cache=cache)
