# SPDX-License-Identifier: Apache-2.0
"""OrinAttention against softmax attention written out in float64: loops over every token of a sequence's history."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orinkit.ops import OPS
from orinkit.ops.attention import rotate
from tolerances import RELATIVE_ERROR, relative_error

Array = NDArray[Any]
Float64 = NDArray[np.float64]
OP = OPS["OrinAttention"]
SLOTS, POSITIONS, EPS = 5, 160, 1e-5


@dataclass(frozen=True)
class Layer:
    """One variant of the op, with the weights that belong to it."""

    heads: int = 4
    kv_heads: int = 2
    dim: int = 16
    rotary_dim: int = 8
    window: int = 0
    softcap: float = 0.0
    gate: int = 0
    normed: bool = True
    rows: int = 80
    dtype: str = "float32"

    @property
    def attributes(self) -> dict[str, Any]:
        return {
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.dim,
            "rotary_dim": self.rotary_dim,
            "window": self.window,
            "scale": 0.3,
            "softcap": self.softcap,
            "gate": self.gate,
            "norm_eps": EPS,
        }

    @property
    def norms(self) -> tuple[Array | None, Array | None]:
        rng = np.random.default_rng(1)
        q, k = rng.uniform(0.5, 1.5, (2, self.dim)).astype(np.float32)
        return (q, k) if self.normed else (None, None)

    @property
    def angles(self) -> Float64:
        return np.asarray(np.arange(POSITIONS)[:, None] * 0.4 ** np.arange(self.rotary_dim // 2))

    def tokens(self, seed: int, count: int) -> Array:
        """Random rows of the fused projection."""
        width = (self.heads * (1 + self.gate) + 2 * self.kv_heads) * self.dim
        return np.random.default_rng(seed).standard_normal((count, width)).astype(self.dtype)

    def cache(self) -> Array:
        """Full of NaN."""
        return np.full((SLOTS, 2, self.kv_heads, self.rows, self.dim), np.nan, self.dtype)

    def step(self, kv: Array, *sequences: tuple[Array, int, int]) -> tuple[Array, Array]:
        """The op for (tokens, past, slot) of each sequence, packed."""
        rows, past, slots = zip(*sequences, strict=True)
        lens = np.cumsum([0, *map(len, rows)]).astype(np.int32)
        tables = (np.cos(self.angles).astype(np.float32), np.sin(self.angles).astype(np.float32))
        step = (lens, np.array(past, np.int32), np.array(slots, np.int32))
        y, kv_out = OP.compute((np.concatenate(rows), kv, *step, *self.norms, *tables), self.attributes)
        assert y.dtype == kv_out.dtype == self.dtype
        return y, kv_out


VARIANTS = {
    "plain": Layer(),
    "gated, rotary everywhere, one group": Layer(heads=3, kv_heads=1, rotary_dim=16, gate=1),
    "no norm, one head each": Layer(heads=2, normed=False),
    "softcap": Layer(softcap=2.0),
    "window": Layer(window=7, rows=24, gate=1),
    "float16": Layer(dtype="float16", window=7, rows=24),
}
each_variant = pytest.mark.parametrize("layer", VARIANTS.values(), ids=VARIANTS)


def head(x: Float64, norm: Array | None, angles: Float64) -> Float64:
    """Norm and rotation of one head."""
    if norm is not None:
        x = x / math.sqrt((x**2).sum() / len(x) + EPS) * norm
    x, half = x.copy(), len(angles)
    for i, angle in enumerate(angles):
        a, b = x[i], x[i + half]
        x[i], x[i + half] = a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)
    return x


def attend(layer: Layer, history: Array) -> Float64:
    """Outputs of a sequence's tokens, each from all the tokens before it."""
    wide = history.astype(np.float64).reshape(len(history), -1, layer.dim)
    queries = layer.heads * (1 + layer.gate)
    q_norm, k_norm = layer.norms
    keyed = zip(wide[:, queries : queries + layer.kv_heads], layer.angles, strict=False)
    keys = np.array([[head(x, k_norm, angles) for x in token] for token, angles in keyed])
    out = np.empty((len(wide), layer.heads, layer.dim))
    for position, token in enumerate(wide):
        first = max(0, position - layer.window + 1) if layer.window else 0
        for index in range(layer.heads):
            query, own = head(token[index], q_norm, layer.angles[position]), index * layer.kv_heads // layer.heads
            scores = [0.3 * float(query @ keys[other, own]) for other in range(first, position + 1)]
            if layer.softcap:
                scores = [layer.softcap * math.tanh(score / layer.softcap) for score in scores]
            weights = np.array([math.exp(score) for score in scores])
            values = wide[first : position + 1, queries + layer.kv_heads + own]
            y = weights @ values / weights.sum()
            out[position, index] = y / (1 + np.exp(-token[layer.heads + index])) if layer.gate else y
    return out.reshape(len(wide), -1)


