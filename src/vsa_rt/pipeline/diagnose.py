"""What this machine can build and run, measured: a small convolution in every precision of every target."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np

from vsa_rt.bench import clock
from vsa_rt.bench.probe import CHANNELS, MACS, SIZE
from vsa_rt.contracts import Precision, Target, TensorSpec
from vsa_rt.doctor import Machine, describe_machine, usable_cores
from vsa_rt.engines import table
from vsa_rt.engines.backend import OpenOptions, Session
from vsa_rt.errors import EnvironmentUnusable
from vsa_rt.runtime import jpeg, resample

ROUNDS = 15


@dataclass(frozen=True)
class Speed:
    """One precision of one target.

    Attributes:
        precision: As written in the graph.
        gmacs: Multiply-adds per second of the probe's convolutions, in 10^9; ``None`` if it cannot run.
        achieved: Share of the convolutions that ran in that precision.
        reason: Why it cannot run.
    """

    precision: str
    gmacs: float | None
    achieved: float | None
    reason: str


@dataclass(frozen=True)
class TargetReport:
    """One target: whether it is usable, and how fast."""

    target: str
    usable: bool
    version: str
    machine: str
    reason: str
    install: str
    speeds: list[Speed]


@dataclass(frozen=True)
class Diagnosis:
    """What ``vsa-rt doctor`` says.

    Attributes:
        machine: The machine and its libraries.
        targets: Every target that this version knows.
        resize: ``native`` or ``pillow``.
        jpeg: ``opencv`` or ``pillow``.
        advice: Sentences for people.
    """

    machine: Machine
    targets: list[TargetReport]
    resize: str
    jpeg: str
    advice: list[str]


def _probe_graph(precision: Precision) -> bytes:
    return (resources.files("vsa_rt.engines") / f"probe.{precision}.onnx").read_bytes()


def _open(target: Target, precision: Precision) -> Session:
    import tempfile
    from pathlib import Path

    backend = table.backend(target.backend)
    with tempfile.TemporaryDirectory() as folder:
        names = backend.build(_probe_graph(precision), Path(folder), target.device, 4)
        files = [(Path(folder) / name).read_bytes() for name in names]
    inputs = [TensorSpec("image", "float32", (None, CHANNELS, SIZE, SIZE))]
    outputs = [TensorSpec("features", "float32", (None, CHANNELS))]
    return backend.open(files, inputs, outputs, OpenOptions(max_batch=4, threads=usable_cores()))


def _measure(target: Target) -> list[Speed]:
    sessions: dict[Precision, Session] = {}
    reasons: dict[Precision, str] = {}
    known = table.backend(target.backend).precisions
    for precision in known:
        try:
            sessions[precision] = _open(target, precision)
        except EnvironmentUnusable as error:
            reasons[precision] = str(error)
    rng = np.random.default_rng(0)
    inputs = {"image": rng.standard_normal((4, CHANNELS, SIZE, SIZE), np.float32)}
    calls = {str(p): (lambda slot=s.slots[0]: slot.run(inputs)) for p, s in sessions.items()}
    samples = clock.measure(calls, ROUNDS)
    speeds = []
    for precision in known:
        if precision in sessions:
            gmacs = 4 * MACS / clock.median_ms(samples[str(precision)]) / 1e6
            speeds.append(Speed(str(precision), round(gmacs, 1), sessions[precision].achieved, ""))
        else:
            speeds.append(Speed(str(precision), None, None, reasons[precision]))
    for session in sessions.values():
        session.close()
    return speeds


def _advice(targets: list[TargetReport], resize: str) -> list[str]:
    advice = []
    if not any(t.usable for t in targets):
        advice.append("Nothing can run bundles here yet: pip install 'vsa-rt[openvino]'.")
    for target in targets:
        speeds = {s.precision: s.gmacs for s in target.speeds if s.gmacs}
        if "fp32" in speeds and "bf16" in speeds:
            gain = speeds["bf16"] / speeds["fp32"]
            verdict = "pays" if gain > 1.1 else "does not pay"
            advice.append(f"bf16 {verdict} on {target.target}: {gain:.1f} times fp32 on convolutions.")
    if resize == "pillow":
        advice.append(
            "Photographs are resized by Pillow: install from a wheel, or with a C compiler, for the fast code."
        )
    return advice


def diagnose() -> Diagnosis:
    """Probe and measure; about two seconds per usable target."""
    targets = []
    for target in table.targets():
        found = table.probe(target)
        speeds = _measure(target) if found.usable else []
        targets.append(
            TargetReport(
                str(target), found.usable, found.version, found.machine, found.reason, found.install, speeds
            )
        )
    resize = resample.implementation()
    return Diagnosis(describe_machine(), targets, resize, jpeg.jpeg_decoder(), _advice(targets, resize))
