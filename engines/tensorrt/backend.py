"""TensorRT's two backends: ``tensorrt``, which compiles on the device itself, and ``tensorrt-rtx``, which need not.

Opening and running engines is unproven on a GPU: the machines that run the tests have none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vsa_rt.contracts import Precision, TensorSpec
from vsa_rt.engines.backend import OpenOptions, Probe, Profiler, Session, check_tensor
from vsa_rt.engines.compiling import CompileOptions, Made, Part, Source
from vsa_rt.engines.tensorrt.command import command
from vsa_rt.engines.tensorrt.compiler import Compilation, compile_graph, probe_library
from vsa_rt.engines.tensorrt.library import Library, Package, install, open_library
from vsa_rt.engines.tensorrt.timing_cache import write_whole
from vsa_rt.errors import EnvironmentUnusable, UsageError
from vsa_rt.manifest import CompiledRecord, StageRecord

if TYPE_CHECKING:
    from vsa_rt.engines.cuda.seam import Device
    from vsa_rt.engines.tensorrt.loaded import LoadedEngine
    from vsa_rt.gpu import Gpu

ENGINE = "model.engine"


def _nothing() -> None:
    """There is only one device."""


def _gpus() -> list[Gpu]:
    from vsa_rt.gpu import find_gpus

    return list(find_gpus().devices)


def _machine(gpu: Gpu) -> str:
    """What figures are of: the driver calls the GPU of every Jetson Orin alike, the board says which one it is."""
    from vsa_rt.jetson import find_jetson, is_jetson

    board = find_jetson() if gpu.integrated and is_jetson() else None
    return (board.board if board else None) or gpu.name


def _has_cuda_core() -> bool:
    """Whether what opens engines is installed; nothing is imported but the empty package around it."""
    try:
        return find_spec("cuda.core") is not None and find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:
        return False


class _TensorRt:
    """What both share."""

    name: Package
    #: Devices that a target may name.
    known: tuple[str, ...]

    def half(self, device: str) -> bool:
        """What a graph says in half is computed in half."""
        return True

    def precisions(self, device: str) -> tuple[Precision, ...]:
        """fp32, fp16 and int8."""
        return (Precision.FP32, Precision.FP16, Precision.INT8)

    @property
    def devices(self) -> tuple[str, ...]:
        """The capabilities of this machine's GPUs, so far as the library has them."""
        return tuple(dict.fromkeys(g.capability for g in _gpus() if g.capability in self.known))

    def probe(self, device: str) -> Probe:
        """Look for the library, for what opens engines, and for such a GPU."""
        library = probe_library(self.name)
        if not library.usable:
            return library
        here = [g for g in _gpus() if g.capability in device.split("+")]
        if not here:
            return replace(library, usable=False, reason=self._absent(device), compiles=self._ahead)
        if not _has_cuda_core():
            reason = "cuda-core is not installed: engines can be compiled, and not opened"
            return replace(
                library, usable=False, reason=reason, install=install(self.name), compiles=self._ahead
            )
        return replace(library, machine=_machine(here[0]))

    #: Whether it compiles for devices that are not here.
    _ahead = False

    def _absent(self, device: str) -> str:
        """Why a device cannot be used: it is not here."""
        from vsa_rt.gpu import find_gpus

        found = find_gpus()
        there = ", ".join(f"{g.name} ({g.capability})" for g in found.devices)
        wanted = " or ".join(device.split("+"))
        return f"no GPU of {wanted} is here: {f'there is {there}' if there else found.reason}"

    # Building

    def build(self, source: Source, folder: Path, device: str, options: CompileOptions) -> Made:
        """Compile a graph: merged into one engine, and, where it is asked for and can be cut, one for each part.

        Raises:
            UsageError: The library does not do what is asked.
            EnvironmentUnusable: It refuses the graph; the message has node, reason and way out.
            KeyboardInterrupt: Ctrl-C; no file is left.
        """
        if options.tuning.strip and options.tuning.fusion == "streams":
            raise UsageError(
                "--strip-weights, --fusion streams: the weights of a cut graph have no graph to come back from; leave "
                "one of them out"
            )
        library = open_library(self.name)
        capabilities = device.split("+")
        enter = self._ready(device, options)
        written: list[Path] = []

        def compiled(graph: bytes, name: str) -> Compilation:
            made = compile_graph(library, graph, capabilities, options, name, enter)
            written.append(folder / name)
            write_whole(folder / name, made.engine)
            return made

        try:
            merged = compiled(source.graph, ENGINE)
            stages = []
            for number, part in enumerate(self._parts(source, options)):
                # By number: a stranger's graph may call a tensor like a path.
                name = f"stream-{number}.engine"
                compiled(part.graph, name)
                stages.append(
                    StageRecord(
                        name=part.name, file=name, inputs=list(part.inputs), outputs=list(part.outputs)
                    )
                )
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise
        record = _record(library, source, merged, stages, capabilities, options)
        return Made([ENGINE, *(stage.file for stage in stages)], record)

    def _ready(self, device: str, options: CompileOptions) -> Callable[[], None]:
        """What makes the device the compiling thread's own.

        Raises:
            EnvironmentUnusable: It cannot be compiled for here.
        """
        return _nothing

    def _parts(self, source: Source, options: CompileOptions) -> Sequence[Part]:
        """What is compiled by itself as well."""
        if options.tuning.fusion == "merged":
            return ()
        if options.tuning.strip:
            options.progress("one engine alone: the weights of a cut graph would have no graph to come from")
            return ()
        parts = source.parts()
        if len(parts) >= 2:
            return parts
        if options.tuning.fusion == "streams":
            options.progress("warning: there is nothing to cut in this graph: one engine computes it alone")
        return ()

    # Opening

    def open(
        self,
        files: Sequence[bytes],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: OpenOptions,
    ) -> Session:
        """Open an engine; see ``Backend.open``. What does not fit is refused before the library sees its bytes."""
        from vsa_rt.engines.cuda.seam import Form, Stage
        from vsa_rt.engines.cuda.session import CudaSession

        found = self._fitting(files, options)
        with ExitStack() as opened:
            loaded = [opened.enter_context(closing(found.load(data))) for data in files]
            forms = [Form("merged", (Stage("merged", loaded[0]),))]
            stages = zip(found.compiled.stages, loaded[1:], strict=True)
            streams = tuple(Stage(stage.name, engine) for stage, engine in stages)
            if streams:
                forms.append(Form("streams", streams))
            # It looks at what the engines take and give, and closes them if that is not what the specs say.
            session = CudaSession(found.device, forms, inputs, outputs, options)
            opened.pop_all()
        try:
            # An engine that cannot run here is to be refused when it is opened, not at its first call.
            session.prepare([options.first])
        except BaseException:
            session.close()
            raise
        return session

    def profiler(
        self,
        files: Sequence[bytes],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: OpenOptions,
    ) -> Profiler:
        """Open the merged engine with the library's counters on; see ``Backend.profiler``."""
        from vsa_rt.engines.tensorrt.layers import TensorRtProfiler

        found = self._fitting(files, options)
        with ExitStack() as opened:
            engine = opened.enter_context(closing(found.load(files[0])))
            there = {port.name: port.shape for port in engine.ports}
            for spec in (*inputs, *outputs):
                check_tensor(self.name, spec, there)
            made = TensorRtProfiler(found.device, engine, options.max_batch)
            opened.pop_all()
        return made

    def _fitting(self, files: Sequence[bytes], options: OpenOptions) -> _Fitting:
        """Check from the record alone that an engine can be opened here.

        Args:
            files: The merged engine and those of the stages, in the record's order.
            options: With the record.

        Raises:
            EnvironmentUnusable: It does not fit, or the library or the device is not there.
        """
        from vsa_rt.engines.cuda.device import open_device
        from vsa_rt.engines.tensorrt.fitness import refusal, this_system

        compiled = options.compiled
        if compiled is None:
            raise EnvironmentUnusable(
                f"{self.name}: nothing says how the engine was compiled; rebuild the bundle"
            )
        if len(files) != 1 + len(compiled.stages):
            raise EnvironmentUnusable(
                f"{self.name}: the engine has {len(files)} files, expected {1 + len(compiled.stages)}: the merged form "
                "and its stages; rebuild the bundle"
            )
        graph = options.graph if compiled.stripped else None
        if compiled.stripped and graph is None:
            raise EnvironmentUnusable(
                f"{self.name}: the engine has no weights, and there is no graph to take them from; rebuild the bundle"
            )
        library = open_library(self.name)
        device = open_device(self._capability(options.device))
        problem = refusal(compiled, device.facts, self.name, library.version, this_system())
        if problem:
            raise EnvironmentUnusable(f"{self.name}: {problem}")
        if compiled.version_compatible and not options.host_code:
            raise EnvironmentUnusable(
                f"{self.name}: the engine is version-compatible: it brings code for the host along, which is run only "
                "where the bundle's signature was verified; sign it (vsa-rt sign) and name the key in VSA_RT_TRUST, or "
                "build it without --version-compatible"
            )
        device.enter()
        return _Fitting(library, device, compiled, graph, options.host_code)

    def _capability(self, device: str) -> str:
        """The capability of this machine's GPU that a target means; if none is here, the first that it names."""
        wanted = device.split("+")
        return next((g.capability for g in _gpus() if g.capability in wanted), wanted[0])


