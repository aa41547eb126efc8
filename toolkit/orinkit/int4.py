# SPDX-License-Identifier: Apache-2.0
"""The INT4 layout; nobody else packs, unpacks or permutes.

Canonical layout of a matrix W [N, K] with groups of G along K:

    weight int8    [N, K/2]            byte j of a row holds q[2j] in its low nibble and q[2j+1] in its high nibble
    scales float16 [N, K/G]            any sign
    zeros  int8    [N, ceil(K/G/2)]    packed as the weights are; absent = 8 everywhere

    W[n, k] = (q[n, k] - zero[n, k // G]) * scale[n, k // G],  q and zero in 0..15

Bytes that hold nibbles are int8, not uint8: TensorRT's parser widens uint8 initializers to int32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orinkit.errors import ConfigError

GROUP_SIZES = (32, 64, 128)
"""Group sizes that the ops accept."""

ZERO = 8
"""Zero point of a matrix that stores none."""


def num_groups(k: int, group_size: int) -> int:
    """Groups in a row of `k` weights. Raises ConfigError when `k` is no multiple of the group size."""
    if group_size not in GROUP_SIZES:
        raise ConfigError(f"group_size: expected one of {GROUP_SIZES}, found {group_size}")
    if k % group_size:
        fitting = [size for size in GROUP_SIZES if k % size == 0]
        advice = f"use group_size {fitting[-1]}" if fitting else "keep this matrix in float16 or int8"
        raise ConfigError(f"expected rows of a multiple of group_size={group_size} weights, found {k}; {advice}")
    return k // group_size


def quantise(weight: NDArray[np.float32], scales: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Nearest integers 0..15 of `weight` [N, K] for `scales` [N, K/G] and zero point 8; ties go to the even integer."""
    n, k = weight.shape
    grouped = weight.reshape(n, scales.shape[1], -1)
    scaled = grouped / scales.astype(np.float32)[:, :, None]
    return np.asarray(np.clip(np.rint(scaled) + ZERO, 0, 15), np.uint8).reshape(n, k)


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
