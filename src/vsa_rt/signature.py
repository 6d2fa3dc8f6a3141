"""Who made a bundle: an Ed25519 signature over the very bytes of its manifest, which has the hash of every other file.

The signature lies beside the manifest, 64 raw bytes (RFC 8032, section 5.1.6), so that ``openssl pkeyutl -verify -rawin``
reads it, too, and nothing of a stranger's is parsed before it is verified.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from vsa_rt.errors import BundleError, UsageError, needs

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: Beside the manifest; no manifest lists it.
SIGNATURE = "manifest.sig"
#: Environment variable: a public key or a folder of them. Where it is set, nothing else may be opened.
TRUST = "VSA_RT_TRUST"
#: Public keys (PEM files, or folders of ``*.pem``); ``None`` stands for what ``TRUST`` says.
Trusted: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None"

#: Of an Ed25519 signature (RFC 8032, section 5.1.6).
_NBYTES = 64
#: A key in PEM form is a few hundred bytes.
_MAX_PEM = 1 << 16


@dataclass(frozen=True)
class KeyPair:
    """A new pair of keys.

    Attributes:
        private: File that signs, readable by its owner alone.
        public: File that verifies.
        key: Its identifier, see ``key_id``.
    """

    private: Path
    public: Path
    key: str


def key_id(public: Ed25519PublicKey) -> str:
    """SHA-256 of the public key's DER form (RFC 8410), in hexadecimal digits.

    ``openssl pkey -pubin -in public.pem -outform DER | sha256sum`` gives the same.
    """
    with needs("sign"):
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _read_pem(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_PEM + 1)
    except OSError as error:
        raise UsageError(f"{path}: the {what} cannot be read: {error.strerror}") from error
    blocks = data.count(b"-----BEGIN ")
    if len(data) > _MAX_PEM or blocks > 1:
        raise UsageError(f"{path}: expected one {what} in PEM form; keep each key in a file of its own")
    return data


def read_public_key(path: Path) -> Ed25519PublicKey:
    """A public key of a PEM file.

    Raises:
        EnvironmentUnusable: The library that verifies is not installed.
        UsageError: The file is absent, or holds something else.
    """
    with needs("sign"):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    data = _read_pem(path, "public key")
    if b"PRIVATE KEY-----" in data:
        raise UsageError(
            f"{path}: a private key; it has no place where bundles are verified: name the public one"
        )
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path}: not an Ed25519 public key in PEM form; vsa-rt sign --new-key makes a pair")
    return key


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """A private key of a PEM file, or of a pipe.

    Raises:
        EnvironmentUnusable: The library that signs is not installed.
        UsageError: The file is absent, or holds something else.
    """
    with needs("sign"):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    data = _read_pem(path, "private key")
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:
        raise UsageError(f"{path}: is encrypted; give it open: --key <(openssl pkey -in {path})") from error
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(
            f"{path}: not an Ed25519 private key in PEM form; vsa-rt sign --new-key makes a pair"
        )
    return key


def is_open_to_others(path: Path) -> bool:
    """Whether a private key's file may be read by others than its owner."""
    mode = path.stat().st_mode
    return stat.S_ISREG(mode) and bool(mode & (stat.S_IRWXG | stat.S_IRWXO))


def new_key_pair(private: Path) -> KeyPair:
    """Make a pair of keys. Nothing is overwritten.

    Args:
        private: File to make, with mode 0600; the public key gets the suffix ``.pub.pem``.

    Raises:
        EnvironmentUnusable: The library that signs is not installed.
        UsageError: One of the files is there already, or cannot be written.
    """
    with needs("sign"):
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
            PublicFormat,
        )
    key = Ed25519PrivateKey.generate()
    public = private.with_suffix(".pub.pem")
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    shown = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    _write_new(public, shown, 0o644)
    try:
        _write_new(private, secret, 0o600)
    except UsageError:
        public.unlink()
        raise
    return KeyPair(private, public, key_id(key.public_key()))


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        # The mode from the first moment on: nobody opens it in between.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
    except FileExistsError as error:
        raise UsageError(
            f"{path}: is there already, and no key is overwritten; choose another name"
        ) from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def write_signature(folder: Path, signature: bytes) -> Path:
    """Put a signature beside a manifest; one that was there is replaced at once.

    Raises:
        UsageError: The folder cannot be written.
    """
    path = folder / SIGNATURE
    try:
        descriptor, work = tempfile.mkstemp(prefix=f".{SIGNATURE}.", dir=folder)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(signature)
            os.fchmod(stream.fileno(), 0o644)
            stream.flush()
            os.fsync(stream.fileno())
        Path(work).replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
    return path


def _trusted_files(trusted: Trusted) -> list[Path] | None:
    """The public keys' files; ``None`` where no signature is asked for.

    Raises:
        UsageError: Trust is asked for, and nothing is named, or a folder without a key.
    """
    if trusted is None:
        if TRUST not in os.environ:
            return None
        trusted, word = [os.environ[TRUST]], TRUST
    else:
        trusted, word = [trusted] if isinstance(trusted, str | os.PathLike) else list(trusted), "trusted"
    if not trusted or "" in trusted:
        raise UsageError(
            f"{word} is empty: name a public key or a folder of them, or leave it out altogether"
        )
    files: list[Path] = []
    for path in map(Path, trusted):
        found = sorted(path.glob("*.pem")) if path.is_dir() else [path]
        if not found:
            raise UsageError(f"{path}: a folder without public keys (*.pem), so that nothing could be opened")
        files += found
    return files


def require_signature(folder: Path, data: bytes, trusted: Trusted = None) -> str:
    """Refuse a bundle that no trusted key has signed.

    Args:
        folder: The bundle.
        data: Its manifest, the very bytes that are parsed afterwards.
        trusted: Public keys; ``None``: as ``VSA_RT_TRUST`` says, and any bundle where it is not set.

    Returns:
        Who signed, see ``key_id``; empty where no signature is asked for.

    Raises:
        BundleError: It is not signed, was changed after it was signed, or another key signed it.
        EnvironmentUnusable: The library that verifies is not installed.
        UsageError: A trusted key cannot be read, or none is named.
    """
    files = _trusted_files(trusted)
    if files is None:
        return ""
    keys = [read_public_key(path) for path in files]
    with needs("sign"):
        from cryptography.exceptions import InvalidSignature
    signature = _read_signature(folder)
    for key in keys:
        try:
            key.verify(signature, data)
        except InvalidSignature:
            continue
        return key_id(key)
    raise BundleError(
        f"{folder}: {SIGNATURE} does not fit the manifest and any trusted key ({', '.join(map(str, files))}): it was "
        "changed after it was signed, or another key signed it; fetch it again, or name that key if you trust it"
    )


def _read_signature(folder: Path) -> bytes:
    path = folder / SIGNATURE
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BundleError(f"{path}: not a signature; do not trust the bundle")
        with path.open("rb") as stream:
            signature = stream.read(_NBYTES + 1)
    except OSError as error:
        raise BundleError(
            f"{folder}: is not signed ({SIGNATURE}: {error.strerror}), and only what a trusted key has signed may be "
            f"opened; whoever made it signs it: vsa-rt sign {folder} --key PRIVATE.pem"
        ) from error
    if len(signature) != _NBYTES:
        raise BundleError(f"{path}: not a signature, which has {_NBYTES} bytes; fetch the bundle again")
    return signature
