"""The gate between two reports: planted regressions fail, noise and other machines do not, nothing passes silently."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from compared import LIBRARIES, PLAN, a_contest, a_parity, a_plan, a_run, machine, report, rows, times
from msgspec.structs import replace

from vsa_rt.bench.baselines import BASELINES
from vsa_rt.bench.compare import Comparison, Limits, compare
from vsa_rt.bench.records.contest import Contest
from vsa_rt.bench.records.timing import Run
from vsa_rt.bench.records.trust import (
    Environment,
)
from vsa_rt.bench.report import report_from_json, report_to_json
from vsa_rt.errors import UsageError

# Wall clocks


def test_a_slowdown_beyond_the_limit_is_a_regression() -> None:
    """7 % with 1 % of noise, 5 % allowed."""
    found = compare(report([a_run(times(0))]), report([a_run(times(1, 5.0 * 1.07))]))
    (row,) = rows(found)
    assert found.failed
    assert (row.verdict, row.by, row.gates) == ("regression", "wall clock", True)
    assert row.low is not None
    assert row.change is not None
    assert row.high is not None
    assert 1.05 < row.low < 1.07 < row.high < 1.08
    assert row.change == pytest.approx(1.07, abs=0.003)
    assert [row.old, row.new] == pytest.approx([5, 5.35], abs=0.02)
    assert "slower by 7" in found.reasons[0]
    assert "allowed 5.0 %" in found.reasons[0]


@pytest.mark.parametrize("factor", [1.03, 1.0, 0.5])
def test_a_slowdown_within_the_limit_passes(factor: float) -> None:
    found = compare(report([a_run(times(0))]), report([a_run(times(1, 5.0 * factor))]))
    assert [r.verdict for r in rows(found)] == ["within"]
    assert (found.failed, found.reasons, found.inconclusive) == (False, [], 0)


def test_noise_decides_nothing() -> None:
    old, new = (
        report([a_run(times(0, noise=0.3, count=60))]),
        report([a_run(times(1, 5.3, noise=0.3, count=60))]),
    )
    found = compare(old, new)
    assert [r.verdict for r in rows(found)] == ["inconclusive"]
    assert (found.failed, found.inconclusive) == (False, 1)


def test_the_limit_is_the_callers() -> None:
    old, new = report([a_run(times(0))]), report([a_run(times(1, 5.15))])
    assert not compare(old, new).failed
    assert compare(old, new, Limits(max_slowdown=0.01)).failed
    for wrong in (Limits(max_slowdown=-0.1), Limits(max_flips=float("nan")), Limits(max_flips=float("inf"))):
        with pytest.raises(UsageError, match="expected a share"):
            compare(old, new, wrong)


def test_the_warm_up_is_not_compared() -> None:
    """With the slow third the median would lie 7 % higher."""
    slow_start = [*times(2, 15.0, noise=0.1, count=140), *times(1, noise=0.1, count=260)]
    found = compare(report([a_run(times(0, noise=0.1))]), report([a_run(slow_start)]))
    (row,) = rows(found)
    assert row.verdict == "within"
    assert row.new == pytest.approx(5, rel=0.03)


def test_identical_reports_pass() -> None:
    whole = report([a_run(times(0))], [a_contest(times(0), times(1, 20))], [a_parity()])
    found = compare(whole, whole)
    assert not found.failed
    assert found.notes == []
    assert {r.verdict for r in found.rows} == {"within"}


def test_another_machine_decides_nothing_by_the_wall_clock() -> None:
    for changed in (
        {"processor": "Xeon B"},
        {"cores": 4},
        {"instruction_sets": ["avx2", "amx"]},
        {"gpus": ["G"]},
    ):
        new = report([a_run(times(1, 2.0))], environment=machine(**changed))
        found = compare(report([a_run(times(0))]), new)
        (row,) = rows(found)
        assert (row.verdict, found.failed, found.inconclusive) == ("inconclusive", False, 1)
        assert "different machines" in row.note
        assert any("different machines" in n for n in found.notes)


def test_other_threads_decide_nothing() -> None:
    found = compare(report([a_run(times(0))]), report([a_run(times(1, 4.0))], plans=[a_plan(threads=4)]))
    assert [(r.verdict, r.note) for r in rows(found)] == [("inconclusive", "2 threads before, 4 now")]
    assert any("threads 2 before, 4 now" in n for n in found.notes)


def test_other_photographs_decide_nothing_where_they_are_decoded() -> None:
    runs = [[a_run(times(s)), a_run(times(s + 1), feed="images")] for s in (0, 2)]
    found = compare(report(runs[0]), report(runs[1], inputs_sha256="bb", inputs="13 photographs"))
    assert {r.feed: r.verdict for r in rows(found)} == {"tensors": "within", "images": "inconclusive"}
    assert "different inputs: 12 photographs before, 13 photographs now" in found.notes


@pytest.mark.parametrize("spoilt", ["old", "new"])
def test_a_run_that_is_not_valid_or_not_steady_decides_nothing(spoilt: str) -> None:
    throttled = [*times(1, count=240), *times(2, 7.0, count=160)]
    for run, words in (
        (a_run(times(1), reasons=["3 of 9 queries"]), "not valid: 3 of 9 queries"),
        (a_run(throttled), "not steady"),
    ):
        good, bad = report([a_run(times(0))]), report([run])
        found = compare(bad, good) if spoilt == "old" else compare(good, bad)
        (row,) = rows(found)
        assert row.verdict == "inconclusive"
        assert row.note.startswith(f"{spoilt}: {words}")


def test_too_few_samples_decide_nothing() -> None:
    found = compare(report([a_run(times(0))]), report([a_run([5.0, 5.1, 5.2])]))
    (row,) = rows(found)
    assert (row.verdict, row.confidence) == ("inconclusive", None)
    assert "too few samples" in row.note


def test_a_throughput_without_samples_is_shown_and_decides_nothing() -> None:
    old, new = (report([a_run(None, scenario="offline", throughput=t)]) for t in (200.0, 100.0))
    found = compare(old, new)
    (row,) = rows(found, quantity="throughput")
    assert (row.old, row.new, row.change, row.verdict) == (200.0, 100.0, 2.0, "inconclusive")
    assert "without samples" in row.note


def test_another_load_is_another_measurement() -> None:
    def load(fps: float, middle: float) -> Run:
        return a_run(times(int(fps), middle), scenario="camera", settings={"fps": fps, "seconds": fps})

    found = compare(report([load(30, 5), load(60, 8)]), report([load(30, 5), load(90, 9)]))
    assert [(r.name, r.verdict) for r in rows(found)] == [("fps 30", "within")]
    assert f"only in the old report: {PLAN}, batch 1, camera (fps 60), tensors" in found.notes
    assert f"only in the new report: {PLAN}, batch 1, camera (fps 90), tensors" in found.notes


# Baselines


def libraries(**changed: str) -> Environment:
    """The same machine with other versions."""
    return machine(libraries=LIBRARIES | {k.replace("_", "-"): v for k, v in changed.items()})


def loud(found: Comparison) -> list[str]:
    return [n for n in found.notes if "the machine is slower, or both are" in n]


def test_a_machine_twice_as_slow_passes_by_its_baseline_and_is_told() -> None:
    old = report([a_run(times(0))], [a_contest(times(1), times(2, 20))])
    new = report([a_run(times(3, 10))], [a_contest(times(4, 10), times(5, 40))])
    found = compare(old, new)
    (judged,) = rows(found, "baseline eager")
    assert (judged.verdict, judged.gates, judged.scenario) == ("within", True, "contest")
    assert [judged.old, judged.new] == pytest.approx([0.25, 0.25], rel=0.01)
    clocks = rows(found, "wall clock")
    assert {r.scenario for r in clocks} == {"quick", "contest"}
    assert all(r.verdict == "regression" and not r.gates for r in clocks)
    assert not found.failed
    told = loud(found)
    assert found.notes[:2] == told
    for scenario, note in zip(("quick", "contest"), told, strict=True):
        assert note.startswith(f"{PLAN}, batch 1, {scenario}, tensors: slower by ")
        assert note.endswith(
            "by the wall clock, as slow as before against eager: the machine is slower, or both are"
        )


def test_nothing_is_said_of_the_machine_where_the_baseline_shows_the_regression() -> None:
    old = report([a_run(times(0))], [a_contest(times(1), times(2, 20))])
    new = report([a_run(times(3, 6))], [a_contest(times(4, 6), times(5, 20))])
    found = compare(old, new)
    assert found.failed
    assert [r.by for r in found.rows if r.gates and r.verdict == "regression"] == ["baseline eager"]
    assert loud(found) == []


@pytest.mark.parametrize("plan", [3.0, 3.21, 10.0])
def test_on_another_machine_neither_baseline_nor_clock_decides(plan: float) -> None:
    """Processors differ in what they gain by an engine: the same plan may be worth less against eager."""
    old = report([a_run(times(0))], [a_contest(times(1), times(2, 20))])
    new = report(
        [a_run(times(3, plan))],
        [a_contest(times(4, plan), times(5, 12))],
        environment=machine(processor="Xeon B"),
    )
    found = compare(old, new)
    assert not found.failed
    assert {(r.by, r.verdict) for r in rows(found)} == {
        ("baseline eager", "inconclusive"),
        ("wall clock", "inconclusive"),
    }
    assert all("different machines: processor Xeon A before, Xeon B now" in r.note for r in rows(found))
    assert found.inconclusive == len(rows(found)) == 3
    assert any(n.startswith("different machines, no time decides anything") for n in found.notes)


def test_a_faster_torch_is_no_slower_plan() -> None:
    """The plan takes what it took; eager got 10 % faster with another version."""
    old = report([a_run(times(0))], [a_contest(times(1), times(2, 20))])
    new = report([a_run(times(3))], [a_contest(times(4), times(5, 18))], environment=libraries(torch="2.9"))
    found = compare(old, new)
    (row,) = rows(found, "baseline eager")
    assert row.low is not None
    assert row.low > 1.05
    assert (row.verdict, row.note) == ("inconclusive", "eager is measured by torch: 2.8 before, 2.9 now")
    assert {r.verdict for r in rows(found, "wall clock")} == {"within"}
    assert all(r.gates for r in rows(found, "wall clock"))
    assert not found.failed


def test_a_library_that_slows_down_plan_and_baseline_alike_does_not_hide_it() -> None:
    """Both are OpenVINO's, and 30 % slower since its upgrade."""
    old = report([a_run(times(0))], [a_contest(times(1), times(2, 20), name="openvino-separate")])
    new = report(
        [a_run(times(3, 6.5))],
        [a_contest(times(4, 6.5), times(5, 26), name="openvino-separate")],
        environment=libraries(openvino="2025.2"),
    )
    found = compare(old, new)
    assert found.failed
    (row,) = rows(found, "baseline")
    assert (row.verdict, row.note) == (
        "inconclusive",
        "openvino-separate is measured by openvino: 2025.1 before, 2025.2 now",
    )
    assert {(r.verdict, r.gates) for r in rows(found, "wall clock")} == {("regression", True)}
    assert loud(found) == []


