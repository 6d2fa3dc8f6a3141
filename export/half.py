"""A graph computed on the CPU with its own precision: every tensor typed float16 really is rounded to half.

CPU engines compute float16 graphs in float32, so an overflow passes them unseen. Here every node computes as a GPU
that stores halves does: it reads rounded values, accumulates in float32 inside one convolution, product, pool or
normalisation, and its result is rounded to half (nearest even; beyond 65520 it becomes inf) before anyone reads it.
Operators that compilers expand into several nodes round in between as well (``STEPWISE`` in ``kernels.py``). Tensors
typed bfloat16 are rounded to theirs, float32 ones are left as they are, and Q/DQ pairs quantise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator

from vsa_rt.errors import UsageError
from vsa_rt.export.kernels import (
    AS_GIVEN,
    FLOATS,
    NARROW,
    STEPWISE,
    Array,
    kernels_for,
    rounded,
    widened,
    writable,
)
from vsa_rt.export.skeleton import skeleton


def _inner_reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that graphs inside a node mention; they may be tensors from outside."""
    for attribute in node.attribute:
        inner = [attribute.g] if attribute.type == AttributeProto.GRAPH else list(attribute.graphs)
        for graph in inner:
            for part in graph.node:
                yield from part.input
                yield from _inner_reads(part)
            yield from (o.name for o in graph.output)


@dataclass(frozen=True)
class Watched:
    """A tensor typed float16 or bfloat16 as it came out of its node.

    Attributes:
        tensor: Its name.
        node: Name of the node that made it; empty for an input.
        op: That node's operator, or ``input``.
        largest: Largest magnitude; infinite or NaN where one value is.
        first: Whether all that the node read was finite, its weights aside.
        inside: Whether something that the node stored on its way was infinite or NaN: its result may be finite
            again, and wrong.
    """

    tensor: str
    node: str
    op: str
    largest: float
    first: bool
    inside: bool = False

    @property
    def overflowed(self) -> bool:
        """Whether a value is infinite or NaN, here or on the way here."""
        return self.inside or not math.isfinite(self.largest)


@dataclass(frozen=True)
class Overflow:
    """Where a value first left the range: what the node read was finite; what it made, or stored on the way, is not.

    Attributes:
        tensor: What the node made, or the input.
        node: Its name; empty for an input.
        op: Its operator, or ``input``.
    """

    tensor: str
    node: str
    op: str


@dataclass(frozen=True)
class _Step:
    """One node, ready to run.

    Attributes:
        reads: Its inputs, and tensors that graphs inside it read.
        drops: Tensors that no later node reads.
        widens: Whether it computes in float32 what is stored narrower.
        notes: Not empty after a run in which an intermediate result was not finite.
    """

    node: onnx.NodeProto
    evaluator: ReferenceEvaluator
    reads: list[str]
    drops: list[str]
    widens: bool
    notes: list[str]


