"""What a graph costs: multiply-adds and bytes of each node for one batch size, and whose each node is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vsa_rt.bench.layer_kinds import MOVES_NOTHING, NO_COUNT, kind_of_node
from vsa_rt.errors import UsageError, needs
from vsa_rt.manifest import TapRecord

if TYPE_CHECKING:
    import onnx

#: What is left when every backbone has its nodes.
HEAD = "head"
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of a graph, for one batch size.

    Attributes:
        name: Its own, or its first output's where it has none or shares it with another.
        op: ONNX's operator.
        kind: Of layer: ``convolution``, ``depthwise``, ``pointwise``, ``matmul``, …
        inputs: Tensors that it reads.
        outputs: Tensors that it writes.
        macs: Multiply-adds of convolutions, products and recurrent cells; 0 for everything else.
        nbytes: Of the activations and weights that it reads and of what it writes; 0 where it only renames.
        folded: Whether it reads constants alone: an engine computes it once, at load.
    """

    name: str
    op: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    macs: int
    nbytes: int
    folded: bool


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph without its weights' values.

    Attributes:
        nodes: By name, in topological order.
        inputs: Of the graph.
        outputs: Of the graph.
        weights: Constant tensors and their bytes; of one that is computed from others at load, the fewer of both.
        tensors: All others and their bytes.
        unknown: Nodes whose cost cannot be told and is not in any sum, with the reason.
    """

    nodes: dict[str, Node]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: dict[str, int]
    tensors: dict[str, int]
    unknown: dict[str, str] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        """Of the whole."""
        return sum(node.macs for node in self.nodes.values())

    def producers(self) -> dict[str, str]:
        """Tensor to the name of the node that writes it."""
        return {tensor: node.name for node in self.nodes.values() for tensor in node.outputs}

    def least_bytes(self, names: Iterable[str] | None = None) -> int:
        """The least bytes that these nodes must touch, however they are fused.

        Args:
            names: Of nodes; all of them without it.

        Returns:
            Their weights once, what they read from outside, and what is read outside or is an output of the graph.
        """
        chosen = self.nodes.keys() if names is None else set(names)
        inside = [node for node in self.nodes.values() if node.name in chosen and not node.folded]
        read = {tensor for node in inside for tensor in node.inputs}
        written = {tensor for node in inside for tensor in node.outputs}
        outside = {t for n in self.nodes.values() if n.name not in chosen for t in n.inputs} | set(
            self.outputs
        )
        touched = (read - written) | (written & outside)
        return sum(self.weights.get(t, 0) or self.tensors.get(t, 0) for t in touched)


def _product(shape: Iterable[int]) -> int:
    return math.prod(shape)


def _convolution(weights_at: int) -> Callable[[list[Shape], list[Shape], Any], int]:
    """Each output element is a sum over ``C / groups`` channels and the kernel: ONNX's W is (M, C / groups, k…)."""
    return lambda given, made, node: _product(made[0]) * _product(given[weights_at][1:])


def _transposed_convolution(given: list[Shape], made: list[Shape], node: Any) -> int:
    # W is (C, M / groups, k…): every input element is spread over that many outputs.
    return _product(given[0]) * _product(given[1][1:])


def _product_of_matrices(given: list[Shape], made: list[Shape], node: Any) -> int:
    return _product(made[0]) * given[0][-1]


def _gemm(given: list[Shape], made: list[Shape], node: Any) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return _product(made[0]) * given[0][0 if transposed else 1]


def _recurrent(given: list[Shape], made: list[Shape], node: Any) -> int:
    # X is (T, N, I) or (N, T, I); W and R hold every gate of every direction: (D, G x H, I) and (D, G x H, H).
    return given[0][0] * given[0][1] * (_product(given[1]) + _product(given[2]))


def _einsum(given: list[Shape], made: list[Shape], node: Any) -> int:
    """Of two operands: the product over every index of the equation."""
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    if "..." in equation or len(terms) != 2:
        raise ValueError(f"Einsum {equation!r}")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, given, strict=True):
        sizes.update(zip(term, shape, strict=True))
    return _product(sizes.values())


_COUNTS: Mapping[str, Callable[[list[Shape], list[Shape], Any], int]] = {
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed_convolution,
    "MatMul": _product_of_matrices,
    "MatMulInteger": _product_of_matrices,
    "QLinearMatMul": _product_of_matrices,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "RNN": _recurrent,
}


def _fix_batch(model: onnx.ModelProto, batch: int) -> None:
    """Give every graph input its batch; what the exporter inferred for other batches goes."""
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        if value.name not in weights and axes and not axes[0].HasField("dim_value"):
            axes[0].dim_value = batch
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]


class _Facts:
    """Shapes and sizes of a graph's tensors."""

    def __init__(self, model: onnx.ModelProto, batch: int) -> None:
        import onnx
        from onnx import helper, inliner

        from vsa_rt.export.skeleton import skeleton

        bare = skeleton(model)
        if bare.functions:
            bare = inliner.inline_local_functions(bare)
        _fix_batch(bare, batch)
        inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True).graph
        self.nodes = list(inferred.node)
        self.shapes: dict[str, Shape] = {}
        self.nbytes: dict[str, int] = {}
        sized = [(t.name, t.data_type, tuple(t.dims)) for t in model.graph.initializer]
        for value in (*inferred.input, *inferred.output, *inferred.value_info):
            kind = value.type.tensor_type
            axes = kind.shape.dim
            if kind.HasField("shape") and all(axis.HasField("dim_value") for axis in axes):
                sized.append((value.name, kind.elem_type, tuple(axis.dim_value for axis in axes)))
        for name, element, shape in sized:
            self.shapes[name] = shape
            # Of strings only the number is known; no network holds any that count.
            size = helper.tensor_dtype_to_np_dtype(element).itemsize if element else 0
            self.nbytes[name] = _product(shape) * size


