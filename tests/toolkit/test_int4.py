# SPDX-License-Identifier: Apache-2.0
"""The INT4 layout, checked against the formula written out bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orinkit import int4
from orinkit.errors import ConfigError

N, K, GROUP = 6, 96, 32


def nibbles(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 16, shape).astype(np.uint8)


def scales(seed: int, *shape: int) -> NDArray[np.float16]:
    """Both signs."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def words(values: NDArray[Any]) -> NDArray[np.uint32]:
    """Eight values per 32-bit word, element 8c+i in bits 4i to 4i+3: compressed-tensors' order."""
    shifts = np.arange(8, dtype=np.uint32) * np.uint32(4)
    grouped = values.astype(np.uint32).reshape(len(values), -1, 8)
    return np.asarray(np.bitwise_or.reduce(grouped << shifts, axis=2), np.uint32)


@pytest.mark.parametrize("columns", [1, 2, 3, 7, 8, 31, 64])
def test_unpack_undoes_pack(columns: int) -> None:
    values = nibbles(columns, N, columns)
    packed = int4.pack(values)
    assert packed.dtype == np.int8
    assert packed.shape == (N, (columns + 1) // 2)
    assert np.array_equal(int4.unpack(packed, columns), values)


def test_an_odd_row_is_filled_up_with_zero() -> None:
    packed = int4.pack(np.full((2, 3), 15, np.uint8))
    assert int4.unpack(packed, 4)[:, 3].tolist() == [0, 0]


def test_element_2j_is_the_low_nibble_of_byte_j() -> None:
    assert int4.pack(np.array([[0x3, 0xA, 0xF, 0x0]], np.uint8)).view(np.uint8).tolist() == [[0xA3, 0x0F]]


def test_bytes_are_the_little_endian_words_of_compressed_tensors() -> None:
    values = nibbles(1, N, K)
    assert int4.pack(values).tobytes() == words(values).astype("<u4").tobytes()


def test_pack_keeps_its_argument() -> None:
    values = nibbles(2, N, 5)
    before = values.copy()
    int4.unpack(int4.pack(values), 5)[:] = 7
    assert np.array_equal(values, before)


@pytest.mark.parametrize("k", [GROUP, 3 * GROUP, 4 * GROUP])
@pytest.mark.parametrize("with_zeros", [False, True])
def test_dequantise(k: int, with_zeros: bool) -> None:
    """Weight by weight, from the bytes; 3 groups leave the last byte of the zero points half empty."""
    groups = k // GROUP
    packed, s = int4.pack(nibbles(3, N, k)), scales(4, N, groups)
    zeros = int4.pack(nibbles(5, N, groups)) if with_zeros else None
    assert (s < 0).any()
    found = int4.dequantise(packed, s, zeros)
    assert found.dtype == np.float32
    assert found.shape == (N, k)
    for row in range(N):
        for column in range(k):
            q = (int(packed[row, column // 2]) & 255) >> (4 * (column % 2)) & 15
            group = column // GROUP
            zero = 8 if zeros is None else (int(zeros[row, group // 2]) & 255) >> (4 * (group % 2)) & 15
            assert found[row, column] == np.float32(q - zero) * np.float32(s[row, group])


def test_quantise_takes_the_nearest_level() -> None:
    weight = (np.random.default_rng(6).standard_normal((N, K)) * 2).astype(np.float32)
    s = np.where(scales(7, N, K // GROUP) < 0, np.float16(-0.25), np.float16(0.25)).astype(np.float16)
    found = int4.dequantise(int4.pack(int4.quantise(weight, s)), s)
    levels = (np.arange(16)[:, None, None] - 8) * np.repeat(s.astype(np.float32), GROUP, axis=1)
    nearest = np.abs(levels - weight).min(axis=0)
    assert np.array_equal(np.abs(found - weight), nearest)


def test_quantise_rounds_ties_to_even_and_clips() -> None:
    weight = np.zeros((1, 32), np.float32)
    weight[0, :6] = [0.5, 1.5, -0.5, -1.5, 1e9, -1e9]
    q = int4.quantise(weight, np.ones((1, 1), np.float16))
    assert q[0, :7].tolist() == [8, 10, 8, 6, 15, 0, 8]


def test_a_group_of_zeros() -> None:
    s = np.ones((1, 1), np.float16)
    q = int4.quantise(np.zeros((1, 32), np.float32), s)
    assert not int4.dequantise(int4.pack(q), s).any()


@pytest.mark.parametrize("scale", [0.5, -0.5])
def test_every_level_survives(scale: float) -> None:
    """Both signs: a signed scale only turns the order of the levels round."""
    s = np.full((1, 1), scale, np.float16)
    levels = (np.tile(np.arange(16), 2)[None] - 8).astype(np.float32) * np.float32(scale)
    assert np.array_equal(int4.dequantise(int4.pack(int4.quantise(levels, s)), s), levels)


def test_num_groups() -> None:
    assert [int4.num_groups(384, size) for size in (32, 64, 128)] == [12, 6, 3]


@pytest.mark.parametrize(
    ("k", "group_size", "advice"),
    [
        (192, 128, "use group_size 64"),
        (96, 128, "use group_size 32"),
        (96, 64, "use group_size 32"),
        (172, 128, "keep this matrix in float16 or int8"),
        (0x7FF0, 32, "keep this matrix in float16 or int8"),
    ],
)
def test_the_refusal_names_the_largest_size_that_fits(k: int, group_size: int, advice: str) -> None:
    with pytest.raises(ConfigError, match=rf"group_size={group_size} weights, found {k}; {advice}$"):
        int4.num_groups(k, group_size)


@pytest.mark.parametrize("group_size", [0, 16, 33, 256, -32])
def test_group_sizes_that_no_op_accepts(group_size: int) -> None:
    with pytest.raises(ConfigError, match=rf"expected one of \(32, 64, 128\), found {group_size}$"):
        int4.num_groups(1024, group_size)
