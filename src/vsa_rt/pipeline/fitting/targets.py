"""Targets: what a head or a probe is to learn of labelled photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsa_rt.contracts import Task
from vsa_rt.dataset import Dataset, Photograph
from vsa_rt.errors import DatasetError, needs
from vsa_rt.recipe import Recipe

with needs("export"):
    from vsa_rt.export.training import Targets


def _shares(recipe: Recipe, photographs: Sequence[Photograph]) -> NDArray[np.float64]:
    """Each label's share of each photograph ``(N, C)``: the table's, else the same for all labels that apply.

    Raises:
        DatasetError: A photograph has no label.
    """
    for photograph in photographs:
        if not photograph.labels:
            raise DatasetError(f"{photograph.path}: has no label; task {recipe.task} wants at least one")
    truth = [dict(p.shares or ((name, 1.0) for name in p.labels or ())) for p in photographs]
    rows = np.array([[shares.get(name, 0.0) for name in recipe.labels] for shares in truth])
    return np.asarray(rows / rows.sum(1, keepdims=True))


def check_votes(recipe: Recipe, data: Path, dataset: Dataset) -> None:
    """Check that a distribution is not learnt of single labels while votes stand beside them unread.

    Raises:
        DatasetError: The table has a column ``label`` and columns of the recipe's labels.
    """
    votes = sorted(set(recipe.labels).intersection(dataset.beside))
    if recipe.task is Task.DISTRIBUTION and len(votes) > 1:
        raise DatasetError(
            f"{data}: labels.csv has votes for {', '.join(votes)}, and a column label, which alone is read; leave that "
            "column out, so that the shares are learnt"
        )


def training_targets(recipe: Recipe, photographs: Sequence[Photograph]) -> Targets:
    """What to learn, as ``vsa_rt.export.training.Targets`` has it for the task.

    Raises:
        DatasetError: A photograph has no label or several, and the task wants one.
    """
    if recipe.task is Task.MULTI_LABEL:
        rows = [[name in (p.labels or ()) for name in recipe.labels] for p in photographs]
        return np.array(rows, np.int64)
    if recipe.task is Task.DISTRIBUTION:
        return _shares(recipe, photographs)
    for photograph in photographs:
        if photograph.label is None:
            has = ", ".join(photograph.labels or ()) or "no label"
            votes = "; these are shares, of a table of votes: --set task=ldl" if photograph.shares else ""
            raise DatasetError(
                f"{photograph.path}: has {has}; task {recipe.task} wants exactly one label{votes}"
            )
    return np.array([recipe.labels.index(p.label or "") for p in photographs], np.int64)
