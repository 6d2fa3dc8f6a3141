"""An ONNX graph to a TensorRT engine.

Parser and compiler are TensorRT's own: what they refuse is said with the ONNX node. ``tensorrt_rtx`` compiles ahead of
time, for GPUs that need not be in this machine; an engine made so cannot be opened without a driver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vsa_rt.engines.backend import Probe
from vsa_rt.engines.compiling import CompileOptions, Tuning
from vsa_rt.engines.tensorrt.dialects import Typed
from vsa_rt.engines.tensorrt.library import Library, install, open_library
from vsa_rt.engines.tensorrt.monitor import build
from vsa_rt.engines.tensorrt.refusals import layers_of, refusal, refused_by_compiler, refused_by_parser
from vsa_rt.engines.tensorrt.timing_cache import TimingCache
from vsa_rt.errors import EnvironmentUnusable, UsageError

#: What engines are compiled for ahead of time unless told: Turing, Ampere (A100, then RTX), Ada, Blackwell.
CAPABILITIES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120")
#: As a serialised ``NodeProto`` has them: the tag of ``op_type``, field 4, the length and the word (onnx.proto).
_QUANTISED = (b"\x22\x0eQuantizeLinear", b"\x22\x10DequantizeLinear")


@dataclass(frozen=True)
class Compilation:
    """An engine and how it came to be.

    Attributes:
        engine: Serialised.
        typing: ``strong``, or ``weak`` where the compiler chose precisions inside of the flags.
        flags: Builder flags that were on, by the library's names.
        batches: Smallest, usual and largest batch of one call.
        inputs: What it takes: names, and shapes without the batch.
    """

    engine: bytes
    typing: Literal["strong", "weak"]
    flags: tuple[str, ...]
    batches: tuple[int, int, int]
    inputs: tuple[tuple[str, tuple[int, ...]], ...]


def probe_library(package: Literal["tensorrt", "tensorrt-rtx"]) -> Probe:
    """Whether a library is there. No GPU is looked for."""
    try:
        return Probe(True, version=open_library(package).version)
    except EnvironmentUnusable as error:
        cause = error.__cause__
        if cause is None:
            return Probe(False, reason=str(error))
        absent = isinstance(cause, ModuleNotFoundError)
        reason = f"{package} is not installed" if absent else f"{package} does not load: {cause}"
        return Probe(False, reason=reason, install=install(package))


def probe_compiler() -> Probe:
    """Whether engines can be compiled ahead of time here. No GPU is looked for: none is needed."""
    return probe_library("tensorrt-rtx")


def is_quantised(graph: bytes) -> bool:
    """Whether a graph has QuantizeLinear or DequantizeLinear, without reading it."""
    return any(op in graph for op in _QUANTISED)


def batches_of(options: CompileOptions) -> tuple[int, int, int]:
    """Smallest, usual and largest batch of the optimisation profile.

    Raises:
        UsageError: They do not rise from 1.
    """
    tuning, most = options.tuning, options.max_batch
    batches = (tuning.min_batch, most if tuning.opt_batch is None else tuning.opt_batch, most)
    if not 1 <= batches[0] <= batches[1] <= batches[2]:
        raise UsageError("batches {}, {}, {}: least, usual and largest must rise from 1".format(*batches))
    return batches


def _nothing() -> None:
    """There is only one device."""


def compile_graph(
    library: Library,
    graph: bytes,
    capabilities: Sequence[str],
    options: CompileOptions,
    what: str = "the graph",
    enter: Callable[[], None] = _nothing,
) -> Compilation:
    """Compile a graph.

    Args:
        library: Who compiles.
        graph: A whole ONNX model with a free batch; its tensors' types say the precision.
        capabilities: What the one engine runs on, such as ``sm_86``; each must be able to compute all of the graph.
            ``tensorrt`` compiles for the device that it runs on, whatever is said here.
        options: Batches and tuning; ``progress`` is told of the compiler's own.
        what: The graph's name in what is told.
        enter: Makes the device that is compiled on the calling thread's own.

    Raises:
        UsageError: The library does not do what is asked, or an input's batch is not its one free axis.
        EnvironmentUnusable: The library refuses the graph; the message has node, reason and way out.
        KeyboardInterrupt: Ctrl-C; the compiler has stopped by then.
    """
    batches, tuning = batches_of(options), options.tuning
    library.dialect.check(tuning, capabilities)
    options.progress(f"compiling {what} with {library}, as {library.dialect.name}")
    with library.alone() as errors:
        enter()
        builder = library.trt.Builder(library.logger)
        network, typing, typed_by = _network(library, builder, graph, capabilities, options)
        config = builder.create_builder_config()
        config.add_optimization_profile(_profile(builder, network, batches))
        flags = library.dialect.configure(config, tuning, capabilities, typed_by)
        cache = _timing_cache(library, config, options)
        engine = build(library.trt, builder, network, config, what, options.progress, enter)
        if engine is None:
            refused = refused_by_compiler(errors, layers_of(library.trt, network))
            raise refusal(str(library), capabilities, refused)
        if cache is not None:
            cache.save()
        return Compilation(engine, typing, tuple(flags), batches, _inputs(network))


def _network(
    library: Library, builder: Any, graph: bytes, capabilities: Sequence[str], options: CompileOptions
) -> Typed:
    """The graph as the library's network."""
    typed = library.dialect.network(builder, is_quantised(graph))
    if typed.typing == "weak":
        options.progress(
            f"warning: {library} takes quantised graphs with weak typing only: within "
            f"{' and '.join(typed.flags)} it chooses itself what it computes in which precision"
        )
    _parse(library, typed.network, graph, capabilities)
    return typed


