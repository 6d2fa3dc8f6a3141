"""LoadGen's logs: its figures, its verdict, and when each query was done, as it wrote them itself."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vsa_rt.bench.records.timing import Run
from vsa_rt.errors import EnvironmentUnusable, UsageError

#: One sample in the trace; ``complete_ns`` counts from its scheduled time.
_SAMPLE = re.compile(r'"name":"Sample".*?"ph":"b".*?"sample_seq":(\d+),.*?"complete_ns":(\d+)')


def read_detail(path: Path) -> tuple[dict[str, Any], list[str]]:
    """LoadGen's detail log: key to value, and its errors and warnings.

    Raises:
        EnvironmentUnusable: It is absent, or not in the format of LoadGen 1.0 and later.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(":::MLLOG "):
                entry = json.loads(line.removeprefix(":::MLLOG "))
                values[entry["key"]] = entry["value"]
                if entry["metadata"]["is_error"] or entry["metadata"]["is_warning"]:
                    problems.append(f"{entry['key']}: {entry['value']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnvironmentUnusable(f"{path}: LoadGen's detail log cannot be read: {error!r}") from error
    if "result_validity" not in values:
        raise EnvironmentUnusable(f"{path}: LoadGen logged no result; expected the key result_validity")
    return values, problems


def read_trace(path: Path, expected: int) -> list[float]:
    """Latencies in milliseconds from LoadGen's trace, in the order of schedule, each from its scheduled time.

    The trace as a whole is not valid JSON (LoadGen quotes some keys twice); it has one event per line.

    Raises:
        EnvironmentUnusable: It is absent, or has another number of samples than expected.
    """
    try:
        found = _SAMPLE.findall(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EnvironmentUnusable(f"{path}: LoadGen's trace cannot be read: {error.strerror}") from error
    if len(found) != expected:
        raise EnvironmentUnusable(
            f"{path}: {len(found)} samples in LoadGen's trace; expected {expected}: use another version of "
            "mlcommons-loadgen"
        )
    return [int(latency) / 1e6 for _, latency in sorted((int(number), latency) for number, latency in found)]


def verdict(detail: dict[str, Any], problems: Sequence[str]) -> tuple[bool, list[str]]:
    """LoadGen's own verdict in its own words; it names no reason where only its early stopping fails."""
    reasons = [f"LoadGen: {problem}" for problem in problems]
    if words := " ".join(str(detail.get("result_invalid_reason", "")).split()):
        reasons.append(f"LoadGen: {words}")
    if detail.get("early_stopping_met") is False:
        words = " ".join(str(detail.get("early_stopping_result", "")).replace(" * ", " ").split())
        reasons.append(f"LoadGen's early stopping: {words}")
    valid = detail["result_validity"] == "VALID" and not problems
    if not valid and not reasons:
        reasons.append(f"LoadGen: {detail['result_validity']}, without a reason; see its summary")
    return valid, reasons


def figures(detail: dict[str, Any]) -> dict[str, float]:
    """The numbers of its result, by LoadGen's own names."""
    return {
        key: float(value)
        for key, value in detail.items()
        if key.startswith(("result_", "early_stopping_latency_"))
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    }


def agreement(run: Run, shares: Sequence[float] = (0.50, 0.99)) -> dict[float, float]:
    """How far this harness's clock and LoadGen's differ over one run, as shares of LoadGen's percentile.

    Both times every query of a single- or multi-stream run. All samples count, warm-up included, at the rank that
    LoadGen takes: the one at ``floor(share * count)`` from 0.

    Raises:
        UsageError: The run is of another scenario, or LoadGen gives no such percentile.
    """
    middle = {"single-stream": "latency", "multi-stream": "per_query_latency"}.get(run.scenario)
    if middle is None or run.latency is None:
        raise UsageError(
            f"{run.scenario}: only queries of single-stream and multi-stream are timed by both clocks"
        )
    ours, found = sorted(run.latency.samples), {}
    for share in shares:
        key = f"result_{100 * share:.2f}_percentile_{middle}_ns"
        if key not in run.loadgen:
            raise UsageError(f"{share}: LoadGen gives no {key}; take 0.5, 0.9, 0.95, 0.97, 0.99 or 0.999")
        theirs = run.loadgen[key] / 1e6
        found[share] = ours[min(len(ours) - 1, int(share * len(ours)))] / theirs - 1
    return found


def kept(folder: Path, relative_to: Path) -> list[str]:
    """LoadGen's files that have something in them, below the report's folder.

    Raises:
        UsageError: They lie elsewhere.
    """
    try:
        inner = folder.resolve().relative_to(relative_to.resolve())
    except ValueError as error:
        raise UsageError(
            f"{folder}: LoadGen's logs must lie below the report's folder {relative_to}"
        ) from error
    return sorted((inner / f.name).as_posix() for f in folder.glob("mlperf_log_*") if f.stat().st_size)
