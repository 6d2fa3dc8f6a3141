"""The table of plans: one for each target, with what each plan costs, gains, and is worth."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from rich.console import Console

from vsa_rt.budget import Budget
from vsa_rt.contracts import Resample, ResizeSpec, Task, Views
from vsa_rt.manifest import CalibrationRecord, InputRecord, Manifest, PlanRecord, TapRecord
from vsa_rt.pipeline.export import new_manifest
from vsa_rt.render.plans import plan_words, plans, verdict_of

TAPS = ["lite0", "lite1", "lite2"]
Make = Callable[..., PlanRecord]


def plan(*precisions: str, **fields: Any) -> PlanRecord:
    """A plan that holds, twice as fast as fp32."""
    known: dict[str, Any] = {
        "target": "openvino:cpu",
        "backbones": dict(zip(TAPS, precisions * (len(TAPS) // len(precisions)), strict=True)),
        "exclude": 0,
        "role": "uniform" if len(precisions) == 1 else "composed",
        "latency_ms": {"1": 14.5, "8": 101.25},
        "speedup": {"1": 2.0, "8": 2.5},
        "images": 704,
        "flips": 0,
        "ties": 0,
        "widest": 0.0,
        "kl": 0.0,
        "kl_worst": 0.0,
        "accuracy": [],
        "reasons": [],
        "chosen": False,
    }
    return PlanRecord(**known | fields)


FP32 = plan("fp32", latency_ms={"1": 29.0, "8": 253.1}, speedup={"1": 1.0, "8": 1.0})


def manifest(*measured: PlanRecord, calibration: CalibrationRecord | None = None) -> Manifest:
    """A manifest with these plans."""
    resize = ResizeSpec(height=8, width=8, fit="warp", kernel="bilinear")
    whole = new_manifest(
        recipe=None,
        labels=[],
        task=Task.SINGLE_LABEL,
        threshold=0.5,
        kind="softmax",
        views=Views(),
        resample=Resample.EXACT,
        inputs=[InputRecord(name="x", dtype="uint8", shape=[8, 8, 3], resize=resize)],
        taps=[TapRecord(name=t, width=8, kind="backbone") for t in TAPS],
        max_batch=8,
        checkpoints={},
        opset=22,
        gates=[],
    )
    return msgspec.structs.replace(whole, plans=list(measured), budget=Budget(), calibration=calibration)


def printed(shown: Manifest, width: int = 120) -> str:
    out = io.StringIO()
    plans(Console(file=out, width=width), shown)
    return out.getvalue()


def row(text: str, start: str) -> list[str]:
    """The cells of the row that starts with these words."""
    [line] = [line for line in text.splitlines() if line.startswith(start)]
    return line.removeprefix(start).split()


def test_without_plans_nothing_is_printed() -> None:
    assert printed(manifest()) == ""


def test_a_row_has_times_speeds_flips_divergence_and_verdict() -> None:
    lowered = plan("bf16", flips=3, ties=2, widest=0.1234, kl=0.00123, kl_worst=0.4, chosen=True)
    text = printed(manifest(FP32, lowered))
    assert "plans on openvino:cpu, 704 images" in text
    assert row(text, "all fp32") == ["29.00", "1.00x", "253.10", "1.00x", "0", "0", "-", "0", "holds"]
    assert row(text, "all bf16") == [
        *("14.50", "2.00x", "101.25", "2.50x", "3", "2", "0.123", "0.0012", "chosen")
    ]
    assert "budget: flips=1%,margin=0.2,kl=0.01,accuracy=0%" in text


def test_each_target_has_its_own_table() -> None:
    text = printed(manifest(FP32, msgspec.structs.replace(FP32, target="onnxruntime:cpu")))
    assert text.index("plans on openvino:cpu") < text.index("plans on onnxruntime:cpu")
    assert text.count("all fp32") == 2


def test_the_reasons_of_a_plan_over_the_budget_stand_below_the_table() -> None:
    reasons = ["labels: 9 of 704 flip outside ties, the budget is 1 %", "scores: mean KL 0.02 nats [odd]"]
    text = printed(manifest(FP32, plan("int8", "bf16", "bf16", reasons=reasons)), 300)
    assert row(text, "lite0 int8, lite1 bf16, lite2 bf16")[-2:] == ["over", "budget"]
    assert f"over budget: lite0 int8, lite1 bf16, lite2 bf16: {'; '.join(reasons)}" in text


def test_accuracy_has_a_column_where_one_was_measured() -> None:
    assert "accuracy" not in printed(manifest(FP32)).split("budget:")[0]
    text = printed(manifest(FP32, plan("bf16", accuracy=[-0.003, -0.0102, 0.004])))
    assert "-0.3 [-1.0, +0.4]" in text
    assert row(text, "all fp32")[-2:] == ["-", "holds"]


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (plan("bf16"), "holds"),
        (plan("bf16", chosen=True), "chosen"),
        (plan("int8", reasons=["x"]), "over budget"),
        (plan("int8", reasons=["x"], chosen=True), "chosen, over budget"),
        (plan("int8", speedup={"1": 0.9, "8": 1.04}), "does not pay"),
        (plan("int8", speedup={"1": 0.9, "8": 1.3}), "holds"),
        (plan("int8", speedup={"1": 0.9, "8": 0.9}, reasons=["x"]), "over budget"),
        (FP32, "holds"),
    ],
)
def test_a_verdict_says_what_a_plan_is_worth(made: PlanRecord, says: str) -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(verdict_of(made))
    assert out.getvalue().strip() == says


@pytest.mark.parametrize(
    ("backbones", "more", "says"),
    [
        (dict.fromkeys(TAPS, "bf16"), {}, "all bf16"),
        ({}, {}, "all fp32"),
        ({"lite0": "int8", "lite1": "bf16", "lite2": "bf16"}, {}, "lite0 int8, lite1 bf16, lite2 bf16"),
        ({"lite0": "fp32", "lite1": "int8", "lite2": "fp32"}, {}, "lite1 int8, rest fp32"),
        ({"r": "int8", "e": "fp32"}, {}, "r int8, e fp32"),
        (dict.fromkeys(TAPS, "int8"), {"around": "bf16"}, "all int8, bf16 around int8"),
        (dict.fromkeys(TAPS, "bf16"), {"around": "bf16", "exclude": 1}, "all bf16, 1 node fp32"),
        (dict.fromkeys(TAPS, "int8"), {"exclude": 3}, "all int8, 3 nodes fp32"),
    ],
)
def test_a_plan_is_said_in_few_words(backbones: dict[str, str], more: dict[str, Any], says: str) -> None:
    assert plan_words(backbones, **more) == says


@pytest.mark.parametrize("width", [80, 100, 120])
def test_no_figure_is_cut_at_the_width_of_a_terminal(width: int) -> None:
    lowered = plan(
        *("int8", "bf16", "fp32"),
        flips=13,
        ties=20,
        widest=0.4123,
        kl=3.1e-5,
        accuracy=[-0.003, -0.0102, 0.004],
        speedup={"1": 0.97, "8": 1.02},
        exclude=3,
    )
    text = printed(manifest(FP32, lowered), width)
    words = text.split()
    for figure in ("253.10", "0.97x", "101.25", "13", "20", "0.412", "3.1e-05", "-0.3", "[-1.0,", "+0.4]"):
        assert figure in words, figure
    for part in ("lite0", "int8,", "lite1", "bf16,", "nodes", "does", "not", "pay"):
        assert part in words, part
    assert max(map(len, text.splitlines())) <= width


def test_where_labels_mean_nothing_there_is_no_divergence() -> None:
    text = printed(manifest(plan("bf16", kl=None, kl_worst=None)))
    assert row(text, "all bf16")[-2:] == ["-", "holds"]


def test_a_batch_that_one_plan_lacks_is_a_dash() -> None:
    text = printed(manifest(FP32, plan("bf16", latency_ms={"1": 10.0}, speedup={"1": 2.9})))
    assert row(text, "all bf16")[:3] == ["10.00", "2.90x", "-"]


def test_names_are_text_and_no_markup() -> None:
    odd = msgspec.structs.replace(FP32, target="open[bold]vino:cpu")
    assert "plans on open[bold]vino:cpu" in printed(manifest(odd))


def test_the_calibration_says_what_it_saw_and_what_was_odd() -> None:
    record = CalibrationRecord(
        path="calibration.npz", method="entropy", images=128, skipped=2, warnings=["3 tensors are constant"]
    )
    text = printed(manifest(FP32, calibration=record))
    assert "ranges of int8: entropy over 128 photographs, 2 could not be read\n3 tensors are constant" in text
    whole = msgspec.structs.replace(record, skipped=0, warnings=[])
    assert printed(manifest(FP32, calibration=whole)).endswith("entropy over 128 photographs\n")
