"""A stream without its two ends: the threads that prepare items, and those that send batches to the engine."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, Generic

from numpy.typing import NDArray

from vsa_rt.engines.backend import Slot, Tensors
from vsa_rt.errors import ItemError
from vsa_rt.runtime.batch import T, Take, image_of, internal_error, no_numbers
from vsa_rt.runtime.line import Clock, Entry, Failure, Line, Options
from vsa_rt.runtime.mutex import Mutex
from vsa_rt.runtime.preprocess import Preprocessor
from vsa_rt.runtime.slots import Slots
from vsa_rt.runtime.watch import Depths, TimedPreprocessor, Watch

#: How long closing waits for a source that is just being read. A camera of one frame a second or more is let go of
#: before its owner can release it; nothing can interrupt one that stays silent.
GRACE_S = 1.0


class Flow(Generic[T]):
    """Works on a line of items: somebody puts them in while there is room, and gets results out.

    Between them, the runtime's host threads prepare items, each in memory of its own, and threads of the flow, one for
    each slot, wait until a batch is due, take a slot, copy the batch into it and run it. Who has to wait for the engine
    adds, once it is free, what became ready meanwhile.

    Args:
        slots: The runtime's.
        hosts: The runtime's threads that decode.
        preprocessor: The runtime's.
        take: Makes values of outputs.
        options: Batch and deadline.
        watch: Counts, if there is one.
        clock: Measures deadlines.

    Attributes:
        line: The items under way.
    """

    def __init__(
        self,
        slots: Slots,
        hosts: Executor,
        preprocessor: Preprocessor,
        take: Take[T],
        options: Options,
        watch: Watch | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._slots, self._hosts, self._take, self._options = slots, hosts, take, options
        self._watch = watch or Watch()
        self._preprocessor = TimedPreprocessor(preprocessor, watch) if watch else preprocessor
        limit = (len(slots) + 1) * options.batch
        self.line: Line[T] = Line(options, limit, self._watch, clock or Clock())
        #: Rows of items that are in a batch, for other items.
        self._spare: list[dict[str, NDArray[Any]]] = []
        self._workers: list[threading.Thread] = []
        self._feeder: threading.Thread | None = None
        self._ended: list[threading.Thread] = []

    # Beginning and end

    def start(self, source: Iterator[Any] | None = None) -> None:
        """Start the threads.

        Args:
            source: Read by a thread of its own; without it, the caller puts items in.

        Raises:
            UsageError: The runtime is closed.
        """
        self._slots.attach(self)
        self._watch.follow(self)
        # The threads are daemons, so that a silent camera keeps no interpreter alive; none may be left in the engine.
        atexit.register(self.close)
        for number in range(len(self._slots)):
            worker = threading.Thread(target=self._work, name=f"vsa-stream-{number}", daemon=True)
            worker.start()
            self._workers.append(worker)
        if source is not None:
            feeder = threading.Thread(
                target=self._feed, args=(source,), name="vsa-stream-source", daemon=True
            )
            feeder.start()
            self._feeder = feeder

    def stop(self, reason: BaseException | None = None) -> None:
        """Begin nothing more; see ``Line.stop``."""
        self.line.stop(reason)
        self._slots.wake()

    def close(self) -> None:
        """Stop and wait for the threads, at most ``GRACE_S`` for one that is reading the source."""
        self.stop()
        # The garbage collector closes in any thread: not to wait for itself, nor for one that waits for a lock of its.
        if not Mutex.held():
            me = threading.current_thread()
            for worker in self._workers:
                if worker is not me:
                    worker.join()
            if self._feeder is not None and self._feeder is not me:
                self._feeder.join(GRACE_S)
        self._slots.detach(self)
        self._watch.leave(self)
        atexit.unregister(self.close)

    @property
    def sending(self) -> bool:
        """Whether a thread that sends batches is still there."""
        return len(self._ended) < len(self._workers)

    def depths(self) -> Depths:
        """Items under way, by where they are."""
        return self.line.depths()

    def _has_stopped(self) -> bool:
        return self.line.stopped

    # Taking and preparing

    def _feed(self, source: Iterator[Any]) -> None:
        while self.line.wait_for_room():
            try:
                item = next(source)
            except StopIteration:
                self.line.end()
                return
            except BaseException as error:  # noqa: BLE001 - handed to the reader, in its place
                self.line.end(error)
                return
            self.put(item)
            del item  # not to be kept for as long as the source is silent

    def put(self, source: Any) -> None:
        """Take one item, which the caller found room for; a flow that stopped drops it."""
        entry = self.line.enter(source)
        if entry is None:
            return
        try:
            self._hosts.submit(self._prepare, entry)
        except RuntimeError:  # the pool is shut down: the runtime was closed meanwhile
            self.stop()

    def _prepare(self, entry: Entry[T]) -> None:
        """In a host thread: decode and resize an item into memory of its own."""
        error = None if self.line.stopped else self._write(entry)
        if error is not None:
            self._keep(entry)
        self.line.prepared(entry, error)

    def _write(self, entry: Entry[T]) -> ItemError | None:
        try:
            entry.rows = self._new_rows()
            self._preprocessor.write(image_of(entry.source), entry.rows, item=entry.name)
        except ItemError as error:
            # Without the traceback: its frames hold the item's bytes for as long as somebody keeps the error.
            return error.with_traceback(None)
        except BaseException as error:  # noqa: BLE001 - of whatever kind: nobody waits for ever
            return internal_error(entry.source, entry.index, error)
        return None

    def _new_rows(self) -> dict[str, NDArray[Any]]:
        try:
            return self._spare.pop()
        except IndexError:  # never more than there are items under way
            return self._slots.new_rows()

    def _keep(self, entry: Entry[T]) -> None:
        """Keep an item's memory for another one."""
        if entry.rows:
            self._spare.append(entry.rows)
            entry.rows = {}

    # Sending

    def _work(self) -> None:
        try:
            while self.line.wait_for_work():
                slot = self._slots.take(self._has_stopped)
                try:
                    self._call(slot)
                finally:
                    self._slots.give(slot)
        except BaseException as error:  # noqa: BLE001 - handed to the reader
            self.stop(error)
        finally:
            self._ended.append(threading.current_thread())
            self.line.tell()

    def _call(self, slot: Slot) -> None:
        batch = self.line.claim()
        if not batch:  # another thread has it
            return
        self._load(slot, batch, 0)
        with self._slots.call(self._has_stopped):
            first = len(batch)
            batch += self.line.join(first)
            self._load(slot, batch[first:], first)
            outputs = self._run(slot, len(batch))
        self.line.answer(batch, self._values(outputs, batch))

    def _values(
        self, outputs: Tensors | Failure, batch: Sequence[Entry[T]]
    ) -> Sequence[T | ItemError | Failure]:
        if not isinstance(outputs, Failure):
            try:
                found = self._take(outputs, len(batch))
                return [v or no_numbers(e.name) for e, v in zip(batch, found, strict=True)]
            except Exception as error:  # noqa: BLE001 - handed to the reader, in these items' place
                outputs = Failure(error)
        return [outputs] * len(batch)

    def _load(self, slot: Slot, batch: Sequence[Entry[T]], start: int) -> None:
        """Copy items into a slot's rows."""
        for row, entry in enumerate(batch, start):
            for name, buffer in slot.buffers.items():
                buffer[row] = entry.rows[name]
            self._keep(entry)

    def _run(self, slot: Slot, count: int) -> Tensors | Failure:
        size = self._options.batch if self._options.pad else count
        inputs = {name: buffer[:size] for name, buffer in slot.buffers.items()}
        for rows in inputs.values():
            rows[count:] = 0
        self._watch.called(count, size - count)
        try:
            with self._watch.timed("engine"):
                return slot.run(inputs)
        except Exception as error:  # noqa: BLE001 - handed to the reader, in these items' place
            return Failure(error)
