"""Operators computed on the CPU with torch and numpy, for the executor that rounds to half.

Kernels take what the graph stores or, where the executor widens it, float32. The reference evaluator's own ones
loop in Python, or are wrong (LRN of more channels than images).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference.op_run import OpRun
from torch.nn import functional

Array = NDArray[Any]

HALF, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
#: Types that are computed in float32 and rounded when stored.
NARROW = (HALF, BFLOAT16)
FLOATS = {
    TensorProto.FLOAT16: HALF,
    TensorProto.BFLOAT16: BFLOAT16,
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.DOUBLE: np.dtype(np.float64),
}


def writable(values: Array) -> Array:
    """The same array, or a copy where torch would not take it: it wants contiguous ones that may be written."""
    return np.require(values, requirements=["C", "W"])


def _torch(values: Array) -> torch.Tensor:
    return torch.from_numpy(writable(values))


def rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    """Values in a float type, rounded to nearest even; what is too large becomes infinite."""
    values = np.asarray(values)
    if values.dtype == dtype:
        return values
    if dtype == HALF and values.dtype == np.float32:
        # torch's conversion uses vector instructions, numpy's does not.
        return _torch(values).half().numpy()
    return values.astype(dtype)


def widened(values: Array) -> Array:
    """Halves and bfloat16 as float32, which holds each of them exactly; others as they are."""
    if values.dtype == HALF:
        return _torch(values).float().numpy()
    return values.astype(np.float32) if values.dtype == BFLOAT16 else values


def _padding(
    mode: str | None,
    pads: Sequence[int] | None,
    sizes: Sequence[int],
    spans: Sequence[int],
    steps: Sequence[int],
) -> list[int]:
    """Padding as ``torch.nn.functional.pad`` takes it: last axis first, before and behind.

    Args:
        mode: The attribute ``auto_pad``.
        pads: The attribute ``pads``: every axis before, then every axis behind.
        sizes: Of the input's spatial axes.
        spans: How many elements a kernel reaches over, dilation included.
        steps: Strides.
    """
    rank = len(sizes)
    before, behind = [0] * rank, [0] * rank
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        for axis, (size, span, step) in enumerate(zip(sizes, spans, steps, strict=True)):
            total = max(0, (math.ceil(size / step) - 1) * step + span - size)
            small, large = total // 2, total - total // 2
            before[axis], behind[axis] = (small, large) if mode == "SAME_UPPER" else (large, small)
    elif mode != "VALID" and pads:
        before, behind = list(pads[:rank]), list(pads[rank:])
    return [n for pair in zip(reversed(before), reversed(behind), strict=True) for n in pair]


def _spans(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    return [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]


def _conv(self: Any, x: Array, w: Array, b: Array | None = None, **given: Any) -> tuple[Array]:
    rank = x.ndim - 2
    ones = [1] * rank
    steps, dilations = given.get("strides") or ones, given.get("dilations") or ones
    pads = _padding(
        given.get("auto_pad"), given.get("pads"), x.shape[2:], _spans(w.shape[2:], dilations), steps
    )
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    source, weights = functional.pad(_torch(x), pads), _torch(w)
    bias = None if b is None else _torch(b)
    found = run(source, weights, bias, steps, 0, dilations, given.get("group") or 1)
    return (found.numpy(),)


def _conv_transpose(self: Any, x: Array, w: Array, b: Array | None = None, **given: Any) -> tuple[Array]:
    rank = x.ndim - 2
    ones = [1] * rank
    pads = given.get("pads") or [0] * (2 * rank)
    run = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[rank - 1]
    found = run(
        _torch(x),
        _torch(w),
        None if b is None else _torch(b),
        given.get("strides") or ones,
        pads[:rank],
        given.get("output_padding") or [0] * rank,
        given.get("group") or 1,
        given.get("dilations") or ones,
    )
    return (found.numpy(),)


def _max_pool(self: Any, x: Array, **given: Any) -> tuple[Array]:
    kernel, ones = given["kernel_shape"], [1] * (x.ndim - 2)
    steps, dilations = given.get("strides") or ones, given.get("dilations") or ones
    pads = _padding(given.get("auto_pad"), given.get("pads"), x.shape[2:], _spans(kernel, dilations), steps)
    run: Any = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[x.ndim - 3]
    # Integers of quantised graphs: float32 holds all of theirs.
    source = _torch(x if x.dtype.kind == "f" else x.astype(np.float32))
    found = run(functional.pad(source, pads, value=-math.inf), kernel, steps, 0, dilations)
    return (found.numpy().astype(x.dtype, copy=False),)


def _average_pool(self: Any, x: Array, **given: Any) -> tuple[Array]:
    kernel = given["kernel_shape"]
    steps = given.get("strides") or [1] * len(kernel)
    pads = _padding(given.get("auto_pad"), given.get("pads"), x.shape[2:], kernel, steps)
    run: Any = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(kernel) - 1]
    source = _torch(x)
    found = run(functional.pad(source, pads), kernel, steps)
    if any(pads) and not given.get("count_include_pad"):
        # The share of each window that lies inside.
        found = found / run(functional.pad(torch.ones_like(source[:1, :1]), pads), kernel, steps)
    return (found.numpy(),)


def _grid_sample(self: Any, x: Array, grid: Array, **given: Any) -> tuple[Array]:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(given["mode"], given["mode"])
    corners, padding = bool(given.get("align_corners")), given.get("padding_mode") or "zeros"
    found = functional.grid_sample(
        _torch(x), _torch(grid.astype(x.dtype, copy=False)), mode, padding, corners
    )
    return (found.numpy(),)


def _stored(self: Any, values: Array, dtype: np.dtype[Any]) -> Array:
    """An intermediate result rounded to the type it is stored in, as float32; noted where it is not finite."""
    found = widened(rounded(values, dtype))
    if not np.isfinite(found).all():
        self.notes.append(self.onnx_node.op_type)
    return found


def _over(axes: Any, rank: int) -> tuple[int, ...]:
    return tuple(range(rank)) if axes is None or len(axes) == 0 else tuple(int(a) for a in axes)


def _square_sum(self: Any, data: Array, axes: Any = None, **given: Any) -> tuple[Array]:
    """The sum of squares, the squares and their sum stored in the type of ``data``.

    So do the operator's own function body (ONNX, ReduceSumSquare-18) and TensorRT's importer, which writes a
    product and a reduction.
    """
    total = _stored(self, np.square(widened(data)), data.dtype)
    if not _is_idle(axes, given):
        total = total.sum(axis=_over(axes, data.ndim), keepdims=bool(given.get("keepdims", 1)))
    return (rounded(np.asarray(total), data.dtype),)


def _is_idle(axes: Any, given: dict[str, Any]) -> bool:
    """Whether a reduction without axes reduces nothing."""
    return bool(given.get("noop_with_empty_axes")) and (axes is None or len(axes) == 0)


def _reduce_l2(self: Any, data: Array, axes: Any = None, **given: Any) -> tuple[Array]:
    """The root of the sum of squares, which is stored before the root is taken (ONNX, ReduceL2-18)."""
    (total,) = _square_sum(self, data, axes, **given)
    return (rounded(np.sqrt(_stored(self, total, data.dtype)), data.dtype),)


def _lp_normalisation(self: Any, x: Array, axis: int = -1, p: int = 2) -> tuple[Array]:
    """``x`` over its norm, which is made of stored powers and a stored sum; 0 where the norm is 0."""
    powers = _stored(self, np.abs(widened(x)) ** p, x.dtype)
    total = _stored(self, powers.sum(axis=axis, keepdims=True), x.dtype)
    norm = _stored(self, total ** (1.0 / p), x.dtype)
    return (rounded(np.where(norm == 0, np.zeros_like(norm), widened(x) / norm), x.dtype),)


def _lrn(
    self: Any, x: Array, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int = 1
) -> tuple[Array]:
    """Local response normalisation over channels (ONNX, LRN-13), its squares and their sum stored."""
    squares = _stored(self, np.square(widened(x)), x.dtype)
    total = np.zeros_like(squares)
    channels = x.shape[1]
    for channel in range(channels):
        first, last = channel - (size - 1) // 2, channel + math.ceil((size - 1) / 2)
        total[:, channel] = squares[:, max(0, first) : min(channels, last + 1)].sum(axis=1)
    found = widened(x) / (bias + alpha / size * _stored(self, total, x.dtype)) ** beta
    return (rounded(found, x.dtype),)


def _log_sum_exp(self: Any, data: Array, axes: Any = None, **given: Any) -> tuple[Array]:
    """The logarithm of a stored sum of stored exponentials, as TensorRT's importer writes it."""
    total = _stored(self, np.exp(widened(data)), data.dtype)
    if not _is_idle(axes, given):
        total = total.sum(axis=_over(axes, data.ndim), keepdims=bool(given.get("keepdims", 1)))
    return (rounded(np.log(_stored(self, np.asarray(total), data.dtype)), data.dtype),)


