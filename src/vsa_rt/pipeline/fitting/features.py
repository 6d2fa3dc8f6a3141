"""Frozen features of labelled photographs, computed by the torch networks once and kept in a cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from functools import cache
from importlib import util
from pathlib import Path
from pkgutil import iter_modules

import msgspec
import numpy as np
from numpy.typing import NDArray

from vsa_rt.dataset import Dataset, Photograph
from vsa_rt.documents import write_whole
from vsa_rt.errors import ItemError, needs
from vsa_rt.manifest import InputRecord
from vsa_rt.pipeline.export import Progress
from vsa_rt.pipeline.fitting.batches import batches, empty_rows, preprocessor_of
from vsa_rt.recipe import options_of

with needs("export"):
    import PIL
    import timm
    import torch

    from vsa_rt.export.backbones import LoadedBackbone
    from vsa_rt.export.trunk import Trunk

Features = NDArray[np.float32]
#: Images that go through the networks together; one where each brings dozens of regions.
_BATCH = 16
#: Whose code steers what a feature is: reads weights, decodes, resizes or computes. Of a package, all its modules.
CODE = (
    *(
        f"vsa_rt.export.{name}"
        for name in ("arrays", "caffe", "checkpoint", "formats", "mxnet", "torch_pickle")
    ),
    *(f"vsa_rt.export.{name}" for name in ("backbones", "makers", "networks", "timm_features", "trunk")),
    *(f"vsa_rt.runtime.{name}" for name in ("companions", "decode", "jpeg", "pixels", "preprocess")),
    *(f"vsa_rt.runtime.{name}" for name in ("resample", "_resample", "two_tap", "video_kind")),
    "vsa_rt.pipeline.fitting.batches",
    __name__,
)


def cache_folder(chosen: Path | None) -> Path:
    """Where features and probes are kept: the folder that is named, else ``$XDG_CACHE_HOME/vsa-rt``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return chosen or (Path(base) if base else Path.home() / ".cache") / "vsa-rt"


def readable(dataset: Dataset, inputs: Sequence[InputRecord]) -> tuple[list[Photograph], list[ItemError]]:
    """Photographs of which every input can be made, and the errors of those that cannot."""
    host = preprocessor_of(inputs)
    rows = {name: array[0] for name, array in empty_rows(inputs, 1).items()}
    good: list[Photograph] = []
    bad = list(dataset.rejected)
    for photograph in dataset.photographs:
        try:
            host.write(photograph.path, rows, item=str(photograph.path))
        except ItemError as error:
            bad.append(error)
        else:
            good.append(photograph)
    return good, bad


@cache
def code_sha256(names: tuple[str, ...]) -> str:
    """SHA-256 over the files of modules and packages, none of which is imported.

    Args:
        names: Dotted names; one that is not installed, such as an extension without a compiler, counts as empty.
    """
    digest = hashlib.sha256()
    for name in names:
        spec = util.find_spec(name)
        path = Path(spec.origin) if spec is not None and spec.origin else None
        digest.update(f"{name}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes() if path else b"").digest())
        if spec is not None and spec.submodule_search_locations:
            inner = iter_modules(spec.submodule_search_locations, f"{name}.")
            digest.update(code_sha256(tuple(sorted(m.name for m in inner))).encode())
    return digest.hexdigest()


def _key(backbone: LoadedBackbone, read: str, data: str) -> str:
    """What a backbone's features depend on; ``read`` is the key of the backbone that it reads."""
    entry, made = backbone.entry, backbone.made
    parts = [
        backbone.record.sha256,
        entry.architecture,
        msgspec.json.encode(options_of(entry)).decode(),
        msgspec.json.encode(made.resize).decode(),
        repr((made.mean, made.std)),
        read,
        data,
        code_sha256(CODE),
        torch.__version__,
        timm.__version__,
        PIL.__version__,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read_cached(path: Path, count: int) -> Features | None:
    """The values behind their SHA-256; ``None`` if they are absent or not what was written."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, values = data[:32], data[32:]
    if hashlib.sha256(values).digest() != digest or len(values) != 4 * count:
        return None
    return np.frombuffer(values, np.float32)


def _compute(
    trunk: Trunk, names: Collection[str], photographs: Sequence[Photograph], progress: Progress
) -> dict[str, Features]:
    """Features ``(N, width)`` in float32 of these backbones and all that they need, by the torch networks."""
    needed = trunk.needed_for(names)
    size = 1 if trunk.cuts_regions else _BATCH
    parts: dict[str, list[Features]] = {name: [] for name in needed}
    for start, rows in batches(trunk.inputs, photographs, size):
        progress(f"{', '.join(names)}: features of {start} of {len(photographs)} photographs")
        with torch.inference_mode():
            found = trunk({name: torch.from_numpy(array) for name, array in rows.items()}, needed)
        for name, values in found.items():
            parts[name].append(values.numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def features_by_backbone(
    trunk: Trunk,
    names: Sequence[str],
    photographs: Sequence[Photograph],
    data: str,
    cache: Path | None,
    progress: Progress,
) -> dict[str, Features]:
    """Features ``(N, width)`` of backbones, from the cache where it has them; the rest is computed and put there.

    Args:
        trunk: The loaded backbones.
        names: Those that are wanted.
        photographs: All readable.
        data: What ``data_key`` says of them.
        cache: Folder; ``None`` for ``$XDG_CACHE_HOME/vsa-rt``.
        progress: Told of every step.
    """
    folder = cache_folder(cache) / "features"
    keys: dict[str, str] = {}
    for backbone in trunk.computed:
        read = keys[trunk.same[backbone.reads]] if backbone.reads else ""
        keys[backbone.name] = _key(backbone, read, data)
    widths = {b.name: b.width for b in trunk.computed}
    wanted = list(dict.fromkeys(trunk.same[name] for name in names))
    found: dict[str, Features] = {}
    for name in wanted:
        stored = _read_cached(folder / f"{keys[name]}.features", len(photographs) * widths[name])
        if stored is not None:
            found[name] = stored.reshape(len(photographs), widths[name])
    missing = [name for name in wanted if name not in found]
    if missing:
        for name, features in _compute(trunk, missing, photographs, progress).items():
            values = np.ascontiguousarray(features, np.float32).tobytes()
            write_whole(folder / f"{keys[name]}.features", hashlib.sha256(values).digest() + values)
            found[name] = features
    return {name: found[trunk.same[name]] for name in names}
