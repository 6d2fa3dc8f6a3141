"""`vsa-rt compare`: a report against an earlier one, gated on intervals; exit code 1 names what got worse."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from benches import leave_out
from outcome import fails

from vsa_rt.bench.records.comparison import Comparison
from vsa_rt.bench.report import report_from_json, report_to_json
from vsa_rt.bundle import Bundle
from vsa_rt.pipeline.bench import BenchOptions, bench
from vsa_rt.pipeline.measuring.scenarios import ScenarioOptions

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Raw = dict[str, Any]
#: Changes a report's JSON in place.
Change = Callable[[Raw], None]


def _calm(raw: Raw) -> None:
    """Samples around their median that scatter by half a percent, and a verdict to match: what a quiet machine gives.

    A busy machine would make any report red, and no comparison pass.
    """
    rng = np.random.default_rng(0)

    def quiet(samples: list[float]) -> list[float]:
        return [float(v) for v in np.median(samples) * np.exp(0.005 * rng.standard_normal(96))]

    for run in raw["runs"]:
        run["latency"] |= {
            "samples": quiet(run["latency"]["samples"]),
            "warm_up": 0,
            "steady": True,
            "drift": 0.0,
        }
        run |= {"valid": True, "reasons": []}
    for contest in raw["contests"]:
        for side in contest["contestants"]:
            side["samples"] = quiet(side["samples"])
    raw["verdict"] = {"level": "green", "reasons": [], "headline": "calm"}


@pytest.fixture(scope="module")
def measured(tiny_bundle: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Raw:
    """A report that the harness made, its samples calmed."""
    load = ScenarioOptions(seconds=0.1)
    options = BenchOptions(data=toy_data, batches=[1], against=("onnxruntime",), load=load)
    with pytest.MonkeyPatch.context() as patch:
        leave_out(patch)
        report = bench([Bundle.open(tiny_bundle)], options)
    raw: Raw = json.loads(report_to_json(report))
    _calm(raw)
    assert report_from_json(json.dumps(raw).encode(), "calmed")
    return raw


@pytest.fixture
def old(measured: Raw, tmp_path: Path) -> Path:
    """The report in its folder."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "report.json").write_text(json.dumps(measured))
    return tmp_path / "old"


@pytest.fixture
def changed(measured: Raw, tmp_path: Path) -> Callable[..., Path]:
    """Writes the report with changes planted."""

    def write(*changes: Change) -> Path:
        raw = copy.deepcopy(measured)
        for change in changes:
            change(raw)
        path = tmp_path / "new.json"
        path.write_text(json.dumps(raw))
        return path

    return write


def lead(raw: Raw) -> str:
    name: str = raw["plans"][0]["name"]
    return name


def slower(share: float, plan: Callable[[Raw], str] = lead) -> Change:
    """One plan takes so much longer, wherever it was timed; the baselines do not."""

    def change(raw: Raw) -> None:
        name = plan(raw)
        sides = [s for c in raw["contests"] for s in c["contestants"] if s["name"] == name]
        series = [r["latency"] for r in raw["runs"] if r["plan"] == name]
        assert sides
        for one in [*sides, *series]:
            one["samples"] = [v * (1 + share) for v in one["samples"]]

    return change


def machine_slower(share: float) -> Change:
    """Everything takes longer: another day, or another machine of the same name."""

    def change(raw: Raw) -> None:
        for one in [s for c in raw["contests"] for s in c["contestants"]] + [
            r["latency"] for r in raw["runs"]
        ]:
            one["samples"] = [v * (1 + share) for v in one["samples"]]

    return change


def parity_of(raw: Raw, plan: str) -> Raw:
    found: Raw = next(p["parity"] for c in raw["parity"] for p in c["plans"] if p["plan"] == plan)
    return found


def flipped(raw: Raw) -> None:
    """Every label is another one, and parity is said to hold."""
    parity = parity_of(raw, lead(raw))
    names = [f"{i}.jpg" for i in range(parity["images"])]
    parity["flips"] = [
        {"item": n, "reference": "dark", "candidate": "bright", "margin": 0.5, "tie": False} for n in names
    ]


