# SPDX-License-Identifier: Apache-2.0
"""The nearest integers, and what they lose."""

from __future__ import annotations

import numpy as np
import pytest

from orinkit import int4
from orinkit_export import rounding
from orinkit_export.levels import Levels, levels_of, search
from orinkit_export.rounding import Rounder, loss, nearest
from rounding_inputs import correlated, gauss, gram_of


@pytest.mark.parametrize("has_zeros", [False, True])
@pytest.mark.parametrize(("n", "k", "group_size"), [(5, 128, 128), (3, 192, 64), (4100, 96, 32)])
def test_int4(n: int, k: int, group_size: int, has_zeros: bool) -> None:
    """Integers are chosen for the levels as stored; more rows than one thread takes at a time."""
    given = gauss(n, k) * np.float32(0.02)
    rounded = Rounder(group_size, has_zeros=has_zeros)(given)
    levels = search(given.reshape(-1, group_size), has_zeros=has_zeros).in_rows(n)
    types = [array.dtype.name for array in (rounded.packed, *rounded.beside)]
    assert types == ["int8", "float16", "int8"][: 2 + has_zeros]
    assert np.array_equal(rounded.scales, levels.scales)
    assert rounded.packed.tobytes() == int4.pack(int4.quantise(given, *levels)).tobytes()
    if levels.zeros is not None and rounded.zeros is not None:
        assert rounded.zeros.tobytes() == int4.pack(levels.zeros).tobytes()
    step = np.repeat(levels.scales.astype(np.float64), group_size, axis=1)
    inside = (rounded.values > 0) & (rounded.values < 15)
    assert (np.abs(rounded.dequantised() - given.astype(np.float64)) <= 0.5001 * np.abs(step))[inside].all()
    assert inside.mean() > 0.8


def test_the_loss_is_the_mean_squared_output_error() -> None:
    x, weight = correlated(400, 64), gauss(20, 64, seed=1)
    rounded = Rounder(32)(weight).dequantised()
    direct = np.mean(np.sum((x.astype(np.float64) @ (rounded - weight).T.astype(np.float64)) ** 2, axis=1))
    assert loss(weight, rounded, gram_of(x)) == pytest.approx(direct, rel=1e-4)


def test_importance_moves_the_error_to_columns_that_matter_less() -> None:
    weight, importance = gauss(300, 64), np.ones(64, np.float32)
    importance[::4] = 100
    plain, weighted = (nearest(weight, levels_of(weight, 64, how)).dequantised() - weight for how in (None, importance))
    assert np.sum(weighted[:, ::4] ** 2) < np.sum(plain[:, ::4] ** 2)


def test_plain_loss() -> None:
    """A share of the outputs' power, by absmax/7."""
    x, weight = correlated(400, 64), gauss(20, 64, seed=1)
    scales = (np.abs(weight).reshape(20, 2, 32).max(axis=2) / 7).astype(np.float16)
    wide = x.astype(np.float64)
    lost = wide @ (nearest(weight, Levels(scales)).dequantised() - weight).T
    expected = (lost**2).sum() / ((wide @ weight.T) ** 2).sum()
    assert rounding.plain_loss(weight, 32, gram_of(x)) == pytest.approx(expected, rel=1e-3)
    assert rounding.plain_loss(np.zeros((4, 64), np.float32), 32, gram_of(x)) == 0
