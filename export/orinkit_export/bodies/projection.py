# SPDX-License-Identifier: Apache-2.0
"""OrinInt4Gemm and OrinLinear in standard operators and MatMulNBits."""

from __future__ import annotations

import onnx_ir as ir

from orinkit_export.bodies.builder import MICROSOFT, Body

FLOAT32_ACTIVATIONS = 1
"""MatMulNBits accuracy_level that keeps activations in float32; 4 would quantise them to int8 without a word."""

INT8_BLOCK = 32
"""MatMulNBits wants scales per block; an int8 row's one scale is repeated for blocks of this size."""


def int4_gemm(
    body: Body, *, n: int, k: int, group_size: int, activation: str, norm_eps: float, float32_output: int
) -> list[ir.Value]:
    """The canonical INT4 bytes are those of MatMulNBits."""
    x = _activations(body, norm_eps)
    if "columns" in body:
        x = body.op("Gather", x, body["columns"], axis=1)
    packed = body.cast(body["weight"], ir.DataType.UINT8)
    weight = body.reshape(packed, n, k // group_size, group_size // 2)
    zeros = body.cast(body["zeros"], ir.DataType.UINT8) if "zeros" in body else None
    product = body.op(
        "MatMulNBits",
        x,
        weight,
        body.float32(body["scales"]),
        zeros,
        domain=MICROSOFT,
        N=n,
        K=k,
        bits=4,
        block_size=group_size,
        accuracy_level=FLOAT32_ACTIVATIONS,
    )
    return _finish(body, product, n, activation, float32_output)


def linear(body: Body, *, n: int, k: int, activation: str, norm_eps: float, float32_output: int) -> list[ir.Value]:
    """A wide weight by Gemm; an int8 one by MatMulNBits, which stores byte + 128."""
    x = _activations(body, norm_eps)
    if "scale" not in body:
        return _finish(body, body.op("Gemm", x, body.float32(body["weight"]), transB=1), n, activation, float32_output)
    shifted = body.op("Add", body.cast(body["weight"], ir.DataType.INT32), body.const(128, "int32"))
    blocks = k // INT8_BLOCK
    scale = body.op("Expand", body.reshape(body.float32(body["scale"]), n, 1), body.ints(n, blocks))
    product = body.op(
        "MatMulNBits",
        x,
        body.reshape(body.cast(shifted, ir.DataType.UINT8), n, blocks, INT8_BLOCK),
        scale,
        domain=MICROSOFT,
        N=n,
        K=k,
        bits=8,
        block_size=INT8_BLOCK,
        accuracy_level=FLOAT32_ACTIVATIONS,
    )
    return _finish(body, product, n, activation, float32_output)


def _activations(body: Body, norm_eps: float) -> ir.Value:
    x = body["x"]
    if "rows" in body:
        x = body.op("Gather", x, body["rows"], axis=0)
    x = body.float32(x)
    return body.rms_norm(x, body["norm"], norm_eps) if "norm" in body else x


def _finish(body: Body, y: ir.Value, n: int, activation: str, float32_output: int) -> list[ir.Value]:
    if "bias" in body:
        y = body.op("Add", y, body.float32(body["bias"]))
    if activation == "swiglu":
        gate, up = body.split(body.reshape(y, -1, n // 2, 2), [1, 1], axis=2)
        last = body.ints(-1)
        y = body.op("Mul", body.silu(body.op("Squeeze", gate, last)), body.op("Squeeze", up, last))
    if "residual" in body:
        y = body.op("Add", y, body.float32(body["residual"]))
    return [y if float32_output else body.op("CastLike", y, body["x"])]
