"""The clock: candidates take turns, and intervals cover what they say."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from numpy.typing import NDArray

from vsa_rt.bench import clock
from vsa_rt.bench.parity import TOLERANCES
from vsa_rt.contracts import Precision

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Reseal = Callable[..., None]
Array = NDArray[Any]
FP32, BF16 = TOLERANCES[Precision.FP32], TOLERANCES[Precision.BF16]


# The clock


def test_candidates_take_turns_and_the_order_rotates() -> None:
    log: list[str] = []
    calls = {name: (lambda name=name: log.append(name)) for name in "abc"}
    samples = clock.measure(calls, rounds=4, warm_up=2)
    assert "".join(log) == "aabbcc" + "aabbcc" + "bbccaa" + "ccaabb" + "aabbcc"
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4, "c": 4}
    assert all(value >= 0 for values in samples.values() for value in values)


@pytest.mark.parametrize(
    ("count", "low", "high", "coverage"),
    [(6, 1, 6, 0.96875), (10, 2, 9, 0.978515625), (20, 6, 15, 0.9586105346679688), (15, 4, 12, 0.96484375)],
)
def test_the_interval_of_a_ratio_is_of_order_statistics(
    count: int, low: int, high: int, coverage: float
) -> None:
    """Ranks (from 1) and exact coverages as tables of the sign test have them."""
    series = [float(i) for i in range(1, count + 1)]
    found = clock.ratio(series, [1.0] * count)
    assert (found.low, found.high, found.pairs) == (low, high, count)
    assert found.confidence == pytest.approx(coverage)
    assert found.median == pytest.approx((count + 1) / 2)
    inside = sum(math.comb(count, k) for k in range(low, high)) / 2**count
    assert found.confidence == pytest.approx(inside)


@pytest.mark.parametrize("count", [7, 12, 31, 101])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_interval_is_the_narrowest_that_covers(count: int, confidence: float) -> None:
    found = clock.ratio([float(i) for i in range(1, count + 1)], [1.0] * count, confidence)
    assert found.confidence is not None
    assert found.confidence >= confidence
    narrower = sum(math.comb(count, k) for k in range(int(found.low) + 1, int(found.high) - 1)) / 2**count
    assert narrower < confidence


def test_too_few_pairs_claim_no_confidence() -> None:
    found = clock.ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert (found.low, found.high, found.confidence) == (1.0, 5.0, None)
    assert clock.ratio([3.0], [2.0]).confidence is None


def test_a_ratio_is_of_pairs_of_the_same_round() -> None:
    assert clock.ratio([2.0, 40.0, 6.0], [1.0, 20.0, 3.0]).median == 2.0
    with pytest.raises(ValueError, match="no samples"):
        clock.ratio([], [])
    with pytest.raises(ValueError, match="shorter"):
        clock.ratio([1.0], [])
