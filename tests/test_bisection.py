"""The search for what is guilty: few trials, nothing innocent, and the worst first where harm adds up."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from vsa_rt.pipeline.search.bisection import LimitReached, guilty_backbones, reduce


@dataclass(frozen=True)
class Verdict:
    passed: bool
    harm: float


class Harms:
    """Items of which some harm; together they are more than a budget allows."""

    def __init__(self, harm: Sequence[float], allowed: float, most: int = 10_000) -> None:
        self.harm, self.allowed, self.most = harm, allowed, most
        self.tried: list[list[int]] = []

    def excluding(self, chosen: list[int]) -> Verdict:
        assert chosen == sorted(chosen)
        assert len(chosen) < len(self.harm)
        if len(self.tried) >= self.most:
            raise LimitReached
        self.tried.append(chosen)
        left = sum(h for i, h in enumerate(self.harm) if i not in chosen)
        return Verdict(left <= self.allowed, left)


def planted(count: int, guilty: Collection[int]) -> Harms:
    return Harms([1.0 if i in guilty else 0.0 for i in range(count)], 0.5)


@pytest.mark.parametrize(
    "guilty", [{0}, {154}, {77}, {3, 4}, {0, 154}, {10, 60, 61, 120}, set(range(0, 155, 20))]
)
@pytest.mark.parametrize("greedy", [0, 20, 75])
def test_exactly_the_guilty_items_are_found_in_few_trials(guilty: set[int], greedy: int) -> None:
    harms = planted(155, guilty)
    found = reduce(range(155), harms.excluding, greedy)
    assert (set(found.items), found.minimal) == (guilty, True)
    # What both methods take at most; see ``reduce``.
    assert len(harms.tried) < 16 + 16 * len(guilty)
    assert len({tuple(t) for t in harms.tried}) == len(harms.tried)


def test_where_harm_adds_up_the_worst_items_are_excluded() -> None:
    rng = np.random.default_rng(1)
    harm = rng.uniform(0, 0.1, 60).tolist()
    for place in (7, 30, 59):
        harm[place] = 3.0
    assert reduce(range(60), Harms(harm, sum(harm) - 8.9).excluding, 75).items == [7, 30, 59]


def test_an_item_that_only_hides_another_ones_harm_does_no_harm_to_the_search() -> None:
    """Excluding more can be worse: roundings cancel."""
    harms = planted(20, {5, 13})

    def excluding(chosen: list[int]) -> Verdict:
        verdict = harms.excluding(chosen)
        return Verdict(False, 9.0) if {5, 13, 14} <= set(chosen) and 15 not in chosen else verdict

    assert reduce(range(20), excluding, 0).items == [5, 13]


def test_the_limit_leaves_what_was_seen_to_hold() -> None:
    harms = Harms(planted(155, {10, 60}).harm, 0.5, most=12)
    found = reduce(range(155), harms.excluding, 6)
    assert not found.minimal
    assert {10, 60} <= set(found.items)
    assert len(found.items) < 155


@pytest.mark.parametrize(
    ("harm", "allowed", "guilty"),
    [
        ({"a": 0.0, "b": 9.0, "c": 0.1}, 1, ["b"]),
        ({"a": 2.0, "b": 9.0, "c": 0.1}, 1, ["b", "a"]),
        # None alone is too much.
        ({"a": 0.5, "b": 0.7, "c": 0.1}, 1, ["b"]),
        ({"a": 0.9, "b": 0.9, "c": 0.9}, 1, ["a", "b"]),
        # One is too much alone, and what is left is too much together.
        ({"a": 0.6, "b": 9.0, "c": 0.7}, 1, ["b", "c"]),
        ({"a": 9.0}, 1, ["a"]),
        ({"a": 1.0, "b": 1.0}, -1, None),
        ({"a": 1.0}, -1, None),
    ],
)
def test_backbones_are_guilty_alone_or_by_what_they_add(
    harm: dict[str, float], allowed: float, guilty: list[str] | None
) -> None:
    def lowered(taps: Collection[str]) -> Verdict:
        total = sum(harm[t] for t in taps)
        return Verdict(total <= allowed, total)

    found = guilty_backbones(
        list(harm), lambda t: lowered([t]), lambda some: lowered(harm.keys() - set(some))
    )
    assert found == guilty
