"""A double of TensorRT's runtime objects in its bindings that writes down every call; the dialects over it are real."""

from __future__ import annotations

import json
import os
import weakref
from collections import deque
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np

from vsa_rt.engines.tensorrt.dialects import dialect_of
from vsa_rt.engines.tensorrt.library import Library

#: The inspector's words for a convolution with its activation, in int8, and for the copy that brings its input in order.
LAYERS = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to conv + relu",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Name": "x'", "Format/Datatype": "Four wide channel vectorized row major Int8 format"}],
            "Metadata": "",
        },
        {
            "Name": "conv + relu",
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "x'", "Format/Datatype": "Four wide channel vectorized row major Int8 format"}],
            "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}],
            "Metadata": "[ONNX Layer: /a/conv]\x1f[ONNX Layer: /a/relu]",
        },
    ],
    "Bindings": ["x", "y"],
}  # fmt: skip


class Mode(Enum):
    INPUT = 1
    OUTPUT = 2


class Location(Enum):
    DEVICE = 0
    HOST = 1


class DataType(Enum):
    FLOAT = 0
    UINT8 = 1
    BF16 = 2


def nptype(dtype: DataType) -> Any:
    """numpy's type, as the bindings give it."""
    if dtype == DataType.BF16:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return {DataType.FLOAT: np.float32, DataType.UINT8: np.uint8}[dtype]


class NativeContext:
    """``IExecutionContext``."""

    def __init__(self, bindings: Bindings) -> None:
        self._bindings = bindings
        self.shape: tuple[int, ...] = ()
        self.profiler: Any = None
        self.enqueue_emits_profile = True

    def _did(self, name: str, *facts: Any) -> bool:
        return self._bindings.did(f"context.{name}", *facts)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return self._did("set_input_shape", name, shape)

    def infer_shapes(self) -> list[str]:
        self._did("infer_shapes")
        return [] if self.shape else ["x"]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        rows = self.shape[0] * (1 if name == "x" else self._bindings.rows_each)
        return (rows, *((4, 4, 3) if name == "x" else (2,)))

    def update_device_memory_size_for_shapes(self) -> int:
        self._did("update_device_memory_size_for_shapes")
        return 100 * self.shape[0] if self.shape else 0

    def set_device_memory(self, address: int, nbytes: int) -> None:
        self._did("set_device_memory", address, nbytes)

    def set_tensor_address(self, name: str, address: int) -> bool:
        return self._did("set_tensor_address", name, address)

    def execute_async_v3(self, handle: int) -> bool:
        return self._did("execute_async_v3", handle)

    def is_stream_capturable(self, handle: int) -> bool:
        return self._did("is_stream_capturable", handle)

    def report_to_profiler(self) -> bool:
        if self.enqueue_emits_profile or not self._did("report_to_profiler"):
            return False
        for name, ms in (
            ("conv + relu", 0.5),
            ("Reformatting CopyNode for Input Tensor 0 to conv + relu", 0.25),
        ):
            self.profiler.report_layer_time(name, ms)
        return True  # fmt: skip


class NativeEngine:
    """``ICudaEngine`` of images ``(N, 4, 4, 3)`` to scores ``(N, 2)``, for batches of 1 to 8."""

    num_io_tensors = 2

    def __init__(self, bindings: Bindings) -> None:
        self._bindings = bindings

    def get_tensor_name(self, index: int) -> str:
        return ("x", "y")[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "x" else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._bindings.types[name]

    def get_tensor_location(self, _: str) -> Location:
        return self._bindings.location

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"x": (-1, 4, 4, 3), "y": (-1, 2)}[name]

    def get_tensor_profile_shape(self, name: str, _: int) -> list[tuple[int, ...]]:
        rest = self.get_tensor_shape(name)[1:]
        return [(batch, *rest) for batch in (1, 4, 8)]

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(
            set_execution_context_allocation_strategy=lambda _: None,
            create_runtime_cache=lambda: "a cache",
            set_runtime_cache=lambda _: True,
        )

    def create_execution_context(self, _: Any) -> NativeContext | None:
        if not self._bindings.did("engine.create_execution_context"):
            return None
        made = NativeContext(self._bindings)
        self._bindings.alive.append(weakref.ref(made))
        return made

    def create_engine_inspector(self) -> Any:
        class Inspector:
            execution_context: NativeContext | None = None

            def get_engine_information(self, _: Any) -> str:
                # Without the shapes of a context, there are no types.
                return json.dumps(LAYERS if self.execution_context is not None else {"Layers": []})

        return Inspector()


