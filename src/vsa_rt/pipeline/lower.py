"""A bundle's graph in lower precision, for engines that are built elsewhere, and the proof that it is safe.

CPU engines compute half in float32 and prove nothing about it. So nodes that half would spoil are found by ranges
over photographs (``export.lowering.hazards``), and what is left is run by an executor that really rounds
(``export.half``): nothing overflows there, and taps and decisions stay with the FP32 graph's.
"""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from vsa_rt.budget import Budget
from vsa_rt.bundle import Bundle, new_folder
from vsa_rt.contracts import Precision
from vsa_rt.dataset import Photograph
from vsa_rt.documents import finite
from vsa_rt.errors import GateError, UsageError, needs
from vsa_rt.manifest import CalibrationRecord, InputRecord
from vsa_rt.pipeline.calibrate import choose
from vsa_rt.pipeline.export import Progress, silent
from vsa_rt.pipeline.gate import (
    decides,
    run_reference,
    tolerance_for,
)
from vsa_rt.pipeline.images import PhotographFeed, gate_photographs
from vsa_rt.pipeline.precision.halving import IMAGES, ROUNDS, Halving
from vsa_rt.pipeline.precision.lowered import backbone_taps, exact_taps
from vsa_rt.pipeline.precision.narrowed import kept_nodes
from vsa_rt.pipeline.precision.proof import (
    RECORD,
    SCHEMA,
    Lowered,
    RoundingRecord,
)
from vsa_rt.pipeline.precision.ranges import calibration_of, int8_ranges
from vsa_rt.pipeline.reference import onnx_reference
from vsa_rt.version import __version__


@dataclass(frozen=True)
class LowerOptions:
    """How to lower.

    Attributes:
        precision: Of all backbones: ``fp16``, ``bf16`` or ``int8``.
        around: Of what is not quantised in int8 backbones; ``None`` for fp16.
        head: ``None`` for fp32 in a bf16 graph, else fp16.
        data: Photographs of both proofs; ``None`` for those that packages ship.
        images: How many of them go through the executor that rounds.
        calib: Photographs for int8's ranges; ``None`` for the bundle's own calibration.
        method: How int8's ranges are taken; ``None`` for the bundle's own method, else ``ranges.METHOD``.
        budget: What may change in decisions.
        exclude: Names of nodes that stay in fp32.
        rounds: How often nodes that overflow in the executor may be taken out.
        force: Write a graph whose proof failed; its file then says so.
        progress: Told of every step.
    """

    precision: Precision = Precision.FP16
    around: Precision | None = None
    head: Precision | None = None
    data: Path | None = None
    images: int = IMAGES
    calib: Path | None = None
    method: str | None = None
    budget: Budget = field(default_factory=Budget)
    exclude: Sequence[str] = ()
    rounds: int = ROUNDS
    force: bool = False
    progress: Progress = silent


def lower_bundle(bundle: Bundle, out: Path, options: LowerOptions) -> Lowered:
    """Write a bundle's graph in lower precision, with its proof.

    Args:
        bundle: Exported or built.
        out: A new folder; it appears whole or not at all.
        options: Which precision, and what proves it.

    Returns:
        The proof as written.

    Raises:
        GateError: The graph cannot be made safe, and that was not forced; nothing is written.
        UsageError: The graph is quantised already, a node is unknown, int8 has no ranges, or ``out`` is taken.
        DatasetError: No photograph can be read, or the FP32 graph itself is not finite on one.
        EnvironmentUnusable: A library is not installed.
    """
    _check_options(options)
    _require_free(out)
    _require_images(bundle)
    with new_folder(out) as work:
        found, graph = _Lowering(bundle, options, work).prove()
        if found.reasons and not options.force:
            raise GateError(
                f"failed parity: {found.graph}: {'; '.join(found.reasons)}; leave out nodes with --exclude FILE, "
                "take another precision, or write it all the same with --force"
            )
        (work / found.graph).write_bytes(graph)
        record = {"schema": SCHEMA, "kind": "lowered", **finite(msgspec.to_builtins(found))}
        (work / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    return found


def _check_options(options: LowerOptions) -> None:
    """Refuse what would do nothing."""
    if options.precision not in (Precision.FP16, Precision.BF16, Precision.INT8):
        raise UsageError(f"--precision {options.precision}: expected fp16, bf16 or int8")
    if options.images < 1:
        raise UsageError(f"--images {options.images}: expected at least 1, else nothing is proved")
    if options.precision is not Precision.INT8:
        given = {"--around": options.around, "--calib": options.calib, "--calib-method": options.method}
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"{name}: only int8 has that; leave it out, or --precision int8")


