"""What `vsa-rt bench` refuses: in one line, before anything is measured, and with nothing written."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from outcome import fails

from vsa_rt.pipeline.measuring.measurement import Measurement

for library in ("jinja2", "matplotlib"):
    pytest.importorskip(library, reason=f"a benchmark's report needs {library}: vsa-rt[bench]")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Reseal = Callable[..., None]
#: A run that is as short as it can be; its figures are not looked at.
SHORT = ("--seconds", "0.1", "--batch", "1", "--against", "none")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--against", "eagre"], 2, "eagre: .*baselines?:? .*eager, "),
        (["--scenario", "racing"], 2, "'racing': unknown; there are quick, camera, "),
        (["--batch", "0"], 2, "--batch '0': expected positive whole numbers"),
        (["--batch", "x"], 2, "--batch 'x': expected positive whole numbers"),
        (["--batch", "1,-2"], 2, "--batch '-2': expected positive whole numbers"),
        (["--batch", "999"], 2, "batch 999: expected 1 to 4"),
        (["--sweep", "colour"], 2, "'colour': unknown; .*target, precision, batch"),
        (["--sweep", "batch,colour"], 2, "'colour': unknown"),
        (["--target", "tpu:0"], 2, "no engine for that request; it holds openvino:cpu"),
        (["--target", "nonsense"], 2, "nonsense"),
        (["--data", "nowhere"], 2, "nowhere: not a folder"),
        (["--weights", "small"], 2, "'small': expected NAME=PATH"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_line_and_writes_nothing(
    here: Cli, tiny_bundle: Path, working_folder: Path, words: list[str], code: int, says: str
) -> None:
    fails(here("bench", tiny_bundle, *words, "-o", "out", "--json"), code, says)
    assert list(working_folder.iterdir()) == []


def test_a_bundle_must_be_named_and_be_one(here: Cli, working_folder: Path) -> None:
    fails(here("bench"), 2, "no bundle to measure")
    fails(here("bench", "nowhere", "-o", "out"), 3, "nowhere: not a bundle")
    assert list(working_folder.iterdir()) == []


def test_a_sweep_needs_a_folder_for_its_parts(here: Cli, tiny_bundle: Path, working_folder: Path) -> None:
    fails(here("bench", tiny_bundle, "--sweep", "batch"), 2, "-o")
    assert list(working_folder.iterdir()) == []


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("scenario", ["server", "single-stream", "multi-stream", "offline"])
def test_loadgens_scenarios_need_a_folder_for_their_logs(
    here: Cli, portable: Path, few: Path, working_folder: Path, scenario: str
) -> None:
    words = (*SHORT, "--data", few, "--scenario", scenario, "--qps", "9")
    fails(here("bench", portable, *words), 2, f"--scenario {scenario}: .*name a folder with -o")
    assert list(working_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--scenario", "quick,server", "--qps", "9"], "-o"),
        (["--scenario", "quick,server", "-o", "out"], "--qps"),
        (["-o", "file"], "file"),
        (["-o", "file", "--sweep", "batch"], "file"),
    ],
    ids=["logs-without-folder", "server-without-rate", "folder-is-a-file", "sweep-into-a-file"],
)
def test_a_request_that_must_fail_does_so_before_anything_is_measured(
    here: Cli,
    portable: Path,
    few: Path,
    working_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    says: str,
) -> None:
    def measured(self: Measurement) -> None:
        pytest.fail("measured for minutes, then refused")

    for part in ("cold_starts", "scenarios", "against"):
        monkeypatch.setattr(Measurement, part, measured)
    (working_folder / "file").write_text("not a folder")
    fails(here("bench", portable, *SHORT, "--data", few, *words), 2, says)
    assert [p.name for p in working_folder.iterdir()] == ["file"]