class Bindings:
    """The module, as far as opening and running use it. Every call is in ``calls``; what is in ``refuses`` fails.

    Attributes:
        says: What the library tells its logger when it refuses.
    """

    TensorIOMode, TensorLocation, nptype = Mode, Location, staticmethod(nptype)
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="by the user")
    CudaGraphStrategy = SimpleNamespace(DISABLED="disabled")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    LayerInformationFormat = SimpleNamespace(JSON="json")
    EngineValidity = SimpleNamespace(INVALID="invalid")
    EngineInvalidityDiagnostics = SimpleNamespace(__members__={"UNSUPPORTED_CC": 2})

    class IProfiler:
        """The profiler's base class."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.refuses: set[str] = set()
        self.says: list[str] = []
        self.missing: list[str] = []
        self.valid = True
        self.logger = SimpleNamespace(errors=deque())
        self.types = {"x": DataType.UINT8, "y": DataType.FLOAT}
        self.location = Location.DEVICE
        #: Rows that the engine gives for each image.
        self.rows_each = 1
        self.host_code: list[bool] = []
        self.alive: list[weakref.ref[Any]] = []

    def did(self, name: str, *facts: Any) -> bool:
        """Write a call down; whether it succeeds."""
        os.write(1, b"chatter\n")  # some of the real library is printed past its logger
        self.calls.append((name, *facts))
        if name in self.refuses:
            self.logger.errors.extend(self.says)
            return False
        return True

    def names(self) -> list[str]:
        """What was called."""
        return [call[0] for call in self.calls]

    def Runtime(self, logger: Any) -> Any:
        """The library's."""
        assert logger is self.logger
        if not self.did("Runtime"):
            raise TypeError("pybind11::init(): factory function returned nullptr")
        bindings = self

        class Runtime:
            engine_host_code_allowed = True

            def deserialize_cuda_engine(self, data: bytes) -> NativeEngine | None:
                bindings.host_code.append(self.engine_host_code_allowed)
                made = NativeEngine(bindings) if bindings.did("deserialize", data) else None
                if made is not None:
                    bindings.alive.append(weakref.ref(made))
                return made

            def get_engine_validity(self, data: bytes) -> tuple[str, int]:
                bindings.did("validity", data)
                return ("valid", 0) if bindings.valid else ("invalid", 2)

        return Runtime()

    def Refitter(self, _: NativeEngine, __: Any) -> Any:
        """The library's."""
        return SimpleNamespace(
            refit_cuda_engine=lambda: self.did("refit"), get_missing_weights=lambda: self.missing
        )

    def OnnxParserRefitter(self, _: Any, __: Any) -> Any:
        """The library's."""
        error = SimpleNamespace(desc=lambda: "no such weights in the model")
        return SimpleNamespace(
            refit_from_bytes=lambda graph, path: self.did("refit from", graph, path),
            num_errors=1,
            get_error=lambda _: error,
        )


class Handle:
    """A stream, of which only the handle is asked."""

    handle = 77


STREAM: Any = Handle()


def library(bindings: Any, package: str = "tensorrt", version: str = "10.3.0") -> Library:
    """The double with a real dialect."""
    made: Any = Library(bindings, package, version, dialect_of(package, version, bindings), bindings.logger)  # type: ignore[arg-type]  # any of both
    return made  # type: ignore[no-any-return]
