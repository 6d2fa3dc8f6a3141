"""The environment: which machine and which software a report is about."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from vsa_rt.bench.records.trust import Environment
from vsa_rt.bench.resources import watch
from vsa_rt.bench.sensors import Gpus, number_of, text_of
from vsa_rt.doctor import describe_machine, library_version
from vsa_rt.documents import without_folders

#: Environment variables that steer threads, instruction sets and devices: OpenMP's, MKL's, OpenBLAS's, oneDNN's,
#: OpenVINO's, PyTorch's and CUDA's. A prefix is listed only where nobody keeps a secret under it.
_VARIABLES = re.compile(
    r"(OMP|GOMP|KMP|MKL|OPENBLAS|BLIS|ONEDNN|DNNL|OV)_\w+|ATEN_CPU_CAPABILITY|TORCH_ALLOW_TF32_CUBLAS_OVERRIDE|"
    r"CUDA_(VISIBLE_DEVICES|DEVICE_ORDER|MODULE_LOADING|LAUNCH_BLOCKING)|NVIDIA_(VISIBLE_DEVICES|TF32_OVERRIDE)"
)
#: Seconds over which the load before the start is measured.
_BUSY_SECONDS = 1.0


def _variables() -> dict[str, str]:
    """Those that are set; of paths the last part alone, which says enough and nothing about whose machine it is."""
    return {
        name: without_folders(value)
        for name, value in sorted(os.environ.items())
        if _VARIABLES.fullmatch(name)
    }


def _policies(root: Path) -> list[Path]:
    return sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))


def governor(root: Path = Path("/")) -> str | None:
    """The governor of the processors' frequency, several where they differ; ``None`` where the system does not tell."""
    found = {text for policy in _policies(root) if (text := text_of(policy / "scaling_governor"))}
    return ", ".join(sorted(found)) or None


def _boosts(root: Path) -> bool:
    """Whether clocks above the nominal one are allowed; a driver without a switch for them has none."""
    cpu = root / "sys/devices/system/cpu"
    return number_of(cpu / "intel_pstate/no_turbo") == 0 or number_of(cpu / "cpufreq/boost") == 1


def _policy_pinned(policy: Path, boosts: bool) -> bool | None:
    least, most = (number_of(policy / f"scaling_{end}_freq") for end in ("min", "max"))
    if least is None or most is None:
        return None
    one = least == most or text_of(policy / "scaling_governor") == "performance"
    nominal = number_of(policy / "base_frequency")
    return one and (not boosts or (nominal is not None and most <= nominal))


def pinned(root: Path = Path("/"), gpus: Gpus | None = None) -> bool | None:
    """Whether the clocks are fixed.

    A processor's clock is fixed if one clock alone is asked for (``scaling_min_freq`` is ``scaling_max_freq``, or the
    governor is ``performance``) and that clock does not depend on heat and neighbours: boost is off, or the highest
    clock is at most ``base_frequency``. A GPU's is fixed if its application clock is not the default one; NVML has no
    query for locked clocks, so that it never says no.

    Args:
        root: Where ``sys`` is.
        gpus: Those that count, too.

    Returns:
        ``False`` if any is not fixed, else ``None`` if the system does not tell of all of them.
    """
    boosts = _boosts(root)
    answers = [_policy_pinned(policy, boosts) for policy in _policies(root)] or [None]
    if gpus is not None and not gpus.absent:
        chosen = gpus.ask("nvmlDeviceGetApplicationsClock", 0)
        default = gpus.ask("nvmlDeviceGetDefaultApplicationsClock", 0)
        answers += (
            [None]
            if chosen is None or default is None
            else [True if c != d else None for c, d in zip(chosen, default, strict=True)]
        )
    if False in answers:
        return False
    return None if None in answers else True


def environment(libraries: Sequence[str], root: Path = Path("/")) -> Environment:
    """Describe the machine and the software, and watch for a second what others use of it.

    Args:
        libraries: Distributions whose versions count.
        root: Where ``proc`` and ``sys`` are.
    """
    machine = describe_machine()
    with watch(root) as watched:
        time.sleep(_BUSY_SECONDS)
    gpus = Gpus()
    names, driver = gpus.ask("nvmlDeviceGetName") or [], gpus.driver()
    fixed = pinned(root, gpus)
    gpus.close()
    return Environment(
        processor=machine.processor,
        cores=machine.cores,
        memory_gib=machine.memory_gib,
        instruction_sets=machine.instruction_sets,
        system=machine.system,
        python=machine.python,
        libraries={name: library_version(name) or "not installed" for name in libraries},
        variables=_variables(),
        governor=governor(root),
        pinned=fixed,
        gpus=[f"{name}, driver {driver}" for name in names],
        busy=watched.result(0).other_cores,
    )
