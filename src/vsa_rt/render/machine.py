"""What this machine can build and run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.markup import escape

from vsa_rt.render.tables import (
    document,
    new_table,
    number,
)

if TYPE_CHECKING:
    from vsa_rt.pipeline.diagnose import Diagnosis


def diagnosis(found: Diagnosis, as_json: bool) -> None:
    """The machine, its targets with measured speeds, and what is missing."""
    if as_json:
        document("doctor", **msgspec.to_builtins(found))
        return
    console, machine = Console(), found.machine
    console.print(f"[bold]{escape(machine.processor)}[/], {machine.cores} cores, {machine.memory_gib} GiB")
    console.print(f"{', '.join(machine.instruction_sets) or machine.architecture}")
    console.print(
        f"Python {machine.python}, {escape(machine.system)}; resize: {found.resize}, JPEG: {found.jpeg}\n"
    )
    table = new_table("target", "version", "precision", "GMAC/s>", "of fp32>", "note")
    for target in found.targets:
        if not target.usable:
            table.add_row(target.target, "-", "-", "-", "-", escape(f"{target.reason}; {target.install}"))
        for speed in target.speeds:
            note = speed.reason or (
                "" if speed.achieved in (None, 1.0) else f"only {speed.achieved:.0%} ran so"
            )
            table.add_row(
                target.target,
                target.version,
                speed.precision,
                number(speed.gmacs, 4),
                "-" if speed.times is None else f"{speed.times:.2f}x",
                escape(note),
            )
    console.print(table)
    missing = new_table("missing", "for", "install")
    for library in machine.libraries:
        if library.version is None:
            missing.add_row(library.name, library.purpose, escape(library.install))
    if missing.row_count:
        console.print()
        console.print(missing)
    console.print()
    for line in found.advice:
        console.print(escape(line))
