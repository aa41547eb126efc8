# SPDX-License-Identifier: Apache-2.0
"""A target: one board with one software stack. The facts of a board and of a stack stand in one file each;
a target file names the two:

    id: agx-orin-64gb-jetpack-6.2
    board: boards/agx-orin-64gb.yaml
    stack: stacks/jetpack-6.2.yaml
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orinkit import config
from orinkit.errors import ConfigError
from orinkit.recipe import NAME


@dataclass(frozen=True)
class Gpu:
    """The GPU of a board and the memory that it reads."""

    sm: int
    """Compute capability times ten."""
    sm_count: int
    l2_mib: float
    memory_gib: float
    """Memory that CPU and GPU share."""
    bandwidth_gbs: float
    """Nominal memory bandwidth, 10^9 bytes per second."""


@dataclass(frozen=True)
class Board:
    """One YAML file of `targets/boards/`. Without `gpu`: whatever NVIDIA GPU the machine has, or none."""

    id: str
    name: str
    machine: Literal["aarch64", "x86_64"]
    gpu: Gpu | None = None


@dataclass(frozen=True)
class Cuda:
    """The CUDA release and the names of its cross-compilation packages."""

    version: str
    target_dir: str
    cross_package: str | None = None
    python: str | None = None
    """The Python bindings that run on this stack."""


@dataclass(frozen=True)
class TensorRT:
    """The TensorRT release, its library, and the headers that plugins are compiled against."""

    version: str
    soname: str
    headers: str
    source: Literal["system", "sdk"] = "system"


@dataclass(frozen=True)
class Sysroot:
    """What the operating system of the stack offers to a compiled library."""

    os: str
    gcc: int
    glibc_max: str
    python: str


@dataclass(frozen=True)
class Stack:
    """One YAML file of `targets/stacks/`."""

    id: str
    name: str
    status: Literal["yes", "experimental"]
    onnx_opset_max: int
    l4t: tuple[str, ...] = ()
    """Prefixes of the L4T releases that this stack is found by."""
    cuda: Cuda | None = None
    tensorrt: TensorRT | None = None
    sysroot: Sysroot | None = None
    note: str | None = None
    """What is not verified about this stack."""

    def validate(self) -> None:
        if not 17 <= self.onnx_opset_max <= 30:
            raise ConfigError(f"onnx_opset_max: expected 17 to 30, found {self.onnx_opset_max}")


@dataclass(frozen=True)
class Target:
    """A board and a software stack, resolved."""

    id: str
    board: Board
    stack: Stack

    def validate(self) -> None:
        if not NAME.fullmatch(self.id):
            raise ConfigError(f"id: expected at most 64 of a-z, 0-9, '.', '_' and '-', found {self.id!r}")


@dataclass(frozen=True)
class _TargetFile:
    id: str
    board: str
    stack: str


def read(path: Path) -> Target:
    """The target at `path` with its board and stack read in. Raises ConfigError."""
    names = config.read(path, _TargetFile)
    board = config.read(path.parent / names.board, Board)
    stack = config.read(path.parent / names.stack, Stack)
    target = Target(names.id, board, stack)
    try:
        target.validate()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return target
