"""Calibration: histograms that do not depend on order or batches, bounded memory, and what bad input says."""

from __future__ import annotations

import hashlib
import io
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from vsa_rt.contracts import ResizeSpec
from vsa_rt.errors import BundleError, DatasetError, UsageError
from vsa_rt.export.calibration.histogram import BINS, Histogram, Range
from vsa_rt.export.calibration.store import (
    Calibration,
    ImageRecord,
    calibration_to_bytes,
    read_calibration,
)
from vsa_rt.manifest import InputRecord
from vsa_rt.pipeline.calibrate import FEWEST_IMAGES, cached, calibrate, choose, image_records, peaks

onnx = pytest.importorskip("onnx", reason="calibration adds outputs to ONNX graphs")
from onnx import TensorProto, helper, numpy_helper

from vsa_rt.export.calibration.collect import (
    CalibrationBatch,
    Run,
    collect,
    collect_ranges,
)

SIZE = 16
INPUT = InputRecord(
    name="image",
    dtype="uint8",
    shape=[SIZE, SIZE, 3],
    resize=ResizeSpec(height=SIZE, width=SIZE, fit="warp", kernel="bilinear"),
)
TENSORS = ["scaled", "mixed", "active", "pooled"]
#: Finite float32 of every size, both signs, and zeros.
FLOATS = arrays.arrays(
    np.float32, st.integers(0, 60), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)


def state(histogram: Histogram) -> tuple[object, ...]:
    h = histogram
    return h.counts.tolist(), h.exponent, h.zeros, h.count, h.lowest, h.highest


def histogram(*parts: Any) -> Histogram:
    made = Histogram()
    for part in parts:
        made.add(np.asarray(part, np.float32))
    return made


# Histograms


@settings(deadline=None)
@given(FLOATS, st.randoms(use_true_random=False), st.integers(1, 5))
def test_neither_order_nor_batching_shows_in_a_histogram(
    values: NDArray[np.float32], random: Any, pieces: int
) -> None:
    shuffled = values[random.sample(range(values.size), values.size)]
    assert state(histogram(values)) == state(histogram(*np.array_split(shuffled, pieces)))


@settings(deadline=None)
@given(FLOATS, FLOATS)
def test_the_sum_of_two_histograms_is_that_of_all_their_values(
    some: NDArray[np.float32], others: NDArray[np.float32]
) -> None:
    assert state(histogram(some) + histogram(others)) == state(histogram(some, others))


@settings(deadline=None)
@given(FLOATS)
def test_a_histogram_is_numpys_with_the_same_borders(values: NDArray[np.float32]) -> None:
    made = histogram(values)
    exact = np.histogram(np.abs(values.astype(np.float64)), BINS, range=(0, made.width * BINS))[0]
    if made.exponent > -60:  # numpy's own arithmetic loses its way among smaller numbers
        assert made.counts.tolist() == exact.tolist()
    assert (made.count, made.zeros) == (values.size, int(np.sum(values == 0)))


def test_a_larger_value_merges_neighbouring_bins_in_pairs() -> None:
    made = histogram([0.25, 0.75, -0.75 - 2**-11])
    assert (made.exponent, made.width) == (0, 2**-11)
    assert {i: int(made.counts[i]) for i in np.flatnonzero(made.counts)} == {512: 1, 1536: 1, 1537: 1}
    made.add(np.array([1.0], np.float32))
    assert made.exponent == 1
    assert {i: int(made.counts[i]) for i in np.flatnonzero(made.counts)} == {256: 1, 768: 2, 1024: 1}
    made.add(np.array([-3000.0], np.float32))
    assert made.exponent == 12
    assert {i: int(made.counts[i]) for i in np.flatnonzero(made.counts)} == {0: 4, 1500: 1}
    assert (made.lowest, made.highest, made.magnitude) == (-3000.0, 1.0, 3000.0)


