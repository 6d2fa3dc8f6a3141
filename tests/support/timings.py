"""Times built by hand, no measurement behind them: series, runs, contests, splits, cold starts of two plans."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from vsa_rt.bench.records.contest import Contest, Contestant, Pairing
from vsa_rt.bench.records.timing import (
    ColdStart,
    Percentile,
    Plan,
    Resources,
    Run,
    Scenario,
    Series,
    Split,
    Stage,
    StageTime,
)

BUNDLE = "quickstart"
BF16, FP32 = "openvino:cpu bf16", "openvino:cpu fp32"
BATCHES = (1, 8)
#: Milliseconds per call at batch 1 and 8.
PACE = {
    BF16: (5.2, 24.0),
    FP32: (13.9, 88.0),
    "eager": (26.1, 151.0),
    "compile": (15.8, 97.0),
}


def percentile(ordered: list[float], share: float, confidence: float = 0.95) -> Percentile:
    """The order statistic at a share and its one-sided bound (binomial, exact)."""
    count = len(ordered)
    needed = math.ceil(math.log(1 - confidence) / math.log(share))
    if count < needed:
        return Percentile(share=share, value=None, upper=None, confidence=confidence, needed=needed)
    below, rank = 0.0, 0
    while below < confidence:
        below += math.comb(count, rank) * share**rank * (1 - share) ** (count - rank)
        rank += 1
    upper = ordered[min(rank, count) - 1]
    value = ordered[math.ceil(share * count) - 1]
    return Percentile(share=share, value=value, upper=upper, confidence=confidence, needed=needed)


def samples(middle: float, count: int, seed: int) -> list[float]:
    """Times around a middle with a tail to the right, as calls have them."""
    draw = np.random.default_rng(seed)
    tail = abs(draw.normal(0, 0.015, count)) + draw.exponential(1 / 60, count)
    return [round(float(middle * (1 + t)), 4) for t in tail]


def series(middle: float, count: int, seed: int, warm_up: int = 4) -> Series:
    times = [middle * (2.1 - 0.3 * k) for k in range(warm_up)] + samples(middle, count, seed)
    steady = times[warm_up:]
    ordered = sorted(steady)
    return Series(
        samples=times,
        warm_up=warm_up,
        steady=True,
        drift=0.002,
        autocorrelation=0.04,
        mean=statistics.fmean(steady),
        least=ordered[0],
        most=ordered[-1],
        percentiles=[percentile(ordered, share) for share in (0.5, 0.9, 0.99)],
    )


def resources(**changes: Any) -> Resources:
    found = Resources(
        rss_mib=812.0,
        device_mib=None,
        cores=1.96,
        other_cores=0.03,
        stolen=0.0,
        pressure=0.004,
        joules=None,
        joules_per_image=None,
        megahertz=[2400.0, 2600.0, 2600.0],
        celsius=None,
        throttled=None,
        sources={
            "rss_mib": "/proc/self/status: VmRSS",
            "device_mib": "no GPU",
            "joules": "no RAPL counter may be read here",
            "celsius": "the system shows no sensor",
            "throttled": "the virtual machine shows no counter",
        },
    )
    return msgspec.structs.replace(found, **changes)


def plan(name: str, precision: str) -> Plan:
    return Plan(
        name=name,
        bundle=BUNDLE,
        target="openvino:cpu",
        precision=precision,
        achieved=1.0,
        threads=2,
        why="the fastest engine that held its tolerance" if precision == "bf16" else "asked for",
    )


def run(
    name: str, batch: int, scenario: Scenario = "quick", count: int = 400, seed: int = 0, **changes: Any
) -> Run:
    middle = PACE[name][BATCHES.index(batch)]
    latency = None if scenario == "offline" else series(middle, count, seed)
    found = Run(
        scenario=scenario,
        plan=name,
        feed="tensors",
        batch=batch,
        settings={"seconds": 10.0, "min_samples": 300},
        latency=latency,
        images=count * batch,
        seconds=count * middle / 1e3,
        throughput=batch / middle * 1e3,
        dropped=None,
        valid=True,
        reasons=[],
        loadgen={},
        logs=[],
        resources=resources(),
    )
    return msgspec.structs.replace(found, **changes)


def runs() -> list[Run]:
    found = [run(name, batch, seed=batch) for name in (BF16, FP32) for batch in BATCHES]
    found.append(
        run(
            BF16,
            1,
            "camera",
            count=120,
            seed=5,
            feed="images",
            settings={"fps": 30.0},
            throughput=30.0,
            dropped=0,
        )
    )
    found.append(
        run(
            BF16,
            8,
            "offline",
            loadgen={"Samples per second": 331.2, "Min duration satisfied": 1.0},
            logs=["loadgen/offline-8/mlperf_log_summary.txt"],
        )
    )
    return found


def contest(batch: int, rounds: int = 60) -> Contest:
    place = BATCHES.index(batch)
    sides = {name: samples(pace[place], rounds, 40 + k) for k, (name, pace) in enumerate(PACE.items())}
    kinds = {BF16: "bf16", FP32: "fp32", "eager": "fp32", "compile": "fp32"}
    notes = {"eager": "PyTorch, one module after the other", "compile": "torch.compile, default mode"}
    pairings = []
    for slower, faster in [
        (FP32, BF16),
        ("eager", BF16),
        ("compile", BF16),
        ("eager", FP32),
        ("compile", FP32),
    ]:
        ratios = sorted(a / b for a, b in zip(sides[slower], sides[faster], strict=True))
        pairings.append(
            Pairing(
                slower=slower,
                faster=faster,
                ratio=statistics.median(ratios),
                low=ratios[21],
                high=ratios[38],
                pairs=rounds,
                confidence=0.973,
                different=True,
            )
        )
    return Contest(
        batch=batch,
        threads=2,
        openings=6,
        contestants=[
            Contestant(
                name=name,
                kind="plan" if name in (BF16, FP32) else "baseline",
                precision=kinds[name],
                note=notes.get(name, "one engine, one call"),
                samples=times,
            )
            for name, times in sides.items()
        ],
        pairings=pairings,
        absent={"openvino-separate": "the bundle keeps no separate graphs"},
        resources=resources(),
    )


def splits() -> Iterator[Split]:
    shares: list[tuple[Stage, float, str]] = [
        ("decode", 4.1, "JPEG and PNG of the data folder"),
        ("resize", 2.3, "three sizes"),
        ("copy-in", 0.21, ""),
        ("compute", 0.0, "the engine's own clock"),
        ("copy-out", 0.02, ""),
        ("post", 0.05, "scores to labels"),
    ]
    for name in (BF16, FP32):
        for place, batch in enumerate(BATCHES):
            times = {stage: ms * batch or PACE[name][place] for stage, ms, _ in shares}
            yield Split(
                plan=name,
                batch=batch,
                stages=[
                    StageTime(stage=stage, series=series(times[stage], 60, 7), note=note)
                    for stage, _, note in shares
                ],
                whole=series(0.9 * sum(times.values()), 60, 8),
                images=24,
            )


def cold(name: str) -> ColdStart:
    return ColdStart(
        plan=name,
        process_ms=[412.0, 405.0, 409.0],
        load_ms=[1630.0, 1588.0, 1602.0],
        first_ms=[41.0, 39.5, 40.2],
        second_ms=[6.1, 6.0, 6.3],
        capture_ms=None,
        peak_rss_mib=[700.0, 702.0, 699.0],
    )
