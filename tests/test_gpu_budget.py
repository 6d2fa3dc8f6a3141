"""The GPU budget counts what recipes and anchors ask for, is up to date, and says that nothing of it was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx", reason="graphs are read with onnx")
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from vsa_rt.bench.cost import read_graph
from vsa_rt.bench.experiments.gpu_anchors import ANCHORS
from vsa_rt.bench.experiments.gpu_budget import anchor_recipe, anchor_rows, exported, work_of
from vsa_rt.bench.experiments.gpu_page import factors_table, page, with_launches
from vsa_rt.bench.gpu_devices import DEVICES, OLDER
from vsa_rt.bench.gpu_floor import floor, kernels
from vsa_rt.recipe_file import shipped_names

BUDGET = Path(__file__).resolve().parents[1] / "docs" / "gpu_budget.md"


def small() -> bytes:
    """``x (N, 3, 64, 64) -> Conv, 64 channels -> Relu -> GlobalAveragePool -> Gemm -> y (N, 8)``."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], "pool"),
        helper.make_node("Flatten", ["c"], ["d"], "flat"),
        helper.make_node("Gemm", ["d", "v"], ["y"], "gemm"),
    ]
    weights = {"w": np.ones((64, 3, 3, 3), np.float32), "v": np.ones((64, 8), np.float32)}
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 3, 64, 64))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    return bytes(model.SerializeToString())


def test_the_work_of_a_recipe_is_counted_per_image_and_per_call() -> None:
    found = work_of("small", small())
    # 64 channels of 64 x 64, each over 27 values, and 64 x 8.
    assert found.macs == 64 * 64 * 64 * 27 + 64 * 8
    assert found.weights == 64 * 27 + 64 * 8
    assert (found.kernels, found.copies) == (3, 2)
    assert (found.taken, found.given) == (4 * 3 * 64 * 64, 4 * 8)
    image, written, pooled, scores = 4 * 3 * 64 * 64, 2 * 64 * 64 * 64, 2 * 64, 4 * 8
    once = image + 2 * written + 2 * pooled + scores
    assert found.moved["fp16"] == [2 * found.weights + batch * once for batch in (1, 8, 32)]
    assert {batch: len(floors) for batch, floors in found.floors.items()} == dict.fromkeys(
        (1, 8, 32), 2 * len(DEVICES)
    )


def test_the_page_has_what_was_counted_in_every_table() -> None:
    text = page([work_of("small", small())], [])
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| small |")]
    assert [len(row) for row in rows] == [9, *[1 + len(DEVICES)] * 3, 5 + len(DEVICES)]
    assert "**On paper: unproven on a GPU.**" in text
    # Three kernels and two copies.
    assert rows[-1][1:3] == ["5", "5.0"]
    assert "{" not in text


def test_factors_are_the_extremes_of_each_device_and_absent_where_nothing_was_published() -> None:
    l4 = next(d for d in DEVICES if d.name == "L4")
    least = floor(read_graph(small(), 1), l4, "int8")
    anchor = next(a for a in ANCHORS if (a.device, a.batch) == ("L4", 1))
    half, twice = (
        (type(anchor)(**{**vars(anchor), "ms": ratio * least.floor_ms}), least) for ratio in (1.5, 3.0)
    )
    text = factors_table([half, twice])
    launched = with_launches(least)
    assert launched is not None
    low, high = (f"{a.ms / launched:.1f}" for a, _ in (half, twice))
    span = low if low == high else f"{low} to {high}"
    assert f"| L4 | 1.5 to 3.0 | {span} | nothing published |" in text
    assert "| H100 SXM | nothing published |" in text


def test_every_anchor_is_of_a_device_with_a_datasheet_in_its_precision() -> None:
    tops = {d.name: d.tops for d in (*DEVICES, *OLDER)}
    for anchor in ANCHORS:
        assert anchor.precision in tops[anchor.device], anchor
        assert anchor.ms > 0
        assert anchor.source


def test_offline_figures_are_held_against_the_batch_of_the_least_floor_per_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vsa_rt.bench.experiments.gpu_budget.exported", lambda recipe, folder: small())
    offline = {a.device: a for a in ANCHORS if not a.batch}
    assert offline
    found = [(a, f) for a, f in anchor_rows(lambda step: None) if a.what.startswith("offline")]
    assert [a.device for a, _ in found] == list(offline)
    devices = {d.name: d for d in DEVICES}
    for anchor, least in found:
        assert anchor.ms == pytest.approx(anchor.batch * offline[anchor.device].ms)
        for batch in (1, 8, 32, 128, 256):
            other = floor(read_graph(small(), batch), devices[anchor.device], "int8")
            assert least.floor_ms / anchor.batch <= other.floor_ms / batch


# The document


def test_the_document_names_every_shipped_recipe_and_says_that_nothing_of_it_was_measured() -> None:
    text = BUDGET.read_text(encoding="utf-8")
    assert "**On paper: unproven on a GPU.**" in text
    for name in shipped_names():
        # The work, three batch sizes, and what the runtime adds.
        assert len(re.findall(rf"^\| {re.escape(name)} \|", text, re.MULTILINE)) == 5, name
    for device in DEVICES:
        assert f"| {device.name} |" in text


def test_no_published_engine_of_the_document_is_faster_than_its_floor() -> None:
    text = BUDGET.read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| [^|]+ \| \w+ \| (?:FP16|INT8) \| \d+ \| ([\d.]+) \| ([\d.]+)\*? \|", text, re.MULTILINE
    )
    assert len(rows) == len(ANCHORS)
    assert all(float(published) > float(least) for published, least in rows)


@pytest.mark.slow
def test_the_anchors_resnet_costs_what_was_published() -> None:
    pytest.importorskip("timm", reason="the networks are timm's")
    found = read_graph(exported(anchor_recipe("resnet50"), Path()), 1)
    # torchvision's table of ResNet50_Weights: 4.09 x 10^9 multiply-adds, 25,557,032 parameters.
    assert found.macs == pytest.approx(4.09e9, rel=0.005)
    weights = sum(found.weights[w] for k in kernels(found) for w in k.weights) / 4
    # BatchNorms are folded into the convolutions: 53,120 values become 26,560.
    assert weights == pytest.approx(25_557_032, rel=0.003)
    # 53 convolutions, two pools, a product, and what is before and behind them.
    assert 56 <= len(kernels(found)) <= 60