def test_zeros_are_counted_apart_and_the_extremes_of_float32_are_held() -> None:
    limit = float(np.finfo(np.float32).max)
    made = histogram([0.0, -0.0, 1e-45, limit, -limit])
    assert (made.zeros, made.count, made.exponent) == (2, 5, 128)
    assert (int(made.counts[0]), int(made.counts[-1])) == (3, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("kind", [Histogram, Range])
def test_what_is_not_finite_in_float32_is_refused(kind: type[Range], bad: float) -> None:
    values = np.zeros(300_000)
    values[-1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        kind().add(values)


# Collecting


def graph(*, weights: float = 1.0, middle: tuple[Any, ...] = ()) -> bytes:
    """uint8 images, normalised, a convolution, ReLU and the mean: every kind of tensor that is measured."""
    rng = np.random.default_rng(0)
    kernel = (weights * rng.normal(size=(4, 3, 3, 3))).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planar"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["planar", "full"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "kernel"], ["mixed"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["mixed"], ["active"]),
        *middle,
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
    ]
    made = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(np.array(255, np.float32), "full"),
        ],
    )
    opset = helper.make_opsetid("", 22)
    model = helper.make_model(made, opset_imports=[opset], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def open_graph(made: bytes) -> Run:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime runs the graph")
    from vsa_rt.engines.executor import GraphExecutor

    return GraphExecutor(made).run


def batches(count: int, size: int) -> list[CalibrationBatch]:
    pixels = np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    names = [f"{i}.png" for i in range(count)]
    return [
        CalibrationBatch(names[i : i + size], {"image": pixels[i : i + size]}) for i in range(0, count, size)
    ]


def silent(_text: str) -> None:
    pass


def test_activations_are_what_numpy_makes_of_the_images() -> None:
    (batch,) = batches(6, 6)
    found = collect(graph(), TENSORS, [batch], open_graph, silent)
    assert list(found) == TENSORS
    pixels = batch.inputs["image"].astype(np.float32) / np.float32(255)
    assert state(found["scaled"]) == state(histogram(pixels))
    assert found["active"].lowest == 0
    assert found["active"].zeros == found["mixed"].count - int(found["active"].count - found["active"].zeros)
    assert found["pooled"].count == 6 * 4


def test_neither_order_nor_batching_of_the_images_shows() -> None:
    whole = collect(graph(), TENSORS, batches(13, 13), open_graph, silent)
    for size in (1, 4):
        parts = collect(graph(), TENSORS, batches(13, size)[::-1], open_graph, silent)
        # The sums of a convolution may come in another order for another batch: where they do, a value may move to
        # the next bin. What is copied or divided may not.
        assert state(parts["scaled"]) == state(whole["scaled"])
        for name in TENSORS:
            assert parts[name].count == whole[name].count
            moved = np.abs(np.cumsum(parts[name].counts - whole[name].counts)).max()
            assert moved <= whole[name].count / 1000
            assert parts[name].highest == pytest.approx(whole[name].highest, rel=1e-5)


def test_a_small_budget_takes_smaller_runs_and_then_parts_with_the_same_result() -> None:
    whole = collect(graph(), TENSORS, batches(8, 4), open_graph, silent)
    ranges = collect_ranges(graph(), TENSORS, batches(8, 4), open_graph, silent)
    # One image's tensors: 3 x 16 x 16, twice 4 x 16 x 16 and 4 float32.
    image = 4 * (3 + 4 + 4) * SIZE * SIZE + 16
    for budget, runs in ((4 * image, 2), (2 * image, 4), (image, 8), (image - 1, 16), (1, 32)):
        said: list[str] = []
        found = collect(graph(), TENSORS, batches(8, 4), open_graph, said.append, budget=budget)
        assert len(said) == runs
        for name in TENSORS:
            assert found[name].count == whole[name].count
            assert found[name].highest == pytest.approx(whole[name].highest, rel=1e-5)
            assert (ranges[name].lowest, ranges[name].highest) == (whole[name].lowest, whole[name].highest)


def test_progress_says_how_many_photographs_and_which_part() -> None:
    said: list[str] = []
    collect(graph(), TENSORS, batches(6, 4), open_graph, said.append, total=6)
    assert said == ["calibrating: 4 of 6 photographs", "calibrating: 6 of 6 photographs"]
    said.clear()
    collect(graph(), TENSORS[:2], batches(2, 2), open_graph, said.append, total=2, budget=1)
    assert said[0] == "calibrating: 1 of 2 photographs, part 1 of 2"
    assert said[-1] == "calibrating: 2 of 2 photographs, part 2 of 2"


def test_an_iterator_is_refused_where_the_images_are_needed_again() -> None:
    with pytest.raises(ValueError, match="several passes"):
        collect(graph(), TENSORS, iter(batches(2, 2)), open_graph, silent, budget=1)


def test_peak_memory_does_not_grow_with_the_number_of_images() -> None:
    """Activations of 1 MiB an image: what is alive at once is that of a run, however many there are."""
    rows = (1 << 20) // 4

    def fake(_made: bytes) -> Run:
        def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
            return {"mixed": np.ones((len(inputs["image"]), rows), np.float32)}

        return run

    def some(count: int) -> Iterator[CalibrationBatch]:
        for i in range(count):
            yield CalibrationBatch([str(i)], {"image": np.zeros((1, SIZE, SIZE, 3), np.uint8)})

    made, peak = graph(), {}
    for count in (2, 40):
        tracemalloc.start()
        collect(made, ["mixed"], some(count), fake, silent)
        peak[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak[2] > 1 << 20  # the measurement sees such arrays
    assert peak[40] < peak[2] + (1 << 19)


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_an_activation_that_is_not_finite_names_tensor_and_image(bad: float, word: str) -> None:
    def fake(_made: bytes) -> Run:
        def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
            count = len(inputs["image"])
            rows = {"mixed": np.ones((count, 5), np.float32), "pooled": np.ones((1, count), np.float32)}
            for row in np.flatnonzero(inputs["image"].max(axis=(1, 2, 3)) == 7):
                rows["mixed"][row, 3] = bad
            if inputs["image"].max() == 9:
                rows["pooled"][0, 0] = bad
            return rows

        return run

    def marked(value: int) -> list[CalibrationBatch]:
        pixels = np.zeros((3, SIZE, SIZE, 3), np.uint8)
        pixels[1] = value
        return [CalibrationBatch(["a.png", "b.png", "c.png"], {"image": pixels})]

    with pytest.raises(DatasetError, match=f"'mixed' is {word} for image b.png"):
        collect(graph(), ["mixed", "pooled"], marked(7), fake, silent)
    with pytest.raises(DatasetError, match=f"'pooled' is {word} for one of the images a.png, b.png, c.png"):
        collect(graph(), ["mixed", "pooled"], marked(9), fake, silent)


def test_a_graph_whose_weights_overflow_is_named_through_the_real_runtime() -> None:
    with pytest.raises(DatasetError, match=r"'mixed' is (infinite|NaN) for image 0\.png"):
        collect(graph(weights=8e37), TENSORS, batches(2, 2), open_graph, silent)


@pytest.mark.parametrize("inner", [False, True])
def test_a_quantised_graph_is_refused(inner: bool) -> None:
    pair = [
        helper.make_node("QuantizeLinear", ["active", "full"], ["levels"], "q"),
        helper.make_node("DequantizeLinear", ["levels", "full"], ["back"], "dq"),
    ]
    if inner:
        value = helper.make_tensor_value_info("back", TensorProto.FLOAT, None)
        yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
        branch = helper.make_graph(pair, "branch", [], [value])
        pair = [yes, helper.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch)]
    with pytest.raises(UsageError, match="quantised already: node 'q' is a QuantizeLinear"):
        collect(graph(middle=tuple(pair)), TENSORS, batches(1, 1), open_graph, silent)


@pytest.mark.parametrize("name", ["nonsense", "kernel"])
def test_a_tensor_that_is_no_activation_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}'.*no node of the graph gives it"):
        collect(graph(), ["mixed", name], batches(1, 1), open_graph, silent)


