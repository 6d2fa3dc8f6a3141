"""Engines for GPUs that are not here: compiled for real, judged by their graphs, refused where they do not fit."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

if sys.platform != "linux" or platform.machine() != "x86_64":
    where = f"{sys.platform} on {platform.machine()}"
    pytest.skip(f"tensorrt-rtx-cu13 has no wheel for {where}", allow_module_level=True)
for library in ("onnx", "onnxruntime", "torch", "timm"):
    pytest.importorskip(library, reason=f"building from a recipe needs {library}: vsa-rt[export]")

import vsa_rt
from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Precision, Target
from vsa_rt.engines import table
from vsa_rt.engines.backend import Probe
from vsa_rt.engines.compiling import Tuning
from vsa_rt.errors import BundleError, EnvironmentUnusable, GateError, UsageError
from vsa_rt.manifest import EngineRecord, Manifest, manifest_from_json, manifest_to_json, seal
from vsa_rt.pipeline.build import BuildOptions, build
from vsa_rt.pipeline.precision.half_plans import HalfPlans, ProvedGraph

if not (table.probe(Target("tensorrt-rtx", "sm_86")).compiles):
    pytest.skip("tensorrt-rtx is not installed: vsa-rt[tensorrt-rtx]", allow_module_level=True)

AMPERE, BOTH = Target("tensorrt-rtx", "sm_86"), Target("tensorrt-rtx", "sm_86+sm_89")
CPU = Target("onnxruntime", "cpu")


@pytest.fixture(scope="module")
def ahead(tiny_bundle: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle's graph for a GPU that is not here, and for the CPU that is."""
    out = tmp_path_factory.mktemp("ahead") / "bundle"
    options = BuildOptions(data=toy_data, targets=[AMPERE, CPU], precision=None)
    build(str(tiny_bundle), out, options)
    return out


def engine_of(manifest: Manifest, target: Target, precision: str = "fp16") -> EngineRecord:
    return next(e for e in manifest.engines if e.target == str(target) and e.precision == precision)


def test_an_engine_compiled_ahead_has_the_proof_of_its_graph_and_no_latency(ahead: Path) -> None:
    engine = engine_of(Bundle.open(ahead).manifest, AMPERE)
    assert (engine.proof, engine.latency_ms, engine.machine) == ("graph", {}, "any sm_86")
    assert engine.gate.passed
    assert engine.gate.images == 4
    assert engine.gate.stage == "graph of tensorrt-rtx:sm_86 fp16"
    compiled = engine.compiled
    assert compiled is not None
    assert (compiled.library, compiled.capabilities, compiled.typing) == ("tensorrt-rtx", ["sm_86"], "strong")
    assert compiled.batches == [1, 4, 4]
    assert compiled.version == table.probe(AMPERE).version
    assert engine.graph in compiled.trtexec


def test_both_fusions_lie_in_the_bundle_and_their_stages_give_every_tap(ahead: Path) -> None:
    manifest = Bundle.open(ahead).manifest
    engine = engine_of(manifest, AMPERE)
    assert engine.compiled is not None
    stages = engine.compiled.stages
    assert [s.name for s in stages] == ["small", "other", "head"]
    assert [s.file for s in stages] == engine.files[1:]
    assert {o for s in stages for o in s.outputs} >= {t.name for t in manifest.taps}
    assert all((ahead / f).stat().st_size for f in engine.files)


def test_what_was_measured_leads(ahead: Path) -> None:
    manifest = Bundle.open(ahead).manifest
    assert manifest.engines[0].target == str(CPU)
    assert [e.proof for e in manifest.engines] == sorted(e.proof for e in manifest.engines)
    assert "compiled ahead of time, never run" in manifest.chosen


def test_int8_without_calibration_is_left_out_with_the_reason(ahead: Path) -> None:
    rejected = [r for r in Bundle.open(ahead).manifest.rejected if r.target == str(AMPERE)]
    assert [r.precision for r in rejected] == ["int8"]


def test_int8_with_calibration_stands_in_half(
    tiny_bundle: Path, toy_data: Path, calibration_photographs: Path, tmp_path: Path
) -> None:
    options = BuildOptions(
        data=toy_data, targets=[BOTH], precision=Precision.INT8, calib=calibration_photographs, force=True
    )
    manifest = build(str(tiny_bundle), tmp_path / "b", options)
    engine = engine_of(manifest, BOTH, "int8")
    assert engine.around == "fp16"
    assert engine.compiled is not None
    assert engine.compiled.capabilities == ["sm_86", "sm_89"]


def test_at_load_it_is_passed_over_with_the_reason_where_it_cannot_run(ahead: Path) -> None:
    if table.probe(AMPERE).usable:
        pytest.skip("this machine has such a GPU")
    with vsa_rt.load(ahead) as runtime:
        assert runtime.choice.engine.target == str(CPU)
    with pytest.raises(BundleError, match=r"no engine can run here.*rebuild it here: vsa-rt build"):
        vsa_rt.load(ahead, target=str(AMPERE))


def test_the_classic_library_builds_on_the_device_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    target = Target("tensorrt", "sm_87")
    if table.probe(target).usable:
        pytest.skip("this machine has such a GPU")
    with pytest.raises(EnvironmentUnusable, match="target tensorrt:sm_87"):
        build(str(tiny_bundle), tmp_path / "b", BuildOptions(targets=[target]))
    assert not (tmp_path / "b").exists()


def test_a_device_that_nobody_knows_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    for device in ("sm_1", "sm_86+sm_1", "sm_86+sm_86", "cpu", "sm_86+"):
        with pytest.raises(UsageError, match="tensorrt-rtx"):
            build(str(tiny_bundle), tmp_path / "b", BuildOptions(targets=[Target("tensorrt-rtx", device)]))


