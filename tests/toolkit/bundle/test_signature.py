# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import hashlib
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from orinkit.bundle import Bundle, PublicKey, generate, load_keys, sign
from orinkit.bundle.signature import verify
from orinkit.errors import BundleError, SignatureError
from toolkit.bundle.samples import SUPPORTED, made, opened, signed

BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def trusted(parent: Path, *private: Path) -> Path:
    """A folder that trusts the public halves of these keys."""
    folder = parent / "trusted"
    folder.mkdir(mode=0o755)
    for path in private:
        shutil.copy(f"{path}.pub", folder)
    return folder


def opened_with(folder: Path, keys: tuple[PublicKey, ...]) -> Bundle:
    return Bundle.open(folder, keys=keys, supported=SUPPORTED)


def test_a_bundle_opens_with_the_key_that_signed_it(tmp_path: Path) -> None:
    folder = made(tmp_path / "bundle")
    private = tmp_path / "release"
    key = generate(private, "the release key of 2030")
    generate(tmp_path / "another")
    assert sign(folder, private).id == key.id
    keys = load_keys(trusted(tmp_path, tmp_path / "another", private))
    assert [found.comment for found in keys] == ["", "the release key of 2030"]
    assert keys[1] == key
    assert opened_with(folder, keys).digest == opened(folder).digest


def test_files_of_keys_and_signatures(tmp_path: Path) -> None:
    folder, (key,) = signed(tmp_path)
    before = (tmp_path / "key").read_bytes()
    assert key.id == hashlib.sha256(key.data).hexdigest()[:16]
    assert (tmp_path / "key.pub").read_text() == f"orin-ed25519 {key.id} {base64.b64encode(key.data).decode()}\n"
    assert (folder / "manifest.sig").read_text().startswith(f"orin-ed25519 {key.id} ")
    modes = [
        stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "key", tmp_path / "key.pub", folder / "manifest.sig")
    ]
    assert modes == [0o600, 0o644, 0o644]
    with pytest.raises(BundleError, match="File exists"):
        generate(tmp_path / "key")
    assert (tmp_path / "key").read_bytes() == before


def test_no_private_key_is_left_when_its_public_key_exists(tmp_path: Path) -> None:
    (tmp_path / "key.pub").touch()
    with pytest.raises(BundleError, match="File exists"):
        generate(tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == ["key.pub"]


def test_the_first_vector_of_rfc_8032() -> None:
    key = PublicKey(bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"))
    payload = bytes.fromhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    line = f"orin-ed25519 {key.id} {base64.b64encode(payload).decode()}\n".encode()
    verify(b"", line, [key])
    with pytest.raises(SignatureError, match="found that of other bytes"):
        verify(b"x", line, [key])


def _swap(folder: Path, path: str) -> None:
    """The same file of another bundle that the same key signed."""
    other = made(folder.with_name("other"), version=2)
    sign(other, folder.with_name("key"))
    shutil.copy(other / path, folder / path)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "unsigned": (lambda folder: (folder / "manifest.sig").unlink(), "expected a signature, found none"),
    "of another bundle": (lambda folder: _swap(folder, "manifest.sig"), "found that of other bytes"),
    "another manifest": (lambda folder: _swap(folder, "manifest.json"), "found that of other bytes"),
    "empty": (lambda folder: (folder / "manifest.sig").write_bytes(b""), "expected one line"),
    "too long": (lambda folder: (folder / "manifest.sig").write_bytes(b"x" * 4097), "at most 4096 bytes"),
    "binary": (lambda folder: (folder / "manifest.sig").write_bytes(b"\xff" * 64), "expected one line"),
    "comment": (lambda folder: _appended(folder / "manifest.sig", b" hello\n"), "expected no comment"),
    "second line": (lambda folder: _appended(folder / "manifest.sig", b"\nhello\n"), "expected one line"),
    "short": (
        lambda folder: (folder / "manifest.sig").write_text("orin-ed25519 0123456789abcdef QUJD\n"),
        "<base64 of 64 bytes>",
    ),
}


def _appended(path: Path, tail: bytes) -> None:
    path.write_bytes(path.read_bytes().rstrip(b"\n") + tail)


@pytest.mark.parametrize("name", REFUSED)
def test_each_wrong_signature_has_its_sentence(name: str, tmp_path: Path) -> None:
    attack, says = REFUSED[name]
    folder, keys = signed(tmp_path)
    attack(folder)
    with pytest.raises(BundleError, match=says):
        opened_with(folder, keys)


def test_unknown_and_revoked_keys_have_their_sentences(tmp_path: Path) -> None:
    folder, (key,) = signed(tmp_path)
    other = generate(tmp_path / "other")
    with pytest.raises(SignatureError, match=rf"trusted keys \({other.id}\), found key {key.id}"):
        opened_with(folder, (other,))
    with pytest.raises(SignatureError, match=rf"trusted keys \(none\), found key {key.id}"):
        opened_with(folder, ())
    store = trusted(tmp_path, tmp_path / "key")
    assert opened_with(folder, load_keys(store)).folder == folder
    (store / "revoked").write_text(f"{other.id}\n{key.id} lost with a laptop\n")
    with pytest.raises(SignatureError, match=f"found the revoked key {key.id}"):
        opened_with(folder, load_keys(store))


def test_each_changed_byte_of_a_signature_is_refused(tmp_path: Path) -> None:
    folder, keys = signed(tmp_path)
    manifest, signature = ((folder / name).read_bytes() for name in ("manifest.json", "manifest.sig"))
    verify(manifest, signature, keys)
    for position in range(len(signature)):
        for change in (1, 2, 16, 32, 128, 255):
            changed = bytearray(signature)
            changed[position] ^= change
            with pytest.raises(SignatureError):
                verify(manifest, bytes(changed), keys)


def test_each_changed_byte_of_a_manifest_is_refused(tmp_path: Path) -> None:
    folder, keys = signed(tmp_path)
    manifest, signature = ((folder / name).read_bytes() for name in ("manifest.json", "manifest.sig"))
    for position in range(len(manifest)):
        changed = bytearray(manifest)
        changed[position] ^= 1 << position % 8
        with pytest.raises(SignatureError, match="found that of other bytes"):
            verify(bytes(changed), signature, keys)


def test_another_spelling_of_the_same_signature_is_refused(tmp_path: Path) -> None:
    folder, keys = signed(tmp_path)
    manifest, signature = ((folder / name).read_bytes() for name in ("manifest.json", "manifest.sig"))
    last = BASE64.index(chr(signature[-4]))
    other = signature[:-4] + BASE64[last ^ 1].encode() + signature[-3:]
    assert base64.b64decode(other.split()[2]) == base64.b64decode(signature.split()[2])
    with pytest.raises(SignatureError, match="expected one line"):
        verify(manifest, other, keys)


def test_the_signature_comes_before_the_manifest_is_parsed(tmp_path: Path) -> None:
    folder, keys = signed(tmp_path)
    (folder / "manifest.json").write_bytes(b"[" * 100_000)
    with pytest.raises(SignatureError, match="found that of other bytes"):
        opened_with(folder, keys)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622, 0o666])
