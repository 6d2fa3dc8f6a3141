"""ONNX Runtime's GPU providers: the same bindings on its CPU provider, and what is refused without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime", reason="its providers are bound")
onnx = pytest.importorskip("onnx", reason="graphs are lowered with onnx")

from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Precision, Target
from vsa_rt.engines import table
from vsa_rt.engines.backend import OpenOptions
from vsa_rt.engines.compiling import CompileOptions, Source
from vsa_rt.engines.onnxruntime_gpu import PROVIDERS, BoundSession, Provider, provider_of
from vsa_rt.engines.select import input_specs, output_specs
from vsa_rt.errors import EnvironmentUnusable, UsageError

HERE = Provider("CPUExecutionProvider", "cpu")


@pytest.fixture
def graph(tiny_bundle: Path) -> bytes:
    bundle = Bundle.open(tiny_bundle)
    return bundle.read(bundle.manifest.graphs[0].path)


def opened(graph: bytes, bundle: Path, provider: Provider = HERE, slots: int = 2) -> BoundSession:
    manifest = Bundle.open(bundle).manifest
    options = OpenOptions(max_batch=4, threads=1, slots=slots)
    return BoundSession(graph, input_specs(manifest), output_specs(manifest), options, provider)


def batch(bundle: Path, count: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    inputs = Bundle.open(bundle).manifest.inputs
    return {i.name: rng.integers(0, 256, (count, *i.shape)).astype(i.dtype) for i in inputs}


def plain(graph: bytes, inputs: dict[str, Any]) -> dict[str, Any]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_bound_calls_give_what_plain_calls_give(graph: bytes, tiny_bundle: Path, count: int) -> None:
    session = opened(graph, tiny_bundle)
    inputs = batch(tiny_bundle, count)
    found = session.slots[0].run(inputs)
    for name, value in plain(graph, inputs).items():
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)


def test_a_slot_s_own_buffers_are_read_where_they_lie(graph: bytes, tiny_bundle: Path) -> None:
    slot = opened(graph, tiny_bundle).slots[1]
    inputs = batch(tiny_bundle, 3)
    for name, array in inputs.items():
        slot.buffers[name][:3] = array
    found = slot.run({name: buffer[:3] for name, buffer in slot.buffers.items()})
    np.testing.assert_allclose(found["scores"], plain(graph, inputs)["scores"], rtol=1e-4, atol=1e-5)


def test_slots_do_not_share_results(graph: bytes, tiny_bundle: Path) -> None:
    session = opened(graph, tiny_bundle)
    first = session.slots[0].run(batch(tiny_bundle, 2, seed=1))["scores"]
    kept = first.copy()
    session.slots[1].run(batch(tiny_bundle, 2, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_every_call_of_a_size_is_bound_once(
    graph: bytes, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(graph, tiny_bundle, slots=1)
    bindings: list[int] = []
    honest = ort.InferenceSession.io_binding

    def counted(self: Any) -> Any:
        bindings.append(1)
        return honest(self)

    monkeypatch.setattr(ort.InferenceSession, "io_binding", counted)
    for seed in range(3):
        session.slots[0].run(batch(tiny_bundle, 4, seed))
    assert len(bindings) == 1


def test_a_provider_that_is_not_there_is_refused_and_not_replaced(graph: bytes, tiny_bundle: Path) -> None:
    if PROVIDERS["cuda"] in ort.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    manifest = Bundle.open(tiny_bundle).manifest
    provider = provider_of("cuda", graph, input_specs(manifest), output_specs(manifest), 4)
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(EnvironmentUnusable, match="CUDAExecutionProvider"),
    ):
        opened(graph, tiny_bundle, provider)


def test_a_session_that_ort_starts_elsewhere_is_refused(
    graph: bytes, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ORT itself goes on with another provider where one cannot be started, and only warns."""
    honest = ort.InferenceSession

    def elsewhere(model: bytes, options: Any, providers: list[Any]) -> Any:
        return honest(model, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", elsewhere)
    with pytest.raises(EnvironmentUnusable, match="CPUExecutionProvider took its place"):
        opened(graph, tiny_bundle, Provider("CUDAExecutionProvider", "cuda"))


def test_a_call_that_the_provider_fails_says_which(graph: bytes, tiny_bundle: Path) -> None:
    slot = opened(graph, tiny_bundle).slots[0]
    slot.prepare(2)._session = Broken()
    with pytest.raises(EnvironmentUnusable, match="CPUExecutionProvider failed: out of memory"):
        slot.run(batch(tiny_bundle, 2))


class Broken:
    def run_with_iobinding(self, binding: Any) -> None:
        raise RuntimeError("out of memory\nin some file")


# Options of the providers


def test_tensorrt_s_options_say_the_graph_s_precision_and_every_batch(tiny_bundle: Path) -> None:
    from vsa_rt.export.lowering.lower import lower
    from vsa_rt.plan import Plan

    bundle = Bundle.open(tiny_bundle)
    exact = bundle.read(bundle.manifest.graphs[0].path)
    taps = [t.name for t in bundle.manifest.taps if t.kind == "backbone"]
    half = lower(onnx.load_from_string(exact), Plan.uniform(taps, Precision.FP16)).SerializeToString()
    specs = input_specs(bundle.manifest), output_specs(bundle.manifest)

    def flags(graph: bytes) -> tuple[str, str]:
        options = provider_of("tensorrt", graph, *specs, 4).options
        return options["trt_fp16_enable"], options["trt_int8_enable"]

    assert flags(exact) == ("0", "0")
    assert flags(half) == ("1", "0")
    assert flags(half + b"QuantizeLinear") == ("1", "1")
    shapes = provider_of("tensorrt", exact, *specs, 4).options["trt_profile_max_shapes"]
    first = bundle.manifest.inputs[0]
    assert shapes.split(",")[0] == f"{first.name}:4x{'x'.join(map(str, first.shape))}"


def test_fp32_is_not_computed_in_tf32(tiny_bundle: Path, graph: bytes) -> None:
    assert provider_of("cuda", graph, [], [], 4).options["use_tf32"] == "0"


# The targets


def test_targets_say_what_is_missing() -> None:
    if set(PROVIDERS.values()) & set(ort.get_available_providers()):
        pytest.skip("this onnxruntime has a provider for GPUs")
    for device, name in PROVIDERS.items():
        found = table.probe(Target("onnxruntime", device))
        assert not found.usable
        assert name in found.reason
        assert "onnxruntime-gpu" in found.install
    assert [t.device for t in table.targets() if t.backend == "onnxruntime"] == ["cpu"]


def test_an_unknown_device_is_named_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="onnxruntime:cpu, onnxruntime:cuda, onnxruntime:tensorrt"):
        table.probe(Target("onnxruntime", "npu"))


def test_a_gpu_s_engine_is_the_graph_as_it_is(tmp_path: Path, graph: bytes) -> None:
    """Some of what ORT makes of a graph for a CPU no other provider has."""
    made = table.backend("onnxruntime").build(Source(graph), tmp_path, "cuda", CompileOptions(4))
    assert (tmp_path / made.files[0]).read_bytes() == graph


def test_only_gpus_compute_in_half() -> None:
    backend = table.backend("onnxruntime")
    assert [backend.half(d) for d in ("cpu", "cuda", "tensorrt")] == [False, True, True]
    assert Precision.FP16 not in backend.precisions("cpu")
    assert Precision.FP16 in backend.precisions("cuda")
