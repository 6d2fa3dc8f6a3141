"""Ready tensors beside an image: passed with it or found in a file, checked, padded, never fatal to a batch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vsa_rt
from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Item, Sentiment
from vsa_rt.errors import ItemError
from vsa_rt.runtime.fused import Runtime
from vsa_rt.runtime.sources import items_from_paths

ROWS, WIDTH = 6, 96


@pytest.fixture(scope="module")
def rt(wired_bundle: Path) -> Iterator[Runtime]:
    with vsa_rt.load(wired_bundle, target="openvino:cpu", precision="fp32") as runtime:
        yield runtime


@pytest.fixture
def photograph(wired_data: Path, tmp_path: Path) -> Path:
    """A photograph with its objects, this test's own."""
    source = next(iter(sorted((wired_data / "dark").glob("*.png"))))
    for path in (source, source.with_suffix(".objects.npy")):
        shutil.copy(path, tmp_path)
    return tmp_path / source.name


def objects(path: Path) -> Any:
    return np.load(path.with_suffix(".objects.npy"))


def test_a_path_has_its_objects_beside_it(rt: Runtime, photograph: Path) -> None:
    (beside,) = rt([photograph])
    (passed,) = rt([Item(photograph, {"objects": objects(photograph)})])
    assert isinstance(beside, Sentiment)
    assert beside == passed
    assert beside.scores_kind == "moe"
    assert beside.label == "dark"
    assert 0 < sum(beside.scores.values()) < 1


def test_one_item_is_a_list_of_one(rt: Runtime, photograph: Path) -> None:
    assert rt(Item(str(photograph), {"objects": objects(photograph)})) == rt([photograph])


def test_pictures_and_bytes_bring_their_objects(rt: Runtime, photograph: Path) -> None:
    rows = objects(photograph)
    with Image.open(photograph) as opened:
        picture = opened.convert("RGB")
    sources: list[Any] = [photograph.read_bytes(), picture, np.asarray(picture)]
    found = rt([Item(source, {"objects": rows}) for source in sources])
    assert found == rt([photograph]) * 3


def test_fewer_rows_are_as_good_as_zeros_behind_them(rt: Runtime, photograph: Path) -> None:
    rows = objects(photograph)[:2]
    padded = np.concatenate([rows, np.zeros((ROWS - 2, WIDTH), np.float32)])
    few, many = rt([Item(photograph, {"objects": r}) for r in (rows, padded)])
    assert few == many
    none = rt.features([Item(photograph, {"objects": rows[:0]})])
    assert not none["g"].any()
    assert none.errors == [None]


def test_rows_of_the_item_before_do_not_stay(rt: Runtime, photograph: Path) -> None:
    """Buffers are used again: what a larger item left behind must not reach a smaller one."""
    rows = objects(photograph)
    alone = rt.features([Item(photograph, {"objects": rows[:1]})])["g"]
    for _ in range(3):
        rt([Item(photograph, {"objects": np.full((ROWS, WIDTH), 9.0)})])
        np.testing.assert_array_equal(rt.features([Item(photograph, {"objects": rows[:1]})])["g"], alone)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.ones((ROWS + 1, WIDTH), np.float32), "up to 6 rows"),
        (np.ones((2, WIDTH + 1), np.float32), "up to 6 rows of 96"),
        (np.ones(WIDTH, np.float32), "shape (96,)"),
        (np.ones((1, 2, WIDTH), np.float32), "shape (1, 2, 96)"),
        (np.full((1, WIDTH), np.nan), "not finite"),
        (np.full((1, WIDTH), 1e300), "not finite"),
        (np.array([["a"] * WIDTH]), "expected numbers"),
        (np.ones((1, WIDTH), complex), "expected numbers"),
    ],
)
def test_rows_that_do_not_fit_are_this_items_error(
    rt: Runtime, photograph: Path, rows: Any, says: str
) -> None:
    good = Item(photograph, {"objects": objects(photograph)})
    first, bad, last = rt([good, Item(photograph, {"objects": rows}), good])
    assert isinstance(bad, ItemError)
    assert says in bad.reason
    assert first == last == rt([photograph])[0]


