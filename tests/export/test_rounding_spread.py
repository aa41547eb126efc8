# SPDX-License-Identifier: Apache-2.0
"""GPTQ and coordinate descent against the nearest integers, their formulas, and each other."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from orinkit_export import damping, rounding
from orinkit_export.levels import Levels, levels_of
from orinkit_export.rounding import Rounder, loss, nearest
from rounding_inputs import Float32, Float64, correlated, gauss, gram_of


def row_losses(weight: Float32, rounded: Float32 | Float64, gram: Float32) -> Float64:
    difference = (rounded - weight).astype(np.float64)
    return np.asarray(np.einsum("nk,nk->n", difference @ gram, difference))


def damped(gram: Float32) -> Float32:
    return gram + damping.DAMPING * np.diag(np.diag(gram))


def searched(weight: Float32, gram: Float32, group_size: int, has_zeros: bool = False) -> Levels:
    return levels_of(weight, group_size, np.diag(gram).copy(), has_zeros)


@pytest.fixture
def no_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPTQ alone."""
    monkeypatch.setattr(rounding, "DESCENTS", 0)


@pytest.mark.usefixtures("no_descent")
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_gptq_loses_less_than_the_nearest_integers(group_size: int) -> None:
    gram, weight = gram_of(correlated(1000, 256)), gauss(96, 256, seed=2)
    levels = searched(weight, gram, group_size)
    found = Rounder(group_size, gram, spread_errors=True)(weight)
    assert np.array_equal(found.scales, levels.scales)
    assert loss(weight, found.dequantised(), gram) < 0.8 * loss(weight, nearest(weight, levels).dequantised(), gram)


