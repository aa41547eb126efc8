# SPDX-License-Identifier: Apache-2.0
"""What a plan depends on: board, system, GPU and libraries of this machine, and whether a target is meant for it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from orinkit.errors import BundleError
from orinkit.target import Target

_RELEASE = re.compile(r"R(\d+) \(release\), REVISION: ([\d.]+)")
_SOC = re.compile(r"nvidia,(tegra\d+)")
_GLIBC = re.compile(rb"GLIBC_(\d+)\.(\d+)")


@dataclass(frozen=True)
class System:
    """What files of the system tell, without CUDA and TensorRT."""

    machine: str
    """What `uname -m` prints."""
    soc: str
    """Such as tegra234; empty where the system does not tell."""
    l4t: str
    """Release of Jetson Linux, such as 36.4.3; empty elsewhere."""


@dataclass(frozen=True)
class Machine:
    """Everything that a plan is bound to. Versions are as the libraries report them."""

    system: System
    sm: int
    """Compute capability times ten."""
    driver: str
    """CUDA release of the driver."""
    cuda: str
    """CUDA release of the runtime library."""
    tensorrt: str


def read_system(root: Path = Path("/")) -> System:
    """What lies below `root`, the root of the file system."""
    release = _RELEASE.search(_text(root / "etc/nv_tegra_release"))
    soc = _SOC.search(_text(root / "proc/device-tree/compatible"))
    return System(
        machine=os.uname().machine,
        soc=soc[1] if soc else "",
        l4t=f"{release[1]}.{release[2]}" if release else "",
    )


def check_system(system: System, target: Target) -> None:
    """Refuse a bundle that was exported for another kind of system. Raises BundleError."""
    if target.stack.tensorrt is None:
        raise BundleError(
            f"expected a bundle for a board with TensorRT, found one for {target.id}; "
            "export it with --target of this board, or use another engine"
        )
    machine, releases = target.board.machine, target.stack.l4t
    if machine not in ("any", system.machine):
        raise _other(target, f"a {machine} system", f"{system.machine}")
    if releases and not any(agrees(system.l4t, release) for release in releases):
        raise _other(target, f"Jetson Linux {' or '.join(releases)}", system.l4t or "none")


def check_machine(machine: Machine, target: Target) -> None:
    """Refuse a bundle that was exported for another GPU or TensorRT. Raises BundleError."""
    gpu, tensorrt = target.board.gpu, target.stack.tensorrt
    if gpu is not None and machine.sm != gpu.sm:
        raise _other(target, f"a GPU of compute capability {gpu.sm / 10}", f"{machine.sm / 10}")
    if tensorrt is not None and not agrees(machine.tensorrt, tensorrt.version):
        raise _other(target, f"TensorRT {tensorrt.version}", machine.tensorrt)


def check_library(content: bytes, glibc: str) -> None:
    """Refuse a plugin library that needs a newer glibc than the system's. Raises BundleError."""
    needed = max(((int(found[1]), int(found[2])) for found in _GLIBC.finditer(content)), default=(0, 0))
    if needed > tuple(int(part) for part in glibc.split(".")[:2]):
        raise BundleError(
            f"plugin library: expected one for glibc {glibc} or older, found one that needs {needed[0]}.{needed[1]}; "
            "export the bundle with the --target of this board's system"
        )


def system_glibc() -> str:
    """The release of the C library, such as 2.35; 0.0 where it is another one."""
    name, _, release = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    return release if name == "glibc" else "0.0"


def agrees(found: str, wanted: str) -> bool:
    """Whether two versions are the same in the numbers that both state; 10.3.0 agrees with 10.3.0.30, not with 10.4."""
    left, right = found.split("."), wanted.split(".")
    count = min(len(left), len(right))
    return bool(found) and left[:count] == right[:count]


def _other(target: Target, expected: str, found: str) -> BundleError:
    return BundleError(
        f"bundle for {target.id}: expected {expected}, found {found}; export the bundle with the --target of this board"
    )


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""
