# SPDX-License-Identifier: Apache-2.0
"""The float model and the quantised one side by side, through the parts of one layer.

A matrix is rounded for the inputs that it will get: those that the quantised model makes, whose matrices before are
rounded already. What is lacking there, the float model's rows less those that the float matrix makes of such inputs,
is measured with them: rounding makes up for it as far as the inputs tell of it (prepare.py).

Rows lie in files, with the columns that go on beside each other: what one step writes is what the next one reads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orinkit.model import ModelSpec
from orinkit.ops.description import rms_norm
from orinkit_export.calibrate import Hidden, LayerRunner, Statistics, mixer_width
from orinkit_export.folds import Arrays
from orinkit_export.progress import Advance

Float32 = NDArray[np.float32]

ORDER = ("norm1", "mixer", "norm2", "inner")
"""Where the matrices of a layer get their inputs, in their order."""

BETWEEN = ("mixer", "inner")
"""Points whose rows are carried with the hidden ones, because only the next step uses them up. The matrix there puts
out hidden rows, so what is lacking is measured there; at the others it is measured in the inputs themselves."""

STEPS = len(ORDER) + 1
"""How often the rows of a layer are gone through: for each point, and for what goes on to the next layer."""


def most_columns(spec: ModelSpec) -> int:
    """Columns of rows that lie in files at a time, at most: hidden ones of both models in front of the layer, in it
    with what is carried there, and behind it or at the place before."""
    return 6 * spec.hidden + max(max(mixer_width(layer), layer.intermediate) for layer in spec.layers)


class Seen:
    """What is known, over all tokens, of the inputs x [K] that a matrix gets in the quantised model."""

    def __init__(self, width: int, rows: int) -> None:
        self.inputs = Statistics(width)
        self._products = np.zeros((rows, width), np.float32)

    def add(self, x: Float32, lacking: Float32) -> None:
        """Inputs [T, K] and what is lacking [T, M]."""
        self.inputs.add(x)
        self._products += lacking.T @ x

    @property
    def lacking(self) -> Float32:
        """Mean product of what is lacking and of the inputs [M, K]."""
        return np.asarray(self._products * np.float32(1 / max(1, self.inputs.tokens)))


class _Step(NamedTuple):
    """What is made of one sequence: rows [T, .] for the next step, inputs of a matrix, and what is lacking there."""

    carried: tuple[Float32, ...]
    x: Float32
    lacking: Float32


class Streams:
    """One layer. `see` goes from point to point; before the next one the matrix there is put into `quantised`."""

    def __init__(
        self, runner: LayerRunner, spec: ModelSpec, index: int, arrays: Arrays, shared: Arrays, hidden: Hidden
    ) -> None:
        """`arrays`: float weights of the layer; `shared`: the rope tables; `hidden`: rows [S, T, 2H] of both models."""
        self.quantised = dict(arrays)
        self._float = arrays
        self._runner, self._spec, self._index, self._shared, self._hidden = runner, spec, index, shared, hidden
        self._rows = hidden.read(index)

    def see(self, point: str, advance: Advance) -> Seen:
        """The inputs at a point: norm1, mixer, norm2 and inner, in this order."""
        layer, hidden = self._spec.layers[self._index], self._spec.hidden
        width = {"mixer": mixer_width(layer), "inner": layer.intermediate}.get(point, hidden)
        seen, step = Seen(width, hidden), getattr(self, f"_{point}")

        def rows() -> Iterator[Float32]:
            for sequence in self._rows:
                found: _Step = step(*self._columns(sequence))
                seen.add(found.x, found.lacking)
                advance(len(sequence))
                yield np.concatenate(found.carried, axis=1)

        self._replace(point, width, rows())
        return seen

    def _replace(self, point: str, width: int, rows: Iterator[Float32]) -> None:
        """Put `rows` where the next step reads; those of the first point are there already."""
        if point == ORDER[0]:
            deque(rows, maxlen=0)
            return
        carried = 2 * self._spec.hidden + (width if point in BETWEEN else 0)
        self._hidden.write((*self._rows.shape[:2], carried), rows, f"{point}.npy")
        self._rows = self._hidden.rows(f"{point}.npy")
        self._hidden.remove(f"{ORDER[ORDER.index(point) - 1]}.npy")

    def finish(self, advance: Advance) -> None:
        """Write the rows of the next layer."""

        def rows() -> Iterator[Float32]:
            for sequence in self._rows:
                out, middle, inner = self._columns(sequence)
                advance(len(sequence))
                yield np.concatenate([out, self._part(self.quantised, "out", middle=middle, inner=inner)], axis=1)

        self._hidden.write((*self._rows.shape[:2], 2 * self._spec.hidden), rows())

    def _columns(self, sequence: Float32) -> list[Float32]:
        """The rows of a sequence, one array for each that was carried."""
        ends = [self._spec.hidden, 2 * self._spec.hidden]
        return [np.ascontiguousarray(part) for part in np.split(sequence, ends, axis=1) if part.shape[1]]

    def _norm1(self, expected: Float32, hidden: Float32) -> _Step:
        return self._normed("norm1", expected, hidden)

    def _mixer(self, expected: Float32, hidden: Float32) -> _Step:
        mixer = self._part(self._float, "mixer", hidden=expected)
        middle = self._part(self._float, "middle", hidden=expected, mixer=mixer)
        found = self._part(self.quantised, "mixer", hidden=hidden)
        lacking = middle - self._part(self._float, "middle", hidden=hidden, mixer=found)
        return _Step((middle, hidden, found), found, lacking)

    def _norm2(self, expected: Float32, hidden: Float32, mixer: Float32) -> _Step:
        return self._normed("norm2", expected, self._part(self.quantised, "middle", hidden=hidden, mixer=mixer))

    def _inner(self, expected: Float32, middle: Float32) -> _Step:
        inner = self._part(self._float, "inner", middle=expected)
        out = self._part(self._float, "out", middle=expected, inner=inner)
        found = self._part(self.quantised, "inner", middle=middle)
        lacking = out - self._part(self._float, "out", middle=middle, inner=found)
        return _Step((out, middle, found), found, lacking)

    def _normed(self, norm: str, expected: Float32, found: Float32) -> _Step:
        weight, eps = self._float[norm], self._spec.norm_eps
        x = rms_norm(found, weight, eps)
        return _Step((expected, found), x, rms_norm(expected, weight, eps) - x)

    def _part(self, arrays: Arrays, part: str, **rows: Float32) -> Float32:
        return self._runner.part(part, self._index, arrays, self._shared, rows)
