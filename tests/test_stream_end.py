"""How a stream ends, in threads and in an event loop: promptly, with every slot back and no thread left."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext

import numpy as np
import pytest
from numpy.typing import NDArray
from streaming import (
    SOON,
    FakeEngine,
    Feed,
    Reader,
    Stream,
    picture,
    rounded,
    threads,
    until,
)

from vsa_rt.errors import UsageError
from vsa_rt.runtime import flow as flow_module
from vsa_rt.runtime.stream import read, read_async
from vsa_rt.runtime.watch import Watch


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as made:
        yield made


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    until(lambda: not threads())


# The end


def fail_in_the_loop(stream: Stream) -> None:
    for _ in stream:
        raise KeyError("mine")


@pytest.mark.parametrize("way", ["break", "close", "exception", "abandoned"])
def test_leaving_a_stream_ends_its_threads_and_frees_the_slots(engine: FakeEngine, way: str) -> None:
    endless = (picture(n % 200 + 1) for n in range(10**6))
    stream = engine.stream(endless, 0.0)
    assert rounded([next(stream)]) == [1]
    assert len(threads()) == 3
    if way == "close":
        stream.close()
    elif way == "abandoned":
        del stream
    elif way == "break":
        for _ in stream:
            break
        stream.close()
    else:
        with pytest.raises(KeyError, match="mine"):
            fail_in_the_loop(stream)
        del stream
    assert threads() == []
    engine.slots.wait_for_all()


def test_a_loop_that_is_left_early_leaves_no_thread(engine: FakeEngine) -> None:
    for _ in engine.stream((picture(1) for _ in range(10**6)), 0.0):
        break
    assert threads() == []


def test_threads_are_gone_before_the_last_result_is_read(engine: FakeEngine) -> None:
    stream = engine.stream(map(picture, range(1, 4)))
    next(stream)
    until(lambda: threads() == [])
    assert rounded(stream) == [2, 3]


def test_a_source_that_stays_silent_does_not_hold_up_the_end(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_module, "GRACE_S", 0.01)
    feed = Feed()
    feed.put(picture(1))
    stream = engine.stream(feed, 0.0)
    assert rounded([next(stream)]) == [1]
    until(lambda: feed.asked == 2)
    stream.close()
    assert threads() == ["vsa-stream-source"]  # inside the source, where nothing can interrupt it
    feed.put(picture(2))
    until(lambda: threads() == [])
    assert engine.calls == [[1]]


def test_a_source_that_is_being_read_is_let_go_of_before_closing_returns(engine: FakeEngine) -> None:
    """Its owner may release a camera then: no thread may be inside its driver."""
    inside = threading.Event()

    def camera() -> Iterator[NDArray[np.uint8]]:
        while True:
            inside.set()
            time.sleep(0.02)
            inside.clear()
            yield picture(1)

    stream = engine.stream(camera(), 0.0)
    next(stream)
    assert inside.wait(SOON)
    stream.close()
    assert threads() == []


def test_closing_waits_for_the_engines_call_under_way(engine: FakeEngine) -> None:
    go, ended = threading.Event(), threading.Event()

    def work() -> None:
        if 2 in engine.calls[-1]:
            assert go.wait(SOON)
            ended.set()

    engine.work = work
    feed = Feed()
    feed.put(picture(1))
    stream = engine.stream(feed, 0.0)
    next(stream)
    feed.put(picture(2))
    until(lambda: len(engine.calls) == 2)
    feed.end()
    threading.Timer(0.02, go.set).start()
    stream.close()
    assert ended.is_set()
    assert threads() == []
    engine.slots.wait_for_all()


def test_a_stream_that_the_garbage_collector_closes_inside_the_engine_blocks_nobody() -> None:
    """An abandoned stream's threads wait for the very slot and engine whose owner closes it."""
    engine, feed, watch = FakeEngine(slots=2), Feed(), Watch()

    class Knot:
        stream: Stream
        myself: Knot

    gc.disable()
    try:
        knot = Knot()
        knot.myself, knot.stream = knot, engine.stream(feed, 0.0, watch=watch)
        feed.put(picture(1))
        assert rounded([next(knot.stream)]) == [1]
        slot = engine.slots.take()
        with engine.slots.call():
            feed.put(picture(2), picture(3))
            until(lambda: feed.taken == 3)
            until(lambda: watch.counts().sent >= 2)  # now a thread waits for the engine
            del knot
            feed.end()
            gc.collect()
            until(lambda: threads() == [])
        engine.slots.give(slot)
    finally:
        gc.enable()
    engine.slots.wait_for_all()
    engine.hosts.shutdown()


