# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orinkit.bundle import Bundle, write
from orinkit.errors import BundleError
from toolkit.bundle.samples import (
    CONTENT,
    MARK,
    SUPPORTED,
    Attacks,
    judged,
    made,
    manifest,
    opened,
    signed,
    staged,
    verdict,
)


def _replaced(path: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def attack(folder: Path) -> None:
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        make(target)

    return attack


def _linked(target: Path) -> None:
    """The same bytes behind a symbolic link."""
    outside = target.parent.parent / MARK
    outside.write_bytes(CONTENT[target.name])
    target.symlink_to(outside)


def _linked_folder(target: Path) -> None:
    outside = target.parent.parent / f"{MARK}-folder"
    for path in ("chat_template.jinja", "empty.txt", "tokenizer.json"):
        outside.mkdir(exist_ok=True)
        (outside / path).write_bytes(CONTENT[f"tokenizer/{path}"])
    target.symlink_to(outside)


def _bound(target: Path) -> None:
    here = Path.cwd()
    os.chdir(target.parent)  # a socket's address holds 107 bytes
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(target.name)
    os.chdir(here)


def _deep(target: Path) -> None:
    for _ in range(60):
        target /= "a"
        target.mkdir(parents=True)


ATTACKS: Attacks = {
    "symbolic link": (_replaced("model.data", _linked), "found a symbolic link"),
    "symbolic link to a folder": (_replaced("tokenizer", _linked_folder), "'tokenizer'"),
    "dangling link": (_replaced("model.data", lambda path: path.symlink_to("nowhere")), "found a symbolic link"),
    "hard link": (lambda folder: (folder.parent / MARK).hardlink_to(folder / "model.data"), "found 2 hard links"),
    "pipe": (_replaced("model.data", os.mkfifo), "found a pipe"),
    "socket": (_replaced("model.data", _bound), "found a socket"),
    "pipe as manifest": (_replaced("manifest.json", os.mkfifo), "found a pipe"),
    "manifest behind a link": (_replaced("manifest.json", lambda path: path.symlink_to("model.data")), "manifest.json"),
    "pipe as signature": (_replaced("manifest.sig", os.mkfifo), "found a pipe"),
    "folder as file": (_replaced("model.data", Path.mkdir), "'model.data/'"),
    "file as folder": (_replaced("tokenizer", Path.touch), "'tokenizer'"),
    "setuid": (lambda folder: (folder / "plugins/liborin_plugins.so").chmod(0o4755), "no setuid"),
    "setgid": (lambda folder: (folder / "model.data").chmod(0o2755), "no setuid"),
    "extra file": (lambda folder: (folder / "tokenizer/more.json").touch(), "'tokenizer/more.json': expected only"),
    "hidden file": (lambda folder: (folder / ".x").touch(), "'.x': expected only"),
    "plan": (lambda folder: (folder / "model.plan").touch(), "'model.plan': expected only"),
    "name that is not UTF-8": (lambda folder: Path(os.fsdecode(bytes(folder) + b"/\xff")).touch(), "expected only"),
    "empty folder": (lambda folder: (folder / "tokenizer/more").mkdir(), "'tokenizer/more/': expected only"),
    "deep folders": (lambda folder: _deep(folder / "deep"), "'deep/': expected only"),
    "missing file": (lambda folder: (folder / "tokenizer/empty.txt").unlink(), "expected the file, found none"),
    "missing manifest": (lambda folder: (folder / "manifest.json").unlink(), "No such file"),
    "missing folder": (shutil.rmtree, "No such file"),
    "one byte less": (lambda folder: (folder / "model.data").write_bytes(CONTENT["model.data"][:-1]), "found 1279"),
    "one byte more": (lambda folder: (folder / "model.data").write_bytes(CONTENT["model.data"] + b"x"), "found 1281"),
    "other bytes": (lambda folder: (folder / "model.data").write_bytes(bytes(1280)), "expected SHA-256"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_folder_is_refused(name: str, tmp_path: Path) -> None:
    attack, says = ATTACKS[name]
    assert judged(attack, says, tmp_path / "bundle") == "BundleError"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
def test_a_device_is_refused(tmp_path: Path) -> None:
    null = os.makedev(1, 3)
    attack = _replaced("model.data", lambda path: os.mknod(path, 0o644 | stat.S_IFCHR, null))
    assert judged(attack, "found a character device", tmp_path / "bundle") == "BundleError"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("module") / "bundle")


@settings(deadline=None)
@given(
    path=st.sampled_from([path for path in CONTENT if CONTENT[path]]),
    position=st.integers(0, 1 << 30),
    change=st.integers(1, 255),
)
def test_a_changed_byte_of_a_file_is_refused(folder: Path, path: str, position: int, change: int) -> None:
    raw = bytearray(CONTENT[path])
    raw[position % len(raw)] ^= change
    (folder / path).write_bytes(raw)
    with pytest.raises(BundleError, match="expected SHA-256"):
        opened(folder)
    (folder / path).write_bytes(CONTENT[path])
    assert opened(folder)


def test_an_opened_bundle_knows_its_files(tmp_path: Path) -> None:
    folder = made(tmp_path / "bundle")
    (tmp_path / "current").symlink_to("bundle")
    steps: list[int] = []
    bundle = Bundle.open(tmp_path / "current", keys=None, supported=SUPPORTED, progress=steps.append)
    assert sum(steps) == sum(map(len, CONTENT.values()))
    assert bundle.folder == folder
    assert bundle.digest == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert {entry.path for entry in bundle.manifest.files} == set(CONTENT)
    assert bundle.graph == folder / "model.onnx"
    assert bundle.data == folder / "model.data"
    assert bundle.tokenizer == folder / "tokenizer"
    assert bundle.plugins == folder / "plugins/liborin_plugins.so"
    assert bundle.path("tokenizer/empty.txt").read_bytes() == b""


def test_a_bundle_may_come_without_plugins(tmp_path: Path) -> None:
    folder = staged(tmp_path / "bundle")
    shutil.rmtree(folder / "plugins")
    write(folder, manifest())
    assert opened(folder).plugins is None


def test_the_manifest_is_rewritten_in_one_step(tmp_path: Path) -> None:
    folder = made(tmp_path / "bundle")
    (tmp_path / ".bundle.manifest.json.part").write_bytes(b"left by a killed run" * 1000)
    first = opened(made(tmp_path / "same")).digest
    assert write(folder, manifest(version=2)).version == 2
    assert opened(folder).digest != first
    assert stat.S_IMODE((folder / "manifest.json").stat().st_mode) == 0o644


UNWRITABLE: Attacks = {
    "symbolic link": (_replaced("model.data", _linked), "found a symbolic link"),
    "symbolic link to a folder": (_replaced("tokenizer", _linked_folder), "found a symbolic link"),
    "hard link": (lambda folder: (folder.parent / MARK).hardlink_to(folder / "model.data"), "found 2 hard links"),
    "pipe": (_replaced("model.data", os.mkfifo), "found a pipe"),
    "setuid": (lambda folder: (folder / "model.data").chmod(0o4755), "no setuid"),
    "hidden file": (lambda folder: (folder / "tokenizer/.cache").touch(), "'tokenizer/.cache'; rename"),
    "space in a name": (lambda folder: (folder / "a b.json").touch(), "'a b.json'; rename"),
    "long path": (lambda folder: _deep(folder / "deep"), "expected at most 100"),
    "empty folder": (lambda folder: (folder / "tokenizer/more").mkdir(), "found an empty one"),
    "pickle": (lambda folder: (folder / "tokenizer/vocab.pkl").touch(), "'tokenizer/vocab.pkl'; leave it out"),
    "two cases": (lambda folder: (folder / "Model.data").touch(), "differ in more than case"),
    "no weights": (lambda folder: (folder / "model.data").unlink(), "expected 'model.data', found none"),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), "expected 'tokenizer/tokenizer.json'"),
    "signature": (lambda folder: (folder / "manifest.sig").touch(), "expected no manifest.sig yet"),
    "missing folder": (shutil.rmtree, "No such file"),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_nothing_is_written_that_could_not_be_opened(name: str, tmp_path: Path) -> None:
    attack, says = UNWRITABLE[name]
    folder = staged(tmp_path / "bundle")
    attack(folder)
    assert verdict(lambda: write(folder, manifest()), says) == "BundleError"
    assert not (folder / "manifest.json").exists()
    assert not (tmp_path / ".bundle.manifest.json.part").exists()


@pytest.mark.parametrize("path", [".", "tokenizer", "model.data", "manifest.json", "manifest.sig"])
def test_a_signed_bundle_must_lie_where_nobody_else_writes(path: str, tmp_path: Path) -> None:
    folder, keys = signed(tmp_path)
    (folder / path).chmod((folder / path).stat().st_mode | 0o020)
    with pytest.raises(BundleError, match="only its owner can write"):
        Bundle.open(folder, keys=keys, supported=SUPPORTED)
    assert opened(folder).folder == folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("path", [".", "model.onnx"])
def test_a_signed_bundle_must_belong_to_who_runs(path: str, tmp_path: Path) -> None:
    folder, keys = signed(tmp_path)
    os.chown(folder / path, 12345, -1)
    with pytest.raises(BundleError, match="found uid 12345"):
        Bundle.open(folder, keys=keys, supported=SUPPORTED)


def test_read_and_open_file_hash_again(tmp_path: Path) -> None:
    bundle = opened(made(tmp_path / "bundle"))
    assert bundle.read("model.onnx") == b"graph"
    with bundle.open_file("model.data") as file:
        (bundle.data).rename(tmp_path / "away")
        bundle.data.write_bytes(bytes(1280))
        assert Path(f"/proc/self/fd/{file.fileno()}").read_bytes() == CONTENT["model.data"]
        assert file.read() == CONTENT["model.data"]
    for read in (bundle.read, bundle.open_file):
        with pytest.raises(BundleError, match=r"model\.data: expected SHA-256"):
            read("model.data")
        with pytest.raises(BundleError, match=r"that the manifest lists, found '\.\./bundle/model\.data'"):
            read("../bundle/model.data")
    with pytest.raises(BundleError, match="that the manifest lists"):
        bundle.path("/etc/passwd")


def test_links_that_appear_after_the_check_are_not_followed(tmp_path: Path) -> None:
    bundle = opened(made(tmp_path / "bundle"))
    _replaced("model.data", _linked)(bundle.folder)
    _replaced("tokenizer", _linked_folder)(bundle.folder)
    for path in ("model.data", "tokenizer/tokenizer.json"):
        assert bundle.path(path).read_bytes() == CONTENT[path]
        for read in (bundle.read, bundle.open_file):
            with pytest.raises(BundleError, match=f"reading {path}"):
                read(path)


def test_bytes_that_are_swapped_while_they_are_read_never_come_through(tmp_path: Path) -> None:
    bundle = opened(made(tmp_path / "bundle"))
    good, bad = tmp_path / "good", tmp_path / "bad"
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            for source, content in ((bad, bytes(1280)), (good, CONTENT["model.data"])):
                source.write_bytes(content)
                source.rename(bundle.data)

    racer = threading.Thread(target=swap)
    racer.start()
    refused = 0
    try:
        for _ in range(3000):
            try:
                assert bundle.read("model.data") == CONTENT["model.data"]
            except BundleError:
                refused += 1
    finally:
        done.set()
        racer.join()
    assert refused


def test_importing_the_bundle_is_light() -> None:
    program = "import sys, orinkit.bundle; print([name for name in sys.modules if name.startswith('cryptography')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
