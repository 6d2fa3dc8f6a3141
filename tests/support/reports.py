"""Reports built by hand: every section filled, a green verdict, no measurement behind any number."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any, Literal

import msgspec
import numpy as np
from timings import BATCHES, BF16, BUNDLE, FP32, PACE, cold, contest, plan, runs, splits

from vsa_rt.bench.decisions import Flip
from vsa_rt.bench.metrics import McNemar, Metric, Reliability, ReliabilityBin
from vsa_rt.bench.parity import Parity, TapParity
from vsa_rt.bench.records.contest import Gap, Point
from vsa_rt.bench.records.limits import Ceiling, Floor, Layer, Limits, Profile
from vsa_rt.bench.records.trust import (
    BundleFacts,
    Environment,
    Level,
    ParityCheck,
    PlanParity,
    Reason,
    Verdict,
)
from vsa_rt.bench.report import SCHEMA, Report

#: What a stranger may write into a name.
HOSTILE = " <script>alert('x')</script>\"'><img src=x onerror=y> $\\frac$ | `c` __d__ \n# e \x00\x1b[31m\u202e 感情 😀 "


def ceilings() -> list[Ceiling]:
    measured: list[tuple[Literal["convolution", "matmul", "copy"], str, float | None, str]] = [
        ("convolution", "fp32", 301.0, "3 x 3, 256 channels, 28 x 28"),
        ("convolution", "bf16", 1218.0, "3 x 3, 256 channels, 28 x 28"),
        ("convolution", "int8", None, "the library ran it in fp32"),
        ("matmul", "fp32", 322.0, "1024 x 1024 x 1024"),
        ("matmul", "bf16", 1302.0, "1024 x 1024 x 1024"),
        ("copy", "bytes", 21.4, "256 MiB to 256 MiB"),
    ]
    return [
        Ceiling(
            kind=kind,
            precision=precision,
            value=value,
            unit="GB/s" if kind == "copy" else "GMAC/s",
            library="openvino",
            threads=2,
            note=note,
        )
        for kind, precision, value, note in measured
    ]


def limits(name: str, batch: int) -> Limits:
    precision = "bf16" if name == BF16 else "fp32"
    pace, ceiling = PACE[name][BATCHES.index(batch)], 1218.0 if name == BF16 else 301.0
    parts = [
        ("lite0", 386, 9.3, 0.27),
        ("lite1", 602, 10.8, 0.33),
        ("lite2", 862, 12.2, 0.39),
        ("head", 1, 3.1, 0.01),
    ]
    floors = []
    for part, mmacs, megabytes, share in [*parts, ("whole", 1851, 35.4, 1.0)]:
        compute, memory = mmacs * batch / ceiling, megabytes / 21.4
        measured = None if part == "head" else pace * share
        floor = max(compute, memory)
        floors.append(
            Floor(
                part=part,
                macs=mmacs * 10**6 * batch,
                nbytes=int(megabytes * 1e6),
                precision=precision,
                floor_ms=floor,
                bound="compute" if compute >= memory else "memory",
                measured_ms=measured,
                share=floor / measured if measured else None,
            )
        )
    return Limits(plan=name, batch=batch, floors=floors, note="floors take every layer for a convolution")


def profile(name: str, batch: int) -> Profile:
    draw, layers = np.random.default_rng(11), []
    kinds = ["convolution", "depthwise", "activation", "reorder", "pool"]
    for k in range(60):
        backbone = ("lite0", "lite1", "lite2")[k % 3]
        kind = kinds[min(k % 7, 4)]
        layers.append(
            Layer(
                name=f"/{backbone}/blocks.{k // 10}.{k % 10}/conv_pwl/Conv",
                nodes=[f"{backbone}_conv_{k}", f"{backbone}_clip_{k}"],
                backbone=backbone,
                kind=kind,
                precision="bf16" if name == BF16 else "fp32",
                ms=round(0.4 * draw.random() ** 2 * (0.3 if kind != "convolution" else 1), 4),
            )
        )
    layers.append(
        Layer(name="fc", nodes=["head_gemm"], backbone="head", kind="matmul", precision="fp32", ms=0.02)
    )
    layers.append(Layer(name="reorder_1", nodes=[], backbone="", kind="reorder", precision="", ms=0.05))
    layers.sort(key=lambda layer: -layer.ms)
    return Profile(plan=name, batch=batch, source="OpenVINO's counters", calls=50, call_ms=6.0, layers=layers)


def tap(name: str, kind: str, relative: float, reason: str = "") -> TapParity:
    return TapParity(
        tap=name,
        kind=kind,
        max_abs=relative * 3,
        mean_abs=relative / 10,
        relative=relative,
        cosine=1 - relative / 10,
        gain=1 - relative / 50,
        worst="coffee.png",
        reason=reason,
    )


def parity(stage: str, scale: float) -> Parity:
    """One plan's parity; ``scale`` is that of its rounding."""
    taps = [tap("image_224x224", "input", 0.0)]
    taps += [tap(name, "features", scale) for name in ("lite0", "lite1", "lite2", "features")]
    taps.append(tap("scores", "scores", scale / 10))
    return Parity(
        stage=stage,
        reference="torch",
        images=704,
        taps=taps,
        flips=[
            Flip("img_0417.jpg", "positive", "negative", 0.018, True),
            Flip("img_0032.jpg", "negative", "positive", 0.041, True),
        ]
        if scale > 1e-3
        else [],
        kl=scale**2 / 20,
        metrics=[
            Metric("accuracy", 0.905, 0.9036, -0.0057, 0.0028),
            Metric("weighted F1", 0.904, 0.9031, -0.006, 0.004),
        ]
        if scale > 1e-3
        else [Metric("accuracy", 0.905, 0.905, 0.0, 0.0), Metric("weighted F1", 0.904, 0.904, 0.0, 0.0)],
        reasons=[],
        kl_worst=scale / 10,
        kl_item="img_0417.jpg",
        rank_changes=2 if scale > 1e-3 else 0,
        kendall_tau=0.9943 if scale > 1e-3 else 1.0,
        labelled=704,
        mcnemar=McNemar(2, 1, 1.0) if scale > 1e-3 else McNemar(0, 0, 1.0),
        reliability=Reliability(bins(0.0), bins(scale / 2)) if scale > 1e-3 else None,
    )


