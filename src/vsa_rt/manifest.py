"""The manifest: what a bundle says about itself. One JSON file, schema-versioned, validated on reading."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from vsa_rt.contracts import ResizeSpec, Target, Task
from vsa_rt.errors import BundleError, UsageError
from vsa_rt.recipe import Recipe, check_recipe

SCHEMA = 1


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
        resize: How the host makes it from an image; ``None`` in a features-only bundle, which takes ready
            tensors alone.
    """

    name: str
    dtype: str
    shape: list[int]
    resize: ResizeSpec | None = None


class TapRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One graph output ``(N, width)`` in float32: a backbone's features, all features, logits or scores."""

    name: str
    width: int


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
    """

    stage: str
    reference: str
    images: int
    passed: bool
    reasons: list[str]
    worst: dict[str, float]
    flips: int
    ties: int


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
        max_batch: Largest batch of one engine call.
        checkpoints: Backbone name, or ``head``, to its weights.
        graphs: The first is the FP32 truth.
        gates: The export's own comparisons.
        engines: Fastest first; those that failed their gate come last.
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


def _check_consistency(manifest: Manifest, where: str) -> None:
    for target in (e.target for e in manifest.engines):
        Target.parse(target)
    if manifest.recipe is not None:
        check_recipe(manifest.recipe, where)
    if manifest.labels:
        scores = [t.width for t in manifest.taps if t.name == "scores"]
        if scores != [len(manifest.labels)]:
            raise BundleError(f"{where}: {len(manifest.labels)} labels do not fit scores of width {scores}")
    named = (
        {g.path for g in manifest.graphs} | {f for e in manifest.engines for f in e.files} | {manifest.golden}
    )
    unlisted = sorted(n for n in named if n and n not in manifest.files)
    if unlisted:
        raise BundleError(f"{where}: {unlisted[0]!r} is named but not among the files; rebuild the bundle")


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
    except msgspec.DecodeError as error:
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
