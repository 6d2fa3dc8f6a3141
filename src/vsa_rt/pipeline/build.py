"""A recipe, an export or an ONNX file to a bundle: lower, compile, gate, measure, choose."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from vsa_rt.architecture import ARCHITECTURES, family_of
from vsa_rt.bench import clock
from vsa_rt.bundle import MANIFEST, Bundle, new_folder, seal_folder
from vsa_rt.contracts import Precision, Target
from vsa_rt.doctor import usable_cores
from vsa_rt.engines import table
from vsa_rt.engines.backend import OpenOptions, Session
from vsa_rt.engines.select import input_specs, output_specs
from vsa_rt.errors import EnvironmentUnusable, GateError, UsageError, needs
from vsa_rt.manifest import EngineRecord, GateRecord, GraphRecord, Manifest, Rejection
from vsa_rt.pipeline.export import (
    DEFAULT_BATCH,
    GRAPH,
    ExportOptions,
    export_into,
)
from vsa_rt.pipeline.gate import Judged, Reference, comparison_of, judge, record_of, run_reference
from vsa_rt.pipeline.images import gate_photographs
from vsa_rt.pipeline.reference import find_reference
from vsa_rt.recipe_file import find_recipe, read_recipe, with_options

#: Rounds of the interleaved measurement that ranks the engines: at most, and at least however long they take.
ROUNDS, FEWEST_ROUNDS = 15, 3
#: What they may take together for one batch size, in seconds.
_SECONDS = 20.0


@dataclass(frozen=True)
class BuildOptions(ExportOptions):
    """What to build.

    Attributes:
        targets: Where engines shall run; empty for every target that is usable here.
        precision: Only this one; ``None`` for every precision of each target.
        recipe: Labels and preprocessing of a bare ONNX file.
        settings: ``BACKBONE.OPTION`` to a value instead of the recipe's.
    """

    targets: list[Target] = field(default_factory=list)
    precision: Precision | None = None
    recipe: Path | None = None
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Candidate:
    """One target and precision on its way to an engine."""

    target: Target
    precision: Precision

    @property
    def folder(self) -> str:
        return f"engines/{self.target.backend}-{self.target.device}-{self.precision}"

    def rejected(self, reason: str) -> Rejection:
        return Rejection(target=str(self.target), precision=str(self.precision), reason=reason)

    def __str__(self) -> str:
        return f"{self.target} {self.precision}"


@dataclass(frozen=True)
class _Built:
    """A candidate whose engine is there and was judged."""

    candidate: _Candidate
    files: list[str]
    achieved: float | None
    gate: GateRecord


def _candidates(options: BuildOptions) -> tuple[list[_Candidate], list[Rejection]]:
    """What to build, and what cannot be built here.

    Raises:
        UsageError: A target is unknown, or has no such precision.
        EnvironmentUnusable: A target that was asked for, or every one, is not usable.
    """
    wanted: list[_Candidate] = []
    rejected: list[Rejection] = []
    for target in options.targets or table.targets():
        found = table.probe(target)
        known = table.backend(target.backend).precisions
        precisions = [p for p in known if options.precision in (None, p)]
        if options.targets and not found.usable:
            raise EnvironmentUnusable(f"target {target}: {found.reason}; {found.install}")
        if options.targets and not precisions:
            raise UsageError(
                f"target {target} has no precision {options.precision}; it has {', '.join(map(str, known))}"
            )
        if not found.usable:
            reason = f"{found.reason}; {found.install}"
            rejected.append(Rejection(target=str(target), precision="", reason=reason))
        wanted += [_Candidate(target, p) for p in precisions if found.usable]
    if not wanted:
        reasons = "; ".join(f"{r.target}: {r.reason}" for r in rejected)
        raise EnvironmentUnusable(
            f"no target is usable here ({reasons})" if reasons else "no target has that precision"
        )
    return wanted, rejected


@dataclass
class _Lowered:
    """The graphs of a folder by precision, each made when it is first asked for."""

    folder: Path
    manifest: Manifest
    names: dict[Precision, str] = field(default_factory=lambda: {Precision.FP32: GRAPH})

    def graph(self, precision: Precision) -> bytes:
        """The bytes of the graph in a precision.

        Raises:
            UsageError: The graph points outside, or cannot be written in that precision.
        """
        if precision not in self.names:
            with needs("export"):
                from vsa_rt.export.foreign import graph_from_bytes
                from vsa_rt.export.precision import lower

            source = graph_from_bytes((self.folder / GRAPH).read_bytes(), GRAPH)
            trunk = [t.name for t in self.manifest.taps if t.kind == "backbone"]
            lowered = lower(source, precision, trunk, self._exact(trunk)).SerializeToString()
            del source
            name = f"graph.{precision}.onnx"
            (self.folder / name).write_bytes(lowered)
            self.names[precision] = name
        return (self.folder / self.names[precision]).read_bytes()

    def _exact(self, trunk: list[str]) -> dict[str, str]:
        """Taps whose own arithmetic stays in float32, each with the tap that it reads."""
        recipe = self.manifest.recipe
        backbones = recipe.backbones if recipe is not None else []
        exact = {b.name for b in backbones if ARCHITECTURES[family_of(b.architecture)].exact}
        return {t.name: t.reads for t in self.manifest.taps if t.name in exact and t.reads in trunk}

    def records(self) -> list[GraphRecord]:
        """What the manifest says about them, FP32 first."""
        opset = self.manifest.graphs[0].opset
        return [GraphRecord(path=name, precision=str(p), opset=opset) for p, name in self.names.items()]


def _compile(folder: Path, candidate: _Candidate, graph: bytes, manifest: Manifest) -> list[str]:
    """Build one engine; gives its files."""
    engine_folder = folder / candidate.folder
    engine_folder.mkdir(parents=True)
    backend = table.backend(candidate.target.backend)
    names = backend.build(graph, engine_folder, candidate.target.device, manifest.max_batch)
    return [f"{candidate.folder}/{name}" for name in names]


def _open(
    folder: Path, candidate: _Candidate, files: list[str], manifest: Manifest, first: int = 1
) -> Session:
    options = OpenOptions(max_batch=manifest.max_batch, threads=usable_cores(), first=first)
    return table.backend(candidate.target.backend).open(
        [(folder / name).read_bytes() for name in files],
        input_specs(manifest),
        output_specs(manifest),
        options,
    )


def _measure(
    folder: Path, built: list[_Built], manifest: Manifest, judged: Judged
) -> dict[str, dict[str, float]]:
    """Median latency in ms by candidate and batch, every candidate interleaved with the others, on photographs."""
    found: dict[str, dict[str, float]] = {str(b.candidate): {} for b in built}
    photographs = judged.batches[0][0].candidate
    for batch in sorted({1, manifest.max_batch}):
        inputs = {
            n: np.ascontiguousarray(np.resize(a, (batch, *a.shape[1:]))) for n, a in photographs.items()
        }
        # Opened for one batch size at a time: each may hold the weights once more.
        sessions = {str(b.candidate): _open(folder, b.candidate, b.files, manifest, batch) for b in built}
        calls = {name: partial(session.slots[0].run, inputs) for name, session in sessions.items()}
        for call in calls.values():
            call()
        # Each sample follows an untimed call of its own.
        once = 2 * sum(clock.single(call) for call in calls.values())
        rounds = max(FEWEST_ROUNDS, min(ROUNDS, int(_SECONDS / once)))
        for name, samples in clock.measure(calls, rounds, warm_up=1).items():
            found[name][str(batch)] = round(clock.median_ms(samples), 3)
        calls.clear()
        for session in sessions.values():
            session.close()
    return found


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


def _engines(
    candidates: list[_Candidate],
    lowered: _Lowered,
    reference: Reference,
    judged: Judged,
    options: BuildOptions,
) -> tuple[list[_Built], list[Rejection]]:
    """Build, open and gate every candidate.

    Raises:
        EnvironmentUnusable: One that was asked for by name cannot be built.
    """
    built: list[_Built] = []
    rejected: list[Rejection] = []
    folder, manifest = lowered.folder, lowered.manifest
    for candidate in candidates:
        options.progress(f"building {candidate}")
        try:
            files = _compile(folder, candidate, lowered.graph(candidate.precision), manifest)
            session = _open(folder, candidate, files, manifest)
        except (EnvironmentUnusable, UsageError) as error:
            if options.targets or options.precision:
                raise
            shutil.rmtree(folder / candidate.folder, ignore_errors=True)
            rejected.append(candidate.rejected(str(error)))
            continue
        options.progress(f"gate: {candidate} against {reference.name}")
        comparison = comparison_of(str(candidate), reference, manifest, candidate.precision)
        parity = judge(comparison, judged, session.slots[0].run, manifest.max_batch)
        built.append(_Built(candidate, files, session.achieved, record_of(parity, judged)))
        # An engine may hold its weights once per batch size: one at a time.
        session.close()
    if not built:
        raise EnvironmentUnusable(f"no engine could be built: {'; '.join(r.reason for r in rejected)}")
    return built, rejected


def _drop_failed(
    folder: Path, built: list[_Built], options: BuildOptions
) -> tuple[list[_Built], list[Rejection]]:
    """Leave out engines that failed their gate.

    Raises:
        GateError: One that was asked for by name failed, or none is left.
    """
    failed = [b for b in built if not b.gate.passed]
    if failed and (options.targets or options.precision or len(failed) == len(built)):
        reasons = " | ".join(f"{b.candidate}: {'; '.join(b.gate.reasons)}" for b in failed)
        raise GateError(f"failed parity: {reasons}")
    for b in failed:
        shutil.rmtree(folder / b.candidate.folder)
    rejections = [b.candidate.rejected(f"failed parity: {'; '.join(b.gate.reasons)}") for b in failed]
    return [b for b in built if b.gate.passed], rejections


def _record(b: _Built, latency: dict[str, float]) -> EngineRecord:
    found = table.probe(b.candidate.target)
    return EngineRecord(
        target=str(b.candidate.target),
        precision=str(b.candidate.precision),
        achieved=b.achieved,
        folder=b.candidate.folder,
        files=b.files,
        version=found.version,
        machine=found.machine,
        latency_ms=latency,
        gate=b.gate,
    )


def build(source: str, out: Path, options: BuildOptions) -> Manifest:
    """Build a bundle.

    Args:
        source: A shipped recipe's name, a recipe file, an exported or built bundle, or an ONNX file.
        out: The new bundle; it appears whole or not at all.
        options: Targets, precision, weights, photographs.

    Returns:
        The manifest as written.

    Raises:
        GateError: A stage left its tolerance; nothing is written.
        EnvironmentUnusable: No target can be used.
    """
    candidates, unusable = _candidates(options)
    with new_folder(out) as work:
        manifest, reference, judged = _start(source, work, options)
        lowered = _Lowered(work, manifest)
        built, rejected = _engines(candidates, lowered, reference, judged, options)
        del reference
        good, failed = _drop_failed(work, built, options)
        options.progress("measuring")
        latency = _measure(work, good, manifest, judged)
        engines = sorted(
            (_record(b, latency[str(b.candidate)]) for b in good),
            key=lambda e: next(iter(e.latency_ms.values())),
        )
        return seal_folder(
            work,
            msgspec.structs.replace(
                manifest,
                graphs=lowered.records(),
                engines=engines,
                rejected=unusable + rejected + failed,
                chosen=_why_first(engines),
            ),
        )


def _why_first(engines: list[EngineRecord]) -> str:
    """One sentence: which engine is the default, and why."""
    first = engines[0]
    others = ", ".join(f"{e.target} {e.precision} {e.latency_ms['1']:.1f} ms" for e in engines[1:])
    text = f"{first.target} {first.precision}: fastest at batch 1 ({first.latency_ms['1']:.1f} ms"
    return f"{text}; {others})" if others else f"{text}, the only one)"
