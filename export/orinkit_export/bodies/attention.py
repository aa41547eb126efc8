# SPDX-License-Identifier: Apache-2.0
"""OrinAttention in standard operators, for a step of one sequence."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from orinkit_export.bodies.builder import Body


def build(
    body: Body,
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
) -> list[ir.Value]:
    """Write the new rows, read the rows in use, attend."""
    past = body.int64(body["past_lens"])
    tokens = body.dim(body["qkv"], 0)
    positions = body.op("Add", body.row_numbers(tokens), past)
    sizes = [heads * head_dim, gate * heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    parts = body.split(body.float32(body["qkv"]), sizes, axis=1)
    q, k, v = (body.reshape(part, 0, -1, head_dim) for part in (parts[0], parts[-2], parts[-1]))
    if "q_norm" in body:
        q, k = body.rms_norm(q, body["q_norm"], norm_eps), body.rms_norm(k, body["k_norm"], norm_eps)
    q, k = (_rotate(body, part, positions, head_dim, rotary_dim) for part in (q, k))
    kv_out = _append(body, k, v, positions, kv_heads)
    length = body.op("Add", past, tokens)
    rows = body.dim(body["kv"], 3)
    held_count = body.op("Min", length, rows)
    keys, values = _in_use(body, kv_out, held_count)
    visible = _visible(body, positions, length, rows, held_count, window)
    grouped = body.op("Transpose", body.reshape(q, 0, kv_heads, heads // kv_heads, head_dim), perm=[1, 2, 0, 3])
    scores = body.op("MatMul", grouped, body.op("Transpose", keys, perm=[0, 1, 3, 2]))
    scores = body.op("Mul", scores, body.scalar(scale))
    if softcap:
        cap = body.scalar(softcap)
        scores = body.op("Mul", body.op("Tanh", body.op("Div", scores, cap)), cap)
    weights = body.op("Softmax", body.op("Where", visible, scores, body.scalar(-np.inf)), axis=-1)
    mixed = body.op("Transpose", body.op("MatMul", weights, values), perm=[2, 0, 1, 3])
    y = body.reshape(mixed, -1, heads * head_dim)
    if gate:
        y = body.op("Mul", y, body.op("Sigmoid", parts[1]))
    return [body.op("CastLike", y, body["qkv"]), kv_out]


def _rotate(body: Body, x: ir.Value, positions: ir.Value, head_dim: int, rotary_dim: int) -> ir.Value:
    """x [T, heads, D]: rotate-half of its first `rotary_dim` dimensions."""
    middle = body.ints(1)
    cos, sin = (
        body.op("Unsqueeze", body.op("Gather", body[name], positions, axis=0), middle) for name in ("cos", "sin")
    )
    half = rotary_dim // 2
    first, second, *rest = body.split(x, [half, half, head_dim - rotary_dim], axis=2)
    turned = body.op("Sub", body.op("Mul", first, cos), body.op("Mul", second, sin))
    crossed = body.op("Add", body.op("Mul", second, cos), body.op("Mul", first, sin))
    return body.op("Concat", turned, crossed, *rest, axis=2)


def _append(body: Body, k: ir.Value, v: ir.Value, positions: ir.Value, kv_heads: int) -> ir.Value:
    """Scatter k and v [T, Hkv, D] to rows position mod C of the sequence's slot."""
    first = body.ints(0)
    both = body.op("Concat", body.op("Unsqueeze", k, first), body.op("Unsqueeze", v, first), axis=0)
    updates = body.op("CastLike", body.op("Transpose", both, perm=[0, 2, 1, 3]), body["kv"])
    plane, head = np.meshgrid(np.arange(2), np.arange(kv_heads), indexing="ij")
    fixed = np.stack([np.zeros_like(plane), plane, head, np.zeros_like(plane)], axis=-1)[:, :, None]  # [2, Hkv, 1, 4]
    row = body.op("Mod", positions, body.dim(body["kv"], 3))
    moving = body.op("Mul", body.reshape(row, 1, 1, -1, 1), body.ints(0, 0, 0, 1))
    slot = body.op("Mul", body.int64(body["slots"]), body.ints(1, 0, 0, 0))
    indices = body.op("Add", body.op("Add", body.const(fixed, np.int64), slot), moving)
    return body.op("ScatterND", body["kv"], indices, updates)


def _in_use(body: Body, kv: ir.Value, count: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Keys and values float32 [Hkv, 1, count, D] of the slot, by one Slice: unused rows cost nothing."""
    slot = body.int64(body["slots"])
    starts = body.op("Concat", slot, body.ints(0), axis=0)
    ends = body.op("Concat", body.op("Add", slot, body.ints(1)), count, axis=0)
    part = body.float32(body.op("Slice", kv, starts, ends, body.ints(0, 3)))
    keys, values = body.split(body.op("Squeeze", part, body.ints(0)), [1, 1], axis=0)
    return (body.op("Transpose", keys, perm=[1, 0, 2, 3]), body.op("Transpose", values, perm=[1, 0, 2, 3]))


def _visible(
    body: Body, positions: ir.Value, length: ir.Value, rows: ir.Value, count: ir.Value, window: int
) -> ir.Value:
    """bool [T, count]: which held rows a token sees."""
    last = body.op("Sub", length, body.ints(1))
    held = body.op("Sub", last, body.op("Mod", body.op("Sub", last, body.row_numbers(count)), rows))
    token = body.reshape(positions, -1, 1)
    visible = body.op("LessOrEqual", held, token)
    if window:
        visible = body.op("And", visible, body.op("Greater", held, body.op("Sub", token, body.ints(window))))
    return visible
