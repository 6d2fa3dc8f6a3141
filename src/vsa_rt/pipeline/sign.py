"""Signing a bundle: what is signed was looked at first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vsa_rt.bundle import Bundle, read_manifest
from vsa_rt.signature import is_open_to_others, key_id, read_private_key, write_signature


@dataclass(frozen=True)
class Signed:
    """A signed bundle.

    Attributes:
        path: The bundle.
        signature: The file that was written.
        key: Who signed it, see ``signature.key_id``.
    """

    path: Path
    signature: Path
    key: str


def sign_bundle(root: Path, key: Path, progress: Callable[[str], None]) -> Signed:
    """Sign a bundle whose files are those that its manifest names.

    Args:
        root: The bundle.
        key: The private key's file.
        progress: Told what is going on, and when others can read the key.

    Raises:
        BundleError: It is damaged, and nothing was signed.
        EnvironmentUnusable: The library that signs is not installed.
        UsageError: The key cannot be used, or the bundle cannot be written.
    """
    private = read_private_key(key)
    if is_open_to_others(key):
        progress(f"warning: {key} can be read by others: chmod 600 {key}")
    progress("verifying the files")
    data = read_manifest(root)
    Bundle.parse(root, data).verify()
    return Signed(root, write_signature(root, private.sign(data)), key_id(private.public_key()))
