"""What layers of frozen networks give for photographs: batch by batch, so that no layer is in memory for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.dataset import Photograph
from vsa_rt.errors import UsageError, needs
from vsa_rt.pipeline.fitting.batches import batches, empty_rows
from vsa_rt.pipeline.fitting.layers import Layer, layer_root
from vsa_rt.recipe import Recipe

with needs("export"):
    import torch
    from torch import Tensor, nn

    from vsa_rt.export.backbones import LoadedBackbone
    from vsa_rt.export.ensemble import Ensemble
    from vsa_rt.export.trunk import Trunk

#: Rows ``(n, width)`` of a layer, one per image of a batch; gone when the call is over.
Take = Callable[[Layer, NDArray[np.float32]], None]
#: Images that go through the networks together; one where each brings dozens of regions.
_BATCH = 16


class LayerReader:
    """Runs networks over images and hands over what some of their layers give, flattened per image.

    A layer's numbers are what its module returns, before whatever follows changes them in place.

    Args:
        recipe: Wiring.
        backbones: All that the recipe's head needs, each one after what it reads.
        layers: Which are read.
        head: Features to logits; ``None`` unless ``layers`` names the head.

    Attributes:
        inputs: What an image has to be made into: no more than the layers need.
        batch: Images at a time.
        used: The backbones that are run.
        widths: Layer to how many numbers it gives per image, measured on empty images.

    Raises:
        UsageError: A layer does not give one row of numbers per image; the message says why.
    """

    def __init__(
        self,
        recipe: Recipe,
        backbones: Sequence[LoadedBackbone],
        layers: Sequence[Layer],
        head: nn.Module | None = None,
    ) -> None:
        whole = Trunk(backbones)
        self._ensemble = Ensemble(recipe, list(backbones), head).eval() if head is not None else None
        if self._ensemble is not None:
            self.used, trunk = list(backbones), self._ensemble.trunk
        else:
            needed = whole.needed_for({whole.same[x.backbone] for x in layers})
            # With those that another one stands in for: readers may name them.
            self.used = [b for b in backbones if whole.same[b.name] in needed]
            trunk = Trunk(self.used)
        self._trunk, self.inputs = trunk, trunk.inputs
        by_name = {b.name: b for b in whole.computed}
        self._modules = {
            x: layer_root(by_name[whole.same[x.backbone]]).get_submodule(x.path) for x in layers if x.path
        }
        self.batch = 1 if trunk.cuts_regions else _BATCH
        self.widths: dict[Layer, int] = {}
        # Two images: with one, a layer that sees the whole batch at once could not be told.
        empty = {k: torch.from_numpy(v) for k, v in empty_rows(self.inputs, 2).items()}
        self._read(empty, 2, layers, lambda layer, rows: self.widths.update({layer: rows.shape[1]}))

    def _read(self, given: Mapping[str, Tensor], count: int, layers: Sequence[Layer], take: Take) -> None:
        """One batch through the networks."""
        times: Counter[Layer] = Counter()

        def hook(layer: Layer) -> Callable[[nn.Module, Any, Any], None]:
            def called(module: nn.Module, arguments: Any, output: Any) -> None:
                times[layer] += 1
                take(layer, _checked(layer, output, count, times[layer]))

            return called

        with ExitStack() as hooks, torch.inference_mode():
            for layer in layers:
                if layer.path:
                    hooks.callback(self._modules[layer].register_forward_hook(hook(layer)).remove)
            taps = self._run(given)
            for layer in layers:
                if not layer.path:
                    times[layer] += 1
                    take(layer, _checked(layer, taps["logits"], count, 1))
        for layer in layers:
            if not times[layer]:
                raise UsageError(
                    f"--probe {layer.name}: the network has this layer but does not run it on the way to its features"
                )

    def _run(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every tap of one batch by name; without a head the backbones' alone."""
        if self._ensemble is None:
            found: dict[str, Tensor] = self._trunk(given)
            return found
        taps = self._ensemble(*(given[record.name] for record in self.inputs))
        return {tap.name: values for tap, values in zip(self._ensemble.taps, taps, strict=True)}

    def stream(
        self,
        photographs: Sequence[Photograph],
        layers: Sequence[Layer],
        take: Callable[[int, Layer, NDArray[np.float32]], None],
    ) -> None:
        """Run all photographs through the networks once.

        Args:
            photographs: All readable.
            layers: Of the reader's, those to hand over.
            take: Is handed the place of a batch's first photograph, the layer, and its rows ``(n, width)`` float32.

        Raises:
            UsageError: A layer's numbers are not finite; the message names the photograph.
        """
        for start, given in self._batches(photographs):
            some = photographs[start : start + self.batch]

            def taken(layer: Layer, rows: NDArray[np.float32], start: int = start) -> None:
                finite = np.isfinite(rows).all(1)
                if not finite.all():
                    path = photographs[start + int(finite.argmin())].path
                    raise UsageError(
                        f"--probe {layer.name}: {path} gives numbers that are not finite; leave the layer out, or "
                        "look at the weights"
                    )
                take(start, layer, rows)

            self._read(given, len(some), layers, taken)

    def _batches(self, photographs: Sequence[Photograph]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        for start, arrays in batches(self.inputs, photographs, self.batch):
            yield start, {name: torch.from_numpy(array) for name, array in arrays.items()}


def _checked(layer: Layer, output: Any, count: int, times: int) -> NDArray[np.float32]:
    """What a module returned for a batch, as rows ``(count, width)``.

    Raises:
        UsageError: It is not one row of numbers per image.
    """
    where = f"--probe {layer.name}"
    if not isinstance(output, Tensor):
        raise UsageError(f"{where}: the layer gives a {type(output).__name__}; only one tensor can be probed")
    if times > 1:
        raise UsageError(f"{where}: the network runs this layer several times per image; probe another one")
    if output.ndim == 0 or output.shape[0] != count:
        shape = tuple(output.shape)
        raise UsageError(
            f"{where}: the layer gives a tensor {shape} for {count} images: several rows per image, such as views or "
            "regions; a probe needs one row each"
        )
    return output.detach().reshape(count, -1).to(torch.float32).numpy()
