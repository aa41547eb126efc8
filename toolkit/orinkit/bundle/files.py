# SPDX-License-Identifier: Apache-2.0
"""Files as a bundle needs them: opened beneath a folder without following links, hashed while they stream, written
under a temporary name that is locked, synced and renamed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from orinkit.errors import BundleError, LockedError, ResourceError

Progress = Callable[[int], None]
"""Called with the number of bytes hashed since the last call."""

CHUNK = 1 << 20
"""Bytes that are hashed at a time."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# O_NONBLOCK: a pipe in the place of a file must be refused, not waited for.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_KINDS = {
    stat.S_IFLNK: "symbolic link",
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
}
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def os_errors(doing: str) -> Iterator[None]:
    """Turns what the system refuses while `doing` something into BundleError, or ResourceError if space is lacking."""
    try:
        yield
    except OSError as error:
        where = f" at {os.fsdecode(error.filename)!r}" if isinstance(error.filename, (str, bytes)) else ""
        if error.errno in _NO_SPACE:
            raise ResourceError(f"{doing}: {error.strerror}{where}; free some space and try again") from None
        raise BundleError(f"{doing}: {error.strerror}{where}; check the path and who may read it") from None


@contextmanager
def opened_folder(folder: Path) -> Iterator[int]:
    """A descriptor of `folder`, which may be reached through links."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def walk(folder: int, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Relative path and lstat of everything beneath, in sorted order; the path of a folder ends with "/".

    A folder is entered after its path was taken from the iterator, so the caller can refuse it.
    """
    for name in sorted(os.listdir(folder)):
        info = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISDIR(info.st_mode):
            yield prefix + name, info
            continue
        yield f"{prefix}{name}/", info
        child = os.open(name, _FOLDER, dir_fd=folder)
        try:
            yield from walk(child, f"{prefix}{name}/")
        finally:
            os.close(child)


def open_beneath(folder: int, path: str) -> FileIO:
    """The regular file at `path` under the folder of this descriptor; a link in any part is an OSError.

    Raises BundleError: not a plain file.
    """
    *parents, name = path.split("/")
    held = os.dup(folder)
    try:
        for parent in parents:
            child = os.open(parent, _FOLDER, dir_fd=held)
            os.close(held)
            held = child
        file = FileIO(path, opener=lambda _path, _flags: os.open(name, _FILE, dir_fd=held))
    finally:
        os.close(held)
    try:
        check_plain(path, os.fstat(file.fileno()))
    except BundleError:
        file.close()
        raise
    return file


def check_plain(path: str, info: os.stat_result) -> None:
    """Refuse anything but a folder or a regular file with one name and no setuid bit. Raises BundleError."""
    if stat.S_ISDIR(info.st_mode):
        return
    if not stat.S_ISREG(info.st_mode):
        kind = _KINDS.get(stat.S_IFMT(info.st_mode), "something else")
        raise BundleError(f"{path!r}: expected a regular file, found a {kind}; replace it by a file or remove it")
    if info.st_nlink != 1:
        raise BundleError(f"{path!r}: expected a file with one name, found {info.st_nlink} hard links; copy the file")
    if info.st_mode & 0o7000:
        raise BundleError(f"{path!r}: expected no setuid, setgid or sticky bit, found one; run chmod 0644 on it")


def check_owner(path: str, info: os.stat_result) -> None:
    """Refuse what somebody else could change after the check. Raises BundleError."""
    if info.st_uid not in (0, os.geteuid()):
        raise BundleError(f"{path!r}: expected root or uid {os.geteuid()} as owner, found uid {info.st_uid}; run chown")
    if info.st_mode & 0o022:
        raise BundleError(f"{path!r}: expected that only its owner can write, found others too; run chmod go-w")


def read_small(folder: int, path: str, limit: int) -> bytes:
    """All bytes of a file that may hold at most `limit`. Raises BundleError."""
    with open_beneath(folder, path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise BundleError(f"{path}: expected at most {limit} bytes, found {size}; get the bundle again")
        return read_exactly(file, size)


def read_exactly(source: FileIO, size: int) -> bytes:
    """The next `size` bytes. Raises BundleError: the source ends before."""
    parts = []
    while size:
        part = source.read(size)
        if not part:
            raise BundleError(f"{source.name}: expected {size} more bytes, found the end; get it again")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def digest(source: FileIO, size: int, progress: Progress | None = None, sink: BinaryIO | None = None) -> str:
    """SHA-256 of the next `size` bytes, which also go to `sink`. Raises BundleError: the source ends before."""
    total = hashlib.sha256()
    buffer = memoryview(bytearray(min(CHUNK, size)))
    while size:
        count = source.readinto(buffer[: min(size, CHUNK)])
        if not count:
            raise BundleError(f"{source.name}: expected {size} more bytes, found the end; get it again")
        total.update(buffer[:count])
        if sink is not None:
            sink.write(buffer[:count])
        if progress is not None:
            progress(count)
        size -= count
    return total.hexdigest()


@contextmanager
def creating(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A new file that vanishes when the block raises; it must not exist."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(path, "wb", opener=lambda name, _flags: os.open(name, flags, mode)) as file:
        try:
            os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise


@contextmanager
def replacing(path: Path, part: Path) -> Iterator[BinaryIO]:
    """A file `part` that gets the name `path` and mode 0644 when the block ends, and vanishes when the block raises.

    Raises LockedError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
    with open(part, "wb", opener=lambda name, _flags: os.open(name, flags, 0o600)) as file:
        _claim(file.fileno(), part)
        try:
            file.truncate()
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
            part.rename(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """An empty folder that gets the name `folder` and mode 0755 when the block ends, and vanishes when it raises.

    What a killed run left is removed first. Raises LockedError.
    """
    part = part_of(folder)
    part.mkdir(mode=0o700, exist_ok=True)
    with opened_folder(part) as descriptor:
        _claim(descriptor, part)
        try:
            for left in part.iterdir():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield part
            for path, _, _ in os.walk(part):
                Path(path).chmod(0o755)
                sync_folder(Path(path))
            part.rename(folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    sync_folder(folder.parent)


def part_of(path: Path, *parts: str) -> Path:
    """The temporary name under which `path`, or a file in it, is written.

    It lies beside the path: a run that is killed must not leave an extra file in a folder that was a good bundle.
    """
    return path.with_name(".".join(("", path.name, *parts, "part")))


def sync_folder(folder: Path) -> None:
    """Names that were made or renamed in `folder` last through a power cut."""
    with opened_folder(folder) as descriptor:
        os.fsync(descriptor)


def _claim(descriptor: int, part: Path) -> None:
    """Lock what was opened as `part`, if that name is still the same thing. Raises LockedError, BundleError."""
    info = os.fstat(descriptor)
    check_owner(str(part), info)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = os.path.samestat(info, part.lstat())
    except (BlockingIOError, FileNotFoundError):
        same = False
    if not same:
        raise LockedError(f"{part}: expected to be the only writer, found another run; wait for it and try again")
