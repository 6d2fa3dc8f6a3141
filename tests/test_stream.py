"""A stream of items: batches under a deadline, results in order, bounded queues, errors in their place."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from streaming import (
    SOON,
    SPEC,
    FakeClock,
    FakeEngine,
    Feed,
    Frame,
    Reader,
    SlowFrame,
    extend,
    picture,
    rounded,
    threads,
    until,
)

from vsa_rt.contracts import Item
from vsa_rt.errors import ItemError
from vsa_rt.runtime.line import UNPREPARED
from vsa_rt.runtime.preprocess import Preprocessor
from vsa_rt.runtime.stream import read, read_async
from vsa_rt.runtime.watch import Depths, Watch


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as made:
        yield made


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    until(lambda: not threads())


# Deadlines and batches


def test_a_batch_goes_at_its_oldest_items_deadline_and_not_before() -> None:
    engine, clock, feed, watch = FakeEngine(slots=1), FakeClock(), Feed(), Watch()
    reader = Reader(engine.stream(feed, 0.050, clock=clock, watch=watch))
    feed.put(picture(1))
    until(lambda: clock.somebody_waits(0.050))
    clock.advance(0.030)
    feed.put(picture(2))
    until(lambda: watch.counts().prepared == 2)
    until(lambda: clock.somebody_waits(0.020))
    clock.advance(0.019)
    until(lambda: clock.somebody_waits(0.001))
    assert engine.calls == []
    clock.advance(0.001)
    until(lambda: len(reader.got) == 2)  # although the source says nothing more
    assert engine.calls == [[1, 2]]
    feed.end()
    assert rounded(reader.end()) == [1, 2]
    engine.hosts.shutdown()


def test_a_full_batch_waits_for_no_deadline(engine: FakeEngine) -> None:
    feed = Feed()
    reader = Reader(engine.stream(feed, float("inf"), clock=FakeClock()))
    feed.put(*map(picture, range(1, 5)))
    until(lambda: len(reader.got) == 4)
    assert engine.calls == [[1, 2, 3, 4]]
    feed.put(picture(5))
    feed.end()  # nothing can join the last one
    assert rounded(reader.end()) == [1, 2, 3, 4, 5]
    assert engine.calls[1:] == [[5]]


def test_without_latency_an_item_goes_at_once(engine: FakeEngine) -> None:
    feed = Feed()
    reader = Reader(engine.stream(feed, 0.0, clock=FakeClock()))
    for value in (1, 2, 3):
        feed.put(picture(value))
        until(lambda: len(reader.got) == value)  # noqa: B023 - called in this round
    assert engine.calls == [[1], [2], [3]]
    feed.end()
    reader.end()


def test_what_is_due_while_the_engine_is_busy_goes_together(engine: FakeEngine) -> None:
    feed, go, watch = Feed(), threading.Semaphore(0), Watch()
    engine.work = lambda: go.acquire(timeout=SOON)
    reader = Reader(engine.stream(feed, 0.0, watch=watch))
    feed.put(picture(1))
    assert engine.entered.acquire(timeout=SOON)
    for value in (2, 3, 4):  # each due at once, one after the other
        feed.put(picture(value))
        until(lambda: watch.counts().prepared == value)  # noqa: B023 - called in this round
    go.release(2)
    until(lambda: len(reader.got) == 4)
    assert engine.calls == [[1], [2, 3, 4]]
    feed.end()
    reader.end()


def test_an_item_that_takes_long_to_decode_holds_up_no_others_deadline(engine: FakeEngine) -> None:
    clock, watch, feed, slow = FakeClock(), Watch(), Feed(), SlowFrame(1)
    reader = Reader(engine.stream(feed, 0.050, clock=clock, watch=watch))
    feed.put(slow, picture(2))
    until(lambda: clock.somebody_waits(0.050))
    clock.advance(0.050)
    until(lambda: watch.counts().answered == 1)
    assert (engine.calls, reader.got) == ([[2]], [])
    slow.decoded.set()
    until(lambda: len(reader.got) == 2)
    assert rounded(reader.got) == [1, 2]
    assert engine.calls == [[2], [1]]  # late as it is, it waits no more
    feed.end()
    reader.end()


def test_a_reader_who_waits_for_the_only_item_that_was_not_sent_gets_it(engine: FakeEngine) -> None:
    """Full batches only, and room for no more: nothing could ever fill the first item's batch."""
    slow, watch = SlowFrame(1), Watch()
    values = list(range(2, 40))
    items = [slow, b"no image", *map(picture, values)]
    reader = Reader(engine.stream(items, float("inf"), watch=watch))
    until(lambda: watch.counts().taken == 3 * engine.batch)
    until(lambda: watch.counts().answered == 2 * engine.batch)
    slow.decoded.set()
    got = reader.end()
    assert isinstance(got.pop(1), ItemError)
    assert rounded(got) == [1, *values]


