"""What tests of benchmarks share: bundles of one engine, and runs without the parts that take long."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
import reports

from vsa_rt.bundle import Bundle, seal_folder
from vsa_rt.pipeline.measuring.measurement import Measurement

#: The engine that opens quickly.
PORTABLE = "onnxruntime:cpu"


def keep_engine(root: Path, target: str) -> None:
    """Take the engines of other targets out of a bundle."""
    manifest = Bundle.open(root).manifest
    kept = [e for e in manifest.engines if e.target == target]
    assert kept, f"this machine builds nothing for {target}"
    for engine in manifest.engines:
        if engine not in kept:
            shutil.rmtree(root / engine.folder)
    seal_folder(root, msgspec.structs.replace(manifest, engines=kept))


def leave_out(patch: pytest.MonkeyPatch, pages: bool = True) -> None:
    """Leave out what takes long, compares nothing and has tests of its own.

    Args:
        patch: Puts it back.
        pages: Whether the page with its plots is left out, too.
    """
    for part in ("cold_starts", "bare_gaps", "distances"):
        patch.setattr(Measurement, part, lambda self: None)
    if pages:
        patch.setattr("vsa_rt.render.pages.to_html", lambda report: "")
    patch.setattr("vsa_rt.pipeline.bench.environment", lambda libraries: reports.environment())
