"""Scores to a Sentiment."""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from vsa_rt.contracts import Sentiment, Task


class Labeller:
    """Turns rows of scores into words.

    Args:
        labels: In the order of the scores.
        task: What the scores mean.
        threshold: Multi-label only: the score above which a label is given.
        kind: What kind of numbers the scores are.
    """

    def __init__(self, labels: list[str], task: Task, threshold: float, kind: str) -> None:
        self._labels, self._task, self._threshold, self._kind = labels, task, threshold, kind

    def __call__(self, scores: NDArray[Any]) -> list[Sentiment | None]:
        """The sentiments of ``(N, C)`` scores, in order; ``None`` for a row that is not all numbers."""
        return [self._one(row) for row in scores.tolist()]

    def _one(self, row: list[float]) -> Sentiment | None:
        if not all(map(math.isfinite, row)):
            return None
        scores = dict(zip(self._labels, row, strict=True))
        if self._task is Task.MULTI_LABEL:
            over = tuple(name for name, score in scores.items() if score > self._threshold)
            return Sentiment(label=None, scores=scores, scores_kind=self._kind, labels=over)
        return Sentiment(label=max(scores, key=scores.__getitem__), scores=scores, scores_kind=self._kind)