def test_a_graph_that_fails_on_rounding_fails_the_build_unless_it_is_forced(
    tiny_bundle: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: the executor that rounds says that a tensor left half's range."""
    honest = HalfPlans.proved

    def failing(self: HalfPlans, *arguments: Any) -> ProvedGraph:
        return dataclasses.replace(honest(self, *arguments), reasons=["overflow: t leaves its range"])

    monkeypatch.setattr(HalfPlans, "proved", failing)
    options = BuildOptions(data=toy_data, targets=[AMPERE], precision=Precision.FP16)
    with pytest.raises(GateError, match="overflow: t leaves its range"):
        build(str(tiny_bundle), tmp_path / "b", options)
    assert not (tmp_path / "b").exists()
    manifest = build(str(tiny_bundle), tmp_path / "b", dataclasses.replace(options, force=True))
    assert not engine_of(manifest, AMPERE).gate.passed


def test_stripping_weights_asks_for_a_driver_and_says_so(
    tiny_bundle: Path, toy_data: Path, tmp_path: Path
) -> None:
    """The compiler of TensorRT for RTX fails inside where there is none."""
    if table.probe(AMPERE).usable:
        pytest.skip("this machine has such a GPU")
    tuning = Tuning(strip=True, fusion="merged")
    options = BuildOptions(data=toy_data, targets=[AMPERE], precision=Precision.FP16, tuning=tuning)
    with pytest.raises(EnvironmentUnusable, match="leave --strip-weights out, or build there"):
        build(str(tiny_bundle), tmp_path / "b", options)
    assert not (tmp_path / "b").exists()


def test_a_graph_for_several_targets_is_judged_once(
    tiny_bundle: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The executor that rounds takes longer than the compiler."""
    judged: list[Precision] = []
    honest = HalfPlans._prove

    def counted(self: HalfPlans, precision: Precision, *arguments: Any) -> ProvedGraph:
        judged.append(precision)
        return honest(self, precision, *arguments)

    monkeypatch.setattr(HalfPlans, "_prove", counted)
    options = BuildOptions(data=toy_data, targets=[AMPERE, BOTH], precision=Precision.FP16)
    manifest = build(str(tiny_bundle), tmp_path / "b", options)
    assert judged == [Precision.FP16]
    assert len({e.graph for e in manifest.engines}) == 1
    assert len(manifest.engines) == 2


def test_inspect_says_that_the_engine_never_ran(ahead: Path, vsa: Any) -> None:
    done: subprocess.CompletedProcess[str] = vsa("inspect", str(ahead))
    assert done.returncode == 0
    words = " ".join(done.stdout.split())
    assert "compiled ahead of time: its graph was judged, the engine itself never ran" in words
    assert "tensorrt-rtx" in words
    assert "ok (graph)" in words or "(graph)" in words


# What a manifest may say of such engines


def harmed(ahead: Path, **changes: Any) -> bytes:
    manifest = Bundle.open(ahead).manifest
    engines = [
        msgspec.structs.replace(e, **changes) if e.target == str(AMPERE) else e for e in manifest.engines
    ]
    return manifest_to_json(seal(msgspec.structs.replace(manifest, engines=engines)))


def test_a_manifest_that_contradicts_how_it_was_compiled_is_refused(ahead: Path) -> None:
    engine = engine_of(Bundle.open(ahead).manifest, AMPERE)
    compiled = engine.compiled
    assert compiled is not None
    first, *rest = compiled.stages
    faults: list[tuple[str, dict[str, Any]]] = [
        ("its proof is that of the engine", {"proof": "engine"}),
        ("its proof is that of the graph", {"latency_ms": {"1": 1.0}}),
        ("nothing says how it was compiled", {"compiled": None}),
        ("was compiled by tensorrt ", {"compiled": msgspec.structs.replace(compiled, library="tensorrt")}),
        ("takes batches", {"compiled": msgspec.structs.replace(compiled, batches=[1, 2, 3])}),
        ("takes batches", {"compiled": msgspec.structs.replace(compiled, batches=[])}),
        ("has stages in", {"compiled": msgspec.structs.replace(compiled, stages=rest)}),
        (
            "which nothing before it gives",
            {
                "compiled": msgspec.structs.replace(
                    compiled, stages=[msgspec.structs.replace(first, inputs=["secret"]), *rest]
                )
            },
        ),
        (
            "has other taps",
            {
                "compiled": msgspec.structs.replace(
                    compiled, stages=[msgspec.structs.replace(s, outputs=[f"{s.name}-x"]) for s in [first]]
                ),
                "files": engine.files[:2],
            },
        ),
    ]
    for words, changes in faults:
        with pytest.raises(BundleError, match=words):
            manifest_from_json(harmed(ahead, **changes), "it")
    assert manifest_from_json(harmed(ahead), "it")


def test_an_engine_for_this_machine_is_not_taken_for_another_of_its_kind(
    ahead: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with a GPU of another capability: the engine is refused before the library sees its bytes."""
    backend = table.backend("tensorrt-rtx")
    opened: list[object] = []
    monkeypatch.setattr(
        type(backend), "probe", lambda self, device: Probe(False, reason="the GPU here is sm_120, not sm_86")
    )
    monkeypatch.setattr(type(backend), "open", lambda self, *a: opened.append(a))
    with pytest.raises(BundleError, match="the GPU here is sm_120, not sm_86"):
        vsa_rt.load(ahead, target=str(AMPERE))
    assert not opened
