"""``rt.stream`` of a real bundle: what a call says, bit by bit where padded; shared and closed."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from streaming import (
    SOON,
    Feed,
    Reader,
    threads,
    until,
)

import vsa_rt
from vsa_rt.contracts import Item, Sentiment
from vsa_rt.errors import ItemError, UsageError
from vsa_rt.runtime.fused import Runtime
from vsa_rt.runtime.watch import Watch


@pytest.fixture
def rt(tiny_bundle: Path) -> Iterator[Runtime]:
    with vsa_rt.load(tiny_bundle, precision="fp32") as runtime:
        yield runtime


@pytest.fixture
def pictures(toy_data: Path) -> list[Path]:
    """Twelve pictures, dark and bright in turns."""
    return [p for pair in zip(*(sorted((toy_data / n).iterdir()) for n in ("dark", "bright")), strict=True) for p in pair]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    until(lambda: not threads())


# The runtime's own


def close(one: Sequence[Sentiment | ItemError], other: Sequence[Sentiment | ItemError]) -> bool:
    """Equal but for the last bits: the size of a batch may change the order of sums."""
    return len(one) == len(other) and all(
        (isinstance(a, ItemError) and isinstance(b, ItemError) and (a.item, a.reason) == (b.item, b.reason))
        or (
            isinstance(a, Sentiment)
            and isinstance(b, Sentiment)
            and a.label == b.label
            and np.allclose(list(a.scores.values()), list(b.scores.values()), atol=1e-5)
        )
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("target", ["openvino:cpu", "onnxruntime:cpu"])
@pytest.mark.parametrize("streams", [1, 2])
def test_a_stream_says_what_a_call_says(
    tiny_bundle: Path, pictures: list[Path], target: str, streams: int
) -> None:
    items: list[Any] = [*pictures, b"", pictures[0].read_bytes(), "absent.jpg", *pictures]

    async def later() -> AsyncIterator[Any]:
        for item in items:
            yield item

    async def collected(rt: Runtime) -> list[Sentiment | ItemError]:
        return [result async for result in rt.stream(later(), max_latency_ms=5)]

    with vsa_rt.load(tiny_bundle, target=target, precision="fp32", streams=streams, threads=2) as rt:
        wanted = rt(items)
        assert close(list(rt.stream(items)), wanted)
        assert close(list(rt.stream(iter(items), max_latency_ms=0, max_batch=3)), wanted)
        assert close(asyncio.run(collected(rt)), wanted)
        assert list(rt.stream([])) == []
        assert close(list(rt.stream(pictures[0])), wanted[:1])  # type: ignore[call-overload]  # one path is one item


class RealFrame:
    """As ``vsa_rt.runtime.video`` gives them."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels, self.seconds, self.index = pixels, 0.5, 3


def test_frames_are_images_wherever_images_are(rt: Runtime) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    wanted = rt([pixels])
    frame = RealFrame(pixels)
    assert close(list(rt.stream([frame])), wanted)
    assert close(rt([frame]), wanted)
    assert close(rt(frame), wanted)
    assert close(rt([Item(frame, {})]), wanted)
    np.testing.assert_array_equal(rt.features([frame])["scores"], rt.features([pixels])["scores"])


def test_several_streams_and_calls_share_a_runtime(rt: Runtime, pictures: list[Path]) -> None:
    wanted = rt(pictures)
    feeds = [Feed() for _ in range(3)]
    # Each has one item, and waits for others that do not come: they hold no slot meanwhile.
    idle = [Reader(rt.stream(feed, max_latency_ms=float("inf"))) for feed in feeds]
    for feed in feeds:
        feed.put(pictures[0])
    until(lambda: all(feed.taken == 1 for feed in feeds))
    busy = [Reader(rt.stream(pictures * 3, max_latency_ms=n)) for n in (0, 1, 20)]
    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(lambda _: close(rt(pictures), wanted), range(6), timeout=SOON))
    for reader in busy:
        assert close(reader.end(), wanted * 3)
    assert [reader.got for reader in idle] == [[], [], []]
    for feed, reader in zip(feeds, idle, strict=True):
        feed.end()
        assert close(reader.end(), wanted[:1])


