"""The ranges that int8 takes: a calibration over photographs, and the method that makes thresholds of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vsa_rt.bundle import Bundle
from vsa_rt.errors import UsageError, needs
from vsa_rt.manifest import CalibrationRecord, Manifest
from vsa_rt.pipeline.calibrate import FEWEST_IMAGES, calibrate
from vsa_rt.pipeline.export import Progress

if TYPE_CHECKING:
    from vsa_rt.export.calibration.store import Calibration

#: How ranges are taken from histograms unless told otherwise (docs/performance.md compares the methods).
METHOD = "mse"


class NoRanges(UsageError):
    """There is nothing to take int8's ranges from."""


class RangeOptions(Protocol):
    """What ``build``, ``lower`` and ``bisect`` are told about ranges."""

    @property
    def calib(self) -> Path | None:
        """Photographs to measure on; ``None`` for the bundle's own calibration."""
        ...

    @property
    def method(self) -> str | None:
        """As for ``thresholds.threshold_of``; ``None`` for the bundle's own, else ``METHOD``."""
        ...

    @property
    def progress(self) -> Progress:
        """Told of every step."""
        ...


@dataclass(frozen=True)
class Int8Ranges:
    """What int8's ranges are taken from.

    Attributes:
        calibration: Histograms of what the backbones' products read.
        method: How thresholds are taken from them.
    """

    calibration: Calibration
    method: str

    def thresholds(self) -> dict[str, float]:
        """The largest magnitude that symmetric int8 shall hold, by tensor."""
        return self.calibration.thresholds(self.method)

    def record(self) -> CalibrationRecord:
        """What a manifest says about them."""
        with needs("export"):
            from vsa_rt.export.calibration.store import CALIBRATION
        return CalibrationRecord(
            path=CALIBRATION,
            method=self.method,
            images=len(self.calibration.images),
            skipped=self.calibration.skipped,
            warnings=list(self.calibration.warnings),
        )

    def to_bytes(self) -> bytes:
        """The calibration as a bundle keeps it."""
        with needs("export"):
            from vsa_rt.export.calibration.store import calibration_to_bytes
        return calibration_to_bytes(self.calibration)


def calibration_of(bundle: Bundle) -> Calibration | None:
    """The calibration that a bundle brings; ``None`` where it has none.

    Raises:
        BundleError: It is damaged.
    """
    with needs("export"):
        from vsa_rt.export.calibration.store import CALIBRATION, read_calibration
    return read_calibration(bundle.read(CALIBRATION)) if CALIBRATION in bundle.manifest.files else None


def int8_ranges(
    manifest: Manifest,
    graph: Callable[[], bytes],
    tensors: Callable[[], Sequence[str]],
    known: Calibration | None,
    options: RangeOptions,
) -> Int8Ranges:
    """Decide what int8's ranges are taken from: the photographs that were named, else what is known already.

    Args:
        manifest: Of the bundle whose graph is to be lowered.
        graph: Gives that FP32 graph; asked only where there is something to take ranges from.
        tensors: Gives the names of the activations that need ranges; likewise.
        known: An earlier calibration. Instead of photographs it is taken only if it is of this graph and these
            activations; beside them, where it is of the same photographs, too, it saves measuring.
        options: Photographs, method, and who is told of the photographs' oddities.

    Raises:
        NoRanges: No photographs were named, and nothing is known, or only what is of another graph.
        UsageError: There is no such method, or as for ``calibrate``.
        DatasetError: Too few photographs, or an activation that is not a number.
    """
    with needs("export"):
        from vsa_rt.export.calibration.store import CALIBRATION
        from vsa_rt.export.calibration.thresholds import threshold_of
    method = options.method or (manifest.calibration.method if manifest.calibration is not None else METHOD)
    threshold_of(method)  # a word that is none shows before anything is measured
    if options.calib is not None:
        found = calibrate(
            options.calib, graph(), tensors(), manifest.inputs, known=known, progress=options.progress
        )
    elif known is None:
        raise NoRanges(f"int8 needs ranges: --calib DIR with at least {FEWEST_IMAGES} photographs")
    elif not _covers(known, graph(), tensors()):
        raise NoRanges(
            f"int8 needs ranges, and {CALIBRATION} is not of {manifest.graphs[0].path}; "
            f"calibrate again with --calib DIR, at least {FEWEST_IMAGES} photographs"
        )
    else:
        found = known
    for warning in found.warnings:
        options.progress(f"warning: {warning}")
    return Int8Ranges(found, method)


def _covers(known: Calibration, graph: bytes, tensors: Sequence[str]) -> bool:
    """Whether a calibration is of this graph, and of at least these activations."""
    return known.graph == hashlib.sha256(graph).hexdigest() and set(tensors) <= known.histograms.keys()
