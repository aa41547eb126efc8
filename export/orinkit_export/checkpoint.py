# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face checkpoint folder with safetensors: tensors by name, read when asked for, refused when unsafe.

Files that are read, all of them regular files (no links) directly in the folder:
  config.json                                                   always
  model.safetensors.index.json and the shards that it names     or else model.safetensors
  tokenizer.json, tokenizer_config.json, chat_template.jinja,
  special_tokens_map.json, generation_config.json               those present
Other files are never opened. Code of the author (`auto_map`, any *.py) is refused and never imported. A pickle (.bin,
.pt, .pth, .ckpt, .pkl) is refused where it would be the weights, and ignored beside safetensors, where many
repositories keep one.

Names: a caller asks for the text model's own names, `model.layers.0.mlp.up_proj.weight`. Where the text model is part
of a multimodal checkpoint, the tensor is found as `model.language_model.layers.0...` or `language_model.model...`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orinkit.errors import CheckpointError
from orinkit_export.safetensors import Entry, SafetensorsFile, brief, open_regular, parse_object

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
)
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
FLOATS = frozenset({"BF16", "F16", "F32"})

MAX_CONFIG = 4 << 20
"""Largest config.json in bytes."""
MAX_INDEX = 64 << 20
"""Largest index in bytes."""

_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")
_ZERO_SCAN = 1 << 22


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: everything that can be checked without reading weights was checked.

    Every method that takes a tensor name takes it in the text model's spelling or as stored, and raises CheckpointError
    when there is no such tensor.
    """

    folder: Path
    config: dict[str, Any]
    allow_nonfinite: bool
    """Whether values that are not finite and matrices of zeros are let through."""
    _shards: Mapping[str, SafetensorsFile]
    """The file of every tensor."""

    @classmethod
    def open(cls, folder: Path, allow_nonfinite: bool = False) -> Checkpoint:
        """Open the checkpoint in `folder` without reading weights. Raises CheckpointError."""
        names = _list(folder)
        config = _read_object(folder / CONFIG, MAX_CONFIG)
        _refuse_code(folder, names, config)
        checkpoint = cls(folder, config, allow_nonfinite, _open_shards(folder, names))
        for path in checkpoint.tokenizer_files().values():
            open_regular(path).close()
        return checkpoint

    @property
    def names(self) -> frozenset[str]:
        """Every tensor, as stored."""
        return frozenset(self._shards)

    @property
    def text_config(self) -> dict[str, Any]:
        """Settings of the text model: config.json's `text_config` if any, its gaps filled from the top level."""
        nested = self.config.get("text_config")
        if not isinstance(nested, dict):
            return self.config
        outer = {key: value for key, value in self.config.items() if key != "text_config"}
        return outer | {key: value for key, value in nested.items() if value is not None or key not in outer}

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def resolve(self, name: str) -> str:
        """The stored name of tensor `name`."""
        stored = self._find(name)
        if stored is None:
            near = difflib.get_close_matches(name, self._shards, n=1)
            hint = f"the nearest is {near[0]!r}" if near else f"none of {len(self._shards)} is like it"
            raise CheckpointError(f"{self.folder}: no tensor {name!r} ({hint}); does config.json fit the weights?")
        return stored

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """The stored type as safetensors writes it: BF16, F16, F32, I32, ..."""
        return self._entry(name).dtype

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> NDArray[np.float32]:
        """Tensor `name`, stored as BF16, F16 or F32, in float32.

        Raises CheckpointError: another dtype, not of `shape` where that is given, NaN or infinity in it, or a matrix
        (two dimensions or more) of zeros only.
        """
        return self._read_floats(name, shape, 0, None)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start:stop] of tensor `name` in float32, for matrices too large to hold. Raises as `read` does.

        Rows of zeros are fine (unused tokens) as long as some other row is not zero.
        """
        rows = self.shape(name)[:1]
        if not rows or not 0 <= start <= stop <= rows[0]:
            raise CheckpointError(
                f"{self._where(name)}: expected rows of shape {self.shape(name)}, found {start}:{stop}"
            )
        return self._read_floats(name, None, start, stop)

    def read_stored(self, name: str, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
        """Tensor `name` as stored, for integers of quantised checkpoints. Raises CheckpointError: not of `shape`."""
        self._check_shape(name, shape)
        stored = self.resolve(name)
        return self._shards[stored].read(stored)

    def files(self) -> tuple[Path, ...]:
        """Every file that is read, sorted: settings, index, weights, tokenizer."""
        shards = {file.path for file in self._shards.values()}
        settings = {self.folder / CONFIG, *self.tokenizer_files().values()}
        index = self.folder / INDEX
        return tuple(sorted(shards | settings | ({index} if index.exists() else set())))

    def tokenizer_files(self) -> dict[str, Path]:
        """Those of `TOKENIZER_FILES` that are present, by name."""
        paths = {name: self.folder / name for name in TOKENIZER_FILES}
        return {name: path for name, path in paths.items() if path.is_symlink() or path.exists()}

    def unused(self, used: Iterable[str]) -> tuple[str, ...]:
        """Stored names of the tensors that are not among `used` (vision, extra prediction layers), sorted."""
        return tuple(sorted(self.names - {self.resolve(name) for name in used}))

    def _find(self, name: str) -> str | None:
        return next((spelling for spelling in _spellings(name) if spelling in self._shards), None)

    def _entry(self, name: str) -> Entry:
        stored = self.resolve(name)
        return self._shards[stored].entries[stored]

    def _where(self, name: str) -> str:
        stored = self.resolve(name)
        return f"{self._shards[stored].path}: tensor {stored!r}"

    def _check_shape(self, name: str, shape: tuple[int, ...] | None) -> None:
        if shape is not None and self.shape(name) != shape:
            raise CheckpointError(
                f"{self._where(name)}: expected shape {shape}, found {self.shape(name)}; "
                "does config.json fit the weights?"
            )

    def _read_floats(
        self, name: str, shape: tuple[int, ...] | None, start: int, stop: int | None
    ) -> NDArray[np.float32]:
        self._check_shape(name, shape)
        if self.dtype(name) not in FLOATS:
            expected = ", ".join(sorted(FLOATS))
            raise CheckpointError(
                f"{self._where(name)}: expected {expected}, found {self.dtype(name)}; "
                "use the checkpoint before its quantisation"
            )
        stored = self.resolve(name)
        values: NDArray[np.float32] = self._shards[stored].read(stored, start, stop, np.float32)
        if values.size and not self.allow_nonfinite:
            low, high = values.min(), values.max()  # a NaN anywhere makes both NaN
            if not (np.isfinite(low) and np.isfinite(high)):
                self._refuse_values(name, f"found {_first_nonfinite(values, start)}")
            if low == high == 0 and self._is_zero_matrix(name):
                self._refuse_values(name, "found zeros only")
        return values

    def _refuse_values(self, name: str, found: str) -> None:
        advice = "download it again; --allow-nonfinite goes on with it"
        raise CheckpointError(f"{self._where(name)}: expected trained weights, {found}; {advice}")

    def _is_zero_matrix(self, name: str) -> bool:
        stored, shape = self.resolve(name), self.shape(name)
        if len(shape) < 2:
            return False
        step = max(1, _ZERO_SCAN * shape[0] // self._entry(name).nbytes)
        starts = range(0, shape[0], step)
        blocks = (self._shards[stored].read(stored, first, min(first + step, shape[0])) for first in starts)
        return not any(block.any() for block in blocks)


def _list(folder: Path) -> list[str]:
    """Names of the files and folders in `folder`, sorted."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a checkpoint folder, found none; download it and give its path")
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from None


