"""Inner products of photographs at layers of frozen networks, computed in one pass and kept in a cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsa_rt.dataset import Photograph
from vsa_rt.errors import EnvironmentUnusable, needs
from vsa_rt.pipeline.export import Progress
from vsa_rt.pipeline.fitting.activations import LayerReader
from vsa_rt.pipeline.fitting.features import CODE, code_sha256
from vsa_rt.pipeline.fitting.gram import Gram, Spill, check_room, gram_matrix, read_gram, write_gram
from vsa_rt.pipeline.fitting.layers import Layer

with needs("export"):
    import PIL
    import timm
    import torch

    from vsa_rt.export.backbones import LoadedBackbone
    from vsa_rt.export.training import repeatable
    from vsa_rt.export.trunk import identity_of

#: Whose code steers inner products, beside that of features.
_CODE = (
    *(f"vsa_rt.export.{name}" for name in ("ensemble", "head", "head_file")),
    *(f"vsa_rt.pipeline.fitting.{name}" for name in ("activations", "gram", "layers")),
    __name__,
)


def _identities(backbones: Sequence[LoadedBackbone], head: str) -> dict[str, str]:
    """Backbone to what makes it, and all that it reads, the same; under no name the head over all of them."""
    found: dict[str, str] = {}
    for backbone in backbones:
        found[backbone.name] = identity_of(backbone, found.get(backbone.reads, ""))
    below = "\n".join(f"{name} {identity}" for name, identity in found.items())
    return {**found, "": f"{head}\n{below}"}


def _key(layer: Layer, identity: str, data: str, batch: int) -> str:
    """What the inner products of a layer depend on."""
    parts = [
        identity,
        layer.path,
        data,
        str(batch),
        code_sha256(CODE),
        code_sha256(_CODE),
        str(torch.__version__),
        timm.__version__,
        PIL.__version__,
        np.__version__,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _compute(
    reader: LayerReader,
    layers: Sequence[Layer],
    photographs: Sequence[Photograph],
    paths: dict[Layer, Path],
    progress: Progress,
) -> None:
    """Put the inner products of layers at their paths: one pass over the photographs for all of them."""
    count, folder = len(photographs), next(iter(paths.values())).parent
    check_room(folder, count, {layer.name: reader.widths[layer] for layer in layers})
    with ExitStack() as files:
        spills = {layer: Spill(folder, count, reader.widths[layer]) for layer in layers}
        for spill in spills.values():
            files.callback(spill.close)

        def take(start: int, layer: Layer, rows: NDArray[np.float32]) -> None:
            progress(f"{layer.name}: {start} of {count} photographs")
            spills[layer].write(start, rows)

        reader.stream(photographs, layers, take)
        for layer, spill in spills.items():
            progress(f"{layer.name}: inner products")
            with repeatable(0):
                gram = gram_matrix(spill.blocks(), count)
            write_gram(paths[layer], gram)
            spill.close()


def layer_grams(
    reader: LayerReader,
    layers: Sequence[Layer],
    backbones: Sequence[LoadedBackbone],
    head: str,
    photographs: Sequence[Photograph],
    data: str,
    folder: Path,
    progress: Progress,
) -> Iterator[tuple[Layer, Gram]]:
    """Inner products at layers, one after the other; those that the cache lacks are computed first and put there.

    Args:
        reader: Of these layers.
        layers: In the order of the result.
        backbones: All that the recipe's head needs, each one after what it reads.
        head: SHA-256 of the head file; empty where no layer is the head's.
        photographs: All readable.
        data: What ``data_key`` says of them.
        folder: Of the cache; layers lie there, too, while they are computed.
        progress: Told of every step.

    Returns:
        Layer and inner products ``(N, N)``, of which one is in memory at a time.

    Raises:
        EnvironmentUnusable: The disk has no room for the layers, or does not give back what was written.
        UsageError: A layer's numbers are not finite.
    """
    identities, count = _identities(backbones, head), len(photographs)
    paths = {x: folder / f"{_key(x, identities[x.backbone], data, reader.batch)}.gram" for x in layers}
    missing = [layer for layer in layers if read_gram(paths[layer], count) is None]
    if missing:
        _compute(reader, missing, photographs, paths, progress)
    for layer in layers:
        gram = read_gram(paths[layer], count)
        if gram is None:
            raise EnvironmentUnusable(
                f"{paths[layer]}: does not hold what was just written; use another --cache"
            )
        yield layer, gram