@dataclass(frozen=True)
class _Fitting:
    """What an engine that fits is loaded with."""

    library: Library
    device: Device
    compiled: CompiledRecord
    graph: Callable[[], bytes] | None
    host_code: bool

    def load(self, data: bytes) -> LoadedEngine:
        """Deserialise one file.

        Raises:
            EnvironmentUnusable: The library refuses it.
        """
        from vsa_rt.engines.tensorrt.loaded import load_engine

        return load_engine(self.library, data, self.graph, self.host_code)


def _record(
    library: Library,
    source: Source,
    merged: Compilation,
    stages: list[StageRecord],
    capabilities: list[str],
    options: CompileOptions,
) -> CompiledRecord:
    from vsa_rt.engines.tensorrt.fitness import this_system
    from vsa_rt.gpu import find_gpus

    tuning = options.tuning
    return CompiledRecord(
        library=library.package,
        version=library.version,
        capabilities=capabilities,
        system=this_system(),
        driver=find_gpus().driver,
        typing=merged.typing,
        flags=list(merged.flags),
        version_compatible=tuning.version_compatible,
        hardware=tuning.hardware,
        stripped=tuning.strip,
        batches=list(merged.batches),
        stages=stages,
        trtexec=command(library.dialect, source.name, ENGINE, merged, tuning, capabilities),
    )