def _refuse_code(folder: Path, names: list[str], config: dict[str, Any]) -> None:
    for name in names:
        if name.lower().endswith(".py"):
            advice = "remove the file if orinkit knows the architecture"
            raise CheckpointError(
                f"{folder / name}: expected no code in a checkpoint, which orinkit never runs; {advice}"
            )
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    if any("auto_map" in part for part in parts):
        advice = "use the checkpoint that the transformers library reads by itself"
        raise CheckpointError(f"{folder / CONFIG}: expected no code of the author, found the key 'auto_map'; {advice}")


def _read_object(path: Path, limit: int) -> dict[str, Any]:
    with open_regular(path) as file:
        text = file.read(limit + 1)
    if len(text) > limit:
        raise CheckpointError(f"{path}: expected at most {limit} bytes, found more; download it again")
    return parse_object(text, path)


def _open_shards(folder: Path, names: list[str]) -> dict[str, SafetensorsFile]:
    """The opened file of every tensor."""
    if INDEX not in names:
        if WEIGHTS not in names:
            raise CheckpointError(f"{folder}: expected {WEIGHTS} or {INDEX}, {_what_instead(names)}")
        file = SafetensorsFile.open(folder / WEIGHTS)
        return dict.fromkeys(file.entries, file)
    weight_map = _weight_map(folder / INDEX)
    if WEIGHTS in names and WEIGHTS not in weight_map.values():
        raise CheckpointError(f"{folder}: expected one set of weights, found {WEIGHTS} and {INDEX}; remove the older")
    shards: dict[str, SafetensorsFile] = {}
    for shard in sorted(set(weight_map.values())):
        file = SafetensorsFile.open(folder / shard)
        for name in file.entries:
            if weight_map.get(name) != shard:
                other = f"in {weight_map[name]}" if name in weight_map else "nowhere"
                raise CheckpointError(
                    f"{file.path}: found tensor {name!r}, {INDEX} has it {other}; download both again"
                )
        shards |= dict.fromkeys(file.entries, file)
    for name, shard in weight_map.items():
        if name not in shards:
            raise CheckpointError(f"{folder / shard}: tensor {brief(name)} of {INDEX} is missing; download both again")
    return shards


def _weight_map(path: Path) -> dict[str, str]:
    """Shard of every tensor according to the index."""
    weight_map = _read_object(path, MAX_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: expected the key 'weight_map' with tensor names to files; download it again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise CheckpointError(
                f"{path}: tensor {brief(name)}: expected a plain file name that ends in .safetensors, "
                f"found {brief(shard)}; do not use this checkpoint"
            )
    return weight_map


def _what_instead(names: list[str]) -> str:
    pickles = [name for name in names if Path(name).suffix.lower() in PICKLES]
    if pickles:
        return f"found {pickles[0]!r}: pickles can run code and are never opened; ask the author for safetensors"
    others = [name for name in names if name.endswith(".safetensors")]
    found = f"found only {', '.join(map(repr, others[:3]))}" if others else "found no safetensors"
    return f"{found}; download the checkpoint again"


def _spellings(name: str) -> tuple[str, ...]:
    """How checkpoints spell the text model's tensor `name`."""
    outer = f"language_model.{name}"
    inner = name.removeprefix("model.")
    return (name, outer) if inner == name else (name, f"model.language_model.{inner}", outer)


def _first_nonfinite(values: NDArray[np.float32], start: int) -> str:
    """The first value that is not finite, and where; rows are counted from `start`."""
    index = np.array(np.unravel_index(np.argmin(np.isfinite(values)), values.shape), dtype=int)
    value = values[tuple(index)]
    index[:1] += start
    return f"{value} at {index.tolist()}"
