"""Engines of whichever TensorRT is here: built, opened and held against ONNX Runtime at every tap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.bench import clock
from vsa_rt.contracts import TensorSpec
from vsa_rt.engines.backend import Backend, OpenOptions, Session
from vsa_rt.engines.compiling import CompileOptions, Made, Part, Source, Tuning
from vsa_rt.engines.cuda.device import CudaDevice
from vsa_rt.engines.table import backend
from vsa_rt.engines.tensorrt.loaded import LoadedContext
from vsa_rt.errors import EnvironmentUnusable

pytestmark = pytest.mark.gpu

MAX_BATCH = 8
SIZE = 32
INPUTS = [TensorSpec("image", "uint8", (None, SIZE, SIZE, 3))]
OUTPUTS = [
    TensorSpec("a", "float32", (None, 8)),
    TensorSpec("b", "float32", (None, 16)),
    TensorSpec("scores", "float32", (None, 4)),
]
#: Of the largest value of a tap. TF32 is off; what is left is the order of sums, and Winograd kernels if they are chosen.
TOLERANCE = 1e-3
#: A graph launch may take so much longer than the same work put into the streams piece by piece: it is the faster one
#: everywhere, and this only sees that nothing is wrong with it.
SLOWER = 1.2

Outputs = Mapping[str, NDArray[np.float32]]


def _graph() -> bytes:
    """Two small backbones and a linear head, seeded."""
    onnx = pytest.importorskip("onnx", reason="onnx makes the graph")
    helper, kinds = onnx.helper, onnx.TensorProto
    rng = np.random.default_rng(8)
    nodes, weights = [], []

    def constant(name: str, shape: tuple[int, ...]) -> str:
        values = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(values, name))
        return name

    def node(kind: str, taken: list[str], given: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, taken, [given], name=f"make {given}", **attributes))
        return given

    floats = node("Cast", ["image"], "floats", to=kinds.FLOAT)
    weights.append(onnx.numpy_helper.from_array(np.float32(1 / 255), "scale"))
    weights.append(onnx.numpy_helper.from_array(np.array([2, 3], np.int64), "axes"))
    pixels = node("Mul", [node("Transpose", [floats], "planes", perm=[0, 3, 1, 2]), "scale"], "pixels")
    for tap, width in (("a", 8), ("b", 16)):
        seen = node("Conv", [pixels, constant(f"{tap}.1", (width, 3, 3, 3))], f"{tap} conv 1", pads=[1] * 4)
        seen = node("Relu", [seen], f"{tap} relu")
        seen = node(
            "Conv", [seen, constant(f"{tap}.2", (width, width, 3, 3))], f"{tap} conv 2", strides=[2, 2]
        )
        node("ReduceMean", [seen, "axes"], tap, keepdims=0)
    node("Gemm", [node("Concat", ["a", "b"], "both", axis=1), constant("head", (24, 4))], "scores")
    types = {"uint8": kinds.UINT8, "float32": kinds.FLOAT}
    taken, given = (
        [helper.make_tensor_value_info(s.name, types[s.dtype], ["n", *s.shape[1:]]) for s in specs]
        for specs in (INPUTS, OUTPUTS)
    )
    graph = helper.make_graph(nodes, "two backbones", taken, given, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _parts(graph: bytes) -> list[Part]:
    from vsa_rt.export.partition import partition

    return [Part(p.name, p.graph, p.inputs, p.outputs) for p in partition(graph, ["a", "b"])]


@dataclass(frozen=True)
class Built:
    """An engine's files in memory.

    Attributes:
        backend: Who made it.
        device: For which target.
        graph: From what.
        made: How.
        files: Their bytes.
    """

    backend: Backend
    device: str
    graph: bytes
    made: Made
    files: list[bytes]

    def options(self, **options: Any) -> OpenOptions:
        """As the runtime opens it."""
        return OpenOptions(
            max_batch=MAX_BATCH,
            threads=1,
            **{
                "slots": 2,
                "device": self.device,
                "compiled": self.made.compiled,
                "graph": lambda: self.graph,
                **options,
            },
        )

    def open(self, **options: Any) -> Session:
        """A session."""
        return self.backend.open(self.files, INPUTS, OUTPUTS, self.options(**options))


@pytest.fixture(scope="module")
def graph() -> bytes:
    """What is compiled."""
    return _graph()


@pytest.fixture(scope="module")
def reference(graph: bytes) -> Callable[[NDArray[np.uint8]], Outputs]:
    """ONNX Runtime on the processor."""
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the reference")
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in OUTPUTS]
    return lambda image: dict(zip(names, session.run(names, {"image": image}), strict=True))


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def flavour(request: pytest.FixtureRequest, device: CudaDevice) -> tuple[Backend, str]:
    """A TensorRT that is here and knows this GPU, and the target's device."""
    found, capability = backend(request.param), device.facts.capability
    if unknown := found.knows(capability):
        pytest.skip(unknown)
    probe = found.probe(capability)
    if not probe.usable:
        pytest.skip(f"{request.param}: {probe.reason}; {probe.install}")
    return found, capability


