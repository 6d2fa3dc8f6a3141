"""Why a lowered engine fails its gate: the guilty backbones, then the guilty nodes, by what changes at the end."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from vsa_rt.budget import Budget
from vsa_rt.bundle import MANIFEST, Bundle
from vsa_rt.contracts import Precision, Target
from vsa_rt.dataset import Dataset, read_dataset
from vsa_rt.documents import write_whole
from vsa_rt.engines import table
from vsa_rt.errors import BundleError, ItemError, UsageError, needs
from vsa_rt.pipeline.calibrate import image_records
from vsa_rt.pipeline.export import GRAPH, Progress, silent
from vsa_rt.pipeline.gate import decides
from vsa_rt.pipeline.precision.lowered import LoweredGraphs, exact_taps
from vsa_rt.pipeline.precision.ranges import calibration_of, int8_ranges
from vsa_rt.pipeline.search.bisection import Reduced, guilty_backbones, reduce
from vsa_rt.pipeline.search.exclusions import EXCLUDE, exclusions_to_text
from vsa_rt.pipeline.search.plan_judge import PlanJudge
from vsa_rt.pipeline.search.suspects import Suspect, suspect_of
from vsa_rt.pipeline.search.trials import Basis, Trial, Trials, Verified, held
from vsa_rt.plan import Plan
from vsa_rt.version import __version__

if TYPE_CHECKING:
    from vsa_rt.export.calibration.store import Calibration
    from vsa_rt.export.lowering.units import Unit

#: Plans that the search for nodes may try unless told otherwise: one guilty node of 155 takes 15, eight of them 110.
LIMIT = 150
#: Share of them for the worst nodes one by one; see ``bisection.reduce``.
_GREEDY = 0.5
#: What measuring both plans at the end may take for one batch size, in seconds.
_SECONDS = 4.0
#: Where engines are built while the search runs; nobody else has such a folder.
_SCRATCH = ".vsa-rt-bisect"

Outcome = Literal["holds", "found", "impossible", "not reproducible"]


@dataclass(frozen=True)
class BisectOptions:
    """What to look into, and how.

    Attributes:
        target: Of the engine; ``None`` for the first one that failed.
        precision: Of the engine, or of a plan that is lowered anew; ``None`` likewise.
        calib: Photographs on which int8's ranges are measured, instead of the bundle's calibration.
        method: How ranges are taken; ``None`` for the bundle's.
        budget: What may change; ``None`` for the bundle's, else the default.
        weights: Where checkpoints moved.
        out: Folder for the list and for what was tried, so that it can be gone on with; ``None`` writes nothing.
        limit: How many plans the search for nodes may try.
        seconds: What measuring may take for one batch size.
        progress: Told of every step.
    """

    target: Target | None = None
    precision: Precision | None = None
    calib: Path | None = None
    method: str | None = None
    budget: Budget | None = None
    weights: dict[str, Path] = field(default_factory=dict)
    out: Path | None = None
    limit: int = LIMIT
    seconds: float = _SECONDS
    progress: Progress = silent


@dataclass(frozen=True)
class Guilty:
    """Nodes that have to stay in fp32.

    Attributes:
        unit: The nodes.
        lowered: What changes where these alone of the list are lowered all the same; ``None`` if it was not tried.
    """

    unit: Unit
    lowered: Trial | None


@dataclass(frozen=True)
class Bisection:
    """What was found.

    Attributes:
        outcome: ``holds``: the plan is inside the budget. ``found``: it is not, and it is with the list.
            ``impossible``: only fp32 throughout is, or not even that. ``not reproducible``: the list held when it was
            found, and does not when it is built again.
        suspect: What was looked into.
        budget: What may change.
        basis: What it was held against.
        decides: Whether labels mean something; where they do not, the outputs' differences are judged.
        trials: Every plan that was tried, in that order.
        resumed: How many of them an earlier run had made.
        backbones: The guilty ones, the worst first.
        nodes: In the graph's order.
        lowered: How many nodes are lowered in the guilty backbones.
        minimal: Whether each of the nodes is needed; else the limit of trials was reached before that was known.
        exclude: Names of all nodes that stay in fp32, those that the plan excluded before first.
        verified: The plan with the list, built once more; ``None`` without a list.
        rejected: Photographs that could not be read.
        notes: What else there is to say.
    """

    outcome: Outcome
    suspect: Suspect
    budget: Budget
    basis: Basis
    decides: bool
    trials: list[Trial]
    resumed: int
    backbones: list[str] = field(default_factory=list)
    nodes: list[Guilty] = field(default_factory=list)
    lowered: int = 0
    minimal: bool = False
    exclude: list[str] = field(default_factory=list)
    verified: Verified | None = None
    rejected: list[ItemError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether there is a way to stay inside the budget."""
        return self.outcome in ("holds", "found")


