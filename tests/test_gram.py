"""Inner products of wide layers: exact, in bounded memory, and never read back wrong."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.errors import EnvironmentUnusable
from vsa_rt.pipeline.fitting import gram as module
from vsa_rt.pipeline.fitting.gram import Spill, check_room, coordinates, gram_matrix, read_gram, write_gram

Rows = NDArray[np.float32]


def features(count: int, width: int, seed: int = 0) -> Rows:
    """Not negative and far from the origin, as behind a ReLU."""
    return np.abs(np.random.default_rng(seed).normal(3, 2, (count, width))).astype(np.float32)


def spilled(folder: Path, rows: Rows, batch: int) -> list[Rows]:
    spill = Spill(folder, *rows.shape)
    for start in range(0, len(rows), batch):
        spill.write(start, rows[start : start + batch])
    blocks = list(spill.blocks())
    spill.close()
    return blocks


@pytest.mark.parametrize(("block", "pieces"), [(70, 4), (7 * 31, 1), (1, 31)])
def test_rows_that_were_written_in_batches_come_back_by_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, pieces: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    rows = features(7, 31)
    blocks = spilled(tmp_path, rows, 3)
    assert len(blocks) == pieces
    assert np.array_equal(np.concatenate(blocks, 1), rows)


def test_a_spill_leaves_no_file_even_while_it_is_open(tmp_path: Path) -> None:
    spill = Spill(tmp_path, 4, 10)
    spill.write(0, features(4, 10))
    assert list(tmp_path.iterdir()) == []
    spill.close()


def test_a_spill_that_lacks_rows_says_so(tmp_path: Path) -> None:
    spill = Spill(tmp_path, 4, 10)
    spill.write(0, features(3, 10))
    with pytest.raises(OSError, match="ends too early"):
        list(spill.blocks())
    spill.close()


def test_inner_products_are_those_of_the_rows_and_symmetric_to_the_last_digit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_ROWS", 5)
    rows = features(13, 50)
    found = gram_matrix([rows[:, :20], rows[:, 20:21], rows[:, 21:]], 13)
    wide = rows.astype(np.float64)
    assert found == pytest.approx(wide @ wide.T, rel=1e-13)
    assert np.array_equal(found, found.T)


def peak(folder: Path, count: int, width: int) -> int:
    """Bytes that are in memory at most between a batch of rows and the inner products of all."""
    batch = features(4, width)
    tracemalloc.start()
    try:
        spill = Spill(folder, count, width)
        for start in range(0, count, 4):
            spill.write(start, batch)
        gram_matrix(spill.blocks(), count)
        spill.close()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_width_of_a_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, narrow, wide = 40, 5_000, 100_000
    monkeypatch.setattr(module, "_BLOCK", count * 1_000)
    bounded = peak(tmp_path, count, narrow), peak(tmp_path, count, wide)
    assert bounded[1] < 1.1 * bounded[0]
    # The same measurement sees a layer that is read whole.
    monkeypatch.setattr(module, "_BLOCK", count * wide)
    assert peak(tmp_path, count, wide) > 10 * bounded[1]


def test_coordinates_have_the_distances_of_the_features() -> None:
    wide = features(30, 500).astype(np.float64)
    points = coordinates(wide @ wide.T)
    assert points.shape == (30, 29)
    differences = wide[:, None] - wide[None]
    apart = points[:, None] - points[None]
    assert (apart**2).sum(2) == pytest.approx((differences**2).sum(2), rel=1e-9, abs=1e-9)


def test_a_layer_without_differences_has_one_coordinate_and_it_says_nothing() -> None:
    same = np.ones((6, 40)) * 1e3
    points = coordinates(same @ same.T)
    assert points.tolist() == [[0.0]] * 6


def test_kept_inner_products_are_read_back_or_not_at_all(tmp_path: Path) -> None:
    wide = features(5, 9).astype(np.float64)
    gram, path = wide @ wide.T, tmp_path / "new" / "x.gram"
    assert read_gram(path, 5) is None
    write_gram(path, gram)
    found = read_gram(path, 5)
    assert found is not None
    assert np.array_equal(found, gram)
    assert read_gram(path, 6) is None
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert read_gram(path, 5) is None
    path.write_bytes(data[:50])
    assert read_gram(path, 5) is None


def test_a_full_disk_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = {"conv1": 290_400, "fc7": 4_096}
    check_room(tmp_path / "new", 880, widths)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    with pytest.raises(EnvironmentUnusable, match=r"need 1\.0 GB .* 1\.0 GB are free; .*conv1\), .*--cache"):
        check_room(tmp_path, 880, widths)
    check_room(tmp_path, 880, {"fc7": 4_096})
