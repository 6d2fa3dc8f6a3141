"""A running ingestion as one line: of a terminal, where it is kept up to date, or of a log."""

from __future__ import annotations

import sys
import threading
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console

from vsa_rt.render.numbers import count, percent
from vsa_rt.render.text import plain

if TYPE_CHECKING:
    from vsa_rt.pipeline.ingest.tally import Numbers, Tally

#: Seconds between two looks on a terminal, and between two lines of a log.
REFRESH, LOG = 0.25, 30.0
#: Seconds after which a log says that a run which waits for work is still there.
_STILL_THERE = 3600.0
#: Seconds over which a terminal's rates are taken: batches come one by one, so shorter ones jump between 0 and many.
_RECENT = 5.0
#: Cells of a log's line: no terminal's limit, but no key may fill a page.
_LOG_WIDTH = 400
#: Fewest cells in which the tail of a key tells anything.
_TAIL = 12
_BETWEEN = " | "
#: What comes into the line while there is room, the most important first; a name again is its next longer form.
_WANTED = (
    "items", "rate", "failed", "dropped", "items", "reused", "shares", "queues", "rate", "items", "reused", "elapsed",
    "earlier", "shares", "queues",
)  # fmt: skip


def progress_line(numbers: Numbers, previous: Numbers | None, width: int) -> str:
    """A run in one line of a terminal; what matters least goes first where it is narrow.

    Args:
        numbers: Now.
        previous: At an earlier moment of the run: images per second and shares of time are those since then.
            ``None``: since the run began.
        width: Cells that it may take.

    Returns:
        A line of at most so many cells, without characters that act on a terminal, whatever the keys are.
    """
    segments = _segments(numbers, previous)
    chosen = dict.fromkeys(segments, "")
    line = ""
    for name in _WANTED:
        wider = chosen | {name: segments[name].pop(0)}
        candidate = _BETWEEN.join(filter(None, wider.values()))
        if len(candidate) <= width:
            chosen, line = wider, candidate
    left = width - len(line) - len(_BETWEEN)
    if numbers.current and left >= _TAIL:
        line += _BETWEEN + _tail(numbers.current, left)
    return line


def _segments(numbers: Numbers, previous: Numbers | None) -> dict[str, list[str]]:
    """What the line says, in its order, each in forms that become longer. All of it is ASCII: a character a cell."""
    recent = numbers.since(previous) if previous is not None else numbers
    if recent.seconds <= 0:
        recent = numbers
    done, found = f"{numbers.finished:,}", f"{numbers.found:,}"
    more = numbers.unfinished > 0
    speed = rate(recent.frames_per_second)
    return {
        "elapsed": [_clock(numbers.seconds)],
        "items": [
            done,
            f"{done}/{found}" if more else done,
            f"{done} of {found} items" if more else count(numbers.finished, "item"),
        ],
        "earlier": [f"{numbers.before:,} earlier" if numbers.before else ""],
        "rate": [f"{speed}/s", f"{speed} images/s"],
        "failed": [f"{numbers.failed:,} failed"],
        "reused": [f"{numbers.reused:,} dup", count(numbers.reused, "duplicate")],
        "dropped": [f"{numbers.dropped:,} dropped" if numbers.dropped else ""],
        "shares": _shares(recent if any(recent.shares().values()) else numbers),
        "queues": _queues(numbers),
    }


def _shares(numbers: Numbers) -> list[str]:
    shares = {stage: f"{stage} {percent(share, 0)}" for stage, share in numbers.shares().items()}
    if not any(numbers.shares().values()):
        return ["", ""]
    return [shares[max(shares, key=numbers.shares().__getitem__)], " ".join(shares.values())]


def _queues(numbers: Numbers) -> list[str]:
    way = numbers.stream
    images = way.unprepared + way.ready + way.running + way.unread
    depths = {"open": numbers.opening, "decode": numbers.decoding, "engine": images}
    return [
        "waiting " + "/".join(f"{depth:,}" for depth in depths.values()),
        "waiting: " + ", ".join(f"{stage} {depth:,}" for stage, depth in depths.items()),
    ]


def rate(value: float) -> str:
    """A number per second: ``3.4``, ``312``, ``1,204``."""
    if value >= 10 or not value:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 0.05 else "<0.1"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _tail(key: str, cells: int) -> str:
    """A key's end in so many cells."""
    # A character takes no cell at least; the cut bounds the work where somebody piles thousands of accents up.
    end = key[-2 * cells :]
    shown = "".join(map(_steady, plain(unicodedata.normalize("NFC", end), 8 * cells)))
    if len(end) == len(key) and _cells(shown) <= cells:
        return shown
    kept, left = len(shown), cells - 1
    while kept and (left := left - _cells(shown[kept - 1])) >= 0:
        kept -= 1
    # An accent whose letter was cut off would sit on the ellipsis.
    while kept < len(shown) and not _cells(shown[kept]):
        kept += 1
    return "…" + shown[kept:]


