"""Doubles of TensorRT's bindings that keep what is done to them: for the versions that cannot be installed here.

Names are those of the real bindings: an attribute that a version does not have is refused here, too.
"""

from __future__ import annotations

import builtins
import platform
import sys
import threading
from collections.abc import Callable, Sequence
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import pytest

from vsa_rt.engines.compiling import CompileOptions, Tuning
from vsa_rt.engines.tensorrt import library as libraries
from vsa_rt.engines.tensorrt.dialects import dialect_of
from vsa_rt.engines.tensorrt.library import Library
from vsa_rt.gpu import Gpu, Gpus

#: Members of ``BuilderFlag`` that matter here: all have the first ones.
_FLAGS = [
    "DEBUG",
    "TF32",
    "REFIT",
    "VERSION_COMPATIBLE",
    "EXCLUDE_LEAN_RUNTIME",
    "STRIP_PLAN",
    "REFIT_IDENTICAL",
]
_WEAK_FLAGS = ["FP16", "BF16", "INT8"]
#: Attributes of a builder configuration that can be set.
CONFIG = {
    "builder_optimization_level", "hardware_compatibility_level", "max_aux_streams", "profiling_verbosity",
    "progress_monitor",
}  # fmt: skip
CAPABILITIES = ["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"]


def enumeration(name: str, *members: str) -> Any:
    """Like one of pybind's: members by name, each an int."""
    return IntEnum(name, {member: i for i, member in enumerate(members)})


def bits(name: str, **members: int) -> Any:
    """The same with values."""
    return IntEnum(name, members)


class Config:
    """``IBuilderConfig``.

    Attributes:
        bindings: Whose it is.
        set: What was set: attribute, flag or pool to its value.
        capabilities: Those that were set.
        takes: The largest workspace that it takes.
    """

    bindings: Bindings
    set: dict[str, Any]
    flags: builtins.set[str]
    profiles: list[Profile]
    capabilities: list[str]
    takes: int
    cache: Cache | None
    num_compute_capabilities: int

    def __init__(self, bindings: Bindings) -> None:
        vars(self).update(
            bindings=bindings, set={}, flags={"TF32"}, profiles=[], capabilities=[], takes=1 << 40, cache=None
        )

    def __setattr__(self, name: str, value: Any) -> None:
        known = CONFIG | ({"num_compute_capabilities"} if self.bindings.rtx else set())
        if name not in {*known, "cache"}:
            raise AttributeError(name)
        vars(self)[name] = self.set[name] = value

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def get_flag(self, flag: Any) -> bool:
        return flag.name in self.flags

    def set_memory_pool_limit(self, pool: Any, nbytes: int) -> None:
        if nbytes <= self.takes:
            self.set[pool.name] = nbytes

    def get_memory_pool_limit(self, pool: Any) -> int:
        return int(self.set.get(pool.name, self.takes))

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        assert index == len(self.capabilities) < self.num_compute_capabilities
        self.capabilities.append(capability.name)
        return capability.name not in self.bindings.refused_capabilities

    def add_optimization_profile(self, profile: Profile) -> None:
        self.profiles.append(profile)

    def create_timing_cache(self, data: bytes) -> Cache:
        return Cache(self.bindings.__version__, data)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return self.bindings.takes_cache

    def get_timing_cache(self) -> Any:
        return self.cache


class Cache:
    """``ITimingCache``: a version and the graphs that were measured. What it cannot read, it takes for empty."""

    def __init__(self, version: str, data: bytes = b"") -> None:
        self.head = f"cache of {version}\n".encode()
        readable = data.startswith(self.head)
        self.graphs = set(data[len(self.head) :].split(b"\n")) - {b""} if readable else set()

    def serialize(self) -> bytes:
        return self.head + b"\n".join(sorted(self.graphs))

    def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.graphs |= other.graphs
        return True


class Network:
    """``INetworkDefinition`` with one input, ``image``."""

    num_inputs = 1
    num_layers = 0

    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.graph = b""

    def get_input(self, index: int) -> Any:
        return SimpleNamespace(name="image", shape=(-1, 4, 4, 3))


class Profile(dict[str, Any]):
    """``IOptimizationProfile``."""

    def set_shape(self, name: str, *shapes: Sequence[int]) -> None:
        self[name] = shapes


class Builder:
    """``Builder``: its engine is what it was made from, in words."""

    def __init__(self, bindings: Bindings, logger: Any) -> None:
        self.bindings, self.logger = bindings, logger
        bindings.threads.append(threading.current_thread().name)

    def create_network(self, flags: int = 0) -> Network:
        return Network(flags)

    def create_builder_config(self) -> Config:
        config = Config(self.bindings)
        self.bindings.configs.append(config)
        return config

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        self.bindings.threads.append(threading.current_thread().name)
        monitor = vars(config)["progress_monitor"]
        monitor.phase_start("Building engine", None, 4)
        for step in range(4):
            self.bindings.during(step)
            if not monitor.step_complete("Building engine", step):
                monitor.phase_finish("Building engine")
                return None
        monitor.phase_finish("Building engine")
        if b"refused" in network.graph:
            self.logger.log(self.bindings.ILogger.Severity.ERROR, "no kernel for it")
            return None
        if config.cache is not None:
            config.cache.graphs.add(network.graph.split(b"\n")[0])
        return b"engine of " + network.graph


