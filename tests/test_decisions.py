"""What two stages' scores decide, against values that a pencil, or scipy, gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.bench.decisions import (
    DISTANCES,
    Decisions,
    Rule,
    ScoreLog,
    decisions,
    divergences,
    flip_reasons,
    kendall_tau,
    normalised,
    rank_changes,
)
from vsa_rt.contracts import Task

Array = NDArray[Any]


def scores(count: int = 50, labels: int = 6, seed: int = 0) -> Array:
    return np.random.default_rng(seed).dirichlet(np.ones(labels), count)


def compared(task: Task, reference: Any, candidate: Any, threshold: float = 0.5) -> Decisions:
    r, c = np.array(reference, np.float64), np.array(candidate, np.float64)
    log = ScoreLog()
    log.add([f"image {i}" for i in range(len(r))], r, c, ())
    return decisions(log.pairs(), Rule("abcdef"[: r.shape[1]], task, threshold), tie=0.05)


# Flips


def test_a_multi_label_flip_is_as_wide_as_its_farthest_label_is_from_the_threshold() -> None:
    found = compared(
        Task.MULTI_LABEL, [[0.9, 0.31, 0.1], [0.2, 0.2, 0.9]], [[0.9, 0.1, 0.6], [0.2, 0.2, 0.8]], 0.3
    )
    [flip] = found.flips
    assert (flip.item, flip.reference, flip.candidate, flip.tie) == ("image 0", "a, b", "a, c", False)
    assert flip.margin == pytest.approx(0.2)


def test_a_label_that_vanishes_is_spelt_out() -> None:
    [flip] = compared(Task.MULTI_LABEL, [[0.51, 0.1]], [[0.49, 0.1]]).flips
    assert (flip.reference, flip.candidate, flip.tie) == ("a", "no label", True)


def test_of_two_equal_scores_the_first_label_wins() -> None:
    [flip] = compared(Task.BINARY, [[0.5, 0.5]], [[0.4, 0.6]]).flips
    assert (flip.reference, flip.candidate, flip.margin) == ("a", "b", 0.0)


def test_flips_fail_by_their_margin_or_by_their_number() -> None:
    few = compared(Task.BINARY, [[0.51, 0.49]] * 3, [[0.49, 0.51]] * 3).flips
    assert flip_reasons(few[:1], 100, 0.05, 0.01) == []
    assert flip_reasons(few, 100, 0.05, 0.01) == ["labels: 3 of 100 flip, allowed 1 %"]
    assert flip_reasons(few, 300, 0.05, 0.01) == []
    [reason] = flip_reasons(few[:1], 100, 0.01, 0.01)
    assert reason.startswith("labels: 1 of 100 flip at a margin above 0.01; the widest: image 0, a to b")


# Divergence


def test_the_divergence_is_that_of_the_scaled_rows() -> None:
    entropy = pytest.importorskip("scipy.stats", reason="the golden values are scipy's").entropy
    reference, candidate = scores(), scores(seed=1)
    assert divergences(3 * reference, candidate / 7) == pytest.approx(entropy(reference, candidate, axis=1))


def test_the_largest_divergence_names_its_image() -> None:
    reference = scores()
    candidate = reference.copy()
    candidate[17] = candidate[17, ::-1]
    found = compared(Task.SINGLE_LABEL, reference, candidate)
    assert found.kl is not None
    assert found.kl_item == "image 17"
    assert found.kl_worst == pytest.approx(50 * found.kl)


def test_zeros_and_numbers_that_no_head_gives_stay_finite() -> None:
    reference = np.array([[1.0, 0.0], [0.0, 0.0], [0.5, 0.5]])
    candidate = np.array([[0.0, 1.0], [1e30, -1e30], [-1.0, -2.0]])
    assert np.isfinite(divergences(reference, candidate)).all()
    assert normalised(candidate).tolist() == [[0, 1], [1, 0], [0, 0]]
    for task in Task:
        found = compared(task, reference, candidate)
        assert all(math.isfinite(v) for v in found.distances.values())


def test_nothing_decides_nothing() -> None:
    rule = Rule("ab", Task.BINARY, 0.5)
    assert decisions(ScoreLog().pairs(), rule, 0.1) == Decisions()


# Order


def test_kendalls_tau_is_scipys() -> None:
    kendalltau = pytest.importorskip("scipy.stats", reason="the golden values are scipy's").kendalltau
    reference, candidate = scores().round(1), (scores() + 0.2 * scores(seed=1)).round(1)  # with ties
    wanted = np.array([kendalltau(r, c).statistic for r, c in zip(reference, candidate, strict=True)])
    assert len(np.unique(wanted)) > 10
    assert kendall_tau(reference, candidate) == pytest.approx(np.nanmean(wanted), abs=1e-12)


def test_an_order_turned_round_is_minus_one_and_no_order_is_none() -> None:
    row = np.array([[0.5, 0.3, 0.2]])
    assert kendall_tau(row, row[:, ::-1].copy()) == -1
    assert kendall_tau(row, np.full((1, 3), 0.3)) is None
    assert kendall_tau(row[:, :1], row[:, :1]) is None
    # One of three pairs changes places: (2 - 1) / 3. The second image has no order and stands apart.
    both = np.array([[0.5, 0.2, 0.3], [0.3, 0.3, 0.3]])
    assert kendall_tau(np.vstack([row, row]), both) == pytest.approx(1 / 3)


def test_a_change_below_the_winner_changes_the_order_and_no_label() -> None:
    reference = np.array([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]])
    candidate = np.array([[0.6, 0.1, 0.3], [0.5, 0.4, 0.1]])
    found = compared(Task.SINGLE_LABEL, reference, candidate)
    assert (found.flips, found.rank_changes) == ([], 1)
    assert found.kendall_tau == pytest.approx((1 / 3 + 1) / 2)


@pytest.mark.parametrize("digits", [1, 6])
def test_with_two_labels_the_order_changes_where_the_label_does(digits: int) -> None:
    """With one digit some scores are equal."""
    reference, candidate = scores(200, 2).round(digits), scores(200, 2, seed=1).round(digits)
    found = compared(Task.BINARY, reference, candidate)
    assert 0 < len(found.flips) == found.rank_changes == rank_changes(reference, candidate) < 200


# Distances of distributions


def test_distances_are_those_of_a_pencil() -> None:
    p, q = np.array([[0.5, 0.5, 0.0]]), np.array([[0.25, 0.5, 0.25]])
    wanted = {
        "chebyshev": 0.25,
        "clark": math.sqrt((0.25 / 0.75) ** 2 + 0 + 1),
        "canberra": 0.25 / 0.75 + 0 + 1,
        "kl": 0.5 * math.log(2),
        "cosine": 0.375 / math.sqrt(0.5 * 0.375),
        "intersection": 0.75,
    }
    assert {name: float(f(p, q)[0]) for name, f in DISTANCES.items()} == pytest.approx(wanted, abs=1e-8)


@pytest.mark.parametrize("name", ["chebyshev", "canberra", "cosine"])
def test_distances_are_scipys(name: str) -> None:
    distance = pytest.importorskip("scipy.spatial.distance", reason="the golden values are scipy's")
    p, q = scores(), scores(seed=1)
    wanted = np.array([getattr(distance, name)(a, b) for a, b in zip(p, q, strict=True)])
    assert DISTANCES[name](p, q) == pytest.approx(1 - wanted if name == "cosine" else wanted)


def test_distances_are_means_over_the_images_of_the_scaled_scores_of_a_distribution() -> None:
    reference, candidate = scores(), scores(seed=1)
    found = compared(Task.DISTRIBUTION, 2 * reference, candidate)
    assert found.distances == {n: pytest.approx(f(reference, candidate).mean()) for n, f in DISTANCES.items()}
    assert found.distances["kl"] == pytest.approx(found.kl, abs=1e-6)
    assert compared(Task.SINGLE_LABEL, reference, candidate).distances == {}


def test_a_label_without_weight_on_either_side_adds_nothing() -> None:
    p, q = np.array([[1.0, 0.0, 0.0]]), np.array([[0.5, 0.5, 0.0]])
    assert DISTANCES["canberra"](p, q)[0] == pytest.approx(0.5 / 1.5 + 1)
    assert DISTANCES["clark"](p, q)[0] == pytest.approx(math.sqrt((0.5 / 1.5) ** 2 + 1))
