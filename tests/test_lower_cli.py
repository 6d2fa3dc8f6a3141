"""``vsa-rt lower`` as it is typed: what it prints, and its exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outcome import fails

for library in ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "ml_dtypes"):
    pytest.importorskip(library, reason=f"exporting and rounding need {library}: vsa-rt[export]")

from vsa_rt.bundle import Bundle
from vsa_rt.pipeline.lower import LowerOptions, lower_bundle
from vsa_rt.pipeline.precision.proof import Lowered

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def tiny(tiny_recipe: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny ensemble exported. Shared: leave it as it is."""
    from vsa_rt.pipeline.export import ExportOptions, export
    from vsa_rt.recipe_file import read_recipe

    out = tmp_path_factory.mktemp("exported") / "tiny"
    export(read_recipe(tiny_recipe), tiny_recipe.parent, out, ExportOptions(data=toy_data, max_batch=4))
    return out


@pytest.fixture(scope="session")
def found(tiny: Path, few: Path, tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    """What is said of the tiny ensemble in half."""
    out = tmp_path_factory.mktemp("lowered") / "out"
    return lower_bundle(Bundle.open(tiny), out, LowerOptions(data=few, images=1))


@pytest.fixture
def lower(here: Cli, tiny: Path, few: Path, tmp_path: Path) -> Callable[..., Any]:
    """``vsa-rt lower`` of the tiny ensemble over a few photographs, into this test's folder."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return here("lower", tiny, "-o", tmp_path / "out", "--data", few, "--images", 1, *arguments)

    return run


def test_it_says_what_was_proved_and_how_an_engine_is_built(lower: Cli, tmp_path: Path, tiny: Path) -> None:
    done = lower()
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    assert "graph.fp16.onnx: " in text
    assert "all fp16, head fp16, holds" in text
    assert "half ends at 65504" in text
    assert "none overflows" in text
    assert "0 of 1 labels flip" in text
    assert "it prepares what the graph takes" in text
    record = json.loads((tmp_path / "out" / "lowered.json").read_text(encoding="utf-8"))
    assert text.rstrip().endswith(record["trtexec"])
    assert "--minShapes=image_160x160:1x160x160x3," in record["trtexec"]
    assert "--maxShapes=image_160x160:4x160x160x3," in record["trtexec"]


def test_json_is_the_file_and_its_folder(lower: Cli, tmp_path: Path) -> None:
    done = lower("--json", "--precision", "bf16")
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert said.pop("path") == str(tmp_path / "out")
    assert said == json.loads((tmp_path / "out" / "lowered.json").read_text(encoding="utf-8"))
    assert (said["kind"], said["graph"], said["ranges"]) == ("lowered", "graph.bf16.onnx", None)


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_but_the_bundle_and_the_command_is_wider_than_the_terminal(
    found: Lowered, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vsa_rt.render.lower import lowered

    monkeypatch.setenv("COLUMNS", str(width))
    lowered(
        found, Path("a-name-that-is-long-enough", "to-be-wider-than-most-lines-of-a-terminal"), as_json=False
    )
    first, *lines, command = capsys.readouterr().out.rstrip().splitlines()
    assert first.endswith("holds")
    assert command == found.trtexec
    assert 60 < max(map(len, lines)) <= width


def test_excluded_nodes_are_read_from_a_file(lower: Cli, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("# found by hand\nnode_Conv_454\n", encoding="utf-8")
    done = lower("--exclude", names)
    assert done.returncode == 0, done.stderr
    assert "named by --exclude" in done.stdout
    record = json.loads((tmp_path / "out" / "lowered.json").read_text(encoding="utf-8"))
    assert record["plan"]["exclude"] == ["node_Conv_454"]


def test_a_failed_proof_writes_nothing_and_exits_with_one(lower: Cli, tmp_path: Path) -> None:
    budget = ("--precision", "bf16", "--budget", "kl=0")
    fails(lower(*budget), 1, "failed parity: .*mean KL.*--force")
    assert list(tmp_path.iterdir()) == []
    done = lower(*budget, "--force")
    assert done.returncode == 0, done.stderr
    assert "FAILS" in done.stdout
    assert "failed parity: scores: mean KL" in done.stdout
    record = json.loads((tmp_path / "out" / "lowered.json").read_text(encoding="utf-8"))
    assert record["verdict"] == "failed parity"


def test_nodes_that_half_would_spoil_are_named_with_their_reason(
    lower: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "x [1] reached 1e5"
    monkeypatch.setattr("vsa_rt.export.lowering.hazards.hazards", lambda *_: {"node_Conv_454": reason})
    done = lower()
    assert f"ranges: node_Conv_454 (Conv): {reason}" in done.stdout


def test_wrong_use_is_one_line(here: Cli, lower: Cli, tiny: Path, few: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("nonsense\n", encoding="utf-8")
    fails(lower("--exclude", names), 2, "node 'nonsense'")
    fails(lower("--exclude", tmp_path / "absent"), 2, "cannot be read")
    fails(lower("--precision", "int8"), 2, "--calib DIR")
    fails(lower("--precision", "int8", "--calib", few), 2, "16")
    fails(lower("--precision", "int8", "--calib", few, "--calib-method", "guess"), 2, "guess")
    fails(lower("--around", "fp32"), 2, "only int8")
    fails(lower("--calib", few), 2, "only int8")
    fails(lower("--budget", "luck=1"), 2, "luck")
    fails(here("lower", tmp_path, "-o", tmp_path / "out"), 3, "not a bundle")
    fails(here("lower", tiny, "-o", tmp_path / "out", "--data", tmp_path), 2, "no photograph")
    fails(here("lower", tiny, "-o", tmp_path), 2, "exists")
    assert [p.name for p in tmp_path.iterdir()] == ["names.txt"]


@pytest.mark.parametrize("arguments", [["--precision", "fp32"], ["--head", "bf16"], ["--images", "0"]])
def test_values_that_no_option_takes_exit_with_two(lower: Cli, arguments: list[str]) -> None:
    done = lower(*arguments)
    assert (done.returncode, done.stdout) == (2, "")


def test_a_bundle_that_is_damaged_is_refused(here: Cli, tiny: Path, few: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny, tmp_path / "broken"))
    data = bytearray((broken / "graph.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (broken / "graph.onnx").write_bytes(data)
    fails(here("lower", broken, "-o", tmp_path / "out", "--data", few), 3, "damaged")


def test_the_graph_of_a_built_bundle_is_lowered_as_well(
    here: Cli, tiny_bundle: Path, few: Path, tmp_path: Path
) -> None:
    done = here("lower", tiny_bundle, "-o", tmp_path / "out", "--data", few, "--images", 1)
    assert done.returncode == 0, done.stderr