def bisect(bundle: Bundle, data: Path, options: BisectOptions) -> Bisection:
    """Find the nodes that have to stay in fp32 for a lowered plan to hold its budget.

    Args:
        bundle: Built with engines or only exported.
        data: Photographs as ``read_dataset`` takes them; with labels, accuracy counts as the budget says.
        options: Which engine or plan.

    Raises:
        UsageError: There is nothing lowered of that description, no ranges for int8, or an output folder that
            cannot be used.
        DatasetError: No photograph can be read.
        EnvironmentUnusable: The target cannot be used, or its backend refuses a graph.
        BundleError: The bundle is damaged.
    """
    manifest = bundle.manifest
    if any(i.resize is None and not i.rows for i in manifest.inputs):
        raise UsageError(f"{bundle.root}: takes ready tensors only; there is nothing to judge on photographs")
    if options.limit < 1:
        raise UsageError(f"{options.limit} trials: expected at least 1")
    if options.out is not None and (options.out / MANIFEST).exists():
        raise UsageError(f"{options.out}: is a bundle; name another folder")
    suspect = suspect_of(bundle, options.target, options.precision)
    bundle.verify()
    dataset = read_dataset(data)
    with (
        held(options.out) if options.out is not None else nullcontext(),
        _scratch(bundle, options.out) as folder,
    ):
        graphs = LoweredGraphs(folder, manifest)
        graphs.ranges = _ranges(bundle, graphs, suspect, options)
        budget = options.budget or manifest.budget or Budget()
        key = _key(bundle, dataset, data, graphs.ranges, suspect.target, budget)
        trials = Trials(options.out, key, options.limit, options.progress)
        judge = PlanJudge(
            bundle,
            dataset,
            graphs,
            suspect.target,
            budget,
            trials,
            options.weights,
            options.seconds,
            options.progress,
        )
        found = _search(judge, suspect)
        if options.out is not None:
            write_whole(options.out / EXCLUDE, exclusions_to_text(found).encode())
    return found


@contextmanager
def _scratch(bundle: Bundle, out: Path | None) -> Iterator[Path]:
    """A folder to build in that holds the FP32 graph; one that a killed run left is emptied."""
    graph = (bundle.root / bundle.manifest.graphs[0].path).resolve()
    with tempfile.TemporaryDirectory() if out is None else nullcontext(str(out / _SCRATCH)) as name:
        folder = Path(name)
        if out is not None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        try:
            (folder / GRAPH).symlink_to(graph)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _ranges(
    bundle: Bundle, graphs: LoweredGraphs, suspect: Suspect, options: BisectOptions
) -> Mapping[str, float]:
    """What int8's products may read, by activation; nothing where the plan has no int8.

    What was measured on ``--calib`` is kept in the output folder, so that going on needs no second pass.

    Raises:
        UsageError: As for ``int8_ranges``.
        DatasetError: Likewise.
    """
    if Precision.INT8 not in suspect.plan.backbones.values():
        return {}
    with needs("export"):
        from vsa_rt.export.calibration.store import CALIBRATION
    kept = options.out / CALIBRATION if options.out is not None and options.calib is not None else None
    known = _kept(kept, options.progress) if kept is not None else None
    manifest = bundle.manifest
    ranges = int8_ranges(
        manifest,
        lambda: bundle.read(manifest.graphs[0].path),
        graphs.activations,
        known or calibration_of(bundle),
        options,
    )
    if kept is not None:
        write_whole(kept, ranges.to_bytes())
    return ranges.thresholds()


def _kept(file: Path, progress: Progress) -> Calibration | None:
    """What an earlier run measured; one that is damaged is ours alone, and made anew."""
    with needs("export"):
        from vsa_rt.export.calibration.store import read_calibration
    try:
        return read_calibration(file.read_bytes()) if file.is_file() else None
    except BundleError as error:
        progress(str(error))
        return None


