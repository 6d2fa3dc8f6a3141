"""ONNX Runtime on an NVIDIA GPU: its CUDA and its TensorRT provider, over IO binding.

Unproven on a GPU: the machines that run the tests have none. The code runs there all the same, on ONNX Runtime's
provider for CPUs, which takes the same bindings.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.contracts import Division, TensorSpec
from vsa_rt.engines.backend import OpenOptions, Probe, Tensors, allocate, check_division, check_tensor
from vsa_rt.engines.onnxruntime_session import refusal, session_options
from vsa_rt.errors import EnvironmentUnusable

INSTALL = "pip uninstall onnxruntime; pip install 'vsa-rt[onnxruntime-gpu]'"


@dataclass(frozen=True)
class Provider:
    """One of ONNX Runtime's execution providers.

    Attributes:
        name: ONNX Runtime's.
        device: Its word for where tensors of this provider lie.
        options: Its own, by its names.
    """

    name: str
    device: str
    options: Mapping[str, str] = field(default_factory=dict)


#: Device of a target to the provider's name.
PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


def provider_of(
    device: str, model: bytes, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], max_batch: int
) -> Provider:
    """The provider of a device with its options for one graph.

    Args:
        device: ``cuda`` or ``tensorrt``.
        model: ONNX.
        inputs: What it takes.
        outputs: What it gives.
        max_batch: Largest batch of one call.
    """
    if device == "cuda":
        # What the graph says is fp32 is no TF32, which keeps 10 bits of 23.
        return Provider(PROVIDERS[device], "cuda", {"device_id": "0", "use_tf32": "0"})

    def shapes(batch: int) -> str:
        return ",".join(f"{s.name}:{'x'.join(map(str, (batch, *s.shape[1:])))}" for s in inputs)

    options = {
        "device_id": "0",
        # Its networks are typed weakly: half and bytes are what it may choose, where the graph has them.
        "trt_fp16_enable": "1" if _has_half(model) else "0",
        "trt_int8_enable": "1" if b"QuantizeLinear" in model else "0",
        # One engine for every batch size; without, each new one would be compiled at its first call.
        "trt_profile_min_shapes": shapes(1),
        "trt_profile_opt_shapes": shapes(max_batch),
        "trt_profile_max_shapes": shapes(max_batch),
    }
    return Provider(PROVIDERS[device], "cuda", options)


#: ``Cast`` to FLOAT16 as protobuf writes the attribute ``to`` (onnx.proto: ``AttributeProto``, name, i = 10, type INT).
_CAST_TO_HALF = b"\n\x02to\x18\n\xa0\x01\x02"


def _has_half(model: bytes) -> bool:
    """Whether a graph computes in half: whatever does begins with a cast of its inputs, which are bytes or floats."""
    return _CAST_TO_HALF in model


def probe_gpu(device: str) -> Probe:
    """Look for the provider and a GPU.

    Args:
        device: ``cuda`` or ``tensorrt``.
    """
    from vsa_rt.gpu import find_gpus

    try:
        import onnxruntime as ort
    except ImportError:
        return Probe(False, reason="onnxruntime-gpu is not installed", install=INSTALL.partition("; ")[2])
    version = str(ort.__version__)
    if PROVIDERS[device] not in ort.get_available_providers():
        reason = f"the installed onnxruntime has no {PROVIDERS[device]}"
        return Probe(False, version=version, reason=reason, install=INSTALL)
    found = find_gpus()
    if not found.devices:
        return Probe(False, version=version, reason=found.reason)
    return Probe(True, version=version, machine=found.devices[0].name)


class _Bound:
    """One batch size's bindings: where ONNX Runtime reads and writes, for every call the same."""

    def __init__(
        self,
        session: Any,
        provider: Provider,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, NDArray[Any]],
    ) -> None:
        import onnxruntime as ort

        self._session = session
        self._host = dict(inputs)
        self._on_device = provider.device != "cpu"
        self._binding = session.io_binding()
        self._inputs = {}
        for name, array in inputs.items():
            if self._on_device:
                value = ort.OrtValue.ortvalue_from_shape_and_type(
                    list(array.shape), array.dtype.type, provider.device, 0
                )
            else:
                value = ort.OrtValue.ortvalue_from_numpy(array)
            self._inputs[name] = value
            self._binding.bind_ortvalue_input(name, value)
        for name, array in outputs.items():
            # On the host: the array's own memory, which the provider copies into.
            self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        self.outputs = dict(outputs)

    def run(self, given: Tensors) -> Tensors:
        """Copy to the device, run, and wait until the results are on the host."""
        for name, value in self._inputs.items():
            if self._on_device:
                value.update_inplace(given[name])
            elif given[name].ctypes.data != self._host[name].ctypes.data:
                self._host[name][...] = given[name]
        self._binding.synchronize_inputs()
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return self.outputs


