# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orinkit.bundle import Bundle, PublicKey, pack, unpack
from orinkit.bundle.archive import header
from orinkit.errors import BundleError, SignatureError
from toolkit.bundle.samples import (
    CONTENT,
    MARK,
    SUPPORTED,
    entry,
    judged_archive,
    made,
    opened,
    signed,
    tree,
    unpacked,
)

NAMES = ["manifest.json", *sorted(CONTENT)]


def extended(name: str, content: bytes, form: Literal[1, 2], **extensions: str) -> bytes:
    """An entry with an extension of GNU or PAX, as Python's tarfile writes it."""
    info = tarfile.TarInfo(name)
    info.size, info.pax_headers = len(content), extensions
    return info.tobuf(form) + content + bytes(-len(content) % 512)


def entries_of(folder: Path) -> list[bytes]:
    """Entries of a good archive: manifest, data, graph, plugins, three files of the tokenizer."""
    return [entry(name, (folder / name).read_bytes()) for name in NAMES]


def _with(index: int, *entries: bytes, drop: int = 0) -> Callable[[Path], bytes]:
    """A good archive in which entries stand before those from `index` on; `drop` of these are left out."""

    def attack(folder: Path) -> bytes:
        good = entries_of(folder)
        return b"".join([*good[:index], *entries, *good[index + drop :]]) + bytes(1024)

    return attack


def _instead(kind: bytes = b"0", fields: Mapping[int, bytes] | None = None) -> Callable[[Path], bytes]:
    """A good archive but for the type and these fields in the header of model.data."""
    return _with(1, entry("model.data", CONTENT["model.data"], {TYPE: kind, **(fields or {})}), drop=1)


def _by_pax(**extensions: str) -> Callable[[Path], bytes]:
    return _with(1, extended("model.data", CONTENT["model.data"], tarfile.PAX_FORMAT, **extensions), drop=1)


def _changed(change: Callable[[bytes], bytes]) -> Callable[[Path], bytes]:
    return lambda folder: change(b"".join(entries_of(folder)) + bytes(1024))


