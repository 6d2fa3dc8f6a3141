"""The YouTube-8M feature behind Inception: whitening, storage in eight bits, and the shallow classifier."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.errors import CheckpointError, UsageError

torch = pytest.importorskip("torch", reason="the networks are torch modules")

from vsa_rt.export.checkpoint import load_weights
from vsa_rt.export.networks.youtube8m import (
    ShallowCnn,
    YouTube8MPca,
    keys_from_keras,
    keys_from_yt8m,
    store_in_eight_bits,
)

State = dict[str, Any]
Array = NDArray[Any]


def parameters(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("make", "millions", "inputs", "width"),
    [
        (YouTube8MPca, 2.10, 2048, 1024),
        (ShallowCnn, 126.55, 1024, 3862),
        (lambda: ShallowCnn(1152, audio=128), 142.37, 1024, 3862),
        (lambda: ShallowCnn(2048), 253.10, 2048, 3862),
        (lambda: ShallowCnn(axis="time"), 0.20 + 0.25, 1024, 3862),
        (lambda: ShallowCnn(classes=3962), 129.83, 1024, 3962),
    ],
    ids=["pca", "features", "with-audio", "without-pca", "time", "subclasses"],
)
def test_sizes(make: Callable[[], Any], millions: float, inputs: int, width: int) -> None:
    with torch.device("meta"):
        network, vectors = make(), torch.zeros(3, inputs)
    assert round(parameters(network) / 1e6, 2) == pytest.approx(millions)
    assert network.width == width
    assert tuple(network(vectors).shape) == (3, width)


def test_the_convolution_is_small() -> None:
    with torch.device("meta"):
        assert parameters(ShallowCnn().conv) == 256
        assert parameters(ShallowCnn(2048).conv) == 256


# The PCA


def arrays(features: int = 24, components: int = 10, rows: int = 16) -> State:
    """As the published extractor reads them: columns, one component per row, more rows than are taken."""
    draw = np.random.default_rng(0)
    vectors, _ = np.linalg.qr(draw.normal(size=(features, features)))
    return {
        "mean": torch.from_numpy(draw.uniform(0.1, 0.8, (features, 1))),
        "eigenvals": torch.from_numpy(np.geomspace(3, 1e-5, rows)[:, None]),
        "eigenvecs": torch.from_numpy(vectors[:rows].copy()),
    }


def whitened(features: Array, published: State, components: int) -> Array:
    """The published extractor's formula in float64."""
    mean = published["mean"].double().numpy()[:, 0]
    values = published["eigenvals"].double().numpy()[:components, 0]
    vectors = published["eigenvecs"].double().numpy().T[:, :components]
    result: Array = (features.astype(np.float64) - mean) @ vectors / np.sqrt(values + 1e-4)
    return result


def make_pca(published: State, components: int = 10, **options: Any) -> Any:
    network = YouTube8MPca(components, published["mean"].shape[0], **options).eval()
    load_weights(network, keys_from_yt8m(published, components), "file")
    return network


def vectors(count: int = 6, width: int = 24, seed: int = 1) -> Array:
    return np.random.default_rng(seed).uniform(0, 1.5, (count, width)).astype(np.float32)


def test_pca_is_the_published_formula() -> None:
    published, given = arrays(), vectors()
    with torch.inference_mode():
        found = make_pca(published, clip=0)(torch.from_numpy(given)).numpy()
    wanted = whitened(given, published, 10)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)
    assert np.abs(wanted).max() > 2  # so that the clip below is seen
    with torch.inference_mode():
        clipped = make_pca(published)(torch.from_numpy(given)).numpy()
        narrow = make_pca(published, clip=0.5)(torch.from_numpy(given)).numpy()
    np.testing.assert_array_equal(clipped, found.clip(-2, 2))
    np.testing.assert_array_equal(narrow, found.clip(-0.5, 0.5))


def test_the_floor_is_added_under_the_root() -> None:
    published = {
        "mean": torch.tensor([[1.0]]),
        "eigenvals": torch.tensor([[0.0]]),
        "eigenvecs": torch.tensor([[1.0]]),
    }
    found = make_pca(published, 1, clip=0)(torch.tensor([[1.5]]))
    assert float(found) == pytest.approx(0.5 / math.sqrt(1e-4), rel=1e-6)


