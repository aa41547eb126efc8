# SPDX-License-Identifier: Apache-2.0
"""Files beneath a folder: links, digests, and writing under a temporary name."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from orinkit.bundle import files
from orinkit.errors import BundleError, LockedError


def test_a_file_beneath_is_opened_and_a_link_is_not(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/plain").write_bytes(b"here")
    (tmp_path / "sub/link").symlink_to("plain")
    (tmp_path / "folder").symlink_to("sub")
    with files.opened_folder(tmp_path) as root:
        with files.open_beneath(root, "sub/plain") as file:
            assert file.readall() == b"here"
        for path in ("sub/link", "folder/plain"):
            with pytest.raises((BundleError, OSError)):
                files.open_beneath(root, path)


def test_the_digest_is_that_of_the_bytes_and_progress_adds_up(tmp_path: Path) -> None:
    content = os.urandom(files.CHUNK * 2 + 17)
    (tmp_path / "x").write_bytes(content)
    seen: list[int] = []
    with files.opened_folder(tmp_path) as root, files.open_beneath(root, "x") as file:
        assert files.digest(file, len(content), seen.append) == hashlib.sha256(content).hexdigest()
    assert sum(seen) == len(content)
    assert len(seen) > 1


def test_a_replaced_file_is_the_old_one_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    part = files.part_of(tmp_path, "x")
    with files.replacing(path, part) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(ZeroDivisionError), files.replacing(path, part) as file:
        file.write(bytes([1 // len(b"")]))
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_staged_folder_has_one_writer_and_vanishes_when_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with files.staging(target) as part:
        (part / "x").write_bytes(b"1")
        assert not target.exists()
        with pytest.raises(LockedError), files.staging(target):
            pass
    assert (target / "x").read_bytes() == b"1"
    other = tmp_path / "other"
    with pytest.raises(ZeroDivisionError), files.staging(other) as part:
        (part / "x").write_bytes(bytes([1 // len(b"")]))
    assert [entry.name for entry in tmp_path.iterdir()] == ["made"]