def test_a_stream_that_is_closed_under_a_lock_does_not_wait_for_its_threads(engine: FakeEngine) -> None:
    """The garbage collector may come at any allocation, also where a lock is held that the threads want."""
    flow = engine.flow(0.0)
    stream = read(flow, (picture(1) for _ in range(10**6)))
    next(stream)
    done = threading.Event()

    def close_inside() -> None:
        with flow.line._mutex:
            stream.close()
        done.set()

    threading.Thread(target=close_inside, daemon=True).start()
    assert done.wait(SOON)
    until(lambda: threads() == [])


AT_EXIT = """
import threading, time
import numpy as np
from concurrent.futures import ThreadPoolExecutor
from vsa_rt.contracts import ResizeSpec
from vsa_rt.runtime.flow import Flow
from vsa_rt.runtime.line import Options
from vsa_rt.runtime.preprocess import Preprocessor
from vsa_rt.runtime.slots import Slots
from vsa_rt.runtime.stream import read

second = threading.Event()

class Slot:
    buffers = {"image": np.zeros((1, 1, 1, 3), np.uint8)}
    def run(self, inputs):
        reds = inputs["image"][:, 0, 0, :1].copy()
        if reds[0] == 2:
            second.set()
            time.sleep(0.2)
            print("the call ended", flush=True)
        return {"scores": reds}

def camera():
    yield np.full((1, 1, 3), 1, np.uint8)
    yield np.full((1, 1, 3), 2, np.uint8)
    threading.Event().wait()

spec = ResizeSpec(height=1, width=1, fit="warp", kernel="bilinear")
flow = Flow(Slots([Slot(), Slot()], 1), ThreadPoolExecutor(1), Preprocessor({"image": spec}),
            lambda o, n: [int(v) for v in o["scores"][:n, 0]], Options(1, 0.0))
kept = read(flow, camera())
print(next(kept), flush=True)
second.wait()
"""


def test_a_stream_that_nobody_closed_keeps_no_interpreter_alive_and_ends_its_call() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", AT_EXIT], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\nthe call ended\n", "")


def test_nothing_is_kept_of_a_stream_that_ended(engine: FakeEngine) -> None:
    watch = Watch()
    flow = engine.flow(0.0, watch=watch)
    gone = weakref.ref(flow)
    results = read(flow, [picture(1)])
    assert rounded(results) == [1]
    del flow, results
    until(lambda: threads() == [])
    gc.collect()
    assert gone() is None


# Closing the slots, as the runtime does


def test_closing_gives_a_reader_what_is_done_and_then_says_so(engine: FakeEngine) -> None:
    feed, watch = Feed(), Watch()
    stream = engine.stream(feed, 0.0, watch=watch)
    feed.put(*map(picture, (1, 2, 3)))
    assert rounded([next(stream)]) == [1]
    until(lambda: watch.counts().answered == 3)
    threading.Timer(0.02, feed.end).start()
    engine.slots.refuse()
    assert threads() == []
    assert rounded(next(stream) for _ in range(2)) == [2, 3]
    with pytest.raises(UsageError, match="closed"):
        next(stream)


def test_closing_wakes_a_reader_who_waits(engine: FakeEngine) -> None:
    feed = Feed()
    reader = Reader(engine.stream(feed, 0.0))
    feed.put(picture(1))
    until(lambda: len(reader.got) == 1)
    threading.Timer(0.02, feed.end).start()
    engine.slots.refuse()
    assert threads() == []
    assert rounded(reader.end()) == [1]
    assert isinstance(reader.error, UsageError)


def test_closing_after_the_end_takes_no_result_away(engine: FakeEngine) -> None:
    stream = engine.stream(map(picture, (1, 2, 3)))
    assert rounded([next(stream)]) == [1]
    until(lambda: threads() == [])
    engine.slots.refuse()
    assert rounded(stream) == [2, 3]


