# SPDX-License-Identifier: Apache-2.0
"""What the rounding of each matrix by itself does to the model's predictions, on a little of the calibration text.

The text runs through the float model layer by layer. Beside it runs a stream for each matrix that was passed: the same
rows, but computed with that matrix rounded to the narrowest of its formats, and with float weights from there on. So
one pass leaves a stream for every matrix, and behind the head the KL divergence of each from the float model. With
other formats it is taken to be smaller in proportion to tr(D H D^T), D = Q - W: errors that small add up in power.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orinkit.memory.formats import Format
from orinkit.ops.description import rms_norm
from orinkit.recipe import Named
from orinkit_export import int8, rounding, smoothing
from orinkit_export.calibrate import Hidden, LayerRunner, Statistics
from orinkit_export.disk import writing
from orinkit_export.evaluate import Comparison
from orinkit_export.findings import sampled
from orinkit_export.folds import Arrays
from orinkit_export.layerwise import POINTS
from orinkit_export.plan import Plan
from orinkit_export.prepare import embedded
from orinkit_export.progress import Advance, progress
from orinkit_export.weights import Weight

Float32 = NDArray[np.float32]

HEAD, STREAMS = "head.weight", "streams"


@dataclass(frozen=True)
class Measured:
    """What one matrix costs, by the spelling of its formats, from narrow to wide."""

    name: str
    """As in the graph: `layers.3.qkv`."""
    kl: float
    """Mean KL(float || float with this matrix in its narrowest format) in nats."""
    errors: dict[Named, float]
    """Share of the power of its outputs that rounding loses."""

    def kl_of(self, chosen: Named) -> float:
        """The divergence that the format `chosen` would have."""
        narrow = next(iter(self.errors.values()))
        return self.kl * self.errors[chosen] / narrow if narrow else 0.0


def run(plan: Plan, formats: Mapping[str, Sequence[Format]], folder: Path) -> tuple[Measured, ...]:
    """Measure the matrices that are the keys of `formats`, the head last if at all; values from narrow to wide.

    A run that was killed goes on at its layer in the same `folder`.
    """
    return _Pass(plan, formats, folder).run()


def rounded(weight: Float32, chosen: Format, gram: Float32) -> Float32:
    """`weight` as it reads back: scales searched with the importance of its inputs, the nearest integers."""
    if chosen.kind == "int8":
        return int8.nearest(weight).dequantised()
    return rounding.Rounder(chosen.group_size, gram, has_zeros=chosen.has_zeros)(weight).dequantised()


class _Pass:
    def __init__(self, plan: Plan, formats: Mapping[str, Sequence[Format]], folder: Path) -> None:
        self._plan = plan
        self._formats = formats
        self._folder = folder
        self._ids = plan.probe_ids
        self._stored = plan.stored()
        self._shared = {weight.name: _read(weight) for weight in self._stored if weight.name.startswith("rope.")}
        self._hidden = Hidden(folder / STREAMS)
        self._runner = LayerRunner(plan.spec, self._ids.shape[1] - 1)

    def run(self) -> tuple[Measured, ...]:
        layers, inputs = len(self._plan.spec.layers), self._ids[:, :-1]
        if self._hidden.next_layer is None:
            self._hidden.write((*inputs.shape, self._plan.spec.hidden), embedded(self._plan.embedding(), inputs))
            self._hidden.commit(0)
        for index in range(self._hidden.next_layer or 0, layers):
            self._layer(index)
        norm = _read(next(weight for weight in self._stored if weight.name == "final_norm"))
        rows = rms_norm(self._hidden.read(layers), norm, self._plan.spec.norm_eps)
        return tuple(self._measured(rows.reshape(-1, *inputs.shape, self._plan.spec.hidden)))

    def _layer(self, index: int) -> None:
        prefix, hidden = f"layers.{index}.", self._hidden.read(index)
        mine = {weight.name: _read(weight) for weight in self._stored if weight.name.startswith(prefix)}
        arrays = {name.removeprefix(prefix): array for name, array in mine.items()}
        chosen = {name.removeprefix(prefix): self._formats[name] for name in mine if name in self._formats}
        total = (len(hidden) + len(chosen) * len(self._ids)) * hidden.shape[1]
        with progress(f"sensitivity of layer {index}", total, "tokens") as advance:
            shape = (len(hidden) + len(chosen) * len(self._ids), *hidden.shape[1:])
            self._hidden.write(shape, self._rows(index, arrays, chosen, hidden, advance))
        self._hidden.commit(index + 1)

    def _rows(
        self, index: int, arrays: Arrays, chosen: Mapping[str, Sequence[Format]], hidden: Float32, advance: Advance
    ) -> Iterator[Float32]:
        """Behind the layer: the float stream, those that there were, and one for each matrix of the layer."""
        floats = hidden[: len(self._ids)]
        statistics, rows = self._runner.run(index, arrays, self._shared, floats, advance)
        yield from rows
        yield from self._runner.forward(index, arrays, self._shared, hidden[len(self._ids) :], advance)
        for name, formats in chosen.items():
            gram = statistics[POINTS[name]].gram
            self._record(f"layers.{index}.{name}", _errors(arrays[name], formats, gram))
            changed = arrays | {name: rounded(arrays[name], formats[0], gram)}
            yield from self._runner.forward(index, changed, self._shared, floats, advance)

    def _measured(self, streams: Float32) -> Iterator[Measured]:
        """Every matrix with the divergence of its stream; streams [1 + matrices, S, T, H], the float one first."""
        head = self._rounded_head(streams[0])
        labels = self._ids[:, 1:]
        compared = [[Comparison(ids) for ids in labels] for _ in self._formats]
        for block in self._plan.head().blocks():
            changed = block if head is None else head(block)
            for sequence, expected in enumerate(streams[0] @ block.T):
                for name, comparisons, stream in zip(self._formats, compared, self._paired(streams), strict=True):
                    found = stream[sequence] @ (changed if name == HEAD else block).T
                    comparisons[sequence].add(expected, found)
        for name, comparisons in zip(self._formats, compared, strict=True):
            kl = float(np.concatenate([comparison.kl for comparison in comparisons]).mean())
            yield Measured(name.removesuffix(".weight"), kl, self._recorded(name))

    def _paired(self, streams: Float32) -> Iterator[Float32]:
        """A stream for each matrix; the head has the rows of the float model."""
        yield from streams[1:]
        if HEAD in self._formats:
            yield streams[0]

    def _rounded_head(self, rows: Float32) -> Callable[[Float32], Float32] | None:
        """What rounds blocks of the head, whose inputs are `rows`, if it is measured."""
        formats = self._formats.get(HEAD)
        if formats is None:
            return None
        statistics = Statistics(self._plan.spec.hidden)
        for sequence in rows:
            statistics.add(sequence)
        self._record(HEAD, _errors(sampled(self._plan.head()), formats, statistics.gram))
        return lambda block: rounded(block, formats[0], statistics.gram)

    def _record(self, name: str, errors: dict[Named, float]) -> None:
        with writing(self._folder):
            (self._folder / f"{name}.json").write_text(json.dumps(errors) + "\n", encoding="utf-8")

    def _recorded(self, name: str) -> dict[Named, float]:
        found: dict[Named, float] = json.loads((self._folder / f"{name}.json").read_text(encoding="utf-8"))
        return found


def _errors(weight: Float32, formats: Sequence[Format], gram: Float32) -> dict[Named, float]:
    """The share of the outputs' power that each format loses, on a sample of the rows."""
    rows = weight[smoothing.sample_rows(len(weight))]
    power = rounding.loss(rows, np.zeros_like(rows), gram)
    lost = {chosen.named: rounding.loss(rows, rounded(rows, chosen, gram), gram) for chosen in formats}
    return {text: error / power if power else 0.0 for text, error in lost.items()}


def _read(weight: Weight) -> Float32:
    return np.concatenate(list(weight.blocks()))
