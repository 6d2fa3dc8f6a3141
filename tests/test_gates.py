"""Every gate catches the faults that it is there for, at the tap where they enter; an unharmed bundle passes."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.bench import clock
from vsa_rt.bench.parity import TOLERANCES, Comparison, Parity
from vsa_rt.bundle import Bundle, seal_folder
from vsa_rt.contracts import Precision, Resample, ResizeSpec
from vsa_rt.errors import VsaError
from vsa_rt.golden import golden_to_bytes, read_golden
from vsa_rt.runtime.preprocess import Preprocessor

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Reseal = Callable[..., None]
Array = NDArray[Any]
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
        assert len(parity.reasons) == 1
        assert parity.reasons[0].startswith("labels: 12 of 12 flip")
        assert [m.reference - m.candidate for m in parity.metrics] == [1.0]


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


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("tap", ["small", "other"])
def test_a_backbone_scaled_by_two_percent_is_named_first(
    bundle_copy: Path, toy_data: Path, here: Cli, tap: str, precision: Precision
) -> None:
    pytest.importorskip("openvino", reason="the harmed engine is OpenVINO's")
    from vsa_rt.engines import table

    manifest = Bundle.open(bundle_copy).manifest
    engine = next(e for e in manifest.engines if (e.target, e.precision) == ("openvino:cpu", precision))
    graph = next(g for g in manifest.graphs if g.precision == precision)
    harmed = scaled((bundle_copy / graph.path).read_bytes(), tap, 1.02)
    shutil.rmtree(bundle_copy / engine.folder)
    (bundle_copy / engine.folder).mkdir()
    table.backend("openvino").build(harmed, bundle_copy / engine.folder, "cpu", manifest.max_batch)
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


# The comparison by itself


def compared(
    reference: Array,
    candidate: Array,
    tap: str = "a",
    labels: Sequence[str] = (),
    reference_labels: Sequence[str] = (),
    truth: Sequence[str | None] = (),
    tolerance: Any = FP32,
) -> Parity:
    comparison = Comparison("stage", "torch", tolerance, labels, reference_labels or labels)
    names = [f"image {i}" for i in range(len(reference))]
    comparison.add_taps(names, {tap: reference}, {tap: candidate}, truth)
    return comparison.result()


def rows(count: int = 6, width: int = 8, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32) * 3


def test_equal_outputs_pass() -> None:
    parity = compared(rows(), rows())
    assert parity.passed
    assert (parity.taps[0].max_abs, parity.taps[0].relative, parity.images) == (0.0, 0.0, 6)
    assert parity.taps[0].gain == pytest.approx(1)
    assert parity.taps[0].cosine == pytest.approx(1)


def test_nothing_compared_is_a_failure() -> None:
    assert Comparison("s", "torch", FP32).result().reasons == ["nothing was compared"]
    empty = Comparison("s", "torch", FP32)
    empty.add_taps(["image"], {}, {})
    assert not empty.result().passed
    pixels = Comparison("s", "torch", FP32)
    pixels.add_inputs(["image"], {"x": np.zeros((1, 2, 2, 3))}, {"x": np.zeros((1, 2, 2, 3))})
    assert "nothing was compared" in pixels.result().reasons


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["reference", "candidate", "both"])
@pytest.mark.parametrize("tap", ["a", "scores", "logits"])
def test_what_is_not_a_number_fails(value: float, side: str, tap: str) -> None:
    harmed = rows()
    harmed[3, 2] = value
    reference = harmed if side in ("reference", "both") else rows()
    candidate = harmed if side in ("candidate", "both") else rows()
    with np.errstate(all="ignore"):
        parity = compared(reference, candidate, tap)
    assert not parity.passed
    assert parity.taps[0].worst == "image 3"


def test_what_is_not_a_number_stays_failed_after_good_batches() -> None:
    comparison = Comparison("s", "torch", FP32)
    harmed = rows()
    harmed[0, 0] = np.nan
    comparison.add_taps(list("abcdef"), {"t": rows()}, {"t": harmed})
    comparison.add_taps(list("ghijkl"), {"t": rows(seed=1)}, {"t": rows(seed=1)})
    assert not comparison.result().passed


def test_a_missing_tap_or_another_shape_is_an_error_that_names_it() -> None:
    comparison = Comparison("openvino fp32", "torch", FP32)
    with pytest.raises(VsaError, match="openvino fp32: tap 'b' gives nothing"):
        comparison.add_taps(
            ["image"], {"a": np.zeros((1, 2)), "b": np.zeros((1, 2))}, {"a": np.zeros((1, 2))}
        )
    with pytest.raises(VsaError, match=r"tap 'a' gives \(1, 3\), the reference \(1, 2\)"):
        comparison.add_taps(["image"], {"a": np.zeros((1, 2))}, {"a": np.zeros((1, 3))})


@pytest.mark.parametrize(("tolerance", "noise"), [(FP32, 1e-6), (BF16, 0.05)])
def test_noise_passes_and_a_scale_does_not(tolerance: Any, noise: float) -> None:
    reference = np.abs(rows(20, 1000))
    noisy = reference * (1 + noise * rows(20, 1000, seed=1) / 3)
    assert compared(reference, noisy, tolerance=tolerance).passed
    for factor in (0.98, 1.02):
        reasons = compared(reference, noisy * factor, tolerance=tolerance).reasons
        assert len(reasons) == 1
        assert reasons[0].startswith("a: scaled by ")
        assert float(reasons[0].split()[3].rstrip(",")) == pytest.approx(factor, abs=0.002)


def test_a_tap_that_is_zero_or_turned_fails() -> None:
    for factor in (0.0, -1.0):
        assert not compared(rows(), rows() * factor, tolerance=BF16).passed
    assert not compared(rows() * 1e-6, rows(seed=1) * 1e-6, tolerance=BF16).passed


SCORES = np.array([[0.9, 0.1], [0.2, 0.8], [0.50001, 0.49999]], np.float32)


def decided(candidate: Array, labels: Sequence[str] = ("a", "b"), truth: Sequence[str | None] = ()) -> Parity:
    return compared(SCORES, candidate, "scores", labels, ("a", "b"), truth)


def test_equal_scores_have_no_flip_and_no_divergence() -> None:
    parity = decided(SCORES)
    assert (parity.flips, parity.passed) == ([], True)
    assert parity.kl == pytest.approx(0.0, abs=1e-12)


def test_a_flip_at_a_small_margin_is_a_tie_and_reported_apart() -> None:
    almost = SCORES.copy()
    almost[2] = [0.49999, 0.50001]
    parity = decided(almost)
    assert [(f.item, f.reference, f.candidate, f.tie) for f in parity.flips] == [("image 2", "a", "b", True)]
    assert (parity.ties, parity.passed) == (1, True)


def test_a_flip_at_a_wide_margin_fails() -> None:
    wrong = SCORES.copy()
    wrong[0] = [0.1, 0.9]
    parity = decided(wrong)
    assert not parity.passed
    assert [(f.item, f.tie) for f in parity.flips] == [("image 0", False)]
    assert parity.flips[0].margin == pytest.approx(0.8)
    assert any(r.startswith("labels: 1 of 3 flip") and "image 0, a to b" in r for r in parity.reasons)
    assert parity.kl is not None
    assert parity.kl > 0.1


def test_two_ties_of_three_are_too_many() -> None:
    reference = np.full((3, 2), 0.5, np.float32)
    reference[:, 0] += 1e-5
    parity = compared(reference, reference[:, ::-1], "scores", ("a", "b"))
    assert parity.ties == 3
    assert any("3 of 3 flip" in r for r in parity.reasons)


def test_labels_are_compared_by_name() -> None:
    """The same numbers under swapped words flip; swapped numbers under swapped words say the same."""
    swapped_words = decided(SCORES, ("b", "a"))
    assert len(swapped_words.flips) == 3
    assert not swapped_words.passed
    both = decided(SCORES[:, ::-1], ("b", "a"))
    assert both.flips == []
    assert both.kl == pytest.approx(0.0, abs=1e-12)


def test_labels_of_another_set_are_an_error_that_names_them() -> None:
    with pytest.raises(VsaError, match="c"):
        decided(SCORES, ("a", "c"))


def test_accuracy_is_compared_with_an_interval_that_holds_the_difference() -> None:
    rng = np.random.default_rng(3)
    reference = rng.dirichlet([1, 1], 200).astype(np.float32)
    candidate = reference.copy()
    candidate[:10] = candidate[:10, ::-1]
    truth = ["a" if r[0] > r[1] else "b" for r in reference]
    [metric] = compared(reference, candidate, "scores", ("a", "b"), (), truth).metrics
    assert (metric.name, metric.reference) == ("accuracy", 1.0)
    assert metric.candidate == pytest.approx(0.95)
    assert metric.low < metric.candidate - metric.reference < metric.high
    # The normal approximation to the interval of 10 lost of 200.
    assert metric.low == pytest.approx(-0.05 - 1.96 * math.sqrt(0.05 * 0.95 / 200), abs=0.01)
    [same] = compared(reference, reference, "scores", ("a", "b"), (), truth).metrics
    assert (same.low, same.high) == (0.0, 0.0)


def test_images_without_a_label_do_not_count_towards_accuracy() -> None:
    [metric] = decided(SCORES, truth=["a", None, "b"]).metrics
    assert metric.reference == 0.5
    assert decided(SCORES, truth=[None, None, None]).metrics == []


# The clock


def test_candidates_take_turns_and_the_order_rotates() -> None:
    log: list[str] = []
    calls = {name: (lambda name=name: log.append(name)) for name in "abc"}
    samples = clock.measure(calls, rounds=4, warm_up=2)
    assert "".join(log) == "aabbcc" + "aabbcc" + "bbccaa" + "ccaabb" + "aabbcc"
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4, "c": 4}
    assert all(value >= 0 for values in samples.values() for value in values)


@pytest.mark.parametrize(
    ("count", "low", "high", "coverage"),
    [(6, 1, 6, 0.96875), (10, 2, 9, 0.978515625), (20, 6, 15, 0.9586105346679688), (15, 4, 12, 0.96484375)],
)
def test_the_interval_of_a_ratio_is_of_order_statistics(
    count: int, low: int, high: int, coverage: float
) -> None:
    """Ranks (from 1) and exact coverages as tables of the sign test have them."""
    series = [float(i) for i in range(1, count + 1)]
    found = clock.ratio(series, [1.0] * count)
    assert (found.low, found.high, found.pairs) == (low, high, count)
    assert found.confidence == pytest.approx(coverage)
    assert found.median == pytest.approx((count + 1) / 2)
    inside = sum(math.comb(count, k) for k in range(low, high)) / 2**count
    assert found.confidence == pytest.approx(inside)


@pytest.mark.parametrize("count", [7, 12, 31, 101])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_interval_is_the_narrowest_that_covers(count: int, confidence: float) -> None:
    found = clock.ratio([float(i) for i in range(1, count + 1)], [1.0] * count, confidence)
    assert found.confidence is not None
    assert found.confidence >= confidence
    narrower = sum(math.comb(count, k) for k in range(int(found.low) + 1, int(found.high) - 1)) / 2**count
    assert narrower < confidence


def test_too_few_pairs_claim_no_confidence() -> None:
    found = clock.ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert (found.low, found.high, found.confidence) == (1.0, 5.0, None)
    assert clock.ratio([3.0], [2.0]).confidence is None


def test_a_ratio_is_of_pairs_of_the_same_round() -> None:
    assert clock.ratio([2.0, 40.0, 6.0], [1.0, 20.0, 3.0]).median == 2.0
    with pytest.raises(ValueError, match="no samples"):
        clock.ratio([], [])
    with pytest.raises(ValueError, match="shorter"):
        clock.ratio([1.0], [])
