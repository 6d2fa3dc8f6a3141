"""Engines that do not fit a machine are refused from the manifest, with what they are for, what is here and a way out."""

from __future__ import annotations

import platform
from typing import Any

import msgspec
import pytest

from vsa_rt.engines.cuda.seam import DeviceFacts
from vsa_rt.engines.tensorrt.fitness import refusal, this_system
from vsa_rt.manifest import CompiledRecord

ORIN = DeviceFacts("Orin", "sm_87", 8 << 30, "12.6", integrated=True)
THOR = DeviceFacts("Thor", "sm_110", 128 << 30, "13.0", integrated=True)
L4 = DeviceFacts("NVIDIA L4", "sm_89", 24 << 30, "12.8", integrated=False)
A100 = DeviceFacts("NVIDIA A100", "sm_80", 40 << 30, "12.8", integrated=False)
T4 = DeviceFacts("Tesla T4", "sm_75", 16 << 30, "12.8", integrated=False)
B200 = DeviceFacts("NVIDIA B200", "sm_100", 180 << 30, "12.8", integrated=False)

ON_ORIN = CompiledRecord(
    library="tensorrt",
    version="10.3.0",
    capabilities=["sm_87"],
    system="linux-aarch64",
    driver="12.6",
    typing="strong",
    flags=[],
    version_compatible=False,
    hardware="none",
    stripped=False,
    batches=[1, 8, 8],
    stages=[],
    trtexec="trtexec",
)


def compiled(**changes: Any) -> CompiledRecord:
    """``ON_ORIN`` with other values."""
    return msgspec.structs.replace(ON_ORIN, **changes)


def asked(
    record: CompiledRecord,
    facts: DeviceFacts = ORIN,
    package: str = "tensorrt",
    version: str = "10.3.0",
    system: str = "linux-aarch64",
) -> str:
    """The refusal, of an Orin with JetPack 6 unless said otherwise."""
    return refusal(record, facts, package, version, system)


def test_an_engine_fits_where_it_was_compiled() -> None:
    assert asked(ON_ORIN) == ""


@pytest.mark.parametrize("version", ["10.3.0.26", "10.3.0.post1", "10.3"])
def test_builds_of_the_same_release_open_each_others_engines(version: str) -> None:
    assert asked(ON_ORIN, version=version) == ""


@pytest.mark.parametrize("version", ["10.3.1", "10.4.0", "10.2.0", "11.3.0", "unknown"])
def test_an_engine_of_another_version_is_refused(version: str) -> None:
    said = asked(ON_ORIN, version=version)
    assert "compiled by tensorrt 10.3.0" in said
    assert f"here is {version}" in said
    assert "--target tensorrt:sm_87" in said
    assert "install tensorrt 10.3.0" in said


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("10.3.0", True),
        ("10.3.1", True),
        ("10.16.0", True),
        ("10.2.9", False),
        ("11.0.0", False),
        ("?", False),
    ],
)
def test_a_version_compatible_engine_is_for_its_version_and_later_ones_of_the_same_major(
    version: str, fits: bool
) -> None:
    said = asked(compiled(version_compatible=True), version=version)
    assert (said == "") == fits
    if not fits:
        assert "10.3.0 and needs that version or later of the same major version" in said


def test_tensorrt_for_rtx_promises_nothing_across_releases() -> None:
    record = compiled(
        library="tensorrt-rtx", version="1.7.1", capabilities=["sm_86", "sm_89"], version_compatible=True
    )
    assert asked(record, L4, "tensorrt-rtx", "1.7.1.116") == ""
    assert "1.7.1 and needs that version" in asked(record, L4, "tensorrt-rtx", "1.8.0")


def test_an_engine_of_another_capability_is_refused() -> None:
    said = asked(ON_ORIN, T4)
    assert said == (
        "the engine was compiled for sm_87; this GPU (Tesla T4) is sm_75; build one here: --target tensorrt:sm_75"
    )


def test_an_engine_ahead_of_time_is_for_all_capabilities_of_its_list_and_no_other() -> None:
    record = compiled(library="tensorrt-rtx", version="1.7.1", capabilities=["sm_80", "sm_89"])
    for facts in (A100, L4):
        assert asked(record, facts, "tensorrt-rtx", "1.7.1") == ""
    said = asked(record, T4, "tensorrt-rtx", "1.7.1")
    assert "for sm_80, sm_89" in said
    assert "build one anywhere: --target tensorrt-rtx:sm_75" in said


def test_ampere_plus_runs_on_later_cards_but_neither_on_older_ones_nor_on_jetson() -> None:
    record = compiled(capabilities=["sm_80"], hardware="ampere+")
    for facts in (A100, L4, B200):
        assert asked(record, facts) == ""
    for facts in (T4, ORIN, THOR):
        said = asked(record, facts)
        assert "sm_80 and later GPUs from Ampere on, except Jetson" in said
        assert facts.capability in said


def test_ampere_plus_runs_on_the_jetson_that_it_was_compiled_on() -> None:
    assert asked(compiled(hardware="ampere+")) == ""


def test_same_capability_is_for_that_capability_alone() -> None:
    record = compiled(capabilities=["sm_89"], hardware="same capability")
    assert asked(record, L4) == ""
    assert "compiled for sm_89; this GPU (NVIDIA A100) is sm_80" in asked(record, A100)


def test_an_engine_of_another_system_is_refused() -> None:
    said = asked(ON_ORIN, system="linux-x86_64")
    assert "compiled on linux-aarch64, this is linux-x86_64" in said
    assert "--target tensorrt:sm_87" in said


def test_an_engine_of_another_library_is_refused_whatever_else_fits() -> None:
    said = asked(ON_ORIN, package="tensorrt-rtx")
    assert said == (
        "the engine is tensorrt's, which tensorrt-rtx cannot open; build one: --target tensorrt-rtx:sm_87"
    )


def test_this_system_is_written_as_manifests_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert this_system() == "linux-aarch64"
