# SPDX-License-Identifier: Apache-2.0
"""The bundle as a folder: write its manifest, open it verified."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePosixPath

from orinkit.bundle import files, signature
from orinkit.bundle.files import Progress
from orinkit.bundle.manifest import (
    DATA,
    GRAPH,
    MANIFEST,
    MAX_BYTES,
    PLUGINS,
    SIGNATURE,
    TOKENIZER,
    FileEntry,
    Manifest,
    check_ops,
    check_path,
    decode,
    encode,
)
from orinkit.bundle.signature import PublicKey
from orinkit.errors import BundleError, ConfigError
from orinkit.recipe import Recipe


@dataclass(frozen=True)
class Bundle:
    """A folder in which everything was found to be what the manifest says. Only `open` vouches for that.

    Nothing holds the files from then on, so whoever can write to the folder can still swap them: keep bundles in a
    store that belongs to root or to the user who runs. With trusted keys `open` insists on it. `read` and `open_file`
    hash again through the descriptor that they read from; `path` is for engines that take nothing but a path (ONNX
    Runtime looks for model.data beside model.onnx).
    """

    folder: Path
    """Absolute, symbolic links resolved."""
    manifest: Manifest
    digest: str
    """SHA-256 of manifest.json in hexadecimal: the bundle's identity."""

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        keys: Sequence[PublicKey] | None,
        supported: Mapping[str, str],
        progress: Progress | None = None,
    ) -> Bundle:
        """Verify everything in `folder`, in this order: signature, manifest, op versions, list of files, digests.

        keys: who may have signed; None asks for no signature, an empty sequence refuses every bundle.
        supported: version of each op that this machine can run.
        Raises BundleError, SignatureError.
        """
        with files.os_errors(f"opening the bundle {folder}"):
            folder = Path(os.path.realpath(folder, strict=True))
            with files.opened_folder(folder) as root:
                raw = files.read_small(root, MANIFEST, MAX_BYTES)
                manifest = check_front(raw, signature.read(root), keys, supported)
                if keys is not None:
                    files.check_owner(str(folder), os.fstat(root))
                check_listing(root, {entry.path for entry in manifest.files}, is_owned=keys is not None)
                for entry in manifest.files:
                    _open_checked(root, entry, progress).close()
        return cls(folder, manifest, hashlib.sha256(raw).hexdigest())

    @property
    def graph(self) -> Path:
        """The ONNX model."""
        return self.folder / GRAPH

    @property
    def data(self) -> Path:
        """The weights of the graph."""
        return self.folder / DATA

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer."""
        return (self.folder / TOKENIZER).parent

    @property
    def plugins(self) -> Path | None:
        """The plugin library, if the bundle holds one."""
        return self.folder / PLUGINS if PLUGINS in self._entries else None

    def path(self, relative: str) -> Path:
        """Where a file of the bundle lies. Raises BundleError: the manifest does not list it."""
        return self.folder / self._entry(relative).path

    def read(self, relative: str) -> bytes:
        """All bytes of a file; what is returned is what was hashed. Raises BundleError."""
        entry = self._entry(relative)
        with files.os_errors(f"reading {relative}"), files.opened_folder(self.folder) as root:
            raw = files.read_small(root, relative, entry.size)
        check_digest(entry, len(raw), hashlib.sha256(raw).hexdigest())
        return raw

    def open_file(self, relative: str) -> FileIO:
        """A file at its beginning, hashed through this descriptor; `/proc/self/fd/<fileno>` is a path to it.

        Raises BundleError.
        """
        entry = self._entry(relative)
        with files.os_errors(f"reading {relative}"), files.opened_folder(self.folder) as root:
            file = _open_checked(root, entry, None)
            file.seek(0)
        return file

    @property
    def _entries(self) -> dict[str, FileEntry]:
        return {entry.path: entry for entry in self.manifest.files}

    def _entry(self, relative: str) -> FileEntry:
        if relative not in self._entries:
            raise BundleError(f"{self.folder}: expected a file that the manifest lists, found {relative[:120]!r}")
        return self._entries[relative]


def opened_again(folder: Path) -> Bundle:
    """A bundle that `Bundle.open` has vouched for in this process, for an engine that is given its path only.

    What it reads is still checked against the manifest. Raises BundleError.
    """
    with files.os_errors(f"opening the bundle {folder}"), files.opened_folder(folder) as root:
        raw = files.read_small(root, MANIFEST, MAX_BYTES)
    return Bundle(folder, decode(raw), hashlib.sha256(raw).hexdigest())


def write(folder: Path, manifest: Manifest, progress: Progress | None = None) -> Manifest:
    """Hash what lies in `folder`, write manifest.json there and return it with its files.

    `folder` is a staging folder of the caller, complete but for the manifest. The recipe's paths are reduced to
    their last parts: where things lay on the host is nobody's business. Raises BundleError, LockedError, ResourceError.
    """
    folder = Path(os.path.realpath(folder))
    with files.os_errors(f"writing the bundle {folder}"), files.opened_folder(folder) as root:
        if signature.read(root) is not None:
            raise BundleError(f"{folder}: expected no {SIGNATURE} yet, found one; a new manifest needs a new signature")
        entries = tuple(_entry(root, path, progress) for path in _find(root))
        raw = encode(dataclasses.replace(manifest, recipe=portable(manifest.recipe), files=entries))
        written = decode(raw)
        with files.replacing(folder / MANIFEST, files.part_of(folder, MANIFEST)) as file:
            file.write(raw)
    return written


def check_front(
    raw: bytes, signed: bytes | None, keys: Sequence[PublicKey] | None, supported: Mapping[str, str]
) -> Manifest:
    """Everything that can be known from the manifest's bytes and its signature. Raises BundleError, SignatureError."""
    if keys is not None:
        # Before the JSON is parsed: the parser sees only bytes that a trusted key has signed.
        signature.verify(raw, signed, keys)
    manifest = decode(raw)
    check_ops(manifest.ops, supported)
    return manifest


