# SPDX-License-Identifier: Apache-2.0
"""Device code compiles with NVRTC of every CUDA release that a target has, on a machine without a GPU; and kernels that
may start early (plugins/common/dependent.cuh) wait before they write.
"""

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

WAIT, START_NEXT = "griddepcontrol.wait", "griddepcontrol.launch_dependents"
WRITES = re.compile(r"\b(?:st(?:\.\w+)*\.global|red\.|atom\.)")

EM_CUDA = 190
"""ELF machine of a cubin."""


def compiled(source: Path, release: str, arch: int, folder: Path) -> Path:
    """The cubin, for that architecture and without spilled registers; its PTX lies beside it."""
    wheels = ROOT / "build/nvrtc" / release
    if not wheels.is_dir():
        pytest.skip(f"needs NVRTC {release}; run: make nvrtc")
    cubin = folder / "out.cubin"
    command = [sys.executable, ROOT / "cmake/compile_cubin.py", source, cubin, "--arch", arch, "--compiler", wheels]
    command += ["--include", ROOT / "plugins", "--cache", ROOT / "build/cubins"]
    subprocess.run([*map(str, command)], check=True)
    data, log = cubin.read_bytes(), cubin.with_suffix(".log").read_text(encoding="utf-8")
    assert data[:4] == b"\x7fELF"
    assert struct.unpack_from("<H", data, 18) == (EM_CUDA,)
    assert f"sm_{arch}" in log
    spilled = [int(count) for count in re.findall(r"(\d+) bytes spill stores", log)]
    assert not any(spilled), log
    return cubin


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_for_orin_and_spills_nothing(source: Path, release: str, tmp_path: Path) -> None:
    compiled(source, release, 87, tmp_path)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_kernel_that_starts_early_waits_before_it_writes_or_lets_the_next_one_start(
    source: Path, tmp_path: Path
) -> None:
    ptx_of_all = compiled(source, RELEASES[-1], 90, tmp_path).with_suffix(".ptx").read_text(encoding="utf-8")
    _, *parts = re.split(r"\.entry (\w+)\(", ptx_of_all)
    assert parts
    for name, ptx in zip(parts[::2], parts[1::2], strict=True):
        before, wait, behind = ptx.partition(WAIT)
        assert wait, name
        assert not WRITES.search(before), name
        assert START_NEXT not in before, name
        # What makes weights lets nothing start: it would read weights that are not there yet.
        assert (START_NEXT in behind) == (name != "int4_gemm_layout"), name
