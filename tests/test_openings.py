"""Openings of the same engine: what they differ by is no difference of the engines."""

from __future__ import annotations

import numpy as np
import pytest

from vsa_rt.bench.intervals import ratio
from vsa_rt.bench.openings import ratio_over_openings, student


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 63.657), (2, 9.925), (3, 5.841), (5, 4.032), (10, 3.169), (30, 2.750)]
)
def test_students_quantile_is_that_of_the_tables(freedom: int, expected: float) -> None:
    """Two-sided 99 %: Abramowitz and Stegun 1964, table 26.10, column 0.99."""
    assert student(0.99, freedom) == pytest.approx(expected, abs=5e-4)


def opened(
    generator: np.random.Generator, openings: int, pairs: int, between: float, within: float
) -> list[float]:
    """Ratios around 1 of engines whose speed differs from opening to opening."""
    found: list[float] = []
    for _ in range(openings):
        place = generator.normal(0, between)
        found += np.exp(generator.normal(place, within, pairs)).tolist()
    return found


def test_openings_that_differ_are_not_taken_for_a_difference() -> None:
    """Every opening's pairs are tight around another place: pairs alone call equals different, openings do not."""
    generator = np.random.default_rng(5)
    naive = careful = 0
    for _ in range(400):
        ratios = opened(generator, 6, 33, between=0.01, within=0.02)
        ones = [1.0] * len(ratios)
        alone, over = ratio(ratios, ones, 0.99), ratio_over_openings(ratios, ones, 6)
        naive += not alone.low <= 1 <= alone.high
        careful += not over.low <= 1 <= over.high
        assert over.low <= alone.low <= over.median <= alone.high <= over.high
    assert naive > 40  # that is what makes the openings necessary
    assert careful <= 10  # 4 expected at 99 %; 10 is beyond 99.7 % of such counts


def test_a_slowdown_beyond_the_openings_is_told() -> None:
    generator = np.random.default_rng(6)
    told = 0
    for _ in range(200):
        ratios = [1.05 * r for r in opened(generator, 6, 33, between=0.01, within=0.05)]
        told += ratio_over_openings(ratios, [1.0] * len(ratios), 6).low > 1
    assert told >= 190


@pytest.mark.parametrize("openings", [1, 2, 3])
def test_too_few_openings_say_nothing_about_their_spread(openings: int) -> None:
    ratios = opened(np.random.default_rng(7), 4, 10, 0.1, 0.01)
    ones = [1.0] * len(ratios)
    assert ratio_over_openings(ratios, ones, openings) == ratio(ratios, ones, 0.99)
