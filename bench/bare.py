"""What this project's call costs beyond the backend's own: its bare request, and its own benchmark program."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from vsa_rt.bench import clock
from vsa_rt.bench.candidate import Tensors
from vsa_rt.bench.intervals import difference
from vsa_rt.bench.records.contest import Gap
from vsa_rt.contracts import Target
from vsa_rt.engines.onnxruntime import OnnxRuntimeSession
from vsa_rt.engines.openvino import OpenVinoSession
from vsa_rt.errors import EnvironmentUnusable
from vsa_rt.runtime.fused import Runtime

BARE = "bare request"
#: Backend to its own benchmark program.
TOOLS = {
    "openvino": "benchmark_app",
    "onnxruntime": "onnxruntime_perf_test",
    "tensorrt": "trtexec",
    "tensorrt-rtx": "tensorrt_rtx",
}
_CONFIDENCE = 0.99
#: Of a program's run, in seconds: it loads and compiles the engine before.
_PATIENCE = 300
_REPORT = "benchmark_report.json"


def bare_call(runtime: Runtime, inputs: Tensors) -> Callable[[], None]:
    """The backend's own call on the engine that a runtime has open, everything bound beforehand.

    Args:
        runtime: Stays open while the call is used.
        inputs: One batch of ready tensors, C-contiguous.

    Raises:
        EnvironmentUnusable: The backend's bare call is not known.
    """
    session = runtime.session
    if isinstance(session, OpenVinoSession):
        return session.bare_call(inputs)
    if isinstance(session, OnnxRuntimeSession):
        return _onnxruntime_binding(session, inputs)
    raise EnvironmentUnusable(f"{runtime.choice.engine.target}: the bare call of this backend is not known")


def _onnxruntime_binding(session: OnnxRuntimeSession, inputs: Tensors) -> Callable[[], None]:
    """The same ORT session with inputs bound where they lie, and outputs that ORT allocates."""
    opened = session._session
    binding = opened.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    for output in opened.get_outputs():
        binding.bind_output(output.name)
    # As above, the arrays must stay while they are bound.
    held = (binding, inputs)
    return lambda: opened.run_with_iobinding(held[0])


def request_gap(plan: str, runtime: Runtime, inputs: Tensors, rounds: int) -> Gap:
    """``rt.infer`` against the bare call of the same engine, interleaved.

    Args:
        plan: Its name.
        runtime: The plan, opened.
        inputs: One batch of ready tensors.
        rounds: Pairs.

    Raises:
        EnvironmentUnusable: The backend's bare call is not known.
    """
    bare = bare_call(runtime, inputs)
    samples = clock.measure({"tool": bare, "ours": partial(runtime.infer, inputs)}, rounds)
    return _gap(
        plan,
        inputs,
        samples["ours"],
        samples["tool"],
        tool=BARE,
        command="",
        note="the same engine and threads in this process; rt.infer checks its inputs, takes a slot and copies "
        "the outputs besides",
    )


def _gap(
    plan: str,
    inputs: Tensors,
    ours: Sequence[float],
    tools: Sequence[float],
    tool: str,
    command: str,
    note: str,
) -> Gap:
    found = difference(ours, tools, _CONFIDENCE)
    return Gap(
        plan=plan,
        batch=len(next(iter(inputs.values()))),
        tool=tool,
        command=command,
        ours_ms=clock.median_ms(ours),
        tool_ms=clock.median_ms(tools),
        gap_ms=found.median,
        low=found.low,
        high=found.high,
        pairs=found.pairs,
        confidence=found.confidence,
        note=note,
    )


def find_tool(name: str) -> Path:
    """A program beside this Python, or on the path.

    Raises:
        EnvironmentUnusable: It is in neither place.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        raise EnvironmentUnusable(f"{name} is neither beside this Python nor on the path")
    return Path(found)


def benchmark_app_options(inputs: Tensors, threads: int, seconds: int) -> list[str]:
    """How OpenVINO's program is told to do what this project's engine does.

    Args:
        inputs: One batch, for names and shapes.
        threads: Cores.
        seconds: How long it measures.
    """
    shapes = ",".join(f"{name}[{','.join(map(str, array.shape))}]" for name, array in inputs.items())
    return [
        *("-d", "CPU", "-api", "sync", "-hint", "none", "-nstreams", "1", "-nthreads", str(threads)),
        *("-infer_precision", "f32", "-shape", shapes, "-t", str(seconds)),
    ]


