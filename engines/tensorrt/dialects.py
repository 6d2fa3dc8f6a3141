"""What TensorRT's three bindings want otherwise than each other: one class for each."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

from vsa_rt.engines.compiling import Tuning
from vsa_rt.errors import EnvironmentUnusable, UsageError

#: ``Tuning.hardware`` to the library's own word. SAME_COMPUTE_CAPABILITY is not in every 10.x.
LEVELS = {"none": "NONE", "ampere+": "AMPERE_PLUS", "same capability": "SAME_COMPUTE_CAPABILITY"}
#: The first ``tensorrt`` 10.x that documents QuantizeLinear and DequantizeLinear under strong typing.
_STRONG_QUANTISED = 12


class Typed(NamedTuple):
    """A network that waits for a graph, how its types are decided, and the builder flags that this takes."""

    network: Any
    typing: Literal["strong", "weak"]
    flags: tuple[str, ...]


class Dialect(ABC):
    """The verbs of TensorRT's compiler and runtime, over one version's bindings.

    Attributes:
        name: Which versions speak it.
        measures: Whether the compiler measures on the device: then it can keep what it measured in a timing cache.
        tool: TensorRT's own program, as ``trtexec``.
    """

    name: str
    measures = True
    tool = "trtexec"

    def __init__(self, trt: Any, version: str) -> None:
        self._trt = trt
        self._version = version

    # Compiling

    @abstractmethod
    def network(self, builder: Any, quantised: bool) -> Typed:
        """A new network.

        Args:
            builder: The library's.
            quantised: Whether the graph has QuantizeLinear.
        """

    @abstractmethod
    def check(self, tuning: Tuning, capabilities: Sequence[str]) -> None:
        """Check that the compiler can do what is asked.

        Args:
            tuning: What is asked.
            capabilities: Such as ``sm_87``.

        Raises:
            UsageError: It cannot.
        """

    def configure(
        self, config: Any, tuning: Tuning, capabilities: Sequence[str], flags: Sequence[str] = ()
    ) -> list[str]:
        """Set everything but profiles, timing cache and progress.

        Args:
            config: The library's.
            tuning: What is asked.
            capabilities: Such as ``sm_87``.
            flags: Builder flags that typing takes.

        Returns:
            All builder flags that are on, by the library's names.

        Raises:
            UsageError: The library does not take a value.
        """
        known = self._trt.BuilderFlag
        # What the graph says is fp32 is no TF32, which keeps 10 bits of 23.
        config.clear_flag(known.TF32)
        # The names of ONNX nodes stay with the layers, for whoever measures them.
        config.profiling_verbosity = self._trt.ProfilingVerbosity.DETAILED
        if tuning.strip:
            # The graph's own weights come back: so kernels may be chosen that need just these.
            flags = (*flags, "STRIP_PLAN", "REFIT_IDENTICAL")
        if tuning.version_compatible:
            flags = (*flags, "VERSION_COMPATIBLE")
        for name in flags:
            config.set_flag(getattr(known, name))
        if tuning.level is not None:
            config.builder_optimization_level = tuning.level
        if tuning.aux_streams is not None:
            config.max_aux_streams = tuning.aux_streams
        if tuning.workspace is not None:
            self._limit(config, tuning.workspace)
        return [name for name, flag in known.__members__.items() if config.get_flag(flag)]

    def _limit(self, config: Any, workspace: int) -> None:
        pool = self._trt.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(pool, workspace)
        # A size that it does not take, it leaves as it was and says nothing.
        taken = int(config.get_memory_pool_limit(pool))
        if taken != workspace:
            raise UsageError(
                f"workspace of {workspace} bytes: the library does not take it and stays at {taken}; "
                "ask for less, or leave --workspace out"
            )

    # Running

    def new_context(self, engine: Any) -> Any:
        """An execution context without device memory of its own; ``None`` if the library refuses."""
        return engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def scratch(self, engine: Any, context: Any) -> int:
        """Bytes of device memory that a context needs for the input shapes that were set.

        Args:
            engine: The context's.
            context: With every input's shape set; without, the library says 0.
        """
        return int(context.update_device_memory_size_for_shapes())

    def give_scratch(self, context: Any, address: int, nbytes: int) -> None:
        """Let a context use device memory, at least 256-byte aligned."""
        context.set_device_memory(address, nbytes)

    def capturable(self, context: Any, stream_handle: int) -> bool:
        """Whether a run can be captured now, as far as the library tells; where it does not tell, it can."""
        return True

    def validity(self, runtime: Any, data: bytes) -> str:
        """Why the library itself, from an engine's header, would not open it here.

        Args:
            runtime: The library's.
            data: The engine.

        Returns:
            The reason; empty if there is none, and where the library does not tell before it opens.
        """
        return ""


class _Classic(Dialect):
    """What the two kinds of ``tensorrt`` share: they compile on the device itself, for it."""

    def check(self, tuning: Tuning, capabilities: Sequence[str]) -> None:
        """See ``Dialect.check``."""
        there = [word for word, name in LEVELS.items() if name in self._levels]
        if tuning.hardware not in there:
            raise UsageError(
                f"tensorrt {self._version} has no hardware compatibility {tuning.hardware!r}; it has "
                f"{', '.join(there)}"
            )
        old = [c for c in capabilities if tuning.hardware == "ampere+" and int(c.removeprefix("sm_")) < 80]
        if old:
            raise UsageError(
                f"hardware compatibility ampere+: {', '.join(old)} is older than Ampere (sm_80); compile it on a "
                "newer GPU, or leave --hardware-compatible out"
            )

    def configure(
        self, config: Any, tuning: Tuning, capabilities: Sequence[str], flags: Sequence[str] = ()
    ) -> list[str]:
        """See ``Dialect.configure``."""
        level = LEVELS[tuning.hardware]
        config.hardware_compatibility_level = getattr(self._trt.HardwareCompatibilityLevel, level)
        return super().configure(config, tuning, capabilities, flags)

    @property
    def _levels(self) -> Sequence[str]:
        return list(self._trt.HardwareCompatibilityLevel.__members__)


class Classic10(_Classic):
    """``tensorrt`` 10.3 to 10.16: types are strong on demand, and weak for quantised graphs below 10.12."""

    name = "tensorrt 10.3-10.16"

    def network(self, builder: Any, quantised: bool) -> Typed:
        """See ``Dialect.network``."""
        minor = int(self._version.split(".")[1])
        if quantised and minor < _STRONG_QUANTISED:
            return Typed(builder.create_network(0), "weak", ("FP16", "INT8"))
        strong = 1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return Typed(builder.create_network(strong), "strong", ())


class Classic11(_Classic):
    """``tensorrt`` 11.x: types are always strong."""

    name = "tensorrt 11.x"

    def network(self, builder: Any, quantised: bool) -> Typed:
        """See ``Dialect.network``."""
        return Typed(builder.create_network(0), "strong", ())


class Rtx(Dialect):
    """``tensorrt_rtx`` 1.x: engines for a list of capabilities, compiled without any of them, finished where they run.

    What it finishes is kept for all contexts of an engine.
    """

    name = "tensorrt-rtx 1.x"
    measures = False
    tool = "tensorrt_rtx"

    def __init__(self, trt: Any, version: str) -> None:
        super().__init__(trt, version)
        # The cache and the configurations must outlive an engine's contexts, which keep the engine.
        self._kept: WeakKeyDictionary[Any, list[Any]] = WeakKeyDictionary()

    def network(self, builder: Any, quantised: bool) -> Typed:
        """See ``Dialect.network``."""
        # Needed before 1.5, ignored from then on.
        strong = 1 << int(self._trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return Typed(builder.create_network(strong), "strong", ())

    def check(self, tuning: Tuning, capabilities: Sequence[str]) -> None:
        """See ``Dialect.check``."""
        members = self._trt.ComputeCapability.__members__
        known = [f"sm_{name.removeprefix('SM')}" for name in members if name.startswith("SM")]
        known.sort(key=lambda name: int(name.removeprefix("sm_")))
        if not capabilities:
            raise UsageError(f"no compute capability to compile for; there are {', '.join(known)}")
        for name in capabilities:
            if name not in known:
                raise UsageError(f"compute capability {name!r}: unknown; there are {', '.join(known)}")
        if tuning.hardware != "none":
            raise UsageError(
                "--hardware-compatible: tensorrt-rtx has no such levels, its engines are for the capabilities that "
                "are named; leave it out, and join them, as in tensorrt-rtx:sm_86+sm_89"
            )
        if tuning.version_compatible:
            raise UsageError(
                "--version-compatible: an engine of tensorrt-rtx cannot be made so, its packages lack the lean runtime "
                "that goes into such engines; leave it out"
            )
        if tuning.strip and len(capabilities) > 1:
            raise UsageError(
                f"--strip-weights: tensorrt-rtx can do that for one capability only, not {', '.join(capabilities)}; "
                "name one target for each"
            )

    def configure(
        self, config: Any, tuning: Tuning, capabilities: Sequence[str], flags: Sequence[str] = ()
    ) -> list[str]:
        """See ``Dialect.configure``."""
        config.num_compute_capabilities = len(capabilities)
        for i, name in enumerate(capabilities):
            wanted = getattr(self._trt.ComputeCapability, name.replace("sm_", "SM"))
            if not config.set_compute_capability(wanted, i):
                raise UsageError(
                    f"compute capability {name!r}: tensorrt-rtx {self._version} does not take it"
                )
        return super().configure(config, tuning, capabilities, flags)

    def new_context(self, engine: Any) -> Any:
        """See ``Dialect.new_context``. Kernels are finished for a shape when it first runs, before any capture."""
        kept = self._kept.setdefault(engine, [])
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        # The session captures by itself.
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.DISABLED
        # Lazy would finish them in the background and change what runs, a capture or not.
        config.dynamic_shapes_kernel_specialization_strategy = (
            self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        if not kept:
            kept.append(config.create_runtime_cache())
        config.set_runtime_cache(kept[0])
        kept.append(config)
        return engine.create_execution_context(config)

    def capturable(self, context: Any, stream_handle: int) -> bool:
        """See ``Dialect.capturable``."""
        return bool(context.is_stream_capturable(stream_handle))

    def validity(self, runtime: Any, data: bytes) -> str:
        """See ``Dialect.validity``. What runs, only slower than it might, has no reason."""
        found, bits = runtime.get_engine_validity(data)
        if found != self._trt.EngineValidity.INVALID:
            return ""
        reasons = self._trt.EngineInvalidityDiagnostics.__members__
        words = [_DIAGNOSES.get(name, name) for name, bit in reasons.items() if int(bits) & int(bit)]
        return f"tensorrt-rtx {self._version} says that the engine is not valid here: " + (
            ", ".join(words) or "no reason given"
        )


#: ``EngineInvalidityDiagnostics`` in words.
_DIAGNOSES = {
    "VERSION_MISMATCH": "another version of the library compiled it",
    "UNSUPPORTED_CC": "it is for other compute capabilities",
    "OLD_CUDA_DRIVER": "the driver is too old",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory",
    "MALFORMED_ENGINE": "it has another format",
    "CUDA_ERROR": "CUDA's driver or runtime is missing or not installed as it should be",
}


def dialect_of(package: str, version: str, trt: Any = None) -> Dialect:
    """Who speaks for a version.

    Args:
        package: ``tensorrt`` or ``tensorrt-rtx``.
        version: Such as ``10.3.0``.
        trt: The bindings, which its verbs use.

    Raises:
        EnvironmentUnusable: The version is none that is known.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    major, minor = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if package == "tensorrt" and major == 10 and 3 <= minor <= 16:
        return Classic10(trt, version)
    if package == "tensorrt" and major == 11:
        return Classic11(trt, version)
    if package == "tensorrt-rtx" and major == 1 and minor >= 2:
        return Rtx(trt, version)
    known = "10.3 to 10.16, and 11.x" if package == "tensorrt" else "1.2 and later 1.x"
    raise EnvironmentUnusable(
        f"{package} {version}: no version that vsa-rt knows; it knows {known}: install one of them"
    )
