"""Graphs as plans have them, without a build: for tests of what lowering makes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx

from vsa_rt.architecture import ARCHITECTURES, family_of
from vsa_rt.bundle import Bundle
from vsa_rt.contracts import Precision
from vsa_rt.dataset import Photograph
from vsa_rt.export.lowering.lower import activations, lower
from vsa_rt.manifest import InputRecord, TapRecord
from vsa_rt.pipeline.calibrate import peaks
from vsa_rt.plan import Plan
from vsa_rt.recipe import Recipe

#: What graphs are lowered to: a word for it, and how the plan for some backbones is made.
PLANS: dict[str, Callable[[Sequence[str]], Plan]] = {
    "fp32": lambda taps: Plan.uniform(taps, Precision.FP32),
    "fp16": lambda taps: Plan.uniform(taps, Precision.FP16),
    "bf16": lambda taps: Plan.uniform(taps, Precision.BF16),
    "int8": lambda taps: Plan.uniform(taps, Precision.INT8),
    "int8 in fp16": lambda taps: Plan.uniform(taps, Precision.INT8, around=Precision.FP16),
    "int8 in bf16": lambda taps: Plan.uniform(taps, Precision.INT8, around=Precision.BF16),
    # For GPUs without products in fp32.
    "fp16 throughout": lambda taps: Plan.uniform(taps, Precision.FP16, head=Precision.FP16),
    "int8 in fp16 throughout": lambda taps: Plan.uniform(
        taps, Precision.INT8, around=Precision.FP16, head=Precision.FP16
    ),
}


class Lowering:
    """One FP32 graph, lowered as often as asked for; its ranges are measured once.

    Args:
        graph: The FP32 graph.
        recipe: That it was exported from.
        inputs: What it takes.
        taps: What it gives.
        photographs: What ranges are measured on; ready tensors that do not lie beside them are stand-ins.
    """

    def __init__(
        self,
        graph: bytes,
        recipe: Recipe,
        inputs: Sequence[InputRecord],
        taps: Sequence[TapRecord],
        photographs: Sequence[Path],
    ) -> None:
        self._graph, self._inputs = graph, inputs
        self._photographs = [Photograph(path, None) for path in photographs]
        self.taps = [t.name for t in taps if t.kind == "backbone"]
        exact = {b.name for b in recipe.backbones if ARCHITECTURES[family_of(b.architecture)].exact}
        #: Backbones whose own arithmetic stays in float32, each with the tap that it reads.
        self.exact = {t.name: t.reads for t in taps if t.name in exact and t.reads in self.taps}
        self._ranges: dict[str, float] = {}

    @classmethod
    def of_bundle(cls, root: Path, photographs: Sequence[Path]) -> Lowering:
        """Of the graph that an exported or built bundle holds."""
        manifest = Bundle.open(root).manifest
        assert manifest.recipe is not None
        graph = (root / "graph.onnx").read_bytes()
        return cls(graph, manifest.recipe, manifest.inputs, manifest.taps, photographs)

    @classmethod
    def of_recipe(cls, recipe: Recipe, folder: Path, photographs: Sequence[Path], seed: int) -> Lowering:
        """Of what a recipe with seeded weights is exported to. No gate looks at it."""
        from vsa_rt.export.ensemble import load_ensemble
        from vsa_rt.export.graph import graph_from_ensemble

        ensemble = load_ensemble(recipe, folder, random_seed=seed).module
        inputs, taps = ensemble.inputs, ensemble.taps
        graph = graph_from_ensemble(ensemble).SerializeToString()
        del ensemble
        # What torch's exporter leaves in cycles holds the weights once more.
        gc.collect()
        return cls(graph, recipe, inputs, taps, photographs)

    def ranges(self) -> dict[str, float]:
        """The largest magnitude of every activation that int8 needs."""
        if not self._ranges:
            tensors = activations(onnx.load_from_string(self._graph), self.taps, self.exact)
            self._ranges = peaks(self._photographs, self._graph, tensors, self._inputs)
        return self._ranges

    def graph(self, plan: str) -> bytes:
        """The graph as one of ``PLANS`` has it."""
        ranges = self.ranges() if plan.startswith("int8") else {}
        source = onnx.load_from_string(self._graph)
        return bytes(lower(source, PLANS[plan](self.taps), self.exact, ranges).SerializeToString())