@pytest.mark.parametrize(
    ("name", "changed", "decides"),
    [
        ("eager", {"openvino": "2025.2", "numpy": "2.3", "onnxruntime": "1.23"}, True),
        ("eager-separate", {"torch": "2.9"}, False),
        ("eager-bf16", {"torch": "2.9"}, False),
        ("channels-last", {"torch": "2.9"}, False),
        ("compile", {"torch": "2.9"}, False),
        ("onnxruntime", {"torch": "2.9", "openvino": "2025.2"}, True),
        ("onnxruntime", {"onnxruntime": "1.23"}, False),
        ("onnxruntime-separate", {"onnxruntime_gpu": "1.23"}, False),
        ("openvino-separate", {"torch": "2.9", "onnxruntime": "1.23"}, True),
        ("openvino-default", {"openvino": "2025.2"}, False),
        ("homemade", {}, True),
        ("homemade", {"pillow": "11.1"}, False),
    ],
)
def test_a_baseline_decides_while_its_own_library_stays(
    name: str, changed: dict[str, str], decides: bool
) -> None:
    old = report(contests=[a_contest(times(1), times(2, 20), name=name)])
    new = report(contests=[a_contest(times(4, 6), times(5, 20), name=name)], environment=libraries(**changed))
    found = compare(old, new)
    (row,) = rows(found, "baseline")
    assert (row.verdict, bool(row.note)) == (
        "regression" if decides else "inconclusive",
        not decides,
    )
    assert [r.gates for r in rows(found, "wall clock")] == [not decides]


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_has_a_library_of_its_own(name: str) -> None:
    """A baseline that `compare` does not know would cease to decide with whatever library changes."""
    contests = [a_contest(times(1), times(2, 20), name=name)]
    found = compare(report(contests=contests), report(contests=contests, environment=libraries(pillow="12")))
    assert [r.verdict for r in rows(found, "baseline")] == ["within"]


