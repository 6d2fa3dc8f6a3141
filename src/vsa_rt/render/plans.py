"""What was measured to choose precisions: a table for each target, and what each plan is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsa_rt.render.tables import new_table, number

if TYPE_CHECKING:
    from vsa_rt.manifest import CalibrationRecord, Manifest, PlanRecord

#: A plan under this many times the speed of fp32, at every batch size, does not pay: runs differ by that much.
_PAYS = 1.05
_FP32 = "fp32"
#: Columns whose cells stay whole, however narrow the terminal is.
_WHOLE = frozenset({"flips", "ties", "widest", "KL"})
#: Under so many columns times and speeds stand below each other.
_NARROW = 100


def plan_words(backbones: Mapping[str, str], around: str = _FP32, exclude: int = 0) -> str:
    """A plan in words, such as ``lite0 int8, lite1 bf16, lite2 bf16``, ``all bf16`` or ``lite0 int8, rest fp32``.

    Args:
        backbones: Tap of every backbone to its precision.
        around: Type of what is not quantised in an int8 backbone.
        exclude: How many nodes stayed in fp32.
    """
    used = list(dict.fromkeys(backbones.values())) or [_FP32]
    lowered = [f"{tap} {precision}" for tap, precision in backbones.items() if precision != _FP32]
    if len(used) == 1:
        words = f"all {used[0]}"
    elif len(lowered) == 1 and len(backbones) > 2:
        words = f"{lowered[0]}, rest fp32"
    else:
        words = ", ".join(f"{tap} {precision}" for tap, precision in backbones.items())
    if "int8" in used and around != _FP32:
        words += f", {around} around int8"
    return f"{words}, {exclude} node{'s' if exclude > 1 else ''} fp32" if exclude else words


def words_of(plan: PlanRecord) -> str:
    """A measured plan in words."""
    return plan_words(plan.backbones, plan.around, plan.exclude)


def verdict_of(plan: PlanRecord) -> str:
    """What a measured plan is worth, coloured: chosen, over the budget, of no use, or held."""
    if plan.chosen:
        return "[bold red]chosen, over budget[/]" if plan.reasons else "[bold green]chosen[/]"
    if plan.reasons:
        return "[red]over budget[/]"
    lowered = set(plan.backbones.values()) - {_FP32}
    return "does not pay" if lowered and max(plan.speedup.values()) < _PAYS else "[green]holds[/]"


def _accuracy(plan: PlanRecord) -> str:
    if not plan.accuracy:
        return "-"
    gap, low, high = (f"{100 * value:+.1f}" for value in plan.accuracy)
    return f"{gap} [{low}, {high}]"


def _times(plan: PlanRecord, batch: str, between: str) -> str:
    """Milliseconds and speed."""
    if batch not in plan.latency_ms:
        return "-"
    return f"{plan.latency_ms[batch]:.2f}{between}{plan.speedup[batch]:.2f}x"


def _table(target: str, plans: Sequence[PlanRecord], width: int) -> Table:
    batches = sorted({b for p in plans for b in p.latency_ms}, key=int)
    labelled = any(p.accuracy for p in plans)
    images = max(p.images for p in plans)
    between = "\n" if width < _NARROW else " "
    table = new_table(
        "plan",
        *(f"batch {b}>" for b in batches),
        "flips>",
        "ties>",
        "widest>",
        "KL>",
        *(["points of accuracy>"] if labelled else []),
        "verdict",
        title=f"plans on {escape(target)}, {images} images; ms a call, and speed against fp32 in the same run",
    )
    for column in table.columns:
        column.overflow, column.no_wrap = "fold", column.header in _WHOLE
    table.columns[0].min_width = 11
    for plan in plans:
        table.add_row(
            escape(words_of(plan)),
            *(_times(plan, b, between) for b in batches),
            str(plan.flips),
            str(plan.ties),
            f"{plan.widest:.3f}" if plan.flips + plan.ties else "-",
            number(plan.kl, 2),
            *([escape(_accuracy(plan))] if labelled else []),
            verdict_of(plan),
        )
    return table


def _calibration(console: Console, record: CalibrationRecord) -> None:
    skipped = f", {record.skipped} could not be read" if record.skipped else ""
    console.print(f"ranges of int8: {escape(record.method)} over {record.images} photographs{skipped}")
    for warning in record.warnings:
        console.print(f"[yellow]{escape(warning)}[/]")


def plans(console: Console, manifest: Manifest) -> None:
    """The plans that were measured, target by target, the reasons of those over the budget, and the calibration.

    Args:
        console: Where to.
        manifest: Of the bundle; one without measured plans and calibration prints nothing.
    """
    for target in dict.fromkeys(p.target for p in manifest.plans):
        measured = [p for p in manifest.plans if p.target == target]
        console.print()
        console.print(_table(target, measured, console.width))
        for plan in measured:
            if plan.reasons:
                reasons = escape("; ".join(plan.reasons))
                console.print(f"over budget: [bold]{escape(words_of(plan))}[/]: {reasons}")
    if manifest.plans:
        console.print(f"\nbudget: {manifest.budget}")
    if manifest.calibration is not None:
        _calibration(console, manifest.calibration)
