"""TensorRT for RTX: engines compiled ahead of time, for GPUs that need not be in this machine.

Parser and compiler are TensorRT's own: a graph that compiles here is legal TensorRT, and what they refuse is said with
the ONNX node. An engine made so cannot be opened without a driver.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from vsa_rt.engines.backend import Probe
from vsa_rt.errors import EnvironmentUnusable, UsageError

INSTALL = "pip install 'vsa-rt[tensorrt-rtx]'"
#: What engines are compiled for: Turing, Ampere (A100, then RTX), Ada, Blackwell.
CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120")

#: The bindings keep one logger per process, and standard output is the process's, too: one compilation at a time.
_LOCK = threading.Lock()


def _library() -> Any:
    """The bindings.

    Raises:
        EnvironmentUnusable: They are not installed, or do not load.
    """
    try:
        import tensorrt_rtx
    except (ImportError, OSError) as error:
        raise EnvironmentUnusable(f"tensorrt-rtx cannot be imported ({error}); {INSTALL}") from error
    return tensorrt_rtx


def probe_compiler() -> Probe:
    """Whether engines can be compiled ahead of time here. No GPU is looked for: none is needed."""
    try:
        return Probe(True, version=str(_library().__version__))
    except EnvironmentUnusable as error:
        absent = isinstance(error.__cause__, ModuleNotFoundError)
        reason = (
            "tensorrt-rtx is not installed" if absent else f"tensorrt-rtx does not load: {error.__cause__}"
        )
        return Probe(False, reason=reason, install=INSTALL)


@cache
def _logger() -> Any:
    """The process's logger: it keeps errors and prints nothing. TensorRT keeps the first logger that it is given."""
    _library()
    import tensorrt_rtx as trt

    kept = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    class Collector(trt.ILogger):  # type: ignore[misc]  # the bindings ship no types
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in kept:
                self.errors.append(text)

    return Collector()


@contextlib.contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Keep what the compiler prints past its logger off standard output, which holds one JSON document or results."""
    libc = ctypes.CDLL(None)
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with tempfile.TemporaryFile() as nowhere:
            os.dup2(nowhere.fileno(), 1)
            yield
            libc.fflush(None)
    finally:
        os.dup2(kept, 1)
        os.close(kept)


# What is refused


@dataclass(frozen=True)
class _Refused:
    """One reason why a graph does not compile.

    Attributes:
        node: The ONNX node; empty where the library does not tell.
        op: Its type: ONNX's word from the parser, TensorRT's from the compiler.
        reason: The library's words.
    """

    node: str
    op: str
    reason: str

    def __str__(self) -> str:
        return f"node {self.node!r} ({self.op}): {self.reason}" if self.op else self.reason

    @property
    def advice(self) -> str:
        """A way out."""
        text = f"{self.op} {self.reason}"
        return next((words for pattern, words in _ADVICE if re.search(pattern, text)), _OTHERWISE)


#: What a refusal says, to what helps. The first that fits.
_ADVICE = (
    (r"[Zz]ero point", "quantise symmetrically: int8 with zero point 0"),
    (r"DequantizeLinear .*Int32", "leave biases in float: only activations and weights are quantised"),
    (r"has type UInt8", "let a Cast to float come first: a uint8 input can do nothing else"),
    (r"^NonZero", "give the graph fixed sizes, such as a fixed number of proposals"),
    (r"[Pp]lugin", "write it with native operators, such as GridSample for RoiAlign"),
    (r"FP32 GEMM", "compute it in fp16, or leave SM75 out"),
    (r"datatypes: b16", "lower the graph to fp16 instead of bf16, or leave SM75 out"),
    (r"initializer", "keep every weight inside the ONNX file"),
    (r"parse the ONNX model|at least one output", "give a whole ONNX model"),
)
_OTHERWISE = "leave the node in fp32 (--exclude), or write that part of the network in other operators"

#: What the library puts around its own words: who says it, where in its source, and that there is no driver.
_AROUND = (
    re.compile(r"^Invalid Node - .*$", re.MULTILINE),
    re.compile(r"^.*\(cudaError \d+: .*$", re.MULTILINE),
    re.compile(r"\bI\w+::\w+: Error Code \d+: [\w ]+ (?=\()"),
    re.compile(r"\[\w+\.cpp:\d+: \w+\] "),
    re.compile(r" In \w+ at \S+?\.cpp:\d+"),
    re.compile(r"Assertion failed: .*?: (?=\S)"),
)


def _words(text: str) -> str:
    """A refusal in one line, without the library's own source files."""
    bare = text
    for around in _AROUND:
        bare = around.sub("", bare)
    bare = " ".join(bare.split()).rstrip(".")
    if bare.startswith("(") and bare.endswith(")"):
        bare = bare[1:-1].rstrip(".")
    # Where nothing is left, the driver's absence is the reason.
    return bare or " ".join(text.split())


