"""Text on pictures: any text, whoever wrote it, in a font that has its letters and no wider than its place."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

#: Files of common fonts beyond ASCII, which many systems have; Pillow looks for them where the system keeps fonts. Its
#: own font comes first: it is everywhere, and the same everywhere.
_FALLBACKS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "DroidSansFallbackFull.ttf",
    "wqy-microhei.ttc",
    "Arial Unicode.ttf",
)
#: A character that no font has: what is drawn in its place is drawn for every letter that a font lacks.
_NOBODYS = "\U0010fffe"
#: More of a text is never drawn; shaping takes time.
_LONGEST = 400
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


@lru_cache(maxsize=64)
def _font(name: str, size: int) -> Font | None:
    """The font, ``""`` for Pillow's own; ``None`` if this system has none of that name."""
    if not name:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _drawn(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


@lru_cache(maxsize=4096)
def _has(name: str, letter: str) -> bool:
    """Whether a font has a letter. ASCII is in all of them."""
    font = _font(name, 12)
    return font is not None and (letter.isascii() or _drawn(font, letter) != _drawn(font, _NOBODYS))


def _fonts() -> Iterator[str]:
    yield ""
    yield from (name for name in _FALLBACKS if _font(name, 12) is not None)


def _escaped(letter: str) -> str:
    """What cannot be drawn, as an escape: a byte of a path that is not UTF-8 is ``\\xff``."""
    if "\udc80" <= letter <= "\udcff":
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()


def _printable(text: str) -> str:
    """Without what changes the text around it: control characters, directions, surrogates."""
    return "".join(
        letter if letter.isprintable() else " " if unicodedata.category(letter) == "Zs" else _escaped(letter)
        for letter in text
    )


def _without(text: str, name: str) -> str:
    """A text whose letters a font all has: without their accents, or as escapes."""
    found = []
    for letter in text:
        if _has(name, letter):
            found.append(letter)
            continue
        plain = "".join(c for c in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(c))
        found.append(
            plain if plain and all(c != letter and _has(name, c) for c in plain) else _escaped(letter)
        )
    return "".join(found)


def legible(text: str, size: int) -> tuple[str, Font]:
    """A text as it can be drawn, and the font that it is drawn in.

    Args:
        text: Any: control characters and surrogates become escapes such as ``\\n``.
        size: Of the font, in pixels.

    Returns:
        The text in the first font that has all of its letters. Where none has, letters that the best one lacks lose their
        accents or become escapes such as ``\\u60b2``.
    """
    text = _printable(text)
    best, lacking = "", len(text) + 1
    for name in _fonts():
        count = sum(not _has(name, letter) for letter in text)
        if count < lacking:
            best, lacking = name, count
        if not count:
            break
    font = _font(best, size)
    if font is None:  # pragma: no cover - `_fonts` names only those that are there
        raise OSError(f"the font {best} has gone")
    return (text if not lacking else _without(text, best)), font


def shortened(text: str, font: Font, width: float) -> str:
    """A text that fits: where it is too wide, an ellipsis stands for what is left out of its first half.

    Args:
        text: As `legible` gives it.
        font: The font.
        width: In pixels.

    Returns:
        The text, its beginning and its end, which says more of a path; or nothing where not even one letter fits.
    """
    if font.getlength(text) <= width:
        return text
    low, high, found = 0, len(text) - 1, ""
    while low <= high:
        count = (low + high) // 2
        head = count // 3
        short = text[:head] + _ELLIPSIS + (text[-(count - head) :] if count else "")
        if font.getlength(short) <= width:
            low, found = count + 1, short if count else ""
        else:
            high = count - 1
    return found


class Lettering:
    """Writes text onto a picture.

    Args:
        picture: RGB; it is drawn on.
    """

    def __init__(self, picture: Image.Image) -> None:
        self._pen = ImageDraw.Draw(picture)

    def fitting(self, text: str, size: int, width: float) -> tuple[str, Font]:
        """A text as it can be drawn in a width, and the font.

        Args:
            text: Any.
            size: Of the font, in pixels.
            width: In pixels.

        Returns:
            As `legible` and `shortened` say.
        """
        if len(text) > _LONGEST:
            text = text[: _LONGEST // 3] + _ELLIPSIS + text[-_LONGEST // 2 :]
        plain, font = legible(text, size)
        return shortened(plain, font, width), font

    def length(self, text: str, size: int, width: float = 1e6) -> float:
        """How wide a text will be, in pixels."""
        plain, font = self.fitting(text, size, width)
        return float(font.getlength(plain))

    def write(
        self,
        place: tuple[float, float],
        text: str,
        size: int,
        colour: str | tuple[int, int, int],
        *,
        width: float,
        anchor: str = "lm",
    ) -> None:
        """Write a text.

        Args:
            place: In pixels.
            text: Any.
            size: Of the font, in pixels.
            colour: Of the letters.
            width: That it may take; a wider one is shortened.
            anchor: Which point of the text is at the place, in Pillow's letters.
        """
        plain, font = self.fitting(text, size, width)
        if plain:
            # A line that begins with Arabic or Hebrew still goes from left to right as a whole, as its numbers do.
            shaped = getattr(font, "layout_engine", None) == ImageFont.Layout.RAQM
            self._pen.text(place, plain, colour, font, anchor=anchor, direction="ltr" if shaped else None)
