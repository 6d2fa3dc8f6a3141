"""What may be guilty: the engine that failed, the plan that was left out, or what somebody names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Precision, Target
from vsa_rt.engines import table
from vsa_rt.errors import EnvironmentUnusable, UsageError
from vsa_rt.manifest import Manifest
from vsa_rt.pipeline.precision.lowered import uniform_plan
from vsa_rt.plan import Plan


@dataclass(frozen=True)
class Suspect:
    """A plan on a target.

    Attributes:
        target: Where.
        plan: What is lowered.
        source: Where the plan comes from, in words.
    """

    target: Target
    plan: Plan
    source: str


def suspect_of(bundle: Bundle, target: Target | None = None, precision: Precision | None = None) -> Suspect:
    """What to look into: what failed first of all, then plans that were left out, then engines that held.

    Args:
        bundle: Its manifest says what was built and tried.
        target: Only there.
        precision: Only of this precision; where the bundle knows no such plan, all backbones in it.

    Raises:
        UsageError: Nothing is lowered, or fp32 is asked for.
        EnvironmentUnusable: The target cannot be used here.
    """
    if precision is Precision.FP32:
        raise UsageError("precision fp32: nothing is lowered in it; name fp16, bf16 or int8")
    for found in _known(bundle.manifest):
        if target in (None, found.target) and precision in (None, found.plan.precision):
            return _usable(found)
    if precision is None:
        raise UsageError(
            f"{bundle.root}: holds no lowered engine of that kind; name a --precision to lower it to"
        )
    if precision is Precision.MIXED:
        raise UsageError(
            f"{bundle.root}: holds no mixed engine; name fp16, bf16 or int8 to lower all backbones to"
        )
    plan = uniform_plan(bundle.manifest, precision)
    where = [target] if target is not None else table.targets()
    able = [t for t in where if precision in table.backend(t.backend).precisions(t.device)]
    usable = [t for t in able if table.probe(t).usable]
    if not able:
        raise UsageError(f"no target of {', '.join(map(str, where))} has the precision {precision}")
    return _usable(Suspect((usable or able)[0], plan, "not in the bundle: lowered anew"))


def _known(manifest: Manifest) -> Iterator[Suspect]:
    """Lowered plans of a bundle, the most suspicious first."""
    engines = [
        (
            e,
            Suspect(
                Target.parse(e.target),
                Plan(
                    backbones={tap: Precision(p) for tap, p in e.plan.items()},
                    around=Precision(e.around),
                    exclude=list(e.exclude),
                ),
                f"engine {e.folder}, which {'held' if e.gate.passed else 'failed'} its gate",
            ),
        )
        for e in manifest.engines
        if e.precision != Precision.FP32
    ]
    yield from (suspect for e, suspect in engines if not e.gate.passed)
    for p in manifest.plans:
        # How many nodes were excluded stands there, and not which.
        if p.reasons and p.role != "one backbone" and not p.exclude:
            backbones = {tap: Precision(word) for tap, word in p.backbones.items()}
            plan = Plan(backbones=backbones, around=Precision(p.around))
            if plan.precision is not Precision.FP32:
                yield Suspect(
                    Target.parse(p.target), plan, "a plan that was over the budget when the bundle was built"
                )
    yield from (suspect for e, suspect in engines if e.gate.passed)


def _usable(suspect: Suspect) -> Suspect:
    """The suspect, if it can be built here.

    Raises:
        EnvironmentUnusable: It cannot.
    """
    probe = table.probe(suspect.target)
    if not probe.usable:
        raise EnvironmentUnusable(f"target {suspect.target}: {probe.reason}; {probe.install}")
    return suspect