def _require_free(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise UsageError(f"{out}: exists; choose another name or remove it")


def _require_images(bundle: Bundle) -> None:
    for record in bundle.manifest.inputs:
        if record.resize is None and not record.rows:
            raise UsageError(
                f"{bundle.root}: input {record.name!r} is a ready tensor of which nobody knows how it is made of a "
                "photograph: there is nothing to prove on. Build with a recipe that has the key `graph.inputs`"
            )
    if not backbone_taps(bundle.manifest):
        raise UsageError(f"{bundle.root}: nothing to lower: the graph has no backbone's output")


def trtexec_command(graph: str, inputs: Sequence[InputRecord], max_batch: int) -> str:
    """The line that builds an engine of a graph with TensorRT's own tool, tuned for full batches.

    Args:
        graph: The file.
        inputs: What it takes.
        max_batch: Largest batch of one call.
    """

    def shapes(batch: int) -> str:
        return ",".join(f"{i.name}:{'x'.join(map(str, (batch, *i.shape)))}" for i in inputs)

    options = {
        "onnx": graph,
        "saveEngine": f"{graph.removesuffix('.onnx')}.engine",
        "minShapes": shapes(1),
        "optShapes": shapes(max_batch),
        "maxShapes": shapes(max_batch),
    }
    return shlex.join(
        ["trtexec", "--stronglyTyped", "--noTF32", *(f"--{name}={value}" for name, value in options.items())]
    )


class _Lowering:
    """One bundle on its way to a lowered graph."""

    def __init__(self, bundle: Bundle, options: LowerOptions, work: Path) -> None:
        with needs("export"):
            from vsa_rt.export.foreign import graph_from_bytes
            from vsa_rt.export.lowering.lower import check_excluded, prepared
        self.bundle, self.options, self.work = bundle, options, work
        self.manifest, self.progress = bundle.manifest, options.progress
        self.taps, self.exact = backbone_taps(self.manifest), exact_taps(self.manifest)
        truth = self.manifest.graphs[0].path
        # Of the FP32 graph no copy is kept: it may be a gigabyte, and lowering starts from this one all the same.
        self.model = prepared(graph_from_bytes(bundle.read(truth), truth))
        self.halving = Halving(self.manifest, self.model, options.budget, self.progress, options.rounds)
        check_excluded(self.model, self.options.exclude)

    def prove(self) -> tuple[Lowered, bytes]:
        """The graph and its proof, whatever that says."""
        options = self.options
        calibration = self._calibration() if options.precision is Precision.INT8 else None
        plan = self.halving.plan(options.precision, options.exclude, options.around, options.head)
        feed, photographs = self._photographs()
        plan, ranges = self.halving.without_hazards(plan, feed, photographs)
        reference = onnx_reference(self.bundle, "what was lowered")
        few = choose(photographs, options.images)
        self.progress(f"running the FP32 graph on {len(few)} photographs")
        judged = run_reference(reference, self.manifest.inputs, few, self.manifest.recipe)
        proof = self.halving.rounded(plan, reference, judged)
        graph = proof.graph.SerializeToString()
        name = f"graph.{options.precision}.onnx"
        seen = proof.last
        found = Lowered(
            vsa_rt=__version__,
            source=self.manifest.digest,
            graph=name,
            nbytes=len(graph),
            sha256=hashlib.sha256(graph).hexdigest(),
            opset=self.manifest.graphs[0].opset,
            inputs=self.manifest.inputs,
            outputs={t.name: t.width for t in self.manifest.taps},
            plan=proof.plan,
            kept=kept_nodes(self.model, proof.plan, self.exact, self.halving.why),
            ranges=ranges,
            rounding=RoundingRecord(
                photographs=len(few),
                tensors=seen.tensors,
                largest=seen.largest if math.isfinite(seen.largest) else None,
                tensor=seen.tensor,
                rounds=proof.rounds,
            ),
            tolerance=tolerance_for(options.precision),
            budget=options.budget,
            decides=decides(self.manifest),
            parity=proof.parity,
            calibration=calibration,
            trtexec=trtexec_command(name, self.manifest.inputs, self.manifest.max_batch),
            verdict="failed parity" if proof.reasons else "holds",
            reasons=proof.reasons,
        )
        return found, graph

    def _photographs(self) -> tuple[PhotographFeed, list[Photograph]]:
        """Those that can be read, and what was found on the way."""
        chosen = gate_photographs(self.options.data, self.manifest.recipe)
        self.progress(f"reading {len(chosen)} photographs")
        feed = PhotographFeed(self.manifest.inputs, lambda _picture: {})
        return feed, [p for batch in feed.batches(chosen) for p in batch.photographs]

    def _calibration(self) -> CalibrationRecord:
        """int8's ranges; their histograms go with the graph."""
        with needs("export"):
            from vsa_rt.export.lowering.lower import activations
        ranges = int8_ranges(
            self.manifest,
            lambda: self.bundle.read(self.manifest.graphs[0].path),
            lambda: activations(self.model, self.taps, self.exact),
            calibration_of(self.bundle),
            self.options,
        )
        self.halving.ranges = ranges.thresholds()
        record = ranges.record()
        (self.work / record.path).write_bytes(ranges.to_bytes())
        return record
