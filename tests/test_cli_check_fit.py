"""`vsa-rt check` and `vsa-rt fit`: verdicts, reports and exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from outcome import fails

from vsa_rt.bundle import Bundle

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).resolve().parents[1]
KEYS = ["path", "label", "labels", "scores", "scores_kind", "error"]
METRICS = ["accuracy", "weighted_f1", "micro_f1", "macro_f1", "hamming_loss", "ranking_loss"]
COMMANDS = ["doctor", "recipes", "fit", "export", "build", "inspect", "run", "check"]


# Check


def test_check_compares_with_golden_tensors_and_with_photographs(
    here: Cli, tiny_bundle: Path, tiny_weights: dict[str, Path], toy_data: Path
) -> None:
    golden = json.loads(here("check", tiny_bundle, "--json").stdout)
    assert (golden["reference"], golden["passed"], golden["rejected"]) == ("golden", True, [])
    assert {s["stage"] for s in golden["stages"]} >= {"openvino:cpu fp32", "onnxruntime:cpu fp32"}
    assert {s["images"] for s in golden["stages"]} == {8}
    weights = [a for name, path in tiny_weights.items() for a in ("--weights", f"{name}={path}")]
    done = here("check", tiny_bundle, "--data", toy_data, *weights, "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert (found["reference"], found["why"]) == ("torch", "")
    for stage in found["stages"]:
        assert stage["images"] == 12
        kinds = [t["kind"] for t in stage["taps"]]
        assert kinds == sorted(kinds, key=["input", "features", "scores"].index)
        assert kinds.count("input") == 2
        metric = stage["metrics"][0]
        assert (metric["name"], metric["reference"], metric["candidate"]) == ("accuracy", 1.0, 1.0)
        assert metric["low"] <= 0 <= metric["high"]
    text = here("check", tiny_bundle, "--data", toy_data, *weights)
    assert "reference: torch" in text.stdout
    assert "accuracy 1.0000 to 1.0000" in text.stdout


def test_check_narrows_to_one_engine(here: Cli, tiny_bundle: Path, toy_data: Path) -> None:
    only = ["--target", "openvino:cpu", "--precision", "fp32", "--json"]
    assert [s["stage"] for s in json.loads(here("check", tiny_bundle, *only).stdout)["stages"]] == [
        "openvino:cpu fp32"
    ]


def test_without_its_checkpoints_check_says_that_the_reference_is_the_graph(
    here: Cli, bundle_copy: Path, toy_data: Path, reseal: Callable[..., None]
) -> None:
    import msgspec

    records = Bundle.open(bundle_copy).manifest.checkpoints
    gone = {n: msgspec.structs.replace(r, found="/gone/away.pth") for n, r in records.items()}
    reseal(bundle_copy, checkpoints=gone)
    found = json.loads(here("check", bundle_copy, "--data", toy_data, "--json").stdout)
    assert found["reference"] == "onnx"
    assert "/gone/away.pth" in found["why"]
    assert found["passed"] is True


def test_check_names_photographs_that_it_left_out(
    here: Cli, tiny_bundle: Path, toy_data: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(toy_data, tmp_path / "data"))
    (data / "dark" / "bad.png").write_text("x")
    done = here("check", tiny_bundle, "--data", data, "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["passed"] is True
    assert [Path(e["item"]).name for e in found["rejected"]] == ["bad.png"]
    for path in data.rglob("*.png"):
        path.write_text("x")
    fails(here("check", tiny_bundle, "--data", data), 2, "can be read")


# Fit


def test_fit_repeats_to_the_last_byte(
    vsa: Cli, here: Cli, tiny_recipe: Path, toy_data: Path, tmp_path: Path
) -> None:
    outs = [tmp_path / f"{n}" / "head.safetensors" for n in range(3)]
    caches = [tmp_path / "c1", tmp_path / "c2", tmp_path / "c2"]
    for call, out, cache in zip((here, vsa, vsa), outs, caches, strict=True):
        done = call("fit", tiny_recipe, "--data", toy_data, "-o", out, "--cache", cache, "--json")
        assert done.returncode == 0, done.stderr
    assert len({out.read_bytes() for out in outs}) == 1
    assert len({out.with_suffix(".json").read_bytes() for out in outs}) == 1
    report = json.loads(outs[0].with_suffix(".json").read_text())
    assert set(report) == {
        "recipe", "head", "task", "threshold", "data", "data_sha256", "photographs", "labels", "seed", "preset",
        "split", "fold_files", "tested", "train_only", "distances", "label_accuracy", "confusion", "routing", "checkpoints",
        "backbones", "random_seed", "head_sha256", "settings", "command", "versions",
        *(f"{metric}{end}" for metric in METRICS for end in ("", "_mean", "_std")),
    }  # fmt: skip
    assert str(tmp_path) not in outs[0].with_suffix(".json").read_text()


def test_the_reports_command_repeats_the_fit(
    here: Cli, tiny_recipe: Path, toy_data: Path, tmp_path: Path
) -> None:
    """What steers the result stands in it: seed, folds, random weights."""
    out = tmp_path / "h.safetensors"
    more = ["--seed", "3", "--folds", "3", "--random-weights", "5"]
    assert here("fit", tiny_recipe, "--data", toy_data, "-o", out, *more).returncode == 0
    command = json.loads(out.with_suffix(".json").read_text())["command"]
    for part in ("--seed 3", "--folds 3", "--random-weights 5"):
        assert part in command


def test_a_head_of_another_reading_is_refused_by_the_next_command(
    here: Cli, wired_recipe: Path, wired_data: Path, tmp_path: Path
) -> None:
    head = tmp_path / "h.safetensors"
    raw = ["--set", "s.attention=raw"]
    done = here("fit", wired_recipe, "--data", wired_data, "-o", head, "--random-weights", 7, *raw)
    assert done.returncode == 0, done.stderr
    assert "random weights (seed 7): r, s, g" in done.stdout
    report = json.loads(head.with_suffix(".json").read_text())
    assert report["command"].endswith("--random-weights 7 --set s.attention=raw")
    assert report["random_seed"] == 7
    assert list(report["backbones"]) == ["r", "s", "g"]
    s = report["backbones"]["s"]
    assert (s["architecture"], s["reads"], s["random_seed"]) == ("dual-encoding", "r", 7)
    assert s["options"] == {"attention": "raw", "normalised": True, "frames": 1, "features": 2048}
    assert s["sha256"] == report["checkpoints"]["s"]
    assert report["backbones"]["r"]["resize"]["height"] == 160
    base = ["export", wired_recipe, "-o", tmp_path / "out", "--weights", f"head={head}", "--data", wired_data]
    fails(here(*base, "--random-weights", 7), 2, "'s': option attention .*--set s.attention=raw")
    fails(here(*base, "--random-weights", 8, *raw), 2, "'r': weights .*--random-weights 7")
    assert not (tmp_path / "out").exists()


def test_fit_says_nothing_of_random_weights_where_there_are_none(
    here: Cli, tiny_recipe: Path, tiny_weights: dict[str, Path], toy_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "h.safetensors"
    base = ["fit", tiny_recipe, "--data", toy_data, "-o", out, "--random-weights", 5]
    assert (
        "random weights (seed 5): other\n"
        in here(*base, "--weights", f"small={tiny_weights['small']}").stdout
    )
    report = json.loads(out.with_suffix(".json").read_text())
    assert (report["random_seed"], report["backbones"]["small"]["random_seed"]) == (5, None)
    named = [word for name, path in tiny_weights.items() for word in ("--weights", f"{name}={path}")]
    assert "random weights" not in here(*base, *named).stdout
    assert json.loads(out.with_suffix(".json").read_text())["random_seed"] is None


def test_fit_takes_no_head(here: Cli, tiny_recipe: Path, toy_data: Path, tmp_path: Path) -> None:
    head, out = tiny_recipe.parent / "head.safetensors", tmp_path / "h.safetensors"
    done = here("fit", tiny_recipe, "--data", toy_data, "-o", out, "--weights", f"head={head}")
    fails(done, 2, "--weights head=.*: fit trains the head")
    assert not out.exists()


def test_fit_prints_folds_and_confusion_and_names_what_it_left_out(
    here: Cli, tiny_recipe: Path, toy_data: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(toy_data, tmp_path / "data"))
    (data / "dark" / "bad.png").write_text("x")
    done = here("fit", tiny_recipe, "--data", data, "-o", tmp_path / "h.safetensors")
    assert done.returncode == 1
    assert "accuracy" in done.stdout
    assert "2 folds (6, 6 photographs tested)" in done.stdout
    assert "routing" not in done.stdout
    assert "bad.png" in done.stderr
    assert (tmp_path / "h.safetensors").is_file()


@pytest.fixture
def moe_recipe(tiny_recipe: Path, tmp_path: Path) -> Path:
    """The tiny recipe with a mixture of experts."""
    folder = Path(shutil.copytree(tiny_recipe.parent, tmp_path / "moe"))
    text = tiny_recipe.read_text().replace('kind = "linear"', 'kind = "moe"\nhidden = [8]')
    (folder / "moe.toml").write_text(text + 'preset = "smap2021-moe-2"\n')
    return folder / "moe.toml"


def test_a_mixtures_fit_repeats_in_another_process(
    vsa: Cli, here: Cli, moe_recipe: Path, toy_data: Path, tmp_path: Path
) -> None:
    outs = [tmp_path / f"{n}" / "head.safetensors" for n in range(2)]
    for call, out in zip((here, vsa), outs, strict=True):
        done = call("fit", moe_recipe, "--data", toy_data, "-o", out)
        assert done.returncode == 0, done.stderr
        assert "preset smap2021-moe-2" in done.stdout
        assert "routing: mean weight of each gate / share of test photographs" in done.stdout
        assert "expert 2" in done.stdout
        assert "dummy" in done.stdout
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert outs[0].with_suffix(".json").read_bytes() == outs[1].with_suffix(".json").read_bytes()


def test_fit_takes_splits_presets_and_fold_files(
    here: Cli, moe_recipe: Path, toy_data: Path, tmp_path: Path
) -> None:
    out, fold = tmp_path / "h.safetensors", tmp_path / "one fold.txt"
    fold.write_text("dark/coffee.png\nbright/china.png bright\n")
    base = ["fit", moe_recipe, "--data", toy_data, "-o", out]
    done = here(*base, "--split", "random", "--folds", "2", "--preset", "smap2021-moe-1")
    assert "2 random splits that test 20%" in done.stdout
    report = json.loads(out.with_suffix(".json").read_text())
    assert (report["split"], report["preset"], report["tested"]) == ("random", "smap2021-moe-1", [3, 3])
    done = here(*base, "--fold-file", fold)
    assert "1 given fold (2 photographs tested), 10 photographs never tested" in done.stdout
    command = json.loads(out.with_suffix(".json").read_text())["command"]
    assert "--fold-file 'one fold.txt'" in command
    fold.write_text("dark/coffee.png bright\n")
    fails(here(*base, "--fold-file", fold), 2, r"one fold\.txt, line 1: .* labelled bright here and dark")
    fails(here(*base, "--fold-file", fold, "--folds", "2"), 2, "the files are the folds")
    fails(here(*base, "--preset", "none"), 2, "mediaeval2021-3")


def test_fit_of_several_labels_prints_them(
    here: Cli, tiny_recipe: Path, toy_data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_recipe.parent, tmp_path / "several"))
    text = tiny_recipe.read_text().replace('"binary"', '"multi-label"')
    (folder / "several.toml").write_text(text)
    done = here("fit", folder / "several.toml", "--data", toy_data, "-o", tmp_path / "h.safetensors")
    assert done.returncode == 0, done.stderr
    for words in (
        "weighted F1",
        "micro F1",
        "macro F1",
        "hamming loss",
        "ranking loss",
        "decided at scores above 0.5",
    ):
        assert words in done.stdout
    assert "true \\ predicted" not in done.stdout
