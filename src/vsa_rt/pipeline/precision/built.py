"""An engine that was built and judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vsa_rt.bench.parity import Parity
from vsa_rt.contracts import Target
from vsa_rt.doctor import usable_cores
from vsa_rt.engines import table
from vsa_rt.engines.backend import Session
from vsa_rt.manifest import CompiledRecord, EngineRecord, GateRecord
from vsa_rt.plan import Plan


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
        proof: See ``EngineRecord``.
        compiled: Likewise.
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
    proof: Literal["engine", "graph"] = "engine"
    compiled: CompiledRecord | None = None

    @property
    def name(self) -> str:
        """Target and plan, unlike every other engine's of a bundle."""
        return f"{self.target} {self.plan}"

    def record(self, latency: dict[str, float]) -> EngineRecord:
        """What the manifest says about it."""
        found = table.probe(self.target)
        ran = self.proof == "engine"
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
            version=self.compiled.version if self.compiled else found.version,
            machine=found.machine if ran else f"any {self.target.device}",
            latency_ms=latency,
            threads=usable_cores(),
            division={str(batch): word for batch, word in self.division.items()},
            gate=self.gate,
            proof=self.proof,
            compiled=self.compiled,
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
