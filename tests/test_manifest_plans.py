"""What a manifest says of precisions: read back as written, and refused where it contradicts itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from vsa_rt.budget import Budget
from vsa_rt.contracts import Resample, ResizeSpec, Task, Views
from vsa_rt.errors import BundleError
from vsa_rt.manifest import (
    CalibrationRecord,
    EngineRecord,
    FileRecord,
    GateRecord,
    GraphRecord,
    InputRecord,
    Manifest,
    PlanRecord,
    TapRecord,
    manifest_from_json,
    manifest_to_json,
    seal,
)
from vsa_rt.pipeline.export import GOLDEN, GRAPH, new_manifest

MIXED = {"r": "int8", "s": "bf16"}
LOWERED = "graph.mixed.onnx"
ENGINE = "engines/openvino-cpu-mixed"
CALIBRATION = "calibration.npz"


def whole() -> Manifest:
    """A features-only bundle with an engine of a mixed plan, and with what that was chosen by."""
    plan = PlanRecord(
        target="openvino:cpu",
        backbones=MIXED,
        around="bf16",
        exclude=1,
        role="composed",
        latency_ms={"1": 10.5, "8": 60.0},
        speedup={"1": 2.0, "8": 2.5},
        images=17,
        flips=1,
        ties=2,
        widest=0.15,
        kl=0.002,
        kl_worst=0.1,
        accuracy=[-0.01, -0.02, 0.0],
        reasons=[],
        chosen=True,
    )
    gate = GateRecord(
        stage="s", reference="onnx", images=17, passed=True, reasons=[], worst={}, flips=1, ties=2
    )
    engine = EngineRecord(
        target="openvino:cpu",
        precision="mixed",
        graph=LOWERED,
        plan=MIXED,
        around="bf16",
        exclude=["conv_7"],
        achieved=1.0,
        folder=ENGINE,
        files=[f"{ENGINE}/model.xml"],
        version="1",
        machine="m",
        latency_ms={"1": 10.5, "8": 60.0},
        threads=2,
        division={"1": "branches", "8": "images"},
        gate=gate,
    )
    resize = ResizeSpec(height=8, width=8, fit="warp", kernel="bilinear")
    taps = [TapRecord(name=t, width=8, kind="backbone") for t in MIXED]
    fresh = new_manifest(
        recipe=None,
        labels=[],
        task=Task.SINGLE_LABEL,
        threshold=0.5,
        kind="softmax",
        views=Views(),
        resample=Resample.EXACT,
        inputs=[InputRecord(name="x", dtype="uint8", shape=[8, 8, 3], resize=resize)],
        taps=[*taps, TapRecord(name="features", width=16, kind="features")],
        max_batch=8,
        checkpoints={},
        opset=22,
        gates=[],
    )
    lowered = GraphRecord(path=LOWERED, precision="mixed", opset=22, plan=MIXED, around="bf16")
    calibration = CalibrationRecord(path=CALIBRATION, method="entropy", images=128, skipped=1, warnings=[])
    names = [GRAPH, GOLDEN, LOWERED, CALIBRATION, *engine.files]
    return msgspec.structs.replace(
        fresh,
        graphs=[*fresh.graphs, lowered],
        engines=[engine],
        plans=[plan],
        budget=Budget(flips=0.005),
        calibration=calibration,
        files={name: FileRecord(nbytes=1, sha256="0") for name in names},
    )


def read(manifest: Manifest) -> Manifest:
    """Written with a right digest, and read."""
    return manifest_from_json(manifest_to_json(seal(manifest)), "here")


def test_plans_budget_and_calibration_are_read_back_as_written() -> None:
    sealed = seal(whole())
    assert read(sealed) == sealed
    assert read(sealed).graphs[0].plan == {"r": "fp32", "s": "fp32"}


def test_a_bundle_without_lowered_engines_has_none_of_them() -> None:
    bare = msgspec.structs.replace(
        whole(),
        graphs=whole().graphs[:1],
        engines=[],
        plans=[],
        budget=None,
        calibration=None,
    )
    assert read(bare).plans == []


def test_a_plan_may_have_no_divergence_and_no_accuracy_and_a_failed_one_may_be_forced() -> None:
    [plan] = whole().plans
    forced = msgspec.structs.replace(plan, kl=None, kl_worst=None, accuracy=[], reasons=["over"])
    assert read(msgspec.structs.replace(whole(), plans=[forced])).plans == [forced]


def test_another_schema_is_refused_with_what_to_do() -> None:
    old = msgspec.structs.replace(whole(), schema=2)
    with pytest.raises(BundleError, match="schema 2; this version of vsa-rt reads schema 5: rebuild"):
        read(old)


Change = Callable[[Manifest], dict[str, Any]]


def plan_with(**fields: Any) -> Change:
    return lambda m: {"plans": [msgspec.structs.replace(m.plans[0], **fields)]}


def engine_with(**fields: Any) -> Change:
    return lambda m: {"engines": [msgspec.structs.replace(m.engines[0], **fields)]}


def graph_with(**fields: Any) -> Change:
    return lambda m: {"graphs": [m.graphs[0], msgspec.structs.replace(m.graphs[1], **fields)]}


def calibration_with(**fields: Any) -> Change:
    def change(manifest: Manifest) -> dict[str, Any]:
        assert manifest.calibration is not None
        return {"calibration": msgspec.structs.replace(manifest.calibration, **fields)}

    return change


CONTRADICTIONS: dict[str, tuple[Change, str]] = {
    "a plan of an unknown precision": (plan_with(backbones={"r": "fp8", "s": "bf16"}), "'r' is 'fp8'"),
    "a backbone that is mixed in itself": (plan_with(backbones={"r": "mixed", "s": "bf16"}), "'r' is 'mixed'"),
    "a plan of a backbone that is none": (plan_with(backbones=MIXED | {"t": "bf16"}), "'t' .* no tap"),
    "a plan that lacks a backbone": (plan_with(backbones={"r": "int8"}), "'s' has no precision"),
    "an unknown type around int8": (plan_with(around="int8"), "around int8 .*'int8'"),
    "a plan without times": (plan_with(latency_ms={}, speedup={}), "batches"),
    "a speed at another batch": (plan_with(speedup={"1": 2.0}), r"speed at \['1'\]"),
    "times at no batch": (plan_with(latency_ms={"x": 1.0}, speedup={"x": 1.0}), r"batches \['x'\]"),
    "times at batch 0": (plan_with(latency_ms={"0": 1.0}, speedup={"0": 1.0}), r"batches \['0'\]"),
    "no time at all": (plan_with(latency_ms={"1": 0.0, "8": 1.0}), "cannot be"),
    "a negative speed": (plan_with(speedup={"1": -2.0, "8": 1.0}), "cannot be"),
    "a negative divergence": (plan_with(kl=-0.1), "cannot be"),
    "a negative margin": (plan_with(widest=-0.1), "cannot be"),
    "more flips than images": (plan_with(flips=16, ties=2), "16 flips and 2 ties of 17 images"),
    "fewer than no flips": (plan_with(flips=-1), "-1 flips"),
    "accuracy without an interval": (plan_with(accuracy=[0.1]), r"interval is \[0.1\]"),
    "an interval turned round": (plan_with(accuracy=[0.0, 0.1, -0.1]), "from 0.1 to -0.1"),
    "two chosen plans": (lambda m: {"plans": m.plans * 2}, "two plans are chosen for openvino:cpu"),
    "plans without a budget": (lambda _: {"budget": None}, "no budget"),
    "an engine of an unknown precision": (engine_with(plan=MIXED | {"r": "fp8"}), "'r' is 'fp8'"),
    "an engine whose graph is not there": (engine_with(graph="absent.onnx"), "'absent.onnx', which is no graph"),
    "an engine planned unlike its graph": (engine_with(plan={"r": "bf16", "s": "int8"}), "otherwise than"),
    "an engine with another type around": (engine_with(around="fp32"), "otherwise than"),
    "an engine that calls a mixed plan int8": (engine_with(precision="int8"), "int8 is said of .* mixed"),
    "a node excluded twice": (engine_with(exclude=["a", "a"]), "excludes a node twice"),
    "a graph of an unknown precision": (graph_with(plan=MIXED | {"s": "fp8"}), "'s' is 'fp8'"),
    "a graph that calls a mixed plan bf16": (graph_with(precision="bf16"), "bf16 is said of .* mixed"),
    "a graph twice": (graph_with(path=GRAPH), "listed twice"),
    "a calibration that is not there": (calibration_with(path="absent.npz"), "'absent.npz' .*not among the files"),
    "a calibration on nothing": (calibration_with(images=0), "on 0 images"),
    "fewer than none skipped": (calibration_with(skipped=-1), "-1 skipped"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_is_refused(name: str) -> None:
    change, says = CONTRADICTIONS[name]
    manifest = whole()
    with pytest.raises(BundleError, match=f"here: contradicts itself: .*{says}.*; rebuild the bundle"):
        read(msgspec.structs.replace(manifest, **change(manifest)))


@pytest.mark.parametrize(
    ("field", "text"),
    [('"kl": 0.002', '"kl": 1e999'), ('"widest": 0.15', '"widest": NaN'), ('"flips": 0.005', '"flips": 1.5')],
)
def test_numbers_that_cannot_be_are_refused_as_text(field: str, text: str) -> None:
    data = manifest_to_json(seal(whole())).decode()
    assert data.count(field) == 1
    with pytest.raises(BundleError, match=r"here: .*rebuild"):
        manifest_from_json(data.replace(field, text).encode(), "here")
