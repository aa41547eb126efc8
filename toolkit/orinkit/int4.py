# SPDX-License-Identifier: Apache-2.0
"""The INT4 layout; nobody else packs, unpacks or permutes.

Canonical layout of a matrix W [N, K] with groups of G along K:

    weight int8    [N, K/2]            byte j of a row holds q[2j] in its low nibble and q[2j+1] in its high nibble
    scales float16 [N, K/G]            any sign
    zeros  int8    [N, ceil(K/G/2)]    packed as the weights are; absent = 8 everywhere

    W[n, k] = (q[n, k] - zero[n, k // G]) * scale[n, k // G],  q and zero in 0..15

Bytes that hold nibbles are int8, not uint8: TensorRT's parser widens uint8 initializers to int32.

Kernel layout: the same bytes in the order in which the GEMM kernels read them (plugins/kernels/int4_gemm). Three steps:

1. The nibbles of each 32-bit word, eight neighbouring columns, go to bit-reversed places (0 4 2 6 1 5 3 7), so that
   masks give pairs of columns in the two halves of a register.
2. A chunk is 128 columns of one row: 16 words, 4 for each step of 32 columns. They are transposed, so that one of the
   four lanes that share a row in a tensor-core operand finds its four words together, one 16-byte load:

       word of the chunk     0  1  2  3 | 4  5  6  7 | 8  9 10 11 | 12 13 14 15     canonical: 32 columns per group
       becomes               0  4  8 12 | 1  5  9 13 | 2  6 10 14 |  3  7 11 15     kernel: 16 bytes per lane

   The last chunk of a row has 32, 64 or 96 columns where K is no multiple of 128: 4, 8 or 12 bytes per lane.
3. A stripe is 8 rows (the last one has what is left). Its rows are interleaved: chunk by chunk for the weights, group
   by group for the scales, byte by byte for the zero points.

       stripe of weights   [K/128 chunks][8 rows][4 lanes][16 bytes]     512 bytes = one load of a warp
       stripe of scales    [K/G groups][8 rows]
       stripe of zeros     [ceil(K/G/2) pairs of groups][8 rows]
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from orinkit.errors import ConfigError

_Item = TypeVar("_Item", np.int8, np.uint32, np.float16)

GROUP_SIZES = (32, 64, 128)
"""Group sizes that the ops accept."""

ZERO = 8
"""Zero point of a matrix that stores none."""

STRIPE_ROWS = 8
CHUNK_COLUMNS = 128
_WORD_COLUMNS = 8
_LANES = 4
_BIT_REVERSED = (0, 4, 2, 6, 1, 5, 3, 7)


def num_groups(k: int, group_size: int) -> int:
    """Groups in a row of `k` weights. Raises ConfigError when `k` is no multiple of the group size."""
    if group_size not in GROUP_SIZES:
        raise ConfigError(f"group_size: expected one of {GROUP_SIZES}, found {group_size}")
    if k % group_size:
        fitting = [size for size in GROUP_SIZES if k % size == 0]
        advice = f"use group_size {fitting[-1]}" if fitting else "keep this matrix in float16 or int8"
        raise ConfigError(f"expected rows of a multiple of group_size={group_size} weights, found {k}; {advice}")
    return k // group_size


def quantise(
    weight: NDArray[np.float32], scales: NDArray[np.float16], zeros: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Nearest integers 0..15 of `weight` [N, K] for `scales` and `zeros` [N, K/G]; ties go to the even q - zero.

    `zeros` are 0..15, not packed; None = 8 everywhere.
    """
    n, k = weight.shape
    grouped = weight.reshape(n, scales.shape[1], -1)
    scaled = grouped / scales.astype(np.float32)[:, :, None]
    offset = np.float32(ZERO) if zeros is None else zeros.astype(np.float32)[:, :, None]
    return np.asarray(np.clip(np.rint(scaled) + offset, 0, 15), np.uint8).reshape(n, k)


