"""The command ``vsa-rt ingest`` as a process: how long it took, how much processor time, what it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vsa_rt.bench import clock
from vsa_rt.doctor import usable_cores
from vsa_rt.runtime.load import load

#: Everything was done; everything was tried and some failed.
FINISHED = (0, 1)
#: What is kept of the messages of a command that failed.
_TAIL = 2000


@dataclass(frozen=True)
class Subject:
    """What is measured, and with which engine.

    Attributes:
        bundle: The bundle.
        target: Of its engine.
        precision: Likewise.
        batch: The bundle's max-batch.
        cores: That the process may use.
    """

    bundle: Path
    target: str
    precision: str
    batch: int
    cores: int

    @classmethod
    def of(cls, bundle: Path) -> Subject:
        """A bundle with the engine that it chooses on this machine."""
        with load(bundle) as runtime:
            engine = runtime.choice.engine
            return cls(
                bundle, str(engine.target), str(engine.precision), runtime.manifest.max_batch, usable_cores()
            )

    def __str__(self) -> str:
        return (
            f"{self.bundle.name}: {self.target} {self.precision}, max-batch {self.batch}, {self.cores} cores"
        )

    def command(self, sources: Sequence[Path], out: Path, *options: str) -> list[str]:
        """The command line that ingests sources into a folder with this engine."""
        engine = ("--target", self.target, "--precision", self.precision)
        words = ["ingest", *map(str, sources), "--bundle", str(self.bundle), "-o", str(out), *engine]
        return [sys.executable, "-m", "vsa_rt", *words, *options, "--json"]


@dataclass(frozen=True)
class Ended:
    """A process that came to its end.

    Attributes:
        seconds: From its start to its end, by the wall clock.
        core_seconds: Processor time of it and of the processes that it waited for, in user and system mode.
        code: Exit code.
    """

    seconds: float
    core_seconds: float
    code: int


@dataclass(frozen=True)
class Written:
    """What an output folder holds.

    Attributes:
        items: Rows of pieces that have a result.
        pictures: That the engine answered for them: one for an image, its frames for a video.
        reused: Rows of pieces, counted above, whose result is an earlier one's.
        failed: Pieces without a result.
    """

    items: int
    pictures: int
    reused: int
    failed: int


def run(
    command: Sequence[str],
    accepted: Sequence[int] = FINISHED,
    watch: Callable[[int], AbstractContextManager[Any]] = lambda pid: nullcontext(),
) -> Ended:
    """Run a command to its end.

    Args:
        command: Its words.
        accepted: Exit codes that count as an end.
        watch: What surrounds it while it runs; gets its process number.

    Raises:
        SystemExit: It ended otherwise; with its last messages.
    """
    ended: list[tuple[int, float]] = []
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as messages:
        seconds = clock.single(lambda: ended.append(_ended(command, out, messages, watch)))
        code, core_seconds = ended[0]
        if code not in accepted:
            raise SystemExit(f"{' '.join(command)}\nexit code {code}: {_tail(messages) or _tail(out)}")
    return Ended(seconds, core_seconds, code)


def _ended(
    command: Sequence[str],
    out: IO[bytes],
    messages: IO[bytes],
    watch: Callable[[int], AbstractContextManager[Any]],
) -> tuple[int, float]:
    with (
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=messages) as process,
        watch(process.pid),
    ):
        try:
            # Not process.wait(): only this tells the processor time of one child among others.
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_utime + used.ru_stime


def _tail(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read()[-_TAIL:].decode(errors="replace").strip()


def rows(folder: Path, family: str) -> Iterator[dict[str, Any]]:
    """Rows of an output folder's parts, of ``items`` or ``frames``."""
    for path in sorted(folder.glob(f"{family}-*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def written(folder: Path) -> Written:
    """Count what an output folder holds."""
    items = pictures = reused = 0
    for row in rows(folder, "items"):
        items += 1
        if row["reused"] is not None:
            reused += 1
        else:
            pictures += 1 if row["kind"] == "image" else row["frames"]
    failed = folder / "failed.jsonl"
    lines = failed.read_bytes().count(b"\n") if failed.exists() else 0
    return Written(items, pictures, reused, lines)


def ingest(
    subject: Subject,
    sources: Sequence[Path],
    work: Path,
    *options: str,
    watch: Callable[[int], AbstractContextManager[Any]] = lambda pid: nullcontext(),
) -> tuple[Ended, Written]:
    """Ingest sources into a folder that is removed afterwards.

    Args:
        subject: With which engine.
        sources: What to ingest.
        work: Where the folder is made.
        options: More words for the command line.
        watch: As for ``run``.
    """
    with tempfile.TemporaryDirectory(dir=work) as folder:
        out = Path(folder) / "out"
        ended = run(subject.command(sources, out, *options), watch=watch)
        return ended, written(out)


def start_up(subject: Subject, photograph: Path, work: Path) -> float:
    """Seconds of the command on a single photograph: what does not grow with what is ingested."""
    return ingest(subject, [photograph], work)[0].seconds
