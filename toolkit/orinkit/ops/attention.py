# SPDX-License-Identifier: Apache-2.0
"""OrinAttention: append to the cache, then causal grouped-query attention over it.

Row r of a cache of C rows holds position p with p mod C = r: a full cache (C >= every position) never wraps, a
windowed one is a ring. After a step that ends at length L, row r holds p = L-1 - ((L-1-r) mod C).
"""

from __future__ import annotations

import numpy as np

from orinkit.ops.description import (
    ACTIVATION,
    Array,
    Attribute,
    Float32,
    Int32,
    Op,
    Tensor,
    rms_norm,
    sequence_inputs,
    sigmoid,
)


def rotate(x: Float32, cos: Float32, sin: Float32) -> Float32:
    """Rotate-half rotary embedding of the first 2*len(cos row) dimensions; x [T, heads, D], cos and sin [T, r/2]."""
    half = cos.shape[1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cos[:, None], sin[:, None]
    return np.concatenate([first * c - second * s, second * c + first * s, rest], axis=-1)


def _visible(positions: Array, rows: int, window: int) -> Array:
    """bool [T, n]: which of the n rows in use the tokens at `positions` see, the last of them written."""
    last = positions[-1]
    held = last - (last - np.arange(min(last + 1, rows))) % rows
    visible = held[None] <= positions[:, None]
    return np.asarray(visible & (held[None] > positions[:, None] - window) if window else visible)


def _attend(q: Float32, keys: Float32, values: Float32, visible: Array, scale: float, softcap: float) -> Float32:
    """q [T, Hq, D], keys and values [Hkv, n, D], visible [T, n] -> [T, Hq, D]."""
    tokens, heads, dim = q.shape
    kv_heads = keys.shape[0]
    grouped = q.reshape(tokens, kv_heads, heads // kv_heads, dim).transpose(1, 2, 0, 3)
    scores = grouped @ keys[:, None].transpose(0, 1, 3, 2) * np.float32(scale)  # [Hkv, group, T, n]
    if softcap:
        scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
    scores = np.where(visible, scores, np.float32(-np.inf))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray(weights @ values[:, None], np.float32).transpose(2, 0, 1, 3).reshape(tokens, heads, dim)


def reference(
    qkv: Array,
    kv: Array,
    cu_seqlens: Int32,
    past_lens: Int32,
    slots: Int32,
    q_norm: Array | None,
    k_norm: Array | None,
    cos: Float32,
    sin: Float32,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    window: int,
    scale: float,
    softcap: float,
    gate: int,
    norm_eps: float,
) -> tuple[Array, Array]:
    """Sequence after sequence, in float32; keys and values are rounded to the cache's type before they are used.

    Padded rows give zeros.
    """
    tokens = qkv.shape[0]
    sizes = [heads, heads if gate else 0, kv_heads, kv_heads]
    edges = np.cumsum(sizes)[:-1] * head_dim
    parts = np.split(qkv.astype(np.float32), edges, axis=1)
    q, gates, k, v = (part.reshape(tokens, size, head_dim) for part, size in zip(parts, sizes, strict=True))
    q = q if q_norm is None else rms_norm(q, q_norm, norm_eps)
    k = k if k_norm is None else rms_norm(k, k_norm, norm_eps)
    kv_out = kv.copy()
    out = np.zeros((tokens, heads, head_dim), np.float32)
    for start, end, past, slot in zip(cu_seqlens[:-1], cu_seqlens[1:], past_lens, slots, strict=True):
        if slot < 0 or start == end:
            continue
        cache = kv_out[slot]
        positions = past + np.arange(end - start)
        c, s = cos[positions, : rotary_dim // 2], sin[positions, : rotary_dim // 2]
        written = np.stack([rotate(k[start:end], c, s), v[start:end]])  # [2, T, Hkv, D]
        cache[:, :, positions % cache.shape[2]] = written.transpose(0, 2, 1, 3).astype(cache.dtype)
        visible = _visible(positions, cache.shape[2], window)
        keys, values = cache[:, :, : visible.shape[1]].astype(np.float32)
        out[start:end] = _attend(rotate(q[start:end], c, s), keys, values, visible, scale, softcap)
        if gate:
            out[start:end] *= sigmoid(gates[start:end])
    return out.reshape(tokens, heads * head_dim).astype(qkv.dtype), kv_out


OP = Op(
    name="OrinAttention",
    doc="RMSNorm of q and k, rotary embedding, append to the cache, causal attention over the cache, output gate.",
    inputs=(
        Tensor(
            "qkv", "[T, (Hq [+ Hq] + 2 Hkv) D]", ACTIVATION, "query, output gate if `gate`, key, value; head by head"
        ),
        Tensor("kv", "[S, 2, Hkv, C, D]", ACTIVATION, "K and V of every slot; row = position mod C", state=True),
        *sequence_inputs(),
        Tensor("q_norm", "[D]", ("float32",), "effective weight", optional=True),
        Tensor("k_norm", "[D]", ("float32",), "effective weight", optional=True),
        Tensor("cos", "[P, rotary_dim/2]", ("float32",), "by position"),
        Tensor("sin", "[P, rotary_dim/2]", ("float32",), "by position"),
    ),
    attributes=(
        Attribute("heads", "int", "Hq"),
        Attribute("kv_heads", "int", "Hkv"),
        Attribute("head_dim", "int", "D"),
        Attribute("rotary_dim", "int", "leading dimensions that are rotated"),
        Attribute("window", "int", "a token sees itself and the window-1 tokens before it; 0 = all"),
        Attribute("scale", "float", "factor of the scores"),
        Attribute("softcap", "float", "scores become softcap*tanh(scores/softcap); 0 = off"),
        Attribute("gate", "int", "1: qkv holds a gate, and the output is multiplied by its sigmoid"),
        Attribute("norm_eps", "float", "epsilon of q_norm and k_norm"),
    ),
    outputs=(
        Tensor("y", "[T, Hq D]", ACTIVATION, "attention output"),
        Tensor("kv_out", "[S, 2, Hkv, C, D]", ACTIVATION, "the cache", state=True),
    ),
    reference=reference,
)
