"""What a benchmark is fed: the same for the same photographs, and what cannot be read is named."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

import vsa_rt
from vsa_rt.bench import workload as module
from vsa_rt.bench.workload import (
    MOST,
    Workload,
    from_golden,
    from_photographs,
    make_workload,
    takes_photographs,
)
from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Item
from vsa_rt.errors import BundleError, DatasetError, UsageError
from vsa_rt.golden import read_golden


@pytest.fixture
def folder(photographs: list[Path], tmp_path: Path) -> Path:
    """Photographs of this test's own."""
    for path in photographs:
        shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


def read(bundle: Path, paths: list[Path]) -> Workload:
    return from_photographs(Bundle.open(bundle).manifest, paths, "these")


def test_the_same_photographs_give_the_same_workload(tiny_bundle: Path, photographs: list[Path]) -> None:
    one, two = (read(tiny_bundle, photographs) for _ in range(2))
    assert one.sha256 == two.sha256
    assert one.names == [p.name for p in photographs]
    assert one.description == f"{len(photographs)} photographs (these)"
    for name, rows in one.rows.items():
        assert np.array_equal(rows, two.rows[name])


def test_the_hash_changes_with_a_byte_and_with_a_name(tiny_bundle: Path, folder: Path) -> None:
    paths = sorted(folder.iterdir())
    before = read(tiny_bundle, paths).sha256
    changed = paths[0]
    kept = changed.read_bytes()
    changed.write_bytes(kept + b"\0")
    assert read(tiny_bundle, paths).sha256 != before
    changed.write_bytes(kept)
    assert read(tiny_bundle, paths).sha256 == before
    renamed = changed.rename(folder / f"another{changed.suffix}")
    assert read(tiny_bundle, [renamed, *paths[1:]]).sha256 != before


def test_tensors_are_what_the_runtime_makes_of_the_photographs(
    tiny_bundle: Path, photographs: list[Path]
) -> None:
    found = read(tiny_bundle, photographs)
    with vsa_rt.load(tiny_bundle, threads=1) as runtime:
        for form in (photographs, found.sources, found.frame_sources):
            expected = runtime.features(form)["features"]
            given = np.concatenate([runtime.infer(t)["features"] for t in found.tensors(1)])
            assert np.abs(given - expected).max() == 0


def test_batches_differ_and_begin_with_the_first_photograph(
    tiny_bundle: Path, photographs: list[Path]
) -> None:
    found = read(tiny_bundle, photographs)
    name = next(iter(found.rows))
    for batch in (1, 4, len(photographs), 2 * len(photographs)):
        made = found.tensors(batch)
        assert len(made) >= 4
        assert all(t[name].shape == (batch, *found.rows[name].shape[1:]) for t in made)
        assert len({t[name].tobytes() for t in made}) == len(made)
        assert np.array_equal(made[0][name][0], found.rows[name][0])
    assert [len(read(tiny_bundle, photographs[:n]).tensors(2)) for n in (1, 2)] == [1, 2]


def test_no_batch_is_no_workload(tiny_bundle: Path, photographs: list[Path]) -> None:
    with pytest.raises(UsageError, match="batch 0"):
        read(tiny_bundle, photographs[:1]).tensors(0)


def test_photographs_that_cannot_be_read_are_left_out_and_named(tiny_bundle: Path, folder: Path) -> None:
    paths = sorted(folder.iterdir())
    (folder / "broken.jpg").write_bytes(b"no photograph")
    found = read(tiny_bundle, [folder / "broken.jpg", paths[0], folder / "gone.png", paths[1]])
    assert found.names == [paths[0].name, paths[1].name]
    assert [e.item for e in found.rejected] == ["broken.jpg", "gone.png"]
    assert all(str(folder) not in str(e) for e in found.rejected)
    assert found.description == "2 of 4 photographs (these); 2 could not be read"
    alone = read(tiny_bundle, paths[:2])
    assert found.sha256 == alone.sha256
    for name, rows in alone.rows.items():
        assert np.array_equal(found.rows[name], rows)


