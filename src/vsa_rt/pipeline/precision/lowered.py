"""The graphs of a bundle by plan: the FP32 truth, and what is lowered from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vsa_rt.architecture import ARCHITECTURES, family_of
from vsa_rt.contracts import Precision
from vsa_rt.errors import UsageError, needs
from vsa_rt.manifest import GraphRecord, Manifest
from vsa_rt.pipeline.export import GRAPH
from vsa_rt.plan import Plan

if TYPE_CHECKING:
    import onnx


def backbone_taps(manifest: Manifest) -> list[str]:
    """The outputs where backbones end, in the graph's order."""
    return [t.name for t in manifest.taps if t.kind == "backbone"]


def exact_taps(manifest: Manifest) -> dict[str, str]:
    """Backbones whose own arithmetic stays in float32, each with the tap that it reads."""
    taps = backbone_taps(manifest)
    backbones = manifest.recipe.backbones if manifest.recipe is not None else []
    exact = {b.name for b in backbones if ARCHITECTURES[family_of(b.architecture)].exact}
    return {t.name: t.reads for t in manifest.taps if t.name in exact and t.reads in taps}


def plannable_taps(manifest: Manifest) -> list[str]:
    """The backbones whose precision is anybody's to choose."""
    exact = exact_taps(manifest)
    return [tap for tap in backbone_taps(manifest) if tap not in exact]


def uniform_plan(manifest: Manifest, precision: Precision, exclude: Sequence[str] = ()) -> Plan:
    """Every backbone in one precision, as the engines of CPUs take it; what has to stay exact does so all the same.

    Raises:
        UsageError: There is no backbone to lower.
    """
    taps = backbone_taps(manifest)
    if not taps and precision is not Precision.FP32:
        raise UsageError("nothing to lower: the graph has no backbone's output")
    plan = Plan.uniform(taps, precision)
    return plan.without(exclude) if precision is not Precision.FP32 else plan


@dataclass
class LoweredGraphs:
    """Lowers the graph of a folder, and keeps what engines were built from.

    Attributes:
        folder: Holds ``graph.onnx``.
        manifest: Of that graph.
        ranges: Of activations, for int8; empty without calibration.
    """

    folder: Path
    manifest: Manifest
    ranges: Mapping[str, float] = field(default_factory=dict)
    _kept: dict[str, Plan] = field(default_factory=dict)
    _users: dict[str, set[str]] = field(default_factory=dict)
    _source: onnx.ModelProto | None = None

    def source(self) -> onnx.ModelProto:
        """The FP32 graph.

        Raises:
            UsageError: It points outside of its file.
        """
        if self._source is None:
            with needs("export"):
                from vsa_rt.export.foreign import graph_from_bytes
            self._source = graph_from_bytes((self.folder / GRAPH).read_bytes(), GRAPH)
        return self._source

    def activations(self) -> list[str]:
        """The tensors whose ranges int8 needs."""
        with needs("export"):
            from vsa_rt.export.lowering.lower import activations
        return activations(self.source(), backbone_taps(self.manifest), exact_taps(self.manifest))

    def graph(self, plan: Plan) -> bytes:
        """The bytes of the graph that a plan asks for.

        Raises:
            UsageError: The graph points outside, or cannot be written so.
        """
        if plan.precision is Precision.FP32:
            return (self.folder / GRAPH).read_bytes()
        with needs("export"):
            from vsa_rt.export.lowering.lower import lower
        lowered = lower(self.source(), plan, exact_taps(self.manifest), self.ranges)
        return bytes(lowered.SerializeToString())

    def forget(self) -> None:
        """Free the parsed FP32 graph, which holds the weights once more."""
        self._source = None

    def keep(self, plan: Plan, graph: bytes, whose: str) -> str:
        """Store a lowered graph in the folder; engines of the same plan share it.

        Args:
            plan: That it was lowered by.
            graph: Its bytes.
            whose: The target that needs it, as a word for the file's name where another plan of the same precision has
                the plain one.

        Returns:
            Its path in the bundle.
        """
        if plan.precision is Precision.FP32:
            return GRAPH
        for name in (f"graph.{plan.precision}.onnx", f"graph.{plan.precision}.{whose}.onnx"):
            if self._kept.setdefault(name, plan) == plan:
                self._users.setdefault(name, set()).add(whose)
                (self.folder / name).write_bytes(graph)
                return name
        raise UsageError(f"two plans of {whose} are {plan.precision}: {self._kept[name]}; {plan}")

    def release(self, name: str, whose: str) -> None:
        """One target needs a stored graph no more; without any it is removed."""
        users = self._users.get(name, set())
        users.discard(whose)
        if name in self._kept and not users:
            del self._kept[name]
            (self.folder / name).unlink(missing_ok=True)

    def records(self) -> list[GraphRecord]:
        """What the manifest says about them, FP32 first."""
        first = self.manifest.graphs[0]
        lowered = [
            GraphRecord(
                path=name,
                precision=str(plan.precision),
                opset=first.opset,
                plan={tap: str(p) for tap, p in plan.backbones.items()},
                around=str(plan.around),
            )
            for name, plan in self._kept.items()
        ]
        return [first, *lowered]
