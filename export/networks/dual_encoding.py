"""The signature feature: the visual branch of dual encoding, for one frame in closed form and for clips with a GRU.

Source of shapes, names and formulas: Dong et al. 2019 (danieljf24/dual_encoding) and, with attention on the visual
branch, Galanopoulos and Mezaris 2020 (bmezaris/AVS_dual_encoding_attention_network, the ATV model). Three levels of
a clip are joined and mapped into one vector: the mean of its frames, the mean of a bidirectional GRU's states, and
the maxima of convolutions over those states.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from vsa_rt.errors import CheckpointError, UsageError

Attention = Literal["one", "raw", "none"]

#: Lengths below this are taken for this. The published code divides by the length as it is, so that a vector of
#: zeros becomes NaN; here it stays zeros. Every longer vector is divided by its exact length.
_SHORTEST = 1e-12


def _unit(vectors: Tensor) -> Tensor:
    """Each vector of the last axis divided by its L2 norm."""
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    unit: Tensor = vectors / norm.clamp(min=_SHORTEST)
    return unit


class _VisualBranch(nn.Module):
    """The parameters, under the published names, and the steps that both forms share.

    ``attention``, ``normalised`` and ``input_norm`` are the readings of what the papers leave open; see
    ``DualEncoding``.
    """

    def __init__(
        self,
        features: int = 2048,
        *,
        hidden: int = 1024,
        kernels: Sequence[int] = (2, 3, 4, 5),
        filters: int = 512,
        mapping: int = 2048,
        attention: Attention = "one",
        normalised: bool = True,
        input_norm: bool = True,
    ) -> None:
        super().__init__()
        if attention not in get_args(Attention):
            raise UsageError(
                f"attention {attention!r} is unknown; there are {', '.join(get_args(Attention))}"
            )
        self.features, self.hidden, self.filters, self.width = features, hidden, filters, mapping
        self.kernels = tuple(kernels)
        self.attention, self.normalised, self.input_norm = attention, normalised, input_norm
        states = 2 * hidden
        self.rnn = nn.GRU(features, hidden, batch_first=True, bidirectional=True)
        if attention != "none":
            self.atten = nn.Sequential(
                OrderedDict(fc1=nn.Linear(states, states), tanh=nn.Tanh(), fc2=nn.Linear(states, 1))
            )
        self.convs1 = nn.ModuleList(
            nn.Conv2d(1, filters, (k, states), padding=(k - 1, 0)) for k in self.kernels
        )
        joined = states + filters * len(self.kernels) + features
        self.visual_mapping = nn.Sequential(
            OrderedDict(fc1=nn.Linear(joined, mapping), bn_1=nn.BatchNorm1d(mapping))
        )

    def _recurrent(self, name: str, reverse: bool) -> Tensor:
        """One of the GRU's parameters: ``weight_ih``, ``weight_hh``, ``bias_ih`` or ``bias_hh``."""
        return self.rnn.get_parameter(f"{name}_l0{'_reverse' if reverse else ''}")

    def _both(self, name: str) -> Tensor:
        """The same parameter of both directions, joined along the gates."""
        return torch.cat([self._recurrent(name, False), self._recurrent(name, True)])

    def _gated(self, states: Tensor) -> Tensor:
        """States ``(..., 2 * hidden)`` times their attention weight ``(..., 1)``."""
        # A softmax over an axis of size one is one: what the published layer computes before it is dead.
        return states * self.atten(states) if self.attention == "raw" else states

    def _mapped(self, mean: Tensor, local: Tensor, frames: Tensor) -> Tensor:
        """The three levels to the feature. The published order is GRU mean, convolutions, frames."""
        vector: Tensor = self.visual_mapping(torch.cat([mean, local, frames], dim=1))
        return _unit(vector) if self.normalised else vector


