"""Reports to hold against each other, with what a test plants into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from vsa_rt.bench.compare import Comparison, Row
from vsa_rt.bench.intervals import series
from vsa_rt.bench.metrics import Metric
from vsa_rt.bench.parity import Flip, Parity
from vsa_rt.bench.records.contest import Contest, Contestant
from vsa_rt.bench.records.timing import Plan, Resources, Run, Scenario
from vsa_rt.bench.records.trust import (
    BundleFacts,
    Environment,
    ParityCheck,
    PlanParity,
    Reason,
    Verdict,
)
from vsa_rt.bench.report import Report

PLAN = "demo openvino:cpu bf16"
LIBRARIES = {"numpy": "2.2", "onnxruntime": "1.22", "openvino": "2025.1", "pillow": "11.0", "torch": "2.8"}


def times(seed: int, middle: float = 5.0, noise: float = 0.01, count: int = 400) -> list[float]:
    """Log-normal milliseconds around a median."""
    return [float(v) for v in middle * np.exp(noise * np.random.default_rng(seed).standard_normal(count))]


def resources() -> Resources:
    return Resources(
        rss_mib=None,
        device_mib=None,
        cores=None,
        other_cores=None,
        stolen=None,
        pressure=None,
        joules=None,
        joules_per_image=None,
        megahertz=None,
        celsius=None,
        throttled=None,
        sources={},
    )


def a_plan(name: str = PLAN, threads: int = 2, precision: str = "bf16") -> Plan:
    return Plan(
        name=name,
        bundle=name.split()[0],
        target="openvino:cpu",
        precision=precision,
        achieved=1.0,
        threads=threads,
        why="named",
    )


def a_run(
    samples: Sequence[float] | None,
    *,
    plan: str = PLAN,
    scenario: Scenario = "quick",
    feed: Literal["tensors", "images"] = "tensors",
    settings: Mapping[str, float] | None = None,
    throughput: float = 200.0,
    reasons: Sequence[str] = (),
) -> Run:
    return Run(
        scenario=scenario,
        plan=plan,
        feed=feed,
        batch=1,
        settings=dict(settings or {}),
        latency=None if samples is None else series(samples),
        images=400,
        seconds=2.0,
        throughput=throughput,
        dropped=None,
        valid=not reasons,
        reasons=list(reasons),
        loadgen={},
        logs=[],
        resources=resources(),
    )


def a_contest(
    plan: Sequence[float],
    baseline: Sequence[float],
    *,
    name: str = "eager",
    precision: str = "fp32",
    threads: int = 2,
    others: Mapping[str, Sequence[float]] | None = None,
) -> Contest:
    baselines = {name: baseline} | dict(others or {})
    return Contest(
        batch=1,
        threads=threads,
        contestants=[
            Contestant(name=PLAN, kind="plan", precision="bf16", note="", samples=list(plan)),
            *(
                Contestant(name=n, kind="baseline", precision=precision, note="", samples=list(samples))
                for n, samples in baselines.items()
            ),
        ],
        pairings=[],
        absent={},
        resources=resources(),
    )


def a_parity(
    images: int = 2000,
    flips: int = 0,
    ties: int = 0,
    metrics: Sequence[Metric] = (),
    reasons: Sequence[str] = (),
    decides: bool = True,
    plan: str = PLAN,
    refused: Mapping[str, str] | None = None,
) -> ParityCheck:
    changed = [Flip(f"{i}.jpg", "awe", "fear", 0.01, i < ties) for i in range(flips + ties)]
    parity = Parity("openvino", "torch", images, [], changed, 0.0, list(metrics), list(reasons))
    return ParityCheck(
        bundle=plan.split()[0],
        reference="torch",
        why="",
        data="photos",
        decides=decides,
        stand_ins=0,
        rejected=[],
        refused=dict(refused or {}),
        plans=[] if refused else [PlanParity(plan=plan, parity=parity)],
    )


def machine(**changed: Any) -> Environment:
    whole: dict[str, Any] = {
        "processor": "Xeon A",
        "cores": 2,
        "memory_gib": 8.0,
        "instruction_sets": ["avx2"],
        "system": "Linux 6",
        "python": "3.11",
        "libraries": dict(LIBRARIES),
        "variables": {},
        "governor": None,
        "pinned": None,
        "gpus": [],
        "busy": 0.0,
    }
    return Environment(**(whole | changed))


def report(
    runs: Sequence[Run] = (),
    contests: Sequence[Contest] = (),
    parity: Sequence[ParityCheck] = (),
    plans: Sequence[Plan] | None = None,
    red: str = "",
    **changed: Any,
) -> Report:
    plans = [a_plan()] if plans is None else list(plans)
    reasons = [Reason(level="red", code="parity", text=red)] if red else []
    bundles = {p.bundle: 0 for p in plans}
    whole: dict[str, Any] = {
        "schema": 1,
        "kind": "bench",
        "vsa_rt": "0.4",
        "created": "2025-01-01T00:00:00+00:00",
        "command": "vsa-rt bench demo",
        "seconds": 60.0,
        "inputs": "12 photographs",
        "inputs_sha256": "aa",
        "environment": machine(),
        "bundles": [
            BundleFacts(
                name=name,
                digest="d1",
                recipe="demo",
                task="single-label",
                labels=["awe", "fear"],
                random_weights=[],
                max_batch=8,
            )
            for name in bundles
        ],
        "plans": plans,
        "runs": list(runs),
        "splits": [],
        "cold": [],
        "contests": list(contests),
        "gaps": [],
        "ceilings": [],
        "limits": [],
        "profiles": [],
        "parity": list(parity),
        "points": [],
        "skipped": {},
        "verdict": Verdict(level="red" if red else "green", reasons=reasons, headline=None),
    }
    return Report(**(whole | changed))


def rows(found: Comparison, by: str = "", quantity: str = "latency") -> list[Row]:
    return [r for r in found.rows if r.quantity == quantity and r.by.startswith(by)]
