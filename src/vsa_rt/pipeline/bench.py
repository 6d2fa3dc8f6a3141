"""The benchmark and the sweep: bundles and options in, a judged report out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal, get_args

import msgspec

from vsa_rt.bench import clock
from vsa_rt.bench.baselines import require_known
from vsa_rt.bench.environment import environment
from vsa_rt.bench.records.trust import Environment
from vsa_rt.bench.report import SCHEMA, Report, report_from_json, report_to_json
from vsa_rt.bench.verdict import UNJUDGED, judge
from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Precision, Target
from vsa_rt.doctor import usable_cores
from vsa_rt.documents import without_folders
from vsa_rt.errors import UsageError
from vsa_rt.pipeline.export import Progress, silent
from vsa_rt.pipeline.images import data_key
from vsa_rt.pipeline.measuring.contests import check_joint
from vsa_rt.pipeline.measuring.inputs import Inputs, read_inputs
from vsa_rt.pipeline.measuring.kept import Kept
from vsa_rt.pipeline.measuring.measurement import Measurement, MeasureOptions
from vsa_rt.pipeline.measuring.plans import Subject, open_subject, unique_names
from vsa_rt.pipeline.measuring.scenarios import ScenarioOptions, check_feeds, check_scenarios
from vsa_rt.pipeline.reference import check_weights
from vsa_rt.version import __version__

Axis = Literal["target", "precision", "batch"]
#: Baselines of a report that names none: what users have today, and the best of what they could have without this.
AGAINST = ("eager", "onnxruntime-separate", "openvino-separate", "openvino-default")
#: Libraries whose versions a report has.
LIBRARIES = (
    "numpy", "pillow", "openvino", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch", "timm",
    "mlcommons-loadgen", "opencv-python-headless",
)  # fmt: skip


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        data: Photographs, with labels or without; by default those that packages ship, else golden tensors.
        targets: Only engines of these.
        precision: Only engines of this one.
        batches: Images per call; by default 1 and 8, or the bundle's max-batch if that is smaller. A sweep over
            batches takes every power of two.
        threads: For every engine and baseline; by default all cores.
        load: Scenarios and their settings.
        against: Baselines by name; ``None`` for ``AGAINST``.
        weights: Where checkpoints moved.
        command: What repeats the run, for the report.
        progress: Told of every step.
    """

    data: Path | None = None
    targets: Sequence[Target] = ()
    precision: Precision | None = None
    batches: Sequence[int] = ()
    threads: int | None = None
    load: ScenarioOptions = field(default_factory=ScenarioOptions)
    against: Sequence[str] | None = None
    weights: dict[str, Path] = field(default_factory=dict)
    command: str = "vsa-rt bench"
    progress: Progress = silent


def _most(bundles: Sequence[Bundle]) -> int:
    return min(b.manifest.max_batch for b in bundles)


def _batch_sizes(bundles: Sequence[Bundle], asked: Sequence[int]) -> list[int]:
    """The batch sizes to measure.

    Raises:
        UsageError: One of those asked for does not fit a bundle.
    """
    most = _most(bundles)
    for batch in asked:
        if not 1 <= batch <= most:
            raise UsageError(
                f"batch {batch}: expected 1 to {most}, the bundle's max-batch; vsa-rt build --max-batch makes it larger"
            )
    return list(dict.fromkeys(asked)) if asked else sorted({1, min(8, most)})


@contextmanager
def _opened(bundles: Sequence[Bundle], options: BenchOptions, threads: int) -> Iterator[list[Subject]]:
    with ExitStack() as stack:
        yield [
            open_subject(
                bundle,
                name,
                stack,
                targets=options.targets,
                precision=options.precision,
                threads=threads,
                weights=options.weights,
                alone=len(bundles) == 1,
            )
            for bundle, name in zip(bundles, unique_names(bundles), strict=True)
        ]


def _checked_inputs(subjects: Sequence[Subject], options: BenchOptions) -> Inputs:
    """The photographs, and everything refused that would fail only after minutes of measuring."""
    foreign = sorted(options.weights.keys() - {name for s in subjects for name in s.weights})
    if foreign:
        known = sorted({name for s in subjects for name in s.bundle.manifest.checkpoints})
        raise UsageError(
            f"--weights {foreign[0]}=…: no bundle has it; there are {', '.join(known) or 'none'}"
        )
    for subject in subjects:
        check_weights(subject.bundle, subject.weights)
    inputs = read_inputs(subjects, options.data)
    check_joint(subjects, inputs.workloads)
    return inputs


def _shared(reasons: Mapping[str, str]) -> dict[str, str]:
    """Reasons as a report may carry them elsewhere: without this machine's folders."""
    return {part: without_folders(reason) for part, reason in reasons.items()}


