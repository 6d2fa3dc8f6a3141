"""Label distributions: shares that heads learn, splits that spread them, and the way from a table to a verdict."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from outcome import fails

from vsa_rt.contracts import Task
from vsa_rt.errors import DatasetError, RecipeError, UsageError
from vsa_rt.recipe import Backbone, Fit, Head, Recipe
from vsa_rt.recipe_file import read_recipe

for _name in ("torch", "timm", "sklearn", "safetensors"):
    pytest.importorskip(_name, reason="heads are trained with torch and scikit-learn")

import torch

from vsa_rt.export import training
from vsa_rt.export.head import LinearHead, MoeHead, NNHead
from vsa_rt.pipeline.fit import fit
from vsa_rt.pipeline.fitting.fit_report import FitReport
from vsa_rt.pipeline.fitting.options import FitOptions
from vsa_rt.pipeline.fitting.splits import make_splits

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Floats = NDArray[Any]
Kind = Literal["linear", "nn", "moe"]
LABELS = ["a", "b", "c"]


def make_recipe(kind: Kind = "linear", classes: int = 3, **fit_keys: Any) -> Recipe:
    return Recipe(
        schema=1,
        name="toy",
        task=Task.DISTRIBUTION,
        labels=LABELS[:classes],
        backbones=[Backbone(name="one", architecture="timm:test_resnet")],
        head=Head(kind=kind, features=["one"], hidden=[16], dropout=0),
        fit=Fit(**fit_keys),
    )


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def shares(count: int = 90, classes: int = 3, seed: int = 0) -> tuple[Floats, Floats]:
    """Rows ``(N, 5)`` in float32 whose first columns decide the shares ``(N, C)``, some of which are 0."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, 5)).astype(np.float32)
    target = softmax(2 * rows[:, :classes].astype(np.float64))
    target[target < 0.05] = 0
    return rows, target / target.sum(1, keepdims=True)


# Training


@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_head_is_where_the_gradient_of_divergence_and_penalty_is_zero(classes: int) -> None:
    """Of ``C sum KL(target || softmax) + |W|^2 / 2`` with standardised features: by W and by the offsets."""
    recipe = make_recipe(classes=classes, regularisation=0.1)
    rows, target = shares(classes=classes)
    rows = rows * 10.0 ** np.arange(-2, 3, dtype=np.float32) + 1
    head: Any = training.train_head(recipe, rows, target, 0)
    spread, centre = rows.std(0, dtype=np.float64), rows.mean(0, dtype=np.float64)
    weight = head.fc.weight.numpy().astype(np.float64) * spread
    said = softmax(rows.astype(np.float64) @ head.fc.weight.numpy().T + head.fc.bias.numpy())
    gap = said - target
    if classes == 2:  # one slope stands for both: the penalty of z = 2 x is that of the logistic function
        weight, gap = 2 * weight[1:], gap[:, 1:]
    slope = 0.1 * gap.T @ ((rows - centre) / spread) + weight
    assert np.abs(slope).max() < 1e-4
    assert np.abs(gap.sum(0)).max() < 1e-3
    assert np.abs(weight).max() > 0.1


def test_shares_of_one_label_each_train_the_head_of_a_single_label() -> None:
    rows, target = shares()
    places = target.argmax(1)
    recipe = make_recipe(regularisation=0.1)
    one = training.train_head(recipe, rows, np.eye(3)[places], 0).state_dict()
    plain = Recipe(
        schema=1,
        name="toy",
        task=Task.SINGLE_LABEL,
        labels=LABELS,
        backbones=recipe.backbones,
        head=recipe.head,
        fit=recipe.fit,
    )
    two = training.train_head(plain, rows, places, 0).state_dict()
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, two[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["nn", "moe"])
def test_the_loss_is_the_divergence_of_the_shares_mean_over_images(kind: Kind) -> None:
    stats = pytest.importorskip("scipy.stats", reason="the golden values are scipy's")
    rows, target = shares(10)
    head: Any = NNHead(5, 3, [8], 0) if kind == "nn" else MoeHead(5, 3, 8, 2, True, 0.0)
    inputs = torch.from_numpy(rows).double()
    with torch.no_grad():
        scores = head.double()(inputs)
        said = (scores.softmax(1) if kind == "nn" else scores / scores.sum(1, keepdim=True)).numpy()
    wanted = np.mean([stats.entropy(p, q) for p, q in zip(target, said, strict=True)])
    for loss in ("cross-entropy", "nll"):
        found = training.head_loss(head, inputs, torch.from_numpy(target), Task.DISTRIBUTION, loss)
        assert found.item() == pytest.approx(float(wanted), rel=1e-9)
    cross = -(target * np.log(said)).sum(1).mean() + np.mean([stats.entropy(p) for p in target]) * -1
    assert float(wanted) == pytest.approx(float(cross), rel=1e-9)


