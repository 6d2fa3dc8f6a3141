"""Floors on paper: the least time that a graph can take on a GPU, by what its maker publishes of it.

No figure of this module is a measurement. Nodes are put together into kernels by the rule of ``kernels``, and a kernel
takes at least the longer of its multiply-adds at the device's throughput and its bytes at the memory's (the roofline of
Williams, Waterman and Patterson 2009). The floor is the sum over kernels, since one follows the other on a stream and
what bounds one does not help another: the maximum over the whole graph would let a layer that waits for memory compute
another's products meanwhile. Where branches run on streams of their own that does happen, and the floor of such a form
is the larger of ``compute_ms`` and ``memory_ms`` alone.

Weights are read once per call. Of a tensor between two kernels only what does not fit the last-level cache is written
and read: the rest may never reach the memory. Two things can undercut such a floor. Where the cache holds all weights of
a small network they may stay there from one call to the next; ``cached`` says where. And an engine that ran a batch
image by image could keep in the cache what a kernel over the whole batch cannot; TensorRT's kernels take the batch.

What the host does is left out: it is not on paper. Copies and launches are told apart from the floor, which they do not
enter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from vsa_rt.bench.cost import Graph, Node
from vsa_rt.bench.gpu_devices import Device
from vsa_rt.bench.layer_kinds import MOVES_NOTHING
from vsa_rt.bench.records.limits import PaperFloor
from vsa_rt.errors import UsageError

#: Bytes of a value, for float32's four in the graph that is counted.
_BYTES: Mapping[str, int] = {"fp16": 2, "int8": 1}
_FP32 = 4
#: One launch of a CUDA graph and each of its nodes, in microseconds of the host: NVIDIA Technical Blog, Constant Time
#: Launch for Straight-Line CUDA Graphs (2024): CUDA 12.6, RTX 3060, Xeon Silver 4208, from ten nodes on.
GRAPH_US, GRAPH_NODE_US = 2.5, 0.001
#: What a kernel takes beyond its own 2.9 us in a graph (3.4) and in a stream (3.8): NVIDIA Technical Blog, Getting
#: Started with CUDA Graphs (2019): CUDA 10.1, V100, 20 kernels in a row.
GRAPH_GAP_US, STREAM_GAP_US = 0.5, 0.9
#: Kinds of layer that a kernel before them computes on the way out, where the values are one to one.
_FOLLOWS = frozenset({"activation", "elementwise", "convert"})
#: Words of those kinds that need a whole row at once.
_WHOLE_ROWS = frozenset({"Softmax", "LogSoftmax"})
#: What is written in place: no kernel of its own. TensorRT lets the producers of a concatenation write into it.
_VIEWS = MOVES_NOTHING | {"Concat"}
#: What reads as much as it gives, however large what it reads from is.
_LOOKS_UP = frozenset({"Slice", "Gather", "GatherElements", "GatherND", "Split"})
_QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear"})
#: What gives numbers about a tensor that are known before any value is.
_SHAPES = frozenset({"Shape", "Size"})


@dataclass
class Kernel:
    """Nodes that one launch computes.

    Attributes:
        nodes: Their names, in the graph's order.
        macs: Multiply-adds.
        weights: Constants that it is the first to read.
        reads: Tensors of other kernels, or of the graph's inputs, to the most bytes of them that it reads.
        writes: What others read of it, or the graph gives.
    """

    nodes: list[str]
    macs: int = 0
    weights: set[str] = field(default_factory=set)
    reads: dict[str, int] = field(default_factory=dict)
    writes: set[str] = field(default_factory=set)


class _Grouping:
    """Puts nodes into kernels, one after the other in the graph's order."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.kernels: list[Kernel] = []
        #: Tensors that are known before any value is.
        self._known = set(graph.weights)
        #: Views to the tensors whose bytes they are.
        self._sources: dict[str, tuple[str, ...]] = {}
        #: Tensor to the place of the kernel that makes it.
        self._made_by: dict[str, int] = {}
        self._read: set[str] = set()

    def _resolve(self, tensor: str) -> tuple[str, ...]:
        return self._sources.get(tensor, (tensor,))

    def add(self, node: Node) -> None:
        """Put a node into a kernel, or see that it needs none."""
        if node.folded or (node.inputs and self._known.issuperset(node.inputs)) or node.op in _SHAPES:
            self._known.update(node.outputs)
        elif node.op in _VIEWS:
            # A view's other inputs say its shape.
            given = node.inputs if node.op == "Concat" else node.inputs[:1]
            sources = [s for name in given if name not in self._known for s in self._resolve(name)]
            for name in node.outputs:
                self._sources[name] = tuple(dict.fromkeys(sources))
        else:
            self._put(node)

    def _joins(self, node: Node) -> int | None:
        """The kernel that computes a node on its way out; ``None`` if it begins one of its own.

        Only the last of the kernels that make its inputs can: the others are done before that one has begun. What it
        passes on must be one to one: a value that is spread over a larger tensor is needed by all of that tensor.
        """
        one_to_one = node.kind in _FOLLOWS and node.op not in _WHOLE_ROWS
        if not (one_to_one or node.op == "BatchNormalization"):
            return None
        makers: dict[int, list[str]] = {}
        for name in node.inputs:
            if name not in self._known:
                for source in self._resolve(name):
                    makers.setdefault(self._made_by.get(source, -1), []).append(name)
        last = max(makers, default=-1)
        if last < 0:
            return None
        size = self._graph.tensors.get
        whole = [
            name
            for name in makers[last]
            if len(self._resolve(name)) == 1
            and (node.kind == "convert" or size(name, 0) == size(node.outputs[0], -1))
        ]
        return last if whole else None

    def _put(self, node: Node) -> None:
        place = self._joins(node)
        if place is None:
            place = len(self.kernels)
            self.kernels.append(Kernel([]))
        kernel = self.kernels[place]
        kernel.nodes.append(node.name)
        kernel.macs += node.macs
        made = sum(self._graph.tensors.get(name, 0) for name in node.outputs)
        for name in node.inputs:
            if name in self._known:
                # What is known of shapes alone weighs nothing.
                kernel.weights |= {name} & self._graph.weights.keys() - self._read
                self._read.add(name)
                continue
            for source in self._resolve(name):
                if self._made_by.get(source) == place:
                    continue
                size = self._graph.tensors.get(source, 0)
                read = min(size, made) if node.op in _LOOKS_UP else size
                kernel.reads[source] = max(kernel.reads.get(source, 0), read)
        for name in node.outputs:
            self._made_by[name] = place

    def finish(self) -> list[Kernel]:
        """Say what has to be written, once every reader is known."""
        wanted = {source for kernel in self.kernels for source in kernel.reads}
        wanted |= {source for name in self._graph.outputs for source in self._resolve(name)}
        for name in wanted & self._made_by.keys():
            self.kernels[self._made_by[name]].writes.add(name)
        return self.kernels