def test_a_slot_is_had_in_turn() -> None:
    """Else who gives a slot back and takes one again at once would starve the others."""
    order: list[str] = []
    own = FakeEngine(slots=1)

    def other() -> None:
        taken = own.slots.take()
        order.append("other")
        own.slots.give(taken)

    with own:
        slot = own.slots.take()
        thread = threading.Thread(target=other)
        thread.start()
        until(lambda: bool(own.slots._takers))
        own.slots.give(slot)
        slot = own.slots.take()
        order.append("first")
        thread.join(SOON)
        own.slots.give(slot)
    assert order == ["other", "first"]


def test_the_engine_is_had_in_turn() -> None:
    order: list[str] = []
    own = FakeEngine(slots=1)

    def other() -> None:
        with own.slots.call():
            order.append("other")

    with own:
        with own.slots.call():
            thread = threading.Thread(target=other)
            thread.start()
            until(lambda: bool(own.slots._callers))
        with own.slots.call():
            order.append("first")
        thread.join(SOON)
    assert order == ["other", "first"]


# In an event loop


def test_the_event_loop_goes_on_while_the_engine_works(engine: FakeEngine) -> None:
    go = threading.Event()
    engine.work = lambda: go.wait(SOON)

    async def camera() -> AsyncIterator[NDArray[np.uint8]]:
        yield picture(1)
        await asyncio.Event().wait()  # silent from now on

    async def main() -> list[int | str]:
        stream = read_async(engine.flow(0.0), camera())
        first = asyncio.ensure_future(anext(stream))
        while not engine.calls:
            await asyncio.sleep(0.001)
        assert not first.done()
        go.set()
        got = rounded([await first])
        await stream.aclose()
        assert threads() == []
        return got

    assert asyncio.run(main()) == [1]


def test_the_event_loop_goes_on_while_a_stream_is_closed(engine: FakeEngine) -> None:
    go = threading.Event()

    def work() -> None:
        if 2 in engine.calls[-1]:
            assert go.wait(SOON)

    async def camera() -> AsyncIterator[NDArray[np.uint8]]:
        yield picture(1)
        yield picture(2)
        await asyncio.Event().wait()

    async def main() -> None:
        stream = read_async(engine.flow(0.0, batch=1), camera())
        await anext(stream)
        while len(engine.calls) < 2:
            await asyncio.sleep(0.001)
        closing = asyncio.create_task(stream.aclose())
        await asyncio.sleep(0.01)
        assert not closing.done()
        go.set()
        await closing
        assert threads() == []

    engine.work = work
    asyncio.run(main())
    assert go.is_set()


@pytest.mark.parametrize("way", ["aclose", "cancel", "abandoned"])
def test_leaving_an_asynchronous_stream_ends_its_threads(engine: FakeEngine, way: str) -> None:
    left = []

    async def endless() -> AsyncIterator[NDArray[np.uint8]]:
        try:
            while True:
                await asyncio.sleep(0)
                yield picture(1)
        finally:
            left.append(True)

    async def consume() -> None:
        stream = read_async(engine.flow(0.0), endless())
        async for _ in stream:
            if way != "cancel":
                break
        if way == "aclose":
            await stream.aclose()
            assert threads() == []

    async def main() -> None:
        task = asyncio.create_task(consume())
        if way == "cancel":
            while len(engine.calls) < 3:
                await asyncio.sleep(0.001)
            task.cancel()
        with pytest.raises(asyncio.CancelledError) if way == "cancel" else nullcontext():
            await task

    asyncio.run(main())
    assert threads() == []
    assert left == [True]
    engine.slots.wait_for_all()


def test_an_asynchronous_source_is_read_no_further_than_the_reader_reads(engine: FakeEngine) -> None:
    limit, taken = 3 * engine.batch, 0

    async def endless() -> AsyncIterator[NDArray[np.uint8]]:
        nonlocal taken
        while True:
            taken += 1
            yield picture(1)

    async def main() -> None:
        stream = read_async(engine.flow(0.0), endless())
        for read_so_far in range(1, 50):
            await anext(stream)
            assert taken <= read_so_far + limit
        while taken < 49 + limit:
            await asyncio.sleep(0.001)
        await stream.aclose()

    asyncio.run(main())
