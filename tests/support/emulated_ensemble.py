"""A small ensemble as engines of the emulated GPU: two backbones and a head, whole and in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from emulated_cuda import EmulatedDevice
from emulated_engine import Compute, EmulatedEngine
from numpy.typing import NDArray

from vsa_rt.contracts import TensorSpec
from vsa_rt.engines.cuda.seam import Form, Port, Stage

#: What the graph takes: images, and a ready tensor.
INPUTS = (
    TensorSpec("image", "uint8", (None, 3, 4, 3)),
    TensorSpec("objects", "float32", (None, 2, 5)),
)
#: What it gives: two taps, and the head's scores.
OUTPUTS = (
    TensorSpec("a", "float32", (None, 6)),
    TensorSpec("b", "float32", (None, 9)),
    TensorSpec("scores", "float32", (None, 2)),
)
#: Between a backbone and the head, and no output of the graph.
_HIDDEN = TensorSpec("hidden", "float16", (None, 3))

_SPECS = {s.name: s for s in (*INPUTS, *OUTPUTS, _HIDDEN)}
#: Small integers: sums of them are exact in whatever order.
_A = np.random.default_rng(1).integers(-3, 4, (36, 6)).astype(np.float32)
_B = np.random.default_rng(2).integers(-3, 4, (10, 9)).astype(np.float32)

Tensors = dict[str, NDArray[Any]]


def backbone_a(given: Tensors) -> Tensors:
    """The tap ``a`` of images, and what the head takes beside it."""
    rows = given["image"].reshape(len(given["image"]), -1).astype(np.float32)
    return {"a": rows @ _A, "hidden": rows[:, :3].astype(np.float16)}


def backbone_b(given: Tensors) -> Tensors:
    """The tap ``b`` of ready tensors, and of ``a`` where it reads that."""
    rows = given["objects"].reshape(len(given["objects"]), -1)
    return {"b": rows @ _B + (given["a"][:, :1] if "a" in given else 0)}


def head(given: Tensors) -> Tensors:
    """Scores of both taps."""
    return {"scores": given["a"][:, :2] - 2 * given["b"][:, :2] + given["hidden"][:, :2].astype(np.float32)}


def whole(given: Tensors, *, reads: bool = False) -> Tensors:
    """The graph; what its outputs must be."""
    found = {**given, **backbone_a(given)}
    found |= backbone_b(found if reads else given)
    found |= head(found)
    return {s.name: found[s.name].astype(np.float32) for s in OUTPUTS}


def items(count: int, seed: int = 0) -> Tensors:
    """Inputs for some items."""
    rng = np.random.default_rng([seed, count])
    return {
        "image": rng.integers(0, 9, (count, 3, 4, 3)).astype(np.uint8),
        "objects": rng.integers(-9, 9, (count, 2, 5)).astype(np.float32),
    }


def _ports(taken: tuple[str, ...], given: tuple[str, ...]) -> list[Port]:
    return [Port(n, n in taken, _SPECS[n].dtype, tuple(_SPECS[n].shape)) for n in (*taken, *given)]


def scratch_of(batch: int) -> int:
    """Bytes that every engine needs for a batch."""
    return 300 * batch


class Ensemble:
    """The ensemble's engines.

    Args:
        device: Where they lie.
        forms: Which forms there are.
        reads: Whether backbone ``b`` reads what ``a`` gives.
        around: Wraps what each engine computes; told its name.
        options: Of every engine.

    Attributes:
        engines: By name: ``merged``, ``a``, ``b``, ``head``.
        forms: As a session takes them.
    """

    def __init__(
        self,
        device: EmulatedDevice,
        forms: tuple[str, ...] = ("merged", "streams"),
        *,
        reads: bool = False,
        around: Callable[[str, Compute], Compute] = lambda _, compute: compute,
        **options: Any,
    ) -> None:
        self.engines: dict[str, EmulatedEngine] = {}
        self.reads = reads
        chosen: dict[str, Any] = {"scratch": scratch_of, **options}

        def make(name: str, taken: tuple[str, ...], given: tuple[str, ...], compute: Compute) -> Stage:
            ports = _ports(taken, given)
            engine = EmulatedEngine(device, ports, around(name, compute), name=name, **chosen)
            self.engines[name] = engine
            return Stage(name, engine)

        self.forms: list[Form] = []
        if "merged" in forms:
            taken, given = tuple(s.name for s in INPUTS), tuple(s.name for s in OUTPUTS)
            self.forms.append(Form("merged", (make("merged", taken, given, self.reference),)))
        if "streams" in forms:
            also = ("a",) if reads else ()
            stages = (
                make("a", ("image",), ("a", "hidden"), backbone_a),
                make("b", ("objects", *also), ("b",), backbone_b),
                make("head", ("a", "b", "hidden"), ("scores",), head),
            )
            self.forms.append(Form("streams", stages))

    def reference(self, given: Tensors) -> Tensors:
        """What a session must return."""
        return whole(given, reads=self.reads)

    def seen(self, name: str = "merged") -> Tensors:
        """What an engine took in its last run, padding and all."""
        return self.engines[name].runs[-1]