MODE, OWNER, SIZE, TIME, TYPE, LINK, MAGIC, PREFIX = 100, 108, 124, 136, 156, 157, 257, 345
OUT = f"../{MARK}"
TERABYTE = b"\x80" + (1 << 40).to_bytes(11, "big")
ATTACKS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "entry in the parent folder": (_with(1, entry(OUT, b"x")), f"found '{OUT}' of type b'0'"),
    "entry in the parent folder at the end": (_with(7, entry(OUT, b"x")), f"expected the end, found '{OUT}'"),
    "entry with an absolute path": (_with(1, entry(f"/tmp/{MARK}", b"x")), f"found '/tmp/{MARK}'"),
    "link, then a file through it": (
        _with(4, entry("tokenizer", fields={TYPE: b"2", LINK: b".."})),
        "found 'tokenizer' of type b'2'",
    ),
    "link in the place of a file": (_instead(b"2", {LINK: OUT.encode()}), "of type b'2'"),
    "hard link entry": (_instead(b"1", {LINK: OUT.encode()}), "of type b'1'"),
    "character device": (_instead(b"3"), "of type b'3'"),
    "block device": (_instead(b"4"), "of type b'4'"),
    "folder entry": (_instead(b"5"), "of type b'5'"),
    "pipe entry": (_instead(b"6"), "of type b'6'"),
    "contiguous file": (_instead(b"7"), "of type b'7'"),
    "sparse file of 1 TB": (_instead(b"S", {SIZE: TERABYTE}), "of type b'S'"),
    "global extension": (_instead(b"g"), "of type b'g'"),
    "old type of file": (_instead(b"\0"), "expected the plain file 'model.data'"),
    "setuid entry": (_instead(fields={MODE: b"0004755"}), "expected the plain file 'model.data'"),
    "another owner": (_instead(fields={OWNER: b"0001750"}), "expected the plain file 'model.data'"),
    "another time": (_instead(fields={TIME: b"14000000000"}), "expected the plain file 'model.data'"),
    "another magic": (_instead(fields={MAGIC: b"ustar  \0"}), "expected the plain file 'model.data'"),
    "prefix to the path": (_instead(fields={PREFIX: b".."}), "expected the plain file 'model.data'"),
    "data behind the path": (_instead(fields={11: b"x"}), "expected the plain file 'model.data'"),
    "size of 1 TB": (_instead(fields={SIZE: TERABYTE}), "expected the plain file 'model.data' of 1280 bytes"),
    "same size in binary": (_instead(fields={SIZE: b"\x80" + (1280).to_bytes(11, "big")}), "of 1280 bytes, found"),
    "wrong checksum": (_changed(lambda raw: raw.replace(b"\0 0" + bytes(100), b"\0\0000" + bytes(100))), "type b'0'"),
    "sparse by PAX": (_by_pax(**{"GNU.sparse.realsize": str(1 << 40)}), "of type b'x'"),
    "path by PAX": (_by_pax(path=OUT), "of type b'x'"),
    "size by PAX": (_by_pax(size=str(1 << 40)), "of type b'x'"),
    "long name by GNU": (_with(1, extended("../" * 40 + MARK, b"x", tarfile.GNU_FORMAT)), "of type b'L'"),
    "entry twice": (_with(1, entry("model.data", CONTENT["model.data"])), "expected the plain file 'model.onnx'"),
    "entry in another case": (_with(1, entry("Model.data", CONTENT["model.data"]), drop=1), "found 'Model.data'"),
    "missing entry": (_with(1, drop=1), "expected the plain file 'model.data'"),
    "another order": (_with(1, entry("model.onnx", CONTENT["model.onnx"])), "expected the plain file 'model.data'"),
    "manifest not first": (_with(0, drop=1), "expected the plain file 'manifest.json'"),
    "second manifest": (_with(1, entry("manifest.json", b"{}")), "found 'manifest.json'"),
    "one byte less in an entry": (_with(1, entry("model.data", bytes(1279)), drop=1), "of 1280 bytes, found"),
    "other bytes in an entry": (_changed(lambda raw: raw.replace(b"library", b"LIBRARY")), "expected SHA-256"),
    "manifest of 1 TB": (_with(0, entry("manifest.json", fields={SIZE: TERABYTE}), drop=1), "of at most 8388608 bytes"),
    "manifest of 8 GiB": (
        _with(0, entry("manifest.json", fields={SIZE: b"77777777777"}), drop=1),
        "of at most 8388608 bytes",
    ),
    "manifest of a negative size": (
        _with(0, entry("manifest.json", fields={SIZE: b"-0000000001"}), drop=1),
        "of at most 8388608 bytes",
    ),
    "data in the padding": (_changed(lambda raw: raw.replace(b"graph\0", b"graph!")), "zeros behind 'model.onnx'"),
    "data behind the end": (_changed(lambda raw: raw + b"x"), "found more data"),
    "one zero block": (_changed(lambda raw: raw[:-512]), "found the end"),
    "cut in a file": (_changed(lambda raw: raw[:-1200]), "found the end"),
    "cut in the manifest": (_changed(lambda raw: raw[:700]), "found the end"),
    "empty archive": (lambda _: b"", "found the end"),
    "archive of zeros": (lambda _: bytes(10240), "expected manifest.json"),
    "text": (lambda _: b"this is no archive\n" * 100, "expected manifest.json"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_archive_is_refused_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    attack, says = ATTACKS[name]
    store = tmp_path / "store"
    assert judged_archive(attack, says, store / "bundle") == "BundleError"
    left = {path.name for path in store.iterdir()}
    assert left == {"bundle", "bundle.tar"}
    assert not [path for path in (tmp_path / MARK, store / MARK, Path("/tmp", MARK)) if path.exists()]


def test_a_million_entries_are_refused_at_the_first(tmp_path: Path) -> None:
    folder = made(tmp_path / "bundle")
    many = entry("tokenizer/x.json") * 10_000
    with (tmp_path / "bundle.tar").open("wb") as file:
        file.writelines(entries_of(folder))
        file.writelines(many for _ in range(100))
    with pytest.raises(BundleError, match=r"expected the end, found 'tokenizer/x\.json'"):
        unpacked(tmp_path / "bundle.tar")
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "bundle.tar"}
    (tmp_path / "bundle.tar").unlink()


def test_what_was_packed_is_unpacked(tmp_path: Path) -> None:
    folder, keys = signed(tmp_path)
    steps: list[int] = []
    pack(folder, tmp_path / "bundle.tar", steps.append)
    before = os.umask(0o077)
    unpack(tmp_path / "bundle.tar", tmp_path / "new", keys=keys, supported=SUPPORTED, progress=steps.append)
    os.umask(before)
    assert tree(tmp_path / "new") == tree(folder)
    assert sum(steps) == 2 * sum(map(len, CONTENT.values()))
    assert Bundle.open(tmp_path / "new", keys=keys, supported=SUPPORTED).digest == opened(folder).digest
    for path in (tmp_path / "new", *(tmp_path / "new").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644)
    assert stat.S_IMODE((tmp_path / "bundle.tar").stat().st_mode) == 0o644


