"""The ensemble as one torch module: uint8 images in, every tap out. It is the reference and what is exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from vsa_rt.errors import RecipeError, UsageError
from vsa_rt.export.backbones import LoadedBackbone, load_backbone
from vsa_rt.export.head import head_tap_records, head_taps
from vsa_rt.export.head_file import brings_head, load_head, random_head
from vsa_rt.export.random_weights import Samples
from vsa_rt.export.transforms import Transform, reference_transform
from vsa_rt.export.trunk import Trunk
from vsa_rt.manifest import CheckpointRecord, TapRecord
from vsa_rt.recipe import Recipe, needed_backbones


class Ensemble(nn.Module):
    """Backbones, concatenation and head.

    Args:
        recipe: Wiring and task.
        backbones: Each one after what it reads.
        head: Features to logits.
    """

    def __init__(self, recipe: Recipe, backbones: list[LoadedBackbone], head: nn.Module) -> None:
        super().__init__()
        self.recipe = recipe
        self.trunk = Trunk(backbones)
        self.inputs = self.trunk.inputs
        self.head = head
        widths = {b.name: b.width for b in backbones}
        self.taps = [
            *(
                TapRecord(name=b.name, width=b.width, kind="backbone", reads=self.trunk.same.get(b.reads, ""))
                for b in self.trunk.computed
            ),
            TapRecord(name="features", width=sum(widths[n] for n in recipe.head.features), kind="features"),
            *head_tap_records(recipe),
        ]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Every tap, in the order of ``taps``, for one batch of every input, in the order of ``inputs``."""
        given = {record.name: tensor for record, tensor in zip(self.inputs, inputs, strict=True)}
        found = self.trunk(given)
        used = [found[self.trunk.same[name]] for name in self.recipe.head.features]
        if self.recipe.head.unit_norm:
            used = [functional.normalize(f, dim=1) for f in used]
        features = torch.cat(used, 1)
        return (*found.values(), features, *head_taps(self.head, features, self.recipe))


@dataclass(frozen=True)
class LoadedEnsemble:
    """An ensemble with what is known about its parts.

    Attributes:
        module: In evaluation mode.
        transforms: Input name to the weights' own transform.
        checkpoints: Backbone name, or ``head``, to where its weights came from.
        head_file: Bytes of the head's file.
    """

    module: Ensemble
    transforms: dict[str, Transform]
    checkpoints: dict[str, CheckpointRecord]
    head_file: bytes

    def prepare(self, picture: Image.Image) -> dict[str, NDArray[np.uint8]]:
        """Every image input ``(H, W, 3)`` of one upright RGB picture, by the weights' own transforms."""
        return {name: transform(picture) for name, transform in self.transforms.items()}

    def run(self, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Every tap of one batch, computed eagerly in float32."""
        with torch.inference_mode():
            taps = self.module(*(torch.from_numpy(inputs[i.name]) for i in self.module.inputs))
        return {t.name: value.numpy() for t, value in zip(self.module.taps, taps, strict=True)}


def load_backbones(
    recipe: Recipe, folder: Path, weights: dict[str, Path], random_seed: int | None = None
) -> list[LoadedBackbone]:
    """Every backbone that a recipe's head needs, with its weights, each one after what it reads.

    Raises:
        UsageError: ``weights`` names a backbone that the recipe does not have.
    """
    if recipe.graph is not None:
        raise RecipeError(
            "key `graph`: this recipe is for an ONNX file: vsa-rt build MODEL.onnx --recipe FILE"
        )
    known = [b.name for b in recipe.backbones]
    foreign = sorted(weights.keys() - {*known, "head"})
    if foreign:
        raise UsageError(f"--weights {foreign[0]}=…: the recipe has {', '.join(known)} and head")
    needed = needed_backbones(recipe)
    idle = sorted(weights.keys() - {b.name for b in needed} - {"head"})
    if idle:
        raise UsageError(
            f"--weights {idle[0]}=…: the recipe computes nothing with {idle[0]!r}: what it gives is an input"
        )
    samples = Samples()
    return [load_backbone(b, folder, weights.get(b.name), random_seed, samples) for b in needed]


def load_ensemble(
    recipe: Recipe, folder: Path, weights: dict[str, Path] | None = None, random_seed: int | None = None
) -> LoadedEnsemble:
    """Build a recipe's ensemble with its weights.

    Args:
        recipe: What to build.
        folder: The recipe's folder, for relative paths.
        weights: Backbone name, or ``head``, to a file to use instead of the recipe's.
        random_seed: Seeded weights everywhere that ``weights`` names no file.

    Raises:
        CheckpointError: Weights are absent or do not fit.
        RecipeError: An architecture or its preprocessing is not supported.
    """
    weights = weights or {}
    backbones = load_backbones(recipe, folder, weights, random_seed)
    brought = brings_head(recipe, backbones)
    if random_seed is not None and "head" not in weights and recipe.head.kind != "units" and not brought:
        head, head_record, data = random_head(recipe, backbones, random_seed)
    else:
        head, head_record, data = load_head(recipe, folder, backbones, weights.get("head"))
    module = Ensemble(recipe, backbones, head).eval()
    by_resize = {b.resize: b.made.transform for b in backbones}
    return LoadedEnsemble(
        module=module,
        transforms={
            i.name: by_resize.get(i.resize) or reference_transform(i.resize)
            for i in module.inputs
            if i.resize is not None
        },
        checkpoints={b.name: b.record for b in backbones} | {"head": head_record},
        head_file=data,
    )