def test_a_noisy_baseline_leaves_it_to_the_clock() -> None:
    old = report([a_run(times(0))], [a_contest(times(1), times(2, 20, noise=1.5, count=400))])
    new = report([a_run(times(3, 6))], [a_contest(times(4, 6), times(5, 24, noise=1.5, count=400))])
    found = compare(old, new)
    (row,) = rows(found, "baseline")
    assert row.confidence is not None
    assert row.low is not None
    assert row.high is not None
    assert row.low < 1
    assert row.high > 1.05
    assert row.verdict == "inconclusive"
    assert {(r.verdict, r.gates) for r in rows(found, "wall clock")} == {("regression", True)}
    assert found.failed


@pytest.mark.parametrize("order", [("eager", "onnxruntime"), ("onnxruntime", "eager")])
def test_of_several_baselines_the_steadiest_decides(order: tuple[str, str]) -> None:
    def contest(seed: int, plan: float) -> Contest:
        sides = {
            "eager": times(seed + 1, 20, noise=0.8),
            "onnxruntime": times(seed + 2, 10, noise=0.02),
        }
        return a_contest(
            times(seed, plan), sides[order[0]], name=order[0], others={order[1]: sides[order[1]]}
        )

    found = compare(report(contests=[contest(0, 5)]), report(contests=[contest(10, 5.4)]))
    assert [(r.by, r.verdict) for r in rows(found, "baseline")] == [("baseline onnxruntime", "regression")]