@pytest.mark.usefixtures("no_descent")
@pytest.mark.parametrize("has_zeros", [False, True])
def test_gptq_against_its_plain_formula(has_zeros: bool) -> None:
    """Column by column in float64, inverting what remains of the Hessian at every step (Frantar et al., eq. 2, 3)."""
    gram, weight, group_size = gram_of(correlated(500, 192)), gauss(8, 192, seed=3), 32
    scales, zeros = searched(weight, gram, group_size, has_zeros)
    order = rounding._order(np.diag(gram), group_size)
    wide, w = damped(gram).astype(np.float64), weight.astype(np.float64).copy()
    expected = np.empty(weight.shape, np.int64)
    remaining = list(order)
    while remaining:
        inverse = np.linalg.inv(wide[np.ix_(remaining, remaining)])
        j = remaining[0]
        s = scales[:, j // group_size].astype(np.float64)
        zero = np.int64(8) if zeros is None else zeros[:, j // group_size].astype(np.int64)
        expected[:, j] = np.clip(np.rint(w[:, j] / s) + zero, 0, 15)
        error = (w[:, j] - (expected[:, j] - zero) * s) / inverse[0, 0]
        w[:, remaining] -= error[:, None] * inverse[0]
        remaining.pop(0)
    found = Rounder(group_size, gram, spread_errors=True, has_zeros=has_zeros)(weight).values
    assert np.mean(found == expected) > 0.99  # float32 may round a tie the other way


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_descent_loses_less_than_gptq_alone(group_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the loss that it lowers, every sweep a little more, in every row."""
    gram, weight = gram_of(correlated(1000, 256)), gauss(96, 256, seed=2)
    found = []
    for sweeps in (0, 1, 3):
        monkeypatch.setattr(rounding, "DESCENTS", sweeps)
        rounded = Rounder(group_size, gram, spread_errors=True)(weight)
        found.append(row_losses(weight, rounded.dequantised(), damped(gram)))
    assert (found[1] <= found[0] * (1 + 1e-4)).all()
    assert (found[2] <= found[1] * (1 + 1e-4)).all()
    assert found[1].sum() < 0.97 * found[0].sum()
    assert found[2].sum() < 0.99 * found[1].sum()


def test_where_descent_ends_no_single_step_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    """After many sweeps no integer one up or down, and no scale a little larger or smaller, lowers the loss of its row;
    computed in float64."""
    gram, weight, group_size = gram_of(correlated(500, 64)), gauss(6, 64, seed=3), 32
    monkeypatch.setattr(rounding, "DESCENTS", 40)
    found = Rounder(group_size, gram, spread_errors=True)(weight)
    q, s = found.values.astype(np.int64) - 8, found.scales.astype(np.float64)
    wide = damped(gram)

    def losses(q: NDArray[np.int64], s: Float64) -> Float64:
        return row_losses(weight, (q.reshape(6, -1, group_size) * s[:, :, None]).reshape(6, 64), wide)

    least = losses(q, s) * (1 - 1e-4)
    for column in range(64):
        for step in (-1, 1):
            moved = q.copy()
            moved[:, column] = np.clip(moved[:, column] + step, -8, 7)
            assert (losses(moved, s) >= least).all()
    for group in range(2):
        for factor in (0.999, 1.001):
            scaled = s.copy()
            scaled[:, group] *= factor
            assert (losses(q, scaled) >= least).all()


@pytest.mark.parametrize("seed", range(4))
def test_no_row_is_worse_than_its_nearest_integers(seed: int) -> None:
    """Even where inputs are few and weights wild."""
    rng = np.random.default_rng(seed)
    gram, weight = gram_of(correlated(40, 128, seed)), rng.standard_t(2, (50, 128)).astype(np.float32)
    plain = nearest(weight, searched(weight, gram, 64)).dequantised()
    found = Rounder(64, gram, spread_errors=True)(weight).dequantised()
    wide = damped(gram)
    assert (row_losses(weight, found, wide) <= row_losses(weight, plain, wide) * (1 + 1e-4)).all()


def test_what_is_learnt_from_one_text_serves_another() -> None:
    """Inputs of the same kind that the rounding has not seen: less than half of what absmax/7 loses."""
    seen, unseen = np.split(correlated(1200, 256, seed=6), 2)
    weight = gauss(96, 256, seed=7)
    found = Rounder(64, gram_of(seen), spread_errors=True)(weight).dequantised()
    plain = (np.abs(weight).reshape(96, 4, 64).max(axis=2) / 7).astype(np.float16)
    lost = (
        loss(weight, found, gram_of(unseen)),
        loss(weight, nearest(weight, Levels(plain)).dequantised(), gram_of(unseen)),
    )
    assert lost[0] < 0.5 * lost[1]


def test_more_rows_than_a_thread_has_in_hand() -> None:
    """Rows do not depend on each other: each is rounded as it would be alone."""
    gram, weight = gram_of(correlated(300, 64)), gauss(rounding.ROWS + 90, 64, seed=8)
    rounder = Rounder(32, gram, spread_errors=True)
    whole = rounder(weight)
    for rows in (slice(0, 40), slice(rounding.ROWS - 20, rounding.ROWS + 20), slice(-3, None)):
        part = rounder(weight[rows])
        assert np.mean(part.values == whole.values[rows]) > 0.99  # another width may round a tie the other way
        assert part.scales.shape == whole.scales[rows].shape


@pytest.mark.parametrize("size", [1, 5, 128, 129, 300, 512])
def test_the_inverse_of_a_triangular_matrix(size: int) -> None:
    upper = np.triu(gauss(size, size)) / np.float32(size) + np.eye(size, dtype=np.float32)
    found = upper.copy()
    damping._invert(found)
    assert np.abs(np.tril(found, -1)).max(initial=0) == 0
    assert np.abs(found.astype(np.float64) @ upper - np.eye(size)).max() < 1e-5


def test_the_factor_is_that_of_the_inverse() -> None:
    gram = damped(gram_of(correlated(900, 200)))
    factor = damping.inverse_factor(gram).astype(np.float64)
    assert np.array_equal(factor, np.triu(factor))
    assert np.abs(factor.T @ factor @ gram - np.eye(200)).max() < 1e-3


@pytest.mark.parametrize("sweeps", [0, 3])
def test_weights_of_one_sign_gain_by_zero_points(sweeps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With GPTQ alone and with the descent behind it; zero points stay what the search made them."""
    monkeypatch.setattr(rounding, "DESCENTS", sweeps)
    gram, weight = gram_of(correlated(600, 128)), np.abs(gauss(40, 128, seed=3))
    zeroed, plain = (Rounder(64, gram, spread_errors=True, has_zeros=has_zeros)(weight) for has_zeros in (True, False))
    assert loss(weight, zeroed.dequantised(), gram) < 0.5 * loss(weight, plain.dequantised(), gram)
    first = searched(weight, gram, 64, has_zeros=True)
    assert loss(weight, zeroed.dequantised(), gram) < 0.8 * loss(weight, nearest(weight, first).dequantised(), gram)
    assert zeroed.levels.zeros is not None
    assert first.zeros is not None
    assert np.array_equal(zeroed.levels.zeros, first.zeros)


@pytest.mark.parametrize("tokens", [1, 3, 64])
def test_fewer_tokens_than_channels(tokens: int) -> None:
    """A singular H is damped, so that it can be factorised."""
    gram, weight = gram_of(correlated(tokens, 256)), gauss(16, 256, seed=9)
    found = Rounder(128, gram, spread_errors=True)(weight)
    plain = nearest(weight, searched(weight, gram, 128)).dequantised()
    assert loss(weight, found.dequantised(), gram) < 0.5 * loss(weight, plain, gram)


def test_the_order_keeps_groups_together() -> None:
    importance = np.abs(gauss(1, 128, seed=4))[0]
    order = rounding._order(importance, 32)
    assert sorted(order) == list(range(128))
    groups = (order // 32).reshape(4, 32)
    assert (groups == groups[:, :1]).all()
    means = importance.reshape(4, 32).mean(axis=1)
    assert (np.diff(means[groups[:, 0]]) <= 0).all()
    assert (np.diff(importance[order].reshape(4, 32), axis=1) <= 0).all()


def test_channels_without_input_keep_their_weights() -> None:
    """The calibration text never used them; another text may. They are rounded to the nearest and move nothing."""
    x = correlated(300, 64)
    x[:, 5] = 0
    x[:, 32:] = 0  # and a whole group
    gram, weight = gram_of(x), gauss(16, 64, seed=5)
    found = Rounder(32, gram, spread_errors=True)(weight)
    quiet = [5, *range(32, 64)]
    assert np.array_equal(found.values[:, quiet], nearest(weight, found.levels).values[:, quiet])
    assert np.array_equal(found.scales[:, 1], searched(weight, gram, 32).scales[:, 1])
    plain = nearest(weight, searched(weight, gram, 32))
    assert loss(weight, found.dequantised(), gram) < loss(weight, plain.dequantised(), gram)


def test_groups_of_zeros_stay_zero() -> None:
    gram, weight = gram_of(correlated(300, 64)), gauss(16, 64, seed=5)
    weight[3] = 0
    weight[4, 32:] = 0
    found = Rounder(32, gram, spread_errors=True)(weight)
    assert not found.dequantised()[3].any()
    assert np.isfinite(found.scales).all()
    assert (found.scales != 0).all()
