"""What this machine can build and run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from vsa_rt.render.tables import (
    document,
    new_table,
    number,
)

if TYPE_CHECKING:
    from vsa_rt.doctor import Library
    from vsa_rt.gpu import Gpus
    from vsa_rt.jetson import Jetson
    from vsa_rt.pipeline.diagnose import Diagnosis, Flavour, TargetReport

#: Wider than any table.
_UNBOUND = 10_000


def diagnosis(found: Diagnosis, as_json: bool) -> None:
    """The machine, its targets with measured speeds, and what is missing."""
    if as_json:
        document("doctor", **msgspec.to_builtins(found))
        return
    # What Rich takes for numbers, times and addresses is none: `onnxruntime:cpu` would be coloured in its middle.
    console, machine = Console(highlight=False), found.machine
    console.print(f"[bold]{escape(machine.processor)}[/], {machine.cores} cores, {machine.memory_gib} GiB")
    console.print(f"{', '.join(machine.instruction_sets) or machine.architecture}")
    console.print(
        f"Python {machine.python}, {escape(machine.system)}; resize: {found.resize}, JPEG: {found.jpeg}"
    )
    for part in (
        _accelerators(found),
        _clocks(found.jetson),
        _targets(found.targets),
    ):
        if part.row_count:
            console.print()
            console.print(part)
    _missing(console, found.missing)
    console.print()
    for line in found.advice:
        # A command that is broken into two lines cannot be copied.
        console.print(escape(line), soft_wrap=True)


def _accelerators(found: Diagnosis) -> Table:
    """GPUs, what TensorRT makes of them, and a Jetson's own words: a name and its text in each row."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = [
        *_gpu_rows(found.gpus),
        *_flavour_rows(found.tensorrt, bool(found.gpus.devices)),
        *_library_rows(found.machine.libraries),
        *_jetson_rows(found.jetson),
    ]
    for name, text in rows:
        table.add_row(name, escape(text))
    return table


def _gpu_rows(gpus: Gpus) -> list[tuple[str, str]]:
    if not gpus.devices:
        return [("GPU", f"none: {gpus.reason}")]
    shared = " shared with the processor"
    rows = [
        ("GPU", f"{g.name} ({g.capability}), {g.nbytes / 2**30:.1f} GiB{shared if g.integrated else ''}")
        for g in gpus.devices
    ]
    return [*rows, ("driver", f"serves CUDA up to {gpus.driver}")]


def _flavour_rows(flavours: list[Flavour], gpu: bool) -> list[tuple[str, str]]:
    """Without a GPU, a TensorRT that is not installed is not missed."""
    return [(f.package, _flavour_words(f)) for f in flavours if f.version or gpu]


def _library_rows(libraries: list[Library]) -> list[tuple[str, str]]:
    """What else uses GPUs and is installed."""
    return [
        (found.name, f"{found.version}: {found.purpose}")
        for found in libraries
        if found.name in ("cuda-core", "onnxruntime-gpu", "pycuda") and found.version is not None
    ]


def _flavour_words(flavour: Flavour) -> str:
    if flavour.usable:
        return f"{flavour.version}: compiles here, runs here"
    if flavour.compiles:
        return f"{flavour.version}: compiles ahead of time, runs nothing: {flavour.reason}"
    # Its name stands before it already.
    reason = flavour.reason.removeprefix(f"{flavour.package} is ")
    return f"{flavour.version}: {reason}" if flavour.version else reason


def _jetson_rows(jetson: Jetson | None) -> list[tuple[str, str]]:
    if jetson is None:
        return []
    told = {
        "board": ("board", jetson.board),
        "jetpack": ("JetPack", jetson.jetpack),
        "l4t": ("Jetson Linux", jetson.l4t),
        "power_mode": ("power mode", jetson.power_mode),
    }
    return [
        (name, value if value is not None else f"unknown: {jetson.reasons[attribute]}")
        for attribute, (name, value) in told.items()
    ]


def _clocks(jetson: Jetson | None) -> Table:
    """A Jetson's clocks, in MHz."""
    table = new_table("clock", "MHz now>", "lowest>", "highest>", "")
    words = {True: "pinned", False: "follows the load", None: "limits cannot be read"}
    for clock in jetson.clocks if jetson is not None else ():
        speeds = (number(mhz, 4) for mhz in (clock.current_mhz, clock.min_mhz, clock.max_mhz))
        table.add_row(escape(clock.name), *speeds, words[clock.pinned])
    return table


def _targets(targets: list[TargetReport]) -> Table:
    table = new_table("target", "version", "precision", "GMAC/s>", "of fp32>", "note")
    for target in targets:
        if not target.usable:
            note = "; ".join(text for text in (target.reason, target.install) if text)
            table.add_row(target.target, "-", "-", "-", "-", escape(note))
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
    return table


def _missing(console: Console, libraries: list[Library]) -> None:
    """What would be of use: a table where commands fit into it, else each one on a line of its own."""
    if not libraries:
        return
    table = new_table("missing", "for", "install")
    for library in libraries:
        table.add_row(library.name, library.purpose, escape(library.install))
    console.print()
    if Measurement.get(console, console.options.update(width=_UNBOUND), table).maximum <= console.width:
        console.print(table)
        return
    for library in libraries:
        console.print(f"missing: [bold]{library.name}[/], {escape(library.purpose)}", soft_wrap=True)
        console.print(f"  {escape(library.install)}", soft_wrap=True)
