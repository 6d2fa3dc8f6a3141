"""The list of pieces that failed: written whole from the ledger, so that both cannot disagree."""

from __future__ import annotations

from typing import BinaryIO

from vsa_rt.pipeline.ingest import durable
from vsa_rt.pipeline.ingest.formats import json_text
from vsa_rt.pipeline.ingest.layout import Layout
from vsa_rt.pipeline.ingest.ledger import Ledger
from vsa_rt.pipeline.ingest.part_files import FAILED


def write(ledger: Ledger, layout: Layout) -> None:
    """Write the list: a piece's row with its error and how often it was tried, sorted by key; empty if none failed.

    Args:
        ledger: Of the folder where it comes to lie.
        layout: How rows look.

    Raises:
        OSError: It cannot be written; the one before is still there.
        EnvironmentUnusable: The ledger cannot be read.
    """

    def lines(stream: BinaryIO) -> None:
        for entry in ledger.failed():
            row = layout.item(entry.key, entry.kind, content=entry.content, error=entry.reason)
            stream.write(json_text({**row, "attempts": entry.attempts}).encode() + b"\n")

    path = ledger.folder / FAILED
    durable.stage(path, lines)
    try:
        durable.publish([path])
    except BaseException:
        durable.discard([path])
        raise
