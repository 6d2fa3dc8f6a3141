"""The backbones as one torch module: images and ready tensors in, every backbone's features out."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from vsa_rt.architecture import ObjectGraphOptions
from vsa_rt.contracts import ResizeSpec
from vsa_rt.export.backbones import LoadedBackbone
from vsa_rt.export.checkpoint import hash_state
from vsa_rt.export.networks.object_graph import ObjectGraph, present_rows
from vsa_rt.export.networks.regions import CutRegions, grid_boxes, present_boxes
from vsa_rt.manifest import InputRecord
from vsa_rt.recipe import options_of


class Normalise(nn.Module):
    """uint8 ``(N, H, W, 3)`` to normalised float32 ``(N, 3, H, W)``: cast, layout, one scale and one shift."""

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        deviation = torch.tensor(std, dtype=torch.float64).view(1, 3, 1, 1)
        average = torch.tensor(mean, dtype=torch.float64).view(1, 3, 1, 1)
        # (p / 255 - mean) / std, folded in float64.
        self.register_buffer("scale", (1 / (255 * deviation)).float())
        self.register_buffer("shift", (-average / deviation).float())
        self.raw = bool((self.scale == 1).all()) and not bool(self.shift.any())

    def forward(self, image: Tensor) -> Tensor:
        """Normalise a batch. The cast comes first: TensorRT lets a uint8 input do nothing else."""
        pixels = image.to(torch.float32).permute(0, 3, 1, 2)
        return pixels if self.raw else pixels * self.scale + self.shift


class Regions(nn.Module):
    """Regions of a frame that one backbone wants another one to encode.

    Args:
        reader: The backbone that wants them.
        frame: The input that holds the whole image, warped.
        options: The reader's.
        size: Side of what the encoder takes.
        share: Share of a region's sides that the encoder sees.
    """

    boxes: Tensor

    def __init__(self, reader: str, frame: str, options: ObjectGraphOptions, size: int, share: float) -> None:
        super().__init__()
        self.reader, self.frame, self.count = reader, frame, options.count
        self.fixed = options.objects == "grid"
        self.cut = CutRegions(size, share)
        self.register_buffer("boxes", grid_boxes(options.count) if self.fixed else torch.empty(0))

    def _boxes(self, given: Mapping[str, Tensor]) -> Tensor:
        if self.fixed:
            return self.boxes.expand(given[self.frame].shape[0], -1, -1)
        return given["boxes"]

    def forward(self, given: Mapping[str, Tensor], normalise: nn.Module) -> Tensor:
        """The regions ``(N, K, 3, size, size)``, normalised as the encoder's own images."""
        crops: Tensor = self.cut(normalise(given[self.frame]), self._boxes(given))
        return crops.reshape(-1, self.count, *crops.shape[1:])

    def present(self, given: Mapping[str, Tensor]) -> Tensor:
        """Which of them are there, ``(N, K)`` of 0 and 1."""
        return present_boxes(self._boxes(given))


