"""An engine opened on a GPU: slots whose whole work is one CUDA graph for each batch size."""

from __future__ import annotations

from collections.abc import Sequence

from vsa_rt.contracts import Division, TensorSpec
from vsa_rt.engines.backend import OpenOptions
from vsa_rt.engines.cuda.census import KINDS, Census
from vsa_rt.engines.cuda.gate import Gate, Health
from vsa_rt.engines.cuda.lane import open_contexts
from vsa_rt.engines.cuda.plan import plan_of
from vsa_rt.engines.cuda.seam import Context, Device, Form
from vsa_rt.engines.cuda.slot import CudaSlot, Shared
from vsa_rt.errors import UsageError


class CudaSession:
    """Slots that run beside each other; see ``backend.Session``.

    Every slot has streams, buffers and contexts of its own. A batch runs as the next larger of ``plan.buckets``, padded
    with zeros. What a bucket needs is made at its first call, or by ``prepare``: it runs once piece by piece, and then
    everything, from the copies of the inputs to those of the outputs, is captured into one graph, launched for every
    batch. Scratch memory is one block for each stream of a slot, made at once as large as the largest batch needs it,
    since what is captured never moves; all buckets of the slot share it, because they never run together.

    Args:
        device: The GPU.
        forms: Ways to compute the graph. Their engines are the session's from here on, also if this raises.
        inputs: What the manifest says the graph takes.
        outputs: What it says the graph gives.
        options: Largest batch, slots, and the form for each batch size. Threads, streams and ``first`` have no say.

    Attributes:
        slots: Where calls run.
        calls: As many calls may run at the same time.
        achieved: Unknown: TensorRT does not tell what share of the work ran in which precision.

    Raises:
        EnvironmentUnusable: The engines are not what the specs say, they cannot be divided as asked, or there is not
            enough memory.
    """

    achieved: float | None = None

    def __init__(
        self,
        device: Device,
        forms: Sequence[Form],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        options: OpenOptions,
    ) -> None:
        self._device, self._census, self._health = device, Census(), Health()
        self.slots: list[CudaSlot] = []
        engines = {id(stage.engine): stage.engine for form in forms for stage in form.stages}
        for engine in engines.values():
            self._census.keep("engine", engine)
        try:
            device.enter()
            self._plan = plan_of(forms, inputs, outputs, options)
            self._drop([form for form in forms if form.name not in self._plan.largest])
            spares: dict[int, list[Context]] = {}
            self._shared = Shared(
                device, self._plan, self._ask(spares), self._health, Gate(device), self._census, spares
            )
            for _ in range(max(1, options.slots)):
                with self._census.opening() as census:
                    self.slots.append(CudaSlot(self._shared, census))
        except BaseException:
            self._health.closed = True
            self._census.close()
            raise
        self.calls = len(self.slots)

    def _drop(self, unused: Sequence[Form]) -> None:
        """Close the engines of forms that no batch size uses: their weights would lie on the device for nothing."""
        used = {id(step.stage.engine) for schedule, _ in self._plan.used for step in schedule.steps}
        dropped = {id(stage.engine): stage.engine for form in unused for stage in form.stages}
        for key, engine in dropped.items():
            if key not in used:
                engine.close()
                self._census.hand_over(engine)

    def _ask(self, spares: dict[int, list[Context]]) -> list[int]:
        """Open contexts for the largest batches, and ask them for what scratch memory each stream needs.

        Args:
            spares: Takes the contexts by bucket.
        """
        sizes = [0] * self._plan.streams
        for schedule, bucket in self._plan.used:
            spares[bucket] = open_contexts(self._census, schedule, bucket)
            for step, context in zip(schedule.steps, spares[bucket], strict=True):
                sizes[step.stream] = max(sizes[step.stream], context.scratch)
        return sizes

    @property
    def divisions(self) -> tuple[Division, ...]:
        """The forms that the engine has, ``merged`` first; see ``Session.divisions``."""
        return self._plan.divisions

    @property
    def notes(self) -> list[str]:
        """What is not as it should be, in sentences: what runs without a graph and why, what could not be freed."""
        return list(self._shared.notes)

    def open_resources(self) -> dict[str, int]:
        """Kind to how many are open; arrays that were kept on the device are their owners'."""
        return dict.fromkeys(KINDS, 0) | self._census.counts()

    def prepare(self, counts: Sequence[int]) -> None:
        """Make what these batch sizes need now, in every slot; see ``Session.prepare``.

        Raises:
            UsageError: The engine has no such batch, or the session is closed.
            EnvironmentUnusable: The engine cannot run so many images, there is not enough memory, or the device failed.
        """
        self._health.require()
        for bucket in sorted({self._plan.bucket_of(count) for count in counts}):
            for slot in self.slots:
                slot.prepare(bucket)

    def close(self) -> None:
        """Free everything, also of a device that failed; a second time does nothing.

        Raises:
            UsageError: The process was forked after the engine was opened: nothing here is its own.
        """
        try:
            self._device.enter()
        except UsageError:
            raise
        except Exception as error:  # noqa: BLE001 - a device that failed is freed as far as it goes
            self._health.fail(error)
        self._health.closed = True
        for slot in self.slots:
            slot.stop()
        for failure in self._census.close():
            self._shared.notes[f"could not be freed: {failure}"] = None
