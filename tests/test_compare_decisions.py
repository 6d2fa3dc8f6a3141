"""The gate between two reports: flips, parity and metrics by their bounds, not by their points."""

from __future__ import annotations

import pytest
from compared import PLAN, a_parity, a_run, report, rows, times

from vsa_rt.bench.compare import Comparison, Limits, compare
from vsa_rt.bench.metrics import Metric
from vsa_rt.bench.records.trust import (
    ParityCheck,
)


def judged(old: ParityCheck | None, new: ParityCheck, limits: Limits | None = None) -> Comparison:
    before = report([a_run(times(0))], parity=[old] if old else [])
    return compare(before, report([a_run(times(0))], parity=[new]), limits)


@pytest.mark.parametrize(
    ("flips", "images", "verdict"),
    [
        (60, 2000, "regression"),  # 3 %: the lower bound is 2.4 %
        (24, 2000, "inconclusive"),  # 1.2 %: 0.8 to 1.7 %
        (5, 2000, "within"),  # 0.25 %: up to 0.53 %
        (1, 20, "inconclusive"),  # 5 % of 20 say nothing: from 0.26 %
        (0, 298, "inconclusive"),  # none of 298: up to 1.0003 %
        (0, 299, "within"),  # and of 299: up to 0.997 %
    ],
)
def test_flips_are_judged_by_their_bounds(flips: int, images: int, verdict: str) -> None:
    found = judged(a_parity(), a_parity(images, flips))
    (row,) = rows(found, "reference", "flips")
    assert (row.verdict, row.new, row.old) == (verdict, flips / images, 0.0)
    assert found.failed == (verdict == "regression")
    assert row.low is not None
    assert row.high is not None
    assert row.low <= flips / images <= row.high


def test_ties_do_not_count_as_flips() -> None:
    (row,) = rows(judged(a_parity(), a_parity(flips=2, ties=100)), quantity="flips")
    assert (row.new, row.verdict) == (0.001, "within")


def test_the_limit_of_flips_is_the_callers() -> None:
    assert judged(a_parity(), a_parity(flips=60)).failed
    assert not judged(a_parity(), a_parity(flips=60), Limits(max_flips=0.05)).failed


def test_parity_that_is_lost_fails() -> None:
    broken = a_parity(reasons=["lite0: scaled by 1.02"])
    found = judged(a_parity(), broken)
    assert found.reasons == [f"{PLAN}: parity held before and fails: lite0: scaled by 1.02"]
    for before, words in ((broken, "failed before, too"), (None, "was not measured before")):
        (row,) = rows(judged(before, broken), quantity="parity")
        assert row.verdict == "inconclusive"
        assert words in row.note


def test_parity_that_is_no_longer_measured_is_told() -> None:
    found = judged(a_parity(), a_parity(refused={"openvino-cpu-bf16": "needs AMX"}))
    (row,) = rows(found, quantity="parity")
    assert (row.verdict, row.note) == ("inconclusive", "measured only in the old report: needs AMX")
    assert found.inconclusive == 1


def test_labels_of_a_random_head_are_not_judged() -> None:
    found = judged(a_parity(), a_parity(flips=500, decides=False))
    assert rows(found, quantity="flips") == []
    assert not found.failed
    assert any("labels mean nothing" in n for n in found.notes)


@pytest.mark.parametrize(
    ("metric", "verdict"),
    [
        (Metric("accuracy", 0.9, 0.86, -0.05, -0.03), "regression"),
        (Metric("accuracy", 0.9, 0.885, -0.03, 0.0), "inconclusive"),
        (Metric("weighted F1", 0.9, 0.9, -0.004, 0.004), "within"),
        (Metric("accuracy", 0.9, 0.95, 0.03, 0.07), "within"),
        (Metric("ECE", 0.02, 0.06, 0.03, 0.05), "regression"),
        (Metric("ECE", 0.06, 0.02, -0.05, -0.03), "within"),
    ],
)
def test_metrics_are_judged_by_the_interval_of_their_loss(metric: Metric, verdict: str) -> None:
    found = judged(a_parity(metrics=[Metric(metric.name, 0.9, 0.9, 0, 0)]), a_parity(metrics=[metric]))
    (row,) = rows(found, quantity="metric")
    assert (row.name, row.verdict, row.old, row.new) == (metric.name, verdict, 0.9, metric.candidate)
    assert found.failed == (verdict == "regression")


@pytest.mark.parametrize(
    "metric",
    [Metric("canberra to truth", 1.0, 3.0, 1.5, 2.5), Metric("mAP", 0.9, 0.5, float("nan"), float("nan"))],
)
def test_metrics_that_no_limit_fits_are_shown(metric: Metric) -> None:
    found = judged(a_parity(), a_parity(metrics=[metric]))
    (row,) = rows(found, quantity="metric")
    assert (row.verdict, row.new) == ("inconclusive", metric.candidate)
    assert row.note
    assert not found.failed