def _find(root: int) -> list[str]:
    """Paths of all files but the manifest, sorted. Raises BundleError: something that no bundle may hold."""
    found = set()
    for path, info in files.walk(root):
        if path != MANIFEST:
            _check_legal(path, info)
            found.add(path)
    paths = {path for path in found if not path.endswith("/")}
    empty = found - paths - _folders(paths)
    if empty:
        raise BundleError(f"{min(empty)!r}: expected a folder with files, found an empty one; remove it")
    return sorted(paths)


def _check_legal(path: str, info: os.stat_result) -> None:
    try:
        check_path(path.rstrip("/"))
    except ConfigError as error:
        raise BundleError(str(error)) from None
    files.check_plain(path, info)


def check_listing(root: int, listed: set[str], *, is_owned: bool = False) -> None:
    """What lies there must be what is listed, with the folders that it takes. Raises BundleError."""
    known = listed | _folders(listed) | {MANIFEST, SIGNATURE}
    missing = set(listed)
    for path, info in files.walk(root):
        if path not in known:
            raise BundleError(f"{path[:120]!r}: expected only what {MANIFEST} lists, found this; remove it")
        files.check_plain(path, info)
        if is_owned:
            files.check_owner(path, info)
        missing.discard(path)
    if missing:
        raise BundleError(f"{min(missing)!r}: expected the file, found none; get the bundle again")


def _folders(paths: set[str]) -> set[str]:
    """The folders that these files lie in, as `walk` spells them."""
    return {f"{parent}/" for path in paths for parent in PurePosixPath(path).parents}


def _entry(root: int, path: str, progress: Progress | None) -> FileEntry:
    with files.open_beneath(root, path) as file:
        size = os.fstat(file.fileno()).st_size
        entry = FileEntry(path, size, files.digest(file, size, progress))
        os.fsync(file.fileno())
    return entry


def _open_checked(root: int, entry: FileEntry, progress: Progress | None) -> FileIO:
    """The open file, read to its end. Raises BundleError: another size or digest."""
    file = files.open_beneath(root, entry.path)
    try:
        size = os.fstat(file.fileno()).st_size
        check_digest(entry, size, files.digest(file, size, progress) if size == entry.size else "")
    except BaseException:
        file.close()
        raise
    return file


def check_digest(entry: FileEntry, size: int, digest: str) -> None:
    if size != entry.size:
        raise BundleError(f"{entry.path}: expected {entry.size} bytes, found {size}; get the bundle again")
    if digest != entry.sha256:
        raise BundleError(f"{entry.path}: expected SHA-256 {entry.sha256}, found {digest}; get the bundle again")


def portable(recipe: Recipe) -> Recipe:
    """The recipe as a manifest holds it: without the folders in which checkpoint and texts lie on this host."""

    def last(path: str) -> str:
        return PurePosixPath(path).name or "."

    calibration, evaluation = recipe.calibration, recipe.evaluation
    return dataclasses.replace(
        recipe,
        checkpoint=dataclasses.replace(recipe.checkpoint, path=last(recipe.checkpoint.path)),
        calibration=dataclasses.replace(calibration, text=calibration.text and last(calibration.text)),
        evaluation=dataclasses.replace(evaluation, text=evaluation.text and last(evaluation.text)),
    )
