"""Ceilings: the most that an engine's own library does on this machine, and how fast memory is copied."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from vsa_rt.bench import clock
from vsa_rt.bench.layer_kinds import COMPUTE, kind_of_word
from vsa_rt.bench.records.limits import Ceiling
from vsa_rt.contracts import Target, TensorSpec
from vsa_rt.engines import table
from vsa_rt.engines.backend import Backend, OpenOptions, Session, Tensors
from vsa_rt.engines.compiling import CompileOptions, Source
from vsa_rt.errors import EnvironmentUnusable, needs

if TYPE_CHECKING:
    import onnx

#: What the compute ceilings are measured at, unless told otherwise.
PRECISIONS = ("fp32", "bf16", "int8")
Kind = Literal["convolution", "matmul"]
#: A chain of so many: the call's own cost, the casts at its ends and the copy of its result vanish.
_LAYERS = 8
#: 3 x 3 convolutions: channels, height and width, images. The shape of ResNet-152's longest stage.
_CHANNELS, _SIZE, _BATCH = 256, 14, 8
#: Square products of matrices.
_WIDTH = 1024
#: Rounds fill this many seconds, within these bounds: on a busy machine fewer of them fit.
_SECONDS, _LEAST_ROUNDS, _MOST_ROUNDS = 5.0, 3, 12
_COPY_BYTES = 256 << 20
#: Values of a normal distribution lie within four deviations but for one of 16,000: int8's scale.
_DEVIATIONS = 4.0


@dataclass(frozen=True)
class Work:
    """What one chain of layers is made of.

    Attributes:
        shape: Of its input and output, with the batch.
        weights: Shape of one layer's.
        fan_in: Elements that each sum runs over.
        axis: Of the weights' output channels.
        words: For people.
    """

    shape: tuple[int, ...]
    weights: tuple[int, ...]
    fan_in: int
    axis: int
    words: str

    @property
    def macs(self) -> int:
        """Multiply-adds of one call: each element of each layer's output is a sum over ``fan_in``."""
        return _LAYERS * int(np.prod(self.shape)) * self.fan_in


#: What is run in every precision.
WORK: dict[Kind, Work] = {
    "convolution": Work(
        shape=(_BATCH, _CHANNELS, _SIZE, _SIZE),
        weights=(_CHANNELS, _CHANNELS, 3, 3),
        fan_in=9 * _CHANNELS,
        axis=0,
        words=f"{_LAYERS} convolutions 3 x 3 in a row, {_CHANNELS} channels, {_SIZE} x {_SIZE}, batch {_BATCH}",
    ),
    "matmul": Work(
        shape=(_WIDTH, _WIDTH),
        weights=(_WIDTH, _WIDTH),
        fan_in=_WIDTH,
        axis=1,
        words=f"{_LAYERS} products in a row, {_WIDTH} x {_WIDTH} x {_WIDTH}",
    ),
}


