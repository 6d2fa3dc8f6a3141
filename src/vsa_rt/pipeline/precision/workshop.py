"""The workshop: a plan and a target to an engine that was opened and judged."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import msgspec
import numpy as np
from numpy.typing import NDArray

from vsa_rt.bench.parity import Parity
from vsa_rt.budget import Budget
from vsa_rt.contracts import Precision, Target
from vsa_rt.doctor import usable_cores
from vsa_rt.engines import table
from vsa_rt.engines.backend import OpenOptions, Session
from vsa_rt.engines.compiling import CompileOptions, Part, Source, Tuning
from vsa_rt.engines.select import input_specs, output_specs
from vsa_rt.errors import EnvironmentUnusable, needs
from vsa_rt.manifest import CompiledRecord
from vsa_rt.pipeline.export import GRAPH, Progress
from vsa_rt.pipeline.gate import Judged, Reference, comparison_of, judge, record_of
from vsa_rt.pipeline.precision.built import Built, OpenEngine
from vsa_rt.pipeline.precision.half_plans import HalfPlans
from vsa_rt.pipeline.precision.latency import interleaved, median, repeated
from vsa_rt.pipeline.precision.lowered import LoweredGraphs
from vsa_rt.plan import Plan

#: What measuring several engines may take together for one batch size, in seconds.
_SECONDS = 20.0
#: The same where one engine's divisions are compared, and by how much one must be faster than none.
_DIVIDING_SECONDS, _FASTER = 5.0, 1.03
IMAGES = "images"
#: Where trials are built, inside of the new bundle until they are judged.
_TRIAL = "trial"

Samples = NDArray[np.float64]


def _parts(graph: bytes, taps: Sequence[str]) -> list[Part]:
    """A graph cut at its backbones, as backends take it."""
    with needs("export"):
        from vsa_rt.export.partition import partition
    return [Part(p.name, p.graph, p.inputs, p.outputs) for p in partition(graph, taps)]


def _placed(compiled: CompiledRecord | None, folder: str) -> CompiledRecord | None:
    """The record with its stages' files as paths in the bundle."""
    if compiled is None:
        return None
    stages = [msgspec.structs.replace(s, file=f"{folder}/{s.file}") for s in compiled.stages]
    return msgspec.structs.replace(compiled, stages=stages)


def _whose(target: Target) -> str:
    """A target as part of a file's name."""
    return f"{target.backend}-{target.device}"


