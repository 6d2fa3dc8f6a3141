"""`vsa-rt bisect`: what it prints, what it writes, and how it exits."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from outcome import fails

from vsa_rt.budget import Budget
from vsa_rt.cli.options import excluded_of
from vsa_rt.contracts import Precision, Target
from vsa_rt.errors import ItemError
from vsa_rt.export.lowering.units import Unit
from vsa_rt.pipeline.bisect import Bisection, BisectOptions, Guilty
from vsa_rt.pipeline.search.exclusions import exclusions_to_text
from vsa_rt.pipeline.search.suspects import Suspect
from vsa_rt.pipeline.search.trials import Basis, Role, Trial, Verified
from vsa_rt.plan import Plan

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
PLAN = Plan.uniform(["r", "s[0]"], Precision.INT8)


def trial(plan: Plan, kl: float | None, role: Role = "search", relative: float | None = 0.1) -> Trial:
    return Trial(
        role=role,
        plan=plan,
        images=704,
        flips=3 if kl else 0,
        ties=1,
        widest=0.25,
        kl=kl,
        relative=relative,
        accuracy=[-0.02, -0.03, -0.01],
        reasons=[] if kl is not None and kl <= 0.01 else ["scores: mean KL 0.2 nats [b], the budget is 0.01"],
    )


def found(**changed: Any) -> Bisection:
    final = PLAN.without(["r/conv1", "r/relu1", "r/conv2"])
    fields: dict[str, Any] = {
        "outcome": "found",
        "suspect": Suspect(Target("openvino", "cpu"), PLAN, "engine engines/x, which failed its gate"),
        "budget": Budget(),
        "basis": Basis(reference="torch", why="", stand_ins=2, rejected=[]),
        "decides": True,
        "trials": [
            trial(PLAN, 0.2, "whole"),
            trial(PLAN.with_backbone("r", Precision.FP32), 0.004, "one backbone"),
            trial(PLAN.without(["r/conv1"]), 0.0314, "search"),
        ],
        "resumed": 1,
        "backbones": ["r"],
        "nodes": [
            Guilty(
                Unit("r", "Conv", (64, 3, 7, 7), ("r/conv1", "r/relu1")),
                trial(PLAN.without(["r/conv2"]), 0.07),
            ),
            Guilty(Unit("r", "Conv", (64, 64, 3, 3), ("r/conv2",)), None),
        ],
        "lowered": 155,
        "minimal": True,
        "exclude": ["r/conv1", "r/relu1", "r/conv2"],
        "verified": Verified(
            before=PLAN,
            trial=trial(final, 0.0031),
            before_ms={"1": 5.0, "8": 31.5},
            after_ms={"1": 5.25, "8": 33.0},
        ),
        "rejected": [ItemError("bad.png", "cut off")],
        "notes": ["trials-1.json is odd"],
    }
    return Bisection(**fields | changed)


@pytest.fixture
def bisect(here: Cli, exported_nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the command with a finding that is given."""
    from vsa_rt.bundle import Bundle
    from vsa_rt.pipeline import bisect as module

    def run(finding: Bisection, *arguments: object) -> tuple[subprocess.CompletedProcess[str], BisectOptions]:
        seen: list[BisectOptions] = []

        def fake(bundle: Bundle, data: Path, options: BisectOptions) -> Bisection:
            seen.append(options)
            return finding

        monkeypatch.setattr(module, "bisect", fake)
        monkeypatch.setattr(Bundle, "open", lambda path: path)
        done = here("bisect", exported_nowhere, "--data", exported_nowhere, *arguments)
        return done, seen[0]

    return run


@pytest.fixture
def exported_nowhere(tmp_path: Path) -> Path:
    """A path; no bundle lies there."""
    return tmp_path / "bundle"


def test_the_guilty_nodes_are_printed_with_what_they_cost(bisect: Callable[..., Any], tmp_path: Path) -> None:
    done, options = bisect(found(), "-o", tmp_path / "out", "--trials", 7, "--budget", "kl=0.02")
    assert done.returncode == 0
    assert (options.out, options.limit, options.budget) == (tmp_path / "out", 7, Budget(kl=0.02))
    for words in (
        "openvino:cpu: engine engines/x, which failed its gate",
        "reference: torch, 704 photographs",
        "2 photographs without ready tensors",
        "guilty: 3 of 155 nodes of r",
        "what it costs a call: batch 1: 5.00 to 5.25 ms, batch 8: 31.50 to 33.00 ms",
        "3 trials, 1 in search of nodes, 1 of them by an earlier run",
        "note: trials-1.json is odd",
        "mean KL 0.2 nats [b]",
    ):
        assert words in done.stdout, words
    assert re.search(r"^whole +all int8 .*0\.2 +-2\.0 +over budget *$", done.stdout, re.MULTILINE)
    assert re.search(
        r"^with the list +all int8, 3 nodes fp32 .*0\.0031 +-2\.0 +inside *$", done.stdout, re.MULTILINE
    )
    assert re.search(r"^r +r/conv1 and 1 that follows +Conv +64x3x7x7 +0\.07 *$", done.stdout, re.MULTILINE)
    assert re.search(r"^r +r/conv2 +Conv +64x64x3x3 +- *$", done.stdout, re.MULTILINE)
    assert "--exclude" in done.stdout
    assert "bad.png" in done.stderr
    assert "limit" not in done.stdout


