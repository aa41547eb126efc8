# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from orinkit.bundle import pack, unpack, write
from orinkit.bundle.manifest import decode, encode
from orinkit.errors import BundleError, LockedError, ResourceError
from toolkit.bundle.samples import CONTENT, SUPPORTED, entry, made, manifest, program, tree, unpacked


@pytest.mark.parametrize("action", ["write", "sign", "pack", "unpack"])
def test_a_kill_at_any_step_leaves_the_old_state_or_the_new_one(action: str) -> None:
    states = json.loads(program("toolkit.bundle.killed", "steps", action))
    assert states == sorted(states, reverse=True), "new states come last"
    assert states.count("old") >= 5
    assert "new" in states


def test_a_kill_at_any_moment_leaves_the_old_state_or_the_new_one() -> None:
    assert set(json.loads(program("toolkit.bundle.killed", "moments", "unpack"))) <= {"old", "new"}


def test_a_second_writer_is_told_to_wait(tmp_path: Path) -> None:
    folder = made(tmp_path / "bundle")
    pack(folder, tmp_path / "bundle.tar")
    refused: list[str] = []

    def meanwhile(_: int) -> None:
        for act in (lambda: unpacked(tmp_path / "bundle.tar"), lambda: pack(folder, tmp_path / "again.tar")):
            with pytest.raises(LockedError, match="expected to be the only writer") as caught:
                act()
            refused.append(str(caught.value))

    def packing(_: int) -> None:
        if not (tmp_path / "unpacked").exists():
            unpack(tmp_path / "bundle.tar", tmp_path / "unpacked", keys=None, supported=SUPPORTED, progress=meanwhile)

    pack(folder, tmp_path / "again.tar", packing)
    assert len(refused) == 2 * sum(1 for content in CONTENT.values() if content)
    assert tree(tmp_path / "unpacked") == tree(folder)
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "bundle.tar").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "bundle.tar", "unpacked", "again.tar"}


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    folder = made(tmp_path / "bundle")
    pack(folder, tmp_path / "bundle.tar")
    before = tree(tmp_path)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    for act in (
        lambda: pack(folder, tmp_path / "again.tar", interrupt),
        lambda: write(folder, manifest(version=2), interrupt),
        lambda: unpack(tmp_path / "bundle.tar", tmp_path / "new", keys=None, supported=SUPPORTED, progress=interrupt),
    ):
        with pytest.raises(KeyboardInterrupt):
            act()
        assert tree(tmp_path) == before


def test_a_temporary_name_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    folder = made(tmp_path / "bundle")
    pack(folder, tmp_path / "bundle.tar")
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_bytes(b"keep me")
    (tmp_path / ".new.part").symlink_to(victim)
    (tmp_path / ".new.tar.part").symlink_to(victim / "file")
    with pytest.raises(LockedError):
        unpack(tmp_path / "bundle.tar", tmp_path / "new", keys=None, supported=SUPPORTED)
    with pytest.raises(BundleError, match=r"new\.tar\.part"):
        pack(folder, tmp_path / "new.tar")
    assert tree(victim) == {"file": b"keep me"}


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(tmp_path: Path) -> None:
    good = decode((made(tmp_path / "bundle") / "manifest.json").read_bytes())
    raw = encode(dataclasses.replace(good, files=(dataclasses.replace(good.files[0], size=1 << 60), *good.files[1:])))
    (tmp_path / "bundle.tar").write_bytes(entry("manifest.json", raw) + bytes(1024))
    needed = (1 << 60) + sum(item.size for item in good.files[1:]) + len(raw)
    with pytest.raises(ResourceError, match=rf"{tmp_path}: expected {needed} free bytes, found \d+"):
        unpacked(tmp_path / "bundle.tar")
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "bundle.tar"}


def test_files_that_may_not_grow_leave_nothing_behind(tmp_path: Path) -> None:
    said = json.loads(program("toolkit.bundle.cramped", "limit", str(tmp_path)))
    assert said == {"write": "ResourceError", "pack": "ResourceError", "unpack": "ResourceError", "sign": "accepted"}


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=256k none {tmp_path}"
    own_mounts = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*own_mounts, mount], stderr=subprocess.PIPE).returncode:
        pytest.skip("no file system may be mounted here")
    run = [*own_mounts, f'{mount} && exec "$0" "$@"']
    said = json.loads(program("toolkit.bundle.cramped", "full", str(tmp_path), wrapper=run))
    assert set(said.values()) == {"ResourceError"}
    assert len(said) == 4