def test_a_private_key_that_others_can_use_is_refused(mode: int, tmp_path: Path) -> None:
    folder, _ = signed(tmp_path)
    (tmp_path / "key").chmod(mode)
    with pytest.raises(SignatureError, match=f"expected mode 0600, found 0{mode:o}"):
        sign(folder, tmp_path / "key")


def _pem(key: Ed25519PrivateKey | X25519PrivateKey, encryption: KeySerializationEncryption) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a key",
        _pem(X25519PrivateKey.generate(), NoEncryption()),
        _pem(Ed25519PrivateKey.generate(), BestAvailableEncryption(b"password")),
    ],
    ids=["empty", "text", "another kind", "with a password"],
)
def test_what_is_no_private_key_is_refused(content: bytes, tmp_path: Path) -> None:
    folder = made(tmp_path / "bundle")
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(SignatureError, match="expected an Ed25519 private key"):
        sign(folder, tmp_path / "key")
    assert not (folder / "manifest.sig").exists()


def test_only_a_manifest_is_signed(tmp_path: Path) -> None:
    generate(tmp_path / "key")
    folder = made(tmp_path / "bundle")
    (folder / "manifest.json").write_bytes(b"{}\n")
    with pytest.raises(BundleError, match="expected format 1"):
        sign(folder, tmp_path / "key")
    with pytest.raises(BundleError, match="No such file"):
        sign(tmp_path / "nowhere", tmp_path / "key")
    assert not (folder / "manifest.sig").exists()


@pytest.mark.parametrize("comment", ["two\nlines", "\n"])
def test_a_comment_has_one_line(comment: str, tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="a text of one line"):
        generate(tmp_path / "key", comment)
    assert not list(tmp_path.iterdir())


KEYS: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder that others can write": (lambda store: store.chmod(0o775), "only its owner can write"),
    "key that others can write": (lambda store: (store / "key.pub").chmod(0o646), "only its owner can write"),
    "list that others can write": (lambda store: _made(store / "revoked", b"", 0o666), "only its owner can write"),
    "another key id": (
        lambda store: _made(store / "key.pub", b"orin-ed25519 0123456789abcdef " + b"A" * 43 + b"=\n"),
        "expected key id",
    ),
    "short key": (lambda store: _made(store / "key.pub", b"orin-ed25519 0123456789abcdef QUJD\n"), "of 32 bytes"),
    "another scheme": (lambda store: _made(store / "key.pub", b"ssh-ed25519 AAAA\n"), "expected one line"),
    "padding": (lambda store: _made(store / "key.pub", b"orin-ed25519 0123456789abcdef A=\n"), "expected one line"),
    "private key": (lambda store: shutil.copy(store.parent / "key", store / "key.pub"), "expected one line"),
    "link": (lambda store: (store / "other.pub").symlink_to("key.pub"), "other.pub"),
    "list with a typing error": (lambda store: _made(store / "revoked", b"0123\n"), "<key id> \\[reason\\]"),
    "binary list": (lambda store: _made(store / "revoked", b"\xff\xfe\n"), "<key id> \\[reason\\]"),
    "missing folder": (shutil.rmtree, "No such file"),
}


def _made(path: Path, content: bytes, mode: int = 0o644) -> None:
    path.write_bytes(content)
    path.chmod(mode)


@pytest.mark.parametrize("name", KEYS)
def test_doubtful_trusted_keys_are_refused(name: str, tmp_path: Path) -> None:
    attack, says = KEYS[name]
    generate(tmp_path / "key")
    store = trusted(tmp_path, tmp_path / "key")
    assert len(load_keys(store)) == 1
    attack(store)
    with pytest.raises(BundleError, match=says):
        load_keys(store)


def test_other_files_beside_the_keys_are_nobodys_business(tmp_path: Path) -> None:
    generate(tmp_path / "key")
    store = trusted(tmp_path, tmp_path / "key")
    (store / "README").touch()
    (store / "old").mkdir()
    assert [key.comment for key in load_keys(store)] == [""]
