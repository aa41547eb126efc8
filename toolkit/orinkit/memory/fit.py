# SPDX-License-Identifier: Apache-2.0
"""Whether a plan fits a board's memory, and what to change in the recipe where it does not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from orinkit.memory.needs import memory_plan
from orinkit.model import ModelSpec
from orinkit.recipe import Recipe
from orinkit.target import Gpu

SYSTEM = 1 << 30
"""What Linux and its services hold without a desktop; assumed."""
RESERVE_SHARE, LEAST_RESERVE = 0.1, 512 << 20
"""What must stay available while serving: a tenth of the memory, at least 512 MiB."""
VISIBLE_SHARE = 0.92
"""Part of the installed memory that Linux sees, where a board's file does not say."""

LEAST_CAPACITY = 1024
LEAST_CHUNK = 128


Settings = dict[str, Any]
"""Keys of `shapes` and `quantise` with other values."""


@dataclass(frozen=True)
class Change:
    """One thing to change in a recipe."""

    text: str
    saves: int
    """Bytes."""
    fits: bool
    """Whether it suffices alone."""


@dataclass(frozen=True)
class Fit:
    """Need and have in bytes."""

    visible: int
    """Memory that Linux sees."""
    system: int
    reserve: int
    need: int

    @property
    def have(self) -> int:
        return self.visible - self.system - self.reserve

    @property
    def spare(self) -> int:
        """What is left over; negative: what is missing."""
        return self.have - self.need


def fit(need: int, gpu: Gpu) -> Fit:
    """Compare `need` bytes with what a board offers."""
    visible = int((gpu.visible_gib or VISIBLE_SHARE * gpu.memory_gib) * (1 << 30))
    return Fit(visible, SYSTEM, max(int(RESERVE_SHARE * visible), LEAST_RESERVE), need)


def changes(spec: ModelSpec, recipe: Recipe, engine: str, missing: int) -> tuple[Change, ...]:
    """What would save `missing` bytes: of each key the largest value that does, else the smallest sensible one.

    What suffices alone comes first, then what saves most; where nothing does, all changes together come last.
    """
    before = memory_plan(spec, recipe, engine).total()

    def saved(settings: Settings) -> int:
        return before - memory_plan(spec, _changed(recipe, settings), engine).total()

    found: list[Change] = []
    together: Settings = {}
    for key, values in _options(recipe).items():
        options = [{key: value} for value in values]
        chosen = next((option for option in options if saved(option) >= missing), options[-1] if options else None)
        if chosen is not None and saved(chosen) > 0:
            found.append(Change(f"{key}: {chosen[key]}", saved(chosen), saved(chosen) >= missing))
            together |= chosen
    found.sort(key=lambda change: (not change.fits, -change.saves))
    if len(found) > 1 and not found[0].fits:
        found.append(Change("all of these", saved(together), saved(together) >= missing))
    return tuple(found)


def _options(recipe: Recipe) -> dict[str, list[Any]]:
    """Smaller values of each key that decides memory, largest first."""
    shapes, quantise = recipe.shapes, recipe.quantise
    halves = [shapes.capacity >> power for power in range(1, 20)]
    return {
        "snapshots": list(range(shapes.snapshots - 1, -1, -1)),
        "slots": list(range(shapes.slots - 1, 0, -1)),
        "capacity": [count for count in halves if count >= max(LEAST_CAPACITY, shapes.chunk)],
        "embedding": ["int4"] if quantise.embedding != "int4" else [],
        "head": ["int4"] if quantise.head != "int4" else [],
        "chunk": [count for count in (256, LEAST_CHUNK) if count < shapes.chunk],
    }


def _changed(recipe: Recipe, settings: Settings) -> Recipe:
    shapes = {key: value for key, value in settings.items() if hasattr(recipe.shapes, key)}
    quantise = {key: value for key, value in settings.items() if key not in shapes}
    return replace(recipe, shapes=replace(recipe.shapes, **shapes), quantise=replace(recipe.quantise, **quantise))
