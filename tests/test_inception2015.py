"""Inception of 2015: sizes and keys as published, and what it computes otherwise than torchvision's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vsa_rt.errors import CheckpointError

reason = "the network is built of torchvision's blocks"
torch = pytest.importorskip("torch", reason=reason)
inception = pytest.importorskip("torchvision.models.inception", reason=reason)

from torch.utils.flop_counter import FlopCounterMode

from vsa_rt.export.checkpoint import load_weights
from vsa_rt.export.networks.inception2015 import IGNORED, Inception2015, keys_from_fid

State = dict[str, Any]

#: Blocks whose pool branch is another than torchvision's, and the channels that this branch gives.
OTHER = {
    "Mixed_5b": 32,
    "Mixed_5c": 64,
    "Mixed_5d": 64,
    "Mixed_6b": 192,
    "Mixed_6c": 192,
    "Mixed_6d": 192,
    "Mixed_6e": 192,
    "Mixed_7b": 192,
    "Mixed_7c": 192,
}
#: Layers that compute the same, all others with weights, and their input channels.
SAME = {
    "Conv2d_1a_3x3": 3,
    "Conv2d_2a_3x3": 32,
    "Conv2d_2b_3x3": 32,
    "Conv2d_3b_1x1": 64,
    "Conv2d_4a_3x3": 80,
    "Mixed_6a": 288,
    "Mixed_7a": 768,
}
INPUTS = {"Mixed_5b": 192, "Mixed_5c": 256, "Mixed_5d": 288, "Mixed_7b": 1280, "Mixed_7c": 2048}


def torchvisions() -> Any:
    """torchvision's network with the published classifier, whose names the published port has."""
    return inception.Inception3(num_classes=1008, aux_logits=False, init_weights=False).eval()


@pytest.fixture(scope="module")
def network() -> Any:
    """Seeded weights and statistics, none of which is neutral."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Inception2015().eval().requires_grad_(False)
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.8, 1.2)
                module.bias.uniform_(-0.1, 0.3)
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.8, 1.2)
    return made


@pytest.fixture(scope="module")
def published(network: Any) -> State:
    """A state of the published structure: the network's, and a classifier."""
    state = dict(network.state_dict())
    return state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


@pytest.fixture(scope="module")
def twin(published: State) -> Any:
    """torchvision's network with the same weights."""
    made = torchvisions().requires_grad_(False)
    made.load_state_dict(published)
    return made


def noise(*shape: int) -> Any:
    return torch.from_numpy(np.random.default_rng(1).normal(size=shape).astype(np.float32))


def test_weights_and_operations_up_to_pool3() -> None:
    with torch.device("meta"):
        network, image = Inception2015().eval(), torch.zeros(1, 3, 299, 299)
    with FlopCounterMode(display=False) as counter:
        features = network(image)
    assert tuple(features.shape) == (1, Inception2015.width) == (1, 2048)
    assert sum(p.numel() for p in network.parameters()) == 21_785_568
    assert round(counter.get_total_flops() / 2 / 1e9, 2) == 5.71  # a multiply-add is two operations


def test_keys_and_shapes_are_the_published_ones_without_the_classifier() -> None:
    with torch.device("meta"):
        own, wanted = Inception2015().state_dict(), torchvisions().state_dict()
    assert len(wanted) == 566
    assert {k: v.shape for k, v in wanted.items() if not k.startswith(IGNORED)} == {
        k: v.shape for k, v in own.items()
    }
    assert len(own) == 564
    assert sum(k.endswith("num_batches_tracked") for k in own) == 94


@pytest.mark.parametrize("counters", [True, False], ids=["with-counters", "without"])
def test_a_published_state_is_loaded_whole(network: Any, published: State, counters: bool) -> None:
    given = {k: v for k, v in published.items() if counters or not k.endswith("num_batches_tracked")}
    fresh = Inception2015()
    load_weights(fresh, keys_from_fid(given), "file", IGNORED)
    wanted = network.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in fresh.state_dict().items())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda s: {k: v for k, v in s.items() if k != "Mixed_7c.branch_pool.bn.running_var"},
            r"missing Mixed_7c\.branch_pool\.bn\.running_var$",
        ),
        (lambda s: s | {"AuxLogits.fc.weight": torch.zeros(1)}, r"unexpected AuxLogits\.fc\.weight$"),
        (
            lambda s: s | {"Mixed_5b.branch1x1.conv.weight": torch.zeros(64, 192)},
            r"mis-shaped Mixed_5b\.branch1x1\.conv\.weight \(64, 192\) instead of \(64, 192, 1, 1\)$",
        ),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_keys_that_do_not_fit_are_named(
    published: State, change: Callable[[State], State], says: str
) -> None:
    with torch.device("meta"):
        network = Inception2015()
    with pytest.raises(CheckpointError, match=says):
        load_weights(network, keys_from_fid(change(published)), "file", IGNORED)