def parity_lost(raw: Raw) -> None:
    parity_of(raw, lead(raw))["reasons"] = ["small: scaled by 1.0200, allowed 1 +- 0.0115"]


def red(raw: Raw) -> None:
    reason = {"level": "red", "code": "throttled", "text": "it was too hot"}
    raw["verdict"] = {"level": "red", "reasons": [reason], "headline": None}


def compared(done: subprocess.CompletedProcess[str]) -> Comparison:
    """What ``--json`` printed, and nothing else."""
    assert done.stderr == ""
    found = msgspec.json.decode(done.stdout, type=Comparison)
    assert (found.kind, done.returncode) == ("compare", 1 if found.failed else 0)
    assert bool(found.reasons) == found.failed
    return found


def test_a_report_against_itself_passes(here: Cli, old: Path) -> None:
    for one, other in ((old, old), (old / "report.json", old)):
        done = here("compare", one, other)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("no regression shown: ")
    found = compared(here("compare", old, old, "--json"))
    assert {r.quantity for r in found.rows} == {"latency", "parity", "flips", "metric"}
    # None of twelve labels flips, which bounds no share of 1 %.
    undecided = [r for r in found.rows if r.gates and r.verdict == "inconclusive"]
    assert {(r.quantity, r.new) for r in undecided} == {("flips", 0.0)}
    assert found.inconclusive == len(undecided)
    assert {r.verdict for r in found.rows if r.gates and r.quantity in ("latency", "parity")} == {"within"}
    assert all(r.change == pytest.approx(1) for r in found.rows if r.quantity == "latency")


def test_a_plan_that_got_slower_is_named(
    here: Cli, old: Path, changed: Callable[..., Path], measured: Raw
) -> None:
    new = changed(slower(0.2))
    done = here("compare", old, new)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("refused: ")
    assert (
        f"{lead(measured)}, batch 1, contest, tensors, by baseline onnxruntime: slower by 20.0 %"
        in done.stdout
    )
    assert "allowed 5.0 %" in done.stdout
    found = compared(here("compare", old, new, "--json"))
    worse = [r for r in found.rows if r.verdict == "regression"]
    assert {r.plan for r in worse} == {lead(measured)}
    assert {r.by for r in worse} == {"baseline onnxruntime", "wall clock"}
    for row in worse:
        assert row.change == pytest.approx(1.2)
        assert row.low is not None
        assert row.low > 1.05


def test_a_plan_that_does_not_lead_is_held_to_the_same(
    here: Cli, old: Path, changed: Callable[..., Path], measured: Raw
) -> None:
    last: str = measured["plans"][-1]["name"]
    found = compared(here("compare", old, changed(slower(0.2, lambda raw: last)), "--json"))
    assert {r.plan for r in found.rows if r.verdict == "regression"} == {last}


@pytest.mark.parametrize("share", ["30%", "0.3", " 30 % "])
def test_a_larger_limit_lets_it_pass(here: Cli, old: Path, changed: Callable[..., Path], share: str) -> None:
    found = compared(here("compare", old, changed(slower(0.2)), "--max-slowdown", share, "--json"))
    assert not found.failed
    assert found.limits.max_slowdown == pytest.approx(0.3)


def test_a_faster_plan_is_no_regression(here: Cli, old: Path, changed: Callable[..., Path]) -> None:
    assert not compared(here("compare", old, changed(slower(-0.2)), "--max-slowdown", "0", "--json")).failed


def test_a_slower_machine_is_no_slower_plan(here: Cli, old: Path, changed: Callable[..., Path]) -> None:
    """The baseline of the same run got as slow: its ratio decides, the wall clock does not."""
    found = compared(here("compare", old, changed(machine_slower(0.2)), "--json"))
    assert not found.failed
    clocks = [r for r in found.rows if r.by == "wall clock"]
    assert clocks
    assert {(r.verdict, r.gates) for r in clocks} == {("regression", False)}


