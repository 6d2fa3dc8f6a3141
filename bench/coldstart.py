"""Cold starts: fresh processes up to their second answer.

This module is both sides: ``cold_start`` measures, ``main`` is what the fresh process does. It says ``ready`` as soon as
``vsa_rt`` is imported, and one line of JSON at its end. Whatever ``vsa_rt.load`` imports is imported inside functions
here: that time belongs to the load.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vsa_rt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vsa_rt.bench.records.timing import ColdStart

_READY = b"ready"
#: The fresh process: this module comes after the first sign of life.
_PROGRAM = "import vsa_rt; print('ready', flush=True); from vsa_rt.bench.coldstart import main; main()"
#: Seconds after which a process that says nothing more is given up.
_PATIENCE = 600


def cold_start(
    bundle_root: Path, plan: str, target: str | None, precision: str | None, threads: int, repeats: int
) -> ColdStart:
    """Start fresh processes one after the other, each of which loads the bundle and calls it twice.

    The calls are of one image of the bundle's golden tensors. Files that were read before lie in the system's page
    cache, so that this is the cold start of a process and not that of a machine.

    Args:
        bundle_root: The bundle's directory.
        plan: Its name in the report.
        target: ``backend:device``, or the bundle's fastest.
        precision: Take only an engine of this precision.
        threads: For the engine.
        repeats: How many processes.

    Returns:
        One entry per process in each list.

    Raises:
        EnvironmentUnusable: A process failed, or this system does not tell a process's peak of memory.
        UsageError: ``repeats`` is under 1.
    """
    from vsa_rt.bench.records.timing import ColdStart
    from vsa_rt.errors import UsageError

    if repeats < 1:
        raise UsageError(f"cold start of {plan}: {repeats} processes; expected at least 1")
    command = [sys.executable, "-c", _PROGRAM, str(bundle_root.resolve()), "--threads", str(threads)]
    command += ["--target", target] if target else []
    command += ["--precision", precision] if precision else []
    found = [_process(command, plan) for _ in range(repeats)]

    def column(key: str) -> list[float]:
        return [one[key] for one in found]

    return ColdStart(
        plan=plan,
        process_ms=column("process_ms"),
        load_ms=column("load_ms"),
        first_ms=column("first_ms"),
        second_ms=column("second_ms"),
        capture_ms=None,  # a CUDA session captures while it is opened and at first calls: it is in those
        peak_rss_mib=column("peak_rss_mib"),
    )


def _finish(process: subprocess.Popen[bytes], plan: str) -> tuple[bytes, bytes]:
    """The rest of what a process says."""
    from vsa_rt.errors import EnvironmentUnusable

    with process:
        try:
            return process.communicate(timeout=_PATIENCE)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise EnvironmentUnusable(
                f"cold start of {plan}: no answer within {_PATIENCE} s; see whether vsa-rt run answers with this bundle"
            ) from error


def _process(command: list[str], plan: str) -> dict[str, float]:
    """One fresh process."""
    from vsa_rt.bench import clock
    from vsa_rt.errors import EnvironmentUnusable

    started: list[tuple[subprocess.Popen[bytes], bytes]] = []

    def start() -> None:
        # Unbuffered: a buffer would swallow what communicate() is to read.
        # A folder of its own: Python would import modules of the folder that the user happens to be in.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, cwd=folder
        )
        silent = threading.Timer(_PATIENCE, process.kill)
        silent.start()
        started.append((process, process.stdout.readline() if process.stdout else b""))
        silent.cancel()

    with tempfile.TemporaryDirectory() as folder:
        seconds = clock.single(start)
        process, said = started[0]
        out, err = _finish(process, plan)
    lines = err.decode(errors="replace").strip().splitlines()
    if process.returncode or said.strip() != _READY:
        last = lines[-1] if lines else "no message"
        raise EnvironmentUnusable(
            f"cold start of {plan}: the process ended with exit code {process.returncode}: {last}"
        )
    told: dict[str, float] = json.loads(out)
    return told | {"process_ms": 1000 * seconds}


def _first_image(root: str) -> dict[str, NDArray[Any]]:
    from vsa_rt.bundle import Bundle
    from vsa_rt.golden import read_golden

    bundle = Bundle.open(root)
    golden = read_golden(bundle.read(bundle.manifest.golden))
    return {k.removeprefix("input."): v[:1] for k, v in golden.items() if k.startswith("input.")}


def _peak_mib() -> float:
    """Largest resident memory of this process.

    Not ``getrusage``: its ``ru_maxrss`` outlives ``execve`` (Linux, ``exec_mmap``), so that a process started by a
    large one would have its parent's.
    """
    from vsa_rt.errors import EnvironmentUnusable

    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise EnvironmentUnusable("/proc/self/status has no VmHWM: this system does not tell a peak of memory")


def main() -> None:
    """The fresh process."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--target")
    parser.add_argument("--precision")
    parser.add_argument("--threads", type=int)
    chosen = parser.parse_args()
    from vsa_rt.bench import clock

    loaded = []

    def load() -> None:
        options = {"target": chosen.target, "precision": chosen.precision, "threads": chosen.threads}
        loaded.append(vsa_rt.load(chosen.bundle, **options))

    try:
        load_s = clock.single(load)
        with loaded[0] as runtime:
            image = _first_image(chosen.bundle)
            first_s, second_s = (clock.single(lambda: runtime.infer(image)) for _ in range(2))
        peak = _peak_mib()
    except vsa_rt.VsaError as error:
        raise SystemExit(str(error)) from error
    told = {"load_ms": load_s, "first_ms": first_s, "second_ms": second_s}
    print(json.dumps({k: 1000 * v for k, v in told.items()} | {"peak_rss_mib": peak}))
