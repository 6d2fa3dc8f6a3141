"""An opened OpenVINO engine: compiled models by batch size and division, and the slots that run them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from vsa_rt.contracts import Division, TensorSpec
from vsa_rt.engines.backend import OpenOptions, Tensors, check_division, check_tensor
from vsa_rt.engines.openvino_branches import Group, cut, find_branches, share_out
from vsa_rt.engines.openvino_layers import achieved
from vsa_rt.engines.openvino_slot import BoundRequest, ModelKey, OpenVinoSlot, Piece, Step, run_together
from vsa_rt.errors import EnvironmentUnusable

if TYPE_CHECKING:
    import openvino as ov

INSTALL = "pip install 'vsa-rt[openvino]'"
#: From this many bytes of weights on, an engine is compiled for two batch sizes only: each holds its own copy.
LARGE = 1 << 28
_CLOSED = "openvino: the session is closed"


@cache
def core() -> ov.Core:
    """The library's one entry.

    Raises:
        EnvironmentUnusable: It is not installed.
    """
    try:
        import openvino as ov
    except ImportError as error:
        raise EnvironmentUnusable(f"openvino cannot be imported ({error}); {INSTALL}") from error
    return ov.Core()


def buckets(count: int, only: int | None = None) -> list[int]:
    """Batch sizes that add up to ``count``, largest first: each is compiled with a fixed batch.

    Args:
        count: Images of one call.
        only: The one size to use besides 1; ``None`` for any power of two.
    """
    if only is not None:
        return [only] * (count // only) + [1] * (count % only)
    return [1 << bit for bit in reversed(range(count.bit_length())) if count >> bit & 1]


def shares(count: int, workers: int) -> list[int]:
    """Images for each of the workers, equal or one apart, larger shares first."""
    size, larger = divmod(count, workers)
    return [size + 1] * larger + [size] * (workers - larger)


class OpenVinoSession:
    """An IR, compiled once per batch size: fixed shapes run about 15 % faster than a dynamic batch.

    Where a call is divided, several requests run at the same time, none of them pinned to cores: OpenVINO pins the
    threads of every compiled model from the first core on, so that two models of one thread each would share one.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self,
        files: Sequence[bytes],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: OpenOptions,
        counters: bool = False,
    ) -> None:
        import openvino as ov

        self._counters = counters
        self.inputs, self.outputs, self.options = tuple(inputs), tuple(outputs), options
        # OpenVINO shares writable memory only.
        self._weights = np.frombuffer(files[1], np.uint8).copy()
        # The IR's constants point into these bytes: they must outlive every compiled model.
        self._source: tuple[bytes, ov.Tensor] = (files[0], ov.Tensor(self._weights, shared_memory=True))
        self._large = self._weights.nbytes >= LARGE
        self._compiled: dict[ModelKey, ov.CompiledModel] = {}
        self._groups: list[Group] | None = None
        self._lock = threading.RLock()
        self._closed = False
        self._check_tensors(self._read())
        if "branches" in options.division.values():
            check_division("openvino", options, self.divisions)
        # Once now: an engine that this machine cannot run is to be refused when it is opened, not at its first call.
        self.prepare([options.first])
        self.calls = options.streams
        self.slots = [OpenVinoSlot(self) for _ in range(options.slots)]

    def _read(self, count: int | None = None) -> ov.Model:
        """The whole graph, for batches of ``count`` or of any size.

        Raises:
            EnvironmentUnusable: The session is closed.
        """
        if self._closed:
            raise EnvironmentUnusable(_CLOSED)
        model = core().read_model(*self._source)
        if count is not None:
            model.reshape({s.name: [count, *s.shape[1:]] for s in self.inputs})
        return model

    def _check_tensors(self, model: ov.Model) -> None:
        there = {
            name: [d.get_length() if d.is_static else None for d in port.get_partial_shape()]
            for port in (*model.inputs, *model.outputs)
            for name in port.get_names()
        }
        for spec in (*self.inputs, *self.outputs):
            check_tensor("openvino", spec, there)

    # How a call is divided

    @property
    def divisions(self) -> tuple[Division, ...]:
        """See ``Session.divisions``."""
        if not self.options.divides:
            return ("threads",)
        return ("threads", "images", *(("branches",) if len(self._branches()) > 1 else ()))

    def _branches(self) -> list[Group]:
        """The groups of branches that run at the same time; looking for them reads the graph once more."""
        with self._lock:
            if self._groups is None:
                found = find_branches(self._read(1), [s.name for s in self.outputs])
                self._groups = share_out(found, self.options.threads)
            return self._groups

    def parts(self, count: int) -> list[int]:
        """The batch sizes that a call of ``count`` images is made of, where it is not divided by images."""
        return buckets(count, self.options.max_batch if self._large else None)

    def steps(self, count: int) -> list[Step]:
        """What a call of ``count`` images runs, at the same time and one after the other."""
        division = self.options.division_of(count)
        if division == "images" and count > 1:
            return self._image_steps(count)
        found: list[Step] = []
        start = 0
        for size in self.parts(count):
            found += (
                self._branch_steps(size, start)
                if division == "branches"
                else [(Piece(ModelKey(size), start),)]
            )
            start += size
        return found

    def _image_steps(self, count: int) -> list[Step]:
        """Every worker's share at the same time, in one piece unless the engine is large."""
        # A large engine's models are two, whatever the batch: their number of workers is that of the largest.
        workers = min(self.options.threads, self.options.max_batch if self._large else count)
        largest = shares(self.options.max_batch, workers)[0]
        chains: list[list[Piece]] = []
        start = 0
        for share in shares(count, min(workers, count)):
            chains.append([])
            for size in buckets(share, largest) if self._large else [share]:
                chains[-1].append(Piece(ModelKey(size, shares=workers), start))
                start += size
        return [tuple(piece for piece in step if piece is not None) for step in zip_longest(*chains)]

    def _branch_steps(self, size: int, start: int) -> list[Step]:
        """The groups of branches at the same time, then what joins them."""
        groups = self._branches()
        side_by_side = tuple(Piece(ModelKey(size, part=part), start) for part in range(len(groups)))
        if sum(len(group.taps) for group in groups) == len(self.outputs):
            return [side_by_side]
        return [side_by_side, (Piece(ModelKey(size, part=len(groups)), start),)]

    # Compiled models

    def model(self, key: ModelKey) -> ov.CompiledModel:
        """A compiled model, compiled now if it has not been.

        Raises:
            EnvironmentUnusable: The session is closed, or the library cannot compile it here.
        """
        with self._lock:
            if self._closed:
                raise EnvironmentUnusable(_CLOSED)
            if key not in self._compiled:
                self._compiled |= (
                    self._parts_of(key.batch) if key.part is not None else {key: self._whole(key)}
                )
            return self._compiled[key]

    def compiled(self, count: int) -> ov.CompiledModel:
        """The whole graph compiled for batches of exactly ``count`` images, every thread on all of them.

        Raises:
            EnvironmentUnusable: As for ``model``.
        """
        return self.model(ModelKey(count))

    def _whole(self, key: ModelKey) -> ov.CompiledModel:
        divided = key.shares > 1
        streams = key.shares if divided else self.options.streams
        return self._compile(self._read(key.batch), streams, self.options.threads, pinned=not divided)

    def _parts_of(self, count: int) -> dict[ModelKey, ov.CompiledModel]:
        """The graph cut into branches, all of its parts: each weight is in one of them."""
        groups = self._branches()
        parts = cut(self._read(count), [s.name for s in self.outputs], [group.taps for group in groups])
        # What joins them has all threads to itself.
        threads = [*(group.threads for group in groups), self.options.threads]
        return {
            ModelKey(count, part=index): self._compile(part, 1, threads[index], pinned=False)
            for index, part in enumerate(parts)
        }

    def _compile(self, model: ov.Model, streams: int, threads: int, pinned: bool) -> ov.CompiledModel:
        properties: dict[str, Any] = {
            # OpenVINO's own default on processors with bf16 is bf16. Here the graph alone says the precision.
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads,
            "PERF_COUNT": self._counters,
        }
        if not pinned:
            properties["ENABLE_CPU_PINNING"] = False
        try:
            return core().compile_model(model, "CPU", properties)
        except RuntimeError as error:
            raise EnvironmentUnusable(f"openvino cannot compile the engine: {error}") from error

    @property
    def achieved(self) -> float | None:
        """See ``Session.achieved``; of what the first batch size runs."""
        pieces = [piece for step in self.steps(self.options.first) for piece in step]
        models = dict.fromkeys(p.model for p in pieces if p.model.batch == pieces[0].model.batch)
        return achieved(self._read(), [self.model(key) for key in models])

    def prepare(self, counts: Sequence[int]) -> None:
        """Compile for these batch sizes now; see ``Session.prepare``."""
        for key in dict.fromkeys(p.model for count in counts for step in self.steps(count) for p in step):
            self.model(key)

    def bare_call(self, inputs: Tensors) -> Callable[[], None]:
        """The library's own work of one call: requests of the same compiled models, everything bound beforehand.

        Args:
            inputs: Every input, as for ``Slot.run``; they must stay as long as the call is used.
        """
        slot = OpenVinoSlot(self)
        steps = []
        for step in self.steps(len(next(iter(inputs.values())))):
            requests = [BoundRequest(slot, piece.model) for piece in step]
            for request, piece in zip(requests, step, strict=True):
                request.bind(inputs, slot.outputs, piece.start)
            steps.append(requests)

        def call() -> None:
            for requests in steps:
                run_together([request.request for request in requests])

        return call

    def close(self) -> None:
        """Free the compiled models and their memory."""
        if self._closed:
            return
        self._closed = True
        for slot in self.slots:
            slot.clear()
        self._compiled.clear()
        # Whoever still holds the session need not hold its weights.
        self._weights = np.empty(0, np.uint8)
        del self._source
