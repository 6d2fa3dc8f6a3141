"""Signatures: who made a bundle, and that nothing else is opened where somebody asks for it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from outcome import fails

import vsa_rt
from vsa_rt import bundle as bundles
from vsa_rt.bundle import MANIFEST, Bundle, read_manifest, seal_folder
from vsa_rt.errors import BundleError, EnvironmentUnusable, UsageError
from vsa_rt.signature import (
    SIGNATURE,
    TRUST,
    KeyPair,
    is_open_to_others,
    new_key_pair,
    read_private_key,
    read_public_key,
    require_signature,
    write_signature,
)

pytest.importorskip("cryptography", reason="signatures need the extra `sign`")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]

#: RFC 8032, section 7.1, TEST 2: seed, public key, message, signature.
SEED = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
MESSAGE = b"\x72"
SIGNED = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)
#: A day on which no test ran.
FORGED = "2000-01-01T00:00:00+00:00"
#: DER of an Ed25519 key without the key itself (RFC 8410, sections 4 and 7).
PKCS8, SPKI = "302e020100300506032b657004220420", "302a300506032b6570032100"


@pytest.fixture(autouse=True)
def _no_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRUST, raising=False)


@pytest.fixture
def keys(tmp_path: Path) -> KeyPair:
    """A pair of keys."""
    (tmp_path / "keys").mkdir()
    return new_key_pair(tmp_path / "keys" / "ours.pem")


@pytest.fixture
def strangers(tmp_path: Path) -> KeyPair:
    """Another one."""
    (tmp_path / "strange").mkdir()
    return new_key_pair(tmp_path / "strange" / "theirs.pem")


@pytest.fixture
def signed(bundle_copy: Path, keys: KeyPair) -> Path:
    """A bundle of this test's own, signed by `keys`."""
    sign(bundle_copy, keys)
    return bundle_copy


def sign(root: Path, pair: KeyPair) -> None:
    write_signature(root, read_private_key(pair.private).sign(read_manifest(root)))


def pem(label: str, der: bytes) -> bytes:
    import base64

    return b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (
        label.encode(),
        base64.b64encode(der),
        label.encode(),
    )


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


# What a signature is


def test_a_published_signature_is_accepted_and_made(tmp_path: Path) -> None:
    public, private = tmp_path / "public.pem", tmp_path / "private.pem"
    public.write_bytes(pem("PUBLIC KEY", bytes.fromhex(SPKI + PUBLIC)))
    private.write_bytes(pem("PRIVATE KEY", bytes.fromhex(PKCS8 + SEED)))
    assert read_private_key(private).sign(MESSAGE).hex() == SIGNED
    write_signature(tmp_path, bytes.fromhex(SIGNED))
    who = require_signature(tmp_path, MESSAGE, public)
    assert who == hashlib.sha256(bytes.fromhex(SPKI + PUBLIC)).hexdigest()
    with pytest.raises(BundleError, match="does not fit"):
        require_signature(tmp_path, MESSAGE + b" ", public)


def test_openssl_verifies_what_is_signed_here_and_the_other_way_round(tmp_path: Path, keys: KeyPair) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")

    def openssl(*words: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["openssl", *map(str, words)], capture_output=True, check=False)

    message = tmp_path / MANIFEST
    message.write_bytes(b"{}\n")
    write_signature(tmp_path, read_private_key(keys.private).sign(b"{}\n"))
    files = ("-rawin", "-in", message, "-sigfile", tmp_path / SIGNATURE)
    done = openssl("pkeyutl", "-verify", "-pubin", "-inkey", keys.public, *files)
    if b"rawin" in done.stderr:
        pytest.skip("this openssl does not sign raw messages")
    assert done.returncode == 0, done.stderr
    der = openssl("pkey", "-pubin", "-in", keys.public, "-outform", "DER").stdout
    assert hashlib.sha256(der).hexdigest() == keys.key

    theirs, public = tmp_path / "openssl.pem", tmp_path / "openssl.pub.pem"
    assert openssl("genpkey", "-algorithm", "ed25519", "-out", theirs).returncode == 0
    assert openssl("pkey", "-in", theirs, "-pubout", "-out", public).returncode == 0
    made = openssl(
        "pkeyutl", "-sign", "-inkey", theirs, "-rawin", "-in", message, "-out", tmp_path / SIGNATURE
    )
    assert made.returncode == 0, made.stderr
    assert require_signature(tmp_path, b"{}\n", public)


