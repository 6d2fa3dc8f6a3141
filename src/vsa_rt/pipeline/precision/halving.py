"""Half made safe: nodes that it would spoil are found and left out, and what is left is run by an executor that rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from vsa_rt.bench.parity import Parity
from vsa_rt.budget import Budget
from vsa_rt.contracts import Precision
from vsa_rt.dataset import Photograph
from vsa_rt.errors import GateError, needs
from vsa_rt.manifest import Manifest
from vsa_rt.pipeline.calibrate import peaks
from vsa_rt.pipeline.export import Progress
from vsa_rt.pipeline.gate import Judged, Reference, compare_batch, comparison_of
from vsa_rt.pipeline.images import PhotographFeed
from vsa_rt.pipeline.precision.lowered import backbone_taps, exact_taps
from vsa_rt.pipeline.precision.narrowed import exact_nodes, float_activations, narrowed_nodes
from vsa_rt.pipeline.precision.proof import Cause, OverflowRecord, RangeRecord, Round
from vsa_rt.pipeline.precision.rounding import Rounding, guilty_nodes
from vsa_rt.plan import Plan

if TYPE_CHECKING:
    import onnx

#: Photographs that go through the executor that rounds: it computes node by node, without an engine's speed.
IMAGES = 4
#: How often nodes that overflow may be taken out and the rest be tried again.
ROUNDS = 4
#: What stands around int8, and what the head is, unless told otherwise: fast in half on every GPU that these graphs
#: are for, and Turing has no products in fp32. A bf16 graph is one for later GPUs, and has no half at all.
AROUND_INT8 = Precision.FP16
_HEAD = {Precision.FP16: Precision.FP16, Precision.BF16: Precision.FP32, Precision.INT8: Precision.FP16}


def _signature(model: onnx.ModelProto) -> list[tuple[str, int, list[str]]]:
    """Names, types and shapes of what a graph takes and gives."""
    return [
        (
            v.name,
            v.type.tensor_type.elem_type,
            [d.dim_param or str(d.dim_value) for d in v.type.tensor_type.shape.dim],
        )
        for v in (*model.graph.input, *model.graph.output)
    ]


@dataclass
class RoundedProof:
    """What the executor showed of one graph.

    Attributes:
        graph: Lowered.
        plan: What it was lowered by in the end.
        rounds: What overflowed, and what was taken out for it.
        last: The last run.
        parity: Its comparison with the reference.
    """

    graph: onnx.ModelProto
    plan: Plan
    rounds: list[Round]
    last: Rounding
    parity: Parity

    @property
    def reasons(self) -> list[str]:
        """Why it fails."""
        left = self.rounds[-1].overflows
        return [*([_overflow_words(left)] if left else []), *self.parity.reasons]


def _overflow_words(overflows: Sequence[OverflowRecord]) -> str:
    first = overflows[0]
    more = f" ({len(overflows)} tensors in all)" if len(overflows) > 1 else ""
    where = f"node {first.node!r} ({first.op})"
    return f"overflow: {first.tensor} of {where} leaves its type's range on {first.image}{more}"


@dataclass
class Halving:
    """One FP32 graph on its way to one in half.

    Attributes:
        manifest: The bundle's.
        model: The graph, as ``lowering.lower.prepared`` gives it.
        budget: What may change in decisions.
        progress: Told of every step.
        rounds: How often nodes that overflow in the executor may be taken out.
        ranges: Of activations, for int8; empty without calibration.
        why: Nodes that stay in fp32 by name, with the cause.
    """

    manifest: Manifest
    model: onnx.ModelProto
    budget: Budget
    progress: Progress
    rounds: int = ROUNDS
    ranges: Mapping[str, float] = field(default_factory=dict)
    why: dict[str, tuple[Cause, str]] = field(default_factory=dict)

    @property
    def exact(self) -> dict[str, str]:
        """Backbones whose own arithmetic stays in float32, each with the tap that it reads."""
        return exact_taps(self.manifest)

    def plan(
        self,
        precision: Precision,
        exclude: Sequence[str] = (),
        around: Precision | None = None,
        head: Precision | None = None,
    ) -> Plan:
        """The plan as asked for, as ``suited`` has it.

        Args:
            precision: Of all backbones.
            exclude: Names of nodes that stay in fp32.
            around: See ``suited``.
            head: Likewise.
        """
        return self.suited(
            Plan.uniform(backbone_taps(self.manifest), precision, exclude=exclude), around, head
        )

    def suited(self, plan: Plan, around: Precision | None = None, head: Precision | None = None) -> Plan:
        """A plan for what really computes in half: what cancels, or is known to leave half's range, stays in fp32.

        Args:
            plan: Every backbone's precision.
            around: Of what is not quantised in int8 backbones; ``None`` for fp16.
            head: ``None``: as half as what is around, since GPUs that take one take the other.
        """
        used = set(plan.backbones.values())
        whole = Precision.INT8 in used and around not in (None, Precision.FP16)
        halves = not whole and any(_HEAD.get(p) is Precision.FP16 for p in used)
        plan = msgspec.structs.replace(
            plan,
            around=(around or AROUND_INT8) if Precision.INT8 in used else Precision.FP32,
            head=head or (Precision.FP16 if halves else Precision.FP32),
        )
        self._keep(dict.fromkeys(plan.exclude, ("asked", "")))
        self._keep(dict.fromkeys(exact_nodes(self.model, plan, self.exact), ("exact", "")))
        return plan.without(self.why)

    def _keep(self, why: Mapping[str, tuple[Cause, str]]) -> None:
        """Note why nodes are excluded; the first cause stays."""
        self.why = {**why, **self.why}

    def without_hazards(
        self, plan: Plan, feed: PhotographFeed, photographs: Sequence[Photograph]
    ) -> tuple[Plan, RangeRecord | None]:
        """The plan without the nodes that half would spoil, by ranges over photographs."""
        with needs("export"):
            from vsa_rt.export.lowering.hazards import HEADROOM, LARGEST, hazards
        nodes = narrowed_nodes(self.model, plan, self.exact, [Precision.FP16])
        if not nodes:
            return plan, None
        tensors = float_activations(self.model, nodes)
        graph = self.model.SerializeToString()

        def progress(step: str) -> None:
            self.progress(step.replace("calibrating", f"ranges of {len(tensors)} activations", 1))

        measured = peaks(photographs, graph, tensors, self.manifest.inputs, progress)
        indices = [i for i, n in enumerate(self.model.graph.node) if n.name in nodes]
        found = hazards(self.model, indices, measured)
        self._keep({name: ("ranges", reason) for name, reason in found.items()})
        record = RangeRecord(
            photographs=len(photographs),
            skipped=len(feed.rejected),
            stand_ins=feed.stand_ins,
            limit=LARGEST / HEADROOM,
            peaks={name: float(f"{value:.6g}") for name, value in measured.items()},
        )
        return plan.without(found), record

    def rounded(self, plan: Plan, reference: Reference, judged: Judged) -> RoundedProof:
        """The graph of a plan through the executor that rounds, anew without whatever overflowed, so often as allowed."""
        rounds: list[Round] = []
        while True:
            graph = self._lowered(plan)
            seen, parity = self._run(graph, plan, reference, judged, len(rounds))
            guilty: list[str] = []
            if len(rounds) < self.rounds:
                guilty = guilty_nodes(graph, seen, narrowed_nodes(self.model, plan, self.exact))
            rounds.append(Round(overflows=list(seen.overflows.values()), excluded=guilty))
            if not guilty:
                return RoundedProof(graph, plan, rounds, seen, parity)
            reason = _overflow_words(list(seen.overflows.values()))
            self._keep(dict.fromkeys(guilty, ("overflow", f"in the executor, round {len(rounds)}: {reason}")))
            plan = plan.without(guilty)

    def _lowered(self, plan: Plan) -> onnx.ModelProto:
        with needs("export"):
            from vsa_rt.export.lowering.lower import lower
        self.progress(f"lowering: {plan}")
        graph = lower(self.model, plan, self.exact, self.ranges)
        if _signature(graph) != _signature(self.model):
            raise GateError(f"lowering to {plan} changed what the graph takes or gives; report this graph")
        return graph

    def _run(
        self, graph: onnx.ModelProto, plan: Plan, reference: Reference, judged: Judged, number: int
    ) -> tuple[Rounding, Parity]:
        """Every photograph, one by one."""
        names = [name for batch, _ in judged.batches for name in batch.names]
        again = f", again without what overflowed ({number})" if number else ""
        seen = Rounding(graph, names, lambda image: self.progress(f"rounding {image}{again}"))
        comparison = comparison_of(
            f"rounded {plan.precision}", reference, self.manifest, plan.precision, budget=self.budget
        )
        for batch, taps in judged.batches:
            compare_batch(comparison, batch, taps, seen.run, max_batch=1)
        return seen, comparison.result()
