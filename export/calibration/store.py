"""A calibration: histograms by tensor and what they were measured on, as one file of the bundle."""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from vsa_rt.errors import BundleError
from vsa_rt.export.calibration.histogram import BINS, HIGHEST_EXPONENT, Histogram, exponent_of
from vsa_rt.export.calibration.thresholds import threshold_of

SCHEMA = 1
#: Name of the file in a bundle.
CALIBRATION = "calibration.npz"
#: The papers' five backbones have about 2,000 activations together.
_MOST_TENSORS = 16_384
#: Names of that many tensors and of a hundred thousand photographs, 200 bytes each.
_MOST_TEXT = 32 << 20
#: numpy writes headers of 128 bytes.
_HEADER = 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: Arrays of the file: dtype, and numbers per tensor.
_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "counts": ("<i8", (BINS,)),
    "exponent": ("<i8", ()),
    "zeros": ("<i8", ()),
    "lowest": ("<f8", ()),
    "highest": ("<f8", ()),
}


class ImageRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A photograph by its path below the folder, and the SHA-256 of its bytes and its ready tensors'."""

    name: str
    sha256: str


class _Text(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What of a calibration is no array."""

    schema: int
    tensors: list[str]
    images: list[ImageRecord]
    unreadable: list[ImageRecord]
    rejected: int
    stand_ins: int
    graph: str
    warnings: list[str]


@dataclass(frozen=True)
class Calibration:
    """Histograms of activations over photographs. They do not depend on the method that makes thresholds of them.

    Attributes:
        histograms: By tensor.
        images: The photographs, in order.
        graph: SHA-256 of the FP32 graph that they went through.
        unreadable: Photographs that were chosen and could not be read.
        rejected: Entries of the folder or its table that are no photographs.
        stand_ins: Of how many photographs the ready tensors are stand-ins.
        warnings: Sentences: where the photographs are unlike photographs, or a tensor has no range.
    """

    histograms: dict[str, Histogram]
    images: Sequence[ImageRecord]
    graph: str
    unreadable: Sequence[ImageRecord] = ()
    rejected: int = 0
    stand_ins: int = 0
    warnings: Sequence[str] = field(default=())

    @property
    def skipped(self) -> int:
        """How many entries were left out, for whatever reason."""
        return len(self.unreadable) + self.rejected

    def thresholds(self, method: str) -> dict[str, float]:
        """The largest magnitude that symmetric int8 shall hold, by tensor.

        Args:
            method: As for ``thresholds.threshold_of``.

        Returns:
            In the order of the histograms; 0 for a tensor that was zero throughout, which has no scale.

        Raises:
            UsageError: There is no such method.
        """
        threshold = threshold_of(method)
        return {name: threshold(histogram) for name, histogram in self.histograms.items()}


def calibration_to_bytes(calibration: Calibration) -> bytes:
    """An ``.npz`` of the arrays in ``_ARRAYS``, a row per tensor, and of JSON as bytes.

    The same calibration gives the same bytes: the archive's dates are constant.
    """
    text = _Text(
        schema=SCHEMA,
        tensors=list(calibration.histograms),
        images=list(calibration.images),
        unreadable=list(calibration.unreadable),
        rejected=calibration.rejected,
        stand_ins=calibration.stand_ins,
        graph=calibration.graph,
        warnings=list(calibration.warnings),
    )
    made = list(calibration.histograms.values())
    arrays = {
        name: np.array([getattr(h, name) for h in made], dtype).reshape(len(made), *shape)
        for name, (dtype, shape) in _ARRAYS.items()
    }
    arrays["text"] = np.frombuffer(msgspec.json.encode(text), np.uint8)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            npy.write_array(member, array, version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, member.getvalue())
    return stream.getvalue()


def read_calibration(data: bytes) -> Calibration:
    """Read a calibration of unknown origin: nothing in it is executed, and no size is believed before it is checked.

    Raises:
        BundleError: It is damaged, of another version, or contradicts itself.
    """
    try:
        return _read(data)
    except (ValueError, OSError, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise _broken(str(error)) from error
    except (zipfile.BadZipFile, zlib.error, msgspec.DecodeError, RecursionError) as error:
        raise _broken(str(error)) from error


def _broken(why: str) -> BundleError:
    reason = why.strip().splitlines()[0][:200] if why.strip() else "it ends too early"
    return BundleError(f"{CALIBRATION}: cannot be used: {reason}; calibrate again with --calib")


def _read(data: bytes) -> Calibration:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        wanted = {f"{name}.npy" for name in (*_ARRAYS, "text")}
        if sorted(archive.namelist()) != sorted(wanted):
            raise ValueError(f"holds {archive.namelist()[:8]}, expected {sorted(wanted)}")
        raw = _array(archive, "text", "|u1", None, _MOST_TEXT)
        text = msgspec.json.decode(raw.tobytes(), type=_Text)
        _check_text(text)
        count = len(text.tensors)
        rows = {
            name: _array(archive, name, dtype, (count, *shape), 8 * math.prod(shape) * count)
            for name, (dtype, shape) in _ARRAYS.items()
        }
    histograms = {name: _histogram(name, rows, i) for i, name in enumerate(text.tensors)}
    return Calibration(
        histograms=histograms,
        images=text.images,
        graph=text.graph,
        unreadable=text.unreadable,
        rejected=text.rejected,
        stand_ins=text.stand_ins,
        warnings=text.warnings,
    )


def _array(
    archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[int, ...] | None, most: int
) -> NDArray[Any]:
    """One member, which must be an array of this dtype and shape (``None`` for any length of one axis)."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed by method {entry.compress_type}, expected DEFLATE")
    if entry.file_size > most + _HEADER:
        raise ValueError(f"{name} has {entry.file_size} bytes, expected {most} at most")
    with archive.open(entry) as stream:
        member = stream.read(most + _HEADER + 1)  # the entry's word is not relied on
    start = io.BytesIO(member[:_HEADER])
    if npy.read_magic(start) != (1, 0):
        raise ValueError(f"{name} is no .npy file of version 1.0")
    try:
        found, fortran, kind = npy.read_array_header_1_0(start, max_header_size=_HEADER)
    except Exception as error:  # the header is parsed as Python literals, with any of that parser's errors
        raise ValueError(f"{name} has no readable header: {error}") from error
    there = len(member) - start.tell()
    expected = (there,) if shape is None else shape
    if kind.str != dtype or found != expected or fortran or there != kind.itemsize * math.prod(expected):
        raise ValueError(f"{name} is {kind} {str(found)[:80]} in {there} bytes, expected {dtype} {expected}")
    return np.frombuffer(member, dtype, offset=start.tell()).reshape(expected)