def test_a_tensor_of_integers_is_refused() -> None:
    with pytest.raises(UsageError, match="'image' holds uint8"):
        collect(graph(), ["image"], batches(1, 1), open_graph, silent)
    shape = helper.make_node("Shape", ["active"], ["sizes"])
    with pytest.raises(UsageError, match="'sizes' holds int64"):
        collect(graph(middle=(shape,)), ["sizes"], batches(1, 1), open_graph, silent)


def test_what_is_no_graph_and_no_images_are_refused() -> None:
    with pytest.raises(UsageError, match="not an ONNX model"):
        collect(b"\xff\xff\xff", TENSORS, batches(1, 1), open_graph, silent)
    with pytest.raises(DatasetError, match="no image"):
        collect(graph(), TENSORS, [], open_graph, silent)


# Storing


def stored() -> Calibration:
    rng = np.random.default_rng(4)
    return Calibration(
        histograms={
            "a": histogram(rng.normal(size=1000)),
            "%b/é\0": histogram(np.maximum(rng.normal(size=500), 0)),
        },
        images=[ImageRecord("x/1.jpg", "0" * 64), ImageRecord("2.jpg", "a" * 64)],
        graph="f" * 64,
        unreadable=[ImageRecord("bad.jpg", "1" * 64)],
        rejected=2,
        stand_ins=1,
        warnings=["one sentence"],
    )


