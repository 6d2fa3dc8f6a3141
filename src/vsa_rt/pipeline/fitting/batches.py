"""Photographs in batches, as the torch networks take them: what the runtime's own host makes of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsa_rt.dataset import Photograph
from vsa_rt.manifest import InputRecord
from vsa_rt.runtime.preprocess import Preprocessor


def preprocessor_of(inputs: Sequence[InputRecord]) -> Preprocessor:
    """The host that makes these inputs."""
    specs = {i.name: i.resize for i in inputs if i.resize is not None}
    return Preprocessor(specs, rows={i.name: tuple(i.shape) for i in inputs if i.rows})


def empty_rows(inputs: Sequence[InputRecord], count: int) -> dict[str, NDArray[Any]]:
    """Every input of ``count`` empty images."""
    return {i.name: np.zeros((count, *i.shape), np.dtype(i.dtype)) for i in inputs}


def batches(
    inputs: Sequence[InputRecord], photographs: Sequence[Photograph], size: int
) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
    """Every input of the photographs, batch by batch.

    Args:
        inputs: What the networks take.
        photographs: All readable.
        size: Photographs of one batch.

    Yields:
        Number of the batch's first photograph, and input name to array ``(N, …)``.
    """
    host = preprocessor_of(inputs)
    for start in range(0, len(photographs), size):
        some = photographs[start : start + size]
        arrays = empty_rows(inputs, len(some))
        for index, photograph in enumerate(some):
            row = {name: array[index] for name, array in arrays.items()}
            host.write(photograph.path, row, item=str(photograph.path))
        yield start, arrays
