"""The object graph network against the published formula, in half precision, with absent objects, and exported."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vsa_rt.errors import CheckpointError

torch = pytest.importorskip("torch", reason="the network is a torch module")

from vsa_rt.export.checkpoint import load_weights
from vsa_rt.export.formats import read_checkpoint
from vsa_rt.export.networks.object_graph import (
    IGNORED,
    ObjectGraph,
    adjacency_from_scores,
    keys_from_object_graphs,
    present_rows,
)

Array = NDArray[np.float64]
WIDTH = 24


def seeded(features: int = WIDTH, layers: int = 2, seed: int = 0) -> Any:
    """A network none of whose parameters has a value that hides a mistake (no zero bias, no unit gain)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: Any = ObjectGraph(features, layers)
        with torch.no_grad():
            for layer in network.gcn:
                layer.norm.weight.uniform_(0.5, 1.5)
                layer.norm.bias.uniform_(-0.5, 0.5)
    return network.eval().requires_grad_(False)


def draw(*shape: int, seed: int = 1, scale: float = 1.0) -> Any:
    """Features as a ReLU and a mean give them: not negative."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).abs().float() * scale


def published(network: Any, objects: Any) -> tuple[Array, Array]:
    """The published formula in float64 for one image's objects ``(n, D)``: the vector and the adjacency."""
    weights = {k: v.double().numpy() for k, v in network.state_dict().items()}
    x: Array = objects.double().numpy()
    queries = x @ weights["wq.weight"].T + weights["wq.bias"]
    keys = x @ weights["wk.weight"].T + weights["wk.bias"]
    squares = (queries @ keys.T) ** 2
    adjacency: Array = squares / np.maximum(np.abs(squares).sum(1, keepdims=True), 1e-12)
    for layer in range(len(network.gcn)):
        x = adjacency @ (x @ weights[f"gcn.{layer}.weight"])
        centred = x - x.mean(1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
        x = np.maximum(x * weights[f"gcn.{layer}.norm.weight"] + weights[f"gcn.{layer}.norm.bias"], 0)
    return x.mean(0), adjacency


def test_the_size_is_the_published_one() -> None:
    # 16,789,504 parameters and 0.854 GMAC for 50 objects: the published model's, counted.
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = ObjectGraph()
        assert network.width == 2048
        assert sum(p.numel() for p in network.parameters()) == 16_789_504
        with FlopCounterMode(display=False) as counter:
            assert network(torch.zeros(1, 50, 2048), torch.ones(1, 50)).shape == (1, 2048)
    by_hand = 4 * 50 * 2048 * 2048 + 3 * 50 * 50 * 2048  # q, k, W, W; q·kᵀ, A·x, A·x
    assert counter.get_total_flops() / 2 == by_hand
    assert round(by_hand / 1e9, 3) == 0.854


def test_the_parameters_have_the_published_names_and_shapes() -> None:
    shapes = {k: tuple(v.shape) for k, v in ObjectGraph(8).state_dict().items()}
    linear = {f"{w}.{p}": (8, 8) if p == "weight" else (8,) for w in ("wq", "wk") for p in ("weight", "bias")}
    layers = {f"gcn.{i}.weight": (8, 8) for i in (0, 1)}
    norms = {f"gcn.{i}.norm.{p}": (8,) for i in (0, 1) for p in ("weight", "bias")}
    assert shapes == linear | layers | norms


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_the_published_formula(layers: int, scale: float) -> None:
    network, objects = seeded(layers=layers), draw(3, 10, WIDTH, scale=scale)
    assert len(network.gcn) == layers
    found = network.double()(objects.double(), torch.ones(3, 10))
    for row in range(3):
        wanted, _ = published(network, objects[row])
        assert wanted.max() > 0.1
        np.testing.assert_allclose(found[row].numpy(), wanted, rtol=0, atol=1e-12)
    single = seeded(layers=layers)(objects, torch.ones(3, 10))
    np.testing.assert_allclose(single.numpy(), found.numpy(), rtol=0, atol=1e-4)


def test_the_scaled_adjacency_is_the_plain_one() -> None:
    scores = np.random.default_rng(2).normal(size=(6, 50, 50)) * np.logspace(-6, 6, 6)[:, None, None]
    scores[3, 4] = 0.0
    scores[4, :, 7] *= 1e6
    squares = scores.astype(np.longdouble) ** 2
    wanted = squares / np.maximum(squares.sum(-1, keepdims=True), np.longdouble(1e-12))
    found = adjacency_from_scores(torch.from_numpy(scores)).numpy()
    np.testing.assert_allclose(found, wanted.astype(np.float64), rtol=1e-15, atol=0)


@pytest.mark.parametrize("scale", [1e-9, 1e-7, 3e-7, 6e-7])
def test_the_published_floor_is_kept(scale: float) -> None:
    scores = np.random.default_rng(3).normal(size=(4, 4)) * scale
    plain = scores**2 / np.maximum((scores**2).sum(-1, keepdims=True), 1e-12)
    assert (plain.sum(-1) < 0.999).any()
    unit = torch.from_numpy(np.random.default_rng(4).uniform(1e-5, 1e5, size=(1, 4, 1)))
    found = adjacency_from_scores(torch.from_numpy(scores)[None] / unit, (unit,))
    np.testing.assert_allclose(found[0].numpy(), plain, rtol=1e-13)


@pytest.mark.parametrize(("gain", "total"), [(1.0, 1.01), (1e-4, 0.9)], ids=["plain", "below-the-floor"])
def test_queries_and_keys_cancel(gain: float, total: float) -> None:
    network, objects = seeded(), draw(2, 12, WIDTH, scale=5.0)
    for linear in (network.wq, network.wk):
        linear.weight.mul_(gain)
        linear.bias.mul_(gain)
    found = network.double().adjacency(objects.double(), torch.ones(2, 12))
    for row in range(2):
        _, wanted = published(network, objects[row])
        assert wanted.sum(1).min() <= total
        np.testing.assert_allclose(found[row].numpy(), wanted, rtol=1e-11, atol=1e-18)


def loud(scale: float) -> tuple[Any, Any]:
    """A network of half-precision weights and half-precision objects whose scores leave half precision."""
    return seeded(64).half(), draw(2, 50, 64, scale=scale).half()


@pytest.mark.parametrize("scale", [8.0, 1000.0])
def test_half_precision_holds_what_its_squares_do_not(scale: float) -> None:
    network, objects = loud(scale)
    queries, keys = network.wq(objects), network.wk(objects)
    assert queries.isfinite().all()
    assert keys.isfinite().all()
    scores = queries @ keys.transpose(1, 2)
    # The planted fault: the plain formula in half precision.
    assert scores.abs().max() > 255
    assert not torch.nn.functional.normalize(scores**2, p=1, dim=-1).isfinite().all()
    if scale > 100:  # even the scores overflow
        assert not scores.isfinite().all()
    found = network(objects, torch.ones(2, 50).half())
    edges = network.adjacency(objects, torch.ones(2, 50).half())
    assert found.dtype == torch.float16
    for row in range(2):
        wanted, adjacency = published(network, objects[row])
        # Half precision rounds by 2^-11; a few such steps lie between input and output.
        np.testing.assert_allclose(edges[row].double().numpy(), adjacency, rtol=5e-3, atol=1e-4)
        np.testing.assert_allclose(found[row].double().numpy(), wanted, rtol=0, atol=4e-3)


def test_half_precision_holds_the_largest_queries_and_keys() -> None:
    network = ObjectGraph(2048, 1).half().requires_grad_(False)
    for linear in (network.wq, network.wk):
        linear.weight.zero_()
        linear.bias.fill_(60_000.0)
    edges = network.adjacency(torch.ones(1, 2, 2048).half(), torch.ones(1, 2))
    assert edges.tolist() == [[[0.5, 0.5], [0.5, 0.5]]]


def test_absent_objects_are_left_out_exactly() -> None:
    network = seeded().double()
    rng = np.random.default_rng(5)
    counts = (0, 1, 7, 50)
    objects = draw(4, 50, WIDTH).double()
    garbage = torch.from_numpy(rng.normal(size=(4, 50, WIDTH)) * 1e30)
    present = torch.zeros(4, 50)
    for row, n in enumerate(counts):
        present[row, rng.permutation(50)[:n]] = 1.0
    mixed = torch.where(present[..., None] > 0, objects, garbage)
    found, edges = network(mixed, present), network.adjacency(mixed, present)
    for row, n in enumerate(counts):
        there = present[row] > 0
        if n:
            vector, adjacency = published(network, objects[row][there])
            np.testing.assert_allclose(found[row].numpy(), vector, rtol=0, atol=1e-12)
            np.testing.assert_allclose(edges[row][there][:, there].numpy(), adjacency, rtol=1e-12, atol=1e-18)
        else:
            assert found[row].tolist() == [0.0] * WIDTH
        assert (edges[row][~there] == 0).all()
        assert (edges[row][:, ~there] == 0).all()
    # Whatever stands in the absent rows: not one bit of the result depends on it.
    for value in (0.0, 1e300, float("inf"), float("nan")):
        filled = torch.where(present[..., None] > 0, objects, value)
        assert torch.equal(network(filled, present), found)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_nothing_present_is_a_zero_vector(dtype: str) -> None:
    kind = getattr(torch, dtype)
    objects = torch.full((2, 5, WIDTH), 6e4, dtype=kind)
    found = seeded().to(kind)(objects, torch.zeros(2, 5, dtype=kind))
    assert found.dtype == kind
    assert torch.equal(found, torch.zeros(2, WIDTH, dtype=kind))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_objects_without_any_edge_are_the_published_zero_rows(dtype: str) -> None:
    network = seeded()
    network.wk.weight.zero_()
    network.wk.bias.zero_()
    objects = draw(1, 6, WIDTH)
    found = network.to(getattr(torch, dtype))(objects.to(getattr(torch, dtype)), torch.ones(1, 6))
    wanted, adjacency = published(network, objects[0])
    assert not adjacency.any()
    np.testing.assert_allclose(found[0].double().numpy(), wanted, rtol=0, atol=2e-3)


def test_importance_is_the_weighted_in_degree() -> None:
    network, objects = seeded().double(), draw(2, 9, WIDTH).double()
    present = torch.ones(2, 9)
    present[1, 2:6] = 0
    found = network.importance(objects, present)
    _, whole = published(network, objects[0])
    np.testing.assert_allclose(found[0].numpy(), whole.sum(0), rtol=1e-12)
    assert found[0].std() > 0.01
    there = present[1] > 0
    _, part = published(network, objects[1][there])
    np.testing.assert_allclose(found[1][there].numpy(), part.sum(0), rtol=1e-12)
    assert found[1][~there].tolist() == [0.0] * 4
    np.testing.assert_allclose(found.sum(1).numpy(), [9.0, 5.0], rtol=1e-12)


def test_a_row_of_zeros_is_an_absent_object() -> None:
    objects = torch.zeros(2, 3, 4)
    objects[0, 0, 3] = 1e-20
    objects[1, 2, 0] = -5.0
    assert torch.equal(present_rows(objects), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    assert present_rows(objects.half()).dtype == torch.float16


def full_form(state: dict[str, Any]) -> dict[str, Any]:
    """The published full model's keys around the same tensors, its LSTM and classifier shortened."""
    rest = {"cls.rnn.weight_ih_l0": torch.zeros(3, 2), "cls.fc1.weight": torch.zeros(2, 4)}
    return {f"graph.{k}": v for k, v in state.items()} | rest


@pytest.mark.parametrize("form", ["full", "bare"])
def test_both_published_forms_load(tmp_path: Path, form: str) -> None:
    source = seeded(8, seed=3)
    state = source.state_dict()
    path = tmp_path / "model.pt"
    torch.save({"model_state_dict": full_form(state), "epoch": 60} if form == "full" else dict(state), path)
    read, _ = read_checkpoint(path)
    network = ObjectGraph(8)
    load_weights(network, keys_from_object_graphs(read), path.name, IGNORED)
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "graph.wq.bias"}, "missing wq.bias"),
        (lambda s: s | {"graph.wv.weight": torch.zeros(1)}, "unexpected graph.wv.weight"),
        (lambda s: s | {"graph.gcn.0.bias": torch.zeros(1)}, "unexpected graph.gcn.0.bias"),
        (lambda s: s | {"wq.bias": torch.zeros(8)}, "unexpected graph.wq.bias"),
        (lambda s: s | {"graph.gcn.2.weight": torch.zeros(8, 8)}, "unexpected gcn.2.weight"),
        (lambda s: s | {"classes": torch.zeros(1)}, "unexpected classes"),
        (lambda s: s | {"graph.gcn.1.weight": torch.zeros(8, 9)}, r"mis-shaped gcn.1.weight \(8, 9\)"),
    ],
    ids=["missing", "other-linear", "layer-bias", "both-forms", "third-layer", "foreign", "shape"],
)
def test_keys_that_do_not_fit_are_named(change: Any, says: str) -> None:
    state = keys_from_object_graphs(change(full_form(seeded(8).state_dict())))
    with pytest.raises(CheckpointError, match=says):
        load_weights(ObjectGraph(8), state, "model.pt", IGNORED)