class _Chain:
    """The ONNX graph of one chain in one precision, float32 at both ends."""

    def __init__(self, kind: Kind, precision: str) -> None:
        self.kind, self.precision, self.work = kind, precision, WORK[kind]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def _constant(self, name: str, values: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def _node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def _quantised(self, name: str) -> str:
        """Symmetric int8 with one scale, which OpenVINO, ONNX Runtime and TensorRT all take as it is."""
        scale, zero = [f"{name}_scale", f"{name}_zero"]
        self._constant(scale, np.array(_DEVIATIONS / 127, np.float32))
        self._constant(zero, np.array(0, np.int8))
        self._node("QuantizeLinear", [name, scale, zero], f"{name}_q")
        return self._node("DequantizeLinear", [f"{name}_q", scale, zero], f"{name}_dq")

    def _weights(self, index: int) -> str:
        """Seeded weights that keep the values' deviation at 1; int8 ones have a scale per output channel."""
        import ml_dtypes

        name = f"w{index}"
        draw = np.random.default_rng(index).standard_normal(self.work.weights, np.float32)
        values = draw / np.float32(np.sqrt(self.work.fan_in))
        if self.precision == "bf16":
            return self._constant(name, values.astype(ml_dtypes.bfloat16))
        if self.precision != "int8":
            return self._constant(name, values)
        axis = self.work.axis
        others = tuple(a for a in range(values.ndim) if a != axis)
        scales = np.abs(values).max(axis=others, keepdims=True) / 127
        self._constant(f"{name}_q", np.rint(values / scales).astype(np.int8))
        self._constant(f"{name}_scale", scales.reshape(-1).astype(np.float32))
        self._constant(f"{name}_zero", np.zeros(scales.size, np.int8))
        return self._node("DequantizeLinear", [f"{name}_q", f"{name}_scale", f"{name}_zero"], name, axis=axis)

    def model(self) -> bytes:
        """The whole model."""
        import onnx
        from onnx import TensorProto, helper

        last = "x"
        if self.precision == "bf16":
            last = self._node("Cast", ["x"], "x_low", to=TensorProto.BFLOAT16)
        if self.precision == "int8":
            last = self._quantised("x")
        for index in range(_LAYERS):
            names = [last, self._weights(index)]
            if self.kind == "convolution":
                last = self._node("Conv", names, f"y{index}", pads=[1, 1, 1, 1])
            else:
                last = self._node("MatMul", names, f"y{index}")
            if self.precision == "int8":
                last = self._quantised(last)
        if self.kind == "convolution":
            axes = self._constant("axes", np.array([2, 3], np.int64))
            last = self._node("ReduceMax", [last, axes], "most", keepdims=0)
        self._node("Cast", [last], "out", to=TensorProto.FLOAT)
        free: list[str | int] = ["N"]
        given_value = helper.make_tensor_value_info("x", TensorProto.FLOAT, free + list(self.work.shape[1:]))
        made = helper.make_tensor_value_info("out", TensorProto.FLOAT, [*free, self.work.shape[1]])
        graph = helper.make_graph(self.nodes, "ceiling", [given_value], [made], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


def chain_graph(kind: Kind, precision: str) -> bytes:
    """The ONNX model that a ceiling is measured with.

    Args:
        kind: A key of ``WORK``.
        precision: Of its products: ``fp32``, ``bf16`` or ``int8``; its input and output are float32.
    """
    return _Chain(kind, precision).model()


def ran_in(precision: str, found: Sequence[str]) -> bool:
    """Whether every product of a chain ran in a precision.

    Args:
        precision: Such as ``int8``.
        found: What the backend's counters say of each; unsigned bytes count as int8.
    """
    wanted = {"int8", "uint8"} if precision == "int8" else {precision}
    return bool(found) and set(found) <= wanted


@dataclass(frozen=True)
class _Candidate:
    """A chain that is ready to run, or the reason why it cannot."""

    kind: Kind
    precision: str
    session: Session | None
    why: str


def _try_chain(
    backend: Backend, device: str, threads: int, kind: Kind, precision: str
) -> tuple[Session | None, str]:
    """Open a chain, and look in the backend's counters whether it runs in its precision."""
    work = WORK[kind]
    inputs = [TensorSpec("x", "float32", (None, *work.shape[1:]))]
    outputs = [TensorSpec("out", "float32", (None, work.shape[1]))]
    batch = work.shape[0]
    options = OpenOptions(max_batch=batch, threads=threads, first=batch)
    try:
        with tempfile.TemporaryDirectory(prefix="vsa-rt-ceiling-") as folder:
            source = Source(chain_graph(kind, precision))
            made = backend.build(source, Path(folder), device, CompileOptions(batch))
            files = [(Path(folder) / name).read_bytes() for name in made.files]
        options = replace(options, device=device, compiled=made.compiled)
        profiler = backend.profiler(files, inputs, outputs, options)
        try:
            profiler.run(_feed(work))
            profiler.collect()
        finally:
            layers = profiler.finish()
        found = [layer.precision for layer in layers if kind_of_word(layer.kind) in COMPUTE]
        if not ran_in(precision, found):
            ran = ", ".join(sorted({p or "a precision that it does not tell" for p in found})) or "nothing"
            return None, f"the library runs this {precision} graph in {ran}"
        return backend.open(files, inputs, outputs, options), ""
    except EnvironmentUnusable as error:
        return None, str(error)


def _feed(work: Work) -> Tensors:
    return {"x": np.random.default_rng(0).standard_normal(work.shape, np.float32)}


def _call(session: Session, feed: Tensors) -> Callable[[], object]:
    slot = session.slots[0]
    buffers = slot.buffers
    for name, values in feed.items():
        buffers[name][...] = values
    return lambda: slot.run(buffers)


def _last_level_cache() -> int:
    """Bytes of the largest cache; 0 where the system does not tell."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        if text[:-1].isdigit() and text[-1] in "KM":
            sizes.append(int(text[:-1]) << (10 if text[-1] == "K" else 20))
    return max(sizes)


def _free_memory() -> int:
    """Bytes that could be allocated without swapping; 0 where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 0)


def _copier(stack: ExitStack, threads: int) -> tuple[Callable[[], object], int, str]:
    """A copy between two buffers by so many threads, the bytes that it touches, and its words."""
    cache, free = _last_level_cache(), _free_memory()
    size = max(_COPY_BYTES, cache)
    size = min(size, max(_COPY_BYTES, free // 8)) if free else _COPY_BYTES
    size -= size % (threads * 4096)
    # Both are written once here: the first touch of a page is the kernel's work, not the memory's.
    source, target = (np.full(size, value, np.uint8) for value in (1, 2))
    pool = stack.enter_context(ThreadPoolExecutor(threads))
    pairs = list(zip(np.split(target, threads), np.split(source, threads), strict=True))

    def copy() -> None:
        # numpy lets go of the interpreter's lock while it copies.
        list(pool.map(lambda pair: np.copyto(*pair), pairs))

    words = f"{size >> 20} MiB to as many, bytes read and bytes written counted"
    if cache >= 2 * size:
        words += f"; both lie in the cache of {cache >> 20} MiB: memory may be slower"
    return copy, 2 * size, words


def _rounds(calls: Mapping[str, Callable[[], object]]) -> int:
    """How many rounds fit; each calls everything twice (``clock.measure``)."""
    for call in calls.values():
        call()
    seconds = 2 * sum(clock.single(call) for call in calls.values())
    return max(_LEAST_ROUNDS, min(_MOST_ROUNDS, int(_SECONDS / seconds)))


def ceilings(target: Target, threads: int, precisions: Sequence[str] = PRECISIONS) -> list[Ceiling]:
    """Measure what this machine gives at most.

    Convolutions and products of matrices are built, opened and run as a bundle's engines are. A value is the
    fastest of the rounds: a ceiling is the best that was seen. One whose library refuses the graph, or runs it in
    another precision, has no value and says why.

    Args:
        target: Whose library.
        threads: For the library, and for the copy.
        precisions: Of the graphs: ``fp32``, ``bf16``, ``int8``.

    Returns:
        Convolution and product for each precision, then the copy.

    Raises:
        EnvironmentUnusable: The target cannot be used here, or onnx is not installed.
        UsageError: No such backend or device.
    """
    with needs("export"):
        import ml_dtypes  # noqa: F401 - bfloat16 for numpy; asked for here, before anything is measured
        import onnx  # noqa: F401 - likewise
    found = table.probe(target)
    if not found.usable:
        raise EnvironmentUnusable(f"{found.reason}; {found.install}" if found.install else found.reason)
    backend = table.backend(target.backend)
    kinds: tuple[Kind, ...] = ("convolution", "matmul")
    calls: dict[str, Callable[[], object]] = {}
    with ExitStack() as stack:
        candidates = []
        for precision in precisions:
            for kind in kinds:
                session, why = _try_chain(backend, target.device, threads, kind, precision)
                candidates.append(_Candidate(kind, precision, session, why))
                if session is not None:
                    stack.callback(session.close)
                    calls[f"{kind} {precision}"] = _call(session, _feed(WORK[kind]))
        calls["copy"], copied, copy_words = _copier(stack, threads)
        count = _rounds(calls)
        samples = clock.measure(calls, rounds=count, warm_up=1)
    rounds = f"the fastest of {count} interleaved rounds"
    measured = [_compute(c, samples, target, threads, rounds) for c in candidates]
    copy = Ceiling(
        kind="copy",
        precision="bytes",
        value=copied / min(samples["copy"]) / 1e6,
        unit="GB/s",
        library="numpy",
        threads=threads,
        note=f"{copy_words}; {rounds}",
    )
    return [*measured, copy]


def _compute(
    candidate: _Candidate, samples: dict[str, list[float]], target: Target, threads: int, rounds: str
) -> Ceiling:
    work = WORK[candidate.kind]
    there = candidate.session is not None
    fastest = min(samples[f"{candidate.kind} {candidate.precision}"]) if there else 0.0
    return Ceiling(
        kind=candidate.kind,
        precision=candidate.precision,
        value=work.macs / fastest / 1e6 if there else None,
        unit="GMAC/s",
        library=str(target),
        threads=threads,
        note=f"{work.words}; {rounds}" if there else f"{work.words}: {candidate.why}",
    )
