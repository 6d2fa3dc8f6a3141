"""The timeline of a video as one picture: what was seen, what it says when, and how surely."""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vsa_rt.documents import write_whole
from vsa_rt.errors import ItemError, UsageError
from vsa_rt.pipeline.ingest.thumbnails import HEIGHT, WIDTH, Thumbnail, reduced
from vsa_rt.render.lettering import Lettering
from vsa_rt.render.timeline_axis import Axis, clock
from vsa_rt.render.timeline_bars import BACK, Bars, bars_height, held
from vsa_rt.render.timeline_labels import Cast, Colour, cast
from vsa_rt.render.timeline_lines import Lines, bounds

#: The picture's width, where its time begins and ends, and height of the scores, all in pixels.
_WIDTH, _LEFT, _RIGHT, _CHART = 1280, 120, 1248, 200
#: Margins, the two lines at the top, the marks under thumbnails, the times under the scores, a row of the legend.
_MARGIN, _HEAD, _MARKS, _TIMES, _ROW = 20, 60, 10, 30, 22
#: Between two thumbnails at least.
_GAP = 6
_INK, _QUIET, _GRID, _PAPER = (31, 35, 40), (89, 99, 110), (225, 229, 234), (255, 255, 255)
#: Characters of a key that its file's name keeps, and hexadecimal digits of the key's SHA-256: with 80 bits no two of
#: 100 million keys share a name by chance.
_TAIL, _DIGITS = 60, 20


@dataclass(frozen=True, eq=False)
class Track:
    """The scores of a video's frames.

    Attributes:
        seconds: Presentation times ``(N,)``, rising.
        scores: ``(N, C)``.
        labels: In the order of the scores.
    """

    seconds: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: Sequence[str]


def _track(item: str, seconds: Any, scores: Any, labels: Sequence[str]) -> Track:
    """The frames in order of time, all of them numbers."""
    times, values = np.asarray(seconds, np.float64), np.asarray(scores, np.float64)
    if not times.size:
        raise ItemError(item, "none of its frames has scores, so there is no timeline to draw")
    if values.shape != (len(times), len(labels)) or not labels:
        raise ItemError(
            item,
            f"its timeline cannot be drawn: scores {values.shape}, expected one row for each of {len(times)} frames "
            f"and one column for each of {len(labels)} labels",
        )
    if not (np.isfinite(times).all() and np.isfinite(values).all()):
        raise ItemError(item, "its timeline cannot be drawn: a time or a score is not a finite number")
    order = np.argsort(times, kind="stable")
    return Track(times[order], values[order], labels)


