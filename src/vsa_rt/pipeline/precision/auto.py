"""``--precision auto``: the fastest plan of a target inside the budget, found by measuring each backbone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from vsa_rt.bench.parity import Parity
from vsa_rt.contracts import Precision, Target
from vsa_rt.errors import EnvironmentUnusable, UsageError
from vsa_rt.manifest import PlanRecord, Rejection
from vsa_rt.pipeline.precision.baseline import Baseline, Pace
from vsa_rt.pipeline.precision.built import Built
from vsa_rt.pipeline.precision.composition import Alone, compose, followed, weaken
from vsa_rt.pipeline.precision.lowered import backbone_taps, exact_taps, plannable_taps, uniform_plan
from vsa_rt.pipeline.precision.workshop import Workshop
from vsa_rt.plan import Plan

Role = Literal["one backbone", "uniform", "composed"]
#: A precision that makes the whole call this many times slower on every batch size is not tried by backbone.
_HOPELESS = 0.8
#: Under this many times the speed of fp32 at every batch size a precision does not pay: runs differ by that much.
_PAYS = 1.05


@dataclass(frozen=True)
class Tried:
    """One plan with what it changes and what it saves.

    Attributes:
        built: The engine; a trial's files are gone.
        role: How the plan came about.
        pace: How fast it is.
    """

    built: Built
    role: Role
    pace: Pace

    @property
    def saved(self) -> float:
        """Share of the fp32 call's time that it saves, the mean over the batch sizes."""
        return float(np.mean([1 - 1 / times for times in self.pace.speedup.values()]))

    def record(self, chosen: bool) -> PlanRecord:
        """What the manifest says about it."""
        plan, parity = self.built.plan, self.built.parity
        first = parity.metrics[0] if parity.metrics else None
        return PlanRecord(
            target=str(self.built.target),
            backbones={tap: str(precision) for tap, precision in plan.backbones.items()},
            around=str(plan.around),
            exclude=len(plan.exclude),
            role=self.role,
            latency_ms=self.pace.latency_ms,
            speedup=self.pace.speedup,
            images=parity.images,
            flips=len(parity.flips) - parity.ties,
            ties=parity.ties,
            widest=max((f.margin for f in parity.flips), default=0.0),
            kl=parity.kl,
            kl_worst=parity.kl_worst,
            accuracy=_finite([first.candidate - first.reference, first.low, first.high]) if first else [],
            reasons=parity.reasons,
            chosen=chosen,
        )


def _finite(values: list[float]) -> list[float]:
    """The values, or none where one of them is no number: a metric that these photographs cannot give."""
    return values if np.isfinite(values).all() else []


@dataclass
class Search:
    """What was built and measured for one target.

    Attributes:
        target: Where.
        engines: Built and left in the bundle, whether they hold or not.
        tried: Every plan that was measured, fp32 first.
        rejected: Precisions that could not be tried, and why.
    """

    target: Target
    engines: list[Built] = field(default_factory=list)
    tried: list[Tried] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)

    def reject(self, precision: str, reason: str) -> None:
        """Note what is left out."""
        self.rejected.append(Rejection(target=str(self.target), precision=precision, reason=reason))


def harm_of(parity: Parity) -> float:
    """How much a plan changes: mean KL of the scores in nats, or where none decide the largest relative difference."""
    if parity.kl is not None:
        return parity.kl
    return max((t.relative for t in parity.taps if t.relative is not None), default=float("inf"))


def search(
    workshop: Workshop, target: Target, precisions: Sequence[Precision], exclude: Sequence[str]
) -> Search:
    """Build the engines of one target: fp32, every precision for all backbones, and the plan put together.

    Args:
        workshop: Builds them.
        target: A usable one.
        precisions: The lower ones that are to be tried.
        exclude: Nodes that stay in fp32.

    Raises:
        EnvironmentUnusable: Not even fp32 can be built.
    """
    found = Search(target)
    try:
        return _filled(workshop, found, precisions, exclude)
    except BaseException:
        for built in found.engines:
            workshop.discard(built)
        raise
    finally:
        workshop.end_trials()


