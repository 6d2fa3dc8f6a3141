"""How near ingestion comes to what decoding, resizing and the engine allow.

The bound of a source is the time in which this machine's cores could do nothing but these three::

    bound = (core-seconds of decoding + core-seconds of resizing + pictures x core-seconds of the engine) / cores

each taken alone (``ingest_alone``), in the same round as the command's own time. Reading directories, hashing, carrying
pictures between processes, batching, the summary, writing and syncing are not in it, nor is any idle core. What is achieved is the bound
by the command's wall time. As the parts are processor time, somebody else on the machine makes the command look worse
and never better. That of the whole command has its start-up in it: Python, the bundle, the engine's
compilation, the decoder processes; the same command on a single photograph, in the same round, says how much.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vsa_rt.bench.experiments import ingest_alone
from vsa_rt.bench.experiments.ingest_alone import Spent
from vsa_rt.bench.experiments.ingest_command import Subject, ingest, start_up
from vsa_rt.bench.experiments.ingest_material import affordable, copies, looped, shipped_clips
from vsa_rt.bench.experiments.ingest_rows import Row
from vsa_rt.bench.intervals import ratio

#: Of the bound, as was asked.
ASKED = 0.9
#: Share of the command's time that its start-up may take: subtracting much more than that leaves mostly noise.
SMALL = 0.2
SAMPLES = ("fps=1", "fps=5")
#: 1280x720 and 640x272, both H.264 at 25 frames a second.
CLIPS = ("bigbuckbunny", "bikes")
#: Videos of one case.
VIDEOS = 4


@dataclass(frozen=True)
class Case:
    """What is ingested.

    Attributes:
        name: In words.
        source: As the command takes it.
        photographs: What is in it, of a folder.
        sample: Of a video; empty for a folder.
    """

    name: str
    source: Path
    photographs: tuple[Path, ...] = ()
    sample: str = ""

    @property
    def options(self) -> tuple[str, ...]:
        """More words for the command."""
        return ("--sample", self.sample) if self.sample else ()


@dataclass(frozen=True)
class Round:
    """What one round of a case found.

    Attributes:
        host: What decoding and resizing take alone.
        engine_ms: Core-milliseconds of the engine for a picture, alone.
        cores: That share the work.
        wall: Seconds of the command.
        start_up: Of them, what it takes on a single photograph.
        core_seconds: Processor time of the command.
    """

    host: Spent
    engine_ms: float
    cores: int
    wall: float
    start_up: float
    core_seconds: float

    @property
    def needed(self) -> float:
        """Core-seconds that the three parts take alone."""
        return self.host.decode + self.host.resize + self.host.pictures * self.engine_ms / 1e3

    @property
    def bound(self) -> float:
        """Seconds in which the cores could do the three parts and nothing else."""
        return self.needed / self.cores

    @property
    def beyond(self) -> float:
        """Seconds of the command beyond its start-up."""
        return self.wall - self.start_up


def cases(
    photographs: Sequence[Path], count: int, minutes: float, work: Path, wanted: str = ""
) -> Iterator[Case]:
    """Videos of each clip with each sample, one video alone, and a folder of photographs; made when they are asked for.

    Args:
        photographs: To be copied.
        count: How often.
        minutes: Of the videos of a case together, at least.
        work: Where they are made.
        wanted: Only cases whose name has this in it.
    """
    clips = shipped_clips()
    for name in CLIPS:
        asked = {s: f"{VIDEOS} videos of {name}, {minutes:g} minutes or more, {s}" for s in SAMPLES}
        asked = {sample: case for sample, case in asked.items() if wanted in case}
        folder = work / name
        folder.mkdir()
        for number in range(VIDEOS if asked else 0):  # of different lengths, for equal ones would be reposts
            looped(clips[name], folder / f"{number}.mp4", 60 * minutes / VIDEOS + 12 * number)
        for sample, case in asked.items():
            yield Case(case, folder, sample=sample)
        shutil.rmtree(folder)
    single = f"a single video of {CLIPS[0]}, {minutes:g} minutes, fps=1"
    if wanted in single:
        alone = work / "one.mp4"
        looped(clips[CLIPS[0]], alone, 60 * minutes)
        yield Case(single, alone, sample="fps=1")
        alone.unlink()
    many = f"{count} photographs"
    if wanted in many:
        folder = copies(affordable(photographs, count), range(count), work / "many")
        yield Case(many, folder, tuple(sorted(folder.iterdir())))


def measured(subject: Subject, case: Case, photographs: Sequence[Path], work: Path) -> Round:
    """One round: the parts alone, the start-up, and the command.

    Raises:
        SystemExit: The command looked at other pictures than the parts did.
    """
    alone = ingest_alone.host(subject, case.photographs or case.source, case.sample)
    engine_ms = ingest_alone.engine(subject, photographs)
    before = start_up(subject, photographs[0], work)
    ended, found = ingest(subject, [case.source], work, *case.options)
    if found.pictures != alone.pictures:
        raise SystemExit(
            f"{case.name}: the command looked at {found.pictures} pictures and failed on {found.failed}; expected "
            f"{alone.pictures}"
        )
    return Round(alone, engine_ms, subject.cores, ended.seconds, before, ended.core_seconds)


def rows(case: Case, rounds: Sequence[Round]) -> Iterator[Row]:
    """What the rounds of a case say."""
    pictures = rounds[0].host.pictures
    beyond = ratio([r.bound for r in rounds], [r.beyond for r in rounds])
    whole = ratio([r.bound for r in rounds], [r.wall for r in rounds])
    begin = statistics.median(r.start_up / r.wall for r in rounds)
    note = f"{beyond.pairs} rounds, {pictures} pictures, start-up {begin:.0%} of the time"
    if begin > SMALL:
        note += f", over {SMALL:.0%}: cannot be judged, take more"
    yield Row(
        f"{case.name}: bound / time beyond start-up",
        beyond.median,
        "x",
        beyond.low,
        beyond.high,
        f"at least {ASKED}",
        beyond.median >= ASKED and begin <= SMALL,
        note,
    )
    yield Row(
        f"{case.name}: bound / whole command",
        whole.median,
        "x",
        whole.low,
        whole.high,
        note="start-up included",
    )
    for what, values, unit in (
        ("whole command", [r.wall for r in rounds], "s"),
        ("start-up", [r.start_up for r in rounds], "s"),
        ("bound", [r.bound for r in rounds], "s"),
        ("decode alone, a picture", [1e3 * r.host.decode / pictures for r in rounds], "core-ms"),
        ("resize alone, a picture", [1e3 * r.host.resize / pictures for r in rounds], "core-ms"),
        ("engine alone, a picture", [r.engine_ms for r in rounds], "core-ms"),
        ("the command's processor time / the parts'", [r.core_seconds / r.needed for r in rounds], "x"),
        ("cores that the command kept busy", [r.core_seconds / r.wall for r in rounds], "cores"),
    ):
        yield Row(f"{case.name}: {what}", statistics.median(values), unit, min(values), max(values))


def bound(
    subject: Subject,
    photographs: Sequence[Path],
    work: Path,
    rounds: int,
    minutes: float,
    count: int,
    wanted: str = "",
) -> Iterator[Row]:
    """Measure every case.

    Args:
        subject: With which engine.
        photographs: For the folder of photographs, and for the engine alone.
        work: Where the material is made.
        rounds: Of each case; six are the fewest that give an interval of 95 %.
        minutes: Of the videos of a case.
        count: Of copies of photographs.
        wanted: Only cases whose name has this in it.
    """
    for case in cases(photographs, count, minutes, work, wanted):
        yield from rows(case, [measured(subject, case, photographs, work) for _ in range(rounds)])
