"""What TensorRT computed: layers with their times, from its own profiler and engine inspector.

Unproven on a GPU: the machines that run the tests have none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.engines.backend import RawLayer, Tensors
from vsa_rt.engines.cuda.seam import Device, Pinned
from vsa_rt.engines.tensorrt.loaded import LoadedContext, LoadedEngine
from vsa_rt.errors import EnvironmentUnusable

#: An ONNX node's name in a layer's metadata, which engines compiled here hold (``ProfilingVerbosity.DETAILED``).
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f\[]|$)", re.DOTALL)
#: What the inspector says of a tensor, such as ``Channel major FP16 format where C % 8 == 0``, in short.
_PRECISIONS = (
    (re.compile(r"\bINT8\b", re.IGNORECASE), "int8"),
    (re.compile(r"\bBF16\b|\bBFLOAT16\b", re.IGNORECASE), "bf16"),
    (re.compile(r"\bFP16\b|\bHALF\b", re.IGNORECASE), "fp16"),
    (re.compile(r"\bFP32\b|\bFLOAT\b", re.IGNORECASE), "fp32"),
    (re.compile(r"\bUINT8\b", re.IGNORECASE), "uint8"),
    (re.compile(r"\bINT32\b", re.IGNORECASE), "int32"),
)
#: A layer that changes how a tensor lies in memory, added by the compiler for the node that it names.
_REFORMAT = re.compile(
    r"^Reformatting CopyNode for (?:Input|Output|Network Input|Network Output)\b.*? to (.+)$"
)


def _precision(tensors: Sequence[Mapping[str, Any]]) -> str:
    """Of the first tensor that says so; empty if none does."""
    for tensor in tensors:
        text = str(tensor.get("Format/Datatype", tensor.get("Format", "")))
        for pattern, word in _PRECISIONS:
            if pattern.search(text):
                return word
    return ""


def _named(name: str) -> tuple[str, ...]:
    """The nodes in a layer's own name: fused ones are joined by `` + `` or ``, ``, the ends of a region by ``...``."""
    bare = re.sub(r"\{?(?:ForeignNode|Myelin\w*)\[|\]\}?$", "", name)
    if "PWN(" in bare:  # point-wise work, nested
        bare = bare.replace("PWN(", "").rstrip(")").replace("),", ",")
    return tuple(dict.fromkeys(part for part in re.split(r" \+ |\.\.\.| \|\| |, ", bare) if part))


def described_layers(text: str) -> dict[str, RawLayer]:
    """The layers of an engine, without times.

    Args:
        text: The inspector's, in JSON. Of an engine compiled without details, it holds names alone; without an
            execution context, or before its shapes were set, no types.
    """
    found: dict[str, RawLayer] = {}
    try:
        layers = json.loads(text).get("Layers", []) if text else []
    except ValueError:  # a tensor's scale of nan, say, of which the library makes no JSON: times go without
        layers = []
    for layer in layers:
        told: dict[str, Any] = layer if isinstance(layer, dict) else {"Name": str(layer)}
        name = str(told.get("Name", ""))
        nodes = tuple(dict.fromkeys(_NODE.findall(str(told.get("Metadata", "")))))
        found[name] = RawLayer(
            name,
            nodes or _named(name),
            str(told.get("LayerType", "")),
            # An operand says what is computed in; what comes out may be another type.
            _precision(told.get("Inputs", [])) or _precision(told.get("Outputs", [])),
            0.0,
        )
    return found


def timed_layer(name: str, ms: float, described: Mapping[str, RawLayer]) -> RawLayer:
    """A layer with its time.

    Args:
        name: As the profiler says.
        ms: Mean per call.
        described: What the inspector says.
    """
    known = described.get(name)
    added = _REFORMAT.match(name)
    if added is not None:
        kind = known.kind if known is not None and known.kind else "Reformat"
        return RawLayer(name, (), kind, known.precision if known else "", ms, feeds=_named(added[1]))
    if known is None:
        return RawLayer(name, _named(name), "", "", ms)
    return RawLayer(name, known.nodes, known.kind, known.precision, ms)


