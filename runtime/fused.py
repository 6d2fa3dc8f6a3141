"""The runtime: images in, sentiments out, one engine call per batch."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vsa_rt.contracts import Item, Resample, Sentiment, TensorSpec
from vsa_rt.engines.backend import Slot, Tensors
from vsa_rt.engines.select import Opened, input_specs
from vsa_rt.errors import ItemError, UsageError
from vsa_rt.manifest import Manifest
from vsa_rt.runtime.preprocess import Preprocessor
from vsa_rt.runtime.sentiment import Labeller

if TYPE_CHECKING:
    from typing_extensions import Self

    from vsa_rt.runtime.decode import ImageSource

T = TypeVar("T")
#: Turns a call's outputs and its number of rows into one value per row; ``None`` where it holds no numbers.
Take = Callable[[Tensors, int], "Sequence[T | None]"]


_READY_ONLY = (
    "this bundle was built from a graph without a recipe and takes ready tensors only: call rt.infer, or build it "
    "with --recipe"
)
_NO_LABELS = "this bundle has no labels: call rt.features"
_CLOSED = "the runtime is closed; open the bundle again with vsa_rt.load"


class Features(dict[str, NDArray[np.float32]]):
    """Tap name to ``(N, D)``; the rows of items that failed are NaN.

    Attributes:
        errors: One entry per item, ``None`` where it went well.
    """

    def __init__(self, taps: Mapping[str, NDArray[np.float32]], errors: list[ItemError | None]) -> None:
        super().__init__(taps)
        self.errors = errors


def item_name(source: ImageSource | Item, index: int) -> str:
    """What to call an item in messages: its path, or its number."""
    source = source.image if isinstance(source, Item) else source
    return str(source) if isinstance(source, str | os.PathLike) else f"item {index}"


def as_items(images: object) -> Iterable[Any]:
    """One image is a list of one: a path is not a sequence of letters, nor a picture one of rows."""
    single = isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Image.Image | Item)
    if single or (isinstance(images, np.ndarray) and images.ndim == 3):
        return [images]
    if not isinstance(images, Iterable):
        raise UsageError(
            f"expected images, got {type(images).__name__}; pass a list of paths, bytes or arrays"
        )
    return images


class _Batch:
    """Up to max-batch items on their way through one slot."""

    def __init__(self, slot: Slot, items: list[tuple[int, Any]]) -> None:
        self.slot, self.items = slot, items
        self.errors: list[ItemError | None] = [None] * len(items)
        self._left = len(items)
        self._lock = threading.Lock()

    def prepare(self, row: int, preprocessor: Preprocessor) -> None:
        """Decode and resize one item straight into the slot's buffers."""
        index, source = self.items[row]
        rows = {name: buffer[row] for name, buffer in self.slot.buffers.items()}
        try:
            preprocessor.write(source, rows, item=item_name(source, index))
        except ItemError as error:
            self.errors[row] = error

    def failed(self, row: int, error: BaseException) -> None:
        """Make a fault of ours this item's error: the others still get their answers."""
        index, source = self.items[row]
        self.errors[row] = ItemError(item_name(source, index), f"internal error: {error!r}")

    def arrived(self) -> bool:
        """Count one item as prepared; true for the last one."""
        with self._lock:
            self._left -= 1
            return self._left == 0

    def run(self, take: Take[T]) -> list[T | ItemError]:
        """Run the engine on the prepared rows, unless every item failed."""
        count = len(self.items)
        if all(self.errors):
            return [e for e in self.errors if e is not None]
        values = take(self.slot.run({n: b[:count] for n, b in self.slot.buffers.items()}), count)
        return [
            error
            or value
            or ItemError(item_name(source, index), "the engine gave scores that are not numbers")
            for error, value, (index, source) in zip(self.errors, values, self.items, strict=True)
        ]


