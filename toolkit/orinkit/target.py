# SPDX-License-Identifier: Apache-2.0
"""A target: one board with one software stack. The facts of a board and of a stack stand in one file each;
a target file names the two:

    id: agx-orin-64gb-jetpack-6.2
    board: boards/agx-orin-64gb.yaml
    stack: stacks/jetpack-6.2.yaml
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from orinkit import config
from orinkit.errors import ConfigError

_VERSION = re.compile(r"[0-9]+(\.[0-9]+){0,3}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*([=<>!~]=[0-9][0-9A-Za-z.*]*)?")


def _check(key: str, value: str | None, form: re.Pattern[str], expected: str) -> None:
    """Refuse a text that is not of the form: these texts become arguments of commands and parts of paths."""
    if value is not None and not form.fullmatch(value):
        raise ConfigError(f"{key}: expected {expected}, found {value!r}")


@dataclass(frozen=True)
class Gpu:
    """The GPU of a board and the memory that it reads."""

    sm: int
    """Compute capability times ten."""
    sm_count: int
    """Streaming multiprocessors."""
    l2_mib: float
    """Level 2 cache in MiB."""
    memory_gib: float
    """Installed memory in GiB, which CPU and GPU share; the system sees a few per cent less."""
    bandwidth_gbs: float
    """Nominal memory bandwidth, 10^9 bytes per second, in the fastest power mode."""
    visible_gib: float | None = None
    """Memory in GiB that Linux sees; without it: 92 % of what is installed."""
    clock_mhz: int | None = None
    """Clock of the GPU in the fastest power mode; without it no prefill speed is predicted."""
    launch_us: float = 6.0
    """Microseconds that each kernel of a captured step costs beside what it reads; not measured on a board."""

    def validate(self) -> None:
        if not 80 <= self.sm <= 129:
            raise ConfigError(f"sm: expected 80 to 129 (8.7 is written 87), found {self.sm}")
        for key in ("sm_count", "l2_mib", "memory_gib", "bandwidth_gbs", "visible_gib", "clock_mhz", "launch_us"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ConfigError(f"{key}: expected more than 0, found {value}")
        if self.visible_gib is not None and self.visible_gib > self.memory_gib:
            raise ConfigError(f"visible_gib: expected at most memory_gib={self.memory_gib}, found {self.visible_gib}")


@dataclass(frozen=True)
class Board:
    """One YAML file of `targets/boards/`. Without `gpu`: whatever NVIDIA GPU the machine has, or none."""

    id: str
    """The name of the file without `.yaml`."""
    name: str
    """What people call it."""
    machine: Literal["aarch64", "x86_64", "any"]
    """What `uname -m` prints there."""
    gpu: Gpu | None = None

    def validate(self) -> None:
        config.check_name("id", self.id)


@dataclass(frozen=True)
class Cuda:
    """The CUDA release and the names of its cross-compilation packages."""

    version: str
    """Major and minor number."""
    target_dir: Literal["aarch64-linux", "sbsa-linux"]
    """Folder of the toolkit's `targets/` that holds the board's headers and libraries."""
    cross_package: str | None = None
    """Debian package with that folder, for an x86-64 host."""
    python: str | None = None
    """The Python bindings that run on this stack, as a requirement of pip."""

    def validate(self) -> None:
        _check("version", self.version, _VERSION, "a version such as '12.6'")
        _check("cross_package", self.cross_package, _PACKAGE, "the name of a Debian package")
        _check("python", self.python, _REQUIREMENT, "a requirement such as 'name==1.2.3'")


@dataclass(frozen=True)
class TensorRT:
    """The TensorRT release, its library, and the headers that plugins are compiled against."""

    version: str
    """As exact as it is known: a plan runs only on the build that made it."""
    soname: str
    """File name of the library, `libnvinfer.so.` and the major version."""
    headers: str
    """Release whose headers plugins are compiled against."""
    source: Literal["system", "sdk"] = "system"
    """`system`: the board's own packages; `sdk`: NVIDIA's SDK or tarball."""

    def validate(self) -> None:
        _check("version", self.version, _VERSION, "a version such as '10.3.0.30'")
        _check("headers", self.headers, _VERSION, "a version such as '10.3'")
        soname = f"libnvinfer.so.{self.version.split('.')[0]}"
        if self.soname != soname:
            raise ConfigError(f"soname: expected {soname!r} for TensorRT {self.version}, found {self.soname!r}")


@dataclass(frozen=True)
class Sysroot:
    """What the operating system of the stack offers to a compiled library."""

    os: str
    """Name and release, such as `ubuntu-22.04`."""
    gcc: int
    """Major version of the system's compiler."""
    glibc_max: str
    """Newest glibc that a symbol may ask for."""
    python: str | None = None
    """The system's Python; without it: not known."""

    def validate(self) -> None:
        config.check_name("os", self.os)
        if not 9 <= self.gcc <= 99:
            raise ConfigError(f"gcc: expected a major version of 9 or later, found {self.gcc}")
        _check("glibc_max", self.glibc_max, _VERSION, "a version such as '2.35'")
        _check("python", self.python, _VERSION, "a version such as '3.10'")


