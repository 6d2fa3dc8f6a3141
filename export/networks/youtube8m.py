"""The YouTube-8M feature behind Inception: whitening PCA and a shallow convolutional classifier.

Sources: google/youtube-8m, ``feature_extractor/`` (PCA, storage) and ``utils.py`` (reading); the classifier is
that of bmezaris/subclass_deep_neural_networks, ``model/subclasscnn.py``, whose wording SMAP 2021 repeats.
"""

from __future__ import annotations

import math
import re
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from vsa_rt.errors import CheckpointError, UsageError
from vsa_rt.export.checkpoint import State

Axis = Literal["features", "time"]

#: Added to every eigenvalue before the root (``feature_extractor.py``).
_EIGENVALUE_FLOOR = 1e-4
#: The dataset stores eight bits over this range on both sides of zero (``extract_tfrecords_main.py``).
_RANGE = 2.0
#: tf.nn.l2_normalize divides by the root of max(sum of squares, 1e-12).
_SMALLEST_NORM = 1e-6


def _fold(module: nn.Module, _: object = None) -> None:
    """Make the whitening matrix from the module's eigenvalues and eigenvectors."""
    with torch.no_grad():
        vectors, values = module.get_parameter("eigenvecs"), module.get_parameter("eigenvals")
        folded = vectors.double() / (values.double() + _EIGENVALUE_FLOOR).sqrt()
        module.register_buffer("whitening", folded.to(vectors.dtype), persistent=False)


def store_in_eight_bits(values: Tensor) -> Tensor:
    """What is left of values after the dataset's storage: 256 levels over ±2.

    Stored is round((x + 2) · 255 / 4) of x clipped to ±2 (``extract_tfrecords_main.py``); the script is
    Python 2, whose ``round`` takes halves away from zero, so upwards here, where torch and ONNX round to even.
    Read is q · 4 / 255 + 4 / 512 - 2 (``Dequantize`` in ``utils.py``), which adds half a level to what was
    rounded already and so reads 0.0078 too high. Both are kept: models were trained on what this gives.
    A value that was stored and read once stays itself.

    Args:
        values: Any shape.

    Returns:
        The same shape, between -1.9921875 and 2.0078125.
    """
    steps = (values.clamp(-_RANGE, _RANGE) + _RANGE) * (255 / (2 * _RANGE))
    whole = torch.floor(steps)
    level = whole + (steps - whole >= 0.5).to(values.dtype)
    return level * (2 * _RANGE / 255) + (2 * _RANGE / 512 - _RANGE)


class YouTube8MPca(nn.Module):
    """Whitening PCA of YouTube-8M: (f - mean) · eigenvecs / sqrt(eigenvals + 1e-4).

    The division is folded into the matrix once, in double precision, when weights are loaded: one MatMul
    remains, and its rounding is below that of dividing afterwards. The mean is subtracted before the
    product, not folded into a bias behind it: f and mean are of one sign and size, so that the difference is
    nearly exact, whereas two large products would cancel.

    Args:
        components: Length of the output.
        features: Length of the input.
        clip: Bound of the output on both sides; 0 for none. The dataset's range is 2.
        quantise: Whether the output takes the values that the dataset's storage leaves, see
            :func:`store_in_eight_bits`.

    Attributes:
        width: Length of the output.
        mean: ``(features,)``, subtracted.
        eigenvals: ``(components,)``, variances.
        eigenvecs: ``(features, components)``, one component per column.
        whitening: ``(features, components)``, made of the two before; not part of a checkpoint.

    Raises:
        UsageError: ``clip`` is negative or a size is below 1.
    """

    whitening: Tensor

    def __init__(
        self, components: int = 1024, features: int = 2048, clip: float = 2.0, quantise: bool = False
    ) -> None:
        super().__init__()
        if components < 1 or features < 1 or not 0 <= clip < math.inf:
            raise UsageError(
                f"PCA from {features} to {components}, clip {clip}: expected sizes of 1 or more, clip 0 or more"
            )
        self.width = components
        self.clip = clip
        self.quantise = quantise
        # As parameters, so that they count as weights; nothing here is trained by gradient.
        self.mean = nn.Parameter(torch.zeros(features), requires_grad=False)
        self.eigenvals = nn.Parameter(torch.ones(components), requires_grad=False)
        self.eigenvecs = nn.Parameter(torch.empty(features, components), requires_grad=False)
        nn.init.normal_(self.eigenvecs, std=features**-0.5)  # columns of length 1 or so, as eigenvectors have
        _fold(self)
        self.register_load_state_dict_post_hook(_fold)  # type: ignore[no-untyped-call]

    def forward(self, features: Tensor) -> Tensor:
        """Whitened features.

        Args:
            features: ``(N, 2048)``, what Inception's ``pool_3`` gives.

        Returns:
            ``(N, 1024)``.
        """
        whitened = (features - self.mean) @ self.whitening
        if self.clip:
            whitened = whitened.clamp(-self.clip, self.clip)
        return store_in_eight_bits(whitened) if self.quantise else whitened


