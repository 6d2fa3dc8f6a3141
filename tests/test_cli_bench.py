"""`vsa-rt bench`: what a report holds, what each option does to it, and what is refused."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
import reports
from benches import PORTABLE, keep_engine
from outcome import fails

from vsa_rt.bench.baselines import BASELINES
from vsa_rt.bench.records.timing import Stage
from vsa_rt.bench.report import Report, read_report, report_from_json, report_to_json
from vsa_rt.bundle import Bundle

for library in ("jinja2", "matplotlib"):
    pytest.importorskip(library, reason=f"a benchmark's report needs {library}: vsa-rt[bench]")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Reseal = Callable[..., None]
#: A run that is as short as it can be; its figures are not looked at.
SHORT = ("--seconds", "0.1", "--batch", "1", "--against", "none")
#: Reasons that a busy machine gives, and that say nothing about the harness.
NOISE = {"drift", "neighbours", "stolen", "spread", "few-samples", "autocorrelation", "pressure", "clock-swing",
         "tail", "throttled", "unpinned-clocks", "untold", "openings", "invalid-run"}  # fmt: skip


def report_of(done: subprocess.CompletedProcess[str]) -> Report:
    """What a run with ``--json`` printed, and nothing else."""
    assert done.stderr == "", done.stderr
    report = report_from_json(done.stdout.encode(), "stdout")
    assert done.returncode == (1 if report.verdict.level == "red" else 0)
    return report


def codes(report: Report) -> set[str]:
    """Reasons of the verdict beyond those of the machine."""
    return {r.code for r in report.verdict.reasons} - NOISE


# One run with everything


class Whole:
    """A whole run of the command line as a process of its own."""

    def __init__(self, done: subprocess.CompletedProcess[str], cwd: Path, out: Path) -> None:
        self.done, self.cwd, self.out = done, cwd, out
        self.report = report_of(done)


@pytest.fixture(scope="session")
def whole(vsa: Cli, tiny_bundle: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """With JSON on stdout and files in a folder; of one precision, because the bf16 ceilings take as long again."""
    folder = tmp_path_factory.mktemp("whole")
    cwd, out = folder / "cwd", folder / "new" / "report"
    cwd.mkdir()
    words: tuple[object, ...] = (
        "bench", tiny_bundle, "--data", toy_data, "--precision", "fp32", "--seconds", 0.2, "--batch", "1,2",
        "--against", "eager", "-o", out, "--json",
    )  # fmt: skip
    return Whole(vsa(*words, cwd=cwd), cwd, out)


def test_a_run_gives_one_document_on_stdout_and_the_same_in_three_files(whole: Whole) -> None:
    assert sorted(p.name for p in whole.out.iterdir()) == ["report.html", "report.json", "report.md"]
    assert json.loads(whole.done.stdout) == json.loads((whole.out / "report.json").read_text())
    assert read_report(whole.out) == whole.report
    assert list(whole.cwd.iterdir()) == []


def test_a_report_has_every_part_of_every_plan_and_batch(whole: Whole) -> None:
    report = whole.report
    names = [p.name for p in report.plans]
    assert sorted(names) == ["onnxruntime:cpu fp32", "openvino:cpu fp32"]
    lead = names[0]
    assert {c.plan for c in report.cold} == {lead}
    assert [(r.plan, r.scenario, r.feed, r.batch) for r in report.runs] == [
        (lead, "quick", "tensors", 1), (lead, "quick", "tensors", 2)
    ]  # fmt: skip
    assert [(s.plan, s.batch) for s in report.splits] == [(lead, 1), (lead, 2)]
    assert all(tuple(t.stage for t in s.stages) == get_args(Stage) for s in report.splits)
    assert {g.tool for g in report.gaps} >= {"bare request"}
    assert [(c.batch, [s.name for s in c.contestants]) for c in report.contests] == [
        (1, [*names, "eager"]), (2, [*names, "eager"])
    ]  # fmt: skip
    assert {(c.kind, c.precision) for c in report.ceilings if c.value is not None} >= {
        ("convolution", "fp32"), ("matmul", "fp32"), ("copy", "bytes")
    }  # fmt: skip
    assert [(r.batch, r.floors[-1].part) for r in report.limits] == [(1, "whole"), (2, "whole")]
    assert {"small", "other", "head"} <= {f.part for f in report.limits[0].floors}
    assert [(p.plan, p.batch) for p in report.profiles] == [(lead, 1), (lead, 2)]
    assert [p.plan for p in report.parity[0].plans] == ["", *names]
    assert [(p.plan, p.batch) for p in report.points] == [(n, b) for b in (1, 2) for n in names]
    assert set(report.skipped) <= {
        f"{tool} beside {lead}" for tool in ("onnxruntime_perf_test", "benchmark_app")
    }
    assert report.resumed == []


def test_everything_is_measured_on_every_pair(whole: Whole) -> None:
    lead, other = (p.name for p in whole.report.plans)
    for contest in whole.report.contests:
        assert {(p.slower, p.faster) for p in contest.pairings} == {
            ("eager", lead), ("eager", other), (other, lead)
        }  # fmt: skip
        for pair in contest.pairings:
            assert pair.low <= pair.ratio <= pair.high
            assert pair.pairs == len(contest.contestants[0].samples) >= 15


def test_a_healthy_bundle_gives_no_reason_but_the_machines(whole: Whole) -> None:
    assert codes(whole.report) == set()
    assert (whole.report.verdict.headline is None) == (whole.report.verdict.level == "red")


def test_a_labelled_folder_gives_metrics_and_reliability(whole: Whole, toy_data: Path) -> None:
    check = whole.report.parity[0]
    assert (check.reference, check.data, check.decides) == ("torch", toy_data.name, True)
    for plan in check.plans:
        parity = plan.parity
        assert (parity.images, parity.labelled, parity.flips) == (12, 12, [])
        assert parity.metrics[0].name == "accuracy"
        assert (parity.metrics[0].reference, parity.metrics[0].candidate) == (1.0, 1.0)
        assert "ECE" in {m.name for m in parity.metrics}
        assert parity.mcnemar is not None
        assert parity.reliability is not None
    assert {(p.quality, p.quality_of, p.parity) for p in whole.report.points} == {(1.0, "accuracy", True)}


def test_a_report_names_no_folder_of_the_machine(whole: Whole, toy_data: Path, tiny_bundle: Path) -> None:
    folders = {str(whole.out.parent), str(toy_data.parent), str(tiny_bundle.parent), sys.prefix}
    folders |= {str(Path(__file__).resolve().parents[1])}
    for name in ("report.json", "report.md", "report.html"):
        text = (whole.out / name).read_text(encoding="utf-8")
        assert [f for f in folders if f in text] == [], name


def test_the_command_repeats_the_options(whole: Whole, tiny_bundle: Path, toy_data: Path) -> None:
    command = whole.report.command
    assert command.startswith(f"vsa-rt bench {tiny_bundle.name} ")
    for part in (f"--data {toy_data.name}", "--precision fp32", "--seconds 0.2", "--against eager"):
        assert part in command
    assert re.search(r"--batch 1( --batch |,)2", command)


# Exit codes and where things are printed


@pytest.mark.parametrize(("level", "code"), [("green", 0), ("amber", 0), ("red", 1)])
def test_the_exit_code_is_the_verdicts(
    here: Cli, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, level: Any, code: int
) -> None:
    made = reports.with_verdict(level, None if level == "red" else "5 ms")
    monkeypatch.setattr("vsa_rt.pipeline.bench.bench", lambda bundles, options: made)
    done = here("bench", tiny_bundle, "--json")
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout == report_to_json(made).decode()


@pytest.mark.parametrize("asked", [True, False])
def test_layers_are_printed_where_they_are_asked_for(
    here: Cli, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    monkeypatch.setattr("vsa_rt.pipeline.bench.bench", lambda bundles, options: reports.clean_report())
    done = here("bench", tiny_bundle, *(["--layers"] if asked else []))
    assert done.returncode == 0
    assert ("slowest layers" in done.stdout) is asked


@pytest.mark.usefixtures("brief")
def test_without_a_folder_nothing_is_written(
    here: Cli, portable: Path, few: Path, working_folder: Path
) -> None:
    done = here("bench", portable, *SHORT, "--data", few, "--fps", 100)
    assert done.returncode in (0, 1)
    assert done.stderr == ""
    assert re.search(r"onnxruntime:cpu fp32 +quick +1 ", done.stdout)
    assert "-o DIR keeps all of it" in done.stdout
    assert list(working_folder.iterdir()) == []


def test_the_baselines_are_listed_without_a_bundle(here: Cli, working_folder: Path) -> None:
    done = here("bench", "--against", "list")
    assert (done.returncode, done.stderr) == (0, "")
    for name, baseline in BASELINES.items():
        assert re.search(rf"^{name} +{re.escape(baseline.sentence)}", done.stdout, re.MULTILINE)
    assert list(working_folder.iterdir()) == []


# Several bundles


@pytest.fixture
def second(portable: Path, tmp_path: Path) -> Path:
    """The same bundle under another name."""
    return Path(shutil.copytree(portable, tmp_path / "other-folder" / "second"))


@pytest.mark.usefixtures("brief")
def test_several_bundles_take_turns_and_are_held_against_the_first(
    here: Cli, tiny_bundle: Path, few: Path, tmp_path: Path
) -> None:
    second = Path(shutil.copytree(tiny_bundle, tmp_path / "second"))
    words = ("bench", tiny_bundle, second, *SHORT, "--precision", "fp32", "--data", few, "--json")
    report = report_of(here(*words))
    first = report.plans[0].name
    kinds = ["onnxruntime:cpu fp32", "openvino:cpu fp32"]
    assert sorted(p.name for p in report.plans) == sorted(
        f"{b} {k}" for b in (tiny_bundle.name, "second") for k in kinds
    )
    assert {p.name: p.bundle for p in report.plans} == {p.name: p.name.split()[0] for p in report.plans}
    assert first.startswith(f"{tiny_bundle.name} ")
    assert (
        [b.name for b in report.bundles] == [c.bundle for c in report.parity] == [tiny_bundle.name, "second"]
    )
    [contest] = report.contests
    assert [c.name for c in contest.contestants] == [p.name for p in report.plans]
    assert {(p.slower, p.faster) for p in contest.pairings} == {(p.name, first) for p in report.plans[1:]}
    assert {r.plan.split()[0] for r in report.runs} == {tiny_bundle.name, "second"}
    for check in report.parity:
        assert all(p.parity.passed for p in check.plans)
        assert {p.plan.split()[0] for p in check.plans if p.plan} == {check.bundle}
    assert f"bench {tiny_bundle.name} second " in report.command
    assert codes(report) == set()


@pytest.mark.usefixtures("brief")
def test_bundles_of_one_name_are_numbered(here: Cli, portable: Path, second: Path, few: Path) -> None:
    alike = second.with_name(portable.name)
    second.rename(alike)
    report = report_of(here("bench", portable, alike, *SHORT, "--data", few, "--json"))
    assert [b.name for b in report.bundles] == [portable.name, f"{portable.name} (2)"]
    assert len({p.name for p in report.plans}) == 2


@pytest.mark.usefixtures("brief")
def test_another_bundle_may_be_named_beside_baselines(
    here: Cli, portable: Path, second: Path, few: Path
) -> None:
    words = ("--seconds", 0.1, "--batch", 1, "--data", few, "--json")
    report = report_of(here("bench", portable, "--against", f"onnxruntime,{second}", *words))
    ours, theirs = (f"{name} onnxruntime:cpu fp32" for name in (portable.name, "second"))
    assert [(c.name, c.kind) for c in report.contests[0].contestants] == [
        (ours, "plan"), (theirs, "plan"), ("onnxruntime", "baseline")
    ]  # fmt: skip
    assert {(p.slower, p.faster) for p in report.contests[0].pairings} == {
        (theirs, ours), ("onnxruntime", ours), ("onnxruntime", theirs)
    }  # fmt: skip


@pytest.mark.usefixtures("brief")
def test_a_bundle_that_is_a_baseline_is_named_without_its_folder(
    here: Cli, portable: Path, second: Path, few: Path
) -> None:
    words = ("--seconds", 0.1, "--batch", 1, "--data", few, "--json")
    report = report_of(here("bench", portable, "--against", f"none,{second}", *words))
    assert str(second.parent) not in report.command
    against = re.findall(r"--against (\S+)", report.command)
    assert sorted(",".join(against).split(",")) == ["none", "second"]
    assert [c.kind for c in report.contests[0].contestants] == ["plan", "plan"]


@pytest.mark.usefixtures("brief")
def test_a_folder_called_like_a_baseline_does_not_hide_it(
    here: Cli, portable: Path, few: Path, working_folder: Path
) -> None:
    (working_folder / "onnxruntime").mkdir()
    words = ("--seconds", 0.1, "--batch", 1, "--data", few, "--json")
    report = report_of(here("bench", portable, "--against", "onnxruntime", *words))
    assert [c.name for c in report.contests[0].contestants][1:] == ["onnxruntime"]


# Scenarios


@pytest.mark.usefixtures("brief")
def test_frames_per_second_add_a_camera_that_counts_what_it_drops(
    here: Cli, portable: Path, few: Path
) -> None:
    """No engine call takes a fiftieth of a millisecond: of so many frames most are dropped."""
    words = (*SHORT, "--data", few, "--fps", 50_000, "--json")
    report = report_of(here("bench", portable, *words))
    quick, camera = report.runs
    assert (quick.scenario, quick.dropped) == ("quick", None)
    assert (camera.scenario, camera.feed, camera.batch) == ("camera", "images", 1)
    assert (camera.settings["fps"], camera.settings["frames"]) == (50_000, 5_000)
    assert camera.latency is not None
    assert camera.dropped is not None
    assert camera.images == len(camera.latency.samples)
    assert camera.images + camera.dropped == 5_000
    assert camera.dropped > camera.images > 0
    assert "--fps 50000" in report.command


@pytest.mark.usefixtures("brief")
def test_two_hundred_frames_per_second_are_scheduled_five_milliseconds_apart(
    here: Cli, portable: Path, few: Path
) -> None:
    words = (*SHORT, "--data", few, "--scenario", "camera", "--fps", 200, "--json")
    [camera] = report_of(here("bench", portable, *words)).runs
    assert camera.settings["frames"] == 20
    assert camera.latency is not None
    # The last frame is scheduled 19 periods after the first, and always taken: its latency counts from there.
    assert camera.seconds == pytest.approx(19 * 0.005 + camera.latency.samples[-1] / 1e3, abs=1e-6)


@pytest.mark.usefixtures("brief")
def test_images_go_from_bytes_to_labels(here: Cli, portable: Path, few: Path) -> None:
    words = (*SHORT, "--data", few, "--feed", "images", "--json")
    report = report_of(here("bench", portable, *words))
    assert [(r.scenario, r.feed) for r in report.runs] == [("quick", "images")]
    assert "--feed images" in report.command


@pytest.mark.usefixtures("brief")
def test_loadgens_scenarios_keep_settings_and_logs(
    here: Cli, portable: Path, few: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlperf_loadgen", reason="the scenarios are LoadGen's: mlcommons-loadgen")
    scenarios = ["single-stream", "multi-stream", "offline", "server"]
    words = (
        "--scenario", ",".join(scenarios), "--qps", 50, "--queries", 5, "--samples-per-query", 2, "-o", tmp_path / "out"
    )  # fmt: skip
    report = report_of(here("bench", portable, *SHORT, "--data", few, *words, "--json"))
    assert capfd.readouterr() == ("", "")  # its library writes past Python's streams
    assert [r.scenario for r in report.runs] == scenarios
    for run in report.runs:
        assert run.logs
        for log in run.logs:
            assert not Path(log).is_absolute()
            assert (tmp_path / "out" / log).resolve().is_relative_to(tmp_path / "out")
            assert (tmp_path / "out" / log).is_file()
        assert run.loadgen["result_query_count"] >= 1
        assert run.settings["min_queries"] == 5
        assert (run.latency is None) == (run.scenario == "offline")
    assert report.runs[-1].settings["target_qps"] == 50
    logs = [set(run.logs) for run in report.runs]
    assert len(set().union(*logs)) == sum(map(len, logs)), "scenarios share a log"
    for word in ("--qps 50", "--queries 5", "--samples-per-query 2"):
        assert word in report.command


# Engines


@pytest.mark.usefixtures("brief")
def test_threads_and_target_hold_for_every_candidate(here: Cli, tiny_bundle: Path, few: Path) -> None:
    words = ("--seconds", 0.1, "--batch", 1, "--target", PORTABLE, "--threads", 1, "--data", few, "--json")
    report = report_of(here("bench", tiny_bundle, "--against", "onnxruntime", *words))
    assert [(p.name, p.threads) for p in report.plans] == [("onnxruntime:cpu fp32", 1)]
    assert report.contests[0].threads == 1
    assert "--threads 1" in report.command
    assert "--target onnxruntime:cpu" in report.command
    assert [p.plan for p in report.parity[0].plans] == ["", "onnxruntime:cpu fp32"]


@pytest.mark.usefixtures("brief")
def test_checkpoints_that_moved_are_named_and_the_command_says_so(
    here: Cli, second: Path, few: Path, tiny_weights: dict[str, Path], reseal: Reseal
) -> None:
    records = Bundle.open(second).manifest.checkpoints
    gone = {n: msgspec.structs.replace(r, found="/gone/away.pth") for n, r in records.items()}
    reseal(second, checkpoints=gone)
    words = ("bench", second, *SHORT, "--data", few, "--json")
    without = report_of(here(*words))
    assert without.parity[0].reference == "onnx"
    assert "parity-reference" in codes(without)
    named = [w for name, path in tiny_weights.items() for w in ("--weights", f"{name}={path}")]
    report = report_of(here(*words, *named))
    assert (report.parity[0].reference, report.parity[0].why) == ("torch", "")
    assert "--weights small=" in report.command
    assert str(tiny_weights["small"].parent) not in report.command


# Inputs


@pytest.fixture(scope="module")
def ready_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of somebody else's graph without a recipe: features only, from ready tensors only."""
    onnx = pytest.importorskip("onnx", reason="the foreign graph is made with onnx")
    pytest.importorskip("onnxruntime", reason="the foreign graph is built for ONNX Runtime")
    from onnx import TensorProto, helper, numpy_helper

    from vsa_rt.contracts import Precision, Target
    from vsa_rt.pipeline.build import BuildOptions, build

    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["feat"]),
    ]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("feat", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    folder = tmp_path_factory.mktemp("ready")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    options = BuildOptions(targets=[Target("onnxruntime", "cpu")], precision=Precision.FP32, max_batch=4)
    build(str(folder / "model.onnx"), folder / "ready", options)
    return folder / "ready"


@pytest.mark.usefixtures("brief")
def test_a_bundle_of_ready_tensors_is_fed_its_golden_tensors_and_says_so(
    here: Cli, ready_only: Path, tmp_path: Path
) -> None:
    words = ("--seconds", 0.1, "--batch", "1,2", "--against", "eager", "-o", tmp_path / "out", "--json")
    report = report_of(here("bench", ready_only, *words))
    assert "golden" in report.inputs
    assert [r.batch for r in report.runs] == [1, 2]
    assert report.splits == []
    assert list(report.skipped) == ["time split of ready"]
    assert "golden" in report.skipped["time split of ready"]
    assert "ONNX file" in report.contests[0].absent["eager"]
    assert (report.parity[0].reference, report.parity[0].data) == ("golden", "golden")
    assert codes(report) >= {"parity-golden", "parity-reference"}
    assert {p.quality for p in report.points} == {None}
    assert "golden" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("brief")
def test_a_bundle_without_labels_is_not_one_of_random_weights(here: Cli, ready_only: Path) -> None:
    report = report_of(here("bench", ready_only, *SHORT, "--json"))
    assert report.bundles[0].labels == report.bundles[0].random_weights == []
    assert "random-weights" not in codes(report)


@pytest.mark.usefixtures("brief")
def test_photographs_for_a_bundle_that_cannot_take_them_are_not_passed_over(
    here: Cli, ready_only: Path, few: Path
) -> None:
    done = here("bench", ready_only, *SHORT, "--data", few, "--json")
    if done.returncode == 2:
        fails(done, 2, "ready tensors")
    else:
        assert "no --data given" not in done.stdout


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize("words", [["--fps", "30"], ["--feed", "images"]])
def test_ready_tensors_are_no_images(
    here: Cli, ready_only: Path, working_folder: Path, words: list[str]
) -> None:
    fails(here("bench", ready_only, *SHORT, *words, "-o", "out"), 2, "golden tensors")
    assert list(working_folder.iterdir()) == []


@pytest.mark.usefixtures("brief")
def test_bundles_that_take_different_inputs_are_not_held_against_each_other(
    here: Cli, ready_only: Path, portable: Path, working_folder: Path
) -> None:
    fails(here("bench", portable, ready_only, *SHORT, "-o", "out"), 2, "do not take the same inputs")
    assert list(working_folder.iterdir()) == []


@pytest.fixture
def spoilt(few: Path, tmp_path: Path) -> Path:
    """The labelled folder with one file that is no photograph."""
    folder = Path(shutil.copytree(few, tmp_path / "spoilt"))
    (folder / "dark" / "broken.png").write_text("x")
    return folder


@pytest.mark.usefixtures("brief")
def test_a_photograph_that_cannot_be_read_is_named_and_left_out(
    here: Cli, portable: Path, spoilt: Path
) -> None:
    report = report_of(here("bench", portable, *SHORT, "--data", spoilt, "--json"))
    assert report.inputs.startswith("4 of 5 photographs (spoilt)")
    [rejected] = report.parity[0].rejected
    assert "broken.png" in rejected
    [reason] = [r for r in report.verdict.reasons if r.code == "parity-rejected"]
    assert (reason.level, "broken.png" in reason.text) == ("green", True)
    assert report.parity[0].plans[0].parity.images == 4


@pytest.mark.usefixtures("brief")
def test_a_photograph_that_is_left_out_is_named_without_its_folder(
    here: Cli, portable: Path, spoilt: Path
) -> None:
    done = here("bench", portable, *SHORT, "--data", spoilt, "--json")
    assert "broken.png" in done.stdout
    assert str(spoilt.parent) not in done.stdout


@pytest.mark.usefixtures("brief")
def test_a_folder_without_any_photograph_is_refused(
    here: Cli, portable: Path, spoilt: Path, working_folder: Path
) -> None:
    for path in spoilt.rglob("*.png"):
        path.write_text("x")
    before = sorted(working_folder.iterdir())
    fails(here("bench", portable, *SHORT, "--data", spoilt, "-o", "out"), 2, "none of 5 .*can be read")
    assert sorted(working_folder.iterdir()) == before


@pytest.mark.usefixtures("brief")
def test_random_weights_turn_the_verdict_amber(
    here: Cli, wired_bundle: Path, wired_data: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(wired_bundle, tmp_path / "wired"))
    keep_engine(root, PORTABLE)
    data = tmp_path / "photographs"
    data.mkdir()
    for path in sorted((wired_data / "dark").glob("*.png"))[:2]:
        shutil.copy(path, data)
        shutil.copy(path.with_name(f"{path.name}.objects.npy"), data)
    report = report_of(here("bench", root, *SHORT, "--data", data, "--json"))
    assert sorted(report.bundles[0].random_weights) == ["g", "r", "s"]
    [reason] = [r for r in report.verdict.reasons if r.code == "random-weights"]
    assert reason.level == "amber"
    assert all(name in reason.text for name in ("g", "r", "s", "labels mean nothing"))
    assert all(p.parity.passed for p in report.parity[0].plans)


def test_no_figure_of_a_run_is_infinite(whole: Whole) -> None:
    """Percentiles that a short run cannot bound are null, with the samples they would take."""
    for run in whole.report.runs:
        assert run.latency is not None
        steady = len(run.latency.samples) - run.latency.warm_up
        for found in run.latency.percentiles:
            assert (found.value is None) == (found.upper is None) == (steady < found.needed)
            # The largest of n bounds a share p with confidence 1 - p**n (order statistics).
            assert 1 - found.share**found.needed >= found.confidence
            assert 1 - found.share ** (found.needed - 1) < found.confidence
            assert found.upper is None or math.isfinite(found.upper)
