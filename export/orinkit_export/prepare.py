# SPDX-License-Identifier: Apache-2.0
"""The weights that are stored, in order, made ready for it.

Methods that are not calibrated give the checkpoint's weights as they are. The others go layer by layer, with the
calibration text running through the float model and through what is rounded so far. What was found lies in `report/`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orinkit.ops.description import rms_norm
from orinkit_export import quantise
from orinkit_export.calibrate import Hidden, LayerRunner
from orinkit_export.damping import solved
from orinkit_export.findings import Findings
from orinkit_export.folds import folds
from orinkit_export.layerwise import LayerRounding
from orinkit_export.plan import Plan
from orinkit_export.progress import progress
from orinkit_export.quantise import Rounded
from orinkit_export.streams import STEPS, Seen, Streams
from orinkit_export.weights import Weight

Float32 = NDArray[np.float32]


class Prepared(NamedTuple):
    """A weight, and what is known of it."""

    weight: Weight
    gram: Float32 | None = None
    """Of its inputs [K, K]."""
    rounded: Rounded | None = None
    """The weight as it is stored, if it is rounded already."""


CALIBRATION = "calibration"
"""Folder of the hidden rows, in that of the stage."""


def weights(plan: Plan, folder: Path) -> Iterator[Prepared]:
    """The stored weights; layers that a killed run has finished are left out."""
    if plan.recipe.quantise.method not in quantise.CALIBRATED:
        yield from map(Prepared, plan.stored())
        return
    yield from _Calibrated(plan, folder).weights()


def tidy(folder: Path) -> None:
    """Remove what only a run that was killed would go on with: once the stage is complete, and not before."""
    shutil.rmtree(folder / CALIBRATION, ignore_errors=True)


def embedded(embedding: Weight, ids: NDArray[np.int32]) -> Iterator[Float32]:
    """Rows [tokens, H] of each sequence of `ids` [sequences, tokens], with one block of the embedding in memory."""
    unique, places = np.unique(ids, return_inverse=True)
    rows = np.empty((len(unique), embedding.shape[1]), np.float32)
    start = 0
    for block in embedding.blocks():
        inside = (unique >= start) & (unique < start + len(block))
        rows[inside] = block[unique[inside] - start]
        start += len(block)
    for sequence in places.reshape(ids.shape):
        yield rows[sequence]


class _Calibrated:
    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._findings = Findings(folder)
        self._stored = plan.stored()
        self._hidden = Hidden(folder / CALIBRATION)
        self._ids = plan.calibration_ids
        self._runner = LayerRunner(plan.spec, self._ids.shape[1])
        self._shared = {w.name: _read(w) for w in self._stored if w.name.startswith("rope.")}

    def weights(self) -> Iterator[Prepared]:
        layers = range(len(self._plan.spec.layers))
        if self._hidden.next_layer is None:
            rows = (np.tile(sequence, 2) for sequence in embedded(self._plan.embedding(), self._ids))
            self._hidden.write((*self._ids.shape, 2 * self._plan.spec.hidden), rows)
            self._hidden.commit(0)
        first = self._hidden.next_layer or 0
        yield from (Prepared(weight) for weight in self._stored if weight.name.startswith(("embedding.", "rope.")))
        for index in layers[first:]:
            yield from self._layer(index)
            self._hidden.commit(index + 1)
        yield from self._head(len(layers))

    def _layer(self, index: int) -> Iterator[Prepared]:
        prefix, spec = f"layers.{index}.", self._plan.spec
        mine = {w.name.removeprefix(prefix): w for w in self._stored if w.name.startswith(prefix)}
        arrays = {name: _read(weight) for name, weight in mine.items()}
        streams = Streams(self._runner, spec, index, arrays, self._shared, self._hidden)
        layer = LayerRounding(self._plan.recipe, self._findings, mine, arrays)
        with progress(f"layer {index}", STEPS * self._ids.size, "tokens") as advance:
            for fold in folds(spec.layers[index], spec.hidden):
                streams.quantised |= layer.round(fold, streams.see(fold.point, advance))
            streams.finish(advance)
        for weight, rounded in layer.weights():
            yield Prepared(weight, rounded=rounded)

    def _head(self, layers: int) -> Iterator[Prepared]:
        """The last norm and the head, whose inputs are that norm's outputs."""
        rest = {w.name: w for w in self._stored if w.name.startswith(("final_norm", "head."))}
        norm, hidden, eps = _read(rest["final_norm"]), self._plan.spec.hidden, self._plan.spec.norm_eps
        seen = Seen(hidden, hidden)
        for sequence in self._hidden.read(layers):
            expected, found = (rms_norm(rows, norm, eps) for rows in np.split(sequence, 2, axis=1))
            seen.add(found, expected - found)
        yield Prepared(rest["final_norm"])
        if head := rest.get("head.weight"):
            correction = solved(seen.inputs.gram, seen.lacking)
            aimed = replace(head, blocks=lambda: (block + block @ correction for block in head.blocks()))
            self._findings.before(aimed, quantise.chosen_format(head, self._plan.recipe), seen.inputs.gram)
            yield Prepared(aimed, seen.inputs.gram)


def _read(weight: Weight) -> Float32:
    return np.concatenate(list(weight.blocks()))
