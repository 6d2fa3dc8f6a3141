"""Ready tensors beside an image: passed with it or found in a file, checked, padded, never fatal to a batch."""

from __future__ import annotations

import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import vsa_rt
from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Item, ResizeSpec, Sentiment
from vsa_rt.errors import ItemError
from vsa_rt.runtime.companions import companion_path
from vsa_rt.runtime.fused import Runtime
from vsa_rt.runtime.preprocess import Preprocessor
from vsa_rt.runtime.sources import items_from_paths

ROWS, WIDTH = 6, 96
FIFOS = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")


def beside(path: Path, name: str = "objects") -> Path:
    """The file that holds a photograph's ready tensor."""
    return path.with_name(f"{path.name}.{name}.npy")


@pytest.fixture(scope="module")
def rt(wired_bundle: Path) -> Iterator[Runtime]:
    with vsa_rt.load(wired_bundle, target="openvino:cpu", precision="fp32") as runtime:
        yield runtime


@pytest.fixture
def photograph(wired_data: Path, tmp_path: Path) -> Path:
    """A photograph with its objects, this test's own."""
    source = next(iter(sorted((wired_data / "dark").glob("*.png"))))
    for path in (source, beside(source)):
        shutil.copy(path, tmp_path)
    return tmp_path / source.name


def objects(path: Path) -> Any:
    return np.load(beside(path))


def test_a_path_has_its_objects_beside_it(rt: Runtime, photograph: Path) -> None:
    (found,) = rt([photograph])
    (passed,) = rt([Item(photograph, {"objects": objects(photograph)})])
    assert isinstance(found, Sentiment)
    assert found == passed
    assert found.scores_kind == "moe"
    assert found.label == "dark"
    assert 0 < sum(found.scores.values()) < 1


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
    beside(photograph).unlink()
    for source, says in (
        (photograph, f"no file {photograph.name}.objects.npy beside it"),
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
        lambda data: data.replace(b"'<f4'", b"'|b'"),
        lambda data: data.replace(b"(6, 96)", b"(-6, 9)"),
        lambda data: data.replace(b"}", b" "),
        lambda data: data.replace(b"'fortran_order'", b"123456789012345"),
        lambda data: data.replace(b"'fortran_order'", b"['an_order']   "),
        lambda data: data.replace(b"{", b"(" * 60),
        lambda data: data.replace(b"\x93NUMPY\x01", b"\x93NUMPY\x09"),
        lambda data: zipped(np.ones((ROWS, WIDTH), np.float32)),
    ],
)
def test_a_damaged_file_is_this_items_error(
    rt: Runtime, photograph: Path, damage: Callable[[bytes], bytes]
) -> None:
    file = beside(photograph)
    rows = np.ones((ROWS, WIDTH), np.float32)
    np.save(file, rows)
    changed = damage(file.read_bytes())
    file.write_bytes(changed)
    bad, good = rt([photograph, Item(photograph, {"objects": rows})])
    (alone,) = rt([photograph])  # it takes another way through the runtime
    for error in (bad, alone):
        assert isinstance(error, ItemError)
        assert error.reason.startswith(file.name)
        assert "\n" not in error.reason
    assert isinstance(good, Sentiment)


def zipped(rows: Any) -> bytes:
    """An ``.npz``, which its maker called ``.npy``."""
    stream = io.BytesIO()
    np.savez(stream, rows)
    return stream.getvalue()


def untyped(value: object) -> Any:
    """What a caller without a type checker passes."""
    return value


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: "/", "a folder"),
        (lambda path: "", "no such file"),
        (lambda path: "a\0b", "not a path"),
        (lambda path: path.parent, "a folder"),
        (lambda path: path.parent / "absent.jpg", "no such file"),
        (lambda path: Item(path.parent / "absent.jpg", {"objects": objects(path)}), "no such file"),
        (lambda path: Item(path, untyped({"objects": [[1, 2], [3]]})), "objects is no array"),
        (lambda path: Item(path, untyped({"objects": None})), "expected"),
        (lambda path: Item(path, untyped(None)), "expected a mapping"),
        (lambda path: Item(path, untyped(["objects"])), "expected a mapping"),
        (lambda path: Item(None, {"objects": objects(path)}), "expected a path"),
    ],
)
def test_what_is_no_item_is_this_items_error(
    rt: Runtime, photograph: Path, make: Callable[[Path], Any], says: str
) -> None:
    good = Item(photograph, {"objects": objects(photograph)})
    bad, first = rt([make(photograph), good])
    (alone,) = rt([make(photograph)])
    for error in (bad, alone):
        assert isinstance(error, ItemError)
        assert says in error.reason
        assert "internal error" not in error.reason
    assert first == rt([photograph])[0]


