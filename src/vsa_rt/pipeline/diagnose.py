"""What this machine can build and run, measured: a small convolution in every precision of every target."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np

from vsa_rt import gpu, jetson
from vsa_rt.bench import clock
from vsa_rt.bench.intervals import ratio
from vsa_rt.bench.probe import CHANNELS, MACS, PROBED, SIZE
from vsa_rt.contracts import Precision, Target, TensorSpec
from vsa_rt.doctor import (
    SEES_SYSTEM,
    Library,
    Machine,
    describe_machine,
    made_for_newer,
    missing,
    usable_cores,
)
from vsa_rt.engines import table
from vsa_rt.engines.backend import OpenOptions, Probe, Session
from vsa_rt.engines.compiling import CompileOptions, Source
from vsa_rt.errors import EnvironmentUnusable
from vsa_rt.runtime import jpeg, resample

ROUNDS = 15
#: Times the speed of fp32 on convolutions from which on a precision is said to pay: a network gains less. int8 has
#: to cross between what a processor with VNNI gives, 4 (64 products an instruction for 16), and what one without it
#: gives, 4/3 (three instructions for 64 products), of which quantising and what is around convolutions leave nothing.
PAYS = {Precision.FP16: 1.2, Precision.BF16: 1.2, Precision.INT8: 2.0}

#: For which GPU a TensorRT is asked whether it compiles ahead of time, where no GPU is here.
AHEAD = "sm_86"


@dataclass(frozen=True)
class Speed:
    """One precision of one target.

    Attributes:
        precision: As written in the graph.
        gmacs: Multiply-adds per second of the probe's convolutions, in 10^9; ``None`` if it cannot run.
        achieved: Share of the convolutions that ran in that precision.
        reason: Why it cannot run.
        times: Speed against fp32, the median over pairs of one interleaved run; ``None`` where one cannot run.
    """

    precision: str
    gmacs: float | None
    achieved: float | None
    reason: str
    times: float | None = None


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
class Flavour:
    """One of the two TensorRTs.

    Attributes:
        package: As targets name it.
        version: Empty where it is not installed.
        usable: It compiles and runs engines for a GPU of this machine.
        compiles: It compiles engines here, if only for GPUs elsewhere.
        reason: Why it is not usable.
        install: The command that would change that.
    """

    package: str
    version: str
    usable: bool
    compiles: bool
    reason: str
    install: str


@dataclass(frozen=True)
class Diagnosis:
    """What ``vsa-rt doctor`` says.

    Attributes:
        machine: The machine and its libraries.
        gpus: NVIDIA's, or why there is none.
        jetson: What a Jetson says of itself; ``None`` on any other machine.
        tensorrt: Both TensorRTs.
        targets: Every target that this version knows, of GPUs those that are here.
        missing: Libraries that would be of use here.
        resize: ``native`` or ``pillow``.
        jpeg: ``opencv`` or ``pillow``.
        advice: Sentences for people.
    """

    machine: Machine
    gpus: gpu.Gpus
    jetson: jetson.Jetson | None
    tensorrt: list[Flavour]
    targets: list[TargetReport]
    missing: list[Library]
    resize: str
    jpeg: str
    advice: list[str]


def _probe_graph(precision: Precision) -> bytes:
    return (resources.files("vsa_rt.engines") / f"probe.{precision}.onnx").read_bytes()


def _open(target: Target, precision: Precision) -> Session:
    import tempfile

    backend = table.backend(target.backend)
    with tempfile.TemporaryDirectory() as folder:
        source = Source(_probe_graph(precision))
        made = backend.build(source, Path(folder), target.device, CompileOptions(max_batch=4))
        files = [(Path(folder) / name).read_bytes() for name in made.files]
    inputs = [TensorSpec("image", "float32", (None, CHANNELS, SIZE, SIZE))]
    outputs = [TensorSpec("features", "float32", (None, CHANNELS))]
    options = OpenOptions(max_batch=4, threads=usable_cores(), device=target.device, compiled=made.compiled)
    return backend.open(files, inputs, outputs, options)


def _measure(target: Target) -> list[Speed]:
    sessions: dict[Precision, Session] = {}
    reasons: dict[Precision, str] = {}
    known = [p for p in table.backend(target.backend).precisions(target.device) if p in PROBED]
    rng = np.random.default_rng(0)
    inputs = {"image": rng.standard_normal((4, CHANNELS, SIZE, SIZE), np.float32)}
    with ExitStack() as opened:
        for precision in known:
            try:
                session = _open(target, precision)
                opened.callback(session.close)
                session.slots[0].run(inputs)
            except EnvironmentUnusable as error:
                reasons[precision] = str(error)
            else:
                sessions[precision] = session
        calls = {str(p): (lambda slot=s.slots[0]: slot.run(inputs)) for p, s in sessions.items()}
        try:
            samples = clock.measure(calls, ROUNDS)
        except EnvironmentUnusable as error:
            # A GPU that fails takes every session on it along, and is what somebody asks doctor about.
            reasons |= dict.fromkeys(sessions, str(error))
        return [
            Speed(str(p), None, None, reasons[p])
            if p in reasons
            else _speed(p, samples, sessions[p].achieved)
            for p in known
        ]


def _speed(precision: Precision, samples: dict[str, list[float]], achieved: float | None) -> Speed:
    mine, exact = samples[str(precision)], samples.get(str(Precision.FP32))
    gmacs = 4 * MACS / clock.median_ms(mine) / 1e6
    times = round(ratio(exact, mine).median, 2) if exact else None
    return Speed(str(precision), round(gmacs, 1), achieved, "", times)


def paying(target: Target) -> dict[Precision, float]:
    """How many times as fast as fp32 each lower precision computes convolutions here, by measurement.

    What a processor's or a library's list of capabilities says is not asked. About two seconds.

    Args:
        target: A usable one.

    Returns:
        The lower precisions that the backend has and that run here; ``pays`` says what a number means.
    """
    lower = {s.precision: s.times for s in _measure(target) if s.precision != Precision.FP32}
    return {Precision(p): times for p, times in lower.items() if times is not None}


def pays(target: str, precision: Precision, times: float) -> str:
    """One sentence: whether a precision pays on a target.

    Args:
        target: ``backend:device``.
        precision: The lower one.
        times: Its speed on convolutions against fp32.
    """
    word = f"{precision} will not pay on {target} here"
    if times < 1:
        return f"{word}: {times:.2f} of fp32's speed on convolutions."
    if times < PAYS[precision]:
        return f"{word}: only {times:.2f} times fp32's speed on convolutions, and a network gains less."
    return f"{precision} pays on {target}: {times:.1f} times fp32's speed on convolutions."


def _probe(target: Target, commands: dict[str, str]) -> Probe:
    """What a backend says of a target; of a library that is missing, with the command for this machine."""
    found = table.probe(target)
    command = commands.get(target.backend)
    return found if found.version or command is None else replace(found, install=command)


def _flavour(package: str, gpus: gpu.Gpus, commands: dict[str, str]) -> Flavour:
    """One TensorRT, for the first GPU that it knows."""
    backend = table.backend(package)
    known = [g.capability for g in gpus.devices if not backend.knows(g.capability)]
    found = _probe(Target(package, (known or [AHEAD])[0]), commands)
    reason, install = found.reason, found.install
    if gpus.devices and not known:
        reason, install = f"it has no engines for {', '.join(g.capability for g in gpus.devices)}", ""
    elif found.version and not gpus.devices:
        reason = "no GPU is here"
    return Flavour(package, found.version, found.usable, found.usable or found.compiles, reason, install)


def _target_advice(targets: list[TargetReport]) -> list[str]:
    advice = []
    if not any(t.usable for t in targets):
        advice.append("Nothing can run bundles here yet: pip install 'vsa-rt[openvino]'.")
    for target in targets:
        advice += [
            pays(target.target, Precision(s.precision), s.times)
            for s in target.speeds
            if s.times is not None and s.precision != Precision.FP32
        ]
    return advice


def _gpu_advice(gpus: gpu.Gpus, tensorrt: list[Flavour]) -> list[str]:
    advice = []
    ahead = [f.package for f in tensorrt if f.compiles and not f.usable]
    if ahead and not gpus.devices:
        advice.append(
            f"Engines for GPUs elsewhere can be compiled here: vsa-rt build RECIPE -o OUT --target {ahead[0]}:{AHEAD}."
        )
    known = any(not table.backend(f.package).knows(g.capability) for f in tensorrt for g in gpus.devices)
    if known and not any(f.usable for f in tensorrt):
        advice.append("No TensorRT can use this machine's GPU yet; what it needs is listed as missing.")
    return advice + made_for_newer(gpus)


def _jetson_advice(board: jetson.Jetson, tensorrt: list[Flavour]) -> list[str]:
    advice = []
    if board.tensorrt is not None and not any(f.version for f in tensorrt if f.package == "tensorrt"):
        advice.append(
            f"JetPack's TensorRT {board.tensorrt} is a package of the system, which this environment does not see: make "
            f"one that does, {SEES_SYSTEM}, and install vsa-rt there."
        )
    # Its parts may be there without the package that stands for all of them, as in most containers.
    absent = board.jetpack is None and board.tensorrt is None
    if absent and "not installed" in board.reasons["jetpack"]:
        advice.append(f"JetPack: {board.reasons['jetpack']}: sudo apt install nvidia-jetpack.")
    most = next((name for name in board.power_modes if name.startswith("MAXN")), None)
    if board.power_mode is not None and most is not None and board.power_mode != most:
        advice.append(
            f"The power mode is {board.power_mode}; the fastest is {most}: "
            f"sudo nvpmodel -m {board.power_modes[most]}."
        )
    if board.pinned is False:
        advice.append("Clocks follow the load: sudo jetson_clocks pins them before a measurement.")
    return advice


def diagnose(root: Path = Path("/")) -> Diagnosis:
    """Probe and measure; about two seconds per usable target.

    Args:
        root: Below which a Jetson's files are looked for.
    """
    machine, gpus, board = describe_machine(), gpu.find_gpus(), jetson.find_jetson(root)
    lacking = missing(machine, gpus, board)
    commands = {library.name: library.install for library in lacking}
    targets = []
    for target in table.targets():
        found = _probe(target, commands)
        speeds = _measure(target) if found.usable else []
        targets.append(
            TargetReport(
                str(target), found.usable, found.version, found.machine, found.reason, found.install, speeds
            )
        )
    tensorrt = [_flavour(package, gpus, commands) for package in ("tensorrt", "tensorrt-rtx")]
    resize = resample.implementation()
    advice = _target_advice(targets) + _gpu_advice(gpus, tensorrt)
    if board is not None:
        advice += _jetson_advice(board, tensorrt)
    if resize == "pillow":
        advice.append(
            "Photographs are resized by Pillow: install from a wheel, or with a C compiler, for the fast code."
        )
    return Diagnosis(
        machine=machine,
        gpus=gpus,
        jetson=board,
        tensorrt=tensorrt,
        targets=targets,
        missing=[
            library
            for library in lacking
            # Without metadata of a distribution, a TensorRT of the system is there all the same.
            if not any(f.version for f in tensorrt if f.package == library.name)
        ],
        resize=resize,
        jpeg=jpeg.jpeg_decoder(),
        advice=advice,
    )
