"""Photographs for gates: decoded once, prepared by the reference and by the runtime, batch by batch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vsa_rt.contracts import Item, Resample
from vsa_rt.dataset import Photograph, read_dataset
from vsa_rt.documents import path_text
from vsa_rt.errors import DatasetError, ItemError, needs
from vsa_rt.manifest import InputRecord
from vsa_rt.recipe import Recipe, regions_of
from vsa_rt.runtime.companions import companion_path
from vsa_rt.runtime.decode import decode
from vsa_rt.runtime.preprocess import Preprocessor

#: An upright RGB picture to every input ``(H, W, 3)``.
Prepare = Callable[[Image.Image], dict[str, NDArray[np.uint8]]]
#: Photographs that are prepared and go through a reference at a time.
BATCH = 8
#: And where each brings dozens of regions through a network with it.
BATCH_WITH_REGIONS = 1
#: A gate at build time looks at this many photographs at most; `vsa-rt check` looks at all.
GATE_IMAGES = 64
#: And at this many where each brings dozens of regions through a network with it.
GATE_IMAGES_WITH_REGIONS = 4
#: In every value of an input before it is written.
_UNWRITTEN = 77


@dataclass(frozen=True)
class PreparedBatch:
    """Some photographs as graph inputs, twice.

    Attributes:
        photographs: Which they are.
        reference: Inputs ``(N, H, W, 3)`` by the reference's transform, and ready tensors ``(N, rows, width)``.
        candidate: The same by the runtime's host code.
    """

    photographs: list[Photograph]
    reference: dict[str, NDArray[Any]]
    candidate: dict[str, NDArray[Any]]

    @property
    def names(self) -> list[str]:
        """What to call them in reports."""
        return [path_text(p.path.name) for p in self.photographs]


@dataclass
class PhotographFeed:
    """Reads photographs in batches.

    Attributes:
        inputs: What the graph takes.
        prepare: The reference's transform.
        resample: How the runtime resizes.
        batch: Photographs at a time; see ``batch_of``.
        rejected: Photographs that could not be read, filled while reading.
        stand_ins: How many photographs had no file with their ready tensors and got stand-ins, counted while
            reading.
    """

    inputs: Sequence[InputRecord]
    prepare: Prepare
    resample: Resample = Resample.EXACT
    batch: int = BATCH
    rejected: list[ItemError] = field(default_factory=list)
    stand_ins: int = 0

    def _item(self, path: Path, picture: Image.Image) -> Path | Item:
        """The photograph with its ready tensors: from the files beside it, else stand-ins.

        Whatever lies under a file's name is taken for the file, so that one that cannot be read is an error.
        """
        wanted = [i for i in self.inputs if i.rows]
        if not wanted or all(os.path.lexists(companion_path(path, i.name)) for i in wanted):
            return path
        with needs("export"):
            from vsa_rt.export.stand_ins import stand_in
        self.stand_ins += 1
        return Item(path, {i.name: stand_in(picture, i.name, i.shape) for i in wanted})

    def _reference_rows(self, source: Path | Item) -> dict[str, NDArray[Any]]:
        """The ready tensors, read, cast and padded without the runtime's code, which is what they judge."""
        made: dict[str, NDArray[Any]] = {}
        for record in self.inputs:
            if record.rows:
                if isinstance(source, Item):
                    rows = source.tensors[record.name]
                else:
                    rows = np.load(companion_path(source, record.name), allow_pickle=False)
                made[record.name] = np.zeros(record.shape, np.dtype(record.dtype))
                made[record.name][: len(rows)] = rows
        return made

    def batches(self, photographs: Sequence[Photograph]) -> Iterator[PreparedBatch]:
        """Every readable photograph, ``batch`` at a time.

        Raises:
            DatasetError: None of them can be read.
        """
        specs = {i.name: i.resize for i in self.inputs if i.resize is not None}
        tensors = {i.name: tuple(i.shape) for i in self.inputs if i.rows}
        host = Preprocessor(specs, self.resample, tensors)
        read = 0
        for start in range(0, len(photographs), self.batch):
            good: list[Photograph] = []
            reference: list[dict[str, NDArray[Any]]] = []
            candidate: list[dict[str, NDArray[Any]]] = []
            for photograph in photographs[start : start + self.batch]:
                # Not of zeros: what the host code forgets to write must show.
                rows: dict[str, NDArray[Any]] = {
                    i.name: np.full(i.shape, _UNWRITTEN, np.dtype(i.dtype)) for i in self.inputs
                }
                try:
                    picture = Image.fromarray(decode(photograph.path, item=str(photograph.path)))
                    source = self._item(photograph.path, picture)
                    host.write(source, rows, item=str(photograph.path))
                except ItemError as error:
                    self.rejected.append(error)
                    continue
                good.append(photograph)
                reference.append(self.prepare(picture) | self._reference_rows(source))
                candidate.append(rows)
            if good:
                read += len(good)
                yield PreparedBatch(good, _stack(reference), _stack(candidate))
        if not read:
            first = f"; the first: {self.rejected[0]}" if self.rejected else ""
            raise DatasetError(f"none of {len(photographs)} photographs can be read{first}")


def _stack(rows: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {name: np.stack([r[name] for r in rows]) for name in rows[0]}


def batch_of(recipe: Recipe | None) -> int:
    """How many photographs may go through a recipe's torch networks together.

    Args:
        recipe: ``None`` for a graph without one.
    """
    return BATCH_WITH_REGIONS if recipe is not None and regions_of(recipe) else BATCH


def as_photographs(paths: Sequence[Path]) -> list[Photograph]:
    """Photographs without labels."""
    return [Photograph(p, None) for p in paths]


def gate_photographs(data: Path | None, recipe: Recipe | None = None) -> list[Photograph]:
    """Photographs for a gate at build time, evenly chosen if there are many.

    Args:
        data: A folder; ``None`` for those that packages ship.
        recipe: What is to be judged.

    Raises:
        DatasetError: ``data`` holds none.
        EnvironmentUnusable: No ``data``, and no package that ships some.
    """
    if data is None:
        with needs("export"):
            from vsa_rt.export.photographs import shipped_photographs
        found = as_photographs(shipped_photographs())
    else:
        found = read_dataset(data).photographs
    most = GATE_IMAGES_WITH_REGIONS if recipe is not None and regions_of(recipe) else GATE_IMAGES
    step = max(1, -(-len(found) // most))
    return found[::step]


def data_key(photographs: Sequence[Photograph], inputs: Sequence[InputRecord] = ()) -> str:
    """SHA-256 over the photographs' names, labels with their shares, and bytes, and their ready tensors', in order."""
    digest = hashlib.sha256()
    names = [i.name for i in inputs if i.rows]
    for photograph in photographs:
        said = [photograph.path.name, *(photograph.labels or ())]
        said += [share.hex() for _, share in photograph.shares or ()]
        words = "".join(f"{word}\0" for word in said)
        digest.update(words.encode("utf-8", "surrogateescape"))
        digest.update(hashlib.sha256(photograph.path.read_bytes()).digest())
        for name in names:
            companion = companion_path(photograph.path, name)
            digest.update(hashlib.sha256(companion.read_bytes()).digest())
    return digest.hexdigest()
