# SPDX-License-Identifier: Apache-2.0
"""Weights into the formats of the ops, block by block.

INT4 is signed full range: the element m of largest magnitude of a group maps to -8, so s = m * p / (-8), and the
shrink factor p is the one of least squared error. The scale is rounded to float16 before the integers are chosen.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orinkit import int4
from orinkit.errors import ConfigError
from orinkit.recipe import Recipe
from orinkit_export.store import TensorWriter
from orinkit_export.weights import Role, Weight

Float32 = NDArray[np.float32]
Float16 = NDArray[np.float16]
Format = Literal["int4", "int8", "float16", "float32"]

SHRINK = np.arange(67, 129) / 112
"""Candidates of p, 0.6 to 8/7: p = 1 is plain full range and p = 8/7 is s = absmax/7, so neither is ever better."""

_MAX_FLOAT16 = float(np.finfo(np.float16).max)
_LARGEST = {"int4": 7 * _MAX_FLOAT16, "int8": 127 * _MAX_FLOAT16, "float16": _MAX_FLOAT16, "float32": math.inf}
"""Largest magnitude that a format holds; scales are float16."""

_CACHED = 1 << 18
"""Weights searched at a time by one thread: with its temporaries a piece stays in the CPU's cache."""

_INT8_BLOCK = 32
"""Columns of an int8 matrix come in multiples of this (the blocks of ONNX Runtime's 8-bit product)."""


def format_of(recipe: Recipe, role: Role) -> Format:
    """How the recipe stores weights of a role."""
    if role == "float32":
        return "float32"
    chosen: dict[Role, Format] = {
        "embedding": recipe.quantise.embedding,
        "head": recipe.quantise.head,
        "projection": "int4",
        "gated_delta": recipe.quantise.gated_delta,
    }
    wide = role == "wide" or recipe.quantise.method == "none" or chosen[role] == "float16"
    return recipe.activations if wide else chosen[role]


def shares_head(recipe: Recipe, tied: bool) -> bool:
    """Whether embedding and head are one tensor in the file."""
    return tied and format_of(recipe, "embedding") == format_of(recipe, "head")


def store(writer: TensorWriter, weight: Weight, recipe: Recipe) -> None:
    """Write `weight` in the format of its role: `X.weight` with `X.scales` (int4) or `X.scale` (int8), or as it is.

    Raises ConfigError: a shape that the format does not fit, values that float16 cannot hold.
    """
    check_shape(weight, recipe)
    kind = format_of(recipe, weight.role)
    if kind in ("float16", "float32"):
        writer.write(weight.name, (block.astype(kind) for block in _checked_blocks(weight, kind)))
        return
    quantiser: Callable[[Float32], tuple[NDArray[np.int8], Float16]] = rtn_int8
    if kind == "int4":
        quantiser = lambda block: rtn_int4(block, recipe.quantise.group_size)  # noqa: E731
    scales: list[Float16] = []

    def packed() -> Iterator[NDArray[np.int8]]:
        for block in _checked_blocks(weight, kind):
            values, block_scales = quantiser(block)
            scales.append(block_scales)
            yield values

    stem = weight.name.removesuffix(".weight")
    writer.write(weight.name, packed())
    writer.write(f"{stem}.{'scales' if kind == 'int4' else 'scale'}", scales)


def check_shape(weight: Weight, recipe: Recipe) -> None:
    """Raises ConfigError when the format that the recipe chooses does not fit the shape of `weight`."""
    kind = format_of(recipe, weight.role)
    try:
        if kind == "int4":
            int4.num_groups(weight.shape[1], recipe.quantise.group_size)
        if kind == "int8":
            _check_int8(weight.shape[1])
    except ConfigError as error:
        raise ConfigError(f"{weight.name}: {error}") from None


def stored_bytes(weight: Weight, recipe: Recipe) -> int:
    """Bytes that `store` writes for `weight`."""
    size, rows = math.prod(weight.shape), weight.shape[0]
    kind = format_of(recipe, weight.role)
    if kind == "int4":
        return size // 2 + 2 * (size // recipe.quantise.group_size)
    return size + 2 * rows if kind == "int8" else size * np.dtype(kind).itemsize


def names_of(weight: Weight, recipe: Recipe) -> tuple[str, ...]:
    """The tensors that `store` writes for `weight`."""
    kind = format_of(recipe, weight.role)
    stem = weight.name.removesuffix(".weight")
    extra = {"int4": (f"{stem}.scales",), "int8": (f"{stem}.scale",)}.get(kind, ())
    return (weight.name, *extra)


def rtn_int4(weight: Float32, group_size: int) -> tuple[NDArray[np.int8], Float16]:
    """Packed int8 [N, K/2] and float16 scales [N, K/G] of `weight` [N, K]; scales searched, all cores used."""
    n, k = weight.shape
    groups = int4.num_groups(k, group_size)
    rows = max(1, _CACHED // k)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pieces = [weight[start : start + rows] for start in range(0, n, rows)]
        scales = np.concatenate(
            list(pool.map(lambda piece: search_scales(piece.reshape(-1, group_size)).reshape(-1, groups), pieces))
        )
        parts = zip(pieces, np.split(scales, range(rows, n, rows)), strict=True)
        packed = list(pool.map(lambda part: int4.pack(int4.quantise(*part)), parts))
    return np.concatenate(packed), scales


def search_scales(groups: Float32) -> Float16:
    """The float16 scale of every row of `groups` [M, G] with the least squared error over SHRINK; 1 for a zero row."""
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)[:, 0].astype(np.float64)
    best = np.full(len(groups), np.inf, np.float32)
    scales = np.ones(len(groups), np.float16)
    rounded = np.empty_like(groups)
    for shrink in SHRINK:
        candidate = (extreme * shrink / -8).astype(np.float16)
        usable = candidate != 0
        wide = np.where(usable, candidate, np.float16(1)).astype(np.float32)[:, None]
        np.divide(groups, wide, out=rounded)
        np.rint(rounded, out=rounded)
        np.minimum(rounded, 7, out=rounded)
        np.maximum(rounded, -8, out=rounded)
        np.multiply(rounded, wide, out=rounded)
        np.subtract(rounded, groups, out=rounded)
        error = np.einsum("mg,mg->m", rounded, rounded)
        better = usable & (error < best)
        best[better], scales[better] = error[better], candidate[better]
    return scales


def rtn_int8(weight: Float32) -> tuple[NDArray[np.int8], Float16]:
    """int8 [N, K] and float16 scales [N]: s = absmax / 127 of each row, 1 for a zero row."""
    _check_int8(weight.shape[1])
    scale = (np.abs(weight).max(axis=1) / 127).astype(np.float16)
    scale[scale == 0] = 1
    values = np.clip(np.rint(weight / scale.astype(np.float32)[:, None]), -128, 127).astype(np.int8)
    return values, scale


def _check_int8(columns: int) -> None:
    if columns % _INT8_BLOCK:
        raise ConfigError(
            f"expected rows of a multiple of {_INT8_BLOCK} weights for int8, found {columns}; use float16"
        )


def _checked_blocks(weight: Weight, kind: Format) -> Iterator[Float32]:
    for block in weight.blocks():
        largest = np.abs(block).max(initial=0)
        if largest > _LARGEST[kind]:
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
