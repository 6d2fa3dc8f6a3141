"""The command line: names, exit codes, what is printed where, and that one bad item never harms another."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vsa_rt
from vsa_rt.bundle import MANIFEST, Bundle
from vsa_rt.errors import UsageError

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).resolve().parents[1]
KEYS = ["path", "label", "labels", "scores", "scores_kind", "error"]
COMMANDS = ["doctor", "recipes", "fit", "export", "build", "inspect", "run", "check"]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def fails(done: subprocess.CompletedProcess[str], code: int, says: str = "") -> None:
    """Exit code, nothing on stdout, one line on stderr with this in it."""
    assert (done.returncode, done.stdout) == (code, ""), done
    assert done.stderr.startswith("vsa-rt: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert re.search(says, done.stderr), done.stderr


# Help


def test_the_commands_are_the_documented_ones(vsa: Cli) -> None:
    done = vsa("--help", env={"COLUMNS": "200"})
    assert done.returncode == 0
    for command in COMMANDS:
        assert re.search(rf"^\W*{command}\s+\w", done.stdout, re.MULTILINE), command
    assert "Exit codes" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_every_option_has_help(command: str) -> None:
    import typer.main

    from vsa_rt.cli import app

    group = typer.main.get_command(app)
    made: Any = group.get_command(None, command)  # type: ignore[attr-defined]
    assert made.help
    for parameter in made.params:
        assert parameter.help, f"{command} {parameter.name} has no help"


def test_there_is_no_command_that_these_tests_forget() -> None:
    import typer.main

    from vsa_rt.cli import app

    group = typer.main.get_command(app)
    assert sorted(group.list_commands(None)) == sorted(COMMANDS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme(command: str) -> None:
    assert f"vsa-rt {command}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_version_is_printed(vsa: Cli) -> None:
    done = vsa("--version")
    assert (done.returncode, done.stdout) == (0, f"vsa-rt {vsa_rt.__version__}\n")


# Wrong use


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["run"],
        ["run", "bundle"],
        ["build", "quickstart"],
        ["build", "quickstart", "-o", "x", "--precision", "fp3"],
        ["build", "quickstart", "-o", "x", "--max-batch", "0"],
        ["fit", "quickstart", "-o", "x"],
        ["run", "bundle", "x", "--batch", "zero"],
        ["run", "bundle", "x", "--format", "xml"],
        ["check", "bundle", "--resample", "quick"],
        ["inspect", "--nonsense", "x"],
    ],
)
def test_wrong_arguments_exit_with_two(here: Cli, arguments: list[str]) -> None:
    done = here(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr


def test_wrong_use_is_one_line(here: Cli, tiny_recipe: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe, bundle = tiny_recipe, tiny_bundle
    fails(here("recipes", "nonsense"), 2, "quickstart")
    fails(here("build", "nonsense", "-o", out), 2, "quickstart")
    fails(here("build", tmp_path, "-o", out), 2)
    fails(here("build", tmp_path / "absent.onnx", "-o", out), 2, r"absent\.onnx")
    fails(here("build", recipe, "-o", out, "--target", "nonsense"), 2, "BACKEND:DEVICE")
    fails(here("build", recipe, "-o", out, "--target", "nonsense:cpu"), 2, "openvino")
    fails(here("build", recipe, "-o", out, "--target", "openvino:cpu,openvino:npu"), 2, "openvino:cpu")
    fails(here("build", recipe, "-o", out, "--target", "onnxruntime:cpu", "--precision", "bf16"), 2, "fp32")
    fails(here("build", recipe, "-o", out, "--weights", "small"), 2, "NAME=PATH")
    fails(here("build", recipe, "-o", out, "--weights", "third=x.pth"), 2, "small, other and head")
    fails(here("build", recipe, "-o", out, "--weights", f"small={tmp_path / 'absent'}"), 2, "cannot be read")
    fails(here("build", recipe, "-o", out, "--data", tmp_path), 2, "no photograph")
    fails(here("export", recipe, "-o", out, "--data", tmp_path / "absent"), 2, "not a folder")
    fails(here("fit", recipe, "--data", tmp_path, "-o", tmp_path / "h.safetensors"), 2, "no photograph")
    fails(here("run", bundle, "x.png", "--target", "tensorrt:sm_87"), 2, "unknown")
    fails(here("run", bundle, "x.png", "--batch", "5"), 2, "max-batch")
    fails(here("check", bundle, "--target", "tensorrt:sm_87"), 2, "it holds")
    fails(here("check", bundle, "--data", tmp_path), 2, "no photograph")
    fails(here("run", tmp_path, "x.png"), 3, "not a bundle")
    fails(here("check", tmp_path), 3, "not a bundle")
    fails(here("inspect", tmp_path), 3, "not a bundle")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_are_wrong_use_in_check(
    tiny_bundle: Path, tiny_weights: dict[str, Path], toy_data: Path, here: Cli
) -> None:
    swapped = f"small={tiny_weights['other']}"
    fails(here("check", tiny_bundle, "--data", toy_data, "--weights", swapped), 2, "does not fit")
    fails(here("check", tiny_bundle, "--data", toy_data, "--weights", "third=x"), 2, "third")


@pytest.mark.parametrize(
    ("source", "option", "value"),
    [
        ("recipe", "--recipe", "recipe"),
        ("bundle", "--recipe", "recipe"),
        ("bundle", "--random-weights", "3"),
        ("graph", "--random-weights", "3"),
        ("graph", "--weights", "small=x.pth"),
    ],
)
def test_an_option_that_would_do_nothing_is_wrong_use(
    here: Cli, tiny_recipe: Path, tiny_bundle: Path, tmp_path: Path, source: str, option: str, value: str
) -> None:
    """Nothing silent: labels that were asked for and not taken are worse than an error."""
    paths = {"recipe": tiny_recipe, "bundle": tiny_bundle, "graph": tiny_bundle / "graph.onnx"}
    more = [option, paths.get(value, value), "-o", tmp_path / "out", "--target", "onnxruntime:cpu"]
    fails(here("build", paths[source], *more), 2, option)


def test_check_takes_no_weights_without_photographs(here: Cli, tiny_bundle: Path) -> None:
    fails(here("check", tiny_bundle, "--weights", "small=x.pth"), 2, "--weights")


def test_a_wrong_target_is_found_before_anything_is_computed(
    tiny_recipe: Path, tmp_path: Path, toy_data: Path
) -> None:
    from vsa_rt.contracts import Target
    from vsa_rt.pipeline.build import BuildOptions, build

    steps: list[str] = []
    options = BuildOptions(targets=[Target("nonsense", "cpu")], data=toy_data, progress=steps.append)
    with pytest.raises(UsageError, match="nonsense"):
        build(str(tiny_recipe), tmp_path / "b", options)
    assert not [s for s in steps if "export" in s]


# Recipes, doctor, inspect


def test_json_is_one_document_and_nothing_else(
    here: Cli, tiny_bundle: Path, tiny_recipe: Path, toy_data: Path, tmp_path: Path
) -> None:
    fit: list[object] = ["fit", tiny_recipe, "--data", toy_data, "-o", tmp_path / "h.safetensors", "--json"]
    kinds: dict[str, list[object]] = {
        "recipes": ["recipes", "--json"],
        "recipe": ["recipes", "quickstart", "--json"],
        "bundle": ["inspect", tiny_bundle, "--json"],
        "check": ["check", tiny_bundle, "--json"],
        "fit": fit,
    }
    for kind, arguments in kinds.items():
        done = here(*arguments)
        assert done.returncode == 0, done
        document = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
        assert (document["schema"], document["kind"]) == (1, kind)


def test_a_recipe_is_shown_as_it_is_written(here: Cli, tiny_recipe: Path) -> None:
    assert here("recipes", tiny_recipe).stdout == tiny_recipe.read_text(encoding="utf-8")
    assert "quickstart" in here("recipes").stdout


def test_inspect_shows_engines_labels_and_gates(here: Cli, tiny_bundle: Path) -> None:
    text = here("inspect", tiny_bundle).stdout
    for part in ("dark, bright", "openvino:cpu", "onnxruntime:cpu", "holds", "default: ", "image_160x160"):
        assert part in text
    manifest = json.loads(here("inspect", tiny_bundle, "--json").stdout)["manifest"]
    assert manifest == json.loads((tiny_bundle / MANIFEST).read_bytes())


@pytest.mark.slow
def test_doctor_measures_every_target(here: Cli) -> None:
    done = here("doctor", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    targets = {t["target"]: t for t in found["targets"]}
    assert set(targets) >= {"openvino:cpu", "onnxruntime:cpu"}
    for target in targets.values():
        if target["usable"]:
            assert target["speeds"][0]["precision"] == "fp32"
            assert target["speeds"][0]["gmacs"] > 0
        else:
            assert target["install"].startswith("pip install")
    assert {lib["name"] for lib in found["machine"]["libraries"]} >= {"torch", "openvino"}
    text = here("doctor")
    assert text.returncode == 0
    assert "openvino:cpu" in text.stdout


# Run: what is printed


def test_json_lines_have_the_documented_keys(here: Cli, tiny_bundle: Path, toy_data: Path) -> None:
    good, bad = toy_data / "bright" / "coffee.png", toy_data / "absent.png"
    done = here("run", tiny_bundle, good, bad)
    assert done.returncode == 1
    one, other = lines(done.stdout)
    assert list(one) == list(other) == KEYS
    assert (one["path"], one["label"], one["labels"], one["error"]) == (str(good), "bright", [], None)
    assert one["scores_kind"] == "softmax"
    assert list(one["scores"]) == ["bright", "dark"]
    assert sum(one["scores"].values()) == pytest.approx(1, abs=1e-5)
    assert (other["path"], other["label"], other["scores"]) == (str(bad), None, {})
    assert isinstance(other["error"], str)


def test_the_number_of_scores_is_chosen(here: Cli, tiny_bundle: Path, coffee: Path) -> None:
    counts = {
        top: len(lines(here("run", tiny_bundle, coffee, "--top", top).stdout)[0]["scores"]) for top in "0125"
    }
    assert counts == {"0": 2, "1": 1, "2": 2, "5": 2}


def test_csv_is_csv(here: Cli, tiny_bundle: Path, toy_data: Path, tmp_path: Path) -> None:
    odd = tmp_path / 'a "b", c.png'
    shutil.copy(toy_data / "dark" / "coffee.png", odd)
    done = here("run", tiny_bundle, odd, "absent.png", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert done.returncode == 1
    assert [(r["path"], r["label"]) for r in rows] == [(str(odd), "dark"), ("absent.png", "")]
    assert float(rows[0]["score"]) > 0.5
    assert (rows[0]["error"], bool(rows[1]["error"])) == ("", True)


def test_a_table_is_for_people(here: Cli, tiny_bundle: Path, toy_data: Path) -> None:
    odd = "[red]absent[/red].png"
    done = here("run", tiny_bundle, toy_data / "dark" / "coffee.png", odd, "--format", "table")
    assert done.returncode == 1
    assert "dark" in done.stdout
    assert odd in done.stdout
    assert "2 items, 1 failed" in done.stderr


def test_engine_and_precision_are_chosen(here: Cli, tiny_bundle: Path, coffee: Path) -> None:
    for more in (
        ["--target", "onnxruntime:cpu"],
        ["--target", "openvino:cpu", "--precision", "fp32"],
        ["--batch", "1", "--threads", "1"],
        ["--resample", "fast"],
    ):
        done = here("run", tiny_bundle, coffee, *more)
        assert done.returncode == 0
        assert lines(done.stdout)[0]["label"]
    note = here("run", tiny_bundle, coffee, "--target", "onnxruntime:cpu", "--format", "table").stderr
    assert "onnxruntime:cpu fp32" in note


def test_scores_that_are_no_numbers_are_still_json(
    here: Cli, tiny_bundle: Path, coffee: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vsa_rt.runtime.sentiment import Labeller

    real = Labeller.__call__
    monkeypatch.setattr(Labeller, "__call__", lambda self, scores: real(self, scores * np.nan))
    done = here("run", tiny_bundle, coffee)
    for text in done.stdout.splitlines():
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


# Run: which files


@pytest.fixture
def tree(tmp_path: Path, toy_data: Path) -> Path:
    """A folder with everything that folders hold."""
    root = tmp_path / "tree"
    for name in ("b/2.png", "b/10.png", "a.png", "c/d/e.PNG", ".hidden.png", ".git/x.png", "z.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(toy_data / "bright" / "coffee.png", root / name)
    (root / "notes.txt").write_text("hello")
    (root / "broken.png").symlink_to("absent.png")
    (root / "loop.png").symlink_to("loop.png")
    (root / "link.png").symlink_to("a.png")
    (root / "linked").symlink_to("b")
    (root / "self").symlink_to(".")
    os.mkfifo(root / "pipe.png")
    return root


def test_a_folder_is_walked_in_sorted_order(here: Cli, tiny_bundle: Path, tree: Path) -> None:
    done = here("run", tiny_bundle, tree)
    assert done.returncode == 1
    found = {str(Path(r["path"]).relative_to(tree)): r["label"] for r in lines(done.stdout)}
    assert list(found) == [
        "a.png", "b/10.png", "b/2.png", "broken.png", "c/d/e.PNG", "link.png", "loop.png", "notes.txt", "z.jpg"
    ]  # fmt: skip
    assert [n for n, label in found.items() if label is None] == ["broken.png", "loop.png", "notes.txt"]
    assert {label for label in found.values() if label} == {"bright"}


def test_a_glob_narrows_a_folder_and_not_a_file(here: Cli, tiny_bundle: Path, tree: Path) -> None:
    done = here("run", tiny_bundle, tree, tree / "z.jpg", "--glob", "*.png")
    found = [str(Path(r["path"]).relative_to(tree)) for r in lines(done.stdout)]
    assert found == ["a.png", "b/10.png", "b/2.png", "broken.png", "link.png", "loop.png", "z.jpg"]
    nothing = here("run", tiny_bundle, tree, "--glob", "*.nothing")
    assert (nothing.returncode, nothing.stdout) == (0, "")


def test_names_of_every_kind(vsa: Cli, tiny_bundle: Path, toy_data: Path, tmp_path: Path) -> None:
    names = ["with space.png", "日本語 ß.png", "new\nline.png", "-dash.png", os.fsdecode(b"caf\xe9.png")]
    folder = tmp_path / "näme with space"
    folder.mkdir()
    try:
        for name in names:
            shutil.copy(toy_data / "dark" / "coffee.png", folder / name)
    except OSError as error:
        pytest.skip(f"this file system takes no such name: {error}")
    for more in ([], ["--format", "csv"], ["--format", "table"]):
        done = vsa("run", tiny_bundle, folder, *more, env={"PYTHONIOENCODING": "ascii"})
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done
    done = vsa("run", tiny_bundle, folder)
    assert done.returncode == 0
    shown = [Path(r["path"]).name for r in lines(done.stdout)]
    assert shown == [
        "-dash.png",
        "caf\\xe9.png",
        "new\nline.png",
        "with space.png",
        "日本語 ß.png",
    ] or sorted(shown) == sorted(
        ["-dash.png", "caf\\xe9.png", "new\nline.png", "with space.png", "日本語 ß.png"]
    )
    assert {r["label"] for r in lines(done.stdout)} == {"dark"}
    by_name = vsa("run", tiny_bundle, "--", *names, cwd=folder)
    assert len(lines(by_name.stdout)) == len(names)
    assert by_name.returncode == 0


def test_a_video_is_one_items_error(here: Cli, tiny_bundle: Path, toy_data: Path, tmp_path: Path) -> None:
    video = tmp_path / "clip.mp4"
    video.write_bytes(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(200))
    good = toy_data / "bright" / "coffee.png"
    done = here("run", tiny_bundle, good, video, good)
    assert done.returncode == 1
    assert [r["label"] for r in lines(done.stdout)] == ["bright", None, "bright"]
    assert lines(done.stdout)[1]["error"]


@pytest.mark.slow
def test_ten_thousand_names_most_of_them_broken(
    here: Cli, tiny_bundle: Path, toy_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    whole = (toy_data / "bright" / "coffee.png").read_bytes()
    small = io.BytesIO()
    Image.new("RGB", (8, 8), (250, 250, 250)).save(small, "PNG")
    kinds = {"good": small.getvalue(), "empty": b"", "text": b"no image", "cut": whole[:500]}
    for name, data in kinds.items():
        (tmp_path / name).write_bytes(data)
    wanted = []
    for number in range(10_000):
        kind = "good" if number % 10 == 3 else ("empty", "text", "cut")[number % 3]
        os.link(tmp_path / kind, folder / f"{number:05}.png")
        wanted.append(kind == "good")
    done = here("run", tiny_bundle, folder)
    found = lines(done.stdout)
    assert done.returncode == 1
    assert [Path(r["path"]).stem for r in found] == [f"{n:05}" for n in range(10_000)]
    assert [r["error"] is None for r in found] == wanted
    assert len({r["label"] for r in found if r["error"] is None}) == 1


@pytest.mark.parametrize("output", ["jsonl", "csv"])
def test_a_reader_that_leaves_ends_the_run_quietly(
    tiny_bundle: Path, toy_data: Path, tmp_path: Path, output: str
) -> None:
    """As with ``vsa-rt run … | head -1``."""
    names = [str(tmp_path / f"{'absent' * 20}{n}.png") for n in range(700)]
    command = [sys.executable, "-m", "vsa_rt", "run", str(tiny_bundle), *names, "--format", output]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read().decode()
        code = process.wait(60)
    assert errors == ""
    assert code == 0


def test_a_full_disk_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is not there")
    names = [str(tmp_path / f"{n}.png") for n in range(50)]
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "vsa_rt", "run", str(tiny_bundle), *names, "--format", "jsonl"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode in (1, 3)
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr


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
        [metric] = stage["metrics"]
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
    assert {
        "recipe", "head", "data", "data_sha256", "photographs", "labels", "seed", "accuracy", "weighted_f1",
        "accuracy_mean", "accuracy_std", "weighted_f1_mean", "weighted_f1_std", "confusion", "checkpoints",
        "head_sha256", "settings", "command", "versions",
    } <= set(report)  # fmt: skip
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


def test_fit_prints_folds_and_confusion_and_names_what_it_left_out(
    here: Cli, tiny_recipe: Path, toy_data: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(toy_data, tmp_path / "data"))
    (data / "dark" / "bad.png").write_text("x")
    done = here("fit", tiny_recipe, "--data", data, "-o", tmp_path / "h.safetensors")
    assert done.returncode == 1
    assert "accuracy" in done.stdout
    assert "bad.png" in done.stderr
    assert (tmp_path / "h.safetensors").is_file()


# Build and export


@pytest.fixture(scope="module")
def exported(tiny_recipe: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe, exported and not built."""
    for library in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(library, reason=f"exporting the tiny recipe needs {library}")
    from vsa_rt.pipeline.export import ExportOptions, export
    from vsa_rt.recipe import read_recipe

    out = tmp_path_factory.mktemp("exported") / "tiny"
    export(read_recipe(tiny_recipe), tiny_recipe.parent, out, ExportOptions(data=toy_data, max_batch=4))
    return out