def identity_of(backbone: LoadedBackbone, read: str) -> str:
    """What makes two backbones one: architecture, options, preprocessing, weights, and what they read.

    Args:
        backbone: With its weights.
        read: The identity of the backbone that it reads, or empty.
    """
    entry = backbone.entry
    parts = [
        entry.architecture,
        msgspec.json.encode(options_of(entry)).decode(),
        msgspec.json.encode(backbone.resize).decode(),
        repr((backbone.made.mean, backbone.made.std)),
        hash_state(backbone.network),
        read,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def same_backbones(backbones: Sequence[LoadedBackbone]) -> dict[str, str]:
    """Every backbone's name to the first one that computes the same: those are computed once."""
    first: dict[str, str] = {}
    same: dict[str, str] = {}
    identities: dict[str, str] = {}
    architectures = [b.entry.architecture for b in backbones]
    for backbone in backbones:
        if architectures.count(backbone.entry.architecture) == 1:  # nothing to compare with
            identity = backbone.name
        else:
            identity = identity_of(backbone, identities.get(backbone.reads, ""))
        identities[backbone.name] = identity
        same[backbone.name] = first.setdefault(identity, backbone.name)
    return same


def image_name(spec: ResizeSpec, taken: Sequence[str]) -> str:
    """A graph input's name: its size, and a number if that is taken."""
    name = f"image_{spec.height}x{spec.width}"
    twins = sum(t.split(".")[0] == name for t in taken)
    return f"{name}.{twins + 1}" if twins else name


class Trunk(nn.Module):
    """Backbones that read images, ready tensors, or each other.

    Args:
        backbones: Each one after what it reads.

    Attributes:
        same: Every backbone's name to the one that is computed in its place, often itself.
        computed: Those that are computed, in order: the taps.
        inputs: What the graph takes, in order.
    """

    def __init__(self, backbones: Sequence[LoadedBackbone]) -> None:
        super().__init__()
        self.same = same_backbones(backbones)
        self.computed = [b for b in backbones if self.same[b.name] == b.name]
        self.inputs: list[InputRecord] = []
        self._image_of: dict[ResizeSpec, str] = {}
        for backbone in self.computed:
            if backbone.resize is not None:
                self._add_image(backbone.resize)
        self.normalise = nn.ModuleList(Normalise(b.made.mean, b.made.std) for b in self.computed)
        self.networks = nn.ModuleList(b.network for b in self.computed)
        self.regions = nn.ModuleList(nn.ModuleList(self._regions_through(b)) for b in self.computed)
        for backbone in self.computed:
            if backbone.given is not None:
                self._add_tensor(*backbone.given)

    def _add_image(self, spec: ResizeSpec) -> str:
        if spec not in self._image_of:
            name = self._image_of[spec] = image_name(spec, list(self._image_of.values()))
            self.inputs.append(
                InputRecord(name=name, dtype="uint8", shape=[spec.height, spec.width, 3], resize=spec)
            )
        return self._image_of[spec]

    def _add_tensor(self, name: str, shape: list[int]) -> None:
        if all(i.name != name for i in self.inputs):
            self.inputs.append(InputRecord(name=name, dtype="float32", shape=shape, rows=True))

    def _regions_through(self, encoder: LoadedBackbone) -> list[Regions]:
        """The regions that other backbones want this one to encode."""
        found = []
        for reader in self.computed:
            options = options_of(reader.entry)
            if not isinstance(options, ObjectGraphOptions) or self.same.get(reader.reads) != encoder.name:
                continue
            side = options.frame
            frame = self._add_image(ResizeSpec(height=side, width=side, fit="warp", kernel="bilinear"))
            network: Any = encoder.network
            found.append(Regions(reader.name, frame, options, network.view_size, network.view_share))
        return found

    @property
    def cuts_regions(self) -> bool:
        """Whether an image brings dozens of regions with it."""
        return any(isinstance(m, Regions) for m in self.modules())

    def needed_for(self, names: Collection[str]) -> set[str]:
        """The computed backbones that these need, themselves included."""
        needed: set[str] = set()
        for backbone in reversed(self.computed):
            if backbone.name in names or backbone.name in needed:
                needed |= {backbone.name} | ({self.same[backbone.reads]} if backbone.reads else set())
        return needed

    def forward(self, given: Mapping[str, Tensor], only: Collection[str] | None = None) -> dict[str, Tensor]:
        """Features ``(N, width)`` by backbone.

        Args:
            given: Every input: images ``(N, H, W, 3)`` uint8, ready tensors ``(N, rows, width)`` float32.
            only: Backbones to compute, with all that they need; by default every one.
        """
        only = {b.name for b in self.computed} if only is None else only
        found: dict[str, Tensor] = {}
        #: Reader's name to its objects' features (N, K, D) and which of them are there (N, K).
        objects: dict[str, tuple[Tensor, Tensor]] = {}
        regions: Any
        for backbone, normalise, network, regions in zip(
            self.computed, self.normalise, self.networks, self.regions, strict=True
        ):
            if backbone.name not in only:
                continue
            if backbone.resize is not None:
                image = normalise(given[self._image_of[backbone.resize]])
                wanted = [r for r in regions if r.reader in only]
                found[backbone.name] = self._encode(network, normalise, wanted, image, given, objects)
            elif isinstance(network, ObjectGraph):
                if backbone.name not in objects:
                    rows = given["objects"]
                    objects[backbone.name] = (rows, present_rows(rows))
                found[backbone.name] = network(*objects[backbone.name])
            elif backbone.given is not None:
                found[backbone.name] = network(given[backbone.given[0]])
            else:
                found[backbone.name] = network(found[self.same[backbone.reads]])
        return found

    def _encode(
        self,
        network: Any,
        normalise: nn.Module,
        regions: Sequence[Regions],
        image: Tensor,
        given: Mapping[str, Tensor],
        objects: dict[str, tuple[Tensor, Tensor]],
    ) -> Tensor:
        """An image's own features; regions that others want go through the network in the same batch."""
        features: Tensor
        if not regions:
            features = network(image)
            return features
        # Views come one after the other, each of all images; regions image by image. Image by image, then, so that
        # every cut is along an axis of known length.
        own = network.view_count
        views = network.views(image).unflatten(0, (own, -1)).transpose(0, 1)
        together = torch.cat([views, *(r(given, normalise) for r in regions)], 1)
        total = together.shape[1]
        encoded = network.encode(together.flatten(0, 1)).unflatten(0, (-1, total))
        start = own
        for wanted in regions:
            objects[wanted.reader] = (encoded[:, start : start + wanted.count], wanted.present(given))
            start += wanted.count
        features = network.fold(encoded[:, :own].transpose(0, 1).flatten(0, 1))
        return features