def test_the_steadiest_baseline_does_not_decide_if_its_library_changed() -> None:
    def contest(seed: int) -> Contest:
        return a_contest(
            times(seed), times(seed + 1, 20), others={"onnxruntime": times(seed + 2, 10, noise=0.1)}
        )

    old = report(contests=[contest(0)])
    for changed, by, verdict in (
        ({"torch": "2.9"}, "baseline onnxruntime", "within"),
        ({"onnxruntime": "1.23"}, "baseline eager", "within"),
        ({"torch": "2.9", "onnxruntime": "1.23"}, "baseline eager", "inconclusive"),
    ):
        found = compare(old, report(contests=[contest(10)], environment=libraries(**changed)))
        assert [(r.by, r.verdict) for r in rows(found, "baseline")] == [(by, verdict)]


def test_a_baseline_leaves_out_what_drifts_within_a_report() -> None:
    drift = np.linspace(1, 3, 400)
    shaken = a_contest((np.array(times(0)) * drift).tolist(), (np.array(times(1, 20)) * drift).tolist())
    found = compare(report(contests=[a_contest(times(2), times(3, 20))]), report(contests=[shaken]))
    assert [r.verdict for r in rows(found, "baseline")] == ["within"]


def test_a_baseline_does_not_judge_what_it_does_not_measure() -> None:
    """Decoding became slower; engine calls did not."""
    contests = [a_contest(times(1), times(2, 20))]
    old = report([a_run(times(0, 8), feed="images")], contests)
    new = report([a_run(times(3, 9), feed="images")], contests)
    found = compare(old, new)
    assert found.failed
    assert [(r.feed, r.gates, r.verdict) for r in rows(found, "wall") if r.scenario == "quick"] == [
        ("images", True, "regression")
    ]


@pytest.mark.parametrize(("name", "precision"), [("compile", "fp32"), ("eager", "bf16")])
def test_another_baseline_is_none(name: str, precision: str) -> None:
    old = report(contests=[a_contest(times(0), times(1, 20))])
    new = report(contests=[a_contest(times(2, 6), times(3, 24), name=name, precision=precision)])
    found = compare(old, new)
    assert rows(found, "baseline") == []
    assert [(r.gates, r.verdict) for r in rows(found, "wall")] == [(True, "regression")]


def test_a_baseline_with_too_few_rounds_leaves_it_to_the_clock() -> None:
    old = report([a_run(times(0))], [a_contest(times(1, count=5), times(2, 20, count=5))])
    new = report([a_run(times(3, 6))], [a_contest(times(4, 6, count=5), times(5, 20, count=5))])
    found = compare(old, new)
    assert [r.verdict for r in rows(found, "baseline")] == ["inconclusive"]
    assert found.failed
    assert [r.verdict for r in rows(found, "wall") if r.scenario == "quick" and r.gates] == ["regression"]


