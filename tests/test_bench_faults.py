"""A benchmark's report catches planted faults and names them at the tap where they enter; it then shows no headline.

The faults lie in the bundle, its hashes right: harmed engines and graphs, and a manifest that says something else than
what was built.
"""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from benches import PORTABLE, keep_engine, leave_out
from outcome import fails

from vsa_rt.bench.headline import headline
from vsa_rt.bench.report import Report, read_report
from vsa_rt.bundle import Bundle, seal_folder
from vsa_rt.contracts import Precision, Target

for library in ("jinja2", "matplotlib"):
    pytest.importorskip(library, reason=f"a benchmark's report needs {library}: vsa-rt[bench]")
onnx = pytest.importorskip("onnx", reason="the faults are planted in ONNX graphs")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Reseal = Callable[..., None]
#: Changes a graph in place.
Fault = Callable[[Any], None]
SHORT = ("--seconds", "0.1", "--batch", "1", "--against", "none")
LEAD = "openvino:cpu"


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cold starts, bare tools, ceilings and a look around, which compare nothing."""
    leave_out(monkeypatch, pages=False)


@pytest.fixture
def refused(
    here: Cli, bundle_copy: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Report]:
    """Benchmarks this test's bundle, whose report must be red, without a figure, and with exit code 1.

    The page with its plots takes a second: ``page`` says whether it is drawn.
    """

    def run(*words: object, root: Path = bundle_copy, data: Path | None = few, page: bool = False) -> Report:
        out = tmp_path / "out"
        if not page:
            monkeypatch.setattr("vsa_rt.render.pages.to_html", lambda report: "do not quote a figure")
        options = [*SHORT, "-o", out] + (["--data", data] if data else [])
        done = here("bench", root, *options, *words)
        assert (done.returncode, done.stderr) == (1, ""), done
        report = read_report(out)
        assert (report.verdict.level, report.verdict.headline) == ("red", None)
        assert "parity-failed" in {r.code for r in report.verdict.reasons if r.level == "red"}
        figure = headline(report)
        assert figure, "there is a figure that must not be shown"
        # The part with the number: on a busy machine the sentence may begin with the plan's name alone.
        first = next(part for part in figure.split(",") if re.search(r"\d\.\d|\d ms", part))
        written = html.unescape((out / "report.html").read_text(encoding="utf-8"))
        for text in (written, (out / "report.md").read_text(encoding="utf-8"), done.stdout):
            assert "do not quote a figure" in text
            assert first not in text
        return report

    return run


def failed(report: Report) -> dict[str, list[str]]:
    """Plan to its reasons, of those whose parity fails; the ONNX graph is called "graph"."""
    plans = [p for check in report.parity for p in check.plans]
    named = {r.text for r in report.verdict.reasons if r.code == "parity-failed"}
    bad = {p.plan or "graph": p.parity.reasons for p in plans if p.parity.reasons}
    for plan, reasons in bad.items():
        assert any(reasons[0] in text and (plan in text or plan == "graph") for text in named), named
    assert len(named) == len(bad)
    return bad


def harm(root: Path, target: str, precision: Precision, fault: Fault) -> None:
    """Put an engine in an engine's place that is built from a faulty graph."""
    from vsa_rt.engines import table
    from vsa_rt.engines.compiling import CompileOptions, Source

    backend, _, device = target.partition(":")
    pytest.importorskip(backend, reason=f"the harmed engine is {backend}'s")
    manifest = Bundle.open(root).manifest
    engine = next(e for e in manifest.engines if (e.target, e.precision) == (target, precision))
    graph = next(g for g in manifest.graphs if g.precision == precision)
    model = onnx.load_from_string((root / graph.path).read_bytes())
    fault(model)
    shutil.rmtree(root / engine.folder)
    (root / engine.folder).mkdir()
    source, options = Source(model.SerializeToString()), CompileOptions(manifest.max_batch)
    table.backend(backend).build(source, root / engine.folder, device, options)
    seal_folder(root, manifest)


def scaled(tap: str, factor: float) -> Fault:
    """A tap that holds ``factor`` times what it should, for everybody who reads it."""

    def plant(model: Any) -> None:
        [node] = [n for n in model.graph.node if tap in n.output]
        node.output[list(node.output).index(tap)] = f"{tap}.whole"
        place = list(model.graph.node).index(node)
        weight = onnx.numpy_helper.from_array(np.array(factor, np.float32), f"{tap}.factor")
        model.graph.initializer.append(weight)
        made = onnx.helper.make_node("Mul", [f"{tap}.whole", weight.name], [tap])
        model.graph.node.insert(place + 1, made)

    return plant


def through(name: str, *axis_and_order: Any) -> Fault:
    """An input whose values go through ``Gather`` before anybody reads them: another order along an axis."""
    axis, order = axis_and_order

    def plant(model: Any) -> None:
        for node in model.graph.node:
            for place, read in enumerate(node.input):
                if read == name:
                    node.input[place] = f"{name}.moved"
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(np.asarray(order, np.int64), f"{name}.order")
        )
        made = onnx.helper.make_node("Gather", [name, f"{name}.order"], [f"{name}.moved"], axis=axis)
        model.graph.node.insert(0, made)

    return plant