def test_an_exported_directory_is_built(
    here: Cli, exported: Path, tiny_bundle: Path, toy_data: Path, tmp_path: Path
) -> None:
    done = here("build", exported, "-o", tmp_path / "b", "--data", toy_data, "--max-batch", "2", "--json")
    assert done.returncode == 0, done
    manifest = Bundle.open(tmp_path / "b").manifest
    assert manifest.max_batch == 2
    assert {e.folder for e in manifest.engines} == {
        e.folder for e in Bundle.open(tiny_bundle).manifest.engines
    }
    with vsa_rt.load(tmp_path / "b", precision="fp32") as rt:
        assert [
            r.label for r in rt(sorted((toy_data / "dark").iterdir())) if not isinstance(r, vsa_rt.ItemError)
        ] == ["dark"] * 6
    again = here(
        "build", tmp_path / "b", "-o", tmp_path / "b", "--target", "onnxruntime:cpu", "--data", toy_data
    )
    assert again.returncode == 0
    assert [e.target for e in Bundle.open(tmp_path / "b").manifest.engines] == ["onnxruntime:cpu"]
    assert not list(tmp_path.glob(".b.partial*"))


def test_an_exported_directory_is_no_runtime_and_its_check_says_what_it_did(
    here: Cli, exported: Path, toy_data: Path, coffee: Path
) -> None:
    fails(here("run", exported, coffee), 3, "exported but not built")
    fails(here("check", exported), 3, "exported but not built")
    done = here("check", exported, "--data", toy_data, "--json")
    assert done.returncode == 0
    assert [s["stage"] for s in json.loads(done.stdout)["stages"]] == ["onnx"]
    assert "tiny" in here("inspect", exported).stdout


