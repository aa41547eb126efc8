# SPDX-License-Identifier: Apache-2.0
"""Tensors one after another in one file, page-aligned, written in little memory and resumable after a kill.

A store is a folder: `model.data` holds the bytes, `index.json` one line per finished tensor. A line is written after
its bytes, so a store that was cut off ends at its last whole line; `TensorWriter` goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orinkit_export.disk import writing

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
    index, data = folder / INDEX, folder / DATA
    size = data.stat().st_size if data.exists() else 0
    for line in index.read_text(encoding="utf-8").splitlines(keepends=True) if index.exists() else []:
        if line.endswith("\n"):  # a kill may cut the last line
            fields = json.loads(line)
            entry = Entry(**fields | {"shape": tuple(fields["shape"])})
            if entry.offset + entry.nbytes <= size:  # a power failure may keep the line and lose the bytes
                entries[entry.name] = entry
    return entries


class TensorWriter:
    """Appends tensors to a store. Use as a context manager; everything written before is kept."""

    def __init__(self, folder: Path) -> None:
        self.entries = read_index(folder)
        self._folder = folder
        self._end = max((entry.offset + entry.nbytes for entry in self.entries.values()), default=0)

    def __enter__(self) -> TensorWriter:
        """Cut off what is not finished. Raises ResourceError."""
        part = self._folder / f"{INDEX}.part"
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            part.write_text("".join(_line(entry) for entry in self.entries.values()), encoding="utf-8")
            part.replace(self._folder / INDEX)
            self._index = (self._folder / INDEX).open("a", encoding="utf-8")
            self._data = (self._folder / DATA).open("ab", buffering=0)
            self._data.truncate(self._end)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._data.close()
        with writing(self._folder):  # closing tries again what a full disk refused
            self._index.close()

    def write(self, name: str, blocks: Iterable[NDArray[Any]]) -> None:
        """Append one tensor given as blocks along its first axis; the last tensor, written again, is replaced.

        Raises ResourceError when the disk is full.
        """
        known = self.entries.pop(name, None)
        if known and known.offset + known.nbytes == self._end:
            self._end = known.offset
        with writing(self._folder):
            offset = -(-self._end // ALIGNMENT) * ALIGNMENT
            self._data.truncate(offset)
            rows, nbytes, dtype, tail = 0, 0, "", ()
            for block in blocks:
                self._append(block)
                rows, nbytes = rows + block.shape[0], nbytes + block.nbytes
                dtype, tail = block.dtype.name, block.shape[1:]
            entry = Entry(name, dtype, (rows, *tail), offset, nbytes)
            self._index.write(_line(entry))
            self._index.flush()
        self._end = offset + nbytes
        self.entries[name] = entry

    def _append(self, block: NDArray[Any]) -> None:
        left = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
        while left:  # one call writes 2 GiB at most
            left = left[self._data.write(left) :]


def _line(entry: Entry) -> str:
    return json.dumps(vars(entry) | {"shape": list(entry.shape)}, sort_keys=True) + "\n"
