"""Sentiment maps as pictures: where in an image a label is seen, in colours over the image itself."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vsa_rt.contracts import Sentiment, Views
from vsa_rt.documents import write_whole
from vsa_rt.errors import ItemError, UsageError
from vsa_rt.manifest import Manifest
from vsa_rt.runtime.decode import decode

#: Longer side of the picture in pixels, and share of the colours in the blend.
_SIDE, _OPACITY = 1024, 0.55
#: Colours of scores 0, one half and 1: ends and middle of ColorBrewer's PuOr, which colour-blind people tell apart.
_STOPS = np.array([[84, 39, 136], [247, 247, 247], [230, 97, 1]], np.float64)
#: Height in pixels of the legend below the picture.
_LEGEND = 28


def _weights(size: int, count: int, window: float) -> NDArray[np.float64]:
    """How much each of ``count`` views counts at each of ``size`` pixels of an axis: ``(size, count)``.

    A view's score belongs to its centre; between centres it is interpolated linearly, and outside them it is that of
    the nearest: the map knows nothing more of an image's border.
    """
    share = (np.arange(size) + 0.5) / size
    step = (1 - window) / max(count - 1, 1)
    place = np.clip((share - window / 2) / step if step else np.zeros(size), 0, count - 1)
    return np.asarray(np.clip(1 - np.abs(place[:, None] - np.arange(count)), 0, 1))


def heat(scores: NDArray[np.float32], views: Views, height: int, width: int) -> NDArray[np.float64]:
    """Scores of a grid of views as scores of pixels.

    Args:
        scores: One label's, ``(V,)``, row by row.
        views: The grid.
        height: In pixels.
        width: In pixels.

    Returns:
        ``(height, width)``, each between the scores around it.
    """
    grid = scores.astype(np.float64).reshape(views.rows, views.columns)
    rows, columns = (
        _weights(size, count, views.window) for size, count in ((height, views.rows), (width, views.columns))
    )
    return np.asarray(rows @ grid @ columns.T)


def _colours(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Scores from 0 to 1 ``(H, W)`` as RGB ``(H, W, 3)``."""
    place = np.clip(values, 0, 1) * 2
    first = np.minimum(place.astype(np.int64), 1)
    share = (place - first)[..., None]
    return np.asarray((_STOPS[first] * (1 - share) + _STOPS[first + 1] * share).round(), np.uint8)


def _legend(width: int, label: str) -> Image.Image:
    """The colours from 0 to 1, with the label that they are of."""
    strip = Image.new("RGB", (width, _LEGEND), "white")
    pen, font = ImageDraw.Draw(strip), ImageFont.load_default(14)
    text = f"{label}: 0"
    begin = int(pen.textlength(text, font=font)) + 14
    end = width - int(pen.textlength("1", font=font)) - 14
    pen.text((6, _LEGEND / 2), text, "black", font, anchor="lm")
    if end > begin:
        ramp = _colours(np.tile(np.linspace(0, 1, end - begin), (_LEGEND - 14, 1)))
        strip.paste(Image.fromarray(ramp), (begin, 7))
    pen.text((end + 6, _LEGEND / 2), "1", "black", font, anchor="lm")
    return strip


def overlay(pixels: NDArray[np.uint8], scores: NDArray[np.float32], views: Views, label: str) -> Image.Image:
    """An image in greys under the colours of one label's scores, with a legend.

    Args:
        pixels: Upright RGB ``(H, W, 3)``.
        scores: Of each view ``(V,)``, row by row.
        views: The grid.
        label: Whose scores.

    Returns:
        At most 1024 pixels a side, and the legend below.
    """
    picture = Image.fromarray(pixels)
    picture.thumbnail((_SIDE, _SIDE))
    grey = picture.convert("L").convert("RGB")
    colours = Image.fromarray(_colours(heat(scores, views, picture.height, picture.width)))
    whole = Image.new("RGB", (picture.width, picture.height + _LEGEND), "white")
    whole.paste(Image.blend(grey, colours, _OPACITY), (0, 0))
    whole.paste(_legend(picture.width, label), (0, picture.height))
    return whole


class MapWriter:
    """Writes an image's sentiment map beside those of the others.

    Args:
        folder: Where to; it is made.
        manifest: Of the bundle that runs.
        label: Whose scores; by default the second of two labels, else the one that the image got.

    Raises:
        UsageError: The bundle gives no map, it has no such label, or the folder cannot be made.
    """

    def __init__(self, folder: Path, manifest: Manifest, label: str | None = None) -> None:
        if not manifest.views.rows or not manifest.labels:
            raise UsageError(
                "--map: this bundle gives no map; one of a recipe with map = true does, such as asm2015-map"
            )
        if label is not None and label not in manifest.labels:
            raise UsageError(f"--map-label {label!r}: expected one of {', '.join(manifest.labels)}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--map {folder}: cannot be made: {error.strerror}") from error
        self._folder, self._views, self._labels = folder, manifest.views, list(manifest.labels)
        self._label = label or (self._labels[1] if len(self._labels) == 2 else None)
        self._taken: set[str] = set()

    def _name(self, path: str) -> str:
        """A name that no image before this one had: folders may hold files of the same name."""
        plain = Path(path).name
        name, number = plain, 1
        while name in self._taken:
            number += 1
            name = f"{plain}.{number}"
        self._taken.add(name)
        return f"{name}.map.png"

    def _shown(self, found: Sentiment) -> str:
        """Whose scores are drawn: of several labels that hold, the one with the best score."""
        return self._label or found.label or max(found.scores, key=found.scores.__getitem__)

    def write(self, path: str, found: Sentiment) -> Path | ItemError:
        """Write one picture.

        Args:
            path: The image.
            found: What it says, with its views.

        Returns:
            The file, or why there is none.
        """
        out = self._folder / self._name(path)
        if found.views is None:
            return ItemError(path, "no scores of its positions")
        label = self._shown(found)
        try:
            picture = overlay(
                decode(path, item=path), found.views[:, self._labels.index(label)], self._views, label
            )
            data = io.BytesIO()
            picture.save(data, "PNG")
            write_whole(out, data.getvalue())
        except ItemError as error:
            return error
        except OSError as error:
            return ItemError(path, f"its map {out} cannot be written: {error.strerror or error}")
        return out
