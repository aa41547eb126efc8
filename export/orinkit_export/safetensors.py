# SPDX-License-Identifier: Apache-2.0
"""One safetensors file: a strict reader that trusts nothing in it, and a small writer.

    u64 little-endian N | N bytes of JSON | data, little-endian, row-major
    JSON = {"__metadata__": {text: text}, tensor: {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, ...}

Offsets count from the first byte of data. Refused before any data is read: a header over 100 MB or longer than the
file, anything but that JSON, a repeated name, an unknown dtype, shape x dtype != end - begin, overlaps, holes, and a
file whose size is not what its header describes. Layout: https://huggingface.co/docs/safetensors (section "Format").

Tensors are read in blocks straight into the wanted type, so memory holds the result and one block. The file is not
mapped: pages of a mapping count as the process's memory, and a mapped file that shrinks kills the process (SIGBUS).
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from orinkit.errors import CheckpointError

MAX_HEADER = 100_000_000
"""Longest header in bytes, the limit of the format's reference implementation."""

BLOCK = 1 << 24
"""Bytes read from a file at a time."""

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
}

_MAX_NAME = 1000
_MAX_RANK = 8
_MAX_DIGITS = 19
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file, as its header describes it."""

    dtype: str
    """A key of `DTYPES`."""
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the start of the file."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class SafetensorsFile:
    """A file whose header was read and found right; `entries` are its tensors by name."""

    path: Path
    entries: Mapping[str, Entry]
    identity: tuple[int, ...]
    """What tells that the file is still the one whose header was read."""

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """Read and check the header of the file at `path`. Raises CheckpointError."""
        with open_regular(path) as file:
            identity = _identity(file)
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            if start == b"version ":
                _refuse(path, "found a Git LFS pointer instead of weights; run: git lfs pull")
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(MAX_HEADER, size - 8):
                limits = f"at most {MAX_HEADER} bytes, and within the {size} bytes of the file"
                _damaged(path, f"expected a header of {limits}; found a length of {length}")
            text = _read_exactly(file, length, path)
        if not text.startswith(b"{"):
            _damaged(path, f"expected a header that begins with '{{', found {bytes(text[:20])!r}")
        return cls(path, _entries(parse_object(text, path), 8 + length, size, path), identity)

    def read(
        self, name: str, start: int = 0, stop: int | None = None, as_type: DTypeLike | None = None
    ) -> NDArray[Any]:
        """Tensor `name`, or its rows [start:stop], as stored or converted to `as_type`. Raises CheckpointError.

        Rows must lie in the tensor. BF16 and F8 come as the types of ml_dtypes.
        """
        entry = self.entries[name]
        stored = DTYPES[entry.dtype]
        shape = entry.shape if stop is None else (stop - start, *entry.shape[1:])
        out = np.empty(shape, stored if as_type is None else as_type)
        flat, step = out.reshape(-1), BLOCK // stored.itemsize
        with open_regular(self.path) as file:
            if _identity(file) != self.identity:
                _refuse(self.path, f"the file changed before tensor {name!r} was read; start again when it is complete")
            file.seek(entry.begin + start * math.prod(entry.shape[1:]) * stored.itemsize)
            for first in range(0, flat.size, step):
                part = flat[first : first + step]
                data = _read_exactly(file, part.size * stored.itemsize, self.path)
                with np.errstate(invalid="ignore"):  # a signalling NaN; the caller judges values
                    part[...] = np.frombuffer(data, stored)
        return out


def open_regular(path: Path) -> FileIO:
    """Open a regular file for reading; never follows a link, never waits for a pipe. Raises CheckpointError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        _refuse(path, "the file is missing; download the checkpoint again")
    except OSError as error:
        if error.errno == errno.ELOOP:
            hint = "a hub cache links its files; make a plain copy: hf download REPOSITORY --local-dir FOLDER"
            _refuse(path, f"expected a regular file, found a symbolic link; {hint}")
        _refuse(path, f"cannot be read ({error.strerror}); check the path and its permissions")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        _refuse(path, "expected a regular file, found a folder, device or pipe; download the checkpoint again")
    return os.fdopen(descriptor, "rb", buffering=0)


