# SPDX-License-Identifier: Apache-2.0
"""AWQ as Lin et al. published it, for comparison: asymmetric INT4, scales searched by forward passes, then clipping.

What differs from orinkit's search: candidates mean|x|^(r/20), r = 0..19, each judged by the mean squared error of what
the block puts out; no fold v -> o under grouped queries, none of the gated-delta norm; ranges of groups clipped by
their error, query and key rows excepted; integers are the nearest ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from orinkit.model import ModelSpec
from orinkit_export.calibrate import LayerRunner, Statistics
from orinkit_export.folds import Arrays, Fold, folds
from orinkit_export.layerwise import POINTS

Float32 = NDArray[np.float32]

GROUP_SIZE = 128
BITS = 4 + 20 / GROUP_SIZE
"""Per weight: a float16 scale and a zero point of four bits for each group."""

RATIOS = np.arange(20) / 20
CLIPS = 1 - np.arange(10) / 20
SEEN_AT = {"norm1": "middle", "norm2": "out", "inner": "out"}
"""Where the output of the block is that a fold's scales are judged by; what lies between is linear or left alone."""


def nearest(weight: Float32, limit: Float32 | None = None) -> Float32:
    """The dequantised matrix [N, K]: minimum and maximum of a group to 0 and 15; `limit` [N, K/G] clips its range."""
    grouped = weight.reshape(len(weight), -1, GROUP_SIZE)
    if limit is not None:
        grouped = np.clip(grouped, -limit[:, :, None], limit[:, :, None])
    low, high = grouped.min(axis=2, keepdims=True), grouped.max(axis=2, keepdims=True)
    scale = np.maximum((high - low) / 15, 1e-5).astype(np.float16).astype(np.float32)
    zero = np.clip(-np.rint(low / scale), 0, 15)
    return np.asarray(((np.clip(np.rint(grouped / scale) + zero, 0, 15) - zero) * scale).reshape(weight.shape))


def clipped(weight: Float32, gram: Float32, kept_rows: int = 0) -> Float32:
    """The nearest integers within the ranges of least error of each group's part of the product; the first rows keep
    theirs."""
    n, k = weight.shape
    groups = k // GROUP_SIZE
    blocks = [gram[slice_, slice_] for slice_ in _groups(k)]
    largest = np.abs(weight).reshape(n, groups, GROUP_SIZE).max(axis=2)
    best, least = largest.copy(), np.full((n, groups), np.inf, np.float32)
    for clip in CLIPS:
        error = nearest(weight, largest * np.float32(clip)) - weight
        found = np.stack(
            [
                np.einsum("nk,nk->n", error[:, s] @ block, error[:, s])
                for s, block in zip(_groups(k), blocks, strict=True)
            ],
            axis=1,
        )
        better = found < least
        least[better], best[better] = found[better], (largest * np.float32(clip))[better]
    best[:kept_rows] = largest[:kept_rows]
    return nearest(weight, best)


def _groups(columns: int) -> Iterator[slice]:
    return (slice(start, start + GROUP_SIZE) for start in range(0, columns, GROUP_SIZE))


def scale(mean_abs: Float32, ratio: float) -> Float32:
    """A candidate for the factors of the input channels."""
    a = np.maximum(mean_abs**ratio, 1e-4)
    return np.asarray(a / np.sqrt(a.max() * a.min()), np.float32)


class LayerSearch:
    """The search of one layer, by forward passes over `hidden` [S, T, H]."""

    def __init__(self, runner: LayerRunner, spec: ModelSpec, index: int, shared: Arrays, hidden: Float32) -> None:
        self._runner = runner
        self._spec = spec
        self._index = index
        self._shared = shared
        self._hidden = hidden

    def __call__(self, arrays: Arrays, statistics: dict[str, Statistics]) -> Arrays:
        """The layer's arrays, folded and with dequantised matrices; the Gram matrices follow the scaled channels."""
        expected = self.outputs(arrays)
        chosen = [(fold, self._best(fold, arrays, statistics[fold.point], expected)) for fold in self._folds()]
        done = dict(arrays)
        for fold, a in chosen:
            fold.apply(done, a)
            inverse = np.float32(1) / a[fold.share]
            statistics[fold.point].gram *= inverse[:, None] * inverse
        attention = self._spec.layers[self._index].attention
        for name, point in POINTS.items():
            if name in done:
                values = attention.kv_heads * attention.head_dim if attention else 0
                kept = len(done[name]) - values if name == "qkv.weight" else 0
                done[name] = clipped(done[name], statistics[point].gram, kept)
        return done

    def outputs(self, arrays: Arrays) -> dict[str, Float32]:
        """What the layer puts out at the two places where scales are judged: one forward pass."""
        found = [self._runner.layer(self._index, arrays, self._shared, np.ascontiguousarray(x)) for x in self._hidden]
        return {name: np.stack([one[name] for one in found]) for name in ("middle", "out")}

    def _folds(self) -> Iterator[Fold]:
        attention = self._spec.layers[self._index].attention
        for fold in folds(self._spec.layers[self._index], self._spec.hidden):
            if fold.point != "mixer" or (attention and attention.heads == attention.kv_heads):
                yield fold

    def _best(self, fold: Fold, arrays: Arrays, statistics: Statistics, expected: dict[str, Float32]) -> Float32:
        seen = SEEN_AT.get(fold.point, "middle")
        least, best = np.inf, np.ones(fold.width, np.float32)
        for ratio in RATIOS:
            a = scale(fold.gather(statistics.mean_abs), float(ratio))
            tried = dict(arrays)
            for name in set(fold.consumers) & set(POINTS):
                factors = a[fold.share]
                tried[name] = nearest(arrays[name] * factors) / factors
            error = float(np.mean((self.outputs(tried)[seen] - expected[seen]) ** 2, dtype=np.float64))
            if error < least:
                least, best = error, a
        return best