def test_an_error_waits_for_no_batch(engine: FakeEngine) -> None:
    feed = Feed()
    reader = Reader(engine.stream(feed, float("inf")))
    for count in (1, 2, 3):
        until(lambda: feed.asked == count)  # noqa: B023 - called in this round
        feed.put(b"no image")
        until(lambda: len(reader.got) == count)  # noqa: B023 - called in this round
    assert all(isinstance(result, ItemError) for result in reader.got)
    feed.end()
    reader.end()
    assert engine.calls == []


@pytest.mark.parametrize("calls", [1, 2])
def test_no_batch_is_larger_than_asked(calls: int) -> None:
    engine = FakeEngine(batch=8, slots=calls + 1, calls=calls)
    values = list(range(1, 60))
    assert rounded(engine.stream(map(picture, values), 1.0, batch=3)) == values
    assert max(map(len, engine.calls)) == 3
    assert sorted(value for call in engine.calls for value in call) == values
    engine.hosts.shutdown()


# Any pattern

PATTERNS = st.lists(
    st.tuples(
        st.sampled_from(["good", "good", "good", "bad", "frame", "item"]),
        st.sampled_from([0.0, 0.0, 0.0, 0.0005, 0.002]),  # until the source has it
        st.sampled_from([0.0, 0.0, 0.0005, 0.002]),  # until it is decoded
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(
    pattern=PATTERNS,
    latency=st.sampled_from([0.0, 0.001, 0.01, float("inf")]),
    batch=st.integers(1, 4),
    pad=st.booleans(),
    asynchronous=st.booleans(),
    failing=st.booleans(),
)
def test_any_pattern_gives_the_same_results_in_order(
    pattern: list[tuple[str, float, float]],
    latency: float,
    batch: int,
    pad: bool,
    asynchronous: bool,
    failing: bool,
) -> None:
    delays = {n: delay for n, (_, _, delay) in enumerate(pattern, 1)}

    class Delayed(Preprocessor):
        def decode(self, image: Any, item: str) -> NDArray[np.uint8]:
            pixels = super().decode(image, item)
            time.sleep(delays[int(pixels[0, 0, 0])])
            return pixels

    def make(number: int, kind: str) -> Any:
        made = {"bad": b"no image", "frame": Frame(number), "item": Item(Frame(number), {})}
        return made.get(kind, picture(number))

    def items() -> Iterator[Any]:
        for number, (kind, pause, _) in enumerate(pattern, 1):
            time.sleep(pause)
            yield make(number, kind)
        if failing:
            raise OSError("the camera is gone")

    async def items_later() -> AsyncIterator[Any]:
        for number, (kind, pause, _) in enumerate(pattern, 1):
            await asyncio.sleep(pause)
            yield make(number, kind)
        if failing:
            raise OSError("the camera is gone")

    engine = FakeEngine(calls=2, slots=3)
    engine.preprocessor = Delayed({"image": SPEC})
    got: list[float | ItemError] = []
    flow = engine.flow(latency, batch=batch, pad=pad)

    async def main() -> None:
        async for value in read_async(flow, items_later()):
            got.append(value)

    with pytest.raises(OSError, match="the camera is gone") if failing else nullcontext():
        if asynchronous:
            asyncio.run(main())
        else:
            extend(got, read(flow, items()))
    wanted = ["good" if kind != "bad" else "bad" for kind, _, _ in pattern]
    assert ["bad" if isinstance(r, ItemError) else "good" for r in got] == wanted
    for number, value in enumerate(got, 1):
        if isinstance(value, ItemError):
            assert value.item == f"item {number - 1}"
        else:
            assert round(value) == number
    assert threads() == []
    engine.slots.wait_for_all()
    engine.hosts.shutdown()


# Backpressure


def test_a_bounded_number_of_items_is_under_way(engine: FakeEngine) -> None:
    """A reader that stops reading stops the source."""
    limit, given_out, most, at_limit = 3 * engine.batch, 0, 0, threading.Event()

    def endless() -> Iterator[NDArray[np.uint8]]:
        nonlocal most
        for taken in range(1, 10_000):
            most = max(most, taken - given_out)
            if taken - given_out == limit:
                at_limit.set()
            yield picture(taken % 200 + 1)

    stream = engine.stream(endless(), 0.0)
    next(stream)
    given_out = 1
    assert at_limit.wait(SOON)
    for _ in range(100):
        next(stream)
        given_out += 1
    stream.close()
    assert most <= limit + 1  # one may be taken between an item's giving and its counting here


def test_few_items_wait_for_a_host_thread(engine: FakeEngine) -> None:
    """What is not decoded yet may be large: a source is not read far ahead of the host threads."""
    go, decoded, taken, most = threading.Semaphore(0), 0, 0, 0

    class Gated(Preprocessor):
        def write(self, source: Any, outputs: Mapping[str, NDArray[Any]], *, item: str) -> None:
            nonlocal decoded
            assert go.acquire(timeout=SOON)
            decoded += 1
            super().write(source, outputs, item=item)

    def items() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken, most
        for value in range(1, 4 * UNPREPARED):
            taken += 1
            most = max(most, taken - decoded)
            yield picture(value)

    wide = FakeEngine(batch=4 * UNPREPARED)
    wide.preprocessor = Gated({"image": SPEC})
    reader = Reader(wide.stream(items(), 1.0))
    until(lambda: taken == UNPREPARED)
    for _ in range(4 * UNPREPARED):
        go.release()
    assert len(reader.end()) == 4 * UNPREPARED - 1
    assert most <= UNPREPARED
    wide.hosts.shutdown()


def test_nothing_is_read_before_the_first_result_is_asked_for(engine: FakeEngine) -> None:
    feed = Feed()
    feed.put(picture(1))
    stream = engine.stream(feed)
    assert threads() == []
    assert feed.taken == 0
    feed.end()
    assert rounded(stream) == [1]


# Errors


def test_the_sources_error_comes_after_the_results_before_it(engine: FakeEngine) -> None:
    def failing() -> Iterator[Any]:
        yield from map(picture, range(1, 7))
        raise OSError("the camera is gone")

    stream = engine.stream(failing(), float("inf"))
    assert rounded(next(stream) for _ in range(6)) == [1, 2, 3, 4, 5, 6]
    with pytest.raises(OSError, match="the camera is gone"):
        next(stream)
    assert list(stream) == []


def test_the_engines_error_comes_in_its_batchs_place(engine: FakeEngine) -> None:
    def work() -> None:
        if 6 in engine.calls[-1]:
            raise RuntimeError("the engine is gone")

    engine.work = work
    stream = engine.stream(map(picture, range(1, 12)), float("inf"))
    assert rounded(next(stream) for _ in range(4)) == [1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="the engine is gone"):
        next(stream)
    engine.work = lambda: None
    assert rounded(engine.stream([picture(9)])) == [9]  # every slot came back


def test_results_before_the_engines_error_are_not_lost(engine: FakeEngine) -> None:
    def work() -> None:
        if 1 not in engine.calls[-1]:
            raise RuntimeError("the engine is gone")

    engine.work = work
    slow = SlowFrame(1)
    reader = Reader(engine.stream([slow, *map(picture, (2, 3, 4, 5))], float("inf")))
    until(lambda: engine.calls == [[2, 3, 4, 5]])
    slow.decoded.set()
    assert rounded(reader.end()) == [1]
    assert isinstance(reader.error, RuntimeError)


def test_scores_that_are_no_numbers_are_their_items_error(engine: FakeEngine) -> None:
    engine.take = lambda outputs, count: [None, *outputs["scores"][1:count, 0].tolist()]  # type: ignore[method-assign]
    first, second = engine.stream([picture(1), picture(2)], float("inf"))
    assert isinstance(first, ItemError)
    assert "not numbers" in first.reason
    assert isinstance(second, float)


def test_a_fault_in_decoding_is_its_items_error(engine: FakeEngine) -> None:
    class Faulty(Preprocessor):
        def write(self, source: Any, outputs: Mapping[str, NDArray[Any]], *, item: str) -> None:
            if source[0, 0, 0] == 2:
                raise KeyboardInterrupt
            super().write(source, outputs, item=item)

    engine.preprocessor = Faulty({"image": SPEC})
    got = list(engine.stream(map(picture, (1, 2, 3))))
    assert rounded(got) == [1, "internal error: KeyboardInterrupt()", 3]


# The same batch size


def test_padded_results_do_not_depend_on_how_items_came(engine: FakeEngine) -> None:
    """The fake engine's last bits depend on the size of the batch, as a real one's may."""
    values = list(range(1, 24))

    def unevenly(step: int) -> Iterator[NDArray[np.uint8]]:
        for value in values:
            if value % step == 0:
                time.sleep(0.002)
            yield picture(value)

    def run(pad: bool) -> list[list[float | ItemError]]:
        return [
            list(engine.stream(unevenly(s), 0.0005, batch=b, pad=pad)) for s, b in ((1, 4), (3, 4), (24, 4))
        ]

    first, *others = run(pad=True)
    assert rounded(first) == values
    assert others == [first, first]
    assert {len(call) for call in engine.calls} == {4}
    for call in engine.calls:  # whatever an earlier batch left in the slot is gone
        assert not any(call[sum(value > 0 for value in call) :])
        assert 77 not in call
    engine.calls.clear()
    list(engine.stream([picture(1)]))
    (alone,) = engine.stream([picture(1)])
    assert alone != first[0]  # what padding is for


# Numbers


def test_a_watch_counts_what_happened(engine: FakeEngine) -> None:
    watch = Watch()
    items: list[Any] = [picture(1), b"no image", *map(picture, range(2, 7))]
    engine.work = lambda: time.sleep(0.002)
    list(engine.stream(items, float("inf"), pad=True, watch=watch))
    counts = watch.counts()
    assert (counts.taken, counts.prepared, counts.failed) == (7, 6, 1)
    assert (counts.sent, counts.answered, counts.given) == (6, 6, 7)
    assert sum(size * calls for size, calls in counts.sizes.items()) == 6
    assert counts.batches == sum(counts.sizes.values()) == len(engine.calls)
    assert counts.padding == 4 * counts.batches - 6
    assert counts.engine_seconds >= 0.002 * counts.batches
    assert counts.decode_seconds > 0
    assert counts.resize_seconds > 0
    assert counts.depths == Depths()


def test_a_watch_knows_where_items_are(engine: FakeEngine) -> None:
    watch, feed, go = Watch(), Feed(), threading.Semaphore(0)
    engine.work = lambda: go.acquire(timeout=SOON)
    clock = FakeClock()
    stream = engine.stream(feed, 1.0, watch=watch, clock=clock)
    feed.put(*map(picture, (1, 2, 3, 4)))
    reader = threading.Thread(target=lambda: next(stream))
    reader.start()
    assert engine.entered.acquire(timeout=SOON)
    assert (watch.counts().depths.running, watch.counts().depths.unread) == (4, 0)
    feed.put(picture(5), picture(6))
    until(lambda: watch.counts().depths.ready == 2)
    go.release()
    reader.join()
    assert watch.counts().depths.unread == 3
    stream_end = threading.Timer(0.01, feed.end)
    stream_end.start()
    go.release()
    assert rounded(stream) == [2, 3, 4, 5, 6]
    assert watch.counts().depths.unread == 0