class HalfExecutor:
    """Runs a graph node by node, each result rounded to the type that the graph gives it.

    Args:
        graph: A valid graph, or its bytes; functions are inlined.

    Raises:
        UsageError: It holds an operator that is not ONNX's.
    """

    def __init__(self, graph: bytes | onnx.ModelProto) -> None:
        model = onnx.load_from_string(graph) if isinstance(graph, bytes) else graph
        if model.functions:
            model = inline_local_functions(model)
        inferred = onnx.shape_inference.infer_shapes(skeleton(model)).graph
        values = (*inferred.value_info, *inferred.input, *inferred.output)
        self._types = {v.name: v.type.tensor_type.elem_type for v in values}
        self._types |= {t.name: t.data_type for t in model.graph.initializer}
        self._weights = {t.name: writable(numpy_helper.to_array(t)) for t in model.graph.initializer}
        self._inputs = [i.name for i in model.graph.input if i.name not in self._weights]
        self._outputs = [o.name for o in model.graph.output]
        self._steps = self._prepare(model)

    def _prepare(self, model: onnx.ModelProto) -> list[_Step]:
        steps: list[_Step] = []
        needed = {*self._outputs, *self._weights}
        for node in reversed(model.graph.node):
            inner = list(_inner_reads(node))
            reads = [n for n in dict.fromkeys((*node.input, *inner)) if n]
            drops = [n for n in (*reads, *node.output) if n not in needed]
            needed.update(reads)
            widens = not inner and node.op_type not in AS_GIVEN and node.op_type not in STEPWISE
            notes: list[str] = []
            evaluator = self._evaluator(model, node, widens, notes)
            steps.append(_Step(node, evaluator, reads, drops, widens, notes))
        return steps[::-1]

    def _evaluator(
        self, model: onnx.ModelProto, node: onnx.NodeProto, widens: bool, notes: list[str]
    ) -> ReferenceEvaluator:
        def value(name: str) -> onnx.ValueInfoProto:
            kind = self._types.get(name) or TensorProto.FLOAT
            narrow = kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16)
            return helper.make_tensor_value_info(name, TensorProto.FLOAT if widens and narrow else kind, None)

        inputs, outputs = ([value(n) for n in names if n] for names in (node.input, node.output))
        alone = helper.make_model(
            helper.make_graph([node], "node", inputs, outputs), opset_imports=model.opset_import
        )
        try:
            return ReferenceEvaluator(alone, new_ops=kernels_for(node, notes))
        except (NotImplementedError, RuntimeError) as error:
            reason = str(error).strip()
            raise UsageError(f"node {node.name!r} ({node.op_type}) cannot be computed: {reason}") from error

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The graph's outputs; what overflows is inf or NaN in them, nothing is raised for it.

        Args:
            inputs: By name, in the graph's types.

        Raises:
            UsageError: An input is missing, unknown or of another type.
        """
        return self._run(inputs, None)

    def watch(self, inputs: Mapping[str, Array]) -> list[Watched]:
        """Every tensor typed float16 or bfloat16 that the nodes made, in the graph's order.

        An input is in the list only where one of its values is infinite or NaN. A weight never is: an infinite bound
        does no harm, and the node that makes infinities of an infinite weight is the first.

        Args:
            inputs: By name, in the graph's types.

        Raises:
            UsageError: An input is missing, unknown or of another type.
        """
        return self.run_watched(inputs)[1]

    def run_watched(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], list[Watched]]:
        """What ``run`` and ``watch`` give, in one run."""
        watched: list[Watched] = []
        return self._run(inputs, watched), watched

    def overflows(self, inputs: Mapping[str, Array]) -> list[Overflow]:
        """Where values leave the range first; what only passes an infinity on is not listed.

        Args:
            inputs: By name, in the graph's types.

        Raises:
            UsageError: An input is missing, unknown or of another type.
        """
        return [Overflow(w.tensor, w.node, w.op) for w in self.watch(inputs) if w.overflowed and w.first]

    def _checked(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if inputs.keys() != set(self._inputs):
            raise UsageError(f"inputs {sorted(inputs)} were given; the graph has {sorted(self._inputs)}")
        for name, array in inputs.items():
            wanted = helper.tensor_dtype_to_np_dtype(self._types[name])
            if array.dtype != wanted:
                raise UsageError(f"input {name!r} is {array.dtype}; the graph takes {wanted}")
        return dict(inputs)

    def _run(self, inputs: Mapping[str, Array], watched: list[Watched] | None) -> dict[str, Array]:
        known = self._weights | self._checked(inputs)
        spoilt: set[str] = set()
        if watched is not None:
            for name, array in inputs.items():
                largest = _largest(array)
                if not math.isfinite(largest):
                    spoilt.add(name)
                    if array.dtype in NARROW:
                        watched.append(Watched(name, "", "input", largest, True))
        # Overflows are what is looked for, not something to warn of.
        with np.errstate(all="ignore"), warnings.catch_warnings(), torch.inference_mode():
            # onnx's own kernels of rare operators warn of means over nothing but NaN.
            warnings.simplefilter("ignore", RuntimeWarning)
            for step in self._steps:
                made = self._made(step, known)
                if watched is not None:
                    _watch(step, made, spoilt, watched)
                known.update(made)
                for name in step.drops:
                    known.pop(name, None)
        return {name: known[name] for name in self._outputs}

    def _made(self, step: _Step, known: Mapping[str, Array]) -> dict[str, Array]:
        """What a node makes, in the types that the graph gives."""
        step.notes.clear()
        feeds = {name: known[name] for name in step.reads if name in known}
        narrow = next((a.dtype for a in feeds.values() if a.dtype in NARROW), None)
        if step.widens:
            feeds = {name: widened(array) for name, array in feeds.items()}
        found = {}
        names = [n for n in step.node.output if n]
        for name, array in zip(names, step.evaluator.run(names, feeds), strict=True):
            wanted = FLOATS.get(self._types.get(name, 0), narrow if step.widens else None)
            floating = array.dtype in FLOATS.values()
            found[name] = rounded(array, wanted) if floating and wanted is not None else array
        return found


def _largest(array: Array) -> float:
    """The largest magnitude, NaN if one value is; 0 for what holds no floats."""
    if array.dtype not in FLOATS.values() or not array.size:
        return 0.0
    return float(np.abs(widened(array)).max())


def _watch(step: _Step, made: Mapping[str, Array], spoilt: set[str], watched: list[Watched]) -> None:
    """Note what a node made; ``spoilt`` holds the names of tensors that are not finite."""
    first = not spoilt.intersection(step.reads)
    for name, array in made.items():
        largest = _largest(array)
        if not math.isfinite(largest):
            spoilt.add(name)
        if array.dtype in NARROW:
            watched.append(Watched(name, step.node.name, step.node.op_type, largest, first, bool(step.notes)))