def read_benchmark_app(report: bytes) -> float:
    """The median latency in milliseconds from ``benchmark_app -json_stats``.

    Raises:
        EnvironmentUnusable: The report has another form.
    """
    try:
        return float(msgspec.json.decode(report)["execution_results"]["latency (ms)"])
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
        raise EnvironmentUnusable(
            f"benchmark_app: its report has another form than expected: {error!r}"
        ) from error


def _run_benchmark_app(program: Path, model: Path, options: Sequence[str]) -> float:
    """One run of the program; its median in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(program), "-m", str(model), *options, "-json_stats", "-report_type", "no_counters"]
        try:
            done = subprocess.run(
                [*command, "-report_folder", folder],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=_PATIENCE,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EnvironmentUnusable(f"benchmark_app cannot be run: {type(error).__name__}") from error
        report = Path(folder) / _REPORT
        if done.returncode or not report.is_file():
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise EnvironmentUnusable(
                f"benchmark_app failed ({done.returncode}): {lines[-1] if lines else 'silent'}"
            )
        return read_benchmark_app(report.read_bytes())


def tool_gap(
    plan: str, runtime: Runtime, root: Path, inputs: Tensors, threads: int, seconds: int = 2, pairs: int = 3
) -> Gap:
    """``rt.infer`` against OpenVINO's own program on the same IR: ours, the program, ours, the program, …

    Args:
        plan: Its name.
        runtime: The plan, opened.
        root: The bundle's folder.
        inputs: One batch of ready tensors.
        threads: Cores of the plan, and of the program.
        seconds: Of each round of each side.
        pairs: Rounds of each.

    Raises:
        EnvironmentUnusable: The backend has no such program, it is not installed, or it fails.
    """
    engine = runtime.choice.engine
    backend = Target.parse(engine.target).backend
    name = TOOLS.get(backend)
    if name is None:
        raise EnvironmentUnusable(f"{backend} has no benchmark program that is known")
    program = find_tool(name)
    if backend != "openvino":
        raise EnvironmentUnusable(f"{name} is installed, but how to read what it prints was never verified")
    options = benchmark_app_options(inputs, threads, seconds)
    ours, tools = [], []
    for _ in range(pairs):
        loop = clock.loop(lambda _: runtime.infer(inputs), seconds, at_least=3)
        ours.append(clock.median_ms(loop.samples_ms))
        tools.append(_run_benchmark_app(program, root / engine.files[0], options))
    return _gap(
        plan,
        inputs,
        ours,
        tools,
        tool=name,
        command=" ".join([name, "-m", engine.files[0], *options]),
        note=f"medians of {pairs} rounds of {seconds} s each, in turn; the program is a process of its own, feeds "
        "random inputs and prints hundredths of a millisecond",
    )


def _pairs_for(runtime: Runtime, inputs: Tensors, budget: float) -> int:
    """Pairs that fit into a time; each calls both sides twice (``clock.measure``)."""
    runtime.infer(inputs)
    seconds = 4 * clock.single(partial(runtime.infer, inputs))
    return max(15, min(100, int(budget / seconds)))


def bare_gaps(
    plan: str,
    runtime: Runtime,
    root: Path,
    inputs: Tensors,
    threads: int,
    *,
    budget: float = 10.0,
    seconds: int = 1,
) -> tuple[list[Gap], dict[str, str]]:
    """Every gap that can be measured here.

    Args:
        plan: Its name.
        runtime: The plan, opened.
        root: The bundle's folder.
        inputs: One batch of ready tensors.
        threads: Cores of the plan.
        budget: Seconds for the pairs against the bare request, roughly: 15 to 100 of them.
        seconds: Of each round against the program.

    Returns:
        The gaps, and tool to reason of what could not be measured.
    """
    found: list[Gap] = []
    absent: dict[str, str] = {}
    backend = Target.parse(runtime.choice.engine.target).backend
    measured: dict[str, Callable[[], Gap]] = {
        BARE: lambda: request_gap(plan, runtime, inputs, _pairs_for(runtime, inputs, budget)),
        TOOLS.get(backend, f"{backend}'s own program"): lambda: tool_gap(
            plan, runtime, root, inputs, threads, seconds
        ),
    }
    for tool, measure in measured.items():
        try:
            found.append(measure())
        except EnvironmentUnusable as error:
            absent[tool] = str(error)
    return found, absent