def test_a_search_that_was_cut_short_says_so(bisect: Callable[..., Any]) -> None:
    done, options = bisect(found(minimal=False))
    assert "the limit of trials was reached" in done.stdout
    assert "no list was written: name a folder with -o" in done.stdout
    assert (options.out, options.limit, options.budget) == (None, 150, None)


def test_outputs_are_judged_where_labels_mean_nothing(bisect: Callable[..., Any]) -> None:
    undecided = [trial(PLAN, None, "whole", relative=None)]
    done, _ = bisect(found(decides=False, trials=undecided))
    assert "the labels mean nothing" in done.stdout
    assert "relative" in done.stdout
    assert "KL" not in done.stdout.replace("kl=0.01", "").replace("mean KL 0.2", "")


@pytest.mark.parametrize(
    ("outcome", "code", "words"),
    [
        ("holds", 0, "nothing is guilty: the plan is inside the budget"),
        ("impossible", 1, "no list helps"),
        ("not reproducible", 1, "not reproducible"),
    ],
)
def test_each_outcome_has_its_words_and_its_exit_code(
    bisect: Callable[..., Any], outcome: Any, code: int, words: str
) -> None:
    none: dict[str, Any] = {"nodes": [], "exclude": [], "verified": None, "backbones": []}
    done, _ = bisect(found(outcome=outcome, **none))
    assert done.returncode == code
    assert words in done.stdout
    document = json.loads(bisect(found(outcome=outcome, **none), "--json")[0].stdout)
    assert (document["outcome"], document["verified"], document["before_ms"]) == (outcome, None, None)


def test_the_document_has_everything_that_was_found(bisect: Callable[..., Any], tmp_path: Path) -> None:
    done, _ = bisect(found(), "--json", "-o", tmp_path / "out")
    document = json.loads(done.stdout)
    assert (document["schema"], document["kind"], document["outcome"]) == (1, "bisect", "found")
    assert document["plan"]["backbones"] == {"r": "int8", "s[0]": "int8"}
    assert [(t["role"], t["passed"]) for t in document["trials"]] == [
        ("whole", False),
        ("one backbone", True),
        ("search", False),
    ]
    first, second = document["nodes"]
    assert (first["backbone"], first["op"], first["weights"]) == ("r", "Conv", [64, 3, 7, 7])
    assert (first["nodes"], first["lowered"]["kl"], second["lowered"]) == (["r/conv1", "r/relu1"], 0.07, None)
    assert document["exclude"] == ["r/conv1", "r/relu1", "r/conv2"]
    assert (document["verified"]["kl"], document["after_ms"]) == (0.0031, {"1": 5.25, "8": 33.0})
    assert document["rejected"] == [{"item": "bad.png", "error": "cut off"}]
    # docs/json.md names every key.
    text = (Path(__file__).resolve().parents[1] / "docs" / "json.md").read_text(encoding="utf-8")
    missing = [key for key in document if f"`{key}`" not in text]
    assert not missing


def test_the_list_says_why_and_build_reads_it(tmp_path: Path) -> None:
    text = exclusions_to_text(found())
    assert text.splitlines() == [
        "# openvino:cpu, all int8, against torch over 704 photographs",
        "# budget: flips=1%,margin=0.2,kl=0.01,accuracy=0%",
        "# without this list: KL 0.2, over budget",
        "# with it: KL 0.0031, inside the budget",
        "# r, Conv 64x3x7x7: lowered all the same, KL 0.07, over budget",
        "r/conv1",
        "r/relu1",
        "# r, Conv 64x64x3x3",
        "r/conv2",
    ]
    (tmp_path / "list").write_text(text, encoding="utf-8")
    assert excluded_of(tmp_path / "list") == found().exclude


def test_what_was_excluded_before_stays_in_the_list(tmp_path: Path) -> None:
    suspect = Suspect(Target("openvino", "cpu"), PLAN.without(["s/gemm"]), "x")
    text = exclusions_to_text(found(suspect=suspect, exclude=["s/gemm", *found().exclude]))
    (tmp_path / "list").write_text(text, encoding="utf-8")
    assert excluded_of(tmp_path / "list") == ["s/gemm", *found().exclude]


@pytest.mark.parametrize("name", [" conv", "conv ", "#conv", "a\nb", "a\u2028b", ""])
def test_a_name_that_a_list_cannot_hold_is_refused(name: str) -> None:
    from vsa_rt.errors import UsageError

    with pytest.raises(UsageError, match="rename"):
        exclusions_to_text(found(nodes=[Guilty(Unit("r", "Conv", (), (name,)), None)]))


def test_wrong_use_is_one_line(here: Cli, tmp_path: Path) -> None:
    fails(here("bisect", tmp_path, "--data", tmp_path), 3, "not a bundle")
    fails(here("bisect", tmp_path, "--data", tmp_path, "--budget", "speed=1"), 2, "budget")
    fails(here("bisect", tmp_path, "--data", tmp_path, "--target", "openvino"), 2, "BACKEND:DEVICE")
    fails(here("bisect", tmp_path, "--data", tmp_path, "--weights", "r"), 2, "NAME=PATH")


@pytest.mark.parametrize("arguments", [[], ["bundle"], ["b", "--data", "d", "--trials", "0"], ["b", "--data", "d", "--precision", "int4"]])  # fmt: skip
def test_wrong_arguments_exit_with_two(here: Cli, arguments: list[str]) -> None:
    done = here("bisect", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr
