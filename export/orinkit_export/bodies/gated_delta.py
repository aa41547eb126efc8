# SPDX-License-Identifier: Apache-2.0
"""OrinGatedDelta in standard operators, CausalConvWithState and LinearAttention, for a step of one sequence."""

from __future__ import annotations

import onnx_ir as ir

from orinkit.ops.gated_delta import L2_EPS
from orinkit_export.bodies.builder import MICROSOFT, Body


def build(
    body: Body,
    *,
    key_heads: int,
    value_heads: int,
    key_dim: int,
    value_dim: int,
    conv_width: int,
    norm_eps: float,
) -> list[ir.Value]:
    """Convolution, recurrence and gated norm; float32 inside."""
    keys, values = key_heads * key_dim, value_heads * value_dim
    mixed, z = body.split(body.float32(body["qkvz"]), [2 * keys + values, values], axis=1)
    convolved, conv_out = _convolve(body, mixed, 2 * keys + values, conv_width)
    q, k, v = body.split(convolved, [keys, keys, values], axis=2)
    q, k = (_heads(body, part, key_heads, key_dim, value_heads) for part in (q, k))
    b, a = body.split(body.float32(body["ba"]), [value_heads, value_heads], axis=1)
    beta = body.op("Sigmoid", b)
    rate = body.op("Neg", body.op("Exp", body["a_log"]))
    decay = body.op("Mul", rate, body.op("Softplus", body.op("Add", a, body["dt_bias"])))
    front = body.ints(0)
    y, present = body.ops(
        "LinearAttention",
        q,
        k,
        v,
        _state(body, "rec"),
        body.op("Unsqueeze", decay, front),
        body.op("Unsqueeze", beta, front),
        outputs=2,
        domain=MICROSOFT,
        q_num_heads=value_heads,
        kv_num_heads=value_heads,
        scale=key_dim**-0.5,
        update_rule="gated_delta",
    )
    normed = body.rms_norm(body.reshape(y, -1, value_heads, value_dim), body["norm"], norm_eps)
    gated = body.op("Mul", body.reshape(normed, -1, values), body.silu(z))
    return [body.op("CastLike", gated, body["qkvz"]), conv_out, _store(body, "rec", present)]


def _convolve(body: Body, mixed: ir.Value, channels: int, width: int) -> tuple[ir.Value, ir.Value]:
    """silu of the causal convolution [1, T, channels], and the updated conv state."""
    past = body.op("Transpose", body.float32(_state(body, "conv")), perm=[0, 2, 1])
    convolved, present = body.ops(
        "CausalConvWithState",
        body.op("Unsqueeze", mixed, body.ints(0)),
        body.reshape(body.float32(body["conv_weight"]), channels, 1, width),
        None,
        past,
        outputs=2,
        domain=MICROSOFT,
        activation="silu",
        channels_last=1,
    )
    return convolved, _store(body, "conv", body.op("Transpose", present, perm=[0, 2, 1]))


def _heads(body: Body, x: ir.Value, key_heads: int, key_dim: int, value_heads: int) -> ir.Value:
    """x [1, T, Hk Dk]: unit vectors, each key head repeated for its value heads: [1, T, Hv Dk]."""
    heads = body.reshape(x, -1, key_heads, 1, key_dim)
    squares = body.op("ReduceSum", body.op("Mul", heads, heads), body.ints(-1))
    unit = body.op("Div", heads, body.op("Sqrt", body.op("Add", squares, body.scalar(float(L2_EPS)))))
    if value_heads != key_heads:
        unit = body.op("Expand", unit, body.ints(1, 1, value_heads // key_heads, 1))
    return body.reshape(unit, 1, -1, value_heads * key_dim)


def _state(body: Body, name: str) -> ir.Value:
    """The sequence's state [1, ...], zero when the sequence begins with this step."""
    state = body.op("Gather", body[name], body.int64(body["slots"]), axis=0)
    fresh = body.op("Equal", body.int64(body["past_lens"]), body.ints(0))
    return body.op("Where", fresh, body.op("CastLike", body.scalar(0.0), body[name]), state)


def _store(body: Body, name: str, present: ir.Value) -> ir.Value:
    indices = body.op("Unsqueeze", body.int64(body["slots"]), body.ints(1))
    return body.op("ScatterND", body[name], indices, body.op("CastLike", present, body[name]))
