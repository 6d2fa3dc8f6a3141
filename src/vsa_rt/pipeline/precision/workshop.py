"""The workshop: a plan and a target to an engine that was opened and judged."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
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
    ) -> Built:
        manifest, place = self.graphs.manifest, self.graphs.folder / folder
        place.mkdir(parents=True)
        names = table.backend(target.backend).build(graph, place, target.device, manifest.max_batch)
        del graph
        files = [f"{folder}/{file}" for file in names]
        achieved, parity = self._judge(target, plan, files, {}, sizes)
        return Built(target, plan, name, folder, files, achieved, parity, record_of(parity, self.judged))

    def _judge(
        self,
        target: Target,
        plan: Plan,
        files: Sequence[str],
        division: Mapping[int, str],
        sizes: bool = True,
    ) -> tuple[float | None, Parity]:
        """What the engine achieves, and its verdict; of a trial, which nobody opens later, in one batch size."""
        manifest = self.graphs.manifest
        session = self._open(target, files, manifest.max_batch, division)
        try:
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
            return session.achieved, judge(
                comparison, self.judged, session.slots[0].run, manifest.max_batch, sizes
            )
        finally:
            # An engine may hold its weights once per batch size: one at a time.
            session.close()

    def _open(self, target: Target, files: Sequence[str], first: int, division: Mapping[int, str]) -> Session:
        manifest = self.graphs.manifest
        options = OpenOptions(
            max_batch=manifest.max_batch,
            threads=usable_cores(),
            first=first,
            division=division,
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
        chosen: dict[int, str] = {}
        for batch in self.batches:
            session = self._open(built.target, built.files, batch, {})
            # One image is no share of several.
            divisions = [word for word in session.divisions if batch > 1 or word != IMAGES]
            session.close()
            chosen[batch] = THREADS
            if len(divisions) < 2:
                continue
            self.progress(f"dividing {built.name} among the cores, batch {batch}")
            named: dict[str, Built] = {str(w): replace(built, division={batch: str(w)}) for w in divisions}
            times = {word: median(t) for word, t in self._times(named, batch, _DIVIDING_SECONDS).items()}
            fastest = min(times, key=lambda word: times[word])
            if times[THREADS] > _FASTER * times[fastest]:
                chosen[batch] = fastest
        if set(chosen.values()) <= {THREADS}:
            return built
        achieved, parity = self._judge(built.target, built.plan, built.files, chosen)
        if built.parity.passed and not parity.passed:
            self.progress(
                f"warning: {built.name} fails where its calls are divided: {'; '.join(parity.reasons)}"
            )
            return built
        gate = record_of(parity, self.judged)
        return replace(built, achieved=achieved, parity=parity, gate=gate, division=chosen)

    def _times(self, engines: Mapping[str, Built], batch: int, seconds: float) -> dict[str, Samples]:
        """Latency of some engines at one batch size, interleaved, on photographs; all are open at once."""
        inputs = repeated(self.judged.batches[0][0].candidate, batch)
        sessions: dict[str, Session] = {}
        try:
            for name, built in engines.items():
                sessions[name] = self._open(built.target, built.files, batch, built.division)
            calls = {name: partial(session.slots[0].run, inputs) for name, session in sessions.items()}
            return interleaved(calls, seconds)
        finally:
            for session in sessions.values():
                session.close()

    def measure(self, engines: Sequence[Built], seconds: float = _SECONDS) -> dict[str, dict[str, Samples]]:
        """Latency of engines, interleaved, on photographs.

        Args:
            engines: All opened at once, for one batch size at a time: each may hold the weights once more.
            seconds: What one batch size may take.

        Returns:
            Name to batch size to samples in ms, the same place in each being the same round.
        """
        named = {b.name: b for b in engines}
        found: dict[str, dict[str, Samples]] = {name: {} for name in named}
        for batch in self.batches:
            for name, samples in self._times(named, batch, seconds).items():
                found[name][str(batch)] = samples
        return found
