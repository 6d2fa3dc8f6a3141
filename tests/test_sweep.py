"""`vsa-rt bench --sweep`: every plan and batch as a point, and finished parts that an interrupted sweep keeps."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from benches import leave_out
from outcome import fails

from vsa_rt.bench.report import Report, read_report
from vsa_rt.bundle import Bundle
from vsa_rt.pipeline.bench import BenchOptions, sweep
from vsa_rt.pipeline.measuring.scenarios import ScenarioOptions
from vsa_rt.render import write_report

for library in ("jinja2", "matplotlib"):
    pytest.importorskip(library, reason=f"a benchmark's report needs {library}: vsa-rt[bench]")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Reseal = Callable[..., None]
SHORT = ("--seconds", "0.1")
AXES = ("--sweep", "target,precision,batch")
PARTS = ["contest of batch 1", "contest of batch 2", "parity of tiny"]
PLAN = "onnxruntime:cpu fp32"


@pytest.fixture(scope="module")
def swept(portable: Path, few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep's folder. Shared: leave it as it is."""
    out = tmp_path_factory.mktemp("swept") / "report"
    load = ScenarioOptions(seconds=0.1)
    options = BenchOptions(data=few, batches=[1, 2], load=load)
    with pytest.MonkeyPatch.context() as patch:
        leave_out(patch)
        report = sweep([Bundle.open(portable)], ["target", "precision", "batch"], out, options)
        write_report(report, out)
    return out


@pytest.fixture
def folder(swept: Path, tmp_path: Path) -> Path:
    """The finished sweep, this test's own, with its files' times."""
    return Path(shutil.copytree(swept, tmp_path / "report"))


@pytest.fixture
def again(here: Cli, portable: Path, few: Path, folder: Path, brief: None) -> Callable[..., Report]:
    """Starts the same sweep once more, or one with other options."""

    def run(*words: object, bundle: Path = portable, options: tuple[object, ...] = SHORT) -> Report:
        known = (*AXES, "--batch", "1,2", "--data", few, "-o", folder, *options, *words)
        done = here("bench", bundle, *known)
        report = read_report(folder)
        assert done.stderr == ""
        assert done.returncode == (1 if report.verdict.level == "red" else 0)
        return report

    return run


def times(folder: Path) -> dict[str, int]:
    """Parts' files and when they were written."""
    return {p.name: p.stat().st_mtime_ns for p in (folder / "parts").iterdir()}


def part(folder: Path, begins: str) -> Path:
    [file] = (folder / "parts").glob(f"{begins.replace(' ', '-')}-*.json")
    return file


def resumed(report: Report) -> list[str]:
    """The parts' names, each followed by its time."""
    for entry in report.resumed:
        assert re.search(r" of \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", entry)
    return sorted(entry.rpartition(" of ")[0] for entry in report.resumed)


# What a sweep gives


