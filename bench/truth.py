"""The truth about images: which labels hold, and what each of them has of the image."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Truth:
    """True labels of the images.

    Attributes:
        shares: ``(N, C)``, what each label has of the image; of equal size where a set of labels is all that is known.
        best: ``(N, C)`` of bool, whether no label has more of the image, these and others taken together.
        foreign: ``(N,)``, how many of an image's true labels are none of these. They cannot be given: each is missed.
    """

    shares: Array
    best: Array
    foreign: Array

    @property
    def applies(self) -> Array:
        """``(N, C)`` of bool."""
        return np.asarray(self.shares > 0)

    @property
    def place(self) -> Array:
        """``(N,)``: the one label that applies; C where it is none, another one, or several."""
        alone = (self.applies.sum(1) == 1) & (self.foreign == 0)
        return np.asarray(np.where(alone, self.applies.argmax(1), self.applies.shape[1]))


def truth_of(known: Sequence[Collection[str]], labels: Sequence[str]) -> Truth:
    """What is known of every image.

    Args:
        known: Each image's true labels; a mapping has their shares.
        labels: Those that can be given, in order.
    """
    by_name = [_shares(truth) for truth in known]
    shares = np.array([[given.get(name, 0.0) for name in labels] for given in by_name])
    most = np.array([max(given.values(), default=np.inf) for given in by_name])
    foreign = np.array([len(given.keys() - set(labels)) for given in by_name])
    return Truth(shares, shares >= most[:, None], foreign)


def _shares(truth: Collection[str]) -> dict[str, float]:
    """True label to its share; of a set without shares all have the same."""
    if isinstance(truth, Mapping):
        return {name: share for name, share in truth.items() if share > 0}
    return dict.fromkeys(truth, 1.0)
