# SPDX-License-Identifier: Apache-2.0
"""Detached Ed25519 signatures over the bytes of manifest.json, with keys that are small files.

    private key    PEM (PKCS #8, not encrypted), mode 0600
    public key     one line in <private key>.pub: orin-ed25519 <key id> <base64 of 32 bytes> [comment]
    trusted keys   a folder of *.pub; a file `revoked` in it may list key ids, one per line: <key id> [reason]
    manifest.sig   one line: orin-ed25519 <key id> <base64 of 64 bytes>

The key id is the first 8 bytes of the SHA-256 of the public key, in hexadecimal. Nothing expires, because a board may
believe that it is 1970: a key is taken back by revoking it.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from orinkit.bundle import files
from orinkit.bundle.manifest import MANIFEST, SIGNATURE, decode
from orinkit.bundle.manifest import MAX_BYTES as MAX_MANIFEST
from orinkit.errors import SignatureError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_BYTES = 4096
"""Largest key or signature file."""
MAX_REVOKED = 1 << 20
REVOKED = "revoked"

_SCHEME = "orin-ed25519"
_LINE = re.compile(rf"{_SCHEME} ([0-9a-f]{{16}}) ([A-Za-z0-9+/]+=*)(?: ([^\n]*))?\n")
_KEY_ID = re.compile(r"([0-9a-f]{16})(?: .*)?")


@dataclass(frozen=True)
class PublicKey:
    """Who may sign."""

    data: bytes
    """32 bytes."""
    comment: str = ""
    is_revoked: bool = False

    @property
    def id(self) -> str:
        return hashlib.sha256(self.data).digest()[:8].hex()


def generate(path: Path, comment: str = "") -> PublicKey:
    """Make a key pair: the private key at `path`, the public key at `path`.pub. Raises BundleError: one exists."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    private = Ed25519PrivateKey.generate()
    public = PublicKey(private.public_key().public_bytes_raw(), comment)
    line = _line(public.id, public.data, comment)
    if not _LINE.fullmatch(line):
        raise SignatureError(f"comment: expected a text of one line, found {comment!r}")
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    beside = path.with_name(f"{path.name}.pub")
    with files.os_errors(f"writing the key {path}"), files.creating(path, 0o600) as file:
        file.write(pem)
        with files.creating(beside) as public_file:
            public_file.write(line.encode())
    return public


def sign(folder: Path, private_key: Path) -> PublicKey:
    """Write manifest.sig of the bundle in `folder` with the private key in this file; returns who signed.

    Raises BundleError: no manifest. SignatureError: not a private key, or one that others can read.
    """
    folder = Path(os.path.realpath(folder))
    key = load_private(private_key)
    public = PublicKey(key.public_key().public_bytes_raw())
    with files.os_errors(f"signing the bundle {folder}"):
        with files.opened_folder(folder) as root:
            raw = files.read_small(root, MANIFEST, MAX_MANIFEST)
        decode(raw)
        with files.replacing(folder / SIGNATURE, files.part_of(folder, SIGNATURE)) as file:
            file.write(_line(public.id, key.sign(raw)).encode())
    return public


def load_keys(folder: Path) -> tuple[PublicKey, ...]:
    """The trusted keys in `folder`, sorted by file name.

    Raises BundleError: no such folder, or others may write there. SignatureError: a file holds no key.
    """
    with files.os_errors(f"reading the trusted keys in {folder}"), files.opened_folder(folder) as root:
        files.check_owner(str(folder), os.fstat(root))
        names = sorted(path.name for path in folder.iterdir())
        revoked = _revoked(_read(root, REVOKED, MAX_REVOKED)) if REVOKED in names else frozenset()
        keys = [_public(_read(root, name, MAX_BYTES), name) for name in names if name.endswith(".pub")]
    return tuple(dataclasses.replace(key, is_revoked=key.id in revoked) for key in keys)