def _key(
    bundle: Bundle,
    dataset: Dataset,
    data: Path,
    ranges: Mapping[str, float],
    target: Target,
    budget: Budget,
) -> dict[str, str]:
    """Everything but the plan that decides how a trial ends."""
    manifest = bundle.manifest
    images = image_records(dataset.photographs, data, manifest.inputs)
    labels = [[sorted(p.labels or ()), p.shares] for p in dataset.photographs]
    engine = table.probe(target)

    def digest(content: object) -> str:
        return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()

    return {
        "vsa_rt": __version__,
        "graph": manifest.files[manifest.graphs[0].path].sha256,
        "target": str(target),
        "engine": f"{engine.version} on {engine.machine}",
        "max_batch": str(manifest.max_batch),
        "photographs": digest([images, labels]),
        "ranges": digest(dict(ranges)),
        "budget": str(budget),
    }


def _search(judge: PlanJudge, suspect: Suspect) -> Bisection:
    """The whole plan, its backbones, the nodes of the guilty ones, and the plan with the list once more."""
    plan, manifest = suspect.plan, judge.manifest
    whole = judge.trial(plan, "whole", f"{judge.target} {plan}")
    if whole.passed:
        return _found(judge, suspect, "holds")
    with needs("export"):
        from vsa_rt.export.lowering.units import units_of
    reads = exact_taps(manifest)
    units = units_of(judge.graphs.source(), plan, reads, judge.graphs.ranges)
    taps = [tap for tap in plan.backbones if any(u.backbone == tap for u in units)]

    def alone(tap: str) -> Trial:
        return judge.trial(_lowered_only(plan, [tap], reads), "one backbone", f"{tap} alone")

    def without(some: Sequence[str]) -> Trial:
        rest = [tap for tap in taps if tap not in some]
        words = f"{', '.join(some)} in fp32" + (f", {', '.join(rest)} lowered" if rest else "")
        return judge.trial(_lowered_only(plan, rest, reads), "without backbones", words)

    guilty = guilty_backbones(taps, alone, without)
    if guilty is None:
        return _found(judge, suspect, "impossible", "the target is over the budget in fp32, too")
    open_to = [u for u in units if u.backbone in guilty]
    reduced = _reduced(judge, plan, guilty, open_to)
    if len(reduced.items) == len(units):
        why = "nothing that was tried holds but fp32 throughout"
        return replace(_found(judge, suspect, "impossible", why), backbones=guilty, minimal=reduced.minimal)
    final = plan.without(n for u in reduced.items for n in u.nodes)
    verified = judge.verify(plan, final)
    return replace(
        _found(judge, suspect, "found" if verified.trial.passed else "not reproducible"),
        backbones=guilty,
        nodes=[_guilt(judge, plan, reduced.items, u) for u in reduced.items],
        lowered=sum(len(u.nodes) for u in open_to),
        minimal=reduced.minimal,
        exclude=list(final.exclude),
        verified=verified,
    )


def _reduced(judge: PlanJudge, plan: Plan, guilty: Sequence[str], units: Sequence[Unit]) -> Reduced[Unit]:
    """A small set of units without which the plan holds."""
    total = sum(len(u.nodes) for u in units)

    def excluding(chosen: Sequence[Unit]) -> Trial:
        nodes = [n for u in chosen for n in u.nodes]
        what = f"excluding {len(nodes)} of {total} nodes of {', '.join(guilty)}"
        return judge.trial(plan.without(nodes), "search", what)

    return reduce(units, excluding, int(_GREEDY * judge.trials.limit))


def _guilt(judge: PlanJudge, plan: Plan, chosen: Sequence[Unit], unit: Unit) -> Guilty:
    others = plan.without(n for u in chosen if u != unit for n in u.nodes)
    return Guilty(unit, judge.trials.known(others))


def _lowered_only(plan: Plan, taps: Sequence[str], reads: Mapping[str, str]) -> Plan:
    """The plan with all other backbones in fp32; who reads one and has no arithmetic of its own goes with it."""
    return msgspec.structs.replace(
        plan,
        backbones={t: p if reads.get(t, t) in taps else Precision.FP32 for t, p in plan.backbones.items()},
    )


def _found(judge: PlanJudge, suspect: Suspect, outcome: Outcome, *notes: str) -> Bisection:
    trials, basis = judge.trials, judge.trials.basis
    return Bisection(
        outcome=outcome,
        suspect=suspect,
        budget=judge.budget,
        basis=basis,
        decides=decides(judge.manifest),
        trials=list(trials.asked),
        resumed=len(trials.asked) - trials.made,
        rejected=[*judge.dataset.rejected, *(ItemError(*pair) for pair in basis.rejected)],
        notes=[*notes, *trials.notes],
    )