class BoundSlot:
    """Host buffers, and bindings for each batch size that came."""

    def __init__(
        self,
        session: Any,
        provider: Provider,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        max_batch: int,
    ) -> None:
        self._session, self._provider = session, provider
        self.buffers = allocate(inputs, max_batch)
        self._results = allocate(outputs, max_batch)
        self._bound: dict[int, _Bound] = {}

    def prepare(self, count: int) -> _Bound:
        """The bindings of a batch size, made where it is new."""
        bound = self._bound.get(count)
        if bound is None:
            inputs = {name: buffer[:count] for name, buffer in self.buffers.items()}
            outputs = {name: result[:count] for name, result in self._results.items()}
            bound = self._bound[count] = _Bound(self._session, self._provider, inputs, outputs)
        return bound

    def run(self, inputs: Tensors) -> Tensors:
        """Run one batch; see ``Slot.run``.

        Raises:
            EnvironmentUnusable: The provider failed.
        """
        bound = self.prepare(len(next(iter(inputs.values()))))
        try:
            return bound.run(inputs)
        except Exception as error:  # ORT's exceptions share no base class of their own
            raise refusal(f"{self._provider.name} failed", error) from error


class BoundSession:
    """One ORT session on one provider, and on nothing else.

    Args:
        model: ONNX.
        inputs: What it takes.
        outputs: What it gives.
        options: Batch and slots.
        provider: Where it runs.

    Raises:
        EnvironmentUnusable: The provider refuses the graph, or would leave a part of it to the CPU.
    """

    divisions: tuple[Division, ...] = ("threads",)
    notes: tuple[str, ...] = ()
    #: ORT does not tell which kernels a provider took.
    achieved: float | None = None

    def __init__(
        self,
        model: bytes,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: OpenOptions,
        provider: Provider,
    ) -> None:
        import onnxruntime as ort

        check_division("onnxruntime", options, self.divisions)
        settings = session_options(options.threads)
        # Nothing of a graph may run elsewhere without a word.
        if provider.device != "cpu":
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            self._session: Any = ort.InferenceSession(
                model, settings, providers=[(provider.name, dict(provider.options))]
            )
        except Exception as error:  # ORT's exceptions share no base class of their own
            raise refusal(f"{provider.name} cannot load the engine", error) from error
        taken = self._session.get_providers()[0]
        if taken != provider.name:
            raise EnvironmentUnusable(
                f"onnxruntime: {provider.name} could not be started and {taken} took its place: are CUDA and cuDNN of "
                "the versions that this onnxruntime was built with?"
            )
        ports = (*self._session.get_inputs(), *self._session.get_outputs())
        there = {p.name: [n if isinstance(n, int) else None for n in p.shape] for p in ports}
        for spec in (*inputs, *outputs):
            check_tensor("onnxruntime", spec, there)
        self.calls = options.slots
        self.slots = [
            BoundSlot(self._session, provider, inputs, outputs, options.max_batch)
            for _ in range(options.slots)
        ]
        self._lock = threading.Lock()
        self.prepare([options.first])

    def prepare(self, counts: Sequence[int]) -> None:
        """Run once for each batch size: providers choose their kernels at the first call."""
        with self._lock:
            slot = self.slots[0]
            for count in dict.fromkeys(counts):
                slot.run({name: np.zeros_like(buffer[:count]) for name, buffer in slot.buffers.items()})

    def close(self) -> None:
        """Free the session."""
        self.slots = []
        self._session = None
