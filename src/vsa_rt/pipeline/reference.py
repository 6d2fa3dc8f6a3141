"""What parity is measured against: the torch model rebuilt from the manifest, or the bundle's FP32 graph."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vsa_rt.bundle import Bundle, hash_file
from vsa_rt.contracts import ResizeSpec
from vsa_rt.errors import BundleError, CheckpointAbsent, CheckpointError, EnvironmentUnusable, needs
from vsa_rt.export.transforms import reference_transform
from vsa_rt.locate import locate
from vsa_rt.pipeline.gate import Reference
from vsa_rt.pipeline.images import Prepare

if TYPE_CHECKING:
    from vsa_rt.export.ensemble import LoadedEnsemble

HEAD = "head.safetensors"


def pillow_prepare(specs: dict[str, ResizeSpec]) -> Prepare:
    """The resize by Pillow itself, or by plain arithmetic for kernels that Pillow lacks.

    Neither uses the runtime's own code, nor torch.
    """
    transforms = {name: reference_transform(spec) for name, spec in specs.items()}
    return lambda picture: {name: transform(picture) for name, transform in transforms.items()}


def _checkpoints(bundle: Bundle, folder: Path, weights: dict[str, Path]) -> dict[str, Path]:
    """Every file that the bundle was built from: as given, as recorded, or the bundle's own copy of the head.

    Raises:
        CheckpointError: A file is gone.
    """
    found = dict(weights)
    for name, record in bundle.manifest.checkpoints.items():
        if name in found or (record.random_seed is not None and name != "head"):
            continue
        if name == "head":
            found[name] = folder / HEAD
            found[name].write_bytes(bundle.read(HEAD))
            continue
        if record.found.startswith("package:"):
            found[name] = locate(record.found, folder, f"checkpoints.{name}.found")
        else:
            found[name] = Path(record.found)
        # The path is the manifest's word: nothing is parsed before it proves to be the file that was built from.
        if not found[name].is_file() or hash_file(found[name]).sha256 != record.sha256:
            raise CheckpointAbsent(
                f"checkpoint of {name!r} no longer lies at {record.found}; name it with --weights {name}=PATH"
            )
    return found


def check_weights(bundle: Bundle, weights: dict[str, Path]) -> None:
    """Check, without torch, that files named by hand are those that a bundle was built from.

    Raises:
        CheckpointError: One is absent, or another one.
    """
    records = bundle.manifest.checkpoints
    for name, path in weights.items():
        if not path.is_file():
            raise CheckpointAbsent(f"--weights {name}={path}: there is no such file")
        found = hash_file(path).sha256
        if records[name].random_seed is None and found != records[name].sha256:
            raise CheckpointError(_other_file(name, str(path), found, records[name].sha256))


def _other_file(name: str, where: str, found: str, wanted: str) -> str:
    return (
        f"checkpoint of {name!r}: {where} has SHA-256 {found[:12]}…, the bundle was built "
        f"from {wanted[:12]}…; name that file with --weights {name}=PATH"
    )


def load_torch(bundle: Bundle, weights: dict[str, Path]) -> LoadedEnsemble:
    """Rebuild the torch model that the bundle was made from.

    Args:
        bundle: Its manifest holds the recipe and the checkpoints' hashes.
        weights: Where checkpoints moved.

    Raises:
        EnvironmentUnusable: torch is not installed.
        CheckpointError: A checkpoint is gone, or is not the one that was built from.
    """
    with needs("export"):
        from vsa_rt.export.ensemble import load_ensemble
    recipe, records = bundle.manifest.recipe, bundle.manifest.checkpoints
    if recipe is None or recipe.graph is not None:
        raise CheckpointAbsent("the bundle was built from an ONNX file, not from checkpoints")
    seed = next((r.random_seed for r in records.values() if r.random_seed is not None), None)
    with tempfile.TemporaryDirectory() as folder:
        files = _checkpoints(bundle, Path(folder), weights)
        ensemble = load_ensemble(recipe, Path(folder), files, seed)
    for name, record in ensemble.checkpoints.items():
        if record.sha256 != records[name].sha256:
            if record.random_seed is not None:
                # Sums of floats: another processor or library may round a seeded network's statistics differently.
                raise CheckpointAbsent(
                    f"the random weights of {name!r} come out differently on this machine than where they were made"
                )
            raise CheckpointError(_other_file(name, record.found, record.sha256, records[name].sha256))
    return ensemble


def reference_of(ensemble: LoadedEnsemble) -> Reference:
    """The torch model as something to be held against."""
    return Reference("torch", "", list(ensemble.module.recipe.labels), ensemble.prepare, ensemble.run)


def onnx_reference(bundle: Bundle, why: str) -> Reference:
    """The bundle's FP32 graph, run by ONNX Runtime.

    Raises:
        EnvironmentUnusable: ONNX Runtime is not installed.
    """
    from vsa_rt.engines.executor import GraphExecutor

    with needs("onnxruntime"):
        executor = GraphExecutor(bundle.read(bundle.manifest.graphs[0].path))
    specs = {i.name: i.resize for i in bundle.manifest.inputs if i.resize is not None}
    # The graph's own words: the manifest's are what is being checked.
    labels = json.loads(executor.metadata.get("vsa_rt", "{}")).get("labels", [])
    return Reference("onnx", why, [str(label) for label in labels], pillow_prepare(specs), executor.run)


def find_reference(bundle: Bundle, weights: dict[str, Path] | None = None) -> Reference:
    """The torch model if it can be rebuilt, else the FP32 graph with the reason.

    Only what is absent (torch, or a checkpoint) is a reason to take the graph. Weights that are there and do not
    fit the manifest are an error: the bundle is not what it says.
    """
    try:
        return reference_of(load_torch(bundle, weights or {}))
    except (EnvironmentUnusable, CheckpointAbsent) as error:
        if weights:
            raise
        return onnx_reference(bundle, str(error))
    except CheckpointError as error:
        if weights:
            raise
        raise BundleError(f"{bundle.root}: is not what its manifest says: {error}") from error
