"""Outputs of two runs of ingestion, compared line by line: what one has and the other has not."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

#: Families of files to what their names begin with; the parts of a family count as one.
FAMILIES = ("items", "frames", "failed")
#: Of a line that differs, what is shown.
_SHOWN = 160


@dataclass(frozen=True)
class Output:
    """What a folder holds.

    Attributes:
        lines: Family to its lines, byte for byte, sorted.
    """

    lines: dict[str, list[bytes]]

    @classmethod
    def read(cls, folder: Path) -> Output:
        """Read a folder's results."""
        return cls(
            {
                family: sorted(
                    line
                    for path in folder.glob(f"{family}*.jsonl")
                    for line in path.read_bytes().splitlines(True)
                )
                for family in FAMILIES
            }
        )

    def __len__(self) -> int:
        return sum(map(len, self.lines.values()))


def differences(wanted: Output, got: Output) -> list[str]:
    """What differs, a sentence for each line; empty if the outputs are equal byte for byte, their order aside.

    Args:
        wanted: Of the undisturbed run.
        got: Of the other one.
    """
    found = []
    for family in FAMILIES:
        before, after = Counter(wanted.lines[family]), Counter(got.lines[family])
        for words, more in (("is missing", before - after), ("is too many", after - before)):
            for line, count in sorted(more.items()):
                times = f" {count} times" if count > 1 else ""
                found.append(f"{family}: a line {words}{times}: {line[:_SHOWN]!r}")
    return found
