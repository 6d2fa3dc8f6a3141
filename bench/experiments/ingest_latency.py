"""What ``rt.stream`` adds to an item's time under a deadline, at the pace of a live source.

A photograph arrives by the clock, whatever the stream does. Its delay counts from that moment to the one at which its
result is given. What is added is the delay without the time that the same photograph takes alone: decoded, resized and
run in an engine call of its own, ``rt([photograph])``.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vsa_rt.bench import clock
from vsa_rt.bench.experiments.ingest_command import Subject
from vsa_rt.bench.experiments.ingest_rows import Row
from vsa_rt.bench.intervals import percentile
from vsa_rt.bench.workload import from_photographs
from vsa_rt.errors import ItemError
from vsa_rt.runtime.fused import Runtime
from vsa_rt.runtime.load import load
from vsa_rt.runtime.watch import Watch

#: Milliseconds, and items a second, as was asked.
DEADLINE_MS, RATE = 50.0, 10.0
#: Different photographs, which take turns.
_PHOTOGRAPHS = 60
#: Times that each is run alone; the median counts.
_ALONE = 5
_CALLS = 20


class Live:
    """A source whose items arrive by the clock.

    Args:
        items: They take turns.
        period_ms: Between two arrivals.
        count: How many arrive.

    Attributes:
        arrived: Milliseconds of ``since`` at which each item was there.
        since: Runs from the creation on.
    """

    def __init__(self, items: Sequence[bytes], period_ms: float, count: int) -> None:
        self._items, self._period, self._count = items, period_ms, count
        self._there: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.since = clock.Stopwatch()
        self.arrived: list[float] = []

    def _arrive(self, number: int) -> None:
        # A camera would have dropped what the clock passes over where this thread was late; here it all comes.
        for late in range(len(self.arrived), number + 1):
            self.arrived.append(self.since.total())
            self._there.put(self._items[late % len(self._items)])

    def _pace(self) -> None:
        try:
            clock.paced(self._arrive, self._period, self._count)
        finally:
            self._there.put(None)

    def __iter__(self) -> Iterator[bytes]:
        pacing = threading.Thread(target=self._pace, name="arrivals")
        pacing.start()
        while (item := self._there.get()) is not None:
            yield item
        pacing.join()


def delays(runtime: Runtime, live: Live, watch: Watch) -> list[float]:
    """Milliseconds from each item's arrival to its result.

    Raises:
        ItemError: One has none.
        SystemExit: Items were lost.
    """
    given: list[float] = []
    for result in runtime.stream(live, max_latency_ms=DEADLINE_MS, watch=watch):
        given.append(live.since.total())
        if isinstance(result, ItemError):
            raise result
    if len(given) != len(live.arrived):
        raise SystemExit(f"{len(live.arrived)} items arrived, {len(given)} results were given")
    return [after - before for after, before in zip(given, live.arrived, strict=True)]


def added(taken: Sequence[float], alone: Sequence[float]) -> list[float]:
    """Delays without what the same items take alone, which take turns."""
    return [delay - alone[number % len(alone)] for number, delay in enumerate(taken)]


def alone_ms(runtime: Runtime, items: Sequence[bytes]) -> list[float]:
    """Milliseconds of each item alone, the median of several; the items take turns."""
    calls = {str(n): lambda item=item: runtime([item]) for n, item in enumerate(items)}
    samples = clock.measure(calls, _ALONE, warm_up=1)
    return [clock.median_ms(samples[name]) for name in calls]


def rows(
    added_ms: Sequence[float], alone: Sequence[float], call_ms: float, sizes: Mapping[int, int], batch: int
) -> Iterator[Row]:
    """What a run says.

    Args:
        added_ms: Of each item.
        alone: Milliseconds of each photograph alone.
        call_ms: Of an engine call of ``batch`` pictures.
        sizes: Number of items in a call to number of calls.
        batch: Max-batch.

    Raises:
        ValueError: Too few items for a p99.
    """
    limit = DEADLINE_MS + call_ms
    for share in (0.5, 0.99):
        found = percentile(added_ms, share)
        if found.value is None:
            raise ValueError(f"{len(added_ms)} items; p{100 * share:g} takes {found.needed}")
        judged = share == 0.99
        yield Row(
            f"rt.stream, {DEADLINE_MS:g} ms, {RATE:g} items/s: p{100 * share:g} of the added delay",
            found.value,
            "ms",
            found.value,
            found.upper,
            f"under {limit:.1f} ms" if judged else "",
            found.value < limit if judged else None,
            f"{len(added_ms)} items, {min(added_ms):.1f} to {max(added_ms):.1f} ms; the interval ends at the upper bound",
        )
    note = f"{len(alone)} photographs, median of {_ALONE} each"
    yield Row("photograph alone", clock.median_ms(alone), "ms", min(alone), max(alone), note=note)
    yield Row(f"engine call of {batch}", call_ms, "ms", note=f"median of {_CALLS}")
    calls = sum(sizes.values())
    note = ", ".join(f"{count} of {size}" for size, count in sorted(sizes.items()))
    mean = sum(size * count for size, count in sizes.items()) / max(1, calls)
    yield Row("items in an engine call, mean", mean, "", note=f"calls: {note}")


def latency(subject: Subject, photographs: Sequence[Path], frames: int) -> Iterator[Row]:
    """Measure it.

    Args:
        subject: With which engine.
        photographs: Which photographs.
        frames: How many items arrive; 299 are the fewest that bound a p99.
    """
    with load(subject.bundle, target=subject.target, precision=subject.precision) as runtime:
        runtime.prepare(*range(1, subject.batch + 1))
        paths = list(photographs[:_PHOTOGRAPHS])
        inputs = from_photographs(runtime.manifest, paths, "as given").tensors(subject.batch)[0]
        call = clock.loop(lambda _: runtime.infer(inputs), 0.0, _CALLS, _CALLS, 60.0)
        items = [path.read_bytes() for path in paths]
        alone = alone_ms(runtime, items)
        watch = Watch()
        taken = delays(runtime, Live(items, 1e3 / RATE, frames), watch)
        call_ms = clock.median_ms(call.samples_ms)
        yield from rows(added(taken, alone), alone, call_ms, watch.counts().sizes, subject.batch)
