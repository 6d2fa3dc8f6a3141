"""The recipe: what an ensemble is made of, and who reads whose features."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import msgspec

from vsa_rt.architecture import (
    ARCHITECTURES,
    DualEncodingOptions,
    ObjectGraphOptions,
    Options,
    family_of,
    output_width,
    views_of,
)
from vsa_rt.contracts import Resample, ResizeSpec, Task, Views

SCHEMA = 1
#: Names that the graph gives to its own inputs and outputs, and the head's own; a backbone cannot be called so.
RESERVED_NAMES = frozenset(
    {"features", "logits", "views", "scores", "gates", "experts", "head", "objects", "boxes", "frames"}
)


class Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where trained weights lie and how their keys are spelt.

    Attributes:
        path: Relative to the recipe's folder, or ``package:NAME/inner/path`` for a file that an installed
            package ships. A file elsewhere is named on the command line: ``--weights NAME=PATH``.
        format: How the file is written and its keys are spelt: one of the architecture's formats
            (``vsa_rt.architecture``); empty for the usual one.
        sha256: Hash that the file must have; empty for any file.
        obtain: One sentence for people: how to get the file.
    """

    path: str = ""
    format: str = ""
    sha256: str = ""
    obtain: str = ""


class Backbone(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One network that turns an image, or another backbone's features, into a feature vector.

    Backbones of equal architecture, options and weights on the same input are computed once.

    Attributes:
        name: The tap's name in the graph.
        architecture: ``timm:NAME``, or a name of ``vsa_rt.architecture.ARCHITECTURES``.
        reads: The backbone whose features it takes, or that encodes its objects; empty for the image.
        options: The architecture's own options.
        resize: Instead of what the weights' own config says.
        checkpoint: The trained weights.
    """

    name: str
    architecture: str
    reads: str = ""
    options: dict[str, str | int | float | bool] = {}
    resize: ResizeSpec | None = None
    checkpoint: Checkpoint = Checkpoint()


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What turns the concatenated features into scores.

    Attributes:
        kind: ``linear`` (one dense layer); ``nn`` (dense layers with ReLU and dropout between: SMAP 2021,
            section 3.3); ``moe`` (mixture of experts: Abu-El-Haija et al. 2016, as SMAP 2021 uses it); ``units`` (no
            weights: a softmax over the features themselves, the first of which are the labels: the raw ablations of
            Campos et al. 2015).
        features: Backbone names in the order of concatenation.
        weights: A head file that ``vsa-rt fit`` wrote, relative to the recipe's folder. Empty before the fit, and
            where a linear head comes out of the checkpoint of the only backbone.
        sha256: Hash that the head file must have; empty for any file.
        hidden: Widths of the hidden layers of ``nn``; ``moe`` has exactly one.
        dropout: Dropout rate while it is trained; inert afterwards.
        unit_norm: Scale each backbone's features to unit L2 norm before concatenation (SMAP 2021).
        experts: ``moe``: experts of each class; a dummy that always says 0 comes on top.
        gate_bias: ``moe``: whether the gates have a bias; youtube-8m's have none.
    """

    kind: Literal["linear", "nn", "moe", "units"]
    features: list[str]
    weights: str = ""
    sha256: str = ""
    hidden: list[int] = msgspec.field(default_factory=lambda: [200])
    dropout: float = 0.4
    unit_norm: bool = False
    experts: int = 2
    gate_bias: bool = False


class Fit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How ``vsa-rt fit`` trains the head, and how it estimates what the head is worth.

    Attributes:
        preset: A paper's schedule (``vsa_rt.schedules``); what stands beside it goes first.
        split: ``folds`` (stratified), or ``random``: as many times another stratified split.
        folds: How many of either.
        test: ``random``: the share of photographs to test on.
        regularisation: ``linear``: inverse strength C of the L2 penalty, on standardised features.
        epochs: Passes over the data.
        batch_size: Images per step.
        learning_rate: Adam's step size.
        weight_decay: Adam's L2 penalty.
        step: Epochs after which the learning rate is multiplied by ``factor``, again and again; 0 for never.
        factor: See ``step``.
        loss: ``cross-entropy`` of the softmax (of the mixture's outputs with ``moe``); ``nll``: of the
            mixture's outputs scaled to sum 1; ``bce``: binary cross-entropy of each score.
    """

    preset: str = ""
    split: Literal["folds", "random"] = "folds"
    folds: int = 5
    test: float = 0.2
    regularisation: float = 0.002
    epochs: int = 20
    batch_size: int = 8
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    step: int = 0
    factor: float = 0.1
    loss: Literal["cross-entropy", "bce", "nll"] = "cross-entropy"


class GraphInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One image input of a bare ONNX file: float32 ``(N, 3, H, W)``, normalised RGB.

    Attributes:
        name: The tensor's name in the file.
        mean: Per channel, of pixels in [0, 1].
        std: Per channel, of pixels in [0, 1].
        resize: How the host makes it.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: ResizeSpec


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a bare ONNX file takes and gives, for ``vsa-rt build MODEL.onnx --recipe FILE``.

    Attributes:
        inputs: Its image inputs.
        logits: The output that gives one number per label.
        activated: Whether that output holds scores already, so that no softmax or sigmoid is added.
    """

    inputs: list[GraphInput]
    logits: str
    activated: bool = False


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An ensemble: backbones, head, labels and task.

    Attributes:
        schema: Version of this format; 1.
        name: Name of the recipe.
        summary: One sentence for people.
        task: What the scores mean.
        labels: In the order of the head's outputs.
        threshold: Multi-label only: the score above which a label is given.
        resample: ``exact`` (bit-identical to the weights' own transform) or ``fast``.
        backbones: The networks.
        head: The classifier.
        fit: Training settings of the head.
        graph: Instead of backbones and head: what a bare ONNX file takes and gives.
    """

    schema: int
    name: str
    task: Task
    labels: list[str]
    backbones: list[Backbone] = []
    head: Head = Head(kind="linear", features=[])
    graph: Graph | None = None
    summary: str = ""
    threshold: float = 0.5
    resample: Resample = Resample.EXACT
    fit: Fit = Fit()


def options_of(backbone: Backbone) -> Options:
    """A backbone's options, typed; those of a checked recipe always fit.

    Raises:
        msgspec.ValidationError: An option is unknown or does not fit.
    """
    return msgspec.convert(backbone.options, ARCHITECTURES[family_of(backbone.architecture)].options)


def seen_once(backbone: Backbone) -> Backbone:
    """The same backbone as it looks at an image once: what its weights, and a head over it, are trained as."""
    of_views = ARCHITECTURES[family_of(backbone.architecture)].view_options
    if not of_views:
        return backbone
    kept = {k: v for k, v in backbone.options.items() if k not in of_views}
    return msgspec.structs.replace(backbone, options=kept)


def tensor_input(backbone: Backbone) -> tuple[str, list[int]] | None:
    """Name and shape of the ready tensor that a backbone takes beside or instead of an image.

    Returns:
        ``objects`` ``[count, features]``, ``boxes`` ``[count, 4]`` or ``frames`` ``[frames, features]``;
        ``None`` if it takes none.
    """
    options = options_of(backbone)
    if isinstance(options, ObjectGraphOptions) and options.objects == "features":
        return "objects", [options.count, options.features]
    if isinstance(options, ObjectGraphOptions) and options.objects == "boxes":
        return "boxes", [options.count, 4]
    if isinstance(options, DualEncodingOptions) and options.frames > 1:
        return "frames", [options.frames, options.features]
    return None


def regions_of(recipe: Recipe) -> int:
    """Regions of one image that go through a backbone in the graph, beside the image itself."""
    found = 0
    for backbone in needed_backbones(recipe):
        options = options_of(backbone)
        if isinstance(options, ObjectGraphOptions) and options.objects != "features":
            found += options.count
    return found


def views_of_recipe(recipe: Recipe) -> Views:
    """Through how many views an image is looked at; one backbone's, as a checked recipe has no other beside it."""
    found = [views_of(options_of(b)) for b in needed_backbones(recipe)]
    return max(found, key=lambda views: views.count, default=Views())


def upstream(backbone: Backbone) -> str:
    """The backbone that has to run in the graph for this one; empty if none has.

    Features that come as a ready tensor were computed elsewhere: the backbone that made them is only named.
    """
    given = tensor_input(backbone)
    return "" if given is not None and given[0] != "boxes" else backbone.reads


def _each_after_its_source(
    recipe: Recipe, names: Iterable[str], source: Callable[[Backbone], str]
) -> list[Backbone]:
    """These backbones, and before each one what it takes from; every one once."""
    by_name = {b.name: b for b in recipe.backbones}
    found: dict[str, Backbone] = {}
    for first in names:
        chain, name = [], first
        while name and name not in found:
            chain.append(by_name[name])
            name = source(by_name[name])
        found.update((b.name, b) for b in reversed(chain))
    return list(found.values())


def needed_backbones(recipe: Recipe) -> list[Backbone]:
    """The backbones that the head's features need, in the recipe's order but each one after what it reads.

    A backbone that is only named as the maker of ready tensors is not among them.
    """
    needed = {b.name for b in _each_after_its_source(recipe, recipe.head.features, upstream)}
    names = [b.name for b in recipe.backbones if b.name in needed]
    return _each_after_its_source(recipe, names, upstream)


def known_widths(recipe: Recipe) -> dict[str, int | None]:
    """Every backbone's name to the width of its features; ``None`` where only its library knows it."""
    widths: dict[str, int | None] = {}
    names = [b.name for b in recipe.backbones]
    for backbone in _each_after_its_source(recipe, names, lambda b: b.reads):
        read = widths.get(backbone.reads)
        widths[backbone.name] = output_width(backbone.architecture, options_of(backbone), read)
    return widths
