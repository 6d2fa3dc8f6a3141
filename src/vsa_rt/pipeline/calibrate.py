"""A folder of photographs to a calibration: which of them, read by the runtime's own code, through the FP32 graph."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.bundle import hash_file
from vsa_rt.dataset import Dataset, Photograph, read_dataset
from vsa_rt.documents import path_text
from vsa_rt.errors import DatasetError, ItemError, UsageError, needs
from vsa_rt.manifest import InputRecord
from vsa_rt.pipeline.export import Progress, silent
from vsa_rt.pipeline.images import PhotographFeed
from vsa_rt.runtime.companions import companion_path

if TYPE_CHECKING:
    from vsa_rt.export.calibration.collect import CalibrationBatch, Run
    from vsa_rt.export.calibration.histogram import Histogram
    from vsa_rt.export.calibration.store import Calibration, ImageRecord

#: Photographs that are looked at unless told otherwise: ranges of more differ little, and take longer.
MOST_IMAGES = 128
#: With fewer, a range is what a few photographs happen to hold: the largest of 16 draws lies above the 90th
#: percentile of the distribution with a probability of 1 - 0.9 ** 16 = 0.81, of 8 with 0.57.
FEWEST_IMAGES = 16
#: An image whose levels (of 255) spread less than this has next to one colour: a lens cap, a blank page. Photographs
#: have a standard deviation of dozens.
_FLAT = 4.0
#: Names in a warning.
_NAMED = 4


def choose(photographs: Sequence[Photograph], most: int = MOST_IMAGES) -> list[Photograph]:
    """At most so many photographs, evenly over the sorted ones, so that every label has its share."""
    count = min(most, len(photographs))
    return [photographs[i * len(photographs) // count] for i in range(count)]


def image_records(
    photographs: Sequence[Photograph], root: Path, inputs: Sequence[InputRecord] = ()
) -> list[ImageRecord]:
    """Each photograph's name below the folder and the SHA-256 of its bytes, with those of ready tensors beside it.

    Args:
        photographs: In order.
        root: The folder.
        inputs: What the graph takes; of those with rows, the files count where they are.
    """
    with needs("export"):
        from vsa_rt.export.calibration.store import ImageRecord
    records = []
    for photograph in photographs:
        path = photograph.path
        beside = [companion_path(path, i.name) for i in inputs if i.rows]
        parts = [_read(path), *(_read(companion) for companion in beside)]
        digest = parts[0] if not beside else hashlib.sha256("\n".join(parts).encode()).hexdigest()
        inside = path.absolute().is_relative_to(root.absolute())
        name = path.absolute().relative_to(root.absolute()) if inside else Path(path.name)
        records.append(ImageRecord(path_text(name.as_posix()), digest))
    return records


def _read(path: Path) -> str:
    """SHA-256 of a file's bytes; of none where it cannot be read."""
    try:
        if path.is_file():  # a FIFO would block for ever
            return hash_file(path).sha256
    except OSError:  # why is said when it is decoded
        pass
    return hashlib.sha256().hexdigest()


def cached(
    calibration: Calibration, images: Sequence[ImageRecord], graph_sha256: str, tensors: Sequence[str]
) -> bool:
    """Whether a calibration is of these photographs, this graph, and at least these tensors.

    Args:
        calibration: An earlier one.
        images: Of ``image_records``: all that would be looked at, unreadable ones among them.
        graph_sha256: Of the FP32 graph's bytes.
        tensors: That need ranges.
    """
    bad = set(calibration.unreadable)
    return (
        calibration.graph == graph_sha256
        and set(tensors) <= calibration.histograms.keys()
        and [i for i in images if i not in bad] == list(calibration.images)
        and {i for i in images if i in bad} == bad
    )


class _Batches:
    """Photographs as the graph takes them, from the beginning each time they are gone through.

    Attributes:
        feed: Of the last pass.
        flat: Names of photographs of next to one colour, of the last pass.
        read: Photographs that could be read, of the last pass.
    """

    def __init__(self, photographs: Sequence[Photograph], inputs: Sequence[InputRecord]) -> None:
        self._photographs, self._inputs = photographs, inputs
        self.feed = PhotographFeed(inputs, _no_reference)
        self.flat: list[str] = []
        self.read: list[Photograph] = []

    def __iter__(self) -> Iterator[CalibrationBatch]:
        from vsa_rt.export.calibration.collect import CalibrationBatch

        self.feed = PhotographFeed(self._inputs, _no_reference)
        self.flat, self.read = [], []
        for batch in self.feed.batches(self._photographs):
            self.read += batch.photographs
            pixels = [batch.candidate[i.name] for i in self._inputs if i.resize is not None]
            for row, name in enumerate(batch.names):
                if pixels and all(float(p[row].std()) < _FLAT for p in pixels):
                    self.flat.append(name)
            yield CalibrationBatch(batch.names, batch.candidate)


def _no_reference(_picture: Any) -> dict[str, NDArray[np.uint8]]:
    """The feed's reference transform, where nothing is compared: ranges are of what engines are given."""
    return {}