def test_subtracting_before_the_product_is_the_more_exact_order() -> None:
    draw = np.random.default_rng(2)
    published = arrays(512, 256, 512)
    published["mean"] = published["mean"] + 4  # differences are an eighth of the values, or so
    given = (published["mean"].numpy()[:, 0] + draw.normal(size=(32, 512)) * 0.5).astype(np.float32)
    published = {k: v.float() for k, v in published.items()}
    network, wanted = make_pca(published, 256, clip=0), whitened(given, published, 256)
    with torch.inference_mode():
        found = network(torch.from_numpy(given)).numpy()
        product = torch.from_numpy(given) @ network.whitening
        biased = (product - network.mean @ network.whitening).numpy()

    def error(result: Array) -> float:
        return float(np.abs(result - wanted).max() / np.abs(wanted).max())

    assert error(found) < 1e-6
    assert error(biased) > 2 * error(found)


def test_a_checkpoint_holds_three_arrays_and_loading_folds_them() -> None:
    published, given = arrays(), torch.from_numpy(vectors())
    network = YouTube8MPca(10, 24, clip=0).eval()
    assert {k: tuple(v.shape) for k, v in network.state_dict().items()} == {
        "mean": (24,),
        "eigenvals": (10,),
        "eigenvecs": (24, 10),
    }
    outer = torch.nn.Sequential(copy.deepcopy(network))
    outer.load_state_dict({f"0.{k}": v for k, v in make_pca(published, clip=0).state_dict().items()})
    with torch.inference_mode():
        assert torch.equal(outer(given), make_pca(published, clip=0)(given))
        assert not torch.allclose(outer(given), network(given), atol=0.1)  # its own, seeded weights


@pytest.mark.parametrize(
    "published", [arrays(), arrays(rows=10), arrays(rows=24)], ids=["more", "as-many", "square"]
)
def test_the_first_components_are_taken_from_rows(published: State) -> None:
    shaped = keys_from_yt8m(published, 10)
    assert torch.equal(shaped["mean"], published["mean"][:, 0])
    assert torch.equal(shaped["eigenvals"], published["eigenvals"][:10, 0])
    assert torch.equal(shaped["eigenvecs"], published["eigenvecs"][:10].T)


