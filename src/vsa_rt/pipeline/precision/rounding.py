"""A lowered graph run with real rounding, photograph by photograph: what overflows, and which nodes do it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from vsa_rt.errors import needs
from vsa_rt.pipeline.precision.proof import OverflowRecord

if TYPE_CHECKING:
    import onnx


#: What lowering puts between the nodes of a graph.
_BORDERS = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})


class Rounding:
    """Runs a graph whose tensors are rounded to their own types, and keeps what it saw.

    Args:
        graph: A lowered graph.
        images: What to call the photographs, in the order in which they will come.
        progress: Told of each of them.

    Attributes:
        overflows: Tensor to where its values left the range first.
        spoilt: Those of the tensors that are themselves not finite, not only a step on the way to them.
        tensors: How many tensors typed float16 or bfloat16 one photograph has.
        largest: The largest magnitude among them, infinite where one is not a number.
        tensor: Which one that was.
    """

    def __init__(
        self, graph: onnx.ModelProto, images: Iterable[str], progress: Callable[[str], None]
    ) -> None:
        with needs("export"):
            from vsa_rt.export.half import HalfExecutor
        self._executor = HalfExecutor(graph)
        self._images, self._progress = iter(images), progress
        self.overflows: dict[str, OverflowRecord] = {}
        self.spoilt: set[str] = set()
        self.tensors, self.largest, self.tensor = 0, 0.0, ""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Every output of one photograph, ``(1, width)`` by name."""
        image = next(self._images)
        self._progress(image)
        outputs, watched = self._executor.run_watched(inputs)
        self.tensors = max(self.tensors, len(watched))
        for seen in watched:
            largest = seen.largest if math.isfinite(seen.largest) else math.inf
            if largest > self.largest:
                self.largest, self.tensor = largest, seen.tensor
            if seen.overflowed and seen.first:
                if not math.isfinite(seen.largest):
                    self.spoilt.add(seen.tensor)
                record = OverflowRecord(tensor=seen.tensor, node=seen.node, op=seen.op, image=image)
                self.overflows.setdefault(seen.tensor, record)
        return outputs


def guilty_nodes(graph: onnx.ModelProto, rounding: Rounding, lowered: Collection[str]) -> list[str]:
    """The nodes that have to stay in fp32 so that what overflowed is no half: what made it, and what reads it.

    Where only a step inside a node overflowed, that node alone. A cast, or what quantises, is no node of the FP32
    graph: whoever reads it is named.

    Args:
        graph: The lowered graph.
        rounding: What was seen.
        lowered: Names of the nodes that may be put back.

    Returns:
        Names, in the graph's order.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def readers_of(tensor: str) -> Iterator[str]:
        for node in readers.get(tensor, []):
            if node.name in lowered:
                yield node.name
            elif node.op_type in _BORDERS:
                for name in node.output:
                    yield from readers_of(name)

    found = {record.node for record in rounding.overflows.values()}
    for tensor in rounding.spoilt:
        found.update(readers_of(tensor))
    return [n.name for n in graph.graph.node if n.name in found and n.name in lowered]
