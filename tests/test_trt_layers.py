"""Layers with their times, as TensorRT's profiler and engine inspector tell them; over a double of its runtime."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from emulated_cuda import EmulatedDevice
from opened_trt import LAYERS, Bindings, library

from vsa_rt.engines.backend import RawLayer
from vsa_rt.engines.tensorrt.layers import TensorRtProfiler, described_layers, timed_layer
from vsa_rt.engines.tensorrt.loaded import LoadedEngine, load_engine
from vsa_rt.errors import EnvironmentUnusable


@pytest.fixture
def bindings() -> Bindings:
    """A fresh double."""
    return Bindings()


def test_layers_are_told_with_their_nodes_and_what_they_compute_in() -> None:
    found = described_layers(json.dumps(LAYERS))
    assert found["conv + relu"] == RawLayer(
        "conv + relu", ("/a/conv", "/a/relu"), "CaskConvolution", "int8", 0.0
    )


def test_names_alone_are_taken_apart() -> None:
    found = described_layers(
        json.dumps({"Layers": ["conv + relu", "PWN(PWN(a, b), c)", "{ForeignNode[d...e]}"]})
    )
    assert [layer.nodes for layer in found.values()] == [("conv", "relu"), ("a", "b", "c"), ("d", "e")]
    assert {layer.precision for layer in found.values()} == {""}


@pytest.mark.parametrize("text", ["", "{", '{"Layers": []}'])
def test_an_inspector_that_tells_nothing_leaves_times_and_names(text: str) -> None:
    assert timed_layer("conv + relu", 1.5, described_layers(text)) == RawLayer(
        "conv + relu", ("conv", "relu"), "", "", 1.5
    )


def test_a_copy_that_the_compiler_added_belongs_to_whom_it_feeds() -> None:
    name = "Reformatting CopyNode for Input Tensor 0 to conv + relu"
    layer = timed_layer(name, 0.5, described_layers(json.dumps(LAYERS)))
    assert layer == RawLayer(name, (), "Reformat", "fp32", 0.5, feeds=("conv", "relu"))


@pytest.fixture
def gpu() -> Iterator[EmulatedDevice]:
    """An emulated device, of which nothing may be open in the end."""
    device = EmulatedDevice()
    yield device
    assert device.open() == {}


def profiler_of(
    device: EmulatedDevice, bindings: Bindings, engine: LoadedEngine | None = None
) -> TensorRtProfiler:
    """A profiler of the double's engine."""
    return TensorRtProfiler(device, engine or load_engine(library(bindings), b"bytes"), 8)


def images(batch: int) -> dict[str, np.ndarray[Any, Any]]:
    """A batch."""
    return {"x": np.full((batch, 4, 4, 3), 7, np.uint8)}


def test_only_calls_that_are_collected_count_and_the_means_are_theirs(
    bindings: Bindings, gpu: EmulatedDevice
) -> None:
    profiler = profiler_of(gpu, bindings)
    assert profiler.source == "tensorrt 10.3.0's profiler"
    profiler.run(images(4))
    for _ in range(3):
        profiler.run(images(4))
        profiler.collect()
    conv, copy = profiler.finish()
    assert (conv.name, conv.nodes, conv.precision, conv.ms) == (
        "conv + relu",
        ("/a/conv", "/a/relu"),
        "int8",
        0.5,
    )
    assert (copy.feeds, copy.ms) == (("conv", "relu"), 0.25)
    assert bindings.names().count("context.execute_async_v3") == 4
    assert bindings.names().count("context.report_to_profiler") == 3


def test_the_profilers_run_is_bound_and_has_its_scratch_memory(
    bindings: Bindings, gpu: EmulatedDevice
) -> None:
    profiler = profiler_of(gpu, bindings)
    profiler.run(images(2))
    bound = {call[1]: call[2] for call in bindings.calls if call[0] == "context.set_tensor_address"}
    assert bound.keys() == {"x", "y"}
    (given,) = [call for call in bindings.calls if call[0] == "context.set_device_memory"]
    assert given[2] == 200
    there = gpu.at(bound["x"], 2 * 48)
    assert there.tobytes() == images(2)["x"].tobytes()
    profiler.finish()


def test_another_batch_gets_another_context_and_the_old_one_is_freed(
    bindings: Bindings, gpu: EmulatedDevice
) -> None:
    profiler = profiler_of(gpu, bindings)
    profiler.run(images(2))
    profiler.run(images(3))
    profiler.run(images(3))
    assert bindings.names().count("engine.create_execution_context") == 2
    profiler.finish()


def test_counters_that_the_library_does_not_keep_are_refused_and_all_is_freed(
    bindings: Bindings, gpu: EmulatedDevice
) -> None:
    bindings.refuses = {"context.report_to_profiler"}
    profiler = profiler_of(gpu, bindings)
    with pytest.raises(EnvironmentUnusable, match="nothing has run yet"):
        profiler.collect()
    profiler.run(images(1))
    with pytest.raises(EnvironmentUnusable, match="cannot tell the times of layers"):
        profiler.collect()
    assert profiler.finish() == []


def test_a_profiler_for_which_there_is_no_memory_leaves_nothing_open(bindings: Bindings) -> None:
    device = EmulatedDevice(nbytes=1000)
    engine = load_engine(library(bindings), b"bytes")
    closed = []
    engine.close = lambda: closed.append(True)  # type: ignore[method-assign]
    with pytest.raises(EnvironmentUnusable):
        TensorRtProfiler(device, engine, 64)
    assert closed == [True]
    assert device.open() == {}
