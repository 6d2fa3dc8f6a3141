"""Memory of ingestion: whether its peak stays where it is as more is ingested.

Looks at the command and its children every 0.2 s. The sum of their proportional set sizes counts a page that several
share once, divided among them; the sum of their resident set sizes counts it in each. A peak between two looks is missed
by both, and not by the high-water mark that the kernel keeps of the command's own process.

Peaks alone would hide growth below a high start, such as that of an engine's compilation, so the level of a run's last
quarter is told beside them.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vsa_rt.bench import clock
from vsa_rt.bench.experiments.ingest_command import Subject, ingest, start_up
from vsa_rt.bench.experiments.ingest_material import affordable, copies, looped, shipped_clips
from vsa_rt.bench.experiments.ingest_rows import Row

#: Seconds between two looks.
EVERY = 0.2
#: By how much a peak may grow, as was asked.
ASKED = 0.05
#: Of an hour's content, what counts as its beginning: five minutes.
BEGINNING = 1 / 12
_CLIP = "bikes"
_KIB = 2**10


@dataclass(frozen=True)
class Look:
    """Memory of a process and its descendants at one moment, in MiB.

    Attributes:
        seconds: Since the first look.
        shared_out: Sum of their proportional set sizes.
        resident: Sum of their resident set sizes.
        mark: High-water mark of the process itself, without its descendants.
    """

    seconds: float
    shared_out: float
    resident: float
    mark: float


def family(pid: int, root: Path = Path("/proc")) -> dict[int, int]:
    """A process and its descendants: process number to the tick of its start, which tells it from a later one."""
    children: dict[int, list[int]] = {}
    started: dict[int, int] = {}
    for folder in root.iterdir():
        if folder.name.isdecimal():
            try:
                # The name in the second field may hold anything, spaces and parentheses too (proc(5)).
                fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            if fields[0] not in "ZX":
                children.setdefault(int(fields[1]), []).append(int(folder.name))
                started[int(folder.name)] = int(fields[19])
    found: dict[int, int] = {}
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        if one in started:
            found[one] = started[one]
        waiting += children.get(one, [])
    return found


def _kib(path: Path, names: Sequence[str]) -> list[int]:
    """Values of a file of ``Name:  value kB`` lines; zeros where it cannot be read: the process ended."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return [0] * len(names)
    values = {
        name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines) if rest.split()
    }
    return [int(values.get(name, 0)) for name in names]


def look(pid: int, seconds: float, root: Path = Path("/proc")) -> Look:
    """Look once."""
    sums = [_kib(root / str(one) / "smaps_rollup", ("Pss", "Rss")) for one in family(pid, root)]
    (mark,) = _kib(root / str(pid) / "status", ("VmHWM",))
    return Look(seconds, sum(s[0] for s in sums) / _KIB, sum(s[1] for s in sums) / _KIB, mark / _KIB)


class Memory:
    """Looks at a process again and again while it is watched.

    Attributes:
        looks: What was seen, in order.
    """

    def __init__(self, every: float = EVERY) -> None:
        self.looks: list[Look] = []
        self._every = every
        self._end = threading.Event()

    @contextmanager
    def __call__(self, pid: int) -> Iterator[None]:
        """Watch a process during a block."""
        since = clock.Stopwatch()
        thread = threading.Thread(target=self._watch, args=(pid, since), name="memory")
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()

    def _watch(self, pid: int, since: clock.Stopwatch) -> None:
        while True:
            seen = look(pid, since.total() / 1e3)
            if seen.shared_out:
                self.looks.append(seen)
            if self._end.wait(self._every):
                return


@dataclass(frozen=True)
class Peaks:
    """The most of each figure, in MiB, and the level.

    Attributes:
        shared_out: Peak of the summed proportional set sizes.
        resident: Peak of the summed resident set sizes.
        mark: High-water mark of the process itself.
        level: Median of the summed proportional set sizes over the last quarter of the looks.
    """

    shared_out: float
    resident: float
    mark: float
    level: float


def peaks(looks: Sequence[Look]) -> Peaks:
    """What looks say.

    Raises:
        ValueError: There are none.
    """
    if not looks:
        raise ValueError("nobody looked: the process ended at once, or its memory cannot be read")
    return Peaks(
        max(one.shared_out for one in looks),
        max(one.resident for one in looks),
        max(one.mark for one in looks),
        statistics.median(one.shared_out for one in looks[3 * len(looks) // 4 :]),
    )


def until(looks: Sequence[Look], begin: float, share: float) -> Sequence[Look]:
    """The looks of a run's start and of the first share of what follows it.

    Args:
        looks: Of the whole run.
        begin: Seconds of its start-up.
        share: Of the seconds from there to its end.
    """
    end = begin + share * (looks[-1].seconds - begin)
    return [one for one in looks if one.seconds <= end]


def grown(what: str, before: Peaks, after: Peaks, note: str) -> Iterator[Row]:
    """How a peak grew.

    Args:
        what: From what to what.
        before: Of the little.
        after: Of the much.
        note: Conditions.
    """
    asked, most = f"at most {1 + ASKED:g}", 1 + ASKED
    for name, one, other in (
        ("peak of summed PSS", before.shared_out, after.shared_out),
        ("peak of summed RSS", before.resident, after.resident),
        ("VmHWM of the command itself", before.mark, after.mark),
    ):
        figures = f"{one:.0f} to {other:.0f} MiB; {note}"
        yield Row(f"{what}: {name}", other / one, "x", asked=asked, held=other / one <= most, note=figures)
    figures = f"{before.level:.0f} to {after.level:.0f} MiB; {note}"
    yield Row(f"{what}: median PSS of the last quarter", after.level / before.level, "x", note=figures)


def _of_photographs(subject: Subject, photographs: Sequence[Path], count: int, work: Path) -> Peaks:
    folder = copies(photographs, range(count), work / str(count))
    memory = Memory()
    _, found = ingest(subject, [folder], work, watch=memory)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    if found.items != count:
        raise SystemExit(f"{found.items} of {count} photographs have a result, {found.failed} failed")
    return peaks(memory.looks)


def memory(
    subject: Subject, photographs: Sequence[Path], work: Path, few: int, many: int, hours: float
) -> Iterator[Row]:
    """Peaks over few and many photographs, and over a long video.

    Args:
        subject: With which engine.
        photographs: Which photographs; as many of them as the disk allows for, the same for few and many.
        work: Where the material is made.
        few: Copies of photographs.
        many: Likewise.
        hours: Of video.
    """
    chosen = affordable(photographs, many)
    little, much = (_of_photographs(subject, chosen, count, work) for count in (few, many))
    yield from grown(f"{few:,} to {many:,} photographs", little, much, f"of {len(chosen)} pictures")
    path = work / "long.mp4"
    seconds = looped(shipped_clips()[_CLIP], path, 3600 * hours)
    begin = start_up(subject, photographs[0], work)
    watched = Memory()
    ended, found = ingest(subject, [path], work, watch=watched)
    path.unlink()
    first, whole = until(watched.looks, begin, BEGINNING), watched.looks
    what = f"first {seconds * BEGINNING / 60:.1f} to all {seconds / 60:.1f} minutes of video"
    note = f"{len(first)} of {len(whole)} looks, {found.pictures} frames in {ended.seconds:.0f} s"
    yield from grown(what, peaks(first), peaks(whole), note)
