"""Which photographs a head is trained on and which it is tested on: folds, random splits, given fold files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsa_rt.contracts import Task
from vsa_rt.dataset import SEPARATOR, Dataset, Photograph, read_labels
from vsa_rt.errors import DatasetError, needs
from vsa_rt.locate import contained
from vsa_rt.recipe import Recipe

with needs("export"):
    from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

    from vsa_rt.export.training import Targets

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Rows to train on and rows to test on, both sorted.

    Attributes:
        name: What to call it in messages.
        train: Indices of photographs.
        test: Indices of photographs, none of them in ``train``.
    """

    name: str
    train: Indices
    test: Indices


@dataclass(frozen=True)
class FoldFile:
    """A file that lists the test photographs of one fold.

    Attributes:
        name: Of the file.
        sha256: Of its bytes.
        photographs: Those that it lists.
    """

    name: str
    sha256: str
    photographs: list[Photograph]


def _multi_hot(recipe: Recipe, targets: Targets) -> Indices:
    """The labels of each row, or of a distribution's the one of the largest share, as ``(N, C)`` of 0 and 1."""
    if recipe.task is Task.MULTI_LABEL:
        return targets
    places = targets.argmax(1) if recipe.task is Task.DISTRIBUTION else targets
    return np.asarray(places[:, None] == np.arange(len(recipe.labels)), np.int64)


#: Tasks whose rows are dealt. scikit-learn's splitters take one label a row, and want each as often as there are
#: parts: a distribution's may have the largest share rarely, or nowhere.
_DEALT = (Task.MULTI_LABEL, Task.DISTRIBUTION)


def _deal(has: Indices, shares: Sequence[float], rng: np.random.Generator) -> Indices:
    """Part of each row ``(N,)`` so that every label is spread over the parts in their shares.

    Iterative stratification, algorithm 1 of Sechidis, Tsoumakas and Vlahavas 2011: the label with the fewest rows left
    is dealt first, each row to the part that lacks that label most, then to the one that lacks rows most, then by lot.
    """
    part = np.full(len(has), -1, np.int64)
    order = rng.permutation(len(has))
    rows_due = np.asarray(shares) * len(has)
    labels_due = np.outer(shares, has.sum(0))

    def give(row: int, due: NDArray[np.float64]) -> None:
        best = np.flatnonzero(due == due.max())
        best = best[rows_due[best] == rows_due[best].max()]
        part[row] = chosen = rng.choice(best)
        rows_due[chosen] -= 1
        labels_due[chosen] -= has[row]

    while True:
        left = order[part[order] < 0]
        counts = has[left].sum(0)
        if not counts.any():
            break
        label = int(np.where(counts > 0, counts, len(has) + 1).argmin())
        for row in left[has[left, label] > 0]:
            give(int(row), labels_due[:, label])
    for row in left:
        give(int(row), rows_due)
    return part


def _folds(recipe: Recipe, targets: Targets, seed: int) -> list[Indices]:
    """The test rows of each of k folds."""
    count = recipe.fit.folds
    has = _multi_hot(recipe, targets)
    fewest = int(has.sum(0).min())
    if fewest < count and recipe.task is not Task.DISTRIBUTION:
        raise DatasetError(f"{count} folds need {count} photographs of every label; one label has {fewest}")
    if recipe.task in _DEALT:
        part = _deal(has, [1 / count] * count, np.random.default_rng(seed))
        return [np.flatnonzero(part == fold) for fold in range(count)]
    splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
    return [test for _, test in splitter.split(targets, targets)]


def _random(recipe: Recipe, targets: Targets, seed: int) -> list[Indices]:
    """The test rows of each random split."""
    count, share = recipe.fit.folds, recipe.fit.test
    has = _multi_hot(recipe, targets)
    fewest = int(has.sum(0).min())
    if fewest < 2 and recipe.task is not Task.DISTRIBUTION:
        raise DatasetError(f"random splits need 2 photographs of every label; one label has {fewest}")
    if recipe.task in _DEALT:
        generators = [np.random.default_rng([seed, number]) for number in range(count)]
        return [np.flatnonzero(_deal(has, [share, 1 - share], rng) == 0) for rng in generators]
    tested = int(np.ceil(share * len(targets)))
    smaller = min(tested, len(targets) - tested)
    if smaller < len(recipe.labels):
        raise DatasetError(
            f"a share of {share:g} of {len(targets)} photographs leaves {smaller} in the smaller part; "
            f"{len(recipe.labels)} labels need as many"
        )
    splitter = StratifiedShuffleSplit(count, test_size=share, random_state=seed)
    return [np.sort(test) for _, test in splitter.split(targets, targets)]


