"""Two reports side by side: which plans are the same, and what else differs between both measurements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from vsa_rt.bench.records.comparison import Limits
from vsa_rt.bench.records.contest import Contest
from vsa_rt.bench.records.record import Record
from vsa_rt.bench.records.timing import Plan
from vsa_rt.bench.records.trust import Environment
from vsa_rt.bench.report import Report


@dataclass(frozen=True)
class Both:
    """Two reports, and what stands between them.

    Attributes:
        old: The one, its plans called as in the other.
        new: The other.
        limits: What may change.
        machine: How the machines differ; empty if they do not.
        notes: Collected on the way.
    """

    old: Report
    new: Report
    limits: Limits
    machine: str
    notes: list[str]

    def plan(self, name: str) -> tuple[Plan | None, Plan | None]:
        """A plan in the old and in the new report."""
        old, new = (next((p for p in r.plans if p.name == name), None) for r in (self.old, self.new))
        return old, new


def _pairs(old: Report, new: Report) -> dict[str, str]:
    """Old plan's name to the new one's: the same name, else alone on both sides with its target and precision.

    A plan is called after its bundle's directory, and a new bundle often lies in another one.
    """
    known = {p.name for p in old.plans} & {p.name for p in new.plans}
    found = {name: name for name in known}
    for plan in old.plans:
        kind = (plan.target, plan.precision)
        mine, others = (
            [p.name for p in r.plans if p.name not in known and (p.target, p.precision) == kind]
            for r in (old, new)
        )
        if len(mine) == len(others) == 1:
            found[mine[0]] = others[0]
    return found


def _renamed(old: Report, new: Report, pairs: dict[str, str]) -> Report:
    """The old report with the new one's names of plans and bundles."""
    bundles = {p.name: p.bundle for p in new.plans}
    moved = {p.bundle: bundles[pairs[p.name]] for p in old.plans if p.name in pairs}

    def name(plan: str) -> str:
        return pairs.get(plan, plan)

    def contest(c: Contest) -> Contest:
        sides = [replace(s, name=name(s.name)) if s.kind == "plan" else s for s in c.contestants]
        return replace(c, contestants=sides)

    return replace(
        old,
        plans=[replace(p, name=name(p.name), bundle=moved.get(p.bundle, p.bundle)) for p in old.plans],
        runs=[replace(r, plan=name(r.plan)) for r in old.runs],
        contests=[contest(c) for c in old.contests],
        parity=[
            replace(
                c,
                bundle=moved.get(c.bundle, c.bundle),
                plans=[replace(p, plan=name(p.plan)) for p in c.plans],
            )
            for c in old.parity
        ],
        bundles=[replace(b, name=moved.get(b.name, b.name)) for b in old.bundles],
    )


def _machine(old: Environment, new: Environment) -> str:
    """How the machines differ; empty if they do not."""
    return "; ".join(_changes(old, new, ("processor", "cores", "instruction_sets", "gpus")))


def _changes(old: Record, new: Record, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        before, now = getattr(old, name), getattr(new, name)
        if before != now:
            yield f"{name} {_words(before)} before, {_words(now)} now"


def _words(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _versions(old: dict[str, str], new: dict[str, str], what: str) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{what} {name}: {old.get(name, 'absent')} before, {new.get(name, 'absent')} now"


def _notes(both: Both) -> Iterator[str]:
    old, new = both.old, both.new
    if both.machine:
        yield f"different machines, no time decides anything: {both.machine}"
    yield from _changes(old.environment, new.environment, ("system", "python", "governor", "pinned"))
    yield from _versions(old.environment.libraries, new.environment.libraries, "library")
    yield from _versions(old.environment.variables, new.environment.variables, "variable")
    yield from _changes(old, new, ("vsa_rt",))
    if old.inputs_sha256 != new.inputs_sha256:
        yield f"different inputs: {old.inputs} before, {new.inputs} now"
    for plan in new.plans:
        before = both.plan(plan.name)[0]
        if before is None:
            yield f"{plan.name}: only in the new report"
        else:
            yield from (
                f"{plan.name}: {c}" for c in _changes(before, plan, ("target", "precision", "threads"))
            )
    digests = {b.name: b.digest for b in old.bundles}
    for bundle in new.bundles:
        if digests.get(bundle.name, bundle.digest) != bundle.digest:
            yield f"{bundle.name}: another bundle than before (its manifest differs)"


def match(old: Report, new: Report, limits: Limits) -> Both:
    """Put two reports side by side, and note what differs."""
    pairs = _pairs(old, new)
    both = Both(_renamed(old, new, pairs), new, limits, _machine(old.environment, new.environment), [])
    both.notes.extend(_notes(both))
    both.notes.extend(f"{a} is held against {b}" for a, b in pairs.items() if a != b)
    return both