def test_the_classifier_is_left_out_only_on_purpose() -> None:
    state = keys_from_object_graphs(full_form(seeded(8).state_dict()))
    with pytest.raises(CheckpointError, match=r"unexpected cls\.fc1\.weight"):
        load_weights(ObjectGraph(8), state, "model.pt")


def test_the_exported_graph_agrees() -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the exported graph")
    pytest.importorskip("onnxscript", reason="torch's exporter needs it")
    network = seeded()
    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 50, WIDTH), torch.ones(2, 50)),
            dynamo=True,
            opset_version=22,
            dynamic_shapes=({0: batch}, {0: batch}),
            verbose=False,
        )
    model = program.model_proto
    assert not {"NonZero", "If", "Loop"} & {node.op_type for node in model.graph.node}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    for count in (1, 3):
        objects = draw(count, 50, WIDTH, scale=4.0)
        present = torch.from_numpy(np.random.default_rng(count).integers(0, 2, (count, 50))).float()
        present[-1] = 0.0
        objects[present == 0] = 1e38
        inputs = {names[0]: objects.numpy(), names[1]: present.numpy()}
        (found,) = session.run(None, inputs)
        np.testing.assert_allclose(found, network(objects, present).numpy(), rtol=0, atol=1e-5)
        assert (found[-1] == 0).all()
