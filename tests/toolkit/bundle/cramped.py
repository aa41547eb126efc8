# SPDX-License-Identifier: Apache-2.0
"""Writes bundles where there is no space, and prints as JSON what was said to it.

full FOLDER    on the disk of this folder, which is filled first
limit FOLDER   with files of at most 1 KiB
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from pathlib import Path

from orinkit.bundle import pack, sign, write
from toolkit.bundle.samples import manifest, signed, staged, tree, unpacked, verdict


def fill(file: Path) -> None:
    """Take all space that is left."""
    with file.open("wb", buffering=0) as out, contextlib.suppress(OSError):
        while out.write(bytes(4096)):
            pass


def said(way: str, parent: Path) -> dict[str, str]:
    """The verdict on each action; nothing may change on the disk."""
    folder, _ = signed(parent)
    staging = staged(parent / "staging")
    pack(folder, parent / "bundle.tar")
    if way == "full":
        fill(parent / "filler")
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, 1 << 10))
    before = tree(parent)
    found = {
        "write": verdict(lambda: write(staging, manifest()), "free some space"),
        "pack": verdict(lambda: pack(folder, parent / "again.tar"), "free some space"),
        "unpack": verdict(lambda: unpacked(parent / "bundle.tar"), "free some space"),
        "sign": verdict(lambda: sign(folder, parent / "key"), "free some space"),
    }
    assert tree(parent) == before
    return found


if __name__ == "__main__":
    json.dump(said(sys.argv[1], Path(sys.argv[2])), sys.stdout)