class Parser:
    """``OnnxParser``: takes anything."""

    num_errors = 0

    def __init__(self, network: Network, logger: Any) -> None:
        self.network = network

    def parse(self, graph: bytes, path: str) -> bool:
        self.network.graph = graph
        return True


class Bindings:
    """The module.

    Args:
        version: Such as ``10.3.0``.
        rtx: Whether it is ``tensorrt_rtx``.

    Attributes:
        configs: Every builder configuration that was made.
        threads: Where builders were made, and where they built.
        during: Called before every step of a build.
    """

    def __init__(self, version: str, rtx: bool = False) -> None:
        self.__version__, self.rtx = version, rtx
        self.configs: list[Config] = []
        self.threads: list[str] = []
        self.during: Callable[[int], None] = lambda _: None
        self.takes_cache = True
        self.refused_capabilities: set[str] = set()
        old = version.startswith("10.")
        self.BuilderFlag = enumeration("BuilderFlag", *_FLAGS, *(_WEAK_FLAGS if old else []))
        self.ProfilingVerbosity = enumeration("ProfilingVerbosity", "LAYER_NAMES_ONLY", "NONE", "DETAILED")
        self.MemoryPoolType = enumeration("MemoryPoolType", "WORKSPACE", "TACTIC_DRAM")
        self.DataType = enumeration("DataType", "FLOAT", "HALF", "BF16")
        self.NetworkDefinitionCreationFlag = enumeration(
            "NetworkDefinitionCreationFlag", *(["EXPLICIT_BATCH"] if old else []), "STRONGLY_TYPED"
        )
        newer = [] if version.startswith("10.3") else ["SAME_COMPUTE_CAPABILITY"]
        self.HardwareCompatibilityLevel = enumeration(
            "HardwareCompatibilityLevel", "NONE", "AMPERE_PLUS", *newer
        )
        self.ExecutionContextAllocationStrategy = enumeration(
            "ExecutionContextAllocationStrategy", "STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"
        )
        severity = enumeration("Severity", "INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
        self.ILogger: Any = type("ILogger", (), {"Severity": severity})
        self.IProgressMonitor: Any = type("IProgressMonitor", (), {})
        self.OnnxParser = Parser
        if rtx:
            self._add_rtx()

    def Builder(self, logger: Any) -> Builder:  # the module's class is called so
        return Builder(self, logger)

    def _add_rtx(self) -> None:
        self.ComputeCapability = enumeration("ComputeCapability", *CAPABILITIES)
        self.CudaGraphStrategy = enumeration("CudaGraphStrategy", "DISABLED", "WHOLE_GRAPH_CAPTURE")
        self.DynamicShapesKernelSpecializationStrategy = enumeration(
            "DynamicShapesKernelSpecializationStrategy", "LAZY", "EAGER", "NONE"
        )
        self.EngineValidity = enumeration("EngineValidity", "VALID", "SUBOPTIMAL", "INVALID")
        self.EngineInvalidityDiagnostics = bits(
            "EngineInvalidityDiagnostics",
            VERSION_MISMATCH=1,
            UNSUPPORTED_CC=2,
            OLD_CUDA_DRIVER=4,
            MALFORMED_ENGINE=32,
        )


class RuntimeConfig:
    """``IRuntimeConfig`` of RTX."""

    def __init__(self) -> None:
        self.strategy: Any = None
        self.cache: Any = None
        self.cuda_graph_strategy: Any = None
        self.dynamic_shapes_kernel_specialization_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> object:
        return object()

    def set_runtime_cache(self, cache: object) -> bool:
        self.cache = cache
        return True


class Engine:
    """``ICudaEngine``: its context is what it was asked for with."""

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, how: Any) -> Any:
        return SimpleNamespace(how=how)


real = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="tensorrt-rtx-cu13 has no wheel for this",
)
ORIN = Gpu("Orin", "sm_87", 8 << 30, True)
RTX_3090 = Gpu("GeForce RTX 3090", "sm_86", 24 << 30, False)
L4 = Gpu("L4", "sm_89", 24 << 30, False)


def with_gpus(monkeypatch: pytest.MonkeyPatch, *gpus: Gpu) -> None:
    """Let the machine have these GPUs."""
    found = Gpus(list(gpus), "12.6" if gpus else "", "" if gpus else "no NVIDIA driver is installed")
    monkeypatch.setattr("vsa_rt.gpu.find_gpus", lambda: found)


def double(version: str = "10.3.0", rtx: bool = False) -> tuple[Library, Bindings]:
    """A library whose bindings are doubles."""
    bindings = Bindings(version, rtx)
    package: Any = "tensorrt-rtx" if rtx else "tensorrt"
    logger = libraries._collector(bindings)
    return Library(bindings, package, version, dialect_of(package, version, bindings), logger), bindings


def options(max_batch: int = 8, told: list[str] | None = None, **tuning: Any) -> CompileOptions:
    """How to compile; what is said meanwhile goes into the list."""
    said = [] if told is None else told
    return CompileOptions(max_batch, Tuning(**tuning), said.append)
