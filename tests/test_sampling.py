"""Samples choose frames by their times: golden lists, and a definition in words tried on random sequences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsa_rt.errors import UsageError
from vsa_rt.runtime.sampling import Sample


@dataclass(frozen=True)
class Shown:
    seconds: Fraction
    key: bool = False
    cut: bool = False


def times(sample: str, frames: list[Shown], start: float = 0, length: float | None = None) -> list[float]:
    chosen = Sample.parse(sample).choose(
        frames, start=Fraction(start), length=None if length is None else Fraction(length)
    )
    return [float(frame.seconds) for frame in chosen]


def at(*seconds: float | str) -> list[Shown]:
    return [Shown(Fraction(value)) for value in seconds]


def steady(count: int, rate: Fraction | int) -> list[Shown]:
    return [Shown(number / Fraction(rate)) for number in range(count)]


# What each rule chooses


def test_one_frame_a_second_is_the_first_at_or_after_each_second() -> None:
    assert times("fps=1", steady(76, 25)) == [0, 1, 2, 3]
    # 29.97 frames a second: no frame falls on a second, the next one is a thirtieth later.
    assert times("fps=1", steady(91, Fraction(30_000, 1001))) == [0, 1.001, 2.002, 3.003]


def test_a_frame_that_is_the_first_for_several_seconds_counts_once() -> None:
    assert times("fps=1", at(0, "0.5", "3.2", "3.9", "4.1")) == [0, 3.2, 4.1]


def test_other_rates_have_other_grids() -> None:
    assert times("fps=2", steady(26, 25)) == [0, 0.52, 1.0]
    assert times("fps=0.5", steady(126, 25)) == [0, 2, 4]
    assert times("fps=1/3", steady(126, 25)) == [0, 3]
    assert times("fps=100", steady(4, 25)) == [0, 0.04, 0.08, 0.12]


def test_the_grid_does_not_move_with_the_start() -> None:
    assert times("fps=1", at("2.5", "2.9", "3.1", 4), start=2.5) == [3.1, 4]
    assert times("fps=1", at(2, "2.9", 3), start=2) == [2, 3]


def test_every_nth_counts_from_the_first() -> None:
    assert times("every=3", at(0, 1, 2, 3, 4, 5, 6)) == [0, 3, 6]
    assert times("every=1", at(0, 1)) == [0, 1]
    assert times("every=9", at(5, 6)) == [5]


def test_key_frames_are_those_of_the_decoder() -> None:
    frames = [Shown(Fraction(number), key=number % 4 == 0) for number in range(9)]
    assert times("keyframes", frames) == [0, 4, 8]


def test_scenes_begin_with_the_first_frame_and_with_cuts() -> None:
    frames = [Shown(Fraction(number), cut=number in (3, 4)) for number in range(6)]
    assert times("scenes", frames) == [0, 3, 4]


def test_uniform_takes_what_is_on_the_screen_at_the_middles() -> None:
    # Ten seconds in five parts: middles at 1, 3, 5, 7, 9.
    assert times("uniform=5", steady(250, 25), length=10) == [1, 3, 5, 7, 9]
    # Three slides of a second each, as a GIF has them: the first frame at or after 2.5 would be none.
    assert times("uniform=3", at(0, 1, 2), length=3) == [0, 1, 2]
    assert times("uniform=1", steady(250, 25), length=10) == [5]


def test_uniform_takes_a_frame_that_fits_twice_once() -> None:
    assert times("uniform=9", at(0, 1), length=2) == [0, 1]
    assert times("uniform=4", at(0, 5), length=10) == [0, 5]


def test_uniform_counts_from_its_start() -> None:
    assert times("uniform=2", at(4, 5, 6, 7), start=4, length=4) == [5, 7]


def test_uniform_that_ends_sooner_than_said_gives_what_there_is() -> None:
    assert times("uniform=4", at(0, 1, 2), length=100) == [2]


def test_uniform_needs_a_length() -> None:
    with pytest.raises(ValueError, match="length"):
        Sample.parse("uniform=9").choose(at(0))


def test_all_takes_all() -> None:
    assert times("all", at(0, 1, 1, 2)) == [0, 1, 1, 2]


@pytest.mark.parametrize("sample", ["fps=1", "every=2", "keyframes", "scenes", "all"])
def test_frames_come_as_soon_as_they_are_seen(sample: str) -> None:
    seen = 0

    def feed() -> Iterator[Shown]:
        nonlocal seen
        for number in range(10):
            seen += 1
            yield Shown(Fraction(number), key=True, cut=True)

    chosen = Sample.parse(sample).choose(feed())
    assert next(iter(chosen)).seconds == 0
    assert seen == 1


@pytest.mark.parametrize("sample", ["fps=1", "every=2", "keyframes", "uniform=3", "scenes", "all"])
def test_of_no_frames_none_are_chosen(sample: str) -> None:
    assert times(sample, [], length=1) == []


# The definitions in words, tried on any sequence of times

Times = st.lists(st.integers(0, 4000), min_size=1, max_size=60).map(
    lambda steps: [Fraction(value, 400) for value in sorted(steps)]
)
Rates = st.sampled_from([Fraction(1), Fraction(2), Fraction(1, 3), Fraction(30_000, 1001), Fraction(5, 7)])


@settings(max_examples=300, deadline=None)
@given(seconds=Times, rate=Rates, start=st.integers(0, 12))
def test_at_a_rate_it_is_of_each_multiple_the_first_frame_at_or_after_it(
    seconds: list[Fraction], rate: Fraction, start: int
) -> None:
    begin = Fraction(start, 2)
    stretch = [value for value in seconds if value >= begin]
    expected = set()
    for multiple in range(math.ceil(begin * rate), math.ceil(rate * 11) + 1):
        later = [place for place, value in enumerate(stretch) if value >= multiple / rate]
        expected |= set(later[:1])
    chosen = Sample("fps", rate=rate).choose([Shown(value) for value in stretch], start=begin)
    assert [frame.seconds for frame in chosen] == [stretch[place] for place in sorted(expected)]


@settings(max_examples=300, deadline=None)
@given(seconds=Times, parts=st.integers(1, 20), start=st.integers(0, 8), length=st.integers(1, 5000))
def test_uniform_is_of_each_middle_the_last_frame_at_or_before_it(
    seconds: list[Fraction], parts: int, start: int, length: int
) -> None:
    begin, duration = Fraction(start, 2), Fraction(length, 400)
    stretch = [value for value in seconds if value >= begin]
    expected = set()
    for part in range(parts):
        middle = begin + duration * (part + Fraction(1, 2)) / parts
        earlier = [place for place, value in enumerate(stretch) if value <= middle]
        expected |= set(earlier[-1:])
    chosen = Sample("uniform", count=parts).choose(
        [Shown(value) for value in stretch], start=begin, length=duration
    )
    assert [frame.seconds for frame in chosen] == [stretch[place] for place in sorted(expected)]


# Its text


@pytest.mark.parametrize(
    ("text", "sample"),
    [
        ("fps=1", Sample("fps")),
        (" fps=0.5 ", Sample("fps", rate=Fraction(1, 2))),
        ("fps=30000/1001", Sample("fps", rate=Fraction(30_000, 1001))),
        ("every=30", Sample("every", count=30)),
        ("keyframes", Sample("keyframes")),
        ("uniform=9", Sample("uniform", count=9)),
        ("scenes", Sample("scenes")),
        ("all", Sample("all")),
    ],
)
def test_a_sample_is_read_from_its_text(text: str, sample: Sample) -> None:
    assert Sample.parse(text) == sample
    assert Sample.parse(str(sample)) == sample


@pytest.mark.parametrize(
    "text",
    [
        "", "fps", "fps=", "fps=0", "fps=-1", "fps=x", "fps=1/0", "fps=1e9", "fps=2000000", "fps=0/5", "fps=nan",
        "every", "every=0", "every=1.5", "every=-3", "uniform", "uniform=0", "uniform=10000000", "every=٣",
        "keyframes=3", "scenes=0.4", "all=1", "frames", "FPS=1", "1", "fps=1 fps=2", "uniform=9\n=",
    ],
)  # fmt: skip
def test_another_text_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(UsageError, match="sample") as refused:
        Sample.parse(text)
    assert repr(text) in str(refused.value)
    assert "fps" in str(refused.value)