def pack(nibbles: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Values 0..15 [N, M] as int8 [N, ceil(M/2)], low nibble first; an odd M is filled up with 0."""
    if nibbles.shape[1] % 2:
        nibbles = np.pad(nibbles, ((0, 0), (0, 1)))
    return (nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)).view(np.int8)


def unpack(packed: NDArray[np.int8], columns: int) -> NDArray[np.uint8]:
    """The values 0..15 [N, columns] of `packed` int8 [N, ceil(columns/2)]."""
    raw = packed.view(np.uint8)
    values = np.empty((raw.shape[0], raw.shape[1] * 2), np.uint8)
    values[:, 0::2] = raw & 15
    values[:, 1::2] = raw >> 4
    return values[:, :columns]


def dequantise(
    packed: NDArray[np.int8], scales: NDArray[np.float16], zeros: NDArray[np.int8] | None = None
) -> NDArray[np.float32]:
    """The float32 matrix [N, K] that `packed` [N, K/2], `scales` [N, K/G] and `zeros` [N, ceil(K/G/2)] stand for."""
    (n, groups), k = scales.shape, 2 * packed.shape[1]
    values = unpack(packed, k).astype(np.float32).reshape(n, groups, k // groups)
    offset = np.float32(ZERO) if zeros is None else unpack(zeros, groups).astype(np.float32)[:, :, None]
    return np.asarray((values - offset) * scales.astype(np.float32)[:, :, None], np.float32).reshape(n, k)


def to_kernel_layout(
    weight: NDArray[np.int8], scales: NDArray[np.float16], zeros: NDArray[np.int8] | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float16], NDArray[np.int8] | None]:
    """The canonical matrix in the kernel layout: arrays of the same shapes and types whose bytes are permuted.

    weight int8 [N, K/2], scales float16 [N, K/G], zeros int8 [N, ceil(K/G/2)] or None; K a multiple of 32.
    """
    return _permuted(weight, scales, zeros, to_kernel=True)


def from_kernel_layout(
    weight: NDArray[np.int8], scales: NDArray[np.float16], zeros: NDArray[np.int8] | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float16], NDArray[np.int8] | None]:
    """Undo `to_kernel_layout`; shapes and types as there."""
    return _permuted(weight, scales, zeros, to_kernel=False)


def _permuted(
    weight: NDArray[np.int8], scales: NDArray[np.float16], zeros: NDArray[np.int8] | None, to_kernel: bool
) -> tuple[NDArray[np.int8], NDArray[np.float16], NDArray[np.int8] | None]:
    if weight.shape[1] * 2 % 32:
        raise ConfigError(f"expected rows of a multiple of 32 weights, found {weight.shape[1] * 2}; pad K at export")
    words = _swap_nibbles(np.ascontiguousarray(weight).view(np.uint32))
    return (
        _reorder(words, _weight_order(*words.shape), to_kernel).view(np.int8),
        _reorder(scales, _interleaved(*scales.shape), to_kernel),
        None if zeros is None else _reorder(zeros, _interleaved(*zeros.shape), to_kernel),
    )


def _swap_nibbles(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Eight nibbles of each word in bit-reversed order, which is its own inverse."""
    out = np.zeros_like(words)
    for place, column in enumerate(_BIT_REVERSED):
        out |= ((words >> np.uint32(4 * column)) & np.uint32(15)) << np.uint32(4 * place)
    return out


def _weight_order(n: int, row_words: int) -> NDArray[np.int64]:
    """For each word of the kernel layout its index in the canonical matrix [n, row_words]."""
    chunk_words = CHUNK_COLUMNS // _WORD_COLUMNS
    whole = row_words // chunk_words * chunk_words
    index = np.arange(n * row_words).reshape(n, row_words)
    stripes = []
    for rows in np.split(index, range(STRIPE_ROWS, n, STRIPE_ROWS)):
        chunks = rows[:, :whole].reshape(len(rows), -1, chunk_words // _LANES, _LANES)
        rest = rows[:, whole:].reshape(len(rows), -1, _LANES)
        stripes += [chunks.transpose(1, 0, 3, 2).reshape(-1), rest.transpose(0, 2, 1).reshape(-1)]
    return np.concatenate(stripes)


def _interleaved(n: int, columns: int) -> NDArray[np.int64]:
    """For each element of the kernel layout its index in the canonical array [n, columns]."""
    index = np.arange(n * columns).reshape(n, columns)
    return np.concatenate([rows.T.reshape(-1) for rows in np.split(index, range(STRIPE_ROWS, n, STRIPE_ROWS))])


def _reorder(array: NDArray[_Item], order: NDArray[np.int64], to_kernel: bool) -> NDArray[_Item]:
    flat = np.ascontiguousarray(array).reshape(-1)
    out = np.empty_like(flat)
    if to_kernel:
        out[:] = flat[order]
    else:
        out[order] = flat
    return out.reshape(array.shape)
