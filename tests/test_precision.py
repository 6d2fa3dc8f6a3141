"""A lowered graph is the same graph with its precision written into its tensors' types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Precision
from vsa_rt.doctor import describe_machine

onnx = pytest.importorskip("onnx", reason="graphs are lowered with onnx")
pytest.importorskip("ml_dtypes", reason="bf16 weights are made with ml_dtypes")

from vsa_rt.export.precision import lower, lower_to_bf16

TAPS = ["small", "other"]
BF16, FLOAT = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT


def share_of_bf16(model: Any) -> float:
    """Share of the convolutions whose weights are typed bfloat16."""
    types = {t.name: t.data_type for t in model.graph.initializer}
    kinds = [types.get(n.input[1]) for n in model.graph.node if n.op_type == "Conv"]
    return kinds.count(onnx.TensorProto.BFLOAT16) / len(kinds)


@pytest.fixture
def graph(tiny_bundle: Path) -> Any:
    return onnx.load_from_string((tiny_bundle / "graph.onnx").read_bytes())


@pytest.fixture
def lowered(graph: Any) -> Any:
    return lower_to_bf16(graph, TAPS)


def types(model: Any) -> dict[str, int]:
    """Element type of every tensor."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    found = {v.name: v.type.tensor_type.elem_type for v in values}
    return found | {t.name: t.data_type for t in inferred.initializer}


def signature(model: Any) -> list[tuple[str, int, list[Any]]]:
    return [
        (
            v.name,
            v.type.tensor_type.elem_type,
            [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim],
        )
        for v in (*model.graph.input, *model.graph.output)
    ]


def test_inputs_outputs_and_purpose_stay(graph: Any, lowered: Any) -> None:
    assert signature(lowered) == signature(graph)
    assert [(p.key, p.value) for p in lowered.metadata_props] == [
        (p.key, p.value) for p in graph.metadata_props
    ]
    onnx.checker.check_model(lowered, full_check=True)


def test_the_source_is_not_changed(graph: Any) -> None:
    before = graph.SerializeToString()
    lower_to_bf16(graph, TAPS)
    assert graph.SerializeToString() == before
    assert lower(graph, Precision.FP32, TAPS) is graph


def test_every_convolution_is_bf16_and_no_other_weight_is_lost(graph: Any, lowered: Any) -> None:
    found = types(lowered)
    convolutions = [n for n in lowered.graph.node if n.op_type == "Conv"]
    assert len(convolutions) == sum(n.op_type == "Conv" for n in graph.graph.node) > 10
    for node in convolutions:
        assert {found[name] for name in (*node.input, *node.output) if name} == {BF16}
    assert (share_of_bf16(lowered), share_of_bf16(graph)) == (1.0, 0.0)


def test_pixels_pooling_and_head_stay_in_float32(graph: Any, lowered: Any) -> None:
    found = types(lowered)
    pools = [n for n in lowered.graph.node if n.op_type in ("ReduceMean", "GlobalAveragePool")]
    assert pools
    for node in pools:
        assert found[node.output[0]] == FLOAT
    made_by = {name: n for n in lowered.graph.node for name in n.output}
    for name in ("features", "logits", "scores"):
        node = made_by[name]
        assert all(found[n] != BF16 for n in (*node.input, *node.output) if n), name
    first = [n for n in lowered.graph.node if any(i.name in n.input for i in lowered.graph.input)]
    assert {n.op_type for n in first} == {"Cast"}
    assert {found[n.output[0]] for n in first} == {FLOAT}


def test_weights_are_rounded_to_nearest_even(graph: Any, lowered: Any) -> None:
    before = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    twins = [t for t in lowered.graph.initializer if t.data_type == BF16]
    assert twins
    for twin in twins:
        source = before[twin.name.removesuffix("_bf16")]
        bits = source.astype(np.float32).view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(twin).astype(np.float32), rounded)


