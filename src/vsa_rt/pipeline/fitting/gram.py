"""Inner products of photographs: all that a linear classifier with an L2 penalty sees of a layer, however wide it is.

The weights that minimise such a classifier's loss are a sum of the training photographs' features (representer
theorem: Kimeldorf and Wahba 1971; Schölkopf, Herbrich and Smola 2001), so that the inner products ``K = X Xᵀ`` decide
it. A layer of 290,400 numbers per photograph goes through memory in blocks of columns; what stays is ``K``, N x N.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsa_rt.documents import write_whole
from vsa_rt.errors import EnvironmentUnusable

Gram = NDArray[np.float64]
#: Photographs of one probe at most: their inner products are N x N doubles, 512 MB here, and several times in memory.
MOST = 8_000
#: Numbers of a layer that are in memory at a time, as doubles 32 MiB.
_BLOCK = 4 * 1024 * 1024
#: Rows of inner products that one multiplication adds to.
_ROWS = 512
#: Bytes of disk that are left to others.
_SPARE = 256 * 1024 * 1024


class Spill:
    """A layer's rows ``(N, width)`` in float32 on disk, written by rows and read by columns.

    The file has no name: whatever ends the process, its space is free again. It is read, not mapped, because mapped
    pages would count as the process's memory.

    Args:
        folder: On the disk that has the room.
        count: N.
        width: Numbers per photograph.
    """

    def __init__(self, folder: Path, count: int, width: int) -> None:
        self._count = count
        step = max(1, _BLOCK // count)
        self._columns = [slice(a, min(a + step, width)) for a in range(0, width, step)]
        self._stream = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()

    def _seek(self, columns: slice, row: int) -> None:
        """To a row of a block of columns; blocks lie one after the other, each whole."""
        width = columns.stop - columns.start
        self._stream.seek(4 * (columns.start * self._count + row * width))

    def write(self, start: int, rows: NDArray[np.float32]) -> None:
        """Put rows ``(n, width)`` at the place ``start``."""
        for columns in self._columns:
            self._seek(columns, start)
            self._stream.write(np.ascontiguousarray(rows[:, columns], np.float32).data)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """All rows, some columns ``(N, c)`` at a time.

        Raises:
            OSError: The file is shorter than what was to be written.
        """
        for columns in self._columns:
            block = np.empty((self._count, columns.stop - columns.start), np.float32)
            self._seek(columns, 0)
            if self._stream.readinto(block.data.cast("B")) != block.nbytes:
                raise OSError("the temporary file of a layer ends too early")
            yield block

    def close(self) -> None:
        """Give the space back."""
        self._stream.close()


def check_room(folder: Path, count: int, widths: dict[str, int]) -> None:
    """Find out before the work whether layers fit on the disk.

    Args:
        folder: Where they will lie; it is made.
        count: Photographs.
        widths: Layer to its numbers per photograph.

    Raises:
        EnvironmentUnusable: They do not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted, free = 4 * count * sum(widths.values()), shutil.disk_usage(folder).free
    if wanted + _SPARE > free:
        widest = max(widths, key=lambda name: widths[name])
        raise EnvironmentUnusable(
            f"{folder}: {count} photographs of {len(widths)} layers need {wanted / 1e9:.1f} GB of disk for a "
            f"while, and {free / 1e9:.1f} GB are free; probe fewer layers at a time (the widest is {widest}), or "
            "name a folder on another disk with --cache"
        )


def gram_matrix(blocks: Iterable[NDArray[np.float32]], count: int) -> Gram:
    """Inner products of rows that come in blocks of columns.

    Args:
        blocks: ``(N, c)`` each.
        count: N.

    Returns:
        ``(N, N)``, symmetric to the last digit.
    """
    total = np.zeros((count, count))
    ends = [(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS)]
    for block in blocks:
        wide = block.astype(np.float64)
        for start, end in ends:
            total[start:end, :end] += wide[start:end] @ wide[:end].T
    for start, end in ends:
        total[:start, start:end] = total[start:end, :start].T
        corner = total[start:end, start:end]
        corner[:] = np.tril(corner) + np.tril(corner, -1).T
    return total


def coordinates(gram: Gram) -> NDArray[np.float64]:
    """Points with the same distances as the features behind inner products, in at most N dimensions.

    With ``K = U S Uᵀ`` of the centred inner products these are ``U sqrt(S)``: the features' own place but for an offset
    and a rotation, which a classifier with an intercept and an L2 penalty does not see. Directions in which nothing but
    rounding lies are left out.

    Args:
        gram: ``(N, N)``.

    Returns:
        ``(N, R)``, widest direction first; one column of zeros where all photographs are the same.
    """
    means = gram.mean(0)
    centred = gram - means - means[:, None] + means.mean()
    values, vectors = np.linalg.eigh(centred)
    noise = len(gram) * np.finfo(np.float64).eps * float(np.abs(gram.diagonal()).max())
    kept = values > noise
    if not kept.any():
        return np.zeros((len(gram), 1))
    return np.ascontiguousarray((vectors[:, kept] * np.sqrt(values[kept]))[:, ::-1])


def read_gram(path: Path, count: int) -> Gram | None:
    """Inner products ``(N, N)`` behind their SHA-256; ``None`` if they are absent or not what was written."""
    try:
        data = memoryview(path.read_bytes())
    except OSError:
        return None
    digest, values = data[:32], data[32:]
    if hashlib.sha256(values).digest() != digest or len(values) != 8 * count * count:
        return None
    return np.frombuffer(values, np.float64).reshape(count, count)


def write_gram(path: Path, gram: Gram) -> None:
    """Keep inner products for the next time."""
    values = np.ascontiguousarray(gram).data.cast("B")
    write_whole(path, b"".join((hashlib.sha256(values).digest(), values)))