class DualEncoding(_VisualBranch):
    """The visual branch for single frames: features ``(N, D)`` to the signature ``(N, mapping)``, without a loop.

    With one frame the GRU starts from zeros and stops after one step: of the recurrent part only the bias is left,
    and ``rnn.weight_hh_*`` steers nothing. The checkpoint must hold it all the same, in its published shape, because
    the same checkpoint serves ``DualEncodingFrames``. A convolution over one padded frame sees that frame under
    every one of its taps once, so its maximum over positions is a maximum over taps.

    For inference: the published dropout is left out.

    Args:
        features: Length ``D`` of a frame's feature. SMAP 2021: ResNet-152, 2048.
        hidden: The GRU's states per direction.
        kernels: Lengths of the convolutions over time.
        filters: Outputs of each convolution.
        mapping: Length of the signature.
        attention: ``one``: as published in 2020, where the weight is a softmax over an axis of size one and hence
            1 for every input; ``atten.*`` is in the checkpoint and steers nothing. ``raw``: without that softmax, an
            unbounded scalar per state, as in the authors' later code for text. ``none``: the variant without
            attention on the visual branch (and the 2019 network), which has no ``atten.*``.
        normalised: Divide the signature by its L2 norm, as published. A vector of zeros stays zeros.
        input_norm: Divide each frame's feature by its L2 norm first (published: ``do_visual_feas_norm``). A
            vector of zeros stays zeros.

    Attributes:
        width: Length of the signature.

    Raises:
        UsageError: ``attention`` is none of the three.
    """

    def forward(self, frame: Tensor) -> Tensor:
        """The signature ``(N, mapping)`` of frame features ``(N, D)``, both of one floating-point type."""
        frame = _unit(frame) if self.input_norm else frame
        states = self._gated(self._states(frame))
        return self._mapped(states, self._local(states), frame)

    def _states(self, frame: Tensor) -> Tensor:
        """One step of both directions from zeros: ``h = (1 - z) n`` with PyTorch's gate order r, z, n."""
        gates = functional.linear(frame, self._both("weight_ih"), self._both("bias_ih"))
        gate_r, gate_z, gate_n = gates.reshape(-1, 2, 3, self.hidden).unbind(2)
        bias_r, bias_z, bias_n = self._both("bias_hh").reshape(2, 3, self.hidden).unbind(1)
        reset = torch.sigmoid(gate_r + bias_r)
        update = torch.sigmoid(gate_z + bias_z)
        new = torch.tanh(gate_n + reset * bias_n)
        return ((1 - update) * new).reshape(-1, 2 * self.hidden)

    def _local(self, states: Tensor) -> Tensor:
        """Every tap of every convolution as one matrix product, then the maximum over each filter's taps."""
        taps = [self.convs1.get_parameter(f"{i}.weight").flatten(1) for i in range(len(self.kernels))]
        rows = torch.cat([tap.reshape(-1, 2 * self.hidden) for tap in taps])
        parts = torch.split(functional.linear(states, rows), [self.filters * k for k in self.kernels], dim=1)
        tops = [p.reshape(-1, self.filters, k).amax(2) for p, k in zip(parts, self.kernels, strict=True)]
        biases: list[Tensor] = [self.convs1.get_parameter(f"{i}.bias") for i in range(len(self.kernels))]
        return functional.relu(torch.cat(tops, dim=1) + torch.cat(biases))


