"""A measurement: the parts of a report, one after the other, each with its records or the reason for none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import TypeVar

import msgspec

from vsa_rt.bench.bare import bare_gaps
from vsa_rt.bench.ceilings import ceilings
from vsa_rt.bench.coldstart import cold_start
from vsa_rt.bench.frontier import points
from vsa_rt.bench.gpu_devices import on_gpu
from vsa_rt.bench.records.contest import Contest, Gap, Point
from vsa_rt.bench.records.limits import Ceiling, Limits, Profile
from vsa_rt.bench.records.timing import ColdStart, Plan, Run, Split
from vsa_rt.bench.records.trust import ParityCheck
from vsa_rt.bench.stages import split
from vsa_rt.contracts import Target
from vsa_rt.errors import EnvironmentUnusable, ItemError, VsaError
from vsa_rt.pipeline.export import Progress, silent
from vsa_rt.pipeline.measuring.contests import run_contest
from vsa_rt.pipeline.measuring.inputs import Inputs
from vsa_rt.pipeline.measuring.kept import Kept
from vsa_rt.pipeline.measuring.limits import distance
from vsa_rt.pipeline.measuring.parities import ParityOptions, check_parity
from vsa_rt.pipeline.measuring.plans import OpenedPlan, Subject
from vsa_rt.pipeline.measuring.scenarios import ScenarioOptions, batches_of, run_scenario

T = TypeVar("T")
#: Fresh processes per plan.
_COLD_STARTS = 3
#: A contest has several candidates, each called twice a round.
_CONTEST_TIMES = 4


@dataclass(frozen=True)
class MeasureOptions:
    """How to measure.

    Attributes:
        threads: For every engine and baseline.
        load: Scenarios and their settings.
        against: Baselines by name.
        progress: Told of every step.
    """

    threads: int
    load: ScenarioOptions = field(default_factory=ScenarioOptions)
    against: Sequence[str] = ()
    progress: Progress = silent


class Measurement:
    """One run; every part adds its records, or the reason why there are none.

    Args:
        subjects: The bundles, opened.
        inputs: What they are fed.
        batches: Images per call.
        options: How to measure.
        kept: Where finished contests and parities are kept; ``None`` to keep none.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        inputs: Inputs,
        batches: Sequence[int],
        options: MeasureOptions,
        kept: Kept | None = None,
    ) -> None:
        self.subjects, self.inputs, self.batches = subjects, inputs, batches
        self.options, self._kept = options, kept
        self.runs: list[Run] = []
        self.splits: list[Split] = []
        self.cold: list[ColdStart] = []
        self.contests: list[Contest] = []
        self.gaps: list[Gap] = []
        self.ceilings: list[Ceiling] = []
        self.limits: list[Limits] = []
        self.profiles: list[Profile] = []
        self.parity: list[ParityCheck] = []
        self.skipped: dict[str, str] = {}

    def _say(self, step: str) -> None:
        self.options.progress(step)

    def cold_starts(self) -> None:
        """Fresh processes, one lead after the other."""
        for subject in self.subjects:
            lead = subject.lead.plan
            self._say(f"cold start of {lead.name}")
            try:
                self.cold.append(
                    cold_start(
                        subject.bundle.root,
                        lead.name,
                        lead.target,
                        lead.precision,
                        lead.threads,
                        _COLD_STARTS,
                    )
                )
            except EnvironmentUnusable as error:
                self.skipped[f"cold start of {lead.name}"] = str(error)

    def scenarios(self) -> None:
        """Every scenario with every lead and batch size."""
        load = self.options.load
        for subject in self.subjects:
            workload = self.inputs.workloads[subject.name]
            for scenario in load.scenarios:
                for batch in batches_of(scenario, self.batches):
                    self._say(f"{scenario}: {subject.lead.plan.name}, batch {batch}")
                    self.runs.append(run_scenario(subject.lead, workload, batch, scenario, load))

    def stages(self) -> None:
        """From encoded images to labels, stage by stage."""
        for subject in self.subjects:
            workload = self.inputs.workloads[subject.name]
            if not workload.images:
                self.skipped[f"time split of {subject.name}"] = f"no photographs: {workload.description}"
                continue
            for batch in self.batches:
                self._say(f"time split of {subject.lead.plan.name}, batch {batch}")
                plan, seconds = subject.lead.plan.name, self.options.load.seconds
                try:
                    self.splits.append(split(subject.lead.runtime, plan, batch, workload.sources, seconds))
                except ItemError as error:
                    self.skipped[f"time split of {plan}, batch {batch}"] = str(error)

    def bare_gaps(self) -> None:
        """Beyond the backend's own bare call, at the smallest batch, where it weighs most."""
        for subject in self.subjects:
            plan, workload = subject.lead.plan, self.inputs.workloads[subject.name]
            self._say(f"{plan.name} against its backend's bare call")
            example = workload.tensors(min(self.batches))[0]
            found, absent = bare_gaps(
                plan.name, subject.lead.runtime, subject.bundle.root, example, plan.threads
            )
            self.gaps += found
            self.skipped |= {f"{tool} beside {plan.name}": reason for tool, reason in absent.items()}

    def against(self) -> None:
        """The contests, one per batch size."""
        for batch in self.batches:
            self.contests.append(
                self._part(f"contest of batch {batch}", Contest, partial(self._contest, batch))
            )

    def _contest(self, batch: int) -> Contest:
        return run_contest(
            self.subjects,
            self.inputs.workloads,
            self.options.against,
            batch,
            self.options.threads,
            _CONTEST_TIMES * self.options.load.seconds,
            self._say,
        )

    def _part(self, name: str, kind: type[T], make: Callable[[], T]) -> T:
        """A part that an interrupted run may have finished."""
        if self._kept is None:
            return make()
        return self._kept.part(name, kind, make)

    def _call_ms(self, plan: OpenedPlan, batch: int) -> float:
        """A plan's median call: of its contest."""
        contest = next(c for c in self.contests if c.batch == batch)
        return median(next(c.samples for c in contest.contestants if c.name == plan.plan.name))

    def distances(self) -> None:
        """Ceilings of every lead's target on a processor, then layers and floors."""
        try:
            targets = dict.fromkeys(Target.parse(s.lead.plan.target) for s in self.subjects)
            for target in (t for t in targets if not on_gpu(t)):
                self._say(f"measuring what {target} can do on this machine")
                self.ceilings += ceilings(target, self.options.threads)
            for subject in self.subjects:
                workload, lead = self.inputs.workloads[subject.name], subject.lead
                for batch in self.batches:
                    found = distance(
                        subject.bundle,
                        lead,
                        workload.tensors(batch)[0],
                        self.ceilings,
                        self._call_ms(lead, batch),
                        self._say,
                    )
                    self.limits.append(found.limits)
                    if found.profile is None:
                        self.skipped[f"layers of {lead.plan.name}"] = found.why
                    else:
                        self.profiles.append(found.profile)
        except VsaError as error:
            self.skipped["distance to the limit"] = str(error)

    def parities(self) -> None:
        """Every engine and the graph itself against the reference."""
        for subject in self.subjects:
            part = f"parity of {subject.name}"
            self._say(part)
            try:
                self.parity.append(self._part(part, ParityCheck, partial(self._parity, subject)))
            except EnvironmentUnusable as error:
                # What was measured is not lost; the verdict says what is missing.
                self.skipped[part] = str(error)

    def _parity(self, subject: Subject) -> ParityCheck:
        photographs, rejected, data = self.inputs.photographs, self.inputs.rejected, self.inputs.data
        return check_parity(subject, ParityOptions(photographs, rejected, data, self.options.progress))

    @property
    def plans(self) -> list[Plan]:
        """Every plan of every bundle, in the report's order."""
        return [
            msgspec.structs.replace(opened.plan, notes=list(opened.runtime.session.notes))
            for subject in self.subjects
            for opened in subject.plans
        ]

    def points(self) -> list[Point]:
        """Where every plan and batch stands between accuracy and latency."""
        parities = {p.plan: p.parity for check in self.parity for p in check.plans if p.plan}
        return points(self.contests, self.plans, parities)

    def everything(self) -> None:
        """All parts. Times first, while the process is small and torch's threads do not exist yet."""
        self.cold_starts()
        self.scenarios()
        self.stages()
        self.bare_gaps()
        self.against()
        self.distances()
        self.parities()
