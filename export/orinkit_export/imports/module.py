# SPDX-License-Identifier: Apache-2.0
"""One linear module of a quantised checkpoint in canonical form, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from orinkit import int4
from orinkit.errors import CheckpointError
from orinkit_export.checkpoint import Checkpoint
from orinkit_export.safetensors import brief

Float16 = NDArray[np.float16]
Int32 = NDArray[np.int32]
UInt8 = NDArray[np.uint8]

INSTEAD = "use the float checkpoint that it was made from"
"""What to do about a checkpoint whose weights cannot be kept exactly."""

_UNKNOWN = -1
"""Group of every column where the checkpoint reserved the vector and never filled it."""


@dataclass(frozen=True)
class Module:
    """W[n, k] = (values[n, k] - zeros[n, g]) * scales[n, g] with g the group of column k; read when asked for.

    Values [N, K] 0..15 have the checkpoint's columns; scales and zeros [N, K/G] are in the order of the groups.
    """

    name: str
    sources: tuple[str, ...]
    """The stored tensors that it is made of."""
    shape: tuple[int, int]
    group_size: int
    order: Int32 | None
    """Columns [K] of group 0, then those of group 1, ..; None = they lie like that."""
    is_symmetric: bool
    """Whether the checkpoint says that all zero points are 8."""
    read_values: Callable[[], UInt8]
    read_scales: Callable[[], Float16]
    read_zeros: Callable[[], UInt8] | None
    """None = no zero points are stored."""

    @property
    def has_zeros(self) -> bool:
        return self.read_zeros is not None and not self.is_symmetric

    def zeros(self) -> UInt8:
        """Zero points [N, K/G] 0..15. Raises CheckpointError: others than 8 where 8 is promised."""
        rows, columns = self.shape
        if self.read_zeros is None:
            return np.full((rows, columns // self.group_size), int4.ZERO, np.uint8)
        zeros = self.read_zeros()
        if self.is_symmetric and (zeros != int4.ZERO).any():
            refuse(self.name, "expected zero points of 8, as config.json says symmetric, found others")
        return zeros


class Format(Protocol):
    """How a checkpoint stores its quantised modules."""

    @property
    def marker(self) -> str:
        """Suffix of the tensor that every quantised module has, and no other."""

    def module(self, checkpoint: Checkpoint, name: str) -> Module:
        """The quantised module `name`. Raises CheckpointError: tensors missing, of other shapes, or beyond the ops."""


class Stored:
    """The stored tensors of one module by their suffixes. Methods raise CheckpointError for what is not as expected."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._checkpoint = checkpoint
        self.name = name

    def __contains__(self, suffix: str) -> bool:
        return f"{self.name}.{suffix}" in self._checkpoint

    def sources(self, *needed: str, optional: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Names of the tensors that are there, the needed ones among them."""
        for suffix in needed:
            self._checkpoint.resolve(f"{self.name}.{suffix}")
        return tuple(f"{self.name}.{suffix}" for suffix in (*needed, *optional) if suffix in self)

    def shape(self, suffix: str) -> tuple[int, int]:
        """Rows and columns of a matrix."""
        shape = self._checkpoint.shape(f"{self.name}.{suffix}")
        if len(shape) != 2:
            refuse(f"{self.name}.{suffix}", f"expected a matrix, found shape {shape}")
        return shape[0], shape[1]

    def group_size(self, columns: int, groups: int) -> int:
        """Weights of a group, where `groups` of them make up a row."""
        if not groups or columns % groups or columns // groups not in int4.GROUP_SIZES:
            sizes = ", ".join(map(str, int4.GROUP_SIZES))
            refuse(self.name, f"expected groups of one of {sizes} weights, found {groups} groups in a row of {columns}")
        return columns // groups

    def integers(self, suffix: str, shape: tuple[int, ...]) -> Int32:
        """32-bit integers."""
        name = f"{self.name}.{suffix}"
        if self._checkpoint.dtype(name) != "I32":
            refuse(name, f"expected I32, found {self._checkpoint.dtype(name)}")
        return np.asarray(self._checkpoint.read_stored(name, shape), np.int32)

    def scales(self, suffix: str, shape: tuple[int, int]) -> Float16:
        """Scales of any float type, all of which float16 holds exactly."""
        wide = self._checkpoint.read(f"{self.name}.{suffix}", shape)
        with np.errstate(over="ignore"):
            narrow = wide.astype(np.float16)
        lost = wide[narrow.astype(np.float32) != wide]
        if lost.size:
            refuse(f"{self.name}.{suffix}", f"expected scales that float16 holds exactly, found {lost[0]:.9g}")
        return narrow

    def order(self, suffix: str, columns: int, group_size: int) -> Int32 | None:
        """The columns by group, from the vector that has the group of each, if there is one."""
        if suffix not in self:
            return None
        group = self.integers(suffix, (columns,))
        if (group == _UNKNOWN).all():
            return None
        order = np.argsort(group, kind="stable").astype(np.int32)
        if not np.array_equal(group[order], np.arange(columns) // group_size):
            refuse(f"{self.name}.{suffix}", f"expected {group_size} columns in every group, found other numbers")
        return None if np.array_equal(order, np.arange(columns)) else order


def nibbles(words: Int32) -> UInt8:
    """Values 0..15 [A, 8B] of words [A, B], the lowest nibble of a word first."""
    return int4.unpack(np.ascontiguousarray(words).view(np.int8), 8 * words.shape[1])


def section(settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The settings under `key`, none where it is absent or null. Raises CheckpointError: it is no object."""
    found = settings.get(key)
    if found is not None and not isinstance(found, Mapping):
        raise CheckpointError(f"config.json: quantization_config: {key}: expected an object, found {brief(found)}")
    return found or {}


def expect(settings: Mapping[str, Any], key: str, default: Any, *expected: Any) -> Any:
    """The setting `key`, `default` where it is absent or null. Raises CheckpointError: it is none of `expected`."""
    found = default if settings.get(key) is None else settings[key]
    if not any(type(found) is type(value) and found == value for value in expected):
        wanted = " or ".join("none" if value is None else repr(value) for value in expected)
        raise CheckpointError(
            f"config.json: quantization_config: {key}: expected {wanted}, found {brief(found)}; {INSTEAD}"
        )
    return found


def refuse(name: str, problem: str) -> NoReturn:
    """Raise CheckpointError about a module or a tensor of it."""
    raise CheckpointError(f"{name}: {problem}; {INSTEAD}")
