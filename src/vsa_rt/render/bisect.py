"""What a bisection found: the plans that tell, the guilty nodes, and what leaving them out costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vsa_rt.render.plans import plan_words
from vsa_rt.render.tables import document, errors, new_table, number, print_rejected
from vsa_rt.render.text import plain

if TYPE_CHECKING:
    from vsa_rt.pipeline.bisect import Bisection, Guilty
    from vsa_rt.pipeline.search.trials import Trial
    from vsa_rt.plan import Plan

_OUTCOMES = {
    "holds": "[green]nothing is guilty[/]: the plan is inside the budget",
    "found": "[bold red]guilty[/]",
    "impossible": "[bold red]no list helps[/]",
    "not reproducible": "[bold red]not reproducible[/]: the list held when it was found, and not when it was built again",
}


def _words(plan: Plan) -> str:
    backbones = {tap: str(precision) for tap, precision in plan.backbones.items()}
    return plan_words(backbones, str(plan.around), len(plan.exclude))


def _verdict(trial: Trial) -> str:
    return "[green]inside[/]" if trial.passed else "[red]over budget[/]"


def _table(rows: Sequence[tuple[str, Trial]], decides: bool) -> Table:
    labelled = any(trial.accuracy for _, trial in rows)
    table = new_table(
        "tried",
        "plan",
        *(["flips>", "ties>", "widest>", "KL>"] if decides else ["relative>"]),
        *(["points of accuracy>"] if labelled else []),
        "verdict",
    )
    for what, trial in rows:
        widest = f"{trial.widest:.3f}" if trial.flips + trial.ties else "-"
        decided = [str(trial.flips), str(trial.ties), widest, number(trial.kl, 2)]
        gap = f"{100 * trial.accuracy[0]:+.1f}" if trial.accuracy else "-"
        table.add_row(
            what,
            escape(_words(trial.plan)),
            *(decided if decides else [number(trial.relative, 2)]),
            *([gap] if labelled else []),
            _verdict(trial),
        )
    return table


def _shape(weights: Sequence[int]) -> str:
    return "x".join(map(str, weights)) or "-"


def _nodes(guilty: Sequence[Guilty], decides: bool) -> Table:
    """The guilty nodes, and what changes if one of them alone is lowered all the same."""
    table = new_table("backbone", "node", "op", "weights", f"{'KL' if decides else 'relative'} if lowered>")
    for g in guilty:
        more = len(g.unit.nodes) - 1
        follows = f" and {more} that follow{'s' if more == 1 else ''}" if more else ""
        figure = "-" if g.lowered is None else number(g.lowered.harm, 2)
        table.add_row(
            escape(plain(g.unit.backbone)),
            escape(plain(g.unit.name)) + follows,
            escape(plain(g.unit.op)),
            _shape(g.unit.weights),
            figure,
        )
    return table


def _costs(console: Console, found: Bisection) -> None:
    """How long a call takes with the list and without it."""
    if found.verified is not None:
        after = found.verified.after_ms
        times = [
            f"batch {batch}: {before:.2f} to {after[batch]:.2f} ms"
            for batch, before in found.verified.before_ms.items()
        ]
        console.print(f"what it costs a call: {', '.join(times)}")


def bisection(found: Bisection, out: Path | None, as_json: bool) -> None:
    """Print what was found.

    Args:
        found: By ``pipeline.bisect``.
        out: Where its list lies; ``None`` where it was not written.
        as_json: Print its JSON alone.
    """
    if as_json:
        document("bisect", **_fields(found, out))
        return
    console = Console(highlight=False)
    console.print(f"{escape(str(found.suspect.target))}: {escape(plain(found.suspect.source))}")
    why = f" ({escape(plain(found.basis.why))})" if found.basis.why else ""
    console.print(f"reference: {found.basis.reference}{why}, {found.trials[0].images} photographs")
    console.print(f"budget: {found.budget}")
    if not found.decides:
        console.print("[bold yellow]random weights: judged at the outputs, the labels mean nothing[/]")
    if found.basis.stand_ins:
        console.print(
            f"{found.basis.stand_ins} photographs without ready tensors beside them: stand-ins were taken"
        )
    console.print()
    rows: list[tuple[str, Trial]] = [(t.role, t) for t in found.trials if t.role != "search"]
    if found.verified is not None:
        rows.append(("with the list", found.verified.trial))
    console.print(_table(rows, found.decides))
    for reason in found.trials[0].reasons:
        console.print(f"[red]over budget[/]: {escape(plain(reason))}")
    console.print()
    if found.outcome == "found":
        _print_guilty(console, found, out)
    else:
        console.print(_OUTCOMES[found.outcome])
    searched = sum(t.role == "search" for t in found.trials)
    resumed = f", {found.resumed} of them by an earlier run" if found.resumed else ""
    console.print(f"{len(found.trials)} trials, {searched} in search of nodes{resumed}")
    for note in found.notes:
        console.print(f"note: {escape(plain(note))}")
    print_rejected(found.rejected)


def _print_guilty(console: Console, found: Bisection, out: Path | None) -> None:
    nodes = sum(len(g.unit.nodes) for g in found.nodes)
    backbones = ", ".join(found.backbones)
    console.print(f"{_OUTCOMES['found']}: {nodes} of {found.lowered} nodes of {escape(backbones)}")
    console.print(_nodes(found.nodes, found.decides))
    if not found.minimal:
        console.print(
            "[yellow]the limit of trials was reached: some of these may be innocent; see --trials[/]"
        )
    _costs(console, found)
    if out is None:
        console.print("no list was written: name a folder with -o")
    else:
        from vsa_rt.pipeline.search.exclusions import EXCLUDE

        console.print(f"build with --exclude {escape(plain(str(out / EXCLUDE)))}")


def _trial(trial: Trial) -> dict[str, Any]:
    made: dict[str, Any] = msgspec.to_builtins(trial)
    return made | {"passed": trial.passed}


def _fields(found: Bisection, out: Path | None) -> dict[str, Any]:
    nodes = [
        {
            "backbone": g.unit.backbone,
            "op": g.unit.op,
            "weights": list(g.unit.weights),
            "nodes": list(g.unit.nodes),
            "lowered": None if g.lowered is None else _trial(g.lowered),
        }
        for g in found.nodes
    ]
    verified = found.verified
    return {
        "outcome": found.outcome,
        "target": str(found.suspect.target),
        "source": found.suspect.source,
        "plan": found.suspect.plan,
        "reference": found.basis.reference,
        "why": found.basis.why,
        "stand_ins": found.basis.stand_ins,
        "decides": found.decides,
        "budget": found.budget,
        "trials": [_trial(t) for t in found.trials],
        "resumed": found.resumed,
        "backbones": found.backbones,
        "nodes": nodes,
        "lowered": found.lowered,
        "minimal": found.minimal,
        "exclude": found.exclude,
        "verified": None if verified is None else _trial(verified.trial),
        "before_ms": None if verified is None else verified.before_ms,
        "after_ms": None if verified is None else verified.after_ms,
        "out": None if out is None else str(out),
        "rejected": errors(found.rejected),
        "notes": found.notes,
    }
