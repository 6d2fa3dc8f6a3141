"""OpenVINO on the CPU: the fast engine on x86. Engines are its IR, ``model.xml`` and ``model.bin``."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.contracts import Precision, TensorSpec
from vsa_rt.engines.backend import OpenOptions, Probe, RawLayer, Tensors, allocate, check_tensor
from vsa_rt.errors import EnvironmentUnusable

if TYPE_CHECKING:
    import openvino as ov

INSTALL = "pip install 'vsa-rt[openvino]'"


@cache
def _core() -> ov.Core:
    try:
        import openvino as ov
    except ImportError as error:
        raise EnvironmentUnusable(f"openvino cannot be imported ({error}); {INSTALL}") from error
    return ov.Core()


def _properties(options: OpenOptions) -> dict[str, Any]:
    return {
        # OpenVINO's own default on processors with bf16 is bf16. Here the graph alone says the precision.
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": options.streams,
        "INFERENCE_NUM_THREADS": options.threads,
    }


#: From this many bytes of weights on, an engine is compiled for two batch sizes only: each holds its own copy.
LARGE = 1 << 28


def buckets(count: int, only: int | None = None) -> list[int]:
    """Batch sizes that add up to ``count``, largest first: each is compiled with a fixed batch.

    Args:
        count: Images of one call.
        only: The one size to use besides 1; ``None`` for any power of two.
    """
    if only is not None:
        return [only] * (count // only) + [1] * (count % only)
    return [1 << bit for bit in reversed(range(count.bit_length())) if count >> bit & 1]


class OpenVinoSlot:
    """One infer request per batch size, all on the slot's own buffers."""

    def __init__(self, session: OpenVinoSession) -> None:
        self._session = session
        self._requests: dict[int, ov.InferRequest] = {}
        #: Batch size to tensor name to the address that its request reads or writes, and whose it is.
        self._bound: dict[int, dict[str, tuple[int, NDArray[Any]]]] = {}
        self.buffers = allocate(session.inputs, session.options.max_batch)
        self._outputs = allocate(session.outputs, session.options.max_batch)

    def _bind(self, count: int, start: int, arrays: Tensors) -> None:
        """Point the request at rows of host arrays. Setting a tensor costs 30 microseconds, so only if it moved."""
        import openvino as ov

        request, bound = self._requests[count], self._bound[count]
        for name, array in arrays.items():
            part = array[start : start + count]
            address = part.ctypes.data
            if name not in bound or bound[name][0] != address:
                request.set_tensor(name, ov.Tensor(part, shared_memory=True))
                # The request keeps no reference: the array stays here, so that a bound address is never freed.
                bound[name] = (address, part)

    def _run_part(self, inputs: Tensors, start: int, count: int) -> None:
        if count not in self._requests:
            self._requests[count] = self._session.compiled(count).create_infer_request()
            self._bound[count] = {}
        self._bind(count, start, inputs)
        self._bind(count, start, self._outputs)
        request = self._requests[count]
        request.start_async()
        request.wait()

    def run(self, inputs: Tensors) -> Tensors:
        """Run one batch; see ``Slot.run``."""
        count = len(next(iter(inputs.values())))
        start = 0
        for part in self._session.parts(count):
            self._run_part(inputs, start, part)
            start += part
        return {name: buffer[:count] for name, buffer in self._outputs.items()}

    def counters(self, count: int) -> list[Any]:
        """OpenVINO's counters of the last call's part of this batch size."""
        return list(self._requests[count].profiling_info)


