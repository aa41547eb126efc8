# SPDX-License-Identifier: Apache-2.0
"""Device code compiles with NVRTC of every CUDA release that a target has, on a machine without a GPU; and kernels that
may start early (plugins/common/dependent.cuh) wait before they write.
"""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
import sys
from pathlib import Path

import compile_cubin
import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "plugins/kernels").glob("*/*.cu"))
RELEASES = sorted(path.stem for path in (ROOT / "cmake/nvrtc").glob("*.txt"))
COMPILATIONS = [(release, 87) for release in RELEASES] + [(RELEASES[-1], 90)]

WAIT, START_NEXT = "griddepcontrol.wait", "griddepcontrol.launch_dependents"
WRITES = re.compile(r"\b(?:st(?:\.\w+)*\.global|red\.|atom\.)")

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


def kernels_of(source: Path) -> dict[str, str]:
    """PTX of each kernel of a source, for GPUs whose kernels can start early."""
    wheels = ROOT / "build/nvrtc" / RELEASES[-1]
    if not wheels.is_dir():
        pytest.skip(f"needs NVRTC {RELEASES[-1]}; run: make nvrtc")
    library, include = compile_cubin.unpacked(wheels)
    nvrtc, program = ctypes.CDLL(str(library)), ctypes.c_void_p()
    options = ["--gpu-architecture=compute_90", *compile_cubin.FLAGS]
    options += [f"--include-path={folder}" for folder in (ROOT / "plugins", include)]
    encoded = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    assert not nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), b"kernel.cu", 0, None, None)
    assert not nvrtc.nvrtcCompileProgram(program, len(options), encoded)
    size = ctypes.c_size_t()
    assert not nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    assert not nvrtc.nvrtcGetPTX(program, text)
    _, *parts = re.split(r"\.entry (\w+)\(", text.value.decode())
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_kernel_waits_before_it_writes_or_lets_the_next_one_start(source: Path) -> None:
    found = kernels_of(source)
    assert found
    for name, ptx in found.items():
        before, wait, behind = ptx.partition(WAIT)
        assert wait, name
        assert not WRITES.search(before), name
        assert START_NEXT not in before, name
        # What makes weights lets nothing start: it would read weights that are not there yet.
        assert (START_NEXT in behind) == (name != "int4_gemm_layout"), name
