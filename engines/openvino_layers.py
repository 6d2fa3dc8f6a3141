"""What OpenVINO computed: layers with their times, and the precisions that convolutions ran in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vsa_rt.engines.backend import RawLayer, Tensors

if TYPE_CHECKING:
    import openvino as ov

    from vsa_rt.engines.openvino_session import OpenVinoSession

#: OpenVINO's words for element types.
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "uint8"}
#: What OpenVINO appends to a node's name when it takes the node apart.
_PARTS = ("/WithoutBiases", "_original")


def _told(info: Any, key: str) -> str:
    return str(info[key].astype(str)) if key in info else ""


def _node_names(info: Any) -> Iterator[str]:
    """The nodes that a layer of the runtime model was made of."""
    for name in _told(info, "originalLayersNames").split(","):
        if name:
            yield name
            for part in _PARTS:
                if name.endswith(part):
                    yield name.removesuffix(part)


def _layers(compiled: ov.CompiledModel) -> dict[str, RawLayer]:
    """The layers of a compiled model, without times."""
    found: dict[str, RawLayer] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        info, name = node.get_rt_info(), str(node.get_friendly_name())
        nodes = tuple(dict.fromkeys(_node_names(info)))
        feeds: tuple[str, ...] = ()
        if not nodes:  # a reorder, say: it belongs to whoever reads it
            readers = (port.get_node() for out in node.outputs() for port in out.get_target_inputs())
            feeds = tuple(dict.fromkeys(n for reader in readers for n in _node_names(reader.get_rt_info())))
        precision = _told(info, "runtimePrecision").lower()
        found[name] = RawLayer(
            name, nodes, _told(info, "layerType"), _PRECISIONS.get(precision, precision), 0.0, feeds
        )
    return found


#: Between a convolution and what quantised its operand.
_DEQUANTISING = frozenset({"Convert", "Subtract", "Multiply", "Reshape", "Transpose"})
_BYTES = frozenset({"i8", "u8"})


def _is_quantised(operand: ov.Output) -> bool:
    """Whether an operand comes out of a quantiser, or is weights of 8 bits, both brought back to floats."""
    node = operand.get_node()
    while node.get_type_name() in _DEQUANTISING:
        node = node.input_value(0).get_node()
    kind = node.get_type_name()
    return kind == "FakeQuantize" or (kind == "Constant" and _type(node.output(0)) in _BYTES)


def _type(port: ov.Output) -> str:
    return str(port.get_element_type().get_type_name())


def _asked(model: ov.Model) -> Counter[str]:
    """How many convolutions a graph wants in each precision: int8 between quantisers, else the type it is written in."""
    found: Counter[str] = Counter()
    for node in model.get_ops():
        if node.get_type_name() in ("Convolution", "GroupConvolution"):
            quantised = all(_is_quantised(node.input_value(i)) for i in (0, 1))
            word = "i8" if quantised else _type(node.output(0))
            found[_PRECISIONS.get(word, word)] += 1
    return found


def _ran(compiled: ov.CompiledModel) -> Counter[str]:
    """How many convolutions run in each precision; those of 8 bits are int8, with a sign or without."""
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        if "Convolution" in _told(info, "layerType"):
            word = _told(info, "runtimePrecision").lower()
            found["int8" if word in _BYTES else _PRECISIONS.get(word, word)] += 1
    return found


def achieved(model: ov.Model, parts: Iterable[ov.CompiledModel]) -> float | None:
    """Share of the convolutions that run in the precision that the graph asks for.

    Args:
        model: The graph as it was read.
        parts: What it was compiled into, of one batch size: the whole, or every part once.

    Returns:
        0 to 1; ``None`` without convolutions. They are counted by precision and not followed one by one: the library
        takes them apart and fuses them.
    """
    ran: Counter[str] = sum((_ran(part) for part in parts), Counter())
    return (_asked(model) & ran).total() / ran.total() if ran else None


class OpenVinoProfiler:
    """A session whose compiled models count, and sums of what they counted."""

    source = "OpenVINO's performance counters"

    def __init__(self, session: OpenVinoSession) -> None:
        self._session = session
        self._parts: Counter[int] = Counter()
        self._sums: dict[str, float] = {}
        self._layers: dict[str, RawLayer] = {}
        self._known: set[int] = set()
        self._calls = 0

    def run(self, inputs: Tensors) -> None:
        """Run one batch; see ``Profiler.run``."""
        self._session.slots[0].run(inputs)
        self._parts = Counter(self._session.parts(len(next(iter(inputs.values())))))

    def collect(self) -> None:
        """Add the last call's counters.

        Of parts of the same batch size in one call, the last one's counters are left: they stand for all of them.
        """
        self._calls += 1
        for part, times in self._parts.items():
            if part not in self._known:
                self._known.add(part)
                self._layers |= _layers(self._session.compiled(part))
            for counter in self._session.slots[0].counters(part):
                if counter.status == counter.Status.EXECUTED:
                    spent = times * counter.real_time.total_seconds() * 1e3
                    self._sums[counter.node_name] = self._sums.get(counter.node_name, 0.0) + spent

    def finish(self) -> list[RawLayer]:
        """Free the session; see ``Profiler.finish``."""
        self._session.close()
        layers = []
        for name, spent in self._sums.items():
            known = self._layers.get(name, RawLayer(name, (), "", "", 0.0))
            layers.append(replace(known, ms=spent / self._calls))
        return layers