def test_nothing_readable_is_an_error(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none of 1 photographs can be read; the first: gone\.png"):
        read(tiny_bundle, [tmp_path / "gone.png"])


def test_of_many_photographs_64_are_chosen_evenly(tiny_bundle: Path, tmp_path: Path) -> None:
    paths = []
    for index in range(100):
        paths.append(tmp_path / f"{index:03}.png")
        Image.new("RGB", (8, 8), (index, 0, 0)).save(paths[-1])
    found = read(tiny_bundle, paths)
    places = [int(Path(name).stem) for name in found.names]
    assert len(places) == MOST
    assert {b - a for a, b in itertools.pairwise(places)} == {1, 2}
    assert (places[0], places[-1]) == (0, 98)
    assert found.description == "64 of 100 photographs (these)"


def test_decoded_photographs_are_bounded(
    tiny_bundle: Path, photographs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(read(tiny_bundle, photographs).frames) == len(photographs)
    monkeypatch.setattr(module, "_FRAME_BYTES", 1)
    found = read(tiny_bundle, photographs)
    assert len(found.frames) == len(found.frame_sources) == 1
    assert found.frames[0].dtype == np.uint8


def test_stand_ins_are_made_where_no_file_lies_beside(wired_bundle: Path, folder: Path) -> None:
    paths = sorted(folder.iterdir())
    before = read(wired_bundle, paths)
    assert before.stand_ins == len(paths)
    assert f"{len(paths)} of them with stand-ins" in before.description
    np.save(f"{paths[0]}.objects.npy", np.ones((2, 96), np.float32))
    after = read(wired_bundle, paths)
    assert after.stand_ins == len(paths) - 1
    assert after.sha256 != before.sha256
    assert after.rows["objects"][0, :, 0].tolist() == [1, 1, 0, 0, 0, 0]
    assert isinstance(after.sources[0], Item)
    with vsa_rt.load(wired_bundle, threads=1) as runtime:
        given = runtime.infer(after.tensors(1)[0])["scores"]
        assert np.array_equal(given, runtime.features([after.sources[0]])["scores"])


def test_a_bad_file_beside_a_photograph_is_its_error(wired_bundle: Path, folder: Path) -> None:
    paths = sorted(folder.iterdir())
    np.save(f"{paths[0]}.objects.npy", np.ones((2, 7), np.float32))
    found = read(wired_bundle, paths)
    assert [e.item for e in found.rejected] == [paths[0].name]
    assert "(2, 7)" in found.rejected[0].reason


def test_without_photographs_the_golden_tensors_are_taken(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    found = make_workload(bundle, [], "shipped")
    stored = read_golden(bundle.read(bundle.manifest.golden))
    assert found.images == found.sources == found.frames == []
    assert "golden" in found.description
    for name, rows in found.rows.items():
        assert np.array_equal(rows, stored[f"input.{name}"])
    assert found.sha256 == from_golden(bundle).sha256


def test_a_graph_of_ready_tensors_alone_is_fed_its_golden_tensors(
    tiny_bundle: Path, photographs: list[Path]
) -> None:
    opened = Bundle.open(tiny_bundle)
    assert make_workload(opened, photographs, "shipped").images
    ready = [msgspec.structs.replace(i, resize=None) for i in opened.manifest.inputs]
    bundle = Bundle(opened.root, msgspec.structs.replace(opened.manifest, inputs=ready))
    assert not takes_photographs(bundle.manifest)
    assert make_workload(bundle, photographs, "shipped").images == []
    with pytest.raises(UsageError, match="ready tensors"):
        from_photographs(bundle.manifest, photographs, "shipped")


def test_golden_tensors_that_lack_an_input_are_refused(tiny_bundle: Path) -> None:
    opened = Bundle.open(tiny_bundle)
    other = [msgspec.structs.replace(i, name=f"{i.name}.2") for i in opened.manifest.inputs]
    bundle = Bundle(opened.root, msgspec.structs.replace(opened.manifest, inputs=other))
    with pytest.raises(BundleError, match="golden tensors hold nothing for the input"):
        from_golden(bundle)
