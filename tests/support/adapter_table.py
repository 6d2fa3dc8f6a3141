"""Which adapters there are, and what the names in them that are ``Any`` stand for."""

from __future__ import annotations

from pathlib import Path

from adapter_kinds import Table

from vsa_rt.engines.tensorrt.compiler import CAPABILITIES

ROOT = Path(__file__).resolve().parents[2]
OLDEST, NEWEST, RTX, CUDA = "tensorrt 10.3.0", "tensorrt 11.4.0", "tensorrt-rtx", "cuda.core"
FLAVOURS = (OLDEST, NEWEST, RTX)

TENSORRT = Table(
    declared={
        # By name, wherever it stands.
        "trt": "module trt",
        "builder": "Builder",
        "config": "IBuilderConfig",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
        "profiler": "IProfiler",
        # What functions return.
        "new_context()": "IExecutionContext",
        "_profile()": "IOptimizationProfile",
        "TimingCache._of()": "ITimingCache",
        # In one place.
        "LoadedContext.__init__.native": "IExecutionContext",
        "LoadedContext.__init__._profiler": "IProfiler",
        "LoadedEngine.__init__.native": "ICudaEngine",
        "Collector.log.severity": "ILogger.Severity",
        "open_library.trt": "module trt",
        # Our own classes over the bindings', and what has nothing to do with them.
        "logger": "ours",
        "_logger()": "ours",
        "_collector()": "ours",
        "_monitor()": "ours",
        "_listener()": "ours",
        "Monitor._do.arguments": "ours",
        "quiet_stdout.theirs": "ours",
        "_beside()": "ours",
        "_beside.stream": "ours",
    },
    only={
        "_Classic": frozenset({OLDEST, NEWEST}),
        "Classic10": frozenset({OLDEST}),
        "Classic11": frozenset({NEWEST}),
        "Rtx": frozenset({RTX}),
        "LEVELS": frozenset({OLDEST, NEWEST}),
        "_DIAGNOSES": frozenset({RTX}),
        "_typing": frozenset({OLDEST}),
    },
    words={
        "LEVELS": "HardwareCompatibilityLevel",
        "_DIAGNOSES": "EngineInvalidityDiagnostics",
        "Dialect.configure": "BuilderFlag",
        "Classic10.network": "BuilderFlag",
        "_typing": "BuilderFlag",
    },
    dynamic={
        # Flags of ``Dialect.configure`` and ``Classic10.network``, levels of ``LEVELS``: words that are checked there.
        "Dialect.configure: getattr(known, name)": (),
        "_Classic.configure: getattr(self._trt.HardwareCompatibilityLevel, level)": (),
        # Capabilities that engines are compiled for unless told.
        "Rtx.configure: getattr(self._trt.ComputeCapability, name.replace('sm_', 'SM'))": tuple(
            name.replace("sm_", "SM") for name in CAPABILITIES
        ),
    },
    guarded={
        # ``_Classic.check`` asks for it in the enumeration's members first.
        OLDEST: frozenset({"HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"}),
    },
)

CUDA_TABLE = Table(
    declared={
        "core": "module cuda.core",
        "_libraries()": "tuple['module cuda.core', 'ours']",
        "_current()": "Device",
        "_view()": "StridedMemoryView",
        "Held.__init__.native": "Stream | Event | Graph",
        "Held.native": "Stream | Event | Graph",
        "Held._give_back.native": "Stream | Event | Graph",
        "CudaEvent.native": "Event",
        "CudaStream.native": "Stream",
        "CudaStream.__init__.native": "Stream",
        "CudaCapture.__init__._builder": "GraphBuilder",
        "CudaMemory.native": "Buffer",
        "CudaMemory.__init__.native": "Buffer",
        "CudaMemory._give_back.native": "Buffer",
        "CudaGraph.native": "Graph",
        # What it gives depends on what it is given.
        "native_of()": "ours",
        "native_of.wrapped": "ours",
        "native_of(stream)": "Stream",
        "native_of(event)": "Event",
        # Arrays of other libraries, and what the driver is called with.
        "array": "ours",
        "Foreign.owner": "ours",
        "_ask()": "ours",
        "_ask.arguments": "ours",
        "_ask.error": "CUresult",
    },
    words={"FAULTS": "CUresult"},
    # A part of a message, as every name of the driver's begins.
    other_words={"CudaDevice.foreign": frozenset({"CUDA_ERROR"})},
    # Its callers say the name.
    dynamic={"_ask: getattr(import_module('cuda.bindings.driver'), name)": ()},
    calls={"_ask": "cuda.bindings.driver"},
)


def sources(folder: str) -> dict[str, str]:
    """The modules that may use bindings.

    Args:
        folder: ``tensorrt`` or ``cuda``.
    """
    return {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "engines" / folder).glob("*.py"))}