def test_an_unharmed_bundle_is_not_refused_for_its_parity(
    here: Cli, tiny_bundle: Path, few: Path, tmp_path: Path
) -> None:
    assert here("bench", tiny_bundle, *SHORT, "--data", few, "-o", tmp_path).returncode in (0, 1)
    report = read_report(tmp_path)
    assert failed(report) == {}
    assert len(report.parity[0].plans) == 1 + len(report.plans)


# A backbone and the head


@pytest.mark.parametrize(
    ("target", "precision", "tap"),
    [(LEAD, Precision.BF16, "small"), (LEAD, Precision.FP32, "other"), (PORTABLE, Precision.FP32, "small")],
)
def test_a_backbone_scaled_by_two_percent_is_named_at_its_tap(
    refused: Callable[..., Report], bundle_copy: Path, target: str, precision: Precision, tap: str
) -> None:
    """Whichever plan it is in, the one that leads or another, the whole report is red."""
    engines = {(e.target, e.precision) for e in Bundle.open(bundle_copy).manifest.engines}
    if (target, precision) not in engines:
        pytest.skip(f"this machine builds no {target} {precision}")
    harm(bundle_copy, target, precision, scaled(tap, 1.02))
    [(plan, reasons)] = failed(refused(page=target == LEAD)).items()
    assert plan == f"{target} {precision}"
    assert reasons[0].startswith(f"{tap}: scaled by 1.02"), reasons


def test_a_head_with_its_outputs_exchanged_is_named_at_the_scores(
    refused: Callable[..., Report], bundle_copy: Path
) -> None:
    """Two logits with their signs exchanged give the other label, and every tap before them is right."""
    keep_engine(bundle_copy, PORTABLE)
    harm(bundle_copy, PORTABLE, Precision.FP32, scaled("logits", -1.0))
    report = refused(page=True)
    [(plan, reasons)] = failed(report).items()
    assert plan == "onnxruntime:cpu fp32"
    assert reasons[0].startswith("scores: differs by")
    assert any(r.startswith("labels: 4 of 4 flip") for r in reasons)
    parity = report.parity[0].plans[-1].parity
    assert len(parity.flips) == 4
    assert (parity.metrics[0].name, parity.metrics[0].reference, parity.metrics[0].candidate) == (
        "accuracy",
        1,
        0,
    )
    assert {(p.quality, p.parity) for p in report.points} == {(0.0, False)}


def test_a_graph_that_is_not_the_torch_model_is_named_itself(
    refused: Callable[..., Report], bundle_copy: Path
) -> None:
    keep_engine(bundle_copy, PORTABLE)
    manifest = Bundle.open(bundle_copy).manifest
    path = bundle_copy / manifest.graphs[0].path
    model = onnx.load_from_string(path.read_bytes())
    scaled("other", 1.02)(model)
    path.write_bytes(model.SerializeToString())
    seal_folder(bundle_copy, manifest)
    report = refused()
    [(plan, reasons)] = failed(report).items()
    assert plan == "graph"
    assert reasons[0].startswith("other: scaled by 1.02")
    [text] = [r.text for r in report.verdict.reasons if r.code == "parity-failed"]
    assert text.startswith("the ONNX graph of copy is not what torch says: other: scaled by 1.02")


@pytest.mark.parametrize("leads", [False, True])
def test_an_engine_that_gives_no_numbers_is_named_at_its_tap(
    refused: Callable[..., Report], bundle_copy: Path, leads: bool
) -> None:
    """What a network that overflows does. The report is a document none the less."""
    harm(bundle_copy, PORTABLE, Precision.FP32, scaled("small", float("nan")))
    if leads:
        keep_engine(bundle_copy, PORTABLE)
    report = refused()
    [(plan, reasons)] = failed(report).items()
    assert plan == "onnxruntime:cpu fp32"
    assert reasons[0].startswith("small: ")
    assert any("not a number" in r for r in reasons)


# What happens to the pixels


@pytest.mark.parametrize(
    ("axis", "order"),
    [(3, [2, 1, 0]), (2, [159, *range(159)])],
    ids=["bgr", "one-pixel-shift"],
)
def test_a_graph_that_reads_pixels_in_another_order_is_named_at_the_backbone_that_reads_them(
    refused: Callable[..., Report], bundle_copy: Path, axis: int, order: list[int]
) -> None:
    keep_engine(bundle_copy, PORTABLE)
    harm(bundle_copy, PORTABLE, Precision.FP32, through("image_160x160.2", axis, order))
    [(plan, reasons)] = failed(refused()).items()
    assert plan == "onnxruntime:cpu fp32"
    assert reasons[0].startswith("other: "), reasons


