"""Splits: what is trained on and what is tested, by folds, by chance, or as a file says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.contracts import Task
from vsa_rt.dataset import Dataset, Photograph, read_dataset
from vsa_rt.errors import DatasetError
from vsa_rt.recipe import Fit, Head, Recipe

for _name in ("torch", "sklearn"):
    pytest.importorskip(_name, reason="splits belong to the export extra")

from vsa_rt.pipeline.fitting.splits import FoldFile, Split, make_splits, read_fold_files

Ints = NDArray[np.int64]
LABELS = ["sad", "glad", "calm"]


def make_recipe(multi: bool = False, **fit: Any) -> Recipe:
    task = Task.MULTI_LABEL if multi else Task.SINGLE_LABEL
    head = Head(kind="linear", features=["one"])
    return Recipe(schema=1, name="toy", task=task, labels=LABELS, head=head, fit=Fit(**fit))


def single(*counts: int) -> Ints:
    return np.arange(len(counts)).repeat(counts)


def several(count: int = 200, seed: int = 0) -> Ints:
    """Labels that apply to 50, 20 and 6 % of photographs."""
    rng = np.random.default_rng(seed)
    return (rng.random((count, 3)) < [0.5, 0.2, 0.06]).astype(np.int64)


def held_out(splits: list[Split]) -> list[list[int]]:
    return [split.test.tolist() for split in splits]


def check_disjoint(splits: list[Split], count: int) -> None:
    for split in splits:
        assert sorted([*split.train, *split.test]) == list(range(count))


@pytest.mark.parametrize("multi", [False, True])
def test_folds_test_every_photograph_once_and_every_label_evenly(multi: bool) -> None:
    targets = several() if multi else single(60, 33, 7)
    splits = make_splits(make_recipe(multi, folds=5), targets, 0)
    check_disjoint(splits, len(targets))
    assert sorted(row for test in held_out(splits) for row in test) == list(range(len(targets)))
    has = targets if multi else np.eye(3, dtype=np.int64)[targets]
    for split in splits:
        assert np.abs(has[split.test].sum(0) - has.sum(0) / 5).max() <= 1
        assert abs(len(split.test) - len(targets) / 5) <= (4 if multi else 1)


@pytest.mark.parametrize("multi", [False, True])
def test_random_splits_test_their_share_of_every_label(multi: bool) -> None:
    targets = several() if multi else single(120, 60, 20)
    splits = make_splits(make_recipe(multi, split="random", folds=4, test=0.2), targets, 0)
    check_disjoint(splits, 200)
    has = targets if multi else np.eye(3, dtype=np.int64)[targets]
    for split in splits:
        assert np.abs(has[split.test].sum(0) - 0.2 * has.sum(0)).max() <= 1
        assert abs(len(split.test) - 40) <= (2 if multi else 0)
    assert len({tuple(test) for test in held_out(splits)}) == 4


@pytest.mark.parametrize("split", ["folds", "random"])
@pytest.mark.parametrize("multi", [False, True])
def test_a_seed_repeats_its_splits_and_another_has_others(multi: bool, split: str) -> None:
    recipe, targets = make_recipe(multi, split=split), several() if multi else single(20, 20, 10)
    one, two, other = (held_out(make_splits(recipe, targets, seed)) for seed in (3, 3, 4))
    assert one == two
    assert one != other


def test_too_few_photographs_are_one_error() -> None:
    def refused(says: str, targets: Ints, multi: bool = False, **fit: Any) -> None:
        with pytest.raises(DatasetError, match=says):
            make_splits(make_recipe(multi, **fit), targets, 0)

    refused("7 folds need 7 photographs of every label; one label has 6", single(9, 6, 8), folds=7)
    refused("need 2 photographs of every label; one label has 1", single(9, 1, 8), split="random")
    refused("leaves 2 in the smaller part; 3 labels", single(4, 4, 2), split="random", test=0.2)
    refused("leaves 1 in the smaller part; 3 labels", single(4, 4, 2), split="random", test=0.9)
    once = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 1, 1]])
    refused("2 folds need 2 .* has 1", once[:3], multi=True, folds=2)
    refused("need 2 .* has 1", once[:3], multi=True, split="random")
    always = np.array([[1, 1, 0], [1, 0, 1]] * 4)
    refused("'sad': no photograph without it is left to train on", always, multi=True, folds=2)


# Fold files


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Photographs in two folders; ``same.png`` lies in both."""
    folder = tmp_path / "data"
    for name in (
        "sad/a.png",
        "sad/same.png",
        "sad/with space.png",
        "glad/b.png",
        "glad/same.png",
        "calm/c 1",
    ):
        path = folder / "images" / (name if name != "calm/c 1" else "calm/c 1.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (folder / "labels.csv").write_text(
        "file,label\nsad/a.png,sad\nsad/same.png,sad\nsad/with space.png,sad\n"
        "glad/b.png,glad\nglad/same.png,glad\ncalm/c 1.png,calm\n"
    )
    return folder


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(text: str | bytes, name: str = "fold.txt") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


def listed(data: Path, *paths: Path, labels: list[str] | None = None) -> list[list[str]]:
    files = read_fold_files(paths, data, read_dataset(data), labels or LABELS)
    return [[p.path.name for p in f.photographs] for f in files]


