# SPDX-License-Identifier: Apache-2.0
"""OrinGatedDelta against its formulas in float64: a loop over tokens and heads, and the chunked form of the papers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orinkit.ops import OPS
from tolerances import RELATIVE_ERROR, relative_error

Array = NDArray[Any]
Float64 = NDArray[np.float64]
States = tuple[Array, Array]
OP = OPS["OrinGatedDelta"]
SLOTS, EPS, L2_EPS = 5, 1e-5, 1e-6


@dataclass(frozen=True)
class Layer:
    """One variant of the op, with the weights that belong to it."""

    key_heads: int = 2
    value_heads: int = 4
    key_dim: int = 8
    value_dim: int = 12
    width: int = 4
    dtype: str = "float32"

    @property
    def keys(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def channels(self) -> int:
        return 2 * self.keys + self.value_heads * self.value_dim

    @property
    def attributes(self) -> dict[str, Any]:
        return {
            "key_heads": self.key_heads,
            "value_heads": self.value_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "conv_width": self.width,
            "norm_eps": EPS,
        }

    @property
    def weights(self) -> tuple[Array, Array, Array, Array]:
        """conv_weight, a_log, dt_bias, norm; decays from nearly none to nearly all."""
        rng = np.random.default_rng(1)
        taps = rng.uniform(-0.9, 0.9, (self.channels, self.width)).astype(self.dtype)
        a_log, dt_bias = rng.uniform(-1.5, 1.0, self.value_heads), rng.uniform(-4.0, 1.0, self.value_heads)
        norm = rng.uniform(0.5, 1.5, self.value_dim)
        return taps, a_log.astype(np.float32), dt_bias.astype(np.float32), norm.astype(np.float32)

    def tokens(self, seed: int, count: int) -> Array:
        """Random rows of both projections side by side: q, k, v, z, then b, a."""
        width = self.channels + self.value_heads * self.value_dim + 2 * self.value_heads
        return np.random.default_rng(seed).standard_normal((count, width)).astype(self.dtype)

    def states(self) -> States:
        """Full of NaN."""
        conv = np.full((SLOTS, self.channels, self.width - 1), np.nan, self.dtype)
        return conv, np.full((SLOTS, self.value_heads, self.key_dim, self.value_dim), np.nan, np.float32)

    def step(self, states: States, *sequences: tuple[Array, int, int]) -> tuple[Array, States]:
        """The op for (tokens, past, slot) of each sequence, packed."""
        rows, past, slots = zip(*sequences, strict=True)
        lens = np.cumsum([0, *map(len, rows)]).astype(np.int32)
        qkvz, ba = np.split(np.concatenate(rows), [-2 * self.value_heads], axis=1)
        step = (lens, np.array(past, np.int32), np.array(slots, np.int32))
        y, conv, rec = OP.compute((qkvz, ba, *self.weights, *states, *step), self.attributes)
        assert y.dtype == conv.dtype == self.dtype
        assert rec.dtype == np.float32
        return y, (conv, rec)


VARIANTS = {
    "two value heads to a key head": Layer(),
    "three": Layer(value_heads=6, value_dim=4),
    "one": Layer(value_heads=2, width=3),
    "float16": Layer(dtype="float16"),
}
each_variant = pytest.mark.parametrize("layer", VARIANTS.values(), ids=VARIANTS)

Heads = tuple[Float64, Float64, Float64, Float64, Float64]
"""q, k [T, Hv, Dk], v [T, Hv, Dv], g, beta [T, Hv] of a whole sequence."""


def convolved(layer: Layer, history: Array) -> Float64:
    """silu of the direct sum over taps; before the first token there are zeros."""
    wide, taps = history[:, : layer.channels].astype(np.float64), layer.weights[0].astype(np.float64)
    out = np.empty_like(wide)
    for t in range(len(wide)):
        past = [(taps[:, layer.width - 1 - back], wide[t - back]) for back in range(min(t + 1, layer.width))]
        total = np.array(sum(tap * x for tap, x in past))
        out[t] = total / (1 + np.exp(-total))
    return out


def rule_inputs(layer: Layer, history: Array) -> Heads:
    count, c = len(history), convolved(layer, history)
    q, k = (part.reshape(count, layer.key_heads, layer.key_dim) for part in np.split(c[:, : 2 * layer.keys], 2, axis=1))
    q, k = (x / np.sqrt((x**2).sum(axis=-1, keepdims=True) + L2_EPS) for x in (q, k))
    own = [head * layer.key_heads // layer.value_heads for head in range(layer.value_heads)]
    v = c[:, 2 * layer.keys :].reshape(count, layer.value_heads, layer.value_dim)
    b, a = np.split(history[:, -2 * layer.value_heads :].astype(np.float64), 2, axis=1)
    _, a_log, dt_bias, _ = layer.weights
    g = -np.exp(a_log.astype(np.float64)) * np.log1p(np.exp(a + dt_bias))
    return q[:, own] / math.sqrt(layer.key_dim), k[:, own], v, g, 1 / (1 + np.exp(-b))


def by_token(q: Float64, k: Float64, v: Float64, g: Float64, beta: Float64) -> tuple[Float64, Float64]:
    """Outputs [T, Hv, Dv] and the last state, head by head and token by token."""
    out, states = np.empty_like(v), np.zeros((v.shape[1], k.shape[2], v.shape[2]))
    for head, state in enumerate(states):
        for t in range(len(v)):
            state *= math.exp(g[t, head])
            recalled = sum(state[i] * k[t, head, i] for i in range(k.shape[2]))
            state += np.outer(k[t, head], beta[t, head] * (v[t, head] - recalled))
            out[t, head] = sum(state[i] * q[t, head, i] for i in range(k.shape[2]))
    return out, states


def by_chunk(q: Float64, k: Float64, v: Float64, g: Float64, beta: Float64, size: int) -> tuple[Float64, Float64]:
    """The same by matrix products over chunks of `size` tokens, as prefill kernels compute it."""
    out, states = np.empty_like(v), np.zeros((v.shape[1], k.shape[2], v.shape[2]))
    for head in range(v.shape[1]):
        for start in range(0, len(v), size):
            part = slice(start, start + size)
            qc, kc, vc, gc, bc = (x[part, head] for x in (q, k, v, g, beta))
            total, weighted = np.cumsum(gc), bc[:, None] * kc
            decay = np.exp(np.minimum(total[:, None] - total[None], 0))
            inverse = np.linalg.inv(np.eye(len(kc)) + np.tril(weighted @ kc.T * decay, -1))
            u, w = inverse @ (bc[:, None] * vc), inverse @ (weighted * np.exp(total)[:, None])
            new = u - w @ states[head]
            out[part, head] = (qc * np.exp(total)[:, None]) @ states[head] + np.tril(qc @ kc.T * decay) @ new
            kept = kc * np.exp(total[-1] - total)[:, None]
            states[head] = states[head] * math.exp(total[-1]) + kept.T @ new
    return out, states


def expected_output(layer: Layer, history: Array, mixed: Float64) -> Float64:
    """Norm, then gate, of the rule's outputs."""
    z = history[:, layer.channels : -2 * layer.value_heads].astype(np.float64).reshape(mixed.shape)
    normed = mixed / np.sqrt((mixed**2).mean(axis=-1, keepdims=True) + EPS) * layer.weights[3]
    return np.asarray(normed * z / (1 + np.exp(-z))).reshape(len(history), -1)


