"""What is there: the machine and the shipped recipes."""

from __future__ import annotations

from typing import Annotated

import typer

from vsa_rt.cli.app import app, shown_progress
from vsa_rt.cli.options import AsJson


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine can build and run, measured, and how to install what is missing."""
    from vsa_rt import render
    from vsa_rt.pipeline.diagnose import diagnose

    with shown_progress() as progress:
        progress("measuring a small convolution on every target")
        found = diagnose()
    render.diagnosis(found, as_json)
    if not any(t.usable for t in found.targets):
        raise typer.Exit(3)


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show this one, or a recipe file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the shipped recipes, or show one."""
    from vsa_rt import render
    from vsa_rt.recipe_file import find_recipe, read_recipe, shipped_names

    if name is None:
        render.recipe_list([read_recipe(find_recipe(n)) for n in shipped_names()], as_json)
        return
    path = find_recipe(name)
    render.recipe(read_recipe(path), path, as_json)
