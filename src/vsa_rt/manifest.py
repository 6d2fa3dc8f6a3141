"""The manifest: what a bundle says about itself. One JSON file, schema-versioned, validated on reading."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from typing import Any, Literal

import msgspec

from vsa_rt.contracts import Precision, Resample, ResizeSpec, ScoresKind, Target, Task
from vsa_rt.errors import BundleError, UsageError
from vsa_rt.recipe import Recipe, needed_backbones, options_of, tensor_input
from vsa_rt.recipe_rules import check_recipe

#: 2 since bundles say what kind of scores they give, which inputs lie beside images, and what taps read.
SCHEMA = 2
#: More images than this in one call are nobody's wish; it bounds what a foreign manifest can allocate.
MAX_BATCH = 1024
#: Of one image's tensor, for the same reason: a quarter of a gigabyte of bytes, one of floats.
MAX_ELEMENTS = 2**28
_DTYPES = frozenset({"uint8", "float32", "float16", "int32", "int64"})


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
        kind: A backbone's features, the joined features, what the head gives before and after its activation, or
            the gates and experts of a mixture.
    """

    name: str
    width: int
    kind: Literal["backbone", "features", "logits", "gates", "experts", "scores"]
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
    """One ONNX graph of the bundle."""

    path: str
    precision: str
    opset: int


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


class EngineRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One built engine.

    Attributes:
        target: ``backend:device``.
        precision: As written in the graph it was built from.
        achieved: Share of the convolutions' work that the backend really runs in that precision, 0 to 1;
            ``None`` where the backend does not tell.
        folder: ``engines/<backend>-<device>-<precision>``.
        files: Paths of its files, the first one being the one to open.
        version: The backend's version that built it.
        machine: The processor or GPU that it was measured on.
        latency_ms: Batch size to median milliseconds per call, measured at build.
        gate: Its comparison with the reference.
    """

    target: str
    precision: str
    achieved: float | None
    folder: str
    files: list[str]
    version: str
    machine: str
    latency_ms: dict[str, float]
    gate: GateRecord


class Rejection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A target and precision that the build left out, and why."""

    target: str
    precision: str
    reason: str


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
        resample: How the host resizes unless told otherwise.
        max_batch: Largest batch of one engine call.
        checkpoints: Backbone name, or ``head``, to its weights.
        graphs: The first is the FP32 truth.
        gates: The export's own comparisons.
        engines: Those that held their gate, fastest first.
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
    resample: Resample
    inputs: list[InputRecord]
    taps: list[TapRecord]
    max_batch: int
    checkpoints: dict[str, CheckpointRecord]
    graphs: list[GraphRecord]
    gates: list[GateRecord]
    engines: list[EngineRecord]
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


def _check_tensors(manifest: Manifest) -> str:
    """What is wrong with the inputs and taps; empty if nothing is."""
    if not manifest.inputs or not manifest.taps or not manifest.graphs:
        return "a graph, its inputs and its taps are expected"
    for record in manifest.inputs:
        if record.dtype not in _DTYPES or not record.shape or min(record.shape) < 1:
            return f"input {record.name!r} is {record.dtype} {record.shape}"
        resize = record.resize
        if record.rows and (resize is not None or record.dtype != "float32" or len(record.shape) != 2):
            return f"input {record.name!r} has rows, but is {record.dtype} {record.shape}"
        if resize is not None and record.shape != [resize.height, resize.width, 3]:
            return f"input {record.name!r} has shape {record.shape}, its resize gives {resize.height} x {resize.width}"
        if math.prod(record.shape) > MAX_ELEMENTS:
            return f"input {record.name!r} has {math.prod(record.shape)} elements"
    for tap in manifest.taps:
        if not 1 <= tap.width <= MAX_ELEMENTS:
            return f"tap {tap.name!r} has the width {tap.width}"
    scores = [t.width for t in manifest.taps if t.kind == "scores"]
    if manifest.labels and scores != [len(manifest.labels)]:
        return f"{len(manifest.labels)} labels do not fit scores of width {scores}"
    return ""


def _check_words(manifest: Manifest) -> str:
    """What is wrong with labels, batch and names; empty if nothing is."""
    if len(set(manifest.labels)) != len(manifest.labels):
        return "a label is named twice"
    if manifest.recipe is not None and manifest.recipe.labels != manifest.labels:
        return f"labels {manifest.labels} are not the recipe's {manifest.recipe.labels}"
    if not 1 <= manifest.max_batch <= MAX_BATCH or not 0 < manifest.threshold < 1:
        return f"max_batch {manifest.max_batch}, threshold {manifest.threshold}"
    named = (
        {g.path for g in manifest.graphs} | {f for e in manifest.engines for f in e.files} | {manifest.golden}
    )
    if not all(e.files for e in manifest.engines):
        return "an engine has no files"
    unlisted = sorted(n for n in named if n not in manifest.files)
    if unlisted:
        return f"{unlisted[0]!r} is named but not among the files"
    known = {str(p) for p in Precision}
    used = {g.precision for g in manifest.graphs} | {e.precision for e in manifest.engines}
    unknown = sorted(used - known)
    return f"unknown precision {unknown[0]!r}" if unknown else ""


def _check_recipe(manifest: Manifest) -> str:
    """What the inputs and taps have that the recipe does not imply, or lack; empty if nothing."""
    for names in ([i.name for i in manifest.inputs], [t.name for t in manifest.taps]):
        twice = sorted(name for name, times in Counter(names).items() if times > 1)
        if twice:
            return f"{twice[0]!r} is an input or a tap twice"
    recipe = manifest.recipe
    if recipe is None or recipe.graph is not None:
        return ""
    needed = needed_backbones(recipe)
    implied = dict(given for given in map(tensor_input, needed) if given is not None)
    ready = {i.name: i for i in manifest.inputs if i.resize is None}
    missing = sorted(implied.keys() - ready.keys())
    if missing:
        return f"the recipe takes {missing[0]!r}, which is no input"
    for name, record in ready.items():
        if name not in implied:
            return f"input {name!r} is a ready tensor, which the recipe does not take"
        if record.shape != implied[name] or not record.rows:
            rows = "" if record.rows else ", not of rows"
            return f"input {name!r} is {record.shape}{rows}; the recipe takes rows of {implied[name]}"
    tapped = {t.name for t in manifest.taps if t.kind == "backbone"}
    # Equal backbones are computed once: the tap then has the name of another one of its kind.
    shared = {(b.architecture, options_of(b)) for b in needed if b.name in tapped}
    for backbone in needed:
        alike = (backbone.architecture, options_of(backbone)) in shared
        if backbone.name in recipe.head.features and backbone.name not in tapped and not alike:
            return f"the head takes {backbone.name!r}, which is no tap"
    return ""


def _check_consistency(manifest: Manifest, where: str) -> None:
    for engine in manifest.engines:
        Target.parse(engine.target)
    if manifest.recipe is not None:
        check_recipe(manifest.recipe, where)
    problem = _check_tensors(manifest) or _check_words(manifest) or _check_recipe(manifest)
    if problem:
        raise BundleError(f"{where}: contradicts itself: {problem}; rebuild the bundle")


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
        _check_consistency(manifest, where)
    except UsageError as error:
        raise BundleError(f"{where}: {error}; rebuild the bundle") from error
    return manifest