def test_a_live_source_gets_its_results_while_it_is_silent(rt: Runtime, pictures: list[Path]) -> None:
    feed = Feed()
    reader = Reader(rt.stream(feed))
    for count, path in enumerate(pictures[:3], 1):
        feed.put(path)
        until(lambda: len(reader.got) == count)  # noqa: B023 - called in this round
    feed.end()
    assert [result.label for result in reader.end()] == ["dark", "bright", "dark"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_latency_ms": -1}, "max_latency_ms -1"),
        ({"max_latency_ms": float("nan")}, "max_latency_ms nan"),
        ({"max_batch": 0}, "max_batch 0: expected 1 to 4"),
        ({"max_batch": 5}, "max_batch 5: expected 1 to 4"),
    ],
)
def test_options_that_do_not_fit_are_wrong_use(rt: Runtime, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        rt.stream([], **options)


def test_what_is_no_source_is_wrong_use(rt: Runtime) -> None:
    with pytest.raises(UsageError, match="int"):
        rt.stream(3)  # type: ignore[call-overload]


def test_a_bundle_without_labels_has_no_sentiments(rt: Runtime) -> None:
    rt.labels = []
    with pytest.raises(UsageError, match=r"rt\.features"):
        rt.stream([])


@pytest.mark.parametrize("target", ["openvino:cpu", "onnxruntime:cpu"])
def test_a_real_engine_gives_padded_items_the_same_bits_whatever_the_pattern(
    tiny_bundle: Path, pictures: list[Path], target: str
) -> None:
    items: list[Any] = [*pictures[:5], b"no image", *pictures[5:]]

    def unevenly(step: int) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number % step == 0:
                time.sleep(0.004)
            yield item

    def bits(results: Iterable[Sentiment | ItemError]) -> list[Any]:
        return [r.scores if isinstance(r, Sentiment) else r.reason for r in results]

    with vsa_rt.load(tiny_bundle, target=target, precision="fp32", threads=2) as rt:
        watch = Watch()
        together = bits(rt.stream(items, max_latency_ms=float("inf"), pad=True))
        for step in (1, 2, 5):
            assert bits(rt.stream(unevenly(step), max_latency_ms=1, pad=True, watch=watch)) == together
        counts = watch.counts()
        assert len(counts.sizes) > 1  # the patterns did differ
        assert counts.padding == 4 * counts.batches - counts.sent


# Closing the runtime


def test_closing_the_runtime_ends_a_stream_whose_reader_waits(
    tiny_bundle: Path, pictures: list[Path]
) -> None:
    rt, feed = vsa_rt.load(tiny_bundle, precision="fp32"), Feed()
    reader = Reader(rt.stream(feed, max_latency_ms=0))
    feed.put(pictures[0])
    until(lambda: len(reader.got) == 1)
    threading.Timer(0.02, feed.put, [pictures[1]]).start()
    rt.close()
    assert [r.label for r in reader.end()[:1]] == ["dark"]
    assert isinstance(reader.error, UsageError)
    assert "closed" in str(reader.error)
    until(lambda: threads() == [])
    with pytest.raises(UsageError, match="closed"):
        rt.stream([])


def test_closing_the_runtime_under_load_ends_everything(tiny_bundle: Path, pictures: list[Path]) -> None:
    rt = vsa_rt.load(tiny_bundle, precision="fp32")
    readers = [Reader(rt.stream(iter(pictures * 1000), max_latency_ms=n)) for n in (0, 5, 50)]
    until(lambda: all(len(r.got) > 3 for r in readers))
    rt.close()
    for reader in readers:
        got = reader.end()
        assert [r.label for r in got] == (["dark", "bright"] * len(got))[: len(got)]
        assert isinstance(reader.error, UsageError)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("vsa-")]


def test_a_source_may_close_the_runtime(tiny_bundle: Path, pictures: list[Path]) -> None:
    rt = vsa_rt.load(tiny_bundle, precision="fp32")

    def closing() -> Iterator[Path]:
        yield pictures[0]
        rt.close()
        yield pictures[1]

    reader = Reader(rt.stream(closing()))
    reader.end()
    assert isinstance(reader.error, UsageError)


def test_a_stream_that_was_not_begun_is_refused_by_a_closed_runtime(tiny_bundle: Path) -> None:
    with vsa_rt.load(tiny_bundle, precision="fp32") as rt:
        stream = rt.stream([b""])
    with pytest.raises(UsageError, match="closed"):
        next(stream)


def test_closing_the_runtime_ends_an_asynchronous_stream(tiny_bundle: Path, pictures: list[Path]) -> None:
    async def main() -> None:
        rt = vsa_rt.load(tiny_bundle, precision="fp32")

        async def camera() -> AsyncIterator[Path]:
            yield pictures[0]
            await asyncio.Event().wait()

        stream = rt.stream(camera(), max_latency_ms=0)
        first = await anext(stream)
        assert isinstance(first, Sentiment)
        closing = asyncio.create_task(asyncio.to_thread(rt.close))
        with pytest.raises(UsageError, match="closed"):
            await anext(stream)
        await closing

    asyncio.run(main())
