"""The bundle: a plain directory with a manifest, read without trust and written all at once."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import msgspec

from vsa_rt.errors import BundleError, UsageError
from vsa_rt.manifest import FileRecord, Manifest, manifest_from_json, manifest_to_json, seal
from vsa_rt.manifest_rules import check_consistency
from vsa_rt.signature import SIGNATURE, Trusted, require_signature

MANIFEST = "manifest.json"
_CHUNK = 1 << 20
#: A manifest is a few dozen kilobytes; anything near this is not one.
_MAX_MANIFEST = 64 << 20


def hash_file(path: Path) -> FileRecord:
    """Size and SHA-256 of a file."""
    digest, nbytes = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            nbytes += len(chunk)
    return FileRecord(nbytes=nbytes, sha256=digest.hexdigest())


def read_manifest(root: Path) -> bytes:
    """The manifest's bytes, nothing parsed.

    Raises:
        BundleError: There is none, or something else has its name.
    """
    path = root / MANIFEST
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode) or info.st_size > _MAX_MANIFEST:
            raise BundleError(f"{path}: not a manifest")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{root}: not a bundle: {MANIFEST} cannot be read: {error.strerror}") from error


def _inside(root: Path, name: str) -> Path:
    """A file of the bundle by its manifest name, never outside the bundle."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name or not pure.parts:
        raise BundleError(f"{root}: the manifest names {name!r}, which leaves the bundle; do not trust it")
    path = root.joinpath(*pure.parts)
    try:
        leaves = not path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a loop of links
        leaves = True
    if leaves:
        raise BundleError(f"{root}: {name!r} is a link that leaves the bundle; do not trust it")
    return path


class Bundle:
    """An opened bundle: its manifest, and its files by name with their hashes checked.

    Attributes:
        root: The directory.
        manifest: What it says about itself.
        signer: The trusted key that signed it, see ``signature.key_id``; empty where no signature was asked for.
    """

    def __init__(self, root: Path, manifest: Manifest, signer: str = "") -> None:
        self.root = root
        self.manifest = manifest
        self.signer = signer

    @classmethod
    def open(cls, root: str | os.PathLike[str], trusted: Trusted = None) -> Bundle:
        """Read the manifest and check that every file is there in its full size.

        Args:
            root: The directory.
            trusted: Public keys, one of which must have signed the manifest: before anything is parsed, and the bytes
                that are verified are those that are parsed. ``None``: as ``VSA_RT_TRUST`` says.

        Raises:
            BundleError: Not a bundle, not signed by a trusted key, a foreign version, a missing or cut-off file, or a
                path that leaves it.
            EnvironmentUnusable: A signature is asked for, and the library that verifies is not installed.
            UsageError: A trusted key cannot be read.
        """
        root = Path(root)
        data = read_manifest(root)
        return cls.parse(root, data, require_signature(root, data, trusted))

    @classmethod
    def parse(cls, root: Path, data: bytes, signer: str = "") -> Bundle:
        """A bundle by its manifest's bytes, whoever signed them; every file must be there in its full size.

        Args:
            root: The directory.
            data: The manifest.
            signer: Who is known to have signed it.

        Raises:
            BundleError: A foreign version, a missing or cut-off file, or a path that leaves it.
        """
        bundle = cls(root, manifest_from_json(data, str(root / MANIFEST)), signer)
        for name, record in bundle.manifest.files.items():
            bundle._check_size(name, record)
        return bundle

    def _check_size(self, name: str, record: FileRecord) -> Path:
        path = _inside(self.root, name)
        try:
            info = path.stat()
        except OSError as error:
            raise BundleError(
                f"{path}: missing from the bundle ({error.strerror}); copy or build it again"
            ) from error
        if not stat.S_ISREG(info.st_mode) or info.st_size != record.nbytes:
            raise BundleError(
                f"{path}: damaged: {info.st_size} bytes, expected {record.nbytes}; copy or build it again"
            )
        return path

    def read(self, name: str) -> bytes:
        """The bytes of one file; the hash is taken of these very bytes.

        Raises:
            BundleError: Unknown name, or the bytes are not those that were built.
        """
        record = self.manifest.files.get(name)
        if record is None:
            raise BundleError(f"{self.root}: no file {name!r} in the manifest")
        path = self._check_size(name, record)
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise BundleError(
                f"{path}: damaged: its SHA-256 does not fit the manifest; copy or build it again"
            )
        return data

    def verify(self) -> None:
        """Hash every file, a few at a time.

        Raises:
            BundleError: The first file, in the manifest's order, that is not what was built.
        """
        names = list(self.manifest.files)

        def matches(name: str) -> bool:
            return hash_file(_inside(self.root, name)).sha256 == self.manifest.files[name].sha256

        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            for name, good in zip(names, pool.map(matches, names), strict=True):
                if not good:
                    raise BundleError(
                        f"{self.root / name}: damaged: its SHA-256 does not fit the manifest; copy or build it again"
                    )