@pytest.mark.parametrize("change", [{"kernel": "bilinear"}, {"scale": 169}, {"fit": "warp", "scale": 0}])
def test_another_resize_in_the_manifest_is_named_at_the_input(
    refused: Callable[..., Report], bundle_copy: Path, reseal: Reseal, change: dict[str, Any]
) -> None:
    """Bilinear for bicubic, a crop that is shifted by half a pixel, no crop: the host does as the manifest says."""
    keep_engine(bundle_copy, PORTABLE)
    first, second = Bundle.open(bundle_copy).manifest.inputs
    assert first.resize is not None
    changed = msgspec.structs.replace(first.resize, **change)
    assert changed != first.resize
    reseal(bundle_copy, inputs=[msgspec.structs.replace(first, resize=changed), second])
    found = failed(refused(page="kernel" in change))
    assert set(found) == {"graph", "onnxruntime:cpu fp32"}
    for reasons in found.values():
        assert reasons[0].startswith("image_160x160: mean difference"), reasons
        assert not any(r.startswith("image_160x160.2:") for r in reasons)


# Labels


def _swap(root: Path, reseal: Reseal, **more: Any) -> None:
    """The manifest's labels and its recipe's in the other order."""
    manifest = Bundle.open(root).manifest
    assert manifest.recipe is not None
    swapped = manifest.labels[::-1]
    reseal(root, labels=swapped, recipe=msgspec.structs.replace(manifest.recipe, labels=swapped), **more)


def test_swapped_labels_are_named_where_the_graph_is_the_reference(
    refused: Callable[..., Report], bundle_copy: Path, reseal: Reseal
) -> None:
    """The graph says in its own metadata in which order its scores come."""
    keep_engine(bundle_copy, PORTABLE)
    records = Bundle.open(bundle_copy).manifest.checkpoints
    gone = {n: msgspec.structs.replace(r, found="/gone/away.pth") for n, r in records.items()}
    _swap(bundle_copy, reseal, checkpoints=gone)
    report = refused()
    assert report.parity[0].reference == "onnx"
    [(plan, reasons)] = failed(report).items()
    assert plan == "onnxruntime:cpu fp32"
    assert [r.startswith("labels: 4 of 4 flip") for r in reasons] == [True]


@pytest.mark.parametrize("against", ["none", "eager"])
def test_labels_that_the_head_contradicts_never_end_in_a_figure(
    here: Cli, bundle_copy: Path, few: Path, tmp_path: Path, reseal: Reseal, against: str
) -> None:
    """The torch model cannot be rebuilt from such a manifest: `vsa-rt check` refuses the bundle then, with 3."""
    keep_engine(bundle_copy, PORTABLE)
    _swap(bundle_copy, reseal)
    out = tmp_path / "out"
    words = ("--seconds", 0.1, "--batch", 1, "--data", few, "-o", out)
    done = here("bench", bundle_copy, "--against", against, *words)
    if done.returncode == 3:
        fails(done, 3, "copy: is not what its manifest says: .*labels")
        assert not out.exists()
    else:
        assert (done.returncode, done.stderr) == (1, ""), done
        report = read_report(out)
        assert (report.verdict.level, report.verdict.headline) == ("red", None)
        assert any("labels" in r.text for r in report.verdict.reasons if r.level == "red")
        assert tempfile.gettempdir() not in (out / "report.json").read_text().replace(str(tmp_path), "")


# Without photographs, and in sweeps


def test_a_fault_shows_on_golden_tensors_too(
    here: Cli, refused: Callable[..., Report], tmp_path: Path
) -> None:
    """A graph of somebody else's, whose bundle takes ready tensors only."""
    from onnx import TensorProto, helper, numpy_helper

    from vsa_rt.pipeline.build import BuildOptions, build

    weight = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["feat"])],
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("feat", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    root = tmp_path / "ready"
    target = Target("onnxruntime", "cpu")
    build(
        str(tmp_path / "model.onnx"),
        root,
        BuildOptions(targets=[target], precision=Precision.FP32, max_batch=2),
    )
    harm(root, PORTABLE, Precision.FP32, scaled("feat", 1.02))
    [(plan, reasons)] = failed(refused(root=root, data=None)).items()
    assert plan == "onnxruntime:cpu fp32"
    assert reasons[0].startswith("feat: scaled by 1.02")


def test_a_sweep_refuses_a_plan_that_fails_and_lets_it_dominate_nobody(
    here: Cli, bundle_copy: Path, few: Path, tmp_path: Path
) -> None:
    harm(bundle_copy, PORTABLE, Precision.FP32, scaled("other", 1.02))
    words = ("--precision", "fp32", "--seconds", 0.1, "--data", few, "-o", tmp_path / "out")
    done = here("bench", bundle_copy, "--sweep", "target", *words)
    assert (done.returncode, done.stderr) == (1, "")
    report = read_report(tmp_path / "out")
    [(plan, reasons)] = failed(report).items()
    assert plan == "onnxruntime:cpu fp32"
    assert reasons[0].startswith("other: scaled by 1.02")
    assert (report.verdict.level, report.verdict.headline) == ("red", None)
    assert {p.plan: p.parity for p in report.points} == {plan: False, "openvino:cpu fp32": True}
    assert not any(p.dominated_by.startswith(plan) for p in report.points)
    assert "fails parity" in done.stdout
