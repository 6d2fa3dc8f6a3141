"""From one image to every graph input: decoded once, resized once per distinct spec, its ready tensors copied."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.contracts import Item, Resample, ResizeSpec
from vsa_rt.errors import ItemError
from vsa_rt.runtime.companions import fill, require_image_file, tensors_of
from vsa_rt.runtime.decode import decode
from vsa_rt.runtime.resample import ResizeRefused, resize
from vsa_rt.runtime.two_tap import TWO_TAP

if TYPE_CHECKING:
    from vsa_rt.runtime.decode import ImageSource

# How much larger than needed a photograph stays that is decoded at a fraction. Against the exact result, values
# then differ by 0.9 levels of 255 in the mean (1 % by more than 6, on line drawings up to 131). With no margin
# it would be 1.2, and the photographs that come in reach are small ones, of which decoding takes a millisecond.
_FAST_MARGIN = 1.5


class Preprocessor:
    """Writes images into a graph's inputs.

    It keeps no state between images, so that any number of threads may use one at the same time, each with its
    own outputs.

    Args:
        specs: Graph input name to how it is made, in the graph's order.
        mode: ``exact`` gives the bytes of the specs' own library. ``fast`` decodes a JPEG file that is at least
            three times as large as every input needs at a fraction of its size, where all kernels are
            antialiased; all else stays exact.
        rows: Input name to shape of the ready tensors that belong to an image.

    Attributes:
        specs: As passed, copied.
        mode: As passed.
        rows: As passed, copied.
        at_least: Height and width that suffice of an image, for ``decode``; ``None``: all of it.
    """

    def __init__(
        self,
        specs: Mapping[str, ResizeSpec],
        mode: Resample = Resample.EXACT,
        rows: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.specs = dict(specs)
        self.rows = dict(rows or {})
        self.mode = mode
        # The inputs that share a spec are computed once and copied.
        self._names: dict[ResizeSpec, list[str]] = {}
        for name, spec in self.specs.items():
            self._names.setdefault(spec, []).append(name)
        self.at_least: tuple[int, int] | None = None
        # A decoder that averages pixels away changes what two neighbours hold much more than what an antialiased
        # kernel sums up: up to 190 levels were measured.
        averaged = not any(spec.kernel in TWO_TAP for spec in self._names)
        if mode is Resample.FAST and self.specs and averaged:
            self.at_least = (
                math.ceil(_FAST_MARGIN * max(spec.scale or spec.height for spec in self._names)),
                math.ceil(_FAST_MARGIN * max(spec.scale or spec.width for spec in self._names)),
            )

    def write(self, source: ImageSource | Item, outputs: Mapping[str, NDArray[Any]], *, item: str) -> None:
        """Decode a source and write every graph input.

        Args:
            source: See ``decode``; an ``Item`` brings its ready tensors, a path has them in files beside it.
                Without ``specs`` nothing is decoded, but a path must lead to a file.
            outputs: Input name to a C-contiguous view ``(height, width, 3)`` or ``(rows, width)``; names beyond
                ``specs`` and ``rows`` are left alone.
            item: What to call the source in an error.

        Raises:
            ItemError: The source cannot be decoded or resized, or a ready tensor is absent or does not fit; the
                outputs' contents are then undefined.
            KeyError: An output is missing.
            ValueError: An output has another shape, dtype or layout.
        """
        picture: ImageSource = source.image if isinstance(source, Item) else source
        # The image first: where it is absent, so are its files, and that is not what has to be said.
        if self.specs:
            self.resize(self.decode(picture, item), outputs, item)
        elif isinstance(picture, str | os.PathLike):
            require_image_file(picture, item)
        self.fill_rows(source, outputs, item)

    def decode(self, picture: ImageSource, item: str) -> NDArray[np.uint8]:
        """Decode an image, at a fraction of its size where ``mode`` allows; see ``write``."""
        return decode(picture, item=item, at_least=self.at_least)

    def resize(self, image: NDArray[np.uint8], outputs: Mapping[str, NDArray[Any]], item: str) -> None:
        """Write every image input from what ``decode`` gave; see ``write``."""
        targets = [(spec, outputs[names[0]]) for spec, names in self._names.items()]
        try:
            resize(image, targets)
        except ResizeRefused as error:
            raise ItemError(item, str(error)) from None
        except MemoryError:
            raise ItemError(item, "not enough memory to resize it") from None
        for names in self._names.values():
            for name in names[1:]:
                np.copyto(outputs[name], outputs[names[0]], casting="no")

    def fill_rows(self, source: ImageSource | Item, outputs: Mapping[str, NDArray[Any]], item: str) -> None:
        """Copy the ready tensors that belong to an image; see ``write``."""
        if self.rows:
            for name, rows in tensors_of(source, self.rows, item).items():
                fill(name, rows, outputs[name], item)
