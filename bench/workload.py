"""What a benchmark feeds: photographs in memory, encoded, decoded and as ready tensors, or golden tensors alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Item, Resample
from vsa_rt.documents import path_text
from vsa_rt.errors import BundleError, DatasetError, ItemError, UsageError, needs
from vsa_rt.golden import read_golden
from vsa_rt.manifest import InputRecord, Manifest
from vsa_rt.runtime.companions import companion_path, tensors_of
from vsa_rt.runtime.decode import decode
from vsa_rt.runtime.preprocess import Preprocessor

Array = NDArray[Any]

#: More photographs than these make nothing more certain; they bound the memory.
MOST = 64
#: Different batches that take turns, where there are as many photographs.
_TURNS = 4
#: Photographs that take turns at small batches.
_TURNING_ROWS = 32
#: Bytes of decoded photographs that are kept.
_FRAME_BYTES = 256 << 20


@dataclass(frozen=True)
class EncodedImage:
    """One photograph as its file's bytes.

    Attributes:
        name: The file's name, without folders.
        data: Its bytes.
        tensors: Ready tensors beside it, empty where the graph takes none.
    """

    name: str
    data: bytes
    tensors: Mapping[str, Array]

    def beside(self, picture: Any) -> Any:
        """A form of this photograph with its ready tensors, as a runtime takes it.

        Args:
            picture: Its bytes, or a decoded array.
        """
        return Item(picture, self.tensors) if self.tensors else picture


@dataclass(frozen=True)
class Workload:
    """Inputs of one bundle; the same paths and files give the same workload.

    Attributes:
        images: Encoded photographs; empty where there are golden tensors alone.
        rows: Graph input to the ready tensors ``(P, *shape)`` of every photograph, in the same order.
        names: What to call the rows.
        description: In words.
        sha256: Over names and bytes of the photographs and the files beside them, or of the golden tensors.
        rejected: Photographs that could not be read.
        stand_ins: How many photographs had no file with their ready tensors and got stand-ins.
    """

    images: list[EncodedImage]
    rows: dict[str, Array]
    names: list[str]
    description: str
    sha256: str
    rejected: list[ItemError] = field(default_factory=list)
    stand_ins: int = 0

    @property
    def sources(self) -> list[Any]:
        """The encoded photographs as a runtime takes them; empty where there are none."""
        return [image.beside(image.data) for image in self.images]

    @cached_property
    def frames(self) -> list[NDArray[np.uint8]]:
        """The photographs decoded, ``(H, W, 3)``: the first ones, as many as fit into 256 MiB, and at least one."""
        found: list[NDArray[np.uint8]] = []
        held = 0
        for image in self.images:
            frame = decode(image.data, item=image.name)
            held += frame.nbytes
            if found and held > _FRAME_BYTES:
                break
            found.append(frame)
        return found

    @property
    def frame_sources(self) -> list[Any]:
        """The decoded photographs as a runtime takes them; ``zip(frame_sources, images)`` has the same order."""
        return [image.beside(frame) for image, frame in zip(self.images, self.frames, strict=False)]

    def tensors(self, batch: int) -> list[dict[str, Array]]:
        """Different batches of ready tensors, so that inputs can take turns.

        Args:
            batch: Images in each. Photographs come again where there are fewer.

        Returns:
            Four or more where there are as many photographs, each of them input name to ``(batch, *shape)``.
            The first begins with the first photograph.

        Raises:
            UsageError: ``batch`` is not positive.
        """
        if batch < 1:
            raise UsageError(f"batch {batch}: expected at least 1")
        count = len(self.names)
        turns = min(count, max(_TURNS, _TURNING_ROWS // batch))
        starts = [turn * count // turns for turn in range(turns)]
        return [{n: r[(start + np.arange(batch)) % count] for n, r in self.rows.items()} for start in starts]


def takes_photographs(manifest: Manifest) -> bool:
    """Whether every input of a bundle can be made of a photograph, or lies beside it."""
    return all(i.rows or i.resize is not None for i in manifest.inputs)


def make_workload(bundle: Bundle, paths: Sequence[Path], data: str) -> Workload:
    """Photographs where there are some and the bundle takes them, else its golden tensors.

    Args:
        bundle: Who is to be fed.
        paths: Photographs.
        data: Where they are from, in words without folders.

    Raises:
        DatasetError: None of the photographs can be read.
        BundleError: The golden tensors are damaged.
    """
    if paths and takes_photographs(bundle.manifest):
        return from_photographs(bundle.manifest, paths, data)
    return from_golden(bundle)


def from_photographs(
    manifest: Manifest, paths: Sequence[Path], data: str, resample: Resample | None = None
) -> Workload:
    """Read photographs into memory, at most 64, evenly chosen.

    Args:
        manifest: What the graph takes.
        paths: The files.
        data: Where they are from, in words without folders.
        resample: How they are resized; by default as the manifest says.

    Raises:
        UsageError: The graph takes ready tensors that no photograph has.
        DatasetError: None of them can be read.
    """
    if not takes_photographs(manifest):
        names = ", ".join(i.name for i in manifest.inputs if not i.rows and i.resize is None)
        raise UsageError(
            f"the graph takes ready tensors ({names}) that no photograph has; use its golden tensors"
        )
    count = min(MOST, len(paths))
    reader = _Reader(manifest.inputs, manifest.resample if resample is None else resample)
    rows = {i.name: np.zeros((count, *i.shape), np.dtype(i.dtype)) for i in manifest.inputs}
    for turn in range(count):
        reader.read(paths[turn * len(paths) // count], {n: r[len(reader.images)] for n, r in rows.items()})
    good = len(reader.images)
    if not good:
        first = f"; the first: {reader.rejected[0]}" if reader.rejected else ""
        raise DatasetError(f"none of {count} photographs can be read{first}")
    words = f"{good} photographs" if good == len(paths) else f"{good} of {len(paths)} photographs"
    words += f" ({data})"
    if reader.stand_ins:
        words += f", {reader.stand_ins} of them with stand-ins for ready tensors"
    if reader.rejected:
        words += f"; {len(reader.rejected)} could not be read"
    return Workload(
        images=reader.images,
        rows={name: r[:good] for name, r in rows.items()},
        names=[image.name for image in reader.images],
        description=words,
        sha256=reader.digest.hexdigest(),
        rejected=reader.rejected,
        stand_ins=reader.stand_ins,
    )


def from_golden(bundle: Bundle) -> Workload:
    """The inputs that a bundle brings along; there are no photographs then.

    Raises:
        BundleError: They are damaged or lack an input.
    """
    stored = read_golden(bundle.read(bundle.manifest.golden))
    digest = hashlib.sha256()
    rows: dict[str, Array] = {}
    for record in bundle.manifest.inputs:
        array = stored.get(f"input.{record.name}")
        if array is None or list(array.shape[1:]) != record.shape or array.dtype != record.dtype:
            got = "nothing" if array is None else f"{array.dtype} {array.shape}"
            raise BundleError(
                f"{bundle.root}: golden tensors hold {got} for the input {record.name!r}; rebuild the bundle"
            )
        rows[record.name] = np.ascontiguousarray(array)
        _hash(digest, record.name, rows[record.name].tobytes())
    count = len(next(iter(rows.values())))
    return Workload(
        images=[],
        rows=rows,
        names=[f"golden {index}" for index in range(count)],
        description=f"the bundle's {count} golden inputs as ready tensors; no photographs",
        sha256=digest.hexdigest(),
    )


def _hash(digest: Any, name: str, data: bytes) -> None:
    """Add one entry, so that no two lists of entries give the same bytes."""
    digest.update(f"{name}\0{len(data)}\0".encode("utf-8", "surrogateescape"))
    digest.update(data)


class _Reader:
    """Reads photographs one after the other and remembers what became of them."""

    def __init__(self, inputs: Sequence[InputRecord], resample: Resample) -> None:
        self._beside = {i.name: tuple(i.shape) for i in inputs if i.rows}
        specs = {i.name: i.resize for i in inputs if i.resize is not None}
        self._host = Preprocessor(specs, resample, self._beside)
        self.images: list[EncodedImage] = []
        self.rejected: list[ItemError] = []
        self.stand_ins = 0
        self.digest = hashlib.sha256()

    def read(self, path: Path, rows: Mapping[str, Array]) -> None:
        """Read one photograph and write its ready tensors into ``rows``; one that cannot be read is named."""
        try:
            data = path.read_bytes()
            tensors, made = self._tensors(path, data)
            self._host.write(
                EncodedImage(path_text(path.name), data, tensors).beside(data),
                rows,
                item=path_text(path.name),
            )
        except OSError as error:
            self.rejected.append(ItemError(path_text(path.name), f"cannot be read: {error.strerror}"))
        except ItemError as error:
            self.rejected.append(error)
        else:
            # Files beside the photograph are mapped: what they hold is copied once it is known to fit.
            kept = {name: np.array(array) for name, array in tensors.items()}
            self.images.append(EncodedImage(path_text(path.name), data, kept))
            self.stand_ins += made
            _hash(self.digest, path_text(path.name), data)
            # Stand-ins are made of the photograph: its own bytes say all.
            for name, array in () if made else kept.items():
                _hash(self.digest, name, array.tobytes())

    def _tensors(self, path: Path, data: bytes) -> tuple[Mapping[str, Array], bool]:
        """Ready tensors from the files beside a photograph, or stand-ins, and whether they are stand-ins."""
        if all(os.path.lexists(companion_path(path, name)) for name in self._beside):
            return tensors_of(path, self._beside, path_text(path.name)), False
        with needs("export"):
            from vsa_rt.export.stand_ins import stand_in
        picture = Image.fromarray(decode(data, item=path_text(path.name)))
        return {name: stand_in(picture, name, list(shape)) for name, shape in self._beside.items()}, True