class OpenVinoSession:
    """An IR, compiled once per batch size: fixed shapes run about 15 % faster than a dynamic batch."""

    def __init__(
        self,
        files: Sequence[bytes],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: OpenOptions,
        counters: bool = False,
    ) -> None:
        import openvino as ov

        self._properties = _properties(options) | ({"PERF_COUNT": True} if counters else {})
        self.inputs, self.outputs, self.options = tuple(inputs), tuple(outputs), options
        # OpenVINO shares writable memory only.
        self._weights = np.frombuffer(files[1], np.uint8).copy()
        # The IR's constants point into these bytes: they must outlive every compiled model.
        self._source: tuple[bytes, ov.Tensor] = (files[0], ov.Tensor(self._weights, shared_memory=True))
        self._compiled: dict[int, ov.CompiledModel] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._check_tensors(self._read())
        # Once now: an engine that this machine cannot run is to be refused when it is opened, not at its first call.
        self.compiled(options.first)
        self.slots = [OpenVinoSlot(self) for _ in range(options.slots)]

    def _read(self) -> ov.Model:
        return _core().read_model(*self._source)

    def _check_tensors(self, model: ov.Model) -> None:
        there = {
            name: [d.get_length() if d.is_static else None for d in port.get_partial_shape()]
            for port in (*model.inputs, *model.outputs)
            for name in port.get_names()
        }
        for spec in (*self.inputs, *self.outputs):
            check_tensor("openvino", spec, there)

    def parts(self, count: int) -> list[int]:
        """The batch sizes that a call of ``count`` images is made of."""
        return buckets(count, self.options.max_batch if self._weights.nbytes >= LARGE else None)

    def compiled(self, count: int) -> ov.CompiledModel:
        """The engine compiled for batches of exactly ``count`` images.

        Raises:
            EnvironmentUnusable: The session is closed, or the library cannot compile it here.
        """
        with self._lock:
            if self._closed:
                raise EnvironmentUnusable("openvino: the session is closed")
            if count not in self._compiled:
                model = self._read()
                model.reshape({s.name: [count, *s.shape[1:]] for s in self.inputs})
                try:
                    self._compiled[count] = _core().compile_model(model, "CPU", self._properties)
                except RuntimeError as error:
                    raise EnvironmentUnusable(f"openvino cannot compile the engine: {error}") from error
            return self._compiled[count]

    @property
    def achieved(self) -> float | None:
        """Share of convolutions whose kernels run in bf16, or in fp32 where the graph holds no bf16."""
        count = min(self._compiled, default=1)
        ran: list[str] = []
        for node in self.compiled(count).get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            if "layerType" in info and "Convolution" in str(info["layerType"].astype(str)):
                ran.append(str(info["runtimePrecision"].astype(str)).lower())
        wanted = "bf16" if self._holds_bf16() else "f32"
        return sum(r == wanted for r in ran) / len(ran) if ran else None

    def _holds_bf16(self) -> bool:
        return b'precision="BF16"' in self._source[0]

    def prepare(self, counts: Sequence[int]) -> None:
        """Compile for these batch sizes now; see ``Session.prepare``."""
        for part in sorted({p for count in counts for p in self.parts(count)}):
            self.compiled(part)

    def close(self) -> None:
        """Free the compiled models and their memory."""
        self._closed = True
        for slot in self.slots:
            slot._requests.clear()
            slot._bound.clear()
        self._compiled.clear()
        # Whoever still holds the session need not hold its weights.
        self._weights = np.empty(0, np.uint8)
        del self._source


#: OpenVINO's words for element types.
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "uint8"}
#: What OpenVINO appends to a node's name when it takes the node apart.
_PARTS = ("/WithoutBiases", "_original")


def _told(info: Any, key: str) -> str:
    return str(info[key].astype(str)) if key in info else ""


def _node_names(info: Any) -> Iterator[str]:
    """The nodes that a layer of the runtime model was made of."""
    for name in _told(info, "originalLayersNames").split(","):
        if name:
            yield name
            for part in _PARTS:
                if name.endswith(part):
                    yield name.removesuffix(part)


def _layers(compiled: ov.CompiledModel) -> dict[str, RawLayer]:
    """The layers of a compiled model, without times."""
    found: dict[str, RawLayer] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        info, name = node.get_rt_info(), str(node.get_friendly_name())
        nodes = tuple(dict.fromkeys(_node_names(info)))
        feeds: tuple[str, ...] = ()
        if not nodes:  # a reorder, say: it belongs to whoever reads it
            readers = (port.get_node() for out in node.outputs() for port in out.get_target_inputs())
            feeds = tuple(dict.fromkeys(n for reader in readers for n in _node_names(reader.get_rt_info())))
        precision = _told(info, "runtimePrecision").lower()
        found[name] = RawLayer(
            name, nodes, _told(info, "layerType"), _PRECISIONS.get(precision, precision), 0.0, feeds
        )
    return found


