"""A call divided among cores says what the undivided one says: by images, by branches, on every batch."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

onnx = pytest.importorskip("onnx", reason="graphs are written with onnx")
pytest.importorskip("openvino", reason="the sessions are OpenVINO's")
from onnx import TensorProto, helper, numpy_helper

from vsa_rt.bundle import Bundle
from vsa_rt.contracts import CPU_DIVISIONS, Precision, TensorSpec
from vsa_rt.engines import openvino_session
from vsa_rt.engines.backend import OpenOptions, Tensors
from vsa_rt.engines.compiling import CompileOptions, Source
from vsa_rt.engines.onnxruntime import OnnxRuntime
from vsa_rt.engines.openvino import OpenVino, OpenVinoSession
from vsa_rt.engines.openvino_branches import Branch, cut, find_branches, share_out
from vsa_rt.engines.openvino_session import core, shares
from vsa_rt.engines.openvino_slot import run_together
from vsa_rt.engines.select import input_specs, output_specs
from vsa_rt.errors import EnvironmentUnusable, UsageError

MAX = 5
INPUTS = {"image": (16, 16, 3), "wide": (20, 20, 3)}
#: Taps of ``ensemble`` and their widths: a, b and c are backbones, s reads a.
WIDTHS = {"a": 8, "s": 8, "b": 24, "c": 16, "features": 56, "scores": 2}
#: Multiply-adds of one image, by hand: 3 x 3 convolutions of 3 channels on 16 x 16, and on 20 x 20; s is 8 x 8, and
#: b has a pointwise convolution of 24 x 24 behind its first.
WORK = {"a": 16 * 16 * 9 * 3 * 8 + 64, "b": 16 * 16 * (9 * 3 * 24 + 24 * 24), "c": 20 * 20 * 9 * 3 * 16}


class Writer:
    """Writes an ONNX graph node by node; weights are seeded."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(4)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, values: Any, dtype: str = "float32") -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def weights(self, *shape: int) -> str:
        return self.constant(self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:])))

    def add(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], f"node_{output}", **attributes))
        return output

    def planar(self, image: str) -> str:
        """Pixels ``(N, H, W, 3)`` to floats ``(N, 3, H, W)``, written once for all that read them."""
        cast = self.add("Cast", image, to=TensorProto.FLOAT)
        return self.add("Div", self.add("Transpose", cast, perm=[0, 3, 1, 2]), self.constant(255.0))

    def conv(self, value: str, into: int, of: int, size: int = 3) -> str:
        pads = [size // 2] * 4
        return self.add(
            "Relu", self.add("Conv", value, self.weights(into, of, size, size), pads=pads, dilations=[1, 1])
        )

    def pooled(self, value: str, output: str) -> str:
        return self.add("Flatten", self.add("GlobalAveragePool", value), output=output)

    def model(self, inputs: Mapping[str, tuple[int, Sequence[int]]], outputs: Mapping[str, int]) -> bytes:
        """The graph: inputs with their types and shapes, outputs with their widths."""
        graph = helper.make_graph(
            self.nodes,
            "written",
            [helper.make_tensor_value_info(n, kind, ["N", *shape]) for n, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", w]) for n, w in outputs.items()],
            self.constants,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
        onnx.checker.check_model(made, full_check=True)
        return bytes(made.SerializeToString())


PIXELS = {name: (TensorProto.UINT8, shape) for name, shape in INPUTS.items()}


def ensemble(outputs: Mapping[str, int] = WIDTHS) -> bytes:
    """Three backbones on two inputs, one of them read by a fourth; joined, and a head."""
    w = Writer()
    image, wide = w.planar("image"), w.planar("wide")
    w.pooled(w.conv(image, 8, 3), "a")
    w.add("Tanh", w.add("MatMul", "a", w.weights(8, 8)), output="s")
    w.pooled(w.conv(w.conv(image, 24, 3), 24, 24, size=1), "b")
    w.pooled(w.conv(wide, 16, 3), "c")
    w.add("Concat", "a", "s", "b", "c", output="features", axis=1)
    w.add("Softmax", w.add("MatMul", "features", w.weights(56, 2)), output="scores")
    return w.model(PIXELS, outputs)


def feed(batch: int, seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    return {n: rng.integers(0, 256, (batch, *shape), dtype=np.uint8) for n, shape in INPUTS.items()}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The ensemble as OpenVINO's IR."""
    return built(ensemble(), tmp_path_factory.mktemp("engine"))


def built(graph: bytes, folder: Path) -> list[bytes]:
    made = OpenVino().build(Source(graph), folder, "cpu", CompileOptions(MAX))
    return [(folder / name).read_bytes() for name in made.files]


def opened(
    files: list[bytes],
    division: Mapping[int, str],
    threads: int = 2,
    inputs: Sequence[TensorSpec] = (),
    outputs: Mapping[str, int] = WIDTHS,
    max_batch: int = MAX,
    **options: Any,
) -> OpenVinoSession:
    return OpenVino().open(
        files,
        inputs or [TensorSpec(n, "uint8", (None, *shape)) for n, shape in INPUTS.items()],
        [TensorSpec(n, "float32", (None, width)) for n, width in outputs.items()],
        OpenOptions(max_batch=max_batch, threads=threads, division=division, **options),
    )


@pytest.fixture
def sessions(engine: list[bytes]) -> Iterator[Callable[..., OpenVinoSession]]:
    """Opens the ensemble, divided as told; what was opened is closed afterwards."""
    made: list[OpenVinoSession] = []

    def make(division: str, **options: Any) -> OpenVinoSession:
        made.append(opened(engine, {1: division}, **options))
        return made[-1]

    yield make
    for session in made:
        session.close()


def copied(outputs: Tensors) -> dict[str, NDArray[np.float32]]:
    return {name: value.copy() for name, value in outputs.items()}


def agree(one: Tensors, other: Tensors, relative: float = 1e-6) -> bool:
    """Whether all taps are equal but for the order of sums: other sizes and threads may take other kernels."""
    return list(one) == list(other) and all(
        one[n].shape == other[n].shape
        and bool(np.abs(one[n] - other[n]).max() <= relative * np.abs(other[n]).max())
        for n in one
    )


Sessions = Callable[..., OpenVinoSession]


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("division", ["images", "branches"])
def test_a_divided_call_gives_what_the_whole_one_gives(
    sessions: Sessions, division: str, threads: int
) -> None:
    whole, parts = sessions("threads", threads=threads), sessions(division, threads=threads)
    for count in range(1, MAX + 1):
        for seed in (1, 2):
            inputs = feed(count, seed)
            assert agree(parts.slots[0].run(inputs), whole.slots[0].run(inputs)), (count, seed)


def test_the_divisions_of_one_session_differ_by_batch(sessions: Sessions, engine: list[bytes]) -> None:
    whole = sessions("threads")
    session = opened(engine, {1: "branches", 2: "threads", 4: "images"})
    runs_at_once = {n: [len(step) for step in session.steps(n)] for n in range(1, MAX + 1)}
    # Branches and then what joins them; two and one; two shares.
    assert runs_at_once == {1: [2, 1], 2: [1], 3: [1, 1], 4: [2], 5: [2]}
    for count in (*range(1, MAX + 1), *range(MAX, 0, -1)):
        inputs = feed(count, count)
        assert agree(session.slots[0].run(inputs), whole.slots[0].run(inputs)), count
    session.close()


def noise(spec: TensorSpec, batch: int) -> NDArray[Any]:
    """Pixels, or rows of numbers, for one input."""
    rng = np.random.default_rng(batch)
    shape = (batch, *(n for n in spec.shape[1:] if n is not None))
    values = rng.integers(0, 256, shape) if spec.dtype == "uint8" else rng.standard_normal(shape)
    return values.astype(spec.dtype)


@pytest.mark.parametrize("fixture", ["tiny_bundle", "wired_bundle"])
def test_every_engine_of_a_bundle_can_be_divided(fixture: str, request: pytest.FixtureRequest) -> None:
    bundle = Bundle.open(request.getfixturevalue(fixture))
    manifest = bundle.manifest
    inputs, taps = input_specs(manifest), output_specs(manifest)
    engines = [e for e in manifest.engines if e.target == "openvino:cpu"]
    assert engines
    for record in engines:
        files = [bundle.read(name) for name in record.files]
        relative = 1e-5 if record.precision == "fp32" else 0.02

        def open_as(division: str, files: list[bytes] = files) -> OpenVinoSession:
            options = OpenOptions(max_batch=manifest.max_batch, threads=2, division={1: division})
            return OpenVino().open(files, inputs, taps, options)

        whole = open_as("threads")
        # In the wired bundle s reads r; g has its objects for itself.
        assert whole.divisions == CPU_DIVISIONS
        for division in ("images", "branches"):
            session = open_as(division)
            assert session.achieved == whole.achieved
            for count in range(1, manifest.max_batch + 1):
                feeds = {s.name: noise(s, count) for s in inputs}
                ours = session.slots[0].run(feeds)
                assert agree(ours, whole.slots[0].run(feeds), relative), (record.folder, division, count)
            session.close()
        whole.close()


# Which divisions apply


def test_a_session_says_which_divisions_apply(sessions: Sessions) -> None:
    assert sessions("threads").divisions == CPU_DIVISIONS
    assert sessions("images", threads=1).divisions == ("threads",)
    assert sessions("branches", streams=2).divisions == ("threads",)


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 2, "streams": 2}])
@pytest.mark.parametrize("division", CPU_DIVISIONS)
def test_calls_that_have_a_core_each_are_not_divided(
    sessions: Sessions, division: str, options: dict[str, int]
) -> None:
    session = sessions(division, **options)
    assert session.steps(4) == sessions("threads").steps(4)
    assert agree(session.slots[0].run(feed(3)), sessions("threads").slots[0].run(feed(3)))


def one_backbone() -> bytes:
    """A backbone that a second one reads: all of it hangs together."""
    w = Writer()
    w.pooled(w.conv(w.planar("image"), 8, 3), "a")
    w.add("MatMul", "a", w.weights(8, 8), output="s")
    w.add("Concat", "a", "s", output="features", axis=1)
    return w.model({"image": PIXELS["image"]}, {"a": 8, "s": 8, "features": 16})


def test_branches_of_one_backbone_are_refused_by_name(tmp_path: Path) -> None:
    files = built(one_backbone(), tmp_path)
    inputs = [TensorSpec("image", "uint8", (None, 16, 16, 3))]
    outputs = {"a": 8, "s": 8, "features": 16}
    with pytest.raises(
        EnvironmentUnusable,
        match="calls of 4 cannot be divided by branches here; what applies: threads, images",
    ):
        opened(files, {4: "branches"}, inputs=inputs, outputs=outputs)
    session = opened(files, {4: "images"}, inputs=inputs, outputs=outputs)
    assert session.divisions == ("threads", "images")
    session.close()


def test_onnx_runtime_divides_by_threads_alone(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the session is ONNX Runtime's")
    [name] = OnnxRuntime().build(Source(ensemble()), tmp_path, "cpu", CompileOptions(MAX)).files
    files = [(tmp_path / name).read_bytes()]
    inputs = [TensorSpec(n, "uint8", (None, *shape)) for n, shape in INPUTS.items()]
    outputs = [TensorSpec(n, "float32", (None, width)) for n, width in WIDTHS.items()]
    options = OpenOptions(max_batch=MAX, threads=2, division={1: "threads"})
    session = OnnxRuntime().open(files, inputs, outputs, options)
    assert (session.divisions, session.achieved) == (("threads",), 1.0)
    session.close()
    options = OpenOptions(max_batch=MAX, threads=2, division={1: "images"})
    with pytest.raises(
        EnvironmentUnusable, match=r"onnxruntime: calls of 1 .* images here; what applies: threads"
    ):
        OnnxRuntime().open(files, inputs, outputs, options)


@pytest.mark.parametrize(
    ("division", "says"),
    [({1: "cores"}, "'cores'.*there are threads, images, branches"), ({0: "images"}, "at least 1")],
)
def test_an_unknown_division_is_wrong_use(division: dict[int, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        OpenOptions(max_batch=1, threads=2, division=division)


@pytest.mark.parametrize(
    ("division", "wanted"),
    [
        ({}, "tttttt"),
        ({3: "images"}, "iiiiii"),
        ({1: "branches", 4: "images"}, "bbbiii"),
        ({5: "images", 2: "threads"}, "ttttii"),
        ({2: "branches", 3: "images", 6: "threads"}, "bbiiit"),
    ],
)
def test_a_batch_is_divided_as_the_nearest_smaller_else_larger_one(
    division: dict[int, str], wanted: str
) -> None:
    options = OpenOptions(max_batch=6, threads=2, division=division)
    assert "".join(options.division_of(n)[0] for n in range(1, 7)) == wanted


# Branches


def test_branches_are_what_shares_no_product(engine: list[bytes]) -> None:
    found = find_branches(read(engine), WIDTHS)
    assert {b.taps: b.work for b in found} == {("a", "s"): WORK["a"], ("b",): WORK["b"], ("c",): WORK["c"]}


def read(files: list[bytes], batch: int = 1) -> Any:
    import openvino as ov

    weights = ov.Tensor(np.frombuffer(files[1], np.uint8).copy())
    model = core().read_model(files[0], weights)
    model.reshape({n: [batch, *shape] for n, shape in INPUTS.items()})
    return model


@pytest.mark.parametrize(
    ("threads", "wanted"),
    [
        (1, {"b c a s": 1}),
        (2, {"b": 1, "c a s": 1}),
        (3, {"b": 1, "c": 1, "a s": 1}),
        # 313,344 and 172,800 and 55,360 multiply-adds: per thread 104,448 and 86,400 and 55,360.
        (6, {"b": 3, "c": 2, "a s": 1}),
    ],
)
def test_branches_are_balanced_by_multiply_adds(
    engine: list[bytes], threads: int, wanted: dict[str, int]
) -> None:
    groups = share_out(find_branches(read(engine), WIDTHS), threads)
    assert {" ".join(g.taps): g.threads for g in groups} == wanted


def test_a_graph_without_work_to_share_has_no_groups() -> None:
    assert share_out([], 2) == []


def test_as_many_groups_as_branches_at_most_and_no_thread_unused() -> None:
    for count, threads in itertools.product((1, 2, 3, 5), (1, 2, 4, 16)):
        groups = share_out([Branch((f"t{i}",), 10 * i) for i in range(count)], threads)
        assert len(groups) == min(count, threads)
        assert sum(g.threads for g in groups) == threads
        assert sorted(t for g in groups for t in g.taps) == [f"t{i}" for i in range(count)]


def test_every_weight_is_in_one_part(engine: list[bytes]) -> None:
    def weights(model: Any) -> list[str]:
        ops = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
        return sorted(op.get_friendly_name() for op in ops if np.prod(op.get_output_shape(0)) > 16)

    whole = weights(read(engine))
    assert len(whole) == 6
    parts = cut(read(engine), WIDTHS, [["b"], ["c", "a", "s"]])
    assert sorted(name for part in parts for name in weights(part)) == whole
    given = [{name for port in part.outputs for name in port.get_names()} for part in parts]
    assert given == [{"b"}, {"a", "s", "c"}, {"features", "scores"}]
    assert [{n for port in part.inputs for n in port.get_names()} for part in parts] == [
        {"image"},
        {"image", "wide"},
        {"a", "s", "b", "c"},
    ]


def test_taps_without_anything_that_joins_them(tmp_path: Path) -> None:
    only = {name: WIDTHS[name] for name in ("a", "b", "c")}
    files = built(ensemble(only), tmp_path)
    whole, parts = opened(files, {}, outputs=only), opened(files, {1: "branches"}, outputs=only)
    assert [len(step) for step in parts.steps(2)] == [2]
    assert agree(parts.slots[0].run(feed(3)), whole.slots[0].run(feed(3)))


def test_what_joins_branches_may_read_what_is_no_tap(tmp_path: Path) -> None:
    w = Writer()
    rows = w.conv(w.planar("image"), 8, 3)
    other = w.conv(w.planar("wide"), 8, 3)
    w.pooled(rows, "a")
    w.pooled(other, "b")
    highest = [w.add("Flatten", w.add("GlobalMaxPool", value)) for value in (rows, other)]
    w.add("Softmax", w.add("MatMul", w.add("Concat", *highest, axis=1), w.weights(16, 3)), output="scores")
    outputs = {"a": 8, "b": 8, "scores": 3}
    files = built(w.model(PIXELS, outputs), tmp_path)
    whole, parts = opened(files, {}, outputs=outputs), opened(files, {1: "branches"}, outputs=outputs)
    for count in range(1, MAX + 1):
        inputs = feed(count, count)
        assert agree(parts.slots[0].run(inputs), whole.slots[0].run(inputs)), count


def test_a_tensor_that_two_taps_name_fills_both(tmp_path: Path) -> None:
    w = Writer()
    w.pooled(w.conv(w.planar("image"), 8, 3), "a")
    w.add("Identity", "a", output="again")
    w.pooled(w.conv(w.planar("wide"), 8, 3), "b")
    w.add("Concat", "a", "b", output="features", axis=1)
    outputs = {"a": 8, "again": 8, "b": 8, "features": 16}
    files = built(w.model(PIXELS, outputs), tmp_path)
    for division in CPU_DIVISIONS:
        session = opened(files, {1: division}, outputs=outputs)
        found = session.slots[0].run(feed(3))
        assert np.abs(found["a"]).max() > 0
        np.testing.assert_array_equal(found["again"], found["a"])
        np.testing.assert_array_equal(found["features"], np.concatenate([found["a"], found["b"]], axis=1))


# Images


def test_shares_are_equal_or_one_apart() -> None:
    assert [shares(n, 3) for n in (3, 4, 8, 9)] == [[1, 1, 1], [2, 1, 1], [3, 3, 2], [3, 3, 3]]


def test_every_image_is_computed_once(sessions: Sessions) -> None:
    for threads in (2, 3, 7):
        session = sessions("images", threads=threads)
        for count in range(1, MAX + 1):
            pieces = [piece for step in session.steps(count) for piece in step]
            rows = [r for p in pieces for r in range(p.start, p.start + p.model.batch)]
            assert sorted(rows) == list(range(count))
            assert len(pieces) == min(threads, count)


def test_a_large_engine_is_compiled_for_two_sizes_of_shares(
    engine: list[bytes], sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sessions("threads", max_batch=9)
    monkeypatch.setattr(openvino_session, "LARGE", 0)
    for division, most in (("images", {1, 5}), ("branches", {1, 9})):
        session = opened(engine, {1: division}, max_batch=9)
        for count in range(1, 10):
            inputs = feed(count, count)
            assert agree(session.slots[0].run(inputs), whole.slots[0].run(inputs)), count
        assert {key.batch for key in session._compiled} == most
        # As many models as sizes, or as sizes and parts.
        assert len(session._compiled) == (2 if division == "images" else 6) + (division == "images")
        session.close()


# Slots


@pytest.mark.parametrize("division", CPU_DIVISIONS)
def test_slots_do_not_touch_each_others_results(sessions: Sessions, division: str) -> None:
    session = sessions(division, slots=2)
    one, two = session.slots
    first = one.run(feed(4, seed=1))
    kept = copied(first)
    assert not agree(two.run(feed(4, seed=2)), kept, 1e-3)
    assert all(np.array_equal(first[n], kept[n]) for n in kept)


@pytest.mark.parametrize("division", CPU_DIVISIONS)
def test_threads_with_a_slot_each_get_what_one_thread_gets(sessions: Sessions, division: str) -> None:
    session = sessions(division, slots=2)
    wanted = {(n, s): copied(session.slots[0].run(feed(n, s))) for n in (1, 3, 5) for s in range(4)}

    def work(number: int) -> bool:
        rng, slot = np.random.default_rng(number), session.slots[number]
        jobs = [(int(rng.choice([1, 3, 5])), int(rng.integers(4))) for _ in range(60)]
        return all(agree(slot.run(feed(*job)), wanted[job]) for job in jobs)

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(work, range(2), timeout=120))


@pytest.mark.parametrize("division", CPU_DIVISIONS)
def test_inputs_may_move_from_call_to_call(sessions: Sessions, division: str) -> None:
    session, whole = sessions(division), sessions("threads")
    slot = session.slots[0]
    for seed in range(4):
        inputs = feed(3, seed)
        wanted = copied(whole.slots[0].run(inputs))
        assert agree(slot.run(inputs), wanted)
        for name, buffer in slot.buffers.items():
            buffer[:3] = inputs[name]
        assert agree(slot.run({n: b[:3] for n, b in slot.buffers.items()}), wanted)


@pytest.mark.parametrize("division", CPU_DIVISIONS)
def test_what_was_prepared_is_not_compiled_again(sessions: Sessions, division: str) -> None:
    session = sessions(division)
    session.prepare(range(1, MAX + 1))
    compiled = dict(session._compiled)
    for count in range(1, MAX + 1):
        session.slots[0].run(feed(count))
    bare = session.bare_call(feed(MAX))
    bare()
    assert session._compiled == compiled


@pytest.mark.parametrize("division", CPU_DIVISIONS)
def test_closing_frees_every_model_and_refuses_calls(engine: list[bytes], division: str) -> None:
    session = opened(engine, {1: division}, slots=2)
    for slot in session.slots:
        slot.run(feed(MAX))
    models = [weakref.ref(model) for model in session._compiled.values()]
    session.close()
    session.close()
    gc.collect()
    assert [model for model in models if model() is not None] == []
    for count in (1, MAX):
        with pytest.raises(EnvironmentUnusable, match="closed"):
            session.slots[0].run(feed(count))


@pytest.mark.parametrize("division", CPU_DIVISIONS)
def test_counters_are_those_of_undivided_calls(engine: list[bytes], division: str) -> None:
    session = opened(engine, {})
    profiler = OpenVino().profiler(
        engine,
        session.inputs,
        session.outputs,
        OpenOptions(max_batch=MAX, threads=2, division={1: division}),
    )
    profiler.run(feed(3))
    profiler.collect()
    layers = profiler.finish()
    nodes = {node for layer in layers for node in layer.nodes}
    assert {n for n in nodes if n.startswith("node_t")} >= {
        op.name for op in parsed().node if op.op_type == "Conv"
    }
    assert all(layer.ms >= 0 for layer in layers)
    session.close()


def parsed() -> Any:
    return onnx.load_from_string(ensemble()).graph


# Faults


class Fake:
    """An infer request that fails when it is told to."""

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at, self.seen = fails_at, list[str]()

    def _note(self, what: str) -> None:
        self.seen.append(what)
        if what == self.fails_at:
            raise RuntimeError(f"failed at {what}")

    def start_async(self) -> None:
        self._note("start")

    def wait(self) -> None:
        self._note("wait")


@pytest.mark.parametrize("broken", [0, 1, 2])
@pytest.mark.parametrize("fails_at", ["start", "wait"])
def test_a_request_that_fails_leaves_no_other_running(broken: int, fails_at: str) -> None:
    requests: list[Any] = [Fake(fails_at if i == broken else "") for i in range(3)]
    with pytest.raises(RuntimeError, match=f"failed at {fails_at}"):
        run_together(requests)
    for request in requests:
        if "start" in request.seen and request.fails_at != "start":
            assert request.seen == ["start", "wait"]


def brittle() -> bytes:
    """Branch b folds its eight numbers into rows of ``fold``, which must divide them, and back."""
    w = Writer()
    w.pooled(w.conv(w.planar("image"), 8, 3), "a")
    numbers = w.add("Flatten", w.add("GlobalAveragePool", w.conv(w.planar("wide"), 8, 3)))
    fold = w.add("ReduceMax", "fold", w.constant([0, 1], "int64"), keepdims=0)
    rows = w.add(
        "Concat", w.constant([-1], "int64"), w.add("Reshape", fold, w.constant([1], "int64")), axis=0
    )
    folded = w.add("Relu", w.add("Reshape", numbers, rows))
    w.add("Reshape", folded, w.constant([-1, 8], "int64"), output="b")
    w.add("Concat", "a", "b", output="features", axis=1)
    return w.model(PIXELS | {"fold": (TensorProto.INT64, [1])}, {"a": 8, "b": 8, "features": 16})


@pytest.mark.parametrize("division", CPU_DIVISIONS)
def test_a_part_that_fails_fails_the_call_and_not_the_next_one(tmp_path: Path, division: str) -> None:
    inputs = [TensorSpec(n, "uint8", (None, *shape)) for n, shape in INPUTS.items()]
    inputs.append(TensorSpec("fold", "int64", (None, 1)))
    session = opened(
        built(brittle(), tmp_path), {1: division}, inputs=inputs, outputs={"a": 8, "b": 8, "features": 16}
    )
    for count in (1, 4):

        def call(fold: int, count: int = count) -> dict[str, NDArray[np.float32]]:
            rows = {"fold": np.full((count, 1), fold, np.int64)}
            return copied(session.slots[0].run({**feed(count), **rows}))

        wanted = call(4)
        with pytest.raises(RuntimeError):
            call(7)
        assert agree(call(2), wanted)
    session.close()


# What was computed in the precision that was asked for


def quantised(w: Writer, value: str, scale: float) -> str:
    steps = [w.constant(scale), w.constant(0, "int8")]
    return w.add("DequantizeLinear", w.add("QuantizeLinear", value, *steps), *steps)


def typed(first: Precision, second: Precision) -> bytes:
    """Two backbones of two convolutions each, each in a precision."""
    w = Writer()
    types = {Precision.FP16: TensorProto.FLOAT16, Precision.BF16: TensorProto.BFLOAT16}
    for precision, image, tap in ((first, "image", "a"), (second, "wide", "b")):
        value = w.planar(image)
        for of, into in ((3, 16), (16, 16)):
            weights = w.weights(into, of, 3, 3)
            if precision is Precision.INT8:
                codes = w.constant(w.rng.integers(-127, 128, (into, of, 3, 3)), "int8")
                weights = w.add("DequantizeLinear", codes, w.constant(0.001), w.constant(0, "int8"))
                value = quantised(w, value, 1 / 127)
            elif precision in types:
                weights, value = (w.add("Cast", v, to=types[precision]) for v in (weights, value))
            value = w.add("Relu", w.add("Conv", value, weights, pads=[1] * 4))
            value = w.add("Cast", value, to=TensorProto.FLOAT)
        w.pooled(value, tap)
    w.add("Concat", "a", "b", output="features", axis=1)
    return w.model(PIXELS, {"a": 16, "b": 16, "features": 32})


PAIRS = [
    (Precision.FP32, Precision.FP32),
    (Precision.INT8, Precision.INT8),
    (Precision.INT8, Precision.FP32),
    (Precision.BF16, Precision.BF16),
    (Precision.BF16, Precision.INT8),
    (Precision.BF16, Precision.FP32),
]


@pytest.mark.parametrize("division", CPU_DIVISIONS)
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_what_the_graph_asks_for_is_achieved(
    tmp_path: Path, first: Precision, second: Precision, division: str
) -> None:
    if Precision.BF16 in (first, second) and "BF16" not in core().get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES"
    ):
        pytest.skip("this processor has no bf16")
    outputs = {"a": 16, "b": 16, "features": 32}
    session = opened(built(typed(first, second), tmp_path), {1: division}, outputs=outputs)
    assert session.achieved == 1.0
    session.close()


@pytest.mark.parametrize("division", CPU_DIVISIONS)
def test_what_the_library_computes_in_another_precision_is_not_achieved(
    tmp_path: Path, division: str
) -> None:
    """OpenVINO's CPU plugin computes graphs in fp16 in fp32, where it is not told otherwise."""
    outputs = {"a": 16, "b": 16, "features": 32}
    for second, wanted in ((Precision.FP16, 0.0), (Precision.FP32, 0.5)):
        (folder := tmp_path / str(second)).mkdir()
        session = opened(built(typed(Precision.FP16, second), folder), {1: division}, outputs=outputs)
        assert session.achieved == wanted
        session.close()


def test_weights_of_eight_bits_alone_do_not_ask_for_int8(tmp_path: Path) -> None:
    w = Writer()
    codes = w.constant(w.rng.integers(-127, 128, (8, 3, 3, 3)), "int8")
    weights = w.add("DequantizeLinear", codes, w.constant(0.001), w.constant(0, "int8"))
    w.pooled(w.add("Conv", w.planar("image"), weights), "a")
    files = built(w.model({"image": PIXELS["image"]}, {"a": 8}), tmp_path)
    session = opened(files, {}, inputs=[TensorSpec("image", "uint8", (None, 16, 16, 3))], outputs={"a": 8})
    assert session.achieved == 1.0
    session.close()


def test_onnx_runtime_does_not_tell_how_much_of_an_int8_graph_runs_in_int8(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the session is ONNX Runtime's")
    graph = typed(Precision.INT8, Precision.INT8)
    [name] = OnnxRuntime().build(Source(graph), tmp_path, "cpu", CompileOptions(MAX)).files
    inputs = [TensorSpec(n, "uint8", (None, *shape)) for n, shape in INPUTS.items()]
    outputs = [
        TensorSpec(n, "float32", (None, width)) for n, width in (("a", 16), ("b", 16), ("features", 32))
    ]
    files = [(tmp_path / name).read_bytes()]
    session = OnnxRuntime().open(files, inputs, outputs, OpenOptions(max_batch=MAX, threads=1))
    assert session.achieved is None
    session.close()


def test_without_convolutions_nothing_is_achieved(tmp_path: Path) -> None:
    w = Writer()
    w.add("MatMul", w.add("Flatten", w.planar("image")), w.weights(768, 4), output="a")
    files = built(w.model({"image": PIXELS["image"]}, {"a": 4}), tmp_path)
    session = opened(files, {}, inputs=[TensorSpec("image", "uint8", (None, 16, 16, 3))], outputs={"a": 4})
    assert session.achieved is None
    session.close()