def test_a_baseline_with_other_threads_decides_nothing() -> None:
    old = report(contests=[a_contest(times(0), times(1, 20))])
    new = report(contests=[a_contest(times(2, 9), times(3, 20), threads=1)])
    found = compare(old, new)
    assert [(r.by, r.verdict, r.note) for r in rows(found)] == [
        (by, "inconclusive", "2 threads before, 1 now") for by in ("baseline eager", "wall clock")
    ]
    assert not found.failed


# Plans


def test_a_plan_that_vanished_fails() -> None:
    other = a_plan("demo onnxruntime:cpu fp32", precision="fp32")
    old = report([a_run(times(0)), a_run(times(1), plan=other.name)], plans=[a_plan(), other])
    found = compare(old, report([a_run(times(2))], skipped={other.name: "onnxruntime is not installed"}))
    assert found.failed
    assert found.reasons == [f"{other.name}: not in the new report: onnxruntime is not installed"]
    back = compare(report([a_run(times(2))]), old)
    assert not back.failed
    assert f"{other.name}: only in the new report" in back.notes


def test_a_plan_that_is_no_longer_timed_fails() -> None:
    other = a_plan("demo onnxruntime:cpu fp32", precision="fp32")
    both = [a_plan(), other]
    old = report([a_run(times(0)), a_run(times(1), plan=other.name)], plans=both)
    found = compare(old, report([a_run(times(2))], plans=both))
    assert found.reasons == [f"{other.name}: both reports have it, and no measurement of it in common"]
    assert not compare(report([a_run(times(0))], plans=both), report([a_run(times(2))], plans=both)).failed


def test_nothing_in_common_fails() -> None:
    found = compare(report(plans=[]), report([a_run(times(0))]))
    assert found.failed
    assert "nothing was timed in both reports" in found.reasons


def test_a_bundle_in_another_folder_is_the_same_plan() -> None:
    name = "other openvino:cpu bf16"
    old = report([a_run(times(0))], parity=[a_parity()])
    new = report([a_run(times(1, 6.0), plan=name)], parity=[a_parity(plan=name)], plans=[a_plan(name)])
    found = compare(old, new)
    assert f"{PLAN} is held against {name}" in found.notes
    assert [(r.plan, r.bundle, r.verdict) for r in rows(found)] == [(name, "other", "regression")]
    assert [r.old for r in rows(found, quantity="flips")] == [0.0]
    two = report(
        [a_run(times(1), plan=n) for n in (name, "third openvino:cpu bf16")],
        plans=[a_plan(name), a_plan("third openvino:cpu bf16")],
    )
    assert f"{PLAN}: not in the new report" in compare(old, two).reasons


def test_a_red_report_fails_and_a_red_one_before_is_noted() -> None:
    good, red = report([a_run(times(0))]), report([a_run(times(1))], red="parity failed at tap lite0")
    found = compare(good, red)
    assert found.reasons == ["the new report is red: parity failed at tap lite0"]
    back = compare(red, good)
    assert not back.failed
    assert "the old report is red: parity failed at tap lite0" in back.notes


def test_what_differs_is_noted() -> None:
    old = report([a_run(times(0))])
    new = report(
        [a_run(times(1))],
        plans=[a_plan(precision="fp32")],
        environment=machine(
            libraries=LIBRARIES | {"openvino": "2025.2", "timm": "1.0"},
            variables={"OMP_NUM_THREADS": "1"},
            python="3.12",
        ),
        vsa_rt="0.5",
    )
    new = replace(new, bundles=[replace(b, digest="d2") for b in new.bundles])
    notes = compare(old, new).notes
    for words in (
        "library openvino: 2025.1 before, 2025.2 now",
        "library timm: absent before, 1.0 now",
        "variable OMP_NUM_THREADS: absent before, 1 now",
        "python 3.11 before, 3.12 now",
        "vsa_rt 0.4 before, 0.5 now",
        f"{PLAN}: precision bf16 before, fp32 now",
        "demo: another bundle than before (its manifest differs)",
    ):
        assert words in notes


# Documents


def test_reports_that_were_written_and_read_compare_alike() -> None:
    old = report([a_run(times(0))], [a_contest(times(1), times(2, 20))], [a_parity()])
    new = report([a_run(times(3, 5.5))], [a_contest(times(4, 5.5), times(5, 20))], [a_parity(flips=60)])
    before, after = (report_from_json(report_to_json(r), "here") for r in (old, new))
    found = compare(before, after)
    assert found == compare(old, new)
    assert len(found.reasons) == 2
    assert msgspec.json.decode(msgspec.json.encode(found), type=Comparison) == found
