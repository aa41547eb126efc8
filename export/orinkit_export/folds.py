# SPDX-License-Identifier: Apache-2.0
"""Folds: scaling the input channels of a projection by `a` and its producer by 1/a, which changes rounding and nothing
else.

    norm   -> qkv, or qkvz and ba        the norm's effective weight is divided
    norm   -> gate_up                    the same
    up     -> down                       rows of up
    v      -> o                          rows of v: a vector per KV head, repeated for its query heads; it commutes
                                         with softmax and with the sigmoid output gate
    gated-delta norm -> out              one vector for all value heads

Not folds: anything through the convolution and SiLU of a gated-delta layer, z -> out (SiLU between), gate -> down, and
q or k channels (normalised or rotated behind).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orinkit.model import Attention, GatedDelta, LayerSpec

Float32 = NDArray[np.float32]
Arrays = dict[str, Float32]
"""Float weights of one layer by their names in the graph without the layer's prefix."""


@dataclass(frozen=True)
class Fold:
    """One vector `a` of `width` elements."""

    point: str
    """Where the scaled channels pass: norm1, mixer, norm2 or inner (see calibrate.py)."""
    consumers: tuple[str, ...]
    """Matrices whose columns are multiplied."""
    share: NDArray[np.intp]
    """Element of `a` for each channel [K]."""
    producer: str
    first: int = 0
    step: int = 1
    """Rows first, first+step, .. of the producer, and of its bias if it has one, are divided."""

    @property
    def width(self) -> int:
        return int(self.share.max()) + 1

    def gather(self, statistic: Float32) -> Float32:
        """Mean of a statistic [K] over the channels that share an element: [width]."""
        counts = np.bincount(self.share, minlength=self.width)
        return (np.bincount(self.share, statistic, self.width) / counts).astype(np.float32)

    def apply(self, arrays: Arrays, a: Float32) -> None:
        """Fold `a` [width] into the weights, in float32."""
        for name in self.consumers:
            arrays[name] = arrays[name] * a[self.share]
        stem = self.producer.removesuffix(".weight")
        for name in {self.producer, f"{stem}.bias"} & set(arrays):
            arrays[name] = self.divided(arrays[name], a)

    def divided(self, array: Float32, a: Float32) -> Float32:
        """The producer, its bias or the scales of its rows, divided by `a` [width]."""
        copy = array.copy()
        copy[self.first :: self.step] /= a.reshape(-1, *[1] * (copy.ndim - 1))
        return copy


def folds(layer: LayerSpec, hidden: int) -> Iterator[Fold]:
    """The folds of a layer, in the order in which they are searched."""
    identity = np.arange(hidden)
    if layer.attention:
        yield Fold("norm1", ("qkv.weight",), identity, "norm1")
        yield _value_fold(layer.attention)
    if layer.gated_delta:
        yield Fold("norm1", ("qkvz.weight", "ba.weight"), identity, "norm1")
        yield _gated_norm_fold(layer.gated_delta)
    yield Fold("norm2", ("gate_up.weight",), identity, "norm2")
    yield Fold("inner", ("down.weight",), np.arange(layer.intermediate), "gate_up.weight", 1, 2)


def _value_fold(spec: Attention) -> Fold:
    per_kv = spec.heads // spec.kv_heads
    heads = np.arange(spec.heads) // per_kv
    share = (heads[:, None] * spec.head_dim + np.arange(spec.head_dim)).ravel()
    values = spec.kv_heads * spec.head_dim
    return Fold("mixer", ("o.weight",), share, "qkv.weight", spec.qkv_rows - values)


def _gated_norm_fold(spec: GatedDelta) -> Fold:
    return Fold("mixer", ("out.weight",), np.tile(np.arange(spec.value_dim), spec.value_heads), "norm")
