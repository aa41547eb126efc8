# SPDX-License-Identifier: Apache-2.0
"""The kernel layout of INT4 matrices, checked element by element against the drawing in int4.py."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from orinkit import int4
from orinkit.errors import ConfigError

SHAPES = [
    (8, 128, 128),
    (16, 384, 64),
    (13, 256, 32),
    (9, 192, 64),
    (1, 32, 32),
    (7, 96, 32),
    (24, 160, 32),
    (66, 128, 32),
]


def matrix(n: int, k: int, group: int) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.uint8]]:
    """Values 0..15 [n, k], scales that are all different, zero points [n, k / group]."""
    rng = np.random.default_rng(n * k)
    groups = k // group
    scales = rng.permutation(n * groups).astype(np.uint16).view(np.float16).reshape(n, groups)
    return rng.integers(0, 16, (n, k)).astype(np.uint8), scales, rng.integers(0, 16, (n, groups)).astype(np.uint8)


def place(n: int, k: int, row: int, column: int) -> int:
    """Nibble of the kernel layout that holds W[row, column]."""
    stripe, chunk = row // 8, column // 128
    rows, words = min(8, n - 8 * stripe), min(4, k // 32 - 4 * chunk)
    step, lane, inside = column % 128 // 32, column % 32 // 8, column % 8
    word = ((row % 8) * 4 + lane) * words + step
    bit_reversed = (inside & 1) << 2 | (inside & 2) | inside >> 2
    return 8 * stripe * k + rows * 128 * chunk + 8 * word + bit_reversed


@pytest.mark.parametrize(("n", "k", "group"), SHAPES)
def test_every_weight_lies_where_the_drawing_says(n: int, k: int, group: int) -> None:
    values, scales, _ = matrix(n, k, group)
    weight, _, _ = int4.to_kernel_layout(int4.pack(values), scales)
    assert weight.shape == (n, k // 2)
    assert weight.dtype == np.int8
    found = int4.unpack(weight.reshape(1, -1), n * k)[0]
    places = [place(n, k, row, column) for row in range(n) for column in range(k)]
    assert sorted(places) == list(range(n * k))
    assert np.array_equal(found[places], values.reshape(-1))


@pytest.mark.parametrize(("n", "k", "group"), SHAPES)
def test_scales_and_zero_points_are_interleaved_by_stripes(n: int, k: int, group: int) -> None:
    values, scales, zeros = matrix(n, k, group)
    packed = int4.pack(zeros)
    _, kernel_scales, kernel_zeros = int4.to_kernel_layout(int4.pack(values), scales, packed)
    assert kernel_zeros is not None
    for canonical, kernel in ((scales, kernel_scales), (packed, kernel_zeros)):
        assert (kernel.shape, kernel.dtype) == (canonical.shape, canonical.dtype)
        columns = canonical.shape[1]
        for row in range(n):
            rows = min(8, n - row // 8 * 8)
            at = row // 8 * 8 * columns + np.arange(columns) * rows + row % 8
            assert kernel.reshape(-1)[at].tobytes() == canonical[row].tobytes()


@pytest.mark.parametrize(("n", "k", "group"), SHAPES)
def test_from_kernel_layout_undoes_it(n: int, k: int, group: int) -> None:
    values, scales, zeros = matrix(n, k, group)
    canonical = (int4.pack(values), scales, int4.pack(zeros))
    again = int4.from_kernel_layout(*int4.to_kernel_layout(*canonical))
    assert [a.tobytes() for a in again if a is not None] == [a.tobytes() for a in canonical]


def test_absent_zero_points_stay_absent() -> None:
    values, scales, _ = matrix(8, 128, 128)
    assert int4.to_kernel_layout(int4.pack(values), scales)[2] is None


def test_the_arguments_are_kept() -> None:
    values, scales, zeros = matrix(9, 192, 64)
    canonical = (int4.pack(values), scales.copy(), int4.pack(zeros))
    before = [array.tobytes() for array in canonical]
    for array in int4.to_kernel_layout(*canonical):
        assert array is not None
        array.view(np.uint8)[:] = 0
    assert [array.tobytes() for array in canonical] == before


def test_rows_that_are_no_multiple_of_32_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 32 weights, found 40"):
        int4.to_kernel_layout(np.zeros((8, 20), np.int8), np.zeros((8, 1), np.float16))
