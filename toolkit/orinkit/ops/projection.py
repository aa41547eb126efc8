# SPDX-License-Identifier: Apache-2.0
"""OrinInt4Gemm and OrinLinear: y = act(norm(x) W^T + bias) + residual; they differ only in how W is stored."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from orinkit import int4
from orinkit.errors import GraphError
from orinkit.ops.description import ACTIVATION, Array, Attribute, Float32, Int32, Op, Tensor, rms_norm, silu

BLOCK_ROWS = 8192
"""Rows of W that are wide at a time: a head of a few hundred thousand rows would take gigabytes."""


def _project(
    x: Array,
    n: int,
    weight_rows: Callable[[slice], Float32],
    norm: Array | None,
    bias: Array | None,
    residual: Array | None,
    rows: Int32 | None,
    activation: str,
    norm_eps: float,
    float32_output: int,
    columns: Int32 | None = None,
) -> tuple[Array]:
    out_dtype = np.dtype(np.float32) if float32_output else x.dtype
    wanted = np.ones(x.shape[0], bool) if rows is None else rows >= 0
    picked = x if rows is None else x[np.where(wanted, rows, 0)]
    wide = picked.astype(np.float32)
    if norm is not None:
        wide = rms_norm(wide, norm, norm_eps)
    if columns is not None:
        wide = wide[:, columns]
    blocks = (slice(start, min(start + BLOCK_ROWS, n)) for start in range(0, n, BLOCK_ROWS))
    y = np.concatenate([wide @ weight_rows(block).T for block in blocks], axis=1)
    if bias is not None:
        y = y + bias.astype(np.float32)
    if activation == "swiglu":
        y = silu(y[:, 0::2]) * y[:, 1::2]
    if residual is not None:
        y = y + residual.astype(np.float32)
    return (np.where(wanted[:, None], y, np.float32(0)).astype(out_dtype),)


def int4_gemm(
    x: Array,
    weight: Array,
    scales: Array,
    zeros: Array | None,
    norm: Array | None,
    bias: Array | None,
    residual: Array | None,
    rows: Int32 | None,
    columns: Int32 | None,
    *,
    n: int,
    k: int,
    group_size: int,
    activation: str,
    norm_eps: float,
    float32_output: int,
) -> tuple[Array]:
    """Reference of OrinInt4Gemm in float32."""
    if scales.shape != (n, k // group_size):
        raise GraphError(f"OrinInt4Gemm: expected scales of {(n, k // group_size)}, found {scales.shape}")
    if columns is not None and columns.shape != (k,):
        raise GraphError(f"OrinInt4Gemm: expected columns of {(k,)}, found {columns.shape}")

    def rows_of(block: slice) -> Float32:
        return int4.dequantise(weight[block], scales[block], None if zeros is None else zeros[block])

    return _project(x, n, rows_of, norm, bias, residual, rows, activation, norm_eps, float32_output, columns)


def linear(
    x: Array,
    weight: Array,
    scale: Array | None,
    norm: Array | None,
    bias: Array | None,
    residual: Array | None,
    rows: Int32 | None,
    *,
    n: int,
    k: int,
    activation: str,
    norm_eps: float,
    float32_output: int,
) -> tuple[Array]:
    """Reference of OrinLinear in float32."""
    if weight.shape != (n, k):
        raise GraphError(f"OrinLinear: expected a weight of {(n, k)}, found {weight.shape}")

    def rows_of(block: slice) -> Float32:
        wide = weight[block].astype(np.float32)
        return wide if scale is None else wide * scale[block].astype(np.float32)[:, None]

    return _project(x, n, rows_of, norm, bias, residual, rows, activation, norm_eps, float32_output)


_X = Tensor("x", "[T, K]", ACTIVATION, "activations")
_TAIL = (
    Tensor("norm", "[K]", ("float32",), "RMSNorm in front of the product, effective weight", optional=True),
    Tensor("bias", "[N]", ACTIVATION, "added to the product", optional=True),
    Tensor("residual", "[T, N']", ACTIVATION, "added last", optional=True),
    Tensor("rows", "[R]", ("int32",), "rows of x to use, T' = R; -1 = skipped, output unspecified", optional=True),
)
_SHAPE = (Attribute("n", "int", "N, rows of the weight"), Attribute("k", "int", "K, columns of the weight"))
_BEHAVIOUR = (
    Attribute("activation", "string", "none, or swiglu: rows of W are interleaved gate, up and N' = N/2"),
    Attribute("norm_eps", "float", "epsilon of the RMSNorm"),
    Attribute("float32_output", "int", "1: y is float32 (logits), else the type of x"),
)
_Y = Tensor("y", "[T', N']", ACTIVATION, "N' = N, or N/2 for swiglu")

INT4_GEMM = Op(
    name="OrinInt4Gemm",
    doc="Product with an INT4 matrix in int4.py's canonical layout, with the norm in front and what follows behind.",
    inputs=(
        _X,
        Tensor("weight", "[N, K/2]", ("int8",), "packed 0..15, low nibble first along K"),
        Tensor("scales", "[N, K/G]", ("float16",), "any sign"),
        Tensor("zeros", "[N, ceil(K/G/2)]", ("int8",), "packed zero points; absent = 8", optional=True),
        *_TAIL,
        Tensor("columns", "[K]", ("int32",), "columns of the normed x that W's columns stand for", optional=True),
    ),
    attributes=(*_SHAPE, Attribute("group_size", "int", "G"), *_BEHAVIOUR),
    outputs=(_Y,),
    reference=int4_gemm,
)

LINEAR = Op(
    name="OrinLinear",
    doc="Product with a matrix that stays wide (float) or has int8 rows with a scale each.",
    inputs=(
        _X,
        Tensor("weight", "[N, K]", ("float16", "float32", "int8"), "rows of W"),
        Tensor("scale", "[N]", ("float16",), "with an int8 weight: W = weight * scale", optional=True),
        *_TAIL,
    ),
    attributes=(*_SHAPE, *_BEHAVIOUR),
    outputs=(_Y,),
    reference=linear,
)
