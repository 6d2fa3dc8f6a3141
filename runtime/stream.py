"""The two ends of a stream: a source that a thread reads and a generator, or the same in an event loop."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable
from typing import Any

from vsa_rt.errors import ItemError, UsageError
from vsa_rt.runtime.batch import T
from vsa_rt.runtime.flow import Flow
from vsa_rt.runtime.line import End, Options


def stream_options(max_latency_ms: float, max_batch: int | None, usual: int, most: int, pad: bool) -> Options:
    """Check what a caller asked for.

    Args:
        max_latency_ms: Milliseconds, 0 or more; infinite for full batches only.
        max_batch: Items of one call; ``None`` for ``usual``.
        usual: The runtime's.
        most: The bundle's max-batch.
        pad: Whether each call has the same size.

    Raises:
        UsageError: One is out of its range.
    """
    if math.isnan(max_latency_ms) or max_latency_ms < 0:
        raise UsageError(f"max_latency_ms {max_latency_ms}: expected 0 or more milliseconds")
    batch = usual if max_batch is None else max_batch
    if not 1 <= batch <= most:
        raise UsageError(f"max_batch {batch}: expected 1 to {most}, the bundle's max-batch")
    return Options(batch, max_latency_ms / 1e3, pad)


def read(flow: Flow[T], items: Iterable[Any]) -> Generator[T | ItemError, None, None]:
    """Results of items that a thread takes from their source; the threads begin with the first one asked for."""
    try:
        flow.start(iter(items))
        while True:
            flow.line.wait_for_news()
            try:
                value = flow.line.get()
            except End:
                return
            yield value
            del value
    finally:
        flow.close()


async def read_async(flow: Flow[T], items: AsyncIterable[Any]) -> AsyncGenerator[T | ItemError, None]:
    """Results of items that a task of the running event loop takes from their source."""
    import asyncio

    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def listen() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(changed.set)

    async def until(wanted: Callable[[], bool]) -> None:
        while not wanted():
            changed.clear()
            await changed.wait()

    flow.line.listener = listen
    feeder: asyncio.Task[None] | None = None
    try:
        flow.start()
        feeder = asyncio.create_task(_feed(flow, aiter(items), until), name="vsa-stream-source")
        while True:
            await until(lambda: flow.line.news)
            try:
                value = flow.line.get()
            except End:
                return
            yield value
            del value
    finally:
        flow.stop()
        try:
            if feeder is not None:
                feeder.cancel()
                await asyncio.wait([feeder])
            # An engine's call under way ends first, and the loop goes on meanwhile.
            await until(lambda: not flow.sending)
        finally:
            flow.close()


async def _feed(
    flow: Flow[T], source: AsyncIterator[Any], until: Callable[[Callable[[], bool]], Any]
) -> None:
    try:
        while True:
            await until(lambda: flow.line.stopped or flow.line.room)
            if flow.line.stopped:
                return
            flow.put(await anext(source))
    except StopAsyncIteration:
        flow.line.end()
    except BaseException as error:
        flow.line.end(error)
        if not isinstance(error, Exception):  # a cancellation or an interrupt is also the loop's
            raise