def bins(shift: float) -> list[ReliabilityBin]:
    found = []
    for k, count in enumerate((31, 48, 77, 133, 415)):
        low = 0.5 + k / 10
        found.append(
            ReliabilityBin(low, low + 0.1, count, low + 0.052, min(1.0, low + 0.03 + 0.01 * k + shift))
        )
    return found


def check() -> ParityCheck:
    return ParityCheck(
        bundle=BUNDLE,
        reference="torch",
        why="",
        data="twitter1",
        decides=True,
        stand_ins=0,
        rejected=["broken.jpg: the file ends early"],
        refused={"onnxruntime-cpu-fp32": "its library is not installed"},
        plans=[
            PlanParity(plan="", parity=parity("onnx", 2e-6)),
            PlanParity(plan=BF16, parity=parity(BF16, 0.05)),
            PlanParity(plan=FP32, parity=parity(FP32, 3e-6)),
        ],
    )


def points() -> list[Point]:
    """A third plan has as slow an engine as it has right answers: the second dominates it."""
    found = []
    plans = [
        (BF16, "openvino:cpu", "bf16", 0.9036, PACE[BF16]),
        (FP32, "openvino:cpu", "fp32", 0.905, PACE[FP32]),
        ("onnxruntime:cpu fp32", "onnxruntime:cpu", "fp32", 0.905, (16.4, 104.0)),
    ]
    for name, target, precision, quality, pace in plans:
        for place, batch in enumerate(BATCHES):
            middle = pace[place] / batch
            found.append(
                Point(
                    plan=name,
                    bundle=BUNDLE,
                    target=target,
                    precision=precision,
                    batch=batch,
                    ms_per_image=middle,
                    low=middle * 0.99,
                    high=middle * 1.02,
                    quality=quality,
                    quality_of="accuracy",
                    parity=True,
                    dominated_by=f"{FP32}, batch {batch}" if target == "onnxruntime:cpu" else "",
                )
            )
    return found


def environment() -> Environment:
    return Environment(
        processor="Intel(R) Xeon(R) Platinum 8488C",
        cores=2,
        memory_gib=15.6,
        instruction_sets=["avx512f", "avx512_bf16", "amx_bf16", "amx_int8"],
        system="Linux 6.1.0",
        python="3.11.7",
        libraries={"openvino": "2025.4.0", "torch": "2.9.1", "numpy": "2.2.6"},
        variables={"OMP_NUM_THREADS": "2"},
        governor=None,
        pinned=None,
        gpus=[],
        busy=0.02,
    )


