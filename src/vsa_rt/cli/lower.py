"""Lowering a graph for engines that are built elsewhere."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vsa_rt.cli.app import app, shown_progress
from vsa_rt.cli.options import AsJson, BudgetText, Data, Exclude, Trust, budget_of, excluded_of
from vsa_rt.contracts import Precision


class LowPrecision(str, Enum):
    """What ``lower --precision`` takes."""

    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


class Around(str, Enum):
    """What ``lower --around`` takes."""

    FP16 = "fp16"
    FP32 = "fp32"
    BF16 = "bf16"


class Head(str, Enum):
    """What ``lower --head`` takes."""

    FP16 = "fp16"
    FP32 = "fp32"


_HELP = """\
Write a bundle's graph in fp16, bf16 or int8 for a GPU, and prove it without one.

Nodes that half precision would spoil stay in fp32: they are found by their ranges over the photographs. \
The graph then runs on a few of them with every tensor really rounded to its type. It must not overflow, nor leave \
its tolerance or the budget; if it does, nothing is written and the exit code is 1.
"""


@app.command(help=_HELP)
def lower(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="An exported or built bundle; it is left as it is.")
    ],
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", help="The new folder, for graph.PRECISION.onnx and the proof, lowered.json."
        ),
    ],
    precision: Annotated[
        LowPrecision,
        typer.Option(
            help="`fp16` for every GPU; `bf16` from Ampere on; `int8` is the fastest, and needs ranges."
        ),
    ] = LowPrecision.FP16,
    around: Annotated[
        Around | None,
        typer.Option(
            help="int8: what is not quantised, such as pools and additions; default fp16, TensorRT's."
        ),
    ] = None,
    head: Annotated[
        Head | None,
        typer.Option(help="What comes after the backbones; default fp16, in a bf16 graph fp32."),
    ] = None,
    data: Data = None,
    images: Annotated[
        int,
        typer.Option(
            min=1, help="How many of the photographs go through the executor that rounds; it is slow."
        ),
    ] = 4,
    calib: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="int8: photographs on which ranges are measured; default: the bundle's calibration.",
        ),
    ] = None,
    calib_method: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="int8: minmax, percentile[:PERCENT], entropy or mse; default: the bundle's, else mse.",
        ),
    ] = None,
    budget: BudgetText = None,
    exclude: Exclude = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Write a graph that fails; lowered.json then says `failed parity`."),
    ] = False,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Write a bundle's graph in lower precision for a GPU, and prove it without one."""
    from vsa_rt.bundle import Bundle
    from vsa_rt.pipeline.lower import LowerOptions, lower_bundle
    from vsa_rt.render.lower import lowered

    with shown_progress() as progress:
        options = LowerOptions(
            precision=Precision(precision.value),
            around=Precision(around.value) if around else None,
            head=Precision(head.value) if head else None,
            data=data,
            images=images,
            calib=calib,
            method=calib_method,
            budget=budget_of(budget),
            exclude=excluded_of(exclude),
            force=force,
            progress=progress,
        )
        found = lower_bundle(Bundle.open(bundle), out, options)
    lowered(found, out, as_json)