class OpenVinoProfiler:
    """A session whose compiled models count, and sums of what they counted."""

    source = "OpenVINO's performance counters"

    def __init__(self, session: OpenVinoSession) -> None:
        self._session = session
        self._parts: Counter[int] = Counter()
        self._sums: dict[str, float] = {}
        self._layers: dict[str, RawLayer] = {}
        self._known: set[int] = set()
        self._calls = 0

    def run(self, inputs: Tensors) -> None:
        """Run one batch; see ``Profiler.run``."""
        self._session.slots[0].run(inputs)
        self._parts = Counter(self._session.parts(len(next(iter(inputs.values())))))

    def collect(self) -> None:
        """Add the last call's counters.

        Of parts of the same batch size in one call, the last one's counters are left: they stand for all of them.
        """
        self._calls += 1
        for part, times in self._parts.items():
            if part not in self._known:
                self._known.add(part)
                self._layers |= _layers(self._session.compiled(part))
            for counter in self._session.slots[0].counters(part):
                if counter.status == counter.Status.EXECUTED:
                    spent = times * counter.real_time.total_seconds() * 1e3
                    self._sums[counter.node_name] = self._sums.get(counter.node_name, 0.0) + spent

    def finish(self) -> list[RawLayer]:
        """Free the session; see ``Profiler.finish``."""
        self._session.close()
        layers = []
        for name, spent in self._sums.items():
            known = self._layers.get(name, RawLayer(name, (), "", "", 0.0))
            layers.append(replace(known, ms=spent / self._calls))
        return layers


class OpenVino:
    """The backend ``openvino``."""

    name = "openvino"
    devices = ("cpu",)
    precisions = (Precision.FP32, Precision.BF16)

    def probe(self, device: str) -> Probe:
        """Look for the library and its CPU plugin."""
        try:
            import openvino as ov

            machine = str(_core().get_property("CPU", "FULL_DEVICE_NAME"))
        except ImportError:
            return Probe(False, reason="openvino is not installed", install=INSTALL)
        except (RuntimeError, EnvironmentUnusable) as error:
            return Probe(False, reason=f"openvino has no usable CPU plugin: {error}", install=INSTALL)
        return Probe(True, version=str(ov.__version__).split("-")[0], machine=machine.strip())

    def build(self, graph: bytes, folder: Path, device: str, max_batch: int) -> list[str]:
        """Write the IR of an ONNX graph, every constant in the graph's own type."""
        import openvino as ov

        try:
            model = _core().read_model(graph)
            ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
        except RuntimeError as error:
            raise EnvironmentUnusable(f"openvino refuses the graph: {error}") from error
        return ["model.xml", "model.bin"]

    def open(
        self,
        files: Sequence[bytes],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: OpenOptions,
    ) -> OpenVinoSession:
        """Open an IR from its two files' bytes."""
        return self._session(files, inputs, outputs, options, counters=False)

    def profiler(
        self,
        files: Sequence[bytes],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: OpenOptions,
    ) -> OpenVinoProfiler:
        """Open an IR with counters on."""
        return OpenVinoProfiler(self._session(files, inputs, outputs, options, counters=True))

    def _session(
        self,
        files: Sequence[bytes],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: OpenOptions,
        counters: bool,
    ) -> OpenVinoSession:
        if len(files) != 2:
            raise EnvironmentUnusable(
                f"openvino: an engine is model.xml and model.bin, not {len(files)} files"
            )
        try:
            return OpenVinoSession(files, inputs, outputs, options, counters)
        except (RuntimeError, ImportError) as error:
            raise EnvironmentUnusable(
                f"openvino cannot load the engine: {error}; rebuild the bundle"
            ) from error
