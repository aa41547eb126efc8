# SPDX-License-Identifier: Apache-2.0
"""One CUDA source to one cubin, by NVRTC (a shared library, no toolkit needed) or by nvcc.

    python compile_cubin.py SOURCE CUBIN --arch 87 --compiler PATH [--include DIR ...] [--depfile FILE] [--cache DIR]

PATH is the program nvcc, libnvrtc.so.*, or a folder into which the wheels of cmake/nvrtc/*.txt were unpacked.
What ptxas says (registers, shared memory, spills) lies beside the cubin with the suffix .log, and with .ptx what NVRTC
gave it. DIR keeps one result for each source, architecture and compiler; it is taken again while source, headers,
options and compiler are the same.
Standard library only: it runs wherever CMake runs.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

FLAGS = ("--std=c++17", "--fmad=true", "--extra-device-vectorization")
BESIDE = (".log", ".ptx")
"""Suffixes of what lies beside a cubin; nvcc leaves no .ptx."""


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
    cubin.with_suffix(".ptx").write_bytes(_text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).rstrip(b"\0"))
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


def make(compiler: Path, source: Path, cubin: Path, arch: str, includes: list[Path]) -> None:
    """The cubin and what lies beside it."""
    compile_by = by_nvrtc if "nvrtc" in compiler.name else by_nvcc
    log = compile_by(compiler, source, cubin, arch, includes)
    cubin.with_suffix(".log").write_text(log, encoding="utf-8")


def make_once(cache: Path, compiler: Path, source: Path, cubin: Path, arch: str, includes: list[Path]) -> None:
    """The same, from `cache` where it is there, and put there where it is not."""
    found = compiler.resolve().stat()
    made_by = hashlib.sha256(f"{compiler.resolve()}".encode()).hexdigest()[:8]
    key = hashlib.sha256(f"{FLAGS} {BESIDE} {arch} {found.st_size} {found.st_mtime_ns}".encode())
    for path in [source, *sorted(headers(source, [p for p in includes if not (p / "cuda_fp16.h").is_file()]))]:
        key.update(hashlib.sha256(path.read_bytes()).digest())
    stem = f"{source.stem}.sm_{arch}.{made_by}"
    kept = cache / f"{stem}.{key.hexdigest()[:16]}.cubin"
    if not kept.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        part = cache / f"{stem}.{os.getpid()}.part"
        make(compiler, source, part, arch, includes)
        for old in set(cache.glob(f"{stem}.*.cubin")) - {kept}:  # which another process may have made by now
            for suffix in (".cubin", *BESIDE):
                old.with_suffix(suffix).unlink(missing_ok=True)
        for beside in filter(Path.is_file, map(part.with_suffix, BESIDE)):
            beside.replace(kept.with_suffix(beside.suffix))
        part.replace(kept)
    for beside in filter(Path.is_file, map(kept.with_suffix, BESIDE)):
        shutil.copyfile(beside, cubin.with_suffix(beside.suffix))
    shutil.copyfile(kept, cubin)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("cubin", type=Path)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--compiler", type=Path, required=True)
    parser.add_argument("--include", type=Path, action="append", default=[])
    parser.add_argument("--depfile", type=Path)
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    if args.compiler.is_dir():
        args.compiler, include = unpacked(args.compiler)
        args.include.append(include)
    job = (args.compiler, args.source, args.cubin, args.arch, args.include)
    if args.cache:
        make_once(args.cache, *job)
    else:
        make(*job)
    log = args.cubin.with_suffix(".log").read_text(encoding="utf-8")
    if args.depfile:
        names = " ".join(str(path) for path in sorted(headers(args.source, args.include)))
        args.depfile.write_text(f"{args.cubin}: {args.source} {names}\n", encoding="utf-8")
    if re.search(r"[1-9]\d* bytes spill", log):
        sys.stderr.write(f"{args.source.name} sm_{args.arch}: registers spill, see {args.cubin.with_suffix('.log')}\n")


if __name__ == "__main__":
    main()
