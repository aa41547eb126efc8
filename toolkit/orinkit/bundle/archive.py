# SPDX-License-Identifier: Apache-2.0
"""The bundle as one .tar. Unpacking interprets no header: each one must equal what the manifest calls for, so links,
devices, other paths, sparse files, extensions and further entries have no way to be expressed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from orinkit.bundle import files, signature
from orinkit.bundle.files import Progress
from orinkit.bundle.folder import check_digest, check_front, check_listing
from orinkit.bundle.manifest import MANIFEST, MAX_BYTES, SIGNATURE, FileEntry, decode
from orinkit.bundle.signature import PublicKey
from orinkit.errors import BundleError, ResourceError

BLOCK = 512
END = bytes(2 * BLOCK)
_OCTAL_LIMIT = 8 << 30


def header(path: str, size: int) -> bytes:
    """The ustar header (POSIX.1-1988, 512 bytes) of a plain file with mode 0644 and no owner or time.

    From 8 GiB on the size is binary behind a byte 0x80, as GNU tar, bsdtar, busybox and Python write and read it.
    """
    digits = b"%011o\0" % size if size < _OCTAL_LIMIT else b"\x80" + size.to_bytes(11, "big")
    owner = b"0000000\0"
    block = b"".join(
        (
            path.encode("ascii").ljust(100, b"\0"),
            b"0000644\0" + owner + owner,
            digits,
            b"00000000000\0",  # time
            b" " * 8,  # checksum, which counts itself as spaces
            b"0",  # a plain file
            bytes(100),  # link
            b"ustar\x0000",
            bytes(64),  # names of user and group
            owner + owner,  # device
            bytes(155 + 12),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def pack(folder: Path, archive: Path, progress: Progress | None = None) -> None:
    """Write the bundle in `folder` as a .tar; the same bundle gives the same bytes. Verifies each file on the way.

    Raises BundleError, LockedError, ResourceError; nothing is left under the name `archive` then.
    """
    with files.os_errors(f"packing {folder} as {archive}"), files.opened_folder(folder) as root:
        raw = files.read_small(root, MANIFEST, MAX_BYTES)
        manifest = decode(raw)
        check_listing(root, {entry.path for entry in manifest.files})
        signed = signature.read(root)
        with files.replacing(archive, files.part_of(archive)) as out:
            _add_bytes(out, MANIFEST, raw)
            if signed is not None:
                _add_bytes(out, SIGNATURE, signed)
            for entry in manifest.files:
                _add_file(out, root, entry, progress)
            out.write(END)


def unpack(
    archive: Path,
    folder: Path,
    *,
    keys: Sequence[PublicKey] | None,
    supported: Mapping[str, str],
    progress: Progress | None = None,
) -> None:
    """Write the bundle of a .tar as the new folder `folder`; every check of `Bundle.open` is made on the way.

    Raises BundleError, SignatureError, LockedError, ResourceError; nothing is left then, neither under the final name
    nor beside it. A killed run leaves `.<name>.part` beside it, which the next run removes.
    """
    if os.path.lexists(folder):
        raise BundleError(f"{folder}: expected a name that is free, found something there; remove it or take another")
    with files.os_errors(f"unpacking {archive} as {folder}"), FileIO(archive) as source:
        raw, signed = _read_front(source)
        manifest = check_front(raw, signed, keys, supported)
        with files.staging(folder) as part:
            _check_space(part, sum(entry.size for entry in manifest.files) + len(raw))
            for entry in manifest.files:
                _extract(source, entry, part, progress)
            _check_end(source)
            _create(part / MANIFEST, raw)
            if signed is not None:
                _create(part / SIGNATURE, signed)


def _add_bytes(out: BinaryIO, path: str, content: bytes) -> None:
    out.write(header(path, len(content)) + content + _padding(len(content)))


def _add_file(out: BinaryIO, root: int, entry: FileEntry, progress: Progress | None) -> None:
    out.write(header(entry.path, entry.size))
    with files.open_beneath(root, entry.path) as file:
        check_digest(entry, os.fstat(file.fileno()).st_size, files.digest(file, entry.size, progress, out))
    out.write(_padding(entry.size))


def _read_front(source: FileIO) -> tuple[bytes, bytes | None]:
    """Bytes of the manifest and of its signature, if that comes next."""
    raw = _read_small(source, MANIFEST, MAX_BYTES)
    following = files.read_exactly(source, BLOCK)
    source.seek(-BLOCK, os.SEEK_CUR)
    is_signed = following.startswith(f"{SIGNATURE}\0".encode())
    return raw, _read_small(source, SIGNATURE, signature.MAX_BYTES) if is_signed else None


def _read_small(source: FileIO, path: str, limit: int) -> bytes:
    block = files.read_exactly(source, BLOCK)
    try:
        size = int(block[124:135], 8)
    except ValueError:
        size = -1
    if not 0 <= size <= limit:
        raise BundleError(f"{source.name}: expected {path} of at most {limit} bytes, found {_describe(block)}")
    _check_header(source, block, path, size)
    content = files.read_exactly(source, size)
    _check_padding(source, path, size)
    return content


def _extract(source: FileIO, entry: FileEntry, part: Path, progress: Progress | None) -> None:
    _check_header(source, files.read_exactly(source, BLOCK), entry.path, entry.size)
    target = part / entry.path
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.creating(target) as file:
        check_digest(entry, entry.size, files.digest(source, entry.size, progress, file))
    _check_padding(source, entry.path, entry.size)


def _create(path: Path, content: bytes) -> None:
    with files.creating(path) as file:
        file.write(content)


def _check_header(source: FileIO, block: bytes, path: str, size: int) -> None:
    if block != header(path, size):
        raise BundleError(
            f"{source.name}: expected the plain file {path!r} of {size} bytes, found {_describe(block)};"
            " only an archive that orinkit packed can be unpacked"
        )


def _check_padding(source: FileIO, path: str, size: int) -> None:
    if any(files.read_exactly(source, len(_padding(size)))):
        raise BundleError(f"{source.name}: expected zeros behind {path!r}, found data; get the archive again")


def _check_end(source: FileIO) -> None:
    block = files.read_exactly(source, len(END))
    if block != END:
        raise BundleError(f"{source.name}: expected the end, found {_describe(block)}; get the archive again")
    if source.read(1):
        raise BundleError(f"{source.name}: expected the end, found more data; get the archive again")


def _check_space(part: Path, needed: int) -> None:
    disk = os.statvfs(part)
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise ResourceError(f"{part.parent}: expected {needed} free bytes, found {free}; free some space and try again")


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def _describe(block: bytes) -> str:
    """What a header claims to be, for messages."""
    name = block[:100].split(b"\0")[0].decode("ascii", "backslashreplace")
    return f"{name!r} of type {block[156:157]!r} and size {block[124:136]!r}"
