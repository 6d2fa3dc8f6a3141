"""What an engine is compiled from, how, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vsa_rt.manifest import CompiledRecord


@dataclass(frozen=True)
class Part:
    """A piece of a graph that is a graph of its own.

    Attributes:
        name: A tap, or ``head``.
        graph: A whole ONNX model with a free batch.
        inputs: Tensors that it takes: of the whole graph, or what earlier parts give.
        outputs: Tensors that it gives.
    """

    name: str
    graph: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def _no_parts() -> Sequence[Part]:
    return ()


@dataclass(frozen=True)
class Source:
    """What an engine is compiled from.

    Attributes:
        graph: A whole ONNX model; its tensors' types say the precision.
        name: Its path in the bundle, as ``trtexec`` is told of it.
        parts: Cuts it where backbones end: each part comes after those whose outputs it takes. Empty where there is
            one backbone, or nothing to cut.
    """

    graph: bytes
    name: str = "graph.onnx"
    parts: Callable[[], Sequence[Part]] = _no_parts


@dataclass(frozen=True)
class Tuning:
    """How TensorRT compiles, beyond the graph. Other backends have nothing of it.

    Attributes:
        min_batch: Smallest batch of one call.
        opt_batch: The batch that kernels are chosen for; ``None`` for the largest.
        fusion: ``merged``: one engine; ``streams``: one for each backbone as well; ``auto``: both, and the faster one
            is taken by measurement for each batch size.
        timing_cache: A file that keeps what the compiler measured; made if absent. ``None``: nothing is kept.
        aux_streams: Streams that one engine may use beside its own; ``None`` leaves it to the library.
        workspace: Bytes of scratch memory that a layer may use; ``None`` for all.
        level: The builder's optimisation level, 0 to 5; ``None`` for the library's own.
        version_compatible: Let later versions of the library open the engine.
        hardware: Other devices that may open it.
        strip: Leave the weights out of the engine: they are taken from the graph when it is opened.
    """

    min_batch: int = 1
    opt_batch: int | None = None
    fusion: Literal["auto", "merged", "streams"] = "auto"
    timing_cache: Path | None = None
    aux_streams: int | None = None
    workspace: int | None = None
    level: int | None = None
    version_compatible: bool = False
    hardware: Literal["none", "ampere+", "same capability"] = "none"
    strip: bool = False


def _silent(_: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class CompileOptions:
    """How an engine is compiled.

    Attributes:
        max_batch: Largest batch of one call.
        tuning: TensorRT's own.
        progress: Told of every step.
    """

    max_batch: int
    tuning: Tuning = field(default_factory=Tuning)
    progress: Callable[[str], None] = _silent


@dataclass(frozen=True)
class Made:
    """What a compilation gave.

    Attributes:
        files: Names of the files in the folder, the one to open first.
        compiled: How, for the manifest, with file names as in ``files``; ``None`` for what needs no such record.
    """

    files: list[str]
    compiled: CompiledRecord | None = None