def _steady(character: str) -> str:
    """A character whose width all terminals agree on, or its escape: joiners, selectors, private and unassigned ones."""
    unsteady = unicodedata.category(character) in ("Cf", "Co", "Cn") or "\ufe00" <= character <= "\ufe0f"
    return f"\\u{ord(character):04x}" if unsteady else character


def _cells(text: str) -> int:
    """Cells of a text, or more: not every terminal joins a pictogram and the tone behind it."""
    return sum(max(cell_len(c), 2 if c >= "\U0001f000" else 0) for c in text)


@contextmanager
def shown(tally: Tally, *, log_every: float = LOG) -> Iterator[None]:
    """Show how a run goes on, on standard error, until the block ends however it ends.

    On a terminal this is one line, which is kept up to date and gone at the end; what others print meanwhile stands
    above it. Elsewhere stderr is a log (systemd, Docker, a file), which has its own times and wants neither colours nor
    lines that change: a plain line comes every 30 seconds. While nothing is under way and nothing new comes, as in a
    followed folder at night, one an hour says that the run is alive; one that is stuck goes on to say so every 30 seconds,
    at 0 images/s. There is no line at the end: the summary says it all.

    Args:
        tally: Of the run.
        log_every: Seconds between two lines of a log.
    """
    console = Console(stderr=True, markup=False, highlight=False, force_terminal=True)
    if not sys.stderr.isatty() or console.is_dumb_terminal:
        with _repeated(log_every, LogLines(tally).tick):
            yield
        return
    with _one_line(console) as show:
        recent = _Recent(tally)

        def refresh() -> None:
            # A terminal that wraps after its last column, and not at the character behind it, needs one less.
            show(recent.line(console.width - 1))

        with _repeated(REFRESH, refresh, at_once=True):
            yield


@contextmanager
def _one_line(console: Console) -> Iterator[Callable[[str], None]]:
    """A line of a terminal that can be replaced."""
    from rich.live import Live
    from rich.text import Text

    # Where stdout is a terminal it is this one, and what is printed there must not run into the line. Elsewhere it has
    # to go where it was sent.
    live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=sys.stdout.isatty())

    def show(line: str) -> None:
        if not console.encoding.startswith("utf"):
            line = line.encode(console.encoding, "replace").decode(console.encoding)
        live.update(Text(line, no_wrap=True, overflow="crop"), refresh=True)

    live.start()
    try:
        yield show
    finally:
        with suppress(OSError):  # the terminal was closed: nothing of it is left to put right
            live.stop()


@contextmanager
def _repeated(seconds: float, act: Callable[[], None], at_once: bool = False) -> Iterator[None]:
    """Do something now and then in a thread, for as long as the block lasts."""
    ended = threading.Event()

    def loop() -> None:
        # A terminal or a log that is gone is no reason to end a run: it goes on unseen.
        with suppress(OSError):
            if at_once:
                act()
            while not ended.wait(seconds):
                act()

    thread = threading.Thread(target=loop, name="vsa-ingest-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _Recent:
    """Lines whose rates are those of the last seconds."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._past: deque[Numbers] = deque()

    def line(self, width: int) -> str:
        """The line now."""
        numbers = self._tally.numbers()
        while len(self._past) > 1 and numbers.seconds - self._past[1].seconds >= _RECENT:
            self._past.popleft()
        line = progress_line(numbers, self._past[0] if self._past else None, width)
        self._past.append(numbers)
        return line


class LogLines:
    """Lines of a log, where they have something to say.

    Args:
        tally: Of the run.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._previous = tally.numbers()
        self._written = self._previous.seconds

    def tick(self) -> None:
        """Write a line, or keep quiet."""
        numbers, previous = self._tally.numbers(), self._previous
        self._previous = numbers
        new = numbers.since(previous)
        if (
            new.found
            or new.finished
            or new.frames
            or numbers.unfinished
            or numbers.seconds - self._written >= _STILL_THERE
        ):
            self._written = numbers.seconds
            # In one call: what other threads write must not come between a line and its end.
            sys.stderr.write(f"vsa-rt: {progress_line(numbers, previous, _LOG_WIDTH)}\n")
            sys.stderr.flush()
