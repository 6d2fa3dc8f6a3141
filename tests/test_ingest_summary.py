"""What a video says as a whole: mean, peak, majority, and segments that follow each other without a gap."""

from __future__ import annotations

from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsa_rt.contracts import Task
from vsa_rt.pipeline.ingest.records import Moment
from vsa_rt.pipeline.ingest.summary import Rule, segments, smoothed, summarise

LABELS = ["sad", "glad"]
RULE = Rule(LABELS, Task.BINARY, window=0.0, shortest=0.0)


def moment(seconds: float, glad: float, index: int = 0) -> Moment:
    scores = {"sad": 1 - glad, "glad": glad}
    return Moment(seconds, index, "glad" if glad > 0.5 else "sad", (), scores)


def test_mean_peak_and_majority() -> None:
    found = summarise([moment(0, 0.9), moment(1, 0.4), moment(2, 0.45), moment(3, 0.2)], RULE, end=4)
    assert found["label"] == "sad"  # the mean is 0.4875
    assert found["scores"] == {"sad": pytest.approx(0.5125), "glad": pytest.approx(0.4875)}
    assert found["peak"]["glad"] == {"score": 0.9, "seconds": 0.0}
    assert found["peak"]["sad"] == {"score": pytest.approx(0.8), "seconds": 3.0}
    assert found["majority"] == {"label": "sad", "share": 0.75}
    assert (found["frames"], found["failed"]) == (4, 0)


def test_frames_that_failed_do_not_count() -> None:
    bad = Moment(1, 1, None, error="no picture")
    found = summarise([moment(0, 0.9), bad], RULE)
    assert (found["frames"], found["failed"], found["label"]) == (1, 1, "glad")
    assert summarise([bad], RULE) == {}
    assert summarise([], RULE) == {}


def test_a_tie_of_the_majority_goes_to_the_first_label_whatever_the_order() -> None:
    both = [moment(0, 0.9), moment(1, 0.1)]
    assert summarise(both, RULE)["majority"]["label"] == "sad"
    turned = [moment(0, 0.1), moment(1, 0.9)]
    assert summarise(turned, RULE)["majority"]["label"] == "sad"


def test_segments_change_half_way_between_frames_and_end_with_the_video() -> None:
    times = np.array([0.0, 1, 2, 3])
    scores = np.array([[0.1, 0.9], [0.2, 0.8], [0.7, 0.3], [0.9, 0.1]])
    first, second = segments(times, scores, RULE, end=5.0)
    assert (first.start, first.end, first.label) == (0.0, 1.5, "glad")
    assert (second.start, second.end, second.label) == (1.5, 5.0, "sad")
    assert first.confidence == pytest.approx(0.85)


def test_a_flicker_is_smoothed_away() -> None:
    moments = [moment(t, 0.1 if t == 5 else 0.8) for t in range(10)]
    assert len(summarise(moments, RULE)["segments"]) == 3
    calm = Rule(LABELS, Task.BINARY, window=3.0, shortest=0.0)
    assert len(summarise(moments, calm)["segments"]) == 1


def test_a_short_segment_goes_to_the_longer_neighbour() -> None:
    glad = [0.9] * 6 + [0.1] + [0.9] * 2
    rule = Rule(LABELS, Task.BINARY, window=0.0, shortest=1.5)
    found = summarise([moment(t, g) for t, g in enumerate(glad)], rule, end=9)["segments"]
    assert [(s["label"], s["start"], s["end"]) for s in found] == [("glad", 0.0, 9.0)]


def test_labels_that_may_hold_together_give_segments_of_sets() -> None:
    rule = Rule(["joy", "awe"], Task.MULTI_LABEL, 0.5, window=0.0, shortest=0.0)
    scores = [(0.9, 0.8), (0.9, 0.2), (0.1, 0.2)]
    moments = [Moment(t, t, None, (), {"joy": a, "awe": b}) for t, (a, b) in enumerate(scores)]
    found = summarise(moments, rule)
    assert [s["labels"] for s in found["segments"]] == [["joy", "awe"], ["joy"], []]
    assert found["majority"] is None
    assert found["label"] is None
    assert found["labels"] == ["joy"]


def test_smoothing_counts_time_and_not_frames() -> None:
    times = np.array([0.0, 0.1, 0.2, 10.0])
    scores = np.array([[1.0], [0.0], [0.5], [1.0]])
    found = smoothed(times, scores, 1.0)[:, 0]
    assert found[:3] == pytest.approx([0.5, 0.5, 0.5])
    assert found[3] == 1.0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 1)), min_size=1, max_size=40),
    st.floats(0, 10),
    st.floats(0, 5),
)
def test_segments_cover_the_video_without_gaps(
    steps: list[tuple[float, float]], window: float, shortest: float
) -> None:
    times = np.cumsum([step for step, _ in steps])
    scores = np.array([[1 - g, g] for _, g in steps])
    rule = Rule(LABELS, Task.BINARY, window=window, shortest=shortest)
    end = float(times[-1]) + 1
    found = segments(times, scores, rule, end)
    assert found[0].start == pytest.approx(times[0])
    assert found[-1].end == end
    for before, after in pairwise(found):
        assert before.end == after.start
        assert before.label != after.label
    if len(found) > 1:
        assert min(s.end - s.start for s in found) >= shortest - 1e-9
    assert all(0 <= s.confidence <= 1 + 1e-9 for s in found)


def _absorbed(labels: list[str], lengths: list[float], shortest: float) -> list[tuple[str, float]]:
    """Short runs to their longer neighbours, one after the other, as the definition says it."""
    runs = [(label, length) for label, length in zip(labels, lengths, strict=True)]
    runs = [(k, sum(n for _, n in g)) for k, g in groupby(runs, key=lambda r: r[0])]
    while len(runs) > 1:
        short = min(range(len(runs)), key=lambda i: runs[i][1])
        if runs[short][1] >= shortest:
            break
        beside = [i for i in (short - 1, short + 1) if 0 <= i < len(runs)]
        winner = max(beside, key=lambda i: runs[i][1])
        runs[short] = (runs[winner][0], runs[short][1])
        runs = [(k, sum(n for _, n in g)) for k, g in groupby(runs, key=lambda r: r[0])]
    return runs


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.integers(1, 6))
def test_short_segments_go_to_the_longer_neighbour_one_after_the_other(
    names: list[str], shortest: int
) -> None:
    labels = ("a", "b", "c")
    seconds = np.arange(len(names), dtype=np.float64) * 2
    scores = np.array([[float(label == name) for label in labels] for name in names])
    rule = Rule(labels, Task.SINGLE_LABEL, window=0.0, shortest=float(shortest))

    found = segments(seconds, scores, rule, float(seconds[-1]) + 1)

    # Half-way to the neighbours: the first frame has one second, the last one of its own besides.
    lengths = [1.0] + [2.0] * (len(names) - 1)
    assert [(s.label, s.end - s.start) for s in found] == _absorbed(names, lengths, shortest)
