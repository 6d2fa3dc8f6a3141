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

    def __call__(self, scores: NDArray[Any], views: NDArray[Any] | None = None) -> list[Sentiment | None]:
        """The sentiments of a batch.

        Args:
            scores: ``(N, C)``.
            views: Scores of each view ``(N, V * C)``, where the head sees several.

        Returns:
            In order; ``None`` for a row that is not all numbers.
        """
        rows = [None] * len(scores) if views is None else self._each(views)
        return [self._one(row, seen) for row, seen in zip(scores.tolist(), rows, strict=True)]

    def _each(self, views: NDArray[Any]) -> list[NDArray[Any]]:
        """Each image's views ``(V, C)``, in memory of their own: the engine writes over its outputs."""
        return list(views.reshape(len(views), -1, len(self._labels)).copy())

    def _one(self, row: list[float], views: NDArray[Any] | None) -> Sentiment | None:
        if not all(map(math.isfinite, row)):
            return None
        scores = dict(zip(self._labels, row, strict=True))
        if self._task is Task.MULTI_LABEL:
            over = tuple(name for name, score in scores.items() if score > self._threshold)
            return Sentiment(label=None, scores=scores, scores_kind=self._kind, labels=over, views=views)
        best = max(scores, key=scores.__getitem__)
        return Sentiment(label=best, scores=scores, scores_kind=self._kind, views=views)
