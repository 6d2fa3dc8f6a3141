"""A report shows floors on paper beside what was measured, and never takes one for the other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import reports

from vsa_rt.bench.gpu_devices import DEVICES, PRECISIONS
from vsa_rt.bench.records.limits import Ceiling, PaperFloor
from vsa_rt.bench.records.timing import Plan
from vsa_rt.bench.report import Report, report_from_json, report_to_json
from vsa_rt.bundle import Bundle
from vsa_rt.errors import EnvironmentUnusable
from vsa_rt.pipeline.measuring import limits as measuring
from vsa_rt.pipeline.measuring.limits import Distance, distance
from vsa_rt.pipeline.measuring.measurement import Measurement, MeasureOptions
from vsa_rt.pipeline.measuring.plans import OpenedPlan
from vsa_rt.render import bench_report, pages
from vsa_rt.render.numbers import NONE

PAPER = "On paper, from datasheets; unproven on a GPU"


def paper(batch: int) -> list[PaperFloor]:
    """INT8 takes half of FP16; the first device is the slowest, and nothing is known of its launches."""
    return [
        PaperFloor(
            device=device.name,
            precision=precision,
            macs=10**9 * batch,
            nbytes=10**7,
            kernels=77,
            compute_ms=0.5,
            memory_ms=0.25,
            floor_ms=batch * (2.0 if precision == "fp16" else 1.0) / place,
            bound="compute",
            cached=place > 3,
            taken_nbytes=1000,
            given_nbytes=100,
            copy_ms=0.0374,
            launch_us=41.6 if place > 3 else None,
        )
        for place, device in enumerate(DEVICES, 1)
        for precision in PRECISIONS
    ]


def with_paper(**changes: Any) -> Report:
    report = reports.clean_report()
    found = [msgspec.structs.replace(r, paper=paper(r.batch), **changes) for r in report.limits]
    return msgspec.structs.replace(report, limits=found)


def section(page: str) -> str:
    """What the Markdown page says of the limits."""
    return page[page.index("## Distance to the limit") : page.index("## Layers")]


def test_the_page_shows_every_device_under_the_word_that_nothing_was_measured() -> None:
    text = section(pages.to_markdown(with_paper()))
    below = text[text.index(PAPER) :]
    row = re.search(r"\| Orin Nano 8GB \| (.*) \|", below)
    assert row is not None
    # Least in FP16 and INT8 with what bounds them, kernels, copies, and no launches.
    assert row[1] == f"2.00 (compute) | 1.00 (compute) | 77 | 0.037 | {NONE}"
    assert "| L4 | 0.50\\* (compute) | 0.25\\* (compute) | 77 | 0.037 | 0.042 |" in below
    for device in DEVICES:
        assert f"| {device.name} |" in below
        assert f"| {device.name} |" not in text[: text.index(PAPER)]
    assert "**quickstart, batch 1: GPUs on paper**" in below


def test_a_report_without_floors_on_paper_shows_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert "On paper" not in pages.to_markdown(reports.clean_report())
    bench_report(reports.clean_report(), None, as_json=False)
    assert "On paper" not in capsys.readouterr().out


def test_the_page_in_html_shows_the_same() -> None:
    html = pages.to_html(with_paper())
    assert PAPER in html
    assert html.count("GPUs on paper</summary>") == len(with_paper().limits)


def test_the_terminal_has_one_line_of_the_first_bundle_and_batch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    bench_report(with_paper(), None, as_json=False)
    out = " ".join(capsys.readouterr().out.split())
    first = with_paper().limits[0]
    said = f"{PAPER}: quickstart, batch {first.batch}, least ms in FP16 / INT8: Orin Nano 8GB 2.00 / 1.00, "
    assert said in out
    assert out.count("On paper") == 1
    assert out.index("Distance to the limit") < out.index("On paper") < out.index("Parity with the reference")


def test_limits_of_a_datasheet_are_called_so() -> None:
    text = section(pages.to_markdown(with_paper(against="datasheet")))
    assert "On a GPU the least time is on paper, by its datasheet" in text
    assert "the fastest kernel seen here" not in text
    assert re.search(r"batch 1, on paper", text)
    assert "Share of the datasheet's limit" in pages.to_html(with_paper(against="datasheet")).replace(
        "&#39;", "'"
    )
    measured = section(pages.to_markdown(with_paper()))
    assert "the fastest kernel seen here" in measured
    assert "batch 1, on paper" not in measured


def test_floors_on_paper_survive_the_file_and_older_reports_have_none() -> None:
    made = with_paper()
    assert report_from_json(report_to_json(made), "r") == made
    raw = msgspec.json.decode(report_to_json(made))
    for limits in raw["limits"]:
        del limits["paper"], limits["against"]
    old = report_from_json(msgspec.json.encode(raw), "r")
    assert {(r.against, len(r.paper)) for r in old.limits} == {("measured", 0)}


# Where they come from


def opened(bundle: Bundle, target: str, machine: str, precision: str = "fp32") -> OpenedPlan:
    """A plan of a bundle, as if it had been opened there."""
    record = next(e for e in bundle.manifest.engines if e.precision == "fp32")
    made = msgspec.structs.replace(
        record, machine=machine, target=target, plan=dict.fromkeys(record.plan, precision)
    )
    plan = Plan(
        name="p", bundle="b", target=target, precision=precision, achieved=None, threads=1, why="as asked"
    )
    return OpenedPlan(bundle, plan, made, cast("Any", None), 0.0)


@pytest.fixture
def no_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise EnvironmentUnusable("no counters in this test")

    monkeypatch.setattr(measuring, "open_profiler", refuse)


def measured(bundle: Bundle, plan: OpenedPlan, ceilings: list[Ceiling], batch: int = 2) -> Distance:
    inputs: Mapping[str, Any] = {"image": [0] * batch}
    return distance(bundle, plan, inputs, ceilings, 5.0, lambda step: None)


def ceiling(kind: Any, value: float) -> Ceiling:
    return Ceiling(
        kind=kind,
        precision="bytes" if kind == "copy" else "fp32",
        value=value,
        unit="GB/s" if kind == "copy" else "GMAC/s",
        library="openvino:cpu",
        threads=1,
        note="",
    )


@pytest.mark.usefixtures("no_counters")
def test_a_cpu_plan_keeps_its_measured_limit_and_has_the_floors_beside_it(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    plan = opened(bundle, "openvino:cpu", "a processor")
    found = measured(bundle, plan, [ceiling("convolution", 100.0), ceiling("copy", 10.0)]).limits
    assert found.against == "measured"
    assert found.floors[-1].part == "whole"
    assert found.note.startswith("compute against the convolution of openvino:cpu")
    assert [(f.device, f.precision) for f in found.paper] == [
        (d.name, p) for d in DEVICES for p in PRECISIONS
    ]
    assert {f.macs for f in found.paper} == {found.floors[-1].macs}


@pytest.mark.usefixtures("no_counters")
def test_a_gpu_plan_is_held_against_its_datasheet_and_needs_no_ceiling(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    found = measured(bundle, opened(bundle, "tensorrt:sm_89", "NVIDIA L4", "fp16"), []).limits
    own = next(f for f in found.paper if (f.device, f.precision) == ("L4", "fp16"))
    assert found.against == "datasheet"
    assert found.floors[-1].floor_ms == pytest.approx(own.floor_ms)
    assert found.floors[-1].share == pytest.approx(own.floor_ms / 5.0)
    assert {"small", "other", "head"} <= {f.part for f in found.floors}
    assert sum(f.floor_ms for f in found.floors[:-1]) == pytest.approx(own.floor_ms)


@pytest.mark.usefixtures("no_counters")
def test_a_lowered_plan_has_the_floors_of_the_network_and_not_of_its_types(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    plan = opened(bundle, "openvino:cpu", "a processor")
    lowered = next(g.path for g in bundle.manifest.graphs[1:])
    other = replace(plan, engine=msgspec.structs.replace(plan.engine, graph=lowered))
    assert measured(bundle, plan, []).limits.paper == measured(bundle, other, []).limits.paper


def test_ceilings_are_not_measured_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ceilings(target: Any, threads: int) -> list[Ceiling]:
        asked.append(str(target))
        return []

    monkeypatch.setattr("vsa_rt.pipeline.measuring.measurement.ceilings", ceilings)
    subjects = [
        SimpleNamespace(name=target, lead=SimpleNamespace(plan=SimpleNamespace(target=target, name=target)))
        for target in ("tensorrt:sm_89", "openvino:cpu", "onnxruntime:cuda")
    ]
    inputs = SimpleNamespace(workloads={s.name: None for s in subjects})
    found = Measurement(cast("Any", subjects), cast("Any", inputs), [], MeasureOptions(1))
    found.distances()
    assert asked == ["openvino:cpu"]
    assert found.skipped == {}
