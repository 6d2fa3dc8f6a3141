"""Frozen features of labelled photographs, computed by the torch networks once and kept in a cache."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from vsa_rt.dataset import Dataset, Photograph
from vsa_rt.errors import ItemError, needs
from vsa_rt.pipeline.export import Progress
from vsa_rt.runtime.preprocess import Preprocessor

with needs("export"):
    import PIL
    import timm
    import torch

    from vsa_rt.export.backbones import LoadedBackbone
    from vsa_rt.export.ensemble import Normalise

Features = NDArray[np.float32]
_BATCH = 16


def _cache_folder(chosen: Path | None) -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return chosen or (Path(base) if base else Path.home() / ".cache") / "vsa-rt"


def data_key(photographs: Sequence[Photograph]) -> str:
    """SHA-256 over the photographs' names, labels and bytes, in order."""
    digest = hashlib.sha256()
    for photograph in photographs:
        digest.update(f"{photograph.path.name}\0{photograph.label}\0".encode("utf-8", "surrogateescape"))
        digest.update(hashlib.sha256(photograph.path.read_bytes()).digest())
    return digest.hexdigest()


def _backbone_key(backbone: LoadedBackbone, architecture: str, data: str) -> str:
    parts = [
        backbone.record.sha256,
        architecture,
        msgspec.json.encode(backbone.resize).decode(),
        repr((backbone.mean, backbone.std)),
        data,
        torch.__version__,
        timm.__version__,
        PIL.__version__,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def readable(dataset: Dataset, backbones: list[LoadedBackbone]) -> tuple[list[Photograph], list[ItemError]]:
    """Photographs that can be decoded and resized, and the errors of those that cannot."""
    host = Preprocessor({b.name: b.resize for b in backbones})
    rows = {b.name: np.empty((b.resize.height, b.resize.width, 3), np.uint8) for b in backbones}
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


def _compute(backbone: LoadedBackbone, photographs: Sequence[Photograph], progress: Progress) -> Features:
    """Features ``(N, D)`` in float32 by the torch network."""
    host = Preprocessor({"image": backbone.resize})
    normalise = Normalise(backbone.mean, backbone.std)
    rows: list[Features] = []
    size = (backbone.resize.height, backbone.resize.width, 3)
    for start in range(0, len(photographs), _BATCH):
        progress(f"{backbone.name}: features of {start} of {len(photographs)} photographs")
        part = photographs[start : start + _BATCH]
        pixels = np.empty((len(part), *size), np.uint8)
        for row, photograph in enumerate(part):
            host.write(photograph.path, {"image": pixels[row]}, item=str(photograph.path))
        with torch.inference_mode():
            rows.append(backbone.network(normalise(torch.from_numpy(pixels))).numpy())
    return np.concatenate(rows)


def write_whole(path: Path, data: bytes) -> None:
    """A file that appears under its name whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
        temporary = Path(stream.name)
        try:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def backbone_features(
    backbone: LoadedBackbone,
    architecture: str,
    photographs: Sequence[Photograph],
    data: str,
    cache: Path | None,
    progress: Progress,
) -> Features:
    """Features from the cache, or computed and put there."""
    path = _cache_folder(cache) / "features" / f"{_backbone_key(backbone, architecture, data)}.features"
    stored = _read_cached(path, len(photographs) * backbone.width)
    if stored is not None:
        return stored.reshape(len(photographs), backbone.width)
    found = np.ascontiguousarray(_compute(backbone, photographs, progress), np.float32)
    values = found.tobytes()
    write_whole(path, hashlib.sha256(values).digest() + values)
    return found


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