@pytest.mark.parametrize("kind", ["linear", "nn", "moe"])
def test_heads_learn_shares(kind: Kind) -> None:
    settings: dict[str, Any] = {"regularisation": 10.0}
    if kind != "linear":
        settings = {"epochs": 60, "learning_rate": 0.02}
    recipe = make_recipe(kind, **settings)
    rows, target = shares(150)
    fresh, wanted = shares(100, seed=1)
    head = training.train_head(recipe, rows, target, 0)
    scores = training.scores_of(head, fresh, recipe)
    said = scores / scores.sum(1, keepdims=True)
    assert np.abs(said - wanted).sum(1).mean() < 0.15
    assert np.abs(target.mean(0) - wanted).sum(1).mean() > 0.5  # what one answer for all would give


@pytest.mark.parametrize("kind", ["linear", "nn", "moe"])
def test_the_optimum_over_rows_that_are_alike_is_the_mean_share(kind: Kind) -> None:
    rows, (_, target) = np.ones((20, 5), np.float32), shares(20)
    settings = {} if kind == "linear" else {"epochs": 300, "batch_size": 20, "learning_rate": 0.02}
    recipe = make_recipe(kind, **settings)  # type: ignore[arg-type]  # integers and floats
    scores = training.scores_of(training.train_head(recipe, rows, target, 0), rows[:1], recipe)
    np.testing.assert_allclose(scores / scores.sum(), target.mean(0)[None], atol=0.005)


