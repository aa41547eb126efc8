# SPDX-License-Identifier: Apache-2.0
"""In which format a recipe stores each weight, and how many bytes that takes: asked here by everybody."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from orinkit.recipe import Named, Recipe

Role = Literal["embedding", "head", "projection", "gated_delta", "imported", "wide", "float32"]
"""How a weight may be stored: the first four by the recipe, `imported` as the checkpoint's integers, `wide` in the
activation type, `float32` always so."""

Kind = Literal["int4", "int8", "float16", "float32"]

NAMED: frozenset[Role] = frozenset({"embedding", "head", "projection", "gated_delta"})
"""Roles of the weights whose format a recipe may state by name."""

_PRODUCTS: frozenset[Role] = frozenset({"head", "projection", "gated_delta"})
"""Roles of the weights that may have zero points; the table of an embedding has none."""

GROUP_SIZES = (128, 64, 32)

_WIDTHS = {"float16": 2, "float32": 4}
_KINDS: tuple[Kind, ...] = ("int4", "int8", "float16", "float32")


@dataclass(frozen=True)
class Format:
    """How the values of one weight are stored."""

    kind: Kind
    group_size: int = 0
    """Weights of a row that share a scale; int4 only."""
    has_zeros: bool = False
    """Whether groups have zero points beside their scales; int4 only."""

    @classmethod
    def of(cls, text: str) -> Format:
        """The format that `str` spells so, as in `quantise: formats` of a recipe: `int4-g64`, `int8`."""
        name, _, group = text.partition("-g")
        return cls(next(kind for kind in _KINDS if kind == name), int(group or 0))

    def __str__(self) -> str:
        """Zero points are not in it: a recipe asks for them everywhere or nowhere."""
        return f"{self.kind}-g{self.group_size}" if self.group_size else self.kind

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What the tensors beside a weight are called."""
        if self.kind == "int4":
            return ("scales", "zeros") if self.has_zeros else ("scales",)
        return ("scale",) if self.kind == "int8" else ()

    @property
    def named(self) -> Named:
        """The spelling that a recipe has for it."""
        return next(name for name in get_args(Named) if name == str(self))

    def parts(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Bytes of a weight [N, K] or [N] and of what is beside it: a float16 for each group (int4) or row (int8), and
        half a byte for the zero point of each group."""
        size = math.prod(shape)
        if self.kind == "int4":
            groups = shape[1] // self.group_size
            return (size // 2, 2 * shape[0] * groups, *([shape[0] * ((groups + 1) // 2)] if self.has_zeros else ()))
        return (size, 2 * shape[0]) if self.kind == "int8" else (size * _WIDTHS[self.kind],)


def is_undecided(recipe: Recipe, name: str, role: Role) -> bool:
    """Whether the recipe leaves it to a measurement how the weight `name` is stored."""
    settings = recipe.quantise
    if settings.method == "none" or name.removesuffix(".weight") in settings.formats:
        return False
    if role == "head":
        return settings.head == "auto"
    return settings.bits is not None and role in ("projection", "gated_delta") and _kind_of(recipe, role) == "int4"


def format_of(recipe: Recipe, name: str, role: Role) -> Format:
    """How the recipe stores the weight `name`: as it says for that one, else as for all of its role.

    What is undecided counts as int8 if it is the head, else as int4 in the smallest groups.
    """
    stated = recipe.quantise.formats.get(name.removesuffix(".weight"))
    if stated and role in NAMED and recipe.quantise.method != "none":
        found = Format.of(stated)
        found = Format(recipe.activations) if found.kind == "float16" else found
    else:
        kind = _kind_of(recipe, role)
        group_size = 32 if is_undecided(recipe, name, role) else recipe.quantise.group_size
        found = Format(kind, group_size if kind == "int4" else 0)
    return replace(found, has_zeros=recipe.quantise.zeros and found.kind == "int4" and role in _PRODUCTS)


def parts_of(recipe: Recipe, name: str, role: Role, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Bytes of the weight `name` and of what is beside it; of what is undecided its share of the budget, if any."""
    if recipe.quantise.bits is not None and is_undecided(recipe, name, role):
        return (math.ceil(math.prod(shape) * recipe.quantise.bits / 8),)
    return format_of(recipe, name, role).parts(shape)


def candidates(recipe: Recipe, role: Role, shape: tuple[int, ...]) -> tuple[Format, ...]:
    """The formats that an undecided weight [N, K] may get, from narrow to wide."""
    sizes = (recipe.quantise.group_size,) if recipe.quantise.bits is None else GROUP_SIZES
    fitting = (size for size in sizes if shape[1] % size == 0)
    found = (Format("int4", size, recipe.quantise.zeros and role in _PRODUCTS) for size in fitting)
    return (*found, Format("int8"))


def _kind_of(recipe: Recipe, role: Role) -> Kind:
    if role == "float32":
        return "float32"
    if role == "imported":
        return "int4"
    chosen: dict[Role, Kind] = {
        "embedding": recipe.quantise.embedding,
        "head": "int8" if recipe.quantise.head == "auto" else recipe.quantise.head,
        "projection": "int4",
        "gated_delta": recipe.quantise.gated_delta,
    }
    left = recipe.quantise.method == "import" and role in ("projection", "gated_delta")
    wide = role == "wide" or recipe.quantise.method == "none" or left or chosen[role] == "float16"
    return recipe.activations if wide else chosen[role]


def shares_head(recipe: Recipe, tied: bool) -> bool:
    """Whether embedding and head are one tensor in the file, as far as that is decided; it has no zero points."""
    if not tied or is_undecided(recipe, "head", "head"):
        return False
    return str(format_of(recipe, "embedding", "embedding")) == str(format_of(recipe, "head", "head"))
