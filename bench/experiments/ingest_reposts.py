"""What exact reposts cost: a feed that repeats itself against one of as many items that does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vsa_rt.bench.experiments.ingest_command import Subject, ingest, start_up
from vsa_rt.bench.experiments.ingest_material import REPOSTS, affordable, copies, feed
from vsa_rt.bench.experiments.ingest_rows import Row
from vsa_rt.bench.intervals import ratio

#: Times the throughput, as was asked. With reposts that cost nothing it would be 1 / (1 - 0.4).
ASKED = 1.5
_SEED = 0


@dataclass(frozen=True)
class Round:
    """Seconds of one round.

    Attributes:
        plain: Of the feed without reposts.
        repeating: Of the feed with reposts.
        start_up: Of the command on a single photograph.
    """

    plain: float
    repeating: float
    start_up: float


def rows(rounds: Sequence[Round], count: int) -> Iterator[Row]:
    """What the rounds say."""
    beyond = ratio([r.plain - r.start_up for r in rounds], [r.repeating - r.start_up for r in rounds])
    whole = ratio([r.plain for r in rounds], [r.repeating for r in rounds])
    what = f"{count} items, {REPOSTS:.0%} exact reposts: throughput / without"
    note = f"{beyond.pairs} rounds"
    yield Row(
        f"{what}, beyond start-up",
        beyond.median,
        "x",
        beyond.low,
        beyond.high,
        f"at least {ASKED}",
        beyond.median >= ASKED,
        note,
    )
    yield Row(f"{what}, whole command", whole.median, "x", whole.low, whole.high, note="start-up included")
    for name, values in (
        ("without reposts", [r.plain for r in rounds]),
        ("with reposts", [r.repeating for r in rounds]),
        ("start-up", [r.start_up for r in rounds]),
    ):
        middle = sorted(values)[len(values) // 2]
        yield Row(
            f"{count} items {name}" if name != "start-up" else name, middle, "s", min(values), max(values)
        )


def reposts(
    subject: Subject, photographs: Sequence[Path], work: Path, rounds: int, count: int
) -> Iterator[Row]:
    """Measure it.

    Args:
        subject: With which engine.
        photographs: Which photographs.
        work: Where the feeds are made.
        rounds: In each, both feeds and the start-up, the feeds in turns first.
        count: Items of each feed.

    Raises:
        SystemExit: The command found other reposts than there are.
    """
    chosen = affordable(photographs, 2 * count)
    numbers = {"plain": list(range(count)), "repeating": feed(count, REPOSTS, _SEED)}
    folders = {name: copies(chosen, places, work / name) for name, places in numbers.items()}
    found = []
    for turn in range(rounds):
        seconds: dict[str, float] = {"start_up": start_up(subject, photographs[0], work)}
        for name in sorted(folders, reverse=bool(turn % 2)):
            ended, there = ingest(subject, [folders[name]], work)
            wanted = count - len(set(numbers[name]))
            if (there.items, there.reused) != (count, wanted):
                raise SystemExit(
                    f"{name}: {there.items} results, {there.reused} of them reused, {there.failed} failed; expected "
                    f"{count} and {wanted}"
                )
            seconds[name] = ended.seconds
        found.append(Round(**seconds))
    yield from rows(found, count)
