"""A recipe, an export or an ONNX file to a bundle: calibrate, lower, compile, gate, measure, choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import msgspec

from vsa_rt.budget import Budget
from vsa_rt.bundle import MANIFEST, Bundle, new_folder, seal_folder
from vsa_rt.contracts import Precision, Target
from vsa_rt.engines import table
from vsa_rt.engines.backend import Probe
from vsa_rt.engines.compiling import Tuning
from vsa_rt.errors import EnvironmentUnusable, GateError, UsageError, needs
from vsa_rt.manifest import EngineRecord, Manifest, Rejection
from vsa_rt.pipeline.diagnose import PAYS, paying, pays
from vsa_rt.pipeline.export import DEFAULT_BATCH, GRAPH, ExportOptions, export_into
from vsa_rt.pipeline.gate import Judged, Reference, run_reference
from vsa_rt.pipeline.images import gate_photographs
from vsa_rt.pipeline.precision.auto import Search, search
from vsa_rt.pipeline.precision.built import Built
from vsa_rt.pipeline.precision.half_plans import HalfPlans
from vsa_rt.pipeline.precision.latency import median
from vsa_rt.pipeline.precision.lowered import LoweredGraphs, backbone_taps, uniform_plan
from vsa_rt.pipeline.precision.ranges import Int8Ranges, NoRanges, int8_ranges
from vsa_rt.pipeline.precision.workshop import Workshop
from vsa_rt.pipeline.reference import find_reference
from vsa_rt.recipe_file import find_recipe, read_recipe, with_options


@dataclass(frozen=True)
class BuildOptions(ExportOptions):
    """What to build.

    Attributes:
        targets: Where engines shall run; empty for every target that is usable here.
        precision: Only this one; ``None`` for fp32, every lower precision and the fastest plan of each target.
        recipe: Labels and preprocessing of a bare ONNX file.
        settings: ``BACKBONE.OPTION`` to a value instead of the recipe's.
        calib: Photographs on which int8's ranges are measured; without them nothing becomes int8.
        method: How ranges are taken; see ``export.calibration.thresholds``. ``None``: as the source bundle's were, else
            ``ranges.METHOD``.
        budget: What lowered engines may change.
        exclude: Names of nodes that stay in fp32 whatever their backbone's precision is.
        force: Keep engines that fail; the manifest then says so.
        tuning: How TensorRT compiles.
    """

    targets: list[Target] = field(default_factory=list)
    precision: Precision | None = None
    recipe: Path | None = None
    settings: dict[str, str] = field(default_factory=dict)
    calib: Path | None = None
    method: str | None = None
    budget: Budget = field(default_factory=Budget)
    exclude: list[str] = field(default_factory=list)
    force: bool = False
    tuning: Tuning = field(default_factory=Tuning)


def _targets(options: BuildOptions) -> tuple[list[Target], list[Rejection]]:
    """Where to build, and where it cannot be done here.

    Raises:
        UsageError: A target is unknown, or has no such precision.
        EnvironmentUnusable: A target that was asked for, or every one, is not usable.
    """
    wanted: list[Target] = []
    rejected: list[Rejection] = []
    for target in options.targets or table.targets():
        found = table.probe(target)
        known = table.backend(target.backend).precisions(target.device)
        ahead = bool(options.targets) and found.compiles
        if options.targets and not (found.usable or ahead):
            raise EnvironmentUnusable(_unusable(target, found))
        if options.precision not in (None, *known):
            if options.targets:
                raise UsageError(
                    f"target {target} has no precision {options.precision}; it has {', '.join(map(str, known))}"
                )
        elif found.usable or ahead:
            wanted.append(target)
        if not (found.usable or ahead):
            reason = _unusable(target, found).partition(": ")[2]
            rejected.append(Rejection(target=str(target), precision="", reason=reason))
    if not wanted:
        reasons = "; ".join(f"{r.target}: {r.reason}" for r in rejected)
        raise EnvironmentUnusable(
            f"no target is usable here ({reasons})" if reasons else "no target has that precision"
        )
    return wanted, rejected


def _unusable(target: Target, found: Probe) -> str:
    """Why nothing can be built for a target here, and what would help."""
    return f"target {target}: {found.reason}{f'; {found.install}' if found.install else ''}"


def _ranges(folder: Path, graphs: LoweredGraphs, options: BuildOptions) -> Int8Ranges | NoRanges:
    """What int8's ranges are taken from, stored in the folder; else why there is nothing, which only int8 minds.

    Raises:
        NoRanges: There is nothing, and int8 was asked for by name.
        DatasetError: Too few photographs, or an activation that is not a number.
        UsageError: The method is unknown.
    """
    with needs("export"):
        from vsa_rt.export.calibration.store import CALIBRATION, read_calibration
    stored = folder / CALIBRATION
    known = read_calibration(stored.read_bytes()) if stored.is_file() else None
    try:
        ranges = int8_ranges(graphs.manifest, (folder / GRAPH).read_bytes, graphs.activations, known, options)
    except NoRanges as error:
        if options.precision is Precision.INT8:
            raise
        if known is not None:
            options.progress(f"warning: {CALIBRATION} is left out: {error}")
            stored.unlink()
        return error
    if options.calib is not None:
        stored.write_bytes(ranges.to_bytes())
    return ranges


def _start(source: str, folder: Path, options: BuildOptions) -> tuple[Manifest, Reference, Judged]:
    """Fill the folder with everything but lowered graphs and engines."""
    path = Path(source)
    if path.suffix != ".onnx" and options.recipe:
        raise UsageError("--recipe: only a MODEL.onnx needs one")
    if options.settings and (path.suffix == ".onnx" or (path / MANIFEST).is_file()):
        raise UsageError("--set: only a recipe has options; what is exported is as it is")
    if (path / MANIFEST).is_file():
        if options.random_seed is not None:
            raise UsageError("--random-weights: the bundle has its weights already")
        bundle = Bundle.open(path)
        lowered = {g.path for g in bundle.manifest.graphs[1:]}
        kept = [n for n in bundle.manifest.files if not n.startswith("engines/") and n not in lowered]
        for name in kept:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(bundle.read(name))
        manifest = msgspec.structs.replace(
            bundle.manifest,
            engines=[],
            plans=[],
            budget=None,
            rejected=[],
            max_batch=options.max_batch or bundle.manifest.max_batch,
            graphs=bundle.manifest.graphs[:1],
        )
        options.progress("loading the reference")
        reference = find_reference(bundle, options.weights)
    elif path.suffix == ".onnx":
        if options.random_seed is not None or options.weights:
            raise UsageError("--weights, --random-weights: an ONNX file has its weights already")
        from vsa_rt.pipeline.adopt import adopt_into

        return adopt_into(folder, path, options.recipe, options.max_batch or DEFAULT_BATCH, options.data)
    else:
        recipe_path = find_recipe(source)
        recipe = with_options(read_recipe(recipe_path), options.settings)
        return export_into(folder, recipe, recipe_path.parent, options)
    options.progress(f"running the {reference.name} reference on photographs")
    return (
        manifest,
        reference,
        run_reference(
            reference, manifest.inputs, gate_photographs(options.data, manifest.recipe), manifest.recipe
        ),
    )


def _only(workshop: Workshop, target: Target, options: BuildOptions, precision: Precision) -> Search:
    """The engine of one precision, for all backbones."""
    plan = uniform_plan(workshop.graphs.manifest, precision, options.exclude)
    if precision is not Precision.FP32:
        times = paying(target).get(precision)
        if times is not None and times < PAYS[precision]:
            options.progress(f"warning: {pays(str(target), precision, times)}")
    return Search(target, [workshop.build(target, plan)])


def _ahead(workshop: Workshop, target: Target, options: BuildOptions, without: str) -> Search:
    """Engines for a device that is not here: what was asked for, else half, and int8 where its ranges are known.

    Nothing can be measured, so nothing is put together; what one precision changes is judged on its graph.
    """
    if options.precision is not None:
        return Search(target, [workshop.build_ahead(target, options.precision, options.exclude)])
    made = Search(target, [workshop.build_ahead(target, Precision.FP16, options.exclude)])
    if without:
        made.reject("int8", without)
    else:
        made.engines.append(workshop.build_ahead(target, Precision.INT8, options.exclude))
    return made


def _searches(
    workshop: Workshop, targets: Sequence[Target], options: BuildOptions, ranges: Int8Ranges | NoRanges
) -> tuple[list[Search], list[Rejection]]:
    """Build, open and gate what each target needs.

    Raises:
        EnvironmentUnusable: A target that was asked for by name cannot be built, or none can.
    """
    without = str(ranges) if isinstance(ranges, NoRanges) else ""
    here = {target: table.probe(target).usable for target in targets}
    found: list[Search] = []
    rejected: list[Rejection] = []
    for target in targets:
        try:
            if not here[target]:
                found.append(_ahead(workshop, target, options, without))
                continue
            if options.precision is not None:
                found.append(_only(workshop, target, options, options.precision))
                continue
            known = table.backend(target.backend).precisions(target.device)
            lower = [p for p in known if p is not Precision.FP32]
            possible = [p for p in lower if not without or p is not Precision.INT8]
            search_of = search(workshop, target, possible, options.exclude)
            if Precision.INT8 in lower and without:
                search_of.reject("int8", without)
            found.append(search_of)
        except (EnvironmentUnusable, UsageError) as error:
            if options.targets or options.precision:
                raise
            word = str(options.precision or "")
            rejected.append(Rejection(target=str(target), precision=word, reason=str(error)))
    if not found:
        raise EnvironmentUnusable(f"no engine could be built: {'; '.join(r.reason for r in rejected)}")
    return found, rejected


def _without_failed(
    workshop: Workshop, built: Sequence[Built], options: BuildOptions
) -> tuple[list[Built], list[Rejection]]:
    """Leave out engines that failed their gate, unless that is forced.

    Raises:
        GateError: One that was asked for by name failed, or none is left.
    """
    failed = [b for b in built if not b.gate.passed]
    if options.force:
        return list(built), []
    if failed and (options.precision or len(failed) == len(built)):
        reasons = " | ".join(f"{b.target} {b.plan}: {'; '.join(b.gate.reasons)}" for b in failed)
        raise GateError(
            f"failed parity: {reasons}; keep it all the same with --force, or find the nodes that do it: "
            "vsa-rt export, then vsa-rt bisect"
        )
    for b in failed:
        workshop.discard(b)
    rejections = [
        Rejection(
            target=str(b.target),
            precision=str(b.plan.precision),
            reason=f"failed parity: {'; '.join(b.gate.reasons)}",
        )
        for b in failed
    ]
    return [b for b in built if b.gate.passed], rejections


def ranked(engines: Sequence[EngineRecord]) -> list[EngineRecord]:
    """Engines in the order in which they are tried at load: those that hold first, the best of them first.

    An engine is as good as its worst batch size: how many times the time of the fastest engine that holds it takes there.
    Those that were compiled for other machines were never run, and come after what was.
    """
    ran = [e for e in engines if e.latency_ms]
    holding = [e for e in ran if e.gate.passed] or ran
    fastest = {
        batch: min(e.latency_ms[batch] for e in holding) for e in holding[:1] for batch in e.latency_ms
    }

    def order(engine: EngineRecord) -> tuple[bool, bool, float]:
        worst = max((ms / fastest[batch] for batch, ms in engine.latency_ms.items()), default=0.0)
        return not engine.gate.passed, not engine.latency_ms, worst

    return sorted(engines, key=order)


def build(source: str, out: Path, options: BuildOptions) -> Manifest:
    """Build a bundle.

    Args:
        source: A shipped recipe's name, a recipe file, an exported or built bundle, or an ONNX file.
        out: The new bundle; it appears whole or not at all.
        options: Targets, precision, weights, photographs.

    Returns:
        The manifest as written.

    Raises:
        GateError: A stage left its tolerance or its budget; nothing is written.
        EnvironmentUnusable: No target can be used.
    """
    targets, unusable = _targets(options)
    with new_folder(out) as work:
        manifest, reference, judged = _start(source, work, options)
        # Its outputs are there: the torch model need not stay beside what follows.
        reference = replace(reference, prepare=_gone, run=_gone)
        graphs = LoweredGraphs(work, manifest)
        if options.precision is not Precision.FP32:
            _check_source(graphs, options)
        ranges = _ranges(work, graphs, options)
        if isinstance(ranges, Int8Ranges):
            graphs.ranges = ranges.thresholds()
        recipe = manifest.recipe
        halves = HalfPlans(
            graphs, lambda: gate_photographs(options.data, recipe), options.budget, options.progress
        )
        workshop = Workshop(
            graphs, reference, judged, options.budget, options.progress, options.tuning, halves
        )
        found, rejected = _searches(workshop, targets, options, ranges)
        graphs.forget()
        halves.forget()
        good, failed = _without_failed(workshop, [b for s in found for b in s.engines], options)
        good = [b if b.proof == "graph" else workshop.divided(b) for b in good]
        options.progress("measuring")
        ran = [b for b in good if b.proof == "engine"]
        samples = workshop.measure(ran) if ran else {}
        engines = ranked(
            [b.record({n: median(times) for n, times in samples.get(b.name, {}).items()}) for b in good]
        )
        leaders = {e.target: e for e in reversed(engines) if e.gate.passed}
        made = msgspec.structs.replace(
            manifest,
            graphs=graphs.records(),
            engines=engines,
            plans=[t.record(_is(leaders.get(str(s.target)), t.built)) for s in found for t in s.tried],
            budget=None if options.precision is Precision.FP32 else options.budget,
            calibration=ranges.record() if isinstance(ranges, Int8Ranges) else None,
            rejected=unusable + rejected + [r for s in found for r in s.rejected] + failed,
            chosen=_why_first(engines),
        )
        return seal_folder(work, made)


def _gone(*_: object) -> NoReturn:
    """In the place of a reference that has run."""
    raise RuntimeError("the reference has run over its photographs and is not kept")


def _check_source(graphs: LoweredGraphs, options: BuildOptions) -> None:
    """Check what every lowered graph needs, before any is built.

    Raises:
        UsageError: The graph is quantised already, or has no node of an excluded name.
    """
    if not backbone_taps(graphs.manifest) and not options.exclude:
        return
    with needs("export"):
        from vsa_rt.export.lowering.lower import check_excluded, prepared
    try:
        model = prepared(graphs.source())
    except UsageError as error:
        raise UsageError(f"{error}; or build it as it is with --precision fp32") from error
    check_excluded(model, options.exclude)


def _is(engine: EngineRecord | None, built: Built) -> bool:
    plan = {tap: str(precision) for tap, precision in built.plan.backbones.items()}
    return engine is not None and (engine.folder, engine.plan) == (built.folder, plan)


def _why_first(engines: list[EngineRecord]) -> str:
    """One sentence: which engine is the default, and why."""
    first = engines[0]
    if len(engines) == 1:
        return f"{first.target} {first.precision}: the only one ({_times(first)})"
    others = "; ".join(f"{e.target} {e.precision} {_times(e)}" for e in engines[1:])
    if not first.latency_ms:
        return f"{first.target} {first.precision}: the first one; none was run ({others})"
    return f"{first.target} {first.precision}: fastest over its batch sizes ({_times(first)}; {others})"


def _times(engine: EngineRecord) -> str:
    if not engine.latency_ms:
        return "compiled ahead of time, never run"
    return ", ".join(f"{ms:.1f} ms at batch {batch}" for batch, ms in engine.latency_ms.items())
