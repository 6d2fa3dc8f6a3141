"""Proving a lowered bundle: what is guilty when a gate fails."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vsa_rt.cli.app import FAILED, app, shown_progress
from vsa_rt.cli.options import (
    AsJson,
    BudgetText,
    Calib,
    CalibMethod,
    OnePrecision,
    OneTarget,
    Trust,
    Weights,
    budget_of,
    weights_of,
)
from vsa_rt.contracts import Target


@app.command()
def bisect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle, built or only exported.")],
    data: Annotated[
        Path, typer.Option(help="Photographs, with labels or without: every plan is judged on all.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="Folder for exclude.txt and for what was tried; the same command again goes on where it was.",
        ),
    ] = None,
    target: OneTarget = None,
    precision: OnePrecision = None,
    calib: Calib = None,
    calib_method: CalibMethod = None,
    budget: BudgetText = None,
    trials: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Plans that the search for nodes may try; default 150."),
    ] = None,
    weights: Weights = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Find the nodes that must stay in fp32 for a lowered engine to hold its budget."""
    from vsa_rt.bundle import Bundle
    from vsa_rt.pipeline.bisect import LIMIT, BisectOptions
    from vsa_rt.pipeline.bisect import bisect as bisect_bundle
    from vsa_rt.render.bisect import bisection

    with shown_progress() as progress:
        options = BisectOptions(
            target=Target.parse(target) if target else None,
            precision=precision,
            calib=calib,
            method=calib_method,
            budget=budget_of(budget) if budget is not None else None,
            weights=weights_of(weights),
            out=out,
            limit=trials or LIMIT,
            progress=progress,
        )
        found = bisect_bundle(Bundle.open(bundle), data, options)
    bisection(found, out, as_json)
    if not found.passed:
        raise typer.Exit(FAILED)
