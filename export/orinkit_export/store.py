# SPDX-License-Identifier: Apache-2.0
"""Tensors one after another in one file, page-aligned, written in little memory and resumable after a kill.

A store is a folder: `model.data` holds the bytes, `index.json` one line per finished tensor. A line is written after
its bytes are on disk, so a store that was cut off ends at its last line; `TensorWriter` goes on from there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orinkit.errors import ResourceError

ALIGNMENT = 4096
"""Tensors start at multiples of a page, so that each can be mapped by itself."""

DATA, INDEX = "model.data", "index.json"


@dataclass(frozen=True)
class Entry:
    """One tensor of a store: NumPy dtype name, shape, byte offset and size in `model.data`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_index(folder: Path) -> dict[str, Entry]:
    """The finished tensors of a store by name, in the order written."""
    entries = {}
    path = folder / INDEX
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []:
        if line.endswith("\n"):  # a kill may cut the last line
            data = json.loads(line)
            entries[data["name"]] = Entry(**data | {"shape": tuple(data["shape"])})
    return entries


def load(folder: Path, entry: Entry) -> NDArray[Any]:
    """A tensor of the store, mapped read-only."""
    if not entry.nbytes:
        return np.empty(entry.shape, entry.dtype)
    return np.memmap(folder / DATA, entry.dtype, "r", entry.offset, entry.shape)


class TensorWriter:
    """Appends tensors to a store. Use as a context manager; everything written before is kept."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.entries = read_index(folder)
        self._folder = folder
        self._end = max((entry.offset + entry.nbytes for entry in self.entries.values()), default=0)

    def __enter__(self) -> TensorWriter:
        self._data = os.fdopen(os.open(self._folder / DATA, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        self._data.truncate(self._end)
        lines = "".join(_line(entry) for entry in self.entries.values())
        (self._folder / INDEX).write_text(lines, encoding="utf-8")
        self._index = (self._folder / INDEX).open("a", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._data.close()
        self._index.close()

    def write(self, name: str, blocks: Iterable[NDArray[Any]]) -> None:
        """Append one tensor given as blocks along its first axis. Raises ResourceError when the disk is full."""
        with _disk(self._folder):
            offset = -(-self._end // ALIGNMENT) * ALIGNMENT
            self._data.truncate(offset)
            self._data.seek(offset)
            rows, dtype, tail = 0, "", ()
            for block in blocks:
                self._data.write(np.ascontiguousarray(block).data)
                rows, dtype, tail = rows + block.shape[0], block.dtype.name, block.shape[1:]
            self._data.flush()
            self._end = self._data.tell()
            entry = Entry(name, dtype, (rows, *tail), offset, self._end - offset)
            self._index.write(_line(entry))
            self._index.flush()
        self.entries[name] = entry

    def sync(self) -> None:
        """Force everything to disk; call it before the folder is renamed into place."""
        with _disk(self._folder):
            os.fsync(self._data.fileno())
            os.fsync(self._index.fileno())


def _line(entry: Entry) -> str:
    return json.dumps(vars(entry) | {"shape": list(entry.shape)}, sort_keys=True) + "\n"


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{folder}: writing weights failed ({error.strerror}); free some space and run again"
        ) from None
