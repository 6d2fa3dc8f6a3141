"""A lowered graph: what proves it safe, which nodes stay in fp32, and how an engine is built of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsa_rt.render.plans import plan_words
from vsa_rt.render.tables import document, new_table, number, verdict

if TYPE_CHECKING:
    from vsa_rt.manifest import CalibrationRecord
    from vsa_rt.pipeline.precision.proof import Kept, Lowered

#: Nodes that are named one by one in a terminal; the file names all.
_NAMED = 8
#: Causes whose nodes each have a reason of their own.
_OWN = ("ranges", "overflow")
#: Half's largest number (IEEE 754-2019, 3.6).
_LARGEST = 65504


def lowered(found: Lowered, path: Path, as_json: bool) -> None:
    """The graph, its proof, and the next step.

    Args:
        found: What was written.
        path: The folder.
        as_json: As one document instead.
    """
    if as_json:
        document("lowered", path=str(path), **msgspec.to_builtins(found))
        return
    console = Console()
    console.print(
        f"[bold]{escape(str(path / found.graph))}[/]: {found.nbytes / 1e6:.1f} MB, {_plan(found)}, "
        f"{verdict(not found.reasons)}",
        soft_wrap=True,
    )
    console.print()
    console.print(_proof(found))
    for reason in found.reasons:
        console.print(f"[bold red]failed parity: {escape(reason)}[/]", soft_wrap=True)
    _kept(console, found.kept)
    console.print("\nan engine of it, in that folder on the machine with the GPU:")
    console.print(escape(found.trtexec), soft_wrap=True, highlight=False)


def _plan(found: Lowered) -> str:
    plan = found.plan
    backbones = {tap: str(precision) for tap, precision in plan.backbones.items()}
    return f"{escape(plan_words(backbones, str(plan.around)))}, head {plan.head}"


def _proof(found: Lowered) -> Table:
    """What was looked at, and what was seen."""
    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    if found.calibration is not None:
        lines.add_row("int8", escape(_calibration(found.calibration)))
    lines.add_row("ranges", escape(_ranges(found)))
    lines.add_row("rounding", _rounding(found))
    lines.add_row("parity", escape(_parity(found)))
    return lines


def _calibration(record: CalibrationRecord) -> str:
    words = f"ranges by {record.method} over {record.images} photographs"
    if record.skipped:
        words += f", {record.skipped} could not be read"
    return "; ".join([words, *record.warnings])


def _ranges(found: Lowered) -> str:
    ranges = found.ranges
    if ranges is None:
        return "not asked for: nothing is half"
    tensor, most = max(ranges.peaks.items(), key=lambda item: item[1], default=("", 0.0))
    aside = [f"{ranges.skipped} could not be read"] if ranges.skipped else []
    aside += [f"{ranges.stand_ins} with stand-ins for their ready tensors"] if ranges.stand_ins else []
    return (
        f"{len(ranges.peaks)} activations over {ranges.photographs} photographs"
        + (f" ({', '.join(aside)})" if aside else "")
        + f" reach {number(most)} ({tensor}); {ranges.limit:.0f} is let through, half ends at {_LARGEST}"
    )


def _rounding(found: Lowered) -> str:
    rounding = found.rounding
    left = len(rounding.rounds[-1].overflows)
    taken = sum(len(r.excluded) for r in rounding.rounds)
    outcome = f"[bold red]{left} overflow[/]" if left else "none overflows"
    if taken:
        outcome += f", after {taken} nodes went back to fp32"
    if rounding.largest is not None and rounding.tensor:
        outcome += f"; they reach {number(rounding.largest)} ({escape(rounding.tensor)})"
    return f"{rounding.tensors} tensors over {rounding.photographs} photographs, each rounded to its type: {outcome}"


def _parity(found: Lowered) -> str:
    parity = found.parity
    taps = [t for t in parity.taps if t.kind == "features" and t.relative is not None]
    parts = []
    if taps:
        worst = max(taps, key=lambda t: t.relative or 0.0)
        allowed = number(found.tolerance.relative)
        parts.append(
            f"tap {worst.tap} differs most, by {number(worst.relative, 2)} of its norm, allowed {allowed}"
        )
    if found.decides:
        outside = len(parity.flips) - parity.ties
        parts.append(f"{outside} of {parity.images} labels flip, {parity.ties} more within ties")
        parts.append(f"KL {number(parity.kl, 2)}, allowed {found.budget.kl:g}")
    else:
        parts.append("labels are not judged: they mean nothing")
    return f"with the FP32 graph: {'; '.join(parts)}"


def _kept(console: Console, kept: list[Kept]) -> None:
    """How many nodes stay in fp32 by each cause, and those one by one that have reasons of their own."""
    if not kept:
        return
    table = new_table("nodes>", "operators", "why", title="in fp32")
    for cause in dict.fromkeys(k.cause for k in kept):
        some = [k for k in kept if k.cause == cause]
        ops = Counter(k.op for k in some)
        words = ", ".join(f"{op} {n}" if n > 1 else op for op, n in ops.most_common())
        why = f"{cause}: see below" if cause in _OWN else some[0].reason
        table.add_row(str(len(some)), escape(words), escape(why))
    console.print()
    console.print(table)
    own = [k for k in kept if k.cause in _OWN]
    for node in own[:_NAMED]:
        console.print(
            f"{node.cause}: [bold]{escape(node.node)}[/] ({escape(node.op)}): {escape(node.reason)}"
        )
    if len(own) > _NAMED:
        console.print(f"and {len(own) - _NAMED} more, all in lowered.json")
