"""A whole runtime over a session on the emulated GPU, whose engines compute a real bundle's graph with ONNX Runtime."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_cuda import EmulatedDevice
from emulated_engine import Compute, EmulatedEngine
from emulated_memory import TheirArray
from numpy.typing import NDArray
from PIL import Image

import vsa_rt
from vsa_rt import ItemError, Sentiment
from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Resample
from vsa_rt.engines.backend import OpenOptions
from vsa_rt.engines.cuda.seam import Form, Port, Stage
from vsa_rt.engines.cuda.session import CudaSession
from vsa_rt.engines.onnxruntime_session import open_model, session_options
from vsa_rt.engines.select import Opened, input_specs, output_specs
from vsa_rt.errors import EnvironmentUnusable, UsageError
from vsa_rt.export.partition import partition
from vsa_rt.runtime.fused import Runtime

Results = list[Sentiment | ItemError]


class Hooks:
    """What an engine does before it computes; nothing unless a test says so."""

    def __init__(self) -> None:
        self.before: Callable[[str], None] = lambda _: None

    def around(self, name: str, compute: Compute) -> Compute:
        def run(given: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            self.before(name)
            return compute(given)

        return run


class Machine:
    """A machine with an emulated GPU, and a bundle that was compiled for it.

    Args:
        root: A bundle with a graph.
        division: How calls are divided.
    """

    def __init__(self, root: Path, division: str) -> None:
        self.device, self.hooks = EmulatedDevice(), Hooks()
        self.manifest = Bundle.open(root).manifest
        self.inputs, self.outputs = input_specs(self.manifest), output_specs(self.manifest)
        graph = (root / "graph.onnx").read_bytes()
        forms = [Form("merged", (self._stage("merged", graph),))]
        taps = [tap.name for tap in self.manifest.taps if tap.kind == "backbone"]
        parts = partition(graph, taps)
        assert [part.name for part in parts] == [*taps, "head"]
        forms.append(Form("streams", tuple(self._stage(part.name, part.graph) for part in parts)))
        options = OpenOptions(
            max_batch=self.manifest.max_batch, threads=1, streams=2, slots=2, division={1: division}
        )
        self.session = CudaSession(self.device, forms, self.inputs, self.outputs, options)
        opened = Opened(self.session, self.manifest.engines[0], "emulated", {})
        self.runtime = Runtime(self.manifest, opened, Resample.EXACT, self.manifest.max_batch)

    def _stage(self, name: str, graph: bytes) -> Stage:
        model = open_model(graph, session_options(1), "refuses the part")
        ports = [
            Port(p.name, taken, _dtype(p.type), (None, *p.shape[1:]))
            for taken, found in ((True, model.get_inputs()), (False, model.get_outputs()))
            for p in found
        ]
        names = [p.name for p in ports if not p.taken]

        def compute(given: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            return dict(zip(names, model.run(names, given), strict=True))

        engine = EmulatedEngine(
            self.device,
            ports,
            self.hooks.around(name, compute),
            name=name,
            scratch=lambda batch: 1000 * batch,
        )
        return Stage(name, engine)

    def check_closed(self) -> None:
        """Close the runtime; nothing was wrong and nothing is left."""
        self.runtime.close()
        gc.collect()
        assert self.device.faults == []
        assert self.device.open() == {}


def _dtype(word: str) -> str:
    """numpy's word for ONNX Runtime's."""
    inner = word.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "float16": "float16"}.get(inner, inner)


@pytest.fixture(params=["merged", "streams"])
def machine(tiny_bundle: Path, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """The tiny bundle on an emulated GPU, two slots, each form."""
    made = Machine(tiny_bundle, request.param)
    yield made
    made.check_closed()


@pytest.fixture
def cpu(tiny_bundle: Path) -> Iterator[Runtime]:
    """The same bundle's fp32 engine on this machine's processor."""
    with vsa_rt.load(tiny_bundle, target="onnxruntime:cpu", precision="fp32", threads=1) as runtime:
        yield runtime


@pytest.fixture
def pictures(toy_data: Path) -> list[Path]:
    """Twelve pictures, dark and bright in turns."""
    folders = [sorted((toy_data / name).iterdir()) for name in ("dark", "bright")]
    return [path for pair in zip(*folders, strict=True) for path in pair]


def same(found: Sequence[Sentiment | ItemError], wanted: Sequence[Sentiment | ItemError]) -> bool:
    """Equal but for the last bits, in order, errors in the same places."""
    return len(found) == len(wanted) and all(
        a.reason == b.reason
        if isinstance(a, ItemError) and isinstance(b, ItemError)
        else isinstance(a, Sentiment)
        and isinstance(b, Sentiment)
        and a.label == b.label
        and np.allclose(list(a.scores.values()), list(b.scores.values()), atol=1e-5)
        for a, b in zip(found, wanted, strict=True)
    )


def test_it_says_what_the_processors_engine_says(
    machine: Machine, cpu: Runtime, pictures: list[Path]
) -> None:
    runtime = machine.runtime
    for count in (1, 2, 3, 4, 5, 12):
        found = runtime(pictures[:count])
        assert same(found, cpu(pictures[:count]))
        assert [r.label for r in found if isinstance(r, Sentiment)] == (["dark", "bright"] * 6)[:count]
    assert machine.session.notes == []
    taps, wanted = runtime.features(pictures[:5]), cpu.features(pictures[:5])
    assert taps.keys() == wanted.keys()
    for name, rows in wanted.items():
        assert np.allclose(taps[name], rows, atol=1e-4), name
    watched = list(runtime.stream(iter(pictures), max_latency_ms=5))
    assert same(watched, cpu(pictures))


def test_a_bad_item_stands_in_its_place_and_spoils_no_other(
    machine: Machine, cpu: Runtime, pictures: list[Path], tmp_path: Path
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    items: list[Any] = [
        pictures[0],
        text,
        pictures[1],
        tmp_path / "absent.jpg",
        b"",
        pictures[2],
        pictures[3],
    ]
    found = machine.runtime(items)
    assert [isinstance(r, ItemError) for r in found] == [False, True, False, True, True, False, False]
    assert same(found, cpu(items))
    # A row that failed is padding: what lay in its place in a batch before must not come back.
    assert same(machine.runtime([text] * 4 + [pictures[0]]), cpu([text] * 4 + [pictures[0]]))


def test_two_batches_are_in_the_engine_at_the_same_time(
    machine: Machine, cpu: Runtime, pictures: list[Path]
) -> None:
    machine.runtime.prepare(4)
    both = threading.Barrier(2, timeout=60)

    def meet(name: str) -> None:
        if name in ("merged", "small"):
            both.wait()

    machine.hooks.before = meet
    found = machine.runtime(pictures[:8])
    machine.hooks.before = lambda _: None
    assert not both.broken
    assert same(found, cpu(pictures[:8]))


def test_a_submitted_call_goes_on_by_itself(machine: Machine, cpu: Runtime, pictures: list[Path]) -> None:
    futures = [machine.runtime.submit(pictures[start : start + 4]) for start in (0, 4, 8)]
    assert same([r for future in futures for r in future.result(120)], cpu(pictures))


def test_many_threads_share_it(machine: Machine, cpu: Runtime, pictures: list[Path]) -> None:
    wanted = cpu(pictures)

    def ask(number: int) -> bool:
        chosen = [(number * 5 + i * 7) % 12 for i in range(1 + number % 6)]
        if number % 3 == 1:
            machine.runtime.prepare(1 + number % 4)
        found = machine.runtime([pictures[i] for i in chosen])
        return same(found, [wanted[i] for i in chosen])

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(18)))
    assert machine.device.most_captures == 1


def tensors_of(machine: Machine, pictures: list[Path]) -> dict[str, NDArray[Any]]:
    """The graph's inputs, of pictures that are only resized."""
    found = {}
    for spec in machine.inputs:
        height, width = spec.shape[1], spec.shape[2]
        assert height is not None
        assert width is not None
        rows = [np.asarray(Image.open(p).convert("RGB").resize((width, height))) for p in pictures]
        found[spec.name] = np.stack(rows)
    return found