def test_a_fault_of_ours_is_this_items_error_alone_and_among_others(
    rt: Runtime, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*arguments: Any, **named: Any) -> None:
        raise ZeroDivisionError("ours")

    good = rt([photograph])
    with monkeypatch.context() as patch:
        patch.setattr(Preprocessor, "write", faulty)
        found = [*rt([photograph]), *rt([photograph, photograph])]
        assert np.isnan(rt.features([photograph])["scores"]).all()
    for error in found:
        assert isinstance(error, ItemError)
        assert error.item == str(photograph)
        assert error.reason.startswith("internal error: ZeroDivisionError")
    assert rt([photograph]) == good


def test_an_interrupted_call_gives_its_slot_back(
    rt: Runtime, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    good = rt([photograph])
    for _ in range(len(rt.session.slots) + 1):
        with monkeypatch.context() as patch:
            patch.setattr(Preprocessor, "write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                rt([photograph])
    assert rt([photograph]) == good


# What lies beside an image


def within(seconds: float, work: Callable[[], Any], release: Callable[[], object]) -> Any:
    """What work gives; a failure, not an endless test, if it hangs."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    hangs = thread.is_alive()
    if hangs:
        release()
        thread.join(seconds)
    assert not hangs, f"still at work after {seconds} s"
    return found[0]


@FIFOS
def test_a_fifo_is_not_waited_for(rt: Runtime, photograph: Path) -> None:
    fifo = beside(photograph)
    fifo.unlink()
    os.mkfifo(fifo)
    (error,) = within(20, lambda: rt([photograph]), lambda: fifo.write_bytes(b""))
    assert isinstance(error, ItemError)
    assert error.reason == f"{fifo.name}: a FIFO, expected a .npy file"


def test_a_folder_and_a_broken_link_are_no_arrays(rt: Runtime, photograph: Path) -> None:
    file = beside(photograph)
    file.unlink()
    file.mkdir()
    (error,) = rt([photograph])
    assert isinstance(error, ItemError)
    assert error.reason == f"{file.name}: a folder, expected a .npy file"
    file.rmdir()
    file.symlink_to(file.with_name("nowhere"))
    (error,) = rt([photograph])
    assert isinstance(error, ItemError)
    assert error.reason == f"no file {file.name} beside it"


def test_images_of_one_stem_have_each_their_own(rt: Runtime, photograph: Path) -> None:
    rows = objects(photograph)
    other = photograph.with_suffix(".bmp")
    with Image.open(photograph) as opened:
        opened.save(other)
    np.save(beside(other), rows[:1])
    found = rt.features([photograph, other])["g"]
    passed = rt.features([Item(photograph, {"objects": rows}), Item(photograph, {"objects": rows[:1]})])["g"]
    np.testing.assert_array_equal(found, passed)
    assert (found[0] != found[1]).any()


def test_a_path_may_be_bytes_to_the_system(photograph: Path) -> None:
    """``os.scandir`` of a folder named in bytes gives such entries."""
    with os.scandir(os.fsencode(photograph.parent)) as entries:
        (entry,) = (e for e in entries if e.name == os.fsencode(photograph.name))
    assert companion_path(entry, "objects") == beside(photograph)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i1", "u1", "i4", "i8", ">f4", ">i2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_of_every_kind_are_read(rt: Runtime, photograph: Path, kind: str, order: Any) -> None:
    rows = np.array(np.arange(3 * WIDTH).reshape(3, WIDTH) % 100, kind, order=order)
    np.save(beside(photograph), rows)
    found = rt.features([photograph, Item(photograph, {"objects": rows.astype(np.float32)})])
    assert found.errors == [None, None]
    np.testing.assert_array_equal(*found["g"])


def test_no_rows_are_read_from_a_file_too(rt: Runtime, photograph: Path) -> None:
    np.save(beside(photograph), np.empty((0, WIDTH), np.float32))
    assert not rt.features([photograph])["g"].any()


# The image comes first


@pytest.mark.parametrize("alone", [False, True], ids=["with-pixels", "rows-alone"])
@pytest.mark.parametrize(
    ("lay", "says"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "a folder, expected an image file"),
        pytest.param(lambda path: os.mkfifo(path, 0o600), "a FIFO, expected an image file", marks=FIFOS),
        (lambda path: path.symlink_to(path), "the file cannot be read"),
    ],
    ids=["absent", "folder", "fifo", "loop"],
)
def test_what_is_wrong_with_the_image_is_said_before_its_rows(
    tmp_path: Path, alone: bool, lay: Callable[[Path], None], says: str
) -> None:
    path = tmp_path / "photo.jpg"
    lay(path)
    host, outputs = host_for(objects=(ROWS, WIDTH), pixels=not alone)
    for source in (path, str(path), Item(path, {"objects": np.ones((1, WIDTH))}), Item(path, {})):
        with pytest.raises(ItemError) as caught:
            host.write(source, outputs, item="it")
        assert caught.value.reason.startswith(says)


def test_a_damaged_image_is_named_before_its_absent_rows(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"nothing that is an image")
    host, outputs = host_for(objects=(ROWS, WIDTH))
    with pytest.raises(ItemError, match="not an image"):
        host.write(path, outputs, item="it")


def test_rows_alone_need_the_photograph_and_its_file(photograph: Path) -> None:
    host, outputs = host_for(objects=(ROWS, WIDTH), pixels=False)
    host.write(photograph, outputs, item="it")
    rows = objects(photograph)
    np.testing.assert_array_equal(outputs["objects"][: len(rows)], rows)
    beside(photograph).unlink()
    with pytest.raises(ItemError, match=r"no file .* beside it"):
        host.write(photograph, outputs, item="it")


def host_for(pixels: bool = True, **rows: tuple[int, int]) -> tuple[Preprocessor, dict[str, NDArray[Any]]]:
    """A preprocessor of these ready tensors, and outputs that hold what was there before."""
    specs = {"image": ResizeSpec(height=8, width=8, fit="warp", kernel="bilinear")} if pixels else {}
    outputs: dict[str, NDArray[Any]] = {n: np.full(shape, 7, np.float32) for n, shape in rows.items()}
    return Preprocessor(specs, rows=rows), outputs | {n: np.empty((8, 8, 3), np.uint8) for n in specs}


# Boxes are shares of the sides


@pytest.mark.parametrize(
    "box",
    [
        [0, 0, 320, 240],
        [0.1, 0.1, 0.5, 2.01],
        [-1.01, 0, 1, 1],
        [0, 0, 3, 1],
    ],
)
def test_boxes_in_pixels_are_refused(box: list[float]) -> None:
    host, outputs = host_for(boxes=(3, 4), pixels=False)
    for rows in ([box], [[0, 0, 1, 1], box]):
        with pytest.raises(ItemError, match="shares of the sides, not pixels") as caught:
            host.write(Item(None, {"boxes": np.array(rows)}), outputs, item="it")
        assert "-1 to 2" in caught.value.reason


def test_boxes_may_overshoot_the_image(photograph: Path) -> None:
    """Detectors do, by a little; the network sees the border's colours there."""
    host, outputs = host_for(boxes=(3, 4), pixels=False)
    rows = [[-0.02, 0, 1.03, 1], [-1, -1, 2, 2]]
    host.write(Item(photograph, untyped({"boxes": rows})), outputs, item="it")
    np.testing.assert_array_equal(outputs["boxes"], np.array([*rows, [0] * 4], np.float32))


def test_a_pickled_array_is_not_unpickled(rt: Runtime, photograph: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.mkdir, (tmp_path / "executed",))

    np.save(beside(photograph), np.array([[Bomb()]], object), allow_pickle=True)
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
