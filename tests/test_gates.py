"""Every gate catches the faults that it is there for, at the tap where they enter; an unharmed bundle passes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.bench.parity import TOLERANCES, Parity
from vsa_rt.bundle import Bundle, seal_folder
from vsa_rt.contracts import Precision, Resample, ResizeSpec, Target, Task, Views
from vsa_rt.golden import golden_to_bytes, read_golden
from vsa_rt.manifest import InputRecord, TapRecord
from vsa_rt.pipeline.export import new_manifest
from vsa_rt.pipeline.gate import Reference, comparison_of
from vsa_rt.pipeline.images import PhotographFeed, as_photographs, batch_of
from vsa_rt.recipe_file import find_recipe, read_recipe, with_options
from vsa_rt.runtime import companions, preprocess
from vsa_rt.runtime.preprocess import Preprocessor

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Reseal = Callable[..., None]
Array = NDArray[Any]
CPU, FP32_ONLY = Target("openvino", "cpu"), Precision.FP32
FP32, BF16 = TOLERANCES[Precision.FP32], TOLERANCES[Precision.BF16]


def checked(bundle: Bundle, data: Path, **options: Any) -> list[Parity]:
    from vsa_rt.pipeline.check import CheckOptions, check

    return check(bundle, data, CheckOptions(**options)).parities


# An unharmed bundle


def test_an_unharmed_bundle_passes(
    tiny_bundle: Path, toy_data: Path, tiny_weights: dict[str, Path], here: Cli
) -> None:
    weights = [a for name, path in tiny_weights.items() for a in ("--weights", f"{name}={path}")]
    for more in ([], ["--data", toy_data], ["--data", toy_data, *weights]):
        done = here("check", tiny_bundle, *more, "--json")
        assert done.returncode == 0, done.stdout
        found = json.loads(done.stdout)
        assert found["passed"] is True
        assert all(s["passed"] and s["images"] and s["taps"] for s in found["stages"])


def test_straight_after_a_build_the_reference_is_torch(tiny_bundle: Path, toy_data: Path, here: Cli) -> None:
    found = json.loads(here("check", tiny_bundle, "--data", toy_data, "--json").stdout)
    assert (found["reference"], found["why"]) == ("torch", "")
    assert found["stages"][0]["stage"] == "onnx"


# Faults of the pixels: named at the input


def _bgr(spec: ResizeSpec, pixels: Array, source: Any) -> Array:
    return pixels[..., ::-1]


def _other_kernel(spec: ResizeSpec, pixels: Array, source: Any) -> Array:
    kernel = {"bicubic": "bilinear", "bilinear": "bicubic"}[spec.kernel]
    host = Preprocessor({"x": msgspec.structs.replace(spec, kernel=kernel)})
    out = np.empty_like(pixels)
    _WRITE(host, source, {"x": out}, item="")
    return out


def _shifted(spec: ResizeSpec, pixels: Array, source: Any) -> Array:
    return np.roll(pixels, 1, axis=1)


def _one_level(spec: ResizeSpec, pixels: Array, source: Any) -> Array:
    changed = pixels.copy()
    changed[80, 80, 1] ^= 1
    return changed


_WRITE = Preprocessor.write
Fault = Callable[[ResizeSpec, Array, Any], Array]


def plant(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Let the runtime's host code make the fault."""

    def write(self: Preprocessor, source: Any, outputs: Mapping[str, Array], *, item: str) -> None:
        _WRITE(self, source, outputs, item=item)
        for name, spec in self.specs.items():
            outputs[name][:] = fault(spec, outputs[name], source).copy()

    monkeypatch.setattr(Preprocessor, "write", write)


