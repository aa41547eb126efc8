# SPDX-License-Identifier: Apache-2.0
"""What a build reads, opened and found to fit together before anything is written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orinkit import recipe
from orinkit.errors import CheckpointError, ConfigError
from orinkit.model import ModelSpec
from orinkit.recipe import Recipe
from orinkit_export import architectures, quantise
from orinkit_export.checkpoint import Checkpoint
from orinkit_export.weights import Weight, Weights


@dataclass(frozen=True)
class Plan:
    """A recipe and its checkpoint with its facts."""

    recipe: Recipe
    checkpoint: Checkpoint
    spec: ModelSpec

    def stored(self) -> list[Weight]:
        """The weights that the graph's data file holds, none read yet."""
        weights = Weights(self.checkpoint, self.spec, self.recipe.shapes.capacity)
        return list(quantise.stored(weights, self.recipe, self.spec.tied))

    def unused(self) -> dict[str, int]:
        """How many of the checkpoint's tensors no weight is made of, by the first two parts of their names."""
        used = {name for weight in self.stored() for name in weight.sources}
        return dict(Counter(".".join(name.split(".")[:2]) for name in self.checkpoint.unused(used)))

    def data_bytes(self) -> int:
        """Size of the data file but for alignment."""
        return sum(quantise.stored_bytes(weight, self.recipe) for weight in self.stored())


def read(recipe_path: Path, checkpoint: Path | None = None, allow_nonfinite: bool = False) -> Plan:
    """The recipe and its checkpoint; `checkpoint` replaces the folder that the recipe names.

    Raises ConfigError, CheckpointError.
    """
    chosen = recipe.read(recipe_path)
    folder = checkpoint or recipe_path.parent / chosen.checkpoint.path
    if not folder.is_dir() and chosen.checkpoint.repository:
        raise CheckpointError(
            f"{folder}: no such folder; get the checkpoint with: "
            f"hf download {chosen.checkpoint.repository} --local-dir {folder}"
        )
    opened = Checkpoint.open(folder, allow_nonfinite)
    plan = Plan(chosen, opened, architectures.model_spec(opened.text_config, _generation_config(opened)))
    if chosen.shapes.capacity > plan.spec.max_positions:
        raise ConfigError(
            f"{recipe_path}: shapes: capacity: expected at most the model's {plan.spec.max_positions} positions, "
            f"found {chosen.shapes.capacity}"
        )
    for weight in plan.stored():
        quantise.check_shape(weight, chosen)
    return plan


def _generation_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    path = checkpoint.tokenizer_files().get("generation_config.json")
    try:
        data = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except ValueError as error:
        raise CheckpointError(f"{path}: expected JSON, found: {error}; get the file again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(data).__name__}; get the file again")
    return data
