"""The list of nodes that stay in fp32, as ``build --exclude`` reads it, with comments that say why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsa_rt.errors import UsageError

if TYPE_CHECKING:
    from vsa_rt.pipeline.bisect import Bisection, Guilty

#: Its name in the folder of the output.
EXCLUDE = "exclude.txt"


def exclusions_to_text(found: Bisection) -> str:
    """One name a line; comments begin with ``#``. Without a guilty node there are comments alone.

    Raises:
        UsageError: A node's name cannot stand in such a file.
    """
    whole, suspect = found.trials[0], found.suspect
    lines = [
        f"# {suspect.target}, {suspect.plan}, against {found.basis.reference} over {whole.images} photographs",
        f"# budget: {found.budget}",
        f"# without this list: {whole}",
        f"# {_with(found)}",
    ]
    if found.nodes and not found.minimal:
        lines.append("# the limit of trials was reached: some of these may be innocent")
    if suspect.plan.exclude and found.exclude:
        lines += ["# excluded before", *map(_line, suspect.plan.exclude)]
    for guilty in found.nodes:
        lines += [f"# {_why(guilty)}", *map(_line, guilty.unit.nodes)]
    return "\n".join(lines) + "\n"


def _with(found: Bisection) -> str:
    if found.verified is not None:
        return f"with it: {found.verified.trial}"
    return "nothing to exclude" if found.outcome == "holds" else f"no list helps: {found.notes[0]}"


def _why(guilty: Guilty) -> str:
    unit = guilty.unit
    shape = f" {'x'.join(map(str, unit.weights))}" if unit.weights else ""
    text = f"{unit.backbone}, {unit.op}{shape}"
    return f"{text}: lowered all the same, {guilty.lowered}" if guilty.lowered is not None else text


def _line(name: str) -> str:
    if name != name.strip() or name.startswith("#") or len(name.splitlines()) != 1:
        raise UsageError(f"node {name!r} cannot stand in a list of one name a line; rename it in the graph")
    return name