def keys_from_yt8m(state: State, components: int = 1024) -> State:
    """Bring the arrays of ``yt8m_pca.tgz`` into :class:`YouTube8MPca`'s shapes.

    The published extractor reads ``mean.npy`` as ``[:, 0]``, ``eigenvals.npy`` as ``[:1024, 0]`` and
    ``eigenvecs.npy`` as ``.T[:, :1024]``: columns, and one component per row, 1024 rows or more. A square
    matrix is read in that orientation; one with as many rows as the mean has entries is taken to be transposed
    already. Of more components the first are kept, which are the leading ones.

    Args:
        state: ``mean``, ``eigenvals`` and ``eigenvecs``.
        components: How many to keep.

    Returns:
        The three in the module's shapes. An array of another shape stays as it is, and an unknown key keeps its
        name, so that loading reports them.

    Raises:
        CheckpointError: An eigenvalue has no root: it is not the variance of anything.
    """

    def column(array: Tensor) -> Tensor:
        return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array

    shaped = dict(state)
    if "mean" in state:
        shaped["mean"] = column(state["mean"])
    if "eigenvals" in state:
        values = column(state["eigenvals"])
        shaped["eigenvals"] = values = values[:components] if values.ndim == 1 else values
        lowest = float(values.min()) if values.numel() else 0.0
        if lowest + _EIGENVALUE_FLOOR <= 0:
            raise CheckpointError(f"eigenvals: the lowest is {lowest}, expected variances of 0 or more")
    if "eigenvecs" in state and state["eigenvecs"].ndim == 2:
        vectors = state["eigenvecs"]
        features = shaped["mean"].numel() if "mean" in shaped else vectors.shape[1]
        if vectors.shape[1] == features:
            shaped["eigenvecs"] = vectors.T[:, :components].contiguous()
        elif vectors.shape[0] == features:
            shaped["eigenvecs"] = vectors[:, :components].contiguous()
    return shaped


