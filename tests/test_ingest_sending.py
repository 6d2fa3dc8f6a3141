"""Pictures of works and feeds to the engine: feeds never wait for it, and stopping ends everything."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from vsa_rt.errors import ItemError, UsageError
from vsa_rt.pipeline.ingest import sending
from vsa_rt.pipeline.ingest.channel import Channel
from vsa_rt.pipeline.ingest.pictures import Picture
from vsa_rt.pipeline.ingest.tally import Tally
from vsa_rt.pipeline.ingest.work import End, Look, Work
from vsa_rt.runtime.sampling import Sample

SAFETY = 30.0


class Camera:
    """In a decoder's place: gives frames until it is closed."""

    frames: Callable[[Camera], Iterator[Picture]]

    def __init__(self, _: float) -> None:
        self.closed = threading.Event()

    def pictures(self, *_: Any) -> Iterator[Picture]:
        if self.closed.is_set():
            raise UsageError("the decoder is closed")
        yield from type(self).frames(self)

    def close(self) -> None:
        self.closed.set()


def picture() -> Picture:
    return Picture(np.zeros((4, 4, 3), np.uint8))


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> type[Camera]:
    monkeypatch.setattr(sending, "Decoder", Camera)
    return Camera


def followed(works: Channel[Work], sample: str = "all") -> tuple[sending.Sending, Tally]:
    tally = Tally()
    found = sending.Sending(works, None, 1e6, None, tally)
    found.follow(Work("rtsp://c", "feed", "rtsp://c"), Sample.parse(sample), 3600.0, 60.0, lambda _: False)
    return found, tally


def test_a_feed_drops_frames_rather_than_wait_for_the_engine(camera: type[Camera]) -> None:
    def frames(self: Camera) -> Iterator[Picture]:
        for _ in range(20):
            yield picture()
        shown.set()
        self.closed.wait(SAFETY)
        raise ItemError("c", "was stopped")

    shown = threading.Event()
    camera.frames = frames
    works: Channel[Work] = Channel(1)
    sent, tally = followed(works)
    # Nobody reads: two wait, and eighteen are dropped.
    assert shown.wait(SAFETY)
    assert tally.numbers().dropped == 18
    sent.stop()
    works.finish()
    sent.start()
    steps = [step for step, _ in sent.channel]
    assert [type(step) for step in steps] == [Look, Look, End]
    assert steps[-1].work.dropped == 18
    sent.close()


def test_stopping_ends_a_silent_feed_without_an_error(camera: type[Camera]) -> None:
    def frames(self: Camera) -> Iterator[Picture]:
        yield picture()
        self.closed.wait(SAFETY)
        raise ItemError("c", "its decoding was stopped")

    camera.frames = frames
    works: Channel[Work] = Channel(1)
    works.finish()
    sent, _ = followed(works)
    sent.start()
    reader = iter(sent.channel)
    assert isinstance(next(reader)[0], Look)
    sent.stop()
    end = next(reader)[0]
    assert isinstance(end, End)
    assert end.error == ""
    assert list(reader) == []
    sent.close()


def test_a_feed_that_is_stopped_before_it_opens_ends_as_well(camera: type[Camera]) -> None:
    opened = threading.Event()

    def frames(self: Camera) -> Iterator[Picture]:
        opened.set()
        yield picture()

    camera.frames = frames
    works: Channel[Work] = Channel(1)
    works.finish()
    sent, _ = followed(works)
    sent.start()
    assert opened.wait(SAFETY)
    sent.stop()  # the connection ended by itself; the next one must not begin

    def close() -> None:
        list(sent.channel)
        sent.close()

    closer = threading.Thread(target=close, daemon=True)
    closer.start()
    closer.join(SAFETY)
    assert not closer.is_alive()
