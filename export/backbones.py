"""Backbones: networks with their weights, in their place in a recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from vsa_rt.architecture import ARCHITECTURES, family_of, views_of
from vsa_rt.contracts import ResizeSpec
from vsa_rt.errors import CheckpointAbsent
from vsa_rt.export.checkpoint import State, load_weights
from vsa_rt.export.formats import FORMATS, read_checkpoint
from vsa_rt.export.makers import Network, make_network
from vsa_rt.export.random_weights import Samples, randomise, seeded
from vsa_rt.export.transforms import reference_transform
from vsa_rt.locate import locate, where_found
from vsa_rt.manifest import CheckpointRecord
from vsa_rt.recipe import Backbone, options_of, seen_once, tensor_input, upstream


@dataclass(frozen=True)
class LoadedBackbone:
    """A network with its weights, and its place in the recipe.

    Attributes:
        entry: The recipe's words for it.
        made: The network and its preprocessing.
        record: Where the weights came from.
        head: Weights of a dense layer above the network that its checkpoint holds: ``weight`` and ``bias``; empty
            where it holds none.
    """

    entry: Backbone
    made: Network
    record: CheckpointRecord
    head: State = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The tap's name."""
        return self.entry.name

    @property
    def network(self) -> nn.Module:
        """Its input, normalised ``(N, 3, H, W)`` float32 for one that reads images, to ``(N, width)``."""
        return self.made.module

    @property
    def width(self) -> int:
        """Length of the feature vector, of all views together."""
        return self.made.width

    @property
    def views(self) -> int:
        """Views of an image that its features hold one after the other."""
        return views_of(options_of(self.entry)).count

    @property
    def resize(self) -> ResizeSpec | None:
        """How the host makes the image; ``None`` for a network that reads features."""
        return self.made.resize

    @property
    def reads(self) -> str:
        """The backbone that has to run before it; empty for none."""
        return upstream(self.entry)

    @property
    def given(self) -> tuple[str, list[int]] | None:
        """Name and shape of the ready tensor that it takes."""
        return tensor_input(self.entry)


class Encoder(Protocol):
    """What a network offers through which regions of an image go as images do.

    Its views are folded into one vector inside the network, and come one after the other, each of all images. Views that
    the head scores (``contracts.Views``) are another thing: there an image's own lie together.

    Attributes:
        view_size: Side of what ``encode`` takes.
        view_share: Share of an image's sides that one view covers.
        view_count: Views of one image.
    """

    view_size: int
    view_share: float
    view_count: int

    def views(self, image: Tensor) -> Tensor:
        """Views ``(V * N, 3, view_size, view_size)`` of images, one view of all of them after the other."""
        ...

    def encode(self, views: Tensor) -> Tensor:
        """Features ``(M, width)`` of views or regions."""
        ...

    def fold(self, features: Tensor) -> Tensor:
        """An image's features ``(N, width)`` from those of its views, in the order of ``views``."""
        ...


#: Keys, after renaming, of a dense layer above the network that its checkpoint holds, and of its tensors.
_ABOVE = {"head.weight": "weight", "head.bias": "bias"}


def _load_file(
    backbone: Backbone, network: Network, folder: Path, weights: Path | None
) -> tuple[CheckpointRecord, State]:
    """Load the checkpoint's tensors, all or none; what belongs to the layer above is handed back."""
    name, checkpoint = backbone.name, backbone.checkpoint
    if weights is None and not checkpoint.path:
        advice = f" {checkpoint.obtain}" if checkpoint.obtain else ""
        raise CheckpointAbsent(
            f"key `backbones.{name}.checkpoint`: missing; name a file with --weights {name}=PATH, or take seeded "
            f"weights with --random-weights SEED.{advice}"
        )
    path = weights or locate(checkpoint.path, folder, f"backbones.{name}.checkpoint.path", checkpoint.obtain)
    known = FORMATS[checkpoint.format or ARCHITECTURES[family_of(backbone.architecture)].formats[0]]
    state, sha256 = read_checkpoint(path, known, "" if weights else checkpoint.sha256)
    module = network.weights or network.module
    state = known.rename(state, module)
    taken = _ABOVE if network.head_layer else {}
    above = {taken[k]: v for k, v in state.items() if k in taken}
    below = {k: v for k, v in state.items() if k not in taken}
    load_weights(module, below, f"key `backbones.{name}.checkpoint`: {path}", network.ignored)
    record = CheckpointRecord(sha256=sha256, found=where_found(path, "" if weights else checkpoint.path))
    return record, above


def _network(backbone: Backbone, read: int) -> Network:
    """A network without weights, with the recipe's own resize where it has one."""
    network = make_network(backbone, read)
    if network.resize is None or (backbone.resize is None and network.transform is not None):
        return network
    resize = backbone.resize or network.resize
    return dataclasses.replace(network, resize=resize, transform=reference_transform(resize))


def _random(backbone: Backbone, read: int, samples: Samples) -> tuple[Network, str]:
    """A network with seeded weights, and their hash: the same ones through however many views it looks."""
    once = seen_once(backbone)
    network = _network(once, read)
    sha256 = randomise(network.module, samples.inputs(once, network), network.weights is None)
    if once == backbone:
        return network, sha256
    drawn = network.module.state_dict()
    network = _network(backbone, read)
    network.module.load_state_dict(drawn)
    return network, sha256


def load_backbone(
    backbone: Backbone,
    folder: Path,
    weights: Path | None = None,
    random_seed: int | None = None,
    samples: Samples | None = None,
) -> LoadedBackbone:
    """Build a network, load its weights and derive its preprocessing.

    Args:
        backbone: The recipe's entry.
        folder: The recipe's folder.
        weights: A file to use instead of the recipe's.
        random_seed: Seeded weights instead of any file.
        samples: What the backbones before it gave; needed by one that reads features.

    Returns:
        The network in evaluation mode.

    Raises:
        RecipeError: No such architecture, or preprocessing that the host does not have.
        CheckpointError: The weights are absent or do not fit.
    """
    samples = samples or Samples()
    read = upstream(backbone)
    width = samples.width(read) if read else 0
    above: State = {}
    with seeded(random_seed or 0, backbone.name):
        if weights is None and random_seed is not None:
            network, sha256 = _random(backbone, width, samples)
            record = CheckpointRecord(sha256=sha256, found="random weights", random_seed=random_seed)
        else:
            network = _network(backbone, width)
            record, above = _load_file(backbone, network, folder, weights)
    network.module.eval().requires_grad_(False)
    if ARCHITECTURES[family_of(backbone.architecture)].view_options:
        # Views that the head scores; those of ResNet-152, which it folds itself, are its own affair.
        views = views_of(options_of(backbone)).count
        if network.width % views or getattr(network.module, "view_count", None) != views:
            raise RuntimeError(
                f"{backbone.architecture}: {views} views by its options, another number by its network"
            )
    loaded = LoadedBackbone(backbone, network, record, above)
    samples.add(loaded)
    return loaded
