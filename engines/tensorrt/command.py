"""The command that makes an engine again with TensorRT's own tool."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from vsa_rt.engines.compiling import Tuning
from vsa_rt.engines.tensorrt.compiler import Compilation
from vsa_rt.engines.tensorrt.dialects import Classic10, Dialect, Rtx

#: ``Tuning.hardware`` to the tool's word (trtexec --help, --hardwareCompatibilityLevel).
_LEVELS = {"ampere+": "ampere+", "same capability": "sameComputeCapability"}


def command(
    dialect: Dialect,
    graph: str,
    engine: str,
    made: Compilation,
    tuning: Tuning,
    capabilities: Sequence[str],
) -> str:
    """One line for a shell, to be run where the graph lies.

    The options are those of ``trtexec --help`` (samples/common/sampleOptions.cpp of NVIDIA/TensorRT) and, for
    ``tensorrt_rtx``, of the same names, with ``--computeCapabilities`` (docs.nvidia.com/deeplearning/tensorrt-rtx,
    CPU-Only AOT).

    Args:
        dialect: Of the library that compiled it.
        graph: Path of the ONNX file.
        engine: Path of the file to write.
        made: What was compiled.
        tuning: How.
        capabilities: For which devices, such as ``sm_87``.
    """
    words = [dialect.tool, f"--onnx={graph}", f"--saveEngine={engine}", "--skipInference"]
    shapes = zip(("min", "opt", "max"), made.batches, strict=True)
    words += [f"--{word}Shapes={_shapes(made, batch)}" for word, batch in shapes]
    if isinstance(dialect, Rtx):
        words.append(f"--computeCapabilities={','.join(c.removeprefix('sm_') for c in capabilities)}")
    words += _typing(dialect, made)
    words += ["--noTF32", "--profilingVerbosity=detailed"]
    words += _tuned(dialect, tuning)
    return shlex.join(words)


def _shapes(made: Compilation, batch: int) -> str:
    """Every input with its shape, as in ``image:8x224x224x3``."""
    return ",".join(f"{_name(name)}:{'x'.join(map(str, (batch, *shape)))}" for name, shape in made.inputs)


def _name(name: str) -> str:
    """An input's name; the tool wants quotes around one with a colon."""
    return f"'{name}'" if ":" in name or "," in name else name


def _typing(dialect: Dialect, made: Compilation) -> list[str]:
    """How types are decided; from 11 on, and for RTX, that is no question."""
    if made.typing == "weak":
        return [f"--{flag.lower()}" for flag in ("FP16", "INT8") if flag in made.flags]
    return ["--stronglyTyped"] if isinstance(dialect, Classic10) else []


def _tuned(dialect: Dialect, tuning: Tuning) -> list[str]:
    words = []
    if tuning.timing_cache is not None and dialect.measures:
        # Where it lay is the building machine's own.
        words.append(f"--timingCacheFile={tuning.timing_cache.name}")
    if tuning.workspace is not None:
        words.append(f"--memPoolSize=workspace:{tuning.workspace}B")
    if tuning.level is not None:
        words.append(f"--builderOptimizationLevel={tuning.level}")
    if tuning.aux_streams is not None:
        words.append(f"--maxAuxStreams={tuning.aux_streams}")
    if tuning.version_compatible:
        words.append("--versionCompatible")
    if tuning.hardware != "none":
        words.append(f"--hardwareCompatibilityLevel={_LEVELS[tuning.hardware]}")
    if tuning.strip:
        words.append("--stripWeights")
    return words
