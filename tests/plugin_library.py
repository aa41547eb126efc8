# SPDX-License-Identifier: Apache-2.0
"""Plugin libraries built for tests and the programs that drive them; what is missing on a machine skips by name."""

from __future__ import annotations

import fcntl
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from orinkit import target as targets
from orinkit.errors import ResourceError
from orinkit.target import Target
from orinkit_export import crossbuild, sdk

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build/tests/plugins"
SOURCES = Path(__file__).parent / "plugins/tensorrt"
SYSROOT = Path("/usr/aarch64-linux-gnu")
BOARDS = {
    "jetpack-6.2": "agx-orin-64gb-jetpack-6.2",
    "jetpack-7.2": "agx-orin-64gb-jetpack-7.2",
    "drive-os-6.5": "drive-agx-orin-drive-os-6.5",
}
"""A target of each stack that libraries are built for."""
NATIVE = "native"
"""The library for this machine, with the device code of JetPack 7.2."""
RUNTIMES = ("10.15.1.29-aarch64", "10.16.1.11-aarch64", "11.4.0.106-aarch64", "10.16.1.11-x86_64", "11.4.0.106-x86_64")
"""TensorRT's lean runtimes that make lean fetches: release and machine."""


@dataclass(frozen=True)
class Library:
    """One built library and how programs are started beside it."""

    path: Path
    machine: str

    @property
    def launcher(self) -> list[str]:
        return [] if self.machine == platform.machine() else ["qemu-aarch64", "-L", str(SYSROOT)]

    def run(self, program: Path, *words: object, stub: bool = True) -> list[dict[str, Any]]:
        """What a program prints, one JSON value a line; with the stand-in for libcuda unless `stub` is False."""
        folder = [str(stub_driver(self.machine).parent)] if stub else []
        command = [*self.launcher, str(program), *map(str, words)]
        environment = {"LD_LIBRARY_PATH": ":".join(folder), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


def need(program: str, package: str) -> None:
    """Skip where a program is missing."""
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}; run: apt-get install {package}")


def target_of(stack: str) -> Target:
    """The target whose library is built for `stack`, a key of BOARDS or NATIVE."""
    if stack != NATIVE:
        return targets.read(ROOT / "targets" / f"{BOARDS[stack]}.yaml")
    found = target_of("jetpack-7.2")
    machine: Any = platform.machine()
    return replace(found, board=replace(found.board, machine=machine), stack=replace(found.stack, sysroot=None))


def has_headers() -> bool:
    try:
        sdk.find("10.3", platform.machine())
    except ResourceError:
        return False
    return True


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Wait until no other process of the test run builds what is called `name`."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@cache
def folder_of(stack: str) -> Path:
    """The libraries for `stack`, built unless they are up to date; the plugins where TensorRT's headers are here."""
    target = target_of(stack)
    if target.board.machine != platform.machine():
        need(crossbuild.CROSS_COMPILER, crossbuild.CROSS_PACKAGE)
    need("g++", "g++")
    if not (ROOT / "build/nvrtc" / crossbuild.nvrtc(target)).is_dir():
        pytest.skip(f"needs NVRTC {crossbuild.nvrtc(target)}; run: make nvrtc")
    with alone(stack):
        crossbuild.build(target, BUILD / stack, crossbuild.Tools(), has_headers())
    return BUILD / stack


def library(stack: str, name: str) -> Library:
    """`liborin_kernels.so` or `liborin_plugins.so` of a stack, ready to be run here."""
    if "plugins" in name and not has_headers():
        pytest.skip("needs TensorRT's headers; run: orin-export sdk")
    machine = target_of(stack).board.machine
    if machine != platform.machine():
        need("qemu-aarch64", "qemu-user")
    return Library(folder_of(stack) / name, machine)


def with_option(stack: str, option: str) -> Path:
    """The plugin library of a stack, built with a switch of plugins/CMakeLists.txt on."""
    folder = BUILD / f"{stack}-{option.lower()}"
    cmake = shutil.which("cmake", path=str(Path(sys.executable).parent)) or "cmake"
    settings = (folder_of(stack).with_name(f"{stack}.work") / "CMakeCache.txt").read_text(encoding="utf-8")
    kept = re.findall(r"^((?:ORIN_|CMAKE_MAKE_PROGRAM|CMAKE_TOOLCHAIN_FILE)\w*:\w+=.*)$", settings, re.MULTILINE)
    known = [f"-D{setting}" for setting in kept if not setting.startswith((option, "ORIN_NVCC"))]
    configure = [cmake, "-S", str(ROOT / "plugins"), "-B", str(folder), "-G", "Ninja", *known, f"-D{option}=ON"]
    with alone(folder.name):
        for command in (configure, [cmake, "--build", str(folder), "--target", "orin_plugins"]):
            subprocess.run(command, check=True, capture_output=True)
    return folder / "liborin_plugins.so"


@cache
def program(source: str, machine: str, release: str | None = None, shared: bool = False) -> Path:
    """A program of tests/plugins/tensorrt for a machine, with the headers of a TensorRT release if it wants them."""
    compiler = "g++" if machine == platform.machine() else crossbuild.CROSS_COMPILER
    name = f"{Path(source).stem}-{machine}-{release}"
    folder = BUILD / "programs" / name
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / ("libcuda.so.1" if shared else Path(source).stem)
    part = out.with_name("part")  # another process of the test run may be executing the one that is there
    command = [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'plugins'}"]
    command += [str(SOURCES / source), "-o", str(part)]
    if release:
        command += tensorrt_headers(release)
    command += ["-shared", "-fPIC"] if shared else ["-ldl"]
    with alone(name):
        subprocess.run(command, check=True)
        part.rename(out)
    return out


def tensorrt_headers(release: str) -> list[str]:
    """The compiler's options for the headers of a release."""
    folder = sdk.cache(release) if release != "10.3" else sdk.find(release, platform.machine())
    if not folder.is_dir():
        pytest.skip(f"needs TensorRT's headers of {release}; run: orin-export sdk --release {release}")
    return ["-isystem", str(folder), "-isystem", str(ROOT / "plugins/tensorrt/cuda")]


def stub_driver(machine: str) -> Path:
    """The tests' stand-in for libcuda.so.1."""
    return program("stub_cuda.cpp", machine, shared=True)


def runtime(name: str) -> tuple[Path, str]:
    """One of RUNTIMES, and the release of the headers to speak to it with."""
    folder = ROOT / "build/lean" / name
    found = sorted(folder.glob("tensorrt_lean_libs/libnvinfer_lean.so.*"))
    if not found:
        pytest.skip(f"needs TensorRT's lean runtime {name}; run: make lean")
    return found[0], "11.1" if name.startswith("11.") else "10.3"
