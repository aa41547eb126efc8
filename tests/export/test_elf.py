# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from orinkit.errors import ArtefactError
from orinkit_export import elf

SOURCE = """
extern "C" int asked_for();
extern "C" __attribute__((visibility("hidden"))) int inner() { return 1; }
extern "C" int ours() { return asked_for() + inner(); }
extern const unsigned char cubins[];
extern "C" const unsigned char* code() { return cubins; }
"""


def cubin(os_abi: int, flags: int) -> bytes:
    """The header of one, as CUDA writes it."""
    ident = elf.MAGIC + bytes([2, 1, 1, os_abi, 7, *[0] * 7])
    return ident + struct.pack("<HHIQQQI", 2, elf.CUDA, 1, 0, 0, 0, flags) + bytes(12)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that wants libasked.so, with VERSION_2 of its symbol, and a run path; it carries two cubins."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++; run: apt-get install g++")
    folder = tmp_path_factory.mktemp("elf")
    (folder / "asked.cpp").write_text('extern "C" int asked_for() { return 7; }\n')
    (folder / "versions").write_text("VERSION_1 { local: *; };\nVERSION_2 { global: asked_for; } VERSION_1;\n")
    rows = ",".join(str(byte) for byte in cubin(51, 0x570557) + cubin(65, 0x6005A04))
    cubins = f"extern const unsigned char cubins[];\nconst unsigned char cubins[] = {{{rows}}};\n"
    (folder / "ours.cpp").write_text(SOURCE + cubins)
    shared = ("g++", "-shared", "-fPIC", "-nostdlib")
    asked = (*shared, "asked.cpp", "-Wl,--version-script=versions", "-o", "libasked.so")
    subprocess.run(asked, cwd=folder, check=True)
    ours = (*shared, "ours.cpp", "-L.", "-lasked", "-Wl,-rpath,/nowhere", "-o", "libours.so")
    subprocess.run(ours, cwd=folder, check=True)
    return folder / "libours.so"


def test_a_library_says_what_it_asks_for(library: Path) -> None:
    found = elf.read(library)
    assert found.machine in elf.MACHINES.values()
    assert found.needed == ("libasked.so",)
    assert found.run_path == ("/nowhere",)
    assert found.versions == ("VERSION_2",)
    assert {"ours", "code"} <= found.exports
    assert not {"inner", "asked_for"} & found.exports
    assert found.cubins == (87, 90)


def test_the_newest_version_is_compared_by_numbers() -> None:
    versions = ("GLIBC_2.17", "GLIBC_2.4", "GLIBC_PRIVATE", "GLIBCXX_3.4.11", "GLIBCXX_3.4.9")
    found = elf.Library("aarch64", (), (), versions, frozenset(), ())
    assert (found.newest("GLIBC"), found.newest("GLIBCXX"), found.newest("CXXABI")) == ((2, 17), (3, 4, 11), ())


@pytest.mark.parametrize("raw", [b"", b"\x7fELF\x01\x01" + bytes(64), b"#!/bin/sh\n" + bytes(64)])
def test_another_file_is_refused(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(raw)
    with pytest.raises(ArtefactError, match="expected a 64-bit shared library"):
        elf.read(tmp_path / "x.so")


def test_a_truncated_library_is_refused_wherever_it_ends(library: Path, tmp_path: Path) -> None:
    raw = library.read_bytes()
    for length in range(64, len(raw) - 64, 257):
        (tmp_path / "cut.so").write_bytes(raw[:length])
        with pytest.raises(ArtefactError, match="expected a complete shared library"):
            elf.read(tmp_path / "cut.so")
