"""ONNX Runtime on the CPU: the portable engine. An engine is an ONNX file that ORT has already optimised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.contracts import Precision, TensorSpec
from vsa_rt.engines.backend import OpenOptions, Probe, Tensors, allocate, check_tensor
from vsa_rt.errors import EnvironmentUnusable

INSTALL = "pip install 'vsa-rt[onnxruntime]'"


def session_options(threads: int) -> Any:
    """Options of a session on this many threads; 0 lets ORT choose."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # A graph of a stranger may name files of this machine as its weights: there is no folder to find them in.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/nonexistent")
    return options


def refusal(what: str, error: Exception) -> EnvironmentUnusable:
    """ORT's error in one line."""
    return EnvironmentUnusable(f"onnxruntime {what}: {str(error).strip().splitlines()[0]}")


def open_model(model: bytes, options: Any, failed: str) -> Any:
    """An ORT session on the CPU.

    Args:
        model: A whole ONNX model.
        options: Of the session.
        failed: What to say if ORT refuses it.

    Raises:
        EnvironmentUnusable: ORT refuses it; the message has its reason.
    """
    import onnxruntime as ort

    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT's exceptions share no base class of their own
        raise refusal(failed, error) from error


class OnnxRuntimeSlot:
    """Buffers and a call into the shared ORT session."""

    def __init__(
        self, session: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], batch: int
    ) -> None:
        self._session = session
        self._names = [s.name for s in outputs]
        self.buffers = allocate(inputs, batch)

    def run(self, inputs: Tensors) -> Tensors:
        """Run one batch; see ``Slot.run``."""
        values: list[NDArray[np.float32]] = self._session.run(self._names, dict(inputs))
        return dict(zip(self._names, values, strict=True))


class OnnxRuntimeSession:
    """One ORT session; its slots may run at the same time."""

    #: ORT's CPU kernels compute fp32 graphs in fp32.
    achieved: float | None = 1.0

    def __init__(
        self, model: bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], options: OpenOptions
    ) -> None:

        share = max(1, options.threads // options.streams)
        self._session = open_model(model, session_options(share), "cannot load the engine")
        ports = (*self._session.get_inputs(), *self._session.get_outputs())
        there = {p.name: [n if isinstance(n, int) else None for n in p.shape] for p in ports}
        for spec in (*inputs, *outputs):
            check_tensor("onnxruntime", spec, there)
        self.slots = [
            OnnxRuntimeSlot(self._session, inputs, outputs, options.max_batch) for _ in range(options.slots)
        ]

    def prepare(self, counts: Sequence[int]) -> None:
        """Run once: ORT's batch is dynamic, only its memory plan is made at the first call."""
        slot = self.slots[0]
        slot.run({name: buffer[: max(counts, default=1)] for name, buffer in slot.buffers.items()})

    def close(self) -> None:
        """Free the session."""
        self.slots = []
        self._session = None


class OnnxRuntime:
    """The backend ``onnxruntime``."""

    name = "onnxruntime"
    devices = ("cpu",)
    precisions = (Precision.FP32,)

    def probe(self, device: str) -> Probe:
        """Look for the library."""
        try:
            import onnxruntime as ort
        except ImportError:
            return Probe(False, reason="onnxruntime is not installed", install=INSTALL)
        return Probe(True, version=str(ort.__version__), machine="CPU")

    def build(self, graph: bytes, folder: Path, device: str, max_batch: int) -> list[str]:
        """Optimise an ONNX graph ahead of time, as far as the result stays portable between processors."""
        import onnxruntime as ort

        options = session_options(1)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(folder / "model.onnx")
        open_model(graph, options, "refuses the graph")
        return ["model.onnx"]

    def open(
        self,
        files: Sequence[bytes],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: OpenOptions,
    ) -> OnnxRuntimeSession:
        """Open an engine from its file's bytes."""
        if len(files) != 1:
            raise EnvironmentUnusable(f"onnxruntime: an engine is one file, not {len(files)}")
        return OnnxRuntimeSession(files[0], inputs, outputs, options)
