# SPDX-License-Identifier: Apache-2.0
"""Damped Gram matrices and their inverses, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from orinkit_export.damping import BLOCK, DAMPING, damped, inverse_factor, solved


def gram(width: int, tokens: int) -> NDArray[np.float32]:
    x = np.random.default_rng(width).standard_normal((tokens, width)).astype(np.float32)
    return np.asarray(x.T @ x, np.float32)


def test_each_channel_gets_a_share_of_its_own_power() -> None:
    found, given = damped(gram(6, 40)), gram(6, 40)
    added = found - given
    np.testing.assert_allclose(np.diag(added), DAMPING * np.diag(given), rtol=1e-5)
    assert np.count_nonzero(added - np.diag(np.diag(added))) == 0


def test_what_is_damped_is_a_copy() -> None:
    given = gram(6, 40)
    damped(given)
    np.testing.assert_array_equal(given, gram(6, 40))


@pytest.mark.parametrize("width", [1, 5, BLOCK, BLOCK + 1, 2 * BLOCK + 37])
def test_the_factor_is_that_of_the_inverse(width: int) -> None:
    given = damped(gram(width, 4 * width))
    factor = inverse_factor(given).astype(np.float64)
    assert np.array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(factor.T @ factor @ given, np.eye(width), atol=1e-4)


def test_fewer_tokens_than_channels_can_be_factorised() -> None:
    given = damped(gram(64, 8))
    factor = inverse_factor(given).astype(np.float64)
    np.testing.assert_allclose(factor.T @ factor @ given, np.eye(64), atol=1e-4)


def test_a_channel_without_input_spreads_nothing() -> None:
    given = gram(16, 80)
    given[3] = given[:, 3] = 0
    factor = inverse_factor(damped(given))
    assert factor[3, 3] == 1
    assert np.count_nonzero(factor[3]) == np.count_nonzero(factor[:, 3]) == 1


def test_a_system_is_solved_for_the_damped_matrix() -> None:
    given, right = gram(150, 600), np.random.default_rng(1).standard_normal((7, 150)).astype(np.float32)
    wanted = right @ np.linalg.inv(damped(given).astype(np.float64))
    np.testing.assert_allclose(solved(given, right), wanted, rtol=1e-3, atol=1e-6)
