# SPDX-License-Identifier: Apache-2.0
"""The proof of a built library, made where it was built: it asks for nothing that its target does not have."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from orinkit.bundle.manifest import KERNELS, PLUGINS
from orinkit.errors import ArtefactError
from orinkit.target import Target
from orinkit_export import elf

LIBRARIES = {"orin_kernels": Path(KERNELS).name, "orin_plugins": Path(PLUGINS).name}
"""File name of each target of plugins/CMakeLists.txt."""
ENTRY_POINTS = frozenset({"getCreators", "setLoggerFinder"})
"""What TensorRT's registry looks for; a plugin library exports this and nothing else."""
ALLOWED = ("libc.so.6", "libm.so.6", "libdl.so.2", "libstdc++.so.6", "libgcc_s.so.1", "ld-linux-")
MAX_BYTES = 15_000_000
"""Largest library, for each architecture that it holds device code for."""
HOST_ARCHS = (80, 87, 90)
GLIBCXX = {9: (3, 4, 28), 10: (3, 4, 28), 11: (3, 4, 29), 12: (3, 4, 30), 13: (3, 4, 32), 14: (3, 4, 33)}
"""Newest symbol version of libstdc++ by GCC's major version (libstdc++ manual, ABI policy)."""


@dataclass(frozen=True)
class Proof:
    """One built library, and what was found in it."""

    name: str
    size: int
    sha256: str
    machine: str
    archs: tuple[int, ...]
    """Compute capabilities times ten of the device code in it."""
    needed: tuple[str, ...]
    glibc: str
    """Newest version that it asks for, as of libstdc++; empty if none."""
    glibcxx: str


def prove(path: Path, target: Target) -> Proof:
    """What a library asks of its machine, which must be no more than `target` has. Raises ArtefactError."""
    found = elf.read(path)
    glibc, glibcxx = found.newest("GLIBC"), found.newest("GLIBCXX")
    for complaint in complaints(found, target, path.name, path.stat().st_size):
        raise ArtefactError(f"{path}: {complaint}")
    return Proof(
        name=path.name,
        size=path.stat().st_size,
        sha256=digest(path),
        machine=found.machine,
        archs=tuple(sorted(set(found.cubins))),
        needed=found.needed,
        glibc=dotted(glibc),
        glibcxx=dotted(glibcxx),
    )


def complaints(found: elf.Library, target: Target, name: str, size: int) -> list[str]:
    """What is wrong with a library of this name and size for `target`: nothing, if all is well."""
    wrong = []

    def expect(holds: bool, what: str, instead: object) -> None:
        if not holds:
            wrong.append(f"expected {what}, found {instead}")

    expect(found.machine == machine(target), f"machine {machine(target)}", found.machine)
    strangers = [library for library in found.needed if not library.startswith(ALLOWED)]
    expect(not strangers, "no library but those of C and C++", ", ".join(strangers))
    expect(not found.run_path, "no run path", ", ".join(found.run_path))
    sysroot = target.stack.sysroot
    if sysroot is not None:
        limit = tuple(map(int, sysroot.glibc_max.split(".")))
        glibc, glibcxx = found.newest("GLIBC"), found.newest("GLIBCXX")
        expect(glibc <= limit, f"glibc {sysroot.glibc_max} or older", dotted(glibc))
        newest = GLIBCXX[min(max(sysroot.gcc, min(GLIBCXX)), max(GLIBCXX))]
        expect(glibcxx <= newest, f"GLIBCXX {dotted(newest)} or older", dotted(glibcxx))
    missing = set(archs(target)) - set(found.cubins)
    expect(not missing, f"device code for {_names(archs(target))}", _names(found.cubins))
    if name == LIBRARIES["orin_plugins"]:
        asked = ", ".join(sorted(ENTRY_POINTS))
        expect(found.exports == ENTRY_POINTS, f"the symbols {asked} alone", ", ".join(sorted(found.exports)))
    most = MAX_BYTES * len(archs(target))
    expect(size <= most, f"at most {most} bytes", size)
    return wrong


def dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))


def _names(archs: Iterable[int]) -> str:
    return ", ".join(f"sm_{arch}" for arch in sorted(set(archs))) or "none"


def machine(target: Target) -> str:
    return platform.machine() if target.board.machine == "any" else target.board.machine


def archs(target: Target) -> tuple[int, ...]:
    return (target.board.gpu.sm,) if target.board.gpu else HOST_ARCHS


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