def whole(layer: Layer, history: Array) -> Float64:
    return expected_output(layer, history, by_token(*rule_inputs(layer, history))[0])


@pytest.mark.parametrize("size", [1, 7, 16, 64])
def test_the_chunked_form_is_the_token_loop(size: int) -> None:
    """In float64, with a last chunk that is not full: what kernels may compute instead."""
    inputs = rule_inputs(Layer(), Layer().tokens(2, 90))
    for a, b in zip(by_token(*inputs), by_chunk(*inputs, size), strict=True):
        assert np.abs(a - b).max() < 1e-10


@each_variant
@pytest.mark.parametrize("sizes", [[90], [1], [2, 17, 1]], ids=str)
def test_a_sequence_in_chunks(layer: Layer, sizes: list[int]) -> None:
    """Whole, token by token and mixed; chunks shorter than the convolution among them."""
    history = layer.tokens(3, 90)
    states, parts, start = layer.states(), [], 0
    for size in sizes * 90:
        if start < len(history):
            y, states = layer.step(states, (history[start : start + size], start, 2))
            parts.append(y)
            start += size
    mixed, state = by_chunk(*rule_inputs(layer, history), 64)
    expected = expected_output(layer, history, mixed)
    assert relative_error(np.concatenate(parts), expected) < RELATIVE_ERROR[layer.dtype]
    assert relative_error(states[1][2], state) < RELATIVE_ERROR[layer.dtype]
    assert np.array_equal(states[0][2], history[-layer.width + 1 :, : layer.channels].T)