def test_flipped_labels_are_refused_even_where_parity_is_said_to_hold(
    here: Cli, old: Path, changed: Callable[..., Path], measured: Raw
) -> None:
    new = changed(flipped)
    done = here("compare", old, new)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"{lead(measured)}: flips 100.0 %" in done.stdout
    [row] = [r for r in compared(here("compare", old, new, "--json")).rows if r.verdict == "regression"]
    assert (row.quantity, row.plan, row.change) == ("flips", lead(measured), 1.0)
    assert not compared(here("compare", old, new, "--max-flips", "100%", "--json")).failed


def test_parity_that_is_lost_is_refused_and_named(
    here: Cli, old: Path, changed: Callable[..., Path], measured: Raw
) -> None:
    done = here("compare", old, changed(parity_lost))
    assert (done.returncode, done.stderr) == (1, "")
    assert f"{lead(measured)}: parity held before and fails: small: scaled by 1.0200" in done.stdout


@pytest.mark.parametrize("change", [flipped, parity_lost])
def test_no_slowdown_limit_lets_wrong_answers_pass(
    here: Cli, old: Path, changed: Callable[..., Path], change: Change
) -> None:
    assert here("compare", old, changed(change), "--max-slowdown", "1000%").returncode == 1


def test_a_red_report_is_refused_and_an_old_one_noted(
    here: Cli, old: Path, changed: Callable[..., Path]
) -> None:
    new = changed(red)
    assert any("it was too hot" in reason for reason in compared(here("compare", old, new, "--json")).reasons)
    other = compared(here("compare", new, old, "--json"))
    assert not other.failed
    assert any("it was too hot" in note for note in other.notes)


def test_a_plan_that_is_gone_is_refused(
    here: Cli, old: Path, changed: Callable[..., Path], measured: Raw
) -> None:
    last: str = measured["plans"][-1]["name"]

    def drop(raw: Raw) -> None:
        for part in ("plans", "points", "runs"):
            key = "name" if part == "plans" else "plan"
            raw[part] = [one for one in raw[part] if one[key] != last]
        for contest in raw["contests"]:
            contest["contestants"] = [s for s in contest["contestants"] if s["name"] != last]
            contest["pairings"] = [p for p in contest["pairings"] if last not in (p["slower"], p["faster"])]

    found = compared(here("compare", old, changed(drop), "--json"))
    assert any(reason.startswith(f"{last}: not in the new report") for reason in found.reasons)


@pytest.mark.parametrize("option", ["--max-slowdown", "--max-flips"])
@pytest.mark.parametrize("share", ["x", "", "%", "-1%", "nan", "inf", "5%%", "5 percent"])
def test_what_is_no_share_is_refused(here: Cli, old: Path, option: str, share: str) -> None:
    fails(
        here("compare", old, old, f"{option}={share}"), 2, f"{option} .*expected a share such as 5% or 0.05"
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not a report"),
        ("{", "not a report"),
        ("[1, 2]", "list"),
        ('{"a": 1}', "'kind': None"),
        ('{"schema": 1, "kind": "compare"}', "'kind': 'compare'"),
        ('{"schema": 99, "kind": "bench"}', "'schema': 99"),
        ('{"schema": 1, "kind": "bench"}', "missing required field"),
    ],
    ids=["empty", "cut", "list", "json", "comparison", "other-schema", "blank"],
)
def test_what_is_no_report_is_refused_on_either_side(
    here: Cli, old: Path, tmp_path: Path, content: str, says: str
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(content)
    for sides in ((old, bad), (bad, old)):
        fails(here("compare", *sides, "--json"), 2, rf"bad\.json: .*{says}")


def test_a_folder_without_a_report_is_refused(here: Cli, old: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fails(here("compare", old, tmp_path / "empty"), 2, r"empty/report\.json: No such file")
    fails(here("compare", tmp_path / "nowhere", old), 2, "nowhere: No such file")


def test_as_json_stdout_is_one_document(vsa: Cli, old: Path, tmp_path: Path) -> None:
    """As a process of its own, which writes nothing anywhere."""
    empty = tmp_path / "cwd"
    empty.mkdir()
    shutil.copytree(old, tmp_path / "copy")
    done = vsa("compare", old, tmp_path / "copy", "--json", cwd=empty)
    assert not compared(done).failed
    assert list(empty.iterdir()) == []
    assert sorted(p.name for p in old.iterdir()) == ["report.json"]
