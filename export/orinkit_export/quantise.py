# SPDX-License-Identifier: Apache-2.0
"""Weights into the formats of the ops, block by block."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from orinkit import int4
from orinkit.errors import ConfigError
from orinkit.memory.formats import Format, Kind, format_of, parts_of, shares_head
from orinkit.recipe import Recipe
from orinkit_export import int8, rounding
from orinkit_export.levels import narrow
from orinkit_export.rounding import loss
from orinkit_export.store import TensorWriter
from orinkit_export.weights import Weight

Float32 = NDArray[np.float32]
Float16 = NDArray[np.float16]

CALIBRATED = frozenset({"awq", "gptq", "awq+gptq"})
"""Methods that look at a text."""

_MAX_FLOAT16 = float(np.finfo(np.float16).max)
_LARGEST = {"int4": 7 * _MAX_FLOAT16, "int8": 127 * _MAX_FLOAT16, "float16": _MAX_FLOAT16, "float32": math.inf}
"""Largest magnitude that a format holds; scales are float16."""


class Rounded(Protocol):
    """A matrix as it is stored."""

    @property
    def packed(self) -> NDArray[Any]: ...

    @property
    def beside(self) -> tuple[NDArray[np.generic], ...]:
        """What Format.suffixes names."""

    def dequantised(self) -> Float32: ...

    def with_scales(self, change: Callable[[Float32], Float32]) -> Rounded:
        """Rows times other factors; `change` gets and gives what multiplies each row, or each of its groups."""


@dataclass(frozen=True)
class Wide:
    """A matrix that is not rounded to integers."""

    packed: NDArray[np.floating[Any]]
    beside: tuple[NDArray[np.generic], ...] = ()

    def dequantised(self) -> Float32:
        return np.asarray(self.packed, np.float32)

    def with_scales(self, change: Callable[[Float32], Float32]) -> Wide:
        return Wide(narrow(change(self.dequantised())) if self.packed.dtype == np.float16 else change(self.packed))


def store(
    writer: TensorWriter,
    weight: Weight,
    recipe: Recipe,
    gram: Float32 | None = None,
    rounded: Rounded | None = None,
) -> float | None:
    """Write `weight` in its format: `X.weight` with what belongs beside it (Format.suffixes), or as it is.

    `gram` [K, K] of the inputs of the matrix, where it is known, weighs the rounding errors; then the result is the
    relative squared error of the outputs. A matrix that is `rounded` already is written as that.

    Raises ConfigError: a shape that the format does not fit, values that float16 cannot hold. Raises CheckpointError:
    integers of the checkpoint that cannot be kept.
    """
    stem = weight.name.removesuffix(".weight")
    if weight.integers:
        for suffix, array in weight.integers.tensors():
            writer.write(f"{stem}.{suffix}", [array])
        return None
    check_shape(weight, recipe)
    chosen = chosen_format(weight, recipe)
    error = Error()
    beside: list[tuple[NDArray[np.generic], ...]] = []

    def packed() -> Iterator[NDArray[Any]]:
        for part in [rounded] if rounded else _rounded_blocks(weight, recipe, gram, error):
            beside.append(part.beside)
            yield part.packed

    writer.write(weight.name, packed())
    for suffix, blocks in zip(chosen.suffixes, zip(*beside, strict=True), strict=True):
        writer.write(f"{stem}.{suffix}", blocks)
    return error.relative


@dataclass
class Error:
    """Squared errors of outputs, and their power."""

    lost: float = 0.0
    power: float = 0.0

    def add(self, weight: Float32, rounded: Float32, gram: Float32) -> None:
        self.lost += loss(weight, rounded, gram)
        self.power += loss(weight, np.zeros_like(weight), gram)

    @property
    def relative(self) -> float | None:
        return self.lost / self.power if self.power else None


def rounded(weight: Weight, recipe: Recipe, gram: Float32) -> tuple[Rounded, float | None]:
    """A matrix that comes in one block, as `store` would write it, and its error. Raises ConfigError."""
    check_shape(weight, recipe)
    error = Error()
    (found,) = _rounded_blocks(weight, recipe, gram, error)
    return found, error.relative


def _rounded_blocks(weight: Weight, recipe: Recipe, gram: Float32 | None, error: Error) -> Iterator[Rounded]:
    chosen = chosen_format(weight, recipe)
    rounder = _rounder(chosen, recipe, gram)
    for block in _checked_blocks(weight, chosen.kind):
        found = rounder(block)
        if gram is not None and not isinstance(found, Wide):
            error.add(block, found.dequantised(), gram)
        yield found


def _rounder(chosen: Format, recipe: Recipe, gram: Float32 | None) -> Callable[[Float32], Rounded]:
    """What rounds blocks of rows."""
    if chosen.kind == "int4":
        return rounding.Rounder(chosen.group_size, gram, "gptq" in recipe.quantise.method, chosen.has_zeros)
    return int8.nearest if chosen.kind == "int8" else lambda block: Wide(block.astype(chosen.kind))


def chosen_format(weight: Weight, recipe: Recipe) -> Format:
    """How the recipe stores `weight`."""
    return format_of(recipe, weight.name, weight.role)


def check_shape(weight: Weight, recipe: Recipe) -> None:
    """Raises ConfigError when the format that the recipe chooses does not fit the shape of `weight`."""
    chosen = chosen_format(weight, recipe)
    try:
        if chosen.kind == "int4" and not weight.integers:
            int4.num_groups(weight.shape[1], chosen.group_size)
        if chosen.kind == "int8":
            int8.check_columns(weight.shape[1])
    except ConfigError as error:
        raise ConfigError(f"{weight.name}: {error}") from None


def stored_bytes(weight: Weight, recipe: Recipe) -> int:
    """Bytes that `store` writes for `weight`."""
    if weight.integers:
        return weight.integers.nbytes
    return sum(parts_of(recipe, weight.name, weight.role, weight.shape))


def names_of(weight: Weight, recipe: Recipe) -> tuple[str, ...]:
    """The tensors that `store` writes for `weight`."""
    stem = weight.name.removesuffix(".weight")
    if weight.integers:
        return tuple(f"{stem}.{suffix}" for suffix in weight.integers.layout)
    return (weight.name, *(f"{stem}.{suffix}" for suffix in chosen_format(weight, recipe).suffixes))


def _checked_blocks(weight: Weight, kind: Kind) -> Iterator[Float32]:
    for block in weight.blocks():
        largest = np.abs(block).max(initial=0)
        if not largest <= _LARGEST[kind] and kind != "float32":  # NaN is not either
            raise ConfigError(
                f"{weight.name}: expected magnitudes up to {_LARGEST[kind]:.6g} for {kind}, found {largest:.6g}; "
                "choose a wider format, or check the checkpoint"
            )
        yield block


def stored(weights: Iterable[Weight], recipe: Recipe, tied: bool) -> Iterator[Weight]:
    """The weights that are written: without the head where it shares the embedding's tensor."""
    for weight in weights:
        if not (weight.role == "head" and shares_head(recipe, tied)):
            yield weight