class DualEncodingFrames(_VisualBranch):
    """The visual branch for clips: features ``(N, T, D)`` to the signature ``(N, mapping)``.

    The parameters, options and checkpoint are those of ``DualEncoding``; ``T`` is fixed in an exported graph, the
    batch is not. A shorter clip is padded with rows of zeros at its end, which steer nothing: its signature is the
    one that the published code gives the clip in a batch of its own. (In a batch of mixed lengths the published
    code pads to the longest, lets the reverse GRU run through that padding, and takes the maximum over positions
    that see only padding, so that there a clip's signature depends on its neighbours.)
    """

    def forward(self, frames: Tensor, count: Tensor | None = None) -> Tensor:
        """The signature of each clip.

        Args:
            frames: ``(N, T, D)``. Rows from ``count`` on are ignored, whatever they hold.
            count: Frames in each clip ``(N,)``, int64, from 1 to T. Without it, all up to the last row that is not
                zeros; a clip of zeros alone is one frame of zeros.

        Returns:
            ``(N, mapping)``.
        """
        length = frames.shape[1]
        time = torch.arange(length, device=frames.device)
        if count is None:
            count = torch.where(frames.abs().amax(2) != 0, time + 1, 0).amax(1)
        count = count.clamp(1, length)[:, None]
        there = time < count
        frames = torch.where(there[:, :, None], frames, 0)
        frames = _unit(frames) if self.input_norm else frames
        number = count.to(frames.dtype)
        states = self._gated(self._states(frames, torch.where(there, count - 1 - time, time)))
        states = torch.where(there[:, :, None], states, 0)
        return self._mapped(states.sum(1) / number, self._local(states, count), frames.sum(1) / number)

    def _direction(self, frames: Tensor, reverse: bool) -> Tensor:
        """The GRU's states ``(N, T, hidden)`` of one direction's weights, read from the first frame on."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        start = frames.new_zeros(1, frames.shape[0], self.hidden)
        weights = [self._recurrent(name, reverse) for name in names]
        # Arguments after the weights: biases, layers, dropout, training, bidirectional, batch first.
        return torch.gru(frames, start, weights, True, 1, 0.0, False, False, True)[0]

    def _states(self, frames: Tensor, turned: Tensor) -> Tensor:
        """Both directions' states ``(N, T, 2 * hidden)``; ``turned`` reverses each clip inside its own length."""
        forward = self._direction(frames, False)
        there = turned[:, :, None].expand(-1, -1, self.features)
        back = turned[:, :, None].expand(-1, -1, self.hidden)
        backward = self._direction(frames.gather(1, there), True).gather(1, back)
        return torch.cat([forward, backward], dim=2)

    def _local(self, states: Tensor, count: Tensor) -> Tensor:
        """Each convolution's maximum over the ``count + k - 1`` positions that see a frame of the clip."""
        length = states.shape[1]
        tops = []
        for index, k in enumerate(self.kernels):
            padded = functional.pad(states, (0, 0, k - 1, k - 1))
            positions = length + k - 1
            # As matrix product: a convolution whose kernel is as wide as its input suits few engines.
            windows = torch.cat([padded[:, tap : tap + positions] for tap in range(k)], dim=2)
            weight = self.convs1.get_parameter(f"{index}.weight").flatten(1)
            found = functional.relu(
                functional.linear(windows, weight, self.convs1.get_parameter(f"{index}.bias"))
            )
            seen = torch.arange(positions, device=states.device) < count + (k - 1)
            # Zero is the least that ReLU gives, so a position outside the clip never wins.
            tops.append(torch.where(seen[:, :, None], found, 0).amax(1))
        return torch.cat(tops, dim=1)


def tensors_of_dual_encoding(value: object, where: str) -> dict[str, Tensor]:
    """Pick the visual branch's weights out of a checkpoint.

    Args:
        value: What the file holds: a dictionary whose key ``model`` is the published list of two dictionaries,
            visual and text, or the visual dictionary itself.
        where: What to call the checkpoint in messages.

    Returns:
        Key to tensor, as in the file.

    Raises:
        CheckpointError: Another structure, or something other than tensors.
    """
    place = where
    if isinstance(value, Mapping) and "model" in value:
        pair, place = value["model"], f"{where}: key `model`"
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            size = f" of {len(pair)}" if isinstance(pair, list | tuple) else ""
            raise CheckpointError(
                f"{place}: is {type(pair).__name__}{size}, expected the published list of two dictionaries, visual "
                "and text; save the visual dictionary alone if you have no other"
            )
        value, place = pair[0], f"{place}, entry 0"
    if not isinstance(value, Mapping) or not value:
        kind = "an empty dictionary" if isinstance(value, Mapping) else type(value).__name__
        raise CheckpointError(f"{place}: is {kind}, expected a dictionary of the visual branch's tensors")
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{place}: entry {key!r:.100} is {type(tensor).__name__}, expected names of tensors"
            )
    return dict(value)


def keys_from_dual_encoding(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the published visual branch's keys to those of the two networks here.

    They are the same, but for the prefix that training on several GPUs leaves.

    Returns:
        The same tensors. A key that is not known keeps its name, so that loading reports it.
    """
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}
