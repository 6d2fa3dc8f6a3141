"""Putting a plan together from what each backbone gains and costs alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from vsa_rt.contracts import Precision
from vsa_rt.plan import Plan

#: A backbone is lowered only where it saves at least this share of the whole call: less is noise.
WORTH = 0.005


@dataclass(frozen=True)
class Alone:
    """One backbone lowered and the others in fp32.

    Attributes:
        tap: Which backbone.
        precision: What it was lowered to.
        saved: Share of the whole fp32 call's time that it saves, the mean over the batch sizes.
        harm: What it does to the decisions: mean KL of the scores in nats, or where none decide the tap's largest
            relative difference.
        holds: Whether it stays inside the budget by itself.
    """

    tap: str
    precision: Precision
    saved: float
    harm: float
    holds: bool


def compose(taps: Sequence[str], measured: Sequence[Alone], reads: Mapping[str, str]) -> Plan:
    """Each backbone in the precision that saves most among those that hold alone.

    Args:
        taps: Every backbone, in the graph's order.
        measured: What was tried.
        reads: Backbones whose precision follows another's, which they read.
    """
    chosen = {tap: _best([a for a in measured if a.tap == tap and a.holds]) for tap in taps}
    return followed(Plan(backbones=chosen), reads)


def weaken(plan: Plan, measured: Sequence[Alone], reads: Mapping[str, str]) -> Plan | None:
    """The next plan to try where one is over the budget.

    The lowered backbone that harms most for what it saves gives way, to the precision that saves most among those that
    harm less.

    Args:
        plan: Over the budget, although each of its backbones holds alone.
        measured: What was tried.
        reads: As for ``compose``.

    Returns:
        ``None`` where nothing is lowered any more.
    """
    lowered = [a for a in measured if plan.backbones.get(a.tap) is a.precision and a.tap not in reads]
    if not lowered:
        return None
    worst = max(lowered, key=lambda a: (a.harm / max(a.saved, WORTH), a.tap))
    milder = [a for a in measured if a.tap == worst.tap and a.holds and a.harm < worst.harm]
    return followed(plan.with_backbone(worst.tap, _best(milder)), reads)


def _best(measured: Sequence[Alone]) -> Precision:
    worthy = [a for a in measured if a.saved >= WORTH]
    return max(worthy, key=lambda a: a.saved).precision if worthy else Precision.FP32


def followed(plan: Plan, reads: Mapping[str, str]) -> Plan:
    """The plan in which whoever reads another backbone has its precision.

    Args:
        plan: What each backbone shall have.
        reads: Backbones whose precision follows another's, which they read.
    """
    backbones = {tap: plan.backbones[reads.get(tap, tap)] for tap in plan.backbones}
    return msgspec.structs.replace(plan, backbones=backbones)