# What is opened


def test_a_signed_bundle_opens_where_its_key_is_trusted(
    signed: Path, keys: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    for trusted in (keys.public, [keys.public], str(keys.public)):
        opened = Bundle.open(signed, trusted)
        opened.verify()
        assert opened.signer == keys.key
    with vsa_rt.load(signed, trusted=[keys.public]) as runtime:
        assert runtime.manifest == Bundle.open(signed).manifest
    monkeypatch.setenv(TRUST, str(keys.public))
    with vsa_rt.load(signed):
        pass


def test_without_trust_any_bundle_opens(bundle_copy: Path, signed: Path) -> None:
    Bundle.open(signed).verify()
    assert Bundle.open(signed).signer == ""
    (signed / SIGNATURE).write_bytes(b"nonsense")
    Bundle.open(signed).verify()


def test_an_unsigned_bundle_is_refused_before_an_engine_is_opened(
    bundle_copy: Path, keys: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("an engine was opened")

    monkeypatch.setattr("vsa_rt.runtime.load.open_best", never)
    monkeypatch.setattr("vsa_rt.bundle.manifest_from_json", never)
    with pytest.raises(BundleError, match="is not signed"):
        vsa_rt.load(bundle_copy, trusted=keys.public)
    monkeypatch.setenv(TRUST, str(keys.public))
    with pytest.raises(BundleError, match="vsa-rt sign"):
        vsa_rt.load(bundle_copy)


@pytest.mark.parametrize("offset", [0, 100, -2])
def test_one_flipped_bit_of_the_manifest_is_refused(signed: Path, keys: KeyPair, offset: int) -> None:
    flip(signed / MANIFEST, offset)
    with pytest.raises(BundleError, match="changed after it was signed"):
        Bundle.open(signed, keys.public)


@pytest.mark.parametrize("offset", [0, 31, 32, 63])
def test_one_flipped_bit_of_the_signature_is_refused(signed: Path, keys: KeyPair, offset: int) -> None:
    flip(signed / SIGNATURE, offset)
    with pytest.raises(BundleError, match="does not fit"):
        Bundle.open(signed, keys.public)


@pytest.mark.parametrize("data", [b"", bytes(63), bytes(65), bytes(100_000)], ids=["0", "63", "65", "100000"])
def test_a_signature_of_another_size_is_refused(signed: Path, keys: KeyPair, data: bytes) -> None:
    (signed / SIGNATURE).write_bytes(data)
    with pytest.raises(BundleError, match="64 bytes"):
        Bundle.open(signed, keys.public)


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_signature_that_is_no_file_is_refused(signed: Path, keys: KeyPair, kind: str) -> None:
    (signed / SIGNATURE).unlink()
    (signed / SIGNATURE).mkdir() if kind == "folder" else os.mkfifo(signed / SIGNATURE)
    with pytest.raises(BundleError, match="not a signature"):
        Bundle.open(signed, keys.public)


def test_another_key_is_refused_until_it_is_trusted(signed: Path, keys: KeyPair, strangers: KeyPair) -> None:
    with pytest.raises(BundleError, match=str(strangers.public)):
        Bundle.open(signed, strangers.public)
    assert Bundle.open(signed, [strangers.public, keys.public])


def test_a_forger_who_seals_well_is_refused(
    signed: Path, keys: KeyPair, strangers: KeyPair, reseal: Callable[..., None]
) -> None:
    """Hashes and digest are right: they say that a bundle is whole, not who made it."""
    reseal(signed, created=FORGED)
    Bundle.open(signed).verify()
    with pytest.raises(BundleError, match="changed after it was signed"):
        Bundle.open(signed, keys.public)
    sign(signed, strangers)
    with pytest.raises(BundleError, match="another key signed it"):
        Bundle.open(signed, keys.public)


def test_what_is_verified_is_what_is_parsed(
    signed: Path, keys: KeyPair, reseal: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest that is exchanged between the check and the parsing changes nothing."""
    honest = Bundle.open(signed).manifest.created

    def exchanging(*arguments: object) -> str:
        who = require_signature(*arguments)  # type: ignore[arg-type]
        reseal(signed, created=FORGED)
        return who

    monkeypatch.setattr(bundles, "require_signature", exchanging)
    assert Bundle.open(signed, keys.public).manifest.created == honest
    assert Bundle.open(signed).manifest.created == FORGED


def test_files_that_are_exchanged_after_the_check_are_refused(
    signed: Path, keys: KeyPair, reseal: Callable[..., None]
) -> None:
    opened = Bundle.open(signed, keys.public)
    name = opened.manifest.engines[0].files[0]
    data = bytearray((signed / name).read_bytes())
    data[-1] ^= 1
    (signed / name).write_bytes(data)
    files = opened.manifest.files | {name: bundles.hash_file(signed / name)}
    reseal(signed, files=files)
    assert Bundle.open(signed).read(name) == data
    with pytest.raises(BundleError, match="SHA-256"):
        opened.read(name)
    with pytest.raises(BundleError, match="SHA-256"):
        opened.verify()


def test_a_bundle_that_is_open_takes_no_keys(signed: Path, keys: KeyPair) -> None:
    with pytest.raises(UsageError, match=r"Bundle\.open"):
        vsa_rt.load(Bundle.open(signed), trusted=keys.public)


# Whose keys


def test_a_folder_of_keys_is_trusted_as_a_whole(
    signed: Path, keys: KeyPair, strangers: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "trusted"
    folder.mkdir()
    monkeypatch.setenv(TRUST, str(folder))
    with pytest.raises(UsageError, match="without public keys"):
        Bundle.open(signed)
    shutil.copy(strangers.public, folder)
    with pytest.raises(BundleError, match="does not fit"):
        Bundle.open(signed)
    shutil.copy(keys.public, folder)
    assert Bundle.open(signed)


def test_asking_for_nothing_is_an_error_and_not_trust_in_all(
    signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for nothing in ([], "", [""]):
        with pytest.raises(UsageError, match="trusted is empty"):
            Bundle.open(signed, nothing)
    monkeypatch.setenv(TRUST, "")
    with pytest.raises(UsageError, match=f"{TRUST} is empty"):
        Bundle.open(signed)


def test_what_is_no_public_key_is_said(signed: Path, keys: KeyPair, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    def trusting(path: Path) -> None:
        Bundle.open(signed, path)

    with pytest.raises(UsageError, match="a private key"):
        trusting(keys.private)
    with pytest.raises(UsageError, match="cannot be read"):
        trusting(tmp_path / "absent.pem")
    other = tmp_path / "other.pem"
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    other.write_bytes(curve.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for data in (other.read_bytes(), b"", b"nonsense", pem("PUBLIC KEY", b"\0")):
        other.write_bytes(data)
        with pytest.raises(UsageError, match="not an Ed25519 public key"):
            trusting(other)
    for data in (keys.public.read_bytes() * 2, b" " * 100_000):
        other.write_bytes(data)
        with pytest.raises(UsageError, match="expected one public key"):
            trusting(other)


def test_what_is_no_private_key_is_said(keys: KeyPair, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
    )

    secret = read_private_key(keys.private)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word"))
    )
    with pytest.raises(UsageError, match="encrypted; give it open"):
        read_private_key(locked)
    with pytest.raises(UsageError, match="not an Ed25519 private key"):
        read_private_key(keys.public)
    with pytest.raises(UsageError, match="cannot be read"):
        read_private_key(tmp_path)


def test_a_private_key_is_its_owners_from_the_first_moment(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = new_key_pair(tmp_path / "key.pem")
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.private.stat().st_mode) == 0o600
    assert made.public == tmp_path / "key.pub.pem"
    assert not is_open_to_others(made.private)
    assert read_public_key(made.public) == read_private_key(made.private).public_key()
    assert len({made.key, new_key_pair(tmp_path / "second.pem").key}) == 2


def test_no_key_is_overwritten(tmp_path: Path) -> None:
    made = new_key_pair(tmp_path / "key.pem")
    kept = made.private.read_bytes(), made.public.read_bytes()
    with pytest.raises(UsageError, match="no key is overwritten"):
        new_key_pair(tmp_path / "key.pem")
    assert (made.private.read_bytes(), made.public.read_bytes()) == kept
    made.public.unlink()
    with pytest.raises(UsageError, match="no key is overwritten"):
        new_key_pair(tmp_path / "key.pem")
    assert made.private.read_bytes() == kept[0]
    assert not made.public.exists()
    with pytest.raises(UsageError, match="cannot be written"):
        new_key_pair(tmp_path / "absent" / "key.pem")


# What a signature leaves alone


def test_a_bundle_that_is_sealed_anew_has_no_signature(signed: Path, keys: KeyPair) -> None:
    manifest = Bundle.open(signed).manifest
    sealed = seal_folder(signed, manifest)
    assert SIGNATURE not in sealed.files
    assert not (signed / SIGNATURE).exists()
    with pytest.raises(BundleError, match="is not signed"):
        Bundle.open(signed, keys.public)


def test_a_link_in_a_strangers_bundle_is_replaced_and_not_followed(bundle_copy: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept", encoding="utf-8")
    (bundle_copy / SIGNATURE).symlink_to(precious)
    path = write_signature(bundle_copy, bytes(64))
    assert precious.read_text(encoding="utf-8") == "kept"
    assert not path.is_symlink()
    assert path.read_bytes() == bytes(64)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    Bundle.open(bundle_copy).verify()


# The command line


def test_signing_by_the_command_line(here: Cli, bundle_copy: Path, tmp_path: Path) -> None:
    private, public = tmp_path / "team.pem", tmp_path / "team.pub.pem"
    made = json.loads(here("sign", "--new-key", private, "--json").stdout)
    assert made == {
        "schema": 1,
        "kind": "key",
        "private": str(private),
        "public": str(public),
        "key": made["key"],
    }
    fails(here("inspect", bundle_copy, "--trust", public), 3, "is not signed")
    done = json.loads(here("sign", bundle_copy, "--key", private, "--json").stdout)
    assert done == {
        "schema": 1,
        "kind": "signed",
        "path": str(bundle_copy),
        "signature": str(bundle_copy / SIGNATURE),
        "key": made["key"],
    }
    assert here("inspect", bundle_copy, "--trust", public).returncode == 0
    assert here("check", bundle_copy, "--target", "onnxruntime:cpu", "--trust", public).returncode == 0
    again = here("sign", bundle_copy, "--key", private)
    assert (again.returncode, again.stderr) == (0, "")
    assert made["key"] in again.stdout
    assert str(tmp_path / "x.pub.pem") in here("sign", "--new-key", tmp_path / "x.pem").stdout


def test_every_command_that_opens_bundles_can_be_told_whom_to_trust(
    here: Cli, bundle_copy: Path, keys: KeyPair, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for words in (
        ["inspect", bundle_copy],
        ["run", bundle_copy, "photo.jpg"],
        ["check", bundle_copy],
        ["bench", bundle_copy],
        ["lower", bundle_copy, "-o", out],
        ["bisect", bundle_copy, "--data", tmp_path],
        ["ingest", tmp_path, "-b", bundle_copy, "-o", out],
    ):
        fails(here(*words, "--trust", keys.public), 3, "is not signed")
    assert not out.exists()


def test_the_environment_is_obeyed_by_every_command(
    here: Cli, bundle_copy: Path, keys: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUST, str(keys.public))
    fails(here("inspect", bundle_copy), 3, "is not signed")
    fails(
        here("build", bundle_copy, "-o", tmp_path / "out", "--target", "onnxruntime:cpu"), 3, "is not signed"
    )
    assert here("sign", bundle_copy, "--key", keys.private).returncode == 0
    assert here("inspect", bundle_copy).returncode == 0


def test_trust_holds_for_processes_that_a_command_starts_and_ends_with_it(
    here: Cli, signed: Path, keys: KeyPair, strangers: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRUST, str(strangers.public))
    seen = []

    def looking(*arguments: object) -> str:
        seen.append(os.environ[TRUST])
        return require_signature(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(bundles, "require_signature", looking)
    monkeypatch.chdir(keys.public.parent)
    assert here("inspect", signed, "--trust", keys.public.name).returncode == 0
    assert seen == [str(keys.public)]
    assert os.environ[TRUST] == str(strangers.public)
    fails(here("inspect", signed), 3, "does not fit")


def test_a_damaged_bundle_is_not_signed(here: Cli, bundle_copy: Path, keys: KeyPair) -> None:
    name = Bundle.open(bundle_copy).manifest.engines[0].files[0]
    flip(bundle_copy / name, -1)
    fails(here("sign", bundle_copy, "--key", keys.private), 3, "damaged")
    assert not (bundle_copy / SIGNATURE).exists()


def test_a_key_that_others_can_read_is_warned_of(here: Cli, bundle_copy: Path, keys: KeyPair) -> None:
    keys.private.chmod(0o640)
    done = here("sign", bundle_copy, "--key", keys.private)
    assert done.returncode == 0
    assert "warning: " in done.stderr
    assert f"chmod 600 {keys.private}" in done.stderr


def test_wrong_use_of_sign(here: Cli, bundle_copy: Path, keys: KeyPair, tmp_path: Path) -> None:
    fails(here("sign"), 2, "--new-key")
    fails(here("sign", bundle_copy), 2, "--key")
    fails(here("sign", "--key", keys.private), 2, "BUNDLE")
    fails(here("sign", bundle_copy, "--new-key", tmp_path / "x.pem"), 2, "signs nothing")
    fails(here("sign", bundle_copy, "--key", keys.public), 2, "not an Ed25519 private key")
    fails(here("sign", tmp_path, "--key", keys.private), 3, "not a bundle")
    fails(here("sign", "--new-key", keys.private), 2, "is there already")
    fails(here("inspect", bundle_copy, "--trust", tmp_path / "absent.pem"), 2, "cannot be read")
    assert not (bundle_copy / SIGNATURE).exists()


# Without the library


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_but_a_wish_for_trust_imports_the_library(signed: Path) -> None:
    code = (
        "import sys, vsa_rt.cli, vsa_rt.runtime.load, vsa_rt.signature\n"
        "from vsa_rt.bundle import Bundle\n"
        f"Bundle.open({str(signed)!r}).verify()\n"
        "print('cryptography' in sys.modules)"
    )
    assert fresh(code).strip() == "False"


def test_without_the_library_nothing_is_trusted(
    signed: Path, keys: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    Bundle.open(signed).verify()
    for call in (
        lambda: Bundle.open(signed, keys.public),
        lambda: read_private_key(keys.private),
        lambda: new_key_pair(keys.private.with_name("new.pem")),
    ):
        with pytest.raises(EnvironmentUnusable, match=r"pip install 'vsa-rt\[sign\]'"):
            call()
    assert not keys.private.with_name("new.pem").exists()