@dataclass(frozen=True)
class Workshop:
    """Builds engines of one bundle.

    Attributes:
        graphs: What they are built from.
        reference: What they are held against.
        judged: Its outputs over photographs.
        budget: What lowered engines may change.
        progress: Told of every step.
        tuning: How TensorRT compiles.
        halves: Makes plans safe for targets that really compute in half.
    """

    graphs: LoweredGraphs
    reference: Reference
    judged: Judged
    budget: Budget
    progress: Progress
    tuning: Tuning
    halves: HalfPlans

    @property
    def batches(self) -> list[int]:
        """The batch sizes that are measured."""
        return sorted({1, self.graphs.manifest.max_batch})

    def build(self, target: Target, plan: Plan) -> Built:
        """Build, open and judge an engine that stays in the bundle.

        Raises:
            EnvironmentUnusable: The backend refuses the graph.
            UsageError: The graph cannot be lowered so.
        """
        with closing(self.build_open(target, plan)) as made:
            return made.built

    def build_open(self, target: Target, plan: Plan) -> OpenEngine:
        """The same, and leave it open: whoever asks closes it.

        Raises:
            EnvironmentUnusable: As for ``build``.
            UsageError: Likewise.
        """
        plan = self._suited(target, plan)
        self.progress(f"building {target} {plan}")
        graph = self.graphs.graph(plan)
        with self._stored(target, plan, graph) as (name, folder):
            return self._judged(target, plan, name, folder, graph)

    def build_ahead(self, target: Target, precision: Precision, exclude: Sequence[str]) -> Built:
        """Compile an engine for a device that is not here, and judge its graph instead of it.

        Args:
            target: One that can be compiled for here.
            precision: Of all backbones.
            exclude: Nodes that stay in fp32.

        Raises:
            EnvironmentUnusable: The backend refuses the graph.
            UsageError: The graph cannot be lowered so.
        """
        self.progress(f"judging {precision} for {target} without the device")
        lowered = self.halves.proved(precision, exclude, self.reference, self.judged)
        plan, graph, stage = lowered.plan, lowered.graph, f"graph of {target} {precision}"
        with self._stored(target, plan, graph) as (name, folder):
            self.progress(f"building {target} {plan}, ahead of time")
            files, compiled = self._compile(target, plan, name, folder, graph)
            gate = msgspec.structs.replace(
                record_of(lowered.parity, self.judged),
                stage=stage,
                passed=not lowered.reasons,
                reasons=lowered.reasons,
            )
            return Built(
                target,
                plan,
                name,
                folder,
                files,
                achieved=None,
                parity=lowered.parity,
                gate=gate,
                proof="graph",
                compiled=compiled,
                division=self._asked(compiled),
            )

    def _asked(self, compiled: CompiledRecord | None) -> dict[int, str]:
        """How calls are divided because that was asked for; empty where it is to be measured."""
        streams = self.tuning.fusion == "streams" and compiled is not None and compiled.stages
        return dict.fromkeys(self.batches, "streams") if streams else {}

    @contextmanager
    def _stored(self, target: Target, plan: Plan, graph: bytes) -> Iterator[tuple[str, str]]:
        """The graph's path and the engine's folder in the bundle; both are gone again if what is inside fails."""
        whose = _whose(target)
        folder = f"engines/{whose}-{plan.precision}"
        name = self.graphs.keep(plan, graph, whose)
        try:
            yield name, folder
        except BaseException:
            self.remove(folder)
            self.graphs.release(name, whose)
            raise

    def _suited(self, target: Target, plan: Plan) -> Plan:
        """The plan as the target can have it without harm."""
        if plan.precision is Precision.FP32 or not table.backend(target.backend).half(target.device):
            return plan
        return self.halves.suited(plan)

    def _compile(
        self, target: Target, plan: Plan, name: str, folder: str, graph: bytes
    ) -> tuple[list[str], CompiledRecord | None]:
        """Compile into a folder of the bundle.

        Returns:
            Paths of the files in the bundle, and how it was done.
        """
        place = self.graphs.folder / folder
        place.mkdir(parents=True)
        source = Source(graph, name or GRAPH, lambda: _parts(graph, list(plan.backbones)))
        options = CompileOptions(self.graphs.manifest.max_batch, self.tuning, self.progress)
        made = table.backend(target.backend).build(source, place, target.device, options)
        return [f"{folder}/{file}" for file in made.files], _placed(made.compiled, folder)

    def trial(self, target: Target, plan: Plan, sizes: bool = False) -> Built:
        """Build, open and judge an engine; the next trial takes its place.

        Args:
            target: Where.
            plan: What its graph is lowered by.
            sizes: Whether it is judged in every batch size.

        Raises:
            EnvironmentUnusable: As for ``build``.
            UsageError: Likewise.
        """
        with closing(self.trial_open(target, plan, sizes)) as made:
            return made.built

    def trial_open(self, target: Target, plan: Plan, sizes: bool = False) -> OpenEngine:
        """The same, and leave it open: whoever asks closes it.

        Args:
            target: As for ``trial``.
            plan: Likewise.
            sizes: Likewise.

        Raises:
            EnvironmentUnusable: As for ``build``.
            UsageError: Likewise.
        """
        self.end_trials()
        plan = self._suited(target, plan)
        self.progress(f"trying {target} {plan}")
        return self._judged(target, plan, "", _TRIAL, self.graphs.graph(plan), sizes)

    def end_trials(self) -> None:
        """Remove what the last trial left."""
        self.remove(_TRIAL)

    def remove(self, folder: str) -> None:
        """Remove an engine's files."""
        shutil.rmtree(self.graphs.folder / folder, ignore_errors=True)

    def discard(self, built: Built) -> None:
        """Remove an engine and the graph that it was built from."""
        self.remove(built.folder)
        self.graphs.release(built.graph, _whose(built.target))

    def _judged(
        self, target: Target, plan: Plan, name: str, folder: str, graph: bytes, sizes: bool = True
    ) -> OpenEngine:
        files, compiled = self._compile(target, plan, name, folder, graph)
        weights = (lambda: graph) if compiled is not None and compiled.stripped else None
        session = self._open(target, files, self.graphs.manifest.max_batch, {}, compiled, weights)
        try:
            achieved, parity = self._judge(target, plan, session, sizes)
            gate = record_of(parity, self.judged)
            built = Built(target, plan, name, folder, files, achieved, parity, gate, compiled=compiled)
            return OpenEngine(built, session)
        except BaseException:
            session.close()
            raise

    def _judge(
        self, target: Target, plan: Plan, session: Session, sizes: bool = True
    ) -> tuple[float | None, Parity]:
        """What the engine achieves, and its verdict; of a trial, which nobody opens later, in one batch size."""
        manifest = self.graphs.manifest
        self.progress(f"gate: {target} {plan} against {self.reference.name}")
        lowered = plan.precision is not Precision.FP32
        comparison = comparison_of(
            f"{target} {plan.precision}",
            self.reference,
            manifest,
            plan.precision,
            budget=self.budget if lowered else None,
            plan=plan.backbones,
        )
        parity = judge(comparison, self.judged, session.slots[0].run, manifest.max_batch, sizes)
        return session.achieved, parity

    def _open(
        self,
        target: Target,
        files: Sequence[str],
        first: int,
        division: Mapping[int, str],
        compiled: CompiledRecord | None,
        graph: Callable[[], bytes] | None,
    ) -> Session:
        manifest = self.graphs.manifest
        options = OpenOptions(
            max_batch=manifest.max_batch,
            threads=usable_cores(),
            first=first,
            division=division,
            device=target.device,
            compiled=compiled,
            graph=graph,
            host_code=True,  # it was compiled here
        )
        return table.backend(target.backend).open(
            [(self.graphs.folder / name).read_bytes() for name in files],
            input_specs(manifest),
            output_specs(manifest),
            options,
        )

    def _reopen(self, built: Built, first: int, division: Mapping[int, str] | None = None) -> Session:
        """Open an engine that is there."""
        division = built.division if division is None else division
        graph = self.graphs.folder / built.graph
        return self._open(built.target, built.files, first, division, built.compiled, graph.read_bytes)

    def divided(self, built: Built) -> Built:
        """The same engine with the fastest way to divide a call, batch size by batch size.

        It is judged again as it will be opened, and left as it was where it fails so. What is not faster than the
        engine's first way by more than noise is not taken. Where there is no memory to open it twice, it is left, too.
        """
        try:
            return self._faster(built)
        except EnvironmentUnusable as error:
            self.progress(f"warning: {built.name} stays undivided: {error}")
            return built

    def _faster(self, built: Built) -> Built:
        """The same.

        Raises:
            EnvironmentUnusable: It cannot be opened beside itself.
        """
        with closing(self._reopen(built, self.batches[0], {})) as whole:
            chosen = self._asked(built.compiled) or {
                batch: self._division(built, batch, whole) for batch in self.batches
            }
            usual = str(whole.divisions[0])
        if set(chosen.values()) <= {usual}:
            return built
        with closing(self._reopen(built, self.graphs.manifest.max_batch, chosen)) as session:
            achieved, parity = self._judge(built.target, built.plan, session)
        if built.parity.passed and not parity.passed:
            self.progress(
                f"warning: {built.name} fails where its calls are divided: {'; '.join(parity.reasons)}"
            )
            return built
        gate = record_of(parity, self.judged)
        return replace(built, achieved=achieved, parity=parity, gate=gate, division=chosen)

    def _division(self, built: Built, batch: int, whole: Session) -> str:
        """The fastest way to divide calls of one batch size, held against the engine as it is, which is open."""
        usual = str(whole.divisions[0])
        # One image is no share of several.
        words = [str(word) for word in whole.divisions if batch > 1 or word != IMAGES]
        if len(words) < 2:
            return usual
        self.progress(f"dividing calls of {built.name}, batch {batch}")
        with ExitStack() as stack:
            sessions = {
                word: whole
                if word == usual
                else stack.enter_context(closing(self._reopen(built, batch, {batch: word})))
                for word in words
            }
            samples = self.times(sessions, batch, _DIVIDING_SECONDS)
        times = {word: median(found) for word, found in samples.items()}
        fastest = min(times, key=lambda word: times[word])
        return fastest if times[usual] > _FASTER * times[fastest] else usual

    def times(self, sessions: Mapping[str, Session], batch: int, seconds: float) -> dict[str, Samples]:
        """Latency of open engines at one batch size, interleaved, on photographs.

        Args:
            sessions: By name.
            batch: Images of a call.
            seconds: What it may take.

        Returns:
            Name to samples in ms, the same place in each being the same round.
        """
        inputs = repeated(self.judged.batches[0][0].candidate, batch)
        for session in sessions.values():
            session.prepare([batch])
        return interleaved({name: partial(s.slots[0].run, inputs) for name, s in sessions.items()}, seconds)

    def measure(self, engines: Sequence[Built], seconds: float = _SECONDS) -> dict[str, dict[str, Samples]]:
        """Latency of engines that are opened anew, interleaved, on photographs.

        Args:
            engines: All opened at once, for one batch size at a time: each may hold the weights once more. Where
                there is no memory for that, one after the other, and that is said.
            seconds: What one batch size may take.

        Returns:
            Name to batch size to samples in ms, the same place in each being the same round.
        """
        found: dict[str, dict[str, Samples]] = {b.name: {} for b in engines}
        for batch in self.batches:
            try:
                times = self._side_by_side(engines, batch, seconds)
            except EnvironmentUnusable as error:
                if len(engines) == 1:
                    raise
                self.progress(f"warning: engines are measured one after the other: {error}")
                each = seconds / len(engines)
                times = {n: t for b in engines for n, t in self._side_by_side([b], batch, each).items()}
            for name, samples in times.items():
                found[name][str(batch)] = samples
        return found

    def _side_by_side(self, engines: Sequence[Built], batch: int, seconds: float) -> dict[str, Samples]:
        """Latency of engines at one batch size, interleaved.

        Raises:
            EnvironmentUnusable: They cannot all be open at once.
        """
        with ExitStack() as stack:
            sessions = {b.name: stack.enter_context(closing(self._reopen(b, batch))) for b in engines}
            return self.times(sessions, batch, seconds)
