"""What callers pass as items, and up to max-batch of them on their way through one slot."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vsa_rt.contracts import Item
from vsa_rt.engines.backend import Slot, Tensors
from vsa_rt.errors import ItemError, UsageError
from vsa_rt.runtime.preprocess import Preprocessor

if TYPE_CHECKING:
    from typing import TypeAlias

    from vsa_rt.runtime.decode import ImageSource

    #: What a caller may pass as an item.
    Source: TypeAlias = "ImageSource | Item | HasPixels"

T = TypeVar("T")
#: Turns a call's outputs and its number of rows into one value per row; ``None`` where it holds no numbers.
Take = Callable[[Tensors, int], "Sequence[T | None]"]


class HasPixels(Protocol):
    """A frame of a video, or whatever else holds an image as pixels."""

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """RGB pixels ``(H, W, 3)``."""
        ...


def has_pixels(source: object) -> bool:
    """Whether an object is a frame rather than an image itself."""
    return isinstance(getattr(source, "pixels", None), np.ndarray)


def image_of(source: Any) -> ImageSource | Item:
    """A frame as its pixels, also inside an ``Item``; everything else as it is."""
    if isinstance(source, Item):
        return Item(source.image.pixels, source.tensors) if has_pixels(source.image) else source
    image: ImageSource = source.pixels if has_pixels(source) else source
    return image


def item_name(source: object, index: int) -> str:
    """What to call an item in messages: its path, or its number."""
    source = source.image if isinstance(source, Item) else source
    return str(source) if isinstance(source, str | os.PathLike) else f"item {index}"


def as_items(images: object) -> Iterable[Any]:
    """One image is a list of one: a path is not a sequence of letters, nor a picture one of rows."""
    single = isinstance(images, str | bytes | bytearray | memoryview | os.PathLike | Image.Image | Item)
    if single or (isinstance(images, np.ndarray) and images.ndim == 3) or has_pixels(images):
        return [images]
    if not isinstance(images, Iterable):
        raise UsageError(
            f"expected images, got {type(images).__name__}; pass a list of paths, bytes or arrays"
        )
    return images


def internal_error(source: object, index: int, error: BaseException) -> ItemError:
    """A fault of ours as one item's error: the others still get their answers."""
    return ItemError(item_name(source, index), f"internal error: {error!r}")


def no_numbers(source: str) -> ItemError:
    """The error of an item whose scores are not all finite."""
    return ItemError(source, "the engine gave scores that are not numbers")


class Batch:
    """Up to max-batch items, each with its number, prepared in the rows of one slot's buffers."""

    def __init__(self, slot: Slot, items: list[tuple[int, Any]]) -> None:
        self.slot, self.items = slot, items
        self.errors: list[ItemError | None] = [None] * len(items)
        self._left = len(items)
        self._lock = threading.Lock()

    def prepare(self, row: int, preprocessor: Preprocessor) -> None:
        """Decode and resize one item straight into the slot's buffers."""
        index, source = self.items[row]
        rows = {name: buffer[row] for name, buffer in self.slot.buffers.items()}
        try:
            preprocessor.write(image_of(source), rows, item=item_name(source, index))
        except ItemError as error:
            self.errors[row] = error

    def failed(self, row: int, error: BaseException) -> None:
        """Make a fault of ours this item's error."""
        index, source = self.items[row]
        self.errors[row] = internal_error(source, index, error)

    def arrived(self) -> bool:
        """Count one item as prepared; true for the last one."""
        with self._lock:
            self._left -= 1
            return self._left == 0

    def run(self, take: Take[T]) -> list[T | ItemError]:
        """Run the engine on the prepared rows, unless every item failed."""
        count = len(self.items)
        if all(self.errors):
            return [e for e in self.errors if e is not None]
        values = take(self.slot.run({n: b[:count] for n, b in self.slot.buffers.items()}), count)
        return [
            error or value or no_numbers(item_name(source, index))
            for error, value, (index, source) in zip(self.errors, values, self.items, strict=True)
        ]
