"""A plan follows from what each backbone gains and costs alone, and gives way where it costs most for its gain."""

from __future__ import annotations

import pytest

from vsa_rt.contracts import Precision
from vsa_rt.errors import UsageError
from vsa_rt.pipeline.precision.composition import WORTH, Alone, compose, weaken
from vsa_rt.plan import Plan

FP32, BF16, INT8 = Precision.FP32, Precision.BF16, Precision.INT8
TAPS = ["e", "r", "y"]


def alone(tap: str, precision: Precision, saved: float, harm: float, holds: bool = True) -> Alone:
    return Alone(tap, precision, saved, harm, holds)


MEASURED = [
    alone("e", BF16, 0.05, 0.001),
    alone("e", INT8, 0.04, 0.004),
    alone("r", BF16, 0.30, 0.001),
    alone("r", INT8, 0.40, 0.002),
    alone("y", BF16, 0.10, 0.001),
    alone("y", INT8, 0.15, 0.030, holds=False),
]


def test_each_backbone_gets_what_saves_most_among_what_holds() -> None:
    assert compose(TAPS, MEASURED, {}).backbones == {"e": BF16, "r": INT8, "y": BF16}


def test_a_backbone_that_saves_next_to_nothing_stays_in_fp32() -> None:
    measured = [alone("e", BF16, WORTH / 2, 0.0), alone("e", INT8, -0.2, 0.0)]
    assert compose(["e"], measured, {}).backbones == {"e": FP32}


def test_a_backbone_that_was_not_tried_stays_in_fp32() -> None:
    assert compose(["e", "x"], [alone("e", INT8, 0.1, 0.0)], {}).backbones == {"e": INT8, "x": FP32}


def test_who_reads_a_backbone_follows_it() -> None:
    plan = compose(["r", "s"], [alone("r", INT8, 0.4, 0.0)], {"s": "r"})
    assert plan.backbones == {"r": INT8, "s": INT8}


def test_what_harms_most_for_its_gain_gives_way_to_something_milder() -> None:
    measured = [
        alone("r", INT8, 0.40, 0.008),
        alone("r", BF16, 0.30, 0.001),
        alone("e", INT8, 0.02, 0.002),
        alone("e", BF16, 0.01, 0.0001),
    ]
    plan = compose(["e", "r"], measured, {})
    assert plan.backbones == {"e": INT8, "r": INT8}
    weaker = weaken(plan, measured, {})
    assert weaker is not None
    assert weaker.backbones == {"e": BF16, "r": INT8}
    again = weaken(weaker, measured, {})
    assert again is not None
    assert again.backbones == {"e": BF16, "r": BF16}


def test_giving_way_ends_with_nothing_lowered() -> None:
    plan: Plan | None = compose(TAPS, MEASURED, {})
    seen = []
    while plan is not None:
        assert plan.backbones not in seen
        seen.append(plan.backbones)
        plan = weaken(plan, MEASURED, {})
    assert set(seen[-1].values()) == {FP32}
    assert len(seen) <= 1 + len(MEASURED)


def test_excluded_nodes_stay_excluded_when_a_plan_gives_way() -> None:
    plan = compose(TAPS, MEASURED, {}).without(["conv_3"])
    weaker = weaken(plan, MEASURED, {})
    assert weaker is not None
    assert weaker.exclude == ["conv_3"]


@pytest.mark.parametrize(
    ("backbones", "expected"),
    [
        ({"a": INT8, "b": INT8}, INT8),
        ({"a": INT8, "b": FP32}, Precision.MIXED),
        ({}, FP32),
    ],
)
def test_the_precision_of_a_plan_is_the_one_that_all_have(
    backbones: dict[str, Precision], expected: Precision
) -> None:
    assert Plan(backbones=backbones).precision is expected


def test_a_plan_refuses_what_no_backbone_can_be() -> None:
    with pytest.raises(ValueError, match="backbone 'a' cannot be mixed"):
        Plan(backbones={"a": Precision.MIXED})
    with pytest.raises(ValueError, match="around int8 can be int8"):
        Plan(backbones={"a": INT8}, around=INT8)
    with pytest.raises(ValueError, match="the head cannot be bf16"):
        Plan(backbones={"a": INT8}, head=BF16)
    with pytest.raises(UsageError, match="backbone 'b': unknown; there are a"):
        Plan(backbones={"a": INT8}).with_backbone("b", INT8)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan.uniform(["a", "b"], INT8), "all int8"),
        (Plan.uniform(["a"], INT8, around=Precision.FP16), "all int8 in fp16"),
        (Plan(backbones={"a": INT8, "b": BF16}), "a int8, b bf16"),
        (Plan.uniform(["a"], BF16).without(["x", "x"]), "all bf16, 1 nodes in fp32"),
    ],
)
def test_a_plan_in_words(plan: Plan, words: str) -> None:
    assert str(plan) == words
