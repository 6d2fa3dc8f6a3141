"""The verdict: every reason that it knows, planted into a report that is otherwise clean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import reports
import timings

from vsa_rt.bench import verdict
from vsa_rt.bench.parity import Parity, TapParity
from vsa_rt.bench.records.contest import Contest, Contestant, Pairing
from vsa_rt.bench.records.timing import Percentile, Plan, Resources, Run, Series, Split
from vsa_rt.bench.records.trust import (
    BundleFacts,
    Level,
    ParityCheck,
    PlanParity,
    Reason,
)
from vsa_rt.bench.report import SCHEMA, Report, report_from_json, report_to_json
from vsa_rt.bench.verdict import RULES, UNJUDGED, judge

#: A clean report, changed.
Plant = Callable[[Report], Report]

PLAN = "tiny openvino:cpu bf16"


def changed(record: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(record, **fields)


def series(count: int = 400) -> Series:
    return Series(
        samples=[11.9] * count,
        warm_up=0,
        steady=True,
        drift=0.004,
        autocorrelation=0.1,
        mean=11.9,
        least=11.5,
        most=13.0,
        percentiles=[
            Percentile(share=0.5, value=11.9, upper=12.1, confidence=0.95, needed=5),
            Percentile(share=0.9, value=12.5, upper=12.7, confidence=0.95, needed=29),
            Percentile(share=0.99, value=12.8, upper=12.95, confidence=0.95, needed=299),
        ],
    )


def resources() -> Resources:
    told = {"throttled": "thermal_throttle counters: 0 more"}
    return timings.resources(celsius=50.0, throttled=False, sources=told)


def parity(*reasons: str) -> Parity:
    tap = TapParity("scores", "scores", 0.01, 0.001, 0.02, 0.999, 1.0, "a.jpg", "")
    return Parity("engine", "torch", 40, [tap], [], 0.001, [], list(reasons))


def clean() -> Report:
    contestants = [
        Contestant(name=PLAN, kind="plan", precision="bf16", note="fused", samples=[12.0] * 21),
        Contestant(name="eager", kind="baseline", precision="fp32", note="PyTorch", samples=[56.4] * 21),
    ]
    pairing = Pairing(
        slower="eager",
        faster=PLAN,
        ratio=4.7,
        low=4.6,
        high=4.8,
        pairs=21,
        confidence=0.973,
        different=True,
    )
    return Report(
        schema=SCHEMA,
        kind="bench",
        vsa_rt="0",
        created="2026-01-01T00:00:00Z",
        command="vsa-rt bench tiny",
        seconds=60.0,
        inputs="photographs",
        inputs_sha256="0" * 64,
        environment=changed(reports.environment(), governor="performance", pinned=True),
        bundles=[
            BundleFacts(
                name="tiny",
                digest="0" * 64,
                recipe="tiny",
                task="binary",
                labels=["dark", "bright"],
                random_weights=[],
                max_batch=4,
            )
        ],
        plans=[
            Plan(
                name=PLAN,
                bundle="tiny",
                target="openvino:cpu",
                precision="bf16",
                achieved=1.0,
                threads=2,
                why="fastest",
            )
        ],
        runs=[
            Run(
                scenario="quick",
                plan=PLAN,
                feed="tensors",
                batch=1,
                settings={},
                latency=series(),
                images=400,
                seconds=4.8,
                throughput=83.3,
                dropped=None,
                valid=True,
                reasons=[],
                loadgen={},
                logs=[],
                resources=resources(),
            )
        ],
        splits=[Split(plan=PLAN, batch=1, stages=[], whole=series(60), images=8)],
        cold=[],
        contests=[
            Contest(
                batch=1,
                threads=2,
                openings=6,
                contestants=contestants,
                pairings=[pairing],
                absent={},
                resources=resources(),
            )
        ],
        gaps=[],
        ceilings=[],
        limits=[],
        profiles=[],
        parity=[
            ParityCheck(
                bundle="tiny",
                reference="torch",
                why="",
                data="photographs",
                decides=True,
                stand_ins=0,
                rejected=[],
                refused={},
                plans=[
                    PlanParity(plan="", parity=parity()),
                    PlanParity(plan=PLAN, parity=parity()),
                ],
            )
        ],
        points=[],
        skipped={},
        verdict=UNJUDGED,
    )


def environment(**fields: Any) -> Plant:
    return lambda report: changed(report, environment=changed(report.environment, **fields))


def run(**fields: Any) -> Plant:
    return lambda report: changed(report, runs=[changed(report.runs[0], **fields)])


def latency(**fields: Any) -> Plant:
    return run(latency=changed(series(), **fields))


def during_run(**fields: Any) -> Plant:
    return run(resources=changed(resources(), **fields))


def contest(**fields: Any) -> Plant:
    return lambda report: changed(report, contests=[changed(report.contests[0], **fields)])


def during_contest(**fields: Any) -> Plant:
    return contest(resources=changed(resources(), **fields))


def ratio(**fields: Any) -> Plant:
    return lambda report: contest(pairings=[changed(report.contests[0].pairings[0], **fields)])(report)


def check(**fields: Any) -> Plant:
    return lambda report: changed(report, parity=[changed(report.parity[0], **fields)])


def unbounded(*shares: float) -> Plant:
    percentiles = [
        changed(p, value=None, upper=None) if p.share in shares else p for p in series().percentiles
    ]
    return latency(samples=[11.9] * 4, percentiles=percentiles)


def split_whole(**fields: Any) -> Plant:
    return lambda report: changed(
        report, splits=[changed(report.splits[0], whole=changed(series(60), **fields))]
    )


def plan(**fields: Any) -> Plant:
    return lambda report: changed(report, plans=[changed(report.plans[0], **fields)])


def failing(name: str) -> Plant:
    bad = parity("features: relative 0.9, allowed 0.4")
    return check(plans=[PlanParity(plan=n, parity=bad if n == name else parity()) for n in ("", PLAN)])


def random_head(report: Report) -> Report:
    facts = changed(report.bundles[0], random_weights=["head"])
    return check(decides=False)(changed(report, bundles=[facts]))


def long_tail(report: Report) -> Report:
    baseline = changed(report.contests[0].contestants[1], samples=[50.0] * 18 + [120.0] * 3)
    return contest(contestants=[report.contests[0].contestants[0], baseline])(report)


def other_run_without_p50(report: Report) -> Report:
    [second] = unbounded(0.5)(report).runs
    return msgspec.structs.replace(report, runs=[*report.runs, changed(second, batch=8)])


PLANTS: list[tuple[str, Level, Plant]] = [
    ("parity-failed", "red", failing(PLAN)),
    ("parity-failed", "red", failing("")),
    ("parity-absent", "amber", check(plans=[])),
    ("parity-absent", "amber", lambda report: changed(report, parity=[])),
    ("parity-golden", "amber", check(data="golden")),
    ("parity-reference", "green", check(reference="onnx", why="a bare graph has no torch model")),
    ("parity-stand-ins", "green", check(stand_ins=3)),
    ("parity-rejected", "green", check(rejected=["a.jpg: cut off"])),
    ("random-weights", "amber", random_head),
    (
        "random-weights",
        "amber",
        lambda r: changed(r, bundles=[changed(r.bundles[0], random_weights=["s"])]),
    ),
    ("few-samples", "green", unbounded(0.99)),
    ("few-samples", "amber", unbounded(0.9)),
    ("few-samples", "red", unbounded(0.5)),
    ("few-samples", "amber", other_run_without_p50),
    ("few-samples", "amber", ratio(confidence=None, pairs=3, different=False)),
    ("nothing-measured", "red", lambda r: changed(r, runs=[], contests=[], splits=[])),
    ("drift", "amber", latency(steady=False)),
    ("drift", "amber", latency(drift=0.08)),
    ("drift", "amber", latency(drift=-0.08)),
    ("drift", "red", latency(drift=0.3)),
    ("drift", "amber", split_whole(drift=0.08)),
    ("autocorrelation", "amber", latency(autocorrelation=0.7)),
    ("neighbours", "amber", during_run(other_cores=0.4)),
    ("neighbours", "red", during_run(other_cores=1.2)),
    ("neighbours", "red", during_contest(other_cores=1.2)),
    ("neighbours", "amber", environment(busy=1.9)),
    ("stolen", "amber", during_run(stolen=0.05)),
    ("stolen", "red", during_contest(stolen=0.15)),
    ("pressure", "amber", during_run(pressure=0.6)),
    ("throttled", "red", during_run(throttled=True)),
    ("throttled", "red", during_contest(throttled=True)),
    ("clock-swing", "amber", during_run(megahertz=[1800.0, 2600.0, 3000.0])),
    ("unpinned-clocks", "amber", environment(pinned=False, governor="powersave")),
    ("untold", "green", environment(pinned=None)),
    ("untold", "green", during_run(throttled=None)),
    ("spread", "amber", ratio(low=4.0, high=5.2)),
    ("spread", "red", ratio(low=3.0, high=6.0)),
    ("tail", "amber", long_tail),
    ("openings", "green", contest(openings=1)),
    ("dropped-frames", "green", run(scenario="camera", dropped=20)),
    ("precision", "amber", plan(achieved=0.6)),
    ("degraded", "amber", plan(notes=["batches of 4 run without a CUDA graph"])),
    ("invalid-run", "amber", run(valid=False, reasons=["12 of 300 frames were dropped"])),
]


def found(report: Report, code: str) -> list[Reason]:
    return [r for r in report.verdict.reasons if r.code == code]


def test_a_clean_report_is_green_and_has_a_headline() -> None:
    judged = judge(clean())
    assert judged.verdict.reasons == []
    assert judged.verdict.level == "green"
    assert judged.verdict.headline == (
        "11.9 ms per image at p50 (95 % bound 12.1), batch 1, openvino:cpu bf16, 2 threads; "
        "4.7 times [4.6, 4.8] as fast as PyTorch eager fp32"
    )


@pytest.mark.parametrize(
    ("code", "level", "plant"), PLANTS, ids=[f"{i}-{c}-{level}" for i, (c, level, _) in enumerate(PLANTS)]
)
def test_a_planted_fault_is_named_at_its_level(code: str, level: Level, plant: Plant) -> None:
    judged = judge(plant(clean()))
    assert [r.level for r in found(judged, code)] == [level]
    assert judged.verdict.level == level
    assert {r.code for r in judged.verdict.reasons} == {code}
    assert (judged.verdict.headline is None) == (level == "red")


def test_every_rule_has_a_planted_fault() -> None:
    used = {rule for rule in RULES for _, _, plant in PLANTS if list(rule(plant(clean())))}
    assert used == set(RULES)


@pytest.mark.parametrize(
    "plant",
    [
        latency(drift=verdict.DRIFT_AMBER),
        latency(autocorrelation=verdict.AUTOCORRELATION),
        latency(drift=None, autocorrelation=None),
        during_run(other_cores=2 * verdict.OTHERS_AMBER),
        during_run(stolen=verdict.STOLEN_AMBER),
        during_run(pressure=verdict.PRESSURE_AMBER),
        during_run(megahertz=[1000.0, 1200.0, 1000.0 * verdict.CLOCK_SWING]),
        during_run(megahertz=None, pressure=None, celsius=None),
        plan(achieved=None),
        plan(achieved=verdict.ACHIEVED),
    ],
)
def test_a_value_at_its_limit_or_untold_is_no_fault(plant: Plant) -> None:
    assert judge(plant(clean())).verdict.level == "green"


def test_reasons_are_listed_gravest_first_and_the_gravest_decides() -> None:
    planted = during_contest(throttled=True)(environment(pinned=None)(latency(autocorrelation=0.7)(clean())))
    judged = judge(planted)
    assert [r.level for r in judged.verdict.reasons] == ["red", "amber", "green"]
    assert judged.verdict.level == "red"


def test_many_cases_of_one_kind_become_one_reason_with_the_worst() -> None:
    report = clean()
    runs = [
        changed(report.runs[0], batch=batch, resources=changed(resources(), stolen=stolen))
        for batch, stolen in ((1, 0.03), (4, 0.08), (2, 0.05))
    ]
    [reason] = found(judge(changed(report, runs=runs)), "stolen")
    assert "batch 4" in reason.text
    assert "8.0 %" in reason.text
    assert "3 such cases" in reason.text


def test_on_a_larger_machine_the_same_neighbour_weighs_less() -> None:
    planted = during_run(other_cores=0.4)(clean())
    larger = changed(planted, environment=changed(planted.environment, cores=64))
    assert judge(larger).verdict.level == "green"


def test_parity_that_fails_says_where() -> None:
    [reason] = found(judge(failing(PLAN)(clean())), "parity-failed")
    assert PLAN in reason.text
    assert "features: relative 0.9" in reason.text


def test_throttling_says_who_said_so() -> None:
    planted = during_run(throttled=True, sources={"throttled": "NVML: power cap"})
    [reason] = found(judge(planted(clean())), "throttled")
    assert "NVML: power cap" in reason.text


def test_a_ratio_without_an_interval_is_not_in_the_headline() -> None:
    judged = judge(ratio(confidence=None, pairs=3, different=False)(clean()))
    assert judged.verdict.headline is not None
    assert "times" not in judged.verdict.headline


def test_a_ratio_that_says_nothing_is_said_to() -> None:
    judged = judge(ratio(ratio=1.01, low=0.98, high=1.03, different=False)(clean()))
    assert (judged.verdict.headline or "").endswith(
        "not told apart from PyTorch eager fp32: 1.01 [0.98, 1.03]"
    )


def test_the_headline_prefers_a_baseline_to_another_plan() -> None:
    report = clean()
    [only] = report.contests
    other = changed(only.contestants[0], name="tiny onnxruntime:cpu fp32", precision="fp32")
    against = changed(only.pairings[0], slower=other.name, ratio=2.0, low=1.95, high=2.05)
    planted = changed(only, contestants=[*only.contestants, other], pairings=[against, only.pairings[0]])
    judged = judge(changed(report, contests=[planted]))
    assert "4.7 times" in (judged.verdict.headline or "")
    alone = judge(changed(report, contests=[changed(planted, pairings=[against])]))
    assert "2 times [1.95, 2.05] as fast as tiny onnxruntime:cpu fp32" in (alone.verdict.headline or "")


def test_the_headline_is_per_image_and_of_the_contest_of_its_batch() -> None:
    report = clean()
    runs = [changed(report.runs[0], batch=8)]
    assert (judge(changed(report, runs=runs)).verdict.headline or "").startswith(
        "1.49 ms per image at p50 (95 % bound 1.51), batch 8"
    )
    assert "times" not in (judge(changed(report, runs=runs)).verdict.headline or "")


def test_an_offline_report_has_its_throughput_for_a_headline() -> None:
    report = clean()
    runs = [changed(report.runs[0], scenario="offline", latency=None)]
    judged = judge(changed(report, runs=runs, contests=[]))
    assert (judged.verdict.headline or "").startswith("83.3 images per second, offline, batch 1")


@pytest.mark.parametrize("plant", [clean, lambda: failing(PLAN)(clean())])
def test_a_judged_report_is_read_back_as_it_was(plant: Callable[[], Report]) -> None:
    judged = judge(plant())
    assert report_from_json(report_to_json(judged), "here") == judged


def test_an_earlier_verdict_is_not_looked_at() -> None:
    red = judge(failing(PLAN)(clean())).verdict
    assert judge(changed(clean(), verdict=red)).verdict.level == "green"


def test_the_headline_quotes_the_fastest_baseline() -> None:
    """A ratio to a slow baseline flatters."""
    report = clean()
    [only] = report.contests
    quick = changed(only.contestants[1], name="openvino-default", precision="bf16")
    close = changed(only.pairings[0], slower="openvino-default", ratio=1.1, low=1.05, high=1.15)
    planted = changed(only, contestants=[*only.contestants, quick], pairings=[*only.pairings, close])
    judged = judge(changed(report, contests=[planted]))
    assert "1.1 times [1.05, 1.15] as fast as openvino-default bf16, the fastest of 2 baselines" in (
        judged.verdict.headline or ""
    )


def test_a_run_from_images_has_no_ratio_of_tensors() -> None:
    judged = judge(run(feed="images")(clean()))
    assert "from image to label" in (judged.verdict.headline or "")
    assert "times" not in (judged.verdict.headline or "")


def test_an_invalid_run_is_no_headline() -> None:
    judged = judge(run(valid=False, reasons=["too short"], scenario="server")(clean()))
    assert "ms per image" not in (judged.verdict.headline or "")


def test_the_spread_of_a_ratio_that_nobody_quotes_leaves_the_headline() -> None:
    report = clean()
    [only] = report.contests
    slow = changed(only.contestants[1], name="compile")
    wide = changed(only.pairings[0], slower="compile", ratio=9.0, low=3.0, high=20.0)
    planted = changed(only, contestants=[*only.contestants, slow], pairings=[*only.pairings, wide])
    judged = judge(changed(report, contests=[planted]))
    assert (judged.verdict.level, judged.verdict.headline is None) == ("amber", False)