def chunks(total: int, sizes: list[int]) -> list[tuple[int, int]]:
    """(start, end) of chunks of these sizes in turn."""
    edges, index = [0], 0
    while edges[-1] < total:
        edges.append(min(total, edges[-1] + sizes[index % len(sizes)]))
        index += 1
    return list(pairwise(edges))


@each_variant
@pytest.mark.parametrize("sizes", [[80], [1], [17, 1, 1, 5]], ids=str)
def test_a_sequence_in_chunks(layer: Layer, sizes: list[int]) -> None:
    """Whole, token by token and mixed. With a window the ring of 24 rows goes round three times."""
    total = 80 if layer.rows == 80 else 17 if sizes == [80] else 77
    history = layer.tokens(2, total)
    kv, parts = layer.cache(), []
    for start, end in chunks(total, sizes):
        y, kv = layer.step(kv, (history[start:end], start, 3))
        parts.append(y)
    assert relative_error(np.concatenate(parts), attend(layer, history)) < RELATIVE_ERROR[layer.dtype]


@each_variant
def test_a_packed_batch(layer: Layer) -> None:
    """Sequences of unequal length at unequal positions, with padding between; two more steps of another order."""
    histories = [layer.tokens(seed, 40) for seed in range(3)]
    expected = [attend(layer, history) for history in histories]
    slots, past, kv = [4, 0, 2], [0, 0, 0], layer.cache()
    padding = np.full_like(histories[0], np.nan)
    for lens, order in (([9, 1, 14], [2, 0, 1]), ([1, 16, 1], [0, 1, 2]), ([11, 0, 3], [1, 0, 2])):
        sequences = [(histories[i][past[i] : past[i] + lens[i]], past[i], slots[i]) for i in order]
        rows = [*sequences[:1], (padding[:5], 70, -1), (padding[:0], 0, -1), *sequences[1:]]
        y, kv = layer.step(kv, *rows)
        assert np.isfinite(y).all()
        parts = np.split(y, np.cumsum([len(tokens) for tokens, _, _ in rows])[:-1])
        for i, part in zip(order, (parts[0], *parts[3:]), strict=True):
            wanted = expected[i][past[i] : past[i] + lens[i]]
            assert relative_error(part, wanted) < RELATIVE_ERROR[layer.dtype]
            past[i] += lens[i]


@each_variant
def test_only_the_rows_of_the_step_are_written(layer: Layer) -> None:
    """Bit by bit, also across the end of the ring; whatever else lies in the caches is neither read nor touched."""
    history = layer.tokens(5, 30)
    kv = layer.cache()
    for start, end in chunks(20, [10]):
        _, kv = layer.step(kv, (history[start:end], start, 1))
    before = kv.copy()
    y, after = layer.step(kv, (history[20:30], 20, 1), (history[:2], 0, -1))
    written = np.arange(20, 30) % layer.rows
    untouched = np.delete(np.arange(layer.rows), written)
    assert np.isfinite(after[1][:, :, written]).all()
    assert not np.array_equal(after[1][:, :, written], before[1][:, :, written])
    assert np.array_equal(after[1][:, :, untouched].view(np.uint8), before[1][:, :, untouched].view(np.uint8))
    free = [0, 2, 3, 4]
    assert np.array_equal(after[free].view(np.uint8), before[free].view(np.uint8))
    assert np.array_equal(kv.view(np.uint8), before.view(np.uint8))
    assert not y[10:].any()


def test_a_new_sequence_ignores_what_its_slot_held() -> None:
    layer = Layer(window=7, rows=24)
    history = layer.tokens(6, 12)
    clean, _ = layer.step(layer.cache(), (history, 0, 2))
    _, used = layer.step(layer.cache(), (layer.tokens(7, 23), 0, 2))
    again, _ = layer.step(used, (history, 0, 2))
    assert np.array_equal(again, clean)


def test_values_are_used_as_the_cache_rounds_them() -> None:
    """One visible token: the output is its value, rounded once by the cache, so both halves of a run agree."""
    layer = replace(Layer(), dtype="float16")
    token = layer.tokens(8, 1)
    y, kv = layer.step(layer.cache(), (token, 0, 0))
    assert np.array_equal(y.reshape(2, 2, 16)[:, 0], kv[0, 1, :, 0])


def test_rotation_turns_pairs_half_a_rotary_width_apart() -> None:
    x = np.arange(1, 7, dtype=np.float32).reshape(1, 1, 6)
    quarter = np.array([[0.0, 1.0]], np.float32)
    turned = rotate(x, np.array([[1.0, 0.0]], np.float32), quarter)
    assert turned.tolist() == [[[1.0, -4.0, 3.0, 2.0, 5.0, 6.0]]]
