"""What one would do without fusion: a session per backbone, then one for concatenation and head."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vsa_rt.contracts import Target, TensorSpec
from vsa_rt.engines import table
from vsa_rt.engines.backend import OpenOptions, Session, Slot, Tensors
from vsa_rt.engines.compiling import CompileOptions, Source
from vsa_rt.engines.onnxruntime import OnnxRuntimeSlot
from vsa_rt.engines.onnxruntime_session import open_model, session_options
from vsa_rt.engines.select import input_specs, output_specs
from vsa_rt.errors import EnvironmentUnusable, needs
from vsa_rt.manifest import Manifest, TapRecord


@dataclass(frozen=True)
class Part:
    """A part of a graph as a graph of its own.

    Attributes:
        name: A backbone's, or ``head``.
        model: ONNX.
        inputs: What it takes: inputs of the whole graph, or taps that other parts give.
        outputs: The taps that it gives.
    """

    name: str
    model: bytes
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


def cut_at_taps(graph: bytes, manifest: Manifest) -> list[Part]:
    """One part per backbone tap, each after what it reads, and one for all that comes after them.

    A backbone that reads another one's tap takes that tap; what two backbones share before any tap is in both.

    Args:
        graph: ONNX, with every tap an output.
        manifest: Its inputs and taps.

    Raises:
        EnvironmentUnusable: The graph names no backbones, or cannot be cut.
    """
    with needs("export"):
        import onnx
    backbones = [t for t in manifest.taps if t.kind == "backbone"]
    if not backbones:
        raise EnvironmentUnusable("the graph names no backbones: there is nothing to cut at")
    rest = [t for t in manifest.taps if t.kind != "backbone"]
    wanted = [(t.name, [t]) for t in backbones] + ([("head", rest)] if rest else [])
    borders = {s.name: s for s in (*input_specs(manifest), *output_specs(manifest))}
    starts = [i.name for i in manifest.inputs] + [t.name for t in backbones]
    extractor = onnx.utils.Extractor(onnx.load_from_string(graph))
    parts = []
    for name, taps in wanted:
        outputs = [t.name for t in taps]
        try:
            model = extractor.extract_model([s for s in starts if s not in outputs], outputs)
        except ValueError as error:
            raise EnvironmentUnusable(f"the graph cannot be cut at {name!r}: {error}") from error
        inputs = _keep_used_inputs(model.graph)
        parts.append(
            Part(name, model.SerializeToString(), [borders[i] for i in inputs], _specs(taps, borders))
        )
    return parts


def _specs(taps: Sequence[TapRecord], borders: dict[str, TensorSpec]) -> list[TensorSpec]:
    return [borders[t.name] for t in taps]


def _keep_used_inputs(graph: Any) -> list[str]:
    """Remove the inputs that no node reads; the names of the others."""
    read = {name for node in graph.node for name in node.input}
    kept = [value for value in graph.input if value.name in read]
    del graph.input[:]
    graph.input.extend(kept)
    return [value.name for value in kept]


def _require(backend: str) -> None:
    found = table.probe(Target(backend, "cpu"))
    if not found.usable:
        raise EnvironmentUnusable(f"{found.reason}; {found.install}" if found.install else found.reason)


def open_graph(
    backend: str,
    graph: bytes,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    batch: int,
    threads: int,
) -> Session:
    """Open an fp32 graph with one of this project's backends on the CPU, computed in fp32.

    Args:
        backend: ``openvino`` (its IR is made on the way) or ``onnxruntime`` (the graph as it is, ORT's defaults).
        graph: ONNX.
        inputs: What it takes.
        outputs: What it gives.
        batch: Images per call.
        threads: Cores.

    Raises:
        EnvironmentUnusable: The library is absent or refuses the graph.
    """
    _require(backend)
    files = [graph]
    if backend == "openvino":
        with tempfile.TemporaryDirectory() as folder:
            made = table.backend(backend).build(Source(graph), Path(folder), "cpu", CompileOptions(batch))
            files = [(Path(folder) / name).read_bytes() for name in made.files]
    options = OpenOptions(max_batch=batch, threads=threads, first=batch)
    return table.backend(backend).open(files, inputs, outputs, options)


def _open_part(backend: str, part: Part, batch: int, threads: int) -> tuple[Slot, Callable[[], None]]:
    """Where a part's calls run, and what frees it."""
    if backend != "onnxruntime":
        session = open_graph(backend, part.model, part.inputs, part.outputs, batch, threads)
        return session.slots[0], session.close
    _require(backend)
    options = session_options(threads)
    # Each session has threads of its own. At ORT's default those of a session that has just ended spin on, and take
    # the cores from the next one: two to three times the time on two cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    opened = open_model(part.model, options, f"refuses {part.name!r}")
    return OnnxRuntimeSlot(opened, part.inputs, part.outputs, batch), lambda: None


class SeparateSessions:
    """Parts of a graph, each in a session of its own, one after the other.

    Args:
        backend: Whose sessions.
        parts: Each after what it reads.
        batch: Images per call.
        threads: Cores of each session.

    Raises:
        EnvironmentUnusable: The library is absent or refuses a part.
    """

    def __init__(self, backend: str, parts: Sequence[Part], batch: int, threads: int) -> None:
        self._open: list[tuple[Part, Slot, Callable[[], None]]] = []
        try:
            for part in parts:
                self._open.append((part, *_open_part(backend, part, batch, threads)))
        except BaseException:
            self.close()
            raise

    def __call__(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """Every tap ``(N, width)``; the arrays may be overwritten by the next call."""
        taps: dict[str, NDArray[Any]] = {}
        for part, slot, _ in self._open:
            values = {s.name: taps[s.name] if s.name in taps else inputs[s.name] for s in part.inputs}
            taps.update(slot.run(values))
        return taps

    def close(self) -> None:
        """Free every session."""
        while self._open:
            self._open.pop()[2]()