def _listener(trt: Any) -> Any:
    """A profiler that adds up: layer to milliseconds, in the order of the calls."""

    class Listener(trt.IProfiler):  # type: ignore[misc]  # the bindings ship no types
        def __init__(self) -> None:
            super().__init__()
            self.sums: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.sums[layer_name] = self.sums.get(layer_name, 0.0) + ms

    return Listener()


class TensorRtProfiler:
    """The merged engine on one stream, without a graph, with the library's profiler; see ``backend.Profiler``.

    Args:
        device: The GPU.
        engine: Loaded; its from here on, also if this raises.
        max_batch: Largest batch of one call.

    Raises:
        EnvironmentUnusable: There is not enough memory.
    """

    def __init__(self, device: Device, engine: LoadedEngine, max_batch: int) -> None:
        self.source = f"{engine.library}'s profiler"
        self._device, self._engine, self._max_batch = device, engine, max_batch
        self._listener = _listener(engine.library.trt)
        self._calls = 0
        self._context: LoadedContext | None = None
        self._batch = 0
        with ExitStack() as opened:
            opened.enter_context(closing(engine))
            device.enter()
            self._stream = opened.enter_context(closing(device.stream()))
            self._pinned: dict[str, tuple[Pinned, NDArray[Any]]] = {}
            self._addresses: dict[str, int] = {}
            for port in engine.ports:
                row = tuple(n or 0 for n in port.shape[1:])
                memory = opened.enter_context(closing(device.pinned(max(1, self._nbytes(port.dtype, row)))))
                self._pinned[port.name] = (memory, memory.array(port.dtype, (max_batch, *row)))
                there = opened.enter_context(closing(device.memory(memory.nbytes)))
                self._addresses[port.name] = there.address
            self._opened = opened.pop_all()
        self._lane = ExitStack()

    def _nbytes(self, dtype: str, row: Sequence[int]) -> int:
        return self._max_batch * math.prod(row) * np.dtype(dtype).itemsize

    def _set(self, batch: int) -> LoadedContext:
        """The context for a batch size, with its own scratch memory."""
        if self._context is not None and self._batch == batch:
            return self._context
        self._lane.close()
        self._context = None
        with ExitStack() as lane:
            context = lane.enter_context(closing(self._engine.context()))
            context.set_batch(batch)
            if context.scratch:
                context.use_scratch(lane.enter_context(closing(self._device.memory(context.scratch))))
            else:
                context.use_scratch(None)
            for name, address in self._addresses.items():
                context.bind(name, address)
            context.watch(self._listener)
            self._lane = lane.pop_all()
        self._context, self._batch = context, batch
        return context

    def run(self, inputs: Tensors) -> None:
        """Run one batch; see ``Profiler.run``."""
        self._device.enter()
        batch = len(next(iter(inputs.values())))
        context = self._set(batch)
        for name, array in inputs.items():
            memory, buffer = self._pinned[name]
            buffer[:batch] = array
            self._stream.copy(self._addresses[name], memory.address, buffer[:batch].nbytes)
        context.enqueue(self._stream)
        self._stream.sync()

    def collect(self) -> None:
        """Take the last call's times; see ``Profiler.collect``."""
        if self._context is None:
            raise EnvironmentUnusable(f"{self.source}: nothing has run yet")
        self._context.report()
        self._calls += 1

    def finish(self) -> list[RawLayer]:
        """Free the engine; see ``Profiler.finish``."""
        try:
            described = described_layers(self._context.described() if self._context is not None else "")
        finally:
            self._context = None
            self._device.enter()
            self._lane.close()
            self._opened.close()
        calls = max(1, self._calls)
        return [timed_layer(name, ms / calls, described) for name, ms in self._listener.sums.items()]