def calibrate(
    source: Path | Dataset,
    graph: bytes,
    tensors: Sequence[str],
    inputs: Sequence[InputRecord],
    most: int = MOST_IMAGES,
    known: Calibration | None = None,
    progress: Progress = silent,
) -> Calibration:
    """Measure activations over photographs, resized exactly.

    Args:
        source: ``--calib``: a folder as for ``read_dataset``, or one that was read.
        graph: The FP32 graph.
        tensors: Names of activations.
        inputs: What the graph takes, as the manifest says.
        most: Photographs at most, evenly chosen.
        known: The bundle's own calibration; given back if it is of the same photographs, graph and tensors.
        progress: Told of every step.

    Returns:
        The same for the same arguments on the same machine.

    Raises:
        DatasetError: No folder, fewer than ``FEWEST_IMAGES`` photographs that can be read, or NaN or infinity in an
            activation.
        UsageError: The graph is quantised already, lacks a tensor, or takes something that photographs do not give.
        EnvironmentUnusable: A library is not installed.
    """
    with needs("export"):
        from vsa_rt.export.calibration.collect import collect
        from vsa_rt.export.calibration.store import Calibration
    _require_images(inputs)
    dataset = read_dataset(source) if isinstance(source, Path) else source
    photographs = choose(dataset.photographs, most)
    _require_enough(len(photographs), len(photographs), dataset.rejected)
    root = source if isinstance(source, Path) else _common_folder(photographs)
    records = image_records(photographs, root, inputs)
    sha256 = hashlib.sha256(graph).hexdigest()
    if known is not None and cached(known, records, sha256, tensors):
        progress(f"calibration: kept, it is of the same {len(known.images)} photographs and the same graph")
        return known
    batches = _Batches(photographs, inputs)
    histograms = collect(graph, tensors, batches, _open_graph, progress, total=len(photographs))
    rejected = [*dataset.rejected, *batches.feed.rejected]
    _require_enough(len(batches.read), len(photographs), rejected)
    good = {p.path for p in batches.read}
    images = [r for p, r in zip(photographs, records, strict=True) if p.path in good]
    return Calibration(
        histograms=histograms,
        images=images,
        graph=sha256,
        unreadable=[r for p, r in zip(photographs, records, strict=True) if p.path not in good],
        rejected=len(dataset.rejected),
        stand_ins=batches.feed.stand_ins,
        warnings=_warnings(histograms, images, batches.flat),
    )


def peaks(
    photographs: Sequence[Photograph],
    graph: bytes,
    tensors: Sequence[str],
    inputs: Sequence[InputRecord],
    progress: Progress = silent,
) -> dict[str, float]:
    """The largest magnitude of each activation over photographs, resized exactly; as ``calibrate``, without histograms.

    Args:
        photographs: Those that cannot be read are left out.
        graph: The FP32 graph.
        tensors: Names of activations.
        inputs: What the graph takes, as the manifest says.
        progress: Told of every step.

    Raises:
        DatasetError: None can be read, or an activation is NaN or infinite.
        UsageError: As for ``calibrate``.
    """
    with needs("export"):
        from vsa_rt.export.calibration.collect import collect_ranges
    _require_images(inputs)
    found = collect_ranges(
        graph,
        tensors,
        _Batches(photographs, inputs),
        _open_graph,
        progress,
        total=len(photographs),
    )
    return {name: measured.magnitude for name, measured in found.items()}


def _open_graph(graph: bytes) -> Run:
    """A graph ready to run in fp32."""
    with needs("export"):
        from vsa_rt.engines.executor import GraphExecutor
    return GraphExecutor(graph).run


def _common_folder(photographs: Sequence[Photograph]) -> Path:
    return Path(os.path.commonpath([p.path.absolute().parent for p in photographs]))


def _require_images(inputs: Sequence[InputRecord]) -> None:
    """Check that photographs give all that the graph takes."""
    for record in inputs:
        if record.resize is None and not record.rows:
            raise UsageError(
                f"input {record.name!r} is a ready tensor of which nobody knows how it is made of a photograph: there "
                "is nothing to calibrate on. Build with a recipe that has the key `graph.inputs`"
            )


def _require_enough(good: int, chosen: int, rejected: Sequence[ItemError]) -> None:
    """Check that there are photographs enough to measure ranges on."""
    if good < FEWEST_IMAGES:
        first = f"; the first of {len(rejected)} left out: {rejected[0]}" if rejected else ""
        raise DatasetError(
            f"calibration: {good} of {chosen} photographs can be used, at least {FEWEST_IMAGES} are needed for ranges "
            f"that hold for others; add photographs{first}"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _warnings(
    histograms: Mapping[str, Histogram], images: Sequence[ImageRecord], flat: Sequence[str]
) -> list[str]:
    """Where the photographs are unlike photographs, or say nothing about a tensor."""
    found = []
    if 2 * len(flat) > len(images):
        found.append(
            f"{len(flat)} of {len(images)} calibration photographs have next to one colour ({_some(flat)}): ranges "
            "measured on them are too narrow for others"
        )
    different = len({i.sha256 for i in images})
    if different < FEWEST_IMAGES:
        found.append(
            f"only {different} of {len(images)} calibration photographs differ from each other; "
            f"at least {FEWEST_IMAGES} are needed for ranges that hold for others"
        )
    zero = [name for name, h in histograms.items() if h.magnitude == 0]
    if zero:
        found.append(
            f"{len(zero)} tensors are zero over all {len(images)} calibration photographs ({_some(zero)}): "
            "they have no range"
        )
    constant = [name for name, h in histograms.items() if h.lowest == h.highest != 0]
    if constant:
        found.append(
            f"{len(constant)} tensors have one value over all {len(images)} calibration photographs "
            f"({_some(constant)}): their ranges say nothing about others"
        )
    return found
