"""The workshop: a plan and a target to an engine that was opened and judged."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vsa_rt.bench.parity import Parity
from vsa_rt.budget import Budget
from vsa_rt.contracts import Precision, Target
from vsa_rt.doctor import usable_cores
from vsa_rt.engines import table
from vsa_rt.engines.backend import OpenOptions, Session
from vsa_rt.engines.select import input_specs, output_specs
from vsa_rt.manifest import EngineRecord, GateRecord
from vsa_rt.pipeline.export import Progress
from vsa_rt.pipeline.gate import Judged, Reference, comparison_of, judge, record_of
from vsa_rt.pipeline.precision.latency import interleaved, median, repeated
from vsa_rt.pipeline.precision.lowered import LoweredGraphs
from vsa_rt.plan import Plan

#: What measuring several engines may take together for one batch size, in seconds.
_SECONDS = 20.0
#: The same where one engine's divisions are compared, and by how much one must be faster than none.
_DIVIDING_SECONDS, _FASTER = 5.0, 1.03
THREADS, IMAGES = "threads", "images"
#: Where trials are built, inside of the new bundle until they are judged.
_TRIAL = "trial"

Samples = NDArray[np.float64]


@dataclass(frozen=True)
class Built:
    """An engine that is there and was judged.

    Attributes:
        target: Where it runs.
        plan: What its graph was lowered by.
        graph: That graph's path in the bundle; empty for a trial, which keeps none.
        folder: Of its files, in the bundle.
        files: Paths in the bundle, the one to open first.
        achieved: See ``EngineRecord``.
        parity: Its comparison with the reference.
        gate: The same as the manifest keeps it.
        division: Batch size to how a call of so many images is divided among the cores; see ``OpenOptions``.
    """

    target: Target
    plan: Plan
    graph: str
    folder: str
    files: list[str]
    achieved: float | None
    parity: Parity
    gate: GateRecord
    division: dict[int, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Target and plan, unlike every other engine's of a bundle."""
        return f"{self.target} {self.plan}"

    def record(self, latency: dict[str, float]) -> EngineRecord:
        """What the manifest says about it."""
        found = table.probe(self.target)
        return EngineRecord(
            target=str(self.target),
            precision=str(self.plan.precision),
            graph=self.graph,
            plan={tap: str(precision) for tap, precision in self.plan.backbones.items()},
            around=str(self.plan.around),
            exclude=list(self.plan.exclude),
            achieved=self.achieved,
            folder=self.folder,
            files=self.files,
            version=found.version,
            machine=found.machine,
            latency_ms=latency,
            threads=usable_cores(),
            division={str(batch): word for batch, word in self.division.items()},
            gate=self.gate,
        )


@dataclass(frozen=True)
class OpenEngine:
    """An engine that was judged and not closed yet.

    Attributes:
        built: The engine.
        session: It can run batches of every size.
    """

    built: Built
    session: Session

    def close(self) -> None:
        """Free the session; the engine's files stay."""
        self.session.close()


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
    """

    graphs: LoweredGraphs
    reference: Reference
    judged: Judged
    budget: Budget
    progress: Progress

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
        whose = _whose(target)
        folder = f"engines/{whose}-{plan.precision}"
        self.progress(f"building {target} {plan}")
        graph = self.graphs.graph(plan)
        name = self.graphs.keep(plan, graph, whose)
        try:
            return self._judged(target, plan, name, folder, graph)
        except BaseException:
            self.remove(folder)
            self.graphs.release(name, whose)
            raise

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
        manifest, place = self.graphs.manifest, self.graphs.folder / folder
        place.mkdir(parents=True)
        names = table.backend(target.backend).build(graph, place, target.device, manifest.max_batch)
        del graph
        files = [f"{folder}/{file}" for file in names]
        session = self._open(target, files, manifest.max_batch)
        try:
            achieved, parity = self._judge(target, plan, session, sizes)
            gate = record_of(parity, self.judged)
            return OpenEngine(Built(target, plan, name, folder, files, achieved, parity, gate), session)
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
        self, target: Target, files: Sequence[str], first: int, division: Mapping[int, str] | None = None
    ) -> Session:
        manifest = self.graphs.manifest
        options = OpenOptions(
            max_batch=manifest.max_batch,
            threads=usable_cores(),
            first=first,
            division=division or {},
        )
        return table.backend(target.backend).open(
            [(self.graphs.folder / name).read_bytes() for name in files],
            input_specs(manifest),
            output_specs(manifest),
            options,
        )

    def divided(self, built: Built) -> Built:
        """The same engine with the fastest way to divide a call among the cores, batch size by batch size.

        It is judged again as it will be opened, and left undivided where it fails so. What is not faster than
        ``threads`` by more than noise is not taken.
        """
        with closing(self._open(built.target, built.files, self.batches[0])) as whole:
            chosen = {batch: self._division(built, batch, whole) for batch in self.batches}
        if set(chosen.values()) <= {THREADS}:
            return built
        with closing(
            self._open(built.target, built.files, self.graphs.manifest.max_batch, chosen)
        ) as session:
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
        # One image is no share of several.
        words = [str(word) for word in whole.divisions if batch > 1 or word != IMAGES]
        if len(words) < 2:
            return THREADS
        self.progress(f"dividing {built.name} among the cores, batch {batch}")
        with ExitStack() as stack:
            sessions = {
                word: whole
                if word == THREADS
                else stack.enter_context(closing(self._open(built.target, built.files, batch, {batch: word})))
                for word in words
            }
            samples = self.times(sessions, batch, _DIVIDING_SECONDS)
        times = {word: median(found) for word, found in samples.items()}
        fastest = min(times, key=lambda word: times[word])
        return fastest if times[THREADS] > _FASTER * times[fastest] else THREADS

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
            engines: All opened at once, for one batch size at a time: each may hold the weights once more.
            seconds: What one batch size may take.

        Returns:
            Name to batch size to samples in ms, the same place in each being the same round.
        """
        found: dict[str, dict[str, Samples]] = {b.name: {} for b in engines}
        for batch in self.batches:
            with ExitStack() as stack:
                sessions = {
                    b.name: stack.enter_context(closing(self._open(b.target, b.files, batch, b.division)))
                    for b in engines
                }
                for name, samples in self.times(sessions, batch, seconds).items():
                    found[name][str(batch)] = samples
        return found
