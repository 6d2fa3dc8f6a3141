"""The judge of plans: builds each on one target, and holds it against the FP32 reference over one set of photographs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from vsa_rt.bench.parity import Parity
from vsa_rt.budget import Budget
from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Target
from vsa_rt.dataset import Dataset
from vsa_rt.engines.compiling import Tuning
from vsa_rt.manifest import Manifest
from vsa_rt.pipeline.export import Progress
from vsa_rt.pipeline.gate import Judged
from vsa_rt.pipeline.images import PhotographFeed, PreparedBatch, batch_of
from vsa_rt.pipeline.precision.half_plans import HalfPlans
from vsa_rt.pipeline.precision.latency import median
from vsa_rt.pipeline.precision.lowered import LoweredGraphs
from vsa_rt.pipeline.precision.workshop import Workshop
from vsa_rt.pipeline.reference import find_reference
from vsa_rt.pipeline.search.trials import Basis, Role, Trial, Trials, Verified, trial_of
from vsa_rt.plan import Plan


@dataclass
class PlanJudge:
    """Judges plans of one bundle on one target.

    Attributes:
        bundle: Its FP32 reference is what plans are held against.
        dataset: The photographs.
        graphs: Lowers, in a folder of its own.
        target: Where plans are built.
        budget: What they may change.
        trials: What was tried.
        weights: Where checkpoints moved.
        seconds: What measuring may take for one batch size.
        progress: Told of every step.
    """

    bundle: Bundle
    dataset: Dataset
    graphs: LoweredGraphs
    target: Target
    budget: Budget
    trials: Trials
    weights: dict[str, Path]
    seconds: float
    progress: Progress

    @property
    def manifest(self) -> Manifest:
        """The bundle's."""
        return self.bundle.manifest

    @cached_property
    def _workshop(self) -> Workshop:
        """Builds and judges; the reference runs when a plan first needs it, and not where all were tried before."""
        self.progress("loading the reference")
        reference = find_reference(self.bundle, self.weights)
        feed = PhotographFeed(self.manifest.inputs, reference.prepare, batch=batch_of(self.manifest.recipe))
        batches, total, seen = [], len(self.dataset.photographs), 0
        for batch in feed.batches(self.dataset.photographs):
            batches.append((_without_alike(batch), reference.run(batch.reference)))
            seen += len(batch.photographs)
            self.progress(f"the {reference.name} reference has seen {seen} of {total} photographs")
        self.trials.basis = Basis(
            reference=reference.name,
            why=reference.why,
            stand_ins=feed.stand_ins,
            rejected=[(e.item, e.reason) for e in feed.rejected],
        )
        judged = Judged(batches, feed.stand_ins, len(feed.rejected))
        halves = HalfPlans(self.graphs, lambda: self.dataset.photographs, self.budget, self.progress)
        return Workshop(self.graphs, reference, judged, self.budget, self.progress, Tuning(), halves)

    def trial(self, plan: Plan, role: Role, what: str) -> Trial:
        """How a plan ends.

        Args:
            plan: What is lowered.
            role: What it is tried for.
            what: The same in words, for progress.

        Raises:
            LimitReached: The search has asked for as many plans as it may.
            EnvironmentUnusable: The backend refuses the graph.
            UsageError: The graph cannot be lowered so.
        """
        return self.trials.trial(plan, role, what, lambda: self._parity(plan, role == "whole"))

    def _parity(self, plan: Plan, sizes: bool) -> Parity:
        return self._workshop.trial(self.target, plan, sizes).parity

    def verify(self, before: Plan, after: Plan) -> Verified:
        """Build two plans once more, judge the second one, and measure both.

        Raises:
            EnvironmentUnusable: The backend refuses a graph.
        """

        def look() -> Verified:
            first = self._workshop.build(self.target, before)
            second = self._workshop.trial(self.target, after, sizes=True)
            self.progress("measuring")
            found = self._workshop.measure([first, second], self.seconds)
            return Verified(
                before=before,
                trial=trial_of(after, "search", second.parity),
                before_ms={batch: median(times) for batch, times in found[first.name].items()},
                after_ms={batch: median(times) for batch, times in found[second.name].items()},
            )

        return self.trials.verified(before, after, look)


def _without_alike(batch: PreparedBatch) -> PreparedBatch:
    """The batch without the reference's inputs that the host made alike: no plan changes them, and all batches are kept.

    One that differs stays, and fails every plan.
    """
    alike = {n for n, made in batch.candidate.items() if np.array_equal(made, batch.reference[n])}
    return replace(batch, reference={n: made for n, made in batch.reference.items() if n not in alike})