def _names(nodes: Sequence[Any]) -> list[str]:
    """A unique name for each node."""
    used: set[str] = set()
    names = []
    for node in nodes:
        name = node.name if node.name and node.name not in used else next(o for o in node.output if o)
        used.add(name)
        names.append(name)
    return names


def _fold(facts: _Facts, constants: set[str]) -> tuple[dict[str, int], set[int]]:
    """Constant tensors with their least bytes, and the indices of the nodes that make some of them."""
    weights = {name: facts.nbytes.get(name, 0) for name in constants}
    folded: set[int] = set()
    for index, node in enumerate(facts.nodes):
        random = node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial")
        if random or not all(name in weights for name in node.input if name):
            continue
        folded.add(index)
        sources = sum(weights[name] for name in node.input if name)
        for name in node.output:
            own = facts.nbytes.get(name, 0)
            weights[name] = min(own, sources) if node.input else own
    return weights, folded


def _count(node: Any, facts: _Facts) -> tuple[int, str]:
    """Multiply-adds of a node, and why they cannot be told."""
    count = _COUNTS.get(node.op_type)
    if node.domain not in ("", "ai.onnx"):
        return 0, f"operator {node.domain}.{node.op_type} is not ONNX's own"
    if node.op_type in NO_COUNT:
        return 0, f"operator {node.op_type} is not counted"
    if count is None:
        return 0, ""
    try:
        given = [facts.shapes[name] if name else () for name in node.input]
        return count(given, [facts.shapes[name] for name in node.output if name], node), ""
    except KeyError as error:
        return 0, f"the shape of {error.args[0]!r} depends on the data"
    except ValueError as error:
        return 0, f"operator {error} is not counted"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def read_graph(model: bytes, batch: int) -> Graph:
    """Count a graph's work for one batch size.

    A multiply-add counts as one, as in the papers' tables. Biases, activations, normalisations, sums and means
    count as none: they are bound by memory, and engines fuse them.

    Args:
        model: A whole ONNX model; its inputs' first axis is the batch.
        batch: Images per call.

    Raises:
        EnvironmentUnusable: onnx is not installed.
        UsageError: These bytes are no ONNX model, or its shapes contradict each other.
    """
    with needs("export"):
        import onnx
    expected = "expected an ONNX model whose inputs begin with the batch"
    try:
        loaded = onnx.load_from_string(model)
    except Exception as error:  # protobuf's errors share no base that is typed
        raise UsageError(f"the graph cannot be read: {_first_line(error)}; {expected}") from error
    try:
        facts = _Facts(loaded, batch)
    except onnx.shape_inference.InferenceError as error:
        raise UsageError(
            f"the graph does not fit a batch of {batch}: {_first_line(error)}; {expected}"
        ) from error
    constants = {tensor.name for tensor in loaded.graph.initializer}
    weights, folded = _fold(facts, constants)
    unknown: dict[str, str] = {}
    nodes: dict[str, Node] = {}
    for index, (node, name) in enumerate(zip(facts.nodes, _names(facts.nodes), strict=True)):
        read, written = tuple(filter(None, node.input)), tuple(filter(None, node.output))
        macs, why = (0, "") if index in folded else _count(node, facts)
        if why:
            unknown[name] = why
        still = index in folded or node.op_type in MOVES_NOTHING
        touched = () if still else (*read, *written)
        nodes[name] = Node(
            name=name,
            op=node.op_type,
            kind=kind_of_node(node, facts.shapes),
            inputs=read,
            outputs=written,
            macs=macs,
            nbytes=sum(weights.get(t, 0) or facts.nbytes.get(t, 0) for t in touched),
            folded=index in folded,
        )
    return Graph(
        nodes=nodes,
        inputs=tuple(i.name for i in loaded.graph.input if i.name not in constants),
        outputs=tuple(o.name for o in loaded.graph.output),
        weights=weights,
        tensors={name: size for name, size in facts.nbytes.items() if name not in weights},
        unknown=unknown,
    )


def _in_order_of_reading(taps: Sequence[TapRecord]) -> list[str]:
    """Backbones' names, those that others read before their readers."""
    reads = {tap.name: tap.reads for tap in taps if tap.kind == "backbone"}
    order: dict[str, None] = {}

    def visit(name: str, above: frozenset[str]) -> None:
        if name in reads and name not in order and name not in above:
            visit(reads[name], above | {name})
            order[name] = None

    for name in reads:
        visit(name, frozenset())
    return list(order)


def owners(graph: Graph, taps: Sequence[TapRecord]) -> dict[str, str]:
    """Whose each node is.

    A node belongs to the first backbone that needs it, backbones that others read before their readers: a trunk's
    nodes are the trunk's, and what several need of the same image, its normalisation for instance, is the first
    one's. What no backbone needs is the head's.

    Args:
        graph: The fp32 graph or a lowered one.
        taps: The manifest's.

    Returns:
        Node name to a backbone's name or ``head``.

    Raises:
        UsageError: A backbone's tap is no tensor of the graph.
    """
    producers = graph.producers()
    found: dict[str, str] = {}
    for backbone in _in_order_of_reading(taps):
        if backbone not in producers:
            raise UsageError(
                f"the graph has no tensor {backbone!r}, which the manifest names as a backbone's tap"
            )
        wanted = [producers[backbone]]
        while wanted:
            name = wanted.pop()
            if name not in found:
                found[name] = backbone
                wanted += [producers[t] for t in graph.nodes[name].inputs if t in producers]
    return {name: found.get(name, HEAD) for name in graph.nodes}
