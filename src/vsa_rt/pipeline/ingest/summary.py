"""What a video says as a whole: mean, peak and majority of its frames, and a smoothed timeline of segments."""

from __future__ import annotations

import heapq
from array import array
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


def _runs(given: Sequence[tuple[str, ...]]) -> list[tuple[int, int, tuple[str, ...]]]:
    """Places ``[first, last)`` of neighbours that were given the same labels, and these."""
    runs, place = [], 0
    for labels, group in groupby(given):
        length = len(list(group))
        runs.append((place, place + length, labels))
        place += length
    return runs


class _Runs:
    """Stretches of a video, of which short ones go to their neighbours; in O(R log R) for R of them.

    Args:
        runs: Places ``[first, last)`` and labels, in order.
        edges: Where each place begins in seconds, and where the last one ends.
    """

    def __init__(self, runs: Sequence[tuple[int, int, tuple[str, ...]]], edges: Scores) -> None:
        self._edges = edges
        self._first, self._last = [r[0] for r in runs], [r[1] for r in runs]
        self._labels = [r[2] for r in runs]
        self._before = list(range(-1, len(runs) - 1))
        self._after = [*range(1, len(runs)), -1]
        self._heap = [(self._length(run), self._first[run], run) for run in range(len(runs))]
        heapq.heapify(self._heap)

    def _length(self, run: int) -> float:
        return float(self._edges[self._last[run]] - self._edges[self._first[run]])

    def absorb(self, shortest: float) -> None:
        """Give each run that is shorter than so many seconds, the shortest first, to the longer of its neighbours."""
        while self._heap:
            length, first, run = heapq.heappop(self._heap)
            if self._labels[run] is _GONE or first != self._first[run] or length != self._length(run):
                continue  # it was joined to another since
            beside = [r for r in (self._before[run], self._after[run]) if r >= 0]
            if length >= shortest or not beside:
                return
            self._labels[run] = self._labels[max(beside, key=self._length)]
            for other in (self._before[run], self._after[run]):
                if other >= 0 and self._labels[other] == self._labels[run]:
                    self._join(run, other)
            heapq.heappush(self._heap, (self._length(run), self._first[run], run))

    def _join(self, run: int, other: int) -> None:
        """Make one of two neighbours."""
        if other == self._before[run]:
            self._first[run], self._before[run] = self._first[other], self._before[other]
            if self._before[run] >= 0:
                self._after[self._before[run]] = run
        else:
            self._last[run], self._after[run] = self._last[other], self._after[other]
            if self._after[run] >= 0:
                self._before[self._after[run]] = run
        self._labels[other] = _GONE

    def kept(self) -> list[tuple[tuple[int, int], tuple[str, ...]]]:
        """Places and labels of what is left, in order."""
        alive = (run for run, labels in enumerate(self._labels) if labels is not _GONE)
        return [
            ((self._first[r], self._last[r]), self._labels[r])
            for r in sorted(alive, key=self._first.__getitem__)
        ]


#: Labels of a run that was joined to another; no frame has these, and an empty tuple means none over the threshold.
_GONE: tuple[str, ...] = ("\0",)


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
    runs = _Runs(_runs(given), edges)
    runs.absorb(rule.shortest)
    found = []
    for (first, last), labels in runs.kept():
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


class Track:
    """What the frames of one video said, eight bytes for each number, so that a long one fits into memory.

    Args:
        labels: In the order of the scores.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = list(labels)
        self._seconds, self._scores = array("d"), array("d")
        self._winners: Counter[str | None] = Counter()
        self.failed = 0
        self.error = ""

    def __len__(self) -> int:
        return len(self._seconds)

    def add(self, moment: Moment) -> None:
        """Add the next frame; one with an error only counts as such."""
        if moment.error:
            self.failed += 1
            self.error = self.error or moment.error
            return
        self._seconds.append(moment.seconds)
        self._scores.extend(moment.scores[name] for name in self._labels)
        self._winners[moment.label] += 1

    @property
    def seconds(self) -> Scores:
        """Presentation times ``(N,)``."""
        return np.array(self._seconds)

    @property
    def scores(self) -> Scores:
        """Scores ``(N, C)``."""
        return np.array(self._scores).reshape(len(self), len(self._labels))

    def summary(self, rule: Rule, end: float = 0.0) -> dict[str, Any]:
        """What the video says as a whole; see ``summarise``."""
        if not len(self):
            return {}
        seconds, scores = self.seconds, self.scores
        mean = scores.mean(0)
        labels = rule.given(mean)
        single = rule.task is not Task.MULTI_LABEL
        majority = None
        if single:
            # Of equally frequent ones the first in the order of labels, whatever the order of frames.
            name = max(rule.labels, key=lambda label: self._winners[label])
            majority = {"label": name, "share": self._winners[name] / len(self)}
        return {
            "label": labels[0] if single else None,
            "labels": [] if single else list(labels),
            "scores": {name: float(score) for name, score in zip(rule.labels, mean, strict=True)},
            "peak": {
                name: {"score": float(scores[place, column]), "seconds": float(seconds[place])}
                for column, (name, place) in enumerate(zip(rule.labels, scores.argmax(0), strict=True))
            },
            "majority": majority,
            "segments": [
                asdict(s) | {"labels": list(s.labels)} for s in segments(seconds, scores, rule, end)
            ],
            "frames": len(self),
            "failed": self.failed,
        }


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
    track = Track(rule.labels)
    for moment in moments:
        track.add(moment)
    return track.summary(rule, end)