def test_no_cast_stands_where_none_is_needed(lowered: Any) -> None:
    """A cast to bf16 of what was just cast from it would round for nothing and cost time."""
    made_by = {name: n for n in lowered.graph.node for name in n.output}
    found = types(lowered)
    for node in lowered.graph.node:
        if node.op_type == "Cast":
            source = made_by.get(node.input[0])
            assert found[node.input[0]] != found[node.output[0]], node.name
            if source is not None and source.op_type == "Cast":
                assert found[source.input[0]] != found[node.output[0]], node.name
    names = [name for node in lowered.graph.node for name in node.output]
    assert len(names) == len(set(names))


def test_a_graph_whose_names_look_lowered_already_is_lowered_rightly(graph: Any) -> None:
    """A tensor may be called like the twin that lowering would make."""
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    node = next(n for n in model.graph.node if n.op_type == "Conv")
    weight, old = node.input[1], node.output[0]
    for other in model.graph.node:
        other.input[:] = [f"{weight}_bf16" if name == old else name for name in other.input]
        other.output[:] = [f"{weight}_bf16" if name == old else name for name in other.output]
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    names = [n for node in lower_to_bf16(model, TAPS).graph.node for n in node.output]
    assert len(names) == len(set(names))


@pytest.fixture
def session(lowered: Any, tiny_bundle: Path, tmp_path: Path) -> Iterator[Any]:
    pytest.importorskip("openvino", reason="OpenVINO runs bf16 graphs on a CPU")
    from vsa_rt.engines import table
    from vsa_rt.engines.backend import OpenOptions
    from vsa_rt.engines.select import input_specs, output_specs

    manifest = Bundle.open(tiny_bundle).manifest
    backend = table.backend("openvino")
    names = backend.build(lowered.SerializeToString(), tmp_path, "cpu", 4)
    files = [(tmp_path / name).read_bytes() for name in names]
    options = OpenOptions(max_batch=4, threads=2)
    opened = backend.open(files, input_specs(manifest), output_specs(manifest), options)
    yield opened
    opened.close()


def golden(tiny_bundle: Path) -> dict[str, dict[str, NDArray[Any]]]:
    from vsa_rt.golden import read_golden

    opened = Bundle.open(tiny_bundle)
    found: dict[str, dict[str, NDArray[Any]]] = {"input": {}, "tap": {}}
    stored = read_golden(opened.read(opened.manifest.golden))
    stored.pop("labels")
    for name, value in ((k, v[:4]) for k, v in stored.items()):
        kind, _, inner = name.partition(".")
        found[kind][inner] = value
    return found


def test_openvino_runs_it_close_to_float32(session: Any, tiny_bundle: Path) -> None:
    stored = golden(tiny_bundle)
    outputs = session.slots[0].run(stored["input"])
    for name, wanted in stored["tap"].items():
        relative = np.linalg.norm(outputs[name] - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
        assert relative.max() < 0.1, name
    # bf16 was really used: float32 would agree to seven digits.
    assert np.abs(outputs["features"] - stored["tap"]["features"]).max() > 1e-4


def test_openvino_really_computes_in_bf16(session: Any, tiny_bundle: Path) -> None:
    if not {"BF16", "AMX BF16"} & set(describe_machine().instruction_sets):
        pytest.skip("this processor has no bf16 instructions")
    assert session.achieved == 1.0
    engines = {(e.target, e.precision): e for e in Bundle.open(tiny_bundle).manifest.engines}
    assert engines["openvino:cpu", "bf16"].achieved == 1.0


def test_the_fp32_engine_really_computes_in_float32(tiny_bundle: Path) -> None:
    """OpenVINO's own default on such processors is bf16."""
    engines = {(e.target, e.precision): e for e in Bundle.open(tiny_bundle).manifest.engines}
    assert engines["openvino:cpu", "fp32"].achieved == 1.0
    assert engines["openvino:cpu", "fp32"].gate.worst["features"] < 1e-4
