"""The options of ``build`` that only TensorRT's compiler knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from vsa_rt.contracts import Target
from vsa_rt.engines.compiling import Tuning
from vsa_rt.errors import UsageError

PANEL = "TensorRT"
#: Backends that take these options.
_BACKENDS = ("tensorrt", "tensorrt-rtx")


class Fusion(str, Enum):
    """What ``--fusion`` takes."""

    AUTO = "auto"
    MERGED = "merged"
    STREAMS = "streams"


class Hardware(str, Enum):
    """What ``--hardware-compatible`` takes."""

    AMPERE_PLUS = "ampere+"
    SAME_CAPABILITY = "same-capability"


FusionOption = Annotated[
    Fusion | None,
    typer.Option(
        rich_help_panel=PANEL,
        help="`merged`: one engine; `streams`: one for each backbone, side by side; `auto`: both, and the faster one "
        "runs, as measured on the device.",
    ),
]
MinBatch = Annotated[
    int | None,
    typer.Option(min=1, rich_help_panel=PANEL, help="Smallest batch of the optimisation profile; default 1."),
]
OptBatch = Annotated[
    int | None,
    typer.Option(
        min=1,
        rich_help_panel=PANEL,
        help="The batch that kernels are chosen for; default the largest.",
    ),
]
TimingCache = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=PANEL,
        help="Keeps what the compiler measured, so that the next build is faster. Made if absent.",
    ),
]
AuxStreams = Annotated[
    int | None,
    typer.Option(min=0, max=64, rich_help_panel=PANEL, help="Streams of one engine beside its own."),
]
Workspace = Annotated[
    float | None,
    typer.Option(
        min=0.001, metavar="GIB", rich_help_panel=PANEL, help="Scratch memory that one layer may use."
    ),
]
Level = Annotated[
    int | None,
    typer.Option(
        "--optimisation-level",
        min=0,
        max=5,
        rich_help_panel=PANEL,
        help="How long the compiler searches; TensorRT's own default is 3.",
    ),
]
VersionCompatible = Annotated[
    bool,
    typer.Option(
        "--version-compatible", rich_help_panel=PANEL, help="Later versions of TensorRT may open the engine."
    ),
]
HardwareCompatible = Annotated[
    Hardware | None,
    typer.Option(
        rich_help_panel=PANEL,
        help="Other GPUs that may open the engine: from Ampere on, or of the same compute capability.",
    ),
]
StripWeights = Annotated[
    bool,
    typer.Option(
        "--strip-weights",
        rich_help_panel=PANEL,
        help="Engines without weights: they are taken from the bundle's graph when it is opened.",
    ),
]


def tuning_of(given: Mapping[str, Any], targets: Sequence[Target]) -> Tuning:
    """What TensorRT's options ask for.

    Args:
        given: Field of ``Tuning`` to its value; ``None`` and ``False`` where an option was left out.
        targets: Where engines are built; empty for every one that is usable here.

    Raises:
        UsageError: No target is TensorRT's.
    """
    chosen = {name: value for name, value in given.items() if value is not None and value is not False}
    if chosen and targets and not any(t.backend in _BACKENDS for t in targets):
        first = next(iter(chosen))
        raise UsageError(
            f"--{_NAMES.get(first, first.replace('_', '-'))}: only TensorRT has that; leave it out, or name a target "
            "such as tensorrt-rtx:sm_89"
        )
    words = {name: value.value if isinstance(value, Enum) else value for name, value in chosen.items()}
    if "workspace" in words:
        words["workspace"] = round(words["workspace"] * 2**30)
    if "hardware" in words:
        words["hardware"] = words["hardware"].replace("-", " ")
    return Tuning(**words)


#: Fields whose options are called otherwise.
_NAMES = {"level": "optimisation-level", "hardware": "hardware-compatible", "strip": "strip-weights"}