class ShallowCnn(nn.Module):
    """The shallow network that turns a YouTube-8M feature into 3862 label scores.

    ``axis="features"``, the published one: the vector is a sequence of ``features`` steps with one channel → convolution with zero padding, ReLU → max pool, floor → flattened position by position (index =
    position · filters + filter) → dense, sigmoid. ``axis="time"``: the vector is one frame with ``features``
    channels → convolution over frames, ReLU → maximum over frames → dense, sigmoid; of one
    zero-padded frame that is the kernel's centre and nothing else. Which of the two SMAP 2021 means, with which
    input, is not stated; 1024, 3, 64, 2 and no audio are the defaults. Dropout 0.3 and the noise on the input
    act in training only and are left out.

    The operations are two-dimensional over a height of 1, because not every engine pools one-dimensional maps.

    Args:
        features: What the convolution sees: 1024 behind the PCA, 2048 without it, 1152 with audio.
        audio: How many of ``features`` are zeros that are appended to the input, where the published network had
            128 of audio.
        kernel: Length of the convolution, odd.
        filters: Channels of the convolution.
        pool: Length and stride of the max pool; unused over time.
        classes: Outputs: 3862 labels of the dataset; 3962 for the published script's with its 100 subclasses.
        normalise: Whether the input is divided by its L2 norm (at least 1e-6, as TensorFlow does); zeros stay
            zeros. Appended zeros change no norm.
        axis: What the convolution runs along.

    Attributes:
        width: Length of the output.

    Raises:
        UsageError: A size that makes no network, or an axis that is not known.
    """

    def __init__(
        self,
        features: int = 1024,
        *,
        audio: int = 0,
        kernel: int = 3,
        filters: int = 64,
        pool: int = 2,
        classes: int = 3862,
        normalise: bool = True,
        axis: Axis = "features",
    ) -> None:
        super().__init__()
        if axis not in get_args(Axis):
            raise UsageError(f"axis {axis!r} is not known; there are {', '.join(get_args(Axis))}")
        if min(features - audio, kernel, filters, pool, classes) < 1 or audio < 0:
            raise UsageError(
                f"shallow CNN with features {features}, audio {audio}, kernel {kernel}, filters {filters}, "
                f"pool {pool}, classes {classes}: expected 0 or more of audio, 1 or more of the others, and features "
                "beside those of audio"
            )
        if kernel % 2 == 0:
            raise UsageError(f"shallow CNN with kernel {kernel}: expected an odd number, which has a centre")
        if axis == "features" and pool > features:
            raise UsageError(f"shallow CNN with pool {pool}: expected at most the {features} features")
        over_time = axis == "time"
        self.width = classes
        self.axis = axis
        self.audio = audio
        self.pool = pool
        self.normalise = normalise
        self.conv = nn.Conv2d(features if over_time else 1, filters, (1, kernel), padding=(0, kernel // 2))
        self.dense = nn.Linear(filters if over_time else features // pool * filters, classes)

    def forward(self, vector: Tensor) -> Tensor:
        """Scores of a feature.

        Args:
            vector: ``(N, features - audio)``.

        Returns:
            ``(N, classes)``, each in (0, 1).
        """
        if self.normalise:
            norm = (vector * vector).sum(1, keepdim=True).sqrt()
            vector = vector / norm.clamp_min(_SMALLEST_NORM)
        if self.audio:
            vector = functional.pad(vector, (0, self.audio))
        if self.axis == "time":
            maps = functional.relu(self.conv(vector[:, :, None, None]))  # of one frame, hence the maximum too
        else:
            maps = functional.relu(self.conv(vector[:, None, None, :]))
            maps = functional.max_pool2d(maps, (1, self.pool))
        return torch.sigmoid(self.dense(maps.flatten(2).transpose(1, 2).flatten(1)))


_KERAS = re.compile(r"(?:.*/)?(conv1d|dense)(?:_\d+)?/(kernel|bias)(?::0)?")


def keys_from_keras(state: State) -> State:
    """Rename a Keras checkpoint's arrays to :class:`ShallowCnn`'s and turn them round.

    Args:
        state: ``conv1d/kernel:0`` ``(kernel, channels, filters)``, ``conv1d/bias:0``, ``dense/kernel:0``
            ``(inputs, classes)`` and ``dense/bias:0``: Keras's own names and layouts. Numbered layers
            (``conv1d_1``), scopes before them and a missing ``:0`` are the same names.

    Returns:
        ``conv.weight`` ``(filters, channels, 1, kernel)``, ``conv.bias``, ``dense.weight`` ``(classes, inputs)``
        and ``dense.bias``. An unknown key keeps its name, and so does a second layer of one kind, so that
        loading reports them.
    """
    renamed: State = {}
    for key, array in state.items():
        match = _KERAS.fullmatch(key)
        layer, kind = match.groups() if match else ("", "")
        name = f"{layer.removesuffix('1d')}.{'weight' if kind == 'kernel' else 'bias'}"
        if not match or name in renamed:
            renamed[key] = array
        elif layer == "conv1d" and kind == "kernel" and array.ndim == 3:
            renamed[name] = array.permute(2, 1, 0).unsqueeze(2).contiguous()
        elif layer == "dense" and kind == "kernel" and array.ndim == 2:
            renamed[name] = array.T.contiguous()
        else:
            renamed[name] = array
    return renamed