@pytest.mark.parametrize("kind", ["linear", "nn", "moe"])
def test_training_on_shares_repeats_to_the_last_bit(kind: Kind) -> None:
    recipe = make_recipe(kind, epochs=3) if kind != "linear" else make_recipe(kind)
    one, two = (training.train_head(recipe, *shares(), 3).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_label_without_any_share_cannot_be_learnt_and_one_that_always_has_some_can() -> None:
    rows, target = shares(20)
    target = np.stack([target[:, 0], 1 - target[:, 0], 0 * target[:, 0]], 1)
    with pytest.raises(RecipeError, match="no photograph is labelled c"):
        training.train_head(make_recipe(), rows, target, 0)
    everywhere = (target + 0.1) / 1.3
    head: Any = training.train_head(make_recipe(), rows, everywhere, 0)
    assert isinstance(head, LinearHead)


# Splits


@pytest.mark.parametrize("split", ["folds", "random"])
def test_splits_spread_the_labels_that_win(split: str) -> None:
    """60 photographs that a wins, 30 that b wins, and 5 of c: of these every fold of 5 tests one."""
    winners = np.repeat([0, 1, 2], [60, 30, 5])
    target = 0.6 * np.eye(3)[winners] + 0.4 / 3
    made = make_splits(make_recipe(folds=5, split=split), target, 0)
    assert len(made) == 5
    for one in made:
        assert np.bincount(winners[one.test], minlength=3).tolist() == [12, 6, 1]
        assert sorted([*one.train, *one.test]) == list(range(95))
    if split == "folds":
        assert sorted(np.concatenate([one.test for one in made])) == list(range(95))


def test_a_label_that_never_wins_does_not_stop_the_folds() -> None:
    target = np.tile([[0.5, 0.3, 0.2], [0.3, 0.5, 0.2]], (10, 1))
    assert [len(one.test) for one in make_splits(make_recipe(folds=4), target, 0)] == [5] * 4


def test_a_fold_without_a_test_or_without_a_share_to_learn_from_is_one_error() -> None:
    with pytest.raises(DatasetError, match="has no photograph to test on"):
        make_splits(make_recipe(folds=5), np.full((3, 3), 1 / 3), 0)
    target = np.tile([0.5, 0.5, 0.0], (10, 1))
    target[0] = [0.2, 0.2, 0.6]
    with pytest.raises(DatasetError, match="label 'c': no photograph with it is left to train on"):
        make_splits(make_recipe(folds=2), target, 0)


# From the table to the report


DARK, BRIGHT = (0.8, 0.2), (0.3, 0.7)


def copied(toy_data: Path, folder: Path, table: Callable[[str], str], header: str) -> Path:
    """The toy photographs in one folder with a table; ``table`` makes a row's end of the old label."""
    (folder / "images").mkdir(parents=True)
    lines = [f"file,{header}"]
    for path in sorted(toy_data.rglob("*.png")):
        name = f"{path.parent.name}_{path.name}"
        shutil.copy(path, folder / "images" / name)
        lines.append(f"{name},{table(path.parent.name)}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def shared_data(toy_data: Path, tmp_path: Path) -> Path:
    """Dark photographs are 8 to 2 dark, bright ones 3 to 7, in votes of ten."""

    def votes(label: str) -> str:
        return ",".join(f"{10 * share:g}" for share in (DARK if label == "dark" else BRIGHT))

    return copied(toy_data, tmp_path / "shared", votes, "dark,bright")


def run(recipe_path: Path, data: Path, out: Path, **options: Any) -> FitReport:
    settings = {"task": "ldl"} | options.pop("settings", {})
    recipe = read_recipe(recipe_path)
    report, rejected = fit(recipe, recipe_path.parent, data, out, FitOptions(settings=settings, **options))
    assert rejected == []
    return report


def test_shares_from_the_table_to_the_report(tiny_recipe: Path, shared_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "h.safetensors"
    report = run(tiny_recipe, shared_data, out, folds=3)
    assert report.task == "distribution"
    assert report.tested == [4, 4, 4]
    assert report.accuracy_mean is not None
    assert report.accuracy_mean > 0.9
    assert report.distances is not None
    assert list(report.distances) == ["chebyshev", "clark", "canberra", "kl", "cosine", "intersection"]
    for series in report.distances.values():
        assert len(series.folds) == 3
        assert series.std is not None
    # What one answer for all would give, the mean share of 0.55 and 0.45: 0.25.
    assert report.distances["chebyshev"].mean < 0.15
    others = (report.weighted_f1, report.weighted_f1_mean, report.micro_f1, report.macro_f1, report.confusion)
    assert others == (None,) * 5
    assert report.settings["fit"]["loss"] == "cross-entropy"  # type: ignore[index]
    assert report.command.endswith("--set task=ldl")
    written = json.loads(out.with_suffix(".json").read_text())["distances"]["kl"]
    assert written == {
        "folds": report.distances["kl"].folds,
        "mean": report.distances["kl"].mean,
        "std": report.distances["kl"].std,
    }


def test_labels_without_shares_are_uniform(toy_data: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    """Dark alone, or both: the halves that a table with shares would say."""
    sets = copied(toy_data, tmp_path / "sets", {"dark": "dark", "bright": "dark|bright"}.__getitem__, "label")
    halves = copied(
        toy_data, tmp_path / "halves", {"dark": "1,0", "bright": "0.5,0.5"}.__getitem__, "dark,bright"
    )
    one, two = (
        run(tiny_recipe, data, tmp_path / f"{i}.safetensors") for i, data in enumerate((sets, halves))
    )
    assert one.head_sha256 == two.head_sha256
    assert one.distances == two.distances
    assert one.data_sha256 != two.data_sha256
    (sets / "labels.csv").write_text(
        (sets / "labels.csv").read_text().replace("dark_coffee.png,dark", "dark_coffee.png,|")
    )
    with pytest.raises(DatasetError, match=r"dark_coffee\.png: has no label; task distribution wants"):
        run(tiny_recipe, sets, tmp_path / "3.safetensors")


def test_a_single_label_task_wants_one_label_of_shares_too(
    tiny_recipe: Path, shared_data: Path, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match="has dark, bright; task binary wants exactly one label"):
        run(tiny_recipe, shared_data, tmp_path / "h.safetensors", settings={"task": "binary"})


def test_other_shares_are_other_data_and_another_head(
    tiny_recipe: Path, shared_data: Path, tmp_path: Path
) -> None:
    first = run(tiny_recipe, shared_data, tmp_path / "a.safetensors")
    table = shared_data / "labels.csv"
    table.write_text(table.read_text().replace("dark_coffee.png,8,2", "dark_coffee.png,7,3"))
    second = run(tiny_recipe, shared_data, tmp_path / "b.safetensors")
    assert first.data_sha256 != second.data_sha256
    assert first.head_sha256 != second.head_sha256


def test_the_loss_that_was_used_is_on_record_and_another_one_refused(
    tiny_recipe: Path, shared_data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_recipe.parent, tmp_path / "moe"))
    text = tiny_recipe.read_text().replace('kind = "linear"', 'kind = "moe"\nhidden = [8]')
    path, out = folder / "moe.toml", tmp_path / "h.safetensors"
    path.write_text(text + "epochs = 2\n")
    settings: Any = run(path, shared_data, out).settings["fit"]
    assert settings["loss"] == "nll"
    assert run(path, shared_data, out).routing is not None
    out.unlink()
    path.write_text(text + 'epochs = 2\nloss = "bce"\n')
    with pytest.raises(RecipeError, match=r"key `fit\.loss`: bce judges label by label"):
        run(path, shared_data, out)
    with pytest.raises(RecipeError, match="bce, which preset smap2021-moe-1 brings,"):
        run(path, shared_data, out, preset="smap2021-moe-1")
    assert not out.exists()


def test_a_head_without_weights_is_not_trained(tiny_recipe: Path, toy_data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_recipe.parent, tmp_path / "units"))
    text = tiny_recipe.read_text().replace('kind = "linear"', 'kind = "units"')
    path = folder / "units.toml"
    path.write_text(text.replace('weights = "head.safetensors"\n', "").partition("[fit]")[0])
    with pytest.raises(UsageError, match="units has no weights: nothing to train"):
        run(path, toy_data, tmp_path / "h.safetensors", settings={"task": "binary"})


# On the command line


def truth_metrics(here: Cli, bundle: Path, data: Path) -> dict[str, float]:
    done = here("check", bundle, "--data", data, "--json")
    assert done.returncode == 0, done.stderr
    return {m["name"]: m["reference"] for m in json.loads(done.stdout)["stages"][0]["metrics"]}


def test_check_holds_a_distribution_against_the_shares_of_the_data(
    here: Cli, tiny_recipe: Path, toy_data: Path, shared_data: Path, tmp_path: Path
) -> None:
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason="the ensemble is exported to ONNX")
    head, out, task = tmp_path / "h.safetensors", tmp_path / "out", ["--set", "task=ldl"]
    done = here("fit", tiny_recipe, "--data", shared_data, "-o", head, *task)
    assert done.returncode == 0, done.stderr
    for words in ("accuracy ", "chebyshev ", "intersection "):
        assert words in done.stdout
    assert "F1" not in done.stdout
    done = here("export", tiny_recipe, "--data", toy_data, "-o", out, "--weights", f"head={head}", *task)
    assert done.returncode == 0, done.stderr
    found = truth_metrics(here, out, shared_data)
    assert found["top-1 accuracy"] == 1.0
    assert found["chebyshev to truth"] < 0.1
    # The same labels without shares are 5 to 5, and every winner is one of them.
    both = copied(toy_data, tmp_path / "both", lambda label: "dark|bright", "label")
    assert truth_metrics(here, out, both)["chebyshev to truth"] > 0.15
    # Shares of the wrong columns are caught.
    table = shared_data / "labels.csv"
    table.write_text(table.read_text().replace("file,dark,bright", "file,bright,dark"))
    turned = truth_metrics(here, out, shared_data)
    assert turned["top-1 accuracy"] == 0.0
    assert turned["chebyshev to truth"] > 0.4


def test_fit_names_rows_without_usable_shares(
    here: Cli, tiny_recipe: Path, shared_data: Path, tmp_path: Path
) -> None:
    table = shared_data / "labels.csv"
    table.write_text(table.read_text().replace("dark_coffee.png,8,2", "dark_coffee.png,-8,2"))
    done = here(
        "fit", tiny_recipe, "--data", shared_data, "-o", tmp_path / "h.safetensors", "--set", "task=ldl"
    )
    assert done.returncode == 1
    assert "column 'dark' has '-8'" in done.stderr
    table.write_text("file,dark,dull\nbright_coffee.png,1,2\ndark_coffee.png,2,1\n")
    more = ["--data", shared_data, "-o", tmp_path / "n.safetensors", "--set", "task=ldl"]
    fails(here("fit", tiny_recipe, *more), 2, "the data has 'dull', the recipe dark, bright")


def test_votes_beside_a_column_label_are_not_passed_over(
    toy_data: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    data = copied(toy_data, tmp_path / "both", lambda label: f"{label},2,8", "label,dark,bright")
    out, options = tmp_path / "head.safetensors", FitOptions(settings={"task": "ldl"})
    with pytest.raises(DatasetError, match="votes for bright, dark, and a column label, which alone is read"):
        fit(read_recipe(tiny_recipe), tiny_recipe.parent, data, out, options)
