"""Parity for a report: every plan of a bundle against its reference, as ``check`` does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vsa_rt.bench.records.trust import ParityCheck, PlanParity
from vsa_rt.bench.workload import takes_photographs
from vsa_rt.dataset import Photograph
from vsa_rt.documents import without_folders
from vsa_rt.errors import BundleError, CheckpointAbsent, CheckpointError, EnvironmentUnusable, ItemError
from vsa_rt.pipeline.check import Check, CheckOptions, check_golden, check_photographs
from vsa_rt.pipeline.export import Progress, silent
from vsa_rt.pipeline.gate import Reference
from vsa_rt.pipeline.measuring.plans import Subject
from vsa_rt.pipeline.reference import onnx_reference, reference_of


@dataclass(frozen=True)
class ParityOptions:
    """What parity is measured on.

    Attributes:
        photographs: Where there are none, the bundle's golden tensors are taken.
        rejected: What the folder held besides.
        data: Where they are from, in words.
        progress: Told of every step.
    """

    photographs: Sequence[Photograph]
    rejected: Sequence[ItemError] = ()
    data: str = "shipped"
    progress: Progress = silent


def _reference(subject: Subject) -> Reference:
    """The torch model where it can be rebuilt, else the FP32 graph with the reason."""
    try:
        return reference_of(subject.ensemble())
    except (EnvironmentUnusable, CheckpointAbsent) as error:
        if subject.weights:
            raise
        return onnx_reference(subject.bundle, str(error))
    except CheckpointError as error:
        raise BundleError(f"{subject.bundle.root}: is not what its manifest says: {error}") from error


def check_parity(subject: Subject, options: ParityOptions) -> ParityCheck:
    """Compare a bundle's graph and plans with its reference.

    Args:
        subject: Opened; engines are opened once more, as ``check`` would.
        options: On what.

    Raises:
        VsaError: The bundle is not what it says.
    """
    golden = not options.photographs or not takes_photographs(subject.bundle.manifest)
    known = CheckOptions(
        weights=subject.weights,
        progress=options.progress,
        folders=[opened.engine.folder for opened in subject.plans],
        threads=subject.lead.plan.threads,
    )
    if golden:
        found = check_golden(subject.bundle, known)
    else:
        found = check_photographs(subject.bundle, options.photographs, _reference(subject), known)
        found = replace(found, rejected=[*options.rejected, *found.rejected])
    return record_of(subject, found, "golden" if golden else options.data)


def record_of(subject: Subject, found: Check, data: str) -> ParityCheck:
    """A check as the report has it: stages by their plans' names, those that nobody measured left out."""
    names = {f"{o.plan.target} {o.plan.precision}": o.plan.name for o in subject.plans} | {"onnx": ""}
    return ParityCheck(
        bundle=subject.name,
        reference=found.reference,
        why=found.why,
        data=data,
        decides=found.decides,
        stand_ins=found.stand_ins,
        rejected=[without_folders(f"{Path(error.item).name}: {error.reason}") for error in found.rejected],
        refused=found.refused,
        plans=[PlanParity(plan=names[p.stage], parity=p) for p in found.parities if p.stage in names],
    )
