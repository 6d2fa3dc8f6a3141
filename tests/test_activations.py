"""Layers of networks: found by name, read once per photograph as the module returned them, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

for _name in ("torch", "timm"):
    pytest.importorskip(_name, reason="layers are those of torch networks")

import torch
from torch import Tensor, nn

from vsa_rt.contracts import ResizeSpec, Task
from vsa_rt.dataset import Photograph
from vsa_rt.errors import UsageError
from vsa_rt.export.backbones import LoadedBackbone
from vsa_rt.export.head import LinearHead
from vsa_rt.export.makers import Network
from vsa_rt.manifest import CheckpointRecord
from vsa_rt.pipeline.fitting.activations import LayerReader
from vsa_rt.pipeline.fitting.layers import Layer, find_layers
from vsa_rt.recipe import Backbone, Head, Recipe

SIDE = 12
HEAD = Head(kind="linear", features=["net"])
ENTRY = Backbone(name="net", architecture="timm:test_resnet")
RECIPE = Recipe(
    schema=1, name="toy", task=Task.BINARY, labels=["dark", "bright"], backbones=[ENTRY], head=HEAD
)


class Toy(nn.Module):
    """A network with one layer of every kind that a probe meets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.relu1 = nn.ReLU(inplace=True)
        self.blocks = nn.Sequential(nn.Conv2d(4, 2, 3), nn.ReLU())
        self.twice = nn.Dropout()
        self.views = nn.Identity()
        self.pair = nn.GRU(8, 4)
        self.idle = nn.Linear(2, 2)
        self.fc = nn.Linear(2 * (SIDE - 4) ** 2, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.twice(self.twice(self.blocks(self.relu1(self.conv1(image)))))
        self.views(torch.cat([x, x]))
        self.pair(x[0])
        features: Tensor = self.fc(x.flatten(1))
        return features


def backbone(network: nn.Module, name: str = "net", **made: Any) -> LoadedBackbone:
    resize = ResizeSpec(height=SIDE, width=SIDE, fit="warp", kernel="bilinear")
    network.eval().requires_grad_(False)
    entry = msgspec.structs.replace(ENTRY, name=name)
    return LoadedBackbone(
        entry, Network(network, 5, resize=resize, **made), CheckpointRecord(sha256=name, found="")
    )


@pytest.fixture(scope="module")
def toy() -> LoadedBackbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return backbone(Toy(), head_layer="fc8")


@pytest.fixture
def some(photographs: list[Path]) -> list[Photograph]:
    return [Photograph(path, None) for path in (photographs * 4)[:18]]


def read(reader: LayerReader, photographs: list[Photograph]) -> dict[str, NDArray[np.float32]]:
    found: dict[str, NDArray[np.float32]] = {}

    def take(start: int, layer: Layer, rows: NDArray[np.float32]) -> None:
        whole = found.setdefault(layer.name, np.zeros((len(photographs), reader.widths[layer]), np.float32))
        whole[start : start + len(rows)] = rows

    reader.stream(photographs, list(reader.widths), take)
    return found


# Names


@pytest.mark.parametrize(
    ("word", "backbone_name", "path"),
    [
        ("conv1", "net", "conv1"),
        ("net.conv1", "net", "conv1"),
        ("blocks.0", "net", "blocks.0"),
        ("net.blocks.0", "net", "blocks.0"),
        ("head", "", ""),
        ("fc8", "", ""),
    ],
)
def test_layers_are_found_by_name(toy: LoadedBackbone, word: str, backbone_name: str, path: str) -> None:
    assert find_layers([word], [toy], ["net"]) == [Layer(word, backbone_name, path)]


def test_layers_keep_the_order_in_which_they_are_asked_for(toy: LoadedBackbone) -> None:
    words = ["head", "blocks.1", "conv1", "blocks"]
    assert [layer.name for layer in find_layers(words, [toy], ["net"])] == words


def test_an_unknown_layer_is_answered_with_those_that_there_are(toy: LoadedBackbone) -> None:
    two = [toy, backbone(Toy(), "second")]

    def refused(word: str, backbones: list[LoadedBackbone]) -> str:
        with pytest.raises(UsageError) as caught:
            find_layers([word], backbones, ["net"])
        return str(caught.value)

    said = refused("conv2", [toy])
    assert said.startswith("--probe conv2: 'net' has no layer 'conv2'; near: conv1; there are conv1, relu1, ")
    assert "blocks (blocks.0 to blocks.1)" in said
    assert "fc8 (the head)" in said
    assert "has no layer 'blocks.7'" in refused("net.blocks.7", [toy])
    assert "the recipe has net, second: write BACKBONE.LAYER" in refused("conv1", two)
    assert "'second' has no layer 'fc8'" in refused("second.fc8", two)
    assert "names a backbone; write net.LAYER" in refused("net", two)
    wide = backbone(nn.Sequential(*(nn.Identity() for _ in range(50))))
    assert "18, 19 and 30 more" in refused("x", [wide])


@pytest.mark.parametrize("words", [["conv1", "conv1"], ["conv1", "net.conv1"], ["head", "fc8"]])
def test_a_layer_is_not_probed_twice(toy: LoadedBackbone, words: list[str]) -> None:
    with pytest.raises(UsageError, match=rf"--probe {words[1]}: this layer is named "):
        find_layers(words, [toy], ["net"])


def test_no_layer_is_no_probe(toy: LoadedBackbone) -> None:
    with pytest.raises(UsageError, match="names no layer"):
        find_layers([], [toy], ["net"])


# Numbers


def test_every_photograph_gives_a_row_as_the_module_returned_it(
    toy: LoadedBackbone, some: list[Photograph]
) -> None:
    layers = find_layers(["blocks.0", "conv1", "head"], [toy], ["net"])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        head = LinearHead(5, 2).requires_grad_(False)
    reader = LayerReader(RECIPE, [toy], layers, head)
    assert [reader.widths[layer] for layer in layers] == [2 * 8 * 8, 4 * 10 * 10, 2]
    found = read(reader, some)
    # The same, one image at a time and without hooks. What relu1 does to conv1's output in place comes later.
    assert found["conv1"].min() < 0
    network: Any = toy.network
    for place in (0, 17):
        rows = read(reader, [some[place]])
        conv1 = torch.from_numpy(rows["conv1"]).reshape(1, 4, 10, 10)
        inside = network.blocks[0](conv1.clamp(min=0))
        assert torch.allclose(torch.from_numpy(found["blocks.0"][place]), inside.flatten(), atol=1e-5)
        logits = head(network.fc(inside.clamp(min=0).flatten(1)))
        assert torch.allclose(torch.from_numpy(found["head"][place]), logits.flatten(), atol=1e-5)
        assert found["conv1"][place] == pytest.approx(rows["conv1"][0], abs=1e-5)


def test_networks_that_no_layer_needs_do_not_run(toy: LoadedBackbone, some: list[Photograph]) -> None:
    broken = backbone(nn.Sequential(nn.Linear(1, 1)), "second")
    layers = find_layers(["net.conv1"], [toy, broken], ["net", "second"])
    reader = LayerReader(RECIPE, [toy, broken], layers)
    assert [b.name for b in reader.used] == ["net"]
    assert read(reader, some)["net.conv1"].shape == (18, 400)


def test_hooks_do_not_stay(toy: LoadedBackbone, some: list[Photograph]) -> None:
    reader = LayerReader(RECIPE, [toy], find_layers(["conv1"], [toy], ["net"]))
    read(reader, some)
    assert not any(module._forward_hooks for module in toy.network.modules())


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("twice", "runs this layer several times per image"),
        ("views", r"a tensor \(4, 2, 8, 8\) for 2 images: several rows per image"),
        ("pair", "the layer gives a tuple"),
        ("idle", "has this layer but does not run it"),
    ],
)
def test_what_is_not_one_row_per_image_is_refused(toy: LoadedBackbone, word: str, reason: str) -> None:
    with pytest.raises(UsageError, match=rf"--probe {word}: .*{reason}"):
        LayerReader(RECIPE, [toy], find_layers([word], [toy], ["net"]))


def test_numbers_that_are_not_finite_name_the_photograph(
    some: list[Photograph], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaks(nn.Module):
        """Overflows where an image is bright."""

        def forward(self, image: Tensor) -> Tensor:
            return torch.exp(1e3 * image.flatten(1))[:, :5]

    net = backbone(nn.Sequential(Breaks()), std=(1.0, 1.0, 1.0))
    reader = LayerReader(RECIPE, [net], find_layers(["0"], [net], ["net"]))
    with pytest.raises(UsageError, match=r"--probe 0: .*\.(png|jpg) gives numbers that are not finite"):
        read(reader, some)