def verify(manifest: bytes, signature: bytes | None, keys: Sequence[PublicKey]) -> None:
    """Refuse unless one of `keys` signed these bytes. Raises SignatureError: one sentence for each way to fail."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if signature is None:
        raise SignatureError(f"{SIGNATURE}: expected a signature, found none; sign the bundle with a trusted key")
    key_id, payload = _signature(signature)
    key = next((key for key in keys if key.id == key_id), None)
    if key is None:
        known = ", ".join(key.id for key in keys) or "none"
        raise SignatureError(
            f"{SIGNATURE}: expected one of the trusted keys ({known}), found key {key_id}; get the bundle from"
            " its author, or add the key to the folder of trusted keys"
        )
    if key.is_revoked:
        raise SignatureError(f"{SIGNATURE}: expected a key in force, found the revoked key {key_id}; sign it again")
    try:
        Ed25519PublicKey.from_public_bytes(key.data).verify(payload, manifest)
    except InvalidSignature:
        raise SignatureError(
            f"{SIGNATURE}: expected the signature of this {MANIFEST} by key {key_id}, found that of other bytes; one of"
            " the two was altered or belongs to another bundle: get the bundle again"
        ) from None


def read(root: int) -> bytes | None:
    """The bytes of manifest.sig in the folder of this descriptor, if there is one. Raises BundleError."""
    try:
        return files.read_small(root, SIGNATURE, MAX_BYTES)
    except FileNotFoundError:
        return None


def _line(key_id: str, payload: bytes, comment: str = "") -> str:
    return " ".join(filter(None, (_SCHEME, key_id, base64.b64encode(payload).decode(), comment))) + "\n"


def _fields(text: bytes, length: int, where: str) -> tuple[str, bytes, str]:
    """Key id, payload and comment of a line. Raises SignatureError: any other byte than `_line` writes."""
    try:
        match = _LINE.fullmatch(text.decode())
        payload = base64.b64decode(match[2], validate=True) if match else b""
    except (UnicodeDecodeError, binascii.Error):
        match = None
    # The last digit of base64 has unused bits; writing the line again refuses another spelling of the same payload.
    if match is None or len(payload) != length or _line(match[1], payload, match[3] or "").encode() != text:
        raise SignatureError(
            f"{where}: expected one line '{_SCHEME} <key id> <base64 of {length} bytes>', found another"
        )
    return match[1], payload, match[3] or ""


def _signature(text: bytes) -> tuple[str, bytes]:
    key_id, payload, comment = _fields(text, 64, SIGNATURE)
    if comment:
        raise SignatureError(f"{SIGNATURE}: expected no comment, found one; sign the bundle again")
    return key_id, payload


def _public(text: bytes, where: str) -> PublicKey:
    key_id, data, comment = _fields(text, 32, where)
    key = PublicKey(data, comment)
    if key.id != key_id:
        raise SignatureError(f"{where}: expected key id {key.id} for this key, found {key_id}; copy the file again")
    return key


def _revoked(text: bytes) -> frozenset[str]:
    matches = [_KEY_ID.fullmatch(line) for line in text.decode(errors="replace").splitlines()]
    if not all(matches):
        raise SignatureError(f"{REVOKED}: expected lines '<key id> [reason]', found another; correct the file")
    return frozenset(match[1] for match in matches if match)


def _read(root: int, name: str, limit: int) -> bytes:
    files.check_owner(name, os.stat(name, dir_fd=root, follow_symlinks=False))
    return files.read_small(root, name, limit)


def load_private(path: Path) -> Ed25519PrivateKey:
    """The private key in this file. Raises BundleError: it cannot be read. SignatureError: as of `sign`."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    with files.os_errors(f"reading the private key {path}"), FileIO(path) as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise SignatureError(f"{path}: expected mode 0600, found {mode:04o}; run chmod 0600 on it")
        pem = file.read(MAX_BYTES)
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(f"{path}: expected an Ed25519 private key in PEM without password; generate one")
    return key
