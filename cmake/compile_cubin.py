# SPDX-License-Identifier: Apache-2.0
"""One CUDA source to one cubin, by NVRTC (a shared library, no toolkit needed) or by nvcc.

    python compile_cubin.py SOURCE CUBIN --arch 87 --compiler PATH [--include DIR ...] [--depfile FILE]

PATH is the program nvcc, libnvrtc.so.*, or a folder into which the wheels of cmake/nvrtc/*.txt were unpacked.
What ptxas says (registers, shared memory, spills) lies beside the cubin with the suffix .log.
Standard library only: it runs wherever CMake runs.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import subprocess
import sys
from pathlib import Path

FLAGS = ("--std=c++17", "--fmad=true", "--extra-device-vectorization")


def by_nvcc(nvcc: Path, source: Path, cubin: Path, arch: str, includes: list[Path]) -> str:
    """Compile with nvcc; what it printed."""
    command = [str(nvcc), "-cubin", f"-arch=sm_{arch}", "-Xptxas", "-v", "-O3", *FLAGS]
    command += [f"-I{folder}" for folder in includes] + ["-o", str(cubin), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(f"{source}: nvcc failed\n{done.stderr}")
    return done.stderr


def by_nvrtc(library: Path, source: Path, cubin: Path, arch: str, includes: list[Path]) -> str:
    """Compile with NVRTC; its log."""
    nvrtc = ctypes.CDLL(str(library))
    program = ctypes.c_void_p()
    text = source.read_bytes()
    options = [f"--gpu-architecture=sm_{arch}", "--ptxas-options=-v", *FLAGS]
    options += [f"--include-path={folder}" for folder in includes]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, str(source).encode(), 0, None, None)
    encoded = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    status = nvrtc.nvrtcCompileProgram(program, len(options), encoded)
    log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace")
    if status:
        raise SystemExit(f"{source}: NVRTC failed with code {status}\n{log}")
    cubin.write_bytes(_text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program))
    return log


def _text(size_of: ctypes._NamedFuncPointer, read: ctypes._NamedFuncPointer, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    read(program, buffer)
    return buffer.raw


def unpacked(folder: Path) -> tuple[Path, Path]:
    """The NVRTC library and the folder of cuda_fp16.h in unpacked wheels."""
    libraries = [path for path in folder.rglob("libnvrtc.so.*") if "builtins" not in path.name]
    includes = [path.parent for path in folder.rglob("cuda_fp16.h")]
    if len(libraries) != 1 or len(includes) != 1:
        raise SystemExit(
            f"{folder}: expected one libnvrtc.so.* and one cuda_fp16.h; unpack the wheels again: make nvrtc"
        )
    return libraries[0], includes[0]


def headers(source: Path, includes: list[Path]) -> set[Path]:
    """The project's headers that `source` includes, directly or not."""
    found: set[Path] = set()
    waiting = [source]
    while waiting:
        here = waiting.pop()
        for name in re.findall(r'^\s*#include "([^"]+)"', here.read_text(encoding="utf-8"), re.MULTILINE):
            path = next((p for p in (folder / name for folder in (here.parent, *includes)) if p.is_file()), None)
            if path is not None and path not in found:
                found.add(path)
                waiting.append(path)
    return found


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("cubin", type=Path)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--compiler", type=Path, required=True)
    parser.add_argument("--include", type=Path, action="append", default=[])
    parser.add_argument("--depfile", type=Path)
    args = parser.parse_args()
    if args.compiler.is_dir():
        args.compiler, include = unpacked(args.compiler)
        args.include.append(include)
    compiler = by_nvrtc if "nvrtc" in args.compiler.name else by_nvcc
    log = compiler(args.compiler, args.source, args.cubin, args.arch, args.include)
    args.cubin.with_suffix(".log").write_text(log, encoding="utf-8")
    if args.depfile:
        names = " ".join(str(path) for path in sorted(headers(args.source, args.include)))
        args.depfile.write_text(f"{args.cubin}: {args.source} {names}\n", encoding="utf-8")
    if re.search(r"[1-9]\d* bytes spill", log):
        sys.stderr.write(f"{args.source.name} sm_{args.arch}: registers spill, see {args.cubin.with_suffix('.log')}\n")


if __name__ == "__main__":
    main()
