# SPDX-License-Identifier: Apache-2.0
"""The matrices of one layer, rounded in the order in which inputs pass them.

W is rounded for the inputs x that the quantised model makes of the calibration text. Rounding the float weights as they
are would keep what is wrong with these inputs. So a target is rounded that makes up for it as far as x tells of it:
with d what is lacking in the outputs of W (streams.py) and H = mean(x x^T), damped, W + mean(d x^T) H^-1 comes closest
to the outputs of the float model (ridge regression). Scales are searched and integers chosen for the target, with H.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from orinkit.memory.formats import Format
from orinkit.recipe import Recipe
from orinkit_export import quantise, smoothing
from orinkit_export.calibrate import Statistics
from orinkit_export.damping import solved
from orinkit_export.findings import Findings
from orinkit_export.folds import Arrays, Fold
from orinkit_export.quantise import Rounded
from orinkit_export.streams import BETWEEN, Seen
from orinkit_export.weights import Weight

Float32 = NDArray[np.float32]

POINTS = {
    "qkv.weight": "norm1",
    "qkvz.weight": "norm1",
    "o.weight": "mixer",
    "out.weight": "mixer",
    "gate_up.weight": "norm2",
    "down.weight": "inner",
}
"""Where the inputs of each quantised matrix of a layer are measured."""


class LayerRounding:
    """One layer: `round` is called point by point, then `weights` has all of it."""

    def __init__(self, recipe: Recipe, findings: Findings, weights: Mapping[str, Weight], arrays: Arrays) -> None:
        """`weights` and their values, `arrays`, by their names without the layer's prefix."""
        self._recipe, self._findings, self._weights = recipe, findings, weights
        self._arrays = dict(arrays)
        """What is not rounded yet, or never, with the folds so far."""
        self._rounded: dict[str, Rounded] = {}

    def round(self, fold: Fold, seen: Seen) -> Arrays:
        """Round the matrix whose channels `fold` may scale. Gives the values [N, K] that it then stands for, as if
        there were no fold, by its name."""
        name = next(name for name in fold.consumers if name in POINTS)
        weight, gram = self._weights[name], seen.inputs.gram
        self._arrays[name] = target(self._arrays[name], fold.point, seen)
        self._findings.before(self._in_memory(name), self._format(name), gram)
        inverse = np.float32(1) / self._smooth(fold, seen.inputs)[fold.share]
        found, error = quantise.rounded(self._in_memory(name), self._recipe, gram * (inverse[:, None] * inverse))
        self._findings.error(weight, error)
        self._rounded[name] = found
        del self._arrays[name]
        return {name: found.dequantised() * inverse}

    def weights(self) -> Iterator[tuple[Weight, Rounded | None]]:
        """All weights of the layer in their order; those that are rounded as they are stored."""
        for name, weight in self._weights.items():
            if name in self._rounded:
                yield weight, self._rounded[name]
            else:
                yield self._in_memory(name), None

    def _smooth(self, fold: Fold, inputs: Statistics) -> Float32:
        """Search a vector [width] and fold it. A producer that is rounded keeps its integers."""
        formats = {name: self._format(name) for name in fold.consumers}
        quantised = [(self._arrays[name], chosen) for name, chosen in formats.items() if chosen.kind == "int4"]
        point = f"{self._weights[fold.consumers[0]].name.removesuffix(fold.consumers[0])}{fold.point}"
        self._findings.inputs(point, inputs)
        if "awq" not in self._recipe.quantise.method or not quantised:
            return np.ones(fold.width, np.float32)
        found = smoothing.search(fold, quantised, inputs.mean_abs, inputs.gram)
        self._findings.fold(point, found)
        fold.apply(self._arrays, found.a)
        if producer := self._rounded.get(fold.producer):
            self._rounded[fold.producer] = producer.with_scales(lambda scales: fold.divided(scales, found.a))
        return found.a

    def _format(self, name: str) -> Format:
        return quantise.chosen_format(self._weights[name], self._recipe)

    def _in_memory(self, name: str) -> Weight:
        return in_memory(self._weights[name], self._arrays[name])


def target(weight: Float32, point: str, seen: Seen) -> Float32:
    """What is rounded instead of `weight` [N, K]."""
    correction = solved(seen.inputs.gram, seen.lacking)
    return np.asarray(weight + (correction if point in BETWEEN else weight @ correction))


def in_memory(weight: Weight, array: Float32) -> Weight:
    """The weight with other values."""
    return replace(weight, blocks=lambda: iter([array]))
