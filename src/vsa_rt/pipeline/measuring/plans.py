"""What a benchmark measures: the engines of bundles, opened, with the torch models that they were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.bench import clock
from vsa_rt.bench.records.timing import Plan
from vsa_rt.bench.records.trust import BundleFacts
from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Precision, Target
from vsa_rt.errors import EnvironmentUnusable, UsageError, VsaError
from vsa_rt.manifest import EngineRecord
from vsa_rt.pipeline.reference import load_torch
from vsa_rt.runtime.fused import Runtime
from vsa_rt.runtime.load import load

if TYPE_CHECKING:
    from vsa_rt.export.ensemble import LoadedEnsemble


@dataclass
class OpenedPlan:
    """One engine of a bundle, opened by itself.

    Attributes:
        bundle: Whose it is.
        plan: As the report has it.
        engine: Its record in the manifest.
        runtime: One stream, one call at a time; another one after ``renew``.
        open_seconds: What the first opening took.
    """

    bundle: Bundle
    plan: Plan
    engine: EngineRecord
    runtime: Runtime
    open_seconds: float

    def renew(self) -> None:
        """Close the runtime and open the same engine anew."""
        self.runtime.close()
        self.runtime = _load(self.bundle, self.engine, self.plan.threads)

    def infer(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """One call of whichever runtime is open; see ``Runtime.infer``."""
        return self.runtime.infer(tensors)

    def close(self) -> None:
        """Free the engine."""
        self.runtime.close()


def _load(bundle: Bundle, engine: EngineRecord, threads: int) -> Runtime:
    return load(bundle, target=engine.target, precision=engine.precision, threads=threads)


@dataclass
class Subject:
    """A bundle under measurement.

    Attributes:
        bundle: Verified when its first engine was opened.
        name: Unique within the report.
        plans: The engines that fit the request and can run here, the lead first: the one that ``vsa_rt.load``
            would take.
        refused: Engine folder to the reason why it is not among them.
        weights: Where checkpoints moved.
    """

    bundle: Bundle
    name: str
    plans: list[OpenedPlan]
    refused: dict[str, str]
    weights: dict[str, Path]
    _ensemble: LoadedEnsemble | VsaError | None = field(default=None, repr=False)

    @property
    def lead(self) -> OpenedPlan:
        """The engine that is measured in every respect."""
        return self.plans[0]

    @property
    def facts(self) -> BundleFacts:
        """As the report has it."""
        manifest = self.bundle.manifest
        return BundleFacts(
            name=self.name,
            digest=manifest.digest,
            recipe=manifest.recipe.name if manifest.recipe else "",
            task=manifest.task.value,
            labels=manifest.labels,
            random_weights=[n for n, c in manifest.checkpoints.items() if c.random_seed is not None],
            max_batch=manifest.max_batch,
        )

    def ensemble(self) -> LoadedEnsemble:
        """The torch model, loaded when it is first asked for.

        Raises:
            VsaError: It cannot be rebuilt here; the message says why.
        """
        if self._ensemble is None:
            try:
                self._ensemble = load_torch(self.bundle, self.weights)
            except VsaError as error:
                self._ensemble = error
        if isinstance(self._ensemble, VsaError):
            raise self._ensemble
        return self._ensemble


def unique_names(bundles: Sequence[Bundle]) -> list[str]:
    """A name for each bundle: of its directory, numbered where two share it."""
    names: list[str] = []
    for bundle in bundles:
        name, number = bundle.root.resolve().name, 1
        while (name if number == 1 else f"{name} ({number})") in names:
            number += 1
        names.append(name if number == 1 else f"{name} ({number})")
    return names


def open_subject(
    bundle: Bundle,
    name: str,
    stack: ExitStack,
    *,
    targets: Sequence[Target] = (),
    precision: Precision | None = None,
    threads: int,
    weights: dict[str, Path] | None = None,
    alone: bool = True,
) -> Subject:
    """Open every engine of a bundle that fits and can run here.

    Args:
        bundle: What to open.
        name: As the report calls it.
        stack: Closes the engines.
        targets: Only these; all by default.
        precision: Only this one.
        threads: For each engine.
        weights: Where checkpoints moved; those that the bundle does not have are another one's.
        alone: Whether it is the only bundle, so that plans need not say whose they are.

    Raises:
        UsageError: The bundle holds no engine for that request.
        EnvironmentUnusable: None of them can run here.
    """
    engines = bundle.manifest.engines
    wanted = [
        e
        for e in engines
        if (not targets or e.target in map(str, targets)) and (precision is None or e.precision == precision)
    ]
    if not wanted:
        there = ", ".join(f"{e.target} {e.precision}" for e in engines) or "none: vsa-rt build makes them"
        raise UsageError(f"{bundle.root}: no engine for that request; it holds {there}")
    plans: list[OpenedPlan] = []
    refused: dict[str, str] = {}
    for engine in wanted:
        watch = clock.Stopwatch()
        try:
            runtime = _load(bundle, engine, threads)
        except VsaError as error:
            refused[engine.folder] = str(error)
            continue
        seconds = watch.total() / 1e3
        plan = Plan(
            name=f"{engine.target} {engine.precision}"
            if alone
            else f"{name} {engine.target} {engine.precision}",
            bundle=name,
            target=engine.target,
            precision=engine.precision,
            achieved=runtime.session.achieved,
            threads=threads,
            why=runtime.choice.why,
        )
        opened = OpenedPlan(bundle, plan, engine, runtime, seconds)
        stack.callback(opened.close)
        plans.append(opened)
    if not plans:
        reasons = "; ".join(f"{folder}: {reason}" for folder, reason in refused.items())
        raise EnvironmentUnusable(f"{bundle.root}: no engine can run here ({reasons})")
    own = {n: path for n, path in (weights or {}).items() if n in bundle.manifest.checkpoints}
    return Subject(bundle, name, plans, refused, own)