def spread(widths: Sequence[int], places: Sequence[float], left: int, right: int) -> list[tuple[int, int]]:
    """Which thumbnails are shown, and where: each around its time, none over another.

    Args:
        widths: Of the thumbnails, in order of time, in pixels.
        places: Where their times are.
        left: Where the first may begin.
        right: Where the last may end.

    Returns:
        Number and left edge of each that is shown: as many as fit, with gaps as even as their times allow.
    """
    edges = [round(min(max(p - w / 2, left), right - w)) for w, p in zip(widths, places, strict=True)]

    def taken(gap: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        free = left
        for number, edge in enumerate(edges):
            if edge >= free:
                found.append((number, edge))
                free = edge + widths[number] + gap
        return found

    best = taken(_GAP)
    for gap in range(_GAP + 2, right - left, 2):
        wider = taken(gap)
        if len(wider) < len(best):
            break
        best = wider
    return best


class _Sheet:
    """One timeline, drawn from top to bottom."""

    def __init__(
        self,
        title: str,
        track: Track,
        summary: Mapping[str, Any],
        thumbnails: Sequence[Thumbnail],
    ) -> None:
        self._title, self._track, self._summary = title, track, summary
        self._segments: Sequence[Mapping[str, Any]] = summary.get("segments", [])
        first, last = float(track.seconds[0]), float(track.seconds[-1])
        ends = [last, *(float(s["end"]) for s in self._segments[-1:])]
        self._axis = Axis(min(0.0, first), max(ends), _LEFT, _RIGHT)
        self._thumbnails = sorted(thumbnails, key=lambda t: t.seconds)
        self._several = summary.get("label") is None
        self._means, self._peaks = track.scores.mean(0), track.scores.argmax(0)
        self._held = held(self._segments)
        self._cast: Cast = cast(track.labels, self._means, self._held)

    def draw(self) -> Image.Image:
        """The picture."""
        strip = HEIGHT + _MARKS if self._thumbnails else 0
        bars = bars_height(self._held, self._cast, self._several) + 18 if self._segments else 0
        legend = self._legend_rows()
        height = _MARGIN + _HEAD + strip + bars + _CHART + _TIMES + legend * _ROW + _MARGIN
        picture = Image.new("RGB", (_WIDTH, height), _PAPER)
        self._picture, self._pen, self._text = picture, ImageDraw.Draw(picture), Lettering(picture)
        self._head(_MARGIN)
        top = _MARGIN + _HEAD
        self._strip(top)
        top += strip
        if self._segments:
            Bars(picture, self._axis, self._segments, self._held, self._cast, self._several).draw(top)
        top += bars
        self._chart(top)
        self._legend(top + _CHART + _TIMES)
        return picture

    # What is at the top.

    def _head(self, top: int) -> None:
        span = self._axis.span
        length = clock(span, 1.0 if span >= 10 else 0.1)
        room = self._text.length(length, 22)
        self._text.write((_RIGHT, top + 12), length, 22, _INK, width=200, anchor="rm")
        self._text.write(
            (_MARGIN, top + 12), self._title, 22, _INK, width=_RIGHT - room - 40 - _MARGIN, anchor="lm"
        )
        frames = f"{len(self._track.seconds):,} frame" + "s" * (len(self._track.seconds) != 1)
        failed = int(self._summary.get("failed", 0))
        frames += f", {failed:,} failed" if failed else ""
        room = self._text.length(frames, 15)
        self._text.write((_RIGHT, top + 39), frames, 15, _QUIET, width=400, anchor="rm")
        width = _RIGHT - room - 40 - _MARGIN
        self._text.write((_MARGIN, top + 39), self._verdict(), 15, _QUIET, width=width, anchor="lm")

    def _verdict(self) -> str:
        """What the video says as a whole, in words."""
        if self._several:
            return "on the whole: " + (", ".join(self._summary.get("labels", [])) or "no label")
        label = str(self._summary["label"])
        mean = self._means[list(self._track.labels).index(label)]
        most = self._summary["majority"]
        share = f"{most['share']:.0%} of its frames"
        if most["label"] == label:
            return f"on the whole: {label} (mean {mean:.2f}, {share})"
        return f"on the whole: {label} (mean {mean:.2f}); most often: {most['label']} ({share})"

    # What was seen.

    def _strip(self, top: int) -> None:
        pictures = [self._fitted(t.pixels) for t in self._thumbnails]
        places = [self._axis.place(t.seconds) for t in self._thumbnails]
        for number, left in spread([p.width for p in pictures], places, _LEFT, _RIGHT):
            picture, place = pictures[number], places[number]
            self._pen.rectangle((left, top, left + picture.width - 1, top + HEIGHT - 1), BACK)
            self._picture.paste(picture, (left, top + (HEIGHT - picture.height) // 2))
            tip = min(max(place, left + 4), left + picture.width - 5)
            bottom = top + HEIGHT
            self._pen.polygon([(tip - 4, bottom + 1), (tip + 4, bottom + 1), (tip, bottom + 6)], _QUIET)

    @staticmethod
    def _fitted(pixels: NDArray[np.uint8]) -> Image.Image:
        height, width = pixels.shape[:2]
        return Image.fromarray(pixels if height <= HEIGHT and width <= WIDTH else reduced(pixels))

    # What each frame says.

    def _chart(self, top: int) -> None:
        bottom = top + _CHART
        scores = self._track.scores[:, list(self._cast.lines)]
        low, high = bounds(scores)
        lines = Lines(self._picture, (_LEFT, top, _RIGHT, bottom), low, high)
        for score in np.linspace(low, high, 5):
            row = round(lines.row(float(score)))
            self._pen.line((_LEFT, row, _RIGHT, row), _GRID)
            text = f"{score:.3g}"
            self._text.write((_LEFT - 10, row), text, 12, _QUIET, width=_LEFT - 14, anchor="rm")
        ticks, step = self._axis.ticks()
        for second in ticks:
            column = round(self._axis.place(second))
            self._pen.line((column, top, column, bottom + 4), _GRID)
            self._text.write(
                (column, bottom + 14), clock(second, step), 12, _QUIET, width=_WIDTH, anchor="mm"
            )
        shares = self._axis.shares(self._track.seconds)
        # Shades of many labels lie over each other: they must not hide the lines.
        shade = 0.5 / (1 + len(self._cast.lines))
        for column in self._cast.lines:
            lines.draw(shares, self._track.scores[:, column], self._colour(column), shade)
        for column in self._cast.lines:
            self._peak(lines, column)

    def _colour(self, column: int) -> Colour:
        return self._cast.colour(self._track.labels[column])

    def _peak(self, lines: Lines, column: int) -> None:
        """A dot with a white rim where a label's score is highest."""
        frame = self._peaks[column]
        place = self._axis.place(float(self._track.seconds[frame]))
        row = lines.row(float(self._track.scores[frame, column]))
        self._pen.circle((place, row), 6, _PAPER)
        self._pen.circle((place, row), 4, self._colour(column))

    # What the colours mean.

    def _entries(self) -> list[tuple[Colour, str]]:
        found = []
        step = 1.0 if self._axis.span >= 10 else 0.1
        for column in self._cast.lines:
            frame = self._peaks[column]
            peak, when = (
                self._track.scores[frame, column],
                clock(float(self._track.seconds[frame]), step),
            )
            text = f"{self._track.labels[column]}: mean {self._means[column]:.2f}, peak {peak:.2f} at {when}"
            found.append((self._colour(column), text))
        drawn = {self._track.labels[column] for column in self._cast.lines}
        return found + [(c, label) for label, c in self._cast.colours.items() if label not in drawn]

    def _note(self) -> str:
        words = []
        lines, labels = len(self._cast.lines), len(self._track.labels)
        if lines < labels:
            words.append(f"lines: {lines} of {labels} labels, those with the highest means")
        if any(label not in self._cast.colours for label in self._held):
            words.append("grey: labels without a colour")
        if len(self._track.seconds) > (_RIGHT - _LEFT) // 3:
            words.append("line: mean of neighbouring frames; shade: from their lowest to their highest")
        return "; ".join(words)

    def _legend_grid(self) -> tuple[int, int]:
        """Columns and their width."""
        text = Lettering(Image.new("RGB", (1, 1)))
        widest = max(text.length(words, 13, 500) for _, words in self._entries())
        columns = max(1, int((_RIGHT - _LEFT) // (widest + 48)))
        return columns, (_RIGHT - _LEFT) // columns

    def _legend_rows(self) -> int:
        return -(-len(self._entries()) // self._legend_grid()[0]) + bool(self._note())

    def _legend(self, top: int) -> None:
        columns, width = self._legend_grid()
        entries = self._entries()
        for number, (colour, words) in enumerate(entries):
            left = _LEFT + number % columns * width
            middle = top + number // columns * _ROW + _ROW // 2
            self._pen.rectangle((left, middle - 6, left + 11, middle + 5), colour)
            self._text.write((left + 20, middle), words, 13, _INK, width=width - 36)
        rows = -(-len(entries) // columns)
        self._text.write((_LEFT, top + rows * _ROW + 11), self._note(), 12, _QUIET, width=_RIGHT - _LEFT)


def timeline(
    title: str,
    seconds: Any,
    scores: Any,
    labels: Sequence[str],
    summary: Mapping[str, Any],
    thumbnails: Sequence[Thumbnail],
) -> Image.Image:
    """Draw a video's timeline.

    Thumbnails stand over their times. Below them are the smoothed segments, their confidence from 0 to 1 as height, and
    the scores of each frame; a dot marks each label's highest score.

    Args:
        title: The video's name; any text.
        seconds: Times of its frames ``(N,)`` from its beginning, at 0.
        scores: Theirs, ``(N, C)``.
        labels: In the order of the scores.
        summary: What `vsa_rt.pipeline.ingest.summary` makes of them.
        thumbnails: Some of its pictures.

    Returns:
        RGB, 1280 pixels wide.

    Raises:
        ItemError: There is no frame, or something is not a number.
    """
    return _Sheet(title, _track(title, seconds, scores, labels), summary, thumbnails).draw()


def file_name(key: str) -> str:
    """The name of a key's picture.

    Args:
        key: Any text.

    Returns:
        The last part of the key, as far as a file may be called so, and a part of the SHA-256 of the whole key: different
        keys have different names, also where a file system takes ``A`` for ``a``. Below 200 bytes of UTF-8.
    """
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    tail = re.split(r"[/\\]", key[-1000:].rstrip("/\\"))[-1]
    plain = unicodedata.normalize("NFC", "".join(c if c.isalnum() or c in ".-" else "_" for c in tail))
    short = re.sub("__+", "_", plain)[-_TAIL:].encode()[-2 * _TAIL :].decode("utf-8", "ignore").strip("._-")
    return f"{short}-{digest}.png" if short else f"{digest}.png"


class TimelineWriter:
    """Writes a video's timeline beside those of the others.

    Args:
        folder: Where to; it is made.

    Raises:
        UsageError: The folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--timeline {folder}: cannot be made: {error.strerror}") from error
        self._folder = folder

    def write(
        self,
        key: str,
        seconds: Any,
        scores: Any,
        labels: Sequence[str],
        summary: Mapping[str, Any],
        thumbnails: Sequence[Thumbnail],
    ) -> Path:
        """Write one picture; it appears whole, and in the place of an older one.

        Args:
            key: The piece's.
            seconds: Times of the frames that have scores ``(N,)`` from the beginning of the video, or of a feed's window.
            scores: ``(N, C)``.
            labels: In the order of the scores.
            summary: Of the piece.
            thumbnails: Some of its pictures.

        Returns:
            The file.

        Raises:
            ItemError: There is nothing to draw.
            OSError: The file cannot be written.
        """
        picture = timeline(key, seconds, scores, labels, summary, thumbnails)
        data = io.BytesIO()
        picture.save(data, "PNG")
        path = self._folder / file_name(key)
        write_whole(path, data.getvalue())
        return path
