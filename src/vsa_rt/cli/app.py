"""The command line itself: its options, progress, exit codes. Commands register in the modules beside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from vsa_rt.errors import VsaError
from vsa_rt.version import __version__

app = typer.Typer(
    name="vsa-rt",
    help="Visual-sentiment ensembles as one engine: build, run, and prove parity with PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 a gate failed, a report is red or an item could not be processed, 2 wrong use, "
    "3 the bundle or the environment cannot be used.",
)

#: A gate failed, or an item could not be processed.
FAILED = 1


#: What a step begins with that is to stay on the screen, and in logs.
_WARNING = "warning: "


@contextmanager
def shown_progress() -> Iterator[Callable[[str], None]]:
    """Steps on stderr, and only where somebody looks at it; warnings wherever it goes."""
    if not sys.stderr.isatty():
        yield lambda step: typer.echo(f"vsa-rt: {step}", err=True) if step.startswith(_WARNING) else None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:

        def show(step: str) -> None:
            if step.startswith(_WARNING):
                status.console.print(step, markup=False, highlight=False)
            else:
                status.update(step)

        yield show


def _drop_output() -> None:
    """Let nothing more be written: Python would try the rest again at its exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """A reader that has seen enough, as in `vsa-rt run … | head`, ends the run as done."""
    try:
        yield
    except BrokenPipeError:
        _drop_output()
        raise typer.Exit from None


def _version(value: bool) -> None:
    if value:
        typer.echo(f"vsa-rt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Visual-sentiment ensembles as one engine: build, run, and prove parity with PyTorch."""


def main() -> None:
    """Entry point: one line on stderr and an exit code for every error that vsa-rt raises on purpose."""
    # A path may hold bytes that are not UTF-8; printing it must not end the run.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")
    try:
        app()
    except VsaError as error:
        typer.echo(f"vsa-rt: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        _drop_output()
        name = f"{error.filename}: " if error.filename else ""
        typer.echo(f"vsa-rt: {name}{error.strerror or error}", err=True)
        sys.exit(VsaError.exit_code)
