# SPDX-License-Identifier: Apache-2.0
"""A model with outlier channels: folds run backwards with large factors, so that its function stays what it is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from orinkit_export.folds import folds
from orinkit_export.plan import Plan
from orinkit_export.weights import Weight

Float32 = NDArray[np.float32]

SHARE, LEAST, MOST = 0.02, 8.0, 64.0
"""Share of channels that become outliers, and by what factors."""


@dataclass(frozen=True)
class Made(Plan):
    """A plan whose weights are in memory."""

    weights: tuple[Weight, ...] = ()

    def stored(self) -> list[Weight]:
        return list(self.weights)


def injected(plan: Plan, seed: int = 0) -> Plan:
    """The same function with a few large channels wherever a fold is possible."""
    rng = np.random.default_rng(seed)
    weights = {weight.name: weight for weight in plan.stored()}
    for index, layer in enumerate(plan.spec.layers):
        prefix = f"layers.{index}."
        arrays = {name.removeprefix(prefix): read(w) for name, w in weights.items() if name.startswith(prefix)}
        for fold in folds(layer, plan.spec.hidden):
            factors = np.ones(fold.width, np.float32)
            chosen = rng.choice(fold.width, max(2, round(SHARE * fold.width)), replace=False)
            factors[chosen] = np.exp(rng.uniform(np.log(LEAST), np.log(MOST), len(chosen)))
            fold.apply(arrays, np.float32(1) / factors)
        weights |= {prefix + name: _in_memory(weights[prefix + name], array) for name, array in arrays.items()}
    return Made(**vars(plan), weights=tuple(weights.values()))


def _in_memory(weight: Weight, array: Float32) -> Weight:
    return replace(weight, blocks=lambda: iter([array]))


def read(weight: Weight) -> Float32:
    """The whole of a weight."""
    return np.concatenate(list(weight.blocks()))