def _refused_by_parser(parser: Any) -> list[_Refused]:
    found = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        op = error.node_operator()
        found.append(_Refused(error.node_name() or f"#{error.node()}", op, _words(error.desc())))
    return found


@dataclass(frozen=True)
class _Layer:
    """A layer that an ONNX node became: its own name, the node's, what it does, whether it gives bfloat16."""

    name: str
    node: str
    kind: str
    bf16: bool


def _layers(network: Any) -> list[_Layer]:
    """The layers that bear an ONNX node's name, in the graph's order."""
    trt = _library()
    found = []
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        node = re.fullmatch(r"\[ONNX Layer: (.*)\]", layer.metadata or "", re.DOTALL)
        if node is not None:
            kind = str(layer.type).rpartition(".")[2].replace("_", " ").lower()
            bf16 = any(layer.get_output(o).dtype == trt.bfloat16 for o in range(layer.num_outputs))
            found.append(_Layer(layer.name, node[1] or layer.name, kind, bf16))
    return found


def _refused_by_compiler(errors: Sequence[str], layers: Sequence[_Layer]) -> list[_Refused]:
    """The compiler's errors, with the nodes that they are about."""
    found = []
    for text in errors:
        reason = _words(text)
        if "datatypes: b16" in reason:
            # The compiler names the type alone. Casts to it are our way in, not what computes in it.
            named = [x for x in layers if x.bf16 and x.kind != "cast"] or [x for x in layers if x.bf16]
            named = named[:1]
        else:
            named = [x for x in layers if re.search(rf"(?<![\w/.%]){re.escape(x.name)}(?![\w/.%])", reason)]
        longest = max(named, key=lambda x: len(x.name), default=None)
        found.append(_Refused(longest.node if longest else "", longest.kind if longest else "", reason))
    return found


def _refusal(refused: Sequence[_Refused], capabilities: Sequence[str]) -> EnvironmentUnusable:
    """One error, of the first reason that has a node."""
    who = f"tensorrt-rtx {_library().__version__} refuses the graph for {', '.join(capabilities)}"
    if not refused:
        return EnvironmentUnusable(f"{who} and gives no reason; {_OTHERWISE}")
    first = next((r for r in refused if r.op), refused[0])
    return EnvironmentUnusable(f"{who}: {first}; {first.advice}")


# Compiling


def _check_request(capabilities: Sequence[str], batches: tuple[int, int, int]) -> None:
    trt = _library()
    known = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    if not capabilities:
        raise UsageError(f"no compute capability to compile for; there are {', '.join(known)}")
    for name in capabilities:
        if name not in known:
            raise UsageError(f"compute capability {name!r}: unknown; there are {', '.join(known)}")
    if not 1 <= batches[0] <= batches[1] <= batches[2]:
        raise UsageError("batches {}, {}, {}: least, usual and largest must rise from 1".format(*batches))


def _parse(network: Any, graph: bytes, capabilities: Sequence[str]) -> None:
    """Read the graph into the network.

    Raises:
        EnvironmentUnusable: The parser refuses it.
    """
    parser = _library().OnnxParser(network, _logger())
    # A graph of a stranger may name files as its weights: there is no folder to find them in.
    if not parser.parse(graph, "/nonexistent/graph.onnx"):
        raise _refusal(_refused_by_parser(parser), capabilities)


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


def _compile(graph: bytes, capabilities: Sequence[str], batches: tuple[int, int, int]) -> bytes:
    trt = _library()
    logger = _logger()
    logger.errors.clear()
    builder = trt.Builder(logger)
    # Strongly typed: the graph alone says the precision.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(network, graph, capabilities)
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, network, batches))
    config.num_compute_capabilities = len(capabilities)
    for i, name in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise _refusal(_refused_by_compiler(logger.errors, _layers(network)), capabilities)
    return bytes(engine)


def compile_ahead(
    graph: bytes,
    capabilities: Sequence[str] = CAPABILITIES,
    *,
    max_batch: int,
    opt_batch: int | None = None,
    min_batch: int = 1,
) -> bytes:
    """Compile an ONNX graph into an engine, ahead of time: this machine needs no GPU.

    Args:
        graph: A whole ONNX model with a free batch; its tensors' types say the precision.
        capabilities: What the one engine runs on, such as ``SM86``; each must be able to compute all of the graph.
        max_batch: Largest batch of one call.
        opt_batch: The batch that kernels are chosen for; the largest by default.
        min_batch: Smallest batch of one call.

    Returns:
        The serialized engine.

    Raises:
        UsageError: Capabilities or batches cannot be, or an input's batch is not its one free axis.
        EnvironmentUnusable: The library is absent, or refuses the graph; the message has node, reason and way out.
    """
    batches = (min_batch, max_batch if opt_batch is None else opt_batch, max_batch)
    _check_request(capabilities, batches)
    with _LOCK, _quiet_stdout():
        return _compile(graph, capabilities, batches)
