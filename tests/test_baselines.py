"""Baselines: each computes what the bundle computes, or says why it does not take part."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import vsa_rt
from vsa_rt.bench.baselines import BASELINES, Sources, make_baselines
from vsa_rt.bench.candidate import Candidate, Tensors, check_agreement
from vsa_rt.bench.separate import cut_at_taps
from vsa_rt.bench.workload import from_golden, from_photographs
from vsa_rt.bundle import Bundle
from vsa_rt.engines import table
from vsa_rt.engines.backend import Probe
from vsa_rt.errors import CheckpointAbsent, EnvironmentUnusable, GateError, UsageError

torch = pytest.importorskip("torch", reason="baselines are PyTorch's, and bundles are built with it")

from vsa_rt.export.ensemble import LoadedEnsemble
from vsa_rt.pipeline.reference import load_torch

QUICK = [name for name in BASELINES if name != "compile"]
TORCH = {"eager", "eager-separate", "channels-last", "eager-bf16", "compile"}


@pytest.fixture(scope="module")
def tiny_sources(tiny_bundle: Path, tiny_weights: dict[str, Path]) -> Sources:
    bundle = Bundle.open(tiny_bundle)
    return Sources(lambda: load_torch(bundle, tiny_weights), bundle, 1)


@pytest.fixture(scope="module")
def wired_sources(wired_bundle: Path) -> Sources:
    bundle = Bundle.open(wired_bundle)
    return Sources(lambda: load_torch(bundle, {}), bundle, 1)


@pytest.fixture(scope="module")
def tiny_tensors(tiny_sources: Sources, photographs: list[Path]) -> Tensors:
    return from_photographs(tiny_sources.bundle.manifest, photographs, "shipped").tensors(4)[0]


@pytest.fixture(scope="module")
def tiny_plan(tiny_bundle: Path) -> Iterator[Candidate]:
    with vsa_rt.load(tiny_bundle, target="onnxruntime:cpu", threads=1) as runtime:
        yield Candidate("plan", "plan", "fp32", "", runtime.infer)


@pytest.fixture(scope="module")
def wired_plan(wired_bundle: Path) -> Iterator[Candidate]:
    with vsa_rt.load(wired_bundle, target="onnxruntime:cpu", threads=1) as runtime:
        yield Candidate("plan", "plan", "fp32", "", runtime.infer)


@pytest.mark.parametrize("name", QUICK)
def test_a_baseline_computes_what_the_plan_computes(
    name: str, tiny_sources: Sources, tiny_tensors: Tensors, tiny_plan: Candidate
) -> None:
    made, absent = make_baselines([name], tiny_sources, tiny_tensors)
    assert absent == {}
    check_agreement(tiny_plan, made[0], tiny_tensors)
    expected, given = tiny_plan.call(tiny_tensors), made[0].call(tiny_tensors)
    assert set(given) == set(expected)
    assert made[0].kind == "baseline"
    if made[0].precision == "fp32":
        assert np.abs(given["scores"] - expected["scores"]).max() < 1e-4
    made[0].close()


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_baseline_follows_networks_that_read_each_other(
    name: str, batch: int, wired_sources: Sources, wired_plan: Candidate
) -> None:
    inputs = from_golden(wired_sources.bundle).tensors(batch)[0]
    made, absent = make_baselines([name], wired_sources, inputs)
    assert absent == {}
    check_agreement(wired_plan, made[0], inputs)
    made[0].close()


def test_the_bf16_plan_agrees_with_fp32_baselines(
    tiny_bundle: Path, tiny_sources: Sources, tiny_tensors: Tensors
) -> None:
    engines = Bundle.open(tiny_bundle).manifest.engines
    engine = next((e for e in engines if e.precision == "bf16"), None)
    if engine is None:
        pytest.skip("the tiny bundle has no bf16 engine on this machine")
    made, _ = make_baselines(["eager", "eager-bf16"], tiny_sources, tiny_tensors)
    with vsa_rt.load(tiny_bundle, target=engine.target, precision="bf16", threads=1) as runtime:
        plan = Candidate("plan", "plan", "bf16", "", runtime.infer)
        for baseline in made:
            check_agreement(plan, baseline, tiny_tensors)


@pytest.mark.slow
def test_a_compiled_model_computes_what_the_plan_computes(
    tiny_sources: Sources, tiny_tensors: Tensors, tiny_plan: Candidate, recwarn: pytest.WarningsRecorder
) -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("no C++ compiler for torch.compile")
    made, absent = make_baselines(["compile"], tiny_sources, tiny_tensors)
    assert absent == {}
    check_agreement(tiny_plan, made[0], tiny_tensors)
    assert "the first call took" in made[0].note


def test_without_a_compiler_the_compiled_model_is_absent(
    tiny_sources: Sources, tiny_tensors: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> Any:
        def call(*tensors: object) -> Any:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    made, absent = make_baselines(["compile"], tiny_sources, tiny_tensors)
    assert made == []
    assert "No working C++ compiler found" in absent["compile"]


def test_what_a_library_uses_by_default_is_named(tiny_sources: Sources, tiny_tensors: Tensors) -> None:
    ov = pytest.importorskip("openvino")
    made, _ = make_baselines(["openvino-default"], tiny_sources, tiny_tensors)
    default = ov.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    words = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}[default]
    assert made[0].precision == f"{words} (the library's default)"


def test_the_shared_model_stays_as_it_is(tiny_sources: Sources, tiny_tensors: Tensors) -> None:
    before = {n: p.clone() for n, p in tiny_sources.ensemble.module.named_parameters()}
    made, _ = make_baselines(["channels-last"], tiny_sources, tiny_tensors)
    made[0].call(tiny_tensors)
    for name, parameter in tiny_sources.ensemble.module.named_parameters():
        assert parameter.is_contiguous(), name
        assert torch.equal(parameter, before[name])


def test_the_torch_model_is_loaded_once_and_only_for_who_needs_it(
    tiny_sources: Sources, tiny_tensors: Tensors
) -> None:
    loads = []

    def load() -> LoadedEnsemble:
        loads.append(1)
        return tiny_sources.ensemble

    sources = Sources(load, tiny_sources.bundle, 1)
    make_baselines(["onnxruntime", "openvino-default"], sources, tiny_tensors)
    assert loads == []
    make_baselines(["eager", "channels-last", "eager-bf16"], sources, tiny_tensors)
    assert loads == [1]


def test_feature_by_feature_runs_a_shared_trunk_for_each_feature(wired_sources: Sources) -> None:
    """SMAP 2021 makes each feature by itself: R's network runs for R and again for S, which reads it."""
    inputs = from_golden(wired_sources.bundle).tensors(1)[0]
    made, _ = make_baselines(["eager", "eager-separate"], wired_sources, inputs)
    calls: list[int] = []
    trunk = wired_sources.ensemble.module.trunk
    assert trunk.computed[0].name == "r"
    hook = trunk.networks[0].register_forward_hook(lambda *_: calls.append(1))
    try:
        counts = []
        for baseline in made:
            calls.clear()
            baseline.call(inputs)
            counts.append(len(calls))
    finally:
        hook.remove()
    assert counts == [1, 2]


