"""What a timeline's picture is made of: places, times, colours, and which of the labels and thumbnails are shown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsa_rt.render.timeline import spread
from vsa_rt.render.timeline_axis import Axis, clock
from vsa_rt.render.timeline_bars import on, runs
from vsa_rt.render.timeline_labels import BLUE, GREY, PALETTE, VERMILLION, cast
from vsa_rt.render.timeline_lines import bounds, gathered, luminance

#: Where a picture's time begins and ends, in pixels.
LEFT, RIGHT = 120, 1248


@given(
    places=st.lists(st.floats(0, 1000), max_size=80).map(sorted),
    width=st.integers(1, 160),
)
@settings(deadline=None, max_examples=100)
def test_thumbnails_never_lie_over_each_other(places: list[float], width: int) -> None:
    shown = spread([width] * len(places), places, 0, 1000)
    assert bool(shown) == bool(places)
    assert all(0 <= left <= 1000 - width for _, left in shown)
    assert all(left <= places[n] + 1 and places[n] - 1 <= left + width for n, left in shown)
    assert all(b - a >= width + 6 for (_, a), (_, b) in pairwise(shown))


def test_as_many_thumbnails_are_shown_as_fit_and_evenly() -> None:
    shown = spread([100] * 64, np.linspace(0, 1000, 64).tolist(), 0, 1000)
    gaps = [b - a - 100 for (_, a), (_, b) in pairwise(shown)]
    assert len(shown) == 9
    assert max(gaps) - min(gaps) < 32  # places are 16 apart


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-1, 1)), min_size=1, max_size=200), st.integers(1, 20))
@settings(deadline=None)
def test_columns_hold_what_their_frames_say(frames: list[tuple[float, float]], columns: int) -> None:
    shares, values = (np.array(part) for part in zip(*sorted(frames), strict=True))
    places, mean, low, high = gathered(shares, values, columns)
    assert len(places) <= columns
    assert (np.diff(places) > 0).all()
    assert (low.min(), high.max()) == (values.min(), values.max())
    assert (low - 1e-9 <= mean).all()
    assert (mean <= high + 1e-9).all()
    one = gathered(shares, values, 1)
    assert one[1][0] == pytest.approx(values.mean(), abs=1e-9)


def test_scores_that_stay_small_are_drawn_large() -> None:
    assert bounds(np.array([0.0, 0.04])) == (0, 0.1)
    assert bounds(np.array([0.3])) == (0, 0.5)
    assert bounds(np.array([0.51])) == (0, 1)
    assert bounds(np.array([-2.0, 3.0])) == (-2, 3)
    low, high = bounds(np.zeros(3))
    assert low < high


def test_of_many_labels_the_highest_means_are_lines_and_the_longest_lasting_get_the_other_colours() -> None:
    labels = [f"l{n}" for n in range(12)]
    means = np.array([0.1, 0.9, 0.2, 0.8, 0.05, 0.7, 0.01, 0.6, 0.02, 0.5, 0.03, 0.4])
    chosen = cast(labels, means, {"l1": 9.0, "l0": 1.0, "l2": 3.0, "l4": 2.0, "l6": 0.5})
    assert chosen.lines == (1, 3, 5, 7, 9)
    assert list(chosen.colours) == ["l1", "l3", "l5", "l7", "l9", "l2", "l4", "l0"]
    assert len(set(chosen.colours.values())) == 8
    assert chosen.colour("l6") == chosen.colour(None) == GREY


def test_up_to_eight_labels_are_all_lines() -> None:
    chosen = cast([f"l{n}" for n in range(8)], np.zeros(8), {})
    assert chosen.lines == tuple(range(8))
    assert len(set(chosen.colours.values())) == 8


def test_opposites_look_opposite_in_whatever_order() -> None:
    for labels in (("negative", "positive"), ("positive", "negative"), ("Positive", "neutral", "NEGATIVE")):
        colours = {label.lower(): colour for label, colour in cast(labels, np.zeros(3), {}).colours.items()}
        assert (colours["negative"], colours["positive"]) == (VERMILLION, BLUE)
    assert dict(cast(("dark", "bright"), np.zeros(2), {}).colours) == {"dark": VERMILLION, "bright": BLUE}


#: Machado, Oliveira and Fernandes 2009, severity 1: what people without one kind of cones see, in linear RGB.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def apart(colours: Sequence[tuple[int, int, int]], matrix: Any) -> float:
    """Smallest distance of two colours in CIELAB (CIE 15, D65), as they are seen."""
    share = np.array(colours) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(matrix).T, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = seen @ to_xyz.T / [0.9505, 1, 1.089]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
    return float(min(np.linalg.norm(a - b) for a, b in combinations(lab, 2)))


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_are_told_apart_without_one_kind_of_cones(kind: str) -> None:
    assert apart(PALETTE, BLINDNESS[kind]) > 15
    assert apart([VERMILLION, BLUE], BLINDNESS[kind]) > 40


def test_red_and_green_of_one_lightness_would_be_caught() -> None:
    assert apart([(200, 80, 0), (140, 125, 0)], BLINDNESS["deuteranopia"]) < 15


@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_text_on_a_colour_is_readable(colour: tuple[int, int, int]) -> None:
    light, dark = sorted((luminance(colour), luminance(on(colour))), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3.9


@pytest.mark.parametrize(
    ("seconds", "step", "text"),
    [
        (0, 1, "0:00"),
        (59.6, 1, "1:00"),
        (65, 1, "1:05"),
        (3599.9, 1, "1:00:00"),
        (3723, 60, "1:02:03"),
        (360_000, 3600, "100:00:00"),
        (1.26, 0.1, "0:01.3"),
        (0.05, 0.02, "0:00.05"),
        (-5, 1, "-0:05"),
        (-0.2, 1, "0:00"),
    ],
)
def test_times_are_written_as_people_write_them(seconds: float, step: float, text: str) -> None:
    assert clock(seconds, step) == text


@given(st.floats(-1e5, 1e7), st.floats(0, 1e7))
def test_ticks_are_few_inside_and_differ_as_text(begin: float, span: float) -> None:
    axis = Axis(begin, begin + span, LEFT, RIGHT)
    ticks, step = axis.ticks()
    assert len(ticks) <= 12
    assert all(LEFT <= axis.place(tick) <= RIGHT for tick in ticks)
    assert len({clock(tick, step) for tick in ticks}) == len(ticks)
    if span > 0.1:
        assert len(ticks) >= 3 or span > 86400


def segment(start: float, end: float) -> dict[str, Any]:
    return {"start": start, "end": end, "label": "a", "labels": [], "confidence": 1.0}


@given(st.lists(st.floats(0, 100), min_size=2, max_size=60, unique=True).map(sorted))
def test_every_column_belongs_to_the_segment_in_its_middle(edges: list[float]) -> None:
    segments = [segment(a, b) for a, b in pairwise(edges)]
    axis = Axis(0, 100, 0, 50)
    found = runs(segments, axis)
    assert [run.left for run in found] == [0, *(run.right for run in found[:-1])]
    assert found[-1].right == 50
    for run in found:
        for place in range(run.left, run.right):
            middle = (place + 0.5) * 2
            expected = [n for n, s in enumerate(segments) if s["start"] <= middle < s["end"]]
            assert [run.segment] == (expected or [-1])
