"""The frontier: nobody needs a plan that another beats in every respect, and noise beats nobody."""

from __future__ import annotations

import pytest

from vsa_rt.bench.frontier import mark_dominated, points, quality_of
from vsa_rt.bench.parity import Flip, Metric, Parity
from vsa_rt.bench.records.contest import Contest, Contestant, Point
from vsa_rt.bench.records.timing import Plan, Resources


def point(
    plan: str,
    ms: float,
    quality: float | None,
    *,
    batch: int = 1,
    spread: float = 0.02,
    parity: bool | None = True,
    bundle: str = "b",
) -> Point:
    return Point(
        plan=plan,
        bundle=bundle,
        target="openvino:cpu",
        precision="fp32",
        batch=batch,
        ms_per_image=ms,
        low=ms * (1 - spread),
        high=ms * (1 + spread),
        quality=quality,
        quality_of="" if quality is None else "accuracy",
        parity=parity,
        dominated_by="",
    )


def dominated(*given: Point) -> dict[str, str]:
    return {p.plan: p.dominated_by for p in mark_dominated(given)}


def test_a_slower_plan_that_is_not_better_is_dominated() -> None:
    assert dominated(point("fast", 1, 0.9), point("slow", 2, 0.9)) == {"fast": "", "slow": "fast, batch 1"}


def test_a_slower_plan_that_is_better_stays() -> None:
    assert dominated(point("fast", 1, 0.89), point("slow", 2, 0.9)) == {"fast": "", "slow": ""}


def test_intervals_that_overlap_decide_nothing() -> None:
    assert dominated(point("a", 1.00, 0.9), point("b", 1.01, 0.9)) == {"a": "", "b": ""}


def test_as_fast_and_better_dominates() -> None:
    assert dominated(point("a", 1.00, 0.9), point("b", 1.01, 0.91)) == {"a": "b, batch 1", "b": ""}


def test_a_plan_that_fails_its_parity_dominates_nobody() -> None:
    found = dominated(point("wrong", 1, 0.95, parity=False), point("right", 2, 0.9))
    assert found == {"wrong": "", "right": ""}


def test_batch_sizes_trade_latency_for_throughput() -> None:
    """Batch 8 is cheaper per image and dearer per call than batch 1: both stay, a worse batch 8 does not."""
    found = mark_dominated(
        [point("p", 2, 0.9), point("p", 1.5, 0.9, batch=8), point("q", 3, 0.9, batch=8), point("q", 2.5, 0.9)]
    )
    assert [p.dominated_by for p in found] == ["", "", "p, batch 8", "p, batch 1"]


def test_bundles_are_not_held_against_each_other() -> None:
    """Another bundle may have other labels: that its answers are as often right says nothing."""
    assert dominated(point("a", 1, 0.9), point("b", 2, 0.9, bundle="other")) == {"a": "", "b": ""}


def test_without_any_quality_time_decides() -> None:
    assert dominated(point("a", 1, None), point("b", 2, None)) == {"a": "", "b": "a, batch 1"}


def parity(flips: int = 0, metrics: list[Metric] | None = None, kl: float | None = 0.0) -> Parity:
    flipped = [Flip(f"{i}.jpg", "x", "y", 0.0, True) for i in range(flips)]
    return Parity("s", "torch", 40, [], flipped, kl, metrics or [], [])


def test_quality_is_the_accuracy_where_labels_are_known_else_the_agreement() -> None:
    assert quality_of(parity(2, [Metric("accuracy", 0.9, 0.85, -0.1, 0.0)])) == (0.85, "accuracy")
    assert quality_of(parity(2)) == (1 - 2 / 40, "agreement")
    assert quality_of(parity(kl=None)) == (None, "")
    assert quality_of(None) == (None, "")


def test_every_plan_of_a_contest_becomes_a_point_per_image() -> None:
    nothing = Resources(
        rss_mib=None, device_mib=None, cores=None, other_cores=None, stolen=None, pressure=None, joules=None,
        joules_per_image=None, megahertz=None, celsius=None, throttled=None, sources={},
    )  # fmt: skip

    def contestant(name: str, ms: float, kind: str = "plan") -> Contestant:
        samples = [ms * (1 + 0.001 * i) for i in range(21)]
        return Contestant(name=name, kind=kind, precision="fp32", note="", samples=samples)  # type: ignore[arg-type]

    contest = Contest(
        batch=8,
        threads=2,
        contestants=[contestant("a", 80), contestant("b", 40), contestant("eager", 400, "baseline")],
        pairings=[],
        absent={},
        resources=nothing,
    )
    plans = [
        Plan(name=n, bundle="b", target="openvino:cpu", precision=p, achieved=1.0, threads=2, why="")
        for n, p in (("a", "fp32"), ("b", "bf16"))
    ]
    found = points([contest], plans, {"a": parity(), "b": parity(1)})
    assert [(p.plan, p.batch, p.parity, p.quality_of) for p in found] == [
        ("a", 8, True, "agreement"), ("b", 8, True, "agreement")
    ]  # fmt: skip
    assert found[0].ms_per_image == pytest.approx(80 * 1.01 / 8)
    assert found[0].low <= found[0].ms_per_image <= found[0].high
    assert [p.dominated_by for p in found] == ["", ""]  # b is faster, and changes one label of 40
