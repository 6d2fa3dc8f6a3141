"""``vsa-rt fit``: heads that learn, folds that are stratified, a cache that is never wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.errors import CheckpointError, DatasetError, RecipeError, UsageError, VsaError
from vsa_rt.recipe import Head, Recipe
from vsa_rt.recipe_file import read_recipe

for _name in ("torch", "timm", "sklearn", "safetensors"):
    pytest.importorskip(_name, reason="heads are trained with torch and scikit-learn")

from vsa_rt.export import training
from vsa_rt.pipeline import features as features_module
from vsa_rt.pipeline import fit as module
from vsa_rt.pipeline.fit import FitOptions, FitReport, fit

Floats = NDArray[np.float32]


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return read_recipe(tiny_recipe)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the backbones that were really run, in order."""
    names: list[str] = []
    real = features_module._compute

    def compute(backbone: Any, *rest: Any) -> Any:
        names.append(backbone.name)
        return real(backbone, *rest)

    monkeypatch.setattr(features_module, "_compute", compute)
    return names


def toy(classes: int, each: int = 40, width: int = 6, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Separable clouds, one per class, with wildly different scales per column."""
    rng = np.random.default_rng(seed)
    targets = np.arange(classes).repeat(each)
    centres = rng.standard_normal((classes, width)) * 6
    rows = (centres[targets] + rng.standard_normal((classes * each, width))) * 10.0 ** np.arange(
        -3, width - 3
    )
    return rows.astype(np.float32), targets.astype(np.int64)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_head_learns_separable_clouds(recipe: Recipe, classes: int) -> None:
    labels = ["a", "b", "c"][:classes]
    task = "binary" if classes == 2 else "single-label"
    wanted = msgspec.convert(msgspec.to_builtins(recipe) | {"labels": labels, "task": task}, Recipe)
    rows, targets = toy(classes)
    head = training.train_head(wanted, rows, targets, 0)
    assert (training.predict(head, rows) == targets).all()
    fresh, truth = toy(classes, seed=0)
    assert (training.predict(head, fresh * 1.001) == truth).mean() > 0.95


def test_a_linear_head_folds_its_standardisation_in(recipe: Recipe) -> None:
    """Scores of the folded layer are scikit-learn's own probabilities."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rows, targets = toy(2, each=15)
    rows = rows + toy(2, each=15, seed=5)[0]
    head = training.train_head(recipe, rows, targets, 0)
    scaler = StandardScaler().fit(rows.astype(np.float64))
    model = LogisticRegression(C=recipe.fit.regularisation, max_iter=10_000, tol=1e-8)
    model.fit(scaler.transform(rows.astype(np.float64)), targets)
    wanted = model.predict_proba(scaler.transform(rows.astype(np.float64)))
    found = head(torch.from_numpy(rows)).softmax(1).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_an_nn_head_learns_separable_clouds(recipe: Recipe) -> None:
    head = Head(kind="nn", features=["small", "other"], hidden=[32], dropout=0.1)
    settings = msgspec.structs.replace(recipe.fit, epochs=30, learning_rate=0.01)
    wanted = msgspec.structs.replace(recipe, head=head, fit=settings)
    rows, targets = toy(2)
    rows = rows / rows.std(0)
    trained = training.train_head(wanted, rows, targets, 0)
    assert (training.predict(trained, rows) == targets).mean() > 0.97
    assert not trained.training


@pytest.mark.parametrize("kind", ["linear", "nn"])
def test_training_repeats_to_the_last_bit_and_leaves_the_generators_alone(recipe: Recipe, kind: str) -> None:
    import torch

    head = Head(kind=kind, features=["small", "other"], hidden=[8])  # type: ignore[arg-type]
    wanted = msgspec.structs.replace(recipe, head=head)
    rows, targets = toy(2, each=10)
    torch.manual_seed(7)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    one, two = (training.train_head(wanted, rows, targets, 3).state_dict() for _ in range(2))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    if kind == "nn":
        other = training.train_head(wanted, rows, targets, 4).state_dict()
        assert not all(torch.equal(one[k], other[k]) for k in one)


def test_features_are_joined_in_the_heads_order_and_normed_one_by_one(recipe: Recipe) -> None:
    parts = {"small": toy(2, width=3)[0] + 1, "other": toy(2, width=5, seed=1)[0] + 1}
    head = msgspec.structs.replace(recipe.head, features=["other", "small"])
    joined = training.join_features(msgspec.structs.replace(recipe, head=head), parts)
    np.testing.assert_array_equal(joined, np.concatenate([parts["other"], parts["small"]], 1))
    unit = msgspec.structs.replace(head, unit_norm=True)
    joined = training.join_features(msgspec.structs.replace(recipe, head=unit), parts)
    np.testing.assert_allclose(np.linalg.norm(joined[:, :5], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(joined[:, 5:], axis=1), 1, atol=1e-5)


def test_a_label_without_photographs_cannot_be_trained(recipe: Recipe) -> None:
    rows, targets = toy(2)
    with pytest.raises(RecipeError, match="bright"):
        training.train_head(recipe, rows, targets * 0, 0)


@pytest.mark.parametrize("task", ["multi-label", "distribution"])
def test_a_task_that_is_not_trained_here_is_named(recipe: Recipe, task: str) -> None:
    wanted = msgspec.convert(msgspec.to_builtins(recipe) | {"task": task}, Recipe)
    with pytest.raises(RecipeError, match=task):
        training.train_head(wanted, *toy(2), 0)


# The whole fit


def run(recipe_path: Path, data: Path, out: Path, **options: Any) -> FitReport:
    report, rejected = fit(read_recipe(recipe_path), recipe_path.parent, data, out, FitOptions(**options))
    assert rejected == []
    return report


def test_the_confusion_sums_to_every_photograph_once(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path
) -> None:
    report = run(tiny_recipe, toy_data, tmp_path / "h.safetensors", cache=cache, folds=3)
    confusion = np.array(report.confusion)
    assert confusion.sum(1).tolist() == [6, 6]
    assert len(report.accuracy) == len(report.weighted_f1) == 3
    assert report.accuracy_mean == pytest.approx(float(np.trace(confusion)) / 12)
    assert report.accuracy_mean == pytest.approx(float(np.mean(report.accuracy)))
    assert report.accuracy_std == pytest.approx(float(np.std(report.accuracy, ddof=1)))
    assert report.accuracy_mean > 0.8
    assert report.labels == ["dark", "bright"]


def test_every_fold_holds_every_label(
    tiny_recipe: Path, toy_data: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    real = training.train_head

    def train(recipe: Recipe, features: Floats, targets: NDArray[np.int64], seed: int) -> Any:
        seen.append(np.bincount(targets, minlength=2).tolist())
        return real(recipe, features, targets, seed)

    monkeypatch.setattr(module, "train_head", train)
    run(tiny_recipe, toy_data, tmp_path / "h.safetensors", cache=cache, folds=3)
    assert seen == [[4, 4]] * 3 + [[6, 6]]


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
        lambda b: dataclasses.replace(b, mean=(0.1, 0.2, 0.3)),
        lambda b: dataclasses.replace(b, std=(0.1, 0.2, 0.3)),
        lambda b: dataclasses.replace(b, resize=msgspec.structs.replace(b.resize, kernel="bilinear")),
        lambda b: dataclasses.replace(b, resize=msgspec.structs.replace(b.resize, scale=200)),
    ]
    for change in changes:
        computed.clear()
        monkeypatch.setattr(module, "load_backbones", lambda *a, c=change: [c(real(*a)[0]), real(*a)[1]])
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
