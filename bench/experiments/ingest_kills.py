"""Runs of ingestion that are killed at random points and resumed until they are complete, against an undisturbed one.

A run is killed by SIGKILL to the command alone, after a time drawn uniformly from the whole duration of an undisturbed
run, its start-up included; its decoder processes are left to find out. The same command is given again at once, and
killed again, until it ends before its time or was killed often enough. Then the outputs are compared byte for byte
after sorting, and nothing of the killed runs may still be running.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vsa_rt.bench.experiments.ingest_command import FINISHED, Subject, run
from vsa_rt.bench.experiments.ingest_material import mixture, shipped_clips
from vsa_rt.bench.experiments.ingest_memory import family
from vsa_rt.bench.experiments.ingest_outputs import Output, differences
from vsa_rt.bench.experiments.ingest_rows import Row

#: Of a run, so that it ends.
MOST_KILLS = 5
#: Pieces of a part of the output: so few that kills fall between parts, into the writing of one, and before the first.
PART_ITEMS = 16
#: Seconds for a process that lost its parent to end.
GRACE = 10.0


@dataclass(frozen=True)
class Story:
    """What became of a run.

    Attributes:
        kills: How often it was killed.
        parts: Parts of the output that were there at each kill.
        left: Processes of the killed runs that were still there when it was complete, and ``GRACE`` seconds after.
        wrong: What its output lacks or has too many, in sentences.
    """

    kills: int
    parts: tuple[int, ...]
    left: int
    wrong: tuple[str, ...]


def points(seed: int, seconds: float) -> Iterator[float]:
    """Seconds after which a run is killed: without end, uniform over the duration of an undisturbed run."""
    generator = np.random.default_rng(seed)
    while True:
        yield float(generator.uniform(0, seconds))


def killed(command: Sequence[str], after: float) -> dict[int, int]:
    """Start a command and kill it after a while.

    Args:
        command: Its words.
        after: Seconds.

    Returns:
        It and its descendants at that moment: process number to the tick of its start; empty if it came to its end before.

    Raises:
        SystemExit: It ended by itself, and not well.
    """
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=messages
        )
        try:
            code = process.wait(after)
        except subprocess.TimeoutExpired:
            found = family(process.pid)
            return found
        finally:
            process.kill()
            process.wait()
        if code not in FINISHED:
            messages.seek(0)
            text = messages.read().decode(errors="replace").strip()
            raise SystemExit(f"{' '.join(command)}\nexit code {code}: {text}")
    return {}


def still_there(processes: dict[int, int], grace: float = GRACE) -> int:
    """How many processes do not end within a while."""
    end = time.monotonic() + grace
    while True:
        left = sum(family(pid).get(pid) == started for pid, started in processes.items())
        if not left or time.monotonic() >= end:
            return left
        time.sleep(0.1)


def disturbed(
    command: Sequence[str], out: Path, when: Iterator[float], wanted: Output, most: int = MOST_KILLS
) -> Story:
    """Run a command into a folder, kill and resume it until it is complete, and look at what it wrote.

    Args:
        command: Its words.
        out: Where it writes.
        when: Seconds after which it is killed.
        wanted: What an undisturbed run wrote.
        most: Kills; the run after them is let go on.

    Raises:
        SystemExit: It cannot be resumed.
    """
    parts: list[int] = []
    others: dict[int, int] = {}
    while len(parts) < most:
        found = killed(command, next(when))
        if not found:
            break
        parts.append(len(list(out.glob("items-*.jsonl"))))
        others |= found
    else:
        run(command)
    left = still_there(others)
    return Story(len(parts), tuple(parts), left, tuple(differences(wanted, Output.read(out))))


def rows(stories: Sequence[Story], lines: int) -> Iterator[Row]:
    """What the runs say.

    Args:
        stories: Of the runs.
        lines: Of the output of an undisturbed run.
    """
    equal = sum(not story.wrong for story in stories)
    kills = [number for story in stories for number in story.parts]
    first = next((story.wrong[0] for story in stories if story.wrong), "")
    yield Row(
        "killed and resumed: outputs equal to an undisturbed run's",
        equal,
        f"of {len(stories)}",
        asked="all",
        held=equal == len(stories),
        note=first or f"{lines} lines each, byte for byte after sorting",
    )
    after = sum(number > 0 for number in kills)
    most = max((story.kills for story in stories), default=0)
    yield Row("kills", len(kills), "", note=f"{after} with parts on the disk; at most {most} in a run")
    left = sum(story.left for story in stories)
    yield Row("processes of killed runs that are left", left, "", asked="0", held=left == 0)


def kills(
    subject: Subject,
    photographs: Sequence[Path],
    work: Path,
    runs: int,
    count: int,
    show: Callable[[str], object],
) -> Iterator[Row]:
    """Kill and resume.

    Args:
        subject: With which engine.
        photographs: Which photographs.
        work: Where the material is made.
        runs: How many runs; each that was never killed is drawn anew. The run's number is the seed of its kills.
        count: Distinct photographs in the material.
        show: Gets a line about each run.
    """
    source = mixture(photographs, shipped_clips(), count, work / "mixture")
    options = ("--part-items", str(PART_ITEMS))
    undisturbed = work / "undisturbed"
    ended = run(subject.command([source], undisturbed, *options))
    wanted = Output.read(undisturbed)
    again = work / "again"
    run(subject.command([source], again, *options))
    wrong = differences(wanted, Output.read(again))
    yield Row(
        "two undisturbed runs: lines that differ",
        len(wrong),
        f"of {len(wanted)}",
        asked="0",
        held=not wrong,
        note=wrong[0] if wrong else f"{ended.seconds:.1f} s each",
    )
    stories: list[Story] = []
    seed = 0
    while len(stories) < runs:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            out = Path(folder) / "out"
            command = subject.command([source], out, *options)
            story = disturbed(command, out, points(seed, ended.seconds), wanted)
        show(f"seed {seed}: {story}")
        seed += 1
        if story.kills or story.wrong:
            stories.append(story)
    yield from rows(stories, len(wanted))