class Runtime:
    """An opened bundle: ``rt(images)``, ``rt.map(images)``, ``rt.features(images)``, ``rt.infer(tensors)``.

    Any number of threads may call it. Results never share memory with the engine.

    Args:
        manifest: The bundle's.
        choice: The opened engine, with one slot per batch that may be under way.
        streams: Engine calls that may run at the same time.
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
        streams: int,
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
        # Last in, first out: the slot used last is warm in the caches, and its request is bound already.
        self._free: queue.LifoQueue[Slot] = queue.LifoQueue()
        for slot in reversed(self.session.slots):
            self._free.put(slot)
        self._streams = threading.Semaphore(streams)
        self._hosts = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="vsa-host")
        self._runners = ThreadPoolExecutor(streams, thread_name_prefix="vsa-engine")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish what is under way and free the engine. Calls after that are refused."""
        if self._closed:
            return
        self._closed = True
        self._hosts.shutdown()
        self._runners.shutdown()
        for _ in self.session.slots:  # whoever still runs a call gives its slot back first
            self._free.get()
        self.session.close()

    def __call__(
        self, images: Iterable[ImageSource | Item] | ImageSource | Item
    ) -> list[Sentiment | ItemError]:
        """Sentiments of images, in order.

        Args:
            images: Paths, encoded bytes, PIL images and uint8 arrays ``(H, W, 3)`` in RGB, mixed; or one of
                them. Where the graph takes ready tensors too, an ``Item`` has them beside its image, and a
                path in files beside it (``photo.jpg.objects.npy``).

        Returns:
            One ``Sentiment`` or ``ItemError`` per image.

        Raises:
            UsageError: The bundle has features only.
        """
        return list(self.map(as_items(images)))

    def map(self, images: Iterable[ImageSource | Item]) -> Iterator[Sentiment | ItemError]:
        """Sentiments of a stream of images, in order, with a bounded number of them under way."""
        if not self.labels:
            raise UsageError(_READY_ONLY if self.preprocessor is None else _NO_LABELS)

        def label(outputs: Tensors, count: int) -> list[Sentiment | None]:
            views = outputs["views"][:count] if self.manifest.views.count > 1 else None
            return self.labeller(outputs["scores"][:count], views)

        return self._stream(as_items(images), label)

    def features(self, images: Iterable[ImageSource | Item] | ImageSource | Item) -> Features:
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

    def infer(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """One engine call on ready tensors: no decode, no resize, no labels.

        Args:
            tensors: Every graph input, C-contiguous ``(N, H, W, 3)`` uint8 (as ``manifest.inputs`` says), with
                N of 1 to the bundle's max-batch.

        Returns:
            Tap name to ``(N, D)`` float32.

        Raises:
            UsageError: A tensor is absent, or has another dtype, shape or layout.
        """
        self._require_open()
        count = self._check_tensors(tensors)
        # Backends share writable memory only.
        ready = {s.name: a if (a := tensors[s.name]).flags.writeable else a.copy() for s in self._inputs}
        slot = self._take_slot()
        try:
            with self._streams:
                outputs = slot.run(ready)
            return {name: value[:count].copy() for name, value in outputs.items()}
        finally:
            self._free.put(slot)

    def prepare(self, *counts: int) -> None:
        """Compile for these batch sizes now. Otherwise each is compiled at its first call (about 0.3 s)."""
        self.session.prepare(counts)

    def _check_tensors(self, tensors: Mapping[str, NDArray[Any]]) -> int:
        count = 0
        foreign = sorted(set(tensors) - {s.name for s in self._inputs})
        if foreign:
            known = ", ".join(s.name for s in self._inputs)
            raise UsageError(f"no input {foreign[0]!r}; the graph takes {known}")
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

    def _require_open(self) -> None:
        if self._closed:
            raise UsageError(_CLOSED)

    def _take_slot(self) -> Slot:
        """Wait for a slot; a runtime that is closed meanwhile hands out none."""
        while True:
            self._require_open()
            with contextlib.suppress(queue.Empty):
                return self._free.get(timeout=0.1)

    def _stream(self, images: Iterable[ImageSource | Item], take: Take[T]) -> Iterator[T | ItemError]:
        self._require_open()
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
        batch = _Batch(self._take_slot(), chunk)
        try:
            for row in range(len(chunk)):
                try:
                    batch.prepare(row, preprocessor)
                except Exception as error:  # noqa: BLE001 - of whatever kind, but an interrupt is the caller's
                    batch.failed(row, error)
            with self._streams:
                return batch.run(take)
        finally:
            self._free.put(batch.slot)

    def _require_preprocessor(self) -> Preprocessor:
        if self.preprocessor is None:
            raise UsageError(_READY_ONLY)
        return self.preprocessor

    def _send(self, chunk: list[tuple[int, Any]], take: Take[T]) -> Future[list[T | ItemError]]:
        """Hand a batch to the host threads; the one that prepares the last item hands it to the engine."""
        batch = _Batch(self._take_slot(), chunk)
        done: Future[list[T | ItemError]] = Future()

        def run() -> None:
            try:
                with self._streams:
                    values = batch.run(take)
            except BaseException as error:  # noqa: BLE001 - handed to the caller through the future
                self._free.put(batch.slot)
                done.set_exception(error)
            else:
                self._free.put(batch.slot)
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
                    self._free.put(batch.slot)
                    done.set_exception(UsageError(_CLOSED))

        for row in range(len(chunk)):
            submit(self._hosts, prepare, row)
        return done


def _shape_text(spec: TensorSpec) -> str:
    return f"{spec.dtype} ({', '.join('N' if n is None else str(n) for n in spec.shape)})"