def test_a_calibration_survives_its_file() -> None:
    one = stored()
    data = calibration_to_bytes(one)
    back = read_calibration(data)
    assert {k: state(h) for k, h in back.histograms.items()} == {
        k: state(h) for k, h in one.histograms.items()
    }
    assert (back.images, back.graph, back.warnings) == (one.images, one.graph, one.warnings)
    assert (back.skipped, back.rejected, back.unreadable, back.stand_ins) == (3, 2, one.unreadable, 1)
    assert calibration_to_bytes(back) == data == calibration_to_bytes(stored())
    for method in ("minmax", "percentile", "entropy", "mse"):
        assert back.thresholds(method) == one.thresholds(method)
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        assert archive["counts"].shape == (2, BINS)


def rewritten(**members: bytes | NDArray[Any] | None) -> bytes:
    """The stored file with some members replaced, added, or left out for ``None``."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(calibration_to_bytes(stored()))) as old,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        held = {name.removesuffix(".npy"): old.read(name) for name in old.namelist()}
        for name, value in (held | members).items():
            if isinstance(value, np.ndarray):
                member = io.BytesIO()
                npy.write_array(member, value, allow_pickle=True)
                value = member.getvalue()  # noqa: PLW2901 - written below
            if value is not None:
                new.writestr(f"{name}.npy", value)
    return stream.getvalue()


def text(**fields: object) -> NDArray[np.uint8]:
    """The stored file's text with some fields replaced."""
    with np.load(io.BytesIO(calibration_to_bytes(stored())), allow_pickle=False) as archive:
        known = msgspec.json.decode(archive["text"].tobytes())
    return np.frombuffer(msgspec.json.encode(known | fields), np.uint8)


def counts(place: tuple[int, int], value: int) -> NDArray[np.int64]:
    made = np.stack([h.counts for h in stored().histograms.values()])
    made[place] = value
    return made


def header(shape: tuple[int, ...]) -> bytes:
    """A member that claims a shape and holds nothing."""
    member = io.BytesIO()
    npy.write_array_header_1_0(member, {"descr": "<i8", "fortran_order": False, "shape": shape})
    return member.getvalue()


def flipped(place: int) -> bytes:
    data = bytearray(calibration_to_bytes(stored()))
    data[place] ^= 255
    return bytes(data)


