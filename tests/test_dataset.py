"""Folders of labelled photographs: what is wrong with one entry never harms the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vsa_rt.dataset import Dataset, read_dataset
from vsa_rt.errors import DatasetError

Picture = Callable[..., Path]


@pytest.fixture
def picture(tmp_path: Path) -> Picture:
    def make(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(path, "PNG")
        return path

    return make


def table(folder: Path, text: str, encoding: str = "utf-8") -> None:
    (folder / "labels.csv").write_text(text, encoding=encoding)


def found(dataset: Dataset, folder: Path) -> dict[str, str | None]:
    return {str(p.path.relative_to(folder)): p.label for p in dataset.photographs}


def test_a_table_beside_images(tmp_path: Path, picture: Picture) -> None:
    for name in ("images/b.png", "images/sub/a.png"):
        picture(name)
    table(tmp_path, "file,label\nsub/a.png,sad\nb.png, glad \n")
    dataset = read_dataset(tmp_path)
    assert found(dataset, tmp_path / "images") == {"b.png": "glad", "sub/a.png": "sad"}
    assert (dataset.labels, dataset.labelled, dataset.rejected) == (["glad", "sad"], True, [])


def test_several_labels_of_one_photograph(tmp_path: Path, picture: Picture) -> None:
    for name in "abcdefg":
        picture(f"{name}.png")
    table(
        tmp_path,
        "file,label\na.png,sad|glad\nb.png, sad | shy and calm \nc.png,|\nd.png,sad\n"
        "e.png,sad|\nf.png,sad||glad\ng.png,sad|sad\n",
    )
    dataset = read_dataset(tmp_path)
    assert {p.path.stem: p.labels for p in dataset.photographs} == {
        "a": ("sad", "glad"), "b": ("sad", "shy and calm"), "c": (), "d": ("sad",)
    }  # fmt: skip
    assert [p.label for p in dataset.photographs] == [None, None, None, "sad"]
    assert (dataset.labels, dataset.labelled) == (["glad", "sad", "shy and calm"], True)
    assert [e.item[-6:] for e in dataset.rejected] == ["line 6", "line 7", "line 8"]
    assert all("empty or repeated label" in e.reason for e in dataset.rejected)


# Shares


def test_votes_of_one_photograph_are_scaled_to_sum_one(tmp_path: Path, picture: Picture) -> None:
    for name in "abc":
        picture(f"images/{name}.png")
    table(tmp_path, "joy,file, shy and calm ,fear\n3,b.png,1,4\n0.25,a.png,.5,0.25\n0,c.png,1e-3,0\n")
    dataset = read_dataset(tmp_path)
    a, b, c = dataset.photographs
    assert a.shares == (("joy", 0.25), ("shy and calm", 0.5), ("fear", 0.25))
    assert b.shares == (("joy", 0.375), ("shy and calm", 0.125), ("fear", 0.5))
    assert c.shares == (("shy and calm", 1.0),)
    assert (a.labels, c.labels) == (("joy", "shy and calm", "fear"), ("shy and calm",))
    assert (a.label, c.label) == (None, "shy and calm")
    assert b.truth == {"joy": 0.375, "shy and calm": 0.125, "fear": 0.5}
    assert (dataset.labels, dataset.labelled, dataset.rejected) == (["fear", "joy", "shy and calm"], True, [])


def test_what_is_known_without_shares_are_labels(tmp_path: Path, picture: Picture) -> None:
    picture("a.png")
    table(tmp_path, "file,label,joy,fear\na.png,joy|fear,3,1\n")
    [photograph] = read_dataset(tmp_path).photographs
    assert (photograph.shares, photograph.truth) == (None, ("joy", "fear"))


def test_bad_votes_are_rejected_by_number_and_the_others_unharmed(tmp_path: Path, picture: Picture) -> None:
    for name in ("good.png", "other.png"):
        picture(name)
    bad = [
        ("other.png,-1,2", "column 'joy' has '-1'; expected votes or a probability"),
        ("other.png,1,nan", "column 'fear' has 'nan'"),
        ("other.png,1,inf", "column 'fear' has 'inf'"),
        ("other.png,many,1", "column 'joy' has 'many'"),
        ("other.png,1,", "column 'fear' has nothing"),
        ("other.png,1", "column 'fear' has nothing"),
        ("other.png,0,0", "sum to 0; expected a finite number above 0"),
        ("other.png,1e308,1e308", "sum to inf"),
        ("other.png,1,2,3", "more cells than"),
        (f"other.png,{'x' * 9000},1", "column 'joy' has 'xxx"),
        (",1,2", "the cell of the file is empty"),
        ("absent.png,1,2", "no file"),
        ("../other.png,1,2", "leaves the folder"),
        ("good.png,1,2", "listed twice"),
    ]
    lines = ["file,joy,fear", "good.png,1,3", *(line for line, _ in bad)]
    table(tmp_path, "\n".join(lines) + "\n")
    dataset = read_dataset(tmp_path)
    assert [p.shares for p in dataset.photographs] == [(("joy", 0.25), ("fear", 0.75))]
    for number, (error, (_, says)) in enumerate(zip(dataset.rejected, bad, strict=True), start=3):
        assert error.item.endswith(f"labels.csv, line {number}")
        assert says in error.reason
        assert len(error.reason) < 300


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("file,joy", "expected the columns file,label, or file and one column"),
        ("joy,fear,awe", "expected the columns file,label, or file and one column"),
        ("file,joy,fear,joy", "a column has no name or that of another one"),
        ("file,joy, joy ", "a column has no name or that of another one"),
        ("file,joy,", "a column has no name or that of another one"),
    ],
)
def test_columns_that_are_no_labels_are_one_error(
    tmp_path: Path, picture: Picture, header: str, says: str
) -> None:
    picture("a.png")
    table(tmp_path, f"{header}\na.png,1,2,3\n")
    with pytest.raises(DatasetError, match=says):
        read_dataset(tmp_path)


def test_a_folders_name_is_one_label_whatever_it_holds(tmp_path: Path, picture: Picture) -> None:
    picture("sad|glad/a.png")
    assert found(read_dataset(tmp_path), tmp_path) == {"sad|glad/a.png": "sad|glad"}


def test_a_table_in_the_folder_of_the_images(tmp_path: Path, picture: Picture) -> None:
    picture("a.png")
    table(tmp_path, "label,more,file\nsad,1,a.png\n")
    assert found(read_dataset(tmp_path), tmp_path) == {"a.png": "sad"}


def test_a_table_with_a_byte_order_mark_and_other_alphabets(tmp_path: Path, picture: Picture) -> None:
    picture("å, ß.png")
    table(tmp_path, 'file,label\r\n"å, ß.png",щ\r\n', "utf-8-sig")
    assert found(read_dataset(tmp_path), tmp_path) == {"å, ß.png": "щ"}


def test_a_folder_per_label(tmp_path: Path, picture: Picture) -> None:
    for name in ("sad/b.png", "glad/x/a.JPG", "glad/notes.txt", ".hidden/c.png", "sad/.d.png"):
        picture(name)
    dataset = read_dataset(tmp_path)
    assert found(dataset, tmp_path) == {"glad/x/a.JPG": "glad", "sad/b.png": "sad"}
    assert dataset.labelled


def test_photographs_without_labels(tmp_path: Path, picture: Picture) -> None:
    for name in ("b.png", "sub/a.png"):
        picture(name)
    dataset = read_dataset(tmp_path)
    assert found(dataset, tmp_path) == {"b.png": None, "sub/a.png": None}
    assert (dataset.labels, dataset.labelled) == ([], False)


def test_bad_lines_are_rejected_by_number_and_the_others_unharmed(tmp_path: Path, picture: Picture) -> None:
    picture("images/good.png")
    picture("images/last.png")
    outside = picture("outside.png")
    (tmp_path / "images" / "link.png").symlink_to(outside)
    (tmp_path / "images" / "loop.png").symlink_to("loop.png")
    bad = [
        ("../outside.png,sad", "leaves the folder"),
        (f"{outside},sad", "leaves the folder"),
        ("link.png,sad", "leaves the folder"),
        ("loop.png,sad", ""),
        ("absent.png,sad", "no file"),
        (".,sad", "no file"),
        ("good.png,glad", "listed twice"),
        ("./good.png,sad", "listed twice"),
        (",sad", "expected"),
        ("good.png,", "expected"),
        ("good.png", "expected"),
        ("nu\0ll.png,sad", ""),
        ("x" * 300 + ".png,sad", ""),
    ]
    lines = ["file,label", "good.png,sad", *(line for line, _ in bad), "last.png,glad"]
    table(tmp_path, "\n".join(lines) + "\n")
    dataset = read_dataset(tmp_path)
    assert found(dataset, tmp_path / "images") == {"good.png": "sad", "last.png": "glad"}
    assert len(dataset.rejected) == len(bad)
    for number, (error, (_, says)) in enumerate(zip(dataset.rejected, bad, strict=True), start=3):
        assert error.item.endswith(f"labels.csv, line {number}")
        assert says in error.reason


@pytest.mark.parametrize(
    "data",
    [
        b"file,label\n\xff\xfe\xfa.png,sad\n",
        b"name,class\na.png,sad\n",
        b"",
        b'file,label\n"' + b"x" * 200_000 + b'",sad\n',
    ],
    ids=["not-utf-8", "other-columns", "empty", "endless-field"],
)
def test_an_unreadable_table_is_one_error(tmp_path: Path, picture: Picture, data: bytes) -> None:
    picture("a.png")
    (tmp_path / "labels.csv").write_bytes(data)
    with pytest.raises(DatasetError, match=r"labels\.csv"):
        read_dataset(tmp_path)


def test_nothing_usable_says_why(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a folder"):
        read_dataset(tmp_path / "absent")
    with pytest.raises(DatasetError, match="no photograph"):
        read_dataset(tmp_path)
    table(tmp_path, "file,label\nabsent.png,sad\n")
    with pytest.raises(DatasetError, match="line 2"):
        read_dataset(tmp_path)


def test_links_that_leave_or_loop_are_rejected_and_the_others_unharmed(
    tmp_path: Path, picture: Picture
) -> None:
    folder = tmp_path / "data"
    picture("data/sad/good.png")
    outside = picture("outside/other.png")
    (folder / "sad" / "link.png").symlink_to(outside)
    (folder / "sad" / "loop.png").symlink_to("loop.png")
    (folder / "sad" / "broken.png").symlink_to("absent.png")
    (folder / "sad" / "self").symlink_to(folder)
    dataset = read_dataset(folder)
    assert found(dataset, folder) == {"sad/good.png": "sad"}
    assert sorted(Path(e.item).name for e in dataset.rejected) == ["broken.png", "link.png", "loop.png"]


def test_a_label_folder_that_is_a_link_to_elsewhere_gives_nothing(tmp_path: Path, picture: Picture) -> None:
    picture("data/sad/good.png")
    picture("outside/other.png")
    (tmp_path / "data" / "glad").symlink_to(tmp_path / "outside")
    dataset = read_dataset(tmp_path / "data")
    assert found(dataset, tmp_path / "data") == {"sad/good.png": "sad"}
    assert [Path(e.item).name for e in dataset.rejected] == ["other.png"]


def test_the_order_does_not_depend_on_the_table(tmp_path: Path, picture: Picture) -> None:
    for name in ("c.png", "a.png", "b.png"):
        picture(name)
    table(tmp_path, "file,label\nc.png,1\na.png,2\nb.png,3\n")
    assert [p.path.name for p in read_dataset(tmp_path).photographs] == ["a.png", "b.png", "c.png"]
