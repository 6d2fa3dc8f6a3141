"""The layer profile finds a planted slow layer, names its backbone, and maps nearly all of the time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="graphs are written with onnx")
from onnx import TensorProto, helper, numpy_helper

from vsa_rt.bench.cost import HEAD, Graph, owners, read_graph
from vsa_rt.bench.layers import by_backbone, by_kind, map_layers, profile
from vsa_rt.bundle import Bundle
from vsa_rt.contracts import TensorSpec
from vsa_rt.engines import table
from vsa_rt.engines.backend import OpenOptions, Profiler, RawLayer, Tensors
from vsa_rt.engines.compiling import CompileOptions, Source
from vsa_rt.engines.onnxruntime import OnnxRuntimeSession, layers_from_profile
from vsa_rt.engines.select import open_profiler
from vsa_rt.errors import EnvironmentUnusable
from vsa_rt.manifest import Manifest, TapRecord

BACKENDS = ["openvino", "onnxruntime"]


def two_backbones() -> bytes:
    """Backbone ``light`` of small convolutions, ``heavy`` with one of 9 x 256 x 256 x 32 x 32 multiply-adds, a head."""
    rng = np.random.default_rng(0)
    weights = {
        "w0": rng.standard_normal((8, 3, 3, 3)),
        "w1": rng.standard_normal((8, 1, 3, 3)),
        "w2": rng.standard_normal((16, 8, 1, 1)),
        "v0": rng.standard_normal((256, 3, 1, 1)),
        "v1": rng.standard_normal((256, 256, 3, 3)),
        "h": rng.standard_normal((272, 2)),
    }
    pad = [1, 1, 1, 1]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a0"], "stem", pads=pad),
        helper.make_node("Relu", ["a0"], ["a1"], "stem_relu"),
        helper.make_node("Conv", ["a1", "w1"], ["a2"], "deep", pads=pad, group=8),
        helper.make_node("Conv", ["a2", "w2"], ["a3"], "point"),
        helper.make_node("GlobalAveragePool", ["a3"], ["a4"], "pool_light"),
        helper.make_node("Flatten", ["a4"], ["light"], "flat_light"),
        helper.make_node("Conv", ["x", "v0"], ["b0"], "entry"),
        helper.make_node("Conv", ["b0", "v1"], ["b1"], "monster", pads=pad),
        helper.make_node("Relu", ["b1"], ["b2"], "monster_relu"),
        helper.make_node("GlobalAveragePool", ["b2"], ["b3"], "pool_heavy"),
        helper.make_node("Flatten", ["b3"], ["heavy"], "flat_heavy"),
        helper.make_node("Concat", ["light", "heavy"], ["features"], "join", axis=1),
        helper.make_node("MatMul", ["features", "h"], ["scores"], "classify"),
    ]
    widths = {"light": 16, "heavy": 256, "features": 272, "scores": 2}
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", w]) for n, w in widths.items()],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    return bytes(made.SerializeToString())


TAPS = [
    TapRecord(name="light", width=16, kind="backbone"),
    TapRecord(name="heavy", width=256, kind="backbone"),
    TapRecord(name="features", width=272, kind="features"),
    TapRecord(name="scores", width=2, kind="scores"),
]


def opened(name: str, folder: Path, max_batch: int = 4) -> Profiler:
    """The two backbones, built and opened with counters."""
    pytest.importorskip(name, reason=f"the profile is {name}'s")
    backend = table.backend(name)
    made = backend.build(Source(two_backbones()), folder, "cpu", CompileOptions(max_batch))
    files = [(folder / f).read_bytes() for f in made.files]
    inputs = [TensorSpec("x", "float32", (None, 3, 32, 32))]
    outputs = [TensorSpec(t.name, "float32", (None, t.width)) for t in TAPS]
    return backend.profiler(files, inputs, outputs, OpenOptions(max_batch=max_batch, threads=1))


def feed(batch: int) -> Tensors:
    return {"x": np.random.default_rng(1).standard_normal((batch, 3, 32, 32), np.float32)}


def facts(batch: int) -> tuple[Graph, dict[str, str]]:
    graph = read_graph(two_backbones(), batch)
    return graph, owners(graph, TAPS)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_planted_slow_layer_is_the_slowest_and_its_backbone_is_named(name: str, tmp_path: Path) -> None:
    found = profile(opened(name, tmp_path), *facts(2), feed(2), "plan", calls=5)
    slowest = found.layers[0]
    assert "monster" in slowest.nodes
    assert (slowest.backbone, slowest.kind, slowest.precision) == ("heavy", "convolution", "fp32")
    # 1.2 billion multiply-adds stand against 3 million in everything else.
    assert next(iter(by_backbone(found))) == "heavy"
    assert next(iter(by_kind(found))) == "convolution"
    assert (found.plan, found.batch, found.calls) == ("plan", 2, 5)


@pytest.mark.parametrize("name", BACKENDS)
def test_kinds_of_layer_are_those_of_their_onnx_nodes(name: str, tmp_path: Path) -> None:
    layers = profile(opened(name, tmp_path), *facts(1), feed(1), "plan", calls=2).layers
    kinds = {node: layer.kind for layer in layers for node in layer.nodes}
    expected = {
        "stem": "convolution",
        "deep": "depthwise",
        "point": "pointwise",
        "entry": "pointwise",
        "monster": "convolution",
        "pool_light": "pool",
        "classify": "matmul",
    }
    assert {node: kinds[node] for node in expected} == expected
    owner = {node: layer.backbone for layer in layers for node in layer.nodes}
    assert (owner["stem"], owner["monster"], owner["classify"]) == ("light", "heavy", HEAD)


def test_a_call_that_openvino_runs_in_parts_counts_every_part(tmp_path: Path) -> None:
    found = profile(opened("openvino", tmp_path), *facts(3), feed(3), "plan", calls=2)
    names = [layer.name for layer in found.layers]
    assert len(names) == len(set(names))
    assert "monster" in found.layers[0].nodes


@pytest.mark.parametrize("name", BACKENDS)
def test_sums_by_backbone_and_by_kind_are_the_whole(name: str, tmp_path: Path) -> None:
    found = profile(opened(name, tmp_path), *facts(1), feed(1), "plan", calls=2)
    whole = sum(layer.ms for layer in found.layers)
    assert whole > 0
    for sums in (by_backbone(found), by_kind(found)):
        assert sum(sums.values()) == pytest.approx(whole)
        assert list(sums.values()) == sorted(sums.values(), reverse=True)


def test_onnx_runtimes_profile_leaves_no_files_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    (tmp_path / "engine").mkdir()
    profiler = opened("onnxruntime", tmp_path / "engine")
    assert list(scratch.iterdir())
    profile(profiler, *facts(1), feed(1), "plan", calls=1)
    assert not list(scratch.iterdir())


def test_an_engine_that_cannot_be_opened_leaves_no_files_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="its files are looked for")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(EnvironmentUnusable, match="cannot load the engine"):
        table.backend("onnxruntime").profiler([b"no model"], [], [], OpenOptions(max_batch=1, threads=1))
    assert not list(tmp_path.iterdir())


def test_a_profile_that_was_cut_off_is_an_error_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    (tmp_path / "engine").mkdir()
    profiler = opened("onnxruntime", tmp_path / "engine")
    whole = OnnxRuntimeSession.end_profiling
    monkeypatch.setattr(OnnxRuntimeSession, "end_profiling", lambda self: whole(self)[:-20])
    with pytest.raises(EnvironmentUnusable, match="its profile of 4 calls cannot be read"):
        profile(profiler, *facts(1), feed(1), "plan", calls=1)
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("bundle_of", ["tiny_bundle", "wired_bundle"])
def test_nearly_all_layer_time_of_a_bundle_has_a_backbone(
    bundle_of: str, request: pytest.FixtureRequest
) -> None:
    bundle = Bundle.open(request.getfixturevalue(bundle_of))
    manifest = bundle.manifest
    assert {e.target for e in manifest.engines} == {"openvino:cpu", "onnxruntime:cpu"}
    for engine in manifest.engines:
        graph = read_graph(bundle.read(engine.graph), 2)
        profiler = open_profiler(bundle, engine, OpenOptions(max_batch=2, threads=1, first=2))
        found = profile(profiler, graph, owners(graph, manifest.taps), batch_of(manifest, 2), "plan", calls=3)
        spent = by_backbone(found)
        assert spent.get("", 0.0) < 0.05 * sum(spent.values()), (engine.folder, spent)
        assert {t.name for t in manifest.taps if t.kind == "backbone"} <= spent.keys()
        homes = [n for layer in found.layers for n in layer.nodes if graph.nodes[n].op == "Conv"]
        assert sorted(homes) == sorted(n.name for n in graph.nodes.values() if n.op == "Conv")
        precisions = {layer.precision for layer in found.layers if layer.kind == "convolution"}
        # What stays exact in fp32 may have convolutions of its own.
        assert precisions <= set(engine.plan.values())
        assert precisions


def batch_of(manifest: Manifest, count: int) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    return {i.name: rng.integers(0, 255, (count, *i.shape)).astype(i.dtype) for i in manifest.inputs}


class Recorder:
    """A profiler that writes down what is asked of it."""

    source = "a recorder"

    def __init__(self, fails_at: int = -1) -> None:
        self.told: list[str] = []
        self.fails_at = fails_at

    def run(self, inputs: Tensors) -> None:
        if len(self.told) == self.fails_at:
            raise EnvironmentUnusable("the device is gone")
        self.told.append("run")

    def collect(self) -> None:
        self.told.append("collect")

    def finish(self) -> list[RawLayer]:
        self.told.append("finish")
        return [RawLayer("monster", ("monster",), "Conv", "fp32", 2.0)]


def test_warm_up_calls_are_not_collected_and_the_engine_is_freed() -> None:
    recorder = Recorder()
    found = profile(recorder, *facts(1), feed(1), "plan", calls=2, warm_up=2)
    assert recorder.told == ["run", "run", "run", "collect", "run", "collect", "finish"]
    assert (found.source, found.calls, found.layers[0].ms) == ("a recorder", 2, 2.0)


def test_an_engine_that_fails_is_freed_as_well() -> None:
    recorder = Recorder(fails_at=1)
    with pytest.raises(EnvironmentUnusable, match="gone"):
        profile(recorder, *facts(1), feed(1), "plan")
    assert recorder.told == ["run", "finish"]


def test_no_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="calls=0"):
        profile(Recorder(), *facts(1), feed(1), "plan", calls=0)


def mapped(*raw: RawLayer) -> dict[str, tuple[list[str], str, str]]:
    return {
        layer.name: (layer.nodes, layer.backbone, layer.kind) for layer in map_layers(list(raw), *facts(1))
    }


def test_what_a_backend_added_belongs_to_its_reader_or_to_nobody() -> None:
    found = mapped(
        RawLayer("turn", (), "Reorder", "fp32", 1.0, feeds=("monster",)),
        RawLayer("mystery", (), "Reorder", "fp32", 1.0),
        RawLayer("strange", ("nowhere",), "Unheard", "", 1.0),
    )
    assert found["turn"] == ([], "heavy", "reorder")
    assert found["mystery"] == ([], "", "reorder")
    assert found["strange"] == ([], "", "other")


def test_a_convolution_named_by_its_activations_result_is_found() -> None:
    found = mapped(RawLayer("fused", ("b2",), "Conv", "fp32", 1.0))
    assert found["fused"] == (["monster", "monster_relu"], "heavy", "convolution")


def test_a_layer_does_not_reach_through_another_layers_node() -> None:
    found = mapped(
        RawLayer("own", ("monster",), "Conv", "fp32", 1.0),
        RawLayer("fused", ("b2",), "Conv", "fp32", 1.0),
    )
    assert found["fused"][0] == ["monster_relu"]


def test_onnx_runtimes_events_are_averaged_over_the_collected_calls_alone() -> None:
    def kernel(name: str, ts: int, dur: int, op: str, kind: str = "float") -> dict[str, Any]:
        facts = {"op_name": op, "input_type_shape": [{kind: [1, 2]}]}
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": facts}

    def run(ts: int, dur: int) -> dict[str, Any]:
        return {"cat": "Session", "name": "model_run", "ts": ts, "dur": dur, "args": {}}

    events = [
        kernel("c_nchwc", 10, 9000, "Conv"),
        run(0, 10000),
        kernel("c_nchwc", 20010, 100, "Conv"),
        kernel("b_bn_nchwc", 20200, 10, "Conv"),
        run(20000, 1000),
        kernel("c_nchwc", 30010, 300, "Conv"),
        kernel("fused q/QuickGeluFusion/", 30400, 50, "QLinearConv", "int8"),
        run(30000, 1000),
    ]
    found = {layer.name: layer for layer in layers_from_profile(msgspec.json.encode(events), [1, 2])}
    assert found["c_nchwc"].ms == pytest.approx((100 + 300) / 2 / 1000)
    assert "c" in found["c_nchwc"].nodes
    assert found["b_bn_nchwc"].kind == "BatchNormalization"
    assert "b" in found["b_bn_nchwc"].nodes
    assert found["fused q/QuickGeluFusion/"].nodes[-1] == "q"
    assert found["fused q/QuickGeluFusion/"].precision == "int8"
    assert found["fused q/QuickGeluFusion/"].ms == pytest.approx(0.025)
