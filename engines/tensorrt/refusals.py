"""What TensorRT refuses, as one message: the ONNX node, the reason, a way out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vsa_rt.errors import EnvironmentUnusable

#: What a refusal says, to what helps. The first that fits.
_ADVICE = (
    (r"[Zz]ero point", "quantise symmetrically: int8 with zero point 0"),
    (r"DequantizeLinear .*Int32", "leave biases in float: only activations and weights are quantised"),
    (r"has type UInt8", "let a Cast to float come first: a uint8 input can do nothing else"),
    (r"^NonZero", "give the graph fixed sizes, such as a fixed number of proposals"),
    (r"[Pp]lugin", "write it with native operators, such as GridSample for RoiAlign"),
    (r"FP32 GEMM", "compute it in fp16, or leave sm_75 out"),
    (r"datatypes: b16", "lower the graph to fp16 instead of bf16, or leave sm_75 out"),
    (r"initializer", "keep every weight inside the ONNX file"),
    (r"parse the ONNX model|at least one output", "give a whole ONNX model"),
    (r"workspace", "allow more scratch memory with --workspace, or leave that option out"),
    (r"[Oo]ut ?[Oo]f ?[Mm]emory|OOM", "free memory of the GPU, or take a smaller --max-batch"),
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


@dataclass(frozen=True)
class Refused:
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


@dataclass(frozen=True)
class Layer:
    """A layer that an ONNX node became: its own name, the node's, what it does, whether it gives bfloat16."""

    name: str
    node: str
    kind: str
    bf16: bool


def words_of(text: str) -> str:
    """A refusal in one line, without the library's own source files."""
    bare = text
    for around in _AROUND:
        bare = around.sub("", bare)
    bare = " ".join(bare.split()).rstrip(".")
    if bare.startswith("(") and bare.endswith(")"):
        bare = bare[1:-1].rstrip(".")
    # Where nothing is left, the driver's absence is the reason.
    return bare or " ".join(text.split())


def refused_by_parser(parser: Any) -> list[Refused]:
    """The parser's errors."""
    found = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        op = error.node_operator()
        found.append(Refused(error.node_name() or f"#{error.node()}", op, words_of(error.desc())))
    return found


def layers_of(trt: Any, network: Any) -> list[Layer]:
    """The layers that bear an ONNX node's name, in the graph's order."""
    found = []
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        node = re.fullmatch(r"\[ONNX Layer: (.*)\]", layer.metadata or "", re.DOTALL)
        if node is not None:
            kind = str(layer.type).rpartition(".")[2].replace("_", " ").lower()
            bf16 = any(layer.get_output(o).dtype == trt.DataType.BF16 for o in range(layer.num_outputs))
            found.append(Layer(layer.name, node[1] or layer.name, kind, bf16))
    return found


def refused_by_compiler(errors: Iterable[str], layers: Sequence[Layer]) -> list[Refused]:
    """The compiler's errors, with the nodes that they are about."""
    found = []
    for text in errors:
        reason = words_of(text)
        if "datatypes: b16" in reason:
            # The compiler names the type alone. Casts to it are our way in, not what computes in it.
            named = [x for x in layers if x.bf16 and x.kind != "cast"] or [x for x in layers if x.bf16]
            named = named[:1]
        else:
            named = [x for x in layers if re.search(rf"(?<![\w/.%]){re.escape(x.name)}(?![\w/.%])", reason)]
        longest = max(named, key=lambda x: len(x.name), default=None)
        found.append(Refused(longest.node if longest else "", longest.kind if longest else "", reason))
    return found


def refusal(library: str, capabilities: Sequence[str], refused: Sequence[Refused]) -> EnvironmentUnusable:
    """One error, of the first reason that has a node.

    Args:
        library: Who refuses, with its version.
        capabilities: What was compiled for.
        refused: Every reason.
    """
    who = f"{library} refuses the graph for {', '.join(capabilities)}"
    if not refused:
        return EnvironmentUnusable(f"{who} and gives no reason; {_OTHERWISE}")
    first = next((r for r in refused if r.op), refused[0])
    return EnvironmentUnusable(f"{who}: {first}; {first.advice}")
