"""The report: everything a benchmark found. One JSON document, versioned, validated on reading."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from vsa_rt.bench.records.contest import Contest, Gap, Point
from vsa_rt.bench.records.limits import Ceiling, Limits, Profile
from vsa_rt.bench.records.record import Record
from vsa_rt.bench.records.timing import ColdStart, Plan, Run, Series, Split
from vsa_rt.bench.records.trust import BundleFacts, Environment, ParityCheck, Verdict
from vsa_rt.documents import finite
from vsa_rt.errors import UsageError

#: Version of the report. Keys may be added within a version; none changes its meaning.
SCHEMA = 1
FILE_NAME = "report.json"


class Report(Record, frozen=True, kw_only=True):
    """Everything.

    Attributes:
        schema: Version of this format.
        kind: ``bench``.
        vsa_rt: Version that measured.
        created: UTC time, ISO 8601.
        command: What repeats it, without folders.
        seconds: How long it took.
        inputs: What the engines were fed, in words.
        inputs_sha256: Over the names and bytes of the images.
        environment: Machine and software.
        bundles: What was measured.
        plans: How it was run.
        runs: Scenarios.
        splits: Times by stage.
        cold: Cold starts.
        contests: Against baselines.
        gaps: Against the backend's bare tools.
        ceilings: Of the machine.
        limits: Distance to them.
        profiles: Layers.
        parity: One entry per bundle.
        points: Accuracy and latency of every plan and batch size.
        skipped: What was asked for, or is there by default, and could not be measured: part to reason.
        verdict: How far all this can be trusted.
        resumed: Parts that an interrupted run of the same command had finished, with the time of each.
    """

    schema: int
    kind: Literal["bench"]
    vsa_rt: str
    created: str
    command: str
    seconds: float
    inputs: str
    inputs_sha256: str
    environment: Environment
    bundles: list[BundleFacts]
    plans: list[Plan]
    runs: list[Run]
    splits: list[Split]
    cold: list[ColdStart]
    contests: list[Contest]
    gaps: list[Gap]
    ceilings: list[Ceiling]
    limits: list[Limits]
    profiles: list[Profile]
    parity: list[ParityCheck]
    points: list[Point]
    skipped: dict[str, str]
    verdict: Verdict
    resumed: list[str] = msgspec.field(default_factory=list)


def report_to_json(report: Report) -> bytes:
    """The report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(finite(msgspec.to_builtins(report))), indent=1) + b"\n"


def report_from_json(data: bytes, where: str) -> Report:
    """Read and check a report.

    Args:
        data: The file's bytes.
        where: What to call it in messages.

    Raises:
        UsageError: Not JSON, another schema, or not what this version describes.
    """
    try:
        raw: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(f"{where}: not a report: {error}; name a report.json of vsa-rt bench") from error
    if not isinstance(raw, dict) or raw.get("kind") != "bench" or raw.get("schema") != SCHEMA:
        found = {k: raw.get(k) for k in ("kind", "schema")} if isinstance(raw, dict) else type(raw).__name__
        raise UsageError(
            f"{where}: {found}; this version of vsa-rt reads reports of kind 'bench', schema {SCHEMA}: measure again"
        )
    try:
        report = msgspec.convert(raw, Report)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {error}; measure again") from error
    for problem in _contradictions(report):
        raise UsageError(f"{where}: contradicts itself: {problem}; measure again")
    return report


def read_report(path: Path) -> Report:
    """Read a report from its file, or from the folder that holds it.

    Raises:
        UsageError: It is absent or no report.
    """
    file = path / FILE_NAME if path.is_dir() else path
    try:
        return report_from_json(file.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}; name a report.json of vsa-rt bench") from error


def _series(report: Report) -> Iterator[Series]:
    for run in report.runs:
        if run.latency is not None:
            yield run.latency
    for split in report.splits:
        yield split.whole
        yield from (s.series for s in split.stages if s.series is not None)


def _contradictions(report: Report) -> Iterator[str]:
    """What a reader could not rely on."""
    plans = {p.name for p in report.plans}
    named = {
        "run": [r.plan for r in report.runs],
        "split": [s.plan for s in report.splits],
        "cold start": [c.plan for c in report.cold],
        "gap": [g.plan for g in report.gaps],
        "limits": [r.plan for r in report.limits],
        "profile": [p.plan for p in report.profiles],
    }
    for what, names in named.items():
        yield from (f"{what} of an unknown plan {name!r}" for name in names if name not in plans)
    for series in _series(report):
        if not 0 <= series.warm_up < max(1, len(series.samples)):
            yield f"warm-up of {series.warm_up} among {len(series.samples)} samples"
    for contest in report.contests:
        if len({len(c.samples) for c in contest.contestants}) > 1:
            yield f"contestants of batch {contest.batch} with different numbers of rounds"
    if report.verdict.level == "red" and report.verdict.headline is not None:
        yield "a red verdict with a headline"