def test_the_same_bundle_gives_the_same_archive(tmp_path: Path) -> None:
    folder, _ = signed(tmp_path)
    pack(folder, tmp_path / "first.tar")
    before = os.umask(0o077)
    shutil.copytree(folder, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        path.chmod(0o700)
        os.utime(path, (1, 2))
    (tmp_path / "second.tar").write_bytes(b"an older archive" * 10_000)
    pack(tmp_path / "copy", tmp_path / "second.tar")
    os.umask(before)
    assert (tmp_path / "first.tar").read_bytes() == (tmp_path / "second.tar").read_bytes()


def test_other_programs_read_the_archive(tmp_path: Path) -> None:
    folder, _ = signed(tmp_path)
    pack(folder, tmp_path / "bundle.tar")
    expected = ["manifest.json", "manifest.sig", *sorted(CONTENT)]
    with tarfile.open(tmp_path / "bundle.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == expected
        assert {(member.mode, member.uid, member.gid, member.mtime, member.uname) for member in members} == {
            (0o644, 0, 0, 0, "")
        }
    (tmp_path / "new").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "bundle.tar", "-C", tmp_path / "new", "--no-same-owner"], check=True)
    assert tree(tmp_path / "new") == tree(folder)


@pytest.mark.parametrize("size", [0, 1, (8 << 30) - 1, 8 << 30, (1 << 63) - 1])
@pytest.mark.parametrize("path", ["model.data", "x" * 100])
def test_a_header_says_what_tarfile_reads(path: str, size: int) -> None:
    found = tarfile.TarInfo.frombuf(header(path, size), "utf-8", "strict")
    assert (found.name, found.size, found.type) == (path, size, tarfile.REGTYPE)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path, tuple[PublicKey, ...]]:
    """Bytes of a signed archive, a folder to unpack it in, the keys that trust it."""
    parent = tmp_path_factory.mktemp("module")
    folder, keys = signed(parent)
    pack(folder, parent / "bundle.tar")
    return (parent / "bundle.tar").read_bytes(), parent, keys


@settings(deadline=None)
@given(position=st.integers(0, 1 << 30), change=st.integers(1, 255))
def test_a_changed_byte_of_a_signed_archive_is_refused(
    packed: tuple[bytes, Path, tuple[PublicKey, ...]], position: int, change: int
) -> None:
    good, parent, keys = packed
    raw = bytearray(good)
    raw[position % len(raw)] ^= change
    (parent / "changed.tar").write_bytes(raw)
    with pytest.raises(BundleError):
        unpack(parent / "changed.tar", parent / "new", keys=keys, supported=SUPPORTED)
    assert not (parent / "new").exists()


def test_nothing_is_created_before_signature_and_ops_are_right(tmp_path: Path) -> None:
    folder, keys = signed(tmp_path)
    (folder / "manifest.sig").unlink()
    pack(folder, tmp_path / "bundle.tar")
    store = tmp_path / "store"
    store.mkdir(mode=0o500)
    before = store.stat().st_mtime_ns
    with pytest.raises(SignatureError, match="found none"):
        unpack(tmp_path / "bundle.tar", store / "new", keys=keys, supported=SUPPORTED)
    with pytest.raises(BundleError, match="'OrinAttention' version '1' where it has 'none'"):
        unpack(tmp_path / "bundle.tar", store / "new", keys=None, supported={"OrinLinear": "1"})
    assert store.stat().st_mtime_ns == before


def test_an_existing_name_is_left_alone(tmp_path: Path) -> None:
    folder = made(tmp_path / "bundle")
    pack(folder, tmp_path / "bundle.tar")
    (tmp_path / "unpacked").symlink_to("nowhere")
    with pytest.raises(BundleError, match="expected a name that is free"):
        unpacked(tmp_path / "bundle.tar")
    (tmp_path / "unpacked").unlink()
    (tmp_path / "unpacked").mkdir()
    with pytest.raises(BundleError, match="expected a name that is free"):
        unpacked(tmp_path / "bundle.tar")
    with pytest.raises(BundleError, match="No such file"):
        unpack(tmp_path / "none.tar", tmp_path / "new", keys=None, supported=SUPPORTED)


@pytest.mark.parametrize("content", [b"", bytes(1280), CONTENT["model.data"] + b"x"])
def test_a_damaged_bundle_is_not_packed(content: bytes, tmp_path: Path) -> None:
    folder = made(tmp_path / "bundle")
    (folder / "model.data").write_bytes(content)
    (tmp_path / "bundle.tar").write_bytes(b"older")
    with pytest.raises(BundleError, match=r"model\.data"):
        pack(folder, tmp_path / "bundle.tar")
    (folder / "more.json").touch()
    with pytest.raises(BundleError, match=r"more\.json"):
        pack(folder, tmp_path / "bundle.tar")
    assert (tmp_path / "bundle.tar").read_bytes() == b"older"
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "bundle.tar"}
