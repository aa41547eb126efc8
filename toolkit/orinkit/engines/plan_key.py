# SPDX-License-Identifier: Apache-2.0
"""The key by which a board knows what it built itself.

A plan is code, and nothing in it tells who made it, so records of plans and timing caches carry an HMAC-SHA256. The key
is 32 random bytes; it is never made of what the machine tells everybody, such as its id. It lies where only its owner
can read it, in the first of these places:

    $CREDENTIALS_DIRECTORY/plan.key           where systemd has handed it over (LoadCredential=)
    /etc/orin/plan.key                        for root
    ~/.local/state/orinkit/plan.key           for anybody else
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from orinkit.bundle import files
from orinkit.errors import BundleError, PlanError

SIZE = 32
"""Bytes of a key, and of a code."""
_NAME = "plan.key"


def code(key: bytes, content: bytes) -> bytes:
    """The HMAC-SHA256 of `content`, 32 bytes."""
    return hmac.digest(key, content, hashlib.sha256)


def read() -> bytes:
    """The key of this board. Raises PlanError: there is none, or one that others can read or write."""
    path = _place()
    try:
        with files.opened_folder(path.parent) as folder:
            info = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
            files.check_owner(path.name, info)
            raw = files.read_small(folder, path.name, SIZE)
    except FileNotFoundError:
        raise PlanError(f"{path}: expected the key of this board's plans, found none; {_ADVICE}") from None
    except (OSError, BundleError) as error:
        raise PlanError(f"{path}: {error}; mend it, or remove it and {_ADVICE}") from None
    if len(raw) != SIZE:
        raise PlanError(f"{path}: expected {SIZE} bytes, found {len(raw)}; remove it and {_ADVICE}")
    # What systemd hands over has an access list, which shows as rights of a group.
    if stat.S_IMODE(info.st_mode) & 0o077 and path != _credential():
        raise PlanError(f"{path}: expected that only its owner can read it, found others too; remove it and {_ADVICE}")
    return raw


def read_or_make() -> bytes:
    """The key of this board, made at its first use. Raises PlanError, BundleError, ResourceError."""
    path = _place()
    if not path.exists():
        with files.os_errors(f"making the key {path}"), suppress(FileExistsError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with files.creating(path, 0o600) as file:
                file.write(secrets.token_bytes(SIZE))
    return read()


_ADVICE = "build the plan with: orin-run build BUNDLE, as the user who runs it, or as root for a service"


def _place() -> Path:
    credential = _credential()
    if credential is not None and credential.exists():
        return credential
    return Path("/etc/orin") / _NAME if os.geteuid() == 0 else Path.home() / ".local/state/orinkit" / _NAME


def _credential() -> Path | None:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(folder) / _NAME if folder else None
