"""One place where a call can run: its streams, buffers and lanes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from vsa_rt.engines.backend import Tensors
from vsa_rt.engines.cuda.arrays import DeviceArray
from vsa_rt.engines.cuda.census import Census
from vsa_rt.engines.cuda.gate import Gate, Health
from vsa_rt.engines.cuda.lane import Lane, Place, Transfer
from vsa_rt.engines.cuda.plan import Plan
from vsa_rt.engines.cuda.seam import Context, Device, Foreign
from vsa_rt.engines.cuda.tensors import Tensor
from vsa_rt.errors import UsageError


@dataclass(frozen=True)
class Shared:
    """What the slots of a session have in common.

    Attributes:
        device: The GPU.
        plan: What never changes.
        scratch: Bytes of scratch memory that each stream of a slot needs.
        health: Whether the session can be used.
        gate: Around every capture.
        census: Of what belongs to no slot.
        spares: Contexts of ``census`` that were opened to ask them something, by bucket: the first lane of that
            bucket takes them.
        notes: Sentences for the session; as keys, since slots have the same ones.
    """

    device: Device
    plan: Plan
    scratch: Sequence[int]
    health: Health
    gate: Gate
    census: Census
    spares: dict[int, list[Context]]
    notes: dict[str, None] = field(default_factory=dict)


class CudaSlot:
    """Buffers for the largest batch, and a lane for each bucket that was used; see ``backend.DeviceSlot``.

    The outputs of ``run`` are parts of a pinned buffer: gone with the next run, and not to be touched once the session
    is closed.

    Args:
        shared: What the session's slots have in common.
        census: Keeps what is opened here.

    Raises:
        EnvironmentUnusable: There is not enough memory.
    """

    def __init__(self, shared: Shared, census: Census) -> None:
        self._shared, self._census = shared, census
        self._lock = threading.Lock()
        self._running = self._stopped = False
        self._lanes: dict[int, Lane] = {}
        self._done = census.keep("event", shared.device.event())
        self._arrays = {
            tensor.name: self._pinned(tensor) for tensor in (*shared.plan.inputs, *shared.plan.outputs)
        }
        #: Input buffers ``(max_batch, …)``; a run may zero the rows behind the last that it was given.
        self.buffers: Tensors = MappingProxyType({t.name: self._arrays[t.name] for t in shared.plan.inputs})
        self._place = self._make_place()
        self._uploads = dict(zip((t.name for t in shared.plan.inputs), self._place.uploads, strict=True))
        self._downloads = dict(zip((t.name for t in shared.plan.outputs), self._place.downloads, strict=True))
        self._results: dict[int, Tensors] = {}
        #: Of the inputs on the device, rows from ``_dirty`` up to ``_written`` hold zeros; all others, anything.
        self._dirty = self._written = 0

    def _pinned(self, tensor: Tensor) -> NDArray[Any]:
        plan = self._shared.plan
        memory = self._census.keep("pinned", self._shared.device.pinned(plan.max_batch * tensor.nbytes))
        array = memory.array(tensor.dtype, (plan.max_batch, *tensor.row))
        array[...] = 0
        return array

    def _make_place(self) -> Place:
        device, plan, keep = self._shared.device, self._shared.plan, self._census.keep
        addresses = {
            name: keep("memory", device.memory(plan.max_batch * tensor.nbytes)).address
            for name, tensor in plan.tensors.items()
        }

        def transfer(tensor: Tensor) -> Transfer:
            return Transfer(_address(self._arrays[tensor.name]), addresses[tensor.name], tensor.nbytes)

        used = [schedule for schedule, _ in plan.used]
        marked = {n for schedule in used for n, step in enumerate(schedule.steps) if step.marked}
        return Place(
            device=device,
            streams=[keep("stream", device.stream()) for _ in range(plan.streams)],
            fork=keep("event", device.event()) if any(schedule.forks for schedule in used) else None,
            marks={n: keep("event", device.event()) for n in sorted(marked)},
            addresses=addresses,
            scratch=[keep("memory", device.memory(n)) if n else None for n in self._shared.scratch],
            uploads=[transfer(tensor) for tensor in plan.inputs],
            downloads=[transfer(tensor) for tensor in plan.outputs],
        )

    # One caller at a time

    def _take(self, running: bool) -> None:
        """Have the slot, until ``_give``.

        Raises:
            UsageError: Another call is under way, or the session is closed.
            EnvironmentUnusable: The device failed before.
        """
        if not self._lock.acquire(blocking=False):
            # Two calls would write the same buffers; preparing ends by itself.
            if running and self._running:
                raise UsageError(
                    "cuda: a call of this slot is under way in another thread; a slot has one caller at a time"
                )
            self._lock.acquire()
        try:
            self._shared.health.require()
            self._shared.device.enter()
        except BaseException:
            self._lock.release()
            raise
        self._running = running

    def _give(self) -> None:
        self._running = False
        self._lock.release()

    def prepare(self, bucket: int) -> None:
        """Make the lane and the graph of a bucket now; waits for a call that is under way.

        Raises:
            UsageError: The session is closed.
            EnvironmentUnusable: The engine cannot run so many images, there is not enough memory, or the device failed.
        """
        self._take(running=False)
        try:
            self._lane(bucket, transfers=True)
        finally:
            self._give()

    def stop(self) -> None:
        """Wait for whatever is under way, and let go of the buffers. Never raises."""
        with self._lock:
            if not self._stopped:
                self._drain()
            self._stopped = True
            self._lanes.clear()
            self._results.clear()
            self._arrays.clear()
            self.buffers = MappingProxyType({})

    # Calls

    def run(self, inputs: Tensors) -> Tensors:
        """Run one batch; see ``Slot.run``.

        Raises:
            UsageError: An input is absent or has another dtype or shape, another call is under way, or the session is
                closed.
            EnvironmentUnusable: The device failed, now or before.
        """
        self._take(running=True)
        try:
            count = self._count(inputs)
            bucket = self._shared.plan.bucket_of(count)
            for name, transfer in self._uploads.items():
                array = inputs[name]
                if _address(array) != transfer.host or not array.flags.c_contiguous:
                    self._arrays[name][:count] = array
            self._pad(count, bucket)
            lane = self._lane(bucket, transfers=True)
            self._finish(lambda: lane.launch(transfers=True), count, bucket)
            return self._result(count)
        finally:
            self._give()

    def run_device(self, inputs: Mapping[str, Any], keep: bool) -> Mapping[str, Any]:
        """Run one batch of arrays that lie on the device; see ``DeviceSlot.run_device``.

        It returns once the work is done: the inputs may be written again, and any stream may read the outputs.

        Raises:
            UsageError: As for ``run``, or an input is no device array, lies on another device or is not C-contiguous.
            EnvironmentUnusable: The device failed, now or before, or it has no memory for the outputs.
        """
        self._take(running=True)
        try:
            self._check_names(inputs)
            main, look = self._place.streams[0], self._shared.device.foreign
            sources = {name: look(inputs[name], main) for name in self._uploads}
            count = self._count(sources)
            bucket = self._shared.plan.bucket_of(count)
            lane = self._lane(bucket, transfers=False)
            kept = self._new_arrays(count) if keep else {}
            high = bucket if bucket > self._written else min(bucket, self._dirty)
            try:
                self._finish(lambda: self._put(lane, sources, kept, count, high), count, bucket)
            except BaseException:
                _close(kept)
                raise
            return kept or self._result(count)
        finally:
            self._give()

    def _put(
        self,
        lane: Lane,
        sources: Mapping[str, Foreign],
        kept: Mapping[str, DeviceArray],
        count: int,
        high: int,
    ) -> None:
        """Put copies on the device, the work, and copies of its results into the main stream.

        Args:
            lane: What runs.
            sources: The inputs.
            kept: Where the outputs go; empty for the host.
            count: Rows of the inputs.
            high: The row before which others than theirs may hold something else than zeros.
        """
        main = self._place.streams[0]
        if count < high:
            self._pad(count, high)
        for name, to in self._uploads.items():
            main.copy(to.device, sources[name].address, count * to.nbytes)
            if count < high:
                start = count * to.nbytes
                main.copy(to.device + start, to.host + start, (high - count) * to.nbytes)
        lane.launch(transfers=False)
        for name, source in self._downloads.items():
            target = kept[name].address if kept else source.host
            main.copy(target, source.device, count * source.nbytes)

    # Inputs and outputs

    def _check_names(self, inputs: Mapping[str, Any]) -> None:
        if inputs.keys() != self._uploads.keys():
            raise UsageError(
                f"got the inputs {', '.join(inputs) or 'none'}; the engine takes {', '.join(self._uploads)}"
            )

    def _count(self, inputs: Mapping[str, NDArray[Any]] | Mapping[str, Foreign]) -> int:
        """How many images inputs hold.

        Raises:
            UsageError: An input is absent or foreign, has another dtype or shape, or not as many rows as the others.
        """
        self._check_names(inputs)
        count = -1
        for tensor in self._shared.plan.inputs:
            array = inputs[tensor.name]
            if tuple(array.shape[1:]) != tensor.row or array.dtype != tensor.dtype:
                raise UsageError(
                    f"tensor {tensor.name!r}: got {array.dtype} {tuple(array.shape)}; expected {tensor.dtype} "
                    f"(N, {', '.join(map(str, tensor.row))})"
                )
            if isinstance(array, Foreign) and not array.contiguous:
                raise UsageError(f"tensor {tensor.name!r}: not C-contiguous; expected a contiguous copy")
            if count not in (-1, array.shape[0]):
                raise UsageError(
                    f"tensor {tensor.name!r}: batch {array.shape[0]}, and {count} of the inputs before it; expected "
                    "the same for all"
                )
            count = array.shape[0]
        return count

    def _pad(self, start: int, end: int) -> None:
        """Zero rows of the pinned inputs: the host may have written to any of them at any time."""
        if start < end:
            for name in self._uploads:
                self._arrays[name][start:end] = 0

    def _result(self, count: int) -> Tensors:
        found = self._results.get(count)
        if found is None:
            found = MappingProxyType({name: self._arrays[name][:count] for name in self._downloads})
            self._results[count] = found
        return found

    def _new_arrays(self, count: int) -> dict[str, DeviceArray]:
        """Arrays for the outputs, with memory of their own.

        Raises:
            EnvironmentUnusable: There is not enough memory.
        """
        made: dict[str, DeviceArray] = {}
        shared = self._shared
        try:
            for tensor in shared.plan.outputs:
                memory = shared.device.memory(count * tensor.nbytes)
                made[tensor.name] = DeviceArray(
                    shared.device, shared.gate, memory, tensor.dtype, (count, *tensor.row)
                )
        except BaseException:
            _close(made)
            raise
        return made

    # Work

    def _lane(self, bucket: int, transfers: bool) -> Lane:
        """The lane of a bucket, with its graph of this kind; made now if it has not been.

        Raises:
            EnvironmentUnusable: The engine cannot run so many images, there is not enough memory, or the device failed.
        """
        lane = self._lanes.get(bucket)
        if lane is None or not lane.captured(transfers):
            with self._shared.gate:
                if lane is None:
                    lane = self._lanes[bucket] = self._new_lane(bucket)
                if reason := lane.capture(transfers):
                    form = self._shared.plan.schedules[bucket].name
                    note = f"batches of {bucket} ({form}) run without a CUDA graph, piece by piece: {reason}"
                    self._shared.notes[note] = None
        return lane

    def _new_lane(self, bucket: int) -> Lane:
        shared = self._shared
        with self._census.opening() as census:
            spares = shared.spares.pop(bucket, None)
            if spares is not None:
                spares = [census.keep("context", shared.census.hand_over(context)) for context in spares]
            lane = Lane(self._place, census, bucket, shared.plan.schedules[bucket], spares)
            # Libraries load kernels and prepare contexts in the first run, which cannot be captured.
            self._finish(lane.warm_up, bucket, bucket)
        return lane

    def _finish(self, put: Callable[[], None], count: int, bucket: int) -> None:
        """Put work into the main stream and wait for it, without the GIL and without spinning.

        Args:
            put: Does.
            count: Rows of the inputs that may be no zeros then.
            bucket: Rows that are written, with zeros behind the others.

        Raises:
            EnvironmentUnusable: The device failed; the session cannot be used any more.
        """
        before, self._dirty = self._dirty, max(self._dirty, bucket)
        try:
            put()
            self._place.streams[0].record(self._done)
            self._done.sync()
        except Exception as error:
            self._shared.health.fail(error)
            self._drain()
            raise
        except BaseException:  # an interruption: the device is well, and no work may be left under way
            if (failure := self._drain()) is not None:
                self._shared.health.fail(failure)
            raise
        self._dirty = count if before <= bucket else before
        self._written = max(self._written, bucket)

    def _drain(self) -> Exception | None:
        """Wait until nothing is under way; the first failure."""
        found = None
        for stream in self._place.streams:
            try:
                stream.sync()
            except Exception as error:  # noqa: BLE001 - the other streams have to be waited for, too
                found = found or error
        return found


def _address(array: NDArray[Any]) -> int:
    """Where an array begins; ``array.ctypes`` makes an object first."""
    address: int = array.__array_interface__["data"][0]
    return address


def _close(arrays: Mapping[str, DeviceArray]) -> None:
    for array in arrays.values():
        array.close()