def test_random_weights_are_recorded_and_printed(
    here: Cli, tiny_recipe: Path, toy_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b"
    done = here(
        "build",
        tiny_recipe,
        "-o",
        out,
        "--random-weights",
        "7",
        "--data",
        toy_data,
        "--target",
        "onnxruntime:cpu",
    )
    assert done.returncode == 0, done.stderr
    assert "random weights (seed 7)" in done.stdout
    assert {c.random_seed for c in Bundle.open(out).manifest.checkpoints.values()} == {7}
    assert "random weights (seed 7)" in here("inspect", out).stdout
    for more in ([], ["--data", toy_data]):
        check = here("check", out, *more)
        assert check.returncode == 0, check.stdout
        assert "random weights" in check.stdout + check.stderr


def test_an_ensemble_of_one_network_is_built(
    here: Cli, tiny_recipe: Path, toy_data: Path, tmp_path: Path
) -> None:
    """And one of two networks that share a resize: either has a single graph input."""
    both = tiny_recipe.read_text(encoding="utf-8").replace("test_resnet", "test_byobnet")
    one = re.sub(r'\[\[backbones\]\]\nname = "other".*?\n\n', "", both, flags=re.DOTALL).replace(
        ', "other"', ""
    )
    for number, text in enumerate((one, both)):
        path = tmp_path / f"{number}.toml"
        path.write_text(text, encoding="utf-8")
        out = tmp_path / f"b{number}"
        more = ["--random-weights", "3", "--data", toy_data, "--target", "onnxruntime:cpu"]
        done = here("build", path, "-o", out, *more)
        assert done.returncode == 0, done.stderr
        assert len(Bundle.open(out).manifest.inputs) == 1


@pytest.mark.parametrize("name", ["mean", "image_160x160", "a_bf16", "relu", "conv2d", "features_2"])
def test_a_backbone_may_be_called_anything_that_a_recipe_allows(
    here: Cli, tiny_recipe: Path, toy_data: Path, tmp_path: Path, name: str
) -> None:
    """Or the recipe is refused; a name never spoils the graph."""
    text = tiny_recipe.read_text(encoding="utf-8")
    text = text.replace('"small"', '"a"').replace('"other"', f'"{name}"')
    path = tmp_path / "named.toml"
    path.write_text(text, encoding="utf-8")
    done = here("export", path, "-o", tmp_path / "e", "--random-weights", "3", "--data", toy_data)
    if done.returncode == 2:
        fails(done, 2, name)
    else:
        assert done.returncode == 0, done
        taps = [t.name for t in Bundle.open(tmp_path / "e").manifest.taps]
        assert taps[:2] == ["a", name]


def test_a_target_that_cannot_be_used_here_exits_with_three(
    here: Cli, tiny_recipe: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vsa_rt.engines import table
    from vsa_rt.engines.backend import Probe
    from vsa_rt.engines.onnxruntime import OnnxRuntime

    gone = Probe(False, reason="onnxruntime is not installed", install="pip install 'vsa-rt[onnxruntime]'")
    monkeypatch.setattr(OnnxRuntime, "probe", lambda self, device: gone)
    assert not table.probe(next(t for t in table.targets() if t.backend == "onnxruntime")).usable
    out = tmp_path / "b"
    fails(
        here("build", tiny_recipe, "-o", out, "--data", toy_data, "--target", "onnxruntime:cpu"),
        3,
        "pip install",
    )
    done = here("build", tiny_recipe, "-o", out, "--data", toy_data, "--precision", "fp32")
    assert done.returncode == 0
    manifest = Bundle.open(out).manifest
    assert [e.target for e in manifest.engines] == ["openvino:cpu"]
    assert [(r.target, "pip install" in r.reason) for r in manifest.rejected] == [("onnxruntime:cpu", True)]
    assert "left out: onnxruntime:cpu" in done.stdout


# A bare ONNX file


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody else's small classifier: float NCHW in, features and logits out, an old opset."""
    onnx = pytest.importorskip("onnx", reason="the foreign model is made with onnx")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)) / 5,
        "b": rng.standard_normal(4) / 5,
        "fw": rng.standard_normal((2, 4)),
        "fb": rng.standard_normal(2),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["feat"]),
        helper.make_node("Gemm", ["feat", "fw", "fb"], ["out"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("feat", TensorProto.FLOAT, [1, 4]), helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 2])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = tmp_path_factory.mktemp("foreign") / "model.onnx"
    onnx.save(model, path)
    return path


