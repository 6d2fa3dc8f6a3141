"""Why a compiled engine does not fit a machine: said from the manifest, before native code sees the engine's bytes."""

from __future__ import annotations

import platform
import re

from vsa_rt.engines.cuda.seam import DeviceFacts
from vsa_rt.manifest import CompiledRecord

#: Capabilities of Jetson's GPUs: Xavier, Orin, Thor before and since CUDA 13. Engines for several architectures do not
#: run there: TensorRT's hardware compatibility excludes JetPack (its developer guide, "Hardware Compatibility").
_JETSON = ("sm_72", "sm_87", "sm_101", "sm_110")
#: The first architecture of ``ampere+``.
_AMPERE = 80


def this_system() -> str:
    """Operating system and processor of this machine, such as ``linux-aarch64``."""
    return f"{platform.system()}-{platform.machine()}".lower()


def _release(version: str) -> tuple[int, int, int] | None:
    """Major, minor and patch of a version; ``None`` if it has none."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def _version_fits(compiled: CompiledRecord, version: str) -> bool:
    """Whether a version of the library opens the engine: the same, or, if it was compiled so, a later one of the same
    major version.

    TensorRT for RTX promises nothing across its releases (its guide, "Engine Compatibility").
    """
    theirs, ours = _release(compiled.version), _release(version)
    if theirs is None or ours is None:
        return compiled.version == version
    if compiled.version_compatible and compiled.library == "tensorrt":
        return theirs[0] == ours[0] and theirs <= ours
    return theirs == ours


def _number(capability: str) -> int:
    """Of ``sm_87``, 87; 0 if it is no such word."""
    found = re.fullmatch(r"sm_(\d+)[af]?", capability)
    return int(found[1]) if found else 0


def _device_fits(compiled: CompiledRecord, facts: DeviceFacts) -> bool:
    """Whether a GPU runs the engine. Another model of the same capability does, slower perhaps than with its own."""
    if facts.capability in compiled.capabilities:
        return True
    if compiled.hardware != "ampere+" or (facts.integrated and facts.capability in _JETSON):
        return False
    return _number(facts.capability) >= _AMPERE


def _for_whom(compiled: CompiledRecord) -> str:
    several = {"ampere+": " and later GPUs from Ampere on, except Jetson"}.get(compiled.hardware, "")
    return ", ".join(compiled.capabilities) + several


def refusal(compiled: CompiledRecord, facts: DeviceFacts, package: str, version: str, system: str) -> str:
    """Why an engine cannot be opened here.

    Args:
        compiled: How it was compiled.
        facts: The GPU that it would run on.
        package: ``tensorrt`` or ``tensorrt-rtx``: what would open it.
        version: That library's.
        system: ``this_system()``.

    Returns:
        One sentence: what the engine is for, what is here, and how to rebuild it; empty if it fits.
    """
    rebuild = (
        f"build it again here: vsa-rt build BUNDLE --target {compiled.library}:{facts.capability} -o NEW"
    )
    if compiled.library != package:
        return (
            f"the engine is {compiled.library}'s, which {package} cannot open; build one: "
            f"--target {package}:{facts.capability}"
        )
    if compiled.system != system:
        return f"the engine was compiled on {compiled.system}, this is {system}; {rebuild}"
    if not _version_fits(compiled, version):
        later = " or later of the same major version" if compiled.version_compatible else ""
        return (
            f"the engine was compiled by {compiled.library} {compiled.version} and needs that version{later}; here is "
            f"{version}; {rebuild}, or install {compiled.library} {compiled.version}"
        )
    if not _device_fits(compiled, facts):
        where = "anywhere" if compiled.library == "tensorrt-rtx" else "here"
        return (
            f"the engine was compiled for {_for_whom(compiled)}; this GPU ({facts.name}) is {facts.capability}; "
            f"build one {where}: --target {compiled.library}:{facts.capability}"
        )
    return ""
