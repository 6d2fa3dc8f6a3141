"""Keys and signatures: what was written, and what to do with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from vsa_rt.render.tables import document

if TYPE_CHECKING:
    from vsa_rt.pipeline.sign import Signed
    from vsa_rt.signature import KeyPair


def key_pair(made: KeyPair, as_json: bool) -> None:
    """Where the new keys are, and who gets which.

    Args:
        made: The files, and the identifier of both.
        as_json: As one document instead.
    """
    if as_json:
        document("key", private=str(made.private), public=str(made.public), key=made.key)
        return
    console = Console(highlight=False)
    console.print(f"key {made.key}", soft_wrap=True)
    console.print(f"signs     {escape(str(made.private))}: keep it, for nothing but bundles", soft_wrap=True)
    console.print(f"verifies  {escape(str(made.public))}: copy it to where bundles run", soft_wrap=True)


def signed(found: Signed, as_json: bool) -> None:
    """What was signed, and by which key.

    Args:
        found: The bundle and its signature.
        as_json: As one document instead.
    """
    if as_json:
        document("signed", path=str(found.path), signature=str(found.signature), key=found.key)
        return
    console = Console(highlight=False)
    console.print(f"{escape(str(found.signature))}: signed by key {found.key}", soft_wrap=True)
