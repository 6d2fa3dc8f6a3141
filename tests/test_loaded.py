"""TensorRT's runtime behind the session's seam, over a double of the bindings' runtime objects."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from opened_trt import STREAM, Bindings, DataType, Location, library

from vsa_rt.engines.cuda.seam import Engine, Port
from vsa_rt.engines.tensorrt.compiler import compile_ahead
from vsa_rt.engines.tensorrt.library import Library, open_library
from vsa_rt.engines.tensorrt.loaded import load_engine, reason_of
from vsa_rt.errors import EnvironmentUnusable

PACKAGES = [("tensorrt", "10.3.0"), ("tensorrt", "11.4.0"), ("tensorrt-rtx", "1.7.1")]


@pytest.fixture
def bindings() -> Bindings:
    """A fresh double."""
    return Bindings()


@pytest.fixture(params=PACKAGES, ids=["classic 10", "classic 11", "rtx"])
def any_library(request: pytest.FixtureRequest, bindings: Bindings) -> Library:
    """Each of the three dialects."""
    return library(bindings, *request.param)


# Loading


def test_an_engine_is_opened_with_its_tensors_as_the_session_wants_them(
    any_library: Library, bindings: Bindings
) -> None:
    engine: Engine = load_engine(any_library, b"bytes")
    assert list(engine.ports) == [
        Port("x", True, "uint8", (None, 4, 4, 3)),
        Port("y", False, "float32", (None, 2)),
    ]
    assert ("deserialize", b"bytes") in bindings.calls


def test_code_for_the_host_is_not_allowed_unless_asked(any_library: Library, bindings: Bindings) -> None:
    load_engine(any_library, b"bytes")
    assert bindings.host_code == [False]


def test_nothing_that_the_library_prints_reaches_standard_output(
    bindings: Bindings, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = load_engine(library(bindings), b"bytes", lambda: b"graph")
    engine.context()
    assert bindings.names()[-1] == "engine.create_execution_context"
    assert capfd.readouterr().out == ""


def test_what_rtx_itself_calls_invalid_never_gets_deserialised(bindings: Bindings) -> None:
    bindings.valid = False
    with pytest.raises(EnvironmentUnusable, match=r"other compute capabilities.*rebuild"):
        load_engine(library(bindings, "tensorrt-rtx", "1.7.1"), b"bytes")
    assert "deserialize" not in bindings.names()


def test_an_engine_that_the_library_refuses_is_refused_with_its_words(bindings: Bindings) -> None:
    bindings.refuses = {"deserialize"}
    said = (
        "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match."
    )
    bindings.says = [f"IRuntime::deserializeCudaEngine: Error Code 1: Serialization ({said})"]
    with pytest.raises(EnvironmentUnusable, match=r"tensorrt 10\.3\.0 cannot open the engine: .*Version tag"):
        load_engine(library(bindings), b"bytes")


def test_a_machine_without_a_driver_is_named_from_the_librarys_log(bindings: Bindings) -> None:
    bindings.refuses = {"Runtime"}
    bindings.says = ["(cudaError 35: CUDA driver version is insufficient for CUDA runtime version)"]
    with pytest.raises(EnvironmentUnusable, match="has no runtime here: the driver is older than"):
        load_engine(library(bindings), b"bytes")


def test_a_refusal_without_words_says_so() -> None:
    assert reason_of([]) == "it gives no reason"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"location": Location.HOST}, "'x' of the engine lies on the host"),
        ({"types": {"x": DataType.UINT8, "y": DataType.BF16}}, "'y' of the engine is of DataType.BF16"),
    ],
)
def test_tensors_that_the_session_cannot_bind_are_refused(
    bindings: Bindings, change: dict[str, Any], words: str
) -> None:
    for name, value in change.items():
        setattr(bindings, name, value)
    with pytest.raises(EnvironmentUnusable, match=words):
        load_engine(library(bindings), b"bytes")


def test_an_engine_without_weights_gets_them_from_its_graph(any_library: Library, bindings: Bindings) -> None:
    load_engine(any_library, b"bytes", lambda: b"graph")
    done = bindings.names()
    assert done.index("deserialize") < done.index("refit from") < done.index("refit")
    # A graph of a stranger finds no files beside it.
    assert ("refit from", b"graph", "/nonexistent/graph.onnx") in bindings.calls


def test_an_engine_with_weights_is_left_as_it_is(bindings: Bindings) -> None:
    load_engine(library(bindings), b"bytes")
    assert "refit" not in bindings.names()


def test_weights_of_another_graph_are_refused(bindings: Bindings) -> None:
    bindings.refuses = {"refit from"}
    with pytest.raises(EnvironmentUnusable, match="from the graph: no such weights in the model"):
        load_engine(library(bindings), b"bytes", lambda: b"graph")


def test_weights_that_the_graph_lacks_are_named(bindings: Bindings) -> None:
    bindings.refuses, bindings.missing = {"refit"}, ["conv.weight", "fc.weight"]
    with pytest.raises(EnvironmentUnusable, match=r"lacks conv\.weight, fc\.weight"):
        load_engine(library(bindings), b"bytes", lambda: b"graph")


# Contexts


def test_a_context_is_set_up_once_and_then_only_enqueued(any_library: Library, bindings: Bindings) -> None:
    context = load_engine(any_library, b"bytes").context()
    bindings.calls.clear()
    context.set_batch(4)
    assert context.scratch == 400
    context.use_scratch(SimpleNamespace(address=4096, nbytes=512, close=lambda: None))
    context.bind("x", 1024)
    context.bind("y", 2048)
    assert context.capturable(STREAM)
    context.enqueue(STREAM)
    context.enqueue(STREAM)
    asked = [("context.is_stream_capturable", 77)] if any_library.package == "tensorrt-rtx" else []
    assert bindings.calls == [
        ("context.set_input_shape", "x", (4, 4, 4, 3)),
        ("context.infer_shapes",),
        ("context.update_device_memory_size_for_shapes",),
        ("context.set_device_memory", 4096, 512),
        ("context.set_tensor_address", "x", 1024),
        ("context.set_tensor_address", "y", 2048),
        *asked,
        ("context.execute_async_v3", 77),
        ("context.execute_async_v3", 77),
    ]


def test_rtx_may_say_that_a_context_cannot_be_captured(bindings: Bindings) -> None:
    bindings.refuses = {"context.is_stream_capturable"}
    assert not load_engine(library(bindings, "tensorrt-rtx", "1.7.1"), b"x").context().capturable(STREAM)


@pytest.mark.parametrize(("batch", "option"), [(0, "--min-batch"), (9, "--max-batch")])
def test_a_batch_outside_of_the_profile_is_refused_before_the_library_sees_it(
    bindings: Bindings, batch: int, option: str
) -> None:
    context = load_engine(library(bindings), b"bytes").context()
    with pytest.raises(EnvironmentUnusable, match=rf"batches of 1 to 8, not {batch}; build it with {option}"):
        context.set_batch(batch)
    assert "context.set_input_shape" not in bindings.names()


@pytest.mark.parametrize(
    ("refused", "call", "words"),
    [
        ("context.set_input_shape", lambda c: c.set_batch(2), "cannot take 2 rows of 'x'"),
        ("context.set_tensor_address", lambda c: c.bind("z", 1), "cannot bind tensor 'z'"),
        ("context.execute_async_v3", lambda c: c.enqueue(STREAM), "cannot run the engine"),
    ],
)
def test_what_a_context_refuses_is_said_with_the_librarys_reason(
    bindings: Bindings, refused: str, call: Callable[[Any], None], words: str
) -> None:
    context = load_engine(library(bindings), b"bytes").context()
    bindings.refuses = {refused}
    bindings.says = ["an older one", "Error Code 1: Cuda Runtime (an illegal memory access was encountered)"]
    with pytest.raises(EnvironmentUnusable, match=rf"{words}: .*restart it"):
        call(context)


def test_a_context_that_finds_no_memory_is_refused(bindings: Bindings) -> None:
    engine = load_engine(library(bindings), b"bytes")
    bindings.refuses, bindings.says = (
        {"engine.create_execution_context"},
        ["Requested size ... out of memory"],
    )
    with pytest.raises(
        EnvironmentUnusable, match="makes no execution context: the GPU has not enough memory"
    ):
        engine.context()


def test_closing_lets_go_of_everything_that_the_library_made(
    any_library: Library, bindings: Bindings
) -> None:
    engine = load_engine(any_library, b"bytes")
    contexts = [engine.context(), engine.context()]
    for context in contexts:
        context.close()
        context.close()
    engine.close()
    engine.close()
    gc.collect()
    assert len(bindings.alive) == 3
    assert [reference() for reference in bindings.alive] == [None, None, None]


def test_the_real_library_refuses_an_engine_here_with_the_drivers_absence() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    onnx = pytest.importorskip("onnx", reason="onnx makes the graph")
    real = open_library("tensorrt-rtx")
    with contextlib.suppress(EnvironmentUnusable):
        from vsa_rt.engines.cuda.device import open_device

        open_device()
        pytest.skip("a GPU is here")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        "small",
        [helper.make_tensor_value_info("x", floats, ["n", 8])],
        [helper.make_tensor_value_info("y", floats, ["n", 8])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    engine = compile_ahead(model.SerializeToString(), ["sm_86"], max_batch=2)
    with pytest.raises(EnvironmentUnusable, match="the driver is older than the CUDA libraries"):
        load_engine(real, engine)


def test_an_engine_that_gives_other_rows_than_images_is_refused(bindings: Bindings) -> None:
    """The session has room for one row for each image: more would be written behind it."""
    bindings.rows_each = 4
    context = load_engine(library(bindings), b"bytes").context()
    with pytest.raises(EnvironmentUnusable, match=r"'y' of the engine has shape \[8, 2\] for 2 images"):
        context.set_batch(2)