def test_parts_are_cut_where_networks_read_each_other(wired_sources: Sources) -> None:
    parts = cut_at_taps(wired_sources.graph, wired_sources.bundle.manifest)
    images = [i.name for i in wired_sources.bundle.manifest.inputs if i.resize is not None]
    assert {p.name: [s.name for s in p.inputs] for p in parts} == {
        "r": images,
        "s": ["r"],
        "g": ["objects"],
        "head": ["r", "s", "g"],
    }
    assert [s.name for s in parts[-1].outputs] == ["features", "gates", "experts", "scores"]


def test_a_graph_without_backbones_cannot_be_cut(tiny_sources: Sources, tiny_tensors: Tensors) -> None:
    opened = tiny_sources.bundle
    taps = [t for t in opened.manifest.taps if t.kind != "backbone"]
    bundle = Bundle(opened.root, msgspec.structs.replace(opened.manifest, taps=taps))
    _, absent = make_baselines(
        ["onnxruntime-separate", "openvino-separate"],
        dataclasses.replace(tiny_sources, bundle=bundle),
        tiny_tensors,
    )
    assert list(absent) == ["onnxruntime-separate", "openvino-separate"]
    assert all("names no backbones" in reason for reason in absent.values())


def test_a_library_that_is_not_there_is_named(
    tiny_sources: Sources, tiny_tensors: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Probe(False, reason="it is not installed", install="pip install it")
    monkeypatch.setattr(table, "probe", lambda target: gone)
    wanted = ["onnxruntime", "onnxruntime-separate", "openvino-separate"]
    made, absent = make_baselines(wanted, tiny_sources, tiny_tensors)
    assert made == []
    assert absent == dict.fromkeys(wanted, "it is not installed; pip install it")


def test_a_model_that_cannot_be_rebuilt_is_named(tiny_sources: Sources, tiny_tensors: Tensors) -> None:
    def load() -> LoadedEnsemble:
        raise CheckpointAbsent("checkpoint of 'small' no longer lies there")

    made, absent = make_baselines(list(BASELINES), Sources(load, tiny_sources.bundle, 1), tiny_tensors)
    assert set(absent) == TORCH
    assert {c.name for c in made} == set(BASELINES) - TORCH
    assert "checkpoint of 'small'" in absent["eager"]
    for candidate in made:
        candidate.close()


def test_an_unknown_baseline_is_refused_before_anything_is_made(
    tiny_sources: Sources, tiny_tensors: Tensors
) -> None:
    with pytest.raises(UsageError, match=r"baseline 'tvm': unknown; there are eager, eager-separate"):
        make_baselines(["eager", "tvm"], tiny_sources, tiny_tensors)


def test_what_was_made_is_closed_when_the_next_one_fails(
    tiny_sources: Sources, tiny_tensors: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    def fine(name: str, sources: Sources, example: Tensors) -> Candidate:
        return Candidate(name, "baseline", "fp32", "", lambda t: t, lambda: closed.append(name))

    def fails(name: str, sources: Sources, example: Tensors) -> Candidate:
        raise MemoryError

    monkeypatch.setitem(BASELINES, "eager", dataclasses.replace(BASELINES["eager"], make=fine))
    monkeypatch.setitem(BASELINES, "compile", dataclasses.replace(BASELINES["compile"], make=fails))
    with pytest.raises(MemoryError):
        make_baselines(["eager", "compile"], tiny_sources, tiny_tensors)
    assert closed == ["eager"]


# The check that a baseline is one


def faulty(plan: Candidate, change: Any) -> Candidate:
    """A candidate whose taps are the plan's, changed."""
    return dataclasses.replace(
        plan, name="faulty", kind="baseline", call=lambda t: change(dict(plan.call(t)))
    )


def test_a_swapped_head_is_caught(tiny_plan: Candidate, tiny_tensors: Tensors) -> None:
    swapped = faulty(tiny_plan, lambda taps: taps | {"scores": taps["scores"][:, ::-1]})
    with pytest.raises(GateError, match="does not compute the same as plan: scores: differs by"):
        check_agreement(tiny_plan, swapped, tiny_tensors)


@pytest.mark.parametrize("which", ["small", "other"])
def test_other_weights_are_caught_at_their_tap(
    which: str,
    tiny_sources: Sources,
    tiny_tensors: Tensors,
    tiny_plan: Candidate,
    tiny_weights: dict[str, Path],
) -> None:
    ensemble = load_torch(tiny_sources.bundle, tiny_weights)
    place = [b.name for b in ensemble.module.trunk.computed].index(which)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in ensemble.module.trunk.networks[place].parameters():
            parameter.copy_(parameter[torch.randperm(len(parameter), generator=generator)])
    made, _ = make_baselines(["eager"], Sources(lambda: ensemble, tiny_sources.bundle, 1), tiny_tensors)
    with pytest.raises(GateError, match=f"does not compute the same as plan: {which}: "):
        check_agreement(tiny_plan, made[0], tiny_tensors)


def test_a_backbone_that_is_scaled_is_caught(tiny_plan: Candidate, tiny_tensors: Tensors) -> None:
    scaled = faulty(tiny_plan, lambda taps: taps | {"small": 1.05 * taps["small"]})
    with pytest.raises(GateError, match=r"small: scaled by 1\.05"):
        check_agreement(tiny_plan, scaled, tiny_tensors)


def test_numbers_that_are_none_are_caught(tiny_plan: Candidate, tiny_tensors: Tensors) -> None:
    broken = faulty(tiny_plan, lambda taps: taps | {"scores": np.full_like(taps["scores"], np.nan)})
    with pytest.raises(GateError, match="not a number"):
        check_agreement(tiny_plan, broken, tiny_tensors)


def test_a_candidate_without_scores_is_refused(tiny_plan: Candidate, tiny_tensors: Tensors) -> None:
    partial = faulty(tiny_plan, lambda taps: {"small": taps["small"]})
    with pytest.raises(GateError, match="faulty: gives small; expected scores"):
        check_agreement(tiny_plan, partial, tiny_tensors)


def test_another_width_is_refused(tiny_plan: Candidate, tiny_tensors: Tensors) -> None:
    cut = faulty(tiny_plan, lambda taps: taps | {"scores": taps["scores"][:, :1]})
    with pytest.raises(GateError, match="tap 'scores' gives"):
        check_agreement(tiny_plan, cut, tiny_tensors)


def test_a_maker_says_itself_why_it_cannot(tiny_sources: Sources, tiny_tensors: Tensors) -> None:
    def load() -> LoadedEnsemble:
        raise EnvironmentUnusable("torch is not installed")

    with pytest.raises(EnvironmentUnusable, match="torch is not installed"):
        BASELINES["eager"].make("eager", Sources(load, tiny_sources.bundle, 1), tiny_tensors)
