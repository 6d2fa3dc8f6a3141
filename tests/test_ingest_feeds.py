"""Feeds as windows of time: which windows there are, what they are named, and what is said of outages."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from typing import Any

import pytest
from clips import number_of
from feeds import FIVE, STOPS, Breaks, Camera, Does, Session, Shot, free_port, sender

import vsa_rt
from vsa_rt.errors import EnvironmentUnusable, ItemError, UsageError
from vsa_rt.pipeline.ingest.feeds import Closed, Feed, Opened, Seen
from vsa_rt.runtime.video import Frame

#: Longer than anything here takes: a wait that ends by it failed.
SOON = 60.0
REFUSED = "the server refused the connection"


def told(events: Iterable[Any]) -> list[str]:
    """Events as short lines: ``+ 17:00:00Z``, ``0 at 1.5``, ``- 17:00:00Z 60 error``."""
    lines = []
    for event in events:
        if isinstance(event, Seen):
            lines.append(f"{event.index} at {event.seconds:g}")
        elif isinstance(event, Opened):
            lines.append(f"+ {event.key.removeprefix('cam@2026-11-22T')}")
        else:
            key = event.key.removeprefix("cam@2026-11-22T")
            lines.append(f"- {key} {event.end:g} {event.error}".rstrip())
    return lines


def played(*sessions: Session, **options: Any) -> list[str]:
    """What is told of a camera whose connections give these sessions."""
    refuses = options.pop("refuses", ())
    return told(Camera(*sessions, refuses=refuses).feed(**options).events())


def keys(events: Iterable[Any]) -> list[str]:
    return [event.key for event in events if isinstance(event, Opened)]


# Windows


def test_the_first_window_is_named_after_its_first_frame_and_later_ones_are_aligned() -> None:
    assert played([23.512, 24, 59.999, 60, 61.5, 125], patience=0) == [
        "+ 17:00:23.512Z",
        "0 at 0",
        "1 at 0.488",
        "2 at 36.487",
        "- 17:00:23.512Z 36.488",
        "+ 17:01:00Z",
        "0 at 0",
        "1 at 1.5",
        "- 17:01:00Z 60",
        "+ 17:02:00Z",
        "0 at 5",
        "- 17:02:00Z 5",
    ]


def test_every_event_of_a_window_has_its_key_and_frames_go_through_untouched() -> None:
    events = list(Camera([1, 2, 61]).feed(patience=0).events())
    named = [event.key for event in events]
    assert named == ["cam@2026-11-22T17:00:01.000Z"] * 4 + ["cam@2026-11-22T17:01:00Z"] * 3
    assert [event.picture for event in events if isinstance(event, Seen)] == [Shot(0), Shot(1), Shot(2)]


def test_windows_without_frames_give_nothing() -> None:
    assert keys(Camera([0, 60, 600]).feed(patience=0).events()) == [
        "cam@2026-11-22T17:00:00.000Z",
        "cam@2026-11-22T17:01:00Z",
        "cam@2026-11-22T17:10:00Z",
    ]


def test_two_cameras_that_begin_at_different_times_have_the_same_windows() -> None:
    one = keys(Camera([3.1, 60.2, 121]).feed(patience=0).events())
    other = keys(Camera([44.7, 75, 179.9]).feed(patience=0).events())
    assert one[1:] == other[1:] != []
    assert one[0] != other[0]


@pytest.mark.parametrize(
    ("window", "names"),
    [
        (3600, ["16:59:59.000Z", "17:00:00Z"]),
        (0.25, ["16:59:59.000Z", "17:00:00.000Z", "17:00:00.500Z"]),
        (1.5, ["16:59:59.000Z", "17:00:00.000Z"]),
        (1, ["16:59:59.000Z", "17:00:00Z"]),
    ],
)
def test_keys_have_fractions_where_windows_do(window: float, names: list[str]) -> None:
    camera = Camera([-1, 0.1, 0.5])
    camera.now = -1.0
    found = keys(camera.feed(window=window, patience=0).events())
    assert [key.removeprefix("cam@2026-11-22T") for key in found] == names


def test_a_run_that_begins_again_within_a_window_gives_no_key_twice() -> None:
    killed = islice(Camera([23.5, 60, 70]).feed().events(), 5)
    again = Camera([75.25, 120]).feed(patience=0).events()
    before, after = keys(killed), keys(again)
    assert before == ["cam@2026-11-22T17:00:23.500Z", "cam@2026-11-22T17:01:00Z"]
    assert after == ["cam@2026-11-22T17:01:15.250Z", "cam@2026-11-22T17:02:00Z"]


@pytest.mark.parametrize("window", [0, -60, 0.0001, float("nan"), float("inf")])
def test_a_window_that_is_none_is_refused(window: float) -> None:
    with pytest.raises(UsageError, match=r"window of .* expected a number from 0\.001 on"):
        Camera().feed(window=window)


@pytest.mark.parametrize("patience", [-1, float("nan")])
def test_a_patience_that_is_none_is_refused(patience: float) -> None:
    with pytest.raises(UsageError, match=r"patience of .* expected a number from 0 on"):
        Camera().feed(patience=patience)


# Clocks


def test_time_goes_on_when_the_clock_is_set_back() -> None:
    def set_back(camera: Camera) -> None:
        camera.back = 3600.0

    camera = Camera([10, 20, Does(set_back), 30, 50, 70])
    assert told(camera.feed(patience=0).events()) == [
        "+ 17:00:10.000Z",
        "0 at 0",
        "1 at 10",
        # What went by while the clock was set cannot be told; after that, time goes on at its pace.
        "2 at 10",
        "3 at 30",
        "- 17:00:10.000Z 50",
        "+ 17:01:00Z",
        "0 at 0",
        "- 17:01:00Z 0",
    ]


def test_keys_that_an_earlier_run_used_up_are_not_given_again() -> None:
    done = {"cam@2026-11-22T17:00:30.000Z", "cam@2026-11-22T17:00:30.001Z", "cam@2026-11-22T17:01:00Z"}
    found = told(Camera([30, 65, 120]).feed(patience=0, known=done.__contains__).events())
    assert found == [
        "+ 17:00:30.002Z",
        "0 at 0",
        "- 17:00:30.002Z 30",
        "+ 17:01:05.000Z",
        "0 at 0",
        "- 17:01:05.000Z 55",
        "+ 17:02:00Z",
        "0 at 0",
        "- 17:02:00Z 0",
    ]


def test_connections_of_the_same_millisecond_have_different_keys() -> None:
    camera = Camera([5], [5], [5], [])
    found = keys(camera.feed(wait=lambda _: False).events())
    assert found == [f"cam@2026-11-22T17:00:05.00{n}Z" for n in range(3)]


# Feeds that break off


def test_a_feed_that_breaks_off_closes_its_window_with_the_reason_and_begins_another() -> None:
    assert played([0, 10, Breaks(12)], [13.25, 60], patience=0) == [
        "+ 17:00:00.000Z",
        "0 at 0",
        "1 at 10",
        "- 17:00:00.000Z 12 the cable is out",
        "+ 17:00:13.250Z",
        "0 at 0",
        "- 17:00:13.250Z 46.75",
        "+ 17:01:00Z",
        "0 at 0",
        "- 17:01:00Z 0",
    ]


def test_an_outage_is_said_once_however_many_attempts_it_takes() -> None:
    down: list[Session] = [[Breaks(0, REFUSED)]] * 9
    camera = Camera([0, Breaks(5)], *down, [500], refuses=range(2, 7))
    assert told(camera.feed(patience=0).events()) == [
        "+ 17:00:00.000Z",
        "0 at 0",
        "- 17:00:00.000Z 5 the cable is out",
        "+ 17:00:06.000Z",
        f"- 17:00:06.000Z 0 {REFUSED}",
        "+ 17:08:20.000Z",
        "0 at 0",
        "- 17:08:20.000Z 0",
    ]
    assert camera.waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


def test_the_second_outage_is_said_again_and_its_pauses_begin_anew() -> None:
    down: list[Session] = [[Breaks(0, REFUSED)]] * 3
    camera = Camera([0, Breaks(1)], *down, [100, Breaks(101)], *down)
    errors = [e.error for e in camera.feed().events() if isinstance(e, Closed)]
    assert errors == ["the cable is out", REFUSED] * 2
    assert camera.waits == [1, 2, 4, 8, 1, 2, 4, 8]


def test_a_camera_that_falls_silent_until_its_window_is_over_does_not_spoil_it() -> None:
    found = played([0, 59, Breaks(89, "nothing came for 30 s (timeout)")], [Breaks(0, REFUSED)], [200])
    assert found == [
        "+ 17:00:00.000Z",
        "0 at 0",
        "1 at 59",
        "- 17:00:00.000Z 60",
        "+ 17:01:29.000Z",
        "- 17:01:29.000Z 0 nothing came for 30 s (timeout)",
        "+ 17:03:20.000Z",
        "0 at 0",
        "- 17:03:20.000Z 0",
    ]


@pytest.mark.parametrize("refuses", [[], [1]], ids=["by the iterator", "by opening it"])
def test_a_feed_that_cannot_be_connected_to_at_first_fails_and_is_over(refuses: list[int]) -> None:
    camera = Camera([Breaks(3, REFUSED)], [4, 5], refuses=refuses)
    camera.now = 3.0
    found = told(camera.feed().events())
    assert found == ["+ 17:00:03.000Z", f"- 17:00:03.000Z 0 {REFUSED}"]
    assert camera.waits == []


def test_a_feed_that_gives_nothing_at_all_fails() -> None:
    assert played([]) == ["+ 17:00:00.000Z", "- 17:00:00.000Z 0 no frames: it ends before the first"]


def test_what_is_no_fault_of_the_feed_is_not_taken_for_one() -> None:
    def fails(_: Camera) -> None:
        raise EnvironmentUnusable("no decoder")

    camera = Camera([1, Does(fails)])
    with pytest.raises(EnvironmentUnusable, match="no decoder"):
        list(camera.feed().events())
    assert camera.closed == 1


# Feeds that end


def test_a_server_that_ends_the_session_is_connected_to_again() -> None:
    camera = Camera([0, 1], [2.5, 3], [])
    assert told(camera.feed().events()) == [
        "+ 17:00:00.000Z",
        "0 at 0",
        "1 at 1",
        "- 17:00:00.000Z 1",
        "+ 17:00:02.500Z",
        "0 at 0",
        "1 at 0.5",
        "- 17:00:02.500Z 0.5",
    ]
    # The third connection gave nothing: it is over, and nobody stopped it.
    assert camera.waits == [1, 1]
    assert not camera.stop.is_set()


def test_a_feed_that_ended_and_cannot_be_reached_again_is_over_when_patience_is() -> None:
    camera = Camera([0, 1], *[[Breaks(0, REFUSED)]] * 50)
    errors = [e.error for e in camera.feed(patience=60).events() if isinstance(e, Closed)]
    assert errors == ["", REFUSED]
    assert camera.waits == [1, 2, 4, 8, 16, 32]
    assert not camera.stop.is_set()


def test_a_camera_that_starts_anew_within_the_patience_goes_on() -> None:
    down: list[Session] = [[Breaks(0, REFUSED)]] * 5
    camera = Camera([0, 1], *down, [100, 101], *down)
    found = [e.key for e in camera.feed(patience=60).events() if isinstance(e, Opened)]
    assert [key[-13:] for key in found] == [
        "17:00:00.000Z",
        "17:00:02.000Z",
        "17:01:40.000Z",
        "17:01:42.000Z",
    ]


def test_a_feed_that_broke_off_is_waited_for_without_end_also_while_it_gives_nothing() -> None:
    camera = Camera([0, Breaks(1)], *[()] * 30)
    errors = [e.error for e in camera.feed(patience=0).events() if isinstance(e, Closed)]
    assert errors == ["the cable is out", "no frames: it ends before the first"]
    assert len(camera.waits) == 31
    assert camera.stop.is_set()


# Stops


def test_a_stop_closes_the_window_without_an_error() -> None:
    camera = Camera([0, 10, STOPS, 12, 13])
    assert told(camera.feed().events()) == [
        "+ 17:00:00.000Z",
        "0 at 0",
        "1 at 10",
        "- 17:00:00.000Z 12",
    ]
    assert camera.closed == 1
    assert camera.waits == []


def test_a_stop_that_interrupts_a_silent_camera_is_no_error() -> None:
    camera = Camera([0, STOPS, Breaks(7, "was stopped")])
    assert told(camera.feed().events()) == ["+ 17:00:00.000Z", "0 at 0", "- 17:00:00.000Z 7"]


def test_a_stop_before_the_first_frame_gives_nothing() -> None:
    camera = Camera([STOPS, Breaks(7, "was stopped")])
    assert told(camera.feed().events()) == []
    assert told(camera.feed().events()) == []


def test_after_a_stop_the_iterator_is_not_asked_again() -> None:
    camera = Camera([0, 1, 2])
    found: list[str] = []
    for event in camera.feed().events():
        found += told([event])
        if isinstance(event, Seen):
            camera.stop.set()
    assert found == ["+ 17:00:00.000Z", "0 at 0", "- 17:00:00.000Z 0"]
    assert camera.now == 0


def test_a_stop_ends_the_pause_before_the_next_attempt() -> None:
    stop = threading.Event()
    attempts = 0

    def connect() -> Iterator[Shot]:
        nonlocal attempts
        attempts += 1
        yield Shot(0)
        threading.Timer(0.05, stop.set).start()
        raise ItemError("cam", REFUSED)

    found: list[str] = []
    feed = Feed("cam", connect, stop=stop, clock=lambda: FIVE)
    thread = threading.Thread(target=lambda: found.extend(told(feed.events())), daemon=True)
    thread.start()
    thread.join(SOON)
    assert not thread.is_alive()
    assert found == ["+ 17:00:00.000Z", "0 at 0", f"- 17:00:00.000Z 0 {REFUSED}"]
    assert attempts == 1


def test_who_leaves_the_events_closes_the_connection() -> None:
    camera = Camera([0, 1, 2])
    events = camera.feed().events()
    assert told(islice(events, 2)) == ["+ 17:00:00.000Z", "0 at 0"]
    assert camera.closed == 0
    events.close()
    assert camera.closed == 1


# A live sender


def test_windows_of_a_live_transport_stream_have_its_frames_in_order() -> None:
    av = pytest.importorskip("av")
    port, stop = free_port(), threading.Event()
    events: list[Any] = []

    def connect() -> Iterator[Frame]:
        return vsa_rt.video(f"udp://127.0.0.1:{port}", "all", timeout=SOON, threads=1)

    try:
        with sender(port):
            for event in Feed("udp", connect, window=1.0, stop=stop).events():
                events.append(event)
                if sum(isinstance(e, Closed) for e in events) == 3:
                    stop.set()
    except av.error.ProtocolNotFoundError:
        pytest.skip("PyAV's FFmpeg has no udp protocol")

    windows = [event for event in events if isinstance(event, Opened)]
    ends = [event for event in events if isinstance(event, Closed)]
    assert [w.key for w in windows] == [e.key for e in ends]
    assert len({w.key for w in windows}) == len(windows) >= 3
    assert len(windows[0].key) == len("udp@2026-11-22T17:00:00.000Z")
    assert {len(w.key) for w in windows[1:]} == {len("udp@2026-11-22T17:00:00Z")}
    assert [e.error for e in ends] == [""] * len(ends)
    assert all(0 <= e.end <= 1 for e in ends)
    frames = [event for event in events if isinstance(event, Seen)]
    assert all(0 <= f.seconds < 1 for f in frames)
    numbers = [number_of(f.picture.pixels) for f in frames]
    steps = [(later - before) % 256 for before, later in pairwise(numbers)]
    # A datagram may get lost on a busy machine, but none overtakes another.
    assert len(steps) > 10
    assert all(0 < step < 128 for step in steps)
