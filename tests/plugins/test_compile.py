# SPDX-License-Identifier: Apache-2.0
"""Device code compiles with NVRTC of every CUDA release that a target has, on a machine without a GPU."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "plugins/kernels").glob("*/*.cu"))
RELEASES = sorted(path.stem for path in (ROOT / "cmake/nvrtc").glob("*.txt"))
COMPILATIONS = [(release, 87) for release in RELEASES] + [(RELEASES[-1], 90)]

EM_CUDA = 190
"""ELF machine of a cubin."""


def compiled(source: Path, release: str, arch: int, folder: Path) -> tuple[bytes, str]:
    """The cubin and what ptxas says of it."""
    wheels = ROOT / "build/nvrtc" / release
    if not wheels.is_dir():
        pytest.skip(f"needs NVRTC {release}; run: make nvrtc")
    cubin = folder / "out.cubin"
    command = [sys.executable, ROOT / "cmake/compile_cubin.py", source, cubin, "--arch", arch, "--compiler", wheels]
    command += ["--include", ROOT / "plugins", "--cache", ROOT / "build/cubins"]
    subprocess.run([*map(str, command)], check=True)
    return cubin.read_bytes(), cubin.with_suffix(".log").read_text(encoding="utf-8")


@pytest.mark.parametrize(("release", "arch"), COMPILATIONS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_and_spills_nothing(source: Path, release: str, arch: int, tmp_path: Path) -> None:
    cubin, log = compiled(source, release, arch, tmp_path)
    assert cubin[:4] == b"\x7fELF"
    assert struct.unpack_from("<H", cubin, 18) == (EM_CUDA,)
    assert f"sm_{arch}" in log
    spilled = [int(count) for count in re.findall(r"(\d+) bytes spill stores", log)]
    assert not any(spilled), log