@pytest.mark.parametrize(
    "line",
    [
        "sad/a.png",
        "images/sad/a.png",
        "./sad/../sad/a.png",
        "a.png",
        "/somebody/elses/machine/a.png",
        "  a.png\t1",
        "a.png 0",
        "sad/a.png   sad",
    ],
)
def test_a_line_names_a_photograph_by_its_path_or_its_own_name(data: Path, write: Write, line: str) -> None:
    assert listed(data, write(f"\ufeff{line}\r\n\r\n")) == [["a.png"]]


def test_names_may_hold_spaces(data: Path, write: Write) -> None:
    assert listed(data, write("with space.png 1\nc 1.png calm\n")) == [["with space.png", "c 1.png"]]


def test_a_folder_per_label_is_named_as_well(tmp_path: Path, write: Write) -> None:
    folder = tmp_path / "plain"
    for name in ("sad/a.png", "glad/a.png"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"")
    [[name]] = listed(folder, write("glad/a.png glad\n"))
    assert name == "a.png"
    with pytest.raises(DatasetError, match="can be"):
        listed(folder, write("a.png\n"))


def test_several_labels_are_checked_as_a_set(tmp_path: Path, write: Write) -> None:
    folder = tmp_path / "several"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    (folder / "labels.csv").write_text("file,label\na.png,sad|calm\n")
    assert listed(folder, write("a.png calm|sad\n")) == [["a.png"]]
    with pytest.raises(DatasetError, match=r"line 1: 'a.png' is labelled sad here and sad\|calm in the data"):
        listed(folder, write("a.png sad\n"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sad/a.png\nabsent.png\n", r"fold\.txt, line 2: no photograph 'absent.png' in the data"),
        ("a.png\n\na.png 1\n", r"line 3: 'a.png' stands already in .*fold\.txt, line 1"),
        ("same.png\n", r"line 1: 'same.png' can be .*same\.png, .*same\.png; write the path"),
        ("a.png glad\n", r"line 1: 'a.png' is labelled glad here and sad in the data"),
        ("a.png angry\n", r"line 1: no photograph 'a.png angry' .*sad, glad, calm"),
        ("nu\0ll.png\n", "line 1: no photograph"),
        ("x" * 5000 + "\n", "line 1: no photograph"),
        ("\n \n", "lists no photograph"),
        ("", "lists no photograph"),
        (b"\xff\xfe\xfa\n", "not UTF-8"),
    ],
)
def test_a_line_that_fits_nothing_is_named(data: Path, write: Write, text: str | bytes, says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        listed(data, write(text))


def test_a_number_that_is_a_label_is_checked(tmp_path: Path, write: Write) -> None:
    folder = tmp_path / "numbers"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "a.png").write_bytes(b"")
    assert listed(folder, write("a.png 1\n"), labels=["0", "1"]) == [["a.png"]]
    with pytest.raises(DatasetError, match="labelled 0 here and 1"):
        listed(folder, write("a.png 0\n"), labels=["0", "1"])


def test_no_photograph_stands_in_two_folds(data: Path, write: Write) -> None:
    first, second = write("a.png\nb.png\n", "one.txt"), write("sad/a.png\n", "two.txt")
    with pytest.raises(DatasetError, match=r"two\.txt, line 1: 'a.png' stands already in .*one\.txt, line 1"):
        listed(data, first, second)


def test_a_fold_file_that_is_not_there_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"absent\.txt: cannot be read"):
        listed(data, tmp_path / "absent.txt")


def some_photographs(count: int) -> list[Photograph]:
    return [Photograph(Path(f"{i}.png"), (LABELS[i % 3],)) for i in range(count)]


def fold(*chosen: Photograph) -> FoldFile:
    return FoldFile("given.txt", "", list(chosen))


def test_given_folds_are_tested_as_given_and_the_rest_is_trained_on() -> None:
    there, targets = some_photographs(9), np.arange(9) % 3
    splits = make_splits(make_recipe(), targets, 0, there, [fold(*there[2:4]), fold(there[0])])
    assert held_out(splits) == [[2, 3], [0]]
    check_disjoint(splits, 9)


def test_a_photograph_that_could_not_be_read_leaves_its_fold() -> None:
    there, targets = some_photographs(9), np.arange(8) % 3
    [split] = make_splits(make_recipe(), targets, 0, there[:8], [fold(there[1], there[8])])
    assert split.test.tolist() == [1]
    with pytest.raises(DatasetError, match=r"given\.txt: has no photograph to test on"):
        make_splits(make_recipe(), targets, 0, there[:8], [fold(there[8])])


def test_a_fold_that_leaves_a_label_nothing_to_learn_from_is_named() -> None:
    there, targets = some_photographs(6), np.arange(6) % 3
    with pytest.raises(DatasetError, match=r"given\.txt: label 'glad': no photograph with it is left"):
        make_splits(make_recipe(), targets, 0, there, [fold(there[1], there[4])])


def test_an_empty_data_set_names_nothing(write: Write, data: Path) -> None:
    with pytest.raises(DatasetError, match="line 1: no photograph"):
        read_fold_files([write("a.png\n")], data, Dataset([]), LABELS)