@dataclass(frozen=True)
class _Frame:
    """What a report says around its measurements."""

    command: str
    machine: Environment
    created: str
    watch: clock.Stopwatch

    @classmethod
    def begin(cls, command: str) -> _Frame:
        """Look at the machine before this process makes it busy."""
        created = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        watch = clock.Stopwatch()
        return cls(command, environment(LIBRARIES), created, watch)

    def report(self, found: Measurement, resumed: Sequence[str] = ()) -> Report:
        """Everything that was found, judged."""
        first = found.inputs.workloads[found.subjects[0].name]
        refused = {f"{s.name} {folder}": why for s in found.subjects for folder, why in s.refused.items()}
        report = judge(
            Report(
                schema=SCHEMA,
                kind="bench",
                vsa_rt=__version__,
                created=self.created,
                command=self.command,
                seconds=self.watch.total() / 1e3,
                inputs=first.description,
                inputs_sha256=first.sha256,
                environment=self.machine,
                bundles=[s.facts for s in found.subjects],
                plans=found.plans,
                runs=found.runs,
                splits=found.splits,
                cold=found.cold,
                contests=[msgspec.structs.replace(c, absent=_shared(c.absent)) for c in found.contests],
                gaps=found.gaps,
                ceilings=found.ceilings,
                limits=found.limits,
                profiles=found.profiles,
                parity=[
                    msgspec.structs.replace(p, why=without_folders(p.why), refused=_shared(p.refused))
                    for p in found.parity
                ],
                points=found.points(),
                skipped=_shared(refused | found.skipped),
                verdict=UNJUDGED,
                resumed=list(resumed),
            )
        )
        # Whoever reads it later must be able to.
        return report_from_json(report_to_json(report), "the report")


def bench(bundles: Sequence[Bundle], options: BenchOptions) -> Report:
    """Measure bundles in every respect.

    Args:
        bundles: At least one. The first is the one that the others and the baselines are held against.
        options: What to measure.

    Returns:
        The report, with its verdict.

    Raises:
        UsageError: An option does not fit, or no bundle is named.
        BundleError: A bundle is damaged.
        EnvironmentUnusable: None of a bundle's engines can run here.
    """
    if not bundles:
        raise UsageError("no bundle to measure; name at least one")
    against = AGAINST if options.against is None else tuple(options.against)
    require_known(against)
    check_scenarios(options.load)
    batches = _batch_sizes(bundles, options.batches)
    threads = options.threads or usable_cores()
    frame = _Frame.begin(options.command)
    with _opened(bundles, options, threads) as subjects:
        inputs = _checked_inputs(subjects, options)
        check_feeds(options.load, inputs.workloads.values())
        found = Measurement(
            subjects,
            inputs,
            batches,
            MeasureOptions(threads, options.load, against, options.progress),
        )
        found.everything()
        return frame.report(found)


def _along(subject: Subject, axes: Sequence[Axis]) -> Subject:
    """A bundle with the plans that differ from its lead along the axes alone."""
    lead = subject.lead.plan
    plans = [
        opened
        for opened in subject.plans
        if ("target" in axes or opened.plan.target == lead.target)
        and ("precision" in axes or opened.plan.precision == lead.precision)
    ]
    return replace(subject, plans=plans)


def _kept(
    folder: Path, found: Sequence[Subject], inputs: Inputs, options: MeasureOptions, frame: _Frame
) -> Kept:
    """What a sweep's parts depend on: bundles, plans, photographs, time, machine and libraries."""
    machine = frame.machine
    key = {
        "vsa_rt": __version__,
        "bundles": [s.bundle.manifest.digest for s in found],
        "plans": [o.plan.name for s in found for o in s.plans],
        "threads": options.threads,
        "seconds": options.load.seconds,
        "photographs": data_key(inputs.photographs),
        "inputs": [w.sha256 for w in inputs.workloads.values()],
        "weights": {name: str(path) for s in found for name, path in s.weights.items()},
        "machine": [machine.processor, machine.cores, machine.libraries, machine.variables],
    }
    return Kept(folder, key)


def sweep(bundles: Sequence[Bundle], axes: Sequence[str], folder: Path, options: BenchOptions) -> Report:
    """Measure every plan along some axes, and find which of them nobody needs.

    All plans of a batch size take turns in one contest; each contest and each bundle's parity is kept in ``folder``
    as soon as it is done, and taken from there if the same sweep is started again.

    Args:
        bundles: At least one.
        axes: Of ``target``, ``precision``, ``batch``. Along the others the plan that a bundle leads with is kept.
        folder: For finished parts.
        options: ``against``, ``load.scenarios`` and what they need are not looked at.

    Returns:
        The report, with contests, parity and points.

    Raises:
        UsageError: An unknown axis, or an option does not fit.
    """
    known = [axis for axis in get_args(Axis) if axis in axes]
    foreign = sorted(set(axes) - set(known))
    if foreign or not known or not bundles:
        what = f"axis {foreign[0]!r}: unknown" if foreign else "nothing to sweep"
        raise UsageError(f"{what}; name bundles and axes of {', '.join(get_args(Axis))}")
    powers = [1 << bit for bit in range(_most(bundles).bit_length())]
    batches = _batch_sizes(bundles, options.batches or (powers if "batch" in known else [1]))
    threads = options.threads or usable_cores()
    frame = _Frame.begin(options.command)
    with _opened(bundles, options, threads) as opened:
        subjects = [_along(subject, known) for subject in opened]
        inputs = _checked_inputs(subjects, options)
        measure = MeasureOptions(threads, options.load, (), options.progress)
        kept = _kept(folder, subjects, inputs, measure, frame)
        found = Measurement(subjects, inputs, batches, measure, kept)
        found.against()
        found.parities()
        return frame.report(found, kept.resumed)