DAMAGE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "no archive": lambda: b"PK nothing of the kind",
    "cut off": lambda: calibration_to_bytes(stored())[:-200],
    "a flipped byte": lambda: flipped(60),
    "another archive": lambda: rewritten(more=np.zeros(2)),
    "a member absent": lambda: rewritten(counts=None),
    "objects": lambda: rewritten(lowest=np.array([{}, {}], object)),
    "another dtype": lambda: rewritten(counts=counts((0, 0), 0).astype(np.float64)),
    "another shape": lambda: rewritten(counts=counts((0, 0), 0)[:1]),
    "column order": lambda: rewritten(counts=np.asfortranarray(counts((0, 0), 0))),
    "a claim of a terabyte": lambda: rewritten(counts=header((1 << 26, BINS))),
    "a bomb": lambda: rewritten(counts=bytes(8 << 20)),
    "negative counts": lambda: rewritten(counts=counts((0, 5), -1)),
    "a sum that wraps": lambda: rewritten(counts=counts((0, 5), (1 << 63) - 1)),
    "counts beyond the highest": lambda: rewritten(counts=counts((0, BINS - 1), 1)),
    "more zeros than values": lambda: rewritten(zeros=np.array([10**6, 0])),
    "NaN": lambda: rewritten(lowest=np.array([np.nan, 0.0])),
    "infinity": lambda: rewritten(highest=np.array([np.inf, 1.0])),
    "lowest above highest": lambda: rewritten(lowest=np.array([9.0, 9.0])),
    "another exponent": lambda: rewritten(exponent=np.array([1, 9])),
    "no JSON": lambda: rewritten(text=np.frombuffer(b"{", np.uint8)),
    "deep JSON": lambda: rewritten(text=np.frombuffer(b"[" * 100_000, np.uint8)),
    "an unknown key": lambda: rewritten(text=text(more=1)),
    "another version": lambda: rewritten(text=text(schema=2)),
    "a tensor twice": lambda: rewritten(text=text(tensors=["a", "a"])),
    "more names than rows": lambda: rewritten(text=text(tensors=["a", "b", "c"])),
    "no photographs": lambda: rewritten(text=text(images=[])),
    "no hash": lambda: rewritten(text=text(graph="../../etc")),
    "negative": lambda: rewritten(text=text(rejected=-1)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(damage: str) -> None:
    data = DAMAGE[damage]()
    with pytest.raises(BundleError, match=r"calibration\.npz: cannot be used: .*calibrate again"):
        read_calibration(data)


def test_rewriting_alone_does_no_damage() -> None:
    assert read_calibration(rewritten(text=text())).graph == "f" * 64


# Folders of photographs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty photographs of noise over a gradient."""
    rng = np.random.default_rng(8)
    made = tmp_path / "photographs"
    made.mkdir()
    ramp = np.linspace(0, 200, 32)[:, None, None]
    for i in range(20):
        pixels = (ramp + rng.uniform(0, 55, (32, 32, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(made / f"{i:02}.png")
    return made


def test_a_folder_gives_the_same_bytes_twice(folder: Path) -> None:
    said: list[str] = []
    one = calibrate(folder, graph(), TENSORS, [INPUT], progress=said.append)
    two = calibrate(folder, graph(), TENSORS, [INPUT])
    assert calibration_to_bytes(one) == calibration_to_bytes(two)
    assert said[0] == "calibrating: 8 of 20 photographs"
    assert said[-1] == "calibrating: 20 of 20 photographs"
    assert one.graph == hashlib.sha256(graph()).hexdigest()
    first = hashlib.sha256((folder / "00.png").read_bytes()).hexdigest()
    assert (len(one.images), one.images[0]) == (20, ImageRecord("00.png", first))
    assert (one.skipped, list(one.warnings)) == (0, [])


def test_a_dataset_that_was_read_gives_what_its_folder_gives(folder: Path) -> None:
    from vsa_rt.dataset import read_dataset

    whole = calibration_to_bytes(calibrate(folder, graph(), TENSORS, [INPUT]))
    assert calibration_to_bytes(calibrate(read_dataset(folder), graph(), TENSORS, [INPUT])) == whole


def test_ranges_alone_are_those_of_the_histograms(folder: Path) -> None:
    from vsa_rt.dataset import read_dataset

    found = peaks(read_dataset(folder).photographs, graph(), TENSORS, [INPUT])
    assert found == calibrate(folder, graph(), TENSORS, [INPUT]).thresholds("minmax")


def test_of_many_photographs_a_few_are_taken_evenly(folder: Path) -> None:
    from vsa_rt.dataset import read_dataset

    photographs = read_dataset(folder).photographs
    assert [p.path.name for p in choose(photographs, 4)] == ["00.png", "05.png", "10.png", "15.png"]
    assert choose(photographs, 20) == choose(photographs, 500) == photographs
    assert len(calibrate(folder, graph(), TENSORS, [INPUT], most=17).images) == 17


def test_unreadable_photographs_are_skipped_counted_and_told_apart(folder: Path) -> None:
    (folder / "03.png").write_bytes(b"no picture")
    (folder / "link.png").symlink_to(folder / "nowhere")
    found = calibrate(folder, graph(), TENSORS, [INPUT])
    assert (len(found.images), found.skipped, found.rejected) == (19, 2, 1)
    assert [i.name for i in found.unreadable] == ["03.png"]
    assert "03.png" not in [i.name for i in found.images]


def test_fewer_than_sixteen_photographs_are_refused_before_and_after_reading(folder: Path) -> None:
    for i in range(20 - FEWEST_IMAGES + 1):
        (folder / f"{i:02}.png").write_bytes(b"no picture")
    said: list[str] = []
    with pytest.raises(DatasetError, match=r"15 of 20 .* at least 16 .* 5 left out: .*00\.png"):
        calibrate(folder, graph(), TENSORS, [INPUT], progress=said.append)
    assert said
    for i in range(20 - FEWEST_IMAGES + 1):
        (folder / f"{i:02}.png").unlink()
    said.clear()
    with pytest.raises(DatasetError, match=r"15 of 15 .* at least 16"):
        calibrate(folder, graph(), TENSORS, [INPUT], progress=said.append)
    assert not said


def test_an_empty_folder_and_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no photograph found"):
        calibrate(tmp_path, graph(), TENSORS, [INPUT])
    with pytest.raises(DatasetError, match="not a folder"):
        calibrate(tmp_path / "absent", graph(), TENSORS, [INPUT])


def test_a_graph_that_takes_more_than_photographs_is_refused(folder: Path) -> None:
    ready = InputRecord(name="vector", dtype="float32", shape=[7])
    with pytest.raises(UsageError, match="'vector' is a ready tensor"):
        calibrate(folder, graph(), TENSORS, [ready])


def test_a_quantised_graph_is_refused_before_photographs_are_read(folder: Path) -> None:
    pair = (helper.make_node("QuantizeLinear", ["active", "full"], ["levels"], "q"),)
    said: list[str] = []
    with pytest.raises(UsageError, match="quantised already"):
        calibrate(folder, graph(middle=pair), TENSORS, [INPUT], progress=said.append)
    assert not said


def test_black_photographs_are_warned_of(folder: Path) -> None:
    for path in folder.iterdir():
        Image.new("RGB", (32, 32)).save(path)
    found = calibrate(folder, graph(), TENSORS, [INPUT])
    said = " | ".join(found.warnings)
    assert "20 of 20 calibration photographs have next to one colour (00.png, 01.png," in said
    assert "only 1 of 20 calibration photographs differ" in said
    assert "4 tensors are zero over all 20 calibration photographs (scaled, mixed, active, pooled)" in said


def test_a_few_flat_photographs_among_others_are_no_warning(folder: Path) -> None:
    for i in range(3):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(folder / f"{i:02}.png")
    assert list(calibrate(folder, graph(), TENSORS, [INPUT]).warnings) == []


def test_a_constant_tensor_is_warned_of(folder: Path) -> None:
    clip = helper.make_node("Clip", ["scaled", "full"], ["stuck"])
    found = calibrate(folder, graph(middle=(clip,)), ["mixed", "stuck"], [INPUT])
    assert [w for w in found.warnings if "1 tensors have one value" in w and "(stuck)" in w]


def test_the_bundles_own_calibration_is_kept_for_the_same_photographs(folder: Path) -> None:
    (folder / "07.png").write_bytes(b"no picture")
    first = read_calibration(calibration_to_bytes(calibrate(folder, graph(), TENSORS, [INPUT])))
    said: list[str] = []
    again = calibrate(folder, graph(), TENSORS[1:], [INPUT], known=first, progress=said.append)
    assert again is first
    assert said == ["calibration: kept, it is of the same 19 photographs and the same graph"]


@pytest.mark.parametrize("change", ["graph", "tensor", "photograph", "bad one", "more", "fewer", "renamed"])
def test_another_graph_tensor_or_photograph_is_measured_anew(folder: Path, change: str) -> None:
    (folder / "07.png").write_bytes(b"no picture")
    first = calibrate(folder, graph(), ["mixed"], [INPUT])
    made, tensors = graph(), ["mixed"]
    if change == "graph":
        made = graph(weights=2.0)
    elif change == "tensor":
        tensors = ["mixed", "active"]
    elif change == "photograph":
        shutil.copy(folder / "01.png", folder / "02.png")
    elif change == "bad one":
        shutil.copy(folder / "01.png", folder / "07.png")
    elif change == "more":
        shutil.copy(folder / "01.png", folder / "99.png")
    elif change == "fewer":
        (folder / "01.png").unlink()
    else:
        (folder / "01.png").rename(folder / "00a.png")
    again = calibrate(folder, made, tensors, [INPUT], known=first)
    assert again is not first
    assert set(tensors) <= again.histograms.keys()


def test_a_ready_tensor_beside_a_photograph_counts_as_part_of_it(folder: Path) -> None:
    from vsa_rt.dataset import read_dataset

    photographs = read_dataset(folder).photographs[:2]
    rows = InputRecord(name="objects", dtype="float32", shape=[2, 3], rows=True)
    np.save(folder / "00.png.objects.npy", np.zeros((1, 3), np.float32))
    before = image_records(photographs, folder, [INPUT, rows])
    np.save(folder / "00.png.objects.npy", np.ones((1, 3), np.float32))
    after = image_records(photographs, folder, [INPUT, rows])
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, True]
    one = Calibration({}, before, "f" * 64)
    assert cached(one, before, "f" * 64, [])
    assert not cached(one, after, "f" * 64, [])
