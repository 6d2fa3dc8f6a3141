"""The ranges that int8 needs, of photographs or of a bundle's own calibration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vsa_rt.bundle import Bundle
from vsa_rt.errors import BundleError, UsageError, needs
from vsa_rt.manifest import CalibrationRecord
from vsa_rt.pipeline.build import METHOD
from vsa_rt.pipeline.calibrate import calibrate
from vsa_rt.pipeline.export import Progress
from vsa_rt.pipeline.precision.lowered import backbone_taps, exact_taps

if TYPE_CHECKING:
    import onnx

    from vsa_rt.export.calibration.store import Calibration


def int8_ranges(
    bundle: Bundle, graph: onnx.ModelProto, calib: Path | None, method: str | None, progress: Progress
) -> tuple[Calibration, CalibrationRecord]:
    """Histograms of what the backbones' products read, and how thresholds are to be taken from them.

    Args:
        bundle: Whose graph is to be lowered.
        graph: That graph, parsed.
        calib: Photographs; ``None`` for the bundle's own calibration.
        method: As for ``thresholds.threshold_of``; ``None`` for the bundle's own, else ``build.METHOD``.
        progress: Told of every step.

    Raises:
        UsageError: There is nothing to calibrate on, or no such method.
        DatasetError: Too few photographs, or an activation that is not a number.
        BundleError: The bundle's calibration is of another graph.
    """
    with needs("export"):
        from vsa_rt.export.calibration.store import CALIBRATION, read_calibration
        from vsa_rt.export.calibration.thresholds import threshold_of
        from vsa_rt.export.lowering.lower import activations
    manifest = bundle.manifest
    chosen = method or (manifest.calibration.method if manifest.calibration else METHOD)
    threshold_of(chosen)  # a word that is none shows before anything is measured
    truth = manifest.graphs[0].path
    tensors = activations(graph, backbone_taps(manifest), exact_taps(manifest))
    known = read_calibration(bundle.read(CALIBRATION)) if CALIBRATION in manifest.files else None
    if calib is not None:
        known = calibrate(calib, bundle.read(truth), tensors, manifest.inputs, known=known, progress=progress)
    elif known is None:
        raise UsageError(
            f"int8 needs ranges, and {bundle.root} has none: --calib DIR with at least 16 photographs"
        )
    elif known.graph != manifest.files[truth].sha256 or not set(tensors) <= known.histograms.keys():
        raise BundleError(f"{bundle.root}: {CALIBRATION} is not of {truth}; calibrate again with --calib DIR")
    record = CalibrationRecord(
        path=CALIBRATION,
        method=chosen,
        images=len(known.images),
        skipped=known.skipped,
        warnings=list(known.warnings),
    )
    return known, record
