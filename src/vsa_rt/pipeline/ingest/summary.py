"""What a video says as a whole: mean, peak and majority of its frames, and a smoothed timeline of segments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.contracts import Task
from vsa_rt.pipeline.ingest.records import Moment

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Segment:
    """A stretch of a video with one label.

    Attributes:
        start: In seconds.
        end: In seconds; where the next one begins.
        label: The label of the smoothed scores, ``None`` where several labels may hold and none does.
        labels: Where several may hold: those over the threshold.
        confidence: Mean of the label's smoothed scores in it; of several labels, of the highest.
    """

    start: float
    end: float
    label: str | None
    labels: tuple[str, ...]
    confidence: float


@dataclass(frozen=True)
class Rule:
    """How scores become labels, and how a timeline is smoothed.

    Attributes:
        labels: In the order of the scores.
        task: What the scores mean.
        threshold: Multi-label: the score above which a label is given.
        window: Seconds over which scores are averaged, half of them before a moment and half after.
        shortest: Seconds; a shorter segment goes to the neighbour that lasts longer.
    """

    labels: Sequence[str]
    task: Task
    threshold: float = 0.5
    window: float = 3.0
    shortest: float = 1.0

    def given(self, row: Scores) -> tuple[str, ...]:
        """The labels that a row of scores stands for; of equal scores the first."""
        if self.task is Task.MULTI_LABEL:
            return tuple(n for n, score in zip(self.labels, row, strict=True) if score > self.threshold)
        return (self.labels[int(row.argmax())],)


def smoothed(seconds: Scores, scores: Scores, window: float) -> Scores:
    """Mean of the scores around each moment.

    Args:
        seconds: Presentation times ``(N,)``, rising.
        scores: ``(N, C)``.
        window: Seconds; moments at most half of it away count alike. A variable frame rate changes nothing.

    Returns:
        ``(N, C)``.
    """
    first = np.searchsorted(seconds, seconds - window / 2, side="left")
    last = np.searchsorted(seconds, seconds + window / 2, side="right")
    sums = np.concatenate([np.zeros((1, scores.shape[1])), np.cumsum(scores, axis=0)])
    return np.asarray((sums[last] - sums[first]) / (last - first)[:, None])


def _runs(given: Sequence[tuple[str, ...]]) -> list[tuple[int, int]]:
    """Places ``[first, last)`` of neighbours that were given the same labels."""
    runs, place = [], 0
    for _, group in groupby(given):
        length = len(list(group))
        runs.append((place, place + length))
        place += length
    return runs


def _edges(seconds: Scores, end: float) -> Scores:
    """Where each moment's share of the time begins, and where the last one's ends: half-way to its neighbours."""
    middles = (seconds[1:] + seconds[:-1]) / 2
    return np.concatenate([seconds[:1], middles, [max(end, float(seconds[-1]))]])


def segments(seconds: Scores, scores: Scores, rule: Rule, end: float) -> list[Segment]:
    """The timeline of a video.

    Args:
        seconds: Presentation times ``(N,)``, rising.
        scores: ``(N, C)``.
        rule: Labels and smoothing.
        end: Where the video ends, in seconds.

    Returns:
        Segments that follow each other without a gap, from the first moment to the end.
    """
    if not len(seconds):
        return []
    calm = smoothed(seconds, scores, rule.window)
    given = [rule.given(row) for row in calm]
    edges = _edges(seconds, end)
    runs = _runs(given)
    while len(runs) > 1:
        lengths = [edges[last] - edges[first] for first, last in runs]
        short = int(np.argmin(lengths))
        if lengths[short] >= rule.shortest:
            break
        beside = [i for i in (short - 1, short + 1) if 0 <= i < len(runs)]
        winner = max(beside, key=lambda i: lengths[i])
        for place in range(*runs[short]):
            given[place] = given[runs[winner][0]]
        runs = _runs(given)
    found = []
    for first, last in runs:
        labels = given[first]
        columns = [list(rule.labels).index(name) for name in labels]
        part = calm[first:last]
        confidence = float((part[:, columns] if columns else part).max(axis=1).mean())
        single = rule.task is not Task.MULTI_LABEL
        found.append(
            Segment(
                start=float(edges[first]),
                end=float(edges[last]),
                label=labels[0] if single else None,
                labels=() if single else labels,
                confidence=confidence,
            )
        )
    return found


def summarise(moments: Sequence[Moment], rule: Rule, end: float = 0.0) -> dict[str, Any]:
    """What a video says as a whole.

    Args:
        moments: Its frames, in order of time; those with an error do not count.
        rule: Labels and smoothing.
        end: Where it ends, in seconds, if that is known; else at the last frame.

    Returns:
        ``label``, ``labels`` and ``scores`` of the mean over its frames; ``peak``: label to its highest score and where
        that is; ``majority``: the label that most frames have, and their share, ``None`` for multi-label tasks;
        ``segments``: the smoothed timeline; ``frames`` that counted and ``failed`` ones. Empty where none counted.
    """
    good = [m for m in moments if not m.error]
    if not good:
        return {}
    seconds = np.array([m.seconds for m in good])
    scores = np.array([[m.scores[name] for name in rule.labels] for m in good])
    mean = scores.mean(0)
    labels = rule.given(mean)
    single = rule.task is not Task.MULTI_LABEL
    best = scores.argmax(0)
    majority = None
    if single:
        # Of equally frequent ones the first in the order of labels, whatever the order of frames.
        counts = Counter(m.label for m in good)
        name = max(rule.labels, key=lambda label: counts[label])
        majority = {"label": name, "share": counts[name] / len(good)}
    return {
        "label": labels[0] if single else None,
        "labels": [] if single else list(labels),
        "scores": {name: float(score) for name, score in zip(rule.labels, mean, strict=True)},
        "peak": {
            name: {"score": float(scores[place, column]), "seconds": float(seconds[place])}
            for column, (name, place) in enumerate(zip(rule.labels, best, strict=True))
        },
        "majority": majority,
        "segments": [asdict(s) | {"labels": list(s.labels)} for s in segments(seconds, scores, rule, end)],
        "frames": len(good),
        "failed": len(moments) - len(good),
    }
