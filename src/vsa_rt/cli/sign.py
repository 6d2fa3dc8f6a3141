"""Signing: who made a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vsa_rt.cli.app import app, shown_progress
from vsa_rt.cli.options import AsJson
from vsa_rt.errors import UsageError


@app.command()
def sign(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE]", help="A bundle, exported or built.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="PRIVATE.pem", help="The Ed25519 key that signs it.")
    ] = None,
    new_key: Annotated[
        Path | None,
        typer.Option(
            metavar="PRIVATE.pem",
            help="Make a key instead, and PRIVATE.pub.pem, which verifies; nothing is overwritten.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Sign a bundle, so that --trust tells it from others; or make the key for it."""
    from vsa_rt.pipeline.sign import sign_bundle
    from vsa_rt.render import signature as render
    from vsa_rt.signature import new_key_pair

    if new_key is not None:
        if bundle is not None or key is not None:
            raise UsageError("--new-key: makes a key and signs nothing; sign with --key afterwards")
        render.key_pair(new_key_pair(new_key), as_json)
        return
    if bundle is None or key is None:
        raise UsageError(
            "expected vsa-rt sign BUNDLE --key PRIVATE.pem, or vsa-rt sign --new-key PRIVATE.pem"
        )
    with shown_progress() as progress:
        found = sign_bundle(bundle, key, progress)
    render.signed(found, as_json)
