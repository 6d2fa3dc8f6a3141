"""An engine that says what it was asked, a clock that stands still, and a source that a test feeds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.contracts import ResizeSpec
from vsa_rt.engines.backend import Tensors
from vsa_rt.errors import ItemError
from vsa_rt.runtime.flow import Flow
from vsa_rt.runtime.line import Clock, Options
from vsa_rt.runtime.preprocess import Preprocessor
from vsa_rt.runtime.slots import Slots
from vsa_rt.runtime.stream import read
from vsa_rt.runtime.watch import Watch

if TYPE_CHECKING:
    from typing_extensions import Self

#: Longer than anything here takes: a wait that ends by it failed.
SOON = 30.0
SPEC = ResizeSpec(height=1, width=1, fit="warp", kernel="bilinear")


def picture(value: int) -> NDArray[np.uint8]:
    """One pixel, which the fake engine says again."""
    return np.full((1, 1, 3), value, np.uint8)


class FakeClock(Clock):
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self._now = 100.0
        self._condition: threading.Condition | None = None
        self._waiting: dict[int, float | None] = {}

    def now(self) -> float:
        return self._now

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        self._condition = condition
        self._waiting[threading.get_ident()] = seconds
        condition.wait()
        del self._waiting[threading.get_ident()]

    def advance(self, seconds: float) -> None:
        assert self._condition is not None
        with self._condition:
            self._now += seconds
            self._condition.notify_all()

    def somebody_waits(self, seconds: float) -> bool:
        """Whether a thread waits for a deadline that is so many seconds ahead."""
        return any(s is not None and abs(s - seconds) < 1e-6 for s in list(self._waiting.values()))


class FakeSlot:
    """Says the red of each row, and what was asked of it."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.buffers = {"image": np.full((engine.batch, 1, 1, 3), 77, np.uint8)}

    def run(self, inputs: Tensors) -> Tensors:
        reds = inputs["image"][:, 0, 0, 0]
        with self._engine.lock:
            self._engine.calls.append(reds.tolist())
        self._engine.entered.release()
        self._engine.work()
        # The size of the batch and the rows beside change the last bits, as they may in a real engine.
        noise = np.float32(len(reds) * 1e-3) + np.float32(reds.max() * 1e-6 if len(reds) > 4 else 0)
        return {"scores": reds.astype(np.float32)[:, None] + noise}


class FakeEngine:
    """Slots and host threads without a bundle."""

    def __init__(self, batch: int = 4, slots: int = 2, calls: int = 1) -> None:
        self.batch, self.calls = batch, list[list[int]]()
        self.lock, self.entered = threading.Lock(), threading.Semaphore(0)
        self.work: Callable[[], object] = lambda: None
        self.slots = Slots([FakeSlot(self) for _ in range(slots)], calls)
        self.hosts = ThreadPoolExecutor(4, thread_name_prefix="test-host")
        self.preprocessor = Preprocessor({"image": SPEC})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.slots.refuse()
        self.hosts.shutdown()
        self.slots.wait_for_all()

    def flow(
        self,
        latency: float = 0.05,
        *,
        batch: int | None = None,
        pad: bool = False,
        watch: Watch | None = None,
        clock: Clock | None = None,
    ) -> Flow[float]:
        options = Options(batch or self.batch, latency, pad)
        return Flow(self.slots, self.hosts, self.preprocessor, self.take, options, watch, clock)

    @staticmethod
    def take(outputs: Tensors, count: int) -> Sequence[float | None]:
        # A value of 0 would be taken for nothing: the labeller's values are never false.
        return [float(v) for v in outputs["scores"][:count, 0]]

    def stream(self, items: Iterable[Any], latency: float = 0.05, **options: Any) -> Stream:
        return read(self.flow(latency, **options), items)


Stream = Generator[float | ItemError, None, None]


class Frame:
    """As a video's frames are."""

    def __init__(self, value: int) -> None:
        self.pixels, self.seconds, self.index = picture(value), value / 10, value


class SlowFrame:
    """Its decoding takes until ``decoded`` is set."""

    def __init__(self, value: int) -> None:
        self._pixels, self.decoded = picture(value), threading.Event()

    @property
    def pixels(self) -> NDArray[np.uint8]:
        assert self.decoded.wait(SOON)
        return self._pixels


def threads() -> list[str]:
    """Threads of streams that are there."""
    return [t.name for t in threading.enumerate() if t.name.startswith("vsa-stream")]


def until(true: Callable[[], bool]) -> None:
    """Wait for something that other threads bring about."""
    end = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.001)


def extend(got: list[Any], stream: Iterable[Any]) -> None:
    """Keep what came although an error follows, which ``list.extend`` does not promise."""
    for value in stream:
        got.append(value)  # noqa: PERF402 - see above


def rounded(results: Iterable[float | ItemError]) -> list[int | str]:
    return [r.reason if isinstance(r, ItemError) else round(r) for r in results]


class Feed:
    """A source that a test feeds: it is silent until something is put in."""

    def __init__(self) -> None:
        self.asked = self.taken = 0
        self._items: list[Any] = []
        self._changed = threading.Condition()
        self._over = False

    def put(self, *items: Any) -> None:
        with self._changed:
            self._items += items
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._changed:
            self.asked += 1
            assert self._changed.wait_for(lambda: bool(self._items) or self._over, SOON)
            if not self._items:
                raise StopIteration
            self.taken += 1
            return self._items.pop(0)


class Reader:
    """Reads a stream in a thread, for tests that look at it from outside."""

    def __init__(self, stream: Iterator[Any]) -> None:
        self.got: list[Any] = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: Iterator[Any]) -> None:
        try:
            extend(self.got, stream)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def end(self) -> list[Any]:
        self._thread.join(SOON)
        assert not self._thread.is_alive()
        return self.got