def seal_folder(folder: Path, manifest: Manifest) -> Manifest:
    """Hash a folder's files and write its manifest.

    Args:
        folder: Holds every file but the manifest.
        manifest: ``files`` and ``digest`` are filled in.

    Returns:
        The manifest as written.

    Raises:
        BundleError: It contradicts itself, and no command could open it.
        UsageError: Its recipe, or a target's name, is wrong in itself.
    """
    files = {
        path.relative_to(folder).as_posix(): hash_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, SIGNATURE)
    }
    sealed = seal(msgspec.structs.replace(manifest, files=files))
    check_consistency(sealed, "the bundle as built", "correct the recipe, or what the graph says of itself")
    (folder / SIGNATURE).unlink(missing_ok=True)  # of another manifest
    temporary = folder / f"{MANIFEST}.partial"
    temporary.write_bytes(manifest_to_json(sealed))
    temporary.replace(folder / MANIFEST)
    return sealed


def _sync(folder: Path) -> None:
    """Bring every file of a finished folder to the disk before it gets its final name."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_replaceable(folder: Path) -> bool:
    """Whether a folder is empty or a bundle of any version: other programs have a manifest.json, too."""
    if not folder.is_dir():
        return False
    try:
        head = msgspec.json.decode((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        return not any(folder.iterdir())
    except (OSError, msgspec.DecodeError, RecursionError):
        return False
    return isinstance(head, dict) and {"schema", "vsa_rt", "digest"} <= head.keys()


def _lock(folder: Path) -> int | None:
    """Hold a folder until the descriptor is closed or the process dies; ``None`` if another holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _recover(final: Path) -> None:
    """Tidy up after builds that were killed: bring back a bundle that had stepped aside, remove half ones."""
    pattern = re.compile(rf"\.{re.escape(final.name)}\.partial-[^.]+?(-old)?")
    for stale in sorted(final.parent.iterdir()):
        match = pattern.fullmatch(stale.name)
        if not match or not stale.is_dir():
            continue
        held = _lock(stale)
        if held is None:
            continue
        if match[1] and not final.exists():
            stale.rename(final)
        else:
            shutil.rmtree(stale, ignore_errors=True)
        os.close(held)


def _put_in_place(work: Path, final: Path) -> None:
    """Give a finished folder its final name. Exchanging two directories is not portable, so that an old bundle steps
    aside for an instant: a reader finds the old one, nothing, or the new one, and never a mixture."""
    if not final.exists():
        work.rename(final)
        return
    aside = work.with_name(f"{work.name}-old")
    final.rename(aside)
    try:
        work.rename(final)
    except OSError:
        aside.rename(final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A folder that appears under its final name whole, or not at all.

    Args:
        final: The name; an existing bundle there is replaced at the end, anything else is refused.

    Yields:
        A hidden sibling folder to fill. It must hold a manifest when the block ends.

    Raises:
        UsageError: Something that is not a bundle has the final name, or the parent cannot be written.
    """
    final = Path(os.path.abspath(final))
    if final.is_symlink() or (final.exists() and not _is_replaceable(final)):
        raise UsageError(f"{final}: exists and is not a bundle; choose another name or remove it")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _recover(final)
        work = Path(tempfile.mkdtemp(prefix=f".{final.name}.partial-", dir=final.parent))
        held = _lock(work)
    except OSError as error:
        raise UsageError(f"{final}: cannot be written: {error.strerror}") from error
    work.chmod(0o755)
    try:
        yield work
        _sync(work)
        try:
            _put_in_place(work, final)
        except OSError as error:
            raise UsageError(f"{final}: cannot be put in place: {error.strerror}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if held is not None:
            os.close(held)