#: Operators whose steps are stored in the tensor's own type: they are given halves, not float32.
STEPWISE: dict[str, Callable[..., tuple[Array]]] = {
    "LRN": _lrn,
    "LpNormalization": _lp_normalisation,
    "ReduceL2": _reduce_l2,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceSumSquare": _square_sum,
}
_FAST: dict[str, Callable[..., tuple[Array]]] = {
    "AveragePool": _average_pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GridSample": _grid_sample,
    "MaxPool": _max_pool,
}
#: What only moves values about or sets their type: exact on whatever type it is given.
AS_GIVEN = frozenset(
    {
        "Cast", "CastLike", "Compress", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Expand", "Flatten",
        "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "Shape", "Size", "Slice", "SpaceToDepth",
        "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip


def kernels_for(node: onnx.NodeProto, notes: list[str]) -> list[type[OpRun]]:
    """Kernels for a node and for graphs inside it; the reference evaluator has all others.

    Args:
        node: What will be run.
        notes: Takes the name of an operator whenever one of its intermediate results is not finite.
    """
    # The evaluator finds an operator by its class's name.
    kernels = {
        name: type(name, (OpRun,), {"_run": kernel, "notes": notes})
        for name, kernel in (STEPWISE | _FAST).items()
    }
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    rare = {
        "MaxPool": given.get("ceil_mode") or given.get("storage_order") or len(node.output) > 1,
        "AveragePool": given.get("ceil_mode") or any(d != 1 for d in given.get("dilations", [])),
        "ConvTranspose": given.get("output_shape")
        or given.get("auto_pad", b"NOTSET") != b"NOTSET"
        or _lopsided(given.get("pads", [])),
    }
    if rare.get(node.op_type):
        del kernels[node.op_type]
    return list(kernels.values())


def _lopsided(pads: Sequence[int]) -> bool:
    half = len(pads) // 2
    return list(pads[:half]) != list(pads[half:])
