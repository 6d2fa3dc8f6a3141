"""What came of a run of ingestion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vsa_rt.errors import ItemError
from vsa_rt.pipeline.ingest.layout import Format
from vsa_rt.pipeline.ingest.ledger_rows import State
from vsa_rt.pipeline.ingest.tally import Numbers


@dataclass(frozen=True)
class IngestReport:
    """What a run did, and what its folder has by now.

    Attributes:
        out: The folder.
        numbers: Of this run, at its end.
        totals: Pieces in the folder over all runs, by how they ended.
        parts: Parts in the folder over all runs.
        engine: Which engine ran, and why.
        ended: ``complete``: the sources came to their end; ``stopped``: somebody ended it before.
        format: Of the parts.
        notes: What is strange about the folder, in sentences.
        random_weights: A warning where labels mean less than they seem to; empty for trained weights.
        failures: Some of the pieces in the folder that failed, for a first look; its list has all of them.
    """

    out: Path
    numbers: Numbers
    totals: Mapping[State, int]
    parts: int
    engine: str
    ended: Literal["complete", "stopped"]
    format: Format
    notes: tuple[str, ...] = ()
    random_weights: str = ""
    failures: tuple[ItemError, ...] = ()