@pytest.mark.parametrize("fault", [_bgr, _other_kernel, _shifted, _one_level])
def test_a_fault_of_the_pixels_is_named_at_the_input(
    tiny_bundle: Path, toy_data: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    plant(monkeypatch, fault)
    parities = checked(Bundle.open(tiny_bundle), toy_data)
    assert parities
    for parity in parities:
        assert not parity.passed
        assert parity.reasons[0].startswith("image_160x160: mean difference"), parity.reasons
        assert any(r.startswith("image_160x160.2: mean difference") for r in parity.reasons)


@pytest.mark.parametrize("fault", [_bgr, _shifted])
def test_the_tolerance_of_the_fast_resample_still_catches_it(
    tiny_bundle: Path,
    photographs: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
) -> None:
    for path in photographs:
        shutil.copy(path, tmp_path)
    bundle = Bundle.open(tiny_bundle)
    assert all(p.passed for p in checked(bundle, tmp_path, resample=Resample.FAST))
    plant(monkeypatch, fault)
    assert not any(p.passed for p in checked(bundle, tmp_path, resample=Resample.FAST))


# Faults of the labels


def test_swapped_labels_fail_on_labels(tiny_bundle: Path, toy_data: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    swapped = Bundle(tiny_bundle, msgspec.structs.replace(bundle.manifest, labels=["bright", "dark"]))
    for parity in checked(swapped, toy_data):
        assert parity.reasons[0].startswith("labels: 12 of 12 flip")
        # Of a lowered engine each clause of the budget says so; never a tap.
        about = {reason.partition(":")[0] for reason in parity.reasons}
        assert about <= {"labels", "scores", "accuracy"}
        assert parity.metrics[0].reference - parity.metrics[0].candidate == 1.0


@pytest.mark.parametrize("also_the_recipe", [False, True])
@pytest.mark.parametrize("with_data", [False, True])
def test_swapped_labels_under_a_right_digest_do_not_pass(
    bundle_copy: Path,
    toy_data: Path,
    here: Cli,
    reseal: Reseal,
    also_the_recipe: bool,
    with_data: bool,
) -> None:
    """The graph says in its own metadata in which order its scores come."""
    manifest = Bundle.open(bundle_copy).manifest
    assert manifest.recipe is not None
    swapped = ["bright", "dark"]
    recipe = msgspec.structs.replace(manifest.recipe, labels=swapped) if also_the_recipe else manifest.recipe
    reseal(bundle_copy, labels=swapped, recipe=recipe)
    done = here("check", bundle_copy, *(["--data", toy_data] if with_data else []))
    assert done.returncode in (1, 3), done.stdout
    assert "label" in done.stdout + done.stderr


# Faults of the network: named at the backbone's tap


def scaled(graph: bytes, tap: str, factor: float) -> bytes:
    """A graph one of whose backbones gives ``factor`` times its features."""
    onnx = pytest.importorskip("onnx", reason="the fault is planted in the ONNX graph")
    model = onnx.load_from_string(graph)
    [node] = [n for n in model.graph.node if tap in n.output]
    node.output[list(node.output).index(tap)] = f"{tap}.whole"
    place = list(model.graph.node).index(node)
    weight = onnx.numpy_helper.from_array(np.array(factor, np.float32), f"{tap}.factor")
    model.graph.initializer.append(weight)
    model.graph.node.insert(place + 1, onnx.helper.make_node("Mul", [f"{tap}.whole", weight.name], [tap]))
    return bytes(model.SerializeToString())


# int8 clips, and its gain has more room than 2 %: tests/test_budget.py plants its faults.
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
@pytest.mark.parametrize("tap", ["small", "other"])
def test_a_backbone_scaled_by_two_percent_is_named_first(
    bundle_copy: Path, toy_data: Path, here: Cli, tap: str, precision: Precision
) -> None:
    pytest.importorskip("openvino", reason="the harmed engine is OpenVINO's")
    from vsa_rt.engines import table
    from vsa_rt.engines.compiling import CompileOptions, Source

    manifest = Bundle.open(bundle_copy).manifest
    engine = next(e for e in manifest.engines if (e.target, e.precision) == ("openvino:cpu", precision))
    graph = next(g for g in manifest.graphs if g.precision == precision)
    harmed = scaled((bundle_copy / graph.path).read_bytes(), tap, 1.02)
    shutil.rmtree(bundle_copy / engine.folder)
    (bundle_copy / engine.folder).mkdir()
    folder = bundle_copy / engine.folder
    table.backend("openvino").build(Source(harmed), folder, "cpu", CompileOptions(manifest.max_batch))
    seal_folder(bundle_copy, manifest)
    for data in ([], ["--data", toy_data]):
        done = here("check", bundle_copy, *data, "--json")
        assert done.returncode == 1
        stages = {s["stage"]: s for s in json.loads(done.stdout)["stages"]}
        assert stages.pop(f"openvino:cpu {precision}")["reasons"][0].startswith(f"{tap}: scaled by 1.0")
        assert all(s["passed"] for s in stages.values())


def test_a_harmed_graph_fails_before_the_engines(
    bundle_copy: Path, toy_data: Path, tiny_weights: dict[str, Path]
) -> None:
    manifest = Bundle.open(bundle_copy).manifest
    graph = bundle_copy / "graph.onnx"
    graph.write_bytes(scaled(graph.read_bytes(), "other", 1.02))
    seal_folder(bundle_copy, manifest)
    first, *engines = checked(Bundle.open(bundle_copy), toy_data, weights=tiny_weights)
    assert first.stage == "onnx"
    assert first.reasons[0].startswith("other: scaled by 1.02")
    assert all(p.passed for p in engines)


@pytest.mark.parametrize(
    "forge",
    [
        lambda golden: {k: v for k, v in golden.items() if not k.startswith("tap.")},
        lambda golden: {k: v for k, v in golden.items() if k != "tap.other"},
        lambda golden: {k: v for k, v in golden.items() if not k.startswith("input.")},
        lambda golden: {k: v for k, v in golden.items() if k != "input.image_160x160.2"},
        lambda golden: {},
        lambda golden: {k: v[:0] for k, v in golden.items()},
        lambda golden: golden | {"tap.other": golden["tap.other"] * 1.02},
        lambda golden: golden | {"tap.other": golden["tap.other"] * np.nan},
        lambda golden: {k: v * np.nan if k.startswith("tap.") else v for k, v in golden.items()},
    ],
    ids=[
        "no-taps", "one-tap-less", "no-inputs", "one-input-less", "empty", "no-rows", "scaled", "one-nan", "all-nan"
    ],
)  # fmt: skip
def test_golden_tensors_that_compare_too_little_do_not_pass(
    bundle_copy: Path, here: Cli, forge: Callable[[dict[str, Array]], dict[str, Array]]
) -> None:
    bundle = Bundle.open(bundle_copy)
    changed = forge(read_golden(bundle.read("golden.npz")))
    parts: dict[str, dict[str, Array]] = {"input": {}, "tap": {}}
    labels = [str(v) for v in changed.pop("labels", np.array([], np.str_))]
    for name, value in changed.items():
        kind, _, inner = name.partition(".")
        parts[kind][inner] = value
    (bundle_copy / "golden.npz").write_bytes(golden_to_bytes(parts["input"], parts["tap"], labels))
    seal_folder(bundle_copy, bundle.manifest)
    done = here("check", bundle_copy)
    assert done.returncode in (1, 3), done.stdout


# Faults of the ready tensors: named at their input


def _padding_stays(name: str, rows: Array, out: Array, item: str) -> None:
    out[: len(rows)] = rows


def _half_precision(name: str, rows: Array, out: Array, item: str) -> None:
    _FILL(name, np.asarray(rows).astype(np.float16), out, item)


def _one_row_less(name: str, rows: Array, out: Array, item: str) -> None:
    _FILL(name, rows[:-1], out, item)


def _shuffled(name: str, rows: Array, out: Array, item: str) -> None:
    _FILL(name, rows[::-1], out, item)


_FILL = companions.fill


def _of_another_image(path: Path, item: str) -> Array:
    """What a mistake in the pairing reads: the file of the photograph before it in the folder."""
    files = sorted(path.parent.glob("*.npy"))
    return _READ(files[files.index(path) - 1], item)


def _transposed(path: Path, item: str) -> Array:
    rows = np.array(_READ(path, item))
    return rows.T.reshape(rows.shape)


_READ = companions.read_companion


@pytest.fixture(scope="module")
def some_data(wired_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photographs with their objects, of which some are fewer than the graph takes."""
    folder = tmp_path_factory.mktemp("some")
    for path in sorted((wired_data / "dark").glob("*.png"))[:4]:
        shutil.copy(path, folder)
        shutil.copy(path.with_name(f"{path.name}.objects.npy"), folder)
    counts = [len(np.load(path)) for path in sorted(folder.glob("*.npy"))]
    assert min(counts) < max(counts) == 6
    return folder


@pytest.mark.parametrize("form", ["float64", "int16", "fortran"])
def test_rows_of_every_form_pass(wired_bundle: Path, some_data: Path, tmp_path: Path, form: str) -> None:
    for path in sorted(some_data.iterdir())[:4]:
        shutil.copy(path, tmp_path)
    for path in tmp_path.glob("*.npy"):
        rows = np.load(path)
        np.save(path, np.asfortranarray(rows) if form == "fortran" else (rows * 3).astype(form))
    assert all(
        p.passed for p in checked(Bundle.open(wired_bundle), tmp_path, target=CPU, precision=FP32_ONLY)
    )


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [
        (preprocess, "fill", _padding_stays),
        (preprocess, "fill", _half_precision),
        (preprocess, "fill", _one_row_less),
        (preprocess, "fill", _shuffled),
        (companions, "read_companion", _of_another_image),
        (companions, "read_companion", _transposed),
    ],
)
def test_a_fault_of_the_rows_is_named_at_their_input(
    wired_bundle: Path,
    some_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    fault: Callable[..., Any],
) -> None:
    monkeypatch.setattr(where, name, fault)
    parities = checked(Bundle.open(wired_bundle), some_data, target=CPU, precision=FP32_ONLY)
    assert parities
    for parity in parities:
        assert parity.reasons, "the fault went unseen"
        assert parity.reasons[0].startswith("objects: differs by"), parity.reasons


@pytest.mark.parametrize("fault", [_padding_stays, _one_row_less])
def test_a_fault_of_the_rows_shows_on_stand_ins_too(
    wired_bundle: Path, some_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    for path in some_data.glob("*.png"):
        shutil.copy(path, tmp_path)
    bundle = Bundle.open(wired_bundle)
    assert all(p.passed for p in checked(bundle, tmp_path, target=CPU, precision=FP32_ONLY))
    monkeypatch.setattr(preprocess, "fill", fault)
    for parity in checked(bundle, tmp_path, target=CPU, precision=FP32_ONLY):
        assert parity.reasons[0].startswith("objects: differs by"), parity.reasons


# What the gates read


def feed_of(**options: Any) -> PhotographFeed:
    """A feed of objects alone."""
    objects = InputRecord(name="objects", dtype="float32", shape=[6, 96], rows=True)
    return PhotographFeed([objects], lambda picture: {}, **options)


def test_a_feed_gives_as_many_at_a_time_as_it_is_told(some_data: Path) -> None:
    photographs = as_photographs(sorted(some_data.glob("*.png"))) * 3
    sizes = [len(b.photographs) for b in feed_of().batches(photographs)]
    assert sizes == [8, 4]
    sizes = [len(b.photographs) for b in feed_of(batch=1).batches(photographs)]
    assert sizes == [1] * 12


@pytest.mark.parametrize(
    ("name", "settings", "size"),
    [
        ("quickstart", {}, 8),
        ("smap2021-g", {}, 8),
        ("smap2021-g", {"g.objects": "grid"}, 1),
        ("smap2021-g", {"g.objects": "boxes"}, 1),
    ],
)
def test_photographs_with_regions_go_one_by_one(name: str, settings: dict[str, str], size: int) -> None:
    """Fifty regions of eight photographs would be 408 images in a ResNet-152 at once."""
    recipe = with_options(read_recipe(find_recipe(name)), settings)
    assert batch_of(recipe) == size
    assert batch_of(None) == 8


@pytest.mark.parametrize("kind", ["fifo", "folder", "damaged"])
def test_bad_rows_are_no_reason_to_take_stand_ins(some_data: Path, tmp_path: Path, kind: str) -> None:
    """Who laid a file there means it; a check over stand-ins would pass without having looked."""
    if kind == "fifo" and not hasattr(os, "mkfifo"):
        pytest.skip("this system has no FIFOs")
    first, second = sorted(some_data.glob("*.png"))[:2]
    for path in (first, second):
        shutil.copy(path, tmp_path)
    file = tmp_path / f"{first.name}.objects.npy"
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.touch()
    feed = feed_of()
    (batch,) = feed.batches(as_photographs([tmp_path / first.name, tmp_path / second.name]))
    assert batch.names == [second.name]
    assert feed.stand_ins == 1
    assert [error.reason.startswith(file.name) for error in feed.rejected] == [True]


def test_a_backbone_in_fp32_keeps_fp32s_tolerance_beside_one_in_int8() -> None:
    """A mixed engine's tolerance is each backbone's own; what joins them has the loosest."""

    def tap(name: str, kind: str, reads: str = "") -> TapRecord:
        return msgspec.convert({"name": name, "width": 8, "kind": kind, "reads": reads}, TapRecord)

    taps = [
        tap("a", "backbone"),
        tap("b", "backbone"),
        tap("c", "backbone", "b"),
        tap("features", "features"),
    ]
    manifest = new_manifest(
        recipe=None,
        labels=[],
        task=Task.SINGLE_LABEL,
        threshold=0.5,
        kind="softmax",
        views=Views(),
        resample=Resample.EXACT,
        inputs=[],
        taps=taps,
        max_batch=1,
        checkpoints={},
        opset=22,
        gates=[],
    )
    reference = Reference("onnx", "", [], lambda picture: {}, lambda batch: {})
    plan = {"a": Precision.FP32, "b": Precision.INT8, "c": Precision.FP32}
    exact = np.random.default_rng(0).normal(1, 1, (32, 8))
    for moved, fails in (("a", True), ("b", False), ("c", False), ("features", False)):
        comparison = comparison_of("mixed", reference, manifest, Precision.MIXED, plan=plan)
        there = {t.name: exact for t in taps}
        noise = 0.05 * np.random.default_rng(1).normal(0, 1, exact.shape)
        comparison.add_taps([str(i) for i in range(32)], there, there | {moved: exact + noise})
        reasons = comparison.result().reasons
        assert bool(reasons) == fails, (moved, reasons)
        assert all(reason.startswith("a: ") for reason in reasons)


def test_int8_that_loses_the_features_fails_where_no_label_decides(tiny_bundle: Path) -> None:
    """Nobody else would notice: there is no budget without labels."""
    manifest = msgspec.structs.replace(Bundle.open(tiny_bundle).manifest, labels=[])
    reference = Reference("onnx", "", [], lambda picture: {}, lambda batch: {})
    plan = dict.fromkeys(("small", "other"), Precision.INT8)
    rng = np.random.default_rng(0)
    exact = {t.name: rng.normal(0, 1, (64, t.width)) for t in manifest.taps}
    for amount, fails in ((0.3, False), (0.97, True)):
        comparison = comparison_of("int8", reference, manifest, Precision.INT8, plan=plan)
        noisy = exact | {"small": exact["small"] + amount * rng.normal(0, 1, exact["small"].shape)}
        comparison.add_taps([str(i) for i in range(64)], exact, noisy)
        assert any(r.startswith("small: relative") for r in comparison.result().reasons) == fails