def kernels(graph: Graph) -> list[Kernel]:
    """Put a graph's nodes into kernels as an engine would at best.

    A convolution, a product, a recurrent cell, a pool, a reduction and whatever else is not named here is one kernel.
    Activations, elementwise arithmetic, BatchNorms and casts go into the last kernel that makes one of their inputs,
    if they take it value by value, the other operand of a residual sum included; else they begin a kernel. Views and
    concatenations need none, nor does what is known before any value is: constants and shapes. TensorRT's layer fusion
    catalogue has these patterns. Not counted on: several convolutions of one input as one kernel. A convolution that is
    computed in several kernels, and a recurrent cell with one for every step, take more.

    Args:
        graph: Of any precision.

    Returns:
        In an order in which each comes after those whose tensors it reads.
    """
    grouping = _Grouping(graph)
    for node in graph.nodes.values():
        grouping.add(node)
    return grouping.finish()


@dataclass(frozen=True)
class KernelTime:
    """The least that one kernel takes.

    Attributes:
        kernel: Its nodes.
        nbytes: That it moves to and from the memory.
        compute_ms: Of its multiply-adds.
        memory_ms: Of its bytes.
    """

    kernel: Kernel
    nbytes: int
    compute_ms: float
    memory_ms: float

    @property
    def least_ms(self) -> float:
        """The longer of both."""
        return max(self.compute_ms, self.memory_ms)


def _tops(graph: Graph, device: Device, precision: str) -> float:
    """The device's throughput, if this graph can be held against it."""
    quantised = next((n.name for n in graph.nodes.values() if n.op in _QUANTISED), None)
    if quantised is not None:
        raise UsageError(
            f"node {quantised!r}: the graph is quantised; a floor on paper is counted from the FP32 graph, "
            "whose float tensors it takes for those of the precision"
        )
    if precision not in _BYTES or precision not in device.tops:
        known = [p for p in _BYTES if p in device.tops]
        raise UsageError(
            f"{device.name}: no published throughput in {precision!r}; there are {', '.join(known)}"
        )
    return device.tops[precision]