def _filled(
    workshop: Workshop, found: Search, precisions: Sequence[Precision], exclude: Sequence[str]
) -> Search:
    target, exact = found.target, uniform_plan(workshop.graphs.manifest, Precision.FP32)
    # Open as long as anything is timed beside it: beside an open trial there is this one engine more in memory.
    with closing(workshop.build_open(target, exact)) as opened:
        found.engines.append(opened.built)
        base = Baseline(workshop, opened)
        promising = _uniform(base, found, precisions, exclude)
        if len(plannable_taps(workshop.graphs.manifest)) > 1 and promising:
            _put_together(base, found, promising, exclude)
        found.tried.insert(0, Tried(base.built, "uniform", base.pace()))
    return found


def _uniform(
    base: Baseline, found: Search, precisions: Sequence[Precision], exclude: Sequence[str]
) -> list[Precision]:
    """Build every precision for all backbones.

    Returns:
        Those that are worth trying by backbone.
    """
    workshop, promising = base.workshop, []
    for precision in precisions:
        try:
            opened = workshop.build_open(
                found.target, uniform_plan(workshop.graphs.manifest, precision, exclude)
            )
        except (EnvironmentUnusable, UsageError) as error:
            found.reject(str(precision), str(error))
            continue
        with closing(opened):
            found.engines.append(opened.built)
            pace = base.beside(opened)
        found.tried.append(Tried(opened.built, "uniform", pace))
        times = max(pace.speedup.values())
        if times < _PAYS:
            workshop.progress(
                f"warning: {precision} will not pay on {found.target} here: {times:.2f} of fp32's speed"
            )
        if times > _HOPELESS:
            promising.append(precision)
    return promising


def _put_together(
    base: Baseline, found: Search, precisions: Sequence[Precision], exclude: Sequence[str]
) -> None:
    """Try every backbone alone, then the plan that follows from it, weaker ones where that is over the budget."""
    workshop, manifest = base.workshop, base.workshop.graphs.manifest
    reads = exact_taps(manifest)
    measured: list[Alone] = []
    for tap in plannable_taps(manifest):
        for precision in precisions:
            alone = followed(base.built.plan.with_backbone(tap, precision), reads).without(exclude)
            try:
                with closing(workshop.trial_open(found.target, alone)) as opened:
                    tried = Tried(opened.built, "one backbone", base.beside(opened))
            except UsageError:  # nothing in this backbone can be lowered so
                continue
            except EnvironmentUnusable as error:
                found.reject(str(precision), f"{tap} alone: {error}")
                continue
            found.tried.append(tried)
            parity = tried.built.parity
            measured.append(Alone(tap, precision, tried.saved, harm_of(parity), parity.passed))
    plan: Plan | None = compose(backbone_taps(manifest), measured, reads).without(exclude)
    while plan is not None and plan.precision is not Precision.FP32:
        known = next((b for b in found.engines if b.plan.backbones == plan.backbones), None)
        if known.parity.passed if known is not None else _composed(base, found, plan):
            return
        plan = weaken(plan, measured, reads)


def _composed(base: Baseline, found: Search, plan: Plan) -> bool:
    """Build and time the plan that was put together; whether that is the last one to try."""
    workshop = base.workshop
    try:
        opened = workshop.build_open(found.target, plan)
    except (EnvironmentUnusable, UsageError) as error:
        found.reject(str(plan.precision), str(error))
        return True
    with closing(opened):
        found.engines.append(opened.built)  # so that it is discarded if the search fails
        found.tried.append(Tried(opened.built, "composed", base.beside(opened)))
    if not opened.built.parity.passed:
        workshop.discard(found.engines.pop())
    return opened.built.parity.passed