def _build(flavour: tuple[Backend, str], graph: bytes, folder: Path, **tuning: Any) -> Built:
    found, capability = flavour
    source = Source(graph, parts=lambda: _parts(graph))
    made = found.build(source, folder, capability, CompileOptions(MAX_BATCH, Tuning(**tuning)))
    return Built(found, capability, graph, made, [(folder / name).read_bytes() for name in made.files])


@pytest.fixture(scope="module")
def built(flavour: tuple[Backend, str], graph: bytes, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Both forms, compiled on this machine."""
    return _build(flavour, graph, tmp_path_factory.mktemp("engines"))


def image(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """A batch of noise."""
    return np.random.default_rng([seed, count]).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def agree(found: Mapping[str, Any], expected: Outputs, tolerance: float = TOLERANCE) -> None:
    """Every tap is what it must be."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(
            found[name], values, rtol=0, atol=tolerance * np.abs(values).max(), err_msg=name
        )


def copied(found: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Outputs that the next call does not overwrite."""
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("form", ["merged", "streams"])
def test_every_tap_agrees_with_onnx_runtime(
    built: Built, reference: Callable[[NDArray[np.uint8]], Outputs], form: str
) -> None:
    with closing(built.open(division={1: form})) as session:
        assert session.divisions == ("merged", "streams")
        for count in (1, 2, 3, 5, 8):
            for number, slot in enumerate(session.slots):
                batch = image(count, number)
                agree(slot.run({"image": batch}), reference(batch))


def test_streams_give_what_the_merged_engine_gives(built: Built) -> None:
    batch = image(4)
    with (
        closing(built.open(division={1: "merged"})) as merged,
        closing(built.open(division={1: "streams"})) as streams,
    ):
        agree(streams.slots[0].run({"image": batch}), copied(merged.slots[0].run({"image": batch})))


@pytest.fixture
def without_graphs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets contexts that are opened from then on say that they cannot be captured."""
    return lambda: monkeypatch.setattr(LoadedContext, "capturable", lambda *_: False)


def test_a_graph_gives_what_plain_runs_give(built: Built, without_graphs: Callable[[], None]) -> None:
    batch = image(3)
    with closing(built.open()) as session:
        graph = copied(session.slots[0].run({"image": batch}))
        assert getattr(session, "notes", None) == []
    without_graphs()
    with closing(built.open()) as session:
        agree(session.slots[0].run({"image": batch}), graph, tolerance=1e-6)


def test_a_graph_launch_is_not_slower_than_plain_runs(
    built: Built, without_graphs: Callable[[], None]
) -> None:
    batch = image(1)
    with closing(built.open()) as graphs:
        graphs.prepare([1])
        without_graphs()
        with closing(built.open()) as plain:
            plain.prepare([1])

            def run(session: Session) -> Callable[[], None]:
                def calls() -> None:
                    for _ in range(20):
                        session.slots[0].run({"image": batch})

                return calls

            samples = clock.measure({"graph": run(graphs), "plain": run(plain)}, rounds=31)
    medians = {name: clock.median_ms(values) for name, values in samples.items()}
    assert medians["graph"] <= SLOWER * medians["plain"], medians


def test_tensors_of_torch_go_in_and_scores_stay_on_the_gpu(
    built: Built, reference: Callable[[NDArray[np.uint8]], Outputs]
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA here")
    batch = image(3)
    with closing(built.open()) as session:
        slot: Any = session.slots[0]
        kept = slot.run_device({"image": torch.from_numpy(batch).cuda()}, keep=True)
        agree({name: torch.as_tensor(kept[name], device="cuda").cpu() for name in kept}, reference(batch))


def test_an_engine_without_weights_takes_them_from_its_graph(
    flavour: tuple[Backend, str],
    graph: bytes,
    tmp_path: Path,
    reference: Callable[[NDArray[np.uint8]], Outputs],
) -> None:
    stripped = _build(flavour, graph, tmp_path, fusion="merged", strip=True)
    assert stripped.made.compiled is not None
    assert stripped.made.compiled.stripped
    with closing(stripped.open()) as session:
        batch = image(2)
        agree(session.slots[0].run({"image": batch}), reference(batch))


def test_layers_are_told_with_their_times(built: Built) -> None:
    profiler = built.backend.profiler(built.files, INPUTS, OUTPUTS, built.options(slots=1))
    try:
        profiler.run({"image": image(4)})
        for _ in range(3):
            profiler.run({"image": image(4)})
            profiler.collect()
    finally:
        layers = profiler.finish()
    assert layers
    assert sum(layer.ms for layer in layers) > 0


def test_bytes_that_are_no_engine_are_refused_and_the_next_one_opens(built: Built) -> None:
    with pytest.raises(EnvironmentUnusable, match="rebuild"):
        built.backend.open([b"no engine"] * len(built.files), INPUTS, OUTPUTS, built.options())
    with closing(built.open()) as session:
        session.slots[0].run({"image": image(1)})


def test_closing_and_opening_again_leaks_nothing(built: Built, device: CudaDevice) -> None:
    slack = (256 if device.facts.integrated else 32) << 20

    def once() -> None:
        with closing(built.open()) as session:
            session.slots[0].run({"image": image(2)})

    once()
    before = device.memory_left()[0]
    for _ in range(20):
        once()
    assert device.memory_left()[0] > before - slack