def _weights_nbytes(graph: Graph, names: Iterable[str], precision: str) -> int:
    return sum(graph.weights[name] for name in names) * _BYTES[precision] // _FP32


def moved(graph: Graph, kernel: Kernel, precision: str, cache: int = 0) -> int:
    """The bytes that a kernel moves to and from the memory.

    Args:
        graph: As ``kernel_times`` takes it.
        kernel: One of its.
        precision: ``fp16`` or ``int8``.
        cache: Bytes of a tensor between kernels that never reach the memory; 0 for all that kernels read and write.
    """
    ends = {*graph.inputs, *graph.outputs}
    passed = [*kernel.reads.items(), *((name, graph.tensors.get(name, 0)) for name in kernel.writes)]
    sizes = [size if name in ends else size * _BYTES[precision] // _FP32 for name, size in passed]
    return _weights_nbytes(graph, kernel.weights, precision) + sum(max(0, size - cache) for size in sizes)


def kernel_times(graph: Graph, device: Device, precision: str) -> list[KernelTime]:
    """The least time of every kernel.

    Args:
        graph: The FP32 graph, counted for a batch. Its float tensors and weights are taken for those of the precision;
            what it takes and gives keeps its type.
        device: Which.
        precision: ``fp16`` or ``int8``, for every node.

    Raises:
        UsageError: The device has no throughput in that precision, or the graph is a quantised one.
    """
    tops = _tops(graph, device, precision)
    times = []
    for kernel in kernels(graph):
        nbytes = moved(graph, kernel, precision, device.cache)
        # 10^12 operations per second are 10^9 per millisecond, 10^9 bytes per second 10^6.
        compute, memory = 2 * kernel.macs / tops / 1e9, nbytes / device.bandwidth / 1e6
        times.append(KernelTime(kernel, nbytes, compute, memory))
    return times


def launch_us(nodes: int) -> float:
    """What launching a captured graph of so many kernels and copies adds, on other GPUs than those of the table.

    Microseconds: ``GRAPH_US`` and ``GRAPH_NODE_US`` per node on the host, ``GRAPH_GAP_US`` per node on the device.
    """
    return GRAPH_US + nodes * (GRAPH_NODE_US + GRAPH_GAP_US)


def copy_ms(device: Device, nbytes: int) -> float:
    """The least time to bring so many bytes to or from the device, in milliseconds.

    Over the link at its published rate; where host and device share the memory a copy reads and writes it.
    """
    if device.link is None:
        return 2 * nbytes / device.bandwidth / 1e6
    return nbytes / device.link / 1e6


def floor(graph: Graph, device: Device, precision: str) -> PaperFloor:
    """The least time of a whole graph on a device, on paper.

    Args:
        graph: As ``kernel_times`` takes it.
        device: Which.
        precision: ``fp16`` or ``int8``.

    Raises:
        UsageError: As ``kernel_times``.
    """
    times = kernel_times(graph, device, precision)
    compute, memory = sum(t.compute_ms for t in times), sum(t.memory_ms for t in times)
    taken, given = (sum(graph.tensors.get(n, 0) for n in names) for names in (graph.inputs, graph.outputs))
    weights = _weights_nbytes(graph, {w for t in times for w in t.kernel.weights}, precision)
    nodes = len(times) + len(graph.inputs) + len(graph.outputs)
    return PaperFloor(
        device=device.name,
        precision=precision,
        macs=sum(t.kernel.macs for t in times),
        nbytes=sum(t.nbytes for t in times),
        kernels=len(times),
        compute_ms=compute,
        memory_ms=memory,
        floor_ms=sum(t.least_ms for t in times),
        bound="compute" if compute >= memory else "memory",
        cached=weights <= device.cache,
        taken_nbytes=taken,
        given_nbytes=given,
        copy_ms=copy_ms(device, taken) + copy_ms(device, given),
        launch_us=launch_us(nodes) if device.graphs else None,
    )


def part_times(times: Sequence[KernelTime], parts: Mapping[str, str]) -> dict[str, list[KernelTime]]:
    """Kernels by part: a kernel is its first node's.

    Args:
        times: Of the whole graph.
        parts: Node to a backbone's name or ``head`` (``cost.owners``).
    """
    found: dict[str, list[KernelTime]] = {}
    for time in times:
        found.setdefault(parts[time.kernel.nodes[0]], []).append(time)
    return found