def test_arrays_on_the_device_go_in_and_may_stay(
    machine: Machine, cpu: Runtime, pictures: list[Path]
) -> None:
    runtime, device = machine.runtime, machine.device
    for count in (3, 4, 1):
        tensors = tensors_of(machine, pictures[:count])
        wanted = cpu.infer(tensors)
        for found in (
            runtime.infer(tensors),
            runtime.infer({name: TheirArray(device, array) for name, array in tensors.items()}),
        ):
            assert found.keys() == wanted.keys()
            assert all(np.allclose(found[name], wanted[name], atol=1e-4) for name in wanted)
        kept = runtime.infer_on_device({name: TheirArray(device, array) for name, array in tensors.items()})
        for name, array in kept.items():
            device.enter()
            assert np.allclose(array.to_host(), wanted[name], atol=1e-4)
            array.close()


def test_a_device_that_fails_fails_the_call_and_the_runtime_can_be_opened_again(
    tiny_bundle: Path, cpu: Runtime, pictures: list[Path]
) -> None:
    broken = Machine(tiny_bundle, "streams")
    broken.runtime(pictures[:2])

    def fail(_: str) -> None:
        raise ZeroDivisionError("an uncorrectable memory error")

    broken.hooks.before = fail
    with pytest.raises(EnvironmentUnusable, match="uncorrectable memory error"):
        broken.runtime(pictures)
    broken.hooks.before = lambda _: None
    with pytest.raises(EnvironmentUnusable, match=r"failed before.*uncorrectable memory error"):
        broken.runtime(pictures[:1])
    broken.check_closed()
    with pytest.raises(UsageError, match="closed"):
        broken.runtime(pictures[:1])
    again = Machine(tiny_bundle, "streams")
    assert same(again.runtime(pictures[:3]), cpu(pictures[:3]))
    again.check_closed()


def test_an_engine_that_gives_other_rows_is_caught(
    tiny_bundle: Path, cpu: Runtime, pictures: list[Path]
) -> None:
    """The comparison with the processor's engine sees a wrong row."""
    wrong = Machine(tiny_bundle, "merged")
    engine = wrong.device.things("engine")[0]
    compute = engine.compute
    engine.compute = lambda given: {name: rows[::-1] for name, rows in compute(given).items()}
    assert not same(wrong.runtime(pictures[:4]), cpu(pictures[:4]))
    wrong.check_closed()