def _timing_cache(library: Library, config: Any, options: CompileOptions) -> TimingCache | None:
    """The one that is asked for, where there is a use for it."""
    file = options.tuning.timing_cache
    if file is not None and not library.dialect.measures:
        options.progress(
            f"warning: {library} measures nothing when it compiles: timing cache {file} is left unused"
        )
        return None
    return None if file is None else TimingCache(config, file, str(library))


def _inputs(network: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    given = [network.get_input(i) for i in range(network.num_inputs)]
    return tuple((str(tensor.name), tuple(int(n) for n in tensor.shape)[1:]) for tensor in given)


def _parse(library: Library, network: Any, graph: bytes, capabilities: Sequence[str]) -> None:
    """Read the graph into the network.

    Raises:
        EnvironmentUnusable: The parser refuses it.
    """
    parser = library.trt.OnnxParser(network, library.logger)
    # A graph of a stranger may name files as its weights: there is no folder to find them in.
    if not parser.parse(graph, "/nonexistent/graph.onnx"):
        raise refusal(str(library), capabilities, refused_by_parser(parser))


def _profile(builder: Any, network: Any, batches: tuple[int, int, int]) -> Any:
    """Least, usual and largest shape of every input.

    Raises:
        UsageError: Another axis than the first is free, or the first is not.
    """
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        free, *rest = tensor.shape
        if free != -1 or -1 in rest:
            raise UsageError(
                f"input {tensor.name!r} has shape {[free, *rest]}: the first axis, the batch, must be free (-1) and "
                "no other; export the graph so"
            )
        profile.set_shape(tensor.name, *((batch, *rest) for batch in batches))
    return profile


def compile_ahead(
    graph: bytes,
    capabilities: Sequence[str] = CAPABILITIES,
    *,
    max_batch: int,
    opt_batch: int | None = None,
    min_batch: int = 1,
) -> bytes:
    """Compile an ONNX graph with ``tensorrt_rtx``: this machine needs no GPU.

    Args:
        graph: As for ``compile_graph``.
        capabilities: Likewise.
        max_batch: Largest batch of one call.
        opt_batch: The batch that kernels are chosen for; the largest by default.
        min_batch: Smallest batch of one call.

    Returns:
        The serialised engine.

    Raises:
        UsageError: Capabilities or batches cannot be, or an input's batch is not its one free axis.
        EnvironmentUnusable: The library is absent, or refuses the graph; the message has node, reason and way out.
    """
    options = CompileOptions(max_batch, Tuning(min_batch=min_batch, opt_batch=opt_batch))
    return compile_graph(open_library("tensorrt-rtx"), graph, capabilities, options).engine