GRAPH = """\
schema = 1
name = "foreign"
task = "binary"
labels = ["no", "yes"]

[graph]
logits = "out"

[[graph.inputs]]
name = "x"
mean = [0.4, 0.5, 0.6]
std = [0.2, 0.3, 0.25]
resize = {height = 32, width = 32, fit = "warp", kernel = "bilinear"}
"""


def test_the_projects_own_graph_builds_without_a_recipe(
    here: Cli, tiny_bundle: Path, toy_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "b"
    done = here("build", tiny_bundle / "graph.onnx", "-o", out, "--data", toy_data, "--max-batch", "4")
    assert done.returncode == 0, done.stderr
    manifest = Bundle.open(out).manifest
    assert (manifest.recipe, manifest.labels) == (None, ["dark", "bright"])
    picture = toy_data / "bright" / "coffee.png"
    with vsa_rt.load(out, precision="fp32") as one, vsa_rt.load(tiny_bundle, precision="fp32") as other:
        np.testing.assert_allclose(
            one.features([picture])["scores"], other.features([picture])["scores"], atol=1e-5
        )
    check = json.loads(here("check", out, "--data", toy_data, "--json").stdout)
    assert (check["reference"], check["passed"]) == ("onnx", True)
    assert check["why"]


def test_a_foreign_graph_with_a_recipe_gives_labels(
    here: Cli, foreign: Path, coffee: Path, toy_data: Path, tmp_path: Path
) -> None:
    ort = pytest.importorskip("onnxruntime", reason="runs the foreign model as it came")
    recipe = tmp_path / "foreign.toml"
    recipe.write_text(GRAPH, encoding="utf-8")
    out = tmp_path / "b"
    done = here("build", foreign, "-o", out, "--recipe", recipe, "--data", toy_data, "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    with vsa_rt.load(out) as rt:
        [result] = rt([coffee])
        features = rt.features([coffee, coffee])
    assert isinstance(result, vsa_rt.Sentiment)
    with Image.open(coffee) as picture:
        small = picture.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    pixels = (np.asarray(small) / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.25]
    session = ort.InferenceSession(foreign.read_bytes(), providers=["CPUExecutionProvider"])
    [feat, logits] = session.run(["feat", "out"], {"x": pixels.astype(np.float32).transpose(2, 0, 1)[None]})
    scores = np.exp(logits[0] - logits[0].max())
    np.testing.assert_allclose(list(result.scores.values()), scores / scores.sum(), atol=1e-5)
    np.testing.assert_allclose(features["feat"], np.concatenate([feat, feat]), rtol=1e-4, atol=1e-5)
    assert list(result.scores) == ["no", "yes"]


def test_a_foreign_graph_without_a_recipe_takes_ready_tensors(
    here: Cli, foreign: Path, coffee: Path, toy_data: Path, tmp_path: Path
) -> None:
    ort = pytest.importorskip("onnxruntime", reason="runs the foreign model as it came")
    out = tmp_path / "b"
    done = here("build", foreign, "-o", out, "--precision", "fp32", "--max-batch", "4")
    assert done.returncode == 0, done.stderr
    assert "features only" in done.stdout
    x = np.random.default_rng(1).standard_normal((3, 3, 32, 32)).astype(np.float32)
    session = ort.InferenceSession(foreign.read_bytes(), providers=["CPUExecutionProvider"])
    with vsa_rt.load(out) as rt:
        found = rt.infer({"x": x})
        wanted = [session.run(["feat", "out"], {"x": row[None]}) for row in x]
        np.testing.assert_allclose(
            found["feat"], np.concatenate([w[0] for w in wanted]), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(found["out"], np.concatenate([w[1] for w in wanted]), rtol=1e-4, atol=1e-5)
        with pytest.raises(UsageError, match=r"rt\.infer|ready tensors"):
            rt([coffee])
        with pytest.raises(UsageError, match="ready tensors"):
            rt.features([coffee])
    fails(here("run", out, coffee), 2)
    assert here("check", out).returncode == 0
    fails(here("check", out, "--data", toy_data), 2, "without --data")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('logits = "out"', 'logits = "elsewhere"', "graph.logits.*feat, out"),
        ('name = "x"', 'name = "y"', "graph.inputs"),
        ("height = 32", "height = 33", "graph.inputs"),
        ('["no", "yes"]', '["no", "yes", "perhaps"]\n#', "labels|graph.logits"),
        ('logits = "out"', 'logits = "feat"', "labels|graph.logits"),
    ],
)
def test_a_recipe_that_does_not_fit_a_foreign_graph_names_the_key(
    here: Cli, foreign: Path, toy_data: Path, tmp_path: Path, old: str, new: str, says: str
) -> None:
    text = GRAPH.replace(old, new)
    assert text != GRAPH
    if "perhaps" in new:
        text = text.replace('"binary"', '"single-label"')
    recipe = tmp_path / "foreign.toml"
    recipe.write_text(text, encoding="utf-8")
    fails(here("build", foreign, "-o", tmp_path / "b", "--recipe", recipe, "--data", toy_data), 2, says)
    assert not (tmp_path / "b").exists()


def test_a_recipe_of_checkpoints_does_not_fit_a_graph_nor_one_of_a_graph_checkpoints(
    here: Cli, foreign: Path, tiny_recipe: Path, toy_data: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "foreign.toml"
    recipe.write_text(GRAPH, encoding="utf-8")
    out = tmp_path / "b"
    fails(here("build", foreign, "-o", out, "--recipe", tiny_recipe, "--data", toy_data), 2, "graph")
    fails(here("build", recipe, "-o", out, "--data", toy_data), 2, "graph|ONNX")
    fails(here("export", recipe, "-o", out, "--data", toy_data), 2, "graph|ONNX")
    fails(here("fit", recipe, "--data", toy_data, "-o", out), 2)


def test_what_is_no_onnx_file_is_one_line(here: Cli, foreign: Path, tmp_path: Path) -> None:
    whole = foreign.read_bytes()
    path = tmp_path / "bad.onnx"
    for data in (b"", b"rubbish", whole[: len(whole) // 2]):
        path.write_bytes(data)
        fails(here("build", path, "-o", tmp_path / "b"), 2, r"bad\.onnx")


def test_a_graph_whose_weights_lie_in_other_files_is_refused_unread(
    here: Cli, foreign: Path, tmp_path: Path
) -> None:
    import onnx

    secret = tmp_path / "secret"
    secret.write_bytes(bytes(1000))
    model = onnx.load(foreign)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../secret"), ("offset", "0"), ("length", "432")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path = tmp_path / "external.onnx"
    path.write_bytes(model.SerializeToString())
    fails(here("build", path, "-o", tmp_path / "b"), 2, "another file")
