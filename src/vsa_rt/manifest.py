"""The manifest: what a bundle says about itself. One JSON file, schema-versioned, validated on reading."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

from vsa_rt.budget import Budget
from vsa_rt.contracts import Resample, ResizeSpec, ScoresKind, Task, Views
from vsa_rt.errors import BundleError, UsageError
from vsa_rt.manifest_rules import check_consistency
from vsa_rt.recipe import Recipe

#: 5 since engines may be compiled for GPUs that the building machine does not have.
SCHEMA = 5


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Size in bytes and SHA-256 of one file of the bundle."""

    nbytes: int
    sha256: str


class InputRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One graph input: ``(N, *shape)`` of ``dtype``.

    Attributes:
        name: The tensor's name.
        dtype: ``uint8`` for an image input (NHWC, RGB, final size).
        shape: Without the batch axis.
        resize: How the host makes it from an image; ``None`` for a ready tensor.
        rows: A ready tensor of which fewer rows may be given; zeros fill the rest. It lies beside the image, as
            ``photo.jpg.NAME.npy``. Without it, a ready tensor can only be passed to ``infer``.
    """

    name: str
    dtype: str
    shape: list[int]
    resize: ResizeSpec | None = None
    rows: bool = False


class TapRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One graph output ``(N, width)`` in float32.

    Attributes:
        name: The tensor's name.
        width: Its second axis.
        reads: The tap whose values it is computed from, where that is another backbone's.
        kind: A backbone's features, the joined features, what the head gives before and after its activation, the
            gates and experts of a mixture, or the scores of each view. With several views (``Manifest.views``) all
            but the scores hold one after the other.
    """

    name: str
    width: int
    kind: Literal["backbone", "features", "logits", "gates", "experts", "views", "scores"]
    reads: str = ""


class CheckpointRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a backbone's or the head's weights came from.

    Attributes:
        sha256: Hash of the file; of the tensors where weights are random.
        found: ``package:NAME/inner/path``, or the whole path where the file lay at build time.
        random_seed: The seed of random weights, else ``None``.
    """

    sha256: str
    found: str
    random_seed: int | None = None


class GraphRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One ONNX graph of the bundle.

    Attributes:
        path: Its file.
        precision: The one that all backbones have, else ``mixed``.
        opset: Of the default domain.
        plan: Tap of every backbone to its precision.
        around: Type of what is not quantised in an int8 backbone.
    """

    path: str
    precision: str
    opset: int
    plan: dict[str, str]
    around: str = "fp32"


class GateRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The verdict of one comparison.

    Attributes:
        stage: ``onnx`` or an engine's name.
        reference: ``torch`` or ``onnx``.
        images: How many images were compared.
        passed: Whether every tap and the decisions stayed inside the tolerance.
        reasons: Why not.
        worst: Tap to its largest error relative to the reference's norm.
        flips: Images whose label changed outside ties.
        ties: Images whose label changed at a margin inside ten times the tolerance.
        stand_ins: Images that had no files of their ready tensors and got stand-ins.
        skipped: Photographs that could not be read.
    """

    stage: str
    reference: str
    images: int
    passed: bool
    reasons: list[str]
    worst: dict[str, float]
    flips: int
    ties: int
    stand_ins: int = 0
    skipped: int = 0


class StageRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One engine file of several that together compute the graph.

    Attributes:
        name: Of what it computes: a tap, or ``head``.
        file: Its path in the bundle.
        inputs: Tensors that it takes: of the graph, or what earlier stages give.
        outputs: Tensors that it gives.
    """

    name: str
    file: str
    inputs: list[str]
    outputs: list[str]


class CompiledRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How TensorRT compiled an engine: what decides where it may be opened, and what makes it again.

    Attributes:
        library: ``tensorrt`` or ``tensorrt-rtx``.
        version: The library's, such as ``10.3.0``.
        capabilities: Compute capabilities that it was compiled for, such as ``sm_87``.
        system: Operating system and processor, such as ``linux-aarch64``.
        driver: Of the machine that compiled it; empty without one.
        typing: ``strong``: the graph's types say each precision. ``weak``: the compiler chose inside of ``flags``.
        flags: Builder flags, by the library's names.
        version_compatible: Whether later versions of the library may open it.
        hardware: Other devices that may open it: ``none``, ``ampere+`` or ``same capability``.
        stripped: Whether it lacks the weights, which come from the graph when it is opened.
        batches: Smallest, usual and largest batch of its optimisation profile.
        stages: The streams form: an engine for each backbone and one for what joins them; empty without it. The
            engine's first file is the merged form.
        trtexec: The command that makes the merged form with TensorRT's own tool, run in the bundle.
    """

    library: str
    version: str
    capabilities: list[str]
    system: str
    driver: str
    typing: Literal["strong", "weak"]
    flags: list[str]
    version_compatible: bool
    hardware: Literal["none", "ampere+", "same capability"]
    stripped: bool
    batches: list[int]
    stages: list[StageRecord]
    trtexec: str


class EngineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One built engine.

    Attributes:
        target: ``backend:device``.
        precision: As written in the graph it was built from.
        graph: Path of that graph.
        plan: Tap of every backbone to its precision, as in that graph.
        around: Type of what is not quantised in an int8 backbone.
        exclude: Nodes of the FP32 graph that stayed in fp32 whatever their backbone's precision is.
        achieved: Share of the convolutions' work that the backend really runs in that precision, 0 to 1;
            ``None`` where the backend does not tell.
        folder: ``engines/<backend>-<device>-<precision>``.
        files: Paths of its files, the first one being the one to open.
        version: The backend's version that built it.
        machine: The processor or GPU that it was measured on.
        latency_ms: Batch size to median milliseconds per call, measured at build.
        threads: That it was measured with.
        division: Batch size to how a call of so many images is divided among as many threads; empty for the backend's
            own way.
        gate: Its comparison with the reference.
        proof: What was compared: the ``engine`` itself; or the ``graph`` that it was compiled from, run by an
            executor that rounds as the engine would, where the building machine could not open the engine.
        compiled: How it was compiled; ``None`` for engines that are graphs for a library on the CPU.
    """

    target: str
    precision: str
    graph: str
    plan: dict[str, str]
    around: str = "fp32"
    exclude: list[str]
    achieved: float | None
    folder: str
    files: list[str]
    version: str
    machine: str
    latency_ms: dict[str, float]
    threads: int
    division: dict[str, str]
    gate: GateRecord
    proof: Literal["engine", "graph"] = "engine"
    compiled: CompiledRecord | None = None


class Rejection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A target and precision that the build left out, and why."""

    target: str
    precision: str
    reason: str


class PlanRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One plan that was measured on a target, whether it was taken or not.

    Attributes:
        target: Where.
        backbones: Tap of every backbone to its precision.
        around: Type of what is not quantised in an int8 backbone.
        exclude: How many nodes of the FP32 graph stayed in fp32 whatever their backbone's precision is.
        role: ``one backbone`` lowered and the others in fp32, all alike, or put together from such measurements.
        latency_ms: Batch size to median milliseconds per call.
        speedup: Batch size to how many times as fast as fp32 it is: the median over interleaved pairs of one run.
        images: How many decided.
        flips: Labels that flip outside ties.
        ties: Labels that flip at a margin that says nothing.
        widest: The reference's largest margin where a label flips, ties included; 0 where none does.
        kl: Mean divergence of the normalised scores, in nats; ``None`` where labels mean nothing.
        kl_worst: Of one image.
        accuracy: Candidate minus reference in the task's first metric, and the low and high end of its 95 %
            interval; empty without labels.
        reasons: Why it is over the budget or outside its tolerance; empty if it holds.
        chosen: Whether the target's engine was built from it.
    """

    target: str
    backbones: dict[str, str]
    around: str = "fp32"
    exclude: int
    role: Literal["one backbone", "uniform", "composed"]
    latency_ms: dict[str, float]
    speedup: dict[str, float]
    images: int
    flips: int
    ties: int
    widest: float
    kl: float | None
    kl_worst: float | None
    accuracy: list[float]
    reasons: list[str]
    chosen: bool


class CalibrationRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What int8's ranges were measured on.

    Attributes:
        path: The file of the bundle that holds the histograms and the images' hashes.
        method: How ranges were taken from them, such as ``entropy``.
        images: How many photographs were seen.
        skipped: How many could not be read.
        warnings: What was odd about them.
    """

    path: str
    method: str
    images: int
    skipped: int
    warnings: list[str]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything a bundle says about itself.

    Attributes:
        schema: Version of this format.
        vsa_rt: Version that wrote it.
        created: UTC time, ISO 8601.
        recipe: The whole recipe; ``None`` in a features-only bundle.
        labels: In the order of the scores; empty in a features-only bundle.
        task: What the scores mean.
        inputs: In the graph's order.
        taps: In the graph's order.
        threshold: Multi-label: the score above which a label is given.
        scores_kind: What kind of numbers the scores are.
        views: Through how many views the graph looks at an image.
        resample: How the host resizes unless told otherwise.
        max_batch: Largest batch of one engine call.
        checkpoints: Backbone name, or ``head``, to its weights.
        graphs: The first is the FP32 truth.
        gates: The export's own comparisons.
        engines: Those that held their gate, fastest first; a failed one only where that was forced.
        plans: What was measured to choose precisions; empty where none was to be chosen.
        budget: What lowered engines may change; ``None`` where fp32 alone was asked for.
        calibration: What int8's ranges were measured on; ``None`` where nothing was calibrated.
        rejected: What was not built.
        chosen: One sentence: which engine is the default and why.
        golden: Path of the golden tensors.
        files: Every file but the manifest.
        digest: SHA-256 of this document with an empty ``digest``.
    """

    schema: int
    vsa_rt: str
    created: str
    recipe: Recipe | None
    labels: list[str]
    task: Task
    threshold: float
    scores_kind: ScoresKind
    views: Views
    resample: Resample
    inputs: list[InputRecord]
    taps: list[TapRecord]
    max_batch: int
    checkpoints: dict[str, CheckpointRecord]
    graphs: list[GraphRecord]
    gates: list[GateRecord]
    engines: list[EngineRecord]
    plans: list[PlanRecord]
    budget: Budget | None
    calibration: CalibrationRecord | None
    rejected: list[Rejection]
    chosen: str
    golden: str
    files: dict[str, FileRecord]
    digest: str = ""


def seal(manifest: Manifest) -> Manifest:
    """The manifest with its digest set."""
    blank = msgspec.structs.replace(manifest, digest="")
    return msgspec.structs.replace(blank, digest=hashlib.sha256(_canonical(blank)).hexdigest())


def _canonical(manifest: Manifest) -> bytes:
    return msgspec.json.encode(manifest, order="sorted")


def manifest_to_json(manifest: Manifest) -> bytes:
    """The manifest as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def manifest_from_json(data: bytes, where: str) -> Manifest:
    """Read and check a manifest.

    Args:
        data: The file's bytes.
        where: What to call it in messages.

    Raises:
        BundleError: Not JSON, another schema, an unknown key, a wrong digest or a contradiction.
    """
    try:
        raw: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BundleError(f"{where}: not a manifest: {error}; rebuild or copy the bundle again") from error
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if schema != SCHEMA:
        raise BundleError(
            f"{where}: manifest schema {schema!r}; this version of vsa-rt reads schema {SCHEMA}: "
            "rebuild the bundle, or install the version that wrote it"
        )
    try:
        manifest = msgspec.convert(raw, Manifest)
    except msgspec.ValidationError as error:
        raise BundleError(f"{where}: {error}; rebuild the bundle") from error
    if seal(manifest).digest != manifest.digest:
        raise BundleError(f"{where}: damaged: its digest does not fit its content; copy or build it again")
    try:
        check_consistency(manifest, where)
    except UsageError as error:
        raise BundleError(f"{where}: {error}; rebuild the bundle") from error
    return manifest
