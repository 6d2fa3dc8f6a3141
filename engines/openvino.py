"""OpenVINO on the CPU: the fast engine on x86. Engines are its IR, ``model.xml`` and ``model.bin``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vsa_rt.contracts import Precision, TensorSpec
from vsa_rt.engines.backend import OpenOptions, Probe
from vsa_rt.engines.compiling import CompileOptions, Made, Source
from vsa_rt.engines.openvino_layers import OpenVinoProfiler
from vsa_rt.engines.openvino_session import INSTALL, OpenVinoSession, core
from vsa_rt.errors import EnvironmentUnusable

__all__ = ["OpenVino", "OpenVinoSession"]


class OpenVino:
    """The backend ``openvino``."""

    name = "openvino"
    devices = ("cpu",)

    def half(self, device: str) -> bool:
        """What a graph says in half is computed in fp32 on a CPU."""
        return False

    def knows(self, device: str) -> str:
        """Why a target may not name a device; see ``Backend.knows``."""
        return "" if device in self.devices else f"openvino has no device {device!r}; there is openvino:cpu"

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """fp32, bf16 and int8."""
        return (Precision.FP32, Precision.BF16, Precision.INT8)

    def probe(self, device: str) -> Probe:
        """Look for the library and its CPU plugin."""
        try:
            import openvino as ov

            machine = str(core().get_property("CPU", "FULL_DEVICE_NAME"))
        except ImportError:
            return Probe(False, reason="openvino is not installed", install=INSTALL)
        except (RuntimeError, EnvironmentUnusable) as error:
            return Probe(False, reason=f"openvino has no usable CPU plugin: {error}", install=INSTALL)
        return Probe(True, version=str(ov.__version__).split("-")[0], machine=machine.strip())

    def build(self, source: Source, folder: Path, device: str, options: CompileOptions) -> Made:
        """Write the IR of an ONNX graph, every constant in the graph's own type."""
        import openvino as ov

        try:
            model = core().read_model(source.graph)
            ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
        except RuntimeError as error:
            raise EnvironmentUnusable(f"openvino refuses the graph: {error}") from error
        return Made(["model.xml", "model.bin"])

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
        whole = replace(options, division={})
        return OpenVinoProfiler(self._session(files, inputs, outputs, whole, counters=True))

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
