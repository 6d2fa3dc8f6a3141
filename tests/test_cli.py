"""The command line: names, help, wrong use, and the commands that only look."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outcome import fails

import vsa_rt
from vsa_rt.bundle import MANIFEST
from vsa_rt.errors import UsageError

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).resolve().parents[1]
KEYS = ["path", "label", "labels", "scores", "scores_kind", "error"]
COMMANDS = [
    "doctor",
    "recipes",
    "fit",
    "export",
    "build",
    "lower",
    "ingest",
    "inspect",
    "run",
    "check",
    "bisect",
    "bench",
    "compare",
    "sign",
]


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
    fails(here("run", bundle, "x.png", "--target", "nonsense:cpu"), 2, "unknown")
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


def test_a_warning_stays_in_logs_and_other_steps_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    from vsa_rt.cli.app import shown_progress

    with shown_progress() as progress:
        progress("building openvino:cpu all bf16")
        progress("warning: bf16 will not pay")
    assert capsys.readouterr().err == "vsa-rt: warning: bf16 will not pay\n"