@each_variant
def test_a_packed_batch(layer: Layer) -> None:
    """Sequences of unequal length at unequal positions, with padding between; two more steps of another order."""
    histories = [layer.tokens(seed, 40) for seed in range(3)]
    expected = [whole(layer, history) for history in histories]
    slots, past, states = [4, 0, 2], [0, 0, 0], layer.states()
    padding = np.full_like(histories[0], np.nan)
    for lens, order in (([9, 1, 14], [2, 0, 1]), ([1, 16, 1], [0, 1, 2]), ([11, 0, 3], [1, 0, 2])):
        sequences = [(histories[i][past[i] : past[i] + lens[i]], past[i], slots[i]) for i in order]
        rows = [*sequences[:1], (padding[:5], 70, -1), (padding[:0], 0, -1), *sequences[1:]]
        y, states = layer.step(states, *rows)
        assert np.isfinite(y).all()
        parts = np.split(y, np.cumsum([len(tokens) for tokens, _, _ in rows])[:-1])
        for i, part in zip(order, (parts[0], *parts[3:]), strict=True):
            wanted = expected[i][past[i] : past[i] + lens[i]]
            assert relative_error(part, wanted) < RELATIVE_ERROR[layer.dtype]
            past[i] += lens[i]


@each_variant
def test_only_the_slot_of_the_sequence_is_written(layer: Layer) -> None:
    """Bit by bit; the inputs keep their values, padding gives zeros, and an empty sequence changes nothing."""
    history = layer.tokens(5, 16)
    _, states = layer.step(layer.states(), (history[:8], 0, 1), (history[:8], 0, 3))
    before = [state.copy() for state in states]
    y, after = layer.step(states, (history[8:], 8, 1), (history[:2], 3, -1), (history[:0], 8, 3))
    assert not y[8:].any()
    for then, given, now in zip(before, states, after, strict=True):
        assert np.array_equal(given.view(np.uint8), then.view(np.uint8))
        free = [0, 2, 3, 4]
        assert np.array_equal(now[free].view(np.uint8), then[free].view(np.uint8))
        assert np.isfinite(now[1]).all()
        assert not np.array_equal(now[1], then[1])


@each_variant
def test_a_new_sequence_ignores_what_its_slot_held(layer: Layer) -> None:
    history = layer.tokens(6, 3)
    clean, clean_states = layer.step(layer.states(), (history, 0, 2))
    _, used = layer.step(layer.states(), (layer.tokens(7, 30), 0, 2))
    again, states = layer.step(used, (history, 0, 2))
    assert np.array_equal(again, clean)
    for a, b in zip(states, clean_states, strict=True):
        assert np.array_equal(a[2], b[2])


def test_a_token_that_forgets_everything_and_one_that_learns_nothing() -> None:
    """Gates at their ends: no overflow, and the state is what the formula leaves of it."""
    layer = Layer(key_heads=1, value_heads=1)
    history = layer.tokens(8, 3)
    history[:, -2:] = [[0.0, 0.0], [80.0, 3e4], [-3e4, -3e4]]  # b, a of each token
    _, states = layer.step(layer.states(), (history[:2], 0, 0))
    _, k, v, _, _ = rule_inputs(layer, np.concatenate([history[:2, :-2], np.zeros((2, 2))], axis=1))
    assert relative_error(states[1][0, 0], np.outer(k[1, 0], v[1, 0])) < 1e-6
    _, kept = layer.step(states, (history[2:], 2, 0))
    assert np.array_equal(kept[1][0], states[1][0])
