"""A channel between threads: order, back pressure, ends and errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from vsa_rt.pipeline.ingest.channel import Channel

#: Seconds after which a test that hangs fails.
SAFETY = 20.0


def test_things_come_out_in_the_order_in_which_they_went_in() -> None:
    channel: Channel[int] = Channel(2)

    def put() -> None:
        for number in range(100):
            channel.put(number)
        channel.finish()

    threading.Thread(target=put, daemon=True).start()
    assert list(channel) == list(range(100))


def test_no_more_wait_than_it_has_room_for() -> None:
    channel: Channel[int] = Channel(3)
    taken = 0
    while channel.put(taken, patience=0.01):
        taken += 1
    assert taken == len(channel) == 3


def test_one_that_waits_for_room_gets_it_when_something_is_read() -> None:
    channel: Channel[str] = Channel(1)
    channel.put("a")
    second = threading.Thread(target=lambda: channel.put("b"), daemon=True)
    second.start()
    reader = iter(channel)
    assert next(reader) == "a"
    second.join(SAFETY)
    assert not second.is_alive()
    assert next(reader) == "b"


def test_an_error_comes_after_what_was_put_in_before() -> None:
    channel: Channel[str] = Channel(2)
    channel.put("a")
    channel.finish(ValueError("broken"))
    reader = iter(channel)
    assert next(reader) == "a"
    with pytest.raises(ValueError, match="broken"):
        next(reader)


def test_the_first_end_counts() -> None:
    channel: Channel[str] = Channel(2)
    channel.finish(ValueError("first"))
    channel.finish()
    with pytest.raises(ValueError, match="first"):
        list(channel)


def test_closing_wakes_both_sides_and_gives_back_what_waited() -> None:
    channel: Channel[str] = Channel(1)
    channel.put("a")
    answers: list[bool] = []
    writer = threading.Thread(target=lambda: answers.append(channel.put("b")), daemon=True)
    writer.start()
    assert channel.close() == ["a"]
    writer.join(SAFETY)
    assert answers == [False]
    assert list(channel) == []
    assert not channel.put("c")


def test_closing_ends_a_reader_that_waits() -> None:
    channel: Channel[str] = Channel(1)
    found: list[list[str]] = []
    reader = threading.Thread(target=lambda: found.append(list(channel)), daemon=True)
    reader.start()
    channel.close()
    reader.join(SAFETY)
    assert found == [[]]


def test_what_was_read_is_not_held_while_the_next_one_is_waited_for() -> None:
    import gc
    import weakref

    class Large:
        pass

    channel: Channel[Large] = Channel(1)
    large = Large()
    gone = weakref.ref(large)
    channel.put(large)
    del large
    waiting = threading.Event()

    def read(reader: Iterator[Large]) -> None:
        next(reader)
        waiting.set()
        next(reader, None)

    thread = threading.Thread(target=read, args=(iter(channel),), daemon=True)
    thread.start()
    assert waiting.wait(SAFETY)
    for _ in range(200):
        gc.collect()
        if gone() is None:
            break
        threading.Event().wait(0.01)
    assert gone() is None
    channel.close()
    thread.join(SAFETY)


def test_nothing_is_taken_after_an_error() -> None:
    channel: Channel[str] = Channel(2)
    channel.put("a")
    channel.finish(ValueError("broken"))
    assert not channel.put("b")
