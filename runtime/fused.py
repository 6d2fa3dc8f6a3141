"""The runtime: images in, sentiments out, one engine call per batch."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from vsa_rt.contracts import Resample, Sentiment, TensorSpec
from vsa_rt.engines.backend import DeviceSlot, Tensors
from vsa_rt.engines.select import Opened, input_specs
from vsa_rt.errors import ItemError, UsageError
from vsa_rt.manifest import Manifest
from vsa_rt.runtime.batch import Batch, T, Take, as_items
from vsa_rt.runtime.flow import Flow
from vsa_rt.runtime.futures import joined
from vsa_rt.runtime.preprocess import Preprocessor
from vsa_rt.runtime.sentiment import Labeller
from vsa_rt.runtime.slots import CLOSED, Slots
from vsa_rt.runtime.stream import read, read_async, stream_options

if TYPE_CHECKING:
    from typing_extensions import Self

    from vsa_rt.runtime.batch import Source
    from vsa_rt.runtime.watch import Watch

_READY_ONLY = (
    "this bundle was built from a graph without a recipe and takes ready tensors only: call rt.infer, or build it "
    "with --recipe"
)
_NO_LABELS = "this bundle has no labels: call rt.features"

#: CUDA's device type (DLPack, ``DLDeviceType.kDLCUDA``).
_DLPACK_CUDA = 2


class Features(dict[str, NDArray[np.float32]]):
    """Tap name to ``(N, D)``; the rows of items that failed are NaN.

    Attributes:
        errors: One entry per item, ``None`` where it went well.
    """

    def __init__(self, taps: Mapping[str, NDArray[np.float32]], errors: list[ItemError | None]) -> None:
        super().__init__(taps)
        self.errors = errors


class Runtime:
    """An opened bundle: ``rt(images)``, ``rt.map(images)``, ``rt.stream(items)``, ``rt.features(images)``,
    ``rt.infer(tensors)``.

    Any number of threads may call it. Results never share memory with the engine.

    Args:
        manifest: The bundle's.
        choice: The opened engine, with one slot per batch that may be under way.
        resample: ``exact`` or ``fast``.
        batch: Images per engine call when many are passed.

    Attributes:
        manifest: The bundle's.
        session: The opened engine.
        choice: Which engine runs, why, and why the others do not.
        labels: In the order of the scores.
        resample: How the host resizes.
        preprocessor: Makes graph inputs of images; ``None`` where the graph takes other tensors too.
        labeller: Makes sentiments of scores.
    """

    def __init__(
        self,
        manifest: Manifest,
        choice: Opened,
        resample: Resample,
        batch: int,
    ) -> None:
        self.manifest, self.choice, self.resample = manifest, choice, resample
        self.session = choice.session
        self.labels = list(manifest.labels)
        self._batch = batch
        self._closed = False
        self.labeller = Labeller(self.labels, manifest.task, manifest.threshold, manifest.scores_kind)
        specs = {i.name: i.resize for i in manifest.inputs if i.resize is not None}
        rows = {i.name: tuple(i.shape) for i in manifest.inputs if i.rows}
        whole = len(specs) + len(rows) == len(manifest.inputs)
        self.preprocessor = Preprocessor(specs, resample, rows) if whole else None
        self._inputs = input_specs(manifest)
        self._slots = Slots(self.session.slots, self.session.calls)
        self._hosts = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="vsa-host")
        self._runners = ThreadPoolExecutor(self.session.calls, thread_name_prefix="vsa-engine")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish what is under way and free the engine. Calls after that are refused."""
        if self._closed:
            return
        self._closed = True
        self._slots.refuse()
        self._hosts.shutdown()
        self._runners.shutdown()
        self._slots.wait_for_all()
        self.session.close()

    def __call__(self, images: Iterable[Source] | Source) -> list[Sentiment | ItemError]:
        """Sentiments of images, in order.

        Args:
            images: Paths, encoded bytes, PIL images, uint8 arrays ``(H, W, 3)`` in RGB and frames (whatever has
                such ``pixels``), mixed; or one of them. Where the graph takes ready tensors too, an ``Item`` has
                them beside its image, and a path in files beside it (``photo.jpg.objects.npy``).

        Returns:
            One ``Sentiment`` or ``ItemError`` per image.

        Raises:
            UsageError: The bundle has features only.
        """
        return list(self.map(as_items(images)))

    def map(self, images: Iterable[Source]) -> Iterator[Sentiment | ItemError]:
        """Sentiments of a stream of images, in order, with a bounded number of them under way."""
        return self._stream(as_items(images), self._sentiments())

    def submit(self, images: Iterable[Source] | Source) -> Future[list[Sentiment | ItemError]]:
        """The same as a call, without waiting for it.

        Decoding, resizing and the engine go on in threads of the runtime. While as many batches are under way as the
        engine has slots, this waits for one of them.

        Args:
            images: As for a call.

        Returns:
            A future of one ``Sentiment`` or ``ItemError`` per image, in order. It cannot be cancelled.

        Raises:
            UsageError: The bundle has features only, or the runtime is closed.
        """
        self._slots.require_open()
        self._require_preprocessor()
        source, take = iter(enumerate(as_items(images))), self._sentiments()
        parts = []
        while chunk := list(itertools.islice(source, self._batch)):
            parts.append(self._send(chunk, take))
        return joined(parts)

    @overload
    def stream(
        self,
        items: AsyncIterable[Source],
        *,
        max_latency_ms: float = ...,
        max_batch: int | None = ...,
        pad: bool = ...,
        watch: Watch | None = ...,
    ) -> AsyncGenerator[Sentiment | ItemError, None]: ...

    @overload
    def stream(
        self,
        items: Iterable[Source],
        *,
        max_latency_ms: float = ...,
        max_batch: int | None = ...,
        pad: bool = ...,
        watch: Watch | None = ...,
    ) -> Generator[Sentiment | ItemError, None, None]: ...

    def stream(
        self,
        items: Iterable[Source] | AsyncIterable[Source],
        *,
        max_latency_ms: float = 50.0,
        max_batch: int | None = None,
        pad: bool = False,
        watch: Watch | None = None,
    ) -> Generator[Sentiment | ItemError, None, None] | AsyncGenerator[Sentiment | ItemError, None]:
        """Sentiments of items as they come, in order, in batches made under a deadline.

        A thread of its own takes items from their source, ahead of the engine; of an asynchronous source, a task of
        the running event loop. At most ``slots + 1`` batches of items are under way, results that nobody has read yet
        among them, and no more than two for each core wait to be decoded: a consumer that stops reading stops the
        source. Closing the generator, or leaving its loop, ends its threads, but for one inside a source that stays
        silent: that ends with the source's next item. The source itself is not closed.

        Args:
            items: What a call takes, from any iterable or asynchronous iterable.
            max_latency_ms: A batch goes when it is full, when nothing can join it any more, or when its oldest item
                was taken so long ago; while the engine is busy, what comes in joins the next batch. Infinite: full
                batches only.
            max_batch: Items of one engine call; by default as the runtime was loaded.
            pad: Give every engine call exactly ``max_batch`` rows, zeros behind the last item. Engines may compute
                other last bits for another batch size: this way, a result does not depend on what came with it.
            watch: Counts items, batches, depths and seconds.

        Returns:
            A generator, asynchronous if the items are, of one ``Sentiment`` or ``ItemError`` per item, as soon as it
            and those before it are done. What the source or the engine raises comes in its place and ends it; a
            runtime that is closed meanwhile ends it with ``UsageError``.

        Raises:
            UsageError: An option is out of its range, the bundle has features only, or the runtime is closed.
        """
        self._slots.require_open()
        take, preprocessor = self._sentiments(), self._require_preprocessor()
        options = stream_options(max_latency_ms, max_batch, self._batch, self.manifest.max_batch, pad)
        flow = Flow(self._slots, self._hosts, preprocessor, take, options, watch)
        if isinstance(items, AsyncIterable):
            asynchronous = read_async(flow, items)
            return asynchronous
        results = read(flow, as_items(items))
        return results

    def _sentiments(self) -> Take[Sentiment]:
        """What makes sentiments of a call's outputs."""
        if not self.labels:
            raise UsageError(_READY_ONLY if self.preprocessor is None else _NO_LABELS)

        def take(outputs: Tensors, count: int) -> list[Sentiment | None]:
            views = outputs["views"][:count] if self.manifest.views.count > 1 else None
            return self.labeller(outputs["scores"][:count], views)

        return take

    def features(self, images: Iterable[Source] | Source) -> Features:
        """Every tap of images.

        Args:
            images: As for a call.

        Returns:
            Tap name to ``(N, D)`` float32, NaN rows for failed items, whose errors stand beside them.
        """
        names = [t.name for t in self.manifest.taps]
        rows: list[Any] = list(
            self._stream(
                as_items(images),
                lambda outputs, count: [{n: outputs[n][row].copy() for n in names} for row in range(count)],
            )
        )
        taps = {t.name: np.full((len(rows), t.width), np.nan, np.float32) for t in self.manifest.taps}
        for index, row in enumerate(rows):
            if not isinstance(row, ItemError):
                for name in names:
                    taps[name][index] = row[name]
        return Features(taps, [row if isinstance(row, ItemError) else None for row in rows])

    def infer(self, tensors: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
        """One engine call on ready tensors: no decode, no resize, no labels.

        Args:
            tensors: Every graph input, C-contiguous ``(N, H, W, 3)`` uint8 (as ``manifest.inputs`` says), with
                N of 1 to the bundle's max-batch. With an engine on a GPU, arrays on that GPU as well (of PyTorch,
                CuPy, PyCUDA: whatever has ``__cuda_array_interface__`` or ``__dlpack__``), which are not copied to
                the host.

        Returns:
            Tap name to ``(N, D)`` float32.

        Raises:
            UsageError: A tensor is absent, or has another dtype, shape or layout, or lies elsewhere.
        """
        self._slots.require_open()
        if any(_on_device(array) for array in tensors.values()):
            return dict(self._run_device(tensors, keep=False))
        count = self._check_tensors(tensors)
        # Backends share writable memory only.
        ready = {s.name: a if (a := tensors[s.name]).flags.writeable else a.copy() for s in self._inputs}
        slot = self._slots.take()
        try:
            with self._slots.call():
                outputs = slot.run(ready)
            return {name: value[:count].copy() for name, value in outputs.items()}
        finally:
            self._slots.give(slot)

    def infer_on_device(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The same with arrays on the engine's GPU, and leave the results there.

        Args:
            tensors: Every graph input, as for ``infer``.

        Returns:
            Tap name to an array ``(N, D)`` float32 on the device, with ``__cuda_array_interface__`` and
            ``to_host()``; its memory is its own.

        Raises:
            UsageError: As for ``infer``, or the engine does not run on a GPU.
        """
        self._slots.require_open()
        return dict(self._run_device(tensors, keep=True))

    def _run_device(self, tensors: Mapping[str, Any], keep: bool) -> Mapping[str, Any]:
        self._check_names(tensors)
        slot = self._slots.take()
        try:
            if not isinstance(slot, DeviceSlot):
                raise UsageError(
                    f"tensors on a GPU: the engine {self.choice.engine.target} {self.choice.engine.precision} takes "
                    "arrays of the host only; copy them, or load a bundle with an engine for that GPU"
                )
            with self._slots.call():
                outputs = slot.run_device(tensors, keep)
                return outputs if keep else {name: np.array(value) for name, value in outputs.items()}
        finally:
            self._slots.give(slot)

    def prepare(self, *counts: int) -> None:
        """Make ready for these batch sizes now: compile, or capture a graph. Otherwise it is done at the first call."""
        self.session.prepare(counts)

    def _check_names(self, tensors: Mapping[str, Any]) -> None:
        foreign = sorted(set(tensors) - {s.name for s in self._inputs})
        if foreign:
            known = ", ".join(s.name for s in self._inputs)
            raise UsageError(f"no input {foreign[0]!r}; the graph takes {known}")

    def _check_tensors(self, tensors: Mapping[str, NDArray[Any]]) -> int:
        count = 0
        self._check_names(tensors)
        for spec in self._inputs:
            array = tensors.get(spec.name)
            if not isinstance(array, np.ndarray):
                got = "nothing" if array is None else type(array).__name__
                raise UsageError(
                    f"tensor {spec.name!r}: got {got}; expected a numpy array {_shape_text(spec)}"
                )
            if array.shape[1:] != spec.shape[1:] or array.dtype != spec.dtype or not array.flags.c_contiguous:
                raise UsageError(
                    f"tensor {spec.name!r}: got {array.dtype} {array.shape}"
                    f"{'' if array.flags.c_contiguous else ', not C-contiguous'}; expected {_shape_text(spec)}"
                )
            count = count or len(array)
            if not 1 <= len(array) <= self.manifest.max_batch or len(array) != count:
                raise UsageError(
                    f"tensor {spec.name!r}: batch {len(array)}; expected 1 to {self.manifest.max_batch}, the same for all"
                )
        return count

    def _stream(self, images: Iterable[Source], take: Take[T]) -> Iterator[T | ItemError]:
        self._slots.require_open()
        self._require_preprocessor()
        source = iter(enumerate(images))
        under_way: deque[Future[list[T | ItemError]]] = deque()
        size = self._batch
        while chunk := list(itertools.islice(source, size)):
            if len(chunk) == 1 < size and not under_way:
                # The only image: two thread switches would be a noticeable part of the call.
                yield from self._run_here(chunk, take)
                return
            while len(under_way) >= len(self.session.slots):
                yield from under_way.popleft().result()
            under_way.append(self._send(chunk, take))
        while under_way:
            yield from under_way.popleft().result()

    def _run_here(self, chunk: list[tuple[int, Any]], take: Take[T]) -> list[T | ItemError]:
        preprocessor = self._require_preprocessor()
        batch = Batch(self._slots.take(), chunk)
        try:
            for row in range(len(chunk)):
                try:
                    batch.prepare(row, preprocessor)
                except Exception as error:  # noqa: BLE001 - of whatever kind, but an interrupt is the caller's
                    batch.failed(row, error)
            with self._slots.call():
                return batch.run(take)
        finally:
            self._slots.give(batch.slot)

    def _require_preprocessor(self) -> Preprocessor:
        if self.preprocessor is None:
            raise UsageError(_READY_ONLY)
        return self.preprocessor

    def _send(self, chunk: list[tuple[int, Any]], take: Take[T]) -> Future[list[T | ItemError]]:
        """Hand a batch to the host threads; the one that prepares the last item hands it to the engine."""
        batch = Batch(self._slots.take(), chunk)
        done: Future[list[T | ItemError]] = Future()

        def run() -> None:
            try:
                with self._slots.call():
                    values = batch.run(take)
            except BaseException as error:  # noqa: BLE001 - handed to the caller through the future
                self._slots.give(batch.slot)
                done.set_exception(error)
            else:
                self._slots.give(batch.slot)
                done.set_result(values)

        def prepare(row: int) -> None:
            try:
                batch.prepare(row, self._require_preprocessor())
            except BaseException as error:  # noqa: BLE001 - of whatever kind: nobody waits for ever
                batch.failed(row, error)
            if batch.arrived():
                submit(self._runners, run)

        def submit(pool: ThreadPoolExecutor, work: Callable[..., None], *arguments: int) -> None:
            try:
                pool.submit(work, *arguments)
            except RuntimeError:  # the pool is shut down: the runtime was closed meanwhile
                if not done.done():
                    self._slots.give(batch.slot)
                    done.set_exception(UsageError(CLOSED))

        for row in range(len(chunk)):
            submit(self._hosts, prepare, row)
        return done


def _on_device(array: Any) -> bool:
    """Whether an array lies on a GPU; what numpy can read does not."""
    if isinstance(array, np.ndarray):
        return False
    if hasattr(array, "__cuda_array_interface__"):
        return True
    where = getattr(array, "__dlpack_device__", None)
    return where is not None and int(where()[0]) == _DLPACK_CUDA


def _shape_text(spec: TensorSpec) -> str:
    return f"{spec.dtype} ({', '.join('N' if n is None else str(n) for n in spec.shape)})"