def make_splits(
    recipe: Recipe,
    targets: Targets,
    seed: int,
    photographs: Sequence[Photograph] = (),
    files: Sequence[FoldFile] = (),
) -> list[Split]:
    """Splits as the recipe's ``fit`` table asks for, or as fold files give them.

    Single-label folds and random splits are stratified by label (scikit-learn's); multi-label ones by iterative
    stratification, and those of distributions likewise, by the label of the largest share. Photographs that no fold file lists are trained on in every fold and never tested.

    Args:
        recipe: Labels, task, ``fit.split``, ``fit.folds`` and ``fit.test``.
        targets: As ``vsa_rt.export.training.Targets`` has them for the task.
        seed: Of the order.
        photographs: Of each row of ``targets``; needed for fold files only.
        files: Instead of the recipe's splits.

    Returns:
        As many as there are folds.

    Raises:
        DatasetError: Too few photographs, or a fold that leaves a label nothing to learn from.
    """
    if files:
        row = {photograph: index for index, photograph in enumerate(photographs)}
        tests = [np.array(sorted(row[p] for p in f.photographs if p in row), np.int64) for f in files]
        names = [f.name for f in files]
    else:
        tests = {"folds": _folds, "random": _random}[recipe.fit.split](recipe, targets, seed)
        names = [f"{'fold' if recipe.fit.split == 'folds' else 'split'} {i + 1}" for i in range(len(tests))]
    # A label can be learnt where it has any share, and where it always has one: shares differ.
    distribution = recipe.task is Task.DISTRIBUTION
    has = targets > 0 if distribution else _multi_hot(recipe, targets).astype(bool)
    everything = np.arange(len(targets))
    splits = [Split(n, np.setdiff1d(everything, t), t) for n, t in zip(names, tests, strict=True)]
    for split in splits:
        if not len(split.test):
            raise DatasetError(f"{split.name}: has no photograph to test on")
        for label, column in zip(recipe.labels, has[split.train].T, strict=True):
            if not column.any() or (column.all() and not distribution):
                which = "with it" if not column.any() else "without it"
                raise DatasetError(
                    f"{split.name}: label {label!r}: no photograph {which} is left to train on"
                )
    return splits


class _Names:
    """Finds photographs by what a file calls them."""

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self._roots = [root for root in (folder, folder / "images") if root.is_dir()]
        self._by_path = {p.path: p for p in dataset.photographs}
        self._by_name: dict[str, list[Photograph]] = {}
        for photograph in dataset.photographs:
            self._by_name.setdefault(photograph.path.name, []).append(photograph)

    def find(self, name: str) -> list[Photograph]:
        """The photograph of that path relative to the data, else those with that file name."""
        for root in self._roots:
            # A table's paths have their links followed, a folder's have not.
            for path in (contained(root, name), Path(os.path.normpath(root / name))):
                if path in self._by_path:
                    return [self._by_path[path]]
        return self._by_name.get(name.rpartition("/")[2], [])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _labels_in(text: str, labels: list[str]) -> set[str]:
    """The recipe's labels that a text spells; empty where it spells anything else."""
    given = set(read_labels(text) or ())
    return given if given <= set(labels) else set()


def _read_line(line: str, names: _Names, labels: list[str]) -> Photograph:
    """The photograph of one line.

    Raises:
        DatasetError: Without a place: unknown, ambiguous, or labelled otherwise.
    """
    name, label, found = line, "", names.find(line)
    # Names and labels may hold spaces; what is neither a label nor a number belongs to the name.
    for space in reversed(list(re.finditer(r"\s+", line))):
        rest = line[space.end() :]
        if not found and (_labels_in(rest, labels) or _is_number(rest)):
            name, label, found = line[: space.start()], rest, names.find(line[: space.start()])
    if not found:
        raise DatasetError(
            f"no photograph {line!r} in the data; expected a path relative to it or a file name, then at most a "
            f"label of the recipe ({', '.join(labels)}) or a number"
        )
    if len(found) > 1:
        places = ", ".join(str(p.path) for p in found[:3])
        raise DatasetError(f"{name!r} can be {places}; write the path relative to the data")
    [photograph] = found
    given = _labels_in(label, labels)
    if given and given != set(photograph.labels or ()):
        there = SEPARATOR.join(photograph.labels or ()) or "nothing"
        raise DatasetError(f"{name!r} is labelled {label} here and {there} in the data")
    return photograph


def read_fold_files(
    paths: Sequence[Path], folder: Path, dataset: Dataset, labels: list[str]
) -> list[FoldFile]:
    """Read given folds, such as those that Campos et al. 2015 published: each file lists one fold's test photographs.

    One photograph per line: its path relative to the data (to the folder or its ``images/``), or a path of any other
    machine whose file name is unique in the data. A label may follow after white space: one of the recipe's is checked
    against the data, a number that is no label is ignored, because numbering is the file's own. Empty lines are skipped.

    Args:
        paths: One file per fold.
        folder: The data's.
        dataset: What the folder holds.
        labels: The recipe's.

    Returns:
        The folds in the order of the files.

    Raises:
        DatasetError: A file cannot be read or is empty; a line names no photograph, or several, or one labelled
            otherwise, or one that a line before it named. The message has the file and the line.
    """
    names = _Names(folder, dataset)
    taken: dict[Photograph, str] = {}
    files = []
    for path in paths:
        try:
            data = path.read_bytes()
            lines = data.decode("utf-8-sig").split("\n")
        except OSError as error:
            raise DatasetError(f"--fold-file {path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise DatasetError(f"--fold-file {path}: not UTF-8 text: {error}") from error
        listed = []
        for number, line in enumerate(map(str.strip, lines), start=1):
            if not line:
                continue
            place = f"{path}, line {number}"
            try:
                photograph = _read_line(line, names, labels)
            except DatasetError as error:
                raise DatasetError(f"{place}: {error}") from error
            if photograph in taken:
                raise DatasetError(f"{place}: {photograph.path.name!r} stands already in {taken[photograph]}")
            taken[photograph] = place
            listed.append(photograph)
        if not listed:
            raise DatasetError(f"--fold-file {path}: lists no photograph; expected one name per line")
        files.append(FoldFile(path.name, hashlib.sha256(data).hexdigest(), listed))
    return files
