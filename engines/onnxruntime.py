"""ONNX Runtime: the portable engine. On a CPU, an engine is an ONNX file that ORT has already optimised."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vsa_rt.contracts import Division, Precision, TensorSpec
from vsa_rt.engines.backend import (
    OpenOptions,
    Probe,
    RawLayer,
    Tensors,
    allocate,
    check_division,
    check_tensor,
)
from vsa_rt.engines.compiling import CompileOptions, Made, Source
from vsa_rt.engines.onnxruntime_gpu import PROVIDERS, BoundSession, probe_gpu, provider_of
from vsa_rt.engines.onnxruntime_session import open_model, session_options
from vsa_rt.errors import EnvironmentUnusable

INSTALL = "pip install 'vsa-rt[onnxruntime]'"


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

    notes: tuple[str, ...] = ()
    #: ORT itself shares each layer out.
    divisions: tuple[Division, ...] = ("threads",)

    def __init__(
        self,
        model: bytes,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: OpenOptions,
        profile: Path | None = None,
    ) -> None:
        check_division("onnxruntime", options, self.divisions)
        #: ORT's CPU kernels compute fp32 graphs in fp32; of int8 graphs it does not tell which kernels it took.
        self.achieved: float | None = None if b"QuantizeLinear" in model else 1.0
        share = max(1, options.threads // options.streams)
        opened = session_options(share)
        if profile is not None:
            opened.enable_profiling = True
            opened.profile_file_prefix = str(profile)
        self._session = open_model(model, opened, "cannot load the engine")
        ports = (*self._session.get_inputs(), *self._session.get_outputs())
        there = {p.name: [n if isinstance(n, int) else None for n in p.shape] for p in ports}
        for spec in (*inputs, *outputs):
            check_tensor("onnxruntime", spec, there)
        self.calls = options.streams
        self.slots = [
            OnnxRuntimeSlot(self._session, inputs, outputs, options.max_batch) for _ in range(options.slots)
        ]

    def prepare(self, counts: Sequence[int]) -> None:
        """Run once: ORT's batch is dynamic, only its memory plan is made at the first call."""
        slot = self.slots[0]
        slot.run({name: buffer[: max(counts, default=1)] for name, buffer in slot.buffers.items()})

    def end_profiling(self) -> bytes:
        """The profile that was asked for at the opening, as JSON; nothing is recorded after it."""
        return Path(self._session.end_profiling()).read_bytes()

    def close(self) -> None:
        """Free the session."""
        self.slots = []
        self._session = None


#: ORT's words for element types.
_PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}
#: What ORT's transformers add to the name of the node, or of the tensor, that a node comes from.
_ADDED = re.compile(r"^fused |(_nchwc|_bn|_token_\d+|/\w*Fusion\w*/?)$")
#: How ORT calls a BatchNormalization that it runs as a convolution.
_NORMALISATION = "_bn_nchwc"
_KERNEL = "_kernel_time"


def _node_names(name: str) -> tuple[str, ...]:
    """A node's name, and what is left of it without what the transformers added."""
    names = [name]
    while (shorter := _ADDED.sub("", names[-1])) != names[-1]:
        names.append(shorter)
    return tuple(names)


def layers_from_profile(data: bytes, collected: Sequence[int]) -> list[RawLayer]:
    """Means of ORT's profile.

    Args:
        data: ORT's JSON: an event for each kernel and for each call, with start and duration in microseconds.
        collected: Which calls, counted from 0.
    """
    events: list[dict[str, Any]] = msgspec.json.decode(data)
    runs = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "model_run")
    spans = [runs[call] for call in collected]
    sums: dict[str, float] = {}
    layers: dict[str, RawLayer] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_KERNEL):
            continue
        if not any(start <= event["ts"] <= end for start, end in spans):
            continue
        name, facts = name.removesuffix(_KERNEL), event.get("args", {})
        # The first operand's type: a quantised product may well give floats.
        shapes = facts.get("input_type_shape") or [{}]
        precision = next(iter(shapes[0]), "")
        layers.setdefault(
            name,
            RawLayer(
                name,
                _node_names(name),
                "BatchNormalization" if name.endswith(_NORMALISATION) else facts.get("op_name", ""),
                _PRECISIONS.get(precision, precision),
                0.0,
            ),
        )
        sums[name] = sums.get(name, 0.0) + event["dur"] / 1e3
    return [replace(layer, ms=sums[name] / len(spans)) for name, layer in layers.items()]