@dataclass(frozen=True)
class Stack:
    """One YAML file of `targets/stacks/`."""

    id: str
    """The name of the file without `.yaml`."""
    name: str
    """What people call it."""
    status: Literal["yes", "experimental"]
    """Whether the stack is supported."""
    onnx_opset_max: int
    """Newest version of the default ONNX operator set that the stack reads."""
    l4t: tuple[str, ...] = ()
    """Jetson Linux releases that this stack is found by: '36.4' stands for 36.4, 36.4.0 and 36.4.7, not for 36.40."""
    cuda: Cuda | None = None
    tensorrt: TensorRT | None = None
    sysroot: Sysroot | None = None
    note: str | None = None
    """What is not verified about this stack."""

    def validate(self) -> None:
        config.check_name("id", self.id)
        if not 17 <= self.onnx_opset_max <= 30:
            raise ConfigError(f"onnx_opset_max: expected 17 to 30, found {self.onnx_opset_max}")
        for release in self.l4t:
            _check("l4t", release, _VERSION, "releases such as '36.4'")
        if self.tensorrt is not None and self.cuda is None:
            raise ConfigError("tensorrt: expected cuda beside it, found none; add cuda")


@dataclass(frozen=True)
class Target:
    """A board and a software stack, resolved."""

    id: str
    board: Board
    stack: Stack

    def validate(self) -> None:
        config.check_name("id", self.id)
        if self.stack.cuda is not None and self.board.gpu is None:
            raise ConfigError(f"stack: {self.stack.id} has CUDA, but the board {self.board.id} states no gpu; add gpu")


@dataclass(frozen=True)
class TargetFile:
    """One YAML file of `targets/`: which board with which stack."""

    id: str
    """At most 64 of a-z, 0-9, '.', '_' and '-'; the name of the file without `.yaml`."""
    board: str
    """Path of the board's file, inside the folder of this file."""
    stack: str
    """Path of the stack's file, inside the folder of this file."""

    def validate(self) -> None:
        config.check_name("id", self.id)
        for key in ("board", "stack"):
            value = getattr(self, key)
            path = PurePosixPath(value)
            if path.is_absolute() or ".." in path.parts or path.suffix != ".yaml":
                raise ConfigError(f"{key}: expected the path of a .yaml file inside this folder, found {value!r}")


def read(path: Path) -> Target:
    """The target at `path` with its board and stack read in. Raises ConfigError."""
    names = config.read(path, TargetFile)
    try:
        board = config.read(path.parent / names.board, Board)
        stack = config.read(path.parent / names.stack, Stack)
        target = Target(names.id, board, stack)
        target.validate()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return target
