"""Plans for targets that really compute in half: what half would spoil is found once for a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vsa_rt.bench.parity import Parity
from vsa_rt.budget import Budget
from vsa_rt.contracts import Precision
from vsa_rt.dataset import Photograph
from vsa_rt.engines.executor import GraphExecutor
from vsa_rt.errors import needs
from vsa_rt.pipeline.export import Progress
from vsa_rt.pipeline.gate import Judged, Reference, comparison_of, judge
from vsa_rt.pipeline.images import PhotographFeed, PreparedBatch
from vsa_rt.pipeline.precision.halving import IMAGES, Halving
from vsa_rt.pipeline.precision.lowered import LoweredGraphs, uniform_plan
from vsa_rt.plan import Plan


@dataclass(frozen=True)
class ProvedGraph:
    """A graph that was judged without the device that will compute it.

    Attributes:
        plan: What it was lowered by.
        graph: ONNX.
        parity: Its comparison with the reference, on an executor that rounds as the device would.
        reasons: Why it fails; empty if it holds.
    """

    plan: Plan
    graph: bytes
    parity: Parity
    reasons: list[str]


@dataclass
class HalfPlans:
    """Makes plans of one bundle safe in half.

    Attributes:
        graphs: What is lowered.
        photographs: Those that ranges are measured on.
        budget: What lowered graphs may change.
        progress: Told of every step.
    """

    graphs: LoweredGraphs
    photographs: Callable[[], list[Photograph]]
    budget: Budget
    progress: Progress
    _halving: Halving | None = field(default=None, repr=False)
    _proved: dict[tuple[Precision, tuple[str, ...]], ProvedGraph] = field(default_factory=dict, repr=False)

    def suited(self, plan: Plan) -> Plan:
        """A plan without the nodes that half would spoil, with half around int8 and in the head.

        Raises:
            DatasetError: No photograph can be read, or the graph is not finite on one.
        """
        return self._found().suited(plan)

    def proved(
        self, precision: Precision, exclude: Sequence[str], reference: Reference, judged: Judged
    ) -> ProvedGraph:
        """The graph of a precision for all backbones, judged by an executor that rounds.

        Args:
            precision: Of all backbones.
            exclude: Nodes that stay in fp32.
            reference: What it is held against.
            judged: Its outputs over photographs, a few of which decide; all of them where nothing is rounded.

        Raises:
            UsageError: The graph cannot be lowered so.
            DatasetError: As for ``suited``.
        """
        # Targets share graphs, and rounding takes longer than compiling.
        known = (precision, tuple(exclude))
        if known not in self._proved:
            self._proved[known] = self._prove(precision, exclude, reference, judged)
        return self._proved[known]

    def _prove(
        self, precision: Precision, exclude: Sequence[str], reference: Reference, judged: Judged
    ) -> ProvedGraph:
        manifest = self.graphs.manifest
        if precision is Precision.FP32:
            plan = uniform_plan(manifest, precision)
            graph = self.graphs.graph(plan)
            comparison = comparison_of("graph", reference, manifest, precision)
            parity = judge(comparison, judged, GraphExecutor(graph).run, manifest.max_batch)
            return ProvedGraph(plan, graph, parity, parity.reasons)
        halving = self._found()
        proof = halving.rounded(halving.plan(precision, exclude), reference, _few(judged, IMAGES))
        return ProvedGraph(proof.plan, proof.graph.SerializeToString(), proof.parity, proof.reasons)

    def forget(self) -> None:
        """Free the parsed graph, and those that were proved."""
        self._halving = None
        self._proved.clear()

    def _found(self) -> Halving:
        """With the nodes found that leave half's range."""
        if self._halving is None:
            with needs("export"):
                from vsa_rt.export.lowering.lower import prepared
            manifest = self.graphs.manifest
            model = prepared(self.graphs.source())
            halving = Halving(manifest, model, self.budget, self.progress, ranges=self.graphs.ranges)
            feed = PhotographFeed(manifest.inputs, lambda _picture: {})
            readable = [p for batch in feed.batches(self.photographs()) for p in batch.photographs]
            halving.without_hazards(halving.plan(Precision.FP16), feed, readable)
            self._halving = halving
        return self._halving


def _few(judged: Judged, most: int) -> Judged:
    """Some of the photographs, evenly over all, each by itself."""
    single = [
        (
            PreparedBatch(
                [photograph],
                {name: array[row : row + 1] for name, array in batch.reference.items()},
                {name: array[row : row + 1] for name, array in batch.candidate.items()},
            ),
            {name: array[row : row + 1] for name, array in taps.items()},
        )
        for batch, taps in judged.batches
        for row, photograph in enumerate(batch.photographs)
    ]
    count = min(most, len(single))
    return Judged([single[i * len(single) // count] for i in range(count)], judged.stand_ins, judged.skipped)
