# SPDX-License-Identifier: Apache-2.0
"""In which format a recipe stores each kind of weight, and how many bytes that takes."""

from __future__ import annotations

import math
from typing import Literal

from orinkit.recipe import Recipe

Role = Literal["embedding", "head", "projection", "gated_delta", "imported", "wide", "float32"]
"""How a weight may be stored: the first four by the recipe, `imported` as the checkpoint's integers, `wide` in the
activation type, `float32` always so."""

Format = Literal["int4", "int8", "float16", "float32"]

_WIDTHS = {"float16": 2, "float32": 4}


def format_of(recipe: Recipe, role: Role) -> Format:
    """How the recipe stores weights of a role."""
    if role == "float32":
        return "float32"
    if role == "imported":
        return "int4"
    chosen: dict[Role, Format] = {
        "embedding": recipe.quantise.embedding,
        "head": recipe.quantise.head,
        "projection": "int4",
        "gated_delta": recipe.quantise.gated_delta,
    }
    left = recipe.quantise.method == "import" and role in ("projection", "gated_delta")
    wide = role == "wide" or recipe.quantise.method == "none" or left or chosen[role] == "float16"
    return recipe.activations if wide else chosen[role]


def shares_head(recipe: Recipe, tied: bool) -> bool:
    """Whether embedding and head are one tensor in the file."""
    return tied and format_of(recipe, "embedding") == format_of(recipe, "head")


def parts(kind: Format, shape: tuple[int, ...], group_size: int) -> tuple[int, ...]:
    """Bytes of a weight [N, K] or [N] and of its scales if any: one float16 for each group (int4) or row (int8)."""
    size = math.prod(shape)
    if kind == "int4":
        return size // 2, 2 * (size // group_size)
    return (size, 2 * shape[0]) if kind == "int8" else (size * _WIDTHS[kind],)