@pytest.fixture(scope="module")
def frontier(tiny_bundle: Path, few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over every engine of the bundle."""
    out = tmp_path_factory.mktemp("frontier") / "report"
    options = BenchOptions(data=few, batches=[1, 4], load=ScenarioOptions(seconds=0.2))
    report = sweep([Bundle.open(tiny_bundle)], ["target", "precision", "batch"], out, options)
    write_report(report, out)
    return out


def test_every_plan_and_batch_is_a_point_and_nothing_else_is_measured(
    frontier: Path, tiny_bundle: Path
) -> None:
    report = read_report(frontier)
    plans = [f"{e.target} {e.precision}" for e in Bundle.open(tiny_bundle).manifest.engines]
    assert [p.name for p in report.plans] == plans
    assert [(p.plan, p.batch) for p in report.points] == [(n, b) for b in (1, 4) for n in plans]
    assert [(c.batch, [s.name for s in c.contestants]) for c in report.contests] == [(1, plans), (4, plans)]
    assert [p.plan for p in report.parity[0].plans] == ["", *plans]
    assert not any([report.runs, report.splits, report.cold, report.gaps, report.limits, report.profiles])
    assert {(p.quality, p.quality_of, p.parity) for p in report.points} == {(1.0, "accuracy", True)}
    assert report.resumed == []
    names = sorted(p.name for p in frontier.iterdir())
    assert names == ["parts", "report.html", "report.json", "report.md"]


def test_dominated_points_name_one_that_is_better_beyond_both_intervals(frontier: Path) -> None:
    points = {f"{p.plan}, batch {p.batch}": p for p in read_report(frontier).points}
    assert any(not p.dominated_by for p in points.values())
    for name, point in points.items():
        assert point.low <= point.ms_per_image <= point.high
        if point.dominated_by:
            better = points[point.dominated_by]
            assert better is not point
            per_call = better.high * better.batch < point.low * point.batch
            assert better.high < point.low or per_call, name
            assert better.low <= point.high, f"{name} is cheaper per image"


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(
    ("axes", "kept", "batches"),
    [
        ("batch", lambda plan, lead: plan == lead, [1, 2, 4]),
        ("target", lambda plan, lead: plan.split()[1] == lead.split()[1], [1]),
        ("precision", lambda plan, lead: plan.split()[0] == lead.split()[0], [1]),
    ],
    ids=["batch", "target", "precision"],
)
def test_along_the_other_axes_the_leads_plan_is_kept(
    here: Cli,
    tiny_bundle: Path,
    few: Path,
    tmp_path: Path,
    axes: str,
    kept: Callable[[str, str], bool],
    batches: list[int],
) -> None:
    """And without ``--batch`` every power of two that the bundle takes, or one image."""
    done = here("bench", tiny_bundle, "--sweep", axes, *SHORT, "--data", few, "-o", tmp_path)
    assert done.stderr == ""
    report = read_report(tmp_path)
    engines = [f"{e.target} {e.precision}" for e in Bundle.open(tiny_bundle).manifest.engines]
    wanted = [name for name in engines if kept(name, engines[0])]
    assert [p.name for p in report.plans] == wanted
    assert [(p.plan, p.batch) for p in report.points] == [(n, b) for b in batches for n in wanted]
    assert f"--sweep {axes}" in report.command


# Going on


def test_the_same_sweep_takes_what_was_finished(
    again: Callable[..., Report], folder: Path, swept: Path
) -> None:
    before, first = times(folder), read_report(swept)
    report = again()
    assert times(folder) == before
    assert resumed(report) == PARTS
    assert (report.points, report.contests, report.parity) == (first.points, first.contests, first.parity)
    assert report.created >= first.created


@pytest.mark.parametrize("harm", ["cut", "garbage", "gone"])
def test_a_part_that_cannot_be_read_is_measured_again_and_no_other(
    again: Callable[..., Report], folder: Path, harm: str
) -> None:
    before, file = times(folder), part(folder, "contest of batch 2")
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:200] if harm == "cut" else b"\xff\0garbage")
    report = again()
    assert resumed(report) == [PARTS[0], PARTS[2]]
    now = times(folder)
    assert now.keys() == before.keys()
    assert {name for name in now if now[name] != before[name]} == {file.name}
    assert [(p.batch, p.parity) for p in report.points] == [(1, True), (2, True)]


def test_another_batch_is_measured_beside_those_that_are_there(
    again: Callable[..., Report], folder: Path
) -> None:
    before = times(folder)
    report = again("--batch", "4")
    assert resumed(report) == PARTS
    assert {p.batch for p in report.points} == {1, 2, 4}
    new = times(folder)
    assert new.items() > before.items()
    assert len(new) == len(before) + 1


def test_other_seconds_measure_anew(again: Callable[..., Report], folder: Path) -> None:
    before = times(folder)
    report = again(options=("--seconds", "0.11"))
    assert report.resumed == []
    assert times(folder).items() > before.items()


def test_another_bundle_of_the_same_name_is_measured_anew(
    again: Callable[..., Report], portable: Path, tmp_path: Path, reseal: Reseal
) -> None:
    changed = Path(shutil.copytree(portable, tmp_path / "changed" / portable.name))
    reseal(changed, created="2020-01-01T00:00:00Z")
    assert again(bundle=changed).resumed == []


def test_other_photographs_are_measured_anew(again: Callable[..., Report], few: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(few, tmp_path / few.name))
    assert resumed(again("--data", data)) == PARTS, "the same photographs in another folder"
    next((data / "dark").iterdir()).unlink()
    assert again("--data", data).resumed == []


@pytest.mark.usefixtures("brief")
def test_checkpoints_that_are_named_now_give_the_parity_that_they_allow(
    here: Cli,
    portable: Path,
    few: Path,
    tiny_weights: dict[str, Path],
    tmp_path: Path,
    reseal: Reseal,
) -> None:
    root = Path(shutil.copytree(portable, tmp_path / "moved"))
    records = Bundle.open(root).manifest.checkpoints
    gone = {n: msgspec.structs.replace(r, found="/gone/away.pth") for n, r in records.items()}
    reseal(root, checkpoints=gone)
    words = ("--sweep", "target", *SHORT, "--data", few, "-o", tmp_path / "out")
    found = []
    named = [w for name, path in tiny_weights.items() for w in ("--weights", f"{name}={path}")]
    for more in ([], named):
        assert here("bench", root, *words, *more).stderr == ""
        found.append(read_report(tmp_path / "out").parity[0].reference)
    assert found == ["onnx", "torch"]


def _first_part(process: subprocess.Popen[bytes], folder: Path) -> Iterator[None]:
    """Wait until the first part's file is there."""
    end = time.monotonic() + 120
    while not list((folder / "parts").glob("*.json")):
        assert process.poll() is None, "the sweep ended before its first part was written"
        assert time.monotonic() < end, "no part was written in two minutes"
        time.sleep(0.02)
        yield


def test_a_sweep_that_was_killed_goes_on_where_it_was(
    here: Cli, portable: Path, few: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    words = (
        "bench", portable, "--sweep", "batch", "--batch", "1,2", "--seconds", "0.5",
        "--data", few, "-o", out,
    )  # fmt: skip
    command = [sys.executable, "-m", "vsa_rt", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in _first_part(process, out):
            pass
    finally:
        process.kill()
        process.wait()
    assert sorted(p.name for p in out.iterdir()) == ["parts"]
    before = times(out)
    assert here(*words).stderr == ""
    report = read_report(out)
    assert "contest of batch 1" in resumed(report)
    assert "parity of tiny" not in resumed(report)
    assert times(out).items() >= before.items()
    assert [(p.plan, p.batch) for p in report.points] == [("onnxruntime:cpu fp32", b) for b in (1, 2)]
    assert report.parity[0].plans
    for name in ("report.html", "report.md"):
        assert os.path.getsize(out / name)


# What is refused


def test_a_sweep_refuses_what_a_benchmark_refuses(here: Cli, portable: Path, working_folder: Path) -> None:
    fails(here("bench", portable, "--sweep", "", "-o", "out"), 2, "target, precision, batch")
    fails(here("bench", portable, *AXES, "-o", "out", "--batch", "5"), 2, "batch 5: expected 1 to 4")
    fails(here("bench", portable, *AXES, "-o", "out", "--against", "eagre"), 2, "eagre")
    fails(here("bench", *AXES, "-o", "out"), 2, "no bundle")
    assert list(working_folder.iterdir()) == []


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(
    "words", [["--against", "eager"], ["--scenario", "camera"], ["--fps", "30"]], ids=lambda words: words[0]
)
def test_what_a_sweep_does_not_look_at_is_refused_or_said(
    here: Cli, portable: Path, few: Path, folder: Path, words: list[str]
) -> None:
    """An option that changes nothing would be believed."""
    known = (*AXES, *SHORT, "--batch", "1", "--data", few, "-o", folder)
    done = here("bench", portable, *known, *words)
    if done.returncode == 2:
        fails(done, 2, words[0])
    else:
        report = read_report(folder)
        assert words[0] not in report.command or words[1] in " ".join(report.skipped)
