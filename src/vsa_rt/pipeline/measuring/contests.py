"""Plans against what one would use instead: candidates of several bundles on the same photographs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from vsa_rt.bench.baselines import Sources, make_baselines
from vsa_rt.bench.candidate import Candidate
from vsa_rt.bench.contest import contest
from vsa_rt.bench.openings import LEAST_OPENINGS
from vsa_rt.bench.records.contest import Contest
from vsa_rt.bench.workload import Workload
from vsa_rt.errors import UsageError
from vsa_rt.pipeline.measuring.plans import OpenedPlan, Subject

Tensors = Mapping[str, NDArray[Any]]
#: Openings of each plan in a contest at most: a t interval of six is 1.6 times as wide as one of ten.
MOST_OPENINGS = 10
#: Share of a contest's time that openings may take besides.
_OPENING_SHARE = 0.5
#: Between a bundle's name and its input's in a workload that several bundles share; no input's name holds it.
_OF = "\0"


def check_joint(subjects: Sequence[Subject], workloads: Mapping[str, Workload]) -> None:
    """Refuse bundles that cannot be fed the same photographs.

    Raises:
        UsageError: They do not hold the same ones.
    """
    first = workloads[subjects[0].name]
    for subject in subjects[1:]:
        other = workloads[subject.name]
        if other.names != first.names or bool(other.images) != bool(first.images):
            raise UsageError(
                f"{subject.name} cannot be held against {subjects[0].name}: they do not take the same inputs "
                f"({other.description}; {first.description}); name photographs that both take with --data"
            )


def _joint(
    subjects: Sequence[Subject], workloads: Mapping[str, Workload], batch: int
) -> list[dict[str, NDArray[Any]]]:
    """Batches for several bundles at once: the same photographs, prepared for each as it takes them."""
    own = [(subject.name, workloads[subject.name].tensors(batch)) for subject in subjects]
    return [
        {f"{owner}{_OF}{name}": array for owner, batches in own for name, array in batches[turn].items()}
        for turn in range(len(own[0][1]))
    ]


def _own(candidate: Candidate, subject: Subject) -> Candidate:
    """A candidate that takes its bundle's part of a joint workload."""
    names = [record.name for record in subject.bundle.manifest.inputs]
    keys = [(name, f"{subject.name}{_OF}{name}") for name in names]
    inner = candidate.call
    return replace(candidate, call=lambda tensors: inner({name: tensors[key] for name, key in keys}))


def as_candidate(opened: OpenedPlan) -> Candidate:
    """A plan as one side of a contest, which may open it anew; it stays open."""
    note = f"one fused call, {opened.plan.why}"
    return Candidate(opened.plan.name, "plan", opened.plan.precision, note, opened.infer, renew=opened.renew)


def openings_for(plans: Sequence[OpenedPlan], seconds: float) -> int:
    """How often the plans of a contest are opened: up to ten times within half its time, once where four take longer."""
    each = sum(plan.open_seconds for plan in plans)
    most = 1 + int(_OPENING_SHARE * seconds / each) if each > 0 else MOST_OPENINGS
    found = min(MOST_OPENINGS, most)
    return found if found >= LEAST_OPENINGS else 1


def run_contest(
    subjects: Sequence[Subject],
    workloads: Mapping[str, Workload],
    against: Sequence[str],
    batch: int,
    threads: int,
    seconds: float,
    progress: Callable[[str], None],
) -> Contest:
    """Every plan of every bundle against each other and against baselines of the first bundle.

    Args:
        subjects: The bundles; the first one's lead is the first plan.
        workloads: Bundle name to its inputs, of the same photographs.
        against: Baselines by name.
        batch: Images per call.
        threads: Of every candidate.
        seconds: How long it may take, roughly.
        progress: Told of every step.

    Raises:
        UsageError: An unknown baseline.
    """
    joint = len(subjects) > 1
    own = workloads[subjects[0].name].tensors(batch)
    inputs: Sequence[Tensors] = _joint(subjects, workloads, batch) if joint else own
    plans = []
    for subject in subjects:
        for opened in subject.plans:
            opened.runtime.prepare(batch)
            plans.append(_own(as_candidate(opened), subject) if joint else as_candidate(opened))
    progress(f"preparing {len(against)} baselines for batch {batch}")
    sources = Sources(subjects[0].ensemble, subjects[0].bundle, threads)
    baselines, absent = make_baselines(against, sources, own[0])
    try:
        sides = [_own(c, subjects[0]) for c in baselines] if joint else baselines
        progress(f"{len(plans)} plans and {len(sides)} baselines in turns, batch {batch}")
        openings = openings_for([o for subject in subjects for o in subject.plans], seconds)
        return contest(plans, sides, inputs, threads, seconds=seconds, openings=openings, absent=absent)
    finally:
        for candidate in baselines:
            candidate.close()
