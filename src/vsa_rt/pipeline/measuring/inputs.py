"""What a benchmark feeds its bundles: the same photographs for all, or golden tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vsa_rt.bench.workload import Workload, make_workload, takes_photographs
from vsa_rt.dataset import Photograph, read_dataset
from vsa_rt.errors import EnvironmentUnusable, ItemError, UsageError
from vsa_rt.pipeline.images import gate_photographs
from vsa_rt.pipeline.measuring.plans import Subject


@dataclass(frozen=True)
class Inputs:
    """The photographs of a run, and what each bundle makes of them.

    Attributes:
        photographs: For parity: all of them.
        rejected: Those that are no photographs.
        data: Where they are from, in words: ``shipped``, ``golden`` or a folder's name.
        workloads: Bundle name to what it is fed.
    """

    photographs: list[Photograph]
    rejected: list[ItemError]
    data: str
    workloads: dict[str, Workload]


def _photographs(data: Path | None) -> tuple[list[Photograph], list[ItemError], str]:
    if data is not None:
        dataset = read_dataset(data)
        return dataset.photographs, dataset.rejected, data.resolve().name
    try:
        return gate_photographs(None), [], "shipped"
    except EnvironmentUnusable:  # the packages that ship some belong to builds
        return [], [], "golden"


def read_inputs(subjects: Sequence[Subject], data: Path | None) -> Inputs:
    """Read the photographs and prepare them for every bundle.

    Raises:
        DatasetError: ``data`` holds no photograph that can be read.
        UsageError: There are ``data``, and a bundle takes ready tensors only.
    """
    ready = [s.name for s in subjects if not takes_photographs(s.bundle.manifest)]
    if data is not None and ready:
        raise UsageError(
            f"--data: {ready[0]} takes ready tensors only; without --data it is fed its golden tensors"
        )
    photographs, rejected, words = _photographs(data)
    paths = [p.path for p in photographs]
    workloads = {s.name: make_workload(s.bundle, paths, words) for s in subjects}
    return Inputs(photographs, rejected, words, workloads)
