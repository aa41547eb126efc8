# SPDX-License-Identifier: Apache-2.0
"""The weights that are stored, in order, made ready for rounding: folded, each with the Gram matrix of its inputs.

Methods that are not calibrated give the checkpoint's weights as they are. The others go layer by layer: run the layer
on the calibration text, search the fold vectors, fold. What was found lies in `report/`, one file per tensor or fold.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orinkit.memory.formats import Format
from orinkit.ops.description import rms_norm
from orinkit_export import quantise, smoothing
from orinkit_export.calibrate import Hidden, LayerRunner, Statistics
from orinkit_export.disk import writing
from orinkit_export.folds import Arrays, Fold, folds
from orinkit_export.plan import Plan
from orinkit_export.progress import progress
from orinkit_export.rounding import plain_loss
from orinkit_export.weights import Weight

Float32 = NDArray[np.float32]
Prepared = tuple[Weight, Float32 | None]

POINTS = {
    "qkv.weight": "norm1",
    "qkvz.weight": "norm1",
    "o.weight": "mixer",
    "out.weight": "mixer",
    "gate_up.weight": "norm2",
    "down.weight": "inner",
}
"""Where the inputs of each quantised matrix of a layer are measured."""

CALIBRATION = "calibration"
"""Folder of the hidden rows, in that of the stage."""

OUTLIER = 8
"""A channel is an outlier from so many times the mean magnitude of the median channel on."""


def weights(plan: Plan, folder: Path) -> Iterator[Prepared]:
    """The stored weights; layers that a killed run has finished are left out."""
    if plan.recipe.quantise.method not in quantise.CALIBRATED:
        yield from ((weight, None) for weight in plan.stored())
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


def record_error(folder: Path, weight: Weight, error: float | None) -> None:
    """Keep the relative output error of a stored matrix for the report."""
    if error is not None:
        _record(folder, weight.name, {"error": error})


def _record(folder: Path, name: str, found: dict[str, Any]) -> None:
    report = folder / "report"
    with writing(folder):
        report.mkdir(exist_ok=True)
        (report / f"{name}.json").write_text(json.dumps(found, sort_keys=True) + "\n", encoding="utf-8")


class _Calibrated:
    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._stored = plan.stored()
        self._hidden = Hidden(folder / CALIBRATION)
        self._ids = plan.calibration_ids()
        self._runner = LayerRunner(plan.spec, self._ids.shape[1])
        self._shared = {w.name: _read(w) for w in self._stored if w.name.startswith("rope.")}

    def weights(self) -> Iterator[Prepared]:
        layers = range(len(self._plan.spec.layers))
        if self._hidden.next_layer is None:
            self._hidden.write((*self._ids.shape, self._plan.spec.hidden), embedded(self._plan.embedding(), self._ids))
            self._hidden.commit(0)
        first = self._hidden.next_layer or 0
        yield from ((weight, None) for weight in self._stored if weight.name.startswith(("embedding.", "rope.")))
        for index in layers[first:]:
            yield from self._layer(index)
            self._hidden.commit(index + 1)
        yield from self._head(len(layers))

    def _layer(self, index: int) -> Iterator[Prepared]:
        prefix = f"layers.{index}."
        mine = [weight for weight in self._stored if weight.name.startswith(prefix)]
        arrays = {weight.name.removeprefix(prefix): _read(weight) for weight in mine}
        hidden = self._hidden.read(index)
        with progress(f"layer {index}", self._ids.size, "tokens") as advance:
            statistics, rows = self._runner.run(index, arrays, self._shared, hidden, advance)
            self._hidden.write(hidden.shape, rows)
        self._record_inputs(prefix, statistics)
        for weight in mine:
            name = weight.name.removeprefix(prefix)
            if point := POINTS.get(name):
                self._record_before(_in_memory(weight, arrays[name]), statistics[point].gram)
        for fold in folds(self._plan.spec.layers[index], self._plan.spec.hidden):
            self._smooth(prefix, fold, arrays, statistics[fold.point])
        for weight in mine:
            name = weight.name.removeprefix(prefix)
            point = POINTS.get(name)
            yield _in_memory(weight, arrays[name]), statistics[point].gram if point else None

    def _smooth(self, prefix: str, fold: Fold, arrays: Arrays, statistics: Statistics) -> None:
        """Search and fold one vector; the Gram matrix follows the scaled channels."""
        if "awq" not in self._plan.recipe.quantise.method:
            return
        consumers = {weight.name: weight for weight in self._stored if weight.name.startswith(prefix)}
        formats = {name: self._format(consumers[prefix + name]) for name in fold.consumers}
        quantised = [(arrays[name], chosen) for name, chosen in formats.items() if chosen.kind == "int4"]
        if not quantised:
            return
        found = smoothing.search(fold, quantised, statistics.mean_abs, statistics.gram)
        fold.apply(arrays, found.a)
        inverse = np.float32(1) / found.a[fold.share]
        statistics.gram *= inverse[:, None] * inverse
        entry = {"kind": found.kind, "alpha": found.alpha, "ratio": found.ratio, "spread": found.spread}
        _record(self._folder, f"{prefix}{fold.point}.fold", entry)

    def _head(self, layers: int) -> Iterator[Prepared]:
        """The last norm and the head, whose inputs are that norm's outputs."""
        rest = [weight for weight in self._stored if weight.name.startswith(("final_norm", "head."))]
        norm = _read(next(weight for weight in rest if weight.name == "final_norm"))
        statistics = Statistics(self._plan.spec.hidden)
        for sequence in self._hidden.read(layers):
            statistics.add(rms_norm(sequence, norm, self._plan.spec.norm_eps))
        for weight in rest:
            if weight.role == "head":
                self._record_before(weight, statistics.gram)
            yield weight, statistics.gram if weight.role == "head" else None

    def _record_before(self, weight: Weight, gram: Float32) -> None:
        """Keep what plain rounding would have lost, on a sample of the rows."""
        chosen = self._format(weight)
        if chosen.kind == "int4":
            lost = plain_loss(sampled(weight), chosen.group_size, gram)
            _record(self._folder, f"{weight.name}.before", {"error": lost})

    def _format(self, weight: Weight) -> Format:
        return quantise.chosen_format(weight, self._plan.recipe)

    def _record_inputs(self, prefix: str, statistics: dict[str, Statistics]) -> None:
        """Keep how large the inputs of a layer's projections are, and how unlike their channels."""
        for point, found in statistics.items():
            channel, typical = int(found.max_abs.argmax()), float(np.median(found.mean_abs))
            entry = {
                "largest": float(found.max_abs[channel]),
                "channel": channel,
                "channel_mean": float(found.mean_abs[channel]),
                "typical": typical,
                "outliers": int((found.mean_abs > OUTLIER * typical).sum()),
            }
            _record(self._folder, f"{prefix}{point}.inputs", entry)


def _read(weight: Weight) -> Float32:
    return np.concatenate(list(weight.blocks()))


def sampled(weight: Weight) -> Float32:
    """Some rows of a matrix, spread evenly over it."""
    picked, parts, start = smoothing.sample_rows(weight.shape[0]), [], 0
    for block in weight.blocks():
        inside = (picked >= start) & (picked < start + len(block))
        parts.append(block[picked[inside] - start])
        start += len(block)
    return np.concatenate(parts)


def _in_memory(weight: Weight, array: Float32) -> Weight:
    return replace(weight, blocks=lambda: iter([array]))
