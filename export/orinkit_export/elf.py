# SPDX-License-Identifier: Apache-2.0
"""What a shared library asks of the machine that loads it, read from its ELF sections; no binutils needed.

Layouts: System V ABI (gABI 4.1), GNU symbol versioning (LSB 10.7); cubins embedded in it are ELF files themselves.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orinkit.errors import ArtefactError

MAGIC = b"\x7fELF"
MACHINES = {62: "x86_64", 183: "aarch64"}
CUDA = 190
"""e_machine of a cubin."""
_OLD_CUDA = 51
"""e_ident[EI_OSABI] of cubins up to CUDA 12, which have their architecture in the lowest byte of e_flags; later ones
have it in the second."""
_STRTAB, _DYNAMIC, _DYNSYM, _VERNEED = 3, 6, 11, 0x6FFFFFFE
_NEEDED, _RPATH, _RUNPATH = 1, 15, 29


@dataclass(frozen=True)
class Library:
    """One shared library."""

    machine: str
    """As `uname -m` prints it."""
    needed: tuple[str, ...]
    """Libraries that are loaded with it."""
    run_path: tuple[str, ...]
    """Folders that it wants them looked for in."""
    versions: tuple[str, ...]
    """Symbol versions that it asks for, such as GLIBC_2.17."""
    exports: frozenset[str]
    """Symbols that it defines for others."""
    cubins: tuple[int, ...]
    """Architecture (compute capability times ten) of each embedded cubin."""

    def newest(self, prefix: str) -> tuple[int, ...]:
        """The highest version asked for of `prefix`, such as (2, 17) of GLIBC; () if none is."""
        names = [name.removeprefix(f"{prefix}_") for name in self.versions if name.startswith(f"{prefix}_")]
        return max((tuple(map(int, name.split("."))) for name in names if name[0].isdigit()), default=())


@dataclass(frozen=True)
class _Section:
    kind: int
    data: bytes
    link: int


def read(path: Path) -> Library:
    """The library at `path`. Raises ArtefactError: not a 64-bit little-endian ELF file that this knows."""
    raw = path.read_bytes()
    if raw[:6] != MAGIC + b"\x02\x01":
        raise ArtefactError(f"{path}: expected a 64-bit shared library, found {raw[:6]!r}; build it again")
    try:
        (machine,) = struct.unpack_from("<H", raw, 18)
        sections = list(_sections(raw))
        dynamic = list(_dynamic(sections))
        return Library(
            machine=MACHINES.get(machine, f"machine {machine}"),
            needed=tuple(text for tag, text in dynamic if tag == _NEEDED),
            run_path=tuple(text for tag, text in dynamic if tag in (_RPATH, _RUNPATH)),
            versions=tuple(sorted(set(_versions(sections)))),
            exports=frozenset(_exports(sections)),
            cubins=tuple(_cubins(raw)),
        )
    except (struct.error, IndexError, ValueError) as error:
        raise ArtefactError(f"{path}: expected a complete shared library, found {error}; build it again") from None


def _sections(raw: bytes) -> Iterator[_Section]:
    (start,) = struct.unpack_from("<Q", raw, 40)
    size, count = struct.unpack_from("<HH", raw, 58)
    for index in range(count):
        _, kind, _, _, offset, length, link = struct.unpack_from("<IIQQQQI", raw, start + index * size)
        yield _Section(kind, raw[offset : offset + length] if kind in _USED else b"", link)


_USED = {_STRTAB, _DYNAMIC, _DYNSYM, _VERNEED}


def _text(strings: _Section, offset: int) -> str:
    return strings.data[offset : strings.data.index(b"\0", offset)].decode()


def _of_kind(sections: list[_Section], kind: int) -> Iterator[tuple[bytes, _Section]]:
    """Data of each section of a kind, with the strings that it refers to."""
    for section in sections:
        if section.kind == kind:
            yield section.data, sections[section.link]


def _dynamic(sections: list[_Section]) -> Iterator[tuple[int, str]]:
    for data, strings in _of_kind(sections, _DYNAMIC):
        for tag, value in struct.iter_unpack("<qQ", data):
            if tag in (_NEEDED, _RPATH, _RUNPATH):
                yield tag, _text(strings, value)


def _versions(sections: list[_Section]) -> Iterator[str]:
    for data, strings in _of_kind(sections, _VERNEED):
        at, step = 0, 1
        while step:
            _, count, _, first, step = struct.unpack_from("<HHIII", data, at)
            here = at + first
            for _ in range(count):
                _, _, _, name, further = struct.unpack_from("<IHHII", data, here)
                yield _text(strings, name)
                here += further
            at += step


def _exports(sections: list[_Section]) -> Iterator[str]:
    for data, strings in _of_kind(sections, _DYNSYM):
        for name, _, _, section, _, _ in struct.iter_unpack("<IBBHQQ", data):
            if section and name:
                yield _text(strings, name)


def _cubins(raw: bytes) -> Iterator[int]:
    at = raw.find(MAGIC, 1)
    while 0 < at <= len(raw) - 52:
        (machine,) = struct.unpack_from("<H", raw, at + 18)
        if machine == CUDA:
            (flags,) = struct.unpack_from("<I", raw, at + 48)
            yield flags & 0xFF if raw[at + 7] == _OLD_CUDA else flags >> 8 & 0xFF
        at = raw.find(MAGIC, at + 1)
