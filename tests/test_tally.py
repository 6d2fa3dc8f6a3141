"""The numbers of a running ingestion."""

from __future__ import annotations

import threading
from dataclasses import fields

import pytest

from vsa_rt.pipeline.ingest.tally import Numbers, Tally
from vsa_rt.runtime.watch import Depths


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_numbers_that_come_from_many_threads_are_all_counted() -> None:
    tally = Tally()

    def count() -> None:
        for _ in range(2000):
            tally.add("frames", 2)
            tally.decoded(0.5)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tally.numbers().frames == 16_000
    assert tally.numbers().decode_seconds == 4000


def test_every_event_has_its_number() -> None:
    tally = Tally()
    tally.add("found", 10)
    tally.add("images", 4)
    tally.add("videos", 2)
    tally.add("feeds")
    tally.add("reused", 3)
    tally.add("failed", 2)
    tally.add("frames", 50)
    tally.add("bytes", 1000)
    tally.add("dropped", 5)
    tally.before, tally.current = 7, "a.jpg"
    tally.opening, tally.decoding = (lambda: 8), (lambda: 9)
    found = tally.numbers()
    assert (found.found, found.images, found.videos, found.feeds) == (10, 4, 2, 1)
    assert (found.reused, found.failed, found.frames, found.nbytes, found.dropped) == (3, 2, 50, 1000, 5)
    assert (found.before, found.current, found.opening, found.decoding) == (7, "a.jpg", 8, 9)
    # Reused pieces are among the others; those that failed came to an end, too.
    assert (found.finished, found.unfinished) == (9, 1)


def test_the_stream_is_seen_through_the_watch() -> None:
    class Stream:
        def depths(self) -> Depths:
            return Depths(1, 2, 3, 4)

    tally = Tally()
    tally.watch.follow(Stream())
    with tally.watch.timed("resize"):
        pass
    found = tally.numbers()
    assert found.stream == Depths(1, 2, 3, 4)
    assert found.resize_seconds > 0
    assert found.engine_seconds == 0


@pytest.mark.parametrize("begin", [-10.0, 0.0, 100.0])
def test_the_clock_stops_once_whatever_it_shows(begin: float) -> None:
    clock = Clock(begin)
    tally = Tally(clock)
    clock.now += 10
    assert tally.numbers().seconds == 10
    tally.end()
    clock.now += 5
    tally.end()
    assert tally.numbers().seconds == 10


def test_a_rate_and_shares_need_no_time_to_have_passed() -> None:
    assert Numbers().frames_per_second == 0
    assert Numbers(frames=5).frames_per_second == 0
    assert set(Numbers().shares().values()) == {0.0}
    shares = Numbers(decode_seconds=6, resize_seconds=3, engine_seconds=1).shares()
    assert shares == {"decode": 0.6, "resize": 0.3, "engine": 0.1}


def test_what_came_since_is_the_difference_and_depths_are_those_of_now() -> None:
    earlier = Numbers(seconds=10, found=100, images=90, frames=90, decode_seconds=8, opening=3, before=5)
    now = Numbers(
        seconds=14, found=140, images=100, frames=98, decode_seconds=9, engine_seconds=1, opening=7, before=5
    )
    since = now.since(earlier)
    assert (since.seconds, since.found, since.images, since.frames) == (4, 40, 10, 8)
    assert since.frames_per_second == 2
    assert since.shares() == {"decode": 0.5, "resize": 0.0, "engine": 0.5}
    assert (since.opening, since.before) == (7, 5)


def test_no_number_is_forgotten_in_a_difference() -> None:
    """A number that is added later must be put among those that grow, or among those that are as they are now."""
    as_now = {"before", "opening", "decoding", "stream", "current"}
    names = {field.name for field in fields(Numbers)} - as_now
    now = Numbers(**dict.fromkeys(names, 3))  # type: ignore[arg-type] # numbers, all of them
    since = now.since(Numbers(**dict.fromkeys(names, 1)))  # type: ignore[arg-type] # likewise
    assert {name: getattr(since, name) for name in names} == dict.fromkeys(names, 2)
