"""``vsa_rt.load``: images of every kind in, sentiments in order out, and nothing that a caller can trip over."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import vsa_rt
from vsa_rt import ItemError, Sentiment, VsaError
from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Precision, Target
from vsa_rt.errors import BundleError, UsageError
from vsa_rt.golden import read_golden
from vsa_rt.manifest import EngineRecord
from vsa_rt.runtime.fused import Runtime

Pixels = NDArray[np.uint8]
Cli = Callable[..., "subprocess.CompletedProcess[str]"]
TAPS = ["small", "other", "features", "logits", "scores"]
GOLDEN = Path(__file__).with_name("golden") / "quickstart_coffee.json"


@pytest.fixture
def rt(tiny_bundle: Path) -> Iterator[Runtime]:
    """The tiny bundle in fp32, so that results are compared closely."""
    with vsa_rt.load(tiny_bundle, precision="fp32") as runtime:
        yield runtime


@pytest.fixture
def pictures(toy_data: Path) -> list[Path]:
    """Twelve pictures, dark and bright in turns."""
    return [p for pair in zip(*(sorted((toy_data / n).iterdir()) for n in ("dark", "bright")), strict=True) for p in pair]  # fmt: skip


def pixels_of(path: Path) -> Pixels:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def said(results: list[Sentiment | ItemError]) -> list[str | None]:
    return [r.label if isinstance(r, Sentiment) else f"error: {r.reason}" for r in results]


def close(one: list[Sentiment | ItemError], other: list[Sentiment | ItemError]) -> bool:
    """Equal but for the last bits: the size of a batch may change the order of sums."""
    return len(one) == len(other) and all(
        isinstance(a, Sentiment)
        and isinstance(b, Sentiment)
        and a.label == b.label
        and np.allclose(list(a.scores.values()), list(b.scores.values()), atol=1e-5)
        for a, b in zip(one, other, strict=True)
    )


def test_the_labels_mean_something(rt: Runtime, pictures: list[Path]) -> None:
    results = rt(pictures)
    assert said(results) == ["dark", "bright"] * 6
    for result in results:
        assert isinstance(result, Sentiment)
        assert list(result.scores) == ["dark", "bright"]
        assert sum(result.scores.values()) == pytest.approx(1, abs=1e-5)
        assert (result.scores_kind, result.labels) == ("softmax", ())
        assert result.scores[str(result.label)] == max(result.scores.values())


def test_every_kind_of_image_says_the_same(rt: Runtime, pictures: list[Path]) -> None:
    path = pictures[1]
    data = path.read_bytes()
    kinds: list[Any] = [path, str(path), data, bytearray(data), memoryview(data), pixels_of(path)]
    with Image.open(path) as opened:
        opened.load()
        results = rt([*kinds, opened])
    assert close(results, [results[0]] * 7)
    assert said(results) == ["bright"] * 7


def test_one_image_needs_no_list(rt: Runtime, pictures: list[Path]) -> None:
    path = pictures[0]
    whole = rt([path])
    singles: list[Any] = [path, str(path), path.read_bytes(), pixels_of(path), Image.open(path)]
    for single in singles:
        assert close(rt(single), whole)
    singles[-1].close()


def test_a_stream_of_one_path_is_not_a_stream_of_letters(rt: Runtime, pictures: list[Path]) -> None:
    for single in (str(pictures[0]), pictures[0]):
        assert said(list(rt.map(single))) == ["dark"]  # type: ignore[arg-type]


def test_nothing_in_nothing_out(rt: Runtime) -> None:
    assert rt([]) == []
    assert list(rt.map(iter(()))) == []
    features = rt.features([])
    assert {name: value.shape for name, value in features.items()} == {
        "small": (0, 256), "other": (0, 96), "features": (0, 352), "logits": (0, 2), "scores": (0, 2)
    }  # fmt: skip
    assert features.errors == []


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 11, 23])
def test_any_number_comes_out_in_order(rt: Runtime, pictures: list[Path], count: int) -> None:
    chosen = [pictures[(i * 5 + i // 3) % 12] for i in range(count)]
    wanted = [p.parent.name for p in chosen]
    assert said(rt(chosen)) == wanted
    assert said(list(rt.map(chosen))) == wanted
    by_one = [rt(p)[0] for p in chosen]
    assert close(rt(chosen), by_one)


@pytest.mark.parametrize("target", ["openvino:cpu", "onnxruntime:cpu"])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_the_batch_does_not_change_the_result(
    tiny_bundle: Path, rt: Runtime, pictures: list[Path], target: str, batch: int
) -> None:
    with vsa_rt.load(
        tiny_bundle, target=target, precision="fp32", batch=batch, streams=2, threads=2
    ) as other:
        assert close(other(pictures), rt(pictures))


def test_errors_stand_in_their_items_place(rt: Runtime, pictures: list[Path], tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("not an image")
    bad: list[Any] = [tmp_path / "absent.jpg", text, tmp_path, b"", b"rubbish", np.zeros((2, 2)), None, 3]
    items: list[Any] = []
    for index, one in enumerate(bad):
        items += [pictures[index % 12], one]
    results = rt(items)
    assert said(results[::2]) == [pictures[i % 12].parent.name for i in range(len(bad))]
    for index, result in enumerate(results[1::2]):
        assert isinstance(result, ItemError), bad[index]
        assert result.reason
        assert "internal error" not in result.reason, result.reason
        assert "\n" not in result.reason
    assert [r.item for r in results[1:7:2] if isinstance(r, ItemError)] == [str(b) for b in bad[:3]]
    assert [r.item for r in results[7::2] if isinstance(r, ItemError)] == [
        f"item {i}" for i in range(7, 16, 2)
    ]
    assert close(results[::2], rt(items[::2]))


def test_a_batch_of_errors_alone(rt: Runtime, pictures: list[Path]) -> None:
    results = rt([b"", b"", b"", b"", pictures[1]])
    assert [isinstance(r, ItemError) for r in results] == [True] * 4 + [False]
    assert said(rt(pictures[:2])) == ["dark", "bright"]


@pytest.mark.parametrize("images", [3, None, 2.5])
def test_what_is_no_list_of_images_is_wrong_use(rt: Runtime, images: Any) -> None:
    with pytest.raises(UsageError, match=type(images).__name__):
        rt(images)


# Features and ready tensors


def test_features_have_every_tap_and_nan_rows_for_errors(rt: Runtime, pictures: list[Path]) -> None:
    found = rt.features([pictures[0], b"bad", pictures[1], pictures[2], pictures[3], b"worse"])
    assert list(found) == TAPS
    for tap in rt.manifest.taps:
        assert found[tap.name].shape == (6, tap.width)
        assert found[tap.name].dtype == np.float32
        assert np.isnan(found[tap.name]).all(1).tolist() == [False, True, False, False, False, True]
        assert np.isfinite(found[tap.name][[0, 2, 3, 4]]).all()
    assert [e is None for e in found.errors] == [True, False, True, True, True, False]
    assert found.errors[1] is not None
    assert found.errors[1].item == "item 1"
    np.testing.assert_array_equal(
        found["features"][0], np.concatenate([found["small"][0], found["other"][0]])
    )
    scores = [list(r.scores.values()) for r in rt(pictures[:1]) if isinstance(r, Sentiment)]
    np.testing.assert_allclose(found["scores"][0], scores[0], atol=1e-5)


def golden_inputs(bundle: Path) -> tuple[dict[str, Pixels], dict[str, NDArray[np.float32]]]:
    opened = Bundle.open(bundle)
    golden = {k: v[:4] for k, v in read_golden(opened.read(opened.manifest.golden)).items()}
    return tuple(  # type: ignore[return-value]
        {k.removeprefix(f"{kind}."): v for k, v in golden.items() if k.startswith(f"{kind}.")}
        for kind in ("input", "tap")
    )


@pytest.mark.parametrize("target", ["openvino:cpu", "onnxruntime:cpu"])
def test_ready_tensors_give_the_golden_taps(tiny_bundle: Path, target: str) -> None:
    inputs, taps = golden_inputs(tiny_bundle)
    with vsa_rt.load(tiny_bundle, target=target, precision="fp32") as rt:
        for count in (4, 3, 2, 1):
            found = rt.infer({name: array[:count] for name, array in inputs.items()})
            assert list(found) == TAPS
            for name, value in found.items():
                np.testing.assert_allclose(value, taps[name][:count], rtol=1e-4, atol=1e-4)


def test_ready_tensors_may_be_read_only_and_are_left_alone(tiny_bundle: Path) -> None:
    inputs, taps = golden_inputs(tiny_bundle)
    frozen = {name: np.frombuffer(a.tobytes(), np.uint8).reshape(a.shape) for name, a in inputs.items()}
    for target in ("openvino:cpu", "onnxruntime:cpu"):
        with vsa_rt.load(tiny_bundle, target=target, precision="fp32") as rt:
            found = rt.infer(frozen)
            np.testing.assert_allclose(found["scores"], taps["scores"], atol=1e-5)
    for name, array in inputs.items():
        np.testing.assert_array_equal(frozen[name], array)


WRONG: dict[str, tuple[Callable[[Any, str, str], Any], str]] = {
    "absent": (lambda t, one, two: {two: t[two]}, "image_160x160"),
    "float": (lambda t, one, two: t | {one: t[one].astype(np.float32)}, "float32"),
    "planar": (lambda t, one, two: t | {one: np.ascontiguousarray(t[one].transpose(0, 3, 1, 2))}, "160"),
    "strided": (lambda t, one, two: t | {one: t[one][:, :, ::-1]}, "C-contiguous"),
    "no batch": (lambda t, one, two: t | {one: t[one][0]}, "160"),
    "empty": (lambda t, one, two: {n: a[:0] for n, a in t.items()}, "batch 0"),
    "too many": (lambda t, one, two: {n: np.concatenate([a, a]) for n, a in t.items()}, "batch 8"),
    "unequal": (lambda t, one, two: t | {two: t[two][:2]}, "image_160x160"),
    "a list": (lambda t, one, two: t | {one: t[one].tolist()}, "image_160x160"),
    "nothing": (lambda t, one, two: t | {one: None}, "image_160x160"),
    "unknown": (lambda t, one, two: t | {"nonsense": t[one]}, "nonsense"),
}


@pytest.mark.parametrize("target", ["openvino:cpu", "onnxruntime:cpu"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors_are_wrong_use_and_harm_nothing(tiny_bundle: Path, target: str, name: str) -> None:
    inputs, taps = golden_inputs(tiny_bundle)
    change, says = WRONG[name]
    with vsa_rt.load(tiny_bundle, target=target, precision="fp32") as rt:
        with pytest.raises(UsageError, match=says):
            rt.infer(change(inputs, *inputs))
        np.testing.assert_allclose(rt.infer(inputs)["scores"], taps["scores"], atol=1e-5)


@pytest.mark.parametrize("target", ["openvino:cpu", "onnxruntime:cpu"])
def test_results_are_not_the_engines_memory(tiny_bundle: Path, pictures: list[Path], target: str) -> None:
    inputs, _ = golden_inputs(tiny_bundle)
    other = {name: 255 - array for name, array in inputs.items()}
    with vsa_rt.load(tiny_bundle, target=target) as rt:
        first = rt.infer(inputs)
        kept = {name: value.copy() for name, value in first.items()}
        features = rt.features(pictures[:4])
        features_kept = {name: value.copy() for name, value in features.items()}
        for _ in range(5):
            changed = rt.infer(other)
            rt.features(pictures[4:8])
        for name in TAPS:
            np.testing.assert_array_equal(first[name], kept[name])
            np.testing.assert_array_equal(features[name], features_kept[name])
            assert not np.array_equal(first[name], changed[name])


def test_what_the_caller_passed_may_be_changed_afterwards(rt: Runtime, pictures: list[Path]) -> None:
    pixels = pixels_of(pictures[1]).copy()
    [before] = rt([pixels])
    pixels[:] = 0
    assert close(rt([pictures[1]]), [before])


# Many at once


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("target", ["openvino:cpu", "onnxruntime:cpu"])
def test_threads_get_what_one_thread_gets(
    tiny_bundle: Path, pictures: list[Path], target: str, streams: int
) -> None:
    inputs, _ = golden_inputs(tiny_bundle)
    with vsa_rt.load(tiny_bundle, target=target, precision="fp32", streams=streams, threads=2) as rt:
        jobs = [pictures[i:] + pictures[:i] for i in range(12)]
        wanted = [rt(job) for job in jobs]
        ready = rt.infer(inputs)["scores"]

        def work(index: int) -> bool:
            if index % 4 == 3:
                return np.allclose(rt.infer(inputs)["scores"], ready, atol=1e-5)
            return close(rt(jobs[index % 12]), wanted[index % 12])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(48), timeout=120))


def test_a_stream_is_read_ahead_by_a_bounded_amount(rt: Runtime, pictures: list[Path]) -> None:
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield pictures[taken % 12]

    stream = rt.map(endless())
    assert taken == 0
    assert isinstance(next(stream), Sentiment)
    ahead = 4 * (len(rt.session.slots) + 1)
    assert taken <= ahead
    for _ in range(50):
        next(stream)
    assert taken <= 51 + ahead
    del stream
    assert said(rt(pictures[:2])) == ["dark", "bright"]


def test_an_error_of_the_stream_itself_reaches_the_caller(rt: Runtime, pictures: list[Path]) -> None:
    def failing() -> Iterator[Path]:
        yield from pictures[:6]
        raise RuntimeError("the camera is gone")

    with pytest.raises(RuntimeError, match="the camera is gone"):
        list(rt.map(failing()))
    assert said(rt(pictures[:2])) == ["dark", "bright"]


def test_streams_that_are_left_half_read_block_nobody(rt: Runtime, pictures: list[Path]) -> None:
    halves = [rt.map(iter(pictures * 3)) for _ in range(6)]
    for half in halves:
        next(half)
    done = threading.Event()

    def use() -> None:
        assert said(rt(pictures[:8])) == ["dark", "bright"] * 4
        done.set()

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    assert done.wait(60)
    assert [said(list(half)) for half in halves] == [(["dark", "bright"] * 18)[1:]] * 6


@pytest.mark.parametrize("target", ["openvino:cpu", "onnxruntime:cpu"])
@pytest.mark.parametrize("use", ["one", "many", "infer", "features", "map"])
def test_a_closed_runtime_says_so(tiny_bundle: Path, pictures: list[Path], target: str, use: str) -> None:
    inputs, _ = golden_inputs(tiny_bundle)
    rt = vsa_rt.load(tiny_bundle, target=target)
    assert len(rt(pictures[:2])) == 2
    rt.close()
    rt.close()
    uses: dict[str, Callable[[], object]] = {
        "one": lambda: rt(pictures[:1]),
        "many": lambda: rt(pictures),
        "infer": lambda: rt.infer(inputs),
        "features": lambda: rt.features(pictures[:1]),
        "map": lambda: next(rt.map(pictures)),
    }
    with pytest.raises(VsaError, match="closed"):
        uses[use]()


def test_closing_leaves_no_thread(tiny_bundle: Path, pictures: list[Path]) -> None:
    with vsa_rt.load(tiny_bundle) as rt:
        rt(pictures)
        assert any(t.name.startswith("vsa-") for t in threading.enumerate())
    assert not any(t.name.startswith("vsa-") for t in threading.enumerate())


# Choosing an engine


def with_engines(root: Path, change: Callable[[list[EngineRecord]], list[EngineRecord]]) -> Bundle:
    manifest = Bundle.open(root).manifest
    return Bundle(root, msgspec.structs.replace(manifest, engines=change(list(manifest.engines))))


def test_the_fastest_engine_is_the_default_and_says_why(tiny_bundle: Path) -> None:
    engines = Bundle.open(tiny_bundle).manifest.engines
    with vsa_rt.load(tiny_bundle) as rt:
        assert rt.choice.engine == engines[0]
        assert rt.choice.refused == {}
        for part in (engines[0].target, engines[0].precision, "fastest", "batch 1"):
            assert part in rt.choice.why
    # The first one loses least at its worst batch size.
    fastest = {batch: min(e.latency_ms[batch] for e in engines) for batch in engines[0].latency_ms}
    worst = [max(e.latency_ms[batch] / ms for batch, ms in fastest.items()) for e in engines]
    assert worst == sorted(worst)


@pytest.mark.parametrize(
    ("target", "precision"),
    [
        ("openvino:cpu", "fp32"),
        ("openvino:cpu", "bf16"),
        ("onnxruntime:cpu", "fp32"),
        ("onnxruntime:cpu", None),
    ],
)
def test_an_engine_is_taken_by_name(tiny_bundle: Path, target: str, precision: str | None) -> None:
    if precision == "bf16" and not any(
        e.precision == "bf16" for e in Bundle.open(tiny_bundle).manifest.engines
    ):
        pytest.skip("no bf16 engine was built on this processor")
    with vsa_rt.load(tiny_bundle, target=target, precision=precision) as rt:
        assert rt.choice.engine.target == target
        assert rt.choice.engine.precision == (precision or "fp32")
    enums = vsa_rt.load(tiny_bundle, target=Target.parse(target), precision=Precision(precision or "fp32"))
    with enums as rt:
        assert rt.choice.engine.target == target


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "nonsense:cpu"}, "unknown"),
        ({"target": "nonsense"}, "BACKEND:DEVICE"),
        ({"target": "openvino:gpu"}, "no device"),
        ({"target": "onnxruntime:cpu", "precision": "bf16"}, "it holds"),
        ({"precision": "fp8"}, "fp32, fp16, bf16"),
        ({"resample": "quick"}, "exact, fast"),
        ({"batch": 5}, "max-batch"),
        ({"batch": 0}, "batch"),
        ({"batch": -1}, "max-batch"),
        ({"streams": 0}, "streams"),
        ({"streams": 3, "threads": 2}, "streams"),
        ({"threads": 0}, "threads"),
        ({"threads": -2}, "threads"),
    ],
)
def test_options_that_do_not_fit_are_wrong_use(tiny_bundle: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        vsa_rt.load(tiny_bundle, **options)
    assert caught.value.exit_code == 2


def test_an_engine_that_failed_its_gate_is_passed_over_unless_it_is_named(tiny_bundle: Path) -> None:
    def fail_first(engines: list[EngineRecord]) -> list[EngineRecord]:
        gate = msgspec.structs.replace(engines[0].gate, passed=False, reasons=["small: scaled by 1.02"])
        return [msgspec.structs.replace(engines[0], gate=gate), *engines[1:]]

    bundle = with_engines(tiny_bundle, fail_first)
    first, second, *_ = bundle.manifest.engines
    with vsa_rt.load(bundle) as rt:
        assert rt.choice.engine == second
        assert rt.choice.refused == {
            first.folder: "failed parity: small: scaled by 1.02; name its target to open it all the same"
        }
    with vsa_rt.load(bundle, target=first.target, precision=first.precision) as rt:
        assert rt.choice.engine == first


@pytest.mark.parametrize("target", ["tensorrt:sm_87", "openvino:npu", "somebody:else"])
def test_an_engine_that_cannot_run_here_is_passed_over_with_the_reason(
    tiny_bundle: Path, pictures: list[Path], target: str
) -> None:
    bundle = with_engines(
        tiny_bundle, lambda e: [msgspec.structs.replace(e[0], target=target, folder="engines/x"), *e]
    )
    with vsa_rt.load(bundle) as rt:
        assert rt.choice.engine == bundle.manifest.engines[1]
        assert list(rt.choice.refused) == ["engines/x"]
        assert rt.choice.refused["engines/x"]
        assert said(rt(pictures[:2])) == ["dark", "bright"]


def test_a_bundle_none_of_whose_engines_runs_here_gives_every_reason(tiny_bundle: Path) -> None:
    bundle = with_engines(
        tiny_bundle, lambda e: [msgspec.structs.replace(one, target="tensorrt:sm_87") for one in e[:1]]
    )
    with pytest.raises(BundleError, match=r"no engine can run here.*tensorrt.*vsa-rt build") as caught:
        vsa_rt.load(bundle)
    assert caught.value.exit_code == 3


def test_an_exported_directory_says_that_it_is_not_built(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="exported but not built"):
        vsa_rt.load(with_engines(tiny_bundle, lambda _: []))


def test_an_engine_of_the_wrong_graph_is_refused(bundle_copy: Path, reseal: Callable[..., None]) -> None:
    manifest = Bundle.open(bundle_copy).manifest
    # The joined features: a backbone's tap has to fit the recipe, which the manifest says as well.
    taps = [
        msgspec.structs.replace(t, name="elsewhere") if t.kind == "features" else t for t in manifest.taps
    ]
    reseal(bundle_copy, taps=taps)
    with pytest.raises(BundleError, match="elsewhere"):
        vsa_rt.load(bundle_copy)


# The shipped ensemble against stored numbers


def test_the_golden_file_says_how_it_was_made() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert "PyTorch" in golden["how"]
    assert {"torch", "timm"} <= set(golden["versions"])
    assert list(golden["taps"]) == ["lite0", "lite1", "lite2", "features", "logits", "scores"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "precision"), [("openvino:cpu", "fp32"), ("onnxruntime:cpu", "fp32"), ("openvino:cpu", "bf16")]
)
def test_the_quickstart_gives_the_stored_taps(
    quickstart_bundle: Path, coffee: Path, target: str, precision: str
) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    if hashlib.sha256(coffee.read_bytes()).hexdigest() != golden["photograph_sha256"]:
        pytest.skip("this scikit-image ships another coffee.png")
    if not any(
        (e.target, e.precision) == (target, precision)
        for e in Bundle.open(quickstart_bundle).manifest.engines
    ):
        pytest.skip(f"no {target} {precision} engine was built on this processor")
    relative, scores = (1e-4, 1e-4) if precision == "fp32" else (0.4, 0.1)
    with vsa_rt.load(quickstart_bundle, target=target, precision=precision) as rt:
        for image in (coffee, coffee.read_bytes(), pixels_of(coffee)):
            found = rt.features([image])
            for name, wanted in golden["taps"].items():
                value = found[name][0].astype(np.float64)
                first = np.array(wanted["first"])
                allowed = scores if name == "scores" else relative * wanted["norm"]
                assert np.abs(value[: len(first)] - first).max() <= allowed, name
                assert np.linalg.norm(value) == pytest.approx(wanted["norm"], rel=relative)
        [result] = rt([coffee])
        assert isinstance(result, Sentiment)
        assert list(result.scores) == ["negative", "positive"]


@pytest.mark.slow
def test_the_quickstart_is_fed_the_stored_pixels(quickstart_bundle: Path, coffee: Path) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    if hashlib.sha256(coffee.read_bytes()).hexdigest() != golden["photograph_sha256"]:
        pytest.skip("this scikit-image ships another coffee.png")
    from vsa_rt.runtime.preprocess import Preprocessor

    specs = {i.name: i.resize for i in Bundle.open(quickstart_bundle).manifest.inputs if i.resize}
    rows = {name: np.empty((s.height, s.width, 3), np.uint8) for name, s in specs.items()}
    Preprocessor(specs).write(coffee, rows, item="coffee")
    assert {n: hashlib.sha256(a.tobytes()).hexdigest() for n, a in rows.items()} == golden["inputs"]


def test_a_photograph_turned_in_its_exif_says_what_the_upright_one_says(rt: Runtime, coffee: Path) -> None:
    with Image.open(coffee) as picture:
        upright = picture.convert("RGB")
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
    one, other = rt.features([upright, turned.getvalue()])["features"]
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


def test_a_large_engine_is_compiled_for_two_batch_sizes_only(
    tiny_bundle: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every size holds its own copy of the weights, which is nothing for a small engine and gigabytes for a large one."""
    pytest.importorskip("openvino", reason="the engine is OpenVINO's")
    from vsa_rt.engines import openvino_session

    # On one thread: on several a call is divided as the build found fastest, and the parts have other sizes.
    with vsa_rt.load(tiny_bundle, target="openvino:cpu", precision="fp32", threads=1) as runtime:
        session: Any = runtime.session
        wanted = runtime(pictures[:7])
        assert session.parts(3) == [2, 1]
        assert {key.batch for key in session._compiled} == {1, 2, 4}
    monkeypatch.setattr(openvino_session, "LARGE", 0)
    with vsa_rt.load(tiny_bundle, target="openvino:cpu", precision="fp32", threads=1) as runtime:
        session = runtime.session
        assert close(runtime(pictures[:7]), wanted)
        assert {key.batch for key in session._compiled} == {1, 4}