class OnnxRuntimeProfiler:
    """A session that writes ORT's own profile to a temporary folder."""

    source = "ONNX Runtime's profiler"

    def __init__(
        self, model: bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], options: OpenOptions
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="vsa-rt-profile-"))
        try:
            self._session = OnnxRuntimeSession(model, inputs, outputs, options, self._folder / "calls")
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._calls = 0
        self._collected: list[int] = []

    def run(self, inputs: Tensors) -> None:
        """Run one batch; see ``Profiler.run``."""
        self._session.slots[0].run(inputs)
        self._calls += 1

    def collect(self) -> None:
        """Mark the last call as one that counts."""
        self._collected.append(self._calls - 1)

    def finish(self) -> list[RawLayer]:
        """Read the profile and free the session; see ``Profiler.finish``.

        Raises:
            EnvironmentUnusable: ORT could not write it, or not to its end.
        """
        try:
            return layers_from_profile(self._session.end_profiling(), self._collected)
        except (OSError, msgspec.DecodeError, IndexError) as error:  # absent, cut off, or too long for ORT
            raise EnvironmentUnusable(
                f"onnxruntime: its profile of {self._calls} calls cannot be read ({error}); is there room in "
                f"{self._folder.parent}?"
            ) from error
        finally:
            self._session.close()
            shutil.rmtree(self._folder, ignore_errors=True)


#: Device to the precisions of graphs that are built for it.
_PRECISIONS_OF = {
    "cpu": (Precision.FP32, Precision.INT8),
    "cuda": (Precision.FP32, Precision.FP16),
    "tensorrt": (Precision.FP32, Precision.FP16, Precision.INT8),
}


class OnnxRuntime:
    """The backend ``onnxruntime``."""

    name = "onnxruntime"

    @property
    def devices(self) -> tuple[str, ...]:
        """The CPU, and GPUs where the installed library has a provider for them."""
        try:
            import onnxruntime as ort
        except ImportError:
            return ("cpu",)
        there = ort.get_available_providers()
        return ("cpu", *(device for device, name in PROVIDERS.items() if name in there))

    def knows(self, device: str) -> str:
        """Why a target may not name a device; see ``Backend.knows``."""
        if device in _PRECISIONS_OF:
            return ""
        known = ", ".join(f"onnxruntime:{d}" for d in _PRECISIONS_OF)
        return f"onnxruntime has no device {device!r}; there are {known}"

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """Those whose graphs its provider computes well: its CUDA provider has no int8 convolutions."""
        return _PRECISIONS_OF[device]

    def half(self, device: str) -> bool:
        """On a CPU, what a graph says in half would be computed in fp32."""
        return device != "cpu"

    def probe(self, device: str) -> Probe:
        """Look for the library, and for a GPU where it is to run there."""
        if device != "cpu":
            return probe_gpu(device)
        try:
            import onnxruntime as ort
        except ImportError:
            return Probe(False, reason="onnxruntime is not installed", install=INSTALL)
        return Probe(True, version=str(ort.__version__), machine="CPU")

    def build(self, source: Source, folder: Path, device: str, options: CompileOptions) -> Made:
        """Optimise an ONNX graph ahead of time, as far as the result stays portable between processors.

        For a GPU it stays as it is: some of what suits a CPU no other provider has.
        """
        import onnxruntime as ort

        if device != "cpu":
            (folder / "model.onnx").write_bytes(source.graph)
            return Made(["model.onnx"])

        settings = session_options(1)
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        settings.optimized_model_filepath = str(folder / "model.onnx")
        open_model(source.graph, settings, "refuses the graph")
        return Made(["model.onnx"])

    def open(
        self,
        files: Sequence[bytes],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: OpenOptions,
    ) -> OnnxRuntimeSession | BoundSession:
        """Open an engine from its file's bytes."""
        if len(files) != 1:
            raise EnvironmentUnusable(f"onnxruntime: an engine is one file, not {len(files)}")
        if options.device in PROVIDERS:
            provider = provider_of(options.device, files[0], inputs, outputs, options.max_batch)
            return BoundSession(files[0], inputs, outputs, options, provider)
        return OnnxRuntimeSession(files[0], inputs, outputs, options)

    def profiler(
        self,
        files: Sequence[bytes],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: OpenOptions,
    ) -> OnnxRuntimeProfiler:
        """Open an engine with ORT's profiler on."""
        if options.device in PROVIDERS:
            raise EnvironmentUnusable(
                f"onnxruntime:{options.device}: ORT's profiler counts when kernels are launched, not how long they run; "
                "use Nsight Systems"
            )
        if len(files) != 1:
            raise EnvironmentUnusable(f"onnxruntime: an engine is one file, not {len(files)}")
        return OnnxRuntimeProfiler(files[0], inputs, outputs, options)