def clean_report(**changes: Any) -> Report:
    """A report with every section, two plans, two baselines, batch 1 and 8: nothing to object to."""
    found = Report(
        schema=SCHEMA,
        kind="bench",
        vsa_rt="0.1.0",
        created="2025-11-22T08:30:00Z",
        command="vsa-rt bench quickstart.bundle --batch 1,8 --against eager,compile --layers",
        seconds=148.0,
        inputs="24 photographs of scikit-image and scikit-learn, taking turns",
        inputs_sha256="9f2c" * 16,
        environment=environment(),
        bundles=[
            BundleFacts(
                name=BUNDLE,
                digest="4be1" * 16,
                recipe="quickstart",
                task="binary",
                labels=["negative", "positive"],
                random_weights=[],
                max_batch=32,
            )
        ],
        plans=[plan(BF16, "bf16"), plan(FP32, "fp32")],
        runs=runs(),
        splits=list(splits()),
        cold=[cold(BF16), cold(FP32)],
        contests=[contest(batch) for batch in BATCHES],
        gaps=[
            Gap(
                plan=BF16,
                batch=1,
                tool="bare request",
                command="",
                ours_ms=5.24,
                tool_ms=5.21,
                gap_ms=0.031,
                low=0.012,
                high=0.049,
                pairs=60,
                confidence=0.973,
                note="",
            )
        ],
        ceilings=ceilings(),
        limits=[limits(name, batch) for name in (BF16, FP32) for batch in BATCHES],
        profiles=[profile(BF16, 1)],
        parity=[check()],
        points=points(),
        skipped={"server": "not asked for: name --scenario server --qps"},
        verdict=Verdict(
            level="green",
            reasons=[
                Reason(level="green", code="clocks", text="the system does not tell whether clocks are fixed")
            ],
            headline="openvino:cpu bf16 at batch 1 takes 5.3 ms, 4.9 times as fast as PyTorch eager in fp32",
        ),
    )
    return msgspec.structs.replace(found, **changes)


def red_report() -> Report:
    """The same measurements under a red verdict."""
    reasons = [
        Reason(
            level="red", code="parity", text="openvino:cpu bf16: lite1 leaves its tolerance; do not ship it"
        ),
        Reason(level="amber", code="drift", text="quick, batch 8: the median drifts by 7 %; measure again"),
    ]
    return clean_report(verdict=Verdict(level="red", reasons=reasons, headline=None))


def with_verdict(level: Level, headline: str | None, *reasons: Reason) -> Report:
    return clean_report(verdict=Verdict(level=level, reasons=list(reasons), headline=headline))


def hostile_report(text: str = HOSTILE) -> Report:
    """A report in which every free text carries ``text``; references among records still hold."""

    def spoil(value: Any) -> Any:
        if isinstance(value, str):
            return value + text
        if isinstance(value, list):
            return [spoil(v) for v in value]
        if isinstance(value, dict):
            return {spoil(k): spoil(v) for k, v in value.items()}
        if not isinstance(value, msgspec.Struct) and not dataclasses.is_dataclass(value):
            return value
        kind: Any = type(value)
        fixed = {
            n for n, hint in typing.get_type_hints(kind).items() if typing.get_origin(hint) is typing.Literal
        }
        names = [
            f.name
            for f in (
                dataclasses.fields(value)
                if dataclasses.is_dataclass(value)
                else msgspec.structs.fields(value)
            )
        ]
        return kind(**{n: getattr(value, n) if n in fixed else spoil(getattr(value, n)) for n in names})

    found: Report = spoil(clean_report())
    return found


def broken_parity(parity: Parity) -> Parity:
    """The same with a backbone that gives no numbers."""
    lost = dataclasses.replace(
        parity.taps[1],
        max_abs=math.inf,
        mean_abs=None,
        relative=math.inf,
        cosine=None,
        gain=None,
        reason="not a number; coffee.png",
    )
    taps = [parity.taps[0], lost, *parity.taps[2:]]
    return dataclasses.replace(parity, taps=taps, reasons=["lite0: not a number; coffee.png"])
