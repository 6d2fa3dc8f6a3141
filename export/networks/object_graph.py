"""The object graph network: feature vectors of an image's objects to one vector for the image.

Source: ObjectGraphs (Gkalelis et al., CVPR Workshops 2021), as published in bmezaris/ObjectGraphs, without the
LSTM and the classifier that the video model puts on top. SMAP 2021 takes its output as feature G.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn import functional

from vsa_rt.export.checkpoint import State

#: Key prefixes of the published model that this network leaves out on purpose: the LSTM and the classifier.
IGNORED = ("cls.",)

#: The published normalisation divides a row by the larger of its sum and 1e-12; this is the root of that floor.
_FLOOR_ROOT = 1e-6
#: Stands in for the sum of a row that is all zero. Representable as a normal number in half precision.
_TINY = 2.0**-14

#: What the published full model calls the graph's tensors.
_PREFIXED = re.compile(r"graph\.((?:wq|wk)\.(?:weight|bias)|gcn\.\d+\.(?:weight|norm\.(?:weight|bias)))")


def keys_from_object_graphs(state: State) -> State:
    """Take the ``graph.`` prefix off the keys of the published full model.

    Both published forms are meant: the full model's (``graph.wq.weight`` beside ``cls.fc1.weight``) and the bare
    graph's (``wq.weight``), whose keys are this module's own.

    Args:
        state: As published by bmezaris/ObjectGraphs.

    Returns:
        The same tensors under the keys of :class:`ObjectGraph`. A key that is not known, or whose short form is
        there as well, keeps its name, so that loading reports it; so do the keys under :data:`IGNORED`.
    """
    renamed: State = {}
    for key, tensor in state.items():
        match = _PREFIXED.fullmatch(key)
        renamed[match[1] if match and match[1] not in state else key] = tensor
    return renamed


def present_rows(objects: Tensor) -> Tensor:
    """Which objects are there: a row of zeros is an absent one.

    Args:
        objects: ``(N, K, D)``; NaN is not handled.

    Returns:
        1 for present and 0 for absent, ``(N, K)`` in the objects' dtype.
    """
    return (objects.abs().amax(-1) > 0).to(objects.dtype)


def _positive(scale: Tensor) -> Tensor:
    """The same scale, and 1 where it is zero: all that it would divide there is zero too."""
    return torch.where(scale > 0, scale, 1.0)


def adjacency_from_scores(scores: Tensor, units: tuple[Tensor, ...] = ()) -> Tensor:
    """Square the scores and divide each row by its sum, at least 1e-12; safe in half precision.

    Squares leave half precision's range from 256 on. Any positive ``m`` per row cancels exactly:
    ``D² / max(Σ D², 1e-12) = (D/m)² / max(Σ (D/m)², (1e-6/m)²)``. With ``m = max |D|`` every square lies in
    [0, 1] and the sum in [1, K].

    Args:
        scores: ``(N, K, K)``, rows already divided by the units.
        units: Positive numbers that broadcast against ``(N, K, 1)``: what the rows were divided by. They steer
            only where the floor of 1e-12 lies.

    Returns:
        ``(N, K, K)``; a row of zeros stays one.
    """
    largest = _positive(scores.abs().amax(-1, keepdim=True))
    scaled = scores / largest
    squares = scaled * scaled
    floor = _FLOOR_ROOT / largest
    for unit in units:  # one by one: their product may leave the range
        floor = floor / unit
    sums = squares.sum(-1, keepdim=True)
    return squares / torch.maximum(sums, floor * floor).clamp(min=_TINY)


class GraphLayer(nn.Module):
    """One graph convolution: ``ReLU(LayerNorm(A · (x · W)))``, without bias, residual or dropout.

    Args:
        features: Width D of the nodes. ``weight`` is stored ``[in, out]`` and applied from the right.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features, features))
        self.norm = nn.LayerNorm(features, eps=1e-5)
        nn.init.xavier_uniform_(self.weight)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        """Nodes ``(N, K, D)`` through an adjacency ``(N, K, K)``."""
        normed: Tensor = self.norm(adjacency @ (nodes @ self.weight))
        return functional.relu(normed)


class ObjectGraph(nn.Module):
    """Graph network over an image's objects: ``q·kᵀ`` squared and normalised per row, layers, mean over nodes.

    Defaults are those of bmezaris/ObjectGraphs: ResNet-152 features, two layers that share one adjacency.

    Absent objects are left out exactly: K rows of which n are present give what the published formula gives on
    those n rows alone. Their rows may hold anything, NaN and infinity included: they are replaced, not multiplied.

    Half precision holds every intermediate of the adjacency: queries are divided by each row's largest magnitude
    and keys by the image's, so ``|q·kᵀ| ≤ D``; both cancel in the row's normalisation.

    Args:
        features: Width D of an object's features and of the result.
        layers: Number of graph convolutions.

    Attributes:
        width: Length of the result.
    """

    def __init__(self, features: int = 2048, layers: int = 2) -> None:
        super().__init__()
        self.width = features
        self.wq = nn.Linear(features, features)
        self.wk = nn.Linear(features, features)
        self.gcn = nn.ModuleList(GraphLayer(features) for _ in range(layers))

    def forward(self, objects: Tensor, present: Tensor) -> Tensor:
        """One vector per image.

        Args:
            objects: Features of the objects, float32 ``(N, K, D)``.
            present: 1 where a row is an object and 0 where it is padding, float32 ``(N, K)``.

        Returns:
            ``(N, D)``, not negative; zeros for an image without objects.
        """
        mask, nodes = self._masked(objects, present)
        adjacency = self._adjacency(nodes, mask)
        for layer in self.gcn:
            nodes = layer(nodes, adjacency)
        return (nodes * mask).sum(1) / mask.sum(1).clamp(min=1.0)

    def adjacency(self, objects: Tensor, present: Tensor) -> Tensor:
        """The graph's edges.

        Args:
            objects: As for :meth:`forward`.
            present: As for :meth:`forward`.

        Returns:
            ``(N, K, K)``; a present object's row sums to 1, an absent one's row and column are zero.
        """
        mask, nodes = self._masked(objects, present)
        return self._adjacency(nodes, mask)

    def importance(self, objects: Tensor, present: Tensor) -> Tensor:
        """How much each object weighs: its weighted in-degree (WiD of ObjectGraphs), the adjacency's column sum.

        Args:
            objects: As for :meth:`forward`.
            present: As for :meth:`forward`.

        Returns:
            ``(N, K)``, not negative, 0 for absent objects; the sum over an image's objects is their number.
        """
        return self.adjacency(objects, present).sum(1)

    def _masked(self, objects: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """The mask ``(N, K, 1)`` of 0 and 1, and the objects with zeros in absent rows."""
        there = (present > 0).unsqueeze(-1)
        return there.to(objects.dtype), torch.where(there, objects, 0.0)

    def _adjacency(self, nodes: Tensor, mask: Tensor) -> Tensor:
        queries: Tensor = self.wq(nodes)
        keys: Tensor = self.wk(nodes)
        largest_query = _positive(queries.abs().amax(-1, keepdim=True))
        largest_key = _positive(keys.abs().amax((1, 2), keepdim=True))
        scores = (queries / largest_query) @ (keys / largest_key).transpose(1, 2)
        return adjacency_from_scores(scores * (mask * mask.transpose(1, 2)), (largest_query, largest_key))
