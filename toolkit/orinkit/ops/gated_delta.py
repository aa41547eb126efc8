# SPDX-License-Identifier: Apache-2.0
"""OrinGatedDelta: causal convolution, gated delta rule, gated norm (Gated DeltaNet, Yang et al. 2024; Qwen3.5's form).

c_t = silu(sum_j w_conv[:, j] m_{t-width+1+j})            m: the projected q, k, v rows
q = q / |q| / sqrt(Dk);  k = k / |k|                      each key head serves Hv/Hk value heads
beta = sigmoid(b);  g = -exp(A_log) softplus(a + dt_bias)
S = exp(g) S;  S = S + k (beta (v - S^T k))^T;  o = S^T q      S in R^{Dk x Dv}, float32
y = norm o rsqrt(mean(o^2) + eps) silu(z)                 per value head
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
    silu,
)

L2_EPS = np.float32(1e-6)
"""Added to the sum of squares when q and k are normalised."""


def _normalise(x: Float32) -> Float32:
    return np.asarray(x / np.sqrt(np.sum(x * x, axis=-1, keepdims=True) + L2_EPS), np.float32)


def _convolve(past: Array, x: Float32, taps: Float32) -> tuple[Float32, Array]:
    """silu of the causal convolution of x [T, channels] behind `past` [channels, width-1], and the next past."""
    inputs = np.concatenate([past.astype(np.float32).T, x])
    total = sum(inputs[j : j + len(x)] * taps[:, j] for j in range(taps.shape[1]))
    return silu(np.asarray(total, np.float32)), inputs[len(x) :].T.astype(past.dtype)


def _recur(q: Float32, k: Float32, v: Float32, g: Float32, beta: Float32, state: Float32) -> tuple[Float32, Float32]:
    """The rule, token by token: q, k [T, Hv, Dk], v [T, Hv, Dv], g, beta [T, Hv], state [Hv, Dk, Dv]."""
    out = np.empty_like(v)
    for t in range(len(v)):
        state = state * np.exp(g[t])[:, None, None]
        delta = (v[t] - np.einsum("hkv,hk->hv", state, k[t])) * beta[t][:, None]
        state = state + k[t][:, :, None] * delta[:, None, :]
        out[t] = np.einsum("hkv,hk->hv", state, q[t])
    return out, state


def reference(
    qkvz: Array,
    ba: Array,
    conv_weight: Array,
    a_log: Array,
    dt_bias: Array,
    norm: Array,
    conv: Array,
    rec: Float32,
    cu_seqlens: Int32,
    past_lens: Int32,
    slots: Int32,
    *,
    key_heads: int,
    value_heads: int,
    key_dim: int,
    value_dim: int,
    conv_width: int,
    norm_eps: float,
) -> tuple[Array, Array, Float32]:
    """Sequence after sequence, in float32. Padded rows give zeros."""
    tokens, channels = qkvz.shape[0], 2 * key_heads * key_dim + value_heads * value_dim
    wide = qkvz.astype(np.float32)
    b, a = np.split(ba.astype(np.float32), 2, axis=1)
    taps, repeat = conv_weight.astype(np.float32).reshape(channels, conv_width), value_heads // key_heads
    conv_out, rec_out = conv.copy(), rec.copy()
    gates = silu(wide[:, channels:].reshape(tokens, value_heads, value_dim))
    y = np.zeros_like(gates)
    for start, end, past, slot in zip(cu_seqlens[:-1], cu_seqlens[1:], past_lens, slots, strict=True):
        if slot < 0 or start == end:
            continue
        fresh = past == 0
        before = np.zeros_like(conv[slot]) if fresh else conv[slot]
        c, conv_out[slot] = _convolve(before, wide[start:end, :channels], taps)
        q, k, v = np.split(c, [key_heads * key_dim, 2 * key_heads * key_dim], axis=1)
        q = _normalise(q.reshape(-1, key_heads, key_dim)) / np.sqrt(np.float32(key_dim))
        k = _normalise(k.reshape(-1, key_heads, key_dim))
        g = -np.exp(a_log) * np.logaddexp(np.float32(0), a[start:end] + dt_bias)
        state = np.zeros_like(rec[slot]) if fresh else rec[slot]
        mixed, rec_out[slot] = _recur(
            np.repeat(q, repeat, axis=1),
            np.repeat(k, repeat, axis=1),
            v.reshape(-1, value_heads, value_dim),
            g,
            sigmoid(b[start:end]),
            state,
        )
        y[start:end] = rms_norm(mixed, norm, norm_eps) * gates[start:end]
    return y.reshape(tokens, value_heads * value_dim).astype(qkvz.dtype), conv_out, rec_out


OP = Op(
    name="OrinGatedDelta",
    doc="Causal convolution, gated delta rule and gated norm, with both states in place.",
    inputs=(
        Tensor("qkvz", "[T, 2 Hk Dk + 2 Hv Dv]", ACTIVATION, "projected q, k, v (the convolution's channels), then z"),
        Tensor("ba", "[T, 2 Hv]", ACTIVATION, "projected b, then a"),
        Tensor("conv_weight", "[channels, width]", ACTIVATION, "depthwise taps, the newest token's last"),
        Tensor("a_log", "[Hv]", ("float32",), "log of the decay rate"),
        Tensor("dt_bias", "[Hv]", ("float32",), "added to a"),
        Tensor("norm", "[Dv]", ("float32",), "RMSNorm weight of the output, effective"),
        Tensor(
            "conv", "[S, channels, width-1]", ACTIVATION, "last inputs of the convolution, oldest first", state=True
        ),
        Tensor("rec", "[S, Hv, Dk, Dv]", ("float32",), "recurrent state", state=True),
        *sequence_inputs(),
    ),
    attributes=(
        Attribute("key_heads", "int", "Hk"),
        Attribute("value_heads", "int", "Hv"),
        Attribute("key_dim", "int", "Dk"),
        Attribute("value_dim", "int", "Dv"),
        Attribute("conv_width", "int", "taps of the convolution"),
        Attribute("norm_eps", "float", "epsilon of the output norm"),
    ),
    outputs=(
        Tensor("y", "[T, Hv Dv]", ACTIVATION, "mixer output"),
        Tensor("conv_out", "[S, channels, width-1]", ACTIVATION, "state", state=True),
        Tensor("rec_out", "[S, Hv, Dk, Dv]", ("float32",), "state", state=True),
    ),
    reference=reference,
)