def test_arrays_in_the_modules_own_shapes_stay_as_they_are() -> None:
    shaped = keys_from_yt8m(arrays(), 10)
    again = keys_from_yt8m(shaped, 10)
    assert all(torch.equal(again[k], v) for k, v in shaped.items())
    longer = shaped | {"eigenvecs": torch.cat([shaped["eigenvecs"], shaped["eigenvecs"]], 1)}
    assert torch.equal(keys_from_yt8m(longer, 10)["eigenvecs"], shaped["eigenvecs"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mean": None}, "missing mean"),
        ({"eigenvals": None}, "missing eigenvals"),
        ({"eigenvecs": None}, "missing eigenvecs"),
        ({"variance": torch.ones(3)}, "unexpected variance"),
        ({"mean": torch.ones(24, 2)}, r"mis-shaped .*mean \(24, 2\) instead of \(24,\)"),
        ({"eigenvals": torch.ones(9, 1)}, r"mis-shaped eigenvals \(9,\) instead of \(10,\)"),
        ({"eigenvecs": torch.ones(9, 24)}, r"mis-shaped eigenvecs \(24, 9\) instead of \(24, 10\)"),
        ({"eigenvecs": torch.ones(7, 5)}, r"mis-shaped eigenvecs \(7, 5\) instead of \(24, 10\)"),
        ({"eigenvecs": torch.ones(240)}, r"mis-shaped eigenvecs \(240,\) instead of \(24, 10\)"),
        ({"eigenvals": torch.full((16, 1), math.nan)}, "not finite eigenvals"),
        ({"eigenvals": torch.full((16, 1), -0.25)}, r"eigenvals: the lowest is -0\.25"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_arrays_that_do_not_fit_are_named(change: State, says: str) -> None:
    state = {k: v for k, v in (arrays() | change).items() if v is not None}
    with pytest.raises(CheckpointError, match=says):
        load_weights(YouTube8MPca(10, 24), keys_from_yt8m(state, 10), "file")


# Storage in eight bits


def stored(values: Array) -> list[int]:
    """The published script's levels: float32 arithmetic, then Python 2's round, halves away from zero."""
    clipped = np.clip(values.astype(np.float32), np.float32(-2), np.float32(2))
    steps = (clipped - np.float32(-2)) * np.float32(255 / 4)
    return [math.floor(float(s) + 0.5) for s in steps]


def read(levels: list[int]) -> Array:
    """The published reader."""
    return np.array(levels, np.float64) * (4 / 255) + (4 / 512 - 2)


def test_storage_is_the_published_one() -> None:
    values = np.random.default_rng(3).normal(scale=1.2, size=5000).astype(np.float32)
    found = store_in_eight_bits(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(found, read(stored(values)), rtol=0, atol=5e-7)
    inside = np.abs(values) <= 2
    # Half a level either way, and the reader's half level on top.
    assert np.abs(found - values - 4 / 512)[inside].max() <= 2 / 255 + 1e-6
    assert (found - values)[inside].mean() == pytest.approx(4 / 512, abs=1e-3)


def test_a_stored_value_stays_itself() -> None:
    levels = torch.from_numpy(read(list(range(256))).astype(np.float32))
    once = store_in_eight_bits(levels)
    assert torch.allclose(once, levels, rtol=0, atol=5e-7)
    assert torch.equal(store_in_eight_bits(once), once)


def test_the_ends_and_what_lies_beyond() -> None:
    found = store_in_eight_bits(torch.tensor([-9.0, -2.0, 0.0, 2.0, 9.0])).tolist()
    # 0 lies half-way between levels 127 and 128.
    wanted = [-1.9921875, -1.9921875, 128 * 4 / 255 - 1.9921875, 2.0078125, 2.0078125]
    assert found == pytest.approx(wanted, abs=5e-7)


def test_halves_go_up_and_what_is_just_below_does_not() -> None:
    near = np.arange(0, 255, dtype=np.float32)[:, None] + np.float32(0.5)
    around = near / np.float32(63.75) - np.float32(2)
    ulps = np.float32(2**-23) * np.arange(-8, 9, dtype=np.float32)
    values = (around + ulps).astype(np.float32).ravel()
    steps = (values + np.float32(2)) * np.float32(63.75)
    ties = (steps % 1 == 0.5) & (np.floor(steps) % 2 == 0)
    assert ties.sum() > 20  # where rounding to even would give another level
    found = store_in_eight_bits(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(found, read(stored(values)), rtol=0, atol=5e-7)
    # 65793 · 2^-23 · 63.75 is 0.5 - 2^-25: adding a half before the floor would round it up.
    assert store_in_eight_bits(torch.tensor([-2 + 65793 * 2.0**-23])).tolist() == [-1.9921875]


def test_the_pca_stores_if_told_to() -> None:
    published, given = arrays(), torch.from_numpy(vectors())
    with torch.inference_mode():
        plain, coarse = make_pca(published)(given), make_pca(published, quantise=True)(given)
    assert torch.equal(coarse, store_in_eight_bits(plain))
    assert not torch.equal(coarse, plain)


# The shallow classifier


def keras_weights(
    length: int, kernel: int, filters: int, pool: int, classes: int, time: bool = False
) -> State:
    """Weights in Keras's layout."""
    draw = np.random.default_rng(4)
    inputs = filters if time else length // pool * filters
    shapes = {
        "conv1d/kernel:0": (kernel, length if time else 1, filters),
        "conv1d/bias:0": (filters,),
        "dense/kernel:0": (inputs, classes),
        "dense/bias:0": (classes,),
    }
    return {k: torch.from_numpy(draw.normal(scale=0.7, size=s)) for k, s in shapes.items()}


def by_loops(vector: Array, weights: State, pool: int, channel_major: bool = False) -> Array:
    """The published layers one number at a time, in float64, on one vector that is the sequence itself."""
    kernel, bias, dense, dense_bias = (weights[k].double().numpy() for k in weights)
    size, _, filters = kernel.shape
    norm = math.sqrt(max(float((vector.astype(np.float64) ** 2).sum()), 1e-12))
    sequence = vector.astype(np.float64) / norm
    maps = np.zeros((len(sequence), filters))
    for position in range(len(sequence)):
        for channel in range(filters):
            total = bias[channel]
            for tap in range(size):
                at = position + tap - size // 2
                if 0 <= at < len(sequence):
                    total += kernel[tap, 0, channel] * sequence[at]
            maps[position, channel] = max(total, 0.0)
    flat = []
    pooled = [maps[i * pool : (i + 1) * pool].max(0) for i in range(len(sequence) // pool)]
    if channel_major:
        flat = [row[channel] for channel in range(filters) for row in pooled]
    else:
        flat = [row[channel] for row in pooled for channel in range(filters)]
    scores: Array = 1 / (1 + np.exp(-(np.array(flat) @ dense + dense_bias)))
    return scores


def load_cnn(weights: State, features: int, **options: Any) -> Any:
    network = ShallowCnn(features, **options).eval().requires_grad_(False)
    load_weights(network, keys_from_keras(weights), "file")
    return network


@pytest.mark.parametrize(
    ("length", "kernel", "filters", "pool", "classes"),
    [(12, 3, 4, 2, 5), (13, 3, 4, 2, 5), (11, 5, 3, 3, 4), (6, 1, 2, 1, 3)],
    ids=["even", "odd", "others", "ones"],
)
def test_the_layers_are_the_published_ones(
    length: int, kernel: int, filters: int, pool: int, classes: int
) -> None:
    weights = keras_weights(length, kernel, filters, pool, classes)
    network = load_cnn(weights, length, kernel=kernel, filters=filters, pool=pool, classes=classes)
    given = np.random.default_rng(5).normal(size=(3, length)).astype(np.float32)
    found = network(torch.from_numpy(given)).numpy()
    wanted = np.stack([by_loops(v, weights, pool) for v in given])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)
    assert wanted.std() > 0.05
    if filters > 1 and length // pool > 1:  # the comparison tells the two ways to flatten apart
        wrong = np.stack([by_loops(v, weights, pool, channel_major=True) for v in given])
        assert np.abs(found - wrong).max() > 0.05


def test_audio_is_zeros_behind_the_normalised_vector() -> None:
    weights = keras_weights(16, 3, 4, 2, 5)
    network = load_cnn(weights, 16, audio=4, filters=4, classes=5)
    given = np.random.default_rng(6).normal(size=12).astype(np.float32)
    found = network(torch.from_numpy(given[None])).numpy()[0]
    np.testing.assert_allclose(found, by_loops(np.pad(given, (0, 4)), weights, 2), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("audio", [0, 3])
def test_over_time_one_frame_meets_the_kernels_centre_alone(kernel: int, audio: int) -> None:
    weights = keras_weights(8 + audio, kernel, 4, 2, 5, time=True)
    network = load_cnn(weights, 8 + audio, axis="time", kernel=kernel, filters=4, classes=5, audio=audio)
    given = np.random.default_rng(7).normal(size=(3, 8)).astype(np.float32)
    found = network(torch.from_numpy(given)).numpy()
    conv, bias, dense, dense_bias = (weights[k].numpy() for k in weights)
    frames = np.pad(given / np.linalg.norm(given, axis=1, keepdims=True), ((0, 0), (0, audio)))
    hidden = np.maximum(frames @ conv[kernel // 2] + bias, 0)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-(hidden @ dense + dense_bias))), rtol=0, atol=2e-6)
    side = copy.deepcopy(network)
    side.conv.weight[..., 0] += 100  # a tap that only padding meets
    assert np.array_equal(side(torch.from_numpy(given)).numpy(), found)


@pytest.mark.parametrize("axis", ["features", "time"])
def test_normalising_takes_the_length_away_and_leaves_zeros(axis: Any) -> None:
    weights = keras_weights(8, 3, 4, 2, 5, time=axis == "time")
    network = load_cnn(weights, 8, filters=4, classes=5, axis=axis)
    raw = load_cnn(weights, 8, filters=4, classes=5, axis=axis, normalise=False)
    given = torch.from_numpy(np.random.default_rng(8).normal(size=(2, 8)).astype(np.float32))
    assert torch.allclose(network(given), network(given * 1000), atol=1e-6)
    assert not torch.allclose(raw(given), raw(given * 1000), atol=1e-2)
    unit = given / given.norm(dim=1, keepdim=True)
    assert torch.allclose(network(given), raw(unit), atol=1e-6)
    zeros = torch.zeros(1, 8)
    assert torch.equal(network(zeros), raw(zeros))
    assert bool(torch.isfinite(network(zeros)).all())


@pytest.mark.parametrize(
    "names",
    [
        ("conv1d/kernel:0", "conv1d/bias:0", "dense/kernel:0", "dense/bias:0"),
        ("conv1d_2/kernel", "conv1d_2/bias", "dense_1/kernel", "dense_1/bias"),
        ("conv1d/conv1d/kernel:0", "conv1d/conv1d/bias:0", "top/dense/kernel:0", "top/dense/bias:0"),
    ],
    ids=["plain", "numbered", "scoped"],
)
def test_kerass_names_and_layouts(names: tuple[str, ...]) -> None:
    weights = keras_weights(8, 3, 4, 2, 5)
    renamed = keys_from_keras(dict(zip(names, weights.values(), strict=True)))
    conv, bias, dense, dense_bias = weights.values()
    assert {k: tuple(v.shape) for k, v in renamed.items()} == {
        "conv.weight": (4, 1, 1, 3),
        "conv.bias": (4,),
        "dense.weight": (5, 16),
        "dense.bias": (5,),
    }
    assert float(renamed["conv.weight"][2, 0, 0, 1]) == float(conv[1, 0, 2])
    assert float(renamed["dense.weight"][3, 7]) == float(dense[7, 3])
    assert torch.equal(renamed["conv.bias"], bias)
    assert torch.equal(renamed["dense.bias"], dense_bias)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dense/bias:0": None}, r"missing dense\.bias"),
        ({"conv1d/kernel/Adam:0": torch.ones(1)}, r"unexpected conv1d/kernel/Adam:0"),
        ({"dense_1/bias:0": torch.ones(5)}, r"unexpected dense_1/bias:0"),
        ({"dense/kernel:0": torch.ones(5, 16)}, r"mis-shaped dense\.weight \(16, 5\) instead of \(5, 16\)"),
        (
            {"conv1d/kernel:0": torch.ones(3, 4)},
            r"mis-shaped conv\.weight \(3, 4\) instead of \(4, 1, 1, 3\)",
        ),
    ],
    ids=["missing", "optimiser", "second-layer", "dense", "kernel"],
)
def test_keras_arrays_that_do_not_fit_are_named(change: State, says: str) -> None:
    state = {k: v for k, v in (keras_weights(8, 3, 4, 2, 5) | change).items() if v is not None}
    with pytest.raises(CheckpointError, match=says):
        load_weights(ShallowCnn(8, filters=4, classes=5), keys_from_keras(state), "file")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ShallowCnn(8, kernel=4), "kernel 4: expected an odd number"),
        (lambda: ShallowCnn(8, kernel=0), "kernel 0.*1 or more"),
        (lambda: ShallowCnn(8, audio=8), "features 8, audio 8.*beside those of audio"),
        (lambda: ShallowCnn(8, audio=-1), "audio -1"),
        (lambda: ShallowCnn(8, classes=0), "classes 0"),
        (lambda: ShallowCnn(8, pool=9), "pool 9: expected at most the 8 features"),
        (lambda: ShallowCnn(8, axis="both"), "axis 'both' is not known; there are features, time"),  # type: ignore[arg-type]
        (lambda: YouTube8MPca(clip=-1), "clip -1"),
        (lambda: YouTube8MPca(clip=math.nan), "clip nan"),
        (lambda: YouTube8MPca(components=0), "to 0"),
    ],
)
def test_sizes_that_make_no_network_are_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make()


# What is exported


@pytest.mark.parametrize(
    ("make", "inputs", "products"),
    [
        (lambda: YouTube8MPca(12, 20, quantise=True), 20, ["MatMul"]),
        (lambda: ShallowCnn(15, filters=4, classes=5, audio=3), 12, ["Conv", "Gemm"]),
        (lambda: ShallowCnn(12, filters=4, classes=5, axis="time"), 12, ["Conv", "Gemm"]),
    ],
    ids=["pca", "features", "time"],
)
def test_the_exported_graph_computes_the_same(
    make: Callable[[], Any], inputs: int, products: list[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the exported graph")
    pytest.importorskip("onnxscript", reason="torch exports with it")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make().eval().requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            network,
            (torch.from_numpy(vectors(2, inputs)),),
            dynamo=True,
            opset_version=22,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
            verbose=False,
        )
    graph = program.model_proto.graph
    assert [n.op_type for n in graph.node if n.op_type in ("MatMul", "Gemm", "Conv")] == products
    # Only what is multiplied is stored: the PCA's checkpoint arrays are folded into one matrix.
    assert sum(len(i.dims) == 2 for i in graph.initializer) == 1
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for batch in (1, 3):
        given = vectors(batch, inputs, seed=batch)
        given[-1] = 0  # a black vector must not become NaN
        [found] = session.run(None, {session.get_inputs()[0].name: given})
        np.testing.assert_allclose(found, network(torch.from_numpy(given)).numpy(), rtol=0, atol=1e-6)