def _check_text(text: _Text) -> None:
    if text.schema != SCHEMA:
        raise ValueError(f"has schema {text.schema}, this version reads {SCHEMA}")
    if len(text.tensors) > _MOST_TENSORS or len(set(text.tensors)) != len(text.tensors):
        raise ValueError(f"names {len(text.tensors)} tensors, some twice, or more than {_MOST_TENSORS}")
    hashes = [text.graph, *(i.sha256 for i in (*text.images, *text.unreadable))]
    if not all(map(_SHA256.fullmatch, hashes)):
        raise ValueError("has a SHA-256 that is none")
    if not text.images or min(text.stand_ins, text.rejected) < 0:
        raise ValueError(
            f"is of {len(text.images)} photographs, {text.stand_ins} with stand-ins, {text.rejected} rejected"
        )


def _histogram(name: str, rows: dict[str, NDArray[Any]], row: int) -> Histogram:
    """One tensor's histogram.

    Raises:
        ValueError: Its numbers contradict each other.
    """
    made = Histogram()
    made.counts = rows["counts"][row].astype(np.int64)
    made.exponent, made.zeros = int(rows["exponent"][row]), int(rows["zeros"][row])
    made.lowest, made.highest = float(rows["lowest"][row]), float(rows["highest"][row])
    # As Python's integers: a sum of forged ones might wrap.
    made.count = sum(made.counts.tolist())
    good = (
        made.counts.min() >= 0
        and 0 < made.count < 1 << 62
        and 0 <= made.zeros <= int(made.counts[0])
        and math.isfinite(made.lowest)
        and math.isfinite(made.highest)
        and made.lowest <= made.highest
        and made.exponent == exponent_of(made.magnitude)
        and made.exponent <= HIGHEST_EXPONENT
        and made.counts[min(BINS - 1, int(made.magnitude / made.width))] > 0
        and not made.counts[min(BINS - 1, int(made.magnitude / made.width)) + 1 :].any()
    )
    if not good:
        raise ValueError(f"the histogram of {name[:80]!r} contradicts itself")
    return made
