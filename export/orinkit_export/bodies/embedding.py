# SPDX-License-Identifier: Apache-2.0
"""OrinEmbedding in standard operators."""

from __future__ import annotations

import onnx_ir as ir

from orinkit.int4 import ZERO
from orinkit_export.bodies.builder import Body


def unpack(body: Body, packed: ir.Value, hidden: int) -> ir.Value:
    """int8 [T, H/2] to float32 [T, H], low nibble first."""
    raw = body.cast(packed, ir.DataType.UINT8)
    mask, four = body.op("Constant", value=_byte(15)), body.op("Constant", value=_byte(4))
    low = body.op("BitwiseAnd", raw, mask)
    high = body.op("BitShift", raw, four, direction="RIGHT")
    last = body.ints(-1)
    pairs = body.op("Concat", body.op("Unsqueeze", low, last), body.op("Unsqueeze", high, last), axis=-1)
    return body.op("Sub", body.float32(body.reshape(pairs, -1, hidden)), body.scalar(ZERO))


def _byte(value: int) -> ir.TensorProtocol:
    return ir.tensor([value], dtype=ir.DataType.UINT8)


def build(body: Body, *, hidden: int, group_size: int, float32_output: int) -> list[ir.Value]:
    """Gather, dequantise, zero the rows of unknown ids."""
    ids, table = body.int64(body["ids"]), body["table"]
    zero = body.const(0, "int64")
    known = body.op("And", body.op("GreaterOrEqual", ids, zero), body.op("Less", ids, body.dim(table, 0)))
    picked = body.op("Where", known, ids, zero)
    rows = body.op("Gather", table, picked, axis=0)
    if group_size:
        grouped = body.reshape(unpack(body, rows, hidden), -1, hidden // group_size, group_size)
        scale = body.float32(body.op("Gather", body["scale"], picked, axis=0))
        rows = body.reshape(body.op("Mul", grouped, body.op("Unsqueeze", scale, body.ints(-1))), -1, hidden)
    elif "scale" in body:
        scale = body.float32(body.op("Gather", body["scale"], picked, axis=0))
        rows = body.op("Mul", body.float32(rows), body.op("Unsqueeze", scale, body.ints(-1)))
    kept = body.op("Where", body.op("Unsqueeze", known, body.ints(-1)), body.float32(rows), body.scalar(0.0))
    return [body.cast(kept, ir.DataType.FLOAT if float32_output else ir.DataType.FLOAT16)]