@pytest.mark.parametrize("name", SAME)
def test_a_layer_that_is_torchvisions(network: Any, twin: Any, name: str) -> None:
    maps = noise(2, SAME[name], 9, 9)
    with torch.inference_mode():
        assert torch.equal(getattr(network, name)(maps), getattr(twin, name)(maps))


@pytest.mark.parametrize("name", OTHER)
def test_a_block_differs_from_torchvisions_in_its_pool_branch_alone(
    network: Any, twin: Any, name: str
) -> None:
    maps = noise(2, INPUTS.get(name, 768), 7, 7)
    with torch.inference_mode():
        ours, theirs = getattr(network, name)(maps), getattr(twin, name)(maps)
    assert ours.shape == theirs.shape
    before = ours.shape[1] - OTHER[name]
    assert torch.equal(ours[:, :before], theirs[:, :before])
    differs = (ours - theirs)[:, before:].abs().amax((0, 1)) > 1e-3
    if name == "Mixed_7c":  # maximum against mean: everywhere
        assert bool(differs.all())
    else:  # where the window reaches over the edge, and nowhere else
        edge = torch.ones(7, 7, dtype=torch.bool)
        edge[1:-1, 1:-1] = False
        assert torch.equal(differs, edge)


@pytest.mark.parametrize(
    ("name", "channels", "wanted"),
    [
        # Of 1 2 3 / 4 5 6 / 7 8 9: a corner sees 4 cells, an edge 6, the centre 9.
        ("Mixed_5b", 192, [[3, 3.5, 4], [4.5, 5, 5.5], [6, 6.5, 7]]),
        ("Mixed_7b", 1280, [[3, 3.5, 4], [4.5, 5, 5.5], [6, 6.5, 7]]),
        ("Mixed_7c", 2048, [[5, 6, 6], [8, 9, 9], [8, 9, 9]]),
    ],
)
def test_padding_is_not_in_the_divisor(name: str, channels: int, wanted: list[list[float]]) -> None:
    block = getattr(Inception2015().eval().requires_grad_(False), name)
    block.branch_pool.conv.weight.zero_()
    block.branch_pool.conv.weight[0, 0, 0, 0] = 1  # its first channel is what the pool gives of the first one
    maps = torch.zeros(1, channels, 3, 3)
    maps[0, 0] = torch.arange(1.0, 10).reshape(3, 3)
    with torch.inference_mode():
        pooled = block(maps)[0, -OTHER[name]]
    # A fresh batch normalisation has variance 1, and the published eps is 1e-3.
    np.testing.assert_allclose(pooled.numpy(), np.array(wanted) / math.sqrt(1.001), rtol=1e-6)


def test_the_layers_stand_in_torchvisions_order(
    network: Any, twin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noise(1, 3, 107, 107)  # the last map is 2 x 2
    with torch.inference_mode():
        ours = network(image)
    functional, calls = torch.nn.functional, []
    average, maximum = functional.avg_pool2d, functional.max_pool2d

    def pool(maps: Any, **options: int) -> Any:
        calls.append(maps.shape[1])
        last = len(calls) == len(OTHER)
        return maximum(maps, **options) if last else average(maps, **options, count_include_pad=False)

    monkeypatch.setattr(functional, "avg_pool2d", pool)
    monkeypatch.setattr(twin, "fc", torch.nn.Identity())
    with torch.inference_mode():
        theirs = twin(image)
    assert calls == [192, 256, 288, 768, 768, 768, 768, 1280, 2048]
    assert float(ours.std()) > 0.1  # there is something to compare
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-4)


def test_seeded_weights_let_a_signal_through() -> None:
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(3)
        features = Inception2015().eval()(noise(2, 3, 75, 75))
    assert 0.01 < float(features.std()) < 100
    assert float((features[0] - features[1]).abs().max()) > 0.01


def test_the_exported_pools_compute_the_same(network: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the exported graph")
    pytest.importorskip("onnxscript", reason="torch exports with it")
    last = torch.nn.Sequential(network.Mixed_7b, network.Mixed_7c)  # an average pool and the maximum
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            last,
            (noise(2, 1280, 4, 4),),
            dynamo=True,
            opset_version=22,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
            verbose=False,
        )
    operators = {node.op_type for node in program.model_proto.graph.node}
    assert operators == {"Conv", "Relu", "Concat", "AveragePool", "MaxPool"}
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for batch in (1, 3):
        maps = noise(batch, 1280, 4, 4)
        with torch.inference_mode():
            wanted = last(maps).numpy()
        [found] = session.run(None, {session.get_inputs()[0].name: maps.numpy()})
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