def test_an_image_without_its_objects_is_an_error_that_says_how(rt: Runtime, photograph: Path) -> None:
    with Image.open(photograph) as opened:
        picture = opened.convert("RGB")
    photograph.with_suffix(".objects.npy").unlink()
    for source, says in (
        (photograph, f"no file {photograph.stem}.objects.npy beside it"),
        (picture, "vsa_rt.Item"),
        (photograph.read_bytes(), "vsa_rt.Item"),
        (Item(picture, {}), "has no objects"),
    ):
        (error,) = rt([source])
        assert isinstance(error, ItemError)
        assert says in error.reason


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:50],
        lambda data: data[:-1],
        lambda data: b"not an array at all",
        lambda data: data.replace(b"(6, 96)", b"(6, 2**60)"),
        lambda data: data.replace(b"96)", b"99999999999999)"),
        lambda data: data.replace(b"'<f4'", b"'|O'"),
    ],
)
def test_a_damaged_file_is_this_items_error(
    rt: Runtime, photograph: Path, damage: Callable[[bytes], bytes]
) -> None:
    beside = photograph.with_suffix(".objects.npy")
    rows = np.ones((ROWS, WIDTH), np.float32)
    np.save(beside, rows)
    changed = damage(beside.read_bytes())
    beside.write_bytes(changed)
    bad, good = rt([photograph, Item(photograph, {"objects": rows})])
    assert isinstance(bad, ItemError)
    assert beside.name in bad.reason
    assert isinstance(good, Sentiment)


def test_a_pickled_array_is_not_unpickled(rt: Runtime, photograph: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.mkdir, (tmp_path / "executed",))

    np.save(photograph.with_suffix(".objects.npy"), np.array([[Bomb()]], object), allow_pickle=True)
    (bad,) = rt([photograph])
    assert isinstance(bad, ItemError)
    assert not (tmp_path / "executed").exists()


def test_objects_are_no_items_of_a_folder(photograph: Path) -> None:
    assert list(items_from_paths([str(photograph.parent)])) == [str(photograph)]


def test_the_bundle_says_what_lies_beside_an_image(wired_bundle: Path) -> None:
    manifest = Bundle.open(wired_bundle).manifest
    assert [(i.name, i.shape, i.rows) for i in manifest.inputs if i.resize is None] == [
        ("objects", [ROWS, WIDTH], True)
    ]
    assert manifest.scores_kind == "moe"
    assert [t.kind for t in manifest.taps] == [*["backbone"] * 3, "features", "gates", "experts", "scores"]


def test_run_and_check_on_the_command_line(vsa: Any, wired_bundle: Path, wired_data: Path) -> None:
    import json

    run = vsa("run", wired_bundle, wired_data, "--format", "jsonl")
    assert run.returncode == 0, run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert {line["scores_kind"] for line in lines} == {"moe"}
    right = sum(Path(line["path"]).parent.name == line["label"] for line in lines)
    assert right >= 0.9 * len(lines)
    check = vsa("check", wired_bundle, "--data", wired_data, "--json")
    assert check.returncode == 0, check.stdout
    found = json.loads(check.stdout)
    assert found["stand_ins"] == 0
    assert all(stage["passed"] for stage in found["stages"])
    assert {stage["images"] for stage in found["stages"]} == {len(lines)}


def test_check_says_when_it_took_stand_ins(here: Any, wired_bundle: Path, toy_data: Path) -> None:
    found = here("check", wired_bundle, "--data", toy_data)
    assert found.returncode == 0, found.stdout
    assert "stand-ins were taken" in found.stdout
    assert "random weights under a fitted head" in found.stdout


def test_fit_needs_the_real_objects(here: Any, wired_recipe: Path, toy_data: Path, tmp_path: Path) -> None:
    """Stand-ins serve comparisons; a head trained on them would be worth nothing."""
    found = here(
        "fit", wired_recipe, "--data", toy_data, "-o", tmp_path / "h.safetensors", "--random-weights", "7"
    )
    assert found.returncode == 2
    assert "objects.npy" in found.stderr
    assert not (tmp_path / "h.safetensors").exists()