def parse_object(text: bytes | bytearray, path: Path) -> dict[str, Any]:
    """A JSON object in UTF-8 without repeated keys; `path` is for the messages. Raises CheckpointError."""
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=_pairs, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        _damaged(path, f"expected JSON, found: {error!s:.200}")
    if not isinstance(parsed, dict):
        _damaged(path, f"expected a JSON object, found {brief(parsed)}")
    return parsed


def brief(value: Any) -> str:
    """How a value out of a file stands in a message: on one line, short, and only its kind where it may be nested."""
    if isinstance(value, dict):
        return f"an object of {len(value)} keys"
    return f"a list of {len(value)} items" if isinstance(value, list) else f"{value!r:.100}"


def write(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write `tensors` in their order; BF16 is an array of ml_dtypes.bfloat16."""
    with path.open("wb") as file:
        file.write(header({name: (_NAMES[array.dtype], array.shape) for name, array in tensors.items()}))
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())


def header(layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """The bytes in front of the data of tensors with these dtypes and shapes, in this order; a multiple of 8."""
    described, end = {}, 0
    for name, (dtype, shape) in layout.items():
        begin, end = end, end + Entry(dtype, shape, 0).nbytes
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _entries(parsed: dict[str, Any], data: int, size: int, path: Path) -> dict[str, Entry]:
    """Check a parsed header; `data` is the offset of the data in a file of `size` bytes."""
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _damaged(path, f"__metadata__: expected a map of text to text, found {brief(metadata)}")
    found = {name: _entry(name, value, data, path) for name, value in parsed.items()}
    expected = data
    for name, entry in sorted(found.items(), key=lambda item: (item[1].begin, item[1].nbytes)):
        if entry.begin != expected:
            what = "overlaps another tensor" if entry.begin < expected else "leaves a hole in front of it"
            _damaged(path, f"tensor {name!r} {what}: expected it at byte {expected}, found {entry.begin}")
        expected += entry.nbytes
    if size != expected:
        what = "the file is truncated" if size < expected else "bytes follow the last tensor"
        _damaged(path, f"{what}: expected {expected} bytes, found {size}")
    return found


def _entry(name: str, value: Any, data: int, path: Path) -> Entry:
    where = f"tensor {brief(name)}"
    if len(name) > _MAX_NAME:
        _damaged(path, f"{where}: expected a name of at most {_MAX_NAME} characters, found {len(name)}")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        _damaged(path, f"{where}: expected dtype, shape and data_offsets, found {brief(value)}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        known = ", ".join(DTYPES)
        _refuse(path, f"{where}: expected a dtype of {known}; found {brief(dtype)}; use a BF16, F16 or F32 checkpoint")
    if not _are_sizes(shape) or len(shape) > _MAX_RANK or math.prod(max(dim, 1) for dim in shape) >> 60:
        _damaged(path, f"{where}: expected a shape of at most {_MAX_RANK} sizes, found {brief(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        _damaged(path, f"{where}: expected two data_offsets, found {brief(offsets)}")
    entry = Entry(dtype, tuple(shape), data + offsets[0])
    if offsets[1] - offsets[0] != entry.nbytes:
        _damaged(path, f"{where}: expected {entry.nbytes} bytes for {dtype} {shape}, found data_offsets {offsets}")
    return entry


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the name {repeated!r} twice")
    return made


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _identity(file: FileIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read_exactly(file: FileIO, count: int, path: Path) -> bytearray:
    data = bytearray(count)
    view, done = memoryview(data), 0
    while done < count:
        got = file.readinto(view[done:])
        if not got:
            _refuse(path, f"expected {count} bytes at this place, found {done}; the file changed, start again")
        done += got
    return data


def _refuse(path: Path, problem: str) -> NoReturn:
    raise CheckpointError(f"{path}: {problem}")


def _damaged(path: Path, problem: str) -> NoReturn:
    _refuse(path, f"{problem}; the file is damaged, download it again")