class TensorRt(_TensorRt):
    """The backend ``tensorrt``: engines for the one device that they are compiled on."""

    name: Literal["tensorrt"] = "tensorrt"
    known = (
        "sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_103", "sm_110", "sm_120", "sm_121",
    )  # fmt: skip

    def knows(self, device: str) -> str:
        """Why a target may not name a device; see ``Backend.knows``."""
        if device in self.known:
            return ""
        if "+" in device:
            return (
                f"an engine of tensorrt is for the one device that it is compiled on, not for {device!r}; "
                "tensorrt-rtx has engines for several"
            )
        return (
            f"tensorrt has no device {device!r}; there are {', '.join(f'tensorrt:{d}' for d in self.known)}"
        )

    def _absent(self, device: str) -> str:
        return f"{super()._absent(device)}; tensorrt compiles on the device itself"

    def _ready(self, device: str, options: CompileOptions) -> Callable[[], None]:
        here = _gpus()
        if all(gpu.capability != device for gpu in here):
            raise EnvironmentUnusable(f"tensorrt: {self._absent(device)}")
        if len(here) == 1:
            return _nothing
        from vsa_rt.engines.cuda.device import open_device

        return open_device(device).enter


class TensorRtRtx(_TensorRt):
    """The backend ``tensorrt-rtx``: engines for one capability or several, compiled on any machine."""

    name: Literal["tensorrt-rtx"] = "tensorrt-rtx"
    known = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
    _ahead = True

    def knows(self, device: str) -> str:
        """Why a target may not name a device; see ``Backend.knows``."""
        parts = device.split("+")
        unknown = next((part for part in parts if part not in self.known), None)
        if unknown is not None:
            there = ", ".join(f"tensorrt-rtx:{d}" for d in self.known)
            return f"tensorrt-rtx has no device {unknown!r}; there are {there}, and several joined by +"
        if len(set(parts)) < len(parts):
            return f"{device!r} names a device twice"
        return ""

    def _absent(self, device: str) -> str:
        return f"{super()._absent(device)}; engines for it can be compiled here, and not opened"

    def _ready(self, device: str, options: CompileOptions) -> Callable[[], None]:
        if options.tuning.strip and not _gpus():
            # Its compiler asks the driver for that, and fails inside where there is none.
            raise EnvironmentUnusable(
                "tensorrt-rtx: weights can be left out only on a machine with a GPU, and here "
                f"{super()._absent(device)}; leave --strip-weights out, or build there"
            )
        return _nothing
