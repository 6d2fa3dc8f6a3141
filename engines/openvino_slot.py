"""Where a call of an OpenVINO engine runs: infer requests bound to host memory, and what runs at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from numpy.typing import NDArray

from vsa_rt.engines.backend import Tensors, allocate
from vsa_rt.engines.openvino_branches import SEAM

if TYPE_CHECKING:
    import openvino as ov

    from vsa_rt.engines.openvino_session import OpenVinoSession


class ModelKey(NamedTuple):
    """Which compiled model.

    Attributes:
        batch: Images of one request.
        shares: Of a call's images that it runs at the same time, each on its part of the threads; 1 where a call is
            not divided by images.
        part: Number of the part that it is of the graph cut into branches; ``None`` for the whole graph.
    """

    batch: int
    shares: int = 1
    part: int | None = None


class Piece(NamedTuple):
    """One request of a call: a compiled model on the images from ``start`` on."""

    model: ModelKey
    start: int


#: Pieces that run at the same time. A call is its steps, one after the other.
Step = tuple[Piece, ...]


class BoundRequest:
    """An infer request, bound to rows of host memory."""

    def __init__(self, slot: OpenVinoSlot, key: ModelKey) -> None:
        compiled = slot.session.model(key)
        self.request = compiled.create_infer_request()
        self._count = key.batch
        ports = {name: port for port in (*compiled.inputs, *compiled.outputs) for name in port.get_names()}
        self._reads = [name for name in ports if name in slot.buffers]
        self._keeps = [name for name in ports if name in slot.outputs]
        for name, port in ports.items():
            if name.startswith(SEAM):
                self.request.set_tensor(name, slot.seam(key.batch, name, port))
        #: Tensor name to the address that the request reads or writes, and whose it is.
        self._bound: dict[str, tuple[int, NDArray[Any]]] = {}
        self._start = -1

    def bind(self, inputs: Tensors, outputs: Tensors, start: int) -> None:
        """Point the request at rows of host arrays.

        Args:
            inputs: The caller's; any arrays.
            outputs: The slot's own, which never move.
            start: The first row.
        """
        if start != self._start:
            for name in self._keeps:
                self._point(name, outputs[name], start)
            self._start = start
        for name in self._reads:
            self._point(name, inputs[name], start)

    def _point(self, name: str, array: NDArray[Any], start: int) -> None:
        """Setting a tensor costs 30 microseconds, so only if it moved."""
        import openvino as ov

        rows = array[start : start + self._count]
        address = rows.ctypes.data
        if name not in self._bound or self._bound[name][0] != address:
            self.request.set_tensor(name, ov.Tensor(rows, shared_memory=True))
            # The request keeps no reference: the array stays here, so that a bound address is never freed.
            self._bound[name] = (address, rows)


def run_together(requests: Sequence[ov.InferRequest]) -> None:
    """Run requests at the same time; whatever happens to one, all have ended afterwards.

    Raises:
        RuntimeError: The first one's that failed.
    """
    started, failures = 0, []
    try:
        for request in requests:
            request.start_async()
            started += 1
    finally:
        for request in requests[:started]:
            try:
                request.wait()
            except RuntimeError as error:
                failures.append(error)
    if failures:
        raise failures[0]


class OpenVinoSlot:
    """Infer requests, all on the slot's own buffers."""

    def __init__(self, session: OpenVinoSession) -> None:
        self.session = session
        #: Compiled model, and which of several requests to it in one step.
        self._requests: dict[tuple[ModelKey, int], BoundRequest] = {}
        #: Batch size to the steps of a call: requests, and the row that each begins with.
        self._calls: dict[int, list[list[tuple[BoundRequest, int]]]] = {}
        self._seams: dict[tuple[int, str], ov.Tensor] = {}
        self.buffers = allocate(session.inputs, session.options.max_batch)
        self.outputs = allocate(session.outputs, session.options.max_batch)

    def seam(self, count: int, name: str, port: ov.ConstOutput) -> ov.Tensor:
        """Where one part of a batch size writes, and another reads, what is no tap."""
        import openvino as ov

        if (count, name) not in self._seams:
            self._seams[count, name] = ov.Tensor(port.get_element_type(), port.get_shape())
        return self._seams[count, name]

    def _request(self, key: ModelKey, lane: int) -> BoundRequest:
        if (key, lane) not in self._requests:
            self._requests[key, lane] = BoundRequest(self, key)
        return self._requests[key, lane]

    def _steps(self, count: int) -> list[list[tuple[BoundRequest, int]]]:
        if count not in self._calls:
            self._calls[count] = [
                [(self._request(piece.model, lane), piece.start) for lane, piece in enumerate(step)]
                for step in self.session.steps(count)
            ]
        return self._calls[count]

    def run(self, inputs: Tensors) -> Tensors:
        """Run one batch; see ``Slot.run``."""
        count = len(next(iter(inputs.values())))
        for step in self._steps(count):
            for request, start in step:
                request.bind(inputs, self.outputs, start)
            run_together([request.request for request, _ in step])
        return {name: buffer[:count] for name, buffer in self.outputs.items()}

    def counters(self, count: int) -> list[Any]:
        """OpenVINO's counters of the last call's part of this batch size, on the whole graph."""
        return list(self._requests[ModelKey(count), 0].request.profiling_info)

    def clear(self) -> None:
        """Free the requests and let go of what they were bound to."""
        self._calls.clear()
        self._requests.clear()
        self._seams.clear()
